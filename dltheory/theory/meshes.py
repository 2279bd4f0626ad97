r"""Piecewise linear functions on a regular mesh of a box, as ReLU networks.

The box is cut into equal cells and each of them into Kuhn's simplices, by the planes on which two
coordinates have come equally far through it. With :math:`u_k` counting cells along an axis, the
functions that are affine on every simplex have the basis

.. math:: 1, \qquad \min_{k \in S}\, \max(u_k - i_k, 0), \quad
          \emptyset \ne S \subseteq \{1, \dots, d\}, \quad 0 \le i_k < n_k,

one function for each node, and one unit of a network: :math:`\min(a, b) = a - \max(a - b, 0)`.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dltheory.numerics.simplex_sup import sup_gap
from dltheory.theory.layouts import Construction, Layer, network

_FINE = 6  # samples of a cell along each axis
_MOST = 1 << 15  # nodes
_CHUNK = 4096
_KEPT = 1e-13  # of the largest coefficient: what is smaller is rounding


def interpolation(heights: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> Construction:
    r"""The function with given heights at the nodes, affine on each simplex, as a ReLU network.

    It has `d` hidden layers. The last has a unit for each node but those on the lower faces of
    the box, less where the heights do not bend: a sum of functions of single variables needs one
    unit a knot.

    Args:
        heights: At the nodes, shape `(n_1 + 1, ..., n_d + 1)`.
        lower: Lower corner of the box, shape `(d,)`.
        upper: Upper corner.

    Returns:
        The network; it is exact on the box, the rounding of its parameters apart.

    Raises:
        ValueError: If the shapes do not agree.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from dltheory.theory import meshes
        >>> net = meshes.interpolation(np.eye(3), np.zeros(2), np.ones(2))
        >>> x = jnp.array([[0.5, 0.5], [0.75, 0.25]])
        >>> net.apply(net.params, x)[:, 0].tolist()
        [1.0, 0.0]

    Source:
        Kuhn (1960), Some combinatorial lemmas in topology; for the network, Arora, Basu, Mianjy
        and Mukherjee (2018), Understanding deep neural networks with rectified linear units.
    """
    values, low, high = (np.asarray(x, np.float64) for x in (heights, lower, upper))
    if not (low.shape == high.shape == (values.ndim,) and min(values.shape, default=0) > 1):
        raise ValueError(
            f"heights have shape {values.shape} and the corners {low.shape} and {high.shape}; want "
            "corners of shape (d,), and two nodes or more along each of d axes"
        )
    return network(_layers(values, low, high), bound=0.0)


def certified(
    f: Callable[[Array], Array],
    eps: float,
    lower: ArrayLike,
    upper: ArrayLike,
    *,
    lipschitz: float | None = None,
    curvature: float | None = None,
) -> Construction:
    """A network on a mesh as coarse as can be found for a certified sup error.

    See `constructions.approximate`, which calls it for a box.

    Args:
        f: The target, from shape `(d,)` to a scalar.
        eps: Wanted sup error.
        lower: Lower corner of the box, shape `(d,)`, of at most three dimensions.
        upper: Upper corner.
        lipschitz: A bound on the length of the gradient, instead of the traced program.
        curvature: A bound on the norm of the matrix of second derivatives, likewise.

    Returns:
        The network and its bound.

    Raises:
        ValueError: If the box is empty or has too many dimensions, or the target jumps, cannot be
            bounded, is not a number somewhere, or would need too many units.
    """
    low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    if low.shape != high.shape or not np.all((low < high) & np.isfinite(high - low)):
        raise ValueError(f"interval is {lower}, {upper}; want corners of a box, lower < upper")
    if not 1 <= low.size <= 3:
        raise ValueError(
            f"the box has {low.size} dimensions; a mesh serves in up to three. In more, measure "
            "an uncertified network with measure.approximation"
        )
    values = _sampler(f, low.size)
    known = lipschitz is not None or curvature is not None
    ratio = _anisotropy(values, low, high)
    cells = 1
    while True:
        shape = tuple(max(1, round(cells * part)) for part in ratio)
        if math.prod(n + 1 for n in shape) > _MOST:
            raise ValueError(
                f"eps is {eps}, which takes more than {_MOST} nodes, or f is unbounded or jumps; "
                "ask for less, or measure an uncertified network with measure.approximation"
            )
        if known:
            net = _known(values, shape, low, high, lipschitz, curvature)
            if net.bound <= eps:
                return net
            grow = max(1.02, min(2.0, math.sqrt(net.bound / eps)))
        else:
            heights, error = _balanced(values, shape, low, high)
            if error <= eps:
                net = network(_layers(heights, low, high), math.nan)
                params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), net.params)
                run = lambda x, net=net, params=params: net.apply(params, x[None])[0, 0]
                error = _certificate(f, run, low, high)
                if error <= eps:
                    return net._replace(bound=error)
            grow = max(1.02, min(2.0, 0.97 * math.sqrt(error / eps)))
        cells = max(cells + 1, int(cells * grow))


def _certificate(f: Callable, run: Callable, low: np.ndarray, high: np.ndarray) -> float:
    try:
        return float(sup_gap(f, run, low, high, rtol=1e-3).upper)
    except NotImplementedError as error:
        raise ValueError(
            f"f cannot be bounded by itself: {error}. Give lipschitz= or curvature=, or measure "
            "an uncertified network with measure.approximation"
        ) from error


def _known(values, shape, low, high, lipschitz, curvature) -> Construction:
    r"""The interpolant, bounded by :math:`L |h| / 2` or :math:`M |h|^2 / 8` with sides `h`."""
    heights = values(_nodes(shape, low, high)).reshape([n + 1 for n in shape])
    side = float(np.sum(((high - low) / shape) ** 2))
    bounds = [math.inf if lipschitz is None else lipschitz * math.sqrt(side) / 2]
    bounds.append(math.inf if curvature is None else curvature * side / 8)
    layers = _layers(heights, low, high)
    net = network(layers, math.nan)
    unit = float(jnp.finfo(jnp.result_type(float)).eps)
    size = np.abs(layers[-1][0]).sum() * max(shape) + np.abs(heights).max()
    reach = 1 + float(np.max(np.maximum(np.abs(low), np.abs(high)) / (high - low)))
    return net._replace(bound=float(min(bounds) + 32 * unit * size * reach))


def _layers(heights: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[Layer]:
    """One layer for each coordinate: in the `k`-th it joins the minima of those before."""
    d, counts = heights.ndim, [n - 1 for n in heights.shape]
    terms = _coefficients(heights)
    scale = np.array(counts) / (high - low)
    # What the units must be able to give: the minima over sets, from single steps on.
    wanted = {key for part in terms for key in (part[: k + 1] for k in range(len(part)))}
    steps = sorted({((k, i),) for part in terms for k, i in part})
    if not steps:
        steps = [((0, 0),)]
    first = np.zeros((len(steps), d)), np.zeros(len(steps))
    for row, ((k, i),) in enumerate(steps):
        first[0][row, k] = scale[k]
        first[1][row] = -scale[k] * low[k] - i
    layers: list[Layer] = [first]
    have = {key: {row: 1.0} for row, key in enumerate(steps)}  # as sums of units
    for axis in range(1, d):
        units, sums = [], {}

        def unit(parts, units=units):
            units.append(parts)
            return len(units) - 1

        for key, parts in have.items():
            later = [w for w in wanted if len(w) > len(key) and w[: len(key)] == key]
            if key in terms or any(w[-1][0] >= axis for w in later) or key[0][0] >= axis:
                sums[key] = {unit(parts): 1.0}
        for key in sorted(w for w in wanted if len(w) > 1 and w[-1][0] == axis):
            if key[:-1] not in sums:
                sums[key[:-1]] = {unit(have[key[:-1]]): 1.0}
            over = dict(have[key[:-1]])
            for row, weight in have[key[-1:]].items():
                over[row] = over.get(row, 0.0) - weight
            sums[key] = {**sums[key[:-1]], unit(over): -1.0}
        weights = np.zeros((len(units), len(layers[-1][1])))
        for row, parts in enumerate(units):
            weights[row, list(parts)] = list(parts.values())
        layers.append((weights, np.zeros(len(units))))
        have = sums
    last = np.zeros((1, len(layers[-1][1])))
    for key, weight in terms.items():
        for row, part in have[key].items():
            last[0, row] += weight * part
    return [*layers, (last, np.array([heights.flat[0]]))]


def _coefficients(heights: np.ndarray) -> dict[tuple, float]:
    """The coefficient of each function of the basis, named by its steps `(axis, index)`."""
    rest, terms = heights - heights.flat[0], {}
    smallest = _KEPT * np.abs(rest).max(initial=1e-300)
    grid = np.indices(heights.shape)
    for size in range(1, heights.ndim + 1):
        taken = np.zeros_like(rest)
        for axes in itertools.combinations(range(heights.ndim), size):
            face = rest[tuple(slice(None) if k in axes else 0 for k in range(heights.ndim))]
            bend = face - _moved(face, tuple(range(size)))
            for axis in range(size):
                bend = bend - _moved(bend, (axis,))
            for place in np.argwhere(np.abs(bend) > smallest):
                steps = tuple((k, int(i) - 1) for k, i in zip(axes, place, strict=True))
                terms[steps] = float(bend[tuple(place)])
                taken += terms[steps] * np.min([np.maximum(grid[k] - i, 0) for k, i in steps], 0)
        rest = rest - taken
    return terms


def _moved(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """An array moved by one place along some axes, zeros behind it."""
    out = np.zeros_like(values)
    target = tuple(slice(1, None) if k in axes else slice(None) for k in range(values.ndim))
    source = tuple(slice(None, -1) if k in axes else slice(None) for k in range(values.ndim))
    out[target] = values[source]
    return out


def _nodes(shape, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    axes = [np.linspace(a, b, n + 1) for a, b, n in zip(low, high, shape, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))


def _sampler(f: Callable, d: int) -> Callable[[np.ndarray], np.ndarray]:
    """The target at points, in float64, compiled for one number of them."""
    run = jax.vmap(f)
    with jax.enable_x64(True):
        out = jax.eval_shape(f, jax.ShapeDtypeStruct((d,), jnp.float64))
        if getattr(out, "shape", None) != ():
            raise TypeError(f"f must map one vector of shape ({d},) to a scalar; it returned {out}")

    def values(points):
        with jax.enable_x64(True):
            found = []
            for i in range(0, len(points), _CHUNK):
                part = points[i : i + _CHUNK]
                padded = np.concatenate([part, np.repeat(part[:1], _CHUNK - len(part), 0)])
                found.append(np.asarray(run(jnp.asarray(padded)), np.float64)[: len(part)])
        out = np.concatenate(found)
        if not np.isfinite(out).all():
            raise ValueError(f"f is no number at {points[~np.isfinite(out)][0]}; narrow the box")
        return out

    return values


def _anisotropy(values, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Cells along each axis, relative to the most: as the roots of the second differences."""
    d = low.size
    sampled = values(_nodes((24,) * d, low, high)).reshape((25,) * d)
    bends = np.array([np.abs(np.diff(sampled, 2, axis)).max() for axis in range(d)])
    return np.sqrt(np.maximum(bends, 1e-3 * bends.max() + 1e-300) / (bends.max() + 1e-300))


