"""The rules that say what a layer of a traced program is, and what it is called.

* An equation that mixes a value depending on `x` with one depending only on parameters *touches*
  a layer. A contraction (dot, convolution, gather) opens an occurrence. Any other touch joins the
  latest occurrence that it reaches, if it reaches it through arithmetic and reshapes alone, its
  modules are among that occurrence's and its leaves are new there; else it opens one. The last
  touch is the layer's output. Equations that do not reach the output are ignored.
* A leaf's module is its nearest enclosing container that is no list, variable collections
  stripped. A layer is named by its module where that is a leaf module with one opening leaf, else
  by the opening leaf (`Block_0/alpha`, `W1`); several join by `+` under what they share.
* A custom-rule call, `cond` or `while` that mixes parameters with `x` is one closed layer.
* `jax.ad_checkpoint.checkpoint_name(h, "name")` marks a further layer.
* Where branches meet again after layers that are no cuts, the first value that every derivative
  path crosses is the layer `<common module>/join`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import primitives
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from dltheory.networks import program
from dltheory.networks.program import SMOOTH, Entry, Path, Tape, X

_CONTRACTIONS = frozenset({"dot_general", "conv_general_dilated", "gather", "ragged_dot_general"})
_ARITHMETIC = frozenset(
    {"add", "sub", "mul", "div", "neg", "add_any", "reshape", "broadcast_in_dim", "transpose"}
    | {"squeeze", "expand_dims", "copy", "convert_element_type", "reduce_precision"}
)
_CLOSED = frozenset({"custom_jvp_call", "custom_vjp_call", "cond", "while"})

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Layer:
    """A site of a program, or a stack of sites with one name in a scan.

    Attributes:
        name: The name of its module or parameter.
        occurrence: 0, or how many earlier layers carry the same name.
        shape: Shape of one value of the stack.
        dtype: Dtype of its values.
        loops: Per enclosing scan: its place, its length, whether it runs backwards.
        is_cut: Whether every derivative path from `x` to the output crosses its value.
        is_output: Whether its (last) value is the model's output.
        leaves: Numbers of the parameter leaves it holds; none for a join or a marked value.
        hidden: Names inside it that are no sites, because it is closed.
        place: Where its value stands in the program.
        out: Which output of the equation at that place it is.
    """

    name: str
    occurrence: int
    shape: tuple[int, ...]
    dtype: Any
    loops: tuple[tuple[Path, int, bool], ...]
    is_cut: bool
    is_output: bool
    leaves: frozenset[int]
    hidden: frozenset[str]
    place: Path
    out: int

    @property
    def text(self) -> str:
        """Name and occurrence, the key of taps and values: `Dense_0`, `shared#1`."""
        return text(self.name, self.occurrence)

    @property
    def lengths(self) -> tuple[int, ...]:
        """The leading axes of the stacked value: one a scan, none outside scans."""
        return tuple(length for _, length, _ in self.loops)


def text(name: str, occurrence: int) -> str:
    """The text of a name and its occurrence: `shared`, `shared#1`."""
    return f"{name}#{occurrence}" if occurrence else name


@dataclass
class _Occurrence:
    """A layer while it is being found."""

    opener: frozenset[int]
    leaves: frozenset[int]
    entry: Entry
    out: int
    tape: Tape
    loops: tuple[tuple[Path, int, bool], ...]
    name: str | None = None
    closed: bool = False

    @property
    def value(self) -> int:
        return self.entry.outs[self.out]

    @property
    def order(self) -> tuple[float, ...]:
        # A scan's own output comes after everything in its body.
        return (*self.entry.path, float("inf"))


def find(jaxpr: core.Jaxpr, params: Any) -> tuple[tuple[Layer, ...], int]:
    """The layers of a program in run order, and the size of its largest value.

    Args:
        jaxpr: The traced program of `f(params, x)`; its last argument is `x`, its only result `y`.
        params: The pytree of parameters, for the names.

    Returns:
        The layers, none where no parameter ever meets `x`; and the number of elements of the
        largest value that depends on `x`.
    """
    keys, modules = _names(params)
    tape = program.flatten(jaxpr)
    given: list[program.Tokens] = [frozenset()] * len(jaxpr.constvars)
    given += [frozenset({leaf}) for leaf in range(len(keys))]
    program.spread(tape, [*given, frozenset({X, SMOOTH})])
    program.want(tape, [frozenset({X, SMOOTH})])
    crossings = program.cuts(tape, tape.invars[-1], tape.outvars[0])

    found = _occurrences(tape, modules, ())
    found += _joins(tape, {one.entry.path: one for one in found}, crossings, modules, ())[0]
    found.sort(key=lambda one: one.order)
    output = _origin(tape, tape.outvars[0])
    _give_names(found, keys, modules)

    counts: dict[str, int] = {}
    layers = []
    for one in found:
        assert one.name is not None
        place, aval = (one.entry.path, one.out), one.tape.avals[one.value]
        hidden = frozenset(
            "/".join(keys[leaf][:end])
            for leaf in (one.leaves if one.closed else ())
            for end in range(1, len(keys[leaf]) + 1)
        )
        layers.append(
            Layer(
                name=one.name,
                occurrence=counts.get(one.name, 0),
                shape=tuple(aval.shape),
                dtype=aval.dtype,
                loops=one.loops,
                is_cut=place in crossings,
                is_output=place == output,
                leaves=one.leaves,
                hidden=hidden - {one.name},
                place=one.entry.path,
                out=one.out,
            )
        )
        counts[one.name] = counts.get(one.name, 0) + 1
    return tuple(layers), program.largest(tape)


def _occurrences(tape: Tape, modules: list[Keys], loops: tuple) -> list[_Occurrence]:
    """The layers of a tape that parameters open, and those that the user marked by name."""
    found: list[_Occurrence] = []
    # Per value: the latest occurrence on the way to it, and whether arithmetic alone led here.
    latest: dict[int | None, tuple[int, bool]] = {}
    for entry in tape.entries:
        outs = [k for k, value in enumerate(entry.outs) if X in tape.wanted[value]]
        read = [value for value in entry.ins if tape.reads_x(value)]
        if not outs or not read:
            continue
        if entry.body is not None:
            here = (entry.path, entry.length, entry.eqn.params["reverse"])
            found += _occurrences(entry.body, modules, (*loops, here))
            continue
        reached = max(latest.get(value, (-1, True))[0] for value in read)
        pure = all(latest[v][1] for v in read if latest.get(v, (-1, True))[0] == reached >= 0)
        leaves = frozenset().union(*(tape.leaves(value) for value in entry.ins))
        if leaves:
            floats = [k for k in outs if SMOOTH in tape.tokens[entry.outs[k]]]
            out = (floats or outs)[0]
            target = found[reached] if reached >= 0 and pure else None
            if target is not None and _joins_it(entry, leaves, target, modules):
                target.leaves |= leaves
                target.entry, target.out = entry, out
            else:
                closed = entry.name in _CLOSED
                found.append(_Occurrence(leaves, leaves, entry, out, tape, loops, None, closed))
                reached = len(found) - 1
            pure = True
        elif entry.eqn.primitive is primitives.name_p:
            name = entry.eqn.params["name"]
            found.append(_Occurrence(frozenset(), frozenset(), entry, 0, tape, loops, name))
        else:
            pure = pure and entry.name in _ARITHMETIC
        latest.update(dict.fromkeys(entry.outs, (reached, pure)))
    return found


def _joins_it(entry: Entry, leaves, target: _Occurrence, modules: list[Keys]) -> bool:
    """Whether a touch belongs to the layer that it reaches by arithmetic."""
    if entry.name in _CONTRACTIONS or entry.name in _CLOSED or leaves & target.leaves:
        return False
    return {modules[leaf] for leaf in leaves} <= {modules[leaf] for leaf in target.leaves}


def _joins(tape, sites, crossings, modules, loops):
    """The values where branches meet after layers that are no cuts; and the layers still apart."""
    joins, apart = [], []
    for entry in tape.entries:
        if entry.body is not None:
            here = (entry.path, entry.length, entry.eqn.params["reverse"])
            more, still = _joins(entry.body, sites, crossings, modules, (*loops, here))
            joins += more
            apart += still
        site = sites.get(entry.path)
        if site is not None:
            if (entry.path, site.out) in crossings:
                apart = []
            elif tape.smooth(site.value):
                apart.append(site)
            continue
        out = next((k for k in range(len(entry.outs)) if (entry.path, k) in crossings), None)
        if out is not None:
            if apart:
                common = _common([modules[leaf] for one in apart for leaf in one.leaves])
                name = "/".join((*common, "join"))
                none: frozenset[int] = frozenset()
                joins.append(_Occurrence(none, none, entry, out, tape, loops, name))
            apart = []
    return joins, apart


def _origin(tape: Tape, value: int) -> tuple[Path, int] | None:
    """The equation that makes a value, and which of its outputs it is; through a scan's carry."""
    for entry in tape.entries:
        if value in entry.outs:
            out = entry.outs.index(value)
            if entry.body is not None and out < entry.num_carry:
                return _origin(entry.body, entry.body.outvars[out])
            return entry.path, out
    return None


