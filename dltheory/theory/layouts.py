"""Networks whose layers are given as matrices, in the layout of `networks.models.MLP`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

Layer = tuple[np.ndarray, np.ndarray]
"""A weight matrix of shape `(outputs, inputs)` and a bias of shape `(outputs,)`."""


class Construction(NamedTuple):
    """A network and what is proven of it.

    Attributes:
        params: Its parameters, as Flax keeps those of `networks.models.MLP`.
        apply: `apply(params, x)`, from shape `(batch, d)` to `(batch, 1)`.
        bound: An upper bound on its sup error, on the domain that its maker states; of the real
            function that the parameters denote, the rounding of its evaluation apart.
    """

    params: Any
    apply: Callable[[Any, Array], Array]
    bound: float


def network(
    layers: Sequence[Layer], bound: float, activation: Callable[[Array], Array] | None = None
) -> Construction:
    """A construction from its layers, which are filled up with zeros to one width.

    Args:
        layers: The layers, the hidden ones first.
        bound: Its proven error.
        activation: Of the hidden units; ReLU unless given.

    Returns:
        The construction, its parameters in JAX's default floating dtype.
    """
    *hidden, (last, shift) = layers
    width = max(len(bias) for _, bias in hidden)

    def filled(weights, bias, inputs):
        kernel = np.zeros((inputs, width))
        kernel[: weights.shape[1], : len(bias)] = weights.T
        return kernel, np.append(bias, np.zeros(width - len(bias)))

    first, *inner = hidden
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {"first": filled(*first, first[0].shape[1])}
    if inner:
        stacked = [filled(*layer, width) for layer in inner]
        kernels, biases = zip(*stacked, strict=True)
        pairs["hidden"] = np.stack(kernels), np.stack(biases)
    out = np.zeros((width, len(shift)))
    out[: last.shape[1]] = last.T
    pairs["last"] = out, np.asarray(shift)
    params = {
        name: {"kernel": jnp.asarray(kernel, float), "bias": jnp.asarray(bias, float)}
        for name, (kernel, bias) in pairs.items()
    }
    apply = relu_network if activation is None else partial(_apply, activation)
    return Construction({"params": params}, apply, bound)


def relu_network(params: Any, x: Array) -> Array:
    """Run a ReLU network in this layout, layer by layer: its program can be bounded well.

    Args:
        params: Its parameters.
        x: Inputs, shape `(batch, d)`.

    Returns:
        The outputs, shape `(batch, outputs)`.
    """
    return _apply(lambda h: jnp.maximum(h, 0), params, x)


def _apply(activation: Callable, params: Any, x: Array) -> Array:
    layers = params["params"]
    h = x @ layers["first"]["kernel"] + layers["first"]["bias"][None]
    if "hidden" in layers:
        kernels, biases = layers["hidden"]["kernel"], layers["hidden"]["bias"]
        for layer in range(len(kernels)):
            h = activation(h) @ kernels[layer] + biases[layer][None]
    return activation(h) @ layers["last"]["kernel"] + layers["last"]["bias"][None]
