"""Singular values of dense matrices, without their vectors."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def singular_values(a: ArrayLike) -> Array:
    r"""All singular values of each matrix of a stack.

    The error is a small multiple of :math:`\epsilon\, s_{max}`: a value below about
    :math:`n\, \epsilon\, s_{max}` is rounding. The derivative :math:`ds_i = u_i^* \, dA\, v_i`
    is finite everywhere. Where values coincide (at an orthogonal matrix) those :math:`ds_i` depend
    on an arbitrary basis, but every smooth symmetric function of the values has its exact gradient;
    second derivatives need distinct values.

    Args:
        a: Real or complex floating-point matrices, shape ``(..., m, n)``.

    Returns:
        Shape ``(..., min(m, n))``, descending; float32 for half precision. All NaN for a matrix
        with an entry that is NaN or infinite, whatever its neighbours in the stack.

    Raises:
        TypeError: `a` holds integers or booleans.
        ValueError: `a` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics.singular_values import singular_values
        >>> singular_values(jnp.array([[0.0, 2.0], [3.0, 0.0]]))
        Array([3., 2.], dtype=float32)
    """
    a = jnp.asarray(a)
    if a.ndim < 2:
        raise ValueError(f"a has shape {a.shape}; want matrices, (..., m, n)")
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        raise TypeError(f"a holds {a.dtype}; want a floating-point or complex dtype: cast it first")
    if jnp.finfo(a.dtype).bits < 32:
        a = a.astype(jnp.float32)
    if a.size == 0:
        return jnp.zeros((*a.shape[:-2], min(a.shape[-2:])), a.real.dtype)
    finite = jnp.all(jnp.isfinite(a), axis=(-2, -1), keepdims=True)
    # No backend promises what it does with NaN, so a bad matrix becomes zeros; the sum brings the
    # NaN back, into the derivative too.
    s = jnp.linalg.svd(jnp.where(finite, a, 0), compute_uv=False)
    spoilt = a.real * jnp.where(finite, 0, jnp.nan).astype(s.dtype)
    return s + jnp.sum(spoilt, axis=(-2, -1))[..., None]
