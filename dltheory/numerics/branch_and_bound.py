"""The infimum of a function that can be bounded on boxes, by cutting the boxes where it may lie."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_MAX = float(np.finfo(np.float64).max)
_FINEST = 1e-24  # a box this narrow is not cut: towards zero floats go on for a thousand octaves


class Minimum(NamedTuple):
    """What is known of an infimum.

    Attributes:
        lower: A lower bound.
        upper: An upper bound, attained to rounding.
        close: Whether the two are as close as was asked for.
        boxes: How many boxes were bounded.
        suspect: A point where the function may be no number, or None.
    """

    lower: float
    upper: float
    close: bool
    boxes: int
    suspect: np.ndarray | None


def minimum(
    below: Callable[[np.ndarray, np.ndarray], np.ndarray],
    above: Callable[[np.ndarray], np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    *,
    tol: float,
    max_boxes: int,
) -> Minimum:
    """Bracket the infimum of a function over boxes.

    Every round bounds all boxes at once, sets aside those that cannot move the infimum by more
    than the tolerance, and cuts each of the others in four.

    Args:
        below: `below(low, high)`, lower bounds on boxes, NaN where there is none.
        above: `above(points)`, upper bounds at points, NaN where the function may be no number.
        low: Lower corners of the boxes, shape `(boxes, ...)`.
        high: Upper corners.
        tol: Wanted distance of the bounds, relative to the infimum where that exceeds one.
        max_boxes: How many boxes to bound at most; the answer is then right but wide.

    Returns:
        The bracket.
    """
    lower, upper, slack, count, suspect = math.inf, math.inf, tol, 0, None
    with np.errstate(all="ignore"):
        while len(low):
            count += len(low)
            bound = below(low, high)
            bound = np.where(np.isnan(bound), -math.inf, bound)
            middle = middle_of(low, high)
            points = np.clip(np.concatenate([low, middle, high]), -_MAX, _MAX)
            values = above(points)
            if suspect is None and np.isnan(values).any():
                suspect = points[np.isnan(values)][0]
            upper = np.fmin.reduce(values, initial=upper)
            slack = tol * max(1.0, abs(upper))
            inside = (low < middle) & (middle < high) & (high - low > _FINEST)
            inside = inside.reshape(len(low), middle[0].size).any(1)
            going = (bound < upper - slack) & inside
            if count + 4 * np.count_nonzero(going) > max_boxes:
                going[:] = False
            lower = np.min(bound[~going], initial=lower)
            low, high = _halves(*_halves(low[going], high[going]))
    lower, upper = float(min(lower, upper)), float(upper)
    return Minimum(lower, upper, bool(upper - lower <= slack), count, suspect)


def middle_of(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where to cut: halfway, but at zero or at the geometric mean where the ends lie far apart."""
    low, high = np.clip(low, -_MAX, _MAX), np.clip(high, -_MAX, _MAX)
    small, large = np.minimum(abs(low), abs(high)), np.maximum(abs(low), abs(high))
    across = (low < 0) & (high > 0)
    small = np.maximum(small, 1)
    mean = np.sqrt(small) * np.sqrt(large) * np.where(high > 0, 1, -1)
    far = np.where(across, 0.0, mean)
    wide = large > np.where(across, 2, 4 * small)
    return np.clip(np.where(wide, far, low / 2 + high / 2), low, high)


def _halves(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut every box in two across its widest side."""
    if not len(low):
        return low, high
    flat_low, flat_high = low.reshape(len(low), -1), high.reshape(len(low), -1)
    rows, axis = np.arange(len(low)), np.argmax(flat_high - flat_low, axis=1)
    middle = middle_of(flat_low, flat_high)[rows, axis]
    left, right = flat_high.copy(), flat_low.copy()
    left[rows, axis], right[rows, axis] = middle, middle
    lows, highs = np.concatenate([flat_low, right]), np.concatenate([left, flat_high])
    return lows.reshape(-1, *low.shape[1:]), highs.reshape(-1, *low.shape[1:])
