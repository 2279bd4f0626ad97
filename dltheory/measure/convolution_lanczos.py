"""A convolutional layer as a function, and its norm from below by Lanczos from a random start."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

from dltheory.networks.convolution_geometry import Geometry


def apply(kernel: Array, geometry: Geometry, x: Array) -> Array:
    """A layer on one image.

    Args:
        kernel: Shape `(*spatial, in / groups, out)`.
        geometry: The layer.
        x: Shape `(*spatial, in)`.

    Returns:
        Shape `(*spatial, out)`.
    """
    dims = len(geometry.image)
    x, pads, spatial = x[None], geometry.pads, tuple(range(1, dims + 1))
    if pads is None:
        reach = [d * (k - 1) for k, d in zip(geometry.taps, geometry.dilation, strict=True)]
        around = [(0, 0), *((r // 2, r - r // 2) for r in reach), (0, 0)]
        x, pads = jnp.pad(x, around, mode="wrap"), ((0, 0),) * dims
    layout = lax.ConvDimensionNumbers(
        (0, dims + 1, *spatial), (dims + 1, dims, *range(dims)), (0, dims + 1, *spatial)
    )
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.strides,
        pads,
        rhs_dilation=geometry.dilation,
        dimension_numbers=layout,
        feature_group_count=geometry.groups,
        precision="highest",
    )[0]


def largest(key: Array, kernel: Array, geometry: Geometry, steps: int) -> tuple[Array, int]:
    """A lower bound of the norm, from a Krylov space of the Gram matrix of the smaller side.

    Args:
        key: A key for the random start.
        kernel: As in `apply`.
        geometry: The layer.
        steps: Dimension of the space.

    Returns:
        The image's length of a unit vector, and the number of entries of the random start.
    """
    sizes = (*geometry.image, geometry.inputs * geometry.groups)
    forward = lambda weights: lambda x: apply(weights, geometry, x.reshape(sizes)).reshape(-1)
    count = math.prod(sizes)
    frozen = forward(lax.stop_gradient(kernel))
    flat = jax.ShapeDtypeStruct((count,), kernel.dtype)
    adjoint = jax.linear_transpose(frozen, flat)
    back = lambda y: adjoint(y)[0]
    across = jax.eval_shape(frozen, flat).shape[0]
    first, second, size = (frozen, back, count) if count <= across else (back, frozen, across)
    steps = min(steps, size)
    # Full orthogonalisation, twice: the bound is one on the exact Krylov space.
    basis = jnp.zeros((steps, size), kernel.dtype)
    start = jax.random.normal(key, (size,), kernel.dtype)

    def step(number, state):
        basis, projected, v = state
        norm = jnp.linalg.norm(v)
        v = v / jnp.where(norm > 0, norm, 1)
        image = second(first(v))
        basis = basis.at[number].set(v)
        column = jnp.matmul(basis, image, precision="highest")
        projected = projected.at[number].set(column)
        rest = image
        for _ in range(2):
            part = jnp.matmul(basis, rest, precision="highest")
            rest = rest - jnp.matmul(part, basis, precision="highest")
        return basis, projected, rest

    zeros = jnp.zeros((steps, steps), kernel.dtype)
    basis, projected, _ = lax.fori_loop(0, steps, step, (basis, zeros, start))
    # Row k of the projection knows the basis up to k: its lower triangle.
    lower = jnp.tril(projected)
    gram = lower + jnp.tril(projected, -1).T
    ritz = jnp.linalg.eigh(gram)[1][:, -1] @ basis
    v = lax.stop_gradient(ritz / jnp.where(jnp.any(ritz != 0), jnp.linalg.norm(ritz), 1))
    x = v if count <= across else _unit(back(v))
    x = lax.stop_gradient(x)
    y = lax.stop_gradient(_unit(frozen(x)))
    return jnp.sum(y * forward(kernel)(x)), size


def _unit(v: Array) -> Array:
    norm = jnp.linalg.norm(v)
    return v / jnp.where(norm > 0, norm, 1)
