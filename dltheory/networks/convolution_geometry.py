r"""The linear map of a convolutional layer: its geometry, what it reads, and its matrix.

A kernel has the layout `(*spatial, in / groups, out)`, that of Flax and HWIO for images. The places
are NumPy: they depend on shapes alone.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

Sizes = int | Sequence[int]
"""One number, or one an axis."""

Padding = str | Sequence[tuple[int, int]]
"""`"CIRCULAR"`, `"SAME"`, `"VALID"`, or a pair of numbers an axis."""


class Geometry(NamedTuple):
    """A layer without its weights, axis by axis.

    Attributes:
        image: Pixels in.
        taps: Taps of the kernel.
        strides: Step between outputs.
        dilation: Step between taps.
        pads: Zeros before and after; `None` for circular padding.
        output: Pixels out.
        inputs: Channels in, of one group.
        outputs: Channels out, of one group.
        groups: Number of groups.
    """

    image: tuple[int, ...]
    taps: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...] | None
    output: tuple[int, ...]
    inputs: int
    outputs: int
    groups: int

    @property
    def on_torus(self) -> bool:
        """Whether the map commutes with shifts of the output: circular, the image divided."""
        divides = all(n % s == 0 for n, s in zip(self.image, self.strides, strict=True))
        return self.pads is None and divides

    @property
    def entries(self) -> int:
        """Number of entries of the matrix of one group."""
        return math.prod(self.image) * self.inputs * math.prod(self.output) * self.outputs


def layer(
    kernel: ArrayLike,
    input_shape: Sizes,
    padding: Padding,
    strides: Sizes,
    dilation: Sizes,
    groups: int,
) -> tuple[Array, Geometry]:
    """A kernel as an array, and the geometry of its layer, or an error that says what is wrong.

    Args:
        kernel: Shape `(*spatial, in / groups, out)`.
        input_shape: Pixels along each axis.
        padding: Of the image.
        strides: Step between outputs.
        dilation: Step between taps.
        groups: Number of groups of channels.

    Returns:
        The kernel, of single precision at least, and the geometry.

    Raises:
        TypeError: If the kernel is not of floats, or a size not an integer.
        ValueError: If the layer does not exist.
    """
    kernel = jnp.asarray(kernel)
    if not jnp.issubdtype(kernel.dtype, jnp.floating):
        raise TypeError(f"kernel holds {kernel.dtype}; want floating-point numbers: cast it first")
    if jnp.finfo(kernel.dtype).bits < 32:
        kernel = kernel.astype(jnp.float32)
    image = (input_shape,) if isinstance(input_shape, int) else tuple(input_shape)
    dims = len(image)
    if dims < 1 or kernel.ndim != dims + 2:
        raise ValueError(
            f"kernel has shape {kernel.shape} and input_shape is {image}: for {dims} spatial axes "
            f"the kernel has {dims + 2}, (*spatial, in / groups, out), which is HWIO for images; "
            "input_shape has the spatial axes only, H and W of NHWC"
        )
    taps = kernel.shape[:dims]
    image = _per_axis("input_shape", image, dims)
    strides = _per_axis("strides", strides, dims)
    dilation = _per_axis("dilation", dilation, dims)
    (groups,) = _per_axis("groups", groups, 1)
    if 0 in kernel.shape:
        raise ValueError(f"kernel has shape {kernel.shape}; want no axis of length zero")
    if kernel.shape[-1] % groups:
        raise ValueError(
            f"groups is {groups}, which does not divide the {kernel.shape[-1]} output channels of "
            f"the kernel of shape {kernel.shape}, laid out (*spatial, in / groups, out), HWIO"
        )
    reach = [d * (k - 1) + 1 for k, d in zip(taps, dilation, strict=True)]
    if isinstance(padding, str) and padding.upper() == "CIRCULAR":
        pads = None
        output = [-(-n // s) for n, s in zip(image, strides, strict=True)]
    else:
        pads = _pads(padding, image, reach, strides)
        spare = [n + sum(p) - r for n, p, r in zip(image, pads, reach, strict=True)]
        if min(spare) < 0:
            raise ValueError(
                f"kernel of shape {kernel.shape}, laid out (*spatial, in / groups, out), spans "
                f"{tuple(reach)} pixels, more than the image {image} with padding {pads}: pad "
                "more, or transpose a kernel that is not HWIO"
            )
        output = [gap // s + 1 for gap, s in zip(spare, strides, strict=True)]
    channels = kernel.shape[-2], kernel.shape[-1] // groups
    geometry = Geometry(image, taps, strides, dilation, pads, tuple(output), *channels, groups)
    return kernel, geometry


def torus(geometry: Geometry) -> Geometry:
    """A layer on a torus of which the given one is a part, so that its norm is no smaller.

    Args:
        geometry: A layer, zero-padded or circular.

    Returns:
        For zero padding the layer on the smallest torus where what is read beyond one border stays
        apart from the pixels at the other, and the outputs apart; for circular padding the layer
        with a stride of one where the stride does not divide the image.
    """
    image, strides = list(geometry.image), list(geometry.strides)
    for axis, (n, s) in enumerate(zip(geometry.image, geometry.strides, strict=True)):
        if geometry.pads is None:
            strides[axis] = s if n % s == 0 else 1
        else:
            beyond = n + max(0, *geometry.pads[axis])
            image[axis] = s * max(-(-beyond // s), geometry.output[axis])
    output = tuple(n // s for n, s in zip(image, strides, strict=True))
    return geometry._replace(image=tuple(image), strides=tuple(strides), output=output, pads=None)


def matrices(kernel: Array, geometry: Geometry) -> Array:
    """The matrix of each group, pixels before channels.

    Args:
        kernel: As `layer` returns it.
        geometry: Likewise.

    Returns:
        Shape `(groups, prod(output) * outputs, prod(image) * inputs)`.
    """
    dims = len(geometry.image)
    shape = (*geometry.taps, geometry.inputs, geometry.groups, geometry.outputs)
    if on_cpu(kernel):
        t, product = np.asarray(kernel).reshape(shape), np.tensordot
    else:
        t, product = kernel.reshape(shape), functools.partial(jnp.tensordot, precision="highest")
    with np.errstate(invalid="ignore"):
        for axis in range(dims):
            t = product(t, places(geometry, axis).astype(kernel.dtype), ((0,), (2,)))
    out, into = (tuple(range(3 + k, 3 + 2 * dims, 2)) for k in range(2))
    t = t.transpose(1, *out, 2, *into, 0)
    rows = math.prod(geometry.output) * geometry.outputs
    return jnp.asarray(t.reshape(geometry.groups, rows, -1))


def on_cpu(kernel: Array) -> bool:
    """Whether NumPy may work on a kernel, which spares the compilation of small programs.

    Args:
        kernel: Any array, traced or not.

    Returns:
        Whether it is concrete and on a CPU.
    """
    return not isinstance(kernel, Tracer) and next(iter(kernel.devices())).platform == "cpu"


def places(geometry: Geometry, axis: int) -> np.ndarray:
    """How often each tap of each output reads each pixel along one axis.

    Args:
        geometry: A layer.
        axis: The axis.

    Returns:
        Zeros and ones, shape `(output, image, taps)`.
    """
    n, k = geometry.image[axis], geometry.taps[axis]
    d, s = geometry.dilation[axis], geometry.strides[axis]
    # Where Flax begins: the odd tap after the centre.
    before = d * (k - 1) // 2 if geometry.pads is None else geometry.pads[axis][0]
    read = s * np.arange(geometry.output[axis])[:, None] + d * np.arange(k) - before
    if geometry.pads is None:
        read %= n
    return (read[:, None, :] == np.arange(n)[None, :, None]).astype(float)


def _per_axis(name: str, value, dims: int) -> tuple[int, ...]:
    """One positive integer an axis."""
    given = tuple(value) if isinstance(value, Sequence) else (value,) * dims
    if len(given) != dims:
        raise ValueError(f"{name} is {value}; want one number, or {dims}, one a spatial axis")
    for one in given:
        if isinstance(one, bool) or not isinstance(one, int | np.integer):
            raise TypeError(f"{name} is {value}; want positive integers")
        if one < 1:
            raise ValueError(f"{name} is {value}; want positive integers")
    return tuple(int(one) for one in given)


def _pads(padding, image, reach, strides) -> tuple[tuple[int, int], ...]:
    """Zeros before and after, an axis."""
    if isinstance(padding, str) and padding.upper() in ("SAME", "VALID"):
        return tuple(lax.padtype_to_pads(image, reach, strides, padding.upper()))
    pairs = None if isinstance(padding, str) else [tuple(pair) for pair in padding]
    if pairs is None or len(pairs) != len(image) or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"padding is {padding!r}; want 'CIRCULAR', 'SAME', 'VALID', or a pair of numbers for "
            f"each of {len(image)} spatial axes"
        )
    return tuple((int(a), int(b)) for a, b in pairs)
