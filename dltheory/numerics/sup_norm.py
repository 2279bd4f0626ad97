r"""A certified bracket of the largest size of a function over a box.

Bounds on the traced program (`intervals`) are sharpened by branch and bound: boxes that cannot
hold the largest value are set aside and the others cut. The lower end is attained at a point.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from dltheory.numerics.branch_and_bound import minimum
from dltheory.numerics.intervals import Enclosure, enclosure
from dltheory.numerics.results import Bracket

_TOGETHER = 4096  # boxes that are bounded at once, for the sake of memory
_SAMPLES = 256


def sup_norm(
    fn: Callable[[Array], Array],
    lower: Any,
    upper: Any,
    *,
    cuts: Sequence[float] | np.ndarray = (),
    rtol: float = 1e-9,
    max_boxes: int = 200_000,
) -> Bracket:
    r"""Bracket the largest size of a function over a box.

    .. math:: \sup_{x \in [l, u]} |f(x)|

    Both ends are rigorous for the real function that the traced program denotes. They come as
    close as `rtol` asks for, or the rounding of float64 allows, or `max_boxes` affords.

    Args:
        fn: Function from a scalar or a vector to a real scalar.
        lower: Lower corner of the box, shape `()` or `(d,)`.
        upper: Upper corner, of the same shape.
        cuts: Points of the line where the box is cut at first: kinks, and where the maximum may
            be. They save time and change nothing else.
        rtol: Wanted width of the bracket, relative to its lower end.
        max_boxes: How many boxes to look at; then the bracket is right but wide.

    Returns:
        The bracket, of NumPy's float64 numbers; its upper end is infinite if no bound was found.

    Raises:
        ValueError: If the corners make no bounded box, or the function is NaN somewhere in it.
        TypeError: If the function does not return one real floating-point scalar.
        NotImplementedError: If it uses a primitive that has no interval rule; the text names it.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics.sup_norm import sup_norm
        >>> lower, upper = sup_norm(lambda x: x * (1 - x), -1.0, 1.0)
        >>> print(f"{lower:.9f} {upper:.9f}")
        2.000000000 2.000000000
    """
    low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    if low.shape != high.shape or not np.all((low < high) & np.isfinite(low) & np.isfinite(high)):
        raise ValueError(
            f"lower and upper must be corners of a bounded box, of one shape with lower < upper; "
            f"got {lower} and {upper}."
        )
    f = enclosure(fn, lower)
    points = _samples(low, high)
    sizes, noise = _attained(f, points)
    largest = np.nanmax(sizes, initial=0.0)
    if len(cuts):
        edges = np.unique(np.clip(np.asarray(cuts, np.float64), low, high))
        edges = np.unique(np.concatenate([[low], edges, [high]]))
    else:
        edges = np.sort(points) if not low.ndim else None
    boxes = (low[None], high[None]) if edges is None else (edges[:-1], edges[1:])
    # A box is not cut for what rounding hides.
    wanted = max(rtol * largest, 4 * np.nanmax(noise, initial=0.0), 1e-300)
    found = minimum(
        lambda a, b: -_bound(f, a, b),
        lambda p: -_attained(f, p)[0],
        *boxes,
        tol=wanted / max(1.0, largest),
        max_boxes=max_boxes,
    )
    if found.suspect is not None and not math.isfinite(found.lower):
        _refuse_nan(fn, found.suspect)
    lower_end = max(largest, -found.upper)
    convert: Any = np.float64
    return Bracket(convert(lower_end), convert(max(lower_end, -found.lower)))


def _samples(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The corners, and points that fill the box evenly, by multiples of an irrational vector."""
    ratio = 1.5
    for _ in range(40):
        ratio = (1 + ratio) ** (1 / (low.size + 1))
    steps = ratio ** -np.arange(1.0, low.size + 1).reshape(low.shape)
    turns = np.arange(1.0, _SAMPLES).reshape(-1, *[1] * low.ndim)
    inside = low + (high - low) * np.mod(turns * steps, 1)
    return np.concatenate([low[None], np.clip(inside, low, high), high[None]])


def _attained(f: Enclosure, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sizes that are attained at points, and how uncertain rounding leaves them."""
    lower, upper = _together(lambda p, _: f.natural(p, p)[0], points, points)
    with np.errstate(invalid="ignore"):
        return np.maximum(np.maximum(lower, -upper), 0), upper - lower


def _bound(f: Enclosure, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Upper bounds of the size on boxes, infinite where there is none."""
    lower, upper = _together(f, low, high)
    bound = np.maximum(upper, -lower)
    return np.where(np.isnan(bound), math.inf, bound)


def _together(bounds: Callable, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, ...]:
    """Bounds on many boxes, some thousands at a time."""
    parts = range(0, len(low), _TOGETHER)
    ends = [bounds(low[i : i + _TOGETHER], high[i : i + _TOGETHER]) for i in parts]
    return tuple(np.concatenate(end) for end in zip(*ends, strict=True))


def _refuse_nan(fn: Callable, point: np.ndarray) -> None:
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        value = fn(jax.numpy.asarray(point, np.float64))
    if np.isnan(value):
        raise ValueError(f"fn is NaN at {point}; narrow the box to where it is a number.")
