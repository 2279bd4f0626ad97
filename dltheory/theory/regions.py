r"""How many linear regions a ReLU network can have, and how many a random one has on a line.

Counts are Python integers, exact at any size. Depth buys regions exponentially in what is
possible, and hardly at all in what random networks do: there every unit brings about one
breakpoint, wherever it sits.
"""

import math
from collections import Counter
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.theory.parameters import check_count, checked


def zaslavsky(n: int, d: int) -> int:
    r"""Regions that `n` hyperplanes in general position cut `d`-dimensional space into.

    .. math:: \sum_{j=0}^{d} \binom nj

    It is the largest number of linear regions of a ReLU network with one hidden layer.

    Args:
        n: Number of hyperplanes, or of units.
        d: Dimension.

    Returns:
        The number of regions.

    Raises:
        TypeError: If `n` or `d` is not an integer.
        ValueError: If `n` or `d` is not positive.

    Example:
        >>> from dltheory.theory import regions
        >>> regions.zaslavsky(10, 3)
        176

    Source:
        Zaslavsky (1975), Facing up to arrangements.
    """
    check_count("n", n)
    check_count("d", d)
    return _subsets(n, d)


def cover(n: int, d: int) -> int:
    r"""Regions that `n` hyperplanes through the origin, in general position, cut space into.

    .. math:: 2 \sum_{j=0}^{d-1} \binom{n-1}{j}

    It is the largest number of regions of one hidden layer without biases.

    Args:
        n: Number of hyperplanes, or of units.
        d: Dimension.

    Returns:
        The number of regions.

    Raises:
        TypeError: If `n` or `d` is not an integer.
        ValueError: If `n` or `d` is not positive.

    Source:
        Cover (1965), Geometrical and statistical properties of systems of linear inequalities.
    """
    check_count("n", n)
    check_count("d", d)
    return 2 * _subsets(n - 1, d - 1)


