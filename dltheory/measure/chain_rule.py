r"""Layers with their derivatives written out by hand, as a textbook writes them.

Nothing here asks JAX for a gradient, so that `jax.grad` can be checked against it. Values are
`(N, ..., channels)`. A layer's own parameters are a dict; those of a residual block are a list,
one entry for each layer inside; a layer without any has an empty dict.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from dltheory.networks import activations


class Layer(NamedTuple):
    """A layer, forwards and backwards.

    Attributes:
        forward: `forward(params, h) -> (value, memory)`, where `memory` is what the way back needs.
        backward: `backward(params, memory, delta) -> (gradients, delta)`: from the derivative of
            the loss by the layer's value to those by its parameters and by its input. The second
            is the transpose of the layer's local Jacobian, a factor of the chain rule.
    """

    forward: Callable[[Any, Array], tuple[Array, Any]]
    backward: Callable[[Any, Any, Array], tuple[Any, Array]]


def dense() -> Layer:
    r"""A dense layer: outer products of what came in and what comes back.

    .. math:: h' = h W + b, \qquad \nabla_W = h^\top \delta, \quad \nabla_b = \sum_n \delta_n,
        \quad \delta_h = \delta W^\top

    Returns:
        The layer; its parameters are `kernel`, shape `(in, out)`, and `bias`, shape `(out,)`,
        which may be missing.
    """

    def forward(params: dict, h: Array) -> tuple[Array, Array]:
        return _biased(params, h @ params["kernel"]), h

    def backward(params: dict, h: Array, delta: Array) -> tuple[dict, Array]:
        kernel = jnp.einsum("...i,...o->io", h, delta)
        return _with_bias(params, {"kernel": kernel}, delta), delta @ params["kernel"].T

    return Layer(forward, backward)


def convolution(strides: int | Sequence[int] = 1, padding: str = "SAME") -> Layer:
    r"""A convolution (cross-correlation): one dense layer for each tap of the kernel.

    .. math:: h' = \sum_o S_o(h)\, W_o + b, \qquad \nabla_{W_o} = S_o(h)^\top \delta, \quad
        \delta_h = \sum_o S_o^\top (\delta\, W_o^\top)

    where :math:`S_o` reads the padded input at offset :math:`o` in every window, and its transpose
    adds there.

    Args:
        strides: One for all spatial axes, or one for each.
        padding: `SAME` or `VALID`.

    Returns:
        The layer; its parameters are `kernel`, shape `(*spatial, in, out)`, and `bias`, which may
        be missing.
    """

    def windows(params: dict, shape: tuple[int, ...]):
        """Padding of each axis, and for each offset the slices that it reads."""
        sizes = params["kernel"].shape[:-2]
        steps = (strides,) * len(sizes) if isinstance(strides, int) else tuple(strides)
        pads = lax.padtype_to_pads(shape[1:-1], sizes, steps, padding)
        padded = [n + sum(pad) for n, pad in zip(shape[1:-1], pads, strict=True)]
        out = [(n - k) // s + 1 for n, k, s in zip(padded, sizes, steps, strict=True)]
        reads = {
            offset: (slice(None), *(slice(a, a + s * (n - 1) + 1, s) for a, s, n in zipped))
            for offset in product(*map(range, sizes))
            for zipped in [tuple(zip(offset, steps, out, strict=True))]
        }
        return [(0, 0), *pads, (0, 0)], reads

    def forward(params: dict, h: Array) -> tuple[Array, Array]:
        pads, reads = windows(params, h.shape)
        padded = jnp.pad(h, pads)
        value = sum(padded[read] @ params["kernel"][offset] for offset, read in reads.items())
        return _biased(params, jnp.asarray(value)), h

    def backward(params: dict, h: Array, delta: Array) -> tuple[dict, Array]:
        pads, reads = windows(params, h.shape)
        padded, kernel = jnp.pad(h, pads), params["kernel"]
        gradient, below = jnp.zeros_like(kernel), jnp.zeros_like(padded)
        for offset, read in reads.items():
            outer = jnp.einsum("...i,...o->io", padded[read], delta)
            gradient = gradient.at[offset].set(outer)
            below = below.at[read].add(delta @ kernel[offset].T)
        inside = tuple(
            slice(low, n - high) for (low, high), n in zip(pads, below.shape, strict=True)
        )
        return _with_bias(params, {"kernel": gradient}, delta), below[inside]

    return Layer(forward, backward)


def activation(phi: Any) -> Layer:
    r"""A function of each number.

    .. math:: h' = \phi(h), \qquad \delta_h = \phi'(h) \odot \delta

    Args:
        phi: Activation, its name, or a scalar callable.

    Returns:
        The layer, without parameters; :math:`\phi'` is the scalar derivative.
    """
    phi = activations.get(phi)

    def backward(_: dict, h: Array, delta: Array) -> tuple[dict, Array]:
        slope = jax.jvp(phi, (h,), (jnp.ones_like(h),))[1]
        return {}, slope * delta

    return Layer(lambda _, h: (phi(h), h), backward)


def layer_norm(epsilon: float = 1e-6) -> Layer:
    r"""Normalization of the features of each example, over the last axis.

    .. math:: \hat h = \frac{h - \mu}{s}, \quad h' = \gamma \hat h + \beta, \qquad
        \delta_h = \frac1s \Big(g - \overline{g} - \hat h\, \overline{g \hat h}\Big), \quad
        g = \gamma \delta

    Args:
        epsilon: What is added to the variance.

    Returns:
        The layer; its parameters are `scale` and `bias`, shape `(features,)`.
    """
    return _normalization(epsilon, lambda h: (h.ndim - 1,))


def batch_norm(epsilon: float = 1e-5) -> Layer:
    r"""Normalization of each feature over the batch and over space, as in training.

    The formulas are those of `layer_norm`, with means over all axes but the last.

    Args:
        epsilon: What is added to the variance.

    Returns:
        The layer; its parameters are `scale` and `bias`, shape `(features,)`.
    """
    return _normalization(epsilon, lambda h: tuple(range(h.ndim - 1)))


def flatten() -> Layer:
    """All features of an example in one axis.

    Returns:
        The layer, without parameters.
    """
    return Layer(
        lambda _, h: (h.reshape(h.shape[0], -1), h.shape),
        lambda _, shape, delta: ({}, delta.reshape(shape)),
    )


def residual(*layers: Layer) -> Layer:
    r"""A branch beside the identity: deltas take both ways, and add.

    .. math:: h' = h + F(h), \qquad \delta_h = \delta + F'(h)^\top \delta

    Args:
        *layers: The layers of the branch, in order.

    Returns:
        The layer; its parameters are a list, one entry for each layer of the branch.
    """

    def forward(params: Sequence, h: Array) -> tuple[Array, list]:
        value, memories = h, []
        for layer, own in zip(layers, params, strict=True):
            value, memory = layer.forward(own, value)
            memories.append(memory)
        return h + value, memories

    def backward(params: Sequence, memories: list, delta: Array) -> tuple[list, Array]:
        gradients, below = [], delta
        for layer, own, memory in zip(layers[::-1], params[::-1], memories[::-1], strict=True):
            gradient, below = layer.backward(own, memory, below)
            gradients.append(gradient)
        return gradients[::-1], delta + below

    return Layer(forward, backward)


def _normalization(epsilon: float, axes: Callable[[Array], tuple[int, ...]]) -> Layer:
    def forward(params: dict, h: Array):
        mean = lambda a: a.mean(axis=axes(h), keepdims=True)
        centred = h - mean(h)
        s = jnp.sqrt(mean(centred * centred) + epsilon)
        unit = centred / s
        return _biased(params, unit * _last(params["scale"], h)), (unit, s)

    def backward(params: dict, memory, delta: Array) -> tuple[dict, Array]:
        unit, s = memory
        mean = lambda a: a.mean(axis=axes(unit), keepdims=True)
        g = delta * _last(params["scale"], delta)
        scale = (delta * unit).sum(axis=tuple(range(delta.ndim - 1)))
        below = (g - mean(g) - unit * mean(g * unit)) / s
        return _with_bias(params, {"scale": scale}, delta), below

    return Layer(forward, backward)


def _last(vector: Array, like: Array) -> Array:
    return vector.reshape(*[1] * (like.ndim - 1), -1)


def _biased(params: dict, h: Array) -> Array:
    return h + _last(params["bias"], h) if "bias" in params else h


def _with_bias(params: dict, gradients: dict, delta: Array) -> dict:
    if "bias" not in params:
        return gradients
    return gradients | {"bias": delta.sum(axis=tuple(range(delta.ndim - 1)))}
