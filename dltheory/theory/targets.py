"""Targets of one variable: checked, sampled, cut where they change sign, maximised, integrated."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from dltheory.numerics.gaussian import check_scalar_function

_SAMPLES = 64  # of a piece, before the largest error is closed in on
_CELLS = 64
_STEP = 1 / 8  # of the tanh-sinh rule
_GOLDEN = (math.sqrt(5) - 1) / 2


def ends(interval: tuple[ArrayLike, ArrayLike]) -> tuple[Array, Array]:
    """The ends of an interval in one dtype; NaN if they are traced and out of order."""
    try:
        a, b = interval
    except (TypeError, ValueError):
        raise ValueError(f"interval is {interval!r}; want two numbers (a, b) with a < b") from None
    low, high = (jnp.asarray(x, jnp.result_type(float, a, b)) for x in (a, b))
    known = not isinstance(low, Tracer) and not isinstance(high, Tracer)
    if low.shape or high.shape or (known and not -jnp.inf < low < high < jnp.inf):
        raise ValueError(f"interval is ({a}, {b}); want finite numbers (a, b) with a < b")
    return low, jnp.where(low < high, high, jnp.nan)


def equal_parts(a: Array, b: Array, n: int) -> Array:
    """The ends of `n` equal parts of an interval."""
    return a + (b - a) * (jnp.arange(n + 1, dtype=a.dtype) / n)


def everywhere(f: Callable, like: Array) -> Callable[[Array], Array]:
    """A scalar function on arrays of any shape."""
    check_scalar_function("f", f, like.dtype)
    return lambda x: jax.vmap(f)(x.reshape(-1)).reshape(x.shape)


def largest(error: Callable, rows: int, dtype) -> Array:
    """Largest size of an error over `rows` pieces, each on the unit interval.

    The best of some samples is closed in on by golden section.
    """
    size = lambda s: jnp.abs(error(s))
    grid = jnp.arange(_SAMPLES + 1, dtype=dtype)[None] / _SAMPLES
    samples = size(jnp.broadcast_to(grid, (rows, _SAMPLES + 1)))
    best = jnp.argmax(samples, axis=1, keepdims=True)
    middle = jnp.clip(best, 1, _SAMPLES - 1).astype(dtype)

    def shrink(_, bracket):
        low, high = bracket
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        rises = size(left) < size(right)
        return jnp.where(rises, left, low), jnp.where(rises, high, right)

    steps = 3 * (jnp.finfo(dtype).nmant + 1) // 2
    start = (middle - 1) / _SAMPLES, (middle + 1) / _SAMPLES
    low, high = lax.fori_loop(0, steps, shrink, lax.stop_gradient(start))
    at = (low + high) / 2
    sampled = best.astype(dtype) / _SAMPLES
    at = jnp.where(size(at) > size(sampled), at, sampled)
    # Where the error is largest it does not change with the place.
    return jnp.where(jnp.isnan(samples).any(), jnp.nan, jnp.max(size(lax.stop_gradient(at))))


def convexity(values: Array, a: Array, b: Array) -> Array:
    """1 for samples of a convex function, -1 for a concave one; else NaN, or an error."""
    bend = jnp.diff(values, 2)
    noise = 8 * jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    convex, concave = jnp.all(bend >= -noise), jnp.all(bend <= noise)
    known = not isinstance(convex, Tracer) and not jnp.isnan(values).any()
    if known and not (convex | concave):
        raise ValueError(
            f"f must be convex or concave on ({a}, {b}), but bends both ways; cut the interval "
            "where its second derivative changes its sign"
        )
    sign = jnp.where(convex, 1.0, jnp.where(concave, -1.0, jnp.nan))
    return sign.astype(values.dtype)


def cells(g: Callable, a: Array, b: Array, kinks: Sequence[float]) -> Array:
    """Edges of cells within which a function keeps its sign."""
    edges = equal_parts(a, b, _CELLS)
    if len(kinks):
        inside = jnp.clip(jnp.asarray(kinks, a.dtype), a, b)
        edges = jnp.sort(jnp.concatenate([edges, inside]))
    # At an edge itself there may be a kink or a pole.
    margin = 1e-6 * jnp.diff(edges)
    low, high = edges[:-1] + margin, edges[1:] - margin
    before, after = jnp.sign(g(low)), jnp.sign(g(high))

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        same = jnp.sign(g(middle)) == before
        return jnp.where(same, middle, low), jnp.where(same, high, middle)

    root = lax.fori_loop(0, jnp.finfo(a.dtype).nmant + 2, halve, (low, high))[1]
    middle = (edges[:-1] + edges[1:]) / 2
    cuts = jnp.where(before * after < 0, lax.stop_gradient(root), middle)
    return jnp.sort(jnp.concatenate([edges, cuts]))


def integral(g: Callable, edges: Array) -> Array:
    """Sum of integrals by the tanh-sinh rule, which takes powers at the ends in its stride."""
    dtype = edges.dtype
    # Nodes end where a derivative of a root would overflow.
    last = math.asinh(-0.65 * math.log(float(jnp.finfo(dtype).tiny)) / math.pi)
    t = np.arange(-int(last / _STEP), int(last / _STEP) + 1) * _STEP
    decay = np.exp(-math.pi * np.sinh(np.abs(t)))
    near = decay / (1 + decay)
    weights = jnp.asarray(_STEP * math.pi * np.cosh(t) * near * (1 - near), dtype)[None]
    low, width = edges[:-1, None], jnp.diff(edges)[:, None]
    offset = width * jnp.asarray(near, dtype)[None]
    x = jnp.where(jnp.asarray(t < 0)[None], low + offset, edges[1:, None] - offset)
    inside = (x > low) & (x < edges[1:, None])
    middle = low + width / 2
    values = g(jnp.where(inside, x, middle))
    return jnp.sum(jnp.where(inside, width * weights * values, 0))
