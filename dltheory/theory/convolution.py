r"""Convolutional layers: receptive fields, borders, pooling, and signals by spatial frequency.

Along one axis a layer has `kernel` taps, `dilation` pixels apart, and `stride` pixels between its
outputs; axes are independent of each other.

With circular padding a layer averages covariances over the positions that its kernel covers.
Averaging is diagonal in Fourier modes, and the channels act on each mode as a dense layer does:
the constant mode is that of the dense network, and all others fade faster.

Source: Xiao et al. (2018), Dynamical isometry and a mean field theory of CNNs.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dltheory.numerics.results import ReceptiveField
from dltheory.theory import mean_field
from dltheory.theory.dual import Phi
from dltheory.theory.mean_field import DepthScales
from dltheory.theory.parameters import check_count


class WeightCounts(NamedTuple):
    """Weights of three layers between the same two images.

    Attributes:
        dense: Of a dense one, every pixel to every pixel.
        local: Of a locally connected one, every output with taps of its own.
        shared: Of a convolution, one set of taps for all.
    """

    dense: int
    local: int
    shared: int


def fourier_modes(n: int, k: int) -> Array:
    r"""Eigenvalues of averaging over `k` neighbours on a ring of `n` positions.

    .. math:: \lambda_\alpha = \frac{1}{k} \sum_{b} \cos\frac{2 \pi \alpha b}{n}
        = \frac{\sin(\pi k \alpha / n)}{k \sin(\pi \alpha / n)}, \qquad
        \alpha = 0, \ldots, \lfloor n / 2 \rfloor

    with `b` centred on zero. The eigenvalues of a kernel on a plane are products, one of each axis.

    Args:
        n: Positions on the ring.
        k: Size of the kernel.

    Returns:
        The eigenvalues, shape `(n // 2 + 1,)`.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is below one.

    Example:
        >>> from dltheory.theory import convolution
        >>> print([f"{mode:.3f}" for mode in convolution.fourier_modes(8, 3)])
        ['1.000', '0.805', '0.333', '-0.138', '-0.333']
    """
    check_count("n", n)
    check_count("k", k)
    offsets = np.arange(k) - (k - 1) / 2
    modes = np.cos(2 * np.pi / n * np.arange(n // 2 + 1)[:, None] * offsets).mean(1)
    return jnp.asarray(modes, float)


def mode_depth_scales(
    phi: Phi, *, kernel_size: int, size: int, weight_var: ArrayLike, bias_var: ArrayLike
) -> DepthScales:
    r"""How many layers each Fourier mode of a deviation from the fixed point survives.

    .. math:: \xi_\alpha^{-1} = -\log\left(\chi\,|\lambda_\alpha|\right)

    with :math:`\chi` the slope of the length map or of the correlation map of the dense network,
    and :math:`\lambda_\alpha` the `fourier_modes`.

    Args:
        phi: Activation, its name, or a scalar callable.
        kernel_size: Size of the kernel along one axis.
        size: Positions along that axis, with circular padding.
        weight_var: Weight variance times fan-in, the kernel's size included; shape `()`.
        bias_var: Bias variance, shape `()`.

    Returns:
        `DepthScales`, each of shape `(size // 2 + 1,)`; the first entries are those of the dense
        network. Zero where a mode does not survive one layer.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is below one, a variance negative or there is no stable fixed point
            (under tracing the result is NaN instead).

    Source: Xiao et al. (2018).
    """
    modes = fourier_modes(size, kernel_size)
    scales = mean_field.depth_scales(phi, weight_var=weight_var, bias_var=bias_var)
    survives = jnp.abs(modes) > 4 * jnp.finfo(modes.dtype).eps
    lost = -jnp.log(jnp.abs(jnp.where(survives, modes, 1))).astype(scales.xi_q.dtype)
    return DepthScales(*(jnp.where(survives, 1 / (1 / xi + lost), 0) for xi in scales))


def receptive_field(layers: Sequence[Sequence[int]]) -> ReceptiveField:
    r"""What an output of a stack of layers sees of the input, along one axis.

    .. math::
        r = 1 + \sum_l (k_l - 1)\, d_l \prod_{i<l} s_i, \qquad s = \prod_l s_l, \qquad
        p = \sum_l p_l \prod_{i<l} s_i

    Args:
        layers: First to last, `(kernel, stride, dilation)` or `(kernel, stride, dilation,
            padding)`, pooling like convolutions; the padding is the one before the first pixel,
            zero where it is left out, and what follows it is not read.

    Returns:
        The size of the field, the stride from one output's field to the next one's, and how far
        the first output's field begins before the first pixel.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If one is below one, or a padding below zero.

    Example:
        >>> from dltheory.theory import convolution
        >>> convolution.receptive_field([(3, 1, 1), (2, 2, 1), (3, 1, 1)])
        ReceptiveField(size=8, stride=2, padding=0)

    Source:
        Araujo, Norris and Sim (2019), Computing receptive fields of convolutional neural networks.
    """
    size, jump, before = 1, 1, 0
    for kernel, stride, dilation, padding in _checked(layers):
        size += (kernel - 1) * dilation * jump
        before += padding * jump
        jump *= stride
    return ReceptiveField(size, jump, before)


def effective_std(layers: Sequence[Sequence[int]]) -> float:
    r"""Standard deviation of the effective receptive field, along one axis.

    .. math:: \sigma^2 = \sum_l \frac{k_l^2 - 1}{12} \Bigl(d_l \prod_{i<l} s_i\Bigr)^2

    It is that of `effective_profile`: for `n` equal layers of stride one :math:`\sqrt{n (k^2 - 1) /
    12}`, while the receptive field grows as `n`.

    Args:
        layers: As in `receptive_field`.

    Returns:
        The standard deviation, in pixels.

    Raises:
        TypeError: As `receptive_field`.
        ValueError: As `receptive_field`.

    Source:
        Luo, Li, Urtasun and Zemel (2016), Understanding the effective receptive field.
    """
    taps = zip(_checked(layers), _spacings(layers), strict=True)
    return math.sqrt(sum((kernel**2 - 1) * step**2 for (kernel, *_), step in taps) / 12)


def effective_profile(layers: Sequence[Sequence[int]]) -> Array:
    r"""How much each pixel of the receptive field counts, along one axis, before training.

    .. math:: p = u_1 * u_2 * \dots * u_L

    with :math:`u_l` the uniform distribution on the taps of a layer. In a linear network with
    independent weights of mean zero it is the mean squared gradient of an output, and in one whose
    weights are all equal the gradient.

    Args:
        layers: As in `receptive_field`.

    Returns:
        A distribution over the pixels of the field, shape `(size,)`, of sum one.

    Raises:
        TypeError: As `receptive_field`.
        ValueError: As `receptive_field`.

    Source:
        Luo, Li, Urtasun and Zemel (2016), Understanding the effective receptive field.
    """
    profile = np.ones(1)
    for (kernel, *_), step in zip(_checked(layers), _spacings(layers), strict=True):
        taps = np.zeros((kernel - 1) * step + 1)
        taps[::step] = 1 / kernel
        profile = np.convolve(profile, taps)
    return jnp.asarray(profile, jnp.result_type(float))


def output_size(size: int, layer: Sequence[int]) -> int:
    r"""Outputs of a layer along one axis, with equal padding at both ends.

    .. math:: \Bigl\lfloor \frac{n + 2p - d(k - 1) - 1}{s} \Bigr\rfloor + 1

    Args:
        size: Number :math:`n` of inputs.
        layer: `(kernel, stride, dilation)` or `(kernel, stride, dilation, padding)`.

    Returns:
        The number of outputs.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If one is out of range, or the kernel is larger than the padded image.

    Source:
        Dumoulin and Visin (2016), A guide to convolution arithmetic for deep learning.
    """
    check_count("size", size)
    ((kernel, stride, dilation, padding),) = _checked([layer])
    reach = dilation * (kernel - 1) + 1
    if reach > size + 2 * padding:
        raise ValueError(
            f"layer spans {reach} pixels, but the image has {size} and {padding} zeros at each "
            "end: pad more, or take a smaller kernel or dilation"
        )
    return (size + 2 * padding - reach) // stride + 1


def border_factor(size: int, kernel: int, *, dims: int = 2) -> float:
    r"""Mean part of a kernel's taps that lie on the image when zeros keep its size ("SAME").

    .. math:: \Bigl(\frac{kH - r(r + 1)}{kH}\Bigr)^D, \qquad r = \frac{k - 1}{2} \le H

    By this factor a layer with a critical initialisation shrinks the mean squared signal, once.

    Args:
        size: Pixels along an axis, :math:`H`.
        kernel: Taps along an axis, :math:`k`; even ones have the odd tap after the centre.
        dims: Number of axes, :math:`D`.

    Returns:
        The factor, in (0, 1].

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If one is below one.

    Example:
        >>> from dltheory.theory import convolution
        >>> round(convolution.border_factor(8, 5), 4)
        0.7225
    """
    for name, value in (("size", size), ("kernel", kernel), ("dims", dims)):
        check_count(name, value)
    first = (kernel - 1) // 2
    inside = sum(max(size - abs(tap - first), 0) for tap in range(kernel))
    return (inside / (kernel * size)) ** dims


def max_pool_lipschitz(kernel: int, stride: int, *, dims: int = 2) -> float:
    r"""Lipschitz constant of max pooling in the Euclidean norm, on images that are large enough.

    .. math:: \lceil k / s \rceil^{D/2}

    since a pixel can be the largest of that many windows: 1 without overlap, but 2 for the 3x3
    windows of stride 2 of AlexNet.

    Args:
        kernel: Pixels of a window along an axis.
        stride: Step between windows.
        dims: Number of axes, :math:`D`.

    Returns:
        The constant.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If one is below one.
    """
    for name, value in (("kernel", kernel), ("stride", stride), ("dims", dims)):
        check_count(name, value)
    return math.sqrt(math.ceil(kernel / stride) ** dims)


def average_pool_lipschitz(kernel: int, stride: int, *, dims: int = 2) -> float:
    r"""Lipschitz constant of average pooling in the Euclidean norm, over images of all sizes.

    .. math:: \Bigl(\frac1{k^2} \sum_{r=0}^{s-1} n_r^2\Bigr)^{D/2}, \qquad
        n_r = \#\{t < k : t \equiv r \bmod s\}

    It is :math:`k^{-D/2}` without overlap and 1 at a stride of one; circular images reach it.

    Args:
        kernel: Pixels of a window along an axis.
        stride: Step between windows.
        dims: Number of axes, :math:`D`.

    Returns:
        The constant.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If one is below one.
    """
    for name, value in (("kernel", kernel), ("stride", stride), ("dims", dims)):
        check_count(name, value)
    whole, rest = divmod(kernel, stride)
    square = rest * (whole + 1) ** 2 + (stride - rest) * whole**2
    return math.sqrt(square / kernel**2) ** dims


def weight_counts(
    size: int, inputs: int, outputs: int, kernel: int, *, dims: int = 2
) -> WeightCounts:
    r"""Weights of a dense layer, a locally connected one and a convolution of the same shape.

    .. math:: c H^D \cdot c' H^D, \qquad c c' k^D H^D, \qquad c c' k^D

    Taps beyond the border count; biases do not.

    Args:
        size: Pixels along an axis of either image, :math:`H`.
        inputs: Channels :math:`c` of the first.
        outputs: Channels :math:`c'` of the second.
        kernel: Taps along an axis, :math:`k`.
        dims: Number of axes, :math:`D`.

    Returns:
        The three counts; what is saved by locality and by sharing are their ratios.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If one is below one.
    """
    given = {"size": size, "inputs": inputs, "outputs": outputs, "kernel": kernel, "dims": dims}
    for name, value in given.items():
        check_count(name, value)
    shared = inputs * outputs * kernel**dims
    return WeightCounts(inputs * outputs * size ** (2 * dims), shared * size**dims, shared)


def _checked(layers: Sequence[Sequence[int]]) -> list[tuple[int, int, int, int]]:
    """Each layer as kernel, stride, dilation and padding."""
    found = []
    for number, layer in enumerate(layers):
        if not isinstance(layer, Sequence) or len(layer) < 3:
            raise ValueError(
                f"layer {number} is {layer!r}; want (kernel, stride, dilation) or "
                "(kernel, stride, dilation, padding)"
            )
        kernel, stride, dilation, padding = (*layer, 0)[:4]
        for name, value in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
            check_count(f"{name} of layer {number}", value)
        if padding != 0:
            check_count(f"padding of layer {number}", padding)
        found.append((kernel, stride, dilation, padding))
    return found


def _spacings(layers: Sequence[Sequence[int]]) -> list[int]:
    """Per layer, how many pixels of the input its taps are apart."""
    checked = _checked(layers)
    jumps = itertools.accumulate((s for _, s, *_ in checked), initial=1, func=lambda a, b: a * b)
    return [jump * d for jump, (_, _, d, _) in zip(jumps, checked, strict=False)]
