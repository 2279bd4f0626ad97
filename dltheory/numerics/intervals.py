r"""Rigorous bounds on a traced program over a box, rounded outward, with subdivision.

A function is traced to its primitives and evaluated on boxes of inputs instead of points, in
NumPy's float64 and on many boxes at once. What comes out encloses every value of the real
function that the program denotes, its constants being the floats they are; `interval_arithmetic`
says what the library's functions are trusted to, and the rounding of lower precisions is not
part of it. Bounds are certificates, not differentiable functions: nothing here can be jitted.

Three forms are intersected on each box :math:`X` with centre :math:`c`:

.. math:: f(X), \qquad f(c) + \sum_i \partial_i f(X) (X_i - c_i), \qquad
          f(X \text{ with } X_i \text{ at its best end where } \partial_i f(X) \text{ has a sign})

The last two are used where no step of the program can jump inside the box. Their derivatives
come from the primitives, not from custom derivative rules, which may be conventions; programs
with loops or branches have the first form only.

Source: Moore (1966), Interval Analysis; Neumaier (1990), Interval Methods for Systems of Equations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend import core

from dltheory.numerics import interval_arithmetic as arithmetic
from dltheory.numerics import interval_rules as rules
from dltheory.numerics.branch_and_bound import middle_of, minimum
from dltheory.numerics.interval_arithmetic import Interval
from dltheory.numerics.results import Bracket

_CALLS = frozenset(
    {"jit", "pjit", "closed_call", "core_call", "remat2", "custom_jvp_call", "custom_vjp_call"}
)


class Range(NamedTuple):
    """The range of a function over a box.

    Attributes:
        infimum: Bounds on the infimum; the upper one is attained, to rounding.
        supremum: Bounds on the supremum; the lower one is attained, to rounding.
        certified: Whether both brackets are as narrow as was asked for. The bounds hold anyway.
        boxes: How many boxes were looked at.
    """

    infimum: Bracket
    supremum: Bracket
    certified: bool
    boxes: int


@dataclass(frozen=True)
class Enclosure:
    """A traced scalar function that can be evaluated on many boxes at once.

    Attributes:
        shape: Shape of its argument, `()` or `(d,)`.
        program: The function's program.
        slope: The program of its gradient, or None where it has none with known rules.
    """

    shape: tuple[int, ...]
    program: core.ClosedJaxpr
    slope: core.ClosedJaxpr | None

    def natural(self, lower: np.ndarray, upper: np.ndarray) -> tuple[Interval, np.ndarray]:
        """Bounds primitive by primitive, and whether the function may jump inside each box.

        Args:
            lower: Lower corners, shape `(boxes, *shape)`.
            upper: Upper corners.

        Returns:
            The bounds, NaN where the function may be no number, and one truth value a box.
        """
        return _bounds(self.program, Interval(lower, upper))

    def __call__(self, lower: np.ndarray, upper: np.ndarray) -> Interval:
        """The intersection of the natural, the centred and the monotone form on each box."""
        plain, jumps = self.natural(lower, upper)
        calm = np.flatnonzero(~jumps)
        if self.slope is None or not len(calm):
            return plain
        low, high = lower[calm], upper[calm]
        with np.errstate(all="ignore"):
            slope, _ = _bounds(self.slope, Interval(low, high))
            centre = middle_of(low, high)
            rises = slope.lower >= 0
            falls = (slope.upper <= 0) & ~rises
            corners = [
                (centre, centre),
                (np.where(falls, high, low), np.where(rises, low, high)),
                (np.where(rises, high, low), np.where(falls, low, high)),
            ]
            stacked = (np.concatenate(ends) for ends in zip(*corners, strict=True))
            values, _ = self.natural(*stacked)
            at, least, most = (
                Interval(*ends) for ends in zip(*(np.split(end, 3) for end in values), strict=True)
            )
            reach = Interval(
                np.nextafter(low - centre, -math.inf), np.nextafter(high - centre, math.inf)
            )
            tilt = arithmetic.total(arithmetic.multiply(slope, reach), tuple(range(1, low.ndim)))
            lower_bound = np.fmax(least.lower, np.nextafter(at.lower + tilt.lower, -math.inf))
            upper_bound = np.fmin(most.upper, np.nextafter(at.upper + tilt.upper, math.inf))
        best = Interval(plain.lower.copy(), plain.upper.copy())
        best.lower[calm] = np.fmax(plain.lower[calm], lower_bound)
        best.upper[calm] = np.fmin(plain.upper[calm], upper_bound)
        return best


def enclosure(fn: Callable[[Array], Array], like: Any = 0.0) -> Enclosure:
    """Trace a function once, for bounds on many boxes.

    Args:
        fn: Function from a scalar or a vector to a real scalar.
        like: An argument of the right shape and dtype; Python floats mean float64.

    Returns:
        The enclosure: call it with arrays of lower and upper corners, boxes first.

    Raises:
        TypeError: If the function does not return one real floating-point scalar.
        NotImplementedError: If it uses a primitive that has no interval rule; the text names it.
    """
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        like = np.asarray(like)
        dtype = like.dtype if np.issubdtype(like.dtype, np.floating) else np.dtype(np.float64)
        if like.ndim > 1:
            raise ValueError(f"a box has shape () or (d,), got {like.shape}; flatten it inside fn.")
        argument = jax.ShapeDtypeStruct(like.shape, dtype)
        program, out = jax.make_jaxpr(fn, return_shape=True)(argument)
        if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != ():
            raise TypeError(f"fn must return one scalar; it returned {out}.")
        if not jnp.issubdtype(out.dtype, jnp.floating):
            raise TypeError(
                f"fn must return real floating-point numbers; it returned {out.dtype}. "
                "Let it return a float, for instance by .astype(h.dtype)."
            )
        point = Interval(*[np.zeros((1, *like.shape))] * 2)
        _bounds(program, point)
        try:
            slope = jax.make_jaxpr(jax.grad(opened(program)))(argument)
            _bounds(slope, point)
        except NotImplementedError:
            slope = None
    return Enclosure(like.shape, program, slope)


def bounds(fn: Callable[[Array], Array], lower: Any, upper: Any) -> Bracket:
    r"""Lower and upper bound of a function over one box, without subdivision.

    .. math:: \text{lower} \le f(x) \le \text{upper} \quad \text{for all } x \in [l, u]

    Args:
        fn: Function from a scalar or a vector to a real scalar.
        lower: Lower corner, shape `()` or `(d,)`; `-inf` where there is none.
        upper: Upper corner, of the same shape; `inf` where there is none.

    Returns:
        The bounds as float64 numbers of NumPy; NaN if the function may be no number in the box.

    Raises:
        ValueError: If the corners make no box.
        TypeError: If the function does not return one real floating-point scalar.
        NotImplementedError: If it uses a primitive that has no interval rule; the text names it.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics import intervals
        >>> lower, upper = intervals.bounds(lambda h: h - jnp.tanh(h), 0.0, 1.0)
        >>> bool(lower <= 0 and 0.2384 < upper < 1)
        True
    """
    low, high = _box(lower, upper)
    value = enclosure(fn, lower)(low[None], high[None])
    return _bracket(value.lower[0], value.upper[0])


def range_of(
    fn: Callable[[Array], Array],
    lower: Any,
    upper: Any,
    *,
    tol: float = 1e-9,
    max_boxes: int = 100_000,
    without: Sequence[float] = (),
) -> Range:
    """Bounds on the infimum and the supremum of a function over a box, by branch and bound.

    Boxes that cannot hold the extremum, or cannot move it by more than `tol`, are set aside; the
    others are cut, wide ones at the geometric mean of their ends so that all of float64 can be
    covered.

    Args:
        fn: Function from a scalar or a vector to a real scalar.
        lower: Lower corner, shape `()` or `(d,)`.
        upper: Upper corner, of the same shape.
        tol: Wanted width of each bracket, relative to its value where that exceeds one.
        max_boxes: How many boxes to look at for each end at most.
        without: Points of the line that are left out, with no float beside them: kinks, where a
            derivative has no value.

    Returns:
        The range. Its bounds hold whether or not they are as close as wanted, which `certified`
        says.

    Raises:
        ValueError: If the corners make no box, or the function is NaN somewhere in it.
        TypeError: If the function does not return one real floating-point scalar.
        NotImplementedError: If it uses a primitive that has no interval rule; the text names it.

    Example:
        >>> import jax
        >>> from dltheory.numerics import intervals
        >>> found = intervals.range_of(jax.nn.silu, -10.0, 10.0)
        >>> round(float(found.infimum.lower), 6), found.certified
        (-0.278465, True)
    """
    low, high = _box(lower, upper)
    f = enclosure(fn, lower)
    boxes = _cut(low, high, without)
    at = lambda points: f.natural(points, points)[0]
    budget: Any = {"tol": tol, "max_boxes": max_boxes}
    least = minimum(lambda a, b: f(a, b).lower, lambda p: at(p).upper, *boxes, **budget)
    most = minimum(lambda a, b: -f(a, b).upper, lambda p: -at(p).lower, *boxes, **budget)
    for found in (least, most):
        if found.suspect is not None and not found.close:
            _refuse_nan(fn, found.suspect, np.asarray(lower).dtype)
    return Range(
        _bracket(least.lower, least.upper),
        _bracket(-most.upper, -most.lower),
        least.close and most.close,
        least.boxes + most.boxes,
    )


def _cut(low: np.ndarray, high: np.ndarray, without: Sequence[float]):
    """The boxes to begin with: all floats but those left out."""
    if not len(without):
        return low[None], high[None]
    if low.ndim:
        raise ValueError(f"without holds points of the line; this box has shape {low.shape}.")
    points = np.array(sorted({float(point) for point in without if low <= point <= high}))
    lows = np.array([low, *np.nextafter(points, math.inf)])
    highs = np.array([*np.nextafter(points, -math.inf), high])
    return lows[lows <= highs], highs[lows <= highs]


def _box(lower: Any, upper: Any) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    if low.shape != high.shape or not np.all(low <= high):
        raise ValueError(
            f"lower and upper must be corners of one shape with lower <= upper; got {lower} "
            f"and {upper}."
        )
    return low, high


def _bracket(lower: Any, upper: Any) -> Bracket:
    """A bracket of NumPy's float64 numbers: JAX's may be float32, which would round inwards."""
    convert: Any = np.float64
    return Bracket(convert(lower), convert(upper))


def _refuse_nan(fn: Callable, point: np.ndarray, dtype: np.dtype) -> None:
    """Raise where JAX itself finds NaN; what the intervals could not decide may be a number."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        floating = np.issubdtype(dtype, np.floating)
        value = fn(jnp.asarray(point, dtype if floating else np.float64))
    if np.isnan(value):
        raise ValueError(f"fn is NaN at {point}; narrow the box to where it is a number.")


