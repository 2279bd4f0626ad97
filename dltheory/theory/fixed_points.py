r"""Where the mean-field maps come to rest: the solvers behind `mean_field`.

Every function takes arrays of one shape, solves for all of them at once, is differentiable in
them by the implicit function theorem, and answers NaN where there is nothing to find.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from dltheory.networks.activations import Activation
from dltheory.theory import dual

_ORDERS = 32


def length(phi: Activation, weight_var: Array, bias_var: Array) -> Array:
    """The largest stable fixed point of the length map.

    Args:
        phi: Activation.
        weight_var: Weight variance times fan-in, any shape.
        bias_var: Bias variance, of the same shape.

    Returns:
        The fixed point, of that shape; NaN where there is none or every length is fixed.
    """
    if phi.homogeneous == 1:
        slope = weight_var * dual.moment(phi)
        return jnp.where(slope < 1, bias_var / jnp.where(slope < 1, 1 - slope, 1), jnp.nan)
    grid = _grid(weight_var.dtype)
    noise = 8 * jnp.finfo(grid.dtype).eps * grid
    along = lambda a: a.reshape(*(1,) * weight_var.ndim, -1)
    gaps = weight_var[..., None] * along(dual.moment(phi, grid)) + bias_var[..., None] - along(grid)
    alive = gaps > along(noise)
    falls = alive[..., :-1] & ~alive[..., 1:]
    last = _last(falls)

    # An integral has no derivative at variance zero; at a tiny one it has, and is as good.
    gap = lambda q: weight_var * dual.moment(phi, q + 1e-20) + bias_var - q
    root = _bracketed_root(gap, grid[last], grid[last + 1])

    at_zero = weight_var * jnp.square(phi(jnp.zeros((), root.dtype))) + bias_var == 0
    zero = at_zero & ~alive[..., 0] & jnp.any(jnp.abs(gaps) > along(noise), axis=-1)
    found = jnp.where(jnp.any(falls, axis=-1), root, jnp.where(zero, 0, jnp.nan))
    return jnp.where(jnp.isnan(weight_var + bias_var), jnp.nan, found)


def length_slope(phi: Activation, q: Array, weight_var: Array) -> Array:
    """Slope of the length map, `weight_var` times E[phi'(h)**2 + phi(h) phi''(h)].

    Args:
        phi: Activation.
        q: Variance, any shape.
        weight_var: Weight variance times fan-in, of the same shape.

    Returns:
        The slope, of the shape of `q`.
    """
    return weight_var * _value_and_slope(lambda q: dual.moment(phi, q + 1e-20), q)[1]


def correlation(
    phi: Activation, q: Array, weight_var: Array, bias_var: Array, keep: Array
) -> Array:
    """The stable fixed point of the correlation map at length `q`, in [0, 1].

    Args:
        phi: Activation.
        q: Fixed point of the length, any shape.
        weight_var: Weight variance times fan-in, of the same shape.
        bias_var: Bias variance, of the same shape.
        keep: Probability that dropout keeps a unit, of the same shape.

    Returns:
        The correlation, of that shape; exactly one where it is.
    """
    eps = jnp.finfo(q.dtype).eps
    length = weight_var / keep * dual.moment(phi, q) + bias_var
    chi = weight_var * dual.derivative_moment(phi, q)
    ordered = (chi <= 1 + 32 * eps) & (keep == 1)
    gap = lambda c: (weight_var * dual.kernel(phi, q, q, q * c) + bias_var) / length - c

    # The first Hermite coefficients, and one power for all the others, chosen to keep the value
    # and the slope of the map at one. By Jensen's inequality this is a lower bound of the map.
    series = jnp.square(dual.hermite_series(phi, q, _ORDERS))
    weights = (weight_var / length)[None] * series
    orders = jnp.arange(_ORDERS, dtype=q.dtype).reshape(-1, *(1,) * q.ndim)
    rest = jnp.maximum((length - bias_var) * keep / length - jnp.sum(weights, axis=0), 0)
    slope = jnp.sum(orders * weights, axis=0)
    tail_slope = jnp.maximum(chi * q / length - slope, _ORDERS * rest)
    power = jnp.where(rest > 32 * eps, tail_slope / jnp.where(rest > 32 * eps, rest, 1), _ORDERS)

    def model(c: Array) -> Array:
        return jnp.polyval(weights[::-1], c) + rest * c**power + bias_var / length - c

    solve = lambda gap, start: _climb(gap, _climb(model, start, ordered), ordered)
    root = jax.lax.custom_root(gap, jnp.zeros_like(q), solve, _divide)
    return jnp.where(jnp.isnan(q), jnp.nan, jnp.where(ordered, 1, root))


def critical(phi: Activation, bias_var: Array) -> tuple[Array, Array]:
    """The largest length that is a stable fixed point where `chi_1` is one.

    Args:
        phi: Activation.
        bias_var: Bias variance, any shape.

    Returns:
        The weight variance and the length, each of that shape; the length alone is NaN where
        every length is fixed.
    """
    nothing = jnp.full_like(bias_var, jnp.nan)
    if phi.homogeneous == 1:
        return jnp.where(bias_var == 0, 1 / dual.derivative_moment(phi), jnp.nan), nothing
    if phi.smoothness == -1:  # chi_1 is infinite
        return nothing, nothing

    # On the line chi_1 = 1 the length determines the weight variance and the bias variance.
    rise = lambda q: dual.moment(phi, q) / dual.derivative_moment(phi, q) - q
    stable = lambda q: length_slope(phi, q, 1 / dual.derivative_moment(phi, q)) <= 1 + 1e-7
    grid = _grid(bias_var.dtype)
    along = lambda a: a.reshape(*(1,) * bias_var.ndim, -1)
    noise = 8 * jnp.finfo(grid.dtype).eps * grid
    positive = bias_var[..., None] + along(rise(grid)) > along(noise)
    crosses = (positive[..., :-1] != positive[..., 1:]) & along(stable(grid)[1:])
    last = _last(crosses)
    falls = jnp.take_along_axis(positive, last[..., None], axis=-1)[..., 0]
    sign = jnp.where(falls, 1, -1).astype(bias_var.dtype)
    gap = lambda q: sign * (bias_var + rise(q))
    root = _bracketed_root(gap, grid[last], grid[last + 1])

    # Without bias the length zero is critical if lengths close to it are drawn to it.
    small = jnp.full_like(root, 1e-4)
    zero = (bias_var == 0) & (phi(jnp.zeros((), root.dtype)) == 0) & stable(small)
    q = jnp.where(zero, 0, jnp.nan)
    q = jnp.where(jnp.any(crosses, axis=-1) & stable(root), root, q)
    return 1 / dual.derivative_moment(phi, q), q


def _grid(dtype: jnp.dtype) -> Array:
    """Lengths between which roots are looked for, up to where the integrals are exact."""
    return jnp.logspace(-10, 6, 641, dtype=dtype)


def _last(marked: Array) -> Array:
    """Index of the last mark along the last axis."""
    return marked.shape[-1] - 1 - jnp.argmax(jnp.flip(marked, axis=-1), axis=-1)


def _value_and_slope(f: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    return jax.jvp(f, (x,), (jnp.ones_like(x),))


def _divide(linear: Callable[[Array], Array], y: Array) -> Array:
    return y / linear(jnp.ones_like(y))


def _bracketed_root(f: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The root of `f`, positive at `low` and not at `high`: Newton's method, else bisection."""
    eps = jnp.finfo(low.dtype).eps

    def solve(f: Callable[[Array], Array], start: Array) -> Array:
        def step(state: tuple) -> tuple:
            count, low, high, x, going = state
            value, slope = _value_and_slope(f, x)
            low, high = jnp.where(value > 0, x, low), jnp.where(value > 0, high, x)
            newton = x - value / slope
            new = jnp.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
            going &= jnp.abs(value) > 4 * eps * jnp.abs(x)
            new = jnp.where(going, new, x)
            return count + 1, low, high, new, going & (jnp.abs(new - x) > 4 * eps * jnp.abs(x))

        state = (0, low, high, start, jnp.full(start.shape, True))
        more = lambda state: jnp.any(state[4]) & (state[0] < 64)
        return jax.lax.while_loop(more, step, state)[3]

    return jax.lax.custom_root(f, (low + high) / 2, solve, _divide)


def _climb(f: Callable[[Array], Array], start: Array, done: Array) -> Array:
    """The smallest root in [0, 1] of a convex function, from a point to its left.

    Newton's method climbs to it and never past it; where it climbs no more it is there.
    """
    eps = jnp.finfo(start.dtype).eps

    def step(state: tuple) -> tuple:
        count, x, going = state
        value, slope = _value_and_slope(f, x)
        new = jnp.where(going, jnp.clip(x - value / slope, 0, 1), x)
        going &= (value > 4 * eps) & (new - x > 4 * eps)
        return count + 1, new, going

    more = lambda state: jnp.any(state[2]) & (state[0] < 64)
    return jax.lax.while_loop(more, step, (0, start, ~done))[1]
