r"""Where the mean-field maps come to rest: the solvers behind `mean_field`.

Every function takes arrays of one shape, solves for all of them at once, is differentiable in
them by the implicit function theorem, and answers NaN where there is nothing to find.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks.activations import Activation
from dltheory.theory import dual
from dltheory.theory.parameters import refuse_missing

_ORDERS = 32
_STABLE = 1 + 1e-7  # the largest slope that counts as stable


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
    root = _bracketed_root(
        gap, (grid[last], grid[last + 1]), (_at(gaps, last), _at(gaps, last + 1))
    )

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

    grid = _critical_grid(bias_var.dtype)
    along = lambda a: a.reshape(*(1,) * bias_var.ndim, -1)
    _, rises, slopes = _line(phi, grid)
    gaps = bias_var[..., None] + along(rises)
    positive = gaps > along(8 * jnp.finfo(grid.dtype).eps * grid)
    crosses = (positive[..., :-1] != positive[..., 1:]) & along(slopes[1:] <= _STABLE)
    last = _last(crosses)
    low, high = _at(gaps, last), _at(gaps, last + 1)
    sign = jnp.where(low > high, 1, -1).astype(bias_var.dtype)
    gap = lambda q: sign * (bias_var + dual.moment(phi, q) / dual.derivative_moment(phi, q) - q)
    root = _bracketed_root(gap, (grid[last], grid[last + 1]), (sign * low, sign * high))

    # Without bias the length zero is critical if lengths close to it are drawn to it.
    lengths = jnp.stack([root, jnp.zeros_like(root), jnp.full_like(root, 1e-4)])
    weight_var, _, slopes = _line(phi, lengths)
    regular = jnp.any(crosses, axis=-1) & (slopes[0] <= _STABLE)
    zero = (bias_var == 0) & (phi(jnp.zeros((), root.dtype)) == 0) & (slopes[2] <= _STABLE)
    choose = lambda a, b: jnp.where(regular, a, jnp.where(zero, b, jnp.nan))
    return choose(weight_var[0], weight_var[1]), choose(root, 0)


def refuse_unfixed(phi: Activation, q: Array, weight_var: ArrayLike, bias_var: ArrayLike) -> None:
    """Raise where there is no stable length, unless something is traced.

    Args:
        phi: Activation.
        q: What `length` found.
        weight_var: Weight variance that it was given.
        bias_var: Bias variance that it was given.

    Raises:
        ValueError: If there is none.
    """
    refuse_missing(
        q,
        (weight_var, bias_var),
        f"{phi.name} has no stable fixed point of the length at weight_var = {weight_var} and "
        f"bias_var = {bias_var}: q grows without bound or every q is fixed; lower weight_var",
    )


def refuse_uncritical(phi: Activation, weight_var: Array, bias_var: ArrayLike) -> None:
    """Raise where there is no stable edge of chaos, and say why, unless something is traced.

    Args:
        phi: Activation.
        weight_var: What `critical` found.
        bias_var: Bias variance that it was given.

    Raises:
        ValueError: If there is none.
    """
    text = f"{phi.name} has no stable edge of chaos at bias_var = {bias_var}"
    try:
        refuse_missing(weight_var, (bias_var,), text)
    except ValueError:
        raise ValueError(f"{text}: {_why_not_critical(phi)}") from None


def _why_not_critical(phi: Activation) -> str:
    if phi.smoothness == -1:
        return "it jumps, and chi_1 is infinite at every weight_var"
    if phi.homogeneous == 1:
        return "where chi_1 is one, each layer adds bias_var to the length; want bias_var = 0"
    grid = _critical_grid(jnp.result_type(float))
    _, rises, slopes = (np.asarray(a) for a in _line(phi, grid))
    if np.all(rises > 0):
        return "where chi_1 is one, lengths grow without bound at every bias_var"
    # Above the last unstable length all are stable, and the first needs the least bias.
    last = int(np.flatnonzero(np.append(True, slopes > 1.0001))[-1]) - 1
    if last == grid.size - 1:
        return "where chi_1 is one, fixed lengths are unstable (dq'/dq > 1) at every bias_var"
    near = jnp.linspace(grid[max(last, 0)], grid[min(last + 3, grid.size - 1)], 2049)
    _, close, slopes = (np.asarray(a) for a in _line(phi, near))
    low, high = abs(max(-close[slopes <= _STABLE].max(), 0)), -rises[last + 1 :].min()
    return (
        f"where chi_1 is one, fixed lengths are unstable (dq'/dq > 1) or above {grid[-1]:.0e}; "
        f"want bias_var between {low:.4g} and {high:.4g}"
    )


def depth_scale(slope: Array) -> Array:
    """-1 / log of a slope's size, infinite where it is one but for rounding.

    Args:
        slope: Slope of a map at its fixed point, any shape.

    Returns:
        The scale, of that shape.
    """
    size = jnp.abs(slope)
    one = jnp.abs(size - 1) <= 32 * jnp.finfo(size.dtype).eps
    return 1 / jnp.log(1 / jnp.where(one, 1, size))


def _line(phi: Activation, q: Array) -> tuple[Array, Array, Array]:
    """Where chi_1 is one: weight variance, minus the bias variance, slope of the length map."""
    weight_var = 1 / dual.derivative_moment(phi, q)
    shift = jnp.where(q == 0, 1e-20, 0).astype(q.dtype)  # see `length`
    moment, slope = _value_and_slope(lambda q: dual.moment(phi, q + shift), q)
    return weight_var, weight_var * moment - q, weight_var * slope


def _critical_grid(dtype: jnp.dtype) -> Array:
    """In float32 the moments of large lengths are not exact enough for their difference."""
    return _grid(dtype, 6 if jnp.finfo(dtype).eps < 1e-12 else 3)


def _grid(dtype: jnp.dtype, highest: int = 6) -> Array:
    """Lengths between which roots are looked for, up to where the integrals are exact."""
    return jnp.logspace(-10, highest, 40 * (10 + highest) + 1, dtype=dtype)


def _last(marked: Array) -> Array:
    """Index of the last mark along the last axis."""
    return marked.shape[-1] - 1 - jnp.argmax(jnp.flip(marked, axis=-1), axis=-1)


def _at(values: Array, index: Array) -> Array:
    """The value at an index along the last axis."""
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def _value_and_slope(f: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    return jax.jvp(f, (x,), (jnp.ones_like(x),))


def _divide(linear: Callable[[Array], Array], y: Array) -> Array:
    return y / linear(jnp.ones_like(y))


def _bracketed_root(
    f: Callable[[Array], Array], ends: tuple[Array, Array], values: tuple[Array, Array]
) -> Array:
    """The root of `f`, positive at the first end and not at the second, by the Illinois rule."""
    eps = jnp.finfo(ends[0].dtype).eps

    def solve(f: Callable[[Array], Array], start: Array) -> Array:
        def step(state: tuple) -> tuple:
            count, low, high, below, above, x, rose, going = state
            chord = (low * above - high * below) / (above - below)
            inside = (chord > low) & (chord < high)
            new = jnp.where(inside, chord, (low + high) / 2)
            value = f(new)
            rises = value > 0
            again = rises == rose  # the other end stays: its value is halved
            going &= (jnp.abs(value) > 4 * eps * new) & (high - low > 4 * eps * new)
            return (
                count + 1,
                jnp.where(rises, new, low),
                jnp.where(rises, high, new),
                jnp.where(rises, value, jnp.where(again, below / 2, below)),
                jnp.where(rises, jnp.where(again, above / 2, above), value),
                jnp.where(state[-1], new, x),
                rises,
                going,
            )

        going = jnp.full(start.shape, True)
        state = (0, *ends, *values, start, going, going)
        more = lambda state: jnp.any(state[-1]) & (state[0] < 64)
        return jax.lax.while_loop(more, step, state)[5]

    return jax.lax.custom_root(f, (ends[0] + ends[1]) / 2, solve, _divide)


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
