r"""Spectra of Jacobians in the limit of infinite depth, of which there are few.

Where the depth grows and the variance `s` of the squared singular values, relative to their squared
mean, is held, the spectrum of a network of orthogonal weights near dynamical isometry depends on
`s` alone, and on whether slopes vary continuously ("smooth", such as tanh with a small length) or
are zero or one ("bernoulli", such as hard_tanh):

.. math:: S(z) = e^{-s z} \quad \text{or} \quad S(z) = e^{-s z / (1 + z)}

Source: Pennington, Schoenholz and Ganguli (2018), The emergence of spectral universality in deep
networks.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.numerics.results import Density
from dltheory.theory import spectral_curve
from dltheory.theory.parameters import check_choice, check_count, checked

LIMITS = ("smooth", "bernoulli")


def edge(variance: ArrayLike, limit: str) -> Array:
    r"""The edge in the limit of infinite depth at a fixed variance.

    .. math::
        S(z) = e^{-s z}: \quad \lambda_{max} = \frac{1 + z}{z} e^{s z},\;
            z = \frac{\sqrt{1 + 4 / s} - 1}{2}; \qquad
        S(z) = e^{-s z / (1 + z)}: \quad \lambda_{max} = e s \text{ or } e^s \;(s \le 1)

    Args:
        variance: The relative variance `s` of the squared singular values, any shape.
        limit: "smooth", or "bernoulli" for slopes that are zero or one, as of hard_tanh.

    Returns:
        The edge relative to the mean, of the shape of `variance`; differentiable above zero.

    Raises:
        ValueError: If the variance is negative (under tracing the result is NaN instead) or the
            limit is unknown.

    Example:
        >>> from dltheory.theory import universality
        >>> print(f"{universality.edge(2.0, 'smooth'):.4f}")
        7.7602

    Source: Pennington, Schoenholz and Ganguli (2018), the two classes; the edges follow.
    """
    check_choice("limit", limit, LIMITS)
    (s,) = checked(variance=variance)
    if limit == "bernoulli":
        return jnp.where(s > 1, jnp.e * s, jnp.exp(jnp.minimum(s, 1)))
    # 1 / z and s z stay bounded where s is small.
    inverse = (s + jnp.sqrt(s * (s + 4))) / 2
    return (1 + inverse) * jnp.exp(2 * jnp.sqrt(s) / (jnp.sqrt(s) + jnp.sqrt(s + 4)))


def density(variance: ArrayLike, limit: str, *, points: int = 512) -> Density:
    r"""The density in the limit of infinite depth at a fixed variance.

    In the class "bernoulli" a mass of :math:`1 - s` sits at :math:`e^s` for `s` below one.

    Args:
        variance: The relative variance `s` of the squared singular values, shape `()`.
        limit: "smooth", or "bernoulli" for slopes that are zero or one, as of hard_tanh.
        points: Size of the grid.

    Returns:
        `Density` of shape `(points,)` relative to the mean, on a grid as `squared_density` has it.
        Not differentiable.

    Raises:
        TypeError: If `points` is not an integer.
        ValueError: If the variance is negative (under tracing the result is NaN instead), the limit
            is unknown or `points` below one.

    Source: Pennington, Schoenholz and Ganguli (2018).
    """
    check_choice("limit", limit, LIMITS)
    check_count("points", points)
    (s,) = checked(variance=variance)

    def transform(log_u: Array, u: Array) -> tuple[Array, Array]:
        m = 1 / (u - 1)
        return log_u + s.astype(u.dtype) * (m if limit == "smooth" else 1 / u), m

    def angle(log_u: Array, u: Array, m: Array) -> Array:
        del u
        inner = (m + m * m / 2).imag if limit == "smooth" else log_u.imag + jnp.angle(m)
        return s * inner - jnp.angle(m)

    # Where zeta turns: (u - 1)**2 = s u, or u = s unless that is below the pole.
    turn = 1 + (s + jnp.sqrt(s * (s + 4))) / 2 if limit == "smooth" else jnp.maximum(s, 1)
    spectrum = spectral_curve.Spectrum(transform, angle)
    return spectral_curve.density(spectral_curve.curve(spectrum, turn, jnp.zeros_like(s), points))
