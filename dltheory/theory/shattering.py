r"""How alike the gradients at two inputs are: shattered gradients.

At infinite width the gradients that reach a layer from above have, at two inputs, a covariance that
each layer multiplies by the derivative's dual kernel. The gates of the two inputs agree ever more
with depth, because the inputs' own correlation tends to one, and so the gradients decorrelate like
a power of the depth at criticality. The exponential rates in print take the gates of the two inputs
to be independent at every layer, which holds at the first one only, for orthogonal inputs.

Source: Balduzzi et al. (2017), The shattered gradients problem, for the question and the rates of
independent gates.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks import activations
from dltheory.numerics import gaussian
from dltheory.theory import dual
from dltheory.theory.dual import Phi
from dltheory.theory.parameters import check_count, checked


def gradient_correlation(
    phi: Phi,
    q0: ArrayLike,
    c0: ArrayLike,
    *,
    depth: int,
    weight_var: ArrayLike,
    bias_var: ArrayLike = 0.0,
    branch: ArrayLike | None = None,
) -> Array:
    r"""Correlation of the gradients at two inputs of one length, layer by layer.

    .. math:: \prod_{l < L} \frac{\mathbb{E}\,\phi'(u_l)\,\phi'(v_l)}{\mathbb{E}\,\phi'(u_l)^2}
        \quad \text{(plain)}, \qquad
        \prod_{l < L} \frac{1 + b^2 \sigma_w^2\,\mathbb{E}\,\phi'(u_l)\,\phi'(v_l)}
        {1 + b^2 \sigma_w^2\,\mathbb{E}\,\phi'(u_l)^2} \quad \text{(residual)}

    where :math:`u_l, v_l` are the pre-activations of layer `l`, and a residual block is
    `h + branch * (W phi(h) + bias)`. A plain network at a fixed length with `chi_1` one has
    :math:`dc_L / dc_0`, and thus the decay of the correlations of signals, one power steeper: like
    :math:`L^{-3}` with a kink (ReLU), like :math:`L^{-2}` without (tanh).

    Args:
        phi: Activation, its name, or a scalar callable.
        q0: Variance of the first layer's pre-activations, shape `()`.
        c0: Their correlation, shape `()`.
        depth: Number of layers.
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.
        branch: Factor before each residual branch; None for a network without skip connections.

    Returns:
        The correlation after 1 to `depth` layers, shape `(depth,)`; differentiable.

    Raises:
        TypeError: If `depth` is not an integer.
        ValueError: If `depth` is below one, a variance is negative, `c0` beyond one in size (under
            tracing the result is NaN instead) or the activation one that jumps.

    Example:
        >>> from dltheory.theory import shattering
        >>> found = shattering.gradient_correlation("relu", 1.0, 0.0, depth=5, weight_var=2.0)
        >>> print([f"{c:.3f}" for c in found])  # the last is not 2**-5 = 0.031
        ['0.500', '0.302', '0.200', '0.142', '0.105']

    Source: the recursion is that of the tangent kernel, Jacot, Gabriel and Hongler (2018).
    """
    phi = activations.get(phi)
    _check(phi, depth)
    weight_var, bias_var, q0 = checked(weight_var=weight_var, bias_var=bias_var, q0=q0)
    skip, scale = (0.0, 1.0) if branch is None else (1.0, jnp.square(branch))
    cov0 = gaussian.correlation(q0, q0, q0 * jnp.asarray(c0, q0.dtype))[2]

    def layer(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        q, cov = state
        grown, shared = (
            skip + scale * weight_var * dual.derivative_kernel(phi, q, q, k) for k in (q, cov)
        )
        new_q, new_cov = (
            skip * k + scale * (weight_var * dual.kernel(phi, q, q, k) + bias_var) for k in (q, cov)
        )
        return (new_q, jnp.clip(new_cov, -new_q, new_q)), shared / grown

    return jnp.cumprod(jax.lax.scan(layer, (q0, cov0), length=depth)[1])


def independent_gates(
    phi: Phi,
    q: ArrayLike,
    *,
    depth: int,
    weight_var: ArrayLike,
    branch: ArrayLike | None = None,
) -> Array:
    r"""The same correlation if the slopes at the two inputs were independent at every layer.

    .. math:: \left(\frac{(\mathbb{E}\,\phi')^2}{\mathbb{E}\,\phi'^2}\right)^L
        \quad \text{(plain)}, \qquad
        \left(\frac{1 + b^2 \sigma_w^2\,(\mathbb{E}\,\phi')^2}
        {1 + b^2 \sigma_w^2\,\mathbb{E}\,\phi'^2}\right)^L \quad \text{(residual)}

    For ReLU with `weight_var` two they are :math:`2^{-L}` and, at `branch` one,
    :math:`(3/4)^L`. Networks do not obey them: see `gradient_correlation`.

    Args:
        phi: Activation, its name, or a scalar callable.
        q: Variance of the pre-activations, the same at all layers, shape `()`.
        depth: Number of layers.
        weight_var: Weight variance times fan-in, shape `()`.
        branch: Factor before each residual branch; None for a network without skip connections.

    Returns:
        The correlation after 1 to `depth` layers, shape `(depth,)`; differentiable.

    Raises:
        TypeError: If `depth` is not an integer.
        ValueError: If `depth` is below one, a variance is negative (under tracing the result is NaN
            instead) or the activation one that jumps.

    Example:
        >>> from dltheory.theory import shattering
        >>> print(shattering.independent_gates("relu", 1.0, depth=3, weight_var=2.0))
        [0.5   0.25  0.125]

    Source: Balduzzi et al. (2017).
    """
    phi = activations.get(phi)
    _check(phi, depth)
    weight_var, q = checked(weight_var=weight_var, q=q)
    skip, scale = (0.0, 1.0) if branch is None else (1.0, jnp.square(branch))
    grown, shared = (
        skip + scale * weight_var * dual.derivative_kernel(phi, q, q, k)
        for k in (q, jnp.zeros_like(q))
    )
    return (shared / grown) ** jnp.arange(1, depth + 1, dtype=q.dtype)


def _check(phi: activations.Activation, depth: int) -> None:
    check_count("depth", depth)
    if phi.smoothness == -1:
        raise ValueError(f"{phi.name} jumps, and has no gradient; want a continuous activation")
