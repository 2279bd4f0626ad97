"""Where a model's parameters are contracted with its signals, found in the traced program.

A parameter is followed through transposes, reshapes, slices, constant factors and scans to all of
its uses. Those uses that are contractions (dense and convolutional layers) are described such that
the gradient is a product of two factors; a parameter with any other use is left out.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax.extend import core

from dltheory.networks import program
from dltheory.networks.program import SMOOTH, Entry, Path, Tape, X

Groups = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Axes of an array that are shared with the other factor and kept, summed over, and its own."""


@dataclass(frozen=True)
class View:
    """A value that is a parameter leaf, but for scale, the order of its axes and a cut.

    Attributes:
        leaf: The number of the leaf.
        dims: For each axis of the value the axis of the leaf, `None` for one of length one.
        loops: For each enclosing scan the axis of the leaf that it runs over, or `None`.
        part: Per axis of the leaf: where the cut begins and ends.
        scale: A constant factor.
        mixed: Whether axes were merged or split; then `dims` and `part` tell of no other view.
    """

    leaf: int
    dims: tuple[int | None, ...]
    loops: tuple[int | None, ...]
    part: tuple[tuple[int, int], ...]
    scale: float = 1.0
    mixed: bool = False


@dataclass(frozen=True)
class Use:
    """A contraction of a parameter with a signal.

    Attributes:
        path: Where it stands in the program.
        view: The parameter's value there.
        side: Which operand the parameter is.
        h: How the axes of the signal (of its patches, in a convolution) are grouped.
        delta: How those of the contraction's value are.
        shape: Shape of that value, scans included.
        dtype: Its dtype.
        kept: Axes of the leaf that both factors have.
        rows: Axes of the leaf that the signal has alone, in their order.
        columns: Those that the derivative has alone.
    """

    path: Path
    view: View
    side: int
    h: Groups
    delta: Groups
    shape: tuple[int, ...]
    dtype: Any
    kept: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def find(tape: Tape, shapes: Sequence[tuple[int, ...]], smooth: Sequence[int]) -> list[Use]:
    """All uses of those parameters that are used in contractions with signals and no other way."""
    *others, _ = tape.invars
    program.spread(tape, [*(frozenset() for _ in others), frozenset({X, SMOOTH})])
    first, views = len(others) - len(shapes), {}
    for i in smooth:
        cut = tuple((0, size) for size in shapes[i])
        views[others[first + i]] = View(i, tuple(range(len(cut))), (), cut)
    uses, spoiled = [], set()
    _follow(tape, views, (), uses, spoiled)
    return [use for use in uses if use.view.leaf not in spoiled]


def _follow(
    tape: Tape, views: dict[int, View], lengths: tuple[int, ...], uses: list[Use], spoiled: set[int]
) -> None:
    for entry in tape.entries:
        seen = [(k, views[v]) for k, v in enumerate(entry.ins) if v in views]
        if not seen or not any(tape.wanted[v] for v in entry.outs):
            continue
        if entry.body is not None:
            inside = {}
            outside = len(entry.body.invars) - len(entry.ins)
            for k, view in seen:
                entered = _entered(entry, k, view)
                if entered is None:
                    spoiled.add(view.leaf)
                else:
                    inside[entry.body.invars[outside + k]] = entered
            _follow(entry.body, inside, (*lengths, entry.length), uses, spoiled)
            continue
        k, view = seen[0]
        moved = _rearranged(tape, entry, k, view) if len(seen) == 1 else None
        if moved is not None:
            views[entry.outs[0]] = moved
            continue
        use = _contracted(tape, entry, k, view, lengths) if len(seen) == 1 else None
        if use is not None:
            uses.append(use)
        else:
            spoiled |= {view.leaf for _, view in seen}
    spoiled |= {views[v].leaf for v in tape.outvars if v in views}


def _entered(entry: Entry, k: int, view: View) -> View | None:
    """A parameter inside a scan that it enters as a constant or slice by slice."""
    if k < entry.num_consts:
        return replace(view, loops=(*view.loops, None))
    if k < entry.num_consts + entry.num_carry or view.dims[0] is None:
        return None
    return replace(view, dims=view.dims[1:], loops=(*view.loops, view.dims[0]))


