r"""Early stopping as regularisation: gradient flow on a linear model against ridge.

Conventions are those of `regularization`: gradient flow descends :math:`\|y - X b\|^2 / 2n` from
zero, and risks are asymptotic for an isotropic design of :math:`\gamma` parameters per example.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from dltheory.theory import regularization
from dltheory.theory.parameters import checked

_NODES = 1024
_BISECTIONS = 64


class FlowBound(NamedTuple):
    """How much more gradient flow can risk than ridge of equal strength.

    Attributes:
        risk: Largest ratio of the risks, the square of the next.
        shrinkage: Largest ratio of the shrinkages of one eigenvalue.
        product: The product of eigenvalue and time at which it is reached.
    """

    risk: Array
    shrinkage: Array
    product: Array


def flow_bound() -> FlowBound:
    r"""The largest ratio of gradient flow at time `t` to ridge at the penalty `1 / t`.

    .. math:: \sup_x \frac{(1 - e^{-x})(1 + x)}{x} = (1 + x)^2 e^{-x} \quad\text{where}\quad
              e^x = 1 + x + x^2

    with :math:`x = s t`. Its square bounds the ratio of the risks for every design, every vector of
    coefficients and every time; at the best times and penalties the ratio is at most 1.22.

    Returns:
        `FlowBound`.

    Example:
        >>> from dltheory.theory import early_stopping
        >>> print(f"{early_stopping.flow_bound().risk:.4f}")
        1.6859

    Source: Ali, Kolter and Tibshirani (2019).
    """
    x = jnp.asarray(1.7932821329007610, jnp.result_type(float))
    ratio = (1 + x) ** 2 * jnp.exp(-x)
    return FlowBound(ratio**2, ratio, x)


def gradient_flow_risk(
    gamma: ArrayLike, t: ArrayLike, *, r2: ArrayLike, sigma2: ArrayLike
) -> Array:
    r"""Asymptotic risk of gradient flow stopped at a time.

    .. math:: R = \int r^2 e^{-2 t s} + \sigma^2 \gamma \frac{(1 - e^{-t s})^2}{s}\, dF_\gamma(s)

    over the Marchenko-Pastur law. Exact to rounding for times up to `1e4`, and at any later time
    where :math:`|\log \gamma| > 0.03`.

    Args:
        gamma: Parameters per example.
        t: Time; infinite for the end, where the risk is `min_norm_risk`.
        r2: Squared length of the coefficients.
        sigma2: Variance of the noise.

    Returns:
        The excess risk.

    Raises:
        ValueError: If an argument is negative (under tracing the result is NaN instead).

    Source: Ali, Kolter and Tibshirani (2019).
    """
    gamma, t, r2, sigma2 = jnp.broadcast_arrays(*checked(gamma=gamma, t=t, r2=r2, sigma2=sigma2))
    ended = t == jnp.inf
    s, weight = _marchenko_pastur(gamma)
    learnt = _clock(s, jnp.where(ended, 0, t)[..., None])
    twice = _clock(s, jnp.where(ended, 0, 2 * t)[..., None])
    bias = jnp.maximum(1 - jnp.sum(weight * twice, axis=-1), 0)
    risk = r2 * bias + sigma2 * gamma * jnp.sum(weight * learnt**2, axis=-1)
    return jnp.where(ended, regularization.min_norm_risk(gamma, r2=r2, sigma2=sigma2), risk)


def optimal_time(gamma: ArrayLike, *, r2: ArrayLike, sigma2: ArrayLike) -> Array:
    r"""The time at which stopping gradient flow has the least asymptotic risk.

    Each eigenvalue is best stopped at :math:`\log(1 + s / \lambda^*) / s` with
    :math:`\lambda^* = \gamma \sigma^2 / r^2`, and the best time for all lies between those of the
    ends of the spectrum.

    Args:
        gamma: Parameters per example, of any shape, more than zero.
        r2: Squared length of the coefficients, of a shape that fits.
        sigma2: Variance of the noise, of a shape that fits.

    Returns:
        The time: zero without a signal, infinite without noise.

    Raises:
        ValueError: If an argument is negative (under tracing the result is NaN instead).

    Source: Ali, Kolter and Tibshirani (2019).
    """
    penalty = regularization.optimal_penalty(gamma, r2=r2, sigma2=sigma2)
    gamma, penalty = checked(gamma=gamma, penalty=penalty)
    plain = (penalty > 0) & (penalty < jnp.inf)
    lam = jnp.where(plain, penalty, 1)
    s, weight = _marchenko_pastur(jnp.broadcast_to(gamma, lam.shape))

    def slope(t, lam):
        left = jnp.exp(-t[..., None] * s)
        gain = lam[..., None] * _clock(s, t[..., None]) - left
        return jnp.sum(weight * left * gain, axis=-1)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        late = slope(middle, lam) > 0
        return jnp.where(late, low, middle), jnp.where(late, middle, high)

    ends = (jnp.log1p(s[..., i] / lam) / jnp.where(s[..., i] > 0, s[..., i], 1) for i in (0, -1))
    low, high = ends
    high = jnp.where(s[..., -1] > 0, high, 1 / lam)
    t = lax.stop_gradient(sum(lax.fori_loop(0, _BISECTIONS, halve, (low, high)))) / 2
    # One step of Newton's method carries the derivatives of the root.
    steep = lax.stop_gradient(jax.jvp(lambda t: slope(t, lam), (t,), (jnp.ones_like(t),))[1])
    t = t - slope(t, lam) / steep
    edge = jnp.where(penalty == 0, jnp.inf, jnp.where(jnp.isnan(penalty), jnp.nan, 0))
    return jnp.where(plain, t, edge)


def _marchenko_pastur(gamma: Array) -> tuple[Array, Array]:
    """Nodes, descending, on a last axis; and weights for means of what is zero at eigenvalue zero.

    The weights are for `f(s) / s` in place of `f(s)`, so the law's pole at zero is gone.
    """
    angle = jnp.linspace(0, jnp.pi, _NODES + 1, dtype=gamma.dtype)
    angle = jnp.expand_dims(angle, tuple(range(gamma.ndim)))
    root = jnp.sqrt(gamma)[..., None]
    s = (1 - root) ** 2 + 4 * root * jnp.cos(angle / 2) ** 2
    # The trapezoidal rule for a periodic function converges geometrically.
    return s, 2 * jnp.sin(angle) ** 2 / _NODES


def _clock(s: Array, t: Array) -> Array:
    """`(1 - exp(-s t)) / s`, and `t` at zero."""
    some = s > 0
    return jnp.where(some, -jnp.expm1(-s * t) / jnp.where(some, s, 1), t + 0 * s)
