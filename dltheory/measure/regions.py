r"""The linear pieces of any piecewise linear network along a line, found exactly.

At a point the traced program tells by the margins of its decisions, and by how fast they change,
where the piece around the point ends; what is left of the line on both sides is looked at next.
Every piece costs one forward pass, whatever the number of units, and none is missed that is not
shorter than rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dltheory.measure import branches

_BATCH = 256
_SHORTEST = 1e-14  # of the line
_INSIDE = 0.4871  # no simple number, on which a kink would sit


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
    start, end = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if start.shape != end.shape or not np.isfinite([start, end]).all():
        raise ValueError(
            f"a and b have shapes {start.shape} and {end.shape}; want two finite examples of one "
            "shape, without the axis of the batch"
        )
    with jax.enable_x64(True):
        return _merged(_explore(_looker(f, params, start, end), max_pieces))


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


def _looker(f, params, start, end):
    """Of some points of the line: value, slope, and where the piece around each begins and ends."""
    to_float64 = lambda leaf: (
        jnp.asarray(leaf, jnp.float64)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        else leaf
    )
    line = jax.tree.map(to_float64, (params, start, end - start))
    return lambda t: _look(f, *line, t)


@partial(jax.jit, static_argnums=0)  # many calls, one program for all parameters of a network
def _look(f, params, start, step, points):
    along = branches.decided(lambda t: f(params, (start + t * step)[None]).reshape(-1))

    def look(t):
        (y, margin), (slope, rate) = jax.jvp(along, (t,), (jnp.ones_like(t),))
        to = -margin / jnp.where(rate == 0, 1, rate)
        # A margin that stays as it is says nothing, one that is zero ends the piece on the spot.
        ahead = jnp.where((rate != 0) & (to >= 0), to, jnp.inf)
        behind = jnp.where((rate != 0) & (to <= 0), to, -jnp.inf)
        return (
            y,
            slope,
            t + jnp.max(behind, initial=-jnp.inf),
            t + jnp.min(ahead, initial=jnp.inf),
        )

    return jax.vmap(look)(points)


def _explore(look, max_pieces):
    """All pieces, unordered: begin, end, the point looked at, value and slope there."""
    low, high, found, seen = np.zeros(1), np.ones(1), [], 0
    while len(low):
        now, rest = slice(0, _BATCH), slice(_BATCH, None)
        seen += len(low[now])
        if seen > max_pieces:
            raise ValueError(
                f"f has more than max_pieces = {max_pieces} pieces on the line, or rounding makes "
                "decisions at random; take a shorter line"
            )
        t = low[now] + _INSIDE * (high[now] - low[now])
        # One shape, whatever is left, so that each operation is compiled once.
        padded = np.append(t, np.full(_BATCH - len(t), 0.5))
        y, slope, left, right = (np.asarray(part)[: len(t)] for part in look(jnp.asarray(padded)))
        left = np.clip(left, low[now], t)
        right = np.clip(right, t, high[now])
        found.append((left, right, t, y, slope))
        ends = np.concatenate([low[now], right]), np.concatenate([left, high[now]])
        long = ends[1] - ends[0] > _SHORTEST
        low = np.concatenate([low[rest], ends[0][long]])
        high = np.concatenate([high[rest], ends[1][long]])
    return [np.concatenate(part) for part in zip(*found, strict=True)]


def _merged(found) -> Pieces:
    """Pieces in order, neighbours of one slope joined."""
    left, right, t, y, slope = found
    if not np.isfinite(y).all() or not np.isfinite(slope).all():
        nan = np.full((2, y.shape[1]), np.nan)
        return Pieces(np.array([0.0, 1.0]), nan, nan[:1])
    # A piece shorter than the shortest is where rounding put two ends of one piece.
    kept = np.flatnonzero(right - left > _SHORTEST)
    order = kept[np.argsort(left[kept])]
    left, t, y, slope = (part[order] for part in (left, t, y, slope))
    size = np.abs(slope)
    noise = 1e-10 * (size[1:] + size[:-1]) + 1e-13 * size.max(initial=0.0)
    new = np.append(True, (np.abs(np.diff(slope, axis=0)) > noise).any(1))
    ends = np.concatenate([[0.0], left[new][1:], [1.0]])
    t, y, slope = t[new], y[new], slope[new]
    values = y + slope * (ends[:-1] - t)[:, None]
    last = y[-1:] + slope[-1:] * (1.0 - t[-1])
    return Pieces(ends, np.concatenate([values, last]), slope)
