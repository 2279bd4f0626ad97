"""Power laws fitted to measurements, with the standard error of the exponent, and their test."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import betainc, erfc
from jax.typing import ArrayLike


class PowerLaw(NamedTuple):
    """A fitted law ``y = prefactor * x**exponent``.

    Attributes:
        exponent: Shape ``()``.
        exponent_stderr: Standard error of the exponent, shape ``()``.
        prefactor: Shape ``()``.
    """

    exponent: Array
    exponent_stderr: Array
    prefactor: Array


class Curvature(NamedTuple):
    """How measurements bend on a log-log scale.

    Attributes:
        value: Coefficient of the squared logarithm, shape ``()``.
        stderr: Its standard error, shape ``()``.
        p_value: Chance of one at least as large if the law is a power law, shape ``()``.
    """

    value: Array
    stderr: Array
    p_value: Array


def power_law(x: ArrayLike, y: ArrayLike, *, stderr: ArrayLike | None = None) -> PowerLaw:
    r"""Fit a power law by weighted least squares on a log-log scale.

    With :math:`u = \log x`, :math:`v = \log y`, weights :math:`w_i = 1 / \sigma_i^2` where
    :math:`\sigma_i` is the standard error of :math:`v_i`, and weighted means :math:`\bar u, \bar v`

    .. math::
        b = \frac{\sum w_i (u_i - \bar u)(v_i - \bar v)}{\sum w_i (u_i - \bar u)^2}, \qquad
        \operatorname{se}(b) = \Big(\sum w_i (u_i - \bar u)^2\Big)^{-1/2}.

    Without `stderr` all :math:`\sigma_i` are equal and estimated from the residuals, with
    :math:`N - 2` degrees of freedom.

    Args:
        x: Positive numbers, shape ``(N,)``; integers are welcome.
        y: Positive measurements, shape ``(N,)``.
        stderr: The standard error of each ``y``, shape ``(N,)``, to first order small against it.

    Returns:
        The fit, in the dtype of `y`; all NaN where a number is not positive and finite, or where
        all ``x`` are equal.

    Raises:
        ValueError: The shapes differ, or there are fewer points than the fit needs: 2 with
            `stderr`, 3 without.
        TypeError: An argument is complex.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics.scaling import power_law
        >>> widths = jnp.array([64, 128, 256, 512])
        >>> fit = power_law(widths, 3.0 * widths**-0.5)
        >>> print(f"{fit.exponent:.3f} {fit.prefactor:.3f}")
        -0.500 3.000
    """
    u, v, sigma, w, legal = _logs(x, y, stderr, needed=3)
    u_mean, v_mean = jnp.sum(w * u), jnp.sum(w * v)
    u, v = u - u_mean, v - v_mean
    exponent, exponent_stderr = _coefficient(u, v, w, sigma, len(u) - 2)
    prefactor = jnp.exp(v_mean - exponent * u_mean)
    fit = PowerLaw(exponent, exponent_stderr, prefactor)
    return PowerLaw(*(jnp.where(legal, value, jnp.nan) for value in fit))


def curvature(x: ArrayLike, y: ArrayLike, *, stderr: ArrayLike | None = None) -> Curvature:
    r"""Test whether measurements bend away from a power law on a log-log scale.

    .. math:: \log y = a + b \log x + c\, (\log x)^2, \qquad
        p = P\left(|T| \ge |\hat c| / \operatorname{se}(\hat c)\right)

    by weighted least squares as in `power_law`. Under a power law :math:`T` is normal where
    `stderr` is given, and else Student's with :math:`N - 3` degrees of freedom, whose square is the
    :math:`F` statistic of the quadratic term. A small :math:`p` means that no exponent describes
    the range; a large one only that the measurements do not tell. The residuals of numbers that
    follow a law exactly are rounding, which may bend.

    Args:
        x: Positive numbers, shape ``(N,)``; integers are welcome.
        y: Positive measurements, shape ``(N,)``.
        stderr: The standard error of each ``y``, shape ``(N,)``, to first order small against it.

    Returns:
        The test, in the dtype of `y`; all NaN where a number is not positive and finite, or where
        fewer than three ``x`` differ.

    Raises:
        ValueError: The shapes differ, or there are fewer points than the fit needs: 3 with
            `stderr`, 4 without.
        TypeError: An argument is complex.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics.scaling import curvature
        >>> n = jnp.array([4, 8, 16, 32, 64])
        >>> bent = curvature(n, 1 / n + 0.01, stderr=0.02 / n)
        >>> print(f"{bent.value:.3f} {bent.p_value < 1e-6}")
        0.064 True
    """
    u, v, sigma, w, legal = _logs(x, y, stderr, needed=4)
    # Orthogonal to the straight lines, so that its coefficient is fitted alone.
    u, v = u - jnp.sum(w * u), v - jnp.sum(w * v)
    spread = jnp.sum(w * u**2)
    bend = u**2 - spread - u * (jnp.sum(w * u**3) / spread)
    line = u * (jnp.sum(w * u * v) / spread)
    legal &= jnp.sum(w * bend**2) > 64 * jnp.finfo(u.dtype).eps * spread**2
    bend = jnp.where(legal, bend, u)
    value, error = _coefficient(bend, v - line, w, sigma, len(u) - 3)
    exact = error == 0
    size = jnp.abs(value) / jnp.where(exact, 1, error)
    if stderr is None:
        freedom = jnp.asarray(len(u) - 3, u.dtype)
        p_value = betainc(freedom / 2, jnp.asarray(0.5, u.dtype), freedom / (freedom + size**2))
    else:
        p_value = erfc(size / jnp.sqrt(jnp.asarray(2, u.dtype)))
    p_value = jnp.where(exact, jnp.where(value == 0, 1, 0), p_value)
    test = Curvature(value, error, p_value)
    return Curvature(*(jnp.where(legal, number, jnp.nan) for number in test))


def _logs(x: ArrayLike, y: ArrayLike, stderr: ArrayLike | None, *, needed: int):
    """Logarithms of what was given, the error of their mean, weights, and whether all is legal.

    The error is None without `stderr`; the weights sum to one.
    """
    y = _as_real("y", y, None)
    x = _as_real("x", x, y.dtype)
    sigma = jnp.ones_like(y) if stderr is None else _as_real("stderr", stderr, y.dtype)
    for name, array in (("x", x), ("y", y), ("stderr", sigma)):
        if array.ndim != 1 or array.shape != x.shape:
            raise ValueError(
                f"{name} has shape {array.shape}, x has {x.shape}; want (N,) for all alike"
            )
    needed = needed if stderr is None else needed - 1
    if len(x) < needed:
        given = "without" if stderr is None else "with"
        raise ValueError(f"x and y hold {len(x)} points; want {needed} or more {given} stderr")
    legal = (x > 0) & (y > 0) & (sigma > 0)
    legal &= jnp.isfinite(x) & jnp.isfinite(y) & jnp.isfinite(sigma)
    legal = jnp.all(legal) & (jnp.max(x) > jnp.min(x))
    x = jnp.where(legal, x, jnp.arange(1, len(x) + 1, dtype=x.dtype))
    y, sigma = jnp.where(legal, y, 1), jnp.where(legal, sigma, 1)
    if stderr is not None:
        sigma = sigma / y
    # Relative to the smallest error, or the weights may overflow.
    unit = jnp.min(sigma)
    w = (unit / sigma) ** 2
    total = jnp.sum(w)
    error = None if stderr is None else unit / jnp.sqrt(total)
    return jnp.log(x), jnp.log(y), error, w / total, legal


def _coefficient(u: Array, v: Array, w: Array, sigma: Array | None, freedom: int):
    """The coefficient of one regressor, and its standard error."""
    spread = jnp.sum(w * u**2)
    value = jnp.sum(w * u * v) / spread
    if sigma is not None:
        return value, sigma / jnp.sqrt(spread)
    variance = jnp.sum(w * (v - value * u) ** 2) / freedom / spread
    exact = variance == 0
    # The square root has no derivative at 0, which a perfect fit reaches.
    return value, jnp.where(exact, 0, jnp.sqrt(jnp.where(exact, 1, variance)))


def _as_real(name: str, array: ArrayLike, dtype) -> Array:
    array = jnp.asarray(array)
    if jnp.iscomplexobj(array):
        raise TypeError(f"{name} holds {array.dtype}; want real numbers")
    if dtype is None:
        inexact = jnp.issubdtype(array.dtype, jnp.inexact)
        dtype = array.dtype if inexact else jnp.result_type(float)
    return array.astype(dtype)