def _names(params: Any) -> tuple[list[Keys], list[Keys]]:
    """Per leaf: its path, and the path of its module."""
    collections = isinstance(params, Mapping) and "params" in params
    keys, modules = [], []
    for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]:
        path = path[1:] if collections and len(path) > 1 else path
        inside = len(path) - 1
        while inside > 0 and isinstance(path[inside], SequenceKey):
            inside -= 1
        keys.append(tuple(_key(key) for key in path))
        modules.append(keys[-1][: max(inside, 0)])
    return keys, modules


def _key(key: Any) -> str:
    if isinstance(key, SequenceKey):
        return str(key.idx)
    if isinstance(key, DictKey):
        return str(key.key)
    return key.name if isinstance(key, GetAttrKey) else str(key)


def _common(paths: list[Keys]) -> Keys:
    """The longest path that all paths begin with."""
    shared = []
    for level in zip(*paths, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return tuple(shared)


def _give_names(found: list[_Occurrence], keys: list[Keys], modules: list[Keys]) -> None:
    """Name each layer by its module where that says it all, else by the leaf that opened it."""
    openers: dict[frozenset[Keys], set[frozenset[int]]] = {}
    for one in found:
        if one.name is None:
            openers.setdefault(frozenset(modules[leaf] for leaf in one.opener), set()).add(
                one.opener
            )
    for one in found:
        if one.name is not None:
            continue
        inside = {modules[leaf] for leaf in one.opener}
        whole = all(
            module != () and all(m == module for m in modules if m[: len(module)] == module)
            for module in inside
        )
        single = len(openers[frozenset(inside)]) == 1
        paths = inside if whole and single else {keys[leaf] for leaf in one.opener}
        shared = _common([path[:-1] for path in paths])
        rest = sorted("/".join(path[len(shared) :]) for path in paths)
        one.name = "/".join((*shared, "+".join(rest))) or "params"
