r"""Slopes of a function along a line, by four kinds of difference, each at its best step.

Truncation, `C h^p`, shows in how an estimate moves from one step to the next, whatever the gradient
is; rounding is `b` times the noise of the value over `h`. Together they are least where
`h^(p+1) = b noise / (p C)`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Order p of the truncation error, and the factor b of the rounding error.
_KINDS = {"forward": (1, 2.0), "central": (2, 1.0), "richardson": (4, 11 / 9)}

# Complex differentiable, or no more than a change of place.
# fmt: off
_HOLOMORPHIC = frozenset({
    "add", "add_any", "sub", "mul", "div", "neg", "exp", "log", "log1p", "expm1", "sin", "cos",
    "tan", "sinh", "cosh", "tanh", "asinh", "atanh", "sqrt", "rsqrt", "square", "integer_pow",
    "logistic", "dot_general", "conv_general_dilated", "reduce_sum", "cumsum", "reshape",
    "broadcast_in_dim", "transpose", "squeeze", "expand_dims", "slice", "dynamic_slice",
    "dynamic_update_slice", "gather", "scatter", "scatter-add", "concatenate", "pad", "rev",
    "copy", "stop_gradient", "iota", "reduce_prod", "convert_element_type", "select_n", "pjit",
    "jit", "closed_call", "scan", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr",
    "remat", "remat2", "checkpoint", "split",
})
# fmt: on


class Estimate(NamedTuple):
    """A slope by differences along one random direction.

    Attributes:
        slope: The estimate at the step.
        step: The step of the sweep nearest to the best one, where truncation and rounding are
            least together.
        error: How far the estimate is from the slope that the gradient gives, relative to it.
        order: Observed order at which the estimates approach that of the gradient: 1 for forward
            differences, 2 for central and complex ones, 4 for extrapolated ones, about 0 for a
            wrong gradient, infinite where they are exact but for rounding.
    """

    slope: float
    step: float
    error: float
    order: float


def from_sides(
    h: np.ndarray,
    up: np.ndarray,
    down: np.ndarray,
    noise: np.ndarray,
    slope: float,
    trend: Callable,
) -> dict[str, Estimate]:
    """Forward, central and extrapolated estimates from differences on both sides.

    Args:
        h: Steps, in falling order by one factor.
        up: Per step ahead: change of the value, and the same by the gradient.
        down: Per step back.
        noise: Of the value, per step.
        slope: By the gradient.
        trend: `trend(errors, unseen, h, steps)`, whose first result is the observed order.

    Returns:
        The estimates by name.
    """
    ratio = (h[0] / h[1]) ** 2
    central = (up[:, 0] - down[:, 0] - up[:, 1] + down[:, 1]) / (2 * h)
    errors = {
        "forward": (up[:, 0] - up[:, 1]) / h,
        "central": central,
        "richardson": np.r_[np.nan, (ratio * central[1:] - central[:-1]) / (ratio - 1)],
    }
    return {
        name: _estimate(errors[name], h, noise, slope, order, factor, trend)
        for name, (order, factor) in _KINDS.items()
    }


def _estimate(errors, h, noise, slope, order, factor, trend) -> Estimate:
    rounding = factor * noise / h
    moved = np.abs(np.diff(errors))
    seen = np.flatnonzero(np.isfinite(moved) & (moved > 16 * rounding[1:]))
    best = 0
    if seen.size:
        # The smallest step at which truncation is seen tells its constant.
        at = seen[-1]
        constant = moved[at] / (h[at] ** order - h[at + 1] ** order)
        wanted = (factor * noise[at] / (order * constant)) ** (1 / (order + 1))
        best = int(np.argmin(np.abs(np.log(h / wanted))))
    best = (
        max(best, int(np.flatnonzero(np.isfinite(errors))[0])) if np.isfinite(errors).any() else 0
    )
    power = trend(np.nan_to_num(errors), 16 * rounding, h, 2)[0]
    relative = abs(errors[best]) / abs(slope) if slope else abs(errors[best])
    return Estimate(float(slope + errors[best]), float(h[best]), float(relative), power)


def by_complex_step(
    fn: Callable,
    at: list,
    direction: list[np.ndarray],
    weights: list[np.ndarray],
    slope: float,
    trend: Callable,
) -> Estimate | None:
    """The slope as the imaginary part of a value: no difference is taken, so none is rounded.

    Args:
        fn: `fn(leaves) -> leaves`.
        at: Leaves.
        direction: Of the shapes of the leaves.
        weights: Of the results.
        slope: By the gradient.
        trend: As for `from_sides`.

    Returns:
        The estimate, or `None` unless the program of `fn` takes complex numbers and consists of
        complex differentiable parts.
    """
    unit = max(float(jnp.finfo(leaf.dtype).eps) / 2 for leaf in at)
    complexes = [jax.lax.complex(leaf, jnp.zeros_like(leaf)) for leaf in at]
    try:
        with jax.numpy_dtype_promotion("standard"):
            closed = jax.make_jaxpr(fn)(complexes)
            if not _holomorphic(closed.jaxpr):
                return None
            run = jax.jit(fn)
            still = run(complexes)
            if not all(jnp.iscomplexobj(y) and bool((y.imag == 0).all()) for y in still):
                return None
            h = 10.0 ** -np.arange(1, -np.log10(unit), 0.5)
            found = []
            for step in [*h, unit]:
                parts = zip(at, direction, strict=True)
                moved = [jax.lax.complex(x, jnp.asarray(step * v, x.dtype)) for x, v in parts]
                rows = zip(weights, jax.device_get(run(moved)), strict=True)
                found.append(sum(float(np.sum(w * y.imag)) for w, y in rows) / step)
    except (TypeError, ValueError, NotImplementedError):
        return None
    errors = np.array(found) - slope
    if not np.isfinite(errors).all():
        return None
    size = 256 * unit * max(abs(slope), float(np.abs(found).max()))
    power = trend(errors[:-1], np.full(len(h), size), h, 2)[0]
    relative = abs(errors[-1]) / abs(slope) if slope else abs(errors[-1])
    return Estimate(found[-1], unit, float(relative), power)


def _holomorphic(jaxpr: Any) -> bool:
    """Whether all parts of a program are complex differentiable, as far as their names tell."""
    for equation in jaxpr.eqns:
        floats = [v.aval for v in equation.invars if jnp.issubdtype(v.aval.dtype, jnp.inexact)]
        if floats and equation.primitive.name not in _HOLOMORPHIC:
            return False
        if equation.primitive.name == "convert_element_type":
            was = jnp.issubdtype(equation.invars[0].aval.dtype, jnp.complexfloating)
            if was and not jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.complexfloating):
                return False
        inner = [getattr(p, "jaxpr", p) for p in equation.params.values()]
        if not all(_holomorphic(p) for p in inner if hasattr(p, "eqns")):
            return False
    return True
