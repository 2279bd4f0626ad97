r"""Random weights and biases by variance, in the manner of `jax.nn.initializers`.

Kernels have Flax's layout `(*spatial, inputs, outputs)`, and :math:`n`, the fan-in, is the number
of terms in each pre-activation: the product of all axes but the last. Both weight ensembles have

.. math:: E\, W_{ij}^2 = \sigma_w^2 / n,

so that mean field theory reads the same ``weight_var`` :math:`= \sigma_w^2` off either.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

Initializer = Callable[..., Array]


def gaussian(weight_var: ArrayLike) -> Initializer:
    r"""Independent Gaussian weights :math:`W_{ij} \sim N(0, \sigma_w^2 / n)`.

    Args:
        weight_var: :math:`\sigma_w^2 \ge 0`.

    Returns:
        ``init(key, shape, dtype=float)`` for kernels of two or more axes.

    Raises:
        ValueError: `weight_var` is negative; from ``init``, `shape` has fewer than two axes.

    Example:
        >>> import jax
        >>> from dltheory.networks import initializers
        >>> W = initializers.gaussian(2.0)(jax.random.key(0), (100, 300))
        >>> print(f"{100 * W.var():.1f}")
        2.0
    """
    _check_variance("weight_var", weight_var)

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = float) -> Array:
        fan_in = _fan_in(shape)
        return _deviation(weight_var, fan_in, dtype) * jax.random.normal(key, shape, dtype)

    return init


def orthogonal(weight_var: ArrayLike) -> Initializer:
    r"""Weights with equal singular values, uniform over all such matrices.

    A kernel is drawn as a matrix :math:`(n, m)` of fan-in by outputs,

    .. math:: W = \sigma_w \sqrt{\max(n, m) / n}\; Q,

    where :math:`Q` has orthonormal columns (or rows, if :math:`m > n`) by Haar measure. For
    :math:`m \le n` every singular value is :math:`\sigma_w`; for :math:`m > n` it is
    :math:`\sigma_w \sqrt{m / n}`. In both cases :math:`E\, W_{ij}^2 = \sigma_w^2 / n` and the
    mean squared singular value are those of `gaussian`. A convolution kernel is orthogonal in
    this shape; the convolution itself is not.

    Args:
        weight_var: :math:`\sigma_w^2 \ge 0`.

    Returns:
        ``init(key, shape, dtype=float)`` for kernels of two or more axes.

    Raises:
        ValueError: `weight_var` is negative; from ``init``, `shape` has fewer than two axes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.networks import initializers
        >>> W = initializers.orthogonal(4.0)(jax.random.key(0), (3, 3))
        >>> bool(jnp.allclose(W @ W.T, 4 * jnp.eye(3), atol=1e-5))
        True

    Source:
        Saxe, McClelland and Ganguli (2014); sampling by QR, Mezzadri (2007).
    """
    _check_variance("weight_var", weight_var)

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = float) -> Array:
        fan_in, outputs = _fan_in(shape), shape[-1]
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        # LAPACK has no half precision.
        wide = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
        q = jax.random.orthogonal(key, fan_in, dtype=wide, m=outputs)
        scale = _deviation(weight_var, fan_in / max(fan_in, outputs, 1), wide)
        return (scale * q).astype(dtype).reshape(shape)

    return init


def normal(bias_var: ArrayLike) -> Initializer:
    r"""Independent Gaussian biases :math:`b_i \sim N(0, \sigma_b^2)`.

    Args:
        bias_var: :math:`\sigma_b^2 \ge 0`, the variance of each bias whatever the fan-in.

    Returns:
        ``init(key, shape, dtype=float)`` for any shape.

    Raises:
        ValueError: `bias_var` is negative.
    """
    _check_variance("bias_var", bias_var)

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = float) -> Array:
        return _deviation(bias_var, 1, dtype) * jax.random.normal(key, shape, dtype)

    return init


def _check_variance(name, value) -> None:
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} has shape {jnp.shape(value)}; want a scalar")
    if not isinstance(value, Tracer) and np.asarray(value) < 0:
        raise ValueError(f"{name} is {value}, but a variance is not negative; want {name} >= 0")


def _fan_in(shape) -> int:
    if len(shape) < 2:
        raise ValueError(
            f"shape is {tuple(shape)}, but a kernel has two or more axes (*spatial, inputs, "
            "outputs); for a bias use initializers.normal(bias_var)"
        )
    return math.prod(shape[:-1])


def _deviation(variance, divisor, dtype) -> Array:
    """The standard deviation; NaN where a traced variance is negative."""
    return jnp.sqrt(jnp.asarray(variance).astype(dtype) / divisor)
