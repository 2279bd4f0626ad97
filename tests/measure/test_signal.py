"""Lengths, correlations and gradients on every model of the table, against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import signal
from dltheory.networks import sites
from tests.model_table import CASES, kinds, parameters

table = pytest.mark.parametrize("case", parameters(kinds()))


def rows(case, site, value):
    """The value of a site, one row an example."""
    axis = dict(case.example_axes).get(site, 0)
    return np.moveaxis(np.asarray(value), axis, 0).reshape(3, -1)


@table
def test_moments_are_those_of_the_models_own_intermediates(case):
    f, params, x = case.build()
    measured = jax.jit(lambda params, x: signal.moments(f, params, x))(params, x)
    wanted = jax.jit(case.expected)(params, x)
    for layer, site in enumerate(case.sites):
        h = rows(case, site, wanted[site])
        gram = h @ h.T / h.shape[1]
        q = np.diag(gram)
        np.testing.assert_allclose(measured.q[layer], q, rtol=1e-12)
        np.testing.assert_allclose(measured.c[layer], gram / np.sqrt(np.outer(q, q)), atol=1e-12)


@table
def test_gradient_norms_are_those_of_differences(case):
    f, params, x = case.build()
    loss = lambda y: jnp.sum(jnp.sin(y))
    measured = jax.jit(lambda p, x: signal.gradient_norms(loss, f, p, x).log_norms)(params, x)
    assert measured.shape == (len(case.sites), 3)
    site = case.sites[-1]
    text, index = sites.parse(site)
    layer = sites.trace(f, params, x).layer(text)
    run = sites.tapped(f, params, x)

    @jax.jit
    def at(tap):
        taps = jnp.zeros((*layer.lengths, *layer.shape), layer.dtype)
        return loss(run(params, x, {text: taps.at[index or ()].set(tap)})[0])

    h = 1e-5
    units = h * np.eye(int(np.prod(layer.shape))).reshape(-1, *layer.shape)
    gradient = np.array([(at(u) - at(-u)) / (2 * h) for u in units]).reshape(layer.shape)
    wanted = np.linalg.norm(rows(case, site, gradient), axis=1)
    np.testing.assert_allclose(np.exp(measured[-1]), wanted, rtol=1e-7)


@pytest.mark.usefixtures("float32")
def test_nothing_underflows_or_overflows():
    f = lambda w, x: (x @ w["in"]) @ w["out"]
    w = {"in": 1e-22 * jnp.eye(2), "out": 1e-25 * jnp.eye(2)}
    x = jnp.array([[3.0, 4.0], [4.0, 3.0]])
    moments = signal.moments(f, w, x)
    np.testing.assert_allclose(moments.c[0], [[1.0, 0.96], [0.96, 1.0]], rtol=1e-6)
    norms = signal.gradient_norms(lambda y: y[:, 0].sum(), f, w, x)
    np.testing.assert_allclose(norms.log_norms[0], np.log(1e-25), rtol=1e-6)


def test_a_gradient_that_is_zero_has_norm_minus_infinity():
    f = lambda w, x: (x @ w["in"]) @ w["out"]
    w = {"in": jnp.eye(2), "out": jnp.zeros((2, 1))}
    norms = signal.gradient_norms(jnp.sum, f, w, jnp.ones((1, 2))).log_norms
    np.testing.assert_array_equal(norms, [[-np.inf], [0.0]])


def test_a_loss_that_is_no_scalar_is_refused():
    f, params, x = CASES[0].build()
    with pytest.raises(TypeError, match=r"loss\(y\) is float64\[3, 2\], want a real scalar"):
        signal.gradient_norms(lambda y: y, f, params, x)
