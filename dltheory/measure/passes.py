"""Derivatives of a traced model in shared passes: one basis, every layer, every example at once.

The same basis vector is put into all examples together, so a pass has as many columns as one
example has features. This is right only where no example influences another, which `coupling`
checks on the model itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer

from dltheory.networks import sites
from dltheory.networks.sites import Program, SiteError


@dataclass(frozen=True, eq=False)
class Measured:
    """A traced model on a batch, with the axis of each layer that runs over the examples.

    Attributes:
        program: The traced program.
        axes: Per layer text, and for `input` and `output`: the example axis of one value.
        shapes: Likewise: the shape of one value.
        batch: Number of examples.
    """

    program: Program
    axes: dict[str, int | None]
    shapes: dict[str, tuple[int, ...]]
    batch: int

    def features(self, text: str) -> int:
        """How many numbers one example has at a layer."""
        self.axis(text)
        return math.prod(self.shapes[text]) // self.batch

    def axis(self, text: str) -> int:
        """The example axis of a layer; raises `SiteError` where it has none."""
        axis = self.axes[text]
        if axis is None:
            raise SiteError(
                f"site {text!r} has shape {self.shapes[text]} for {self.batch} examples, and no "
                "axis of it runs over the examples: its Jacobian per example is not defined."
            )
        return axis

    def per_example(self, text: str, array: Array, leading: int = 0) -> Array:
        """Bring a layer's values to `(leading axes, N, scan lengths, features)`.

        The scan lengths are those that `array` has between its leading axes and its value.
        """
        stacked = array.ndim - leading - len(self.shapes[text])
        array = jnp.moveaxis(array, leading + stacked + self.axis(text), leading)
        return array.reshape(*array.shape[: leading + 1 + stacked], -1)

    def unit(self, text: str, like: Array, number: Array) -> Array:
        """One unit vector of a layer's features, in all examples and all layers of its stack.

        Args:
            text: The layer.
            like: An array of its shape, with the axes of scans that the result shall have.
            number: Which unit vector; zero beyond the last.
        """
        axis, shape = self.axis(text), self.shapes[text]
        units = (jnp.arange(self.features(text)) == number).astype(like.dtype)
        stack = [1] * (like.ndim - len(shape))
        return jnp.broadcast_to(
            units.reshape(*stack, *shape[:axis], 1, *shape[axis + 1 :]), like.shape
        )

    def only(self, text: str, array: Array, example: Array) -> Array:
        """A layer's values with zeros in all examples but one."""
        behind = len(self.shapes[text]) - self.axis(text) - 1
        mask = jnp.arange(self.batch) == example
        return jnp.where(
            mask.reshape(*[1] * (array.ndim - behind - 1), -1, *[1] * behind), array, 0
        )

    def respond(
        self,
        linear_map: Callable[[dict], dict],
        sources: dict[str, Array],
        count: int,
        *,
        columns: int | None = None,
        examples: Array | None = None,
    ) -> dict[str, Array]:
        """What a linear map between layers makes of unit vectors: `(N, count, *stack, features)`.

        Args:
            linear_map: From tangents at some layers to tangents at others.
            sources: Those layers, each with an array of the shape of its tangents.
            count: How many unit vectors; each goes into all the sources at once.
            columns: How many unit vectors at once; all of them by default.
            examples: Where examples are coupled: the numbers of those that are wanted. The unit
                vectors go into one after another, and each one's own response is kept.
        """
        # Chunks of one length: a remainder would be compiled by itself.
        chunks = math.ceil(count / min(columns or count, count))
        numbers = jnp.arange(math.ceil(count / chunks) * chunks)

        def everywhere(column):
            if chunks == 1:
                return jax.vmap(column)(numbers)
            answers = jax.lax.map(jax.vmap(column), numbers.reshape(chunks, -1))
            return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], answers)

        def units(number):
            return {text: self.unit(text, like, number) for text, like in sources.items()}

        if examples is None:
            answers = everywhere(lambda number: linear_map(units(number)))
            return {
                text: jnp.moveaxis(self.per_example(text, a, 1), 1, 0)
                for text, a in answers.items()
            }

        def own(example):
            def column(number):
                columns = units(number)
                return linear_map({t: self.only(t, c, example) for t, c in columns.items()})

            answers = everywhere(column)
            return {text: self.per_example(text, a, 1)[:, example] for text, a in answers.items()}

        return jax.lax.map(own, examples)


