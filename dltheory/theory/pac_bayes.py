r"""PAC-Bayes bounds in closed form, beside `generalization.pac_bayes_kl`, which is tighter."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.theory import bounds, generalization
from dltheory.theory.parameters import checked


def mcallester(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike) -> bounds.Bound:
    r"""The PAC-Bayes bound by Pinsker's inequality, :math:`\hat R + \sqrt{c / 2}`.

    Args:
        risk: Mean loss of the posterior on the sample, in [0, 1].
        kl: Relative entropy of the posterior to a prior that has not seen the sample.
        n: Examples, one or more.
        delta: Probability of failure, in (0, 1).

    Returns:
        `Bound`, with the `c` of `generalization.pac_bayes_complexity`.

    Raises:
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Source: McAllester (1999).
    """
    risk, half = _halved(risk, kl, n, delta)
    return bounds.bound(risk + jnp.sqrt(half))


def quadratic(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike) -> bounds.Bound:
    r"""The PAC-Bayes bound that is quick at small losses, and simple to minimise.

    .. math:: R(Q) \le \left(\sqrt{\hat R(Q) + c / 2} + \sqrt{c / 2}\right)^2

    Args:
        risk: Mean loss of the posterior on the sample, in [0, 1].
        kl: Relative entropy of the posterior to a prior that has not seen the sample.
        n: Examples, one or more.
        delta: Probability of failure, in (0, 1).

    Returns:
        `Bound`, with the `c` of `generalization.pac_bayes_complexity`.

    Raises:
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Source: Perez-Ortiz, Rivasplata, Shawe-Taylor and Szepesvari (2021).
    """
    risk, half = _halved(risk, kl, n, delta)
    return bounds.bound((jnp.sqrt(risk + half) + jnp.sqrt(half)) ** 2)


def gaussian_kl(
    distance2: ArrayLike, dim: ArrayLike, *, var: ArrayLike, prior_var: ArrayLike
) -> Array:
    r"""Relative entropy of two isotropic Gaussians.

    .. math:: \mathrm{KL} = \tfrac12 \left[d\, \frac{s^2}{s_0^2} - d
              + \frac{\|w - w_0\|^2}{s_0^2} + d \log \frac{s_0^2}{s^2}\right]

    Args:
        distance2: Squared distance of the means.
        dim: Number of coordinates :math:`d`.
        var: Variance :math:`s^2` of the posterior.
        prior_var: Variance :math:`s_0^2` of the prior.

    Returns:
        The relative entropy; infinite where a variance is 0.

    Raises:
        ValueError: If an argument is negative (under tracing the result is NaN instead).
    """
    distance2, dim, var, prior = checked(distance2=distance2, dim=dim, var=var, prior_var=prior_var)
    proper = (var > 0) & (prior > 0)
    s, s0 = jnp.where(proper, var, 1), jnp.where(proper, prior, 1)
    kl = (dim * (s / s0 - 1 - jnp.log(s / s0)) + distance2 / s0) / 2
    return jnp.where(proper, kl, jnp.where(jnp.isnan(var + prior), jnp.nan, jnp.inf))


def _halved(risk, kl, n, delta):
    risk, kl, n, delta = bounds.inputs(risk=risk, kl=kl, n=n, delta=delta)
    return risk, generalization.pac_bayes_complexity(kl, n, delta) / 2
