"""Which parameters of any model are kernels, over which axes they are summed, and which are biases.

A kernel is a leaf that opens a layer (`sites`): one side of a dot product or a convolution whose
other side depends on `x`. Its axes are followed from the leaf to that place through transposes,
reshapes, slices and scans. A bias is a leaf added to a layer that a kernel opened.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from dltheory.networks import program, sites
from dltheory.networks.program import SMOOTH, Entry, Tape, X

_ELEMENTWISE = frozenset(
    {"convert_element_type", "copy", "neg", "stop_gradient", "reduce_precision", "mul", "div"}
)
_SUMS = frozenset({"add", "sub", "add_any"})
_CONTRACTIONS = frozenset({"dot_general", "conv_general_dilated"})
_CLOSED = frozenset({"custom_jvp_call", "custom_vjp_call", "cond", "while"})

Axes = tuple[int, ...]


class Kernel(NamedTuple):
    """A kernel and what its axes are; together they are all axes of the leaf.

    Attributes:
        leaf: Its number among the leaves of the parameters.
        layer: The text of the layer that it opens; of several, the first.
        scanned: Axes over layers of a scan, the outermost first.
        stack: Other axes of which each index is a kernel on its own.
        spatial: Axes that a convolution moves along.
        inputs: Axes that are summed over, for each output.
        outputs: Axes of the outputs.
    """

    leaf: int
    layer: str
    scanned: Axes
    stack: Axes
    spatial: Axes
    inputs: Axes
    outputs: Axes


class Weights(NamedTuple):
    """The kernels and biases of a model.

    Attributes:
        kernels: The kernels, in the order in which the model meets them.
        biases: Numbers of the leaves that are biases, each with the text of its layer.
        unknown: Texts of layers whose weights are made of more than the axes of one leaf.
    """

    kernels: tuple[Kernel, ...]
    biases: dict[int, str]
    unknown: tuple[str, ...]


class _View(NamedTuple):
    """A value made from one leaf: for each of its axes those of the leaf that it runs over."""

    leaf: int
    axes: tuple[Axes, ...]
    scanned: Axes = ()
    stack: Axes = ()
    cut: frozenset[int] = frozenset()


def find(f: Callable, params: Any, x: Array) -> Weights:
    """The kernels and biases of a model.

    Args:
        f: `f(params, x) -> y`, from one float array to one array.
        params: Any pytree of parameters.
        x: A batch of inputs.

    Returns:
        Its kernels and biases. Parameters that are neither (scales of normalisation, factors of
        branches, tables that are looked up) are in none of them.

    Raises:
        SiteError: If `f` cannot be traced, or if no parameter ever meets `x`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import weights
        >>> f = lambda p, x: jnp.tanh(x @ p["W"].T + p["b"])
        >>> found = weights.find(f, {"W": jnp.ones((3, 2)), "b": jnp.ones(3)}, jnp.ones((5, 2)))
        >>> found.kernels[0].inputs, found.kernels[0].outputs, found.biases
        ((1,), (0,), {1: 'W'})
    """
    layers = sites.trace(f, params, x).layers
    tape = program.flatten(jax.make_jaxpr(f)(params, x).jaxpr)
    leaves = jax.tree.leaves(params)
    given: list[program.Tokens] = [frozenset()] * (len(tape.invars) - len(leaves) - 1)
    given += [frozenset({leaf}) for leaf in range(len(leaves))]
    program.spread(tape, [*given, frozenset({X, SMOOTH})])
    program.want(tape, [frozenset({X, SMOOTH})])
    first = len(tape.invars) - 1 - len(leaves)
    views = {
        tape.invars[first + number]: _View(number, tuple((axis,) for axis in range(leaf.ndim)))
        for number, leaf in enumerate(leaves)
    }
    found: dict[int, _View] = {}
    contracted: dict[int, tuple[Axes, Axes, Axes, Axes]] = {}
    added: list[int] = []
    unknown: list[frozenset[int]] = []

    def touch(tape: Tape, entry: Entry, views: dict[int, _View]) -> None:
        for side, value in enumerate(entry.ins):
            touching = tape.leaves(value)
            if not touching:
                continue
            if entry.name in _SUMS and len(touching) == 1:
                added.extend(touching)
            if entry.name not in _CONTRACTIONS | _CLOSED:
                continue
            view = views.get(value) if value is not None else None
            axes = None if view is None else _contracted(entry, side, view)
            if view is None or axes is None:
                unknown.append(touching)
            elif view.leaf not in found:
                found[view.leaf], contracted[view.leaf] = view, axes

    _walk(tape, views, touch)
    kernels = []
    for leaf, view in found.items():
        layer = next((one for one in layers if leaf in one.leaves), None)
        if layer is not None:
            kernels.append(Kernel(leaf, layer.text, view.scanned, *contracted[leaf]))
    opened = {kernel.leaf for kernel in kernels}
    biases = {
        leaf: layer.text
        for layer in reversed(layers)
        for leaf in layer.leaves.intersection(added) - opened
        if opened & layer.leaves
    }
    texts = [layer.text for layer in layers if any(layer.leaves & some for some in unknown)]
    return Weights(tuple(kernels), biases, tuple(texts))


def _walk(tape: Tape, views: dict[int, _View], touch: Callable) -> None:
    """Follow the leaves of a tape to every place where they meet a value that depends on x."""
    for entry in tape.entries:
        if entry.body is not None:
            _walk(entry.body, _enter(entry, views), touch)
            continue
        reads_x = any(tape.reads_x(value) for value in entry.ins)
        if reads_x and any(X in tape.wanted[value] for value in entry.outs):
            touch(tape, entry, views)
        given = [v for v in entry.ins if v is not None and tape.leaves(v)]
        if not reads_x and len(given) == 1 and given[0] in views and len(entry.outs) == 1:
            shapes = tape.avals[given[0]].shape, tape.avals[entry.outs[0]].shape
            view = _through(entry, views[given[0]], *shapes)
            if view is not None:
                views[entry.outs[0]] = view


def _enter(entry: Entry, views: dict[int, _View]) -> dict[int, _View]:
    """The views in the body of a scan: of its constants, and of slices of what it runs over."""
    assert entry.body is not None
    inner = {}
    arguments = entry.body.invars[len(entry.body.invars) - len(entry.ins) :]
    for number, (value, inside) in enumerate(zip(entry.ins, arguments, strict=True)):
        view = views.get(value) if value is not None else None
        if view is None:
            continue
        if number < entry.num_consts:
            inner[inside] = view
        elif number >= entry.num_consts + entry.num_carry and len(view.axes[0]) == 1:
            scanned = (*view.scanned, *view.axes[0])
            inner[inside] = view._replace(axes=view.axes[1:], scanned=scanned)
    return inner


def _through(entry: Entry, view: _View, before: Axes, after: Axes) -> _View | None:
    """The view of a value made from a value with a view; None where its axes are not kept."""
    params = entry.eqn.params
    match entry.name:
        case name if name in _ELEMENTWISE:
            return view if before == after else None
        case "transpose":
            return view._replace(axes=tuple(view.axes[k] for k in params["permutation"]))
        case "squeeze":
            gone = params["dimensions"]
            stack = sum((view.axes[k] for k in gone), view.stack)
            kept = tuple(axes for k, axes in enumerate(view.axes) if k not in gone)
            return view._replace(axes=kept, stack=stack)
        case "slice" | "dynamic_slice":
            pairs = zip(view.axes, before, after, strict=True)
            cut = [axis for axes, old, new in pairs if old != new for axis in axes]
            return view._replace(cut=view.cut.union(cut))
        case "broadcast_in_dim":
            axes: list[Axes] = [()] * len(after)
            for k, at in enumerate(params["broadcast_dimensions"]):
                if before[k] != after[at]:
                    return None
                axes[at] = view.axes[k]
            return view._replace(axes=tuple(axes))
        case "reshape":
            axes_after = _merged(view.axes, before, after)
            return None if axes_after is None else view._replace(axes=axes_after)
    return None


def _merged(axes: tuple[Axes, ...], before: Axes, after: Axes) -> tuple[Axes, ...] | None:
    """The axes after a reshape that merges neighbours or moves axes of length one, else None."""
    at, merged = 0, []
    for size in after:
        group, product = (), 1
        while at < len(before) and (product < size or before[at] == 1):
            group, product, at = (*group, *axes[at]), product * before[at], at + 1
        if product != size:
            return None
        merged.append(group)
    return tuple(merged) if at == len(before) else None


def _contracted(entry: Entry, side: int, view: _View) -> tuple[Axes, Axes, Axes, Axes] | None:
    """The stack, spatial, input and output axes of a kernel; None where it is not that simple."""
    if entry.name not in _CONTRACTIONS:
        return None
    numbers = entry.eqn.params["dimension_numbers"]
    join = lambda dims: sum((view.axes[k] for k in dims), ())
    if entry.name == "dot_general":
        (contracting, batch), spatial = (numbers[0][side], numbers[1][side]), ()
        rest = [k for k in range(len(view.axes)) if k not in {*contracting, *batch}]
        inputs, outputs, stack = join(contracting), join(rest), join(batch)
    elif side == 1:
        out, into, *moving = numbers.rhs_spec
        stack, spatial, inputs, outputs = (), join(moving), join([into]), join([out])
    else:
        return None
    # A sum over part of an axis has another fan-in than the axis has entries.
    if view.cut.intersection((*spatial, *inputs)):
        return None
    return (*view.stack, *stack), spatial, inputs, outputs
