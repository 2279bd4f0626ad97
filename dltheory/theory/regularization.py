r"""Shrinkage, penalties and asymptotic risks of linear models: closed forms.

The design `x` has shape `(n, p)`, and its eigenvalues `s` are those of :math:`X^\top X / n`. Ridge
minimises :math:`\|y - X b\|^2 / n + \lambda \|b\|^2`, and gradient flow descends
:math:`\|y - X b\|^2 / 2n` from zero. Asymptotic risks are excess prediction risks of an isotropic
design, :math:`n, p \to \infty` with :math:`p / n \to \gamma`, coefficients of squared length
:math:`r^2` and noise of variance :math:`\sigma^2`. Every risk is its bias where `sigma2` is 0, and
its variance where `r2` is 0.
"""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.theory.parameters import check_count, checked


def soft_threshold(z: ArrayLike, t: ArrayLike) -> Array:
    r"""The proximal map of the absolute value.

    .. math:: S(z, t) = \operatorname{sign}(z)\, \max(|z| - t, 0)
              = \arg\min_b \tfrac12 (b - z)^2 + t\, |b|

    Divided by :math:`1 + t_2` it is that of the elastic net, with :math:`t_2 b^2 / 2` besides.

    Args:
        z: Where to evaluate it.
        t: Threshold, zero or more.

    Returns:
        The thresholded values.

    Raises:
        ValueError: If `t` is negative (under tracing the result is NaN instead).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import regularization
        >>> regularization.soft_threshold(jnp.array([-3.0, 0.5, 2.0]), 1.0)
        Array([-2.,  0.,  1.], dtype=float32)

    Sources: Tibshirani (1996); Zou and Hastie (2005).
    """
    dtype = jnp.result_type(float, z, t)
    z, t = jnp.asarray(z, dtype), checked(t=t)[0].astype(dtype)
    return z - jnp.clip(z, -t, t)


def ridge_shrinkage(s: ArrayLike, lam: ArrayLike) -> Array:
    r"""The share of a least-squares coefficient that ridge leaves, :math:`s / (s + \lambda)`.

    Args:
        s: Eigenvalues of :math:`X^\top X / n`.
        lam: Penalties.

    Returns:
        The share, between 0 and 1; 0 at an eigenvalue of 0.

    Raises:
        ValueError: If either is negative (under tracing the result is NaN instead).
    """
    s, lam = checked(s=s, lam=lam)
    return jnp.where(jnp.isnan(lam), jnp.nan, s / jnp.where(s == 0, 1, s + lam))


def gradient_flow_shrinkage(s: ArrayLike, t: ArrayLike) -> Array:
    r"""The share of a least-squares coefficient learnt by a time, :math:`1 - e^{-s t}`.

    Args:
        s: Eigenvalues of :math:`X^\top X / n`.
        t: Times; infinite for the end of training.

    Returns:
        The share, between 0 and 1; 0 at an eigenvalue of 0.

    Raises:
        ValueError: If either is negative (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import regularization
        >>> flow = regularization.gradient_flow_shrinkage(2.0, 0.5)
        >>> print(f"{flow:.4f} {regularization.ridge_shrinkage(2.0, 1 / 0.5):.4f}")
        0.6321 0.5000

    Source: Ali, Kolter and Tibshirani (2019), A continuous-time view of early stopping.
    """
    s, t = checked(s=s, t=t)
    never = (s == 0) | (t == 0)
    spent = jnp.where(never, 0, s) * jnp.where(never, 0, t)
    return jnp.where(jnp.isnan(s + t), jnp.nan, -jnp.expm1(-spent))


def ridge_risk(gamma: ArrayLike, lam: ArrayLike, *, r2: ArrayLike, sigma2: ArrayLike) -> Array:
    r"""Asymptotic risk of ridge regression.

    With the Stieltjes transform `m` of the Marchenko-Pastur law,

    .. math:: R = r^2 \lambda^2 m'(-\lambda)
              + \sigma^2 \gamma\, [m(-\lambda) - \lambda m'(-\lambda)].

    Args:
        gamma: Parameters per example.
        lam: Penalty; at 0 the risk is `min_norm_risk`.
        r2: Squared length of the coefficients.
        sigma2: Variance of the noise.

    Returns:
        The excess risk; infinite at `gamma` 1 without a penalty.

    Raises:
        ValueError: If an argument is negative (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import regularization
        >>> print(f"{regularization.ridge_risk(0.5, 0.1, r2=1.0, sigma2=0.25):.4f}")
        0.1768

    Sources: Hastie, Montanari, Rosset and Tibshirani (2022); Dobriban and Wager (2018).
    """
    gamma, lam, r2, sigma2 = checked(gamma=gamma, lam=lam, r2=r2, sigma2=sigma2)
    nothing = jnp.isinf(lam) | jnp.isinf(gamma)  # is learnt
    g, lam = jnp.where(nothing, 1, gamma), jnp.where(nothing, 1, lam)
    square = (1 - g) ** 2 + 2 * lam * (1 + g) + lam**2
    peak = square == 0
    root = jnp.sqrt(jnp.where(peak, 1, square))
    # The mean shares that are kept and lost, lambda m(-lambda), each without cancellation.
    kept, below = 2 / (1 + g + lam + root), 1 - g + lam
    high = below > 0
    lost = 2 * lam / (jnp.where(high, below, 1) + root)
    lost = jnp.where(high, lost, (root - below) / (2 * jnp.where(high, 1, g)))
    risk = (r2 * lost * (lam + g * lost) + sigma2 * g * kept) / root
    risk = jnp.where(peak, jnp.where(sigma2 > 0, jnp.inf, 0 * r2 * sigma2), risk)
    return jnp.where(nothing, r2 + 0 * sigma2, risk)