def _bounds(program: core.ClosedJaxpr, x: Interval) -> tuple[Interval, np.ndarray]:
    """Bounds on a program's one output, and whether a step of it may jump, for each box."""
    jumps = [np.zeros(len(x.lower), bool)]
    with np.errstate(all="ignore"), jax.enable_x64(True), jax.ensure_compile_time_eval():
        (out,) = _evaluate(program, [x], jumps)
    ends = (np.broadcast_to(end, (len(x.lower), *end.shape[1:])) for end in out)
    return Interval(*ends), np.logical_or.reduce(np.broadcast_arrays(*jumps))


def _evaluate(program: core.ClosedJaxpr, args: list[Interval], jumps: list) -> list[Interval]:
    jaxpr = program.jaxpr
    env = dict(zip(jaxpr.constvars, map(_constant, program.consts), strict=True))
    env |= dict(zip(jaxpr.invars, args, strict=True))
    read = lambda atom: _constant(atom.val) if isinstance(atom, core.Literal) else env[atom]
    extremes: dict = {}
    for eqn in jaxpr.eqns:
        ins = [read(atom) for atom in eqn.invars]
        inner = _inner(eqn)
        if inner is not None:
            outs = _evaluate(inner, ins, jumps)
        elif eqn.primitive.name == "cond":
            branches = [_evaluate(branch, ins[1:], jumps) for branch in eqn.params["branches"]]
            outs = [arithmetic.choose(ins[0], list(cases)) for cases in zip(*branches, strict=True)]
            jumps.append(ins[0].lower != ins[0].upper)
        elif eqn.primitive.name == "scan":
            outs = _scan(eqn.params, ins, jumps)
        else:
            tie = _tie(eqn, extremes)
            outs = rules.apply(eqn, ins) if tie is None else [tie]
            jumps.append(rules.may_jump(eqn, ins, outs[0]))
            if eqn.primitive.name in ("max", "min"):
                extremes[eqn.outvars[0]] = eqn, ins
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _tie(eqn, extremes: dict) -> Interval | None:
    """`a == max(a, b)` asks whether `a >= b`, which intervals decide far more often."""
    if eqn.primitive.name != "eq":
        return None
    for atom, other in (eqn.invars, eqn.invars[::-1]):
        if isinstance(other, core.Literal) or other not in extremes:
            continue
        made, (a, b) = extremes[other]
        order = "ge" if made.primitive.name == "max" else "le"
        for part, mine, rest in zip(made.invars, (a, b), (b, a), strict=True):
            literal = isinstance(part, core.Literal) and isinstance(atom, core.Literal)
            if part is atom or (literal and np.array_equal(part.val, atom.val)):
                rank = len(eqn.outvars[0].aval.shape) + 1
                return arithmetic.RULES[order](
                    None, rules.with_rank(mine, rank), rules.with_rank(rest, rank)
                )
    return None


