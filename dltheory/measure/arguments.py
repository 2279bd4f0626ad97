"""What can be differentiated: checks at the edge of the functions that take gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.tree_util import keystr, tree_flatten_with_path


def names(name: str, tree: Any) -> list[str]:
    """What to call the leaves of a tree, such as `params['w']`."""
    return [name + keystr(path) for path, _ in tree_flatten_with_path(tree)[0]]


def refuse_integers(name: str, tree: Any) -> None:
    """Raise TypeError, naming the leaf, unless all leaves are arrays of real floats."""
    for text, leaf in zip(names(name, tree), jax.tree.leaves(tree), strict=True):
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(f"{text} is {dtype}, want real floats: pass its two parts instead.")
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"{text} is {dtype}, want real floats: close over what has no derivative."
            )


def scalar(value: Any, name: str = "loss(y)") -> Array:
    """A loss as an array; raises TypeError, naming it, unless it is a real scalar."""
    value = jnp.asarray(value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"{name} is {value.dtype}{list(value.shape)}, want a real scalar: end it with a mean "
            "or a sum."
        )
    return value


def refuse_nan(value: Array, name: str = "loss(f(params, x))") -> Array:
    """The value of a loss; raises ValueError where it is known to be NaN or infinite."""
    if not isinstance(value, Tracer) and not np.isfinite(value):
        raise ValueError(
            f"{name} is {value}, so it has no derivatives: look for the layer where it begins with "
            "sites.values(f, params, x)."
        )
    return value


def refuse_ignored(name: str, fn: Callable, tree: Any, *rest: Any) -> None:
    """Raise ValueError, naming the leaves, if `fn(tree, *rest)` does not read some of the tree."""
    jaxpr = jax.make_jaxpr(fn)(tree, *rest).jaxpr
    read = _read(jaxpr)[: len(jax.tree.leaves(tree))]
    ignored = [text for text, one in zip(names(name, tree), read, strict=True) if not one]
    if ignored:
        raise ValueError(
            f"{', '.join(ignored)} has no influence on the result, so all its derivatives are zero:"
            " pass what is read alone, and close over the rest."
        )


def _read(jaxpr) -> list[bool]:
    """Of which inputs the outputs of a jaxpr make use."""
    needed = {id(v) for v in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if not any(id(v) in needed for v in equation.outvars):
            continue
        inner = [p for p in equation.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
        inner = [getattr(p, "jaxpr", p) for p in inner]
        same = len(inner) == 1 and len(inner[0].invars) == len(equation.invars)
        # A loop feeds its outputs back to its inputs: all that it takes counts as read.
        loops = equation.primitive.name in ("scan", "while")
        read = _read(inner[0]) if same and not loops else [True] * len(equation.invars)
        needed |= {id(v) for v, one in zip(equation.invars, read, strict=True) if one}
    return [id(v) in needed for v in jaxpr.invars]
