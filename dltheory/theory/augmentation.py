r"""What noise, mixing and smoothing of the data do to a loss, in the mean over their draws.

The design `x` has shape `(n, p)`, and a linear model predicts :math:`X w`. Dropout, which is noise
in proportion to the inputs, is in `dropout`.
"""

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from dltheory.theory import regression
from dltheory.theory.parameters import check_count, checked


def noise_penalty(x: ArrayLike, w: ArrayLike, var: ArrayLike) -> Array:
    r"""What noise of the inputs adds to the sum of squared errors of a linear model: L2.

    .. math:: \mathbb{E} \|y - (X + N)\, w\|^2 - \|y - X w\|^2 = n\, \sigma^2 \|w\|^2

    so that ridge at :math:`\lambda = \sigma^2` is least squares on noisy inputs.

    Args:
        x: Design, shape `(n, p)`.
        w: Coefficients, shape `(p,)`.
        var: Variance :math:`\sigma^2` of the independent entries of the noise, zero or more.

    Returns:
        The penalty, shape `()`.

    Raises:
        ValueError: If the shapes do not fit, or `var` is negative (under tracing NaN instead).

    Source: Bishop (1995), Training with noise is equivalent to Tikhonov regularization.
    """
    dtype = jnp.result_type(float, x, w)
    x, w = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
    if x.ndim != 2 or w.shape != x.shape[1:]:
        raise ValueError(f"x must be (n, p) and w (p,); got {x.shape} and {w.shape}")
    return x.shape[0] * checked(var=var)[0].astype(dtype) * jnp.sum(w**2)


def mixup_loss(x: ArrayLike, y: ArrayLike, w: ArrayLike, alpha: ArrayLike) -> Array:
    r"""The mean squared error of a linear model on mixed pairs, in the mean over pairs and weights.

    .. math:: \mathbb{E}\, r(\tilde x, \tilde y)^2
              = \bar r^2 + \frac{\alpha + 1}{2 \alpha + 1} \operatorname{Var} r, \qquad
              r_i = y_i - x_i \cdot w

    because mixing is linear in the errors and the weights have
    :math:`\mathbb{E} \lambda^2 = (\alpha + 1) / (4 \alpha + 2)`. A model with an intercept has
    errors of mean zero at its minimum, so that mixing does not move it: what mixup does for a
    network it does because that is not linear.

    Args:
        x: Design, shape `(n, p)`.
        y: Targets, shape `(n,)`.
        w: Coefficients, shape `(p,)`.
        alpha: Of the Beta law of the weights, zero or more.

    Returns:
        The loss, shape `()`.

    Raises:
        ValueError: If the shapes do not fit, or `alpha` is negative (under tracing NaN instead).

    Source: Zhang, Cisse, Dauphin and Lopez-Paz (2018), mixup: beyond empirical risk minimization,
        for what is mixed; the mean is that of the moments of the Beta law.
    """
    x, y = regression.check_design(x, y)
    w, alpha = jnp.asarray(w, x.dtype), checked(alpha=alpha)[0].astype(x.dtype)
    if w.shape != x.shape[1:]:
        raise ValueError(f"x must be (n, p) and w (p,); got {x.shape} and {w.shape}")
    r = y - x @ w
    share = jnp.where(jnp.isinf(alpha), 0.5, (alpha + 1) / (2 * alpha + 1))
    return jnp.mean(r) ** 2 + share * jnp.var(r)


def smoothed_gap(classes: int, smoothing: ArrayLike) -> Array:
    r"""How far the right logit is above all others at the minimum of a smoothed cross-entropy.

    .. math:: \log \frac{1 - \epsilon + \epsilon / K}{\epsilon / K}

    A loss without smoothing has no minimum, and logits grow as long as training goes on.

    Args:
        classes: The number `K` of classes.
        smoothing: The share :math:`\epsilon` that is spread over all classes, in [0, 1].

    Returns:
        The gap; infinite without smoothing.

    Raises:
        TypeError: If `classes` is no integer.
        ValueError: If `classes` is not positive or `smoothing` is out of range (under tracing NaN
            instead).

    Example:
        >>> from dltheory.theory import augmentation
        >>> print(f"{augmentation.smoothed_gap(10, 0.1):.4f}")
        4.5109

    Source: Szegedy et al. (2016), Rethinking the inception architecture for computer vision.
    """
    check_count("classes", classes)
    if not isinstance(smoothing, Tracer) and np.any(np.asarray(smoothing) > 1):
        raise ValueError(f"smoothing must be in [0, 1]; got {smoothing}")
    (smoothing,) = checked(smoothing=smoothing)
    smoothing = jnp.where(smoothing > 1, jnp.nan, smoothing)
    some = jnp.where(smoothing > 0, smoothing, 1)
    gap = jnp.log1p(classes * (1 - some) / some)
    return jnp.where(smoothing == 0, jnp.inf, gap + 0 * smoothing)
