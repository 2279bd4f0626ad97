"""Power laws fitted to measurements, with the standard error of the exponent."""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
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
    y = _as_real("y", y, None)
    x = _as_real("x", x, y.dtype)
    sigma = jnp.ones_like(y) if stderr is None else _as_real("stderr", stderr, y.dtype)
    for name, array in (("x", x), ("y", y), ("stderr", sigma)):
        if array.ndim != 1 or array.shape != x.shape:
            raise ValueError(
                f"{name} has shape {array.shape}, x has {x.shape}; want (N,) for all alike"
            )
    needed = 3 if stderr is None else 2
    if len(x) < needed:
        given = "without" if stderr is None else "with"
        raise ValueError(f"x and y hold {len(x)} points; want {needed} or more {given} stderr")
    legal = (x > 0) & (y > 0) & (sigma > 0)
    legal &= jnp.isfinite(x) & jnp.isfinite(y) & jnp.isfinite(sigma)
    legal = jnp.all(legal) & (jnp.max(x) > jnp.min(x))
    x = jnp.where(legal, x, jnp.arange(1, len(x) + 1, dtype=x.dtype))
    y, sigma = jnp.where(legal, y, 1), jnp.where(legal, sigma, 1)
    u, v = jnp.log(x), jnp.log(y)
    if stderr is not None:
        sigma = sigma / y
    # Relative to the smallest error, or the weights may overflow.
    unit = jnp.min(sigma)
    w = (unit / sigma) ** 2
    total = jnp.sum(w)
    w = w / total
    u_mean, v_mean = jnp.sum(w * u), jnp.sum(w * v)
    spread = jnp.sum(w * (u - u_mean) ** 2)
    exponent = jnp.sum(w * (u - u_mean) * (v - v_mean)) / spread
    if stderr is None:
        residuals = v - v_mean - exponent * (u - u_mean)
        variance = jnp.sum(w * residuals**2) / (len(x) - 2) / spread
        exact = variance == 0
        # The square root has no derivative at 0, which a perfect fit reaches.
        exponent_stderr = jnp.where(exact, 0, jnp.sqrt(jnp.where(exact, 1, variance)))
    else:
        exponent_stderr = unit / jnp.sqrt(total * spread)
    prefactor = jnp.exp(v_mean - exponent * u_mean)
    fit = PowerLaw(exponent, exponent_stderr, prefactor)
    return PowerLaw(*(jnp.where(legal, value, jnp.nan) for value in fit))


def _as_real(name: str, array: ArrayLike, dtype) -> Array:
    array = jnp.asarray(array)
    if jnp.iscomplexobj(array):
        raise TypeError(f"{name} holds {array.dtype}; want real numbers")
    if dtype is None:
        inexact = jnp.issubdtype(array.dtype, jnp.inexact)
        dtype = array.dtype if inexact else jnp.result_type(float)
    return array.astype(dtype)
