"""The health of any unmodified model in one call."""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.experiment import anatomy, examination, expectation, health
from dltheory.experiment import remedies as healing
from dltheory.experiment.anatomy import Model
from dltheory.experiment.catalogue import UsageError
from dltheory.experiment.examination import Readings
from dltheory.experiment.expectation import Expectation
from dltheory.experiment.presentation import LayerHealth, Report
from dltheory.measure import convolution, jacobians
from dltheory.networks.sites import Site

Quantiles = tuple[float, float, float]


def inspect(
    f: Callable,
    params: Any,
    x: Array,
    y: Array | None = None,
    *,
    loss: Callable[[Array], Array] | None = None,
    phi: str | Callable[[Array], Array] | None = None,
    spectra: bool | None = None,
    remedies: bool = True,
) -> Report:
    r"""The health of any unmodified model: what each layer does, what is wrong, and what heals it.

    Signals, gradients, Jacobians and flat units are measured layer by layer; mean-field theory
    says of each layer what to expect given the one before it. A network is at fault where a bound
    of theory is passed (`health` states them all), and each remedy is tried on the model.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.
        y: Targets: whole numbers are classes, for the cross-entropy; others are regressed on.
        loss: `loss(output) -> scalar`, in place of `y`. With neither, the gradient is that of a
            random combination of outputs.
        phi: The activation; by default the one before each layer is found by trying it.
        spectra: Whether singular values of all Jacobians are measured; by default where no layer
            has more than 128 features and no example moves another.
        remedies: Whether remedies are looked for and tried.

    Returns:
        The `Report`.

    Raises:
        SiteError: If the model has no layers.
        TypeError: If `y` and `loss` are both given.
        ValueError: If `x` holds no example, or the classes do not match the output.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.experiment import inspection
        >>> w = jax.random.normal(jax.random.key(0), (20, 64, 64)) / 8
        >>> f = lambda w, x: jax.lax.scan(lambda h, w: (jnp.tanh(h) @ w, None), x, w)[0]
        >>> inspection.inspect(f, w, jnp.ones((2, 64)), spectra=False).healthy
        True
        >>> found = inspection.inspect(f, w / 2, jnp.ones((2, 64)), remedies=False, spectra=False)
        >>> found.faults[0].kind, found.faults[0].site
        ('vanishing', 'params[1]')

    Source:
        Schoenholz et al. (2017), Deep information propagation: networks train to a depth of about
        six depth scales.
    """
    if y is not None:
        if loss is not None:
            raise TypeError("y and loss are both given; want one: close over y in loss")
        loss = functools.partial(_loss, jnp.asarray(y))
    model = anatomy.model(f, params, x, loss, phi)
    readings = examination.read(model, params)
    theory = expectation.expect(model, readings, examination.has_skip(model, params))
    scale = examination.loss_scale(model, params, readings)
    scaled = examination.read(model, params, scale=scale) if model.half.any() else None
    faults = health.find(model, readings, theory, scaled)
    found = tuple(
        healing.prescribe(
            model, params, readings, theory, fault, key=jax.random.key(0), loss_scale=scale
        )
        for fault in faults
        if remedies
    )
    small = spectra is None and model.features.max() <= 128 and x[0].size <= 128
    quantiles = _quantiles(f, params, x) if spectra or (small and not readings.coupled) else {}
    fields = convolution.receptive_fields(f, params, x) if x.ndim > 2 else {}
    layers = _layers(model, readings, theory, fields, quantiles)
    past = tuple(str(site) for site, skip in zip(model.sites, theory.skips, strict=True) if skip)
    return Report(layers, faults, found, past, readings.coupled)


def made(target: str) -> tuple:
    """What a factory named on the command line returns.

    Args:
        target: `module:function`; the folder at work is searched too. It takes no argument and
            returns `(f, params, x)` or `(f, params, x, y)`.

    Returns:
        That.

    Raises:
        UsageError: If there is no such function, or it returns something else.
    """
    name, _, attribute = target.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        factory = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{target}: {error}; want MODULE:FACTORY, a function of a module that can be imported"
        ) from error
    model = factory()
    if not isinstance(model, tuple) or len(model) not in (3, 4):
        raise UsageError(f"{target} returns {type(model).__name__}; want (f, params, x[, y])")
    return model


def _loss(y: Array, output: Array) -> Array:
    """Cross-entropy of classes, or half the mean squared error."""
    if jnp.issubdtype(y.dtype, jnp.integer):
        if y.shape != output.shape[:-1]:
            raise ValueError(
                f"y has shape {y.shape} for an output of shape {output.shape}; want one class for "
                f"each example, {output.shape[:-1]}"
            )
        chosen = jnp.take_along_axis(jax.nn.log_softmax(output), y[..., None], -1)
        return -jnp.mean(chosen)
    return jnp.mean(jnp.square(output - y.reshape(output.shape).astype(output.dtype))) / 2


def _quantiles(f: Callable, params: Any, x: Array) -> dict[Site, tuple]:
    """By layer, quantiles of the local and the cumulative spectrum."""
    spectra = jacobians.layer_spectra(f, params, x, log_domain=False)
    of = lambda values: (
        None
        if values is None
        else tuple(
            float(v)
            for v in np.quantile(np.asarray(values, float), (0.05, 0.5, 0.95), method="nearest")
        )
    )
    rows = zip(spectra.sites, spectra.local, spectra.input_to_layer, strict=True)
    return {site: (of(local), of(cumulative)) for site, local, cumulative in rows}


def _layers(
    model: Model,
    readings: Readings,
    theory: Expectation,
    fields: dict,
    quantiles: dict[Site, tuple],
) -> tuple[LayerHealth, ...]:
    rows = []
    flat = np.array([*(phi is not None for phi in model.feeds[1:]), False])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        q, chi_1 = np.exp(readings.log_q), np.exp(readings.growth)
        # A skip adds what it carries: theory of the branch alone says nothing of the sum.
        fed = ~theory.skips
        one_ahead = np.array([phi is not None for phi in model.feeds]) & fed
        expected = np.where(one_ahead, theory.q, np.nan)
        growth = np.where(one_ahead, theory.chi_1, np.nan)
        q_z = (q - expected) / theory.q_std
        chi_1_z = (chi_1 - growth) / theory.chi_1_std
    for row, site in enumerate(model.sites):
        phi = model.feeds[row]
        local, cumulative = quantiles.get(site, (None, None))
        numbers = (
            readings.weight_var,
            readings.bias_var,
            q,
            expected,
            theory.q_std,
            q_z,
            readings.c,
            np.where(one_ahead, theory.c, np.nan),
            chi_1,
            growth,
            theory.chi_1_std,
            chi_1_z,
            readings.log_gradient,
            np.where(flat, readings.saturated, np.nan),
            np.where(flat, readings.dead, np.nan),
        )
        rows.append(
            LayerHealth(
                site,
                None if phi is None else phi.name,
                *[float(column[row]) for column in numbers],  # pyright: ignore
                receptive_field=fields.get(site),
                local=local,
                cumulative=cumulative,
            )
        )
    return tuple(rows)
