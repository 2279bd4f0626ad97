r"""The linear map of a convolutional layer: its geometry, its matrix, its blocks in Fourier space.

On a torus a stride of `s` is a stride of one that reads :math:`s^D` interleaved images as channels.
So the map is block-diagonal in frequency, one block :math:`\hat K(\omega)` of `s^D c_in` by `c_out`
numbers each; those of :math:`\omega` and :math:`-\omega` are conjugates of each other, and one of
the two is enough. The places and phases are NumPy: they depend on shapes alone.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from dltheory.numerics import singular_values as dense

_GRAM = 1e-8  # squares below this part of the largest lose too many digits in a Gram matrix
_CHUNK = 8  # blocks that one call of LAPACK works on


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
            t = product(t, _places(geometry, axis).astype(kernel.dtype), ((0,), (2,)))
    out, into = (tuple(range(3 + k, 3 + 2 * dims, 2)) for k in range(2))
    t = t.transpose(1, *out, 2, *into, 0)
    rows = math.prod(geometry.output) * geometry.outputs
    return jnp.asarray(t.reshape(geometry.groups, rows, -1))


def values(kernel: Array, geometry: Geometry) -> Array:
    """All singular values of a layer on a torus, descending.

    Args:
        kernel: As `layer` returns it.
        geometry: Likewise, on a torus.

    Returns:
        Shape `(groups * min(prod(image) * inputs, prod(output) * outputs),)`.
    """
    plan = _plan(geometry._replace(groups=1, inputs=1, outputs=1))
    count, classes, taps = plan.gather.shape
    if on_cpu(kernel):
        flat = np.asarray(kernel, float).reshape(taps, -1)
        if count**2 <= 4 * len(plan.phases):
            s = _on_host(flat, geometry, plan)
        else:
            with np.errstate(invalid="ignore"):
                spread = (plan.gather.reshape(-1, taps) @ flat).reshape(count, -1)
                blocks = np.exp(1j * plan.phases) @ spread
            s = dense.on_host([_by_group(blocks, geometry)])[0]
        s = np.repeat(s, plan.multiplicity, axis=1)
        return jnp.asarray(-np.sort(-s, axis=None), kernel.dtype)
    gather = jnp.asarray(plan.gather.reshape(count * classes, taps), kernel.dtype)
    taps = jnp.matmul(gather, kernel.reshape(taps, -1), precision="highest").reshape(count, -1)
    parts = (jnp.asarray(f(plan.phases), kernel.dtype) for f in (np.cos, np.sin))
    real, imaginary = (jnp.matmul(part, taps, precision="highest") for part in parts)
    s = dense.singular_values(_by_group(lax.complex(real, imaginary), geometry))
    s = jnp.repeat(s, plan.multiplicity, axis=1, total_repeat_length=math.prod(geometry.output))
    return jnp.sort(s.reshape(-1))[::-1]


def on_cpu(kernel: Array) -> bool:
    """Whether NumPy may work on a kernel, which spares the compilation of small programs.

    Args:
        kernel: Any array, traced or not.

    Returns:
        Whether it is concrete and on a CPU.
    """
    return not isinstance(kernel, Tracer) and next(iter(kernel.devices())).platform == "cpu"


class _Plan(NamedTuple):
    """What the blocks of a layer on a torus are made of.

    Attributes:
        gather: Which taps stand at which offset in which interleaved image, shape
            `(offsets, images, taps)`.
        offsets: Shape `(offsets, dims)`, in steps of a stride.
        phases: Angles, shape `(frequencies, offsets)`.
        frequencies: In turns per step, one of each pair of opposite ones.
        multiplicity: 2, or 1 where a frequency is its own opposite.
    """

    gather: np.ndarray
    offsets: np.ndarray
    phases: np.ndarray
    frequencies: np.ndarray
    multiplicity: np.ndarray


@functools.lru_cache(maxsize=64)
def _plan(geometry: Geometry) -> _Plan:
    sizes, strides = np.array(geometry.output), np.array(geometry.strides)
    taps = np.array(list(np.ndindex(*geometry.taps))) * geometry.dilation
    steps = (taps // strides) % sizes
    classes = np.ravel_multi_index(tuple((taps % strides).T), geometry.strides)
    offsets, number = np.unique(steps, axis=0, return_inverse=True)
    gather = np.zeros((len(offsets), math.prod(geometry.strides), len(taps)))
    gather[number.reshape(-1), classes, np.arange(len(taps))] = 1
    frequencies = np.array(list(np.ndindex(*geometry.output)))
    opposite = np.ravel_multi_index(tuple((-frequencies % sizes).T), geometry.output)
    own = np.arange(len(frequencies))
    first = own <= opposite
    multiplicity = np.where(own == opposite, 1, 2)[first]
    frequencies = frequencies[first] / sizes
    phases = _angles(frequencies, offsets)
    return _Plan(gather, offsets, phases, frequencies, multiplicity)


def _angles(frequencies: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return 2 * np.pi * ((frequencies @ offsets.T) % 1)


def _by_group(blocks, geometry: Geometry):
    """Numbers in the order of the kernel's channels as a matrix a group, groups first."""
    shape = (blocks.shape[0], -1, geometry.groups, geometry.outputs)
    return blocks.reshape(shape).transpose(2, 0, 1, 3)


