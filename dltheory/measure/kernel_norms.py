r"""Norms of the kernels of any model, layer by layer, as operators."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dltheory.networks import weights
from dltheory.numerics.singular_values import singular_values

# Frequencies per tap at which a convolution is looked at, in each direction.
_PER_TAP = 8


class KernelNorms(NamedTuple):
    """Natural logarithms of the norms of kernels, scanned layers one by one.

    Attributes:
        layers: The text of the layer of each, such as `Dense_1`, once for each of a scan.
        log_frobenius: Of all entries, shape `(kernels,)`.
        log_spectral: The operator norm, shape `(kernels,)`.
        log_units: The sum over units of the norm of the weights into each, shape `(kernels,)`.
    """

    layers: tuple[str, ...]
    log_frobenius: Array
    log_spectral: Array
    log_units: Array


def kernel_norms(f: Callable, params: Any, x: Array) -> KernelNorms:
    r"""The norms of each kernel of a model, found in its traced program.

    The operator norm of a convolution is the largest over a grid of frequencies,
    :math:`\max_\omega \|\sum_t W_t e^{-i \omega t}\|_2`, with eight to a tap: exact for
    circular padding at that size, and by Bernstein's inequality above 98 % of the norm at any size,
    once for each direction. A kernel that is used twice counts once.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of floating-point arrays.
        x: A batch of inputs.

    Returns:
        `KernelNorms`, in the order in which the model meets them; `-inf` for a kernel of zeros.

    Raises:
        SiteError: If the model has no layers.
        ValueError: If a layer's weights are more than the axes of one leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import kernel_norms
        >>> f = lambda p, x: jnp.tanh(x @ p["w1"]) @ p["w2"]
        >>> p = {"w1": 2 * jnp.eye(4), "w2": jnp.ones((4, 1))}
        >>> found = kernel_norms.kernel_norms(f, p, jnp.ones((5, 4)))
        >>> found.layers, [f"{norm:.2f}" for norm in jnp.exp(found.log_spectral)]
        (('w1', 'w2'), ['2.00', '2.00'])
    """
    found = weights.find(f, params, x)
    if found.unknown:
        raise ValueError(
            f"the weights of {', '.join(found.unknown)} are made of more than the axes of one "
            "leaf, so that they have no norm of their own: multiply them out in params"
        )
    leaves = jax.tree.leaves(params)
    columns = [_norms(leaves[kernel.leaf], kernel) for kernel in found.kernels]
    layers = [
        kernel.layer
        for kernel, column in zip(found.kernels, columns, strict=True)
        for _ in range(len(column[0]))
    ]
    return KernelNorms(
        tuple(layers), *(jnp.log(jnp.concatenate(norms)) for norms in zip(*columns, strict=True))
    )


def _norms(leaf: Array, kernel: weights.Kernel) -> tuple[Array, Array, Array]:
    """The three norms of each layer of a leaf."""
    groups = kernel.scanned, kernel.stack, kernel.spatial, kernel.inputs, kernel.outputs
    taps = [leaf.shape[axis] for axis in kernel.spatial]
    layers, stack, _, inputs, outputs = (
        math.prod(leaf.shape[axis] for axis in group) for group in groups
    )
    order = [axis for group in groups for axis in group]
    a = jnp.transpose(leaf, order).reshape(layers, stack, *taps, inputs, outputs)
    matrices = a
    if taps:
        grid = [_PER_TAP * tap for tap in taps]
        matrices = jnp.fft.fftn(a, grid, axes=tuple(range(2, 2 + len(taps))))
    # Parallel kernels are the blocks of one matrix, as are the frequencies of a convolution.
    spectral = jnp.max(singular_values(matrices)[..., 0].reshape(layers, -1), axis=1)
    units = jnp.sqrt(jnp.sum(a.reshape(layers, stack, -1, outputs) ** 2, axis=2))
    frobenius = jnp.sqrt(jnp.sum(a.reshape(layers, -1) ** 2, axis=1))
    return frobenius, spectral, jnp.sum(units.reshape(layers, -1), axis=1)
