"""Lanczos' recurrence: a symmetric map as seen from one vector."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax


def tridiagonal(linear_map: Callable, start: Array, steps: int) -> tuple[Array, Array]:
    r"""The tridiagonal matrix of a symmetric map in the Krylov space of a vector.

    .. math:: S q_i = \beta_{i-1} q_{i-1} + \alpha_i q_i + \beta_i q_{i+1}, \qquad
        q_1 = \frac{v}{\|v\|}

    Each vector is made orthogonal to all before it. They are kept as rows, which costs one tenth of
    what columns would. That the map is symmetric is not checked.

    Args:
        linear_map: The map, linear in its one argument, a vector.
        start: The vector :math:`v`, shape `(n,)`, not zero.
        steps: Number of products with the map, at most `n`.

    Returns:
        The diagonal :math:`\alpha`, shape `(steps,)`, and what is beside it, :math:`\beta`, shape
        `(steps - 1,)`. Where the space is invariant, :math:`\beta` is zero or rounding; what
        follows then has no meaning, and is NaN after an exact zero.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics import lanczos
        >>> diagonal, beside = lanczos.tridiagonal(lambda v: v * jnp.arange(2.0), jnp.ones(2), 2)
        >>> print(jnp.round(diagonal, 4), jnp.round(beside, 4))
        [0.5 0.5] [0.5]

    Source: Lanczos (1950); Golub and Van Loan (2013), Matrix computations, chapter 10.
    """

    def step(state: tuple, index: Array) -> tuple[tuple, tuple[Array, Array]]:
        rows, vector, previous, length = state
        vector = vector / length
        rows = lax.dynamic_update_index_in_dim(rows, vector, index, axis=0)
        image = linear_map(vector)
        height = vector @ image
        image = image - height * vector - length * previous
        # What the three terms leave is rounding, so that one pass over all vectors is enough.
        image = image - (rows @ image) @ rows
        after = jnp.sqrt(image @ image)
        return (rows, image, vector, after), (height, after)

    rows = jnp.zeros((steps, start.size), start.dtype)
    first = (rows, start, jnp.zeros_like(start), jnp.sqrt(start @ start))
    diagonal, beside = lax.scan(step, first, jnp.arange(steps))[1]
    return diagonal, beside[:-1]
