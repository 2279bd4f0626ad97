r"""Rates of approximation of whole classes of targets, and widths that no method can beat.

An exponent :math:`\alpha` means that the worst error over the class falls as :math:`n^{-\alpha}`
in the number `n` of units or parameters.
"""

import math
from typing import NamedTuple

from jax import Array
from jax.typing import ArrayLike

from dltheory.theory.parameters import check_count, checked

_OMEGA = 0.2784645427610738  # W(1/e), with Lambert's function W


class Exponents(NamedTuple):
    """Exponents of `n` in worst-case errors; larger is better.

    Attributes:
        continuous: Weights chosen continuously with the target, by any method.
        deep: Deep ReLU networks with weights chosen at will.
        linear_barron: The best that any fixed `n` basis functions do on Barron's class.
    """

    continuous: float
    deep: float
    linear_barron: float


def worst_case_exponents(d: int, *, smoothness: float) -> Exponents:
    r"""Exponents of the sup error over a ball of targets with `r` bounded derivatives.

    .. math:: \text{continuous: } r/d, \qquad \text{deep: } 2r/d, \qquad \text{linear: } 1/d

    Args:
        d: Dimension.
        smoothness: Number :math:`r > 0` of derivatives.

    Returns:
        The exponents; the last belongs to Barron's class and does not depend on `smoothness`.

    Raises:
        TypeError: If `d` is not an integer.
        ValueError: If `d` or `smoothness` is not positive.

    Source:
        DeVore, Howard & Micchelli (1989), Optimal nonlinear approximation; Yarotsky (2018),
        Optimal approximation of continuous functions by very deep ReLU networks; Barron (1993).
    """
    check_count("d", d)
    if not smoothness > 0:
        raise ValueError(f"smoothness is {smoothness}; want a positive number of derivatives")
    return Exponents(smoothness / d, 2 * smoothness / d, 1 / d)


def dictionary_exponent(d: int, *, power: int) -> float:
    r"""Exponent of the L2 error of `n` units :math:`\max(w \cdot x + b, 0)^k` on their own class.

    .. math:: \alpha = \frac12 + \frac{2k + 1}{2d}

    for the closed convex hull of the units, and no continuous choice of weights does better.

    Args:
        d: Dimension.
        power: The power :math:`k`: 0 for Heaviside units, 1 for ReLU.

    Returns:
        The exponent.

    Raises:
        TypeError: If `d` is not an integer.
        ValueError: If `d` is not positive or `power` is negative.

    Example:
        >>> from dltheory.theory import rates
        >>> rates.dictionary_exponent(2, power=1)
        1.25

    Source:
        Siegel & Xu (2022), Sharp bounds on the approximation rates, metric entropy, and n-widths
        of shallow neural networks.
    """
    check_count("d", d)
    if power < 0:
        raise ValueError(f"power is {power}; want zero or more")
    return 0.5 + (2 * power + 1) / (2 * d)


def favard_constant(r: int) -> float:
    r"""Favard's constant, the sharp one for periodic targets with `r` bounded derivatives.

    .. math:: K_r = \frac4\pi \sum_{k \ge 0} \left(\frac{(-1)^k}{2k + 1}\right)^{r + 1}

    Args:
        r: Number of derivatives.

    Returns:
        The constant: 1, :math:`\pi/2`, :math:`\pi^2/8`, ...

    Raises:
        TypeError: If `r` is not an integer.
        ValueError: If `r` is not positive.
    """
    check_count("r", r)
    power = r + 1

    def total(a, last=256):
        """Of (4k + a)^-power over k, the tail by the formula of Euler and Maclaurin."""
        end = 4 * last + a
        tail = end**-power * (end / (4 * r) + 0.5 + power / (3 * end))
        return math.fsum((4 * k + a) ** -power for k in range(last)) + tail

    return 4 / math.pi * (total(1.0) + (-1) ** power * total(3.0))


def kolmogorov_width(n: int, r: int) -> float:
    r"""Least sup error that an `n`-dimensional space has on periodic targets.

    Over all targets of period :math:`2\pi` with :math:`|f^{(r)}| \le 1`,

    .. math:: d_{2m-1} = d_{2m} = K_r\, m^{-r}

    Args:
        n: Dimension of the space.
        r: Number of derivatives.

    Returns:
        The width.

    Raises:
        TypeError: If `n` or `r` is not an integer.
        ValueError: If `n` or `r` is not positive.

    Source:
        Tikhomirov (1960), Diameters of sets in function spaces and the theory of best
        approximations.
    """
    check_count("n", n)
    return favard_constant(r) * ((n + 1) // 2) ** -r


def sigmoid_step_distance(slope: ArrayLike) -> Array:
    r"""L1 distance of a steep sigmoid to the Heaviside step: how a sigmoid network copies one.

    .. math:: \int |\sigma(k x) - 1_{x > 0}|\, dx = \frac{2 \ln 2}{k}

    while the sup distance stays one half.

    Args:
        slope: The steepness :math:`k \ge 0`, any shape.

    Returns:
        The distance, of the same shape.

    Raises:
        ValueError: If `slope` is negative (under tracing the result is NaN instead).
    """
    (slope,) = checked(slope=slope)
    return 2 * math.log(2) / slope


def softplus_relu_distance(slope: ArrayLike) -> Array:
    r"""Sup distance of a sharpened softplus to ReLU.

    .. math:: \sup_x \left|\tfrac1b \ln(1 + e^{b x}) - \max(x, 0)\right| = \frac{\ln 2}{b}

    Args:
        slope: The sharpness :math:`b \ge 0`, any shape.

    Returns:
        The distance, of the same shape.

    Raises:
        ValueError: If `slope` is negative (under tracing the result is NaN instead).
    """
    (slope,) = checked(slope=slope)
    return math.log(2) / slope


def gated_abs_distance(slope: ArrayLike) -> Array:
    r"""Sup distance of :math:`x \tanh(b x)` to :math:`|x|`.

    .. math:: \sup_x \big| |x| - x \tanh(b x) \big| = \frac{W(1/e)}{b}

    with Lambert's function :math:`W`.

    Args:
        slope: The sharpness :math:`b \ge 0`, any shape.

    Returns:
        The distance, of the same shape.

    Raises:
        ValueError: If `slope` is negative (under tracing the result is NaN instead).
    """
    (slope,) = checked(slope=slope)
    return _OMEGA / slope
