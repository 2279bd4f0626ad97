r"""The layers of any model `f(params, x)`, found in its traced program, and taps on them.

A layer is a *site*: a value of the program where parameters have just acted on something that
depends on `x` (`layers` holds the rules). Nothing is hooked, wrapped or subclassed.

A tap adds zero to a site: values follow by evaluation, deltas by one reverse pass, Jacobians by
forward or reverse passes with a basis. Stacked layers stay stacked: a `scan` is re-emitted with
the taps as further `xs` and the values as further `ys`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dltheory.networks import layers as rules
from dltheory.networks import program
from dltheory.networks.layers import Layer


class SiteError(ValueError):
    """A model without sites, a site that does not exist, or one that cannot be reached."""


class Site(NamedTuple):
    """A layer of a model.

    Attributes:
        name: The name of its module or parameter, such as `Block_0/Dense_1`.
        occurrence: 0, or how many earlier sites carry the same name (a shared layer).
        index: Where in its stack the layer stands, one number a scan, or `None` outside scans.
        shape: Shape of its value.
        dtype: Dtype of its value.
    """

    name: str
    occurrence: int
    index: tuple[int, ...] | None
    shape: tuple[int, ...]
    dtype: Any

    def __str__(self) -> str:
        """The text that names this site: `name`, `name#1`, `name[3]` or `name#1[3]`."""
        text = rules.text(self.name, self.occurrence)
        return text if self.index is None else f"{text}[{','.join(map(str, self.index))}]"


@dataclass(frozen=True)
class Program:
    """A traced model with its layers in run order, as `trace` returns it.

    Attributes:
        layers: The layers in run order.
        shape: Shape of the output.
        dtype: Its dtype.
        largest: Number of elements of the largest value in it that depends on `x`.
        run: `run(params, x, taps=None, severed=None) -> (y, values)`, a pure function. `taps` adds
            an array to a layer's value; `severed` goes on with the given value (plus the tap) in
            place of the computed one, which is what is recorded. Keys are layer texts.
    """

    layers: tuple[Layer, ...]
    shape: tuple[int, ...]
    dtype: Any
    largest: int
    run: Callable[..., tuple[Array, dict[str, Array]]]

    def layer(self, text: str) -> Layer:
        """The layer with a text; raises `SiteError` with the layers that exist."""
        for layer in self.layers:
            if layer.text == text or f"{layer.name}#{layer.occurrence}" == text:
                return layer
        for layer in self.layers:
            if text in layer.hidden:
                raise SiteError(
                    f"site {text!r} lies inside {layer.text!r}, a custom derivative rule, cond or "
                    f"while that is one closed site: name {layer.text!r} instead."
                )
        known = ", ".join(layer.text + "[i]" * bool(layer.loops) for layer in self.layers)
        raise SiteError(f"no site is named {text!r}; the model has: {known}.")


def find(f: Callable, params: Any, x: Array) -> tuple[Site, ...]:
    """The layers of a model, in run order; those of a stack one by one.

    Args:
        f: `f(params, x) -> y`, from one float array to one array.
        params: Any pytree of parameters.
        x: A batch of inputs.

    Returns:
        The sites, in the order in which they run (index by index in scans).

    Raises:
        SiteError: If `f` cannot be traced, or if no parameter ever meets `x`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import sites
        >>> def f(params, x):
        ...     return jnp.tanh(x @ params["W1"] + params["b1"]) @ params["W2"]
        >>> params = {"W1": jnp.ones((2, 3)), "b1": jnp.ones(3), "W2": jnp.ones((3, 1))}
        >>> [str(site) for site in sites.find(f, params, jnp.ones((5, 2)))]
        ['W1', 'W2']
    """
    return tuple(site for site, _ in expand(trace(f, params, x).layers))


def values(f: Callable, params: Any, x: Array) -> dict[Site, Array]:
    """The value of every site, one evaluation of the model.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs.

    Returns:
        A dict from site to its value, in run order.

    Raises:
        SiteError: As `find`.
    """
    traced = trace(f, params, x)
    _, stacked = traced.run(params, x)
    return {site: stacked[layer.text][site.index or ()] for site, layer in expand(traced.layers)}


def tapped(f: Callable, params: Any, x: Array) -> Callable[..., tuple[Array, dict[str, Array]]]:
    r"""The model with a tap on every layer: :math:`h_l \to h_l + t_l`.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs.

    Returns:
        A pure function `g(params, x, taps) -> (y, values)`. `values` holds every layer by its text
        (`Dense_1`, `shared#1`), a scanned stack with its leading axes; `taps` any part of the same
        dict, missing layers being left alone.

    Raises:
        SiteError: As `find`; and by `g`, if a tap is on no layer or has the wrong shape.

    Example:
        The deltas of backpropagation are the gradient with respect to taps of zero:

        >>> import jax, jax.numpy as jnp
        >>> from dltheory.networks import sites
        >>> f = lambda w, x: jnp.tanh(x @ w["in"]) @ w["out"]
        >>> w = {"in": jnp.eye(2), "out": jnp.ones((2, 1))}
        >>> x = jnp.zeros((1, 2))
        >>> g = sites.tapped(f, w, x)
        >>> taps = jax.tree.map(jnp.zeros_like, g(w, x, {})[1])
        >>> jax.grad(lambda taps: g(w, x, taps)[0].sum())(taps)["in"]
        Array([[1., 1.]], dtype=float32)
    """
    return trace(f, params, x).run


def expand(layers: tuple[Layer, ...], at: int = 0, index=()) -> list[tuple[Site, Layer]]:
    """The sites of layers one by one in run order, each with its layer.

    Args:
        layers: The layers of a program, in run order.
        at: Which of the enclosing scans to unfold.
        index: The index in the scans outside of it.

    Returns:
        Pairs of a site and the layer whose stack it is in.
    """
    found, number = [], 0
    while number < len(layers):
        layer = layers[number]
        if len(layer.loops) == at:
            site = Site(layer.name, layer.occurrence, index or None, layer.shape, layer.dtype)
            found.append((site, layer))
            number += 1
            continue
        place, length, backwards = layer.loops[at]
        group = [one for one in layers[number:] if one.loops[at : at + 1]]
        group = tuple(one for one in group if one.loops[at][0] == place)
        for step in reversed(range(length)) if backwards else range(length):
            found += expand(group, at + 1, (*index, step))
        number += len(group)
    return found


def parse(site: "Site | str") -> tuple[str, tuple[int, ...] | None]:
    """Split a site into the text of its layer and its index.

    Args:
        site: A site, or its text, such as `name#1[3]`.

    Returns:
        The text of its layer, `name#1`, and its index, `(3,)`, or `None`.
    """
    match = re.fullmatch(r"(.*?)(?:\[([\d, ]+)\])?", str(site), flags=re.DOTALL)
    assert match is not None
    text, index = match.groups()
    return text, None if index is None else tuple(int(number) for number in index.split(","))


def trace(f: Callable, params: Any, x: Array | jax.ShapeDtypeStruct) -> Program:
    """Trace a model and find its layers.

    Args:
        f: `f(params, x) -> y`, from one float array to one array.
        params: Any pytree of parameters (arrays or `jax.ShapeDtypeStruct`).
        x: A batch of inputs (likewise).

    Returns:
        The program: its layers in run order and a function that runs it with taps.

    Raises:
        TypeError: If `x` or the output is not one float array.
        SiteError: If `f` cannot be traced, or if no parameter ever meets `x`.
    """
    x_type = jax.tree.leaves(x)
    if len(x_type) != 1 or not jnp.issubdtype(jnp.result_type(x_type[0]), jnp.floating):
        kinds = [str(jnp.result_type(leaf)) for leaf in x_type]
        raise TypeError(
            f"x must be one array of floats, got {kinds}; cast it, or close over the rest."
        )
    try:
        closed, shape = jax.make_jaxpr(f, return_shape=True)(params, x)
    except Exception as error:
        hint = ""
        if "rng" in str(error).lower() or "rng" in type(error).__name__.lower():
            hint = (
                ' Close over what it needs: lambda p, x: model.apply(p, x, rngs={"dropout": key}).'
            )
        raise SiteError(
            f"f(params, x) cannot be traced: {type(error).__name__}: {error}{hint}"
        ) from error
    outputs = jax.tree.leaves(shape)
    if len(outputs) != 1 or not jnp.issubdtype(outputs[0].dtype, jnp.floating):
        kinds = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in outputs]
        raise TypeError(
            f"f must return one array of floats, got {kinds}; return one of them: "
            "lambda params, x: f(params, x)[0]."
        )
    found, largest = rules.find(closed.jaxpr, params)
    if not any(layer.leaves for layer in found):
        raise SiteError(
            "f(params, x) has no layer: no parameter in params ever meets x. Pass the weights in "
            "params; those that f closes over are constants to it."
        )
    return Program(
        found,
        outputs[0].shape,
        outputs[0].dtype,
        largest,
        _runner(closed, found, jax.tree.map(_aval, (params, x)), shape),
    )


def example_axes(f: Callable, params: Any, x: Array, traced: Program) -> dict[str, int | None]:
    """The axis of each layer's value that runs over examples: the one that grows with the batch.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, examples first.
        traced: `trace(f, params, x)`.

    Returns:
        Per layer text, and for `output`, the axis of one value (outside the axes of scans), or
        `None` where no single axis grows. Where the model cannot be traced with one example more
        (a batch size written into it), axis 0 wherever that has the length of the batch.
    """
    batch = x.shape[0]
    shapes = {layer.text: layer.shape for layer in traced.layers} | {"output": traced.shape}
    larger = jax.ShapeDtypeStruct((batch + 1, *x.shape[1:]), x.dtype)
    try:
        grown = trace(f, params, larger)
    except SiteError:
        grown = None
    if grown is None or [one.text for one in grown.layers] != [one.text for one in traced.layers]:
        return {text: 0 if shape[:1] == (batch,) else None for text, shape in shapes.items()}
    new = {layer.text: layer.shape for layer in grown.layers} | {"output": grown.shape}
    axes = {}
    for text, shape in shapes.items():
        grows = [k for k, (a, b) in enumerate(zip(shape, new[text], strict=True)) if a != b]
        exact = len(grows) == 1 and (shape[grows[0]], new[text][grows[0]]) == (batch, batch + 1)
        axes[text] = grows[0] if exact else None
    return axes


def _aval(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _runner(closed, layers, wanted, shape):
    """The function that runs a traced program with taps."""
    places = {layer.text: layer.place for layer in layers}
    shapes = {layer.text: (*layer.lengths, *layer.shape) for layer in layers}
    outputs = {layer.place: layer.out for layer in layers}

    def hook(place, outs, extra):
        tap, instead = extra
        out = outputs[place]
        going_on = outs[out] if instead is None else instead
        if tap is not None:
            going_on = going_on + tap
        record = going_on if instead is None else outs[out]
        return [*outs[:out], going_on, *outs[out + 1 :]], record

    def run(params, x, taps=None, severed=None):
        taps, severed = taps or {}, severed or {}
        _check_arguments(wanted, (params, x))
        _check_keys("tap", taps, shapes)
        _check_keys("severed value", severed, shapes)
        extra = {place: (taps.get(text), severed.get(text)) for text, place in places.items()}
        leaves = jax.tree.leaves((params, x))
        ys, records = program.replay(
            closed.jaxpr, closed.consts, leaves, frozenset(outputs), extra, hook
        )
        y = jax.tree.unflatten(jax.tree.structure(shape), ys)
        return y, {text: records[place] for text, place in places.items()}

    return run


def _check_keys(what, given, shapes) -> None:
    for text, array in given.items():
        if text not in shapes:
            raise SiteError(f"a {what} is on no layer: {text!r}; the model has {list(shapes)}.")
        if jnp.shape(array) != shapes[text]:
            raise SiteError(
                f"the {what} on {text!r} has shape {jnp.shape(array)}, want {shapes[text]}, the "
                "shape of the layer's value."
            )


def _check_arguments(wanted, given) -> None:
    have = jax.tree.map(_aval, given)
    if jax.tree.structure(have) != jax.tree.structure(wanted):
        raise SiteError(
            f"params has the structure {jax.tree.structure(have[0])}, but the model was traced "
            f"with {jax.tree.structure(wanted[0])}."
        )
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(have)[0]]
    for path, a, b in zip(paths, jax.tree.leaves(have), jax.tree.leaves(wanted), strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            name = "x" if path[0].idx == 1 else f"params{jax.tree_util.keystr(path[1:])}"
            raise SiteError(
                f"{name} is {a.dtype}{list(a.shape)}, but the model was traced with "
                f"{b.dtype}{list(b.shape)}: trace it again for another shape or dtype."
            )
