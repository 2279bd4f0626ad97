r"""Spectra of linear maps that are known only by what they do to a vector.

The extreme values come from a block Krylov space with thick restarts. The block is as wide as the
number of values wanted, because a space grown from one vector sees each multiple value once. The
densities come from Lanczos quadrature (`matfree`). A linear map is any function that is linear in
its one argument, an array or a pytree of arrays; its adjoint is its linear transpose. Sizes: the
map takes `n` numbers to `m`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.flatten_util import ravel_pytree
from matfree import decomp

from dltheory.numerics import lanczos
from dltheory.numerics.results import Density

LinearMap = Callable[[Any], Any]


def top_singular_values(
    key: Array,
    linear_map: LinearMap,
    x: Any,
    k: int,
    *,
    tolerance: float | None = None,
    max_restarts: int = 300,
) -> tuple[Array, Array]:
    r"""The `k` largest singular values of a linear map, each with its residual.

    .. math::
        A v_i \approx \sigma_i u_i, \qquad A^\top u_i \approx \sigma_i v_i, \qquad
        r_i = \sqrt{\tfrac12 (\|A v_i - \sigma_i u_i\|^2 + \|A^\top u_i - \sigma_i v_i\|^2)}

    Some singular value of the map lies within :math:`r_i` of :math:`\sigma_i`. The space is grown
    and restarted until every residual is below `tolerance` times the largest value, or
    `max_restarts` is reached: read the residuals. Multiple values are found as often as they occur.
    Derivatives with respect to what the map closes over are :math:`u_i^\top dA\, v_i`.

    Args:
        key: A key for the starting block.
        linear_map: The map, linear in its one argument.
        x: An array or pytree of arrays (or of `jax.ShapeDtypeStruct`) of the kind that the map
            takes; only shapes and dtypes are read. Half precision is upcast outside the map.
        k: How many values, at most `min(m, n)`.
        tolerance: Largest residual, relative to the largest value; by default
            :math:`\epsilon^{2/3}`.
        max_restarts: Largest number of restarts.

    Returns:
        The values, shape `(k,)`, descending, and their residuals, shape `(k,)`, in the same unit.
        All NaN if the map gives a value that is not finite.

    Raises:
        TypeError: If the map is complex or does not take floating-point numbers.
        ValueError: If `k` is not between 1 and `min(m, n)`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> scale = jnp.array([3.0, 1.0, 3.0, 2.0])
        >>> values, residuals = top_singular_values(
        ...     jax.random.key(0), lambda v: scale * v, jnp.zeros(4), 3
        ... )
        >>> values.round(4)
        Array([3., 3., 2.], dtype=float32)

    Source:
        Golub and Underwood (1977), The block Lanczos method; Wu and Simon (2000), Thick-restart
        Lanczos method.
    """
    flat, frozen, n, m, dtype = _flatten(linear_map, x)
    _check_count(k, min(m, n))
    adjoint = _adjoint(frozen, n, dtype)
    forward, backward, size = (frozen, adjoint, n) if n <= m else (adjoint, frozen, m)
    forward, backward = _on_columns(forward), _on_columns(backward)

    def apply(block):
        image = forward(block)
        return image, backward(image)

    def ritz(basis, image):
        u, s, vt = jnp.linalg.svd(image, full_matrices=False)
        v = basis @ vt[:k].T
        return vt.T, s, _norms(backward(u[:, :k]) - v * s[None, :k]), u[:, :k]

    v, u = _dominant(key, apply, ritz, size, k, dtype, tolerance, max_restarts)
    if n > m:
        u, v = v, u
    u, v = lax.stop_gradient((u, v))
    image = _on_columns(flat)(v)
    values = jnp.maximum((u * image).sum(axis=0), 0)
    first = _norms(lax.stop_gradient(image - u * values[None, :]))
    second = _norms(_on_columns(adjoint)(u) - v * lax.stop_gradient(values)[None, :])
    return _sorted(values, jnp.sqrt((first**2 + second**2) / 2))


def top_eigenvalues(
    key: Array,
    linear_map: LinearMap,
    x: Any,
    k: int,
    *,
    tolerance: float | None = None,
    max_restarts: int = 300,
) -> tuple[Array, Array]:
    r"""The `k` eigenvalues of largest magnitude of a symmetric linear map, with residuals.

    .. math::
        r_i = \|S v_i - \lambda_i v_i\|

    Some eigenvalue of the map lies within :math:`r_i` of :math:`\lambda_i`. That the map is
    symmetric is not checked.

    Args:
        key: As in `top_singular_values`.
        linear_map: The symmetric map, linear in its one argument.
        x: As in `top_singular_values`.
        k: How many values, at most `n`.
        tolerance: As in `top_singular_values`.
        max_restarts: As in `top_singular_values`.

    Returns:
        The values, shape `(k,)`, by descending magnitude, and their residuals, shape `(k,)`, in the
        same unit. All NaN if the map gives a value that is not finite.

    Raises:
        TypeError: If the map is complex or does not take floating-point numbers.
        ValueError: If `k` is not between 1 and `n`, or the result is not of the kind of `x`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> scale = jnp.array([2.0, -3.0, 1.0])
        >>> top_eigenvalues(jax.random.key(0), lambda v: scale * v, scale, 2)[0].round(4)
        Array([-3.,  2.], dtype=float32)
    """
    flat, frozen, n, m, dtype = _flatten(linear_map, x)
    _check_square(n, m)
    _check_count(k, n)

    def apply(block):
        image = _on_columns(frozen)(block)
        return image, image

    def ritz(basis, image):
        projected = basis.T @ image
        values, y = jnp.linalg.eigh((projected + projected.T) / 2)
        order = jnp.argsort(-jnp.abs(values))
        values, y = values[order], y[:, order]
        v = basis @ y[:, :k]
        return y, jnp.abs(values), _norms(image @ y[:, :k] - v * values[None, :k]), v

    v, _ = _dominant(key, apply, ritz, n, k, dtype, tolerance, max_restarts)
    v = lax.stop_gradient(v)
    image = _on_columns(flat)(v)
    values = (v * image).sum(axis=0)
    return _sorted(values, _norms(lax.stop_gradient(image - v * values[None, :])))


def spectral_density(
    key: Array,
    linear_map: LinearMap,
    x: Any,
    *,
    probes: int = 16,
    steps: int = 64,
    width: float = 0.03,
    symmetric: bool = False,
) -> Density:
    r"""The density of the singular values of a linear map, by stochastic Lanczos quadrature.

    .. math::
        \rho(s) = \frac1r \sum_{i=1}^{r} g_w(s - \sigma_i), \qquad r = \min(m, n)

    with :math:`g_w` a Gaussian of standard deviation `width` times the largest value, reflected at
    zero. Each probe is a random direction, measured by Gauss quadrature with `steps` nodes and with
    one fewer, whose nodes interlace: the density is the mean of the two, and the error bar adds
    half their difference to the standard error over the probes. No derivatives: the nodes of weight
    zero, which a map of few distinct values has, have none.

    Args:
        key: A key for the probes.
        linear_map: The map, linear in its one argument.
        x: As in `top_singular_values`.
        probes: Number of random directions, at least 2.
        steps: Number of quadrature nodes of a probe, cut to `min(m, n)`, where it is exact. Below
            about `1 / width` the density breaks up into spikes, beyond what the error bar shows.
        width: Standard deviation of the smoothing, relative to the largest magnitude.
        symmetric: Whether to return the density of the eigenvalues of a symmetric map instead, on
            the whole line.

    Returns:
        Density on a grid of spacing `width / 4`, relative to the largest magnitude. It integrates
        to 1. All NaN if the map gives a value that is not finite.

    Raises:
        TypeError: If the map is complex or does not take floating-point numbers.
        ValueError: If `probes`, `steps` or `width` is out of range, or `symmetric` is given with a
            map whose result is not of the kind of `x`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> rho = spectral_density(jax.random.key(0), lambda v: 2 * v, jnp.zeros(9), probes=4)
        >>> rho.support[rho.density.argmax()].round(2)
        Array(2., dtype=float32)

    Source:
        Ubaru, Chen and Saad (2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.
    """
    for name, value, least in (("probes", probes, 2), ("steps", steps, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; give an integer of at least {least}.")
    if not 0 < width <= 1:
        raise ValueError(f"width is {width}; give a number in (0, 1], a part of the largest value.")
    flat, _, n, m, dtype = _flatten(linear_map, x)
    if symmetric:
        _check_square(n, m)
    # matfree allocates in the default dtype, so the vectors take that one.
    work = jnp.result_type(float)
    matvec, size = (flat, n) if n <= m else (_adjoint(flat, n, dtype), m)
    operator = lambda v: matvec(v.astype(dtype)).astype(work)
    steps = min(steps, size)

    def quadrature(key):
        start = jax.random.normal(key, (size,), work)
        if symmetric:
            diagonal, beside = lanczos.tridiagonal(operator, start, steps)
        else:
            diagonal, beside = decomp.bidiag(steps, materialize=False)(operator, start).J_small
        bad = ~jnp.isfinite(diagonal[0])
        # An invariant subspace ends the recurrence by 0/0; what follows has no weight.
        diagonal, beside = (jnp.where(jnp.isnan(z), 0, z) for z in (diagonal, beside))
        # The nodes of one step fewer lie between these: their difference shows the resolution.
        off = jnp.stack([beside, beside.at[-1:].set(0)])
        matrix = jax.vmap(lambda z: jnp.diag(diagonal) + jnp.diag(z, 1))(off)
        if symmetric:
            nodes, vectors = jnp.linalg.eigh(jnp.maximum(matrix, matrix.mT))
            first = vectors[:, 0]
        else:
            _, nodes, vectors = jnp.linalg.svd(matrix)
            first = vectors[:, :, 0]
        return nodes, jnp.where(bad, jnp.nan, first**2)

    nodes, weights = lax.map(quadrature, jax.random.split(key, probes))
    top = jnp.where(weights > float(jnp.finfo(dtype).eps) ** 1.5, jnp.abs(nodes), 0).max()
    unit = jnp.where(top > 0, top, 1)
    ends = 1 + 5 * width
    grid = jnp.linspace(-ends if symmetric else 0.0, ends, 1 + round(4 * ends / width))

    def smooth(nodes, weights):
        g = jnp.exp(-(((grid[:, None, None] - nodes[None]) / width) ** 2) / 2)
        return (g * weights[None]).sum(axis=2) / (width * unit * (2 * jnp.pi) ** 0.5)

    def density(nodes, weights):
        at = smooth(nodes / unit, weights)
        return at if symmetric else at + smooth(-nodes / unit, weights)

    full, fewer = (density(nodes[:, i], weights[:, i]) for i in range(2))
    each, unresolved = (full + fewer) / 2, (full - fewer).mean(axis=1) / 2
    stderr = jnp.sqrt(each.var(axis=1, ddof=1) / probes + unresolved**2)
    parts = (grid * unit, each.mean(axis=1), stderr)
    finite = jnp.isfinite(weights).all()
    return Density(*(jnp.where(finite, z, jnp.nan).astype(dtype) for z in parts))


class _Space(NamedTuple):
    """What a restart keeps of a Krylov space, and what it found."""

    key: Array
    basis: Array  # (n, p), orthonormal: leading Ritz vectors at a restart
    image: Array  # (m, p), the map of the basis
    block: Array  # (n, b), orthonormal, orthogonal to the basis: continues the space
    vectors: tuple[Array, Array]  # the leading k, right and left
    restarts: Array
    worst: Array  # largest residual, relative to the largest value


def _dominant(key, apply, ritz, n, k, dtype, tolerance, max_restarts) -> tuple[Array, Array]:
    """The k dominant right vectors of a map, (n, k), and their partners.

    `apply(block)` gives the image of a block and what continues the space; `ritz(basis, image)`
    gives coefficients, sizes, residuals and partners, the dominant first.
    """
    b = max(k, 2)
    blocks = max(6, 64 // b)
    p, keep = blocks * b, 2 * b
    if p + b > n:
        basis = jnp.eye(n, dtype=dtype)
        y, _, _, partners = ritz(basis, apply(basis)[0])
        return y[:, :k], partners
    tolerance = jnp.finfo(dtype).eps ** (2 / 3) if tolerance is None else tolerance

    def grow(i, state):
        key, basis, image, block = state
        key, fresh = jax.random.split(key)
        new, onwards = apply(block)
        basis = lax.dynamic_update_slice_in_dim(basis, block, i * b, axis=1)
        image = lax.dynamic_update_slice_in_dim(image, new, i * b, axis=1)
        return key, basis, image, _orthonormal(fresh, onwards, basis)

    def cycle(space):
        # The residuals of all Ritz vectors lie in the next block, so the space stays Krylov's.
        first = jnp.where(space.restarts > 0, keep // b, 0)
        key, basis, image, block = lax.fori_loop(first, blocks, grow, space[:4])
        y, sizes, residuals, partners = ritz(basis, image)
        worst = residuals.max() / jnp.where(sizes[0] > 0, sizes[0], 1)
        kept = jnp.where(jnp.arange(p) < keep, 1, 0).astype(dtype)[None, :] * y
        basis, image = basis @ kept, image @ kept
        return _Space(key, basis, image, block, (basis[:, :k], partners), space.restarts + 1, worst)

    def unfinished(space):
        return (space.worst > tolerance) & (space.restarts <= max_restarts)

    key, first = jax.random.split(key)
    block = jnp.linalg.qr(jax.random.normal(first, (n, b), dtype))[0]
    m = jax.eval_shape(apply, block)[0].shape[0]
    basis, image = jnp.zeros((n, p), dtype), jnp.zeros((m, p), dtype)
    vectors = (basis[:, :k], image[:, :k])
    worst = jnp.asarray(jnp.inf, dtype)
    start = _Space(key, basis, image, block, vectors, jnp.array(0), worst)
    return lax.while_loop(unfinished, cycle, start).vectors


def _orthonormal(key, block: Array, basis: Array) -> Array:
    """An orthonormal block orthogonal to the basis; random directions where none are left."""
    epsilon = jnp.finfo(block.dtype).eps
    norms = _norms(block)[None, :]
    block = jnp.where(norms > 0, block / jnp.where(norms > 0, norms, 1), 0)
    noise = jax.random.normal(key, block.shape, block.dtype)
    block = block + epsilon * noise
    # Where the block lies in the basis but for rounding, the first pass leaves noise in all
    # directions, the second the noise beside the basis, the third makes that orthogonal.
    for _ in range(3):
        block = jnp.linalg.qr(block - basis @ (basis.T @ block))[0]
    return block


def _flatten(linear_map: LinearMap, x: Any):
    """The map on flat vectors, twice: as given, and with what it closes over held constant."""
    zeros = jax.tree.map(lambda z: jnp.zeros(jnp.shape(z), z.dtype), x)
    flat_x, unravel = ravel_pytree(zeros)
    if not jnp.issubdtype(flat_x.dtype, jnp.floating):
        raise TypeError(
            f"x has dtype {flat_x.dtype}; only real floating-point numbers are supported."
        )
    closed, constants = jax.closure_convert(linear_map, zeros)
    dtype = flat_x.dtype if jnp.finfo(flat_x.dtype).bits >= 32 else jnp.dtype(jnp.float32)

    def with_constants(constants):
        def apply(v):
            result = closed(unravel(v.astype(flat_x.dtype)), *constants)
            return ravel_pytree(result)[0].astype(dtype)

        return apply

    out = jax.eval_shape(lambda v: ravel_pytree(closed(unravel(v), *constants))[0], flat_x)
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"linear_map returns dtype {out.dtype}; only real floating-point numbers are supported."
        )
    frozen = with_constants(lax.stop_gradient(constants))
    return with_constants(constants), frozen, flat_x.size, out.size, dtype


def _adjoint(flat, n: int, dtype):
    transpose = jax.linear_transpose(flat, jax.ShapeDtypeStruct((n,), dtype))
    return lambda v: transpose(v)[0]


def _on_columns(flat):
    return jax.vmap(flat, in_axes=1, out_axes=1)


def _norms(columns: Array) -> Array:
    return jnp.sqrt((columns * columns).sum(axis=0))


def _sorted(values: Array, residuals: Array) -> tuple[Array, Array]:
    """By descending magnitude; all NaN if any is."""
    order = jnp.argsort(-jnp.abs(values))
    finite = jnp.isfinite(values).all() & jnp.isfinite(residuals).all()
    return jnp.where(finite, values[order], jnp.nan), jnp.where(finite, residuals[order], jnp.nan)


def _check_count(k: int, most: int) -> None:
    if not 1 <= k <= most:
        raise ValueError(f"k is {k}; give an integer from 1 to {most}, the number of values.")


def _check_square(n: int, m: int) -> None:
    if n != m:
        raise ValueError(
            f"linear_map takes {n} numbers to {m}; a symmetric map gives as many as it takes. For "
            "other maps ask for singular values."
        )
