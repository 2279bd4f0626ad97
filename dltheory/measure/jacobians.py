r"""Jacobians between the layers of any model, per example, and their singular values.

All layers share their passes: one forward pass with the basis of the input gives every
input-to-layer Jacobian, one reverse pass with the basis of the output every layer-to-output one,
and one forward pass of the model severed at its cuts every local one.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from dltheory.measure import passes
from dltheory.measure.passes import Measured
from dltheory.networks import sites
from dltheory.networks.sites import Site, SiteError
from dltheory.numerics.singular_values import singular_values


class LayerSpectra(NamedTuple):
    """Natural logarithms of the singular values of every layer's Jacobians, per example.

    Attributes:
        sites: The layers in run order, the output last (once, where the last layer is the output).
        input_to_layer: Per layer, spectrum of the Jacobian of its value with respect to the input,
            shape `(N, min(dims))`, descending.
        layer_to_output: Likewise of the output with respect to the layer.
        local: Likewise of the layer with respect to the cut before it; `None` for a layer that is
            no cut, past which some derivative path travels.
    """

    sites: tuple[Site, ...]
    input_to_layer: tuple[Array, ...]
    layer_to_output: tuple[Array, ...]
    local: tuple[Array | None, ...]


def jacobian(
    f: Callable,
    params: Any,
    x: Array,
    source: Site | str = "input",
    target: Site | str = "output",
    *,
    mode: str | None = None,
    coupled: bool = False,
) -> Array:
    r"""Jacobian from one layer to another, per example.

    .. math:: J = \partial h_\mathrm{target} / \partial h_\mathrm{source}

    along every path, skips included: the total derivative.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.
        source: A site, its text, or `"input"`.
        target: A site, its text, or `"output"`.
        mode: `"forward"`, `"reverse"`, or `None` for the one with fewer columns.
        coupled: Whether a model that couples its examples is allowed; then each example's own
            block is returned, at N times the cost.

    Returns:
        Shape `(N, target features, source features)`, values flattened in row-major order.

    Raises:
        SiteError: If a site does not exist, the target runs before the source, or the model
            couples its examples.
        ValueError: If `mode` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import jacobians
        >>> f = lambda w, x: jnp.maximum(x @ w["W1"], 0.0) @ w["W2"]
        >>> w = {"W1": jnp.array([[1.0, -1.0]]), "W2": jnp.array([[3.0], [5.0]])}
        >>> jacobians.jacobian(f, w, jnp.array([[2.0]]), "W1", "output")
        Array([[[3., 0.]]], dtype=float32)
    """
    measured = passes.prepare(f, params, x)
    start, stop = _find(measured, source), _find(measured, target)
    if _order(measured, stop) < _order(measured, start):
        raise SiteError(
            f"target {str(target)!r} runs before source {str(source)!r}: swap them, the Jacobian "
            "against the run order is zero."
        )
    if mode not in (None, "forward", "reverse"):
        raise ValueError(f"mode is {mode!r}, want 'forward', 'reverse' or None.")
    if mode is None:
        wide = measured.features(start[0]) > measured.features(stop[0])
        mode = "reverse" if wide else "forward"
    result = _between(measured, params, x, start, stop, mode, coupled)
    if coupled:
        return result
    _, tangent_of = passes.push(lambda at: _run(measured, params, at["input"]), {"input": x})
    return result + passes.refuse_coupling(passes.coupling(measured, tangent_of, x))


def layer_spectra(f: Callable, params: Any, x: Array, *, coupled: bool = False) -> LayerSpectra:
    r"""Log singular values of the Jacobians of every layer, in shared passes, per example.

    .. math:: \log s_i(\partial h_l / \partial x), \quad
              \log s_i(\partial y / \partial h_l), \quad
              \log s_i(\partial h_l / \partial h_{l-1})

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.
        coupled: Whether a model that couples its examples is allowed: it is then measured one
            example at a time, the others held fixed.

    Returns:
        `LayerSpectra`. A singular value below `n * eps` of the largest in its spectrum is rounding
        noise.

    Raises:
        SiteError: If the model has no layers, or couples its examples and `coupled` is false.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import jacobians
        >>> f = lambda w, x: jnp.tanh(x @ w["W1"]) @ w["W2"]
        >>> w = {"W1": 2 * jnp.eye(3), "W2": 3 * jnp.eye(3)}
        >>> spectra = jacobians.layer_spectra(f, w, jnp.zeros((1, 3)))
        >>> [str(site) for site in spectra.sites]
        ['W1', 'W2']
        >>> jnp.exp(spectra.input_to_layer[-1]).round(4)
        Array([[6., 6., 6.]], dtype=float32)
    """
    leaves, structure = jax.tree.flatten((params, x))
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        measured = passes.prepare(f, params, x)
        spectra, moved = _spectra(measured, params, x, coupled)
    else:
        types = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
        measured, compiled = _compiled(f, structure, types, coupled, jnp.result_type(float))
        spectra, moved = compiled(params, x)
    if not coupled:
        doubt = passes.refuse_coupling(moved)
        spectra = jax.tree.map(lambda s: s + doubt.astype(s.dtype), spectra)
    return _in_run_order(measured, spectra)


@functools.lru_cache(maxsize=64)
def _compiled(f, structure, types, coupled: bool, _precision) -> tuple[Measured, Callable]:
    """The traced model, and its spectra compiled once for all calls with these shapes."""
    params, x = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*one) for one in types])
    measured = passes.prepare(f, params, x)
    return measured, jax.jit(lambda params, x: _spectra(measured, params, x, coupled))


def _spectra(measured: Measured, params, x: Array, coupled: bool):
    stacks, moved = _stacks(measured, params, x, coupled)
    return jax.tree.map(lambda j: jnp.log(singular_values(j)), stacks), moved


class _Stacks(NamedTuple):
    """By layer text: Jacobians `(N, *lengths, m, n)`, then spectra `(N, *lengths, min(m, n))`."""

    input_to_layer: dict[str, Array]
    layer_to_output: dict[str, Array]
    local: dict[str, Array]


def _run(measured: Measured, params, x: Array, taps=None, severed=None) -> dict[str, Array]:
    """The values of all layers, and of the output, by text."""
    y, values = measured.program.run(params, x, taps, severed)
    return {**values, "output": y}


def _stacks(
    measured: Measured, params, x: Array, coupled: bool
) -> tuple[_Stacks, dict[str, Array]]:
    """All Jacobians in three passes, and how far examples are coupled."""
    start = {"input": x}
    values, tangent_of = passes.push(lambda at: _run(measured, params, at["input"]), start)
    columns = measured.respond(tangent_of, {"input": measured.basis("input", x)}, coupled)
    forward = {text: _last(array, 1) for text, array in columns.items()}
    moved = {} if coupled else passes.coupling(measured, tangent_of, x)

    y = values.pop("output")
    taps = jax.tree.map(jnp.zeros_like, values)
    _, pull = jax.vjp(lambda taps: _run(measured, params, x, taps)["output"], taps)
    rows = {"output": measured.basis("output", y)}
    rows = measured.respond(lambda ct: pull(ct["output"])[0], rows, coupled)
    reverse = {text: jnp.moveaxis(array, 1, -2) for text, array in rows.items()}

    # Severed at its cuts, the model is a row of pieces, and one pass differentiates them all.
    cuts = [layer.text for layer in measured.program.layers if layer.is_cut]
    recorded = {text: values[text] for text in cuts}
    start |= {text: taps[text] for text in cuts}

    def pieces(at):
        return _run(measured, params, at["input"], {t: at[t] for t in cuts}, recorded)

    width = max(measured.features(text) for text in start)
    basis = {text: measured.basis(text, array, width) for text, array in start.items()}
    _, tangent_of = passes.push(pieces, start)
    columns = measured.respond(tangent_of, basis, coupled)
    local = {text: _last(columns[text], 1) for text in [*cuts, "output"]}
    return _Stacks(forward, reverse, local), moved


def _last(array: Array, axis: int) -> Array:
    return jnp.moveaxis(array, axis, -1)


def _in_run_order(measured: Measured, spectra: _Stacks) -> LayerSpectra:
    """The spectra layer by layer, cut to the length that each Jacobian has."""
    expanded = sites.expand(measured.program.layers)
    places, local, before = [], [], measured.features("input")
    for site, layer in expanded:
        places.append((layer.text, site.index or ()))
        features = measured.features(layer.text)
        local.append(min(before, features) if layer.is_cut else None)
        before = features if layer.is_cut else before
    found = [site for site, _ in expanded]
    if not expanded[-1][1].is_output:
        shape = measured.program.shape
        found.append(Site("output", 0, None, shape, spectra.input_to_layer["output"].dtype))
        places.append(("output", ()))
        local.append(min(before, measured.features("output")))

    # Slicing on the host: on the device every index would be a program of its own.
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(spectra))
    spectra = spectra if traced else jax.device_get(spectra)

    def pick(stack, place, length):
        text, index = place
        return jnp.asarray(stack[text][:, *index, :length])

    # The output depends on itself by the identity.
    shape = (measured.batch, measured.features("output"))
    zeros = jnp.zeros(shape, spectra.input_to_layer["output"].dtype)
    outputs = spectra.layer_to_output | {"output": zeros}
    return LayerSpectra(
        tuple(found),
        tuple(pick(spectra.input_to_layer, place, None) for place in places),
        tuple(pick(outputs, place, None) for place in places),
        tuple(
            None if length is None else pick(spectra.local, place, length)
            for place, length in zip(places, local, strict=True)
        ),
    )


Place = tuple[str, tuple[int, ...] | None]


def _find(measured: Measured, site: Site | str) -> Place:
    """The layer and the index of a site; `("input", None)` and `("output", None)` as they are."""
    if site in ("input", "output"):
        return str(site), None
    text, index = sites.parse(site)
    layer = measured.program.layer(text)
    lengths = layer.lengths
    if len(index or ()) != len(lengths) or any(
        not 0 <= i < length for i, length in zip(index or (), lengths, strict=True)
    ):
        raise SiteError(
            f"site {str(site)!r} wants an index below {list(lengths)}, as in "
            f"'{layer.text}[{','.join('0' for _ in lengths)}]'."
            if lengths
            else f"site {str(site)!r} has an index, but {layer.text!r} is in no scan."
        )
    return layer.text, index


def _order(measured: Measured, place: Place) -> int:
    """Run order: the input first, the output last."""
    text, index = place
    if text == "input":
        return -1
    order = [(layer.text, site.index) for site, layer in sites.expand(measured.program.layers)]
    return len(order) if text == "output" else order.index((text, index))


def _between(measured, params, x, start: Place, stop: Place, mode: str, coupled: bool) -> Array:
    """The Jacobian `(N, target features, source features)`."""
    source, target = start[0], stop[0]

    def fun(at):
        if source == "input":
            values = {"input": at["input"], **_run(measured, params, at["input"])}
        else:
            taps = jnp.zeros((*layer.lengths, *layer.shape), layer.dtype)
            values = _run(measured, params, x, {source: taps.at[start[1] or ()].add(at[source])})
        return {target: values[target][stop[1] or ()]}

    if source == "input":
        at = {"input": x}
    else:
        layer = measured.program.layer(source)
        at = {source: jnp.zeros(layer.shape, layer.dtype)}
    if mode == "forward":
        _, tangent_of = passes.push(fun, at)
        basis = {source: measured.basis(source, at[source])}
        return _last(measured.respond(tangent_of, basis, coupled)[target], 1)
    value, pull = jax.vjp(fun, at)
    basis = {target: measured.basis(target, value[target])}
    return measured.respond(lambda ct: pull(ct)[0], basis, coupled)[source]
