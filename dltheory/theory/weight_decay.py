r"""Where weight decay leads weights whose scale does not matter, as those before a normalisation.

Their gradient is orthogonal to them and falls with their length, which it can only add to; decay
takes from it. Where the two balance the weights turn by one angle a step: decay sets a speed there
and is no penalty. All of it is in the mean over gradients that are independent of each other.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from dltheory.theory.parameters import checked


class Equilibrium(NamedTuple):
    """Where the weights of a normalised layer settle.

    Attributes:
        norm: Their Euclidean norm.
        angle: The angle that they turn by in each step, in radians.
    """

    norm: Array
    angle: Array


def equilibrium(
    learning_rate: ArrayLike, decay: ArrayLike, gradient: ArrayLike, *, momentum: ArrayLike = 0.0
) -> Equilibrium:
    r"""The equilibrium of gradient descent, where decay is the gradient of L2.

    Under :math:`v \to \alpha v + g + \lambda w` and :math:`w \to w - \eta v` with :math:`g \perp w`
    of norm :math:`G / \|w\|`,

    .. math:: \|w\|^4 = \frac{\eta\, G^2}{\lambda\, (1 - \alpha) (2 - \eta\lambda / (1 + \alpha))},
              \qquad \angle(w_t, w_{t+1}) = \arccos\left(1 - \frac{\eta\lambda}{1 + \alpha}\right)

    Args:
        learning_rate: The step :math:`\eta`.
        decay: The rate :math:`\lambda` of decay, with :math:`\eta\lambda \le 1`.
        gradient: Norm :math:`G` of the gradient at weights of norm one, as a root mean square.
        momentum: The share :math:`\alpha` of the last step's that is kept, in [0, 1).

    Returns:
        `Equilibrium`; infinite and at rest without decay.

    Raises:
        ValueError: If an argument is negative, the product of the first two exceeds one, or
            `momentum` is not below one (under tracing the result is NaN instead).

    Example:
        >>> from dltheory.theory import weight_decay
        >>> found = weight_decay.equilibrium(0.1, 0.01, 1.0)
        >>> print(f"{found.norm:.4f} {found.angle:.4f}")
        1.4955 0.0447

    Sources: van Laarhoven (2017), L2 regularization versus batch and weight normalization; Wan,
        Zhu, Zhang and Sun (2021), Spherical motion dynamics.
    """
    eta, decay, gradient = checked(learning_rate=learning_rate, decay=decay, gradient=gradient)
    alpha = _below_one("momentum", momentum, eta.dtype)
    product = _turning(eta * decay)
    still = decay == 0
    slowed = product / (1 + alpha)
    fourth = eta * gradient**2 / (jnp.where(still, 1, decay) * (1 - alpha) * (2 - slowed))
    # The arc cosine loses half of the digits of small angles.
    angle = 2 * jnp.arcsin(jnp.sqrt(slowed / 2))
    return Equilibrium(jnp.where(still, jnp.inf + product, fourth**0.25), angle)


def approach(start: ArrayLike, end: ArrayLike, turning: ArrayLike, step: ArrayLike) -> Array:
    r"""The norm on its way to the equilibrium of gradient descent.

    .. math:: \|w_t\|^4 = \|w_*\|^4 + (\|w_0\|^4 - \|w_*\|^4)\, e^{-4 \eta\lambda t}

    for small :math:`\eta\lambda`, and longer than momentum remembers.

    Args:
        start: The norm before the first step.
        end: That of the equilibrium.
        turning: The product :math:`\eta\lambda`; over :math:`1 - \alpha` under momentum.
        step: Steps done.

    Returns:
        The norm.

    Raises:
        ValueError: If an argument is negative (under tracing the result is NaN instead).

    Source: Wan, Zhu, Zhang and Sun (2021).
    """
    start, end, turning, step = checked(start=start, end=end, turning=turning, step=step)
    left = jnp.exp(-4 * turning * step)
    return (left * start**4 + (1 - left) * end**4) ** 0.25


def adam_equilibrium(
    learning_rate: ArrayLike, decay: ArrayLike, size: ArrayLike, *, momentum: ArrayLike = 0.9
) -> Equilibrium:
    r"""The equilibrium of Adam with decoupled decay: it knows nothing of the gradient.

    Each entry of the gradient over the root of its mean square is taken for independent noise of
    variance one, so that with :math:`\kappa = \eta\lambda` and `d` weights

    .. math:: \|w\|^2 = \eta^2 d\, \frac{1 - \beta}{1 + \beta}\,
              \frac{1 + \beta (1 - \kappa)}{(1 - \beta (1 - \kappa))\, \kappa (2 - \kappa)}
              \approx \frac{\eta\, d}{2 \lambda}, \qquad
              \cos \angle = 1 - \kappa\, \frac{1 - \beta}{1 + \beta (1 - \kappa)}

    Args:
        learning_rate: The step :math:`\eta`.
        decay: The rate :math:`\lambda`, each step being :math:`w \to (1 - \eta\lambda) w - \eta u`.
        size: The number `d` of weights.
        momentum: The share :math:`\beta` of the mean gradient that is kept, in [0, 1).

    Returns:
        `Equilibrium`; infinite and at rest without decay.

    Raises:
        ValueError: As `equilibrium`.

    Sources: Loshchilov and Hutter (2019), Decoupled weight decay regularization; Kosson, Messmer
        and Jaggi (2024), Rotational equilibrium, to leading order.
    """
    eta, decay, size = checked(learning_rate=learning_rate, decay=decay, size=size)
    beta = _below_one("momentum", momentum, eta.dtype)
    kappa = _turning(eta * decay)
    still = decay == 0
    rate, kept = jnp.where(still, 1, kappa), beta * (1 - kappa)
    square = eta**2 * size * (1 - beta) / (1 + beta)
    square = square * (1 + kept) / ((1 - kept) * rate * (2 - rate))
    angle = 2 * jnp.arcsin(jnp.sqrt(kappa * (1 - beta) / (1 + kept) / 2))
    return Equilibrium(jnp.where(still, jnp.inf + kappa, jnp.sqrt(square)), angle)


def adam_l2_equilibrium(
    learning_rate: ArrayLike,
    strength: ArrayLike,
    gradient: ArrayLike,
    size: ArrayLike,
    *,
    momentum: ArrayLike = 0.9,
) -> Equilibrium:
    r"""The equilibrium of Adam on a loss with L2 in it: small gradients turn weights faster.

    Adam divides the penalty's gradient by the root mean square of all of it, that of one entry
    being :math:`G / (\|w\| \sqrt{d})`, so that weights decay at the rate
    :math:`\mu = \lambda \|w\| \sqrt{d} / G` in place of :math:`\lambda`:

    .. math:: \|w\|^3 = \frac{\eta\, G \sqrt{d}}{2 \lambda}, \qquad
              \cos \angle = 1 - \eta\mu\, \frac{1 - \beta}{1 + \beta}

    to leading order in :math:`\eta\mu`.

    Args:
        learning_rate: The step :math:`\eta`.
        strength: The weight :math:`\lambda` of :math:`\tfrac12 \|w\|^2` in the loss.
        gradient: Norm :math:`G` of the gradient at weights of norm one, as a root mean square.
        size: The number `d` of weights.
        momentum: The share :math:`\beta` of the mean gradient that is kept, in [0, 1).

    Returns:
        `Equilibrium`; infinite and at rest without a penalty.

    Raises:
        ValueError: If an argument is negative, or `momentum` is not below one (under tracing the
            result is NaN instead).

    Sources: Loshchilov and Hutter (2019); Kosson, Messmer and Jaggi (2024).
    """
    eta, strength, gradient, size = checked(
        learning_rate=learning_rate, strength=strength, gradient=gradient, size=size
    )
    beta = _below_one("momentum", momentum, eta.dtype)
    still = (strength == 0) | (gradient == 0)
    positive, length = jnp.where(still, 1, strength), jnp.where(still, 1, gradient)
    norm = (eta * length * jnp.sqrt(size) / (2 * positive)) ** (1 / 3)
    kappa = eta * positive * norm * jnp.sqrt(size) / length
    angle = 2 * jnp.arcsin(jnp.sqrt(kappa * (1 - beta) / (1 + beta) / 2))
    known = 0 * (eta + strength + gradient + size)
    return Equilibrium(
        jnp.where(strength == 0, jnp.inf, jnp.where(still, 0, norm)) + known,
        jnp.where(still, 0, angle) + known,
    )


def _below_one(name: str, value: ArrayLike, dtype) -> Array:
    if not isinstance(value, Tracer):
        known = np.asarray(value)
        if np.any((known < 0) | (known >= 1)):
            raise ValueError(f"{name} must be in [0, 1); got {value}")
    value = jnp.asarray(value).astype(dtype)
    return jnp.where((value >= 0) & (value < 1), value, jnp.nan)


def _turning(product: Array) -> Array:
    """The rate times the decay: refused where weights would change sign."""
    if not isinstance(product, Tracer) and np.any(np.asarray(product) > 1):
        raise ValueError(
            f"learning_rate * decay must be at most one, or weights change sign; got {product}"
        )
    return jnp.where(product > 1, jnp.nan, product)
