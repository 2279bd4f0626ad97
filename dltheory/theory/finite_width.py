r"""What mean-field theory leaves out: random networks of finite width, exactly.

Weights are :math:`\mathcal{N}(0, \sigma_w^2 / n)` with :math:`\sigma_w^2` the `weight_var`. At
width `n` a deep network's Jacobian is governed by the mean of logarithms, not by the logarithm of
the mean: its squared singular values keep their mean at :math:`\sigma_w^2 = 1` while each of them
shrinks exponentially with depth.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike


def lyapunov_exponents(width: int, weight_var: ArrayLike = 1.0) -> Array:
    r"""Growth rates of the singular values of a product of Gaussian matrices.

    .. math::
        \lambda_i = \lim_{L \to \infty} \frac{1}{L} \ln s_i(W_L \cdots W_1)
            = \frac12 \left[\ln \frac{2 \sigma_w^2}{n}
            + \psi\!\left(\frac{n - i + 1}{2}\right)\right], \qquad i = 1, \dots, n

    with :math:`\psi` the digamma function. Their sum is :math:`E \ln |\det W_l|`, at any depth;
    one by one the singular values at depth `L` are off by a term of order `1 / L`.

    Args:
        width: Number `n` of rows and columns of each matrix.
        weight_var: Variance of the entries times `n`, any shape.

    Returns:
        The exponents in nats per factor, descending, shape `(*weight_var.shape, width)`; `-inf`
        where `weight_var` is zero.

    Raises:
        TypeError: If `width` is not an integer.
        ValueError: If `width` is not positive or `weight_var` is negative (under tracing the
            result is NaN instead).

    Example:
        >>> from dltheory.theory import finite_width
        >>> print(" ".join(f"{one:.4f}" for one in finite_width.lyapunov_exponents(2)))
        -0.2886 -0.9818

    Source:
        Newman (1986), The distribution of Lyapunov exponents: exact results for random matrices.
    """
    if isinstance(width, bool) or not isinstance(width, int | np.integer):
        raise TypeError(f"width is {width!r}, a {type(width).__name__}; want a positive integer")
    if width < 1:
        raise ValueError(f"width is {width}; want a positive integer")
    if not isinstance(weight_var, Tracer) and np.any(np.asarray(weight_var) < 0):
        raise ValueError(f"weight_var must be zero or more; got {weight_var}")
    weight_var = jnp.asarray(weight_var, jnp.result_type(float, weight_var))
    halves = jnp.arange(width, 0, -1, dtype=weight_var.dtype) / 2
    shape = jax.scipy.special.digamma(halves) - jnp.log(halves[0])
    logs = jnp.log(jnp.where(weight_var >= 0, weight_var, jnp.nan))
    return (logs[..., None] + shape.reshape((1,) * logs.ndim + (-1,))) / 2
