r"""Interval arithmetic, entry by entry, rounded outward.

An interval `[lower, upper]` is a set of real numbers; an infinite end is no member but says that
there is no bound. Truth values are the intervals `[0, 0]`, `[1, 1]` and, undecided, `[0, 1]`. Ends
that are NaN say that the value may be no number at all.

Every rule rounds outward: by one unit in the last place where IEEE 754 rounds correctly (sums,
products, quotients, roots), and by `LIBRARY_ULPS` of them for the library's functions. NumPy and
the C library keep their errors below about four units, and XLA's own exp, tanh or erf stay within
a few too, so an enclosure holds for the real function and also for what float64 arithmetic makes
of it, operation by operation. Sine and cosine, whose relative errors have no bound at their
zeros, are widened by as many units of one.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

LIBRARY_ULPS = 16
"""The error, in units in the last place, that is allowed to a library function."""

EPS = float(np.finfo(np.float64).eps)
TINY = 5e-324
_MAX = float(np.finfo(np.float64).max)


class Interval(NamedTuple):
    """Bounds on an array: two float64 arrays of one shape, the first axis running over boxes."""

    lower: np.ndarray
    upper: np.ndarray


def choose(which: Interval, cases: list[Interval]) -> Interval:
    """The hull of the cases that an integer, itself known to an interval, may pick."""
    lower, upper = np.array(math.inf), np.array(-math.inf)
    for number, case in enumerate(cases):
        # A comparison with NaN is false, so that an unknown choice rules nothing out.
        possible = ~((which.lower > number) | (which.upper < number))
        lower = np.minimum(lower, np.where(possible, case.lower, math.inf))
        upper = np.maximum(upper, np.where(possible, case.upper, -math.inf))
    return Interval(lower, upper)


def _outward(lower: np.ndarray, upper: np.ndarray) -> Interval:
    return Interval(np.nextafter(lower, -math.inf), np.nextafter(upper, math.inf))


def _widened(lower: np.ndarray, upper: np.ndarray, scale: float | None = None) -> Interval:
    """Widen by the error of a library function, relative or in units of `scale`."""
    # Where a lower end overflows, the value is at least the largest float.
    lower, upper = np.minimum(lower, _MAX), np.maximum(upper, -_MAX)
    below, above = (np.abs(end) if scale is None else scale for end in (lower, upper))
    return Interval(
        lower - LIBRARY_ULPS * (EPS * below + TINY), upper + LIBRARY_ULPS * (EPS * above + TINY)
    )


def _corners(values: list[np.ndarray], signs: list[np.ndarray]) -> Interval:
    """The hull of products or quotients of ends; a value known to be positive stays so."""
    lower, upper = np.array(math.inf), np.array(-math.inf)
    for value, sign in zip(values, signs, strict=True):
        below, above = _outward(value, value)
        lower = np.fmin(lower, np.where(sign >= 0, np.maximum(below, 0), below))
        upper = np.fmax(upper, np.where(sign <= 0, np.minimum(above, 0), above))
    return Interval(lower, upper)


def unknown(where: np.ndarray, x: Interval) -> Interval:
    """NaN on both ends where the value may be no number."""
    return Interval(np.where(where, np.nan, x.lower), np.where(where, np.nan, x.upper))


def _no_number(x: Interval) -> np.ndarray:
    """Where an interval is NaN, or the constant infinity, which is no real number."""
    return np.isnan(x.lower) | (np.isinf(x.lower) & (x.lower == x.upper))


def _add(_, x: Interval, y: Interval) -> Interval:
    lower, upper = x.lower + y.lower, x.upper + y.upper
    out = _outward(lower, upper)
    # A sum of floats that comes out as zero is exact.
    return Interval(np.where(lower == 0, 0, out.lower), np.where(upper == 0, 0, out.upper))


def _neg(_, x: Interval) -> Interval:
    return Interval(-x.upper, -x.lower)


def multiply(x: Interval, y: Interval) -> Interval:
    """Products of the members of two intervals."""
    pairs = [(a, b) for a in x for b in y]
    values = [np.where((a == 0) | (b == 0), 0, a * b) for a, b in pairs]  # no bound times nothing
    out = _corners(values, [np.sign(a) * np.sign(b) for a, b in pairs])
    return unknown(_no_number(x) | _no_number(y), out)


def _mul(eqn, x: Interval, y: Interval) -> Interval:
    return _square(eqn, x) if eqn.invars[0] is eqn.invars[1] else multiply(x, y)


def _reciprocal(x: Interval) -> Interval:
    ends = (1 / x.upper, 1 / x.lower)
    lower, upper = _outward(*ends)
    lower = np.where(x.lower >= 0, np.maximum(lower, 0), lower)
    upper = np.where(x.upper <= 0, np.minimum(upper, 0), upper)
    across = (x.lower < 0) & (x.upper > 0)
    return Interval(
        np.where(across | (x.upper == 0), -math.inf, lower),
        np.where(across | (x.lower == 0), math.inf, upper),
    )


def _div(eqn, x: Interval, y: Interval) -> Interval:
    if not np.issubdtype(eqn.outvars[0].aval.dtype, np.floating):
        raise NotImplementedError("there is no interval rule for 'div' of integers")
    pairs = [(a, b) for a in x for b in y]
    out = _corners([a / b for a, b in pairs], [np.sign(a) * np.sign(b) for a, b in pairs])
    pole = (y.lower <= 0) & (y.upper >= 0)
    beside = multiply(x, _reciprocal(y))
    lower, upper = (np.where(pole, b, a) for a, b in zip(out, beside, strict=True))
    undefined = pole & (x.lower <= 0) & (x.upper >= 0)
    return unknown(undefined | _no_number(x) | _no_number(y), Interval(lower, upper))


def _abs(_, x: Interval) -> Interval:
    smallest = np.maximum(np.maximum(x.lower, -x.upper), 0)
    return Interval(smallest, np.maximum(-x.lower, x.upper))


def _square(_, x: Interval) -> Interval:
    smallest, largest = _abs(None, x)
    lower, upper = _outward(smallest * smallest, largest * largest)
    return Interval(np.maximum(lower, 0), np.where(largest == 0, 0, upper))


def _power(x: Interval, exponent: int) -> Interval:
    if exponent < 0:
        return _reciprocal(_power(x, -exponent))
    even = exponent % 2 == 0
    smallest, largest = _abs(None, x) if even else x
    lower, upper = _widened(smallest**exponent, largest**exponent)
    lower = np.where(smallest >= 0, np.maximum(lower, 0), lower)
    return Interval(
        lower, np.where(largest <= 0, np.minimum(upper, 0), upper) if not even else upper
    )


def _integer_pow(eqn, x: Interval) -> Interval:
    exponent = eqn.params["y"]
    return _square(eqn, x) if exponent == 2 else _power(x, exponent)


def _monotone(
    function: Callable, floor: float = -math.inf, ceiling: float = math.inf, *, sign: bool = False
) -> Callable[..., Interval]:
    """The rule of a library function that never decreases; `sign` if it keeps its argument's."""

    def rule(_, x: Interval) -> Interval:
        lower, upper = _widened(function(x.lower), function(x.upper))
        if sign:
            lower = np.where(x.lower >= 0, np.maximum(lower, 0), lower)
            upper = np.where(x.upper <= 0, np.minimum(upper, 0), upper)
        return Interval(np.clip(lower, floor, ceiling), np.clip(upper, floor, ceiling))

    return rule