def _balanced(values, shape, low, high) -> tuple[np.ndarray, float]:
    """Heights that halve what they can of the error between nodes, and the error seen."""
    d, fine = len(shape), tuple(_FINE * n for n in shape)
    target = values(_nodes(fine, low, high)).reshape([n + 1 for n in fine])
    start = target[tuple(slice(None, None, _FINE) for _ in shape)].copy()
    best, least, heights = start, math.inf, start.copy()
    for _ in range(12):
        error = _interpolated(heights, shape) - target
        worst = np.abs(error).max()
        if worst < least:
            best, least = heights.copy(), worst
        most, fewest = error, error
        for axis in range(d):
            most = _around(most, axis, np.maximum, -math.inf)
            fewest = _around(fewest, axis, np.minimum, math.inf)
        heights = heights - 0.5 * (most + fewest)
    return best, float(least)


def _around(x: np.ndarray, axis: int, join: np.ufunc, least: float) -> np.ndarray:
    """The extreme within a cell of each node, along one axis."""
    x = np.moveaxis(x, axis, 0)
    ends = np.full((_FINE, *x.shape[1:]), least)
    padded = np.concatenate([ends, x, ends])
    count = (len(x) - 1) // _FINE + 1
    windows = [padded[i : i + _FINE * (count - 1) + 1 : _FINE] for i in range(2 * _FINE + 1)]
    return np.moveaxis(join.reduce(windows), 0, axis)


def _interpolated(heights: np.ndarray, shape) -> np.ndarray:
    """The piecewise linear function at all points of the finer grid."""
    d = len(shape)
    at = np.stack(np.meshgrid(*[np.arange(_FINE * n + 1) for n in shape], indexing="ij"))
    cell = np.minimum(at // _FINE, np.array(shape).reshape(d, *[1] * d) - 1)
    part = (at - _FINE * cell) / _FINE
    order = np.argsort(-part, axis=0)
    sizes = np.take_along_axis(part, order, 0)
    out = (1 - sizes[0]) * heights[tuple(cell)]
    corner = cell.copy()
    for k in range(d):
        np.put_along_axis(
            corner, order[k : k + 1], np.take_along_axis(corner, order[k : k + 1], 0) + 1, 0
        )
        weight = sizes[k] - (sizes[k + 1] if k + 1 < d else 0)
        out = out + weight * heights[tuple(corner)]
    return out
