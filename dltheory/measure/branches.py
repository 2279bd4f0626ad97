r"""Traced programs opened up, and cut where they decide between branches.

A piecewise linear program is affine but for its decisions: which of two numbers is larger, and
what the sign of one is. Between two rounds of decisions it takes a region of its input, with an
affine map for each of its values, to affine maps again, and the margins of the decisions that come
next say along which lines the region has to be cut before.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# How a value depends on the input: not at all, constant but for jumps, affine but for kinks.
_FIXED, _STEADY, _AFFINE = range(3)

_SUMS = {"add", "add_any", "sub"}
_MOVES = _SUMS | {
    *("broadcast_in_dim", "concatenate", "convert_element_type", "copy", "cumsum"),
    *("dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "name", "neg", "pad"),
    *("reduce_sum", "reduce_window_sum", "reshape", "rev", "select_n", "slice", "split"),
    *("squeeze", "stack", "transpose", "unstack"),
}
_PRODUCTS = {"mul", "dot_general", "conv_general_dilated"}
_COMPARISONS = {"gt", "ge", "lt", "le", "eq", "ne"}
_DECISIONS = _COMPARISONS | {"max", "min", "abs", "sign"}
_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"),
    *("custom_jvp_call", "custom_vjp_call"),
}


class Program(NamedTuple):
    """A piecewise linear program in stages, each between two rounds of decisions.

    Attributes:
        fixed: `fixed(params)`, the values that do not depend on the input.
        stages: Functions `stage(fixed, live, points) -> (live, margins)` on a batch of regions.
            Live values are arrays over regions: affine maps `(regions, 1 + d, ...)`, which begin
            with the constant, or values `(regions, ...)` that do not vary within a region. The
            first stage takes the map of the input, the last returns that of the output. `points`,
            shape `(regions, d)`, lie inside. The margins, `(regions, 1 + d, count)`, are affine
            maps that change their signs where a decision of the next stage changes.
    """

    fixed: Callable
    stages: tuple[Callable, ...]


def unrolled(fn: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same function with its calls opened and its loops of known length unrolled."""

    def run(x: Array) -> Array:
        closed = jax.make_jaxpr(fn)(x)
        (out,) = _opened(closed.jaxpr, closed.consts, [x], {})
        return out

    return run


def staged(f: Callable, params: Any, x: Any) -> Program:
    """Cut `f(params, x) -> y` into stages.

    Args:
        f: The program.
        params: Its parameters, or their shapes and dtypes.
        x: Its input, or its shape and dtype.

    Returns:
        The program, whose functions are compiled once for each number of regions.

    Raises:
        ValueError: If it is not piecewise linear in `x`.
    """
    shape = jax.eval_shape(lambda x: x, x)

    def opened(leaves, x):
        closed = jax.make_jaxpr(f)(jax.tree.unflatten(tree, leaves), x)
        return _opened(closed.jaxpr, closed.consts, [*leaves, x], _TOURNAMENTS)[0]

    leaves, tree = jax.tree.flatten(params)
    closed = jax.make_jaxpr(opened)(leaves, shape)
    jaxpr = closed.jaxpr
    *constant, moving = jaxpr.invars
    kinds = {**dict.fromkeys([*jaxpr.constvars, *constant], _FIXED), moving: _AFFINE}
    # The stage that makes a value.
    levels = dict.fromkeys(kinds, 0)
    early, by_level = [], [[]]
    for eqn in jaxpr.eqns:
        sources = [atom for atom in eqn.invars if not hasattr(atom, "val")]
        kind = _kind(eqn, [_FIXED if hasattr(a, "val") else kinds[a] for a in eqn.invars])
        level = max((levels[v] for v in sources), default=0)
        if kind == _FIXED:
            early.append(eqn)
        else:
            level += _decides(eqn, kinds)
            by_level += [[] for _ in range(level + 1 - len(by_level))]
            by_level[level].append(eqn)
        kinds.update(dict.fromkeys(eqn.outvars, kind))
        levels.update(dict.fromkeys(eqn.outvars, level))

    (out,) = jaxpr.outvars
    wanted, lives = {out: None}, []
    for eqns in reversed(by_level):
        wanted |= {v: None for eqn in eqns for v in eqn.invars if not hasattr(v, "val")}
        wanted = {v: None for v in wanted if not any(v in eqn.outvars for eqn in eqns)}
        lives.insert(0, [v for v in wanted if kinds[v] != _FIXED])
    kept = [v for v in wanted if kinds[v] == _FIXED]
    lives = [[moving], *lives[1:], [out]]

    def fixed(params):
        given = [*closed.consts, *jax.tree.leaves(params)]
        env = dict(zip([*jaxpr.constvars, *constant], given, strict=True))
        for eqn in early:
            outs = eqn.primitive.bind(*(_read(env, a) for a in eqn.invars), **eqn.params)
            env.update(zip(eqn.outvars, _listed(eqn, outs), strict=True))
        return [env[v] for v in kept]

    stages = [
        _stage(kinds, kept, lives[k : k + 2], eqns, by_level[k + 1 : k + 2])
        for k, eqns in enumerate(by_level)
    ]
    return Program(jax.jit(fixed), tuple(stages))


