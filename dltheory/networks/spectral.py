r"""Operator norms of dense and convolutional layers, and weights that keep to a bound of them.

The norm of a convolution is that of the map from image to image, not that of its kernel written as
a matrix, as spectral normalisation in most frameworks has it: that one is too low, by up to the
root of the number of taps. `networks.proximal` makes `optax` transformations of these functions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks import block_fourier, convolution_geometry, regularizers
from dltheory.networks.convolution_geometry import Geometry, Padding, Sizes
from dltheory.numerics import singular_values as dense


class Convolution(NamedTuple):
    """A convolutional layer but for its kernel.

    Attributes:
        input_shape: Pixels along each spatial axis, H and W of NHWC.
        padding: `"CIRCULAR"`, `"SAME"`, `"VALID"`, or a pair an axis: zeros before and after.
        strides: Step between outputs, one number or one an axis.
        dilation: Step between taps, likewise.
        groups: Groups of channels that do not mix.
    """

    input_shape: Sizes
    padding: Padding = "CIRCULAR"
    strides: Sizes = 1
    dilation: Sizes = 1
    groups: int = 1

    @property
    def axes(self) -> int:
        """Number of axes of its kernel."""
        return 2 + (1 if isinstance(self.input_shape, int) else len(self.input_shape))


def norm(w: ArrayLike, layer: Convolution | None = None) -> Array:
    r"""The largest singular value of a layer as a linear map.

    .. math:: \|A\| = \max_\omega \| \hat K(\omega) \|_2

    for circular images, with strides that divide them. A layer with zeros around its image is a
    part of one on a larger torus, whose norm this is then, an upper bound; so it is where a stride
    does not divide the image. Differentiable; no power iteration that may stop short.

    Args:
        w: A matrix, or a kernel `(*spatial, in / groups, out)`, HWIO for images.
        layer: The layer of a kernel; `None` for a matrix.

    Returns:
        The norm, shape `()`; NaN if a weight is not finite.

    Raises:
        TypeError: If `w` does not hold floats.
        ValueError: If `w` is no matrix, or there is no such layer.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import spectral
        >>> kernel = jnp.ones((3, 3, 1, 1))
        >>> spectral.norm(kernel, spectral.Convolution((8, 8))).round(3)
        Array(9., dtype=float32)
        >>> spectral.norm(kernel.reshape(9, 1))
        Array(3., dtype=float32)

    Source:
        Sedghi, Gupta and Long (2019), The singular values of convolutional layers.
    """
    if layer is None:
        return dense.singular_values(_matrix(w))[0]
    kernel, torus = _on_torus(w, layer)
    # A group with a weight that is not finite would keep that to itself.
    return jnp.max(block_fourier.values(kernel, torus)) + jnp.sum(kernel * 0)


def clip(
    w: ArrayLike, max_norm: ArrayLike, layer: Convolution | None = None, *, rounds: int = 4
) -> Array:
    r"""Weights of a layer with no singular value beyond a bound, near the given ones.

    .. math:: U \operatorname{diag}(s)\, V^* \to U \operatorname{diag}(\min(s, c))\, V^*

    which is the nearest matrix in the Frobenius norm. For a convolution the blocks of all
    frequencies are clipped, and of the layer found, with taps all over the image, the taps of the
    kernel are kept. That may lift the norm again: Dykstra's alternating projections lead to the
    nearest kernel of all within the bound, and what is left beyond it after the last round is
    scaled away, so that `norm` is at most `max_norm` after any number of them.

    Args:
        w: A matrix, or a kernel `(*spatial, in / groups, out)`.
        max_norm: The bound :math:`c`, zero or more.
        layer: The layer of a kernel, as in `norm`; `None` for a matrix.
        rounds: Alternating projections, each a decomposition of all blocks; one is the recipe of
            Sedghi et al.

    Returns:
        Weights of the shape of `w`, `w` itself to the last digit where it is within the bound; all
        NaN if a weight is not finite.

    Raises:
        TypeError: If `w` does not hold floats.
        ValueError: If `w` is no matrix, there is no such layer, `max_norm` is negative (all NaN
            where it is traced), or `rounds` is below one.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import spectral
        >>> layer = spectral.Convolution((8, 8))
        >>> kernel = spectral.clip(jnp.ones((3, 3, 1, 1)), 1.0, layer)
        >>> spectral.norm(kernel, layer).round(3)
        Array(1., dtype=float32)

    Source:
        Sedghi, Gupta and Long (2019); Boyle and Dykstra (1986), A method for finding projections
        onto the intersection of convex sets in Hilbert spaces.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds is {rounds}; want a positive integer")
    w = jnp.asarray(w)
    finite = jnp.all(jnp.isfinite(w))
    # No backend promises what its decompositions do with NaN.
    safe = jnp.where(finite, w, 0)
    if layer is None:
        safe = _matrix(safe)
        limit = _limit(max_norm, safe.dtype)
        clipped, size = _clipped(safe, limit), norm(safe)
    else:
        kernel, torus = _on_torus(safe, layer)
        limit = _limit(max_norm, kernel.dtype)

        def project(_, state):
            kernel, given, beyond = state
            wanted = given + beyond
            within = _clipped(wanted, limit)
            kernel = kernel + block_fourier.nearest_kernel(within - given, torus)
            return kernel, block_fourier.symbols(kernel, torus), wanted - within

        given = block_fourier.symbols(kernel, torus)
        state = (kernel, given, jnp.zeros_like(given))
        clipped = jax.lax.fori_loop(0, rounds, project, state)[0]
        left, size = norm(clipped, layer), norm(kernel, layer)
        clipped = clipped * jnp.where(left > limit, limit / jnp.where(left > 0, left, 1), 1)
    spoilt = jnp.where(finite & ~jnp.isnan(limit), 0, jnp.nan).astype(w.dtype)
    return jnp.where(size <= limit, w, clipped.astype(w.dtype)) + spoilt


