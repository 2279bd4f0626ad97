r"""The linear regions of any piecewise linear network on a line or a plane, found exactly.

The line, or the plane, is cut stage by stage along the zeros of the network's decisions: on what is
then left whole all that the network has computed so far is one affine map, and the next stage takes
these maps on.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dltheory.measure import branches, passes, polygons
from dltheory.networks import sites
from dltheory.networks.sites import Site

_BATCH = 128
_SHORTEST = 1e-14  # of the line


class Pieces(NamedTuple):
    """A piecewise linear function of :math:`t` along the line :math:`a + t (b - a)`.

    Attributes:
        t: The ends of the pieces, ascending from 0 to 1, shape `(pieces + 1,)`, float64.
        values: What the network returns there, shape `(pieces + 1, outputs)`.
        slopes: Derivatives with respect to `t`, shape `(pieces, outputs)`.
    """

    t: np.ndarray
    values: np.ndarray
    slopes: np.ndarray


class Tiling(NamedTuple):
    r"""A piecewise linear function of :math:`(u, v)` on :math:`a + u (b - a) + v (c - a)`.

    Attributes:
        polygons: Convex parts of the unit square, as arrays of `(u, v)` in order round them, shape
            `(corners, 2)`, float64. On each one all units of the network stay on or off.
        constants: What the network's affine map returns at `a`, shape `(polygons, outputs)`.
        gradients: Derivatives with respect to `u` and `v`, shape `(polygons, 2, outputs)`.
        regions: For each polygon the number of the linear region that it is part of, shape
            `(polygons,)`, from 0 on.
    """

    polygons: list[np.ndarray]
    constants: np.ndarray
    gradients: np.ndarray
    regions: np.ndarray


class Lengths(NamedTuple):
    """How long a path is in each layer.

    Attributes:
        sites: The layers in run order.
        lengths: Of each, shape `(layers,)`.
    """

    sites: tuple[Site, ...]
    lengths: Array


def pieces_on_line(
    f: Callable[[Any, Array], Array],
    params: Any,
    a: ArrayLike,
    b: ArrayLike,
    *,
    max_pieces: int = 1_000_000,
) -> Pieces:
    """The linear pieces of a network on the line between two points, in float64.

    Neighbours of one slope, to ten digits, are one piece. The program may hold anything that is
    piecewise linear: ReLU, absolute values, maxima and max-pooling, skips, loops.

    Args:
        f: The network, `f(params, x)`, on a batch `x`.
        params: Its parameters; floating-point leaves are taken to float64.
        a: Where the line begins: one example, without the axis of the batch.
        b: Where it ends.
        max_pieces: Refuse to look at more.

    Returns:
        The pieces, outputs flattened. All NaN if the network returns NaN somewhere.

    Raises:
        ValueError: If `f` is not piecewise linear along the line, the points differ in shape or
            are not finite, or there are more than `max_pieces`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import regions
        >>> tent = lambda params, x: jnp.abs(jnp.abs(x) - params)
        >>> found = regions.pieces_on_line(tent, 0.5, jnp.array([-1.0]), jnp.array([1.0]))
        >>> found.t.tolist(), found.slopes[:, 0].tolist()
        ([0.0, 0.25, 0.5, 0.75, 1.0], [-2.0, 2.0, -2.0, 2.0])
    """
    return _merged(*_explored(f, params, _finite(a=a, b=b), _LINE, max_pieces))


def count_on_line(f: Callable[[Any, Array], Array], params: Any, a: ArrayLike, b: ArrayLike) -> int:
    """How many linear pieces a network has on the line between two points.

    Args:
        f: The network, `f(params, x)`, on a batch `x`.
        params: Its parameters.
        a: Where the line begins: one example, without the axis of the batch.
        b: Where it ends.

    Returns:
        The number of pieces: one more than there are points where the derivative jumps.

    Raises:
        ValueError: If `f` is not piecewise linear along the line, or the points differ in shape or
            are not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import regions
        >>> relu_net = lambda w, x: jnp.maximum(x @ w, 0).sum(-1)
        >>> w = jnp.array([[1.0, -1.0, 2.0], [0.5, 1.0, 3.0]])
        >>> regions.count_on_line(relu_net, w, jnp.array([-1.0, 0.2]), jnp.array([1.0, 0.3]))
        4
    """
    return len(pieces_on_line(f, params, a, b).slopes)


def pieces_on_plane(
    f: Callable[[Any, Array], Array],
    params: Any,
    a: ArrayLike,
    b: ArrayLike,
    c: ArrayLike,
    *,
    max_pieces: int = 200_000,
) -> Tiling:
    r"""The linear regions of a network on a parallelogram, as polygons, in float64.

    .. math:: \{a + u (b - a) + v (c - a) : 0 \le u, v \le 1\}

    A linear region, here, is a connected set on which the network is one affine map, to ten
    digits; it need not be convex, and is the union of some of the polygons.

    Args:
        f: The network, `f(params, x)`, on a batch `x`.
        params: Its parameters; floating-point leaves are taken to float64.
        a: A corner: one example, without the axis of the batch.
        b: A corner beside it.
        c: The other corner beside it.
        max_pieces: Refuse to look at more polygons.

    Returns:
        The polygons with the network's map on each, outputs flattened. All NaN, and one polygon,
        if the network returns NaN somewhere.

    Raises:
        ValueError: If `f` is not piecewise linear on the plane, the points differ in shape or are
            not finite, or there are more than `max_pieces`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import regions
        >>> folded = lambda _, x: jnp.abs(x[:, 0]) + jnp.maximum(x[:, 1], 0)
        >>> corners = jnp.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
        >>> found = regions.pieces_on_plane(folded, None, *corners)
        >>> len(found.polygons), sorted(found.gradients[:, :, 0].tolist())
        (4, [[-2.0, 0.0], [-2.0, 2.0], [2.0, 0.0], [2.0, 2.0]])
    """
    parts, maps = _explored(f, params, _finite(a=a, b=b, c=c), _PLANE, max_pieces)
    if not np.isfinite(maps).all():
        parts, maps = _PLANE.whole, np.full((1, *maps.shape[1:]), np.nan)
    return Tiling(parts, maps[:, 0], maps[:, 1:], polygons.joined(parts, maps))


def count_on_plane(
    f: Callable[[Any, Array], Array], params: Any, a: ArrayLike, b: ArrayLike, c: ArrayLike
) -> int:
    """How many linear regions a network has on the parallelogram that three points span.

    Args:
        f: The network, `f(params, x)`, on a batch `x`.
        params: Its parameters.
        a: A corner: one example, without the axis of the batch.
        b: A corner beside it.
        c: The other corner beside it.

    Returns:
        The number of connected sets on which the network is one affine map.

    Raises:
        ValueError: If `f` is not piecewise linear on the plane, or the points differ in shape or
            are not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import regions
        >>> folded = lambda _, x: jnp.abs(x[:, 0] + x[:, 1])
        >>> corners = jnp.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
        >>> regions.count_on_plane(folded, None, *corners)
        2

    Source:
        Hanin & Rolnick (2019), Complexity of linear regions in deep networks.
    """
    return int(pieces_on_plane(f, params, a, b, c).regions.max()) + 1


def trajectory_length(f: Callable[[Any, Array], Array], params: Any, path: Array) -> Lengths:
    r"""How long a path through the inputs is in the space of each layer.

    .. math:: \sum_i \| h_l(x_{i+1}) - h_l(x_i) \|

    the length of the polygon through the images of the points; with more points it grows to the
    length of the curve.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        path: Points in order, shape `(points, ...)`.

    Returns:
        `Lengths`, in run order.

    Raises:
        SiteError: If the model has no layers.
        ValueError: If `path` holds no point.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import regions
        >>> f = lambda w, x: jnp.maximum(x @ w, 0) @ w
        >>> path = jnp.array([[-1.0], [0.0], [1.0]])
        >>> regions.trajectory_length(f, jnp.array([[3.0]]), path).lengths
        Array([6., 9.], dtype=float32)

    Source:
        Raghu, Poole, Kleinberg, Ganguli & Sohl-Dickstein (2017), On the expressive power of deep
        neural networks.
    """
    measured = passes.prepare(f, params, path)
    _, values = measured.program.run(params, path)
    lengths = {}
    for text, array in values.items():
        rows = measured.per_example(text, array)
        lengths[text] = jnp.linalg.norm(jnp.diff(rows, axis=0), axis=-1).sum(0)
    found = tuple(site for site, _ in sites.expand(measured.program.layers))
    return Lengths(found, passes.stack(lengths, measured))


class _Shape(NamedTuple):
    """What is cut: a line or a plane.

    Attributes:
        whole: The one part to begin with.
        middle: A point in each of some parts.
        cut: Of parts and the margins on each, shape `(parts, 1 + d, count)`: what they fall into,
            and for each new part the old one.
        join: All parts of some batches.
    """

    whole: Any
    middle: Callable
    cut: Callable
    join: Callable


def _finite(**points: ArrayLike) -> np.ndarray:
    arrays = [np.asarray(point, np.float64) for point in points.values()]
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1 or not np.isfinite(arrays).all():
        names = " and ".join([", ".join([*points][:-1]), [*points][-1]])
        texts = " and ".join([", ".join(map(str, shapes[:-1])), str(shapes[-1])])
        raise ValueError(
            f"{names} have shapes {texts}; want finite examples of one shape, without the axis of "
            "the batch"
        )
    return np.stack(arrays)


def _explored(f, params, points, shape: _Shape, max_pieces: int):
    """The parts on which all decisions stand, and on each one the affine map of the output."""
    with jax.enable_x64(True):
        params = jax.tree.map(_to_float64, params)
        leaves, tree = jax.tree.flatten(params)
        like = tuple(jax.typeof(jnp.asarray(leaf)) for leaf in leaves)
        program = _program(f, tree, like, points.shape[1:])
        fixed = program.fixed(params)
        live = [np.concatenate([points[:1], points[1:] - points[0]])[None]]
        parts, source = shape.whole, np.zeros(1, int)
        for stage in program.stages:
            inside, rows, cuts = shape.middle(parts), [], []
            for k in range(0, len(parts), _BATCH):
                here = slice(k, k + _BATCH)
                batch = _padded([*(array[source[here]] for array in live), inside[here]])
                outs, margins = stage(fixed, batch[:-1], batch[-1])
                size = len(inside[here])
                rows.append([np.asarray(array)[:size] for array in outs])
                made, old = shape.cut(parts[here], np.asarray(margins)[:size])
                cuts.append((made, k + old))
            live = [np.concatenate(column) for column in zip(*rows, strict=True)]
            made, olds = zip(*cuts, strict=True)
            parts, source = shape.join(made), np.concatenate(olds)
            if len(parts) > max_pieces:
                raise ValueError(
                    f"f has more than max_pieces = {max_pieces} pieces; want a shorter line, a "
                    "smaller plane or a larger max_pieces"
                )
    return parts, live[0]


def _to_float64(leaf):
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, jnp.float64) if floating else leaf


@functools.lru_cache(maxsize=32)  # many calls, one program for all parameters of a network
def _program(f, tree, leaves, shape) -> branches.Program:
    network = lambda params, x: f(params, x[None]).reshape(-1)
    params = jax.tree.unflatten(tree, leaves)
    return branches.staged(network, params, jax.ShapeDtypeStruct(shape, jnp.float64))


def _padded(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """One size, whatever is left, so that each stage is compiled once."""
    rows = np.minimum(np.arange(_BATCH), len(arrays[-1]) - 1)
    return arrays if len(arrays[-1]) == _BATCH else [array[rows] for array in arrays]


def _cut_line(ends: np.ndarray, margins: np.ndarray):
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        zeros = -margins[:, 0] / margins[:, 1]
        inside = (zeros > ends[:, :1] + _SHORTEST) & (zeros < ends[:, 1:] - _SHORTEST)
    old, column = np.nonzero(inside)
    start = np.concatenate([ends[:, 0], zeros[old, column]])
    old = np.concatenate([np.arange(len(ends)), old])
    order = np.lexsort((start, old))
    start, old = start[order], old[order]
    # A piece shorter than the shortest is where rounding put two ends of one piece.
    new = np.append(True, (np.diff(start) > _SHORTEST) | (np.diff(old) > 0))
    start, old = start[new], old[new]
    last = np.append(np.diff(old) > 0, True)
    end = np.where(last, ends[old, 1], np.append(start[1:], 0.0))
    return np.stack([start, end], 1), old


def _merged(ends: np.ndarray, maps: np.ndarray) -> Pieces:
    """Pieces in order, neighbours of one slope joined."""
    if not np.isfinite(maps).all():
        nan = np.full((2, maps.shape[2]), np.nan)
        return Pieces(np.array([0.0, 1.0]), nan, nan[:1])
    constant, slope = maps[:, 0], maps[:, 1]
    size = np.abs(slope)
    noise = 1e-10 * (size[1:] + size[:-1]) + 1e-13 * size.max(initial=0.0)
    new = np.append(True, (np.abs(np.diff(slope, axis=0)) > noise).any(1))
    t = np.append(ends[new, 0], 1.0)
    constant, slope = constant[new], slope[new]
    values = constant + slope * t[:-1, None]
    return Pieces(t, np.concatenate([values, constant[-1:] + slope[-1:]]), slope)


def _cut_plane(parts: list[np.ndarray], margins: np.ndarray):
    made = [polygons.cut(part, forms) for part, forms in zip(parts, margins, strict=True)]
    old = np.repeat(np.arange(len(parts)), [len(m) for m in made])
    return [part for several in made for part in several], old


_LINE = _Shape(
    np.array([[0.0, 1.0]]), lambda ends: ends.mean(1, keepdims=True), _cut_line, np.concatenate
)
_SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
_PLANE = _Shape(
    [_SQUARE],
    lambda parts: np.stack([part.mean(0) for part in parts]),
    _cut_plane,
    lambda batches: list(itertools.chain(*batches)),
)
