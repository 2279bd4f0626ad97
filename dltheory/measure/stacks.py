"""All Jacobians of a model in three shared passes, stacked where the model is stacked."""

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
    measured: Measured, params, x: Array, coupled: bool
) -> tuple[Stacks, dict[str, Array]]:
    """All Jacobians, and how far the examples are coupled (`passes.coupling`)."""
    start = {"input": x}
    values, tangent_of = passes.push(lambda at: run(measured, params, at["input"]), start)
    columns = measured.respond(tangent_of, {"input": measured.basis("input", x)}, coupled)
    forward = {text: jnp.moveaxis(array, 1, -1) for text, array in columns.items()}
    moved = {} if coupled else passes.coupling(measured, tangent_of, x)

    y = values.pop("output")
    taps = jax.tree.map(jnp.zeros_like, values)
    _, pull = jax.vjp(lambda taps: run(measured, params, x, taps)["output"], taps)
    rows = {"output": measured.basis("output", y)}
    rows = measured.respond(lambda ct: pull(ct["output"])[0], rows, coupled)
    reverse = {text: jnp.moveaxis(array, 1, -2) for text, array in rows.items()}

    # Severed at its cuts, each going on from its recorded value, the model is a row of pieces, and
    # one pass differentiates them all.
    cuts = [layer.text for layer in measured.program.layers if layer.is_cut]
    recorded = {text: values[text] for text in cuts}
    start |= {text: taps[text] for text in cuts}

    def pieces(at):
        return run(measured, params, at["input"], {t: at[t] for t in cuts}, recorded)

    width = max(measured.features(text) for text in start)
    basis = {text: measured.basis(text, array, width) for text, array in start.items()}
    _, tangent_of = passes.push(pieces, start)
    columns = measured.respond(tangent_of, basis, coupled)
    local = {text: jnp.moveaxis(columns[text], 1, -1) for text in [*cuts, "output"]}
    return Stacks(forward, reverse, local), moved
