r"""Convolutional layers as the linear maps that they are, and what units of any network see.

A kernel has the layout `(*spatial, in / groups, out)`, that of Flax and HWIO for images; images are
`(N, *spatial, channels)`, NHWC. Biases play no part. The map of a transposed convolution is the
transpose of that of a convolution and has its singular values.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from dltheory.measure import convolution_lanczos, windows
from dltheory.networks import block_fourier, convolution_geometry, sites
from dltheory.networks.convolution_geometry import Padding, Sizes
from dltheory.numerics import singular_values as dense
from dltheory.numerics.results import Bracket, ReceptiveField

_LARGEST = 2**28  # entries of a matrix that may be formed
_SMALL = 2**20  # entries up to which the norm is that of the formed matrix


class ShiftConsistency(NamedTuple):
    """How a classifier fares under shifts, one number an image.

    Attributes:
        consistency: Probability that two random shifts are classified alike, shape `(N,)`.
        deviation: Relative size of what shifts change in the outputs, shape `(N,)`.
    """

    consistency: Array
    deviation: Array


def singular_values(
    kernel: ArrayLike,
    input_shape: Sizes,
    *,
    padding: Padding = "CIRCULAR",
    strides: Sizes = 1,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Array:
    r"""All singular values of a convolutional layer, as the linear map from image to image.

    .. math::
        \{\sigma\} = \bigcup_\omega \sigma\bigl(\hat K(\omega)\bigr), \qquad
        \hat K(\omega) = \sum_t K_t\, e^{i \omega \cdot t}

    for circular padding; a stride that divides the image reads it as interleaved images, more
    channels. Everything else is formed as a dense matrix. Values below about 1e-12 of the largest
    are rounding in double precision. Derivatives are those of `numerics.singular_values`.

    Args:
        kernel: Shape `(*spatial, in / groups, out)`, with any number of spatial axes.
        input_shape: Pixels along each spatial axis, H and W of NHWC.
        padding: `"CIRCULAR"`, `"SAME"`, `"VALID"`, or a pair an axis: zeros before and after.
        strides: Step between outputs, one number or one an axis.
        dilation: Step between taps, likewise.
        groups: Groups of channels that do not mix.

    Returns:
        The singular values, as many as the smaller side of the matrix, descending. All NaN if the
        kernel is not finite.

    Raises:
        TypeError: If the kernel does not hold floats or a size is no integer.
        ValueError: If there is no such layer, or a dense matrix would be too large to form.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import convolution
        >>> kernel = jnp.array([-1.0, 2.0, -1.0]).reshape(3, 1, 1)
        >>> convolution.singular_values(kernel, 4)
        Array([4., 2., 2., 0.], dtype=float32)

    Source:
        Sedghi, Gupta and Long (2019), The singular values of convolutional layers.
    """
    kernel, geometry = convolution_geometry.layer(
        kernel, input_shape, padding, strides, dilation, groups
    )
    if geometry.on_torus:
        return _together(block_fourier.values(kernel, geometry), kernel, groups)
    if geometry.entries > _LARGEST:
        raise ValueError(
            f"input_shape is {geometry.image}: without circular padding and strides that divide "
            f"the image the matrix is formed, and that of a group has {geometry.entries} entries, "
            f"more than {_LARGEST}: take a smaller image, or operator_norm"
        )
    s = dense.singular_values(convolution_geometry.matrices(kernel, geometry))
    return _together(s, kernel, groups)


def operator_norm(
    key: Array,
    kernel: ArrayLike,
    input_shape: Sizes,
    *,
    padding: Padding = "CIRCULAR",
    strides: Sizes = 1,
    dilation: Sizes = 1,
    groups: int = 1,
    steps: int = 160,
    failure: float = 1e-9,
) -> Bracket:
    r"""The largest singular value of a convolutional layer, between two bounds.

    Where the matrix is small or the padding circular, the bounds are the value and its rounding.
    Else the lower one is :math:`\|A v\|` for the unit vector `v` that Lanczos finds, and the upper
    one the smaller of two: the norm of the layer on a torus of which this layer is a part, which is
    never below; and, with :math:`\sigma_k` what `k` steps from a random start find on `n` pixels,

    .. math::
        P\Bigl(\sigma > \frac{\sigma_k}{\sqrt{1 - \epsilon}}\Bigr) \le \delta, \qquad
        \sqrt\epsilon = \frac{\log(1.648 \sqrt n / \delta)}{2k - 1}

    Args:
        key: A key for the random start.
        kernel: As in `singular_values`.
        input_shape: As in `singular_values`.
        padding: As in `singular_values`.
        strides: As in `singular_values`.
        dilation: As in `singular_values`.
        groups: As in `singular_values`.
        steps: Number `k` of Lanczos steps.
        failure: The probability :math:`\delta`; zero leaves the bound that cannot fail alone.

    Returns:
        The bracket; it may be differentiated. All NaN if the kernel is not finite.

    Raises:
        TypeError: As `singular_values`.
        ValueError: If there is no such layer, or `steps` or `failure` is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.measure import convolution
        >>> kernel = jnp.ones((3, 3, 1, 1))
        >>> convolution.operator_norm(jax.random.key(0), kernel, (8, 8)).upper.round(2)
        Array(9., dtype=float32)

    Source:
        Kuczynski and Wozniakowski (1992), Estimating the largest eigenvalue by the power and
        Lanczos algorithms with a random start.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps is {steps}; want a positive integer")
    if not 0 <= failure < 1:
        raise ValueError(f"failure is {failure}; want a probability, zero for a bound that holds")
    kernel, geometry = convolution_geometry.layer(
        kernel, input_shape, padding, strides, dilation, groups
    )
    epsilon = float(jnp.finfo(kernel.dtype).eps)
    if geometry.on_torus or geometry.entries <= _SMALL:
        given = {"padding": padding, "strides": strides, "dilation": dilation, "groups": groups}
        norm = singular_values(kernel, geometry.image, **given)[0]
        slack = 4 * epsilon * sum(kernel.shape[-2:]) * math.prod(kernel.shape[:-2])
        return Bracket(norm * (1 - slack), norm * (1 + slack))
    upper = block_fourier.values(kernel, convolution_geometry.torus(geometry))[0]
    lower, size = convolution_lanczos.largest(key, kernel, geometry, steps)
    if failure > 0:
        root = math.log(1.648 * math.sqrt(size) / failure) / (2 * min(steps, size) - 1)
        if root < 1:
            upper = jnp.minimum(upper, lower / math.sqrt(1 - root**2))
    slack = 4 * epsilon * kernel.size / kernel.shape[-1]
    # A group with a weight that is not finite would keep that to itself.
    lower = lower + jnp.sum(kernel * 0)
    return Bracket(lower * (1 - slack), jnp.where(jnp.isnan(lower), jnp.nan, upper * (1 + slack)))


