r"""What clipping does to a noisy gradient: how often it acts, and its bias and variance.

The gradient is :math:`g \sim \mathcal{N}(m, s^2 I_d)`: the full-batch gradient `m` with the noise
of a batch. Clipping trades variance for bias, and under Gaussian noise both have closed forms.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.scipy import special
from jax.typing import ArrayLike

from dltheory.theory.parameters import check_count, checked

# A standard normal variable is never beyond this many standard deviations, even in float64.
_NEVER = 40.0
# Terms on either side of the middle of a sum over a Poisson variable: nine standard deviations.
_TERMS = 144
# Of the ratio of the gamma function at b + 1/2 and at b, over the root of b: coefficients of the
# powers of 1 / b, the highest first. A difference of log-gamma functions loses digits as b grows.
_RATIO = (39325 / 2**25, 869 / 2**22, -399 / 2**18, -21 / 2**15, 5 / 2**10, 1 / 2**7, -1 / 8, 1.0)


class Clipped(NamedTuple):
    """Moments of a clipped Gaussian gradient.

    Attributes:
        rate: Probability that it is clipped.
        mean: Its mean; of a vector, the length of the mean, which lies along the true gradient.
        bias: Its mean less the true gradient; of a vector, their lengths.
        variance: Its variance; of a vector, the sum over all coordinates.
    """

    rate: Array
    mean: Array
    bias: Array
    variance: Array


def by_value(mean: ArrayLike, var: ArrayLike, max_value: ArrayLike) -> Clipped:
    r"""Moments of a Gaussian coordinate clipped to :math:`[-C, C]`.

    .. math::
        \mathbb{E}\operatorname{clip}(g) - m &= s\,[\psi(\beta) - \psi(\alpha)],
            \quad \psi(t) = \varphi(t) - t\,\bar\Phi(t), \\
        \mathbb{E}(\operatorname{clip}(g) - m)^2 &= s^2\,[1 - \chi(\alpha) - \chi(\beta)],
            \quad \chi(t) = t\,\varphi(t) + (1 - t^2)\,\bar\Phi(t), \\
        \alpha &= (C - m) / s, \quad \beta = (C + m) / s,

    with the density :math:`\varphi` and the upper tail :math:`\bar\Phi` of the standard normal law.
    The arguments may have any shapes that broadcast.

    Args:
        mean: The true gradient :math:`m` of the coordinate.
        var: Variance :math:`s^2 \ge 0` of its noise.
        max_value: Threshold :math:`C \ge 0`; infinite for none.

    Returns:
        `Clipped`, each field of the shape of the arguments.

    Raises:
        ValueError: If `var` or `max_value` is negative (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import clipping
        >>> one = clipping.by_value(0.5, 1.0, 1.0)
        >>> print(f"{one.rate:.4f} {one.bias:.4f} {one.variance:.4f}")
        0.3753 -0.1685 0.4534
    """
    negative = jnp.asarray(mean) < 0
    mean, var, limit = checked(mean=jnp.abs(mean), var=var, max_value=max_value)
    sign = jnp.where(negative, -1, 1).astype(mean.dtype)
    s, unit, quiet = _deviation(var)
    upper = jnp.where(quiet, jnp.where(mean > limit, -_NEVER, _NEVER), (limit - mean) / unit)
    lower = jnp.where(quiet, _NEVER, (limit + mean) / unit)
    upper, lower = jnp.minimum(upper, _NEVER), jnp.minimum(lower, _NEVER)
    # Moments are taken about the value that a vanishing noise leaves, the mean or the threshold:
    # about the other one they are small differences of large numbers.
    inside = mean <= limit
    far = jnp.where(inside, 0, limit)
    bias = s * (_excess(lower) - _excess(upper))
    short = s * (_excess(-upper) - _excess(lower))
    about_mean = var * (1 - _tail(upper) - _tail(lower))
    about_limit = var * (_square_excess(-upper) - _square_excess(lower))
    about_limit = about_limit - 4 * far * s * _excess(lower)
    variance = jnp.where(inside, about_mean - bias**2, about_limit - short**2)
    return _whole(
        special.ndtr(-upper) + special.ndtr(-lower),
        sign * jnp.where(inside, mean + bias, far - short),
        sign * jnp.where(inside, bias, far - mean - short),
        jnp.maximum(variance, 0),
    )


def by_norm(mean_norm: ArrayLike, var: ArrayLike, max_norm: ArrayLike, *, dim: int) -> Clipped:
    r"""Moments of a Gaussian vector clipped to the ball :math:`\|g\| \le C`.

    With :math:`c = C / s`, :math:`u = c^2 / 2` and :math:`K` a Poisson variable of mean
    :math:`\|m\|^2 / 2 s^2`, in regularised incomplete gamma functions,

    .. math::
        P(\|g\| > C) &= \mathbb{E}\, Q(\tfrac d2 + K, u), \\
        \mathbb{E}\operatorname{clip}(g) &= m\, \mathbb{E}\, \sigma(\tfrac d2 + 1 + K), \quad
            \sigma(a) = P(a, u) + \frac{c}{\sqrt 2} \frac{\Gamma(a - 1/2)}{\Gamma(a)}\,
            Q(a - \tfrac12, u), \\
        \mathbb{E} \|\operatorname{clip}(g)\|^2 &= s^2\, \mathbb{E}\, (d + 2K)\,
            P(\tfrac d2 + K + 1, u) + C^2\, \mathbb{E}\, Q(\tfrac d2 + K, u).

    Without a mean, :math:`K = 0` and these are closed forms. The law holds for the whole gradient,
    for a layer, and for a unit under `adaptive_clip`, each with its own dimension and threshold.
    `variance` is a difference of numbers of order :math:`C^2`; the relative error of all fields is
    of order `dim` and :math:`\|m\|^2 / s^2` times the rounding of the dtype.

    Args:
        mean_norm: Norm :math:`\|m\|` of the true gradient, any shape.
        var: Variance :math:`s^2 \ge 0` of the noise in each coordinate, any shape.
        max_norm: Threshold :math:`C \ge 0`, any shape; infinite for none.
        dim: Number of coordinates.

    Returns:
        `Clipped`, each field of the shape to which the arguments broadcast.

    Raises:
        TypeError: If `dim` is not an integer.
        ValueError: If an argument is negative (under tracing the result is NaN instead), or `dim`
            not positive.

    Example:
        >>> from dltheory.theory import clipping
        >>> one = clipping.by_norm(3.0, 1.0, 2.0, dim=10)
        >>> print(f"{one.rate:.4f} {one.mean:.4f} {one.variance:.4f}")
        0.9978 1.3827 2.0866

    Source:
        The mean: :math:`\mathbb{E}\, g\, h(\|g\|^2) = m\, \mathbb{E}\, h` at the same noncentral
        chi-square law with two degrees of freedom more, James and Stein (1961).
    """
    check_count("dim", dim)
    return Clipped(*_vectorized(_by_norm, dim, mean_norm, var, max_norm))


def norm_scale(mean_norm: ArrayLike, var: ArrayLike, max_norm: ArrayLike, *, dim: int) -> Array:
    r"""Mean factor by which clipping to a norm shrinks a Gaussian gradient.

    .. math:: \mathbb{E} \min(1, C / \|g\|) = \mathbb{E}\, \sigma(\tfrac d2 + K)

    in the notation of `by_norm`. The mean gradient shrinks by less, for where the noise points
    along it the gradient is longer.

    Args:
        mean_norm: Norm :math:`\|m\|` of the true gradient, any shape.
        var: Variance :math:`s^2 \ge 0` of the noise in each coordinate, any shape.
        max_norm: Threshold :math:`C \ge 0`, any shape; infinite for none.
        dim: Number of coordinates.

    Returns:
        The mean factor, of the shape to which the arguments broadcast.

    Raises:
        TypeError: If `dim` is not an integer.
        ValueError: If an argument is negative (under tracing the result is NaN instead), or `dim`
            not positive.
    """
    check_count("dim", dim)
    return _vectorized(_norm_scale, dim, mean_norm, var, max_norm)


def _by_norm(dim, mean_norm, var, limit):
    poisson, weights, c, u, quiet = _mixture(mean_norm, var, limit)
    average = lambda terms: jnp.sum(weights * terms)
    a = dim / 2 + poisson
    rate = average(special.gammaincc(a, u))
    short, reciprocal = _shrink(a + 1, c, u)
    mean = mean_norm * average(special.gammainc(a + 1, u) + reciprocal)
    inner = var * average(2 * a * special.gammainc(a + 1, u))
    clipped = rate > 0
    outer = jnp.where(clipped, limit, 0) ** 2 * rate
    known = jnp.minimum(mean_norm, limit)
    return _whole(
        jnp.where(quiet, (mean_norm > limit).astype(var.dtype), rate),
        jnp.where(quiet, known, mean),
        jnp.where(quiet, known - mean_norm, -mean_norm * average(short)),
        jnp.where(quiet, 0, jnp.maximum(inner + outer - mean**2, 0)),
    )


def _norm_scale(dim, mean_norm, var, limit):
    poisson, weights, c, u, quiet = _mixture(mean_norm, var, limit)
    short, _ = _shrink(dim / 2 + poisson, c, u)
    long = mean_norm > limit
    known = jnp.where(long, limit / jnp.where(long, mean_norm, 1), 1)
    return jnp.where(quiet, known, 1 - jnp.sum(weights * short))


def _mixture(mean_norm, var, limit):
    """The Poisson variable and its weights, the threshold over the noise, half its square."""
    _, unit, quiet = _deviation(var)
    # Beyond any multiple of the noise the threshold is never met; its square must not overflow.
    c = jnp.minimum(limit / unit, jnp.finfo(var.dtype).max ** 0.25)
    poisson, weights = _poisson((mean_norm / unit) ** 2 / 2)
    return poisson, weights, c, c**2 / 2, quiet


def _shrink(a, c, u):
    """One less sigma, and the part of sigma that the clipped gradients make up."""
    # At a = 1/2 the gamma functions of a - 1/2 = 0 are infinite, but not their product.
    single = a == 0.5
    b = jnp.where(single, 1, a) - 0.5
    positive = jnp.where(u > 0, u, 1)
    at_half = special.exp1(positive) / jnp.sqrt(jnp.pi).astype(u.dtype)
    beyond = jnp.where(single, at_half, _gamma_ratio(b) * special.gammaincc(b, u))
    reciprocal = jnp.where(u > 0, c / jnp.sqrt(2) * beyond, 0)
    return special.gammaincc(a, u) - reciprocal, reciprocal


def _gamma_ratio(b):
    """The ratio of the gamma function at b and at b + 1/2."""
    large = jnp.maximum(b, 30)
    series = jnp.polyval(jnp.asarray(_RATIO, b.dtype), 1 / large)
    small = jnp.minimum(b, 30)
    direct = jnp.exp(special.gammaln(small) - special.gammaln(small + 0.5))
    return jnp.where(b < 30, direct, 1 / (jnp.sqrt(large) * series))


def _poisson(mean):
    r"""Values and weights by which a sum averages smooth functions of a Poisson variable.

    Where its deviation is above 16, every 1/16 of it is enough: the trapezoidal rule converges
    exponentially.
    """
    # With a smaller mean it is 0 to any precision; and the derivative must not overflow.
    mean = jnp.maximum(mean, 1e-30)
    middle = lax.stop_gradient(jnp.round(mean))
    stride = lax.stop_gradient(jnp.maximum(jnp.sqrt(mean) / 16, 1))
    values = middle + stride * jnp.arange(-_TERMS, _TERMS + 1, dtype=mean.dtype)
    exists = values >= 0
    values = jnp.where(exists, values, 0)
    # The deviance k log(k / mean) - (k - mean), by its series near the mean: at a mean of a
    # million the terms of the logarithm as it is usually written are of order ten million.
    large = jnp.where(values > 30, values, 31)
    x = (large - mean) / mean
    near = jnp.abs(x) < 0.1
    small = jnp.where(near, x, 0)
    series = jnp.zeros_like(x)
    for order in range(18, 1, -1):
        series = series * small + (-1) ** order / (order * (order - 1))
    apart = large * jnp.log(large / mean) - (large - mean)
    deviance = jnp.where(near, mean * small**2 * series, apart)
    inverse = 1 / large
    stirling = inverse / 12 - inverse**3 / 360 + inverse**5 / 1260
    far = -deviance - stirling - jnp.log(2 * jnp.pi * large) / 2
    direct = values * jnp.log(mean) - mean - special.gammaln(values + 1)
    log_weights = jnp.where(exists, jnp.where(values > 30, far, direct), -jnp.inf)
    weights = jnp.exp(log_weights - jnp.max(log_weights))
    return values, weights / jnp.sum(weights)


def _excess(t):
    r"""The mean of :math:`(z - t)_+` for standard normal z."""
    return _density(t) - t * special.ndtr(-t)


def _square_excess(t):
    r"""The mean of :math:`(z - t)_+^2`."""
    return (1 + t**2) * special.ndtr(-t) - t * _density(t)


def _tail(t):
    r"""The mean of :math:`z^2 - t^2` where z is beyond t, and of 0 elsewhere."""
    return t * _density(t) + (1 - t**2) * special.ndtr(-t)


def _density(t):
    return jnp.exp(-(t**2) / 2) / jnp.sqrt(2 * jnp.pi).astype(t.dtype)


def _vectorized(function, dim, mean_norm, var, limit):
    arguments = checked(mean_norm=mean_norm, var=var, max_norm=limit)
    return jnp.vectorize(partial(function, dim))(*arguments)


def _deviation(var):
    """The deviation; the same where it is 0 made 1, to divide by; and where it is 0."""
    quiet = var == 0
    unit = jnp.sqrt(jnp.where(quiet, 1, var))
    return jnp.where(quiet, 0, unit), unit, quiet


def _whole(*fields):
    """The result: all NaN where one field is not finite."""
    finite = jnp.isfinite(sum(fields))
    return Clipped(*(jnp.where(finite, field, jnp.nan) for field in fields))
