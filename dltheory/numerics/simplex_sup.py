r"""How far a piecewise linear function is from a smooth one: a certified bracket, by simplices.

The box is cut into simplices, at the kinks of the piecewise linear function, which are found as
they are met, and where the other one bends too much. On a simplex without kinks, of corners
:math:`v_i` and edges :math:`e_{ij} = v_i - v_j`, the difference is

.. math:: \sum_i \lambda_i g_i + \sum_{i < j} \lambda_i \lambda_j q_{ij} \pm r, \qquad
          q_{ij} = \tfrac12 e_{ij}^T H e_{ij}, \quad
          r = \tfrac18 \sum_{kl} \Delta H_{kl}\, w_k w_l,

in barycentric coordinates, with the middle :math:`H` and the width :math:`\Delta H / 2` to both
sides of the second derivatives on the box around it, of sides :math:`w`. The largest value of the
quadratic is known in closed form on a segment and on a triangle, so that for a quadratic target
every piece is done in one step.
"""

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.extend import core

from dltheory.numerics import double_double, simplex_forms
from dltheory.numerics.intervals import Enclosure, enclosure, opened
from dltheory.numerics.results import Bracket

_ENTRIES = 2_000_000  # numbers of one operation, for the sake of memory
_TRIED = 32  # simplices whose likeliest points are looked at in each round
_TRUSTED = 6  # rounds before it is asked whether 16 digits will do
_ROUNDING = 2.0**-46  # of the terms of a quadratic
_SMALLEST = 2.0**-70  # of the box: an edge that is not cut


class _Quadratic(NamedTuple):
    """The difference on each simplex: values at the corners, terms of the edges, uncertainties.

    `bend` is what the target adds to them, `error` the linear function; `direct` bounds the size
    of the difference by the ranges of both.
    """

    corners: np.ndarray
    edges: np.ndarray
    bend: np.ndarray
    error: np.ndarray
    direct: np.ndarray


def sup_gap(
    f: Callable[[Array], Array],
    linear: Callable[[Array], Array],
    lower: Any,
    upper: Any,
    *,
    rtol: float = 1e-9,
    max_simplices: int = 200_000,
) -> Bracket:
    r"""Bracket the largest distance of a piecewise linear function from another on a box.

    .. math:: \sup_{x \in [l, u]} |f(x) - y(x)|

    Both ends hold for the real functions that the traced programs denote. Where 16 digits do not
    suffice 32 are carried, if the networks are small.

    Args:
        f: The target, from shape `(d,)` to a scalar.
        linear: A piecewise linear function, likewise.
        lower: Lower corner of the box, shape `(d,)`, of one to three dimensions.
        upper: Upper corner.
        rtol: Wanted width of the bracket, relative to its lower end.
        max_simplices: How many simplices to look at; then the bracket is right but wide.

    Returns:
        The bracket, of NumPy's float64 numbers; its upper end is infinite if no bound was found.

    Raises:
        NotImplementedError: If a program uses a primitive that has no rule, or `linear` is not
            piecewise linear.
        ValueError: If a function is NaN somewhere in the box.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics.simplex_sup import sup_gap
        >>> square, kinked = lambda x: x[0] ** 2, lambda x: jnp.maximum(2 * x[0] - 1, 0)
        >>> found = sup_gap(square, kinked, [0.0], [1.0])
        >>> print(f"{found.lower:.9f} {found.upper:.9f}")
        0.250000000 0.250000000
    """
    low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        search = _Search(f, linear, low, high)
        found, wanting = search.run(rtol, max_simplices, wide=False)
        if wanting and search.small:
            better, _ = search.run(rtol, max_simplices, wide=True)
            found = Bracket(max(found.lower, better.lower), min(found.upper, better.upper))
    return found


