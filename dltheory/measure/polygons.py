"""Convex polygons: cut by lines, and put together again where they belong together."""

import numpy as np
from scipy import sparse

# Of the size of a form, and of the square that the polygons lie in.
_NOTHING = 1e-12
_ON_A_LINE = 1e-11
_SHORTEST = 1e-10


def cut(polygon: np.ndarray, forms: np.ndarray) -> list[np.ndarray]:
    """Cut a polygon along all lines on which one of some affine forms is zero.

    Args:
        polygon: Its corners in order, shape `(corners, 2)`.
        forms: Constants and two derivatives, shape `(3, forms)`.

    Returns:
        The parts, as arrays of corners in the same order.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        heights = forms[0] + polygon @ forms[1:]
        none = _NOTHING * np.abs(forms).sum(0)
    parts, todo = [], [(polygon, heights, none)]
    while todo:
        corners, heights, none = todo.pop()
        crossing = (heights.min(0, initial=0.0) < -none) & (heights.max(0, initial=0.0) > none)
        if not crossing.any():
            parts.append(corners)
            continue
        heights, none = heights[:, crossing], none[crossing]
        sides = _halves(corners, heights, none[0])
        todo += [(corners, heights[:, 1:], none[1:]) for corners, heights in sides]
    return parts


def _halves(corners, heights, none):
    """Both sides of the first form's line, with the heights of all forms at their corners."""
    side = np.where(np.abs(heights[:, 0]) <= none, 0.0, np.sign(heights[:, 0]))
    after = np.roll(np.arange(len(side)), -1)
    # Where the border passes from one side to the other between two corners.
    passes = np.flatnonzero(side * side[after] < 0)
    begin, end = heights[passes, 0], heights[after[passes], 0]
    share = (begin / (begin - end))[:, None]
    order = np.argsort(np.concatenate([np.arange(len(side)), passes + 0.5]))
    both = []
    for array in (corners, heights):
        new = (1 - share) * array[passes] + share * array[after[passes]]
        both.append(np.concatenate([array, new])[order])
    side = np.concatenate([side, np.zeros(len(passes))])[order]
    return [[array[kept] for array in both] for kept in (side >= 0, side <= 0)]


def joined(polygons: list[np.ndarray], maps: np.ndarray) -> np.ndarray:
    """Number the unions of neighbours on which a map is the same, to ten digits.

    Args:
        polygons: Convex polygons that tile the unit square, as arrays of corners in order.
        maps: Of each the constant and two derivatives of every output, shape
            `(polygons, 3, outputs)`.

    Returns:
        For each polygon the number of its union, from 0 in order of appearance.
    """
    flat = maps.reshape(len(maps), -1)
    noise = 1e-10 * np.abs(flat).max(0, initial=0.0)
    # Maps that agree lie side by side in the order of any weighted sum.
    weights = np.cos(np.arange(1, flat.shape[1] + 1))
    key = flat @ weights
    order = np.argsort(key)
    apart = np.diff(key[order]) > np.abs(weights) @ noise
    links = []
    for group in np.split(order, np.flatnonzero(apart) + 1):
        if len(group) > 1:
            links += _neighbours(polygons, flat, noise, group)
    pairs = np.array(links, int).reshape(-1, 2)
    graph = sparse.coo_array((np.ones(len(pairs)), pairs.T), shape=(len(flat), len(flat)))
    return sparse.csgraph.connected_components(graph, directed=False)[1]


def _neighbours(polygons, flat, noise, group) -> list[tuple[int, int]]:
    """Pairs of a group that share a piece of border, and have the same map."""
    ends = [(polygons[k], np.roll(polygons[k], -1, 0)) for k in group]
    owner = np.repeat(group, [len(begin) for begin, _ in ends])
    begin, end = (np.concatenate(part) for part in zip(*ends, strict=True))
    length = np.linalg.norm(end - begin, axis=1)
    kept = length > _SHORTEST
    owner, begin, end, length = owner[kept], begin[kept], end[kept], length[kept]
    found = []
    for k, (start, along) in enumerate(zip(begin, (end - begin) / length[:, None], strict=True)):
        first, second = begin[k + 1 :] - start, end[k + 1 :] - start
        cross = lambda v, along=along: np.abs(v[:, 0] * along[1] - v[:, 1] * along[0])
        # The border runs the other way round the neighbour.
        overlap = np.minimum(length[k], first @ along) - np.maximum(0.0, second @ along)
        straight = np.maximum(cross(first), cross(second)) < _ON_A_LINE
        touching = owner[k + 1 :][straight & (overlap > _SHORTEST)]
        same = (np.abs(flat[touching] - flat[owner[k]]) <= noise).all(1)
        found += [(owner[k], other) for other in touching[same]]
    return found