def receptive_field(
    f: Callable, params: Any, x: Array | jax.ShapeDtypeStruct, site: sites.Site | str | None = None
) -> tuple[ReceptiveField, ...]:
    """What the units of a layer see of the image, from the traced program; nothing is run.

    Branches, dilation, pooling, transposed convolutions and scanned layers are followed exactly or,
    where the pixels in question form no sliding window, widened to a stretch that holds them all
    and is the same for all units, of stride zero: that of attention is the whole image. What is
    seen beyond a border with circular padding is the image again.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters (arrays or `jax.ShapeDtypeStruct`).
        x: A batch of images `(N, *spatial, channels)`, or a `jax.ShapeDtypeStruct`.
        site: A site or its text; the output by default.

    Returns:
        One `ReceptiveField` an axis of the image; fields at a border are cut off there. Strides are
        fractions where units are denser than pixels.

    Raises:
        SiteError: If there is no such site, or `f` cannot be traced.
        TypeError: If `x` or the output is not one float array.
        ValueError: If `x` has no spatial axes, or is not seen at all.

    Example:
        >>> import jax.numpy as jnp
        >>> import flax.linen as nn
        >>> from dltheory.measure import convolution
        >>> f = lambda _, x: nn.max_pool(nn.avg_pool(x, (3, 3)), (2, 2), (2, 2))
        >>> convolution.receptive_field(f, {}, jnp.ones((1, 8, 8, 2)))[0]
        ReceptiveField(size=4, stride=2, padding=0)
    """
    return windows.fields(windows.of_site(f, params, x, site), site)


