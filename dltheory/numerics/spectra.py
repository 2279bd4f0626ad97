"""What a spectrum says, from the natural logarithms of its singular values.

Every function takes `log_values` of shape `(..., k)`, descending, as `log_spectrum` and
`measure.jacobians` give them, so that nothing under- or overflows; zeros are `-inf`.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array


def log_condition(log_values: Array) -> Array:
    r"""Logarithm of the condition number.

    .. math:: \ln \kappa = \ln s_{max} - \ln s_{min}

    Args:
        log_values: Logs of singular values, shape `(..., k)`, descending.

    Returns:
        Shape `(...)`; infinite where a value is zero.
    """
    return log_values[..., 0] - log_values[..., -1]


def log_mean_square(log_values: Array) -> Array:
    r"""Logarithm of the mean squared singular value, that of :math:`\chi_1` for a layer's Jacobian.

    .. math:: \ln \frac{1}{k} \sum_i s_i^2

    Args:
        log_values: Logs of singular values, shape `(..., k)`.

    Returns:
        Shape `(...)`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics import spectra
        >>> spectra.log_mean_square(jnp.array([200.0, 200.0]))
        Array(400., dtype=float32)
    """
    return jax.nn.logsumexp(2 * log_values, axis=-1) - math.log(log_values.shape[-1])


def log_volume(log_values: Array) -> Array:
    r"""Logarithm of the factor by which volumes grow, :math:`\sum_i \ln s_i`.

    Args:
        log_values: Logs of singular values, shape `(..., k)`.

    Returns:
        Shape `(...)`; `-inf` where a value is zero.
    """
    return jnp.sum(log_values, axis=-1)


def effective_rank(log_values: Array) -> Array:
    r"""The exponential of the entropy of the normalised singular values.

    .. math:: \exp\Big(-\sum_i p_i \ln p_i\Big), \qquad p_i = s_i \Big/ \sum_j s_j

    Args:
        log_values: Logs of singular values, shape `(..., k)`.

    Returns:
        Shape `(...)`, between 1 and `k`; NaN where all values are zero.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics import spectra
        >>> spectra.effective_rank(jnp.array([0.0, 0.0, -jnp.inf])).round(4)
        Array(2., dtype=float32)

    Source:
        Roy and Vetterli (2007), The effective rank: a measure of effective dimensionality.
    """
    log_p = jax.nn.log_softmax(log_values, axis=-1)
    zero = jnp.isneginf(log_p)
    # A value of zero has no part in the entropy, nor in its derivative.
    log_p = jnp.where(zero, 0, log_p)
    return jnp.exp(-jnp.sum(jnp.where(zero, 0, jnp.exp(log_p)) * log_p, axis=-1))


def isometry_error(log_values: Array) -> Array:
    r"""How far a map is from an isometry: 0 if and only if every singular value is one.

    .. math:: \frac{1}{k} \sum_i (s_i^2 - 1)^2 = \frac{1}{k} \| J J^\top - I \|_F^2

    Its gradient is finite where the singular values coincide, so that it serves as a penalty.

    Args:
        log_values: Logs of singular values, shape `(..., k)`.

    Returns:
        Shape `(...)`.

    Source:
        Saxe, McClelland and Ganguli (2014), dynamical isometry.
    """
    zero = jnp.isneginf(log_values)
    squares = jnp.where(zero, 0, jnp.exp(2 * jnp.where(zero, 0, log_values)))
    return jnp.mean((squares - 1) ** 2, axis=-1)
