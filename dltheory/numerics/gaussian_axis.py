"""Quadrature rules for one Gaussian axis: graded towards steep parts, cut at kinks.

The rules of `gaussian`. An axis is measured in standard deviations, and a function on it may be
steep near one or two points, because a function of scale one looks steep where the variance is
large.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array


class Grade(NamedTuple):
    """How finely an axis is resolved.

    Attributes:
        steepness: Inverse of the smallest width that is resolved; it may be traced.
        step: Step of the trapezoidal rule; it may be traced.
        nodes: Number of nodes of the trapezoidal rule on half of an axis.
        panels: Number of panels on half of an axis, where there are cuts.
        order: Order of the rule of one panel.
    """

    steepness: float | Array
    step: float | Array
    nodes: int
    panels: int
    order: int


_CUT_END = 8.6  # erfc(8.6 / sqrt(2)) = 8e-18: kinked functions grow no faster than a power


def axis(
    width: Array,
    shift: Array,
    cuts: list[Array] | None,
    grade: Grade,
    *,
    half: bool = False,
) -> tuple[tuple[Array, ...], Callable[[tuple[Array, ...]], tuple[Array, Array]]]:
    r"""Gaussian rule for a function that is steep, on a scale of `width`, at `-shift` and `shift`.

    In the coordinate t the function looks alike at every scale:

    .. math:: 2t = \operatorname{asinh}\frac{p - \text{shift}}{\text{width}}
        + \operatorname{asinh}\frac{p + \text{shift}}{\text{width}}, \qquad
        p = \sinh t\,\sqrt{\text{width}^2 + \text{shift}^2 / \cosh^2 t}

    Without cuts the trapezoidal rule in t converges faster than any power of its step. With
    cuts, panels of equal length in t are cut further, each with a Gauss-Legendre rule.

    Args:
        width: Any shape; at least `2 / grade.steepness`.
        shift: Of the same shape.
        cuts: Where the function or a derivative jumps, each of that shape; None where nothing
            does.
        grade: How finely to resolve.
        half: Whether the axis begins at zero.

    Returns:
        Items to scan over, and the function that makes nodes and weights, each of shape
        `(nodes, *shape)`, of one item.
    """
    dtype, far = width.dtype, end(width.dtype)

    def root(sech: Array) -> Array:
        return jnp.sqrt(width * width + jnp.square(sech * shift))

    if cuts is None:
        step = jnp.asarray(grade.step, dtype)
        count = jnp.arange(grade.nodes, dtype=dtype)
        t, steps = step * count, jnp.where(count == 0, step / 2, step)

        def trapezoidal(item: tuple[Array, ...]) -> tuple[Array, Array]:
            sinh, sech, step = item
            stretch = root(sech)
            p = jnp.clip(sinh * stretch, -far, far)
            slope = (width * width + jnp.square(sech * sech * shift)) / (sech * stretch)
            nodes = jnp.stack([p] if half else [p, -p])
            return nodes, jnp.broadcast_to(step * slope * density(p), nodes.shape)

        return (jnp.sinh(t), 1 / jnp.cosh(t), steps), trapezoidal

    last = jnp.arcsinh(_CUT_END / width)
    edges = [jnp.zeros_like(width)]
    for k in range(1, grade.panels + 1):
        t = last * (k / grade.panels)
        edges.append(jnp.minimum(jnp.sinh(t) * root(1 / jnp.cosh(t)), _CUT_END))
    edges = edges if half else mirrored(edges)
    for cut in cuts:
        edges = _inserted(edges, cut)
    middle, radius = panels(jnp.stack(edges))

    def gaussian(item: tuple[Array, ...]) -> tuple[Array, Array]:
        x, weight = item
        z = middle + radius * x
        return z, radius * weight * density(z)

    rule = np.polynomial.legendre.leggauss(grade.order)
    return tuple(jnp.asarray(a, dtype) for a in rule), gaussian


def in_deviations(kink: float, std: Array) -> Array:
    """A kink in units of the standard deviation; zero stays zero where `std` is zero."""
    if kink == 0:
        return jnp.zeros_like(std)
    return kink / std


def mirrored(edges: list) -> list:
    """Edges of the whole axis, from those of its positive half."""
    return [*(-edge for edge in edges[:0:-1]), *edges]


def insert(edges: Array, cut: Array) -> Array:
    """Insert `cut` into edges that are sorted along the first axis, clipped to their range."""
    cut = jnp.clip(cut, edges[0], edges[-1])[None]
    below, above = (jnp.concatenate(a) for a in ((edges[:1], edges), (edges, edges[-1:])))
    # Not by maximum and minimum: at a tie they would give each side half of the derivative.
    return jnp.where(above <= cut, above, jnp.where(below <= cut, cut, below))


def _inserted(edges: list[Array], cut: Array) -> list[Array]:
    """The same for a list: a larger program, but all of it one loop over the points."""
    cut = jnp.clip(cut, edges[0], edges[-1])
    return [
        jnp.where(above <= cut, above, jnp.where(below <= cut, cut, below))
        for below, above in zip([edges[0], *edges], [*edges, edges[-1]], strict=True)
    ]


def panels(edges: Array) -> tuple[Array, Array]:
    """Middle and half length of each panel between sorted edges, along the first axis."""
    return (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2


def density(z: Array) -> Array:
    """Standard normal density."""
    return jnp.exp(-z * z / 2) / np.sqrt(2 * np.pi).astype(z.dtype)


def end(dtype: jnp.dtype) -> float:
    """Where the density is almost too small for the dtype."""
    return float(np.sqrt(-1.9 * np.log(float(jnp.finfo(dtype).tiny))))


def infinite_if_alive(total: Array, values: list[Array], rim: Array) -> Array:
    """The integral, infinite if the function's values at the rim outgrow the density there."""
    ends = [value * (rim * density(rim)) for value in values]
    eps, tiny = (float(getattr(jnp.finfo(total.dtype), name)) for name in ("eps", "tiny"))
    floor = np.sqrt(eps) * (jnp.abs(total) + np.sqrt(tiny))
    alive = jnp.stack([jnp.abs(end) > floor for end in ends])
    infinities = jnp.where(alive, jnp.sign(jnp.stack(ends)) * jnp.inf, 0)
    return jnp.where(jnp.any(alive, axis=0), jnp.sum(infinities, axis=0), total)
