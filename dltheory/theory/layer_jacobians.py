r"""The local factors of the chain rule whose spectra are known: softmax and normalization."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.theory.parameters import checked


def softmax_eigenvalues(z: Array) -> Array:
    r"""Eigenvalues of the Jacobian of softmax.

    .. math:: J = \operatorname{diag}(p) - p p^\top, \qquad 0 = \lambda_1 \le \dots \le
        \lambda_n \le \tfrac12

    It is symmetric and sends equal shifts of all logits to zero.

    Args:
        z: Logits, shape `(..., n)`.

    Returns:
        The eigenvalues, shape `(..., n)`, ascending.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import layer_jacobians
        >>> print(f"{layer_jacobians.softmax_eigenvalues(jnp.zeros(2))[-1]:.2f}")
        0.50
    """
    p = jax.nn.softmax(jnp.asarray(z), axis=-1)
    diagonal = jnp.eye(p.shape[-1], dtype=p.dtype) * p[..., None]
    # Rounding may leave the smallest one a little below zero, where it cannot be.
    return jnp.maximum(jnp.linalg.eigvalsh(diagonal - p[..., None] * p[..., None, :]), 0)


def layer_norm_singular_values(h: Array, epsilon: ArrayLike = 0.0) -> Array:
    r"""Singular values of the Jacobian of layer normalization, without scale and bias.

    .. math::
        J = \frac1s \Big(I - \frac{1}{d} \mathbf 1 \mathbf 1^\top
            - \frac{1}{d} \hat h \hat h^\top\Big), \qquad
        s = \sqrt{\sigma^2 + \epsilon}, \quad \hat h = (h - \mu) / s

    has :math:`1/s` with multiplicity :math:`d - 2`, then :math:`\epsilon / s^3`, then 0: it forgets
    the mean, and the length too where :math:`\epsilon = 0`.

    Args:
        h: Pre-activations, shape `(..., d)` with `d` at least 2.
        epsilon: What is added to the variance.

    Returns:
        The singular values, shape `(..., d)`, descending.

    Raises:
        ValueError: If there are fewer than two features, or `epsilon` is negative.

    Source: Ba, Kiros and Hinton (2016) for the layer.
    """
    h = jnp.asarray(h)
    if h.ndim < 1 or h.shape[-1] < 2:
        raise ValueError(f"h has shape {h.shape}; want (..., d) with d of 2 or more")
    epsilon = checked(epsilon=epsilon)[0].astype(h.dtype)
    scale = jnp.sqrt(jnp.var(h, axis=-1) + epsilon)
    ones = jnp.broadcast_to(1 / scale[..., None], (*scale.shape, h.shape[-1] - 2))
    last = jnp.stack([epsilon / scale**3, jnp.zeros_like(scale)], axis=-1)
    return jnp.concatenate([ones, last], axis=-1)
