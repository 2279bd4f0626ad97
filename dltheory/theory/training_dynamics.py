r"""Training with a known answer: deep linear networks, quadratic losses, feedback alignment."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import gammaln
from jax.typing import ArrayLike

from dltheory.theory.parameters import check_count, checked


class Descent(NamedTuple):
    """The best step and momentum on a quadratic loss, and what they reach.

    Attributes:
        step: Learning rate.
        momentum: Momentum.
        rate: Factor by which the error shrinks in a step, in the long run.
    """

    step: Array
    momentum: Array
    rate: Array


class Alignment(NamedTuple):
    """Where feedback alignment comes to rest.

    Attributes:
        w1: The first layer's weight for each hidden unit, shape `(n,)`.
        w2: The second layer's weights, shape `(n,)`.
        before: Cosine of the angle between forward and feedback weights at the start, shape `()`;
            NaN where the forward weights are zero.
        after: The same at the end.
    """

    w1: Array
    w2: Array
    before: Array
    after: Array


class RandomAngle(NamedTuple):
    """The angle between two independent random directions.

    Attributes:
        mean_abs: Mean absolute cosine.
        std: Standard deviation of the cosine.
        degrees: That of the angle in degrees, for many dimensions.
    """

    mean_abs: Array
    std: Array
    degrees: Array


def linear_time(s: ArrayLike, u0: ArrayLike, u: ArrayLike, *, matrices: int = 2) -> Array:
    r"""How long a linear network of any depth takes to learn a mode up to a strength.

    .. math:: t = \int_{u_0}^{u} \frac{dv}{D\, v^{2 - 2/D} (s - v)}

    with :math:`D` weight matrices, balanced, and whitened inputs; in units of the time constant.

    Args:
        s: Strength of the mode in the data.
        u0: Strength at the start, above zero and below `s`.
        u: Strength at the end, likewise; arrays of one shape, or scalars.
        matrices: Number :math:`D` of weight matrices; Saxe et al. count the layers of neurons,
            which are one more.

    Returns:
        The time; NaN where a strength is out of range.

    Raises:
        TypeError: If `matrices` is not an integer.
        ValueError: If it is below 1, or a strength is negative.

    Source: Saxe, McClelland and Ganguli (2014).
    """
    check_count("matrices", matrices)
    s, u0, u = checked(s=s, u0=u0, u=u)
    power = (2 - matrices) / matrices
    low, high = jnp.log(u0 / s), jnp.log(u / s)
    # In logarithms, less the pole at s, which integrates to logarithms itself.
    nodes, weights = np.polynomial.legendre.leggauss(64)
    column = lambda values: jnp.asarray(values, low.dtype).reshape(-1, *[1] * (low + high).ndim)
    z = low[None] + (high - low)[None] * (1 + column(nodes)) / 2
    rest = (column(weights) / 2 * jnp.expm1(power * z) / -jnp.expm1(z)).sum(axis=0)
    pole = (high - jnp.log(-jnp.expm1(high))) - (low - jnp.log(-jnp.expm1(low)))
    scale = jnp.exp((power - 1) * jnp.log(s)) / matrices
    inside = (u0 > 0) & (u0 < s) & (u > 0) & (u < s)
    return jnp.where(inside, scale * (pole + rest * (high - low)), jnp.nan)


def largest_step(sharpness: ArrayLike, momentum: ArrayLike = 0.0) -> Array:
    r"""The learning rate beyond which gradient descent diverges on a quadratic loss.

    .. math:: \eta_\max = \frac{2\,(1 + \beta)}{\lambda_\max}

    Args:
        sharpness: Largest eigenvalue of the Hessian, any shape.
        momentum: Heavy-ball momentum in [0, 1).

    Returns:
        The learning rate, of their shape.

    Raises:
        ValueError: If the sharpness or the momentum is negative.

    Source: Polyak (1964); Cohen et al. (2021) for what training makes of it.
    """
    sharpness, momentum = checked(sharpness=sharpness, momentum=momentum)
    return 2 * (1 + momentum) / sharpness


def convergence_rate(curvature: ArrayLike, step: ArrayLike, momentum: ArrayLike = 0.0) -> Array:
    r"""The factor by which heavy-ball descent shrinks the error in a direction, in the long run.

    .. math::
        \rho \begin{pmatrix} 1 + \beta - \eta\lambda & -\beta \\ 1 & 0 \end{pmatrix}
        = \begin{cases} \sqrt\beta & (1 + \beta - \eta\lambda)^2 \le 4 \beta \\
        \tfrac12 \big(|1 + \beta - \eta\lambda| + \sqrt{(1 + \beta - \eta\lambda)^2 - 4\beta}\big)
        \end{cases}

    Args:
        curvature: Eigenvalue :math:`\lambda` of the Hessian, of any sign.
        step: Learning rate :math:`\eta`.
        momentum: Momentum :math:`\beta`; 0 is gradient descent, whose rate is
            :math:`|1 - \eta\lambda|`.

    Returns:
        The spectral radius: below one where the direction converges.

    Raises:
        ValueError: If `step` or `momentum` is negative.

    Source: Polyak (1964), Some methods of speeding up the convergence of iteration methods.
    """
    step, momentum = checked(step=step, momentum=momentum)
    half = (1 + momentum - step * curvature) / 2
    square = half * half - momentum
    real = square > 0
    root = jnp.sqrt(jnp.where(real, square, 1))
    spins = momentum > 0
    turning = jnp.where(spins, jnp.sqrt(jnp.where(spins, momentum, 1)), 0)
    return jnp.where(real, jnp.abs(half) + root, turning) + 0 * square


def best_descent(sharpness: ArrayLike, flatness: ArrayLike, *, heavy_ball: bool = True) -> Descent:
    r"""The best constant learning rate and momentum for a quadratic loss.

    .. math::
        \eta = \Big(\frac{2}{\sqrt L + \sqrt\mu}\Big)^2, \quad
        \sqrt\beta = \rho = \frac{\sqrt L - \sqrt\mu}{\sqrt L + \sqrt\mu}
        \qquad\text{or, for } \beta = 0, \qquad
        \eta = \frac{2}{L + \mu}, \quad \rho = \frac{L - \mu}{L + \mu}

    Args:
        sharpness: Largest eigenvalue :math:`L` of the Hessian.
        flatness: Smallest eigenvalue :math:`\mu > 0`.
        heavy_ball: Whether momentum is allowed.

    Returns:
        The choice and its rate.

    Raises:
        ValueError: If an eigenvalue is negative.

    Example:
        >>> from dltheory.theory import training_dynamics
        >>> print(f"{training_dynamics.best_descent(100.0, 1.0).rate:.4f}")
        0.8182

    Source: Polyak (1964).
    """
    high, low = checked(sharpness=sharpness, flatness=flatness)
    if not heavy_ball:
        return Descent(2 / (high + low), jnp.zeros_like(high + low), (high - low) / (high + low))
    total = jnp.sqrt(high) + jnp.sqrt(low)
    rate = (jnp.sqrt(high) - jnp.sqrt(low)) / total
    return Descent((2 / total) ** 2, rate**2, rate)


def random_angle(dimension: int) -> RandomAngle:
    r"""The angle between two random directions, which a learned angle has to be compared with.

    .. math:: \mathbb{E}\,|\cos| = \frac{\Gamma(d/2)}{\sqrt\pi\, \Gamma((d+1)/2)}, \qquad
        \mathbb{E} \cos^2 = \frac1d

    Args:
        dimension: Number :math:`d` of coordinates.

    Returns:
        Mean and spread; the spread in degrees is :math:`180 / (\pi \sqrt d)`.

    Raises:
        TypeError, ValueError: If `dimension` is no integer of 1 or more.
    """
    check_count("dimension", dimension)
    d = jnp.asarray(dimension, jnp.result_type(float))
    mean = jnp.exp(gammaln(d / 2) - gammaln((d + 1) / 2)) / jnp.sqrt(jnp.pi)
    return RandomAngle(mean, 1 / jnp.sqrt(d), 180 / (jnp.pi * jnp.sqrt(d)))


def feedback_alignment(feedback: Array, w2: Array, target: ArrayLike) -> Alignment:
    r"""Where a linear network with fixed random feedback comes to rest, in closed form.

    .. math::
        y = w_2 \cdot w_1 x, \quad \dot w_1 = b\, e, \quad \dot w_2 = w_1 e, \quad e = T - y:
        \qquad w_1 = b s, \quad w_2 = w_2(0) + \tfrac12 b s^2, \quad
        (b \cdot w_2(0))\, s + \tfrac12 \|b\|^2 s^3 = T

    for one input :math:`x = 1` and :math:`w_1(0) = 0`. The forward weights turn towards the
    feedback, which is why its signals become useful.

    Args:
        feedback: The feedback weights :math:`b`, shape `(n,)`.
        w2: The forward weights at the start, shape `(n,)`.
        target: The target :math:`T`, shape `()`.

    Returns:
        The weights at rest and the cosines between forward and feedback weights.

    Raises:
        ValueError: If `feedback` and `w2` are not two vectors of one length.

    Source: after Lillicrap et al. (2016), Random synaptic feedback weights support error
    backpropagation.
    """
    if jnp.ndim(feedback) != 1 or jnp.shape(feedback) != jnp.shape(w2):
        raise ValueError(
            f"feedback has shape {jnp.shape(feedback)} and w2 {jnp.shape(w2)}; want two vectors of "
            "one length"
        )
    square, along = jnp.sum(feedback * feedback), jnp.sum(feedback * w2)
    size = jnp.abs(target)
    # Newton's method from above, where the cubic is convex; it has one root of the target's sign.
    s = jnp.cbrt(2 * size / square) + jnp.sqrt(2 * jnp.abs(along) / square)
    newton = lambda _, s: s - (along * s + square * s**3 / 2 - size) / (along + 1.5 * square * s**2)
    s = jnp.sign(target) * lax.fori_loop(0, 40, newton, s)
    after = w2 + feedback * s**2 / 2

    def cosine(weights):
        norms = jnp.sqrt(square * jnp.sum(weights * weights))
        return jnp.sum(feedback * weights) / norms

    return Alignment(feedback * s, after, cosine(w2), cosine(after))
