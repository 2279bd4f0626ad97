"""The parameters that theory takes: raise where they are known to be illegal, NaN where traced."""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike


def checked(**values: ArrayLike) -> list[Array]:
    """Parameters as arrays of one floating dtype, NaN where they are out of range.

    Args:
        **values: Variances, which are zero or more, and `keep`, a probability above zero.

    Returns:
        The arrays, in order.

    Raises:
        ValueError: If a value that is not traced is out of range.
    """
    dtype = jnp.result_type(float, *values.values())
    arrays = []
    for name, value in values.items():
        array, bound = jnp.asarray(value, dtype), 1 if name == "keep" else jnp.inf
        wanted = "in (0, 1]" if name == "keep" else "zero or more"
        if not isinstance(value, Tracer):
            known = np.asarray(value)
            if np.any((known < 0) | (known > bound) | ((known == 0) & (name == "keep"))):
                raise ValueError(f"{name} must be {wanted}; got {value}")
        arrays.append(jnp.where((array >= 0) & (array <= bound), array, jnp.nan))
    return arrays


def refuse_missing(result: Array, given: tuple[ArrayLike, ...], text: str) -> None:
    """Raise where a result is NaN though what was given is not, unless something is traced.

    Args:
        result: What was found.
        given: What it was found from.
        text: What to say.

    Raises:
        ValueError: With that text.
    """
    traced = any(isinstance(x, Tracer) for x in (result, *given))
    if not traced and np.any(np.isnan(result)) and not any(np.any(np.isnan(x)) for x in given):
        raise ValueError(text)


def check_count(name: str, value: int) -> None:
    """Refuse what is no positive integer.

    Args:
        name: What the caller calls it.
        value: The count.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is below one.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is {value!r}, a {type(value).__name__}; want a positive integer")
    if value < 1:
        raise ValueError(f"{name} is {value}; want a positive integer")


def check_choice(name: str, value: str, wanted: tuple[str, ...]) -> None:
    """Refuse what is not among the names wanted.

    Args:
        name: What the caller calls it.
        value: The choice.
        wanted: All there are.

    Raises:
        ValueError: If it is none of them.
    """
    if value not in wanted:
        raise ValueError(f"{name} is {value!r}; want one of {', '.join(wanted)}")