def min_norm_risk(gamma: ArrayLike, *, r2: ArrayLike, sigma2: ArrayLike) -> Array:
    r"""Asymptotic risk of least squares of minimum norm: double descent.

    .. math:: R = \frac{\sigma^2 \gamma}{1 - \gamma} \;\; (\gamma < 1), \qquad
              R = r^2 \left(1 - \frac1\gamma\right) + \frac{\sigma^2}{\gamma - 1} \;\; (\gamma > 1)

    Args:
        gamma: Parameters per example.
        r2: Squared length of the coefficients.
        sigma2: Variance of the noise.

    Returns:
        The excess risk; infinite at `gamma` 1.

    Raises:
        ValueError: If an argument is negative (under tracing the result is NaN instead).

    Source: Hastie, Montanari, Rosset and Tibshirani (2022), Surprises in high-dimensional ridgeless
        least squares interpolation.
    """
    return ridge_risk(gamma, 0.0, r2=r2, sigma2=sigma2)


def exact_min_norm_risk(n: int, p: int, *, r2: ArrayLike, sigma2: ArrayLike) -> Array:
    r"""Expected risk of least squares of minimum norm on a Gaussian design of any size.

    .. math:: \mathbb{E} R = \frac{\sigma^2 p}{n - p - 1} \;\; (p < n - 1), \qquad
              r^2 \left(1 - \frac np\right) + \frac{\sigma^2 n}{p - n - 1} \;\; (p > n + 1)

    Args:
        n: Examples.
        p: Parameters.
        r2: Squared length of the coefficients.
        sigma2: Variance of the noise.

    Returns:
        The expected excess risk; infinite where `p` is within one of `n` and there is noise.

    Raises:
        TypeError: If `n` or `p` is no integer.
        ValueError: If `n` or `p` is not positive, or a variance is negative.

    Source: Belkin, Hsu and Xu (2020), Two models of double descent for weak features.
    """
    check_count("n", n)
    check_count("p", p)
    r2, sigma2 = checked(r2=r2, sigma2=sigma2)
    bias = r2 * max(1 - n / p, 0)
    if abs(n - p) <= 1:
        return jnp.where(sigma2 > 0, jnp.inf, bias + sigma2)
    return bias + sigma2 * (min(n, p) / (abs(n - p) - 1))


def optimal_penalty(gamma: ArrayLike, *, r2: ArrayLike, sigma2: ArrayLike) -> Array:
    r"""The ridge penalty of least asymptotic risk, :math:`\lambda^* = \gamma \sigma^2 / r^2`.

    Args:
        gamma: Parameters per example.
        r2: Squared length of the coefficients.
        sigma2: Variance of the noise.

    Returns:
        The penalty; infinite without a signal.

    Raises:
        ValueError: If an argument is negative (under tracing the result is NaN instead).

    Sources: Dobriban and Wager (2018); Hastie et al. (2022).
    """
    gamma, r2, sigma2 = checked(gamma=gamma, r2=r2, sigma2=sigma2)
    silent = r2 == 0
    return jnp.where(silent, jnp.inf, gamma * sigma2 / jnp.where(silent, 1, r2))


def optimal_gamma(*, r2: ArrayLike, sigma2: ArrayLike) -> Array:
    r"""Where the risk of minimum-norm least squares has its second minimum.

    .. math:: \gamma^* = \frac{\rho}{\rho - 1}, \qquad \rho = r / \sigma > 1

    Args:
        r2: Squared length of the coefficients.
        sigma2: Variance of the noise.

    Returns:
        Parameters per example; infinite where the signal is no stronger than the noise.

    Raises:
        ValueError: If an argument is negative (under tracing the result is NaN instead).

    Source: Hastie, Montanari, Rosset and Tibshirani (2022).
    """
    r2, sigma2 = checked(r2=r2, sigma2=sigma2)
    strong = r2 > sigma2
    r, s = jnp.sqrt(jnp.where(strong, r2, 4)), jnp.sqrt(jnp.where(strong & (sigma2 > 0), sigma2, 1))
    s = jnp.where(sigma2 > 0, s, 0)
    return jnp.where(jnp.isnan(r2 + sigma2), jnp.nan, jnp.where(strong, r / (r - s), jnp.inf))


def dropout_penalty(x: ArrayLike, w: ArrayLike, keep: ArrayLike) -> Array:
    r"""What dropout of the inputs adds to the sum of squared errors: a ridge for each feature.

    .. math:: \mathbb{E} \|y - \tilde X w\|^2 - \|y - X w\|^2
              = \frac{1 - p}{p} \sum_j w_j^2\, \|X_j\|^2, \qquad \tilde X = X \odot M / p

    with masks :math:`M` of independent entries that are one with the probability :math:`p`.

    Args:
        x: Design, shape `(n, p)`.
        w: Coefficients, shape `(p,)`.
        keep: Probability that an input is kept, in (0, 1].

    Returns:
        The penalty, shape `()`.

    Raises:
        ValueError: If the shapes do not fit, or `keep` is out of range (under tracing NaN instead).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import regularization
        >>> print(regularization.dropout_penalty(jnp.eye(2), jnp.array([1.0, 2.0]), 0.5))
        5.0

    Sources: Srivastava et al. (2014); Wager, Wang and Liang (2013).
    """
    dtype = jnp.result_type(float, x, w)
    x, w = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
    if x.ndim != 2 or w.shape != x.shape[1:]:
        raise ValueError(f"x must be (n, p) and w (p,); got {x.shape} and {w.shape}")
    keep = checked(keep=keep)[0].astype(dtype)
    return (1 - keep) / keep * jnp.sum(jnp.sum(x**2, axis=0) * w**2)
