r"""Mean-field theory of wide random networks: how lengths, correlations and gradients propagate.

Weights are :math:`\mathcal{N}(0, \sigma_w^2 / n)` with :math:`\sigma_w^2` the `weight_var`, and
biases :math:`\mathcal{N}(0, \sigma_b^2)` with :math:`\sigma_b^2` the `bias_var`. At infinite width
the pre-activations of a layer are Gaussian with variance `q`, and those of two inputs have
correlation `c`. Dropout keeps each unit with probability `keep` and divides by `keep`, with
independent masks for the two inputs.

Sources: Poole et al. (2016), Schoenholz et al. (2017), Hayou, Doucet and Rousseau (2019).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from dltheory.networks import activations
from dltheory.numerics import gaussian
from dltheory.numerics.results import Moments
from dltheory.theory import dual, fixed_points
from dltheory.theory.dual import Phi


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
        q: The length's fixed point there; NaN where every length is fixed.
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
    legal = _legal(weight_var=weight_var, bias_var=bias_var, keep=keep)
    return jnp.where(legal, weight_var / keep * dual.moment(phi, q) + bias_var, jnp.nan)


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
        The correlation, of the shape of `c`. Its derivative at `c = 1` is `chi_1` where `q` is
        a fixed point.

    Raises:
        ValueError: If a variance is negative, `c` is beyond one in size or `keep` is not in
            (0, 1] (under tracing the result is NaN instead).
    """
    cov = weight_var * dual.kernel(phi, q, q, q * c) + bias_var
    return cov / q_map(phi, q, weight_var=weight_var, bias_var=bias_var, keep=keep)


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
    legal = _legal(weight_var=weight_var)
    return jnp.where(legal, weight_var * dual.derivative_moment(phi, q), jnp.nan)


def fixed_point(phi: Phi, *, weight_var: ArrayLike, bias_var: ArrayLike) -> Array:
    r"""The largest stable fixed point of the length map.

    .. math:: q^* = \sigma_w^2\,\mathbb{E}\,\phi(\sqrt{q^*} z)^2 + \sigma_b^2, \qquad
        \left|\frac{dq'}{dq}\right|_{q^*} \le 1

    Fixed points are looked for at zero and between 1e-10 and 1e6. Dropout needs no argument of
    its own here: it divides `weight_var` by the probability of keeping a unit.

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
    legal = _legal(weight_var=weight_var, bias_var=bias_var)
    q = jnp.vectorize(lambda w, b: fixed_points.length(phi, w, b))(*_arrays(weight_var, bias_var))
    q = jnp.where(legal, q, jnp.nan)
    _refuse_missing(
        q,
        (weight_var, bias_var),
        f"{phi.name} has no stable fixed point of the length at weight_var = {weight_var} and "
        f"bias_var = {bias_var}: q grows without bound or every q is fixed; lower weight_var",
    )
    return q


def correlation_fixed_point(
    phi: Phi, *, weight_var: ArrayLike, bias_var: ArrayLike, keep: ArrayLike = 1.0
) -> Array:
    r"""The stable fixed point of the correlation map, at the fixed point of the length.

    The map is a power series with non-negative coefficients, hence convex. Without dropout one is
    a fixed point; it is the stable one, and exactly one is returned, if and only if
    :math:`\chi_1 \le 1`. Else there is one other in [0, 1).

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
    legal = _legal(keep=keep)
    weight_var, bias_var, keep = _arrays(weight_var, bias_var, keep)
    q = fixed_point(phi, weight_var=weight_var / keep, bias_var=bias_var)
    solve = lambda q, w, b, p: fixed_points.correlation(phi, q, w, b, p)
    return jnp.where(legal, jnp.vectorize(solve)(q, weight_var, bias_var, keep), jnp.nan)


def depth_scales(phi: Phi, *, weight_var: ArrayLike, bias_var: ArrayLike) -> DepthScales:
    r"""Depth scales of length and correlation at the stable fixed point.

    .. math::
        \xi_q^{-1} = -\log\left|\sigma_w^2\,
            \mathbb{E}\left[\phi'(h)^2 + \phi(h)\phi''(h)\right]\right|, \qquad
        \xi_c^{-1} = -\log\left(\sigma_w^2\,\mathbb{E}\,\phi'(u)\phi'(v)\right)

    Args:
        phi: Activation, its name, or a scalar callable.
        weight_var: Weight variance times fan-in, any shape.
        bias_var: Bias variance, of the same shape or a scalar.

    Returns:
        Both scales; `xi_c` is infinite where `chi_1` is one.

    Raises:
        ValueError: If there is no stable fixed point or a variance is negative (under tracing
            the result is NaN instead).

    Source: Schoenholz et al. (2017).
    """
    phi = activations.get(phi)
    weight_var, bias_var = _arrays(weight_var, bias_var)
    q = fixed_point(phi, weight_var=weight_var, bias_var=bias_var)
    c = correlation_fixed_point(phi, weight_var=weight_var, bias_var=bias_var)
    slope_q = jnp.vectorize(lambda q, w: fixed_points.length_slope(phi, q, w))(q, weight_var)
    slope_c = weight_var * dual.derivative_kernel(phi, q, q, q * c)
    return DepthScales(_depth_scale(slope_q), _depth_scale(slope_c))


