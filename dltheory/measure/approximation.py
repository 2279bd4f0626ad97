r"""How far a network is from a target: sup errors with certificates, L2 errors with error bars.

The target is a function of one example, from a scalar or a vector to a scalar. The network is
any callable on batches, `(batch, d)` to `(batch,)` or `(batch, 1)`, or a construction with its
`params` and `apply`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dltheory.measure import branches, regions
from dltheory.numerics.results import Bracket
from dltheory.numerics.simplex_sup import sup_gap
from dltheory.numerics.sup_norm import sup_norm

_NODES = 12
_SHIFTS = 16


class Estimate(NamedTuple):
    """A number and how far off it may be.

    Attributes:
        value: The number.
        error: On a line, the difference to a rule of fewer nodes; in more dimensions, the standard
            error over random shifts of the points.
    """

    value: float
    error: float


def sup_error(
    f: Callable[[Array], Array],
    net: Any,
    interval: tuple[ArrayLike, ArrayLike],
    *,
    certified: bool = True,
    rtol: float = 1e-9,
    max_boxes: int = 200_000,
) -> Bracket:
    r"""Bracket the largest error of a network on an interval or a box.

    .. math:: \text{lower} \le \sup_{x} |f(x) - y(x)| \le \text{upper}

    Of a piecewise linear network in up to three dimensions, the domain is cut at its kinks, and
    between them the curvature of the target bounds the difference (`numerics.simplex_sup`). Of
    any other the difference is bounded as a traced program, by interval arithmetic with its first
    derivatives, on boxes that are cut where the maximum may lie. The lower end is attained. Both
    hold for the real functions that the programs denote.

    Args:
        f: The target.
        net: The network.
        interval: Its ends, or the lower and upper corner of a box, shape `(d,)`.
        certified: Whether to ask for an upper bound; else it is infinite, the lower end comes from
            samples and local ascent, and the target may use any primitive.
        rtol: Wanted width, relative to the lower end; rounding sets a limit too.
        max_boxes: How many boxes or simplices to look at; then the bracket is right but wide.

    Returns:
        The bracket, of NumPy's float64 numbers.

    Raises:
        ValueError: If the ends make no bounded interval, a function is NaN somewhere in it, or no
            certificate is possible because a primitive has no interval rule.
        TypeError: If the target or the network does not return one real number.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import approximation
        >>> relu_net = lambda x: 2 * jnp.maximum(x - 0.5, 0) + 0.5 * jnp.maximum(x, 0)
        >>> lower, upper = approximation.sup_error(lambda x: x**2, relu_net, (0.0, 1.0))
        >>> print(f"{lower:.6f} {upper:.6f}")
        0.500000 0.500000
    """
    low, high = interval
    gap = _gap(f, net)
    if not certified:
        return _sampled(gap, low, high)
    try:
        found = _on_simplices(f, net, low, high, rtol, max_boxes)
        if found is not None:
            return found
        # Loops hide derivatives from the bounds.
        return sup_norm(branches.unrolled(gap), low, high, rtol=rtol, max_boxes=max_boxes)
    except NotImplementedError as error:
        raise ValueError(
            f"the error has no certificate: {error}. For a sampled one, which is a lower bound, "
            "pass certified=False"
        ) from error


def l2_error(
    f: Callable[[Array], Array],
    net: Any,
    interval: tuple[ArrayLike, ArrayLike],
    *,
    key: Array | None = None,
    points: int = 4096,
) -> Estimate:
    r"""The L2 error of a network on an interval or a box.

    .. math:: \left(\int |f(x) - y(x)|^2\, dx\right)^{1/2}

    On an interval by Gauss's rule between the breakpoints of a piecewise linear network, else on
    equal cells; on a box by quasi-Monte Carlo points, shifted at random.

    Args:
        f: The target.
        net: The network.
        interval: Its ends, or the lower and upper corner of a box, shape `(d,)`.
        key: Of the random shifts; only a box needs one.
        points: Number of points, about.

    Returns:
        The error and how far off it may be; NaN if a function is.

    Raises:
        ValueError: If the ends make no bounded interval, or a box comes without a key.

    Example:
        >>> from dltheory.measure import approximation
        >>> error = approximation.l2_error(lambda x: x**2, lambda x: x, (0.0, 1.0)).value
        >>> print(f"{error:.6f}")
        0.182574
    """
    low, high = (np.asarray(end, np.float64) for end in interval)
    if low.shape != high.shape or not np.all((low < high) & np.isfinite(low) & np.isfinite(high)):
        raise ValueError(f"interval is {interval}; want bounded corners, the lower one first")
    squares = _squares(_gap(f, net))
    volume = np.prod(high - low)
    if low.ndim == 0:
        cells = max(1, points // _NODES)
        edges = np.unique(np.append(np.linspace(low, high, cells + 1), _kinks(net, low, high)))
        fine, coarse = _gauss(squares, edges)
        return _rooted(fine, abs(fine - coarse))
    if key is None:
        raise ValueError("key is None; want a key for the random shifts of the points on a box")
    with jax.enable_x64(True):
        shifts = np.asarray(jax.random.uniform(key, (_SHIFTS, low.size), jnp.float64))
    count = max(1, points // _SHIFTS)
    turns = np.arange(1, count + 1)[:, None] * _irrational(low.size)
    means = np.array([squares(low + (high - low) * np.mod(turns + s, 1)).mean() for s in shifts])
    return _rooted(volume * means.mean(), volume * means.std(ddof=1) / math.sqrt(_SHIFTS))


def _on_simplices(f, net, lower, upper, rtol: float, most: int) -> Bracket | None:
    """The bracket of a piecewise linear network in few dimensions; of another there is none."""
    low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    bounded = low.shape == high.shape and np.all((low < high) & np.isfinite(low + high))
    if not bounded or low.size > 3:
        return None
    run = _callable(net)
    target = branches.unrolled(lambda x: f(x.reshape(low.shape)))
    linear = branches.unrolled(lambda x: run(x.reshape(1, -1)).reshape(()))
    corners = low.reshape(-1), high.reshape(-1)
    try:
        found = sup_gap(target, linear, *corners, rtol=rtol, max_simplices=most)
    except NotImplementedError:
        return None
    return found if np.isfinite(found.upper) else None


def _gap(f: Callable, net: Any) -> Callable[[Array], Array]:
    """The difference of the network and the target at one example."""
    run = _callable(net)
    return lambda x: run(x.reshape(1, -1)).reshape(()) - f(x)


def _callable(net: Any) -> Callable[[Array], Array]:
    if not hasattr(net, "apply"):
        return net
    to_float64 = lambda leaf: np.asarray(leaf, np.float64)
    params = jax.tree.map(to_float64, net.params)
    return lambda x: net.apply(params, x)


def _squares(gap: Callable) -> Callable[[np.ndarray], np.ndarray]:
    """Squared differences at some points, in float64."""
    run = jax.jit(jax.vmap(gap))

    def squares(x):
        with jax.enable_x64(True):
            return np.asarray(run(jnp.asarray(x, jnp.float64))) ** 2

    return squares


def _kinks(net: Any, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where a piecewise linear network has its breakpoints; nowhere for others."""
    f, params = (net.apply, net.params) if hasattr(net, "apply") else (lambda _, x: net(x), None)
    try:
        found = regions.pieces_on_line(f, params, low[None], high[None])
    except ValueError:
        return np.zeros(0)
    return low + (high - low) * found.t