class _Search:
    """The two programs, and branch and bound."""

    def __init__(self, f: Callable, linear: Callable, low: np.ndarray, high: np.ndarray):
        self.low, self.high = low, high
        argument = jax.ShapeDtypeStruct(low.shape, np.float64)
        flat = lambda fn: jax.make_jaxpr(opened(jax.make_jaxpr(fn)(argument)))(argument)
        self.linear = flat(linear)
        simplex_forms.evaluate(self.linear, _pair(_simplices(low, high)))
        self.f = enclosure(f, low)
        try:
            self.points: core.ClosedJaxpr | None = flat(f)
            simplex_forms.evaluate(self.points, _pair(low[None, None]))
        except NotImplementedError:
            self.points = None
        self.slope = None if self.f.slope is None else Enclosure(low.shape, self.f.slope, None)
        self.curvature = self._curvature()
        sizes = [v.aval.size for eqn in self.linear.jaxpr.eqns for v in eqn.invars]
        outs = [v.aval.size for eqn in self.linear.jaxpr.eqns for v in eqn.outvars]
        self.width = max([*outs, low.size])
        self.small = sum(sizes) < 20_000

    def _curvature(self) -> list[list[Enclosure]] | None:
        """Programs of the second derivatives, the lower half."""
        if self.f.slope is None:
            return None
        run = jax.grad(opened(self.f.program))
        entry = lambda i, j: enclosure(lambda x: jax.grad(lambda z: run(z)[i])(x)[j], self.low)
        try:
            return [[entry(i, j) for j in range(i + 1)] for i in range(self.low.size)]
        except NotImplementedError:
            return None

    def run(self, rtol: float, budget: int, *, wide: bool) -> tuple[Bracket, bool]:
        """A bracket, and whether rounding kept it from what was wanted."""
        high = _simplices(self.low, self.high)
        low, drift = np.zeros_like(high), np.zeros(len(high))
        best, top, wanting, rounds = 0.0, 0.0, False, 0
        while len(high):
            budget, rounds = budget - len(high), rounds + 1
            made, kinks = self.bounded((high, low), float(drift.max()), wide)
            bound = _largest(made)
            seen, doubt = self.attained((high, low), made, bound, wide)
            best = max(best, seen)
            if not wide and self.small and rounds > _TRUSTED and doubt > rtol * best / 4:
                return Bracket(np.float64(best), np.float64(math.inf)), True
            goal = best * (1 + rtol)
            open_ = bound > goal
            excess = bound - best
            # Rounding cannot be cut away.
            stuck = open_ & (kinks.size == 0) & (made.error > excess / 2)
            going = open_ & ~stuck
            wanting |= bool((stuck & (bound > goal)).any())
            if going.sum() * 2 > budget:
                going[:] = False
            top = max(top, float(bound[~going].max(initial=0.0)))
            high, low, drift, whole = _cut(
                (high[going], low[going]),
                simplex_forms.Kinks(*(part[going] for part in kinks)),
                made.error[going] > excess[going] / 4,
                drift[going],
                (self.low, self.high),
                wide,
            )
            top = max(top, float(bound[going][whole].max(initial=0.0)))
        convert: Any = np.float64
        if not np.isfinite(best):
            best = 0.0
        return Bracket(convert(best), convert(max(best, top))), wanting

    def bounded(self, corners: double_double.Pair, drift: float, wide: bool):
        """The quadratics of many simplices, some thousands at a time, and where they bend."""
        step = max(1, _ENTRIES // (self.width * corners[0].shape[1]))
        parts = [
            self._bounded((corners[0][i : i + step], corners[1][i : i + step]), drift, wide)
            for i in range(0, len(corners[0]), step)
        ]
        made, kinks = zip(*parts, strict=True)
        join = lambda rows: [np.concatenate(part) for part in zip(*rows, strict=True)]
        return _Quadratic(*join(made)), simplex_forms.Kinks(*join(kinks))

    def _bounded(self, corners: double_double.Pair, drift: float, wide: bool):
        y, kinks = simplex_forms.evaluate(self.linear, corners, error=drift, wide=wide)
        shape = corners[0].shape
        high, low = (part.reshape(-1, 1, shape[2]) for part in corners)
        f, doubt = self.at((high, low), wide)
        f = [part.reshape(shape[:2]) for part in f]
        g = double_double.add((y.high, y.low), (-f[0], -f[1]))[0]
        edges, bend, low, high = self.bends(corners, drift)
        most, least = y.high.max(1), y.high.min(1)
        direct = np.maximum(high - least, most - low) + y.error
        direct = np.where(np.isnan(direct), math.inf, direct) * (1 + 2.0**-50)
        error = y.error + doubt.reshape(shape[:2]).max(1)
        bad = np.isnan(g).any(1) | np.isnan(error)
        g, error = np.where(bad[:, None], 0, g), np.where(bad, math.inf, error)
        return _Quadratic(g, edges, bend, error, direct), kinks

    def at(self, points: double_double.Pair, wide: bool):
        """The target at points, as a pair, and how uncertain it is."""
        if self.points is None:
            value = self.f.natural(points[0][:, 0], points[0][:, 0])[0]
            middle = value.lower / 2 + value.upper / 2
            doubt = np.nextafter(np.maximum(value.upper - middle, middle - value.lower), math.inf)
            return (middle, np.zeros_like(middle)), doubt
        out, _ = simplex_forms.evaluate(self.points, points, wide=wide)
        return (out.high[:, 0], out.low[:, 0]), np.broadcast_to(out.error, out.high[:, 0].shape)

    def bends(self, corners: double_double.Pair, drift: float) -> tuple[np.ndarray, ...]:
        """How the target leaves its chord: quadratic part, bound on the rest; and its range."""
        points = corners[0]
        reach = drift + np.abs(points).max(1) * 2.0**-52 * bool(np.any(corners[1]) or drift)
        low, high = points.min(1) - reach, points.max(1) + reach
        low, high = np.maximum(low, self.low), np.minimum(high, self.high)
        count = points.shape[1]
        pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
        edges = np.zeros((len(points), len(pairs)))
        width = (high - low) * (1 + 1e-15)
        with np.errstate(all="ignore"):
            known, jumps = self.f.natural(low, high)
            bend = known.upper - known.lower
            if self.slope is None:
                return edges, _unsure(bend), *known
            slope, breaks = _gradient(self.slope, low, high)
            smooth = ~(jumps | breaks)
            shift = drift * np.maximum(np.abs(slope[0]), np.abs(slope[1])).sum(1)
            first = ((slope[1] - slope[0]) * width).sum(1) / 4 + shift
            bend = np.fmin(bend, np.where(jumps, math.inf, first))
            if self.curvature is None:
                return edges, _unsure(bend), *known
            rest = shift
            tail = corners[1]
            leg = lambda i, j: (points[:, i] - points[:, j]) + (tail[:, i] - tail[:, j])
            legs = np.stack([leg(i, j) for i, j in pairs], 1)
            terms = np.zeros_like(edges)
            for k, row in enumerate(self.curvature):
                for m, entry in enumerate(row):
                    value, leaps = entry.natural(low, high)
                    smooth = smooth & ~leaps
                    middle = value.lower / 2 + value.upper / 2
                    twice = 1 if k == m else 2
                    term = twice / 2 * middle[:, None] * legs[..., k] * legs[..., m]
                    terms += term
                    rest = rest + _ROUNDING * np.abs(term).max(1)
                    spread = np.nextafter(value.upper - value.lower, math.inf)
                    rest = rest + twice / 16 * spread * width[:, k] * width[:, m]
            better = smooth & (np.abs(terms).max(1) / 3 + rest < bend)
            edges[better], bend = terms[better], np.where(better, rest, bend)
        return edges, _unsure(bend), *known

    def attained(self, corners, made: _Quadratic, bound: np.ndarray, wide: bool):
        """A size that is attained, where it is likely to be largest; how uncertain sizes are."""
        order = np.argsort(-bound)[:_TRIED]
        rows = _Quadratic(*(part[order] for part in made))
        lam = np.concatenate([_peaks(rows, 1), _peaks(rows, -1)], 1)
        high = np.einsum("sci,sid->scd", lam, corners[0][order])
        high = np.clip(high, self.low, self.high)
        every = np.concatenate([high, corners[0][order]], 1).reshape(-1, 1, high.shape[2])
        low = np.concatenate([np.zeros_like(high), corners[1][order]], 1).reshape(every.shape)
        inside = np.all((self.low <= every) & (every <= self.high), axis=(1, 2))
        points = every[inside], low[inside]
        y, _ = simplex_forms.evaluate(self.linear, points, wide=wide)
        f, doubt = self.at(points, wide)
        g = double_double.add((y.high[:, 0], y.low[:, 0]), (-f[0], -f[1]))[0]
        size = np.abs(g) * (1 - 2.0**-50) - y.error - doubt
        size = np.where(np.isnan(size), 0, size)
        return float(np.max(size, initial=0.0)), float(np.nanmin(y.error + doubt))


def _gradient(slope: Enclosure, low: np.ndarray, high: np.ndarray):
    bounds, breaks = slope.natural(low, high)
    shape = low.shape
    return (np.broadcast_to(bounds.lower, shape), np.broadcast_to(bounds.upper, shape)), breaks


def _unsure(bend: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(bend), math.inf, bend) * (1 + 1e-14)


def _pair(x: np.ndarray) -> double_double.Pair:
    return x, np.zeros_like(x)


def _simplices(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Kuhn's simplices of a box, one for each order of the coordinates."""
    corners = []
    for order in permutations(range(low.size)):
        at = [low]
        for axis in order:
            at.append(np.where(np.arange(low.size) == axis, high, at[-1]))
        corners.append(np.stack(at))
    return np.stack(corners)


def _largest(made: _Quadratic) -> np.ndarray:
    """Upper bounds on the size in each simplex."""
    g, q = made.corners, made.edges
    peak = np.maximum(_peak(g, q), _peak(-g, -q))
    scale = np.abs(g).max(1) + np.abs(q).max(1, initial=0.0)
    bound = np.fmin(peak + made.bend + made.error + _ROUNDING * scale, made.direct)
    return np.where(np.isnan(bound), math.inf, bound)


def _peak(g: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The largest value of a quadratic on a simplex, or a bound on it."""
    count = g.shape[1]
    first, second = np.triu_indices(count, 1)
    a, b = g[:, first], g[:, second]
    if count > 3:  # its Bezier points
        return np.maximum(g.max(1), ((a + b + q) / 2).max(1))
    inner = q > np.abs(a - b)
    safe = np.where(inner, q, 1)
    edge = np.where(inner, (a + b) / 2 + q / 4 + (a - b) ** 2 / (4 * safe), np.maximum(a, b))
    top = edge.max(1)
    if count == 2:
        return top
    return np.maximum(top, _inside(g, q, top))


def _inside(g: np.ndarray, q: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """What a quadratic reaches within a triangle: more than on its edges if it is concave."""
    a, b, c = q.T  # edges 01, 02, 12
    m11, m22, m12 = 2 * a, 2 * b, a + b - c  # minus its second derivatives
    b1, b2 = g[:, 1] - g[:, 0] + a, g[:, 2] - g[:, 0] + b
    trace, det = m11 + m22, m11 * m22 - m12**2
    size = trace**2
    # Along the flattest direction it falls, up to an edge, by no more than its least curvature.
    least = det / np.where(trace > 0, trace, 1) * 2 + 1e-12 * np.abs(trace)
    flat = np.where((trace > 0) & (det > -1e-12 * size), edge + np.maximum(least, 0), edge)
    sure = (trace > 0) & (det > 1e-3 * size)
    det = np.where(sure, det, 1)
    x1, x2 = (m22 * b1 - m12 * b2) / det, (m11 * b2 - m12 * b1) / det
    away = np.minimum(np.minimum(x1, x2), 1 - x1 - x2) < -1e-6
    peak = g[:, 0] + (b1 * x1 + b2 * x2) / 2
    return np.where(sure, np.where(away, edge, peak), flat)


def _peaks(made: _Quadratic, sign: int) -> np.ndarray:
    """Barycentric coordinates of where the edges, and the middle of a simplex, may be largest."""
    g, q = sign * made.corners, sign * made.edges
    count = g.shape[1]
    eye, found = np.eye(count), []
    for i, j, term in zip(*np.triu_indices(count, 1), q.T, strict=True):
        part = np.where(term > 0, (g[:, j] - g[:, i]) / np.where(term > 0, 2 * term, 1), 0)
        at = np.clip(0.5 + part, 0, 1)[:, None]
        found.append(eye[i] * (1 - at) + eye[j] * at)
    if count == 3:
        a, b, c = q.T
        m12, det = a + b - c, 4 * a * b - (a + b - c) ** 2
        b1, b2 = g[:, 1] - g[:, 0] + a, g[:, 2] - g[:, 0] + b
        det = np.where(det == 0, 1, det)
        x = np.stack([(2 * b * b1 - m12 * b2) / det, (2 * a * b2 - m12 * b1) / det], 1)
        x = np.clip(np.nan_to_num(x), 0, 1)
        x = x / np.maximum(1, x.sum(1, keepdims=True))
        found.append(np.concatenate([1 - x.sum(1, keepdims=True), x], 1))
    return np.stack(found, 1)


def _cut(corners, kinks: simplex_forms.Kinks, bent, drift, box, wide: bool):
    """Every simplex in two: where it bends, if that matters, else across its longest edge.

    Returns:
        The corners, high and low, how far cuts may have strayed, and which could not be cut.
    """
    high, low = corners
    if not len(high):
        return high, low, drift, np.zeros(0, bool)
    rows = np.arange(len(high))
    first, second = np.triu_indices(high.shape[1], 1)
    lengths = (np.abs(high[:, first] - high[:, second]) / (box[1] - box[0])).max(-1)
    d1, d2 = kinks.high[:, first], kinks.high[:, second]
    crossed = ((d1 > 0) & (d2 < 0)) | ((d1 < 0) & (d2 > 0))
    bent = bent & (kinks.size > 0) & crossed.any(1)
    edge = np.where(bent, np.where(crossed, lengths, -1).argmax(1), lengths.argmax(1))
    i, j = first[edge], second[edge]
    over = kinks.high[rows, i], kinks.low[rows, i]
    rise = double_double.add(over, (-kinks.high[rows, j], -kinks.low[rows, j]))
    half = _pair(np.full(len(high), 0.5))
    with np.errstate(all="ignore"):
        share = double_double.divide(over, rise)
    share, rest = (np.where(bent, p, h)[:, None] for p, h in zip(share, half, strict=True))
    start, end = ((high[rows, k], low[rows, k]) for k in (i, j))
    step = double_double.add(end, (-start[0], -start[1]))
    at = double_double.add(start, double_double.multiply((share, rest), step))
    if not wide:
        at = _pair(at[0] + at[1])
    same = np.all(at[0] == start[0], 1) & np.all(at[1] == start[1], 1)
    same |= np.all(at[0] == end[0], 1) & np.all(at[1] == end[1], 1)
    whole = same | (lengths[rows, edge] < _SMALLEST)
    halves = []
    for moved in (j, i):
        new_high, new_low = high.copy(), low.copy()
        new_high[rows, moved], new_low[rows, moved] = at
        halves.append((new_high[~whole], new_low[~whole]))
    unit = 4 * double_double.UNIT if wide else 2.0**-52
    # On a line every cut is exact.
    stray = 0.0 if high.shape[2] == 1 else unit * np.abs(np.stack(box)).max()
    drift = np.tile(drift[~whole] + stray, 2)
    return *(np.concatenate(end) for end in zip(*halves, strict=True)), drift, whole
