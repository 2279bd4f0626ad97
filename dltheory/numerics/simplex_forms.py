r"""Programs on simplices: what they are at the corners, and how far from affine in between.

A value within a simplex with corners :math:`v_i` is known as

.. math:: h(x) = \sum_i \lambda_i(x)\, h_i \pm e,

where :math:`\lambda_i` are the barycentric coordinates of `x`. Affine operations keep the form.
So does a maximum whose sides keep their order in the whole simplex; where they do not, :math:`e`
grows by how far the maximum is from its chord, and the place where the sides are equal is
recorded: a cut there removes the error. On a simplex of one corner, a point, :math:`e` is the
rounding error and any operation may follow.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from dltheory.numerics import double_double, interval_rules
from dltheory.numerics.interval_arithmetic import Interval

_TINY = 1e-290  # products that underflow
_MOVES = {
    *("broadcast_in_dim", "concatenate", "copy", "dynamic_slice", "expand_dims", "gather", "name"),
    *("pad", "reshape", "rev", "slice", "split", "squeeze", "stack", "stop_gradient", "transpose"),
    "unstack",
}


class Form(NamedTuple):
    """A value on many simplices.

    Attributes:
        high: Its values at the corners, shape `(simplices, corners, *shape)`.
        low: What is to be added to them, of the same shape.
        error: Bound on the distance to what interpolates them, shape `(simplices, *shape)`.
        fixed: Whether the value depends on nothing.
    """

    high: np.ndarray
    low: np.ndarray
    error: np.ndarray
    fixed: bool = False


class Kinks(NamedTuple):
    """Where simplices should be cut: the first maximum, in the order of the program, that bends.

    Attributes:
        size: By how much it bends there, zero where nothing does, shape `(simplices,)`.
        high: The difference of its sides at the corners, shape `(simplices, corners)`.
        low: What is to be added.
    """

    size: np.ndarray
    high: np.ndarray
    low: np.ndarray


def evaluate(
    program: core.ClosedJaxpr,
    corners: double_double.Pair,
    *,
    error: float = 0.0,
    wide: bool = False,
) -> tuple[Form, Kinks]:
    """Follow a program without calls and loops on simplices, or at points.

    Args:
        program: Its one argument has shape `(d,)`.
        corners: Pairs of shape `(simplices, corners, d)`.
        error: How far from the simplex, in each coordinate, it has to hold.
        wide: Whether to carry 32 digits instead of 16.

    Returns:
        Its first output, and where it bends.

    Raises:
        NotImplementedError: If a primitive has no rule, or is not piecewise affine where there is
            more than one corner.
    """
    high, low = corners
    x = Form(high, low, np.full((len(high), high.shape[2]), error))
    kinks = Kinks(np.zeros(len(high)), np.zeros(high.shape[:2]), np.zeros(high.shape[:2]))
    algebra = _Algebra(wide, high.shape[1] == 1, kinks)
    env: dict = {v: _fixed(c) for v, c in zip(program.jaxpr.constvars, program.consts, strict=True)}
    env[program.jaxpr.invars[0]] = x
    read = lambda atom: _fixed(atom.val) if isinstance(atom, core.Literal) else env[atom]
    with np.errstate(all="ignore"):
        for eqn in program.jaxpr.eqns:
            outs = algebra.apply(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
    out = read(program.jaxpr.outvars[0])
    if out.fixed:
        spread = lambda end: np.broadcast_to(end, high.shape[:2])
        out = Form(spread(out.high), spread(out.low), np.broadcast_to(out.error, len(high)))
    return out, kinks


def _fixed(value: Any) -> Form:
    array = np.asarray(value).astype(np.float64)[None, None]
    return Form(array, np.zeros_like(array), np.zeros(array.shape[1:]), fixed=True)


def _lined_up(*forms: Form) -> tuple[Form, ...]:
    """Forms of one rank: a scalar may meet an array."""
    rank = max(x.high.ndim for x in forms)

    def ranked(x: Form) -> Form:
        more = [1] * (rank - x.high.ndim)
        return x._replace(
            high=x.high.reshape(*x.high.shape, *more),
            low=x.low.reshape(*x.low.shape, *more),
            error=x.error.reshape(*x.error.shape, *more),
        )

    return tuple(map(ranked, forms))


class _Algebra:
    """The rules, and the record of what bends."""

    def __init__(self, wide: bool, points: bool, kinks: Kinks):
        self.wide, self.points, self.kinks = wide, points, kinks
        self.unit = double_double.UNIT if wide else 2.0**-52
        self.rules: dict[str, Callable] = {
            "add": lambda _, x, y: self.add(x, y),
            "add_any": lambda _, x, y: self.add(x, y),
            "sub": lambda _, x, y: self.add(x, _negative(y)),
            "neg": lambda _, x: _negative(x),
            "mul": lambda _, x, y: self.multiply(x, y),
            "div": lambda _, x, y: self.divide(x, y),
            "square": lambda _, x: self.multiply(x, x),
            "integer_pow": self.power,
            "dot_general": self.contract,
            "reduce_sum": self.total,
            "max": lambda _, x, y: self.larger(x, y),
            "min": lambda _, x, y: _negative(self.larger(_negative(x), _negative(y))),
            "abs": lambda _, x: self.larger(x, _negative(x)),
            "clamp": lambda _, low, x, high: self.larger(
                low, _negative(self.larger(_negative(x), _negative(high)))
            ),
            "gt": lambda _, x, y: self.margin(x, y),
            "ge": lambda _, x, y: self.margin(x, y),
            "lt": lambda _, x, y: self.margin(y, x),
            "le": lambda _, x, y: self.margin(y, x),
            "select_n": self.select,
            "convert_element_type": self.convert,
        }

    def apply(self, eqn, ins: list[Form]) -> list[Form]:
        name = eqn.primitive.name
        if name in _MOVES:
            return self.moved(eqn, ins)
        rule = self.rules.get(name)
        if rule is not None:
            try:
                return [rule(eqn, *ins)]
            except _NotAffineError:
                pass
        if self.points or all(x.fixed for x in ins):
            return self.by_intervals(eqn, ins)
        raise NotImplementedError(f"{name!r} is not piecewise affine")

    def moved(self, eqn, ins: list[Form]) -> list[Form]:
        fixed = all(x.fixed for x in ins)
        simplices = max(x.high.shape[0] for x in ins)
        corners = max(x.high.shape[1] for x in ins)

        def flat(end: np.ndarray) -> np.ndarray:
            if fixed or eqn.primitive.name not in ("concatenate", "stack"):
                return end.reshape(-1, *end.shape[2:])
            shape = (simplices, corners, *end.shape[2:])
            return np.broadcast_to(end, shape).reshape(-1, *end.shape[2:])

        values = [Interval(flat(x.high), flat(x.low)) for x in ins]
        if eqn.primitive.name in ("dynamic_slice", "gather"):
            values[1:] = [Interval(flat(x.high), flat(x.high)) for x in ins[1:]]
        errors = [Interval(x.error, x.error) for x in ins]
        if eqn.primitive.name in ("dynamic_slice", "gather"):
            errors[1:] = values[1:]
        outs = zip(
            interval_rules.apply(eqn, values), interval_rules.apply(eqn, errors), strict=True
        )
        cut = lambda end: end.reshape(simplices, corners, *end.shape[1:])
        return [Form(cut(v.lower), cut(v.upper), e.lower, fixed) for v, e in outs]

    def by_intervals(self, eqn, ins: list[Form]) -> list[Form]:
        """Any other primitive, at points, rounded to 16 digits."""

        def around(x: Form) -> Interval:
            doubt = x.error + np.abs(x.low[:, 0]) * (1 + 1e-15)
            below, above = x.high[:, 0] - doubt, x.high[:, 0] + doubt
            exact = doubt == 0
            return Interval(
                np.where(exact, below, np.nextafter(below, -math.inf)),
                np.where(exact, above, np.nextafter(above, math.inf)),
            )

        found = []
        for out in interval_rules.apply(eqn, [around(x) for x in ins]):
            middle = out.lower / 2 + out.upper / 2
            # An infinite end is no bound, and makes the middle no number.
            reach = np.nextafter(np.maximum(out.upper - middle, middle - out.lower), math.inf)
            reach = np.where(out.lower == out.upper, 0, reach)
            bad = ~np.isfinite(middle)
            middle, reach = np.where(bad, 0, middle), np.where(bad, math.inf, reach)
            fixed = all(x.fixed for x in ins)
            found.append(Form(middle[:, None], np.zeros_like(middle)[:, None], reach, fixed))
        return found

    def add(self, x: Form, y: Form) -> Form:
        x, y = _lined_up(x, y)
        error = self.rounded(x.error + y.error, x, y)
        if self.wide:
            pair = double_double.add((x.high, x.low), (y.high, y.low))
        else:
            high = x.high + y.high
            pair = high, np.zeros_like(high)
        return Form(*pair, error, x.fixed and y.fixed)

    def rounded(self, error: np.ndarray, *terms: Form) -> np.ndarray:
        """An error, with that of one operation on terms of some sizes; none on exact zeros."""
        size = sum(np.abs(x.high).max(1) for x in terms)
        return error * (1 + 1e-12) + self.unit * size

    def multiply(self, x: Form, y: Form) -> Form:
        if not (self.points or x.fixed or y.fixed):
            raise _NotAffineError
        x, y = _lined_up(x, y)
        largest = lambda z: np.abs(z.high).max(1) * (1 + 1e-15)
        sizes = largest(x), largest(y)
        error = sizes[0] * y.error + sizes[1] * x.error + x.error * y.error
        error = error * (1 + 1e-12) + self.unit * sizes[0] * sizes[1] + _TINY
        if self.wide:
            pair = double_double.multiply((x.high, x.low), (y.high, y.low))
        else:
            high = x.high * y.high
            pair = high, np.zeros_like(high)
        return Form(*pair, error, x.fixed and y.fixed)

    def divide(self, x: Form, y: Form) -> Form:
        if not y.fixed or np.any(y.error) or np.any(y.high == 0):
            raise _NotAffineError
        x, y = _lined_up(x, y)
        if self.wide:
            pair = double_double.divide((x.high, x.low), (y.high, y.low))
        else:
            high = x.high / y.high
            pair = high, np.zeros_like(high)
        error = x.error * (1 + 1e-12) / np.abs(y.high[:, 0])
        error = error + self.unit * np.abs(pair[0]).max(1) + _TINY
        return Form(*pair, error, x.fixed)

    def power(self, eqn, x: Form) -> Form:
        if not (self.points or x.fixed) or eqn.params["y"] < 1:
            raise _NotAffineError
        out = x
        for _ in range(eqn.params["y"] - 1):
            out = self.multiply(out, x)
        return out

    def total(self, eqn, x: Form) -> Form:
        for axis in sorted(eqn.params["axes"], reverse=True):
            parts = [
                Form(
                    np.take(x.high, i, axis + 2),
                    np.take(x.low, i, axis + 2),
                    np.take(x.error, i, axis + 1),
                    x.fixed,
                )
                for i in range(x.high.shape[axis + 2])
            ]
            x = parts[0]
            for part in parts[1:]:
                x = self.add(x, part)
        return x

    def contract(self, eqn, x: Form, y: Form) -> Form:
        (left, right), batches = eqn.params["dimension_numbers"]
        if batches[0] or x.fixed == y.fixed or np.any((x if x.fixed else y).low):
            raise _NotAffineError
        if x.fixed:
            out = self.times(y, right, x.high[0, 0], left)
            free = y.high.ndim - 2 - len(right)
            turn = lambda a, first: np.moveaxis(
                a, range(first + free, a.ndim), range(first, a.ndim - free)
            )
            return Form(turn(out.high, 2), turn(out.low, 2), turn(out.error, 1))
        return self.times(x, left, y.high[0, 0], right)

    def times(self, x: Form, mine, matrix: np.ndarray, its) -> Form:
        """A form times a known matrix."""
        axes = lambda shift: tuple(a + shift for a in mine)
        absolute = np.abs(matrix)
        size = np.abs(x.high).max(1)
        terms = math.prod(matrix.shape[a] for a in its)
        error = np.tensordot(x.error * (1 + 1e-12), absolute, (axes(1), its))
        error = error + (terms + 2) * self.unit * np.tensordot(size, absolute, (axes(1), its))
        error = error + terms * _TINY * (error > 0)
        if not self.wide:
            high = np.tensordot(x.high, matrix, (axes(2), its))
            return Form(high, np.zeros_like(high), error)
        last = lambda a, which: np.moveaxis(a, which, range(a.ndim - len(its), a.ndim))
        flat = lambda a: a.reshape(*a.shape[: a.ndim - len(its)], -1)
        high, low = (flat(last(a, axes(2))) for a in (x.high, x.low))
        matrix = flat(last(matrix, its))
        more = (None,) * (matrix.ndim - 1)
        shape = (*high.shape[:-1], *matrix.shape[:-1])
        sums = np.zeros(shape), np.zeros(shape)
        for k in range(terms):
            pair = tuple(a[..., k][(..., *more)] for a in (high, low))
            column = matrix[..., k]
            sums = double_double.add(
                sums, double_double.multiply(pair, (column, np.zeros_like(column)))
            )
        return Form(*sums, error)

    def larger(self, x: Form, y: Form) -> Form:
        x, y = _lined_up(x, y)
        gap = self.add(x, _negative(y))
        least, most = gap.high.min(1), gap.high.max(1)
        first, second = least - gap.error >= 0, most + gap.error <= 0
        bend = np.where(first | second, 0, _bend(least, most))
        self.record(gap, bend)
        here = (gap.high > 0) & ~second[:, None] | first[:, None]
        both = self.rounded(np.maximum(x.error, y.error) + bend, x, y)
        error = np.where(first, x.error, np.where(second, y.error, both))
        pick = lambda a, b: np.where(here, a, b)
        return Form(pick(x.high, y.high), pick(x.low, y.low), error, x.fixed and y.fixed)

    def margin(self, x: Form, y: Form) -> Form:
        """What is positive where a comparison is true."""
        if self.points or (x.fixed and y.fixed):
            raise _NotAffineError
        return self.add(x, _negative(y))

    def select(self, eqn, which: Form, no: Form, yes: Form) -> Form:
        """A choice by a sign; its cases should agree where that changes, or the error is large."""
        if self.points or which.fixed or eqn.invars[0].aval.dtype != bool:
            raise _NotAffineError
        which, no, yes = _lined_up(which, no, yes)
        step = self.add(yes, _negative(no))
        least, most = which.high.min(1), which.high.max(1)
        first, second = least - which.error > 0, most + which.error < 0
        # How far the step is from a multiple of what decides.
        square = (which.high**2).sum(1)
        slope = (step.high * which.high).sum(1) / np.where(square > 0, square, 1)
        rest = np.abs(step.high - slope[:, None] * which.high).max(1) * (1 + 1e-9)
        rest = rest + np.abs(step.high).max(1) * 2.0**-50 * (rest > 0)
        doubt = rest + step.error + np.abs(slope) * which.error
        bend = np.where(first | second, 0, _bend(least, most))
        self.record(which, bend)
        here = (which.high > 0) & ~second[:, None] | first[:, None]
        both = np.maximum(yes.error, no.error) + np.abs(slope) * bend + doubt
        both = self.rounded(both, yes, no)
        error = np.where(first, yes.error, np.where(second, no.error, both))
        pick = lambda a, b: np.where(here, a, b)
        fixed = which.fixed and yes.fixed and no.fixed
        return Form(pick(yes.high, no.high), pick(yes.low, no.low), error, fixed)

    def convert(self, eqn, x: Form) -> Form:
        floating = (np.issubdtype(v.aval.dtype, np.floating) for v in (*eqn.invars, *eqn.outvars))
        if not all(floating):
            raise _NotAffineError
        return x

    def record(self, gap: Form, bend: np.ndarray) -> None:
        """Note the largest bend of each simplex that has none yet, but none that rounding made."""
        if gap.fixed or self.points:
            return
        scale = np.abs(gap.high).max(1)
        clear = np.where(bend > 2 * gap.error + 16 * self.unit * scale, bend, 0)
        clear = clear.reshape(len(clear), -1)
        unit = clear.argmax(1)
        rows = np.flatnonzero((self.kinks.size == 0) & (clear.max(1) > 0))
        if len(rows):
            flat = lambda a: a.reshape(*a.shape[:2], -1)
            self.kinks.size[rows] = clear[rows, unit[rows]]
            self.kinks.high[rows] = flat(gap.high)[rows, :, unit[rows]]
            self.kinks.low[rows] = flat(gap.low)[rows, :, unit[rows]]


class _NotAffineError(Exception):
    """The operands are none that a rule knows."""


def _negative(x: Form) -> Form:
    return x._replace(high=-x.high, low=-x.low)


def _bend(least: np.ndarray, most: np.ndarray) -> np.ndarray:
    """How far the positive part of an affine function is from its chord."""
    across = (least < 0) & (most > 0)
    return np.where(across, -least * most / np.where(across, most - least, 1), 0) * (1 + 1e-12)