_exp = _monotone(np.exp, 0)
_log = _monotone(np.log)


def _pow(_, x: Interval, y: Interval) -> Interval:
    constant = y.lower.flat[0] if y.lower.size else 0.5
    if np.all(y.lower == constant) and np.all(y.upper == constant) and float(constant).is_integer():
        return _power(x, int(constant))
    return _exp(None, multiply(y, _log(None, x)))


def _logistic(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, small) / (1 + small)


def _erfc(_, x: Interval) -> Interval:
    lower, upper = _widened(_scalar_erfc(x.upper), _scalar_erfc(x.lower))
    return Interval(np.clip(lower, 0, 2), np.clip(upper, 0, 2))


_scalar_erf = np.vectorize(math.erf, otypes=[np.float64])
_scalar_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _sqrt(_, x: Interval) -> Interval:
    lower, upper = _outward(np.sqrt(x.lower), np.sqrt(x.upper))
    return Interval(np.maximum(lower, 0), np.where(x.upper == 0, 0, upper))


def _wave(function: Callable, peak: float) -> Callable[..., Interval]:
    """The rule of a sine that is largest at `peak`."""

    def rule(_, x: Interval) -> Interval:
        size = np.maximum(np.abs(x.lower), np.abs(x.upper))
        slack = 16 * EPS * (1 + size)

        def reaches(point):
            turns = np.ceil((x.lower - slack - point) / (2 * math.pi))
            return point + 2 * math.pi * turns <= x.upper + slack

        ends = function(x.lower), function(x.upper)
        lower, upper = _widened(np.minimum(*ends), np.maximum(*ends), scale=1.0)
        anything = (x.upper - x.lower >= 2 * math.pi) | (size > 1e9)
        lower = np.where(anything | reaches(peak - math.pi), -1, np.maximum(lower, -1))
        return Interval(lower, np.where(anything | reaches(peak), 1, np.minimum(upper, 1)))

    return rule


def _truth(true: np.ndarray, false: np.ndarray) -> Interval:
    return Interval(np.where(true, 1.0, 0.0), np.where(false, 0.0, 1.0))


def _less(_, x: Interval, y: Interval) -> Interval:
    return _truth(x.upper < y.lower, x.lower >= y.upper)