def _stage(kinds, kept, lives, eqns, following):
    before, after = lives
    coming = [eqn for eqns in following for eqn in eqns if _decides(eqn, kinds)]
    kind = lambda atom: _FIXED if hasattr(atom, "val") else kinds[atom]

    def one(fixed, live, point):
        env = dict(zip([*kept, *before], [*fixed, *live], strict=True))
        size = 1 + len(point)

        def maps(atom):
            value = _read(env, atom)
            if kind(atom) == _AFFINE:
                return value
            value = jnp.asarray(value, atom.aval.dtype)
            rest = jnp.zeros((size - 1, *value.shape), value.dtype)
            return jnp.concatenate([value[None], rest])

        def here(atom):
            value = _read(env, atom)
            if kind(atom) == _AFFINE:
                return value[0] + jnp.tensordot(point, value[1:], 1)
            return value

        for eqn in eqns:
            if max(map(kind, eqn.invars)) < _AFFINE:
                outs = eqn.primitive.bind(*(_read(env, a) for a in eqn.invars), **eqn.params)
            elif _decides(eqn, kinds):
                outs = _decided(eqn, [here(a) for a in eqn.invars], maps)
            else:
                outs = _moved(eqn, [kind(a) for a in eqn.invars], lambda a: _read(env, a), maps)
            env.update(zip(eqn.outvars, _listed(eqn, outs), strict=True))
        margins = [_margin(eqn, maps).reshape(size, -1) for eqn in coming]
        margins = jnp.concatenate([jnp.zeros((size, 0), point.dtype), *margins], 1)
        return [maps(v) if not following else env[v] for v in after], margins

    return jax.jit(jax.vmap(one, in_axes=(None, 0, 0)))


def _listed(eqn, outs) -> list:
    return list(outs) if eqn.primitive.multiple_results else [outs]


def _read(env: dict, atom):
    return atom.val if hasattr(atom, "val") else env[atom]


def _decides(eqn, kinds: dict) -> bool:
    """Whether what it does depends on the input."""
    varies = any(not hasattr(a, "val") and kinds[a] == _AFFINE for a in eqn.invars)
    return varies and eqn.primitive.name in _DECISIONS


def _margin(eqn, maps: Callable) -> Array:
    """What changes its sign where the decision changes, as an affine map."""
    a, *b = _alike(eqn, [maps(atom) for atom in eqn.invars])
    return a - b[0] if b else a


def _decided(eqn, values: list, maps: Callable) -> Array:
    """The result where the decision is made: a choice among the affine maps of its arguments."""
    name = eqn.primitive.name
    if name in _COMPARISONS or name == "sign":
        return eqn.primitive.bind(*values, **eqn.params)
    a, *b = _alike(eqn, [maps(atom) for atom in eqn.invars])
    if name == "abs":
        return jnp.where((values[0] >= 0)[None], a, -a)
    first = values[0] >= values[1] if name == "max" else values[0] <= values[1]
    # Comparing is no way to see what is not a number.
    lost = jnp.isnan(values[0]) | jnp.isnan(values[1])
    return jnp.where(lost[None], jnp.nan, jnp.where(first[None], a, b[0]))


def _alike(eqn, maps: list[Array]) -> list[Array]:
    """Affine maps of scalars beside those of arrays, in the shape of the result."""
    shape = eqn.outvars[0].aval.shape
    full = lambda a: a.reshape(a.shape[:1] + (1,) * len(shape)) if a.ndim == 1 else a
    return [jnp.broadcast_to(full(a), (len(a), *shape)) for a in maps]


def _moved(eqn, kinds: list[int], read: Callable, maps: Callable):
    """The result of what is linear: in all of its numbers, or in one factor for given others."""
    bind = functools.partial(eqn.primitive.bind, **eqn.params)
    if eqn.primitive.name in _PRODUCTS or eqn.primitive.name == "div":
        axes = [0 if kind == _AFFINE else None for kind in kinds]
        return jax.vmap(bind, in_axes=axes)(*map(read, eqn.invars))
    number = [jnp.issubdtype(atom.aval.dtype, jnp.floating) for atom in eqn.invars]
    axes = [0 if floating else None for floating in number]
    args = [
        maps(a) if floating else read(a) for a, floating in zip(eqn.invars, number, strict=True)
    ]
    return jax.vmap(bind, in_axes=axes)(
        *(_alike(eqn, args) if eqn.primitive.name in _SUMS else args)
    )


