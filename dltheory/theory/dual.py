r"""Gaussian moments, dual kernels and Hermite coefficients of any activation.

The dual kernel of :math:`\phi` is :math:`\mathbb{E}\,\phi(u)\phi(v)` for Gaussian `u` and `v`. It
has a closed form for a positively homogeneous function (the ReLU family, by arc-cosine kernels),
for erf, GELU, sin and cos; for every other activation it is integrated, exact at kinks. The same
holds for the kernel of the derivative, which is the slope of the kernel in the covariance.
"""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
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
    slope = jax.grad(phi)
    value = gaussian.expectation(lambda h: jnp.square(slope(h)), q, kinks=phi.kinks)
    return value + jnp.inf if phi.smoothness == -1 else value


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
    value = gaussian.expectation(lambda h: jnp.square(bend(h)), q, kinks=phi.kinks)
    return value + jnp.inf if phi.smoothness is not None and phi.smoothness < 1 else value


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
    if phi.fn in _CLOSED:
        return _CLOSED[phi.fn][0](*gaussian.covariance(q1, q2, cov))
    if phi.homogeneous in (0, 1, 2):
        ...


def _integrated(phi: Activation, q1: Array, q2: Array, cov: Array) -> Array:
    return gaussian.pair_expectation(phi, phi, q1, q2, cov)
