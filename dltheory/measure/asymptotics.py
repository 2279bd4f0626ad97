"""How a scalar function goes on to infinity: its limit and how fast, or the line that it nears.

Read off from values at powers of two, each with the bounds that rounding leaves on it, so that
what is only rounding is not taken for growth. Nothing here is certified.
"""

import math
from typing import NamedTuple

import numpy as np

from dltheory.networks.activations import Limit
from dltheory.numerics.intervals import Enclosure

POWERS = 2.0 ** np.arange(2, 128)
"""Where the function is looked at: up to the largest power of two in float32."""

_LARGEST = float(np.finfo(np.float64).max)


class Line(NamedTuple):
    """A straight line `slope * h + intercept`."""

    slope: float
    intercept: float


class Tail(NamedTuple):
    """How a function goes on to one side.

    Attributes:
        end: The finite limit, an infinity if it grows on and on, NaN if it does neither.
        limit: The limit with its rate, or None.
        asymptote: The line that the function approaches, or None.
    """

    end: float
    limit: Limit | None
    asymptote: Line | None


def tail(f: Enclosure, slope: Enclosure, side: int) -> Tail:
    """How a function goes on to one side.

    Args:
        f: The function.
        slope: Its derivative.
        side: -1 or 1.

    Returns:
        Its limit and rate, or the line that it approaches.
    """
    x, values, noise = _trusted(f, side * POWERS)
    limit = _limit(values, noise)
    if limit is not None:
        return Tail(limit, Limit(limit, _rate(f, slope, limit, side)), Line(0.0, limit))
    goes, tilt = end(f, side), _limit(values / x, noise / np.abs(x))
    if tilt is None:
        return Tail(goes, None, None)
    # The slope is read at the largest floats, where it is exact; the offset where it still shows.
    tilt = float(values[-1] / x[-1])
    tilt = round(tilt, 12) if abs(tilt - round(tilt, 12)) < 1e-14 else tilt
    noise = noise + 4e-16 * np.abs(tilt * x)
    clear = noise < 1e-9
    offset = _limit((values - tilt * x)[clear], noise[clear])
    return Tail(goes, None, None if offset is None else Line(tilt, offset))


def end(f: Enclosure, side: int) -> float:
    """Where a function goes to one side: its limit, an infinity, or NaN if it does neither."""
    _, values, noise = _trusted(f, side * POWERS)
    limit = _limit(values, noise)
    if limit is not None:
        return limit
    steps = np.sign(np.diff(values[-9:]))
    return float(math.inf * steps[-1]) if abs(steps.sum()) == len(steps) > 0 else math.nan


def _trusted(f: Enclosure, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points where rounding leaves the value known to ten digits, the values, the noise."""
    lower, upper = f.natural(x, x)[0]
    with np.errstate(all="ignore"):
        values = np.clip(lower, -_LARGEST, _LARGEST) / 2 + np.clip(upper, -_LARGEST, _LARGEST) / 2
        noise = upper - lower
        known = noise <= 1e-10 * np.maximum(1, np.abs(values))
    return x[known], values[known], noise[known]


def _limit(values: np.ndarray, noise: np.ndarray) -> float | None:
    """The limit of values at successive powers of two, or None (Aitken's process)."""
    if len(values) < 3:
        return None
    a, b, c = values[-3:]
    first, second, scale = b - a, c - b, max(1.0, abs(c))
    if abs(second) <= 4 * noise[-1] + 1e-14 * scale:
        return round(float(c), 9) + 0.0
    if abs(second) > min(0.995 * abs(first), 1e-3 * scale):
        return None
    return round(float(c - second**2 / (second - first)), 9) + 0.0


def _rate(f: Enclosure, slope: Enclosure, limit: float, side: int) -> str:
    """How the distance to a limit decays, from the slope of its logarithm at the last points."""
    tail = np.sort(np.array([64.0, POWERS[-1]]) * side)
    (least, most), jumps = slope.natural(tail[:1], tail[1:])
    if least[0] == most[0] == 0 and not jumps[0]:
        return "exact"
    x = 2.0 ** np.arange(-6, 40, 0.125)
    lower, upper = f.natural(side * x, side * x)[0]
    distance = np.abs((lower + upper) / 2 - limit)
    resolved = distance > 1e3 * (upper - lower) + 1e-8 * max(1.0, abs(limit))
    x, distance = x[resolved][-12:], distance[resolved][-12:]
    with np.errstate(all="ignore"):
        fall = -np.diff(np.log(distance)) / np.diff(x)
        growth = np.diff(np.log(fall)) / np.diff(np.log((x[1:] + x[:-1]) / 2))
    # The fall is p / x for a power, constant for an exponential, and grows for anything faster.
    growth = growth[np.isfinite(growth)]
    typical = np.median(growth) if len(growth) else math.inf
    return (
        "algebraic" if typical < -0.5 else "exponential" if typical < 0.5 else "super-exponential"
    )