def _gauss(fn: Callable, edges: np.ndarray) -> tuple[float, float]:
    """An integral by two of Gauss's rules on each cell, the finer one first."""
    rules = [np.polynomial.legendre.leggauss(nodes) for nodes in (_NODES, _NODES - 4)]
    at, weights = (np.concatenate(part) for part in zip(*rules, strict=True))
    width = np.diff(edges)[:, None]
    x = edges[:-1, None] + width * (at + 1) / 2
    terms = fn(x.reshape(-1)).reshape(x.shape) * weights * width / 2
    return float(terms[:, :_NODES].sum()), float(terms[:, _NODES:].sum())


def _irrational(d: int) -> np.ndarray:
    """Steps whose multiples fill the unit cube evenly: powers of a root of x^(d+1) = x + 1."""
    root = 1.5
    for _ in range(40):
        root = (1 + root) ** (1 / (d + 1))
    return root ** -np.arange(1.0, d + 1)


def _rooted(square: float, doubt: float) -> Estimate:
    """The root of a mean square, and its error."""
    value = math.sqrt(square)
    return Estimate(value, doubt / (2 * value) if value > 0 else math.sqrt(doubt))


def _sampled(gap: Callable, lower: ArrayLike, upper: ArrayLike) -> Bracket:
    """The largest of many samples, each then moved to where the error is larger."""
    low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    turns = np.arange(0.0, 4096).reshape(-1, *[1] * low.ndim)
    steps = _irrational(low.size).reshape(low.shape)
    x = np.concatenate([low[None], high[None], low + (high - low) * np.mod(turns * steps, 1)])
    squares = _squares(gap)
    values = squares(x)
    reach = (high - low) * len(x) ** (-1 / low.size)
    best = x[np.argsort(-values)[:32]]
    rng = np.random.default_rng(0)
    for _ in range(60):
        spread = reach * rng.uniform(-1, 1, (64, *best.shape))
        tries = np.clip(np.concatenate([best[None], best[None] + spread]), low, high)
        seen = squares(tries.reshape(-1, *low.shape)).reshape(tries.shape[:2])
        best = np.take_along_axis(tries, seen.argmax(0).reshape(1, -1, *[1] * low.ndim), 0)[0]
        reach = reach * 0.7
        values = np.append(values, seen.max())
    convert: Any = np.float64
    return Bracket(convert(math.sqrt(np.max(values))), convert(math.inf))
