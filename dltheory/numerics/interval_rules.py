r"""For each primitive of a traced program, bounds on what it returns for operands in intervals.

`interval_arithmetic` holds what works entry by entry; here are the operations on whole arrays,
and what is common to all. Every array carries the axis of boxes in front, of length one where it
is the same for all of them.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dltheory.numerics import interval_arithmetic as arithmetic
from dltheory.numerics.interval_arithmetic import EPS, TINY, Interval, exact, multiply, total


def may_jump(eqn, ins: list[Interval], out: Interval) -> np.ndarray:
    """For each box, whether a primitive may be discontinuous inside it."""
    if not np.issubdtype(eqn.outvars[0].aval.dtype, np.floating):
        return np.zeros(1, bool)  # it matters where it is used
    # Without a bound on the value there may be a pole.
    jumps = _any(~(np.isfinite(out.lower) & np.isfinite(out.upper)))
    name = eqn.primitive.name
    if name == "select_n":
        return jumps | _any(ins[0].lower != ins[0].upper)
    from_discrete = name == "convert_element_type" and not np.issubdtype(
        eqn.invars[0].aval.dtype, np.floating
    )
    if from_discrete or name in ("sign", "floor", "ceil"):
        return jumps | _any(out.lower != out.upper)
    return jumps


def _any(flags: Any) -> np.ndarray:
    """For each box, whether a flag is set anywhere in it."""
    return flags.reshape(len(flags), math.prod(flags.shape[1:])).any(1)


def apply(eqn, ins: list[Interval]) -> list[Interval]:
    """Bounds on what an equation returns for operands within `ins`.

    Raises:
        NotImplementedError: If there is no rule for its primitive.
    """
    name, out = eqn.primitive.name, eqn.outvars[0].aval
    if name in ("split", "unstack"):
        return _parts(eqn, ins[0])
    if name in RULES:
        lower, upper = RULES[name](eqn, *ins)
    elif name in arithmetic.RULES:
        # A scalar may meet an array; the axis of boxes stays in front.
        ins = [with_rank(x, len(out.shape) + 1) for x in ins]
        lower, upper = arithmetic.RULES[name](eqn, *ins)
    else:
        raise NotImplementedError(f"there is no interval rule for the primitive {name!r}")
    if not np.issubdtype(out.dtype, np.floating):
        lower, upper = np.ceil(lower), np.floor(upper)  # an integer in a rounded interval
    return [arithmetic.unknown(np.isnan(lower) | np.isnan(upper), Interval(lower, upper))]


def _parts(eqn, x: Interval) -> list[Interval]:
    """An array cut along an axis, into pieces of the shapes that the equation returns."""
    axis = eqn.params["axis"] + 1
    sizes = eqn.params.get("sizes", [1] * len(eqn.outvars))
    pieces = zip(*(np.split(end, np.cumsum(sizes)[:-1], axis) for end in x), strict=True)
    return [
        Interval(*(end.reshape(len(end), *out.aval.shape) for end in piece))
        for out, piece in zip(eqn.outvars, pieces, strict=True)
    ]


def with_rank(x: Interval, rank: int) -> Interval:
    """A scalar as an array of ones axes behind the axis of boxes; an array as it is."""
    if x.lower.ndim == rank:
        return x
    return Interval(*(end.reshape(len(end), *[1] * (rank - 1)) for end in x))


def _shape(eqn, x: np.ndarray) -> tuple[int, ...]:
    return (x.shape[0], *eqn.outvars[0].aval.shape)


def _broadcast(eqn, x: np.ndarray) -> np.ndarray:
    shape = [x.shape[0]] + [1] * len(eqn.params["shape"])
    for axis, length in zip(eqn.params["broadcast_dimensions"], x.shape[1:], strict=True):
        shape[axis + 1] = length
    return np.broadcast_to(x.reshape(shape), _shape(eqn, x))


def _concatenate(eqn, *xs: np.ndarray) -> np.ndarray:
    boxes = max(x.shape[0] for x in xs)
    xs = tuple(np.broadcast_to(x, (boxes, *x.shape[1:])) for x in xs)
    if eqn.primitive.name == "stack":
        return np.stack(xs, axis=eqn.params["axis"] + 1)
    return np.concatenate(xs, axis=eqn.params["dimension"] + 1)


def _moved(eqn, x: Interval, *rest: Interval) -> Interval:
    """An operation that only moves entries about: run once on their numbers, then look them up."""
    shape = x.lower.shape[1:]
    numbers = np.arange(1, math.prod(shape) + 1, dtype=np.int64).reshape(shape)
    fill = Interval(np.zeros((1, 1)), np.zeros((1, 1)))
    if eqn.primitive.name == "pad":
        fill = Interval(*(end.reshape(-1, 1) for end in rest[0]))
        others = [np.int64(0)]
    else:
        if any(i.lower.shape[0] > 1 or np.any(i.lower != i.upper) for i in rest):
            raise NotImplementedError(
                f"there is no interval rule for {eqn.primitive.name!r} at an index that varies"
            )
        others = [
            i.lower[0].astype(v.aval.dtype) for i, v in zip(rest, eqn.invars[1:], strict=True)
        ]
    where = np.asarray(eqn.primitive.bind(numbers, *others, **eqn.params))

    def look_up(filling, end):
        boxes = max(len(filling), len(end))
        table = [
            np.broadcast_to(a, (boxes, a.shape[1])) for a in (filling, end.reshape(len(end), -1))
        ]
        return np.concatenate(table, axis=1)[:, where]

    return Interval(look_up(fill.lower, x.lower), look_up(fill.upper, x.upper))


def _over_axes(function: Callable) -> Callable[..., Interval]:
    return exact(lambda eqn, x: function(x, axis=tuple(a + 1 for a in eqn.params["axes"])))


def _reduce_sum(eqn, x: Interval) -> Interval:
    return total(x, tuple(a + 1 for a in eqn.params["axes"]))


def _dot_general(eqn, x: Interval, y: Interval) -> Interval:
    (left, right), (left_batch, right_batch) = eqn.params["dimension_numbers"]
    batch = tuple(x.lower.shape[a + 1] for a in left_batch)

    def arranged(z, contracted, batched):
        free = [a for a in range(z.lower.ndim - 1) if a not in contracted and a not in batched]
        lengths = tuple(z.lower.shape[a + 1] for a in free)
        order = [0, *(a + 1 for a in (*batched, *free, *contracted))]
        shape = (
            -1,
            math.prod(batch),
            math.prod(lengths),
            math.prod(z.lower.shape[a + 1] for a in contracted),
        )
        ends = (np.transpose(end, order).reshape(len(end), *shape[1:]) for end in z)
        return Interval(*ends), lengths

    x, rows = arranged(x, left, left_batch)
    y, columns = arranged(y, right, right_batch)
    if np.array_equal(y.lower, y.upper):
        out = _times_matrix(x, y.lower)
    elif np.array_equal(x.lower, x.upper):
        out = Interval(*(np.swapaxes(end, -1, -2) for end in _times_matrix(y, x.lower)))
    else:
        parts = (
            Interval(*(end[..., :, None, :] for end in x)),
            Interval(*(end[..., None, :, :] for end in y)),
        )
        out = total(multiply(*parts), (-1,))
    return Interval(*(end.reshape(len(end), *batch, *rows, *columns) for end in out))


def _times_matrix(x: Interval, matrix: np.ndarray) -> Interval:
    """`x` of shape (boxes, b, m, k) times the transpose of a known `matrix` (boxes, b, n, k)."""
    up, down = (np.swapaxes(clip(matrix, 0), -1, -2) for clip in (np.maximum, np.minimum))
    lower = x.lower @ up + x.upper @ down
    upper = x.upper @ up + x.lower @ down
    size = np.maximum(np.abs(x.lower), np.abs(x.upper)) @ (up - down)
    margin = (matrix.shape[-1] + 2) * 2 * (EPS * size + TINY)
    return Interval(lower - margin, upper + margin)


RULES: dict[str, Callable[..., Interval]] = {
    "broadcast_in_dim": exact(_broadcast),
    "concatenate": exact(_concatenate),
    "dot_general": _dot_general,
    "dynamic_slice": _moved,
    "expand_dims": exact(lambda eqn, x: x.reshape(_shape(eqn, x))),
    "gather": _moved,
    "pad": _moved,
    "reduce_and": _over_axes(np.min),
    "reduce_max": _over_axes(np.max),
    "reduce_min": _over_axes(np.min),
    "reduce_or": _over_axes(np.max),
    "reduce_sum": _reduce_sum,
    "reshape": exact(lambda eqn, x: x.reshape(_shape(eqn, x))),
    "rev": _moved,
    "slice": _moved,
    "stack": exact(_concatenate),
    "squeeze": exact(lambda eqn, x: x.reshape(_shape(eqn, x))),
    "transpose": exact(
        lambda eqn, x: np.transpose(x, (0, *(a + 1 for a in eqn.params["permutation"])))
    ),
}
"""The rule of each primitive that works on whole arrays: `rule(equation, *intervals)`."""