def _kind(eqn, given: list[int]) -> int:
    """How the result depends on the input."""
    name, most = eqn.primitive.name, max(given, default=_FIXED)
    if most < _AFFINE:
        return most
    if name in _COMPARISONS or name == "sign":
        return _STEADY
    rounds = name == "convert_element_type" and not jnp.issubdtype(
        eqn.outvars[0].aval.dtype, jnp.floating
    )
    affine = sum(kind == _AFFINE for kind in given)
    moved = name in _MOVES and not rounds
    scaled = (name in _PRODUCTS and affine == 1) or (name == "div" and given[1] < _AFFINE)
    if moved or scaled or name in _DECISIONS:
        return _AFFINE
    if name in ("cond", "while"):
        raise ValueError(
            f"f has a {name!r} that varies with the input; want a loop of known length"
        )
    raise ValueError(
        f"f is not piecewise linear: it applies {name!r} to what varies with the input"
    )


def _opened(jaxpr, consts, args: list, rewrites: dict[str, Callable]) -> list:
    """Evaluate a program equation by equation, calls, loops and whatever is rewritten opened."""
    env: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        ins = [_read(env, atom) for atom in eqn.invars]
        name = eqn.primitive.name
        if name in _CALLS:
            inner = next(eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params)
            outs = _opened(
                getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), ins, rewrites
            )
        elif name == "scan":
            outs = _loop(eqn.params, ins, rewrites)
        elif name == "stop_gradient":
            outs = ins
        elif name in rewrites:
            outs = [rewrites[name](*ins, **eqn.params)]
        else:
            outs = _listed(eqn, eqn.primitive.bind(*ins, **eqn.params))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [_read(env, atom) for atom in jaxpr.outvars]


def _loop(params: dict, ins: list, rewrites: dict[str, Callable]) -> list:
    first = params["num_consts"]
    last = first + params["num_carry"]
    fixed, carry, slices = ins[:first], ins[first:last], ins[last:]
    rows = []
    order = range(params["length"])
    body = params["jaxpr"].jaxpr, params["jaxpr"].consts
    for step in reversed(order) if params["reverse"] else order:
        here = [lax.index_in_dim(x, step, keepdims=False) for x in slices]
        outs = _opened(*body, [*fixed, *carry, *here], rewrites)
        carry = outs[: last - first]
        rows.append(outs[last - first :])
    rows = rows[::-1] if params["reverse"] else rows
    stacked = [lax.concatenate([r[None] for r in column], 0) for column in zip(*rows, strict=True)]
    return [*carry, *stacked]


def _paired(choose: Callable, players: Any) -> Any:
    """The winner of a tournament among the rows of arrays; the first of several that are equal."""
    part = lambda begin, end, step=1: jax.tree.map(
        lambda x: lax.slice_in_dim(x, begin, end, step), players
    )
    while (size := len(jax.tree.leaves(players)[0])) > 1:
        even = size // 2 * 2
        won = choose(part(0, even, 2), part(1, even, 2))
        players = jax.tree.map(lambda *x: lax.concatenate(x, 0), won, part(even, size))
    return jax.tree.map(lambda x: lax.index_in_dim(x, 0, keepdims=False), players)


def _in_front(x: Array, axes) -> Array:
    """The numbers along some axes as rows."""
    rest = [axis for axis in range(x.ndim) if axis not in axes]
    size = math.prod(x.shape[axis] for axis in axes)
    return lax.reshape(lax.transpose(x, [*axes, *rest]), (size, *(x.shape[axis] for axis in rest)))


def _largest(x: Array, *, axes, **_) -> Array:
    return _paired(lax.max, _in_front(x, axes))


def _least(x: Array, *, axes, **_) -> Array:
    return _paired(lax.min, _in_front(x, axes))


def _where(compare: Callable, x: Array, *, axes, index_dtype) -> Array:
    rows = _in_front(x, axes)
    places = lax.broadcasted_iota(index_dtype, rows.shape, 0)

    def choose(a, b):
        first = compare(a[0], b[0])
        return tuple(lax.select(first, *pair) for pair in zip(a, b, strict=True))

    return _paired(choose, (rows, places))[1]


def _pooled(x: Array, **params) -> Array:
    """The largest of each window."""
    if any(d != 1 for d in (*params["base_dilation"], *params["window_dilation"])):
        raise ValueError("f pools over dilated windows; want windows without gaps")
    low, size, strides = -jnp.inf, params["window_dimensions"], params["window_strides"]
    padding = [(before, after, 0) for before, after in params["padding"]]
    padded = lax.pad(x, jnp.asarray(low, x.dtype), padding)
    members = []
    for offset in np.ndindex(*size):
        ends = [
            full - width + 1 + start
            for full, width, start in zip(padded.shape, size, offset, strict=True)
        ]
        members.append(lax.slice(padded, offset, ends, strides)[None])
    return _paired(lax.max, lax.concatenate(members, 0))


# Choices among many are made in pairs, whose margins are known before they are made.
_TOURNAMENTS = {
    "reduce_max": _largest,
    "reduce_min": _least,
    "argmax": functools.partial(_where, lax.ge),
    "argmin": functools.partial(_where, lax.le),
    "reduce_window_max": _pooled,
    "clamp": lambda low, x, high: lax.min(
        lax.max(x, jnp.broadcast_to(low, x.shape)), jnp.broadcast_to(high, x.shape)
    ),
}
