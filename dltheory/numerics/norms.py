r"""Norms of pytrees that neither underflow nor overflow.

The textbook sum of squares is 0 in float32 for entries of 1e-23 and infinite for entries of 1e20,
though the norm itself is a number well within range. Here all entries are first divided by one
power of two.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def global_norm(tree: Any) -> Array:
    r"""Euclidean norm of all entries of a pytree together.

    .. math:: \|a\| = 2^k \sqrt{\textstyle\sum_i |2^{-k} a_i|^2}

    Its derivative is :math:`a / \|a\|`, and 0 at :math:`a = 0`.

    Args:
        tree: A pytree of real or complex floating-point arrays of any shapes.

    Returns:
        A real scalar in the widest precision among the leaves, float32 at least; 0 for a tree
        without entries, NaN if any entry is NaN or infinite. Subnormal entries count as 0, as XLA
        flushes them.

    Raises:
        TypeError: A leaf holds integers or booleans.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics import norms
        >>> print(norms.global_norm({"w": jnp.array([3e-30]), "b": jnp.array([[4e-30]])}))
        5e-30

    Source:
        Blue (1978), with one scale for all entries in place of three accumulators.
    """
    unit, squares = _scaled_squares(tree)
    zero = squares == 0
    return jnp.where(zero, 0, unit * jnp.sqrt(jnp.where(zero, 1, squares)))


def log_global_norm(tree: Any) -> Array:
    r"""Natural logarithm of the Euclidean norm of a pytree, :math:`\log \|a\|`.

    Args:
        tree: A pytree of real or complex floating-point arrays of any shapes.

    Returns:
        A real scalar in the widest precision among the leaves, float32 at least; ``-inf`` where
        every entry is 0 (with derivative 0) or there is none, NaN if any is NaN or infinite.

    Raises:
        TypeError: A leaf holds integers or booleans.
    """
    unit, squares = _scaled_squares(tree)
    zero = squares == 0
    return jnp.where(zero, -jnp.inf, jnp.log(unit) + jnp.log(jnp.where(zero, 1, squares)) / 2)


def _scaled_squares(tree: Any) -> tuple[Array, Array]:
    """A power of two, and the sum of the squares of all entries divided by it.

    One of three constants brings the largest entry near enough to 1. The reciprocal of that entry
    itself would not do: where it is subnormal XLA flushes it, and the norm with it, to 0.
    """
    parts = _real_parts(tree)
    dtype = jnp.result_type(float) if not parts else parts[0].dtype
    largest = jnp.zeros((), dtype)
    for part in parts:
        largest = jnp.maximum(largest, jnp.max(jnp.abs(part), initial=0))
    exponent = jnp.finfo(dtype).maxexp * 5 // 8
    huge, tiny = jnp.asarray(2.0**exponent, dtype), jnp.asarray(2.0**-exponent, dtype)
    one = jnp.ones((), dtype)
    unit = jnp.where(largest > huge**0.5, huge, jnp.where(largest < tiny**0.5, tiny, one))
    unit = jnp.where(jnp.isfinite(largest), unit, jnp.nan)
    # The norm does not depend on the unit, which is a step function of the entries.
    unit = lax.stop_gradient(unit)
    squares = jnp.zeros((), dtype)
    for part in parts:
        squares = squares + jnp.sum((part / unit) ** 2)
    return unit, squares


def _real_parts(tree: Any) -> list[Array]:
    """All leaves as real arrays of one dtype; a complex one gives two."""
    parts = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        leaf = jnp.asarray(leaf)
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(
                f"tree{jax.tree_util.keystr(path)} holds {leaf.dtype}; want floating-point or "
                "complex entries: cast it, or leave it out"
            )
        parts += [leaf.real, leaf.imag] if jnp.iscomplexobj(leaf) else [leaf]
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(jnp.float32, *(part.dtype for part in parts))
    return [part.astype(dtype) for part in parts]
