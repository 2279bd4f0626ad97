r"""Dropout of linear models as the penalty that it is, in closed form and by enumeration.

A mask keeps each entry with the probability `keep` and divides it by that, so that means are kept.
Dropout of inputs is a ridge for each feature, dropout of the hidden units of a linear network the
squared nuclear norm of its product. The penalty of least squares alone is
`regularization.dropout_penalty`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.theory import regression, regularization
from dltheory.theory.parameters import check_count, checked

_LARGEST = 20


def mask_mean(g: Callable[[Array], Array], size: int, keep: ArrayLike) -> Array:
    r"""The exact mean of a function of a dropout mask, over all masks.

    .. math:: \mathbb{E}\, g(M / p) = \sum_{m \in \{0, 1\}^d} p^{|m|} (1 - p)^{d - |m|}\, g(m / p)

    Args:
        g: A function of the mask, shape `(size,)`, with entries 0 and `1 / keep`.
        size: The number of entries `d`, at most 20: there are `2**d` masks.
        keep: Probability that an entry is kept, in (0, 1], shape `()`.

    Returns:
        The mean, of the shape of what `g` returns.

    Raises:
        TypeError: If `size` is no integer.
        ValueError: If `size` is out of range, or `keep` is (under tracing NaN instead).

    Example:
        >>> from dltheory.theory import dropout
        >>> print(dropout.mask_mean(lambda mask: mask[0] * mask[1] + mask[0] ** 2, 2, 0.5))
        3.0
    """
    check_count("size", size)
    if size > _LARGEST:
        raise ValueError(f"size is {size}; want at most {_LARGEST}: there are 2**size masks")
    (keep,) = checked(keep=keep)
    bits = jnp.arange(2**size, dtype=jnp.int32)[:, None] >> jnp.arange(size, dtype=jnp.int32)[None]
    kept = (bits & 1).astype(keep.dtype)
    chance = jnp.prod(jnp.where(kept == 1, keep, 1 - keep), axis=1)
    return jnp.tensordot(chance, jax.vmap(g)(kept / keep), 1)


def marginal_loss(x: ArrayLike, y: ArrayLike, w: ArrayLike, keep: ArrayLike) -> Array:
    r"""The sum of squared errors of a linear model, averaged over dropout of its inputs.

    .. math:: \mathbb{E} \|y - \tilde X w\|^2
              = \|y - X w\|^2 + \frac{1 - p}{p} \sum_j w_j^2\, \|X_j\|^2

    Args:
        x: Design, shape `(n, p)`.
        y: Targets, shape `(n,)`.
        w: Coefficients, shape `(p,)`.
        keep: Probability that an input is kept, in (0, 1].

    Returns:
        The loss, shape `()`.

    Raises:
        ValueError: If the shapes do not fit, or `keep` is out of range (under tracing NaN instead).

    Source: Srivastava et al. (2014).
    """
    x, y = regression.check_design(x, y)
    penalty = regularization.dropout_penalty(x, w, keep)
    return jnp.sum((y - x @ jnp.asarray(w, x.dtype)) ** 2) + penalty


def minimizer(x: ArrayLike, y: ArrayLike, keep: ArrayLike) -> Array:
    r"""The coefficients of least `marginal_loss`.

    .. math:: \hat w = \left(X^\top X + \tfrac{1 - p}{p} \operatorname{diag}(X^\top X)\right)^{-1}
              X^\top y

    Args:
        x: Design, shape `(n, p)`.
        y: Targets, shape `(n,)`.
        keep: Probability that an input is kept, in (0, 1], shape `()`.

    Returns:
        Coefficients, shape `(p,)`: of minimum norm where there is a choice.

    Raises:
        ValueError: If the shapes do not fit, or `keep` is out of range (under tracing NaN instead).

    Source: Wager, Wang and Liang (2013), Dropout training as adaptive regularization.
    """
    x, y = regression.check_design(x, y)
    keep = checked(keep=keep)[0].astype(x.dtype)
    # Rows added to the design, rather than a Gram matrix, which would square its condition.
    extra = jnp.diag(jnp.sqrt((1 - keep) / keep * jnp.sum(x**2, axis=0)))
    tall = jnp.concatenate([x, extra])
    return regression.ridge(tall, jnp.concatenate([y, jnp.zeros(x.shape[1], y.dtype)]), 0.0)


def penalty(
    log_partition: Callable[[Array], Array], x: ArrayLike, w: ArrayLike, keep: ArrayLike
) -> Array:
    r"""What dropout of the inputs adds to the loss of a generalised linear model, exactly.

    .. math:: \sum_i \mathbb{E} A(\tilde x_i \cdot w) - A(x_i \cdot w)

    by enumeration of all masks. The terms of the loss that hold the targets are linear and vanish.

    Args:
        log_partition: The convex function :math:`A`, scalar to scalar, such as `jax.nn.softplus`
            for logistic regression.
        x: Design, shape `(n, p)`, with at most 20 features.
        w: Coefficients, shape `(p,)`.
        keep: Probability that an input is kept, in (0, 1], shape `()`.

    Returns:
        The penalty, shape `()`.

    Raises:
        ValueError: If the shapes do not fit, there are too many features, or `keep` is out of range
            (under tracing NaN instead).

    Source: Wager, Wang and Liang (2013).
    """
    x, w = _glm(x, w)
    a = jax.vmap(log_partition)
    extra = lambda mask: jnp.sum(a(x @ (mask.astype(w.dtype) * w)) - a(x @ w))
    return mask_mean(extra, len(w), keep).astype(w.dtype)


def quadratic_penalty(
    log_partition: Callable[[Array], Array], x: ArrayLike, w: ArrayLike, keep: ArrayLike
) -> Array:
    r"""The second-order form of `penalty`: an adaptive ridge, weighted by the curvature.

    .. math:: \frac{1 - p}{2 p} \sum_i A''(x_i \cdot w) \sum_j x_{ij}^2\, w_j^2

    Args:
        log_partition: The convex function :math:`A`, scalar to scalar.
        x: Design, shape `(n, p)`.
        w: Coefficients, shape `(p,)`.
        keep: Probability that an input is kept, in (0, 1], shape `()`.

    Returns:
        The penalty, shape `()`; it is exact for least squares.

    Raises:
        ValueError: If the shapes do not fit, or `keep` is out of range (under tracing NaN instead).

    Source: Wager, Wang and Liang (2013).
    """
    x, w = _glm(x, w)
    keep = checked(keep=keep)[0].astype(w.dtype)
    curvature = jax.vmap(jax.grad(jax.grad(log_partition)))(x @ w)
    return (1 - keep) / (2 * keep) * jnp.sum(curvature * (x**2 @ w**2))


def prediction_variance(x: ArrayLike, w: ArrayLike, keep: ArrayLike) -> Array:
    r"""How much the predictions of a linear model differ between masks: Monte-Carlo dropout.

    .. math:: \operatorname{Var}\, \tilde x_i \cdot w = \frac{1 - p}{p} \sum_j x_{ij}^2\, w_j^2

    Their mean over masks is the prediction without dropout.

    Args:
        x: Inputs, shape `(n, p)`.
        w: Coefficients, shape `(p,)`.
        keep: Probability that an input is kept, in (0, 1], shape `()`.

    Returns:
        The variance of each prediction, shape `(n,)`; over `m` in the mean of as many masks.

    Raises:
        ValueError: If the shapes do not fit, or `keep` is out of range (under tracing NaN instead).

    Source: Gal and Ghahramani (2016), Dropout as a Bayesian approximation, for its use.
    """
    x, w = _glm(x, w)
    keep = checked(keep=keep)[0].astype(w.dtype)
    return (1 - keep) / keep * (x**2 @ w**2)


def factor_penalty(u: ArrayLike, v: ArrayLike, keep: ArrayLike) -> Array:
    r"""What dropout of hidden units adds to the squared error of a product of two factors.

    .. math:: \mathbb{E} \|Y - U \operatorname{diag}(M / p)\, V^\top\|_F^2 - \|Y - U V^\top\|_F^2
              = \frac{1 - p}{p} \sum_k \|u_k\|^2\, \|v_k\|^2

    Args:
        u: Left factor, shape `(m, width)`.
        v: Right factor, shape `(n, width)`.
        keep: Probability that a hidden unit is kept, in (0, 1], shape `()`.

    Returns:
        The penalty, shape `()`.

    Raises:
        ValueError: If the shapes do not fit, or `keep` is out of range (under tracing NaN instead).

    Sources: Cavazza et al. (2018); Mianjy, Arora and Vidal (2018).
    """
    dtype = jnp.result_type(float, u, v)
    u, v = jnp.asarray(u, dtype), jnp.asarray(v, dtype)
    if u.ndim != 2 or v.ndim != 2 or u.shape[1] != v.shape[1]:
        raise ValueError(f"u must be (m, width) and v (n, width); got {u.shape} and {v.shape}")
    keep = checked(keep=keep)[0].astype(dtype)
    return (1 - keep) / keep * jnp.sum(jnp.sum(u**2, axis=0) * jnp.sum(v**2, axis=0))


def nuclear_penalty(product: ArrayLike, width: int, keep: ArrayLike) -> Array:
    r"""The least `factor_penalty` among all factors of one product.

    .. math:: \min_{U V^\top = Y} \frac{1 - p}{p} \sum_k \|u_k\|^2 \|v_k\|^2
              = \frac{1 - p}{p\, d}\, \|Y\|_*^2

    with :math:`d` hidden units, no fewer than the rank; it is reached by factors whose columns
    contribute equally. It vanishes as the width grows, unless `keep` falls with it: with
    :math:`(1 - p) / p` proportional to the width the squared nuclear norm stays.

    Args:
        product: The matrix :math:`Y`, shape `(m, n)`.
        width: The number of hidden units.
        keep: Probability that a hidden unit is kept, in (0, 1], shape `()`.

    Returns:
        The penalty, shape `()`.

    Raises:
        TypeError: If `width` is no integer.
        ValueError: If `width` is not positive, `product` is no matrix, or `keep` is out of range
            (under tracing the result is NaN instead).

    Sources: Cavazza, Morerio, Haeffele, Lane, Murino and Vidal (2018), Dropout as a low-rank
        regularizer for matrix factorization; Mianjy, Arora and Vidal (2018), On the implicit bias
        of dropout.
    """
    product, keep = _matrix("product", product, width, keep)
    nuclear = jnp.sum(jnp.linalg.svd(product, compute_uv=False))
    return (1 - keep) / (keep * width) * nuclear**2


def nuclear_shrinkage(target: ArrayLike, width: int, keep: ArrayLike) -> Array:
    r"""The product that a linear network learns under dropout of its hidden units.

    .. math:: \arg\min_Y \|T - Y\|_F^2 + \lambda \|Y\|_*^2, \quad \lambda = \frac{1 - p}{p\, d},
              \qquad \sigma_i(Y) = \max\Big(\sigma_i(T) - \frac{\lambda \sum_{j \le \rho}
              \sigma_j(T)}{1 + \lambda \rho},\, 0\Big)

    with :math:`\rho` the number of singular values that stay above zero.

    Args:
        target: The matrix :math:`T`, shape `(m, n)`.
        width: The number of hidden units :math:`d`, no fewer than the rank that is left.
        keep: Probability that a hidden unit is kept, in (0, 1], shape `()`.

    Returns:
        The product, shape `(m, n)`.

    Raises:
        TypeError: If `width` is no integer.
        ValueError: If `width` is not positive, `target` is no matrix, or `keep` is out of range
            (under tracing the result is NaN instead).

    Source: Mianjy, Arora and Vidal (2018), On the implicit bias of dropout.
    """
    target, keep = _matrix("target", target, width, keep)
    u, s, vt = jnp.linalg.svd(target, full_matrices=False)
    lam = (1 - keep) / (keep * width)
    count = jnp.arange(1, len(s) + 1, dtype=s.dtype)
    thresholds = lam * jnp.cumsum(s) / (1 + lam * count)
    # The threshold of all values above their own is the largest of these.
    return (u * jnp.maximum(s - jnp.max(thresholds, initial=0), 0)[None, :]) @ vt


def _glm(x, w):
    dtype = jnp.result_type(float, x, w)
    x, w = jnp.asarray(x, dtype), jnp.asarray(w, dtype)
    if x.ndim != 2 or w.shape != x.shape[1:]:
        raise ValueError(f"x must be (n, p) and w (p,); got {x.shape} and {w.shape}")
    return x, w


def _matrix(name, matrix, width, keep):
    check_count("width", width)
    matrix = jnp.asarray(matrix, jnp.result_type(float, matrix))
    if matrix.ndim != 2:
        raise ValueError(f"{name} must be a matrix (m, n); it has shape {matrix.shape}")
    return matrix, checked(keep=keep)[0].astype(matrix.dtype)