def _rearranged(tape: Tape, entry: Entry, side: int, view: View) -> View | None:
    """A parameter after an equation that keeps all, or a cut, of its entries."""
    params, dims = entry.eqn.params, view.dims
    out = tape.avals[entry.outs[0]]
    old, new = _aval(tape, entry, side).shape, out.shape
    if entry.name == "transpose":
        return replace(view, dims=tuple(dims[k] for k in params["permutation"]))
    if entry.name in ("reshape", "squeeze", "broadcast_in_dim", "expand_dims"):
        if math.prod(old) != math.prod(new):
            return None
        long = [d for d, size in zip(dims, old, strict=True) if size > 1]
        if [size for size in old if size > 1] == [size for size in new if size > 1]:
            rest = iter(long)
            return replace(view, dims=tuple(next(rest) if size > 1 else None for size in new))
        fresh = itertools.count(len(view.part))  # labels of axes that the leaf does not have
        return replace(view, dims=tuple(next(fresh) for _ in new), mixed=True)
    if entry.name in ("convert_element_type", "copy", "copy_p"):
        return view if jnp.issubdtype(out.dtype, jnp.floating) else None
    if entry.name == "neg":
        return replace(view, scale=-view.scale)
    if entry.name == "slice" and not view.mixed and params["strides"] is None:
        part = list(view.part)
        for d, a, b in zip(dims, params["start_indices"], params["limit_indices"], strict=True):
            if d is not None:
                part[d] = (part[d][0] + a, part[d][0] + b)
        return replace(view, part=tuple(part))
    if entry.name == "mul" or (entry.name == "div" and side == 0):
        other = entry.eqn.invars[1 - side]
        if isinstance(other, core.Literal) and jnp.ndim(other.val) == 0:
            factor = float(other.val)
            return replace(view, scale=view.scale * (factor if entry.name == "mul" else 1 / factor))
    return None


def _contracted(
    tape: Tape, entry: Entry, side: int, view: View, lengths: tuple[int, ...]
) -> Use | None:
    """A contraction of a parameter with a value that depends on the input."""
    if len(entry.ins) != 2 or not tape.reads_x(entry.ins[1 - side]):
        return None
    params, dims = entry.eqn.params, view.dims
    if entry.name == "dot_general":
        contract, batch = params["dimension_numbers"]
        signal: list[Any] = [f"free {k}" for k in range(_aval(tape, entry, 1 - side).ndim)]
        for pairs in (contract, batch):
            for own, other in zip(pairs[side], pairs[1 - side], strict=True):
                signal[other] = dims[own]
        gone = (set(contract[0]) | set(batch[0]), set(contract[1]) | set(batch[1]))
        operands = (dims, signal) if side == 0 else (signal, dims)
        value = [dims[k] for k in batch[side]]
        value += [label for k in (0, 1) for d, label in enumerate(operands[k]) if d not in gone[k]]
    elif (
        entry.name == "conv_general_dilated"
        and side == 1
        and params["feature_group_count"] == params["batch_group_count"] == 1
    ):
        numbers = params["dimension_numbers"]
        free = [f"free {k}" for k in range(len(dims) - 1)]  # examples and positions
        value = _placed(numbers.out_spec, [free[0], dims[numbers.rhs_spec[0]], *free[1:]])
        signal = [*(dims[k] for k in numbers.rhs_spec[1:]), *free]  # of the patches
    else:
        return None
    kept = tuple(sorted({d for d in signal if isinstance(d, int)} & {*value} - {None}))
    rows = tuple(sorted(d for d in {*signal} if isinstance(d, int) and d not in kept))
    columns = tuple(sorted(d for d in {*value} if isinstance(d, int) and d not in kept))
    free = [label for label in signal if isinstance(label, str)]
    loops = tuple(d for d in view.loops if d is not None)
    aval = tape.avals[entry.outs[0]]
    return Use(
        entry.path,
        view,
        side,
        _axes(signal, kept, free, rows),
        _axes(value, kept, free, columns),
        (*lengths, *aval.shape),
        aval.dtype,
        (*loops, *kept),
        rows,
        columns,
    )


def _aval(tape: Tape, entry: Entry, side: int) -> Any:
    value = entry.ins[side]
    assert value is not None
    return tape.avals[value]


def _axes(labels: Sequence, kept: Sequence, free: Sequence, own: Sequence) -> Groups:
    """Where the labels stand; axes of length one, without a label, come last."""
    units = tuple(k for k, label in enumerate(labels) if label is None)
    at = lambda names: tuple(labels.index(name) for name in names)
    return at(kept), at(free), (*at(own), *units)


def _placed(spec: Sequence[int], labels: Sequence) -> list:
    placed: list[Any] = [None] * len(labels)
    for k, label in zip(spec, labels, strict=True):
        placed[k] = label
    return placed


def group(uses: list[Use]) -> tuple[tuple[Use, ...], ...]:
    """Uses of one part of a leaf together; leaves whose uses do not fit together left out."""
    groups: list[list[Use]] = []
    misfits = set()
    for use in uses:
        leaf = use.view.leaf
        for group in groups:
            first = group[0]
            if first.view.leaf != leaf:
                continue
            if first.view.mixed or use.view.mixed:
                misfits.add(leaf)
            elif first.view.part == use.view.part:
                sides = {(use.rows, use.columns), (use.columns, use.rows)}
                if first.kept != use.kept or (first.rows, first.columns) not in sides:
                    misfits.add(leaf)
                group.append(use)
                break
            elif not any(
                a[1] <= b[0] or b[1] <= a[0]
                for a, b in zip(first.view.part, use.view.part, strict=True)
            ):
                misfits.add(leaf)
        else:
            groups.append([use])
    return tuple(tuple(group) for group in groups if group[0].view.leaf not in misfits)
