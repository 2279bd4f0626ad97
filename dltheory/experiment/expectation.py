r"""What theory expects of each layer of one network, given the layer before it.

One step ahead: from the measured length `q` of a layer and the weight and bias variance that the
next layer's parameters have, so that a deviation belongs to the layer where it is seen.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import special

from dltheory.experiment.anatomy import Model
from dltheory.experiment.examination import FLAT, Readings
from dltheory.experiment.recognition import GRID, slopes
from dltheory.networks.activations import Activation
from dltheory.numerics import gaussian
from dltheory.theory import mean_field

_ROWS = 32  # lengths are padded to a multiple of so many, so that few programs are compiled


class Expectation(NamedTuple):
    r"""Theory for each layer with a kernel: NumPy arrays `(layers,)`, NaN where it says nothing.

    Attributes:
        q: Mean squared value, :math:`\sigma_w^2\,\mathbb{E}\,\phi(h)^2 + \sigma_b^2`.
        q_std: Its standard deviation at this width, from the layer before and its own units.
        c: Correlation of two examples of that length.
        chi_1: Growth of squared gradients, :math:`\sigma_w^2\,\mathbb{E}\,\phi'(h)^2`.
        chi_1_std: Its standard deviation at this width.
        flat: Probability that a Gaussian signal of the layer's length meets the next activation
            where it is flat.
        skips: Whether a skip connection leads past the layer, which theory leaves out.
    """

    q: np.ndarray
    q_std: np.ndarray
    c: np.ndarray
    chi_1: np.ndarray
    chi_1_std: np.ndarray
    flat: np.ndarray
    skips: np.ndarray


def expect(model: Model, readings: Readings, skips: np.ndarray) -> Expectation:
    r"""Mean-field theory, one layer ahead, with its finite-width band.

    The band is :math:`\sqrt{\sigma_w^4 \operatorname{Var} \phi^2 / n + 2 q^2 / n'}` for the
    length and :math:`\sigma_w^2 \sqrt{\operatorname{Var} \phi'^2 / n}` for the growth, with the
    inputs `n` and outputs `n'` of the kernel, channels for a convolution. It is that of one input:
    the mean over several strays no further.

    Args:
        model: Result of `anatomy.model`.
        readings: Result of `examination.read`.
        skips: Result of `examination.has_skip`.

    Returns:
        The `Expectation`.

    Source:
        Poole et al. (2016), Schoenholz et al. (2017); the band as in `theory.fluctuations`.
    """
    found = Expectation(*np.full((6, len(model.sites)), np.nan), skips=skips)
    groups: dict[Activation, list[int]] = {}
    for row, phi in enumerate(model.feeds):
        if phi is not None:
            groups.setdefault(phi, []).append(row)
    for phi, rows in groups.items():
        before = np.exp(readings.log_q[np.array(rows) - 1])
        moments = averages(phi, np.where(np.isfinite(before), before, 0))
        square, fourth, slope, slope_fourth = moments
        w, b = readings.weight_var[rows], readings.bias_var[rows]
        units, own = (np.array([_units(model, row, side) for row in rows]) for side in (0, 1))
        found.q[rows] = w * square + b
        noise = w**2 * np.maximum(fourth - square**2, 0) / units + 2 * found.q[rows] ** 2 / own
        found.q_std[rows] = np.sqrt(noise)
        found.c[rows] = _next_correlation(phi, before, readings.c[np.array(rows) - 1], w, b)
        found.chi_1[rows] = w * slope
        found.chi_1_std[rows] = w * np.sqrt(np.maximum(slope_fourth - slope**2, 0) / units)
        for row in rows:
            found.flat[row - 1] = flat_share(model, row, readings.log_q[row - 1])
    return found


def averages(phi: Activation, q: np.ndarray) -> np.ndarray:
    """Gaussian averages of the second and fourth powers of an activation and of its slope.

    Args:
        phi: The activation.
        q: Lengths, shape `(n,)`.

    Returns:
        Shape `(4, n)`.
    """
    return np.asarray(_averages(phi, _padded(q)), float)[:, : len(q)]


def flat_share(model: Model, row: int, log_q: float) -> float:
    """Probability that a Gaussian signal meets the activation before a layer where it is flat.

    Args:
        model: Result of `anatomy.model`.
        row: The layer with that activation before it.
        log_q: Log of the signal's length.

    Returns:
        The probability; NaN where the activation is not known.
    """
    table = model.tables[row]
    if table is None:
        return math.nan
    edges = GRID / max(math.exp(log_q / 2) if log_q < 700 else math.inf, 1e-30)
    edges[0], edges[-1] = -np.inf, np.inf
    mass = np.diff(np.asarray(special.ndtr(edges), float))
    return float(mass[slopes(table) < FLAT].sum())


@functools.cache
def critical(phi: Activation, bias_var: float) -> tuple[float, float] | None:
    """The edge of chaos of an activation, or None where it has none.

    Args:
        phi: The activation.
        bias_var: Bias variance.

    Returns:
        Weight variance and length; the length is NaN where every length is fixed.
    """
    weight_var, q = _edge(phi, jnp.asarray(bias_var, float))
    return None if jnp.isnan(weight_var) else (float(weight_var), float(q))


def _padded(values: np.ndarray) -> Array:
    missing = -len(values) % _ROWS if len(values) else _ROWS
    return jnp.asarray(np.pad(values, (0, missing), constant_values=0.5), float)


def _next_correlation(phi: Activation, q, c, weight_var, bias_var) -> np.ndarray:
    known = np.isfinite(q) & np.isfinite(c)
    given = (np.where(known, q, 1.0), np.clip(np.where(known, c, 0.0), -1, 1), weight_var, bias_var)
    found = np.asarray(_correlations(phi, *map(_padded, given)), float)[: len(q)]
    return np.where(known, found, np.nan)


def _units(model: Model, row: int, side: int) -> int:
    """How many inputs (0) or outputs (1) the kernel of a layer has."""
    kernel = model.kernels[row]
    assert kernel is not None
    shape = model.leaf_shapes[kernel.leaf]
    return math.prod(shape[axis] for axis in (kernel.outputs if side else kernel.inputs))


@functools.partial(jax.jit, static_argnums=0)
def _edge(phi: Activation, bias_var: Array) -> mean_field.CriticalPoint:
    # Traced, for speed: NaN where it would raise.
    return mean_field.edge_of_chaos(phi, bias_var=bias_var)


@functools.partial(jax.jit, static_argnums=0)
def _correlations(phi: Activation, q: Array, c: Array, weight_var: Array, bias_var: Array) -> Array:
    return mean_field.c_map(phi, c, q=q, weight_var=weight_var, bias_var=bias_var)


@functools.partial(jax.jit, static_argnums=0)
def _averages(phi: Activation, q: Array) -> Array:
    z, weights = gaussian.quadrature(q, kinks=phi.kinks)
    h = jnp.sqrt(q)[..., None] * z
    value, slope = phi(h), jnp.vectorize(jax.grad(phi.fn))(h)
    powers = jnp.stack([value**2, value**4, slope**2, slope**4])
    return jnp.sum(weights[None] * powers, -1)
