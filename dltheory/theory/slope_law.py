r"""The law of squared slopes, and the spectrum of a product of them: behind `free_probability`.

The squared slope of a unit is :math:`a = \phi'(h)^2 / \mathbb{E}\,\phi'(h)^2`, `h` Gaussian. The
Gaussian's probability is cut into cells, at every kink too, and in each cell :math:`a` is a
parabola through three Gauss points. Its transforms

.. math:: M(u) = \mathbb{E}\,\frac{a}{u - a}, \qquad \mathbb{E}\,\ln(u - a)

are then closed forms, exact up to the real axis and within the support, where sums over points
would be useless.

A spectrum is described by a function :math:`\zeta(u)`: the point of the spectrum that belongs to
`u`, at which :math:`M_{JJ^T}(\zeta(u)) = M(u)`. Where `u` runs along the curve in the upper
half-plane on which :math:`\zeta` is real, :math:`\zeta` runs through the spectrum. In polar
coordinates :math:`\arg \zeta / \arg u` increases with :math:`\arg u` at every :math:`|u|`, so that
each radius has one point of the curve or none, and bisection cannot fail.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr, ndtri

from dltheory.networks.activations import Activation
from dltheory.numerics.results import Density

_CELLS = 256
_END = 8.6  # standard deviations; what lies beyond has probability 1e-17
_GAUSS = np.sqrt(0.6)
_SMALL = 0.01  # then the next term of a series is 1e-13
_DEEPEST = 60.0  # nats below the largest radius


class Law(NamedTuple):
    """Law of the squared slopes, relative to their mean.

    Attributes:
        mean: Mean squared slope, shape `()`.
        largest: The largest, relative to the mean, shape `()`.
        mass: Probability of each cell, shape `(cells,)`.
        values: Squared slopes at the three Gauss points of each cell, shape `(cells, 3)`.
    """

    mean: Array
    largest: Array
    mass: Array
    values: Array


class Spectrum(NamedTuple):
    r"""A spectrum, by functions of complex `u` that return arrays of its shape.

    Attributes:
        transform: From `u` to the logarithm of :math:`\zeta(u)`, and :math:`M(u)`.
        potential: From `u` and :math:`M(u)` to the integral of :math:`(1 + M) / \zeta` over `zeta`:
            the mean of :math:`\ln(\zeta - \lambda)` over the spectrum, but for a constant.
    """

    transform: Callable[[Array], tuple[Array, Array]]
    potential: Callable[[Array, Array], Array]


class Curve(NamedTuple):
    """A spectrum along the curve on which it is real, shape `(points,)`, ascending.

    Attributes:
        log_values: Logarithms of points of the spectrum.
        slope: Density of the logarithm there, exactly zero in gaps.
        above: Mass above.
    """

    log_values: Array
    slope: Array
    above: Array


def of(phi: Activation, q: Array) -> Law:
    """The law of the squared slopes of an activation.

    Args:
        phi: Activation.
        q: Variance of the pre-activations, shape `()`.

    Returns:
        The law.
    """
    # As q tends to zero: both sides of a kink at the origin.
    std = jnp.sqrt(jnp.where(q == 0, jnp.finfo(q.dtype).tiny, q))
    # Cells are even in asinh(h), because slopes vary on a scale of one in h.
    ends = jnp.arcsinh(_END * std)
    grid = jnp.linspace(-1, 1, _CELLS + 1, dtype=q.dtype)
    edges = jnp.sinh(grid * ends) / std
    kinks = [jnp.clip(k / std, -_END, _END) for k in phi.kinks if k != 0]
    edges = jnp.sort(jnp.concatenate([edges, jnp.stack(kinks)])) if kinks else edges

    # By the smaller tail, where a probability has all its digits.
    side = jnp.where(edges[1:] + edges[:-1] > 0, -1, 1).astype(q.dtype)
    low, high = ndtr(side * edges[:-1]), ndtr(side * edges[1:])
    middle, half = (low + high) / 2, (high - low) / 2
    nodes = jnp.asarray([[-_GAUSS, 0, _GAUSS]], q.dtype)
    z = side[:, None] * ndtri(middle[:, None] + half[:, None] * nodes)
    slopes = jax.vmap(jax.vmap(jax.grad(phi)))(std * z)

    mass = jnp.abs(high - low)
    values, mass = jnp.square(slopes), mass / jnp.sum(mass)
    mean = jnp.sum(mass[:, None] * values * _weights(q.dtype))
    values = values / mean
    _, slope, bend = _parabola(values)
    curved = (bend < 0) & (jnp.abs(slope) <= -2 * bend)
    vertex = values[:, 1] - slope**2 / jnp.where(curved, 4 * bend, 1)
    largest = jnp.maximum(values.max(), jnp.max(jnp.where(curved, vertex, 0)))
    return Law(mean, largest, mass, values)


def pieces(phi: Activation, q: Array) -> tuple[Array, Array, Array]:
    """The pieces of an activation between its kinks.

    Args:
        phi: Activation.
        q: Variance of the pre-activations, shape `()`.

    Returns:
        The squared slope somewhere in each piece, whether it is constant, and the piece's
        probability, each of shape `(pieces,)`.
    """
    kinks = np.asarray(phi.kinks, float)
    ends = np.concatenate([[-np.inf], kinks, [np.inf]])
    steps = np.array([0.13, 0.37, 0.71])
    inside = []
    for low, high in itertools.pairwise(ends):
        if np.isinf(low) and np.isinf(high):
            inside.append(7 * steps - 3)
        elif np.isinf(low) or np.isinf(high):
            inside.append(high - 5 * steps if np.isinf(low) else low + 5 * steps)
        else:
            inside.append(low + (high - low) * steps)
    slopes = jax.vmap(jax.vmap(jax.grad(phi)))(jnp.asarray(np.stack(inside), q.dtype))
    squares = jnp.square(slopes)
    flat = jnp.ptp(squares, axis=1) <= 8 * jnp.finfo(q.dtype).eps * squares[:, 0]
    std = jnp.sqrt(jnp.where(q == 0, jnp.finfo(q.dtype).tiny, q))
    z = jnp.asarray(kinks, q.dtype) / std
    below = jnp.concatenate([jnp.zeros(1, q.dtype), ndtr(z), jnp.ones(1, q.dtype)])
    return squares[:, 0], flat, jnp.diff(below)


def product(law: Law, depth: int, gaussian: bool) -> Spectrum:
    r"""The spectrum of a product of weights and slopes, relative to its mean.

    .. math:: \zeta(u) = u^L \left(\frac{M(u)}{1 + M(u)}\right)^{L - 1} (1 + M(u))^{g L}

    with `g` one for Gaussian weights and zero for orthogonal ones.

    Args:
        law: Law of the squared slopes.
        depth: Number of layers.
        gaussian: Whether the weights are Gaussian.

    Returns:
        The spectrum, whose functions take `u` of shape `(n,)`.
    """

    def transform(u: Array) -> tuple[Array, Array]:
        one_plus = _one_plus_m(law, u)
        m, log_one_plus = one_plus - 1, jnp.log(one_plus)
        log_zeta = depth * jnp.log(u) + (depth - 1) * (jnp.log(m) - log_one_plus)
        return log_zeta + (depth * log_one_plus if gaussian else 0), m

    def potential(u: Array, m: Array) -> Array:
        value = depth * _mean_log(law, u) + (depth - 1) * jnp.log(m)
        return value + (depth * m if gaussian else 0)

    return Spectrum(transform, potential)


def edge(law: Law, depth: int, gaussian: bool, spread: Array) -> tuple[Array, Array]:
    r"""The largest point of the spectrum: where :math:`\zeta(u)` turns, coming from infinity.

    Args:
        law: Law of the squared slopes.
        depth: Number of layers.
        gaussian: Whether the weights are Gaussian.
        spread: Relative variance of the spectrum, which bounds the search.

    Returns:
        The `u` of the edge and the logarithm of the edge, each of shape `()`.
    """
    weights = _weights(law.mass.dtype)
    eps = jnp.finfo(law.mass.dtype).eps

    def transform(u: Array) -> tuple[Array, Array]:
        """The transform, and its slope in ln u."""
        gap = u - law.values
        m = jnp.sum(law.mass[:, None] * law.values * weights / gap)
        return m, -u * jnp.sum(law.mass[:, None] * law.values * weights / gap**2)

    def rises(excess: Array) -> Array:
        m, slope = transform(law.largest * (1 + excess))
        inner = (depth - 1) / m / (1 + m) + (depth / (1 + m) if gaussian else 0)
        return depth + slope * inner > 0

    # Beyond `highest` zeta is close to its asymptote u, and rises.
    highest = jnp.log(4 * (1 + spread))
    lowest = np.log(4 * float(eps))
    grid = jnp.exp(lowest + (highest - lowest) * jnp.linspace(0, 1, 256, dtype=eps.dtype))
    falls = ~jax.lax.map(rises, jax.lax.stop_gradient(grid))
    last = falls.size - 1 - jnp.argmax(jnp.flip(falls))

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = jnp.sqrt(ends[0] * ends[1])
        up = rises(middle)
        return jnp.where(up, ends[0], middle), jnp.where(up, middle, ends[1])

    ends = grid[last], grid[jnp.minimum(last + 1, grid.size - 1)]
    root = jax.lax.fori_loop(0, 50, halve, jax.lax.stop_gradient(ends))[1]
    # At the turn the slope is zero: to first order the edge does not depend on where u is.
    turn = jax.lax.stop_gradient(law.largest * (1 + root))
    u = jnp.where(jnp.any(falls), turn, law.largest * (1 + 4 * eps))
    m, _ = transform(u)
    log_edge = depth * jnp.log(u) + (depth - 1) * (jnp.log(m) - jnp.log1p(m))
    return u, log_edge + (depth * jnp.log1p(m) if gaussian else 0)


def curve(spectrum: Spectrum, highest: Array, log_scale: Array, points: int) -> Curve:
    """Follow a spectrum along the curve on which it is real.

    Args:
        spectrum: The spectrum.
        highest: The `u` of the upper edge, shape `()`.
        log_scale: Logarithm of what to multiply the spectrum with, shape `()`.
        points: How many points.

    Returns:
        The curve: all but the last millionth of the mass, and no value that underflows.
    """
    dtype = highest.dtype
    eps, tiny = (float(x) for x in (jnp.finfo(dtype).eps, jnp.finfo(dtype).tiny))
    size = max(points, 128)
    search = np.append(0.0, np.geomspace(1e-7, _DEEPEST, size - 1))
    # Strictly between the two ends, close to both: densities there rise as roots, or diverge.
    steps = (np.arange(points)[::-1] + 0.5) / points
    share = np.pad(np.sin(np.pi / 2 * steps) ** 2, (0, size - points), mode="edge")
    search, share = jnp.asarray(search, dtype), jnp.asarray(share, dtype)

    def look(depths: Array, _: None) -> tuple[Array, Curve]:
        found = _follow(spectrum, jnp.log(highest) - depths)
        held = found.log_values + log_scale > np.log(tiny) + 8
        inside = (found.slope > 0) & (search > 0) & held
        inside &= found.above[-1] - found.above > max(1e-7, 64 * eps)
        first = jnp.maximum(jnp.argmax(inside) - 1, 0)
        last = jnp.maximum(size - 1 - jnp.argmax(jnp.flip(inside)), first + 1)
        beyond = jnp.minimum(last + 1, size - 1)
        top, bottom = depths[first], depths[jnp.where(held[beyond], beyond, last)]
        return top + (bottom - top) * share, found

    # Once to see where the spectrum is, once on the grid: in a scan, to be compiled once.
    found = jax.tree.map(lambda a: a[1, :points], jax.lax.scan(look, search, length=2)[1])
    return found._replace(log_values=found.log_values + log_scale)


def density(curve: Curve) -> Density:
    """A spectrum as a density.

    Args:
        curve: The spectrum.

    Returns:
        The density of its values, not of their logarithms; all NaN where one overflows.
    """
    support = jnp.exp(curve.log_values)
    density = curve.slope / support
    whole = jnp.all(jnp.isfinite(support) & jnp.isfinite(density))
    support, density = (jnp.where(whole, a, jnp.nan) for a in (support, density))
    return Density(support, density, jnp.zeros_like(density))


def _follow(spectrum: Spectrum, log_radius: Array) -> Curve:
    """The points of the curve at these radii."""
    dtype = log_radius.dtype
    eps = float(jnp.finfo(dtype).eps)
    lowest = jnp.full_like(log_radius, np.log(4 * eps))

    def here(log_angle: Array) -> Array:
        return jnp.exp(jax.lax.complex(log_radius, jnp.exp(log_angle)))

    def narrow(step: Array, ends: tuple) -> tuple:
        """Halve the bracket at first, then draw chords, by the Illinois rule."""
        low, high, below, above, _ = ends
        chord = (low * above - high * below) / (above - below)
        middle = jnp.where(step < 9, (low + high) / 2, chord)
        value = spectrum.transform(here(middle))[0].imag / jnp.exp(middle)
        rises = value > 0
        again = (ends[4] == rises) & (step > 9)  # the other end stays: its value is halved
        return (
            jnp.where(rises, low, middle),
            jnp.where(rises, middle, high),
            jnp.where(rises, jnp.where(again, below / 2, below), value),
            jnp.where(rises, value, jnp.where(again, above / 2, above)),
            rises,
        )

    one = jnp.ones_like(log_radius)
    start = (lowest, jnp.full_like(lowest, np.log(np.pi)), -one, one, one > 0)
    low, high, below, above, _ = jax.lax.fori_loop(0, 16, narrow, start)
    real = low == lowest  # a gap, or a single layer of orthogonal weights
    root = jnp.where(-below < above, low, high)
    u = here(jnp.where(real, np.log(1e-30), root))
    log_zeta, m = spectrum.transform(u)
    flat = real & (-m.imag < np.sqrt(eps))
    slope = jnp.where(flat, 0, -m.imag / np.pi)
    return Curve(log_zeta.real, slope, spectrum.potential(u, m).imag / np.pi)


def _weights(dtype: jnp.dtype) -> Array:
    return jnp.asarray([[5 / 18, 8 / 18, 5 / 18]], dtype)


def _parabola(values: Array) -> tuple[Array, Array, Array]:
    """Coefficients of 1, s and s**2 on each cell, for s from -1 to 1."""
    below, middle, above = (values[:, i] for i in range(3))
    slope = (above - below) / (2 * _GAUSS).astype(values.dtype)
    bend = (above + below - 2 * middle) / np.asarray(2 * _GAUSS**2).astype(values.dtype)
    return middle, slope, bend


def _roots(law: Law, u: Array) -> tuple[Array, Array, Array]:
    """The factors of u - a = (u - a0)(1 - w1 s)(1 - w2 s) on each cell, shape (n, cells).

    The second is the smaller one. Neither is real and above one while `u` is in the upper
    half-plane, so that all logarithms here are principal ones.
    """
    middle, slope, bend = (c[None].astype(u.dtype) for c in _parabola(law.values))
    gap = u[:, None] - middle
    b, c = slope / gap, bend / gap
    square = b * b + 4 * c
    flat = square == 0  # there a root has no derivative
    root = jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, square)))
    w1 = (b + jnp.where((jnp.conj(b) * root).real < 0, -root, root)) / 2
    return gap, w1, -c / jnp.where(w1 == 0, 1, w1)


def _one_plus_m(law: Law, u: Array) -> Array:
    """E u / (u - a), shape (n,)."""
    gap, w1, w2 = _roots(law, u)
    # Where both roots are small the closed form cancels, and few terms of the series do.
    small = jnp.abs(w1) < _SMALL
    product, square = w1 * w2, w1 * w1 + w2 * w2
    series = 1 + (square + product) / 3 + (square * square + product * (square - product)) / 5
    difference = (_atanh(w1) - _atanh(w2)) / jnp.where(small, 1, w1 - w2)
    mean = u[:, None] * jnp.where(small, series, difference) / gap
    # Slopes of zero are real to the last digit: near zero all the rest is smaller than rounding.
    mean = jnp.where(jnp.any(law.values != 0, axis=1)[None], mean, 1)
    return jnp.sum(law.mass[None].astype(u.dtype) * mean, -1)


def _mean_log(law: Law, u: Array) -> Array:
    """E ln(u - a), shape (n,)."""
    gap, *roots = _roots(law, u)
    mean = jnp.log(gap)
    for w in roots:
        small = jnp.abs(w) < _SMALL
        safe = jnp.where(small, 1j, w).astype(u.dtype)
        ends = [(1 + sign * safe) * jnp.log(1 + sign * safe) for sign in (1, -1)]
        closed = (ends[0] - ends[1]) / (2 * safe) - 1
        mean += jnp.where(small, -w * w / 6 - w**4 / 20, closed)
    return jnp.sum(law.mass[None].astype(u.dtype) * mean, -1)


def _atanh(w: Array) -> Array:
    few = w * (1 + w * w / 3 + w**4 / 5)
    return jnp.where(jnp.abs(w) < _SMALL, few, jnp.log((1 + w) / (1 - w)) / 2)
