r"""Ridge regression on random features of any activation: the asymptotic risk, double descent.

Inputs are uniform on the sphere of radius :math:`\sqrt d`, features are
:math:`\phi(w_i \cdot x)` for `N` weights uniform on the unit sphere, and the target is linear, with
noise. The three sizes grow together, :math:`N / d \to \psi_1` and :math:`n / d \to \psi_2`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from dltheory.networks.activations import Activation
from dltheory.theory import dual
from dltheory.theory.parameters import checked

_BISECTIONS = 64


class Features(NamedTuple):
    r"""What the risk takes from an activation.

    Attributes:
        linear: :math:`\mu_1^2`, the squared linear Hermite coefficient.
        rest: :math:`\mu_*^2`, the sum of the squares of all higher ones.
    """

    linear: Array
    rest: Array


def features(phi: Activation | str) -> Features:
    r"""The linear part of an activation, and the rest, which acts as noise.

    .. math:: \mu_1 = \mathbb{E}\, z \phi(z), \qquad
              \mu_*^2 = \mathbb{E} \phi(z)^2 - (\mathbb{E} \phi(z))^2 - \mu_1^2

    Args:
        phi: Activation, or its name.

    Returns:
        `Features`.

    Source: Mei and Montanari (2022).
    """
    first = dual.hermite_coefficients(phi, 2)
    return Features(first[1] ** 2, dual.moment(phi) - jnp.sum(first**2))


def risk(
    phi: Activation | str,
    psi1: ArrayLike,
    psi2: ArrayLike,
    lam: ArrayLike,
    *,
    r2: ArrayLike,
    sigma2: ArrayLike,
) -> Array:
    r"""Asymptotic excess risk of ridge regression on random features.

    The coefficients `a` minimise the mean squared error plus
    :math:`\lambda\, (N / d)\, \|a\|^2`, and the risk is :math:`r^2 B + \sigma^2 V`, with the bias
    `B` where `sigma2` is 0 and the variance `V` where `r2` is 0.

    Args:
        phi: Activation, or its name, neither linear nor even.
        psi1: Features per input dimension, more than zero.
        psi2: Examples per input dimension, more than zero.
        lam: Penalty; zero for the solution of minimum norm.
        r2: Squared length of the coefficients of the linear target.
        sigma2: Variance of the noise.

    Returns:
        The excess risk, of the shape that the arguments broadcast to; infinite at `psi1 = psi2`
        without a penalty, the peak of double descent.

    Raises:
        ValueError: If an argument is negative, or `psi1` or `psi2` is zero (under tracing the
            result is NaN instead); if the activation is linear or has no linear part.

    Example:
        >>> from dltheory.theory import random_features
        >>> risk = random_features.risk("relu", 3.0, 3.0, 0.01, r2=1.0, sigma2=0.25)
        >>> print(f"{risk:.4f}")
        0.4814

    Source: Mei and Montanari (2022), The generalization error of random features regression.
    """
    arrays = checked(psi1=psi1, psi2=psi2, lam=lam, r2=r2, sigma2=sigma2)
    for name, value in (("psi1", psi1), ("psi2", psi2)):
        if not isinstance(value, Tracer) and np.any(np.asarray(value) == 0):
            raise ValueError(f"{name} must be more than zero; got {value}")
    psi1, psi2, lam, r2, sigma2 = jnp.broadcast_arrays(*arrays)
    of = features(phi)
    noise = 1e3 * jnp.finfo(of.rest.dtype).eps * (of.linear + of.rest)
    if not isinstance(of.rest, Tracer) and not (of.rest > noise and of.linear > noise):
        raise ValueError(
            "phi must have a linear part and one that is not linear: their mean squares are "
            f"{of.linear} and {of.rest}"
        )
    ratio = (of.linear / of.rest).astype(psi1.dtype)
    psi1, psi2 = (jnp.where(psi > 0, psi, jnp.nan) for psi in (psi1, psi2))
    bias, variance = _parts(ratio, psi1, psi2, lam / of.rest.astype(lam.dtype))
    return jnp.where(r2 > 0, r2 * bias, r2) + jnp.where(sigma2 > 0, sigma2 * variance, sigma2)


def _parts(ratio, psi1, psi2, lam):
    """Bias and variance, from the ratio of linear to other parts."""
    # On the imaginary axis both transforms are imaginary, and k is minus their product.
    mass = lambda k: k + ratio * k / (1 + ratio * k)
    gap = lambda k: (psi1 - mass(k)) * (psi2 - mass(k)) - psi1 * psi2 * lam * k

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        early = gap(middle) > 0
        return jnp.where(early, middle, low), jnp.where(early, high, middle)

    # The mass is the smaller psi at this k, and the gap no more than zero.
    least = jnp.minimum(psi1, psi2)
    linear = 1 + ratio - ratio * least
    top = 2 * least / (linear + jnp.sqrt(linear**2 + 4 * ratio * least))
    k = lax.fori_loop(0, _BISECTIONS, halve, lax.stop_gradient((jnp.zeros_like(top), top)))[1]
    k = lax.stop_gradient(k)
    # One step of Newton's method carries the derivatives of the root.
    slope = lax.stop_gradient(jax.jvp(gap, (k,), (jnp.ones_like(k),))[1])
    k = jnp.where(lam > 0, k - gap(k) / jnp.where(slope == 0, -1, slope), top)

    z2, chi, both = ratio, -k, psi1 * psi2
    e0 = (
        -(chi**5) * z2**3
        + 3 * chi**4 * z2**2
        + (both - psi2 - psi1 + 1) * chi**3 * z2**3
        - 2 * chi**3 * z2**2
        - 3 * chi**3 * z2
        + (psi1 + psi2 - 3 * both + 1) * chi**2 * z2**2
        + 2 * chi**2 * z2
        + chi**2
        + 3 * both * chi * z2
        - both
    )
    e1 = psi2 * chi**3 * z2**2 - psi2 * chi**2 * z2 + both * chi * z2 - both
    e2 = (
        chi**5 * z2**3
        - 3 * chi**4 * z2**2
        + (psi1 - 1) * chi**3 * z2**3
        + 2 * chi**3 * z2**2
        + 3 * chi**3 * z2
        - (psi1 + 1) * chi**2 * z2**2
        - 2 * chi**2 * z2
        - chi**2
    )
    peak = (lam == 0) & (psi1 == psi2)
    e0 = jnp.where(peak, 1, e0)
    return jnp.where(peak, jnp.inf, e1 / e0), jnp.where(peak, jnp.inf, e2 / e0)