def edge_of_chaos(phi: Phi, *, bias_var: ArrayLike) -> CriticalPoint:
    r"""The weight variance at which a network neither forgets nor is chaotic.

    .. math:: \sigma_w^2\,\mathbb{E}\,\phi'(h)^2 = 1, \qquad
        q = \sigma_w^2\,\mathbb{E}\,\phi(h)^2 + \sigma_b^2

    Of several solutions it is the largest whose length is a stable fixed point. Smooth functions
    that are not odd, such as GELU, have none below a smallest `bias_var`.

    Args:
        phi: Activation, its name, or a scalar callable.
        bias_var: Bias variance, any shape.

    Returns:
        The weight variance and the length; the length is NaN where every length is fixed.

    Raises:
        ValueError: If there is no stable critical point or `bias_var` is negative (under
            tracing both results are NaN instead).

    Example:
        >>> from dltheory.theory import mean_field
        >>> print(f"{mean_field.edge_of_chaos('tanh', bias_var=0.05).weight_var:.4f}")
        1.7610

    Source: Hayou, Doucet and Rousseau (2019).
    """
    phi = activations.get(phi)
    legal = _legal(bias_var=bias_var)
    (bias_var,) = _arrays(bias_var)
    weight_var, q = jnp.vectorize(lambda b: fixed_points.critical(phi, b), signature="()->(),()")(
        bias_var
    )
    weight_var, q = jnp.where(legal, weight_var, jnp.nan), jnp.where(legal, q, jnp.nan)
    _refuse_missing(
        weight_var,
        (bias_var,),
        f"{phi.name} has no stable edge of chaos at bias_var = {bias_var}",
    )
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
        ValueError: If an argument is out of range (under tracing the result is NaN instead).
    """
    phi = activations.get(phi)
    if depth < 1:
        raise ValueError(f"depth must be one or more; got {depth}")
    _legal(weight_var=weight_var, bias_var=bias_var)
    variances = {"weight_var": weight_var, "bias_var": bias_var}

    def layer(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Moments]:
        q, c = state
        out = Moments(q, c, chi_1(phi, q, weight_var=weight_var))
        c = jnp.clip(c_map(phi, c, q=q, **variances), -1, 1)
        return (q_map(phi, q, **variances), c), out

    return jax.lax.scan(layer, tuple(_arrays(q0, c0)), length=depth)[1]


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
    return 1 + branch**2 * chi_1(phi, q, weight_var=weight_var)


def batch_norm_growth(phi: Phi, *, batch: float = jnp.inf) -> Array:
    r"""Growth of squared gradients over a layer with batch normalisation before `phi`.

    .. math:: \frac{\mathbb{E}\,\phi'(z)^2}{\operatorname{Var}\phi(z)} \ge 1
        \quad (B \to \infty), \qquad
        \frac{1}{B - 3}\left[\frac{B - 1 + J'(c)}{1 - J(c)} - 1\right],\;
        c = \frac{-1}{B - 1}

    with J the dual kernel relative to its value at one, for `phi` homogeneous of degree one.

    Args:
        phi: Activation, its name, or a scalar callable.
        batch: Batch size B, above 3; infinite for the limit.

    Returns:
        The growth factor, shape `()`.

    Raises:
        ValueError: If `batch` is 3 or less, or finite for a `phi` that is not homogeneous of
            degree one.

    Source: Yang et al. (2019).
    """
    phi = activations.get(phi)
    if batch == jnp.inf:
        variance = dual.moment(phi) - gaussian.expectation(phi) ** 2
        return dual.derivative_moment(phi) / variance
    if batch <= 3:
        raise ValueError(f"batch must be above 3, where the mean gradient is finite; got {batch}")
    if phi.homogeneous != 1:
        raise ValueError(
            f"a finite batch needs an activation that is homogeneous of degree one, such as relu; "
            f"got {phi.name}. Want batch = inf"
        )
    c = -1 / (batch - 1)
    scale = dual.moment(phi)
    value, slope = (k(phi, 1.0, 1.0, c) / scale for k in (dual.kernel, dual.derivative_kernel))
    return ((batch - 1 + slope) / (1 - value) - 1) / (batch - 3)


def layer_norm_growth(phi: Phi) -> Array:
    r"""Growth of squared gradients over a layer with layer normalisation before `phi`.

    .. math:: \frac{\mathbb{E}\,\phi'(z)^2}{\mathbb{E}\,\phi(z)^2}

    Args:
        phi: Activation, its name, or a scalar callable.

    Returns:
        The growth factor at infinite width, shape `()`.
    """
    return dual.derivative_moment(phi) / dual.moment(phi)


def _arrays(*args: ArrayLike) -> list[Array]:
    """The arguments as arrays of one floating dtype and one shape."""
    dtype = jnp.result_type(float, *args)
    return list(jnp.broadcast_arrays(*(jnp.asarray(a, dtype) for a in args)))


def _legal(**values: ArrayLike) -> Array:
    """Whether variances are not negative and `keep` is a probability; raise if known not to be."""
    legal = jnp.asarray(True)
    for name, value in values.items():
        probability = name == "keep"
        if not isinstance(value, Tracer):
            known = np.asarray(value)
            if np.any((known < 0) | (probability & ((known == 0) | (known > 1)))):
                wanted = "in (0, 1]" if probability else "zero or more"
                raise ValueError(f"{name} must be {wanted}; got {value}")
        legal = legal & (value >= 0)
        if probability:
            legal = legal & (value > 0) & (value <= 1)
    return legal


def _refuse_missing(result: Array, given: tuple, text: str) -> None:
    """Raise ValueError where a result is NaN though what was given is not, unless traced."""
    if not isinstance(result, Tracer) and not any(isinstance(x, Tracer) for x in given):
        if np.any(np.isnan(result)) and not any(np.any(np.isnan(x)) for x in given):
            raise ValueError(text)


def _depth_scale(slope: Array) -> Array:
    """-1 / log of a slope's size, infinite where it is one but for rounding."""
    size = jnp.abs(slope)
    one = jnp.abs(size - 1) <= 32 * jnp.finfo(size.dtype).eps
    return 1 / jnp.log(1 / jnp.where(one, 1, size))
