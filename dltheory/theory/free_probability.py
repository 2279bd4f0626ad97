r"""Singular values of the Jacobian of a wide random network, whole spectra and not just means.

The Jacobian of `L` layers is :math:`J = W_L D_L \cdots W_1 D_1`, square, with
:math:`D = \operatorname{diag} \phi'(h)` and :math:`h \sim \mathcal{N}(0, q)`: the network is at a
fixed point of the length. `ensemble` is "gaussian", :math:`W_{ij} \sim
\mathcal{N}(0, \sigma_w^2 / n)`, or "orthogonal", :math:`W^\top W = \sigma_w^2 I`;
:math:`\sigma_w^2` is the `weight_var`. At infinite width weights and slopes are free of each other,
and S-transforms multiply:

.. math::
    S_{JJ^\top}(z) = \left[ S_{D^2}(z)\, S_{WW^\top}(z) \right]^L, \qquad
    S_{WW^\top}(z) = \sigma_w^{-2} (1 + z)^{-1} \text{ or } \sigma_w^{-2},

where :math:`S(z) = (1 + z) / (z M^{-1}(z))` and :math:`M(u) = \sum_k m_k u^{-k}` has the moments of
the spectrum. "Squared" is short for squared singular values, the eigenvalues of :math:`JJ^\top`. A
width `n` moves their moments by terms of order `1 / n`, and the edge by one of order `n**(-2/3)`.

Slopes further out than 8.6 standard deviations, of probability 1e-17, are left out.

Sources: Pennington, Schoenholz and Ganguli (2017), Resurrecting the sigmoid in deep learning
through dynamical isometry; (2018), The emergence of spectral universality in deep networks.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks import activations
from dltheory.networks.activations import Activation
from dltheory.numerics import gaussian
from dltheory.numerics.results import Density
from dltheory.theory import dual, slope_law, spectral_curve
from dltheory.theory.dual import Phi
from dltheory.theory.parameters import check_choice, check_count, checked

ENSEMBLES = ("gaussian", "orthogonal")


class Atoms(NamedTuple):
    """Point masses of a spectrum.

    Attributes:
        values: Where they are, shape `(k,)`, ascending.
        masses: Their probabilities, shape `(k,)`; zero where there is none after all.
    """

    values: Array
    masses: Array


def jacobian_variance(
    phi: Phi, *, q: ArrayLike, depth: int, weight_var: ArrayLike, ensemble: str
) -> Array:
    r"""Variance of the squared singular values relative to their squared mean.

    .. math:: \frac{\sigma_{JJ^\top}^2}{m_1^2} = L \left(\frac{\mu_2}{\mu_1^2} - 1 - s_1\right),
        \qquad \mu_k = \mathbb{E}\,\phi'(h)^{2k}

    with :math:`s_1 = -1` for Gaussian and 0 for orthogonal weights, whatever `weight_var` is.

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance of the pre-activations, any shape.
        depth: Number of layers.
        weight_var: Weight variance times fan-in, of the same shape or a scalar.
        ensemble: "gaussian" or "orthogonal".

    Returns:
        The relative variance, of the common shape; differentiable.

    Raises:
        TypeError: If `depth` is not an integer.
        ValueError: If `depth` is below one, the ensemble unknown, a variance negative (under
            tracing the result is NaN instead) or the activation one that jumps.

    Example:
        >>> from dltheory.theory import free_probability
        >>> at = {"q": 1.0, "depth": 10, "weight_var": 2.0}
        >>> print(f"{free_probability.jacobian_variance('relu', ensemble='gaussian', **at):.4f}")
        20.0000
        >>> print(f"{free_probability.jacobian_variance('relu', ensemble='orthogonal', **at):.4f}")
        10.0000

    Source: Pennington, Schoenholz and Ganguli (2018).
    """
    phi, is_gaussian, q, weight_var = _given(phi, q, depth, weight_var, ensemble)
    slope = jax.grad(phi)
    mean = dual.derivative_moment(phi, q)

    def deviation(q: Array, mean: Array) -> Array:
        relative = lambda h: jnp.square(jnp.square(slope(h)) / mean - 1)
        return gaussian.expectation(relative, q, kinks=phi.kinks)

    variance = jnp.vectorize(deviation)(q, mean) + (1 if is_gaussian else 0)
    # A spectrum at zero has no relative variance.
    return jnp.where(weight_var > 0, depth * variance, jnp.nan)


def squared_moments(
    phi: Phi, n: int, *, q: ArrayLike, depth: int, weight_var: ArrayLike, ensemble: str
) -> Array:
    r"""Moments of the squared singular values.

    .. math:: m_k = \lim_{n \to \infty} \frac{1}{n} \mathbb{E} \operatorname{tr} (JJ^\top)^k

    by Lagrange's inversion of :math:`M^{-1}` as a power series.

    Args:
        phi: Activation, its name, or a scalar callable.
        n: How many; the orders are 1 to n.
        q: Variance of the pre-activations, shape `()`.
        depth: Number of layers.
        weight_var: Weight variance times fan-in, shape `()`.
        ensemble: "gaussian" or "orthogonal".

    Returns:
        The moments, shape `(n,)`; differentiable.

    Raises:
        TypeError: If `depth` or `n` is not an integer.
        ValueError: If `depth` or `n` is below one, the ensemble unknown, a variance negative (under
            tracing the result is NaN instead) or the activation one that jumps.

    Example:
        >>> from dltheory.theory import free_probability
        >>> at = {"q": 1.0, "depth": 2, "weight_var": 1.0, "ensemble": "gaussian"}
        >>> moments = free_probability.squared_moments("identity", 4, **at)
        >>> [f"{m:.3f}" for m in moments]  # Fuss-Catalan
        ['1.000', '3.000', '12.000', '55.000']
    """
    phi, is_gaussian, q, weight_var = _given(phi, q, depth, weight_var, ensemble)
    check_count("n", n)
    mean = dual.derivative_moment(phi, q)
    slope = jax.grad(phi)
    z, weights = gaussian.quadrature(q, kinks=phi.kinks)
    squares = jnp.square(jax.vmap(slope)(jnp.sqrt(q) * z)) / mean
    law = [jnp.sum(weights * squares**k) for k in range(n + 1)]

    # M(1 / w) = w (1 + ...); the moments are the coefficients of M in 1 / zeta.
    series, one_plus = jnp.stack(law[1:]), jnp.stack(law[:n])
    ratio = _times(series, _power(one_plus, -1))
    orders = jnp.arange(1, n + 1, dtype=q.dtype)
    moments = []
    for k in range(1, n + 1):
        inverse = _power(ratio, k * (depth - 1))
        if is_gaussian:
            inverse = _times(inverse, _power(one_plus, k * depth))
        moments.append(_times(orders * series, inverse)[k - 1] / k)
    return jnp.stack(moments) * (weight_var * mean) ** (depth * orders)


def squared_edge(
    phi: Phi, *, q: ArrayLike, depth: int, weight_var: ArrayLike, ensemble: str
) -> Array:
    r"""The largest squared singular value: the upper end of the spectrum.

    .. math:: \lambda_{max} = \min_{z > 0} \frac{1 + z}{z\, S_{JJ^\top}(z)}

    or, where that function has no minimum, the point mass or the end of the law of slopes to which
    it falls.

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance of the pre-activations, any shape.
        depth: Number of layers.
        weight_var: Weight variance times fan-in, of the same shape or a scalar.
        ensemble: "gaussian" or "orthogonal".

    Returns:
        The edge, of the common shape; infinite for an activation whose slope is unbounded.
        Differentiable.

    Raises:
        TypeError: If `depth` is not an integer.
        ValueError: If `depth` is below one, the ensemble unknown, a variance negative (under
            tracing the result is NaN instead) or the activation one that jumps.

    Example:
        >>> from dltheory.theory import free_probability
        >>> at = {"q": 1.0, "depth": 2, "weight_var": 1.0, "ensemble": "gaussian"}
        >>> print(f"{free_probability.squared_edge('identity', **at):.3f}")  # 3**3 / 2**2
        6.750
    """
    phi, is_gaussian, q, weight_var = _given(phi, q, depth, weight_var, ensemble)

    def log_edge(q: Array) -> Array:
        law = slope_law.of(phi, q)
        return spectral_curve.edge(law, depth, is_gaussian)[1] + depth * jnp.log(law.mean)

    found = jnp.exp(jnp.vectorize(log_edge)(q)) * weight_var**depth
    unbounded = phi.lipschitz is not None and math.isinf(phi.lipschitz)
    return jnp.where(jnp.isnan(found), jnp.nan, jnp.inf) if unbounded else found


def squared_density(
    phi: Phi,
    *,
    q: ArrayLike,
    depth: int,
    weight_var: ArrayLike,
    ensemble: str,
    points: int = 512,
) -> Density:
    r"""Density of the squared singular values, apart from the point masses of `squared_atoms`.

    .. math:: \rho(\lambda) = -\frac{1}{\pi \lambda} \operatorname{Im} M(\lambda + i0)

    The equation :math:`M_{JJ^\top}(\lambda) = M_{D^2}(u)` is solved for the curve of `u` on which
    :math:`\lambda` is real.

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance of the pre-activations, shape `()`.
        depth: Number of layers.
        weight_var: Weight variance times fan-in, shape `()`.
        ensemble: "gaussian" or "orthogonal".
        points: Size of the grid.

    Returns:
        `Density` of shape `(points,)`. The grid is close to evenly spaced in the logarithm, finer
        towards both ends of the spectrum. It leaves out a mass of about 1e-6 at small values, and
        values that the dtype cannot hold, which at great depth are most. The density integrates to
        one less the point masses; it is zero in gaps, and everywhere if there are only point
        masses. All NaN where the dtype cannot hold the edge. Not differentiable.

    Raises:
        TypeError: If `depth` or `points` is not an integer.
        ValueError: If `depth` or `points` is below one, the ensemble unknown, a variance negative
            (under tracing the result is NaN instead) or the activation one that jumps.

    Example:
        >>> from dltheory.theory import free_probability
        >>> at = {"q": 1.0, "depth": 1, "weight_var": 1.0, "ensemble": "gaussian"}
        >>> found = free_probability.squared_density("identity", **at)  # Marchenko-Pastur
        >>> print(f"{found.support[0]:.2f} {found.support[-1]:.2f}")
        0.00 4.00
    """
    return spectral_curve.density(_curve(phi, q, depth, weight_var, ensemble, points))


def squared_cdf(
    x: ArrayLike, phi: Phi, *, q: ArrayLike, depth: int, weight_var: ArrayLike, ensemble: str
) -> Array:
    r"""Share of the squared singular values that are at most `x`, point masses included.

    .. math:: 1 - \frac{1}{\pi} \operatorname{Im} \left[ L\, \mathbb{E} \ln(u - a)
        + (L - 1) \ln M(u) + g L\, M(u) \right]

    with `g` one for Gaussian and zero for orthogonal weights, and `u` as in `squared_density`.

    Args:
        x: Squared singular values, any shape.
        phi: Activation, its name, or a scalar callable.
        q: Variance of the pre-activations, shape `()`.
        depth: Number of layers.
        weight_var: Weight variance times fan-in, shape `()`.
        ensemble: "gaussian" or "orthogonal".

    Returns:
        The share, of the shape of `x`, interpolated with an error of about 1e-5. Not
        differentiable.

    Raises:
        TypeError: If `depth` is not an integer.
        ValueError: If `depth` is below one, the ensemble unknown, a variance negative (under
            tracing the result is NaN instead) or the activation one that jumps.

    Example:
        >>> from dltheory.theory import free_probability
        >>> at = {"q": 1.0, "depth": 1, "weight_var": 1.0, "ensemble": "orthogonal"}
        >>> print(free_probability.squared_cdf(0.0, "relu", **at))
        0.5
    """
    at = {"q": q, "depth": depth, "weight_var": weight_var, "ensemble": ensemble}
    curve = _curve(phi, q, depth, weight_var, ensemble, 1024)
    atoms = squared_atoms(phi, **at)
    log_atoms = jnp.log(atoms.values)
    # Above a point of the curve lie the continuous part and the atoms.
    higher = jnp.where(log_atoms[None] > curve.log_values[:, None], atoms.masses, 0).sum(-1)
    continuous = curve.above - higher
    x = jnp.asarray(x, continuous.dtype)
    bounded = jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny))
    rest = 1 - atoms.masses.sum()
    above = jnp.interp(bounded.ravel(), curve.log_values, continuous, left=rest, right=0.0)
    below = jnp.where(x.ravel()[:, None] >= atoms.values[None], atoms.masses, 0).sum(-1)
    share = jnp.where(x.ravel() < 0, 0, rest - above + below)
    return jnp.where(jnp.isnan(x), jnp.nan, share.reshape(x.shape))


def squared_atoms(
    phi: Phi, *, q: ArrayLike, depth: int, weight_var: ArrayLike, ensemble: str
) -> Atoms:
    r"""Point masses among the squared singular values.

    Where :math:`\phi'^2 = a` with probability `p`, orthogonal weights leave the mass
    :math:`\max(0, L p - L + 1)` at :math:`(\sigma_w^2 a)^L`; Gaussian ones leave none but at zero.
    At zero both leave `p`: half of all for ReLU.

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance of the pre-activations, shape `()`.
        depth: Number of layers.
        weight_var: Weight variance times fan-in, shape `()`.
        ensemble: "gaussian" or "orthogonal".

    Returns:
        `Atoms`, one entry for each piece of the activation between kinks. Differentiable.

    Raises:
        TypeError: If `depth` is not an integer.
        ValueError: If `depth` is below one, the ensemble unknown, a variance negative (under
            tracing the result is NaN instead) or the activation one that jumps.

    Example:
        >>> from dltheory.theory import free_probability
        >>> at = {"q": 1.0, "depth": 5, "weight_var": 2.0, "ensemble": "gaussian"}
        >>> atoms = free_probability.squared_atoms("relu", **at)
        >>> print(atoms.values, atoms.masses)
        [ 0. 32.] [0.5 0. ]

    Source: Belinschi and Bercovici (2003), atoms of free multiplicative convolutions.
    """
    phi, is_gaussian, q, weight_var = _given(phi, q, depth, weight_var, ensemble)
    squares, flat, mass = slope_law.pieces(phi, q)
    # Pieces of one slope count together, at the first of them.
    same = (squares[:, None] == squares[None]) & flat[None] & flat[:, None]
    first = jnp.argmax(same, axis=1) == jnp.arange(squares.size)
    mass = jnp.where(flat & first, jnp.sum(jnp.where(same, mass[None], 0), 1), 0)
    left = jnp.zeros_like(mass) if is_gaussian else jnp.maximum(depth * mass - (depth - 1), 0)
    values = (weight_var * squares) ** depth
    mass = jnp.where(squares == 0, mass, left)
    order = jnp.argsort(values)
    return Atoms(values[order], mass[order] + 0 * q)


def _curve(
    phi: Phi, q: ArrayLike, depth: int, weight_var: ArrayLike, ensemble: str, points: int
) -> spectral_curve.Curve:
    phi, is_gaussian, q, weight_var = _given(phi, q, depth, weight_var, ensemble)
    check_count("points", points)
    law = slope_law.of(phi, q)
    highest, _ = spectral_curve.edge(law, depth, is_gaussian)
    spectrum = spectral_curve.product(law, depth, is_gaussian)
    log_mean = depth * jnp.log(law.mean * weight_var)
    return spectral_curve.curve(spectrum, highest, log_mean, points)


def _given(
    phi: Phi, q: ArrayLike, depth: int, weight_var: ArrayLike, ensemble: str
) -> tuple[Activation, bool, Array, Array]:
    """The checked arguments: activation, whether weights are Gaussian, and both variances."""
    phi = activations.get(phi)
    if phi.smoothness == -1:
        raise ValueError(f"{phi.name} jumps, and has no Jacobian; want a continuous activation")
    check_count("depth", depth)
    check_choice("ensemble", ensemble, ENSEMBLES)
    q, weight_var = jnp.broadcast_arrays(*checked(q=q, weight_var=weight_var))
    # Both are NaN where either is.
    return phi, ensemble == "gaussian", q + 0 * weight_var, weight_var + 0 * q


def _times(a: Array, b: Array) -> Array:
    """Product of two power series."""
    return jnp.convolve(a, b)[: a.size]


def _power(series: Array, exponent: int) -> Array:
    """A power of a power series that begins with one (Miller's recurrence)."""
    out = [jnp.ones_like(series[0])]
    for k in range(1, series.size):
        terms = [(j * (exponent + 1) - k) / k * series[j] * out[k - j] for j in range(1, k + 1)]
        out.append(sum(terms[1:], terms[0]))
    return jnp.stack(out)