def _not(_, x: Interval) -> Interval:
    return Interval(1 - x.upper, 1 - x.lower)


def _equal(eqn, x: Interval, y: Interval) -> Interval:
    same = (x.lower == x.upper) & (y.lower == y.upper) & (x.lower == y.lower)
    if eqn.invars[0] is eqn.invars[1]:
        same = ~np.isnan(x.lower)  # `h != h` asks whether h is NaN
    apart = (x.upper < y.lower) | (x.lower > y.upper)
    # A real number is no infinity, even where it has no bound.
    for a, b in ((x, y), (y, x)):
        apart = apart | (np.isinf(b.lower) & (b.lower == b.upper) & (a.lower < a.upper))
    return _truth(same, apart)


def _logical(function: Callable) -> Callable[..., Interval]:
    def rule(eqn, x: Interval, y: Interval) -> Interval:
        if eqn.outvars[0].aval.dtype != np.bool_:
            raise NotImplementedError(
                f"there is no interval rule for {eqn.primitive.name!r} on bits"
            )
        return Interval(function(x.lower, y.lower), function(x.upper, y.upper))

    return rule


def _convert(eqn, x: Interval) -> Interval:
    old, new = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    if new == np.bool_ and old != np.bool_:
        return _not(None, _truth((x.lower == 0) & (x.upper == 0), (x.lower > 0) | (x.upper < 0)))
    if np.issubdtype(new, np.integer) and np.issubdtype(old, np.floating):
        return Interval(np.trunc(x.lower), np.trunc(x.upper))
    return x


def exact(function: Callable) -> Callable[..., Interval]:
    """The rule of an exact operation that never decreases in any argument."""

    def rule(eqn, *xs: Interval) -> Interval:
        return Interval(
            function(eqn, *(x.lower for x in xs)), function(eqn, *(x.upper for x in xs))
        )

    return rule


def total(x: Interval, axes: tuple[int, ...]) -> Interval:
    """A sum in any order: its rounding error is below `n eps` times the sum of magnitudes."""
    count = math.prod(x.lower.shape[a] for a in axes)
    if count == 1:
        return Interval(x.lower.sum(axes), x.upper.sum(axes))
    lower, upper = (
        end.sum(axes) - side * count * EPS * np.abs(end).sum(axes)
        for end, side in zip(x, (1, -1), strict=True)
    )
    return _outward(lower, upper)


RULES: dict[str, Callable[..., Interval]] = {
    "abs": _abs,
    "add": _add,
    "add_any": _add,
    "and": _logical(np.minimum),
    "atan": _monotone(np.arctan, sign=True),
    "ceil": exact(lambda _, x: np.ceil(x)),
    "clamp": exact(lambda _, low, x, high: np.minimum(np.maximum(x, low), high)),
    "convert_element_type": _convert,
    "copy": exact(lambda _, x: x),
    "cos": _wave(np.cos, 0.0),
    "div": _div,
    "eq": _equal,
    "erf": _monotone(_scalar_erf, -1, 1, sign=True),
    "erfc": _erfc,
    "exp": _exp,
    "exp2": _monotone(np.exp2, 0),
    "expm1": _monotone(np.expm1, -1, sign=True),
    "floor": exact(lambda _, x: np.floor(x)),
    "ge": lambda eqn, x, y: _not(eqn, _less(eqn, x, y)),
    "gt": lambda eqn, x, y: _less(eqn, y, x),
    "integer_pow": _integer_pow,
    "is_finite": lambda _, x: _truth(~_no_number(x), np.zeros(x.lower.shape, bool)),
    "le": lambda eqn, x, y: _not(eqn, _less(eqn, y, x)),
    "log": _log,
    "log1p": _monotone(np.log1p, sign=True),
    "logistic": _monotone(_logistic, 0, 1),
    "lt": _less,
    "max": exact(lambda _, x, y: np.maximum(x, y)),
    "min": exact(lambda _, x, y: np.minimum(x, y)),
    "mul": _mul,
    "name": exact(lambda _, x: x),
    "ne": lambda eqn, x, y: _not(eqn, _equal(eqn, x, y)),
    "neg": _neg,
    "not": _not,
    "or": _logical(np.maximum),
    "pow": _pow,
    "rsqrt": lambda _, x: _reciprocal(_sqrt(None, x)),
    "select_n": lambda _, which, *cases: choose(which, list(cases)),
    "sign": exact(lambda _, x: np.sign(x)),
    "sin": _wave(np.sin, math.pi / 2),
    "sinh": _monotone(np.sinh, sign=True),
    "sqrt": _sqrt,
    "square": _square,
    "stop_gradient": exact(lambda _, x: x),
    "sub": lambda eqn, x, y: _add(eqn, x, _neg(eqn, y)),
    "tanh": _monotone(np.tanh, -1, 1, sign=True),
}
"""The rule of each primitive that works entry by entry: `rule(equation, *intervals)`."""
