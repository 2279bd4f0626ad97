r"""Bounds on the error that a classifier makes on new examples, each with its verdict.

A bound holds with a probability of at least :math:`1 - \delta` over the `n` examples of a sample,
for losses between 0 and 1, and says whether it is vacuous. Further ones are in `pac_bayes` and
`capacity`.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy import special
from jax.typing import ArrayLike

from dltheory.theory import bounds
from dltheory.theory.parameters import check_count

_BISECTIONS = 64


def binary_kl(q: ArrayLike, p: ArrayLike) -> Array:
    r"""Relative entropy of two coins.

    .. math:: \mathrm{kl}(q \| p) = q \log \frac qp + (1 - q) \log \frac{1 - q}{1 - p}

    without cancellation where the two are close.

    Args:
        q: Probability of the first, in [0, 1].
        p: Probability of the second, in [0, 1], of a shape that fits.

    Returns:
        The relative entropy; infinite where the second excludes what the first allows.

    Raises:
        ValueError: If a probability is out of range (under tracing the result is NaN instead).
    """
    q, p = bounds.inputs(q=q, p=p)
    return _kl(q, p - q)


def kl_inverse(q: ArrayLike, c: ArrayLike) -> Array:
    r"""The largest coin within a relative entropy of another one.

    .. math:: \mathrm{kl}^{-1}(q, c) = \sup \{p : \mathrm{kl}(q \| p) \le c\}

    Args:
        q: Probability, in [0, 1].
        c: Relative entropy, zero or more, of a shape that fits.

    Returns:
        The probability, between `q` and 1.

    Raises:
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import generalization
        >>> print(f"{generalization.kl_inverse(0.1, 0.16):.4f}")
        0.3430

    Source: Langford and Seeger (2001), Bounds for averaging classifiers.
    """
    q, c = jnp.broadcast_arrays(*bounds.inputs(q=q, c=c))
    inside = (q > 0) & (q < 1) & (c > 0) & (c < jnp.inf)
    some, much = jnp.where(inside, q, 0.5), jnp.where(inside, c, 0.1)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = _kl(some, middle) < much
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = lax.stop_gradient((jnp.zeros_like(some), 1 - some))
    low, high = lax.stop_gradient(lax.fori_loop(0, _BISECTIONS, halve, ends))
    u = (low + high) / 2
    top = some + u
    rest = jnp.maximum(1 - top, jnp.finfo(u.dtype).tiny)
    # One step of Newton's method carries the derivatives of the root.
    slope = lax.stop_gradient(u / (top * rest))
    step = jnp.clip((much - _kl(some, u)) / jnp.where(slope > 0, slope, 1), -u / 2, rest / 2)
    exact = some + u + step
    ends = jnp.where(c == 0, q, jnp.where((q == 0) & (c < jnp.inf), -jnp.expm1(-c), 1))
    found = jnp.where(inside, jnp.clip(exact, q, 1), ends)
    return jnp.where(jnp.isnan(q + c), jnp.nan, found)


def pac_bayes_complexity(kl: ArrayLike, n: ArrayLike, delta: ArrayLike) -> Array:
    r"""What a PAC-Bayes bound pays per example.

    .. math:: c = \frac{\mathrm{KL}(Q \| P) + \log(2 \sqrt n / \delta)}{n}

    Args:
        kl: Relative entropy of the posterior to a prior that has not seen the sample.
        n: Examples, one or more.
        delta: Probability of failure, in (0, 1).

    Returns:
        The complexity.

    Raises:
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Source: Maurer (2004), A note on the PAC-Bayesian theorem.
    """
    kl, n, delta = bounds.inputs(kl=kl, n=n, delta=delta)
    return (kl + jnp.log(2 * jnp.sqrt(n) / delta)) / n


def pac_bayes_kl(risk: ArrayLike, kl: ArrayLike, n: ArrayLike, delta: ArrayLike) -> bounds.Bound:
    r"""The PAC-Bayes bound by inversion of the relative entropy, the tightest of the three.

    .. math:: R(Q) \le \mathrm{kl}^{-1}\!\left(\hat R(Q),\, \frac{\mathrm{KL}(Q \| P)
              + \log(2 \sqrt n / \delta)}{n}\right)

    Args:
        risk: Mean loss of the posterior on the sample, in [0, 1].
        kl: Relative entropy of the posterior to a prior that has not seen the sample.
        n: Examples, one or more.
        delta: Probability of failure, in (0, 1).

    Returns:
        `Bound` on the mean loss of the posterior on new examples.

    Raises:
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import generalization
        >>> bound = generalization.pac_bayes_kl(0.0, 50.0, 1000, 0.01)
        >>> print(f"{bound.value:.4f} {bound.vacuous}")
        0.0571 False

    Sources: Seeger (2002); Maurer (2004).
    """
    risk, kl, n, delta = bounds.inputs(risk=risk, kl=kl, n=n, delta=delta)
    return bounds.bound(kl_inverse(risk, pac_bayes_complexity(kl, n, delta)))


def clopper_pearson(errors: ArrayLike, n: ArrayLike, delta: ArrayLike) -> bounds.Bound:
    r"""The exact bound from a test set, by Clopper and Pearson: the one to beat.

    .. math:: \sup \{p : P(\mathrm{Bin}(n, p) \le k) \ge \delta\}

    Args:
        errors: Errors `k` on the test set, 0 to `n`.
        n: Examples of the test set, one or more.
        delta: Probability of failure, in (0, 1).

    Returns:
        `Bound` on the error of a classifier that has not seen the test set.

    Raises:
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import generalization
        >>> print(f"{generalization.clopper_pearson(0, 100, 0.05).value:.4f}")
        0.0295

    Sources: Clopper and Pearson (1934); Langford (2005).
    """
    arrays = bounds.inputs(errors=errors, n=n, delta=delta)
    k, n, delta = jnp.broadcast_arrays(*arrays)
    bounds.refuse(k > n, "errors", errors, "at most n, the number of examples")
    k = jnp.where(k > n, jnp.nan, k)
    plain = (k < n) & (k > 0)
    some, many, least = jnp.where(plain, k, 1), jnp.where(plain, n, 2), jnp.where(plain, delta, 0.5)
    tail = lambda p: special.betainc(many - some, some + 1, 1 - p)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = tail(middle) > least
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    ends = jnp.zeros_like(some), jnp.ones_like(some)
    low, high = lax.stop_gradient(lax.fori_loop(0, _BISECTIONS, halve, ends))
    p = (low + high) / 2
    slope = lax.stop_gradient(jax.jvp(tail, (p,), (jnp.ones_like(p),))[1])
    p = p - (lax.stop_gradient(tail(p)) - least) / jnp.where(slope == 0, -1, slope)
    none = -jnp.expm1(jnp.log(delta) / n)
    value = jnp.where(plain, p, jnp.where(k == 0, none, jnp.where(k == n, 1, jnp.nan)))
    return bounds.bound(value)


def rademacher_linear(x: ArrayLike, norm: ArrayLike) -> Array:
    r"""A bound on the Rademacher complexity of linear functions of bounded length.

    .. math:: \hat{\mathfrak R} = \frac Bn\, \mathbb{E} \Big\|\sum_i \sigma_i x_i\Big\|
              \le \frac{B}{n} \sqrt{\sum_i \|x_i\|^2}

    It is exact for orthogonal inputs of one length, and never more than :math:`\sqrt 2` too large.

    Args:
        x: Inputs, shape `(n, d)`.
        norm: The largest length :math:`B` of the weights.

    Returns:
        The bound, shape `()`; `capacity.rademacher_exact` has the value.

    Raises:
        ValueError: If `x` is no matrix or has no rows, or `norm` is negative (under tracing the
            result is NaN instead).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import generalization
        >>> print(generalization.rademacher_linear(jnp.eye(4), 1.0))
        0.5

    Sources: Bartlett and Mendelson (2002); Kakade, Sridharan and Tewari (2008).
    """
    x = jnp.asarray(x, jnp.result_type(float, x))
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x must be (n, d) with at least one row; it has shape {x.shape}")
    (norm,) = bounds.inputs(norm=norm)
    return norm.astype(x.dtype) * jnp.linalg.norm(x) / len(x)


def spectral_complexity(weights: Sequence[ArrayLike]) -> Array:
    r"""The spectral complexity of a network with 1-Lipschitz activations.

    .. math:: R_A = \left(\prod_l \|A_l\|_2\right) \left(\sum_l
              \left(\frac{\|A_l^\top\|_{2,1}}{\|A_l\|_2}\right)^{2/3}\right)^{3/2}

    where :math:`\|A^\top\|_{2,1}` is the sum of the lengths of the rows of :math:`A`. It is
    homogeneous of degree one in each matrix; divided by the margin it does not depend on scale.

    Args:
        weights: The matrices, each of shape `(out, in)`, at least one.

    Returns:
        The complexity, shape `()`; zero if a matrix is.

    Raises:
        ValueError: If there is none, or one is no matrix.

    Source: Bartlett, Foster and Telgarsky (2017), Spectrally-normalized margin bounds for neural
        networks.
    """
    dtype = jnp.result_type(float, *weights)
    matrices = [jnp.asarray(a, dtype) for a in weights]
    if not matrices or any(a.ndim != 2 for a in matrices):
        shapes = [a.shape for a in matrices]
        raise ValueError(f"weights must be one or more matrices (out, in); got {shapes}")
    logs, ratios, dead = jnp.zeros((), dtype), jnp.zeros((), dtype), jnp.zeros((), bool)
    for a in matrices:
        rows = jnp.sum(jnp.linalg.norm(a, axis=1))
        norm = jnp.linalg.svd(a, compute_uv=False)[0]
        zero = norm == 0
        dead |= zero
        norm = jnp.where(zero, 1, norm)
        logs, ratios = logs + jnp.log(norm), ratios + (rows / norm) ** (2 / 3)
    return jnp.where(dead, 0, jnp.exp(logs) * ratios**1.5)


def spectral_margin_bound(
    margin_risk: ArrayLike,
    complexity: ArrayLike,
    x_norm: ArrayLike,
    margin: ArrayLike,
    *,
    width: int,
    n: ArrayLike,
    delta: ArrayLike,
) -> bounds.Bound:
    r"""The margin bound of a deep network, for norms fixed in advance.

    .. math:: R \le \hat R_\gamma + \frac{8}{n^{3/2}}
              + \frac{72\, \|X\|_F\, R_A \sqrt{\log 2 W^2}\, \log n}{\gamma\, n}
              + 3 \sqrt{\frac{\log(2 / \delta)}{2 n}}

    from the covering numbers of the class and Dudley's entropy integral.

    Args:
        margin_risk: Share of the sample with a margin of at most :math:`\gamma`.
        complexity: The `spectral_complexity` :math:`R_A` that the class allows.
        x_norm: Frobenius norm of all inputs of the sample together.
        margin: The margin :math:`\gamma`, more than zero.
        width: The largest width :math:`W` of a layer, inputs and outputs included.
        n: Examples, one or more.
        delta: Probability of failure, in (0, 1).

    Returns:
        `Bound`; vacuous for any network that is not tiny, as published.

    Raises:
        TypeError: If `width` is no integer.
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Source: Bartlett, Foster and Telgarsky (2017).
    """
    check_count("width", width)
    risk, complexity, x_norm, margin, n, delta = bounds.inputs(
        margin_risk=margin_risk,
        complexity=complexity,
        x_norm=x_norm,
        margin=margin,
        n=n,
        delta=delta,
    )
    root = float(np.sqrt(np.log(2 * width**2)))
    entropy = 72 * x_norm * complexity * root * jnp.log(n) / (margin * n)
    return bounds.bound(risk + 8 / n**1.5 + entropy + 3 * jnp.sqrt(jnp.log(2 / delta) / (2 * n)))


def margin_bound(
    margin_risk: ArrayLike, rademacher: ArrayLike, margin: ArrayLike, n: ArrayLike, delta: ArrayLike
) -> bounds.Bound:
    r"""The bound of a binary classifier from its margins on the sample.

    .. math:: R \le \hat R_\gamma + \frac{2}{\gamma}\, \hat{\mathfrak R}
              + 3 \sqrt{\frac{\log(2 / \delta)}{2 n}}

    Args:
        margin_risk: Share of the sample with a margin of at most :math:`\gamma`.
        rademacher: Empirical Rademacher complexity of the class of scores.
        margin: The margin :math:`\gamma`, fixed in advance, more than zero.
        n: Examples, one or more.
        delta: Probability of failure, in (0, 1).

    Returns:
        `Bound`.

    Raises:
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Sources: Koltchinskii and Panchenko (2002); Mohri, Rostamizadeh and Talwalkar (2018).
    """
    risk, rademacher, margin, n, delta = bounds.inputs(
        margin_risk=margin_risk, rademacher=rademacher, margin=margin, n=n, delta=delta
    )
    return bounds.bound(risk + 2 * rademacher / margin + 3 * jnp.sqrt(jnp.log(2 / delta) / (2 * n)))


def _kl(q: Array, u: Array) -> Array:
    """Relative entropy of q to q + u; both terms are positive, so that nothing cancels."""
    zero, one = q == 0, q == 1
    first = jnp.where(zero, 0, q * _excess(u / jnp.where(zero, 1, q)))
    second = jnp.where(one, 0, (1 - q) * _excess(-u / jnp.where(one, 1, 1 - q)))
    # Where one term is empty its linear part is all that there is of it.
    return first + second + jnp.where(zero, u, 0) - jnp.where(one, u, 0)


def _excess(x: Array) -> Array:
    """`x - log(1 + x)`, to all digits around zero, and infinite at -1."""
    small = jnp.abs(x) < 0.05
    a = jnp.where(small, x, 0)
    series = jnp.zeros_like(a)
    for order in range(14, 1, -1):
        series = 1 / order - a * series
    x = jnp.where(small, 1, jnp.maximum(x, -1))
    return jnp.where(small, a**2 * series, x - jnp.log1p(x))
