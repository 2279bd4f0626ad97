r"""How many measurements recover sparse coefficients, at any size: the cone of descent.

Coefficients of which `k` of `p` are not zero are recovered from `n` noiseless measurements by the
least sum of absolute values exactly if no direction in which that sum falls is invisible to the
design. The directions form a cone, and for a Gaussian design its conic intrinsic volumes decide:
their mean, the statistical dimension, says where, and their variance how sharply. The limit of the
first is `regression.sparsity_transition`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.scipy import special, stats
from jax.typing import ArrayLike

from dltheory.theory.parameters import checked

_BISECTIONS = 64


class Cone(NamedTuple):
    """The intrinsic volumes of a cone of descent, a law on the dimensions, per coefficient.

    Attributes:
        mean: Their mean over `p` as `p` grows, the statistical dimension per coefficient.
        variance: Their variance over `p`.
        excess: What the mean of `p` coefficients falls short of `p` times that by, as `p` grows.
    """

    mean: Array
    variance: Array
    excess: Array


def descent_cone(share: ArrayLike) -> Cone:
    r"""The cone of descent of the sum of absolute values at sparse coefficients.

    .. math:: \psi(s) = \min_{\tau \ge 0}\; s\, (1 + \tau^2)
              + (1 - s)\, \mathbb{E} (|g| - \tau)_+^2, \qquad
              v(s) = s\, (2 + 4 \tau^2) + (1 - s) \operatorname{Var} (|g| - \tau)_+^2 - 2 \psi(s)

    with `g` standard normal and, in the second, the :math:`\tau` of the minimum. Of `p`
    coefficients the mean is smaller, by at most :math:`2 / (\sqrt{s}\, p)`: the best threshold
    follows the draw, which wins

    .. math:: \frac{s + (1 - s) \operatorname{Var} (|g| - \tau)_+}
              {s + (1 - s)\, \mathbb{P}(|g| > \tau)}

    of one dimension, up to what vanishes as `p` grows: its slope squared over twice its curvature.

    Args:
        share: Coefficients that are not zero, of all, in [0, 1].

    Returns:
        `Cone`, of the shape of `share`.

    Raises:
        ValueError: If `share` is out of range (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import sparse_recovery
        >>> cone = sparse_recovery.descent_cone(0.1)
        >>> print(f"{cone.mean:.4f} {cone.variance:.4f}")
        0.3288 0.2164

    Sources: Amelunxen, Lotz, McCoy and Tropp (2014), Living on the edge: phase transitions in
        convex programs with random data; for the variance McCoy and Tropp (2014), From Steiner
        formulas for cones to concentration of intrinsic volumes.
    """
    dtype = jnp.result_type(float, share)
    if not isinstance(share, Tracer) and np.any(np.asarray(share) > 1):
        raise ValueError(f"share must be in [0, 1]; got {share}")
    share = checked(share=share)[0].astype(dtype)
    share = jnp.where(share > 1, jnp.nan, share)
    inside = (share > 0) & (share < 1)
    s = jnp.where(inside, share, 0.5)

    tail = lambda tau: special.ndtr(-tau)
    # The slope of the minimised mean over 2 s, which rises with the threshold.
    slope = lambda tau, s: tau - (1 - s) / s * 2 * (stats.norm.pdf(tau) - tau * tail(tau))
    fixed = lax.stop_gradient(s)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = slope(middle, fixed) < 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = jnp.zeros_like(s), jnp.full_like(s, 40)
    tau = lax.stop_gradient(sum(lax.fori_loop(0, _BISECTIONS, halve, ends))) / 2
    # One step of Newton's method carries the derivatives of the root.
    steep = lax.stop_gradient(1 + (1 - s) / s * 2 * tail(tau))
    tau = tau - slope(tau, s) / steep

    pdf, above = stats.norm.pdf(tau), tail(tau)
    second = 2 * ((1 + tau**2) * above - tau * pdf)
    fourth = 2 * ((tau**4 + 6 * tau**2 + 3) * above - (tau**3 + 5 * tau) * pdf)
    mean = s * (1 + tau**2) + (1 - s) * second
    variance = s * (2 + 4 * tau**2) + (1 - s) * (fourth - second**2) - 2 * mean
    first = 2 * (pdf - tau * above)
    excess = (s + (1 - s) * (second - first**2)) / (s + (1 - s) * 2 * above)
    # All directions of descent, or none but those along zero.
    return Cone(
        jnp.where(inside, mean, share),
        jnp.where(inside, variance, 0 * share),
        jnp.where(inside, excess, 0 * share),
    )


def recovery_chance(n: ArrayLike, p: ArrayLike, k: ArrayLike) -> Array:
    r"""The chance that the least sum of absolute values recovers sparse coefficients.

    .. math:: \Phi\left(\frac{n - p\, \psi(k / p) + e(k / p)}{\sqrt{p\, v(k / p)}}\right)

    with the mean, the variance and the excess of `descent_cone`. The law of the intrinsic volumes
    is normal as `p` grows with `k / p` fixed. It is one on integers, of which recovery sees every
    other one, so the chance is known to half a measurement.

    Args:
        n: Noiseless measurements by a Gaussian design, zero or more.
        p: Coefficients, `k` or more.
        k: Coefficients that are not zero.

    Returns:
        The chance; 1 for as many measurements as coefficients.

    Raises:
        ValueError: If an argument is negative or `k` exceeds `p` (under tracing the result is NaN
            instead).

    Example:
        >>> from dltheory.theory import sparse_recovery
        >>> chances = [sparse_recovery.recovery_chance(n, 100, 10) for n in (25, 33, 45)]
        >>> print(" ".join(f"{chance:.3f}" for chance in chances))
        0.058 0.558 0.997

    Sources: Amelunxen, Lotz, McCoy and Tropp (2014); for the normal law Goldstein, Nourdin and
        Peccati (2017), Gaussian phase transitions and conic intrinsic volumes.
    """
    if not isinstance(p, Tracer) and not isinstance(k, Tracer) and np.any(np.asarray(k) > p):
        raise ValueError(f"k must be at most p; got k = {k} and p = {p}")
    n, p, k = checked(n=n, p=p, k=k)
    dtype = jnp.result_type(float, n, p, k)
    n, p, k = (a.astype(dtype) for a in (n, p, k))
    nothing = p == 0
    cone = descent_cone(jnp.where(nothing, 0, k) / jnp.where(nothing, 1, p))
    spread = jnp.sqrt(jnp.where(cone.variance > 0, p * cone.variance, 1))
    chance = special.ndtr((n - p * cone.mean + cone.excess) / spread)
    certain = jnp.where(n >= p * cone.mean, 1.0, 0.0).astype(dtype)
    chance = jnp.where((cone.variance > 0) & (n < p), chance, certain)
    return jnp.where(jnp.isnan(n + cone.mean), jnp.nan, chance)
