"""Any Flax model as a pure function of its parameters and its input."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from flax import errors

__all__ = ["pure"]


def pure(
    model: Any,
    variables: Any = None,
    *,
    rngs: Mapping[str, jax.Array] | None = None,
    **options: Any,
) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
    """Split a Flax model into a pure function ``f(params, x)`` and its parameters.

    Nothing of the model is changed, and what a call would write (the running statistics of
    BatchNorm, the counters of random streams) is dropped: two calls of ``f`` at the same
    arguments give the same result. Keys are closed over, so dropout draws one mask for good.

    Args:
        model: a Linen module, bound or not, or an NNX module in the mode it is to be read in
            (``model.eval()`` or ``model.train()``).
        variables: what ``model.init(key, x)`` returned, for a Linen module that is not bound.
            None for an NNX module, which holds its own.
        rngs: a key for each random stream that a call draws from, by the stream's name. An NNX
            module keeps its own streams where none is given.
        **options: passed on to each call of the model, such as ``train=False``.

    Returns:
        ``(f, params)``. For Linen ``params`` is ``variables`` with all its collections; for NNX
        it is a nested dict of the arrays of all variables but the random streams.

    Raises:
        TypeError: `model` is no Flax module.
        ValueError: `variables` are missing or not wanted. From ``f``: the model drew from a
            random stream that it was not given.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import flax.linen as nn
        >>> from dltheory.networks import functional
        >>> layer = nn.Dense(2)
        >>> x = jnp.ones((3, 4))
        >>> f, params = functional.pure(layer, layer.init(jax.random.key(0), x))
        >>> f(params, x).shape
        (3, 2)
    """
    rngs = dict(rngs or {})
    if isinstance(model, nn.Module):
        return _pure_linen(model, variables, rngs, options)
    # A model of NNX exists only where its package is loaded already: no import is paid for it.
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(model, nnx.Module):
        return _pure_nnx(nnx, model, variables, rngs, options)
    raise TypeError(
        f"model has the type {type(model).__name__}; want a Linen or an NNX module. "
        "A function f(params, x) is pure already"
    )


def _pure_linen(model, variables, rngs, options):
    if model.scope is not None:
        if variables is not None:
            raise ValueError(
                "variables were given for a Linen module that is bound to its own; "
                "leave them out, or give model.unbind()[0] as the model"
            )
        model, variables = model.unbind()
    if variables is None:
        raise ValueError(
            "variables is None, but a Linen module keeps no parameters; "
            "give variables=model.init(key, x)"
        )
    # BatchNorm in training writes its statistics: allow it, and drop what is written.
    written = [name for name in variables if name != "params"]

    def f(params, x):
        try:
            y, _ = model.apply(params, x, rngs=rngs, mutable=written, **options)
        except errors.InvalidRngError as error:
            wanted = str(error).split(" (http")[0]
            raise ValueError(
                f"rngs holds {_names(rngs)}, but the model draws from another stream: {wanted}; "
                "give pure(..., rngs={name: key}), or switch the layer's randomness off"
            ) from error
        return y

    return f, variables


def _pure_nnx(nnx, model, variables, rngs, options):
    if variables is not None:
        raise ValueError(
            "variables were given for an NNX module, which holds its own; "
            "leave them out, or set them by nnx.update(model, variables)"
        )
    graph, streams, state = nnx.split(model, nnx.RngState, ...)
    # Arrays, not variables: those are references, and would follow the model's later training.
    streams, params = nnx.to_pure_dict(streams), nnx.to_pure_dict(state)
    held = {stream.tag for _, stream in nnx.iter_graph(model) if isinstance(stream, nnx.RngKey)}
    if unknown := set(rngs) - held:
        raise ValueError(
            f"rngs holds {_names(unknown)}, but the model's random streams are {_names(held)}; "
            "give keys for those, or build its layers with rngs=nnx.Rngs(...) of that name"
        )

    def f(params, x):
        # All variables are made anew inside f: NNX refuses to write one (here the counter of a
        # random stream) that was made outside the transformation that is tracing f.
        copy = nnx.merge(graph, params, streams)
        nnx.reseed(copy, **rngs)
        try:
            return copy(x, **options)
        except ValueError as error:
            if "`rngs`" not in str(error):
                raise
            raise ValueError(
                f"the model's random streams are {_names(held)}, but a layer that draws has none: "
                f"{' '.join(str(error).split())} Build the layer with rngs=nnx.Rngs(...), "
                "or call model.eval() first"
            ) from error

    return f, params


def _names(names):
    return ", ".join(map(repr, sorted(names))) or "none"
