r"""How far one random network of finite width strays from its mean-field curves, layer by layer.

Let :math:`G_l` be the covariance of the pre-activations of layer `l` given the layer before it: its
diagonal holds lengths, the rest is of two inputs. At width `n` it is a mean over units,

.. math:: G_{l+1} = F(G_l) + \varepsilon_l, \qquad
    F(K) = \sigma_w^2\,\mathbb{E}\,\phi(u)\phi(v) + \sigma_b^2, \qquad
    \operatorname{Cov} \varepsilon_l = \tfrac1n \sigma_w^4
    \operatorname{Cov}\big(\phi(u)\phi(v), \phi(u')\phi(v')\big)

and what is measured on a layer, the mean product of its units, adds the sampling noise of a
Wishart matrix, :math:`\mathcal{W}(K) / n` with
:math:`\mathcal{W}(K)_{ab,cd} = K_{ac} K_{bd} + K_{ad} K_{bc}`. Linearised about the mean-field
:math:`K_l`, with :math:`M_l = F'(K_l)`,

.. math:: \operatorname{Cov} G_{l+1} = M_l U_l M_l^\top + \operatorname{Cov} \varepsilon_l, \qquad
    \mathbb{E}\,G_{l+1} - K_{l+1} = M_l\,(\mathbb{E}\,G_l - K_l) + \tfrac12 F''(K_l)\,U_l, \qquad
    \operatorname{Cov} Q_l = U_l + \tfrac1n \mathcal{W}(K_l)

for the measured :math:`Q_l`. Gaussian weights have :math:`U = \operatorname{Cov} G`. Orthogonal
weights carry the Gram matrix over exactly: of :math:`Q_l` only the biases are random, and the units
are Gaussian given that the weights' part of it, :math:`S = K - \sigma_b^2`, has no sampling noise.
Both follow from :math:`U = \operatorname{Cov} G - \mathcal{W}(S) / n`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks import activations
from dltheory.networks.activations import Activation
from dltheory.numerics import gaussian
from dltheory.numerics.results import Moments
from dltheory.theory import dual, mean_field
from dltheory.theory.dual import Phi
from dltheory.theory.parameters import check_choice, check_count, checked


class Lengths(NamedTuple):
    r"""A number for the length and one for the growth of gradients, layer by layer.

    Attributes:
        q: Of the mean squared pre-activation, shape `(depth,)`.
        chi_1: Of :math:`\|\partial h_{l+1} / \partial h_l\|_F^2 / n`, likewise.
    """

    q: Array
    chi_1: Array


class Fluctuations(NamedTuple):
    r"""How networks of finite width differ from their mean-field curve, and from each other.

    Attributes:
        bias: What the mean over networks is off the curve, of order :math:`n^{-1}`.
        std: Standard deviation from network to network, of order :math:`n^{-1/2}`.
    """

    bias: Lengths
    std: Lengths


class Prediction(NamedTuple):
    """What theory says of one random network of finite width, layer by layer.

    Attributes:
        mean: The mean-field values, each of shape `(depth,)`.
        std: Their standard deviations from network to network, likewise.
    """

    mean: Moments
    std: Moments


class _Average(NamedTuple):
    """A Gaussian average as a function of the length, and the variance of what is averaged."""

    mean: Array
    variance: Array
    first: Array  # derivative in the length
    second: Array  # second derivative in it


def lengths(
    phi: Phi,
    q0: ArrayLike,
    *,
    depth: int,
    width: int,
    weight_var: ArrayLike,
    bias_var: ArrayLike = 0.0,
    ensemble: str = "gaussian",
) -> Fluctuations:
    r"""Bias and fluctuation of the length and of the growth of gradients, to first order.

    The first order in `1 / width` wants `depth` well below `width`, and more of it for an
    activation that grows fast: the fluctuations are those of the mean of :math:`\phi(h)^2`.

    Args:
        phi: Activation, its name, or a scalar callable.
        q0: Variance of the first layer's pre-activations, given the input, shape `()`.
        depth: Number of layers.
        width: Units of each layer.
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.
        ensemble: `"gaussian"` or `"orthogonal"`: the law of every weight matrix, that of the first
            layer too, which then must not have more inputs than units.

    Returns:
        The `Fluctuations`; index 0 is the first layer. Those of `chi_1` are infinite where the
        activation jumps.

    Raises:
        TypeError: If `depth` or `width` is not an integer.
        ValueError: If `depth` or `width` is below one, the ensemble is unknown or a variance is
            negative (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import fluctuations
        >>> std = fluctuations.lengths("relu", 1.0, depth=3, width=100, weight_var=2.0).std.q
        >>> [f"{v:.2f}" for v in std**2]  # 2 / n of the layer itself, 5 / n of each before it
        ['0.02', '0.07', '0.12']
    """
    phi, orthogonal = _checked_sizes(phi, depth, width, ensemble)
    q0, weight_var, bias_var = checked(q0=q0, weight_var=weight_var, bias_var=bias_var)
    next_length = lambda q: mean_field.q_map(phi, q, weight_var=weight_var, bias_var=bias_var)
    q = jax.lax.scan(lambda q, _: (next_length(q), q), q0, length=depth)[1]
    return _lengths(phi, q, width, orthogonal, weight_var, bias_var)


def propagate(
    phi: Phi,
    q0: ArrayLike,
    c0: ArrayLike,
    *,
    depth: int,
    width: int,
    weight_var: ArrayLike,
    bias_var: ArrayLike = 0.0,
    ensemble: str = "gaussian",
) -> Prediction:
    r"""Mean-field curves of a plain network with their finite-width band.

    The band is that of what `measure.signal.moments` measures on one input, and on one pair, of one
    network; :math:`\chi_1` as in `lengths`.

    Args:
        phi: Activation, its name, or a scalar callable.
        q0: Variance of the first layer's pre-activations, given the input, shape `()`.
        c0: Correlation of those of two inputs of that length, shape `()`.
        depth: Number of layers.
        width: Units of each layer.
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.
        ensemble: As in `lengths`.

    Returns:
        The `Prediction`; index 0 is the first layer.

    Raises:
        TypeError: As `lengths`.
        ValueError: As `lengths`, or if `c0` is beyond one in size.
    """
    phi, orthogonal = _checked_sizes(phi, depth, width, ensemble)
    q0, weight_var, bias_var = checked(q0=q0, weight_var=weight_var, bias_var=bias_var)
    at = {"weight_var": weight_var, "bias_var": bias_var}
    mean = mean_field.propagate(phi, q0, c0, depth=depth, **at)
    std = _lengths(phi, mean.q, width, orthogonal, weight_var, bias_var).std
    pair = _pair_std(phi, mean.q, mean.c, width, orthogonal, weight_var, bias_var)
    return Prediction(mean, Moments(std.q, pair, std.chi_1))


def _checked_sizes(phi: Phi, depth: int, width: int, ensemble: str) -> tuple[Activation, float]:
    """The activation, and one for orthogonal weights, zero for Gaussian ones."""
    check_count("depth", depth)
    check_count("width", width)
    check_choice("ensemble", ensemble, ("gaussian", "orthogonal"))
    return activations.get(phi), float(ensemble == "orthogonal")


def _lengths(
    phi: Activation, q: Array, n: int, orthogonal: float, weight_var: Array, bias_var: Array
) -> Fluctuations:
    q, alive = _alive(q)
    length, slope = (_average(phi, q, of, weight_var) for of in (phi, jax.grad(phi)))
    fixed = 2 * (q - bias_var) ** 2 / n * orthogonal

    def layer(state: tuple[Array, Array], now: tuple) -> tuple[tuple, tuple]:
        variance, bias = state
        gain, bend, noise, fixed = now
        carried = variance - fixed
        following = gain**2 * carried + noise, gain * bias + bend * carried / 2
        return following, (carried, bias)

    none = jnp.zeros_like(q[0])
    rows = (length.first, length.second, length.variance / n, fixed)
    rows = tuple(jnp.where(alive, row, 0) for row in rows)
    carried, bias = jax.lax.scan(layer, (none, none), rows)[1]
    carried += 0 * jnp.sum(q)  # the first layers know nothing of a NaN further on
    bias += 0 * jnp.sum(q)

    drift = slope.first * bias + slope.second * carried / 2
    spread = slope.first**2 * carried + slope.variance / n
    # The squares of Gaussian weights, too, are means over n only.
    spread += (1 - orthogonal) * 2 * (slope.variance + slope.mean**2) / n**2
    if phi.smoothness == -1:
        drift, spread = jnp.full_like(q, jnp.inf), jnp.full_like(q, jnp.inf)
    variances = carried + 2 * q**2 / n, spread
    std = (jnp.sqrt(jnp.where(alive, jnp.maximum(one, 0), 0)) for one in variances)
    return Fluctuations(Lengths(bias, jnp.where(alive, drift, 0)), Lengths(*std))


def _alive(q: Array) -> tuple[Array, Array]:
    """Lengths to compute with, and where they are real: no signal has no noise."""
    alive = q != 0
    return jnp.where(alive, q, 1), alive


def _average(phi: Activation, q: Array, of, weight_var: Array) -> _Average:
    """Mean of a squared function of the pre-activation, times the weight variance.

    Derivatives in the length are moments with Hermite polynomials, by Gaussian integration by
    parts: the function itself need have none.
    """
    z, weights = gaussian.quadrature(q, kinks=phi.kinks)
    squares = weight_var * jnp.square(jnp.vectorize(of)(jnp.sqrt(q)[..., None] * z))
    average = lambda a: jnp.sum(weights * a, axis=-1)
    mean = average(squares)
    return _Average(
        mean=mean,
        variance=average(jnp.square(squares - mean[..., None])),
        first=average(squares * (z**2 - 1)) / (2 * q),
        second=average(squares * (z**4 - 6 * z**2 + 3)) / (4 * q**2),
    )


def _pair_std(
    phi: Activation,
    q: Array,
    c: Array,
    n: int,
    orthogonal: float,
    weight_var: Array,
    bias_var: Array,
) -> Array:
    """Standard deviation of the correlation, from the covariance of (mean length, product)."""
    q, alive = _alive(q)
    k = q * c
    pair = lambda f, g: gaussian.pair_expectation(f, g, q, q, k, kinks=phi.kinks)
    square, cube = (lambda h: jnp.square(phi(h))), (lambda h: phi(h) ** 3)
    kernel = lambda q, k: dual.kernel(phi, q, q, k)
    one, none = jnp.ones_like(q), jnp.zeros_like(q)
    value, by_length = jax.jvp(kernel, (q, k), (one, none))
    by_product = dual.derivative_kernel(phi, q, q, k)
    length = _average(phi, q, phi, weight_var)
    value, by_length, by_product = (weight_var * a for a in (value, by_length, by_product))
    squares = weight_var**2 * pair(square, square)
    noise = _symmetric(
        (length.variance + squares - length.mean**2) / 2,
        weight_var**2 * pair(cube, phi) - length.mean * value,
        squares - value**2,
    )
    gain = jnp.stack([length.first, none, by_length, by_product], -1).reshape(-1, 2, 2)
    fixed = _wishart(q - bias_var, k - bias_var) * orthogonal

    def layer(covariance: Array, now: tuple) -> tuple[Array, Array]:
        gain, noise, fixed = now
        carried = covariance - fixed
        return gain @ carried @ gain.T + noise, carried

    carried = jax.lax.scan(layer, jnp.zeros((2, 2), q.dtype), (gain, noise, fixed))[1]
    total = (carried + _wishart(q, k)) / n
    # c = k / q moves by (dk - c dq) / q.
    variance = total[:, 1, 1] - 2 * c * total[:, 0, 1] + c**2 * total[:, 0, 0]
    return jnp.where(alive, jnp.sqrt(jnp.maximum(variance, 0)) / q, 0)


def _wishart(q: Array, k: Array) -> Array:
    """Covariance of (mean square, product) of two Gaussian variables of one variance."""
    return _symmetric(q**2 + k**2, 2 * q * k, q**2 + k**2)


def _symmetric(a: Array, b: Array, d: Array) -> Array:
    return jnp.stack([jnp.stack([a, b], -1), jnp.stack([b, d], -1)], -1)