def prepare(f: Callable, params: Any, x: Array) -> Measured:
    """Trace a model on a batch of examples and find where the examples stand in each layer.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.

    Returns:
        The traced model.

    Raises:
        ValueError: If `x` holds no example.
        SiteError: If `f` has no layers, or its output no axis of examples.
    """
    if jnp.ndim(x) < 1 or x.shape[0] == 0:
        raise ValueError(f"x has shape {jnp.shape(x)}, want (N, ...) with N >= 1 examples.")
    program = sites.trace(f, params, x)
    axes = sites.example_axes(f, params, x, program) | {"input": 0}
    shapes = {layer.text: layer.shape for layer in program.layers}
    shapes |= {"input": x.shape, "output": program.shape}
    measured = Measured(program, axes, shapes, x.shape[0])
    measured.axis("output")
    return measured


def push(fun: Callable, primal: Any) -> tuple[Any, Callable]:
    """`fun(primal)` and its derivative as a linear map; also through custom_vjp functions.

    Where a custom_vjp forbids forward mode, the linear transpose of the reverse map serves.
    """
    try:
        value, tangent_of = jax.linearize(fun, primal)
        # The refusal comes only with the first batch of tangents.
        jax.eval_shape(jax.vmap(tangent_of), jax.tree.map(lambda leaf: leaf[None], primal))
        return value, tangent_of
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
    value, pull = jax.vjp(fun, primal)
    transpose = jax.linear_transpose(lambda ct: pull(ct)[0], value)
    return value, lambda tangent: transpose(tangent)[0]


def coupling(measured: Measured, tangent_of: Callable[[dict], dict], x: Array) -> dict[str, Array]:
    """How far one example's input moves another example's layers: zero, unless they are coupled.

    Random tangents go into the examples whose number has bit b set, then unset; the rows of all
    others must stay exactly zero. Two columns a bit tell every pair of examples apart.

    Args:
        measured: The model.
        tangent_of: Its derivative, from `{"input": tangent}` to the tangents of layers and output.
        x: The batch.

    Returns:
        Per layer text in run order, then for `output`: the largest absolute foreign tangent.
    """
    number = jnp.arange(measured.batch)
    masks = [
        (number >> bit) % 2 == side
        for bit in range(max(1, (measured.batch - 1).bit_length()))
        for side in (0, 1)
    ]
    masks = jnp.stack(masks)
    # Any direction without structure will do; a fixed one keeps the function pure.
    direction = jnp.sin(1 + jnp.arange(x.size, dtype=x.dtype) ** 2).reshape(x.shape)
    mask = masks.reshape(*masks.shape, *[1] * (x.ndim - 1))
    tangents = jnp.where(mask, direction[None], 0)
    answers = jax.vmap(tangent_of)({"input": tangents})
    moved = {}
    for text in [*(layer.text for layer in measured.program.layers), "output"]:
        if text not in answers:
            continue
        rows = measured.per_example(text, answers[text], 1)
        rows = jnp.abs(rows).reshape(*masks.shape, -1).max(-1)
        moved[text] = jnp.where(masks, 0, rows).max()
    return moved


def refuse_coupling(moved: dict[str, Array]) -> Array:
    """Raise where examples are coupled; under `jit`, where nothing can be raised, return NaN.

    Returns:
        0, or NaN under `jit` where examples are coupled: add it to the result.

    Raises:
        SiteError: Naming the first layer that mixes examples.
    """
    total = jnp.stack([amount.astype(jnp.result_type(float)) for amount in moved.values()]).max()
    if isinstance(total, Tracer):
        return jnp.where(total > 0, jnp.nan, 0.0).astype(total.dtype)
    for text, amount in moved.items():
        if amount > 0:
            raise SiteError(
                f"the model couples examples: at {text!r} one example's value moves with another's "
                f"input (by {float(amount):.2g}), as BatchNorm in training does, so a Jacobian per "
                "example is not defined. Evaluate it in inference mode, or pass one example, or "
                "coupled=True for each example's own block."
            )
    return jnp.zeros_like(total)


def stack(rows: dict[str, Array], measured: Measured) -> Array:
    """Values `(*lengths, ...)` of all layers as one array `(layers, ...)` in run order."""
    first: dict[str, int] = {}
    flat, total = [], 0
    for layer in measured.program.layers:
        array = rows[layer.text]
        array = array.reshape(-1, *array.shape[len(layer.lengths) :])
        first[layer.text] = total
        total += array.shape[0]
        flat.append(array)
    order = []
    for site, layer in sites.expand(measured.program.layers):
        position = 0
        for index, length in zip(site.index or (), layer.lengths, strict=True):
            position = position * length + index
        order.append(first[layer.text] + position)
    return jnp.concatenate(flat)[jnp.array(order)]
