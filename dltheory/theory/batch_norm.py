r"""Batches of finite size behind batch normalisation, for any activation.

A channel's pre-activations over a batch of `B` examples, less their mean and divided by their
standard deviation, are a point `z` of the sphere of radius :math:`\sqrt B` in the `B - 1`
dimensions orthogonal to :math:`(1, \ldots, 1)`. Where the covariance of the batch treats all
examples alike, `z` is uniform on that sphere, and so the next layer's covariance treats them alike
again: of the averages here, over `z_1` and over `(z_1, z_2)`, everything else is made.

With :math:`\theta, \psi` for angles,

.. math:: z_1 = \sqrt{B - 1}\,\sin\theta, \qquad
    z_2 = \sqrt{B - 1}\,(c \sin\theta + \sqrt{1 - c^2}\,\cos\theta \sin\psi), \qquad
    c = \frac{-1}{B - 1}

have the densities :math:`\cos^{B-3}\theta` and :math:`\cos^{B-4}\psi`. Both lines are cut at the
kinks of the activation, and the first also where a kink of `z_2` leaves the sphere.

Source: Yang, Pennington, Rao, Sohl-Dickstein and Schoenholz (2019), whose cross-batch fixed point
BSB1 this is.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks import activations
from dltheory.networks.activations import Activation
from dltheory.numerics import gaussian
from dltheory.theory import dual
from dltheory.theory.dual import Phi
from dltheory.theory.parameters import check_count, checked, refuse_missing

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(40)
# Roots at the ends of a panel are none after this change of variable.
_WEIGHTS = _WEIGHTS * np.cos(np.pi / 2 * _NODES) * np.pi / 4
_NODES = (1 + np.sin(np.pi / 2 * _NODES)) / 2


class Rates(NamedTuple):
    r"""What a layer does to signals and gradients of a batch, at weight variance one.

    Attributes:
        variance: Of the activations about the mean of the batch,
            :math:`\mathbb{E}\,\phi(z_1)^2 - \mathbb{E}\,\phi(z_1)\phi(z_2)`.
        alone: By how much squared gradients grow, times the variance of the pre-activations that
            are normalised, where those of two examples are uncorrelated.
        together: What is added where they sum to zero over the batch.
    """

    variance: Array
    alone: Array
    together: Array


def rates(phi: Phi, batch: float) -> Rates:
    r"""Averages of a batch-normalised layer in its symmetric state.

    .. math:: \text{alone} = \frac{(B - 1)\,\mathbb{E}\,\phi_1'^2 - \mathbb{E}\,z_1^2\phi_1'^2}
        {B - 3}, \qquad \text{together} =
        \frac{\mathbb{E}\,\phi_1'\phi_2' + \mathbb{E}\,z_1\phi_1'\,z_2\phi_2'}{B - 3}

    for the Jacobian of the normalisation, :math:`(I - 11^\top/B - zz^\top/B) / s`, with the mean
    of :math:`s^{-2}` over Gaussian channels, which is finite above three examples.

    Args:
        phi: Activation, its name, or a scalar callable.
        batch: Batch size B, above 3; infinite for the limit.

    Returns:
        The `Rates`, each of shape `()`; the last two infinite where `phi` jumps.

    Raises:
        ValueError: If `batch` is 3 or less or no whole number, or if the symmetric state of a
            finite batch is unstable (see `stability`; NaN under tracing instead).
    """
    phi = activations.get(phi)
    if batch == jnp.inf:
        slope = dual.derivative_moment(phi)
        variance = dual.moment(phi) - gaussian.expectation(phi) ** 2
        return Rates(variance, slope, jnp.zeros_like(slope))
    refused = jnp.max(jnp.abs(jnp.stack(stability(phi, batch)))) > 1
    refused = jnp.where(refused, jnp.nan, 0.0)
    text = (
        f"batches of {batch} behind {phi.name} leave the state that treats all examples alike, of "
        "which the theory is. Want a smaller batch, or another activation"
    )
    refuse_missing(refused, (), text)
    z1, z2, mean = _pairs(phi, batch)
    f1, f2 = jnp.vectorize(phi)(z1), jnp.vectorize(phi)(z2)
    variance = mean(f1 * (f1 - f2))
    slope = jnp.vectorize(jax.grad(phi))
    alone = mean((batch - 1 - z1**2) * slope(z1) ** 2) / (batch - 3)
    together = mean((1 + z1 * z2) * slope(z1) * slope(z2)) / (batch - 3)
    if phi.smoothness == -1:
        alone, together = jnp.full_like(alone, jnp.inf), jnp.zeros_like(together)
    return Rates(*(a + refused.astype(a.dtype) for a in (variance, alone, together)))


def stability(phi: Phi, batch: float) -> tuple[Array, Array]:
    r"""By what a layer multiplies small differences between the examples of a batch.

    A covariance :math:`v (I + S)` on the sphere's space gives directions the density
    :math:`1 + \tfrac{B - 1}{2 B} z^\top S z`, so that S becomes

    .. math:: S \mapsto \frac{B - 1}{2 B v}\,\mathbb{E}\left[z^\top S z\;
        \phi(z) \phi(z)^\top\right]

    with v the `Rates.variance`. Permutations of the examples leave two kinds of S: differences of
    lengths, :math:`z_1^2 - z_2^2`, and of correlations, :math:`(z_1 - z_2)(z_3 - z_4)`. Where
    either factor is beyond one in size, small differences grow. So do lengths in large batches of
    GELU (B = 64) and SiLU (B = 32), by a few per cent a layer, and those of ReLU just do not.

    Args:
        phi: Activation, its name, or a scalar callable.
        batch: Batch size, above 3.

    Returns:
        The factors of differences in length and in correlation, each of shape `()`.

    Raises:
        ValueError: If `batch` is 3 or less or no whole number.
    """
    phi, b = activations.get(phi), batch
    if b <= 3 or b != int(b):
        raise ValueError(
            f"batch must be above 3, where the mean gradient is finite, and a whole number; got {b}"
        )
    z1, z2, mean = _pairs(phi, b)
    f1, f2 = jnp.vectorize(phi)(z1), jnp.vectorize(phi)(z2)
    # Means over other examples given these two: all sum to zero, and their squares to b.
    third = -(z1 + z2) / (b - 2)
    square = (b - z1**2 - z2**2) / (b - 2)
    product = ((b - 2) * third**2 - square) / (b - 3)
    lengths = mean((z1**2 - square) * f1**2) - 2 * mean((z1**2 - square) * f1 * f2)
    correlations = 2 * mean((z1 * z2 - (z1 + z2) * third + product) * f1 * f2)
    scale = (b - 1) / (2 * b * mean(f1 * (f1 - f2)))
    return scale * lengths, scale * correlations


def residual_batch_norm_growth(
    phi: Phi, *, blocks: int, weight_var: ArrayLike, batch: float = jnp.inf
) -> Array:
    r"""Growth of squared gradients over each block `h + W phi(batch_norm(h))`.

    .. math:: \frac{a_{l}}{a_{l+1}} = 1 + \frac{\sigma_w^2}{v_l}\,
        \left(\text{alone} + \text{together}\,\frac{a_{l+1} - a_L}{a_{l+1}}\right), \qquad
        v_l = 1 + l\,\sigma_w^2\,\text{variance}

    with the `Rates`. Every branch adds the same to the stream, of which branch `l` is the share
    :math:`1 / l` later on: gradients grow as a power of depth. The gradient is that of the squared
    norm with respect to the stream, over the whole batch; at the output, where it begins, those of
    two examples are uncorrelated.

    Args:
        phi: Activation, its name, or a scalar callable.
        blocks: Number of blocks.
        weight_var: Weight variance times fan-in, relative to the variance of the first stream
            about the mean of the batch, shape `()`.
        batch: Batch size B, above 3; infinite for the limit.

    Returns:
        The growth factors, the first block's first, shape `(blocks,)`.

    Raises:
        TypeError: If `blocks` is not an integer.
        ValueError: If `blocks` is below one, a variance is negative (under tracing the result is
            NaN instead), or `batch` is refused by `rates`.

    Example:
        >>> from dltheory.theory import batch_norm
        >>> growth = batch_norm.residual_batch_norm_growth("identity", blocks=3, weight_var=1.0)
        >>> [f"{g:.3f}" for g in growth]
        ['2.000', '1.500', '1.333']

    Source: De and Smith (2020) for the shares; the gradient by the `rates` of Yang et al. (2019).
    """
    check_count("blocks", blocks)
    (weight_var,) = checked(weight_var=weight_var)
    variance, alone, together = (weight_var * a for a in rates(phi, batch))

    def block(a: Array, below: Array) -> tuple[Array, Array]:
        # The gradient begins with one; what branches add to it sums to zero over the batch.
        growth = 1 + (alone + together * (1 - 1 / a)) / (1 + below * variance)
        return a * growth, growth

    below = jnp.arange(blocks, dtype=alone.dtype)
    return jax.lax.scan(block, jnp.ones_like(alone), below, reverse=True)[1]


# --------------------------------------------------------------------------------- quadrature


def _pairs(phi: Activation, batch: float) -> tuple[Array, Array, Callable]:
    """Nodes for two examples' values, `(n, 1)` and `(n, m)`, and the mean of a function's there."""
    points = jnp.asarray(sorted({0.0, *phi.kinks}))
    size = jnp.asarray(batch, points.dtype)
    radius, gamma = jnp.sqrt(size - 1), -jnp.arcsin(1 / (size - 1))
    end = jnp.minimum(jnp.pi / 2, 10 / jnp.sqrt(size - 3))  # there is no mass beyond
    points = jnp.clip(points / radius, -1, 1)
    # Where z_2 has a kink at its very edge, psi = +-pi / 2.
    edges = [s * gamma + t * jnp.arccos(s * points) for s in (-1, 1) for t in (-1, 1)]
    theta, weights = _panels(jnp.concatenate([jnp.arcsin(points), *edges]), end)
    theta, weights = theta[:, None], weights[:, None] * jnp.cos(theta[:, None]) ** (size - 3)
    middle = jnp.sin(gamma) * jnp.sin(theta)
    # At the poles z_2 has one value, and no angle.
    reach = jnp.maximum(jnp.cos(gamma) * jnp.cos(theta), jnp.finfo(theta.dtype).tiny)
    psi, inner = _panels(jnp.arcsin(jnp.clip((points[None] - middle) / reach, -1, 1)), end)
    inner *= jnp.cos(psi) ** (size - 4)
    weights = weights * inner / jnp.sum(inner, 1, keepdims=True)
    weights /= jnp.sum(weights)
    z1, z2 = radius * jnp.sin(theta), radius * (middle + reach * jnp.sin(psi))
    return z1, z2, lambda values: jnp.sum(weights * values)


def _panels(cuts: Array, end: Array) -> tuple[Array, Array]:
    """Nodes and weights between -end and end, in panels that the cuts on the last axis divide."""
    ends = jnp.broadcast_to(end, (*cuts.shape[:-1], 1))
    cuts = jnp.sort(jnp.concatenate([-ends, jnp.clip(cuts, -end, end), ends], -1))
    lengths = jnp.diff(cuts)[..., None]
    rule = [
        jnp.asarray(a, cuts.dtype).reshape((1,) * cuts.ndim + (-1,)) for a in (_NODES, _WEIGHTS)
    ]
    nodes = cuts[..., :-1, None] + lengths * rule[0]
    flat = lambda a: a.reshape(*cuts.shape[:-1], -1)
    return flat(nodes), flat(lengths * rule[1])
