r"""PAC-Bayes bounds in closed form, beside `generalization.pac_bayes_kl`, which is tighter.

And what makes that one a certificate: Gaussian laws, a choice of priors, risks by sampling.
"""

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


def prior_price(prior_var: ArrayLike, *, largest: ArrayLike, precision: ArrayLike) -> Array:
    r"""What the relative entropy is raised by for a prior's variance that was chosen afterwards.

    .. math:: \log \frac{\pi^2 j^2}{6}, \qquad j = \max(1,\, b \log(c / \lambda))

    by a union over the variances :math:`\lambda_j = c\, e^{-j/b}`, :math:`j = 1, 2, \dots`, each
    with the share :math:`6 \delta / (\pi j)^2` of the probability of failure. Between these
    variances it makes no bound, but can be descended; `allowed_prior` gives the one to end with.

    Args:
        prior_var: Variance :math:`\lambda` of the prior, below `largest`.
        largest: The constant :math:`c`.
        precision: The constant :math:`b`: how many variances there are to a factor of `e`.

    Returns:
        The price, to be added to the relative entropy in any of the bounds.

    Raises:
        ValueError: If an argument is negative (under tracing the result is NaN instead).

    Source: Dziugaite and Roy (2017).
    """
    j = jnp.maximum(_index(prior_var, largest, precision), 1)
    return 2 * jnp.log(j) + jnp.log(jnp.asarray(jnp.pi**2 / 6, j.dtype))


def allowed_prior(prior_var: ArrayLike, *, largest: ArrayLike, precision: ArrayLike) -> Array:
    r"""The nearest variance of a prior over which `prior_price` takes its union.

    .. math:: \lambda_j = c\, e^{-j/b}, \qquad j = 1, 2, \dots

    Args:
        prior_var: Variance of the prior.
        largest: The constant :math:`c`.
        precision: The constant :math:`b`.

    Returns:
        The variance, nearest on the scale of logarithms.

    Raises:
        ValueError: If an argument is negative (under tracing the result is NaN instead).

    Source: Dziugaite and Roy (2017).
    """
    j = jnp.maximum(jnp.round(_index(prior_var, largest, precision)), 1)
    largest, precision = checked(largest=largest, precision=precision)
    return largest * jnp.exp(-j / precision)


def certificate(
    risk: ArrayLike,
    samples: ArrayLike,
    kl: ArrayLike,
    n: ArrayLike,
    delta: ArrayLike,
    *,
    sampling_delta: ArrayLike,
) -> bounds.Bound:
    r"""The PAC-Bayes bound where the posterior's risk is known from a few draws of it.

    .. math:: R(Q) \le \mathrm{kl}^{-1}\!\left(\mathrm{kl}^{-1}\!\left(\hat R_m,\,
              \frac{\log(2 / \delta')}{m}\right),\, c\right)

    with a probability of at least :math:`1 - \delta - \delta'`, :math:`c` being
    `generalization.pac_bayes_complexity`.

    Args:
        risk: Mean error on the sample over the draws, in [0, 1].
        samples: How many draws :math:`m` from the posterior it is a mean over, one or more.
        kl: Relative entropy of the posterior to a prior that has not seen the sample, with
            `prior_price` if the prior's variance was chosen afterwards.
        n: Examples, one or more.
        delta: Probability of failure over the examples, in (0, 1).
        sampling_delta: Probability of failure over the draws, in (0, 1).

    Returns:
        `Bound` on the mean loss of the posterior on new examples.

    Raises:
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import pac_bayes
        >>> bound = pac_bayes.certificate(
        ...     0.028, 150_000, 5144.0, 55_000, 0.025, sampling_delta=0.01
        ... )
        >>> print(f"{bound.value:.3f}")
        0.163

    Sources: Langford and Caruana (2002); Dziugaite and Roy (2017).
    """
    risk, kl, n, delta = bounds.inputs(risk=risk, kl=kl, n=n, delta=delta)
    samples, fails = bounds.inputs(samples=samples, sampling_delta=sampling_delta)
    upper = generalization.kl_inverse(risk, jnp.log(2 / fails) / samples)
    return generalization.pac_bayes_kl(upper, kl, n, delta)


def _index(prior_var, largest, precision):
    """The place of a variance among those that are allowed, a real number."""
    var, largest, precision = checked(prior_var=prior_var, largest=largest, precision=precision)
    return precision * jnp.log(largest / var)


def _halved(risk, kl, n, delta):
    risk, kl, n, delta = bounds.inputs(risk=risk, kl=kl, n=n, delta=delta)
    return risk, generalization.pac_bayes_complexity(kl, n, delta) / 2