def _scan(params: dict, ins: list[Interval], jumps: list) -> list[Interval]:
    """A loop of known length, one iteration after the other."""
    first = params["num_consts"]
    last = first + params["num_carry"]
    fixed, carry, slices = ins[:first], ins[first:last], ins[last:]
    rows = []
    order = range(params["length"])
    for step in reversed(order) if params["reverse"] else order:
        here = [Interval(x.lower[:, step], x.upper[:, step]) for x in slices]
        outs = _evaluate(params["jaxpr"], [*fixed, *carry, *here], jumps)
        carry, row = outs[: last - first], outs[last - first :]
        rows.append(row)
    rows = rows[::-1] if params["reverse"] else rows
    stacked = [
        Interval(
            *(np.stack(np.broadcast_arrays(*ends), axis=1) for ends in zip(*column, strict=True))
        )
        for column in zip(*rows, strict=True)
    ]
    return [*carry, *stacked]


def _constant(value: Any) -> Interval:
    array = np.asarray(value).astype(np.float64)[None]
    return Interval(array, array)


def _inner(eqn) -> core.ClosedJaxpr | None:
    """The program of a call, custom derivative rules left aside."""
    if eqn.primitive.name not in _CALLS:
        return None
    inner = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params)
    return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())


def opened(program: core.ClosedJaxpr) -> Callable[[Array], Array]:
    """A program without its calls, as a function whose derivative is that of its primitives.

    Args:
        program: A traced program of one argument and one output.

    Returns:
        The function, which raises `NotImplementedError` if there are loops.
    """

    def run(program, args):
        jaxpr, consts = program.jaxpr, program.consts
        env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        read = lambda atom: atom.val if isinstance(atom, core.Literal) else env[atom]
        for eqn in jaxpr.eqns:
            ins, inner = [read(atom) for atom in eqn.invars], _inner(eqn)
            if inner is not None:
                outs = run(inner, ins)
            elif eqn.primitive.name == "stop_gradient":
                outs = ins
            elif eqn.primitive.name in ("cond", "scan"):
                raise NotImplementedError("no derivative is taken of loops and branches")
            else:
                outs = eqn.primitive.bind(*ins, **eqn.params)
                outs = outs if eqn.primitive.multiple_results else [outs]
            env.update(zip(eqn.outvars, outs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    return lambda x: run(program, [x])[0]
