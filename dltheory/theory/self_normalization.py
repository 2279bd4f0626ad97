r"""Scales that keep a signal as it is: gains, and the fixed points of mean and variance."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks import activations
from dltheory.numerics import gaussian
from dltheory.theory import dual
from dltheory.theory.dual import Phi


class Gains(NamedTuple):
    """Factors that keep signals or gradients of one size, each of the shape of the variance.

    Attributes:
        forward: Makes the mean square of the scaled activation equal to one.
        backward: Makes the mean square of its derivative equal to one.
    """

    forward: Array
    backward: Array


class FixedPoint(NamedTuple):
    """A fixed point of mean and variance through a layer.

    Attributes:
        mean: Mean of the activations, shape `()`; NaN if none was reached.
        var: Their variance, shape `()`.
        jacobian: Derivatives of the next mean and variance by mean and variance, shape `(2, 2)`.
        stable: Whether both eigenvalues are below one in size, shape `()`.
    """

    mean: Array
    var: Array
    jacobian: Array
    stable: Array


class SelfNormalizing(NamedTuple):
    """Constants of a self-normalising activation, each of shape `()`.

    Attributes:
        alpha: Factor of the negative side.
        scale: Factor of both sides.
    """

    alpha: Array
    scale: Array


def gains(phi: Phi, q: ArrayLike = 1.0) -> Gains:
    r"""Gains by which to multiply weights of standard deviation `fan ** -0.5`.

    .. math:: \frac{1}{\sqrt{\mathbb{E}\,\phi(h)^2}}, \qquad
        \frac{1}{\sqrt{\mathbb{E}\,\phi'(h)^2}}

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance of the pre-activations, any shape.

    Returns:
        Both gains, of the shape of `q`; zero where the mean square is infinite.

    Example:
        >>> from dltheory.theory import self_normalization
        >>> print(
        ...     f"{self_normalization.gains('relu').forward:.4f}"
        ... )  # He et al. (2015): the root of two
        1.4142
    """
    return Gains(1 / jnp.sqrt(dual.moment(phi, q)), 1 / jnp.sqrt(dual.derivative_moment(phi, q)))


def gaussian_fixed_point(phi: Phi, *, weight_var: ArrayLike = 1.0) -> FixedPoint:
    r"""Mean and variance of activations that a layer with centred weights leaves as they are.

    .. math:: (\mu, \nu) \mapsto (\mathbb{E}\,\phi(h), \operatorname{Var}\phi(h)), \qquad
        h \sim \mathcal{N}(0, \sigma_w^2 \nu)

    The weights of a unit sum to zero, so that the mean before the layer does not matter.
    Newton's method starts at a variance of one.

    Args:
        phi: Activation, its name, or a scalar callable.
        weight_var: Sum of the squared weights of a unit, shape `()`.

    Returns:
        The fixed point, its Jacobian and whether it attracts.

    Example:
        >>> from dltheory.theory import self_normalization
        >>> point = self_normalization.gaussian_fixed_point("selu")
        >>> print(f"{point.var:.4f} {point.jacobian[1, 1]:.4f} {point.stable}")
        1.0000 0.7826 True

    Source: Klambauer et al. (2017).
    """
    phi = activations.get(phi)
    weight_var = gaussian.correlation(weight_var, weight_var, weight_var)[0]

    def layer(var: Array) -> tuple[Array, Array]:
        mean = gaussian.expectation(phi, weight_var * var)
        return mean, dual.moment(phi, weight_var * var) - mean**2

    linearized = lambda var: jax.jvp(layer, (var,), (jnp.ones_like(var),))
    gap = lambda var: layer(var)[1] - var
    divide = lambda linear, size: size / linear(jnp.ones_like(size))
    var = jax.lax.custom_root(gap, jnp.ones_like(weight_var), _newton, divide)
    (mean, _), slopes = linearized(var)
    jacobian = jnp.stack([jnp.zeros(2, var.dtype), jnp.stack(slopes)], axis=-1)
    return FixedPoint(mean, var, jacobian, jnp.abs(slopes[1]) < 1)


def _newton(gap: Callable[[Array], Array], start: Array) -> Array:
    """The root that Newton's method finds from `start`; NaN if it finds none above zero."""
    eps = jnp.finfo(start.dtype).eps

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count, var, _ = state
        value, slope = jax.jvp(gap, (var,), (jnp.ones_like(var),))
        change = -value / slope
        return count + 1, var + change, jnp.abs(change) > 8 * eps * var

    first = jnp.zeros((), int), start, jnp.full_like(start, True, bool)
    count, var, _ = jax.lax.while_loop(lambda s: s[2] & (s[0] < 64), step, first)
    return jnp.where((count < 64) & (var > 0), var, jnp.nan)


def self_normalizing(phi: Phi) -> SelfNormalizing:
    r"""The constants with which an activation keeps mean zero and variance one.

    .. math:: \lambda \begin{cases} \phi(h) & h > 0 \\ \alpha\,\phi(h) & h \le 0 \end{cases},
        \qquad h \sim \mathcal{N}(0, 1)

    Those of `elu` make `selu`.

    Args:
        phi: Activation, its name, or a scalar callable, of different signs on the two sides.

    Returns:
        Both constants; `alpha` is negative or not finite if the signs are the same.

    Example:
        >>> from dltheory.theory import self_normalization
        >>> print(*(f"{constant:.4f}" for constant in self_normalization.self_normalizing("elu")))
        1.6733 1.0507

    Source: Klambauer et al. (2017).
    """
    phi = activations.get(phi)
    cuts = (*phi.kinks, 0.0)

    def side(power: int, sign: int) -> Array:
        part = lambda h: jnp.where(sign * h > 0, phi(h) ** power, 0)
        return gaussian.expectation(part, kinks=cuts)

    alpha = -side(1, 1) / side(1, -1)
    return SelfNormalizing(alpha, 1 / jnp.sqrt(side(2, 1) + alpha**2 * side(2, -1)))