def normalize(w: ArrayLike, target: ArrayLike, layer: Convolution | None = None) -> Array:
    r"""Weights of a layer scaled to a given norm, :math:`w \to c\, w / \|A\|`.

    Args:
        w: A matrix, or a kernel `(*spatial, in / groups, out)`.
        target: The norm :math:`c`, zero or more.
        layer: The layer of a kernel, as in `norm`; `None` for a matrix.

    Returns:
        Weights of the shape of `w`; zeros stay zeros.

    Raises:
        TypeError: As `norm`.
        ValueError: As `norm`; or if `target` is negative (all NaN where it is traced).

    Source:
        Miyato, Kataoka, Koyama and Yoshida (2018), Spectral normalization for generative
        adversarial networks, with their norm of a reshaped kernel put right.
    """
    w = jnp.asarray(w)
    size = norm(w, layer)
    legal = lambda a: a >= 0
    limit = regularizers.checked("target", target, "zero or more", legal, size.dtype)
    return (w * jnp.where(size == 0, 1, limit / jnp.where(size == 0, 1, size))).astype(w.dtype)


def _clipped(a: Array, limit: Array) -> Array:
    """Each matrix of a stack with singular values of at most `limit`."""
    u, s, vt = jnp.linalg.svd(a, full_matrices=False)
    s = jnp.minimum(s, limit).astype(u.dtype)
    return jnp.matmul(u * s[..., None, :], vt, precision="highest")


def _limit(max_norm: ArrayLike, dtype) -> Array:
    return regularizers.checked("max_norm", max_norm, "zero or more", lambda a: a >= 0, dtype)


def _matrix(w: ArrayLike) -> Array:
    w = jnp.asarray(w)
    if w.ndim != 2:
        raise ValueError(
            f"w has shape {w.shape}; want a matrix: of a kernel (*spatial, in / groups, out) give "
            "the layer, for the norm of a convolution is not that of its kernel"
        )
    return w


def _on_torus(kernel: ArrayLike, layer: Convolution) -> tuple[Array, Geometry]:
    kernel, geometry = convolution_geometry.layer(kernel, *layer)
    return kernel, convolution_geometry.torus(geometry)
