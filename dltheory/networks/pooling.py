"""Anti-aliased pooling, with the signature of Flax's: it blurs before it leaves out pixels."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike


def blur_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    r"""Weighted means of windows, with binomial weights: mean pooling for a window of two.

    .. math:: y_i = \sum_t 2^{1-k} \binom{k-1}{t}\, x_{s i + t}

    along each axis. Every power of two in the weights removes half of what would alias at a stride
    of two; max pooling without aliasing is a maximum of stride one and then this.

    Args:
        inputs: Shape `(..., *spatial, channels)`.
        window_shape: Size :math:`k` of the window along each spatial axis.
        strides: Step :math:`s` along each spatial axis, one by default as in Flax.
        padding: `"VALID"`, `"SAME"` (zeros), `"CIRCULAR"`, or a pair an axis: zeros before and
            after.

    Returns:
        Shape `(..., *pooled, channels)`.

    Raises:
        ValueError: If there are not as many sizes as spatial axes, or one is below one.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import pooling
        >>> pooling.blur_pool(jnp.array([[1.0], [5.0], [1.0]]), (3,))
        Array([[3.]], dtype=float32)

    Source:
        Zhang (2019), Making convolutional networks shift-invariant again.
    """
    x = jnp.asarray(inputs)
    dims = len(window_shape)
    strides = (1,) * dims if strides is None else tuple(strides)
    for name, sizes in (("window_shape", window_shape), ("strides", strides)):
        if len(sizes) != dims or not 0 < dims < x.ndim or min(sizes, default=0) < 1:
            raise ValueError(
                f"{name} is {tuple(sizes)}; want a positive integer for each of the spatial axes "
                f"of inputs {x.shape}, laid out (..., *spatial, channels)"
            )
    *lead, channels = x.shape[: x.ndim - dims - 1] + x.shape[-1:]
    x = x.reshape(-1, *x.shape[x.ndim - dims - 1 :])
    if isinstance(padding, str) and padding.upper() == "CIRCULAR":
        around = [(0, 0), *(((k - 1) // 2, k // 2) for k in window_shape), (0, 0)]
        x, padding = jnp.pad(x, around, mode="wrap"), "VALID"
    for axis, size in enumerate(window_shape):
        weights = np.poly1d([0.5, 0.5]) ** (size - 1)
        shape = [size if a == axis else 1 for a in range(dims)]
        kernel = jnp.asarray(np.reshape(weights.coeffs, (*shape, 1, 1)), x.dtype)
        pads = (
            padding
            if isinstance(padding, str)
            else [pair if a == axis else (0, 0) for a, pair in enumerate(padding)]
        )
        spatial = tuple(range(1, dims + 1))
        x = lax.conv_general_dilated(
            x,
            jnp.tile(kernel, (*(1,) * (dims + 1), channels)),
            [s if a == axis else 1 for a, s in enumerate(strides)],
            pads,
            dimension_numbers=lax.ConvDimensionNumbers(
                (0, dims + 1, *spatial), (dims + 1, dims, *range(dims)), (0, dims + 1, *spatial)
            ),
            feature_group_count=channels,
        )
    return x.reshape(*lead, *x.shape[1:])
