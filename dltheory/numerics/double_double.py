r"""Numbers as unevaluated sums of two float64, with some 32 digits, for arrays of NumPy.

A pair `(high, low)` stands for its exact sum, with :math:`|low| \le 2^{-53} |high|`. Sums and
products are right to :math:`2^{-100}` of the sizes of their operands.

Source: Dekker (1971), A floating-point technique for extending the available precision.
"""

import numpy as np

Pair = tuple[np.ndarray, np.ndarray]
"""The high and the low part, arrays of one shape."""

UNIT = 2.0**-100
"""A bound on the relative error of one operation."""


def two_sum(a: np.ndarray, b: np.ndarray) -> Pair:
    """The sum of two floats, exactly, as its rounding and what that loses (Knuth)."""
    total = a + b
    shift = total - a
    return total, (a - (total - shift)) + (b - shift)


def two_product(a: np.ndarray, b: np.ndarray) -> Pair:
    """The product of two floats, exactly, as its rounding and what that loses (Dekker)."""
    product = a * b
    (a1, a2), (b1, b2) = _split(a), _split(b)
    return product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def add(x: Pair, y: Pair) -> Pair:
    """The sum of two pairs."""
    high, lost = two_sum(x[0], y[0])
    low, tail = two_sum(x[1], y[1])
    high, lost = _carried(high, lost + low)
    return _carried(high, lost + tail)


def multiply(x: Pair, y: Pair) -> Pair:
    """The product of two pairs."""
    high, lost = two_product(x[0], y[0])
    return _carried(high, lost + (x[0] * y[1] + x[1] * y[0]))


def divide(x: Pair, y: Pair) -> Pair:
    """The quotient of two pairs, by long division."""
    first = x[0] / y[0]
    zero = np.zeros_like(first)
    rest = add(x, multiply(y, (-first, zero)))
    second = rest[0] / y[0]
    rest = add(rest, multiply(y, (-second, zero)))
    return add(two_sum(first, second), (rest[0] / y[0], zero))


def _carried(high: np.ndarray, low: np.ndarray) -> Pair:
    total = high + low
    return total, low - (total - high)


def _split(a: np.ndarray) -> Pair:
    """A float as the sum of two of 26 bits each."""
    scaled = 134217729.0 * a
    high = scaled - (scaled - a)
    return high, a - high
