r"""Mean-field theory of wide random networks: how lengths, correlations and gradients propagate.

Weights are :math:`\mathcal{N}(0, \sigma_w^2 / n)` with :math:`\sigma_w^2` the `weight_var`, biases
:math:`\mathcal{N}(0, \sigma_b^2)` with :math:`\sigma_b^2` the `bias_var`. At infinite width the
pre-activations are Gaussian of variance `q`, those of two inputs of correlation `c`. Dropout keeps
a unit with probability `keep` and divides by `keep`, with independent masks for the two inputs.

Sources: Poole et al. (2016), Schoenholz et al. (2017), Hayou, Doucet and Rousseau (2019).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks import activations
from dltheory.numerics import gaussian
from dltheory.numerics.results import Moments
from dltheory.theory import batch_norm, dual, fixed_points
from dltheory.theory.dual import Phi
from dltheory.theory.parameters import check_count, checked


class DepthScales(NamedTuple):
    r"""How many layers a deviation from the fixed point survives, each shape `()`.

    Attributes:
        xi_q: Of the length, :math:`-1/\log|dq'/dq|`.
        xi_c: Of the correlation, :math:`-1/\log(dc'/dc)`; infinite at the edge of chaos.
    """

    xi_q: Array
    xi_c: Array


class CriticalPoint(NamedTuple):
    """A point on the edge of chaos, each shape `()`.

    Attributes:
        weight_var: Weight variance at which `chi_1` is one.
        q: The fixed length there; NaN where every length is fixed.
    """

    weight_var: Array
    q: Array


def q_map(
    phi: Phi,
    q: ArrayLike,
    *,
    weight_var: ArrayLike,
    bias_var: ArrayLike = 0.0,
    keep: ArrayLike = 1.0,
) -> Array:
    r"""Variance of the next layer's pre-activations.

    .. math:: q' = \frac{\sigma_w^2}{p}\,\mathbb{E}\,\phi(h)^2 + \sigma_b^2, \qquad
        h \sim \mathcal{N}(0, q)

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance of this layer's pre-activations, any shape.
        weight_var: Weight variance times fan-in.
        bias_var: Bias variance.
        keep: Probability p that dropout keeps a unit.

    Returns:
        The variance, of the shape of `q`.

    Raises:
        ValueError: If a variance is negative or `keep` is not in (0, 1] (under tracing the
            result is NaN instead).
    """
    weight_var, bias_var, keep = checked(weight_var=weight_var, bias_var=bias_var, keep=keep)
    return weight_var / keep * dual.moment(phi, q) + bias_var


def c_map(
    phi: Phi,
    c: ArrayLike,
    *,
    q: ArrayLike,
    weight_var: ArrayLike,
    bias_var: ArrayLike = 0.0,
    keep: ArrayLike = 1.0,
) -> Array:
    r"""Correlation of the next layer's pre-activations, for two inputs of one length.

    .. math:: c' = \frac{\sigma_w^2\,\mathbb{E}\,\phi(u)\phi(v) + \sigma_b^2}{q'}, \qquad
        \operatorname{Var} u = \operatorname{Var} v = q,\; \operatorname{Cov}(u, v) = q c

    Args:
        phi: Activation, its name, or a scalar callable.
        c: Correlation of this layer's pre-activations, any shape.
        q: Their variance.
        weight_var: Weight variance times fan-in.
        bias_var: Bias variance.
        keep: Probability that dropout keeps a unit.

    Returns:
        The correlation, of the shape of `c`; at a fixed `q` its slope at `c = 1` is `chi_1`.

    Raises:
        ValueError: If a variance is negative, `c` is beyond one in size or `keep` is not in
            (0, 1] (under tracing the result is NaN instead).
    """
    length = q_map(phi, q, weight_var=weight_var, bias_var=bias_var, keep=keep)
    given = (weight_var, bias_var, q, c)
    weight_var, bias_var, q, c = (jnp.asarray(a, length.dtype) for a in given)
    return (weight_var * dual.kernel(phi, q, q, q * c) + bias_var) / length


def chi_1(phi: Phi, q: ArrayLike, *, weight_var: ArrayLike) -> Array:
    r"""Mean squared singular value of a layer's Jacobian, the growth of squared gradients.

    .. math:: \chi_1 = \sigma_w^2\,\mathbb{E}\,\phi'(h)^2, \qquad h \sim \mathcal{N}(0, q)

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance of the pre-activations, any shape.
        weight_var: Weight variance times fan-in.

    Returns:
        The growth factor, of the shape of `q`.

    Raises:
        ValueError: If a variance is negative (under tracing the result is NaN instead).
    """
    (weight_var,) = checked(weight_var=weight_var)
    return weight_var * dual.derivative_moment(phi, q)


def fixed_point(phi: Phi, *, weight_var: ArrayLike, bias_var: ArrayLike) -> Array:
    r"""The largest stable fixed point of the length map.

    .. math:: q^* = \sigma_w^2\,\mathbb{E}\,\phi(\sqrt{q^*} z)^2 + \sigma_b^2, \qquad
        \left|\frac{dq'}{dq}\right|_{q^*} \le 1

    It is looked for at zero and between 1e-10 and 1e6. Dropout divides `weight_var` by `keep`.

    Args:
        phi: Activation, its name, or a scalar callable.
        weight_var: Weight variance times fan-in, any shape.
        bias_var: Bias variance, of the same shape or a scalar.

    Returns:
        The fixed point, of the common shape; under tracing NaN where there is none.

    Raises:
        ValueError: If there is no stable fixed point or a variance is negative (under tracing
            the result is NaN instead).

    Example:
        >>> from dltheory.theory import mean_field
        >>> print(f"{mean_field.fixed_point('relu', weight_var=1.0, bias_var=0.5):.3f}")
        1.000
    """
    phi = activations.get(phi)
    variances = checked(weight_var=weight_var, bias_var=bias_var)
    q = fixed_points.length(phi, *jnp.broadcast_arrays(*variances))
    fixed_points.refuse_unfixed(phi, q, weight_var, bias_var)
    return q


def correlation_fixed_point(
    phi: Phi, *, weight_var: ArrayLike, bias_var: ArrayLike, keep: ArrayLike = 1.0
) -> Array:
    r"""The stable fixed point of the correlation map, at the fixed point of the length.

    The map is convex. Without dropout one is fixed, and is the stable point (returned exactly) if
    and only if :math:`\chi_1 \le 1`. Else the stable one is another, in [0, 1).

    Args:
        phi: Activation, its name, or a scalar callable.
        weight_var: Weight variance times fan-in, any shape.
        bias_var: Bias variance, of the same shape or a scalar.
        keep: Probability that dropout keeps a unit, of the same shape or a scalar.

    Returns:
        The correlation, of the common shape.

    Raises:
        ValueError: If there is no stable fixed point of the length or an argument is out of
            range (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import mean_field
        >>> c = mean_field.correlation_fixed_point("tanh", weight_var=4.0, bias_var=0.05)
        >>> print(f"{c:.4f}")  # chaos
        0.1651
    """
    phi = activations.get(phi)
    (keep,) = checked(keep=keep)
    q = fixed_point(phi, weight_var=weight_var / keep, bias_var=bias_var)
    weight_var, bias_var = checked(weight_var=weight_var, bias_var=bias_var)
    return fixed_points.correlation(phi, *jnp.broadcast_arrays(q, weight_var, bias_var, keep))


def depth_scales(
    phi: Phi, *, weight_var: ArrayLike, bias_var: ArrayLike, keep: ArrayLike = 1.0
) -> DepthScales:
    r"""Depth scales of length and correlation at the stable fixed point.

    .. math::
        \xi_q^{-1} = -\log\left|\frac{\sigma_w^2}{p}\,
            \mathbb{E}\left[\phi'(h)^2 + \phi(h)\phi''(h)\right]\right|, \qquad
        \xi_c^{-1} = -\log\left(\sigma_w^2\,\mathbb{E}\,\phi'(u)\phi'(v)\right)

    Args:
        phi: Activation, its name, or a scalar callable.
        weight_var: Weight variance times fan-in, any shape.
        bias_var: Bias variance, of the same shape or a scalar.
        keep: Probability p that dropout keeps a unit, of the same shape or a scalar.

    Returns:
        Both scales; infinite where a slope is one.

    Raises:
        ValueError: If there is no stable fixed point or an argument is out of range (under
            tracing the result is NaN instead).

    Source: Schoenholz et al. (2017).
    """
    phi = activations.get(phi)
    c = correlation_fixed_point(phi, weight_var=weight_var, bias_var=bias_var, keep=keep)
    weight_var, bias_var, keep = checked(weight_var=weight_var, bias_var=bias_var, keep=keep)
    q = fixed_point(phi, weight_var=weight_var / keep, bias_var=bias_var)
    slope_q = fixed_points.length_slope(phi, *jnp.broadcast_arrays(q, weight_var / keep))
    slope_c = weight_var * dual.derivative_kernel(phi, q, q, q * c)
    return DepthScales(fixed_points.depth_scale(slope_q), fixed_points.depth_scale(slope_c))


def edge_of_chaos(phi: Phi, *, bias_var: ArrayLike) -> CriticalPoint:
    r"""The weight variance at which a network neither forgets nor is chaotic.

    .. math:: \sigma_w^2\,\mathbb{E}\,\phi'(h)^2 = 1, \qquad
        q = \sigma_w^2\,\mathbb{E}\,\phi(h)^2 + \sigma_b^2

    Of several solutions it is the one of the largest stable length up to 1e6 (1e3 in float32).
    GELU and its kin have none below a smallest `bias_var`, softplus has none at any.

    Args:
        phi: Activation, its name, or a scalar callable.
        bias_var: Bias variance, any shape.

    Returns:
        The weight variance and the length; the length is NaN where every length is fixed.

    Raises:
        ValueError: If there is no stable critical point (it says why) or `bias_var` is negative
            (under tracing both results are NaN instead).

    Example:
        >>> from dltheory.theory import mean_field
        >>> print(f"{mean_field.edge_of_chaos('tanh', bias_var=0.05).weight_var:.4f}")
        1.7610

    Source: Hayou, Doucet and Rousseau (2019).
    """
    phi = activations.get(phi)
    weight_var, q = fixed_points.critical(phi, *checked(bias_var=bias_var))
    fixed_points.refuse_uncritical(phi, weight_var, bias_var)
    return CriticalPoint(weight_var, q)


def propagate(
    phi: Phi,
    q0: ArrayLike,
    c0: ArrayLike,
    *,
    depth: int,
    weight_var: ArrayLike,
    bias_var: ArrayLike,
) -> Moments:
    """Length, correlation and gradient growth, layer by layer, for two inputs of one length.

    Args:
        phi: Activation, its name, or a scalar callable.
        q0: Variance of the first layer's pre-activations, shape `()`.
        c0: Their correlation, shape `()`.
        depth: Number of layers.
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.

    Returns:
        `q`, `c` and `chi_1`, each of shape `(depth,)`; index 0 is the first layer.

    Raises:
        TypeError: If `depth` is not an integer.
        ValueError: If an argument is out of range (under tracing the result is NaN instead).
    """
    phi = activations.get(phi)
    check_count("depth", depth)
    weight_var, bias_var = checked(weight_var=weight_var, bias_var=bias_var)

    def layer(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Moments]:
        q, c = state
        out = Moments(q, c, chi_1(phi, q, weight_var=weight_var))
        c = c_map(phi, c, q=q, weight_var=weight_var, bias_var=bias_var)
        q = q_map(phi, q, weight_var=weight_var, bias_var=bias_var)
        return (q, jnp.clip(c, -1, 1)), out

    q0, c0 = (jnp.asarray(a, weight_var.dtype) for a in (q0, c0))
    return jax.lax.scan(layer, (q0, c0), length=depth)[1]


def residual_growth(
    phi: Phi, q: ArrayLike, *, weight_var: ArrayLike, branch: ArrayLike = 1.0
) -> Array:
    r"""Growth of squared gradients over a residual block `h + branch * W phi(h)`.

    .. math:: 1 + \text{branch}^2\,\sigma_w^2\,\mathbb{E}\,\phi'(h)^2

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance of the block's input, any shape.
        weight_var: Weight variance times fan-in.
        branch: Factor before the branch, for instance `depth ** -0.5`.

    Returns:
        The growth factor, of the shape of `q`.

    Raises:
        ValueError: If a variance is negative (under tracing the result is NaN instead).

    Source: Yang and Schoenholz (2017).
    """
    return 1 + jnp.square(branch) * chi_1(phi, q, weight_var=weight_var)


def batch_norm_growth(phi: Phi, *, batch: float = jnp.inf) -> Array:
    r"""Growth of squared gradients over a layer with batch normalisation before `phi`.

    .. math:: \frac{\mathbb{E}\,\phi'(z)^2}{\operatorname{Var}\phi(z)} \ge 1
        \quad (B \to \infty), \qquad
        \frac{\text{alone} + \text{together}}{\text{variance}} \quad (B < \infty)

    with the `batch_norm.Rates` of a batch. It is the mean over networks of the squared norm of the
    gradient with respect to a layer's pre-activations, before they are normalised, over the whole
    batch, relative to the next layer's; through normalisation, activation and weights, at any
    weight variance. The mean is finite above 3 examples, its fluctuations have a variance above 5.
    Batches of GELU and its kin leave the state that treats all examples alike, slowly, if they are
    large (B = 64): they are refused, but not the limit, which holds for few layers only.

    Args:
        phi: Activation, its name, or a scalar callable.
        batch: Batch size B, above 3; infinite for the limit.

    Returns:
        The growth factor, shape `()`; infinite where `phi` jumps.

    Raises:
        ValueError: If `batch` is 3 or less or no whole number, or the state of a finite batch is
            unstable (see `batch_norm.stability`; NaN under tracing instead).

    Source: Yang et al. (2019).
    """
    rates = batch_norm.rates(phi, batch)
    return (rates.alone + rates.together) / rates.variance


def layer_norm_growth(
    phi: Phi, *, weight_var: ArrayLike = 1.0, bias_var: ArrayLike = 0.0, post: bool = False
) -> Array:
    r"""Growth of squared gradients over a layer with layer normalisation before or after `phi`.

    .. math::
        \frac{\sigma_w^2\,\mathbb{E}\,\phi'(z)^2}{\sigma_w^2\,\mathbb{E}\,\phi(z)^2 + \sigma_b^2}
        \; \text{(before)}, \quad
        \frac{\sigma_w^2\,\mathbb{E}\,\phi'(h)^2}{\operatorname{Var} \phi(h)},\;
        h \sim \mathcal{N}(0, \sigma_w^2 + \sigma_b^2) \; \text{(after)}

    Args:
        phi: Activation, its name, or a scalar callable.
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.
        post: Whether the activations are normalised, and not the pre-activations.

    Returns:
        The growth factor at infinite width, shape `()`.

    Raises:
        ValueError: If a variance is negative (under tracing the result is NaN instead).
    """
    weight_var, bias_var = checked(weight_var=weight_var, bias_var=bias_var)
    phi, q = activations.get(phi), weight_var + bias_var if post else 1.0
    square = dual.moment(phi, q)
    norm = square - gaussian.expectation(phi, q) ** 2 if post else weight_var * square + bias_var
    return weight_var * dual.derivative_moment(phi, q) / norm
