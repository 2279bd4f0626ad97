r"""Where the mean-field maps come to rest: the solvers behind `mean_field`.

Every function takes scalars, is jit- and vmap-able and differentiable in them by the implicit
function theorem, and answers NaN where there is nothing to find.
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
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.

    Returns:
        The fixed point, shape `()`; NaN where there is none or every length is fixed.
    """
    if phi.homogeneous == 1:
        slope = weight_var * dual.moment(phi)
        return jnp.where(slope < 1, bias_var / jnp.where(slope < 1, 1 - slope, 1), jnp.nan)
    grid = _grid(weight_var.dtype)
    noise = 8 * jnp.finfo(grid.dtype).eps * grid
    gaps = weight_var * dual.moment(phi, grid) + bias_var - grid
    falls = (gaps[:-1] > noise[:-1]) & (gaps[1:] <= noise[1:])
    last = falls.size - 1 - jnp.argmax(jnp.flip(falls))

    # An integral has no derivative at variance zero; at a tiny one it has, and is as good.
    gap = lambda q: weight_var * dual.moment(phi, q + 1e-20) + bias_var - q
    root = _bracketed_root(gap, grid[last], grid[last + 1])

    at_zero = weight_var * jnp.square(phi(jnp.zeros_like(root))) + bias_var == 0
    zero = at_zero & (gaps[0] <= noise[0]) & jnp.any(jnp.abs(gaps) > noise)
    return jnp.where(jnp.any(falls), root, jnp.where(zero, 0, jnp.nan))


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
        q: Fixed point of the length, shape `()`.
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.
        keep: Probability that dropout keeps a unit, shape `()`.

    Returns:
        The correlation, shape `()`; exactly one where it is.
    """
    eps = jnp.finfo(q.dtype).eps
    length = weight_var / keep * dual.moment(phi, q) + bias_var
    chi = weight_var * dual.derivative_moment(phi, q)
    ordered = (chi <= 1 + 32 * eps) & (keep == 1)
    gap = lambda c: (weight_var * dual.kernel(phi, q, q, q * c) + bias_var) / length - c

    # The first Hermite coefficients, and one power for all the others, chosen to keep the value
    # and the slope of the map at one. By Jensen's inequality this is a lower bound of the map.
    weights = weight_var * jnp.square(dual.hermite_series(phi, q, _ORDERS)) / length
    orders = jnp.arange(_ORDERS, dtype=q.dtype)
    rest = jnp.maximum((length - bias_var) * keep / length - jnp.sum(weights), 0)
    tail_slope = jnp.maximum(chi * q / length - jnp.sum(orders * weights), _ORDERS * rest)
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
        bias_var: Bias variance, shape `()`.

    Returns:
        The weight variance and the length, each of shape `()`; the length alone is NaN where
        every length is fixed.
    """
    nothing = jnp.full_like(bias_var, jnp.nan)
    if phi.homogeneous == 1:
        return jnp.where(bias_var == 0, 1 / dual.derivative_moment(phi), jnp.nan), nothing
    if phi.smoothness == -1:  # chi_1 is infinite
        return nothing, nothing

    # On the line chi_1 = 1 the length determines the weight variance and the bias variance.
    gap = lambda q: bias_var - q + dual.moment(phi, q) / dual.derivative_moment(phi, q)
    stable = lambda q: length_slope(phi, q, 1 / dual.derivative_moment(phi, q)) <= 1 + 1e-7
    grid = _grid(bias_var.dtype)
    positive = gap(grid) > 8 * jnp.finfo(grid.dtype).eps * grid
    crosses = (positive[:-1] != positive[1:]) & stable(grid)[1:]
    last = crosses.size - 1 - jnp.argmax(jnp.flip(crosses))
    sign = jnp.where(positive[last], 1, -1)
    root = _bracketed_root(lambda q: sign * gap(q), grid[last], grid[last + 1])

    # Without bias the length zero is critical if lengths close to it are drawn to it.
    small = jnp.full_like(root, 1e-4)
    zero = (bias_var == 0) & (phi(jnp.zeros_like(root)) == 0) & stable(small)
    q = jnp.where(zero, 0, jnp.nan)
    q = jnp.where(jnp.any(crosses) & stable(root), root, q)
    return 1 / dual.derivative_moment(phi, q), q


def _grid(dtype: jnp.dtype) -> Array:
    """Lengths between which roots are looked for, up to where the integrals are exact."""
    return jnp.logspace(-10, 6, 641, dtype=dtype)


def _value_and_slope(f: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    return jax.jvp(f, (x,), (jnp.ones_like(x),))


def _divide(linear: Callable[[Array], Array], y: Array) -> Array:
    return y / linear(jnp.ones_like(y))


def _bracketed_root(f: Callable[[Array], Array], low: Array, high: Array) -> Array:
    """The root of `f`, positive at `low` and not at `high`: Newton's method, else bisection."""
    eps = jnp.finfo(low.dtype).eps

    def solve(f: Callable[[Array], Array], start: Array) -> Array:
        def step(state: tuple) -> tuple:
            count, low, high, x, _ = state
            value, slope = _value_and_slope(f, x)
            low, high = jnp.where(value > 0, x, low), jnp.where(value > 0, high, x)
            newton = x - value / slope
            new = jnp.where((newton >= low) & (newton <= high), newton, (low + high) / 2)
            return count + 1, low, high, new, jnp.abs(new - x) > 4 * eps * jnp.abs(x)

        going = lambda state: state[4] & (state[0] < 64)
        return jax.lax.while_loop(going, step, (0, low, high, start, jnp.asarray(True)))[3]

    return jax.lax.custom_root(f, (low + high) / 2, solve, _divide)


def _climb(f: Callable[[Array], Array], start: Array, done: Array) -> Array:
    """The smallest root in [0, 1] of a convex function, from a point to its left.

    Newton's method climbs to it and never past it.
    """
    eps = jnp.finfo(start.dtype).eps

    def step(state: tuple) -> tuple:
        count, x, _ = state
        value, slope = _value_and_slope(f, x)
        new = jnp.clip(x - value / slope, 0, 1)
        return count + 1, new, (jnp.abs(value) > 4 * eps) & (jnp.abs(new - x) > 4 * eps)

    going = lambda state: state[2] & (state[0] < 64)
    return jax.lax.while_loop(going, step, (0, start, ~done))[1]
