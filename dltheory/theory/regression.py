r"""Linear regression on a given design: ridge and the lasso, and which sparsity the lasso recovers.

The design `x` has shape `(n, p)`. Ridge minimises :math:`\|y - X b\|^2 / n + \lambda \|b\|^2`, the
lasso :math:`\|y - X b\|^2 / 2n + \lambda \|b\|_1`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.scipy import special
from jax.typing import ArrayLike

from dltheory.theory import regularization
from dltheory.theory.parameters import checked

_SWEEPS = 20000
_BISECTIONS = 64


def ridge(x: ArrayLike, y: ArrayLike, lam: ArrayLike) -> Array:
    r"""Ridge regression, for a whole path of penalties by one decomposition.

    .. math:: \hat b_\lambda = (X^\top X / n + \lambda)^{-1} X^\top y / n

    At zero it is the least-squares solution of minimum norm, whatever the rank of the design.

    Args:
        x: Design, shape `(n, p)`.
        y: Targets, shape `(n,)`.
        lam: Penalties, any shape.

    Returns:
        Coefficients, shape `(*lam.shape, p)`. Derivatives with respect to `x` are NaN where it has
        equal singular values.

    Raises:
        ValueError: If the shapes do not fit, there is no example, or a penalty is negative (under
            tracing the result is NaN instead).

    Source: Hoerl and Kennard (1970).
    """
    x, y = check_design(x, y)
    (lam,) = checked(lam=lam)
    lam = lam.astype(x.dtype)[..., None] * x.shape[0]
    u, s, vt = jnp.linalg.svd(x, full_matrices=False)
    s = jnp.expand_dims(s, tuple(range(lam.ndim - 1)))
    # A singular value that is zero to rounding has no inverse.
    floor = max(x.shape) * jnp.finfo(s.dtype).eps * jnp.max(s, initial=0)
    gone = ((lam == 0) & (s <= floor)) | (lam == jnp.inf)
    inverse = jnp.where(gone, 0, s / jnp.where(gone, 1, s**2 + lam))
    return (inverse * jnp.expand_dims(u.T @ y, tuple(range(lam.ndim - 1)))) @ vt


def degrees_of_freedom(s: ArrayLike, lam: ArrayLike) -> Array:
    r"""Effective number of parameters of ridge regression.

    .. math:: \mathrm{df}(\lambda) = \sum_i \frac{s_i}{s_i + \lambda}

    Args:
        s: Eigenvalues of :math:`X^\top X / n`, shape `(p,)`.
        lam: Penalties, any shape; at 0 the result is the rank.

    Returns:
        Degrees of freedom, of the shape of `lam`.

    Raises:
        ValueError: If an eigenvalue or a penalty is negative (under tracing NaN instead).

    Source: Hastie, Tibshirani and Friedman (2009), The elements of statistical learning.
    """
    lam = jnp.asarray(lam)[..., None]
    s = jnp.expand_dims(jnp.asarray(s), tuple(range(lam.ndim - 1)))
    return jnp.sum(regularization.ridge_shrinkage(s, lam), axis=-1)


def lasso(x: ArrayLike, y: ArrayLike, lam: ArrayLike) -> Array:
    r"""The lasso, for any number of penalties.

    .. math:: \hat b_\lambda = \arg\min_b \tfrac{1}{2n} \|y - X b\|^2 + \lambda \|b\|_1

    Coordinate descent finds which coefficients are not zero, and their signs `s`; their values then
    follow exactly, :math:`(X_S^\top X_S)^{-1} (X_S^\top y - n \lambda s_S)`, derivatives included.

    Args:
        x: Design, shape `(n, p)`.
        y: Targets, shape `(n,)`.
        lam: Penalties, any shape.

    Returns:
        Coefficients, shape `(*lam.shape, p)`, zeros exactly zero. Where many solutions exist it is
        one of them, and its derivative is meaningless; NaN where none was reached to half of the
        digits of the dtype.

    Raises:
        ValueError: If the shapes do not fit, there is no example, or a penalty is negative (under
            tracing the result is NaN instead).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import regression
        >>> x, y = jnp.eye(2), jnp.array([3.0, 1.0])
        >>> print(regression.lasso(x, y, 1.0))
        [1. 0.]

    Sources: Tibshirani (1996); Friedman, Hastie and Tibshirani (2010).
    """
    x, y = check_design(x, y)
    lam = checked(lam=lam)[0].astype(x.dtype)
    gram, corr = x.T @ x / x.shape[0], x.T @ y / x.shape[0]
    one = lambda lam: _lasso(gram, corr, lam, jnp.sqrt(jnp.mean(y**2)))
    known = jnp.all(jnp.isfinite(x)) & jnp.all(jnp.isfinite(y))
    found = jax.vmap(one)(lam.reshape(-1)).reshape(*lam.shape, x.shape[1])
    return jnp.where(known, found, jnp.nan)


def lasso_lambda_max(x: ArrayLike, y: ArrayLike) -> Array:
    r"""The least penalty at which the lasso is zero, :math:`\|X^\top y\|_\infty / n`.

    Args:
        x: Design, shape `(n, p)`.
        y: Targets, shape `(n,)`.

    Returns:
        The penalty, shape `()`.

    Raises:
        ValueError: If the shapes do not fit, or there is no example.
    """
    x, y = check_design(x, y)
    return jnp.max(jnp.abs(x.T @ y), initial=0) / x.shape[0]


def lasso_violation(x: ArrayLike, y: ArrayLike, b: ArrayLike, lam: ArrayLike) -> Array:
    r"""How far coefficients are from the optimality conditions of the lasso.

    .. math:: X_j^\top (y - X b) / n = \lambda \operatorname{sign}(b_j) \;\; (b_j \ne 0), \qquad
              |X_j^\top (y - X b)| / n \le \lambda \;\; (b_j = 0)

    Args:
        x: Design, shape `(n, p)`.
        y: Targets, shape `(n,)`.
        b: Coefficients, shape `(p,)`.
        lam: The penalty, shape `()`.

    Returns:
        The largest violation, shape `()`; zero at a solution.

    Raises:
        ValueError: If the shapes do not fit, or the penalty is negative (under tracing the result
            is NaN instead).
    """
    x, y = check_design(x, y)
    b, lam = jnp.asarray(b, x.dtype), checked(lam=lam)[0].astype(x.dtype)
    if b.shape != x.shape[1:] or lam.shape:
        raise ValueError(f"b must be {x.shape[1:]} and lam a scalar; got {b.shape} and {lam.shape}")
    return _violation(x.T @ (y - x @ b) / x.shape[0], b, lam)


def sparsity_transition(delta: ArrayLike) -> Array:
    r"""The largest sparsity that minimising the sum of absolute values recovers exactly.

    Of `p` coefficients `k` are not zero, and `n` noiseless measurements are taken by a Gaussian
    design. As all grow, recovery is certain for :math:`k / n < \rho(n / p)` and fails beyond:

    .. math:: \delta = \frac{2 \varphi(z)}{z + 2 [\varphi(z) - z \Phi(-z)]}, \qquad
              \rho = 1 - \frac{z\, \Phi(-z)}{\varphi(z)}

    Args:
        delta: Measurements per coefficient, in [0, 1].

    Returns:
        Coefficients that are not zero per measurement, of the shape of `delta`.

    Raises:
        ValueError: If `delta` is out of range (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import regression
        >>> print(f"{regression.sparsity_transition(0.5):.4f}")
        0.3857

    Sources: Donoho and Tanner (2005); Donoho, Maleki and Montanari (2009).
    """
    if not isinstance(delta, Tracer) and np.any((np.asarray(delta) < 0) | (np.asarray(delta) > 1)):
        raise ValueError(f"delta must be in [0, 1]; got {delta}")
    delta = jnp.asarray(delta, jnp.result_type(float, delta))
    inside = (delta > 0) & (delta < 1)
    wanted = jnp.where(inside, delta, 0.5)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = _measurements(middle) < wanted
        return jnp.where(below, low, middle), jnp.where(below, middle, high)

    ends = jnp.zeros_like(wanted), jnp.full_like(wanted, 40)
    z = lax.stop_gradient(sum(lax.fori_loop(0, _BISECTIONS, halve, ends))) / 2
    # One step of Newton's method carries the derivatives of the root.
    value, slope = lax.stop_gradient(jax.jvp(_measurements, (z,), (jnp.ones_like(z),)))
    z = z - (value - wanted) / slope
    edge = jnp.where(delta == 0, 0, jnp.where(delta == 1, 1, jnp.nan)).astype(z.dtype)
    return jnp.where(inside, 1 - z * _mills(z), edge)


def check_design(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    """A design and its targets as arrays of one dtype, refused where their shapes do not fit.

    Args:
        x: Design, to be of shape `(n, p)`.
        y: Targets, to be of shape `(n,)`.

    Returns:
        Both.

    Raises:
        ValueError: If they are not of those shapes, or `n` is zero.
    """
    dtype = jnp.result_type(float, x, y)
    x, y = jnp.asarray(x, dtype), jnp.asarray(y, dtype)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise ValueError(f"x must be (n, p) and y (n,); got {x.shape} and {y.shape}")
    if x.shape[0] == 0:
        raise ValueError(f"x has shape {x.shape}; want at least one example")
    return x, y


def _lasso(gram: Array, corr: Array, lam: Array, scale: Array) -> Array:
    """Coordinate descent, then the exact values of the coefficients that it found."""
    p, dtype = len(corr), corr.dtype
    eps, diagonal = jnp.finfo(dtype).eps, jnp.diag(gram)
    frozen, target, least = lax.stop_gradient((gram, corr, lam))

    def visit(j, b):
        alone = target[j] - frozen[j] @ b + frozen[j, j] * b[j]
        shrunk = alone - jnp.clip(alone, -least, least)
        return b.at[j].set(shrunk / jnp.where(frozen[j, j] > 0, frozen[j, j], jnp.inf))

    def sweep(state):
        count, b, _ = state
        new = lax.fori_loop(0, p, visit, b)
        moved = jnp.max(jnp.abs(new - b) * jnp.sqrt(lax.stop_gradient(diagonal)), initial=0)
        return count + 1, new, moved

    goes_on = lambda state: (state[0] < _SWEEPS) & (state[2] > 4 * eps * lax.stop_gradient(scale))
    start = jnp.zeros((), jnp.int32), jnp.zeros(p, dtype), jnp.full((), jnp.inf, dtype)
    _, b, _ = lax.while_loop(goes_on, sweep, start)

    sign = jnp.sign(b)
    active = sign != 0
    both = active[:, None] & active[None, :]
    system = jnp.where(both, gram, jnp.eye(p, dtype=dtype))
    values = jnp.linalg.solve(system, jnp.where(active, corr - lam * sign, 0))
    values = jnp.where(active, values, 0)
    # Where columns depend on each other the system has no one solution, and the descent's counts.
    misses = [_violation(corr - gram @ one, one, lam) for one in (values, b)]
    better = (misses[0] <= misses[1]) | (
        misses[0] <= 64 * eps * scale * jnp.sqrt(jnp.max(diagonal))
    )
    missed = jnp.where(better, misses[0], misses[1])
    solved = missed <= jnp.sqrt(eps) * jnp.maximum(jnp.max(jnp.abs(corr), initial=0), lam)
    return jnp.where(solved, jnp.where(better, values, b), jnp.nan)


def _violation(slope: Array, b: Array, lam: Array) -> Array:
    """The largest violation of the optimality conditions, from the correlations that are left."""
    off = jnp.where(
        b == 0, jnp.maximum(jnp.abs(slope) - lam, 0), jnp.abs(slope - lam * jnp.sign(b))
    )
    return jnp.max(off, initial=0)


def _mills(z: Array) -> Array:
    """The upper tail of the normal law over its density."""
    return jnp.exp(special.log_ndtr(-z) + z**2 / 2) * jnp.sqrt(2 * jnp.pi).astype(z.dtype)


def _measurements(z: Array) -> Array:
    inverse = jnp.sqrt(2 * jnp.pi).astype(z.dtype) * jnp.exp(z**2 / 2)
    return 2 / (z * inverse + 2 * (1 - z * _mills(z)))
