r"""Traced programs opened up: loops unrolled, and every decision between two branches recorded.

Along a line a piecewise linear program is affine between its decisions: where the sides of a
comparison, the arguments of a maximum or the argument of an absolute value meet. Their margins,
recorded beside the value, tell how far the piece around a point reaches.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# How a value depends on the input: not at all, constant but for jumps, affine but for kinks.
_FIXED, _STEADY, _AFFINE = range(3)

_MOVES = {
    *("add", "add_any", "broadcast_in_dim", "concatenate", "convert_element_type", "copy"),
    *("cumsum", "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "name", "neg"),
    *("pad", "reduce_sum", "reduce_window_sum", "reshape", "rev", "select_n", "slice", "split"),
    *("squeeze", "stack", "sub", "transpose", "unstack"),
}
_PRODUCTS = {"mul", "dot_general", "conv_general_dilated"}
_COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne"}
_EXTREMES = {"max", "min", "abs", "clamp", "reduce_max", "reduce_min", "reduce_window_max"}
_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call"),
}


def unrolled(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same function with its calls opened and its loops of known length unrolled."""

    def run(x: Array) -> Array:
        closed = jax.make_jaxpr(fn)(x)
        (out,), _ = _run(closed.jaxpr, closed.consts, [x], [_FIXED], None)
        return out

    return run


def decided(fn: Callable[[Array], Array]) -> Callable[[Array], tuple[Array, Array]]:
    """The function, and beside its value the margins of all decisions, in one vector.

    Raises:
        ValueError: When it is called, if the function is not piecewise linear.
    """

    def run(t: Array) -> tuple[Array, Array]:
        closed = jax.make_jaxpr(fn)(t)
        margins: list[Array] = []
        (out,), _ = _run(closed.jaxpr, closed.consts, [t], [_AFFINE], margins)
        flat = [jnp.zeros(0, t.dtype), *(m.reshape(-1).astype(t.dtype) for m in margins)]
        return out, jnp.concatenate(flat)

    return run


def _run(jaxpr, consts, args: list, kinds: list[int], margins: list | None):
    """Evaluate a program equation by equation; margins are looked for if there is a list.

    Returns what it returns, and how each output depends on the input.
    """
    env: dict[Any, tuple[Any, int]] = {}
    env.update(zip(jaxpr.constvars, ((c, _FIXED) for c in consts), strict=True))
    env.update(zip(jaxpr.invars, zip(args, kinds, strict=True), strict=True))
    read = lambda atom: (atom.val, _FIXED) if hasattr(atom, "val") else env[atom]
    for eqn in jaxpr.eqns:
        ins, given = _split(map(read, eqn.invars))
        if eqn.primitive.name in _CALLS:
            inner = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params)
            program = getattr(inner, "jaxpr", inner), getattr(inner, "consts", ())
            outs, found = _run(*program, ins, given, margins)
        elif eqn.primitive.name == "scan":
            outs, found = _loop(eqn.params, ins, given, margins)
        else:
            kind = _FIXED if margins is None else _kind(eqn, given)
            # Its derivative is that of the function.
            stop = eqn.primitive.name == "stop_gradient"
            outs = ins if stop else eqn.primitive.bind(*ins, **eqn.params)
            outs = list(outs) if stop or eqn.primitive.multiple_results else [outs]
            if margins is not None and max(given, default=_FIXED) == _AFFINE:
                margins += _margins(eqn, ins, outs)
            found = [kind] * len(outs)
        env.update(zip(eqn.outvars, zip(outs, found, strict=True), strict=True))
    return _split(map(read, jaxpr.outvars))


def _split(pairs) -> tuple[list, list[int]]:
    values, kinds = [], []
    for value, kind in pairs:
        values.append(value)
        kinds.append(kind)
    return values, kinds


def _loop(params: dict, ins: list, kinds: list[int], margins: list | None):
    first = params["num_consts"]
    last = first + params["num_carry"]
    fixed, carry, slices = ins[:first], ins[first:last], ins[last:]
    rows, row_kinds, carry_kinds = [], [], kinds[first:last]
    order = range(params["length"])
    for step in reversed(order) if params["reverse"] else order:
        here = [x[step] for x in slices]
        now = [*kinds[:first], *carry_kinds, *kinds[last:]]
        body = params["jaxpr"].jaxpr, params["jaxpr"].consts
        outs, found = _run(*body, [*fixed, *carry, *here], now, margins)
        carry, row = outs[: last - first], outs[last - first :]
        carry_kinds = found[: last - first]
        rows.append(row)
        row_kinds.append(found[last - first :])
    rows = rows[::-1] if params["reverse"] else rows
    stacked = [jnp.stack(column) for column in zip(*rows, strict=True)]
    return [*carry, *stacked], [*carry_kinds, *map(max, zip(*row_kinds, strict=True))]


def _kind(eqn, given: list[int]) -> int:
    """How the result depends on the input."""
    name, most = eqn.primitive.name, max(given, default=_FIXED)
    if most < _AFFINE:
        return most
    if name in _COMPARISONS or name in ("sign", "argmax", "argmin"):
        return _STEADY
    if name in _EXTREMES or name == "stop_gradient":
        return _AFFINE
    rounds = name == "convert_element_type" and not jnp.issubdtype(
        eqn.outvars[0].aval.dtype, jnp.floating
    )
    affine = sum(kind == _AFFINE for kind in given)
    moved = name in _MOVES and not rounds
    scaled = (name in _PRODUCTS and affine == 1) or (name == "div" and given[1] < _AFFINE)
    if moved or scaled:
        return _AFFINE
    if name in ("cond", "while"):
        raise ValueError(
            f"f has a {name!r} that varies along the line; want a loop of known length"
        )
    raise ValueError(
        f"f is not piecewise linear: it applies {name!r} to what varies along the line"
    )


def _margins(eqn, ins: list, outs: list) -> list[Array]:
    """What changes its sign where a decision changes."""
    name = eqn.primitive.name
    if name in ("max", "min") or name in _COMPARISONS:
        return [jnp.subtract(*jnp.broadcast_arrays(*ins))]
    if name in ("abs", "sign"):
        return [ins[0]]
    if name == "clamp":
        low, x, high = jnp.broadcast_arrays(*ins)
        return [x - low, x - high]
    if name in ("reduce_max", "reduce_min"):
        return [jnp.expand_dims(outs[0], eqn.params["axes"]) - ins[0]]
    if name in ("argmax", "argmin"):
        extreme = jnp.max if name == "argmax" else jnp.min
        return [extreme(ins[0], eqn.params["axes"], keepdims=True) - ins[0]]
    return _pooled(eqn.params, ins[0], outs[0]) if name == "reduce_window_max" else []


def _pooled(params: dict, x: Array, largest: Array) -> list[Array]:
    """The largest of each window less each of its members."""
    if any(d != 1 for d in (*params["base_dilation"], *params["window_dilation"])):
        raise ValueError("f pools over dilated windows; want windows without gaps")
    low = jnp.asarray(-jnp.inf, x.dtype)
    padded = jax.lax.pad(x, low, [(before, after, 0) for before, after in params["padding"]])
    members = []
    for offset in np.ndindex(*params["window_dimensions"]):
        ends = [
            start + (size - 1) * stride + 1
            for start, size, stride in zip(
                offset, largest.shape, params["window_strides"], strict=True
            )
        ]
        member = jax.lax.slice(padded, offset, ends, params["window_strides"])
        members.append(jnp.where(member == -jnp.inf, 0, largest - member))
    return members
