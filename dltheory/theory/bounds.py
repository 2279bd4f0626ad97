"""What every bound on a generalisation error returns, and which parameters it takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

_Range = tuple[str, Callable[[Any], Any]]
_UNIT: _Range = "in [0, 1]", lambda a: (a >= 0) & (a <= 1)
_PROPER: _Range = "in (0, 1)", lambda a: (a > 0) & (a < 1)
_SOME: _Range = "one or more", lambda a: a >= 1
_RANGES: dict[str, _Range] = {
    "q": _UNIT,
    "p": _UNIT,
    "risk": _UNIT,
    "margin_risk": _UNIT,
    "delta": _PROPER,
    "sampling_delta": _PROPER,
    "n": _SOME,
    "samples": _SOME,
    "margin": ("more than zero", lambda a: a > 0),
}
_OTHER: _Range = "zero or more", lambda a: a >= 0


class Bound(NamedTuple):
    """A bound on a mean loss between 0 and 1.

    Attributes:
        value: The bound.
        vacuous: Whether it says nothing: whether its value is one or more.
    """

    value: Array
    vacuous: Array


def bound(value: Array) -> Bound:
    """A value with its verdict.

    Args:
        value: The bound.

    Returns:
        `Bound`; what is NaN is vacuous.
    """
    return Bound(value, ~(value < 1))


def inputs(**values: ArrayLike) -> list[Array]:
    """Parameters of a bound as arrays of one dtype, NaN where they are out of range.

    Args:
        **values: Probabilities `q`, `p`, `risk` and `margin_risk`, which may be 0 and 1; `delta`
            and `sampling_delta`, which may not; numbers `n` of examples and `samples`; a `margin`;
            and others, zero or more.

    Returns:
        The arrays, in order.

    Raises:
        ValueError: If a value that is not traced is out of range.
    """
    dtype = jnp.result_type(float, *values.values())
    arrays = []
    for name, value in values.items():
        array = jnp.asarray(value, dtype)
        wanted, legal = _RANGES.get(name, _OTHER)
        if not isinstance(value, Tracer):
            known = np.asarray(value)
            refuse(~legal(known) & ~np.isnan(known), name, value, wanted)
        arrays.append(jnp.where(legal(array), array, jnp.nan))
    return arrays


def refuse(wrong: ArrayLike, name: str, value: ArrayLike, wanted: str) -> None:
    """Raise where a value is known to be out of range.

    Args:
        wrong: Where it is; nothing is raised if this is traced.
        name: What the caller calls it.
        value: The value.
        wanted: What it must be.

    Raises:
        ValueError: If it is wrong anywhere.
    """
    if not isinstance(wrong, Tracer) and np.any(wrong):
        raise ValueError(f"{name} must be {wanted}; got {value}")
