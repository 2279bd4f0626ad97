"""Every measurement compiles for GPUs and TPUs, and leaves the device for nothing."""

import re

import jax
import jax.numpy as jnp
import pytest

from dltheory.measure import activations, jacobians, ntk, signal
from dltheory.networks import functional, models
from dltheory.numerics import krylov, log_spectrum, singular_values

X = jnp.ones((2, 6))
F, PARAMS = functional.pure(*(lambda m: (m, m.init(jax.random.key(0), X)))(models.MLP(8, 3, 4)))
KEY = jax.random.key(0)
SQUARE = jnp.ones((4, 5, 5))

MEASUREMENTS = {
    "moments": lambda w, x: signal.moments(F, w, x),
    "gradient_norms": lambda w, x: signal.gradient_norms(lambda y: jnp.sum(y**2), F, w, x)[1:],
    "jacobian": lambda w, x: jacobians.jacobian(F, w, x, "input", "output"),
    "layer_spectra": lambda w, x: jacobians.layer_spectra(F, w, x)[1:],
    "spectrum": lambda w, x: jacobians.spectrum(KEY, F, w, x, "input", "output", k=2),
    "saturation": lambda w, x: activations.saturation(F, w, x, phi="tanh")[1:],
    "empirical_ntk": lambda w, x: ntk.empirical_ntk(F, w, x),
    "singular_values": lambda _, x: singular_values.singular_values(SQUARE * x[0, 0]),
    "log_singular_values": lambda _, x: log_spectrum.log_singular_values(SQUARE * x[0, 0]),
    "top_singular_values": lambda _, x: krylov.top_singular_values(
        KEY, lambda v: SQUARE[0] @ v * x[0, 0], SQUARE[0, 0], 2
    ),
}


def calls(measurement, platform):
    """Names of the foreign functions that the compiled measurement calls."""
    exported = jax.export.export(jax.jit(measurement), platforms=[platform])(PARAMS, X)
    return set(re.findall(r"custom_call @(\w+)", exported.mlir_module()))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_measurements_stay_on_the_device(name, platform):
    assert not any(
        "callback" in call or "lapack" in call for call in calls(MEASUREMENTS[name], platform)
    )


def test_a_host_callback_would_be_seen():
    back = lambda _, x: jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct(x.shape, x.dtype), x)
    with pytest.raises(ValueError, match="lowering platform"):
        calls(back, "cuda")
    on_cpu = lambda _, x: singular_values.singular_values(SQUARE * x[0, 0])
    assert any("lapack" in call for call in calls(on_cpu, "cpu"))
