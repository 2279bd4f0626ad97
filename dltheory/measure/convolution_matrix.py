r"""A convolutional layer written as a matrix, and its kernel written as one, which is another.

A kernel has the layout `(*spatial, in / groups, out)`, that of Flax and HWIO for images.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks import convolution_geometry
from dltheory.networks.convolution_geometry import Padding, Sizes
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
    kernel, geometry = convolution_geometry.layer(
        kernel, input_shape, padding, strides, dilation, groups
    )
    blocks = convolution_geometry.matrices(kernel, geometry)
    pixels = math.prod(geometry.output), math.prod(geometry.image)
    shape = (groups, pixels[0], geometry.outputs, pixels[1], geometry.inputs)
    apart = jnp.eye(groups, dtype=kernel.dtype)
    whole = jnp.einsum("gpoqi,gh->pgoqhi", blocks.reshape(shape), apart, precision="highest")
    return whole.reshape(pixels[0] * kernel.shape[-1], pixels[1] * groups * geometry.inputs)


def nearest_kernel(
    a: ArrayLike,
    kernel_shape: Sequence[int],
    input_shape: Sizes,
    *,
    padding: Padding = "CIRCULAR",
    strides: Sizes = 1,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    r"""The kernel of the convolution nearest to a dense map, in the Frobenius norm.

    .. math::
        \min_K \|A(K) - A\|_F, \qquad
        K_{t, i, o} = \frac{1}{|S_t|} \sum_{(p, q) \in S_t} A_{(p, o), (q, i)}

    the mean over all the entries that share a weight: :math:`S_t` holds the pairs of an output and
    an input pixel that tap :math:`t` connects. What the map has elsewhere is left out, and what is
    left of :math:`A` is orthogonal to every convolution of the shape.

    Args:
        a: A map of flattened images, as `matrix` returns it: shape
            `(prod(output pixels) * out, prod(input_shape) * in)`.
        kernel_shape: Shape `(*spatial, in / groups, out)` of the kernel.
        input_shape: As in `singular_values`.
        padding: As in `matrix`.
        strides: As in `singular_values`.
        dilation: As in `singular_values`.
        groups: As in `singular_values`.

    Returns:
        The kernel. Taps that a small circular image brings together share their sum in equal
        parts; a tap that sees zeros only is zero.

    Raises:
        TypeError: If `a` does not hold floats; as `singular_values`.
        ValueError: If there is no such layer, or its matrix has another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import convolution_matrix
        >>> a = jnp.array([[1.0, 2.0, 9.0], [9.0, 3.0, 4.0]])
        >>> convolution_matrix.nearest_kernel(a, (2, 1, 1), 3, padding="VALID").reshape(-1)
        Array([2., 3.], dtype=float32)
    """
    a = jnp.asarray(a)
    if not jnp.issubdtype(a.dtype, jnp.floating):
        raise TypeError(f"a holds {a.dtype}; want floating-point numbers: cast it first")
    blank = np.zeros(tuple(kernel_shape), np.float32)
    _, geometry = convolution_geometry.layer(blank, input_shape, padding, strides, dilation, groups)
    sides = (
        (*geometry.output, groups, geometry.outputs),
        (*geometry.image, groups, geometry.inputs),
    )
    wanted = math.prod(sides[0]), math.prod(sides[1])
    if a.shape != wanted:
        raise ValueError(
            f"a has shape {a.shape}; want {wanted}, (output pixels * out, pixels * in), for a "
            f"kernel of shape {tuple(kernel_shape)} on {geometry.image}"
        )
    dims = len(geometry.image)
    whole = a.reshape(*sides[0], *sides[1])
    # The channels of one group only see their own: (*output, outputs, *image, inputs, groups).
    left = jnp.diagonal(whole, axis1=dims, axis2=2 * dims + 2)
    for axis in range(dims):
        places = convolution_geometry.places(geometry, axis)
        share = np.linalg.pinv(places.reshape(-1, geometry.taps[axis])).reshape(
            -1, *places.shape[:2]
        )
        # Output and image lose one axis each; the taps go to the end.
        share = jnp.asarray(share, a.dtype)
        left = jnp.tensordot(left, share, ((0, dims - axis + 1), (1, 2)), precision="highest")
    kernel = left.transpose(*range(3, 3 + dims), 1, 2, 0)
    return kernel.reshape(tuple(kernel_shape))


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