def montufar_lower(d: int, widths: Sequence[int]) -> int:
    r"""Linear regions that some ReLU network of these widths has: depth folds the input.

    .. math:: \prod_{l < L} \left\lfloor \frac{n_l}{n_0} \right\rfloor^{n_0}
              \sum_{j=0}^{n_0} \binom{n_L}{j}

    Args:
        d: Dimension :math:`n_0` of the input.
        widths: Units of each hidden layer, `d` or more; else the bound is zero and says nothing.

    Returns:
        A lower bound on the largest number of regions.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is not positive, or there are no widths.

    Source:
        Montufar, Pascanu, Cho & Bengio (2014), On the number of linear regions of deep neural
        networks.
    """
    _check_widths(d, widths)
    return math.prod((n // d) ** d for n in widths[:-1]) * _subsets(widths[-1], d)


def montufar_upper(d: int, widths: Sequence[int]) -> int:
    r"""A bound on the linear regions of any ReLU network of these widths.

    .. math:: \prod_l \sum_{j=0}^{m_l} \binom{n_l}{j}, \quad m_l = \min(n_0, \dots, n_{l-1})

    Args:
        d: Dimension :math:`n_0` of the input.
        widths: Units of each hidden layer.

    Returns:
        An upper bound on the number of regions.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is not positive, or there are no widths.

    Source:
        Montufar (2017), Notes on the number of linear regions of deep neural networks.
    """
    _check_widths(d, widths)
    narrowest = [min([d, *widths[:layer]]) for layer in range(len(widths))]
    return math.prod(_subsets(n, m) for n, m in zip(widths, narrowest, strict=True))


def serra_upper(d: int, widths: Sequence[int]) -> int:
    r"""A sharper bound: units that are off leave less dimension to the layers behind.

    .. math:: \sum_{(j_1, \dots, j_L) \in J} \prod_l \binom{n_l}{j_l}, \quad
              J = \{0 \le j_l \le \min(n_0, n_1 - j_1, \dots, n_{l-1} - j_{l-1}, n_l)\}

    Args:
        d: Dimension :math:`n_0` of the input.
        widths: Units of each hidden layer.

    Returns:
        An upper bound on the number of regions.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is not positive, or there are no widths.

    Example:
        >>> from dltheory.theory import regions
        >>> widths = (4, 2, 8)
        >>> [bound(3, widths) for bound in (regions.montufar_upper, regions.serra_upper)]
        [2220, 724]

    Source:
        Serra, Tjandraatmadja & Ramalingam (2018), Bounding and counting linear regions of deep
        neural networks.
    """
    _check_widths(d, widths)
    # How many ways there are to each dimension that is left.
    ways = Counter({d: 1})
    for n in widths:
        after: Counter[int] = Counter()
        for left, number in ways.items():
            for off in range(min(left, n) + 1):
                after[min(left, n - off)] += number * math.comb(n, off)
        ways = after
    return sum(ways.values())


def piecewise_linear_depth(d: int) -> int:
    r"""Hidden layers with which a ReLU network represents every piecewise linear function.

    .. math:: \lceil \log_2(d + 1) \rceil

    for continuous ones of `d` variables, such as the maximum of `d` numbers.

    Args:
        d: Number of variables.

    Returns:
        The number of hidden layers.

    Raises:
        TypeError: If `d` is not an integer.
        ValueError: If `d` is not positive.

    Source:
        Arora, Basu, Mianjy & Mukherjee (2018), Understanding deep neural networks with rectified
        linear units.
    """
    check_count("d", d)
    return d.bit_length()


def expected_breakpoints(
    layer: int,
    interval: tuple[ArrayLike, ArrayLike] = (-math.inf, math.inf),
    *,
    weight_var: ArrayLike = 2.0,
    bias_var: ArrayLike,
) -> Array:
    r"""Zeros of one pre-activation of a wide random ReLU network on the line, on average.

    .. math::
        \mathbb{E}\, \#\{x \in [a, b] : h_l(x) = 0\}
            = \frac{\arctan(b / s_l) - \arctan(a / s_l)}{\pi}, \qquad
        s_l^2 = \frac{\sigma_b^2}{\sigma_w^2} \sum_{j=0}^{l-1} (\sigma_w^2 / 2)^{-j}

    by the formula of Kac and Rice for the Gaussian process of infinite width, whose zeros have a
    Cauchy density. On the whole line it is exactly one, in every layer: regions go with the number
    of units, not with depth.

    Args:
        layer: The hidden layer :math:`l \ge 1`.
        interval: Its ends, any shape; the whole line unless given.
        weight_var: :math:`\sigma_w^2`, any shape.
        bias_var: :math:`\sigma_b^2`, any shape.

    Returns:
        The expected number per unit.

    Raises:
        TypeError: If `layer` is not an integer.
        ValueError: If `layer` is not positive or a variance is negative (under tracing the
            result is NaN instead).

    Source:
        Rice (1944), Mathematical analysis of random noise; Hanin & Rolnick (2019), Complexity of
        linear regions in deep networks, has the order of it at any width.
    """
    check_count("layer", layer)
    weight_var, bias_var = checked(weight_var=weight_var, bias_var=bias_var)
    spread = sum(((weight_var / 2) ** -j for j in range(1, layer)), start=jnp.ones_like(weight_var))
    square = bias_var / weight_var * spread
    scale = jnp.sqrt(square)
    low, high = (jnp.asarray(end, scale.dtype) for end in interval)
    return (jnp.arctan(high / scale) - jnp.arctan(low / scale)) / jnp.pi


def expected_pieces(
    widths: Sequence[int],
    interval: tuple[ArrayLike, ArrayLike],
    *,
    weight_var: ArrayLike = 2.0,
    bias_var: ArrayLike,
) -> Array:
    r"""Linear pieces of a wide random ReLU network on an interval, on average.

    .. math:: 1 + \sum_l n_l\, \mathbb{E}\, \#\{x \in [a, b] : h_l(x) = 0\}

    Args:
        widths: Units of each hidden layer.
        interval: Its ends, any shape.
        weight_var: :math:`\sigma_w^2`, any shape.
        bias_var: :math:`\sigma_b^2`, any shape.

    Returns:
        The expected number.

    Raises:
        TypeError: If a width is not an integer.
        ValueError: If a width is not positive or a variance is negative (under tracing the result
            is NaN instead).

    Example:
        >>> from dltheory.theory import regions
        >>> print(f"{regions.expected_pieces((50, 50, 50), (-1.0, 1.0), bias_var=1.0):.2f}")
        78.20
    """
    _check_widths(1, widths)
    each = [
        n * expected_breakpoints(layer, interval, weight_var=weight_var, bias_var=bias_var)
        for layer, n in enumerate(widths, start=1)
    ]
    return 1 + sum(each[1:], start=each[0])


def _subsets(n: int, largest: int) -> int:
    """Subsets of `n` things that have at most `largest` members."""
    return sum(math.comb(n, j) for j in range(min(n, largest) + 1))


def _check_widths(d: int, widths: Sequence[int]) -> None:
    check_count("d", d)
    if not len(widths):
        raise ValueError("widths is empty; want the units of each hidden layer")
    for n in widths:
        check_count("widths", n)