def _on_host(flat: np.ndarray, geometry: Geometry, plan: _Plan) -> np.ndarray:
    r"""Values of the blocks by NumPy: roots of the eigenvalues of Gram matrices, where accurate.

    .. math:: \hat K^* \hat K(\omega) = \sum_\delta e^{i \omega \delta} \sum_t K_t^\top K_{t+\delta}

    The autocorrelation of the kernel has few lags, so that no product of matrices is left to do a
    frequency.
    """
    count, classes, _ = plan.gather.shape
    side, across = sorted((classes * geometry.inputs, geometry.outputs))
    found = np.full((geometry.groups, len(plan.phases), side), np.nan)
    scale = np.abs(flat).max()
    if not np.isfinite(scale):
        return found
    taps = (plan.gather.reshape(count * classes, -1) @ (flat / (scale or 1))).reshape(count, -1)
    stacks = _by_group(taps, geometry)
    if stacks.shape[2] < stacks.shape[3]:
        stacks = stacks.swapaxes(2, 3)
    lags, pairs = _lags(plan.offsets)
    angles = _angles(plan.frequencies, lags)
    waves = np.cos(angles), np.sin(angles)
    for out, stack in zip(found, stacks, strict=True):
        columns = stack.transpose(1, 0, 2).reshape(across, count * side)
        products = (columns.T @ columns).reshape(count, side, count, side)
        sums = np.stack([sum(products[a, :, b] for a, b in pair) for pair in pairs])
        flipped = sums.swapaxes(1, 2)
        sums, flipped = (a.reshape(len(lags), -1) for a in (sums, flipped))
        # Lag zero is its own opposite, which the sum of both counts twice.
        even, odd = sums + flipped, sums - flipped
        even[0] /= 2
        squares = np.empty_like(out)

        def eigenvalues(part, squares=squares, even=even, odd=odd):
            gram = np.empty((len(squares[part]), side, side), complex)
            gram.real = (waves[0][part] @ even).reshape(gram.shape)
            gram.imag = (waves[1][part] @ odd).reshape(gram.shape)
            squares[part] = np.linalg.eigvalsh(gram)[:, ::-1]

        def exact(part, out=out, stack=stack):
            wave = np.exp(1j * plan.phases[part])
            blocks = (wave @ stack.reshape(count, -1)).reshape(-1, *stack.shape[1:])
            out[part] = np.linalg.svd(blocks, compute_uv=False)

        parts = [slice(i, i + _CHUNK) for i in range(0, len(squares), _CHUNK)]
        dense.on_all_cores([functools.partial(eigenvalues, part) for part in parts])
        out[:] = np.sqrt(np.maximum(squares, 0))
        (again,) = np.nonzero(squares[:, -1] <= _GRAM * squares.max())
        parts = [again[i : i + _CHUNK] for i in range(0, len(again), _CHUNK)]
        dense.on_all_cores([functools.partial(exact, part) for part in parts])
    return found * scale


def _lags(offsets: np.ndarray) -> tuple[np.ndarray, list[list[tuple[int, int]]]]:
    """Differences of offsets, zero first and one of each pair of opposites, and what has them."""
    pairs: dict[tuple[int, ...], list[tuple[int, int]]] = {(0,) * offsets.shape[1]: []}
    for a, b in itertools.product(range(len(offsets)), repeat=2):
        lag = tuple((offsets[b] - offsets[a]).tolist())
        if lag >= (0,) * len(lag):
            pairs.setdefault(lag, []).append((a, b))
    return np.array(list(pairs)), list(pairs.values())


def _places(geometry: Geometry, axis: int) -> np.ndarray:
    """How often each tap of each output reads each pixel along one axis: (output, image, taps)."""
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
