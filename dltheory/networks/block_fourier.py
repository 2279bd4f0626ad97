r"""The linear map of a convolutional layer on a torus, as blocks in Fourier space.

On a torus a stride of `s` is a stride of one that reads :math:`s^D` interleaved images as channels.
So the map is block-diagonal in frequency, one block :math:`\hat K(\omega)` of `s^D c_in` by `c_out`
numbers each; those of :math:`\omega` and :math:`-\omega` are conjugates of each other, and one of
the two is enough. The phases are NumPy: they depend on shapes alone.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dltheory.networks.convolution_geometry import Geometry, on_cpu
from dltheory.numerics import singular_values as dense

_GRAM = 1e-8  # squares below this part of the largest lose too many digits in a Gram matrix
_CHUNK = 8  # blocks that one call of LAPACK works on


def values(kernel: Array, geometry: Geometry) -> Array:
    """All singular values of a layer on a torus, descending.

    Args:
        kernel: As `convolution_geometry.layer` returns it.
        geometry: Likewise, on a torus.

    Returns:
        Shape `(groups * min(prod(image) * inputs, prod(output) * outputs),)`.
    """
    plan = _plan(geometry._replace(groups=1, inputs=1, outputs=1))
    count, _, taps = plan.gather.shape
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
    s = dense.singular_values(symbols(kernel, geometry))
    s = jnp.repeat(s, plan.multiplicity, axis=1, total_repeat_length=math.prod(geometry.output))
    return jnp.sort(s.reshape(-1))[::-1]


def symbols(kernel: Array, geometry: Geometry) -> Array:
    """The blocks of a layer on a torus, one of each pair of opposite frequencies.

    Args:
        kernel: As `convolution_geometry.layer` returns it.
        geometry: Likewise, on a torus.

    Returns:
        Complex, shape `(groups, frequencies, prod(strides) * inputs, outputs)`.
    """
    plan = _plan(geometry._replace(groups=1, inputs=1, outputs=1))
    count, classes, taps = plan.gather.shape
    gather = jnp.asarray(plan.gather.reshape(count * classes, taps), kernel.dtype)
    spread = jnp.matmul(gather, kernel.reshape(taps, -1), precision="highest").reshape(count, -1)
    parts = (jnp.asarray(f(plan.phases), kernel.dtype) for f in (np.cos, np.sin))
    real, imaginary = (jnp.matmul(part, spread, precision="highest") for part in parts)
    return _by_group(lax.complex(real, imaginary), geometry)


def nearest_kernel(blocks: Array, geometry: Geometry) -> Array:
    r"""The kernel whose blocks are the nearest to given ones, over all frequencies.

    .. math:: K_t = \frac1N \sum_\omega e^{-i \omega \cdot t} B(\omega)

    which leaves out what a larger kernel would need. Taps that a small image brings together share
    their sum in equal parts.

    Args:
        blocks: As `symbols` returns them.
        geometry: A layer on a torus.

    Returns:
        Shape `(*taps, inputs, groups * outputs)`.
    """
    plan = _plan(geometry._replace(groups=1, inputs=1, outputs=1))
    count, classes, taps = plan.gather.shape
    rows = blocks.transpose(1, 2, 0, 3).reshape(len(plan.phases), -1)
    weights = plan.multiplicity[:, None] / plan.multiplicity.sum()
    cos, sin = (
        jnp.asarray((weights * f(plan.phases)).T, rows.real.dtype) for f in (np.cos, np.sin)
    )
    spread = jnp.matmul(cos, rows.real, precision="highest")
    spread = spread + jnp.matmul(sin, rows.imag, precision="highest")
    gather = plan.gather.reshape(count * classes, taps)
    share = gather / np.maximum(gather.sum(1, keepdims=True), 1)
    share = jnp.asarray(share.T, spread.dtype)
    kernel = jnp.matmul(share, spread.reshape(count * classes, -1), precision="highest")
    return kernel.reshape(*geometry.taps, geometry.inputs, geometry.groups * geometry.outputs)


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
    multiplicity = np.where(own == opposite, 1, 2)[first].astype(np.int32)
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
    side = min(classes * geometry.inputs, geometry.outputs)
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
        sums = np.empty((len(lags), side, side))

        def correlate(number, sums=sums, stack=stack):
            first, second = np.array(pairs[number]).T
            rows = stack[first].reshape(-1, side), stack[second].reshape(-1, side)
            np.dot(rows[0].T, rows[1], out=sums[number])

        # Unlike the operator, np.dot lets other threads run.
        dense.on_all_cores([functools.partial(correlate, number) for number in range(len(lags))])
        flipped = sums.swapaxes(1, 2)
        sums, flipped = (a.reshape(len(lags), -1) for a in (sums, flipped))
        # Lag zero is its own opposite, which the sum of both counts twice.
        even, odd = sums + flipped, sums - flipped
        even[0] /= 2
        squares = np.empty_like(out)

        def eigenvalues(part, squares=squares, even=even, odd=odd):
            gram = np.empty((len(squares[part]), side, side), complex)
            gram.real = np.dot(waves[0][part], even).reshape(gram.shape)
            gram.imag = np.dot(waves[1][part], odd).reshape(gram.shape)
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
