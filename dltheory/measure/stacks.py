"""All Jacobians of a model in three shared passes, stacked where the model is stacked."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dltheory.measure import passes
from dltheory.measure.passes import Measured


class Stacks(NamedTuple):
    """By layer text, Jacobians of shape `(N, *scan lengths, m, n)`, or what was made of them.

    Attributes:
        input_to_layer: Of each layer, and of `output`, with respect to the input.
        layer_to_output: Of the output with respect to each layer.
        local: Of each cut, and of `output`, with respect to the cut before it; its columns are as
            many as the widest cut has features, the rest being zero.
    """

    input_to_layer: dict[str, Array]
    layer_to_output: dict[str, Array]
    local: dict[str, Array]


def run(measured: Measured, params, x: Array, taps=None, severed=None) -> dict[str, Array]:
    """The values of all layers, and of the output, by text."""
    y, values = measured.program.run(params, x, taps, severed)
    return {**values, "output": y}


def jacobians(
    measured: Measured,
    params,
    x: Array,
    *,
    columns: int | None = None,
    examples: Array | None = None,
) -> tuple[Stacks, dict[str, Array]]:
    """All Jacobians, and how far the examples are coupled (`passes.coupling`).

    Args:
        measured: The model.
        params: Its parameters.
        x: The batch.
        columns: How many columns of a basis at once; all of them by default.
        examples: Where examples are coupled: the numbers of those that are wanted.

    Returns:
        The Jacobians, in at least single precision; and the coupling, empty where `examples` are
        given.
    """

    def respond(linear_map, sources, count):
        return measured.respond(linear_map, sources, count, columns=columns, examples=examples)

    start = {"input": x}
    values, tangent_of = passes.push(lambda at: run(measured, params, at["input"]), start)
    answers = respond(tangent_of, start, measured.features("input"))
    forward = {text: jnp.moveaxis(array, 1, -1) for text, array in answers.items()}
    moved = passes.coupling(measured, tangent_of, x) if examples is None else {}

    y = values.pop("output")
    taps = jax.tree.map(jnp.zeros_like, values)
    _, pull = jax.vjp(lambda taps: run(measured, params, x, taps)["output"], taps)
    answers = respond(lambda ct: pull(ct["output"])[0], {"output": y}, measured.features("output"))
    reverse = {text: jnp.moveaxis(array, 1, -2) for text, array in answers.items()}

    local = between_cuts(measured, params, x, values, respond)
    return jax.tree.map(_at_least_single, Stacks(forward, reverse, local)), moved


def between_cuts(
    measured: Measured, params, x: Array, values: dict[str, Array], respond: Callable
) -> dict[str, Array]:
    """The Jacobian of each cut, and of `output`, with respect to the cut before it.

    Severed at its cuts, each going on from its recorded value, the model is a row of pieces, and
    one pass differentiates them all.

    Args:
        measured: The model.
        params: Its parameters.
        x: The batch.
        values: Of all layers.
        respond: `respond(linear_map, sources, count)`, what it makes of unit vectors.

    Returns:
        As `Stacks.local`.
    """
    cuts = [layer.text for layer in measured.program.layers if layer.is_cut]
    recorded = {text: values[text] for text in cuts}
    start = {"input": x} | {text: jnp.zeros_like(values[text]) for text in cuts}

    def pieces(at):
        return run(measured, params, at["input"], {t: at[t] for t in cuts}, recorded)

    _, tangent_of = passes.push(pieces, start)
    answers = respond(tangent_of, start, width(measured))
    return {text: jnp.moveaxis(answers[text], 1, -1) for text in [*cuts, "output"]}


def _at_least_single(array: Array) -> Array:
    """Half precision in single: no decomposition takes it."""
    return array.astype(jnp.float32) if jnp.finfo(array.dtype).bits < 32 else array


def width(measured: Measured) -> int:
    """Features of the widest of the input and the cuts: columns that local Jacobians have."""
    cuts = [layer.text for layer in measured.program.layers if layer.is_cut]
    return max(measured.features(text) for text in ["input", *cuts])
