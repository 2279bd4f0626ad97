r"""What mean-field theory leaves out: random networks of finite width, exactly.

Weights are :math:`\mathcal{N}(0, \sigma_w^2 / n)` with :math:`\sigma_w^2` the `weight_var`. At
width `n` a deep network's Jacobian is governed by the mean of logarithms, not by the logarithm of
the mean: its squared singular values keep their mean at :math:`\sigma_w^2 = 1` while each of them
shrinks exponentially with depth. Norms of signals and gradients are products of independent
factors, close to log-normal, with a variance that grows as depth over width.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from dltheory.networks import activations
from dltheory.numerics import gaussian
from dltheory.theory import dual, fluctuations, mean_field
from dltheory.theory.dual import Phi
from dltheory.theory.parameters import check_count, checked


def lyapunov_exponents(width: int, weight_var: ArrayLike = 1.0) -> Array:
    r"""Growth rates of the singular values of a product of Gaussian matrices.

    .. math::
        \lambda_i = \lim_{L \to \infty} \frac{1}{L} \ln s_i(W_L \cdots W_1)
            = \frac12 \left[\ln \frac{2 \sigma_w^2}{n}
            + \psi\!\left(\frac{n - i + 1}{2}\right)\right], \qquad i = 1, \dots, n

    with :math:`\psi` the digamma function. Their sum is :math:`E \ln |\det W_l|`, at any depth;
    one by one the singular values at depth `L` are off by a term of order `1 / L`.

    Args:
        width: Number `n` of rows and columns of each matrix.
        weight_var: Variance of the entries times `n`, any shape.

    Returns:
        The exponents in nats per factor, descending, shape `(*weight_var.shape, width)`; `-inf`
        where `weight_var` is zero.

    Raises:
        TypeError: If `width` is not an integer.
        ValueError: If `width` is not positive or `weight_var` is negative (under tracing the
            result is NaN instead).

    Example:
        >>> from dltheory.theory import finite_width
        >>> print(" ".join(f"{one:.4f}" for one in finite_width.lyapunov_exponents(2)))
        -0.2886 -0.9818

    Source:
        Newman (1986), The distribution of Lyapunov exponents: exact results for random matrices.
    """
    check_count("width", width)
    if not isinstance(weight_var, Tracer) and np.any(np.asarray(weight_var) < 0):
        raise ValueError(f"weight_var must be zero or more; got {weight_var}")
    weight_var = jnp.asarray(weight_var, jnp.result_type(float, weight_var))
    halves = jnp.arange(width, 0, -1, dtype=weight_var.dtype) / 2
    shape = jax.scipy.special.digamma(halves) - jnp.log(halves[0])
    logs = jnp.log(jnp.where(weight_var >= 0, weight_var, jnp.nan))
    return (logs[..., None] + shape.reshape((1,) * logs.ndim + (-1,))) / 2


def relu_log_norm(width: int) -> tuple[Array, Array]:
    r"""Mean and variance of the logarithm by which a ReLU layer changes a squared norm.

    .. math::
        X = \frac{|\operatorname{relu}(W x)|^2}{|x|^2} = \frac{2}{n} \chi^2_K, \quad
        K \sim \operatorname{Bin}(n, 1/2): \qquad
        \mathbb{E} \ln X = \ln \frac4n + \mathbb{E}\, \psi(K/2), \quad
        \operatorname{Var} \ln X = \mathbb{E}\, \psi'(K/2) + \operatorname{Var} \psi(K/2)

    given that a unit is active, :math:`K > 0`. The weights have the variance 2 of He et al. (2015).
    Layers are independent of each other, and a gradient grows by the same law as the signal: in a
    net of `L` layers the logarithm of a squared gradient norm is close to Gaussian, with `L` times
    this mean and variance, about :math:`-5L/2n` and :math:`5L/n`.

    Args:
        width: Number `n` of inputs and of units.

    Returns:
        The mean and the variance per layer, each of shape `()`, exact at every width.

    Raises:
        TypeError: If `width` is not an integer.
        ValueError: If `width` is not positive.

    Example:
        >>> from dltheory.theory import finite_width
        >>> mean, variance = finite_width.relu_log_norm(100)
        >>> print(f"{mean:.4f} {variance:.4f}")
        -0.0254 0.0519

    Source: Hanin and Nica (2020), Products of many large random matrices and gradients in deep
    neural networks.
    """
    check_count("width", width)
    # At half-integers the digamma function and its derivative are sums; in float64 on the host,
    # because the mean is what is left when numbers of order one cancel.
    active = np.arange(1, width + 1)
    digamma, trigamma = np.empty(width), np.empty(width)
    for odd, start, slope in (
        (1, -np.euler_gamma - 2 * math.log(2), math.pi**2 / 2),
        (0, -np.euler_gamma, math.pi**2 / 6),
    ):
        steps = 2 / active[1 - odd :: 2]
        digamma[1 - odd :: 2] = start + np.cumsum(steps) - steps
        trigamma[1 - odd :: 2] = slope - np.cumsum(steps**2) + steps**2
    log_binomial = np.cumsum(np.log((width - active + 1) / active))
    weights = np.exp(log_binomial - log_binomial.max())
    weights /= weights.sum()
    centred = digamma - math.log(width / 4)
    mean = weights @ centred
    variance = weights @ (trigamma + (centred - mean) ** 2)
    return jnp.asarray(mean, float), jnp.asarray(variance, float)


def relu_second_moment(width: int, depth: int) -> Array:
    r"""Mean square of the factor by which a ReLU net changes a squared norm.

    .. math:: \mathbb{E} \left(\frac{|x_L|^2}{|x_0|^2}\right)^2 = \left(1 + \frac5n\right)^L

    The mean of the factor itself is one.

    Args:
        width: Number `n` of inputs and of units.
        depth: Number `L` of layers.

    Returns:
        The mean square, shape `()`, exact.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is not positive.

    Example:
        >>> from dltheory.theory import finite_width
        >>> print(finite_width.relu_second_moment(5, 3))
        8.0

    Source: Hanin (2018); Hanin and Rolnick (2018), How to start training.
    """
    check_count("width", width)
    check_count("depth", depth)
    return jnp.asarray((1 + 5 / width) ** depth, float)


def relu_death_probability(width: int, depth: int) -> Array:
    r"""Probability that a ReLU net without biases is dead: all units of a layer are inactive.

    .. math:: 1 - \left(1 - 2^{-n}\right)^L

    Args:
        width: Number `n` of units of each layer.
        depth: Number `L` of layers.

    Returns:
        The probability, shape `()`, at one input and at any `weight_var`.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is not positive.

    Example:
        >>> from dltheory.theory import finite_width
        >>> print(f"{finite_width.relu_death_probability(5, 100):.4f}")
        0.9582

    Source: Rister and Rubin (2017); Lu, Shin, Su and Karniadakis (2020).
    """
    check_count("width", width)
    check_count("depth", depth)
    return jnp.asarray(-math.expm1(depth * math.log1p(-(2.0**-width))), float)


def relu_ntk_second_moment(width: int, depth: int) -> Array:
    r"""Mean square of a ReLU net's tangent kernel relative to its squared mean.

    .. math:: \frac{\mathbb{E}\, \Theta(x, x)^2}{(\mathbb{E}\, \Theta(x, x))^2}

    for a scalar output, equal widths (the input's too), no biases, and Gaussian weights in the NTK
    parameterization. Exact: by the invariance of Gaussian weights under rotation,

    .. math::
        t_l = \tfrac2n \left(Y_l + t_{l+1}\, \chi^2_{K_l - 1}\right), \quad
        Y_{l-1} = \tfrac2n \chi^2_{K_l} Y_l, \quad
        S_l = t_l + \tfrac2n \chi^2_{K_l} S_{l+1}, \qquad K_l \sim \operatorname{Bin}(n, 1/2)

    where, relative to the squared norm of the input of layer `l`, :math:`t_l` is what the weights
    of that layer add to the kernel, :math:`S_l` what they and all later ones add, and :math:`Y_l`,
    relative to its output, the squared output of the net. (For :math:`K_l = 0` all are zero.)

    Args:
        width: Number `n` of inputs and of units.
        depth: Number `L` of hidden layers.

    Returns:
        The relative mean square, shape `()`. It grows like :math:`e^{5 L / n}`, up to a factor of
        order one.

    Raises:
        TypeError: If an argument is not an integer.
        ValueError: If an argument is not positive.

    Example:
        >>> from dltheory.theory import finite_width
        >>> print(f"{finite_width.relu_ntk_second_moment(100, 1):.4f}")
        1.0300

    Source: the order is that of Hanin and Nica (2019), Finite depth and width corrections to the
    neural tangent kernel; the recursion is derived here.
    """
    check_count("width", width)
    check_count("depth", depth)
    n, alive = width, 1 - 2.0**-width
    # Moments of K, of Q = chi^2_K and of R = chi^2_(K - 1), which is zero where K is.
    k, kk = n / 2, n * (n + 1) / 4
    q, qq, r = k, kk + 2 * k, k - alive
    rr, qr = kk - alive, kk - k
    c = 2 / n
    # Means and mean products of (Y, t, S), each in units in which those of Y are 1 and 3.
    mean = np.array([1.0, 1.0, 1.0])
    second = {"YY": 3.0, "Yt": 1.0, "YS": 1.0, "tt": 1.0, "tS": 1.0, "SS": 1.0}
    for _ in range(depth):
        t = c * (alive * mean[0] + r * mean[1])
        mean = np.array([c * q * mean[0], t, t + c * q * mean[2]])
        s = second
        tt = c**2 * (alive * s["YY"] + 2 * r * s["Yt"] + rr * s["tt"])
        yt = c**2 * (q * s["YY"] + qr * s["Yt"])
        rest_t = c**2 * (q * s["YS"] + qr * s["tS"])  # t with Q times the later S
        second = {
            "YY": c**2 * qq * s["YY"],
            "Yt": yt,
            "YS": yt + c**2 * qq * s["YS"],
            "tt": tt,
            "tS": tt + rest_t,
            "SS": tt + 2 * rest_t + c**2 * qq * s["SS"],
        }
    return jnp.asarray(second["SS"] / mean[2] ** 2, float)


def log_gradient_std(
    phi: Phi,
    q: ArrayLike,
    *,
    depth: int,
    width: int,
    weight_var: ArrayLike,
    bias_var: ArrayLike = 0.0,
) -> Array:
    r"""How far a log squared gradient norm strays from its mean-field curve, from net to net.

    .. math:: \operatorname{sd} \ln \frac{|D_l W_l \cdots D_1 W_1 v|^2}{|v|^2}
        \approx \sqrt{\frac1n \sum_{k \le l}
        \left(\frac{3 \mu_2}{\mu_1^2} - 1\right) + \ldots}, \qquad
        \mu_k = \mathbb{E}\,\phi'(h)^{2k}

    to first order in the width, for Gaussian weights. The dots are the fluctuations of the length,
    which the layers pass on to each other and which move :math:`\mu_1`; a homogeneous activation
    has none. A band of this width goes round :math:`\sum_k \ln \chi_1(q_k)`.

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance of the first layer's pre-activations, shape `()`.
        depth: Number of layers.
        width: Units of each layer.
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.

    Returns:
        The standard deviation after each layer, shape `(depth,)`; differentiable.

    Raises:
        TypeError: If `depth` or `width` is not an integer.
        ValueError: If `depth` or `width` is below one or a variance is negative (under tracing the
            result is NaN instead).

    Example:
        >>> from dltheory.theory import finite_width
        >>> at = {"depth": 2, "width": 100, "weight_var": 2.0}
        >>> std = finite_width.log_gradient_std("relu", 1.0, **at)
        >>> [f"{v:.4f}" for v in std**2]  # 5 / n per layer
        ['0.0500', '0.1000']
    """
    phi = activations.get(phi)
    check_count("depth", depth)
    check_count("width", width)
    q, weight_var, bias_var = checked(q=q, weight_var=weight_var, bias_var=bias_var)
    growth = lambda q: jnp.log(dual.derivative_moment(phi, q))
    next_length = lambda q: mean_field.q_map(phi, q, weight_var=weight_var, bias_var=bias_var)

    at = {"depth": depth, "width": width, "weight_var": weight_var, "bias_var": bias_var}
    stds = fluctuations.lengths(phi, q, **at).std.q

    def layer(state: tuple, std: Array) -> tuple[tuple, Array]:
        q, cross, total = state  # the last two, and what follows, times the width
        length = width * std**2 - 2 * q**2  # but for what the layer's own sampling adds
        z, weights = gaussian.quadrature(q, kinks=phi.kinks)
        h = jnp.sqrt(q) * z
        slopes, squares = jnp.square(jax.vmap(jax.grad(phi))(h)), jnp.square(jax.vmap(phi)(h))
        slopes, mean = slopes / jnp.sum(weights * slopes), jnp.sum(weights * squares)
        noise = 3 * jnp.sum(weights * slopes**2) - 1
        cross_noise = weight_var * jnp.sum(weights * (slopes - 1) * (squares - mean))
        one = jnp.ones_like(q)
        pull = jax.jvp(growth, (q,), (one,))[1]
        following, slope = jax.jvp(next_length, (q,), (one,))
        total = total + pull**2 * length + 2 * pull * cross + noise
        cross = slope * (cross + pull * length) + cross_noise
        return (following, cross, total), total

    start = (q, jnp.zeros_like(q), jnp.zeros_like(q))
    return jnp.sqrt(jax.lax.scan(layer, start, stds)[1] / width)
