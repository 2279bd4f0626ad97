r"""Polylines that stay within a tube around a target, with as few pieces as can be found.

The interval is cut into cells so small that the target strays from its chord by little, and by
how much at most is known for certain. A polyline with vertices above the ends of cells that
passes through a window there is then near the target everywhere.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dltheory.numerics.intervals import Enclosure

_MOST = 100_000  # cells


class Cells(NamedTuple):
    """The cells of an interval, and what is known of the target there.

    Attributes:
        x: Ends of the cells, shape `(cells + 1,)`, exact in the dtype of the parameters.
        low: Lower bounds on the target at them.
        high: Upper bounds.
        stray: Bounds on the distance of the target from its chord in each cell.
    """

    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    stray: np.ndarray


def stray_of(f: Enclosure) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    r"""Bounds on how far a target is from its chord, cell by cell.

    It is at most :math:`h (q - p) / 4` where :math:`p \le f' \le q`, and never more than the
    range of the target, which serves at jumps and at infinite slopes.
    """
    slope = None if f.slope is None else Enclosure(f.shape, f.slope, None)

    def bound(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        values, jumps = f.natural(low, high)
        with np.errstate(all="ignore"):
            stray = values.upper - values.lower
            if slope is not None:
                slopes = slope.natural(low, high)[0]
                turn = (high - low) * (slopes.upper - slopes.lower) / 4
                stray = np.fmin(stray, np.where(jumps, math.inf, turn))
        return np.where(np.isnan(stray), math.inf, np.nextafter(stray, math.inf))

    return bound


def cells(
    values: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    stray: Callable[[np.ndarray, np.ndarray], np.ndarray],
    interval: tuple[float, float],
    *,
    allowed: float,
    dtype: Any,
) -> Cells:
    """Cut an interval until the target strays from its chords by no more than is allowed."""
    x = np.unique(np.linspace(*interval, 65).astype(dtype).astype(np.float64))
    bounds = stray(x[:-1], x[1:])
    while not (bounds <= allowed).all():
        wide = np.flatnonzero(~(bounds <= allowed))
        middle = ((x[wide] + x[wide + 1]) / 2).astype(dtype).astype(np.float64)
        stuck = (middle <= x[wide]) | (middle >= x[wide + 1])
        if stuck.any() or len(x) + len(wide) > _MOST:
            at = float(middle[stuck][0] if stuck.any() else middle[0])
            raise ValueError(
                f"f has no bound near {at:.6g} with which it could be followed to within "
                f"{allowed:.3g}: it jumps there, is no number, or eps is too small for {dtype}. "
                "Give lipschitz= or curvature=, or measure an uncertified network with "
                "measure.approximation"
            )
        halves = [stray(*ends) for ends in ((x[wide], middle), (middle, x[wide + 1]))]
        bounds[wide] = halves[0]
        x, bounds = np.insert(x, wide + 1, middle), np.insert(bounds, wide + 1, halves[1])
    low, high = values(x)
    bad = ~np.isfinite(low + high)
    if bad.any():
        raise ValueError(f"f is no number at {x[bad][0]:.6g}; narrow the interval")
    return Cells(x, low, high, bounds)


def shortest(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r"""A polyline through the windows `[low, high]` above `x`, its vertices there too.

    Each piece goes as far as any line can from where the one before may have ended. For a convex
    or concave target that is the best polyline there is, the vertices being free.

    Returns:
        Positions of the vertices in `x`, and their heights.
    """
    x, low, high = x.tolist(), low.tolist(), high.tolist()
    start, ends, runs = 0, (low[0], high[0]), []
    while start < len(x) - 1:
        lines = _first_lines(ends, x[start + 1] - x[start], low[start + 1], high[start + 1])
        last = start + 1
        while last + 1 < len(x):
            step = x[last + 1] - x[start]
            fewer = _below(_below(lines, step, high[last + 1], 1), step, low[last + 1], -1)
            if not fewer:
                break
            lines, last = fewer, last + 1
        at = x[last] - x[start]
        reached = [y + slope * at for y, slope in lines]
        runs.append((start, at, lines))
        start, ends = last, (min(reached), max(reached))
    # Backwards: the last piece is free, each one before must end where the next begins.
    height = (ends[0] + ends[1]) / 2
    vertices, heights = [len(x) - 1], [height]
    for start, at, lines in reversed(runs):
        height = _start_of(lines, at, height)
        vertices.append(start)
        heights.append(height)
    return np.array(vertices[::-1]), np.array(heights[::-1])


def error_of_units(knots: np.ndarray, jumps: np.ndarray, start: float, cells: Cells) -> float:
    r"""Bound on the error of :math:`s + \sum_i c_i \max(x - k_i, 0)`, the knots at cell ends."""
    height, lost = np.full_like(cells.x, start), np.zeros_like(cells.x)
    size = np.abs(height)
    for knot, jump in zip(knots, jumps, strict=True):
        # Neumaier's sum: steep units cancel, and what is lost by it would grow with their number.
        term = jump * np.maximum(cells.x - knot, 0)
        total = height + term
        first = np.abs(height) >= np.abs(term)
        lost += np.where(first, (height - total) + term, (term - total) + height)
        height, size = total, size + np.abs(term)
    height = height + lost
    doubt = 3 * np.finfo(np.float64).eps * (size + np.abs(height))
    worst = np.maximum(cells.high - height, height - cells.low) + doubt
    return float(np.nextafter(np.max(np.fmax(worst[:-1], worst[1:]) + cells.stray), math.inf))


# A polygon of lines: pairs of the height at the vertex before and the slope.
_Lines = list[tuple[float, float]]


def _first_lines(ends, step: float, low: float, high: float) -> _Lines:
    corners = ((ends[0], low), (ends[0], high), (ends[1], high), (ends[1], low))
    return [(y, (target - y) / step) for y, target in corners]


def _below(lines: _Lines, step: float, limit: float, sign: int) -> _Lines:
    """The lines that are at most (or, for sign -1, at least) `limit` after a step."""
    over = [sign * (y + slope * step - limit) for y, slope in lines]
    kept: _Lines = []
    for i, (y, slope) in enumerate(lines):
        before = over[i - 1]
        if (over[i] > 0) != (before > 0):
            part = before / (before - over[i])
            y0, slope0 = lines[i - 1]
            kept.append((y0 + part * (y - y0), slope0 + part * (slope - slope0)))
        if over[i] <= 0:
            kept.append((y, slope))
    return kept


def _start_of(lines: _Lines, step: float, height: float) -> float:
    """Where a line may begin that ends at a height: the middle of all places."""
    starts = []
    for i, (y, slope) in enumerate(lines):
        y0, slope0 = lines[i - 1]
        end, end0 = y + slope * step - height, y0 + slope0 * step - height
        if end == end0:
            starts += [y, y0] if end == 0 else []
        elif (end >= 0) != (end0 >= 0) or end == 0:
            starts.append(y0 + end0 / (end0 - end) * (y - y0))
    if starts:
        return (min(starts) + max(starts)) / 2
    # Rounding has left the polygon beside the height: take the nearest corner.
    return min(lines, key=lambda line: abs(line[0] + line[1] * step - height))[0]
