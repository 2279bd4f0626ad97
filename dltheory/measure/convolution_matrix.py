r"""A convolutional layer written as a matrix, and its kernel written as one, which is another.

A kernel has the layout `(*spatial, in / groups, out)`, that of Flax and HWIO for images.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.measure import block_fourier
from dltheory.measure.block_fourier import Padding, Sizes
from dltheory.numerics import singular_values as dense


class ReshapedNorms(NamedTuple):
    """Norms of a kernel written as a matrix, each shape `()`: lower bounds of that of the layer.

    Attributes:
        outputs: With a row an output channel, as frameworks' spectral normalisation has it.
        inputs: With a row an input channel.
    """

    outputs: Array
    inputs: Array


def matrix(
    kernel: ArrayLike,
    input_shape: Sizes,
    *,
    padding: Padding = "CIRCULAR",
    strides: Sizes = 1,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    """A convolutional layer as a dense matrix, which acts on flattened images `(*spatial, in)`.

    Args:
        kernel: As in `singular_values`.
        input_shape: As in `singular_values`.
        padding: As in `singular_values`; circular as in Flax, the odd tap after the centre.
        strides: As in `singular_values`.
        dilation: As in `singular_values`.
        groups: As in `singular_values`.

    Returns:
        Shape `(prod(output pixels) * out, prod(input_shape) * in)`.

    Raises:
        TypeError: As `singular_values`.
        ValueError: If there is no such layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import convolution_matrix
        >>> convolution_matrix.matrix(jnp.array([1.0, 2.0]).reshape(2, 1, 1), 3, padding="VALID")
        Array([[1., 2., 0.],
               [0., 1., 2.]], dtype=float32)
    """
    kernel, geometry = block_fourier.layer(kernel, input_shape, padding, strides, dilation, groups)
    blocks = block_fourier.matrices(kernel, geometry)
    pixels = math.prod(geometry.output), math.prod(geometry.image)
    shape = (groups, pixels[0], geometry.outputs, pixels[1], geometry.inputs)
    apart = jnp.eye(groups, dtype=kernel.dtype)
    whole = jnp.einsum("gpoqi,gh->pgoqhi", blocks.reshape(shape), apart, precision="highest")
    return whole.reshape(pixels[0] * kernel.shape[-1], pixels[1] * groups * geometry.inputs)


def reshaped_norms(kernel: ArrayLike) -> ReshapedNorms:
    r"""Norms of the kernel as a matrix, which frameworks take for the norm of the layer.

    .. math::
        \max(\text{outputs}, \text{inputs}) \le \|A\|
        \le \sqrt{\textstyle\prod_a k_a}\, \min(\text{outputs}, \text{inputs})

    for the layer :math:`A` on circular images no smaller than the kernel, with strides of one: the
    first is the norm of what one output pixel makes of its patch.

    Args:
        kernel: Shape `(*spatial, in, out)`.

    Returns:
        The two norms.

    Raises:
        TypeError: If the kernel does not hold floats.
        ValueError: If the kernel has fewer than three axes.

    Source:
        Singla and Feizi (2021), Fantastic four; Tsuzuku, Sato and Sugiyama (2018).
    """
    kernel = jnp.asarray(kernel)
    if kernel.ndim < 3:
        raise ValueError(
            f"kernel has shape {kernel.shape}; want (*spatial, in / groups, out), HWIO for images"
        )
    inputs, outputs = kernel.shape[-2:]
    shapes = (
        kernel.reshape(-1, outputs),
        jnp.moveaxis(kernel, -2, 0).reshape(inputs, -1),
    )
    return ReshapedNorms(*(dense.singular_values(a)[0] for a in shapes))