def receptive_fields(
    f: Callable, params: Any, x: Array | jax.ShapeDtypeStruct
) -> dict[sites.Site, tuple[ReceptiveField, ...]]:
    """`receptive_field` of every site of a model.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of images `(N, *spatial, channels)`.

    Returns:
        A dict from site to one `ReceptiveField` an axis of the image, in run order.

    Raises:
        SiteError: If `f` cannot be traced, or if no parameter ever meets `x`.
        TypeError: As `receptive_field`.
        ValueError: As `receptive_field`.
    """
    _, records = windows.of_model(f, params, x)
    return {
        site: windows.fields(records[layer.place, site.index or ()][layer.out], site)
        for site, layer in sites.expand(sites.trace(f, params, x).layers)
    }


def effective_receptive_field(
    f: Callable, params: Any, x: Array, site: sites.Site | str | None = None
) -> Array:
    r"""How much each pixel counts for the central unit of a layer: its mean squared gradient.

    .. math:: p_i \propto \sum_{n, c, a} (\partial h_{n, c} / \partial x_{n, i, a})^2

    over examples `n`, channels `c` of the layer and channels `a` of the image, one reverse pass for
    each channel of the layer.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of images `(N, *spatial, channels)`.
        site: A site or its text, examples first; the output by default.

    Returns:
        A distribution over pixels, shape `(*spatial,)`, of sum one; NaN where no gradient is.

    Raises:
        SiteError: As `receptive_field`.
        TypeError: As `receptive_field`.
        ValueError: As `receptive_field`.

    Source:
        Luo, Li, Urtasun and Zemel (2016), Understanding the effective receptive field.
    """
    sliding = [w.axis for w in windows.of_site(f, params, x, site) or () if w.axis is not None]
    if site is None:
        layer = lambda x: f(params, x)
    else:
        run = sites.tapped(f, params, x)
        place, index = windows.parsed(sites.trace(f, params, x), site)
        layer = lambda x: run(params, x)[1][place.text][index]

    def central(x):
        h = layer(x)
        at = [h.shape[a] // 2 if a in sliding else slice(None) for a in range(h.ndim)]
        return h[tuple(at)].reshape(x.shape[0], -1)

    h, back = jax.vjp(central, x)

    def squares(channel):
        (g,) = back(jnp.broadcast_to(channel, h.shape))
        scale = jnp.max(jnp.abs(g))
        return scale, jnp.sum((g / jnp.where(scale > 0, scale, 1)) ** 2, axis=(0, g.ndim - 1))

    scales, maps = lax.map(squares, jnp.eye(h.shape[1], dtype=h.dtype)[:, None])
    # Relative to the largest, so that squares of tiny gradients do not vanish.
    weights = (scales / jnp.max(scales)) ** 2
    total = jnp.tensordot(weights, maps, 1)
    return total / jnp.sum(total)


def shift_consistency(
    f: Callable, params: Any, x: ArrayLike, *, shifts: int = 8
) -> ShiftConsistency:
    r"""Whether a classifier says the same of an image wherever it is, over circular shifts.

    .. math:: \sum_k p_k^2, \qquad
        \sqrt{\frac{\sum_s \|y_s - \bar y\|^2}{\sum_s \|y_s\|^2}}

    with :math:`p_k` the part of all shifts :math:`s` at which class `k` has the largest output.

    Args:
        f: `f(params, x) -> y`, with `y` of shape `(N, classes)`.
        params: Any pytree of parameters.
        x: A batch of images `(N, *spatial, channels)`.
        shifts: Shifts along each axis, from zero to one less, all combinations.

    Returns:
        For each image, the probability that two random shifts are classified alike, and the
        deviation of outputs from their mean over shifts, relative to their size.

    Raises:
        ValueError: If `x` has no spatial axes, `y` is not `(N, classes)`, or `shifts` is below one.

    Source:
        Zhang (2019), Making convolutional networks shift-invariant again.
    """
    x = jnp.asarray(x)
    windows.check_images(x)
    if isinstance(shifts, bool) or not isinstance(shifts, int) or shifts < 1:
        raise ValueError(f"shifts is {shifts}; want a positive integer")
    axes = tuple(range(1, x.ndim - 1))
    moves = jnp.asarray(list(itertools.product(range(shifts), repeat=len(axes))))
    y = lax.map(lambda by: f(params, jnp.roll(x, by, axes)), moves)
    if y.ndim != 3 or y.shape[1] != x.shape[0]:
        raise ValueError(
            f"f(params, x) has shape {y.shape[1:]}; want (N, classes), here N = {x.shape[0]}"
        )
    chosen = jnp.argmax(y, -1)[:, :, None] == jnp.arange(y.shape[-1])[None, None]
    parts = jnp.mean(chosen.astype(y.dtype), 0)
    scale = jnp.max(jnp.abs(y), axis=(0, 2), keepdims=True)
    y = y / jnp.where(scale > 0, scale, 1)
    apart = jnp.sum((y - jnp.mean(y, 0, keepdims=True)) ** 2, axis=(0, 2))
    size = jnp.sum(y**2, axis=(0, 2))
    deviation = jnp.sqrt(apart / jnp.where(size > 0, size, 1))
    consistency = jnp.where(jnp.isnan(deviation), jnp.nan, jnp.sum(parts**2, -1))
    return ShiftConsistency(consistency, deviation)


def equivariance_error(f: Callable, params: Any, x: ArrayLike, shifts: ArrayLike) -> Array:
    r"""How far a model is from commuting with circular shifts of its images.

    .. math:: \frac{\|f(T_s x) - T_{s'} f(x)\|}{\|f(x)\|}, \qquad s' = s\, n_{out} / n_{in}

    An output with axes like the image's is shifted along, by whole pixels; any other stays.

    Args:
        f: As in `shift_consistency`, with an output of any shape.
        params: Any pytree of parameters.
        x: A batch of images `(N, *spatial, channels)`.
        shifts: Whole numbers of pixels, one row a shift, shape `(S, spatial axes)`.

    Returns:
        The error of each shift and image, shape `(S, N)`.

    Raises:
        TypeError: If `shifts` are no integers.
        ValueError: If `x` has no spatial axes, or `shifts` are not one number an axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import convolution
        >>> every_other = lambda _, x: x[:, ::2]
        >>> x = jnp.array([1.0, 0.0, 0.0, 0.0]).reshape(1, 4, 1)
        >>> convolution.equivariance_error(every_other, {}, x, [[2], [1]]).reshape(-1)
        Array([0., 1.], dtype=float32)
    """
    x = jnp.asarray(x)
    windows.check_images(x)
    shifts, axes = np.asarray(shifts), tuple(range(1, x.ndim - 1))
    if not np.issubdtype(shifts.dtype, np.integer):
        raise TypeError(f"shifts hold {shifts.dtype}; want integers, whole pixels")
    if shifts.ndim != 2 or shifts.shape[1] != len(axes):
        raise ValueError(f"shifts has shape {shifts.shape}; want (S, {len(axes)}), one an axis")
    y = f(params, x)
    along = axes if y.ndim == x.ndim else ()
    ratio = np.array([y.shape[a] / x.shape[a] if along else 0 for a in axes])
    moves = jnp.asarray(np.rint(shifts * ratio).astype(int))
    total = lambda a: jnp.sqrt(jnp.sum(a**2, axis=tuple(range(1, a.ndim))))
    scale = jnp.max(jnp.abs(y)) + jnp.all(y == 0).astype(y.dtype)

    def error(both):
        there, back = both
        moved = jnp.roll(y, back, along) if along else y
        return total((f(params, jnp.roll(x, there, axes)) - moved) / scale)

    apart, size = lax.map(error, (jnp.asarray(shifts), moves)), total(y / scale)[None]
    return jnp.where((apart == 0) & (size == 0), 0, apart / size)


def _together(s: Array, kernel: Array, groups: int) -> Array:
    """The values of all groups, descending; NaN all over where one group has one."""
    if groups == 1:
        return s.reshape(-1)
    if convolution_geometry.on_cpu(kernel):
        flat = -np.sort(-np.asarray(s), axis=None)
        return jnp.asarray(flat * np.where(np.isnan(flat).any(), np.nan, 1).astype(flat.dtype))
    return jnp.sort(s.reshape(-1))[::-1] + jnp.sum(kernel * 0)
