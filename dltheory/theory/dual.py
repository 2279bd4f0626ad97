r"""Gaussian moments, dual kernels and Hermite coefficients of any activation.

The dual kernel of :math:`\phi` is :math:`\mathbb{E}\,\phi(u)\phi(v)` for Gaussian `u` and `v`. It
has a closed form for a positively homogeneous function (the ReLU family, by arc-cosine kernels),
for erf, GELU, sin and cos; for every other activation it is integrated, exact at kinks. The same
holds for the kernel of the derivative, which is the slope of the kernel in the covariance.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from dltheory.networks import activations
from dltheory.networks.activations import Activation
from dltheory.numerics import gaussian

Phi = str | Activation | Callable[[Array], Array]


def moment(phi: Phi, q: ArrayLike = 1.0) -> Array:
    r"""Mean square of an activation.

    .. math:: \mathbb{E}\,\phi(h)^2, \qquad h \sim \mathcal{N}(0, q)

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance, any shape.

    Returns:
        The mean square, of the shape of `q`; infinite where the integral diverges.

    Example:
        >>> from dltheory.theory import dual
        >>> print(f"{dual.moment('relu', 3.0):.2f}")
        1.50
    """
    phi = activations.get(phi)
    if phi.fn in _CLOSED:
        return kernel(phi, q, q, q)
    if phi.homogeneous in (0, 1, 2):
        return _homogeneous_moment(phi, phi.homogeneous, q)
    return gaussian.expectation(lambda h: jnp.square(phi(h)), q, kinks=phi.kinks)


def derivative_moment(phi: Phi, q: ArrayLike = 1.0) -> Array:
    r"""Mean square of the derivative of an activation, infinite where the activation jumps.

    .. math:: \mathbb{E}\,\phi'(h)^2, \qquad h \sim \mathcal{N}(0, q)

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance, any shape.

    Returns:
        The mean square, of the shape of `q`.

    Example:
        >>> from dltheory.theory import dual
        >>> print(f"{dual.derivative_moment('hard_tanh'):.4f}")  # erf(1 / sqrt(2))
        0.6827
    """
    phi = activations.get(phi)
    if phi.fn in _CLOSED:
        return derivative_kernel(phi, q, q, q)
    if phi.homogeneous in (1, 2):
        return phi.homogeneous**2 * _homogeneous_moment(phi, phi.homogeneous - 1, q)
    slope = jax.grad(phi)
    if phi.smoothness == -1:
        return _infinite(q)
    return gaussian.expectation(lambda h: jnp.square(slope(h)), q, kinks=phi.kinks)


def curvature_moment(phi: Phi, q: ArrayLike = 1.0) -> Array:
    r"""Mean square of the second derivative, infinite where the first derivative jumps.

    .. math:: \mathbb{E}\,\phi''(h)^2, \qquad h \sim \mathcal{N}(0, q)

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance, any shape.

    Returns:
        The mean square, of the shape of `q`.

    Example:
        >>> from dltheory.theory import dual
        >>> dual.curvature_moment("relu").item(), dual.curvature_moment("relu2").item()
        (inf, 2.0)
    """
    phi = activations.get(phi)
    bend = jax.grad(jax.grad(phi))
    if phi.smoothness is not None and phi.smoothness < 1:
        return _infinite(q)
    return gaussian.expectation(lambda h: jnp.square(bend(h)), q, kinks=phi.kinks)


def kernel(phi: Phi, q1: ArrayLike, q2: ArrayLike, cov: ArrayLike) -> Array:
    r"""Dual kernel: mean product of an activation at two correlated Gaussian inputs.

    .. math:: \mathbb{E}\,\phi(u)\phi(v), \qquad \operatorname{Var} u = q_1,\;
        \operatorname{Var} v = q_2,\; \operatorname{Cov}(u, v) = \text{cov}

    Args:
        phi: Activation, its name, or a scalar callable.
        q1: Variance of `u`, any shape.
        q2: Variance of `v`.
        cov: Covariance; `cov**2 = q1 * q2` is allowed.

    Returns:
        The kernel, of the common shape of the variances and the covariance.

    Raises:
        ValueError: If the covariance matrix is not positive semi-definite (under tracing the
            result is NaN instead).

    Example:
        >>> from dltheory.theory import dual
        >>> print(f"{dual.kernel('relu', 1.0, 1.0, 0.5):.4f}")
        0.3045

    Source: Cho and Saul (2009) for the ReLU family; Williams (1997) for erf.
    """
    phi = activations.get(phi)
    equal = q1 is q2
    q1, q2, cov, _ = gaussian.correlation(q1, q2, cov)
    if phi.fn in _CLOSED:
        return _CLOSED[phi.fn](q1, q2, cov)[0]
    if phi.smoothness == -1:
        return _plain_kernel(phi, equal, q1, q2, cov)
    return _kernel(phi, equal, q1, q2, cov)


def derivative_kernel(phi: Phi, q1: ArrayLike, q2: ArrayLike, cov: ArrayLike) -> Array:
    r"""Dual kernel of the derivative: the slope of the dual kernel in the covariance.

    .. math:: \mathbb{E}\,\phi'(u)\phi'(v)

    Args:
        phi: Activation, its name, or a scalar callable.
        q1: Variance of `u`, any shape.
        q2: Variance of `v`.
        cov: Covariance; `cov**2 = q1 * q2` is allowed.

    Returns:
        The kernel, of the common shape of the variances and the covariance. An activation with
        jumps has the slope of its kernel here, infinite at correlations of one.

    Raises:
        ValueError: If the covariance matrix is not positive semi-definite (under tracing the
            result is NaN instead).

    Example:
        >>> from dltheory.theory import dual
        >>> print(f"{dual.derivative_kernel('relu', 1.0, 1.0, 0.5):.4f}")
        0.3333
    """
    phi = activations.get(phi)
    equal = q1 is q2
    q1, q2, cov, rho = gaussian.correlation(q1, q2, cov)
    if phi.smoothness == -1:
        slope = jax.jvp(partial(_plain_kernel, phi, equal, q1, q2), (cov,), (jnp.ones_like(cov),))[
            1
        ]
        return jnp.where(jnp.abs(rho) == 1, jnp.inf, slope)
    if phi.fn in _CLOSED:
        return _CLOSED[phi.fn](q1, q2, cov)[1]
    if phi.homogeneous in (1, 2):
        return _homogeneous(phi, q1, q2, rho)[1]
    slope = jax.grad(phi)
    # One object for equal variances lets the quadrature use its symmetry.
    return gaussian.pair_expectation(slope, slope, q1, q1 if equal else q2, cov, kinks=phi.kinks)


def hermite_coefficients(phi: Phi, n: int) -> Array:
    r"""Coefficients of an activation in orthonormal Hermite polynomials.

    .. math:: a_k = \mathbb{E}\,\phi(z)\,\frac{\mathrm{He}_k(z)}{\sqrt{k!}}, \qquad
        \mathbb{E}\,\phi(u)\phi(v) = \sum_k a_k^2 \rho^k

    Args:
        phi: Activation, its name, or a scalar callable.
        n: How many; the orders are 0 to n - 1.

    Returns:
        The coefficients, shape `(n,)`.

    Raises:
        ValueError: If `n` is not a positive integer.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import dual
        >>> print(jnp.round(dual.hermite_coefficients("relu", 3), 4))
        [0.3989 0.5    0.2821]
    """
    phi = activations.get(phi)
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be an integer of one or more; got {n}")

    return hermite_series(phi, 1.0, n)


def hermite_series(phi: Activation, q: ArrayLike, n: int) -> Array:
    r"""Hermite coefficients of :math:`z \mapsto \phi(\sqrt q\, z)`, as `hermite_coefficients`.

    Args:
        phi: Activation.
        q: Variance, any shape.
        n: How many.

    Returns:
        The coefficients, shape `(n, *q.shape)`.
    """
    z, weights = gaussian.quadrature(q, kinks=phi.kinks)
    weighted = weights * phi(jnp.sqrt(jnp.asarray(q, z.dtype))[..., None] * z)

    def next_order(state: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], Array]:
        last, this = state
        new = (z * this - jnp.sqrt(k) * last) / jnp.sqrt(k + 1)
        return (this, new), jnp.sum(weighted * this, axis=-1)

    start = (jnp.zeros_like(z), jnp.ones_like(z))
    return jax.lax.scan(next_order, start, jnp.arange(n, dtype=z.dtype))[1]


def _infinite(q: ArrayLike) -> Array:
    """An infinite moment for every variance, zero included: the jump may be at the origin."""
    q = gaussian.correlation(q, q, q)[0]
    return jnp.where(jnp.isnan(q), jnp.nan, jnp.inf)


def _plain_kernel(phi: Activation, equal: bool, q1: Array, q2: Array, cov: Array) -> Array:
    if phi.homogeneous in (0, 1, 2):
        return _homogeneous(phi, q1, q2, gaussian.correlation(q1, q2, cov)[3])[0]
    return gaussian.pair_expectation(phi, phi, q1, q1 if equal else q2, cov)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _kernel(phi: Activation, equal: bool, q1: Array, q2: Array, cov: Array) -> Array:
    """The kernel of a continuous activation, differentiable at correlations of one too."""
    return _plain_kernel(phi, equal, q1, q2, cov)


@partial(_kernel.defjvp, symbolic_zeros=True)
def _kernel_jvp(
    phi: Activation, equal: bool, primals: tuple, tangents: tuple
) -> tuple[Array, Array]:
    r"""Price's theorem: the slope in the covariance is the derivative kernel.

    The slope in a variance is E phi''(u) phi(v) / 2, and integration by parts turns it into
    (E u phi'(u) phi(v) - cov E phi'(u) phi'(v)) / (2 q1), which holds with kinks.
    """
    q1, q2, cov = primals
    value = _kernel(phi, equal, q1, q2, cov)
    slope = derivative_kernel(phi, q1, q1 if equal else q2, cov)
    euler = lambda h: h * jax.grad(phi)(h)
    total = jnp.zeros_like(value)
    for q, other, dq in ((q1, q2, tangents[0]), (q2, q1, tangents[1])):
        if not isinstance(dq, SymbolicZero):
            mean = gaussian.pair_expectation(euler, phi, q, other, cov, kinks=phi.kinks)
            total += (mean - cov * slope) / (2 * q) * dq
    if not isinstance(tangents[2], SymbolicZero):
        total += slope * tangents[2]
    return value, total


def _homogeneous_moment(phi: Activation, order: int, q: ArrayLike) -> Array:
    """Mean square of a max(h, 0)**order + b max(-h, 0)**order, with a = phi(1), b = phi(-1)."""
    q = gaussian.correlation(q, q, q)[0]
    one = jnp.ones((), q.dtype)
    return (phi(one) ** 2 + phi(-one) ** 2) / 2 * (1, 1, 3)[order] * q**order


def _homogeneous(phi: Activation, q1: Array, q2: Array, rho: Array) -> tuple[Array, Array]:
    """Arc-cosine kernels of a max(h, 0)**k + b max(-h, 0)**k, and of its derivative."""
    one = jnp.ones((), rho.dtype)
    a, b = phi(one), phi(-one)

    def half(order: int, rho: Array) -> Array:
        """E max(u, 0)**order max(v, 0)**order at unit variances (Cho and Saul 2009)."""
        angle, sine = jnp.pi - jnp.arccos(rho), jnp.sqrt((1 - rho) * (1 + rho))
        j = (angle, sine + angle * rho, 3 * sine * rho + angle * (1 + 2 * rho**2))[order]
        return j / (2 * jnp.pi)

    def pair(order: int, cross: Array) -> Array:
        return (a * a + b * b) * half(order, rho) + cross * half(order, -rho)

    k = int(phi.homogeneous or 0)
    scale = jnp.sqrt(q1) * jnp.sqrt(q2)
    if k == 0:
        return pair(0, 2 * a * b), jnp.full_like(rho, jnp.inf)
    return scale**k * pair(k, 2 * a * b), k * k * scale ** (k - 1) * pair(k - 1, -2 * a * b)


def _erf(q1: Array, q2: Array, cov: Array) -> tuple[Array, Array]:
    """Williams (1997)."""
    square = (1 + 2 * q1) * (1 + 2 * q2)
    value = jnp.arcsin(2 * cov / jnp.sqrt(square)) * (2 / jnp.pi)
    return value, 4 / jnp.pi / jnp.sqrt(square - 4 * cov**2)


def _gelu(q1: Array, q2: Array, cov: Array) -> tuple[Array, Array]:
    """Kernel of h Phi(h), by two integrations by parts; its slope by differentiation."""

    def value(cov: Array) -> Array:
        square = (1 + q1) * (1 + q2)
        density = 1 / (2 * jnp.pi * jnp.sqrt(square - cov**2))
        both = 0.25 + jnp.arcsin(cov / jnp.sqrt(square)) / (2 * jnp.pi)
        return cov * both + density * (q1 * q2 + cov**2 * (1 / (1 + q1) + 1 / (1 + q2) - 1))

    return jax.jvp(value, (cov,), (jnp.ones_like(cov),))


def _sin(q1: Array, q2: Array, cov: Array) -> tuple[Array, Array]:
    """Kernels of sin and of cos, exp(-(q1 + q2) / 2) times sinh and cosh, without overflow."""
    sign = jnp.where(cov < 0, -1, 1).astype(cov.dtype)
    near, far = sign * cov - (q1 + q2) / 2, jnp.expm1(-2 * sign * cov)
    return -sign * jnp.exp(near) * far / 2, jnp.exp(near) * (2 + far) / 2


def _cos(q1: Array, q2: Array, cov: Array) -> tuple[Array, Array]:
    sinh, cosh = _sin(q1, q2, cov)
    return cosh, sinh


_CLOSED = {
    activations.get(name).fn: closed
    for name, closed in (("erf", _erf), ("gelu", _gelu), ("sin", _sin), ("cos", _cos))
}
