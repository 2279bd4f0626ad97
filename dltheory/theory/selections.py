"""Exact ReLU networks in many dimensions: the largest, the least, the median; bumps on boxes."""

import numpy as np
from jax.typing import ArrayLike

from dltheory.theory.layouts import Construction, Layer, network
from dltheory.theory.parameters import check_count


def maximum(n: int) -> Construction:
    r"""The largest of `n` numbers, by a tournament of :math:`\lceil \log_2 n \rceil` layers.

    .. math:: \max(a, b) = b + \max(a - b, 0)

    Args:
        n: How many numbers.

    Returns:
        The network of `n` inputs; it is exact everywhere.

    Raises:
        TypeError: If `n` is not an integer.
        ValueError: If `n` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import selections
        >>> net = selections.maximum(3)
        >>> print(float(net.apply(net.params, jnp.array([[1.0, -2.0, 0.5]]))[0, 0]))
        1.0
    """
    check_count("n", n)
    return network(_tournament(np.eye(n)), bound=0.0)


def minimum(n: int) -> Construction:
    r"""The least of `n` numbers, by a tournament of :math:`\lceil \log_2 n \rceil` layers.

    .. math:: \min_i x_i = -\max_i (-x_i)

    Args:
        n: How many numbers.

    Returns:
        The network of `n` inputs; it is exact everywhere.

    Raises:
        TypeError: If `n` is not an integer.
        ValueError: If `n` is not positive.
    """
    check_count("n", n)
    *hidden, (last, shift) = _tournament(-np.eye(n))
    return network([*hidden, (-last, shift)], bound=0.0)


def median(n: int) -> Construction:
    """The median of `n` numbers, by `n` layers that sort neighbours in turn.

    Args:
        n: How many numbers; of an even number it is the mean of the middle two.

    Returns:
        The network of `n` inputs; it is exact everywhere.

    Raises:
        TypeError: If `n` is not an integer.
        ValueError: If `n` is not positive.

    Source:
        Knuth (1998), The Art of Computer Programming, volume 3: odd-even transposition.
    """
    check_count("n", n)
    read, layers = np.eye(n), []
    for turn in range(n):
        units, combine, at = [], [], turn % 2
        if at:
            units, combine = _kept(n, 0)
        while at + 1 < n:
            pair, sums = _sorted_pair(n, at)
            units, combine, at = units + pair, combine + sums, at + 2
        if at < n:
            alone, sums = _kept(n, at)
            units, combine = units + alone, combine + sums
        layers.append((np.array(units) @ read, np.zeros(len(units))))
        read = _block_diagonal(combine)
    middle = (read[(n - 1) // 2] + read[n // 2]) / 2
    return network([*layers, (middle[None], np.zeros(1))], bound=0.0)


def bump(lower: ArrayLike, upper: ArrayLike, margin: float) -> Construction:
    r"""One on a box, zero away from it, by two hidden layers of `2 d` units.

    .. math:: \max\!\left(0,\, 1 - \tfrac1\delta \sum_i
              [\max(l_i - x_i, 0) + \max(x_i - u_i, 0)]\right)

    Args:
        lower: Lower corner :math:`l`, shape `(d,)`.
        upper: Upper corner :math:`u`, shape `(d,)`.
        margin: The distance :math:`\delta > 0`, the sum over coordinates, at which it is zero.

    Returns:
        The network of `d` inputs; it is exact everywhere.

    Raises:
        ValueError: If the corners make no box or `margin` is not positive.
    """
    low, high = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    if low.ndim != 1 or low.shape != high.shape or not np.all(low <= high):
        raise ValueError(f"lower is {lower} and upper {upper}; want the corners of a box, (d,)")
    if not margin > 0:
        raise ValueError(f"margin is {margin}; want a positive number")
    eye = np.eye(len(low))
    outside = np.concatenate([-eye, eye]), np.concatenate([low, -high])
    fall = np.full((1, 2 * len(low)), -1 / margin), np.ones(1)
    return network([outside, fall, (np.ones((1, 1)), np.zeros(1))], bound=0.0)


def _tournament(read: np.ndarray) -> list[Layer]:
    """Layers that find the largest of the rows of `read` times the input."""
    layers = []
    while len(read) > 1 or not layers:
        n, units, combine = len(read), [], []
        for at in range(0, n - 1, 2):
            a, b = np.eye(n)[at : at + 2]
            units += [a - b, b, -b]
            combine.append(np.array([[1.0, 1.0, -1.0]]))
        if n % 2:
            alone, sums = _kept(n, n - 1)
            units, combine = units + alone, combine + sums
        layers.append((np.array(units) @ read, np.zeros(len(units))))
        read = _block_diagonal(combine)
    return [*layers, (read, np.zeros(1))]


def _kept(n: int, at: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Units that pass one of `n` numbers on, and how to read it off them."""
    one = np.eye(n)[at]
    return [one, -one], [np.array([[1.0, -1.0]])]


def _sorted_pair(n: int, at: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Units of two neighbours among `n` numbers, and how to read the less and the larger."""
    a, b = np.eye(n)[at : at + 2]
    return [a - b, b - a, b, -b], [np.array([[0.0, -1, 1, -1], [1, 0, 1, -1]])]


def _block_diagonal(blocks: list[np.ndarray]) -> np.ndarray:
    out = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)))
    row = column = 0
    for block in blocks:
        height, width = block.shape
        out[row : row + height, column : column + width] = block
        row, column = row + height, column + width
    return out
