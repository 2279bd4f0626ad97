r"""A spectrum, followed along the curve on which it is real: behind `free_probability`.

A spectrum is described by a function :math:`\zeta(u)`: the point of the spectrum that belongs to
`u`, at which :math:`M_{JJ^T}(\zeta(u)) = M(u)`, where `M` is the transform of one layer's squared
slopes. Where `u` runs along the curve in the upper half-plane on which :math:`\zeta` is real,
:math:`\zeta` runs through the spectrum. In polar coordinates :math:`\arg \zeta / \arg u` increases
with :math:`\arg u` at every :math:`|u|`, so that each radius has one point of the curve or none,
and bisection cannot fail.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.numerics.results import Density
from dltheory.theory import slope_law
from dltheory.theory.slope_law import Law

_DEEPEST = 60.0  # nats below the largest radius
_HALVINGS, _STEPS = 9, 16  # of the search for an angle, the halvings among the steps
_BLOCK = 128  # radii whose arrays fit into the caches


class Spectrum(NamedTuple):
    r"""A spectrum, by functions that return arrays of the shape of `u`.

    They take `u` in polar coordinates and in Cartesian ones: complex exponentials and logarithms
    are costly to compile.

    Attributes:
        transform: From the logarithm of `u`, and `u`, to that of :math:`\zeta(u)`, and
            :math:`M(u)`.
        angle: From the same two and :math:`M(u)` to the imaginary part of the integral of
            :math:`(1 + M) / \zeta` over `zeta`, the mean of :math:`\arg(\zeta - \lambda)` over
            the spectrum.
    """

    transform: Callable[[Array, Array], tuple[Array, Array]]
    angle: Callable[[Array, Array, Array], Array]


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

    def transform(log_u: Array, u: Array) -> tuple[Array, Array]:
        one_plus = slope_law.one_plus_m(law, u)
        m, log_one_plus = one_plus - 1, _log(one_plus)
        log_zeta = depth * log_u + (depth - 1) * (_log(m) - log_one_plus)
        return log_zeta + (depth * log_one_plus if gaussian else 0), m

    def angle(log_u: Array, u: Array, m: Array) -> Array:
        del log_u
        value = depth * slope_law.mean_angle(law, u) + (depth - 1) * jnp.angle(m)
        return value + (depth * m.imag if gaussian else 0)

    return Spectrum(transform, angle)


def edge(law: Law, depth: int, gaussian: bool) -> tuple[Array, Array]:
    r"""The largest point of the spectrum: where :math:`\zeta(u)` turns, coming from infinity.

    Args:
        law: Law of the squared slopes.
        depth: Number of layers.
        gaussian: Whether the weights are Gaussian.

    Returns:
        The `u` of the edge and the logarithm of the edge, each of shape `()`.
    """
    eps = jnp.finfo(law.mass.dtype).eps
    values, masses = slope_law.points(law)

    def transform(u: Array) -> tuple[Array, Array]:
        """The transform, and its slope in ln u."""
        gap = u[:, None] - values[None]
        shares = (masses * values)[None] / gap
        return jnp.sum(shares, -1), -u * jnp.sum(shares / gap, -1)

    def narrow(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        """The last of 255 intervals in which the slope turns from falling to rising."""
        low, high, turns = state
        grid = low + (high - low) * jnp.linspace(0, 1, 256, dtype=eps.dtype)
        m, slope = transform(law.largest * (1 + jnp.exp(grid)))
        inner = (depth - 1) / m / (1 + m) + (depth / (1 + m) if gaussian else 0)
        falls = depth + slope * inner <= 0
        last = falls.size - 1 - jnp.argmax(jnp.flip(falls))
        return grid[last], grid[jnp.minimum(last + 1, falls.size - 1)], turns | jnp.any(falls)

    # Beyond four times the second moment zeta is close to its asymptote u, and rises.
    spread = jnp.sum(masses * values**2) - (0 if gaussian else 1)
    state = jnp.log(4 * eps), jnp.log(4 * (1 + depth * spread)), jnp.zeros((), bool)
    _, root, turns = jax.lax.fori_loop(0, 6, narrow, jax.lax.stop_gradient(state))
    # At the turn the slope is zero: to first order the edge does not depend on where u is.
    turn = jax.lax.stop_gradient(law.largest * (1 + jnp.exp(root)))
    u = jnp.where(turns, turn, law.largest * (1 + 4 * eps))
    m = transform(u[None])[0][0]
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
    search = jnp.asarray(np.append(0.0, np.geomspace(1e-7, _DEEPEST, _BLOCK - 1)), dtype)
    # Strictly between the two ends, close to both: densities there rise as roots, or diverge.
    steps = (np.arange(points)[::-1] + 0.5) / points
    share = np.pad(np.sin(np.pi / 2 * steps) ** 2, (0, -points % _BLOCK), mode="edge")
    blocks = jnp.asarray(np.insert(share.reshape(-1, _BLOCK), 0, 0.0, axis=0), dtype)

    def look(ends: tuple[Array, Array, Array], share: Array) -> tuple[tuple, Curve]:
        count, top, bottom = ends
        depths = jnp.where(count == 0, search, top + (bottom - top) * share)
        found = _follow(spectrum, jnp.log(highest) - depths)
        held = found.log_values + log_scale > np.log(tiny) + 8
        inside = (found.slope > 0) & (search > 0) & held
        inside &= found.above[-1] - found.above > max(1e-7, 64 * eps)
        first = jnp.maximum(jnp.argmax(inside) - 1, 0)
        last = jnp.maximum(_BLOCK - 1 - jnp.argmax(jnp.flip(inside)), first + 1)
        beyond = jnp.minimum(last + 1, _BLOCK - 1)
        new = search[first], search[jnp.where(held[beyond], beyond, last)]
        top, bottom = (jnp.where(count == 0, *pair) for pair in zip(new, ends[1:], strict=True))
        return (count + 1, top, bottom), found

    # First to see where the spectrum is, then on the grid: in a scan, to be compiled once.
    zero = jnp.zeros((), dtype)
    blocks = jax.lax.scan(look, (jnp.zeros((), int), zero, zero), blocks)[1]
    found = jax.tree.map(lambda a: a[1:].reshape(-1)[:points], blocks)
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
    eps, tiny = (float(x) for x in (jnp.finfo(dtype).eps, jnp.finfo(dtype).tiny))
    lowest, none = np.log(4 * eps), np.log(tiny) / 5
    radius = jnp.exp(log_radius)

    def here(log_angle: Array) -> tuple[Array, Array]:
        angle = jnp.exp(log_angle)
        u = jax.lax.complex(radius * jnp.cos(angle), radius * jnp.sin(angle))
        return jax.lax.complex(log_radius, angle), u

    def narrow(step: Array, state: tuple) -> tuple:
        """Halve the bracket at first, draw chords by the Illinois rule, and stay at the root."""
        (low, high, below, above, rose), *_ = state
        chord = (low * above - high * below) / (above - below)
        # No bracket is a gap, or a single layer of orthogonal weights: there u is real.
        root = jnp.where(low == lowest, none, jnp.where(-below < above, low, high))
        new = jnp.where(step < _HALVINGS, (low + high) / 2, jnp.where(step < _STEPS, chord, root))
        log_zeta, m = spectrum.transform(*here(new))
        value = log_zeta.imag / jnp.exp(new)
        rises = value > 0
        again = (rose == rises) & (step > _HALVINGS)  # the other end stays: its value is halved
        ends = (
            jnp.where(rises, low, new),
            jnp.where(rises, new, high),
            jnp.where(rises, jnp.where(again, below / 2, below), value),
            jnp.where(rises, value, jnp.where(again, above / 2, above)),
            rises,
        )
        return ends, new, log_zeta.real, m

    one = jnp.ones_like(log_radius)
    start = (lowest * one, math.log(math.pi) * one, -one, one, one > 0)
    state = (start, one, one, jax.lax.complex(one, one))
    _, root, log_value, m = jax.lax.fori_loop(0, _STEPS + 1, narrow, state)
    flat = (root == none) & (-m.imag < np.sqrt(eps))
    slope = jnp.where(flat, 0, -m.imag / np.pi)
    return Curve(log_value, slope, spectrum.angle(*here(root), m) / np.pi)


def _log(z: Array) -> Array:
    """The principal logarithm, by real ones."""
    return jax.lax.complex(jnp.log(jnp.abs(z)), jnp.arctan2(z.imag, z.real))
