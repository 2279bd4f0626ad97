r"""How rich a class of functions is: counts, dimensions, Rademacher complexities, and their bounds.

Counts are exact integers, and not for `jax.jit`.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy import special
from jax.typing import ArrayLike

from dltheory.theory import bounds, generalization
from dltheory.theory.parameters import check_choice, check_count

_LARGEST = 20


class Orders(NamedTuple):
    """Orders of magnitude, without their constants.

    Attributes:
        lower: That of the lower bound.
        upper: That of the upper bound.
    """

    lower: float
    upper: float


def growth_bound(m: int, dimension: int) -> int:
    r"""The most ways in which a class can label some points, by its dimension.

    .. math:: \Pi(m) \le \sum_{i = 0}^d \binom mi

    Args:
        m: Points.
        dimension: The Vapnik-Chervonenkis dimension `d`.

    Returns:
        The bound; `2**m` where the dimension is no less than the number of points.

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If it is not positive.

    Sources: Sauer (1972); Shelah (1972).
    """
    check_count("m", m)
    check_count("dimension", dimension)
    return sum(math.comb(m, i) for i in range(dimension + 1))


def halfspaces(m: int, d: int) -> int:
    r"""In how many ways hyperplanes can separate points in general position.

    .. math:: 2 \sum_{i = 0}^{d} \binom{m - 1}{i}

    Args:
        m: Points.
        d: The dimension of the space; the hyperplanes need not contain the origin.

    Returns:
        The number of labellings.

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If it is not positive.

    Example:
        >>> from dltheory.theory import capacity
        >>> capacity.halfspaces(4, 2)  # all 16 but the two of exclusive or
        14

    Source: Cover (1965).
    """
    check_count("m", m)
    check_count("d", d)
    return 2 * sum(math.comb(m - 1, i) for i in range(d + 1))


def network_dimension(parameters: int, layers: int) -> Orders:
    r"""Orders of the Vapnik-Chervonenkis dimension of networks with piecewise linear activations.

    .. math:: c\, W L \log(W / L) \le \mathrm{VC} \le C\, W L \log W

    Args:
        parameters: Parameters :math:`W`, more than layers.
        layers: Layers :math:`L`.

    Returns:
        `Orders`, with logarithms to the base 2 and `c` and `C` left out.

    Raises:
        TypeError: If an argument is no integer.
        ValueError: If it is not positive, or there are no more parameters than layers.

    Source: Bartlett, Harvey, Liaw and Mehrabian (2019).
    """
    check_count("parameters", parameters)
    check_count("layers", layers)
    if parameters <= layers:
        raise ValueError(f"parameters is {parameters}; want more than layers = {layers}")
    both = parameters * layers
    return Orders(both * math.log2(parameters / layers), both * math.log2(parameters))


def rademacher_exact(x: ArrayLike, norm: ArrayLike, *, ball: str = "l2") -> Array:
    r"""The empirical Rademacher complexity of linear functions, over all signs.

    .. math:: \hat{\mathfrak R} = \frac Bn\, \mathbb{E} \Big\|\sum_i \sigma_i x_i\Big\|_*

    Args:
        x: Inputs, shape `(n, d)`, at most 20: there are `2**n` signs.
        norm: The size :math:`B` of the ball of weights.
        ball: `"l2"` or `"l1"`; the norm of the sum is the dual one, `l2` or the largest entry.

    Returns:
        The complexity, shape `()`.

    Raises:
        ValueError: If `x` is no matrix of 1 to 20 rows, `ball` is neither, or `norm` is negative
            (under tracing the result is NaN instead).

    Source: Bartlett and Mendelson (2002).
    """
    check_choice("ball", ball, ("l2", "l1"))
    x = jnp.asarray(x, jnp.result_type(float, x))
    if x.ndim != 2 or not 1 <= len(x) <= _LARGEST:
        raise ValueError(f"x must be (n, d) with n from 1 to {_LARGEST}; it has shape {x.shape}")
    norm = bounds.inputs(norm=norm)[0].astype(x.dtype)
    # Half of all signs, the others being their opposites.
    order = jnp.arange(2 ** (len(x) - 1), dtype=jnp.int32)[:, None]
    bits = (order >> jnp.arange(len(x), dtype=jnp.int32)[None]) & 1
    sums = (1 - 2 * bits.astype(x.dtype)) @ x
    sizes = jnp.linalg.norm(sums, axis=1) if ball == "l2" else jnp.max(jnp.abs(sums), axis=1)
    return norm * jnp.mean(sizes) / len(x)


def rademacher_l1(x: ArrayLike, norm: ArrayLike) -> Array:
    r"""A bound on the Rademacher complexity of linear functions in the ball of `l1`.

    .. math:: \hat{\mathfrak R} \le \frac Bn \max_j \|X_j\|_2 \sqrt{2 \log 2 d}

    by Massart's lemma on the corners of the ball.

    Args:
        x: Inputs, shape `(n, d)`.
        norm: The largest sum :math:`B` of absolute values of the weights.

    Returns:
        The bound, shape `()`.

    Raises:
        ValueError: If `x` is no matrix or has no rows, or `norm` is negative (under tracing the
            result is NaN instead).

    Source: Massart (2000).
    """
    x = jnp.asarray(x, jnp.result_type(float, x))
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"x must be (n, d) with at least one row; it has shape {x.shape}")
    norm = bounds.inputs(norm=norm)[0].astype(x.dtype)
    largest = jnp.max(jnp.linalg.norm(x, axis=0))
    return norm * largest * math.sqrt(2 * math.log(2 * x.shape[1])) / len(x)


def rademacher_network(x: ArrayLike, norms: ArrayLike) -> Array:
    r"""A bound on the Rademacher complexity of ReLU networks of bounded Frobenius norms.

    .. math:: \hat{\mathfrak R} \le \frac{\sqrt{2 L \log 2} + 1}{n} \prod_l B_l\,
              \sqrt{\sum_i \|x_i\|^2}

    for any 1-Lipschitz activation that is positively homogeneous, one output and no biases.

    Args:
        x: Inputs, shape `(n, d)`.
        norms: The largest Frobenius norm :math:`B_l` of each layer, shape `(layers,)`.

    Returns:
        The bound, shape `()`.

    Raises:
        ValueError: If the shapes are wrong, or a norm is negative (under tracing the result is NaN
            instead).

    Source: Golowich, Rakhlin and Shamir (2018), Size-independent sample complexity of neural
        networks.
    """
    if jnp.ndim(norms) != 1 or jnp.size(norms) == 0:
        raise ValueError(f"norms must be (layers,), one or more; got shape {jnp.shape(norms)}")
    (norms,) = bounds.inputs(norms=norms)
    linear = generalization.rademacher_linear(x, jnp.prod(norms))
    return (math.sqrt(2 * len(norms) * math.log(2)) + 1) * linear


def finite_class_gap(log_size: ArrayLike, n: ArrayLike, delta: ArrayLike) -> Array:
    r"""How far any of finitely many classifiers strays from its error on the sample.

    .. math:: |R - \hat R| \le \sqrt{\frac{\log(2 |H| / \delta)}{2 n}}

    Args:
        log_size: Natural logarithm of the number of classifiers; for those of at most `b` bits,
            `(b + 1) * log(2)`.
        n: Examples, one or more.
        delta: Probability of failure, in (0, 1).

    Returns:
        The gap.

    Raises:
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Source: Hoeffding (1963).
    """
    log_size, n, delta = bounds.inputs(log_size=log_size, n=n, delta=delta)
    return jnp.sqrt((log_size + jnp.log(2 / delta)) / (2 * n))


def vc_bound(risk: ArrayLike, dimension: int, n: int, delta: ArrayLike) -> bounds.Bound:
    r"""The bound from the Vapnik-Chervonenkis dimension.

    .. math:: R \le \hat R + \sqrt{\frac{8}{n} \log \frac{4\, \Pi(2 n)}{\delta}}, \qquad
              \Pi(m) \le (e m / d)^d \;\; (m \ge d)

    Args:
        risk: Error on the sample, in [0, 1].
        dimension: The dimension `d`, one or more.
        n: Examples, one or more.
        delta: Probability of failure, in (0, 1).

    Returns:
        `Bound`.

    Raises:
        TypeError: If `dimension` or `n` is no integer.
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Source: Vapnik and Chervonenkis (1971).
    """
    check_count("dimension", dimension)
    check_count("n", n)
    risk, delta = bounds.inputs(risk=risk, delta=delta)
    d, m = dimension, 2 * n
    log_growth = d * (1 + math.log(m / d)) if m >= d else m * math.log(2)
    return bounds.bound(risk + jnp.sqrt(8 / n * (log_growth + jnp.log(4 / delta))))


def compression_bound(errors: ArrayLike, size: int, n: int, delta: ArrayLike) -> bounds.Bound:
    r"""The bound for a rule that is a function of some of its examples, such as support vectors.

    .. math:: R \le \mathrm{kl}^{-1}\!\left(\frac{k}{n - m},\,
              \frac{\log \binom nm + \log(n / \delta)}{n - m}\right)

    by Chernoff's bound on the examples left out and a union over which they are, and how many.

    Args:
        errors: Errors `k` on the examples that the rule is no function of.
        size: How many examples `m` it is a function of, fewer than `n`.
        n: Examples, one or more.
        delta: Probability of failure, in (0, 1).

    Returns:
        `Bound`.

    Raises:
        TypeError: If `size` or `n` is no integer.
        ValueError: If an argument is out of range (under tracing the result is NaN instead).

    Sources: Littlestone and Warmuth (1986); Langford (2005).
    """
    check_count("n", n)
    check_count("size + 1", size + 1)
    if size >= n:
        raise ValueError(f"size is {size}; want fewer than n = {n}, to judge the rule by the rest")
    k, delta = bounds.inputs(errors=errors, delta=delta)
    bounds.refuse(k > n - size, "errors", errors, f"at most n - size = {n - size}")
    log_choices = special.gammaln(jnp.asarray([n + 1, size + 1, n - size + 1], delta.dtype))
    log_choices = log_choices[0] - log_choices[1] - log_choices[2]
    rest = n - size
    price = (log_choices + jnp.log(n / delta)) / rest
    return bounds.bound(generalization.kl_inverse(k / rest, price))
