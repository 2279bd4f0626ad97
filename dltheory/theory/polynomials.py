r"""Polynomials, and Taylor patches of smooth functions, as deep ReLU networks that multiply.

A chain of the networks of `constructions.product`, of `m` layers each, finds
:math:`q_{j+1} \approx q_j\, t` from numbers in `[0, 1]`. It keeps to them, and the error of
:math:`q_j` is at most :math:`j\, 4^{-(m+1)}`, while factors that are zero give exactly zero.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dltheory.numerics.gaussian import check_scalar_function
from dltheory.numerics.intervals import enclosure
from dltheory.theory import constructions, targets
from dltheory.theory.layouts import Construction, Layer, network
from dltheory.theory.parameters import check_count


def polynomial(coefficients: Sequence[float] | np.ndarray, m: int) -> Construction:
    r"""A network for a polynomial on `[0, 1]`, by products one after the other.

    .. math:: \sup_{[0, 1]} \Bigl| y(x) - \sum_j c_j x^j \Bigr|
              \le 4^{-(m+1)} \sum_{j \ge 2} (j - 1) |c_j|

    It has `1 + (degree - 1) (m + 1)` hidden layers of nine units.

    Args:
        coefficients: The coefficients :math:`c_0, c_1, \dots`, from the constant on.
        m: Number of layers of each squaring.

    Returns:
        The network; its bound holds on `[0, 1]`, what rounding may add in the dtype included.

    Raises:
        TypeError: If `m` is not an integer.
        ValueError: If `m` is not positive, or the coefficients are no finite vector.

    Example:
        >>> from dltheory.theory import polynomials
        >>> cube = polynomials.polynomial([0, 0, 0, 1], 5)
        >>> cube.params["params"]["hidden"]["kernel"].shape, cube.bound < 3 * 4.0**-6
        ((12, 9, 9), True)

    Source:
        Yarotsky (2017), Error bounds for approximations with deep ReLU networks.
    """
    check_count("m", m)
    c = np.asarray(coefficients, np.float64)
    if c.ndim != 1 or not c.size or not np.isfinite(c).all():
        raise ValueError(f"coefficients are {coefficients}; want finite numbers, at least one")
    one = np.ones((1, 1))
    weights = np.append(c[1:], np.zeros(max(0, 2 - len(c))))[None]
    layers = _chain((one, np.zeros(1)), one, one, weights, float(c[0]), m)
    products = np.sum(np.arange(weights.size) * np.abs(weights)) * 4.0 ** -(m + 1)
    return network(layers, bound=float(products + _rounding(np.abs(c).sum(), weights.size, m)))


def taylor_patches(
    f: Callable[[Array], Array],
    n: int,
    order: int,
    m: int,
    interval: tuple[ArrayLike, ArrayLike],
) -> Construction:
    r"""Taylor polynomials about `n + 1` points, blended by hats: Yarotsky's theorem.

    .. math:: y(x) \approx \sum_{k=0}^n \psi_k(x) \sum_{j \le r} \frac{f^{(j)}(x_k)}{j!}
              (x - x_k)^j, \qquad
              |y - f| \le \frac{h^{r+1}}{(r+1)!} \sup |f^{(r+1)}| + O(4^{-m})

    The hats :math:`\psi_k` are a partition of unity, each zero from the neighbouring points on, so
    that only two patches count anywhere. The remainder is bounded by the traced derivative. The
    network has `order (m + 1) + 2` hidden layers of `7 n + 9` units.

    Args:
        f: The target, from a scalar to a scalar, with `order + 1` derivatives.
        n: Number of cells.
        order: Order :math:`r` of the polynomials, at least one.
        m: Number of layers of each squaring.
        interval: Its ends :math:`a < b`.

    Returns:
        The network; its bound holds on the interval. It counts what rounding may add, which is
        most of it in single precision: 1e-2 in the example.

    Raises:
        TypeError: If a number is no integer, or `f` does not map a scalar to a scalar.
        ValueError: If a number is not positive, the interval is empty, or a derivative is
            unbounded in it or cannot be bounded.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import polynomials
        >>> with jax.enable_x64(True):
        ...     net = polynomials.taylor_patches(jnp.exp, 8, 2, 8, (0.0, 1.0))
        >>> bool(net.bound < 1.2e-3)
        True

    Source:
        Yarotsky (2017), Error bounds for approximations with deep ReLU networks, Theorem 1.
    """
    for name, value in (("n", n), ("order", order), ("m", m)):
        check_count(name, value)
    a, b = (float(end) for end in targets.ends(interval))
    x = np.linspace(a, b, n + 1)
    h = (b - a) / n
    taylor, rest = _derivatives(f, order, x, h, (a, b))
    # From powers of s = (x - x_k) / h in [-1, 1] to those of t = (s + 1) / 2.
    weights = np.zeros_like(taylor)
    for j, column in enumerate(taylor.T):
        for i in range(j + 1):
            weights[:, i] += column * math.comb(j, i) * 2**i * (-1) ** (j - i)
    # A hat from its three kinks, s + 1 held within [0, 2] from two of them.
    knots = np.concatenate([[x[0] - h], x, [x[-1] + h]])
    first = np.full((n + 3, 1), 1 / h), -knots / h
    hat, ramp = np.zeros((2, n + 1, n + 3))
    for k in range(n + 1):
        hat[k, k : k + 3] = 1, -2, 1
        ramp[k, [k, k + 2]] = 0.5, -0.5
    # Differences of units may be less than zero by rounding, and a layer ends that.
    hold = np.concatenate([ramp, hat]), np.zeros(2 * n + 2)
    eye = np.eye(2 * n + 2)
    layers = [first, *_chain(hold, eye[: n + 1], eye[n + 1 :], weights, 0.0, m)]
    lost = np.abs(weights) @ np.arange(order + 1) * 4.0 ** -(m + 1)
    products = float(np.max(lost[1:] + lost[:-1]))
    size = (1 + np.max(np.abs([a, b])) / h) * np.max(np.abs(weights).sum(1)) * 2
    return network(layers, bound=float(rest + products + _rounding(size, order + 1, m)))


def _derivatives(f, order: int, x: np.ndarray, h: float, ends) -> tuple[np.ndarray, float]:
    """Taylor coefficients in units of the cell, and a bound on what they leave out."""
    with jax.enable_x64(True):
        check_scalar_function("f", f, jnp.dtype(jnp.float64))
        at, columns, g = jnp.asarray(x, jnp.float64), [], f
        for j in range(order + 1):
            columns.append(np.asarray(jax.vmap(g)(at)) * h**j / math.factorial(j))
            g = jax.grad(g)
    low, high = np.maximum(x - h, ends[0]), np.minimum(x + h, ends[1])
    try:
        last, jumps = enclosure(g).natural(low, high)
    except NotImplementedError as error:
        raise ValueError(f"a derivative of f cannot be bounded: {error}") from error
    size = np.maximum(np.abs(last.lower), np.abs(last.upper)).max()
    taylor = np.stack(columns, 1)
    if np.any(jumps) or not np.isfinite(size) or not np.isfinite(taylor).all():
        raise ValueError(
            f"derivative {order + 1} of f has no bound on {ends}, or it jumps; take a lower order, "
            "more cells or constructions.approximate"
        )
    return taylor, float(size * h ** (order + 1) / math.factorial(order + 1))


def _chain(start: Layer, t, q, weights: np.ndarray, constant: float, m: int) -> list[Layer]:
    """Layers for the sum over rows `g` and powers `j` of `weights[g, j] q_g t_g^j`.

    `t` and `q` are read off the units of the layer `start`, a row each.
    """
    parts = jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64), constructions.product(m).params["params"]
    )
    halves = parts["first"]["kernel"].T, parts["first"]["bias"]
    inner = list(zip(parts["hidden"]["kernel"], parts["hidden"]["bias"], strict=True))
    read = parts["last"]["kernel"][:, 0]
    rows, width = len(q), len(halves[1])
    layers, total = [start], weights[:, :1].T @ q
    for power in range(1, weights.shape[1]):
        # Of each row the units of a product, then what is passed on: all t, the sum and its minus.
        both = np.stack([q, t], 1)
        units = np.concatenate([*(halves[0] @ both), t, total, -total])
        layers.append((units, np.concatenate([np.tile(halves[1], rows), np.zeros(rows + 2)])))
        for kernel, bias in inner:
            block = np.zeros((width * rows + rows + 2,) * 2)
            block[: width * rows, : width * rows] = np.kron(np.eye(rows), kernel.T)
            block[width * rows :, width * rows :] = np.eye(rows + 2)
            layers.append((block, np.concatenate([np.tile(bias, rows), np.zeros(rows + 2)])))
        q = np.hstack([np.kron(np.eye(rows), read[None]), np.zeros((rows, rows + 2))])
        t = np.hstack([np.zeros((rows, width * rows)), np.eye(rows), np.zeros((rows, 2))])
        kept = np.concatenate([np.zeros(width * rows + rows), [1.0, -1.0]])[None]
        total = kept + weights[:, power : power + 1].T @ q
    return [*layers, (total, np.array([constant]))]


def _rounding(size: float, products: int, m: int) -> float:
    """What the rounding of parameters may add: it is doubled at most by each fold of a product."""
    unit = float(jnp.finfo(jnp.result_type(float)).eps)
    return 64 * unit * size * products * (m + 1)
