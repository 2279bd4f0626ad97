r"""Kernels of infinitely wide networks: NNGP and NTK, dense, residual and convolutional.

A network with random weights is a Gaussian process as its width grows, with the *NNGP* kernel;
gradient descent on it is regression with the *tangent* kernel (NTK), which no longer moves (see
`kernel_regression`). Both follow from the dual kernels of the activation, layer by layer:

.. math::
    K' = \sigma_w^2\,\mathbb{E}\,\phi(u)\phi(v) + \sigma_b^2, \qquad
    \Theta' = K' + \sigma_w^2\,\mathbb{E}\,\phi'(u)\phi'(v)\,\Theta

in the NTK parameterization, where a weight is :math:`\sigma_w n^{-1/2}` times a parameter of
variance one and a bias :math:`\sigma_b` times one.

Sources: Lee et al. (2018), Jacot et al. (2018), Lee et al. (2019), Arora et al. (2019).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from dltheory.networks import activations
from dltheory.theory import dual
from dltheory.theory.dual import Phi
from dltheory.theory.parameters import check_choice, checked


class Kernels(NamedTuple):
    """The two kernels of a network at infinite width, each of the shape of the pairs of inputs.

    Attributes:
        nngp: Covariance of an output at initialization.
        ntk: Product of its gradients with respect to the parameters.
    """

    nngp: Array
    ntk: Array


class Covariances(NamedTuple):
    """Covariances of a layer's pre-activations, in shapes that broadcast to that of the pairs.

    Attributes:
        k_xx: Variances at the first inputs, shape `(N, 1)`.
        k_xy: Covariances, shape `(N, M)`.
        k_yy: Variances at the second inputs, shape `(1, M)`.
    """

    k_xx: Array
    k_xy: Array
    k_yy: Array


class ConvNet(NamedTuple):
    """The form of a convolutional network of many channels.

    Attributes:
        size: Side of the filters, in every spatial dimension.
        padding: `"CIRCULAR"`, or `"SAME"` for zeros beyond the border.
        pool: Whether the last layer reads the average over all positions; else it reads them all.
        branch: Factor of each residual branch; `None` for a network without skip connections.
    """

    size: int = 3
    padding: str = "CIRCULAR"
    pool: bool = False
    branch: ArrayLike | None = None


_State = tuple[Array, Array, Array, Array]  # k_xx, k_xy, k_yy, the tangent kernel
_Means = Sequence[Callable[[Array], Array]]  # what a layer makes of the first three


def first_layer(
    x: ArrayLike, y: ArrayLike | None = None, *, weight_var: ArrayLike, bias_var: ArrayLike = 0.0
) -> Covariances:
    r"""Covariances of the first pre-activations, between all pairs of two sets of inputs.

    .. math:: K(x, y) = \sigma_w^2\, \frac{x \cdot y}{n_0} + \sigma_b^2

    Args:
        x: Inputs, shape `(N, n_0)`.
        y: Others, shape `(M, n_0)`; `x` again by default.
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.

    Returns:
        What `nngp_ntk` and `residual_nngp_ntk` begin with.

    Raises:
        ValueError: If the inputs are no two matrices of one width or a variance is negative
            (under tracing the result is NaN instead).
    """
    x, y = _inputs(x, y)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must be matrices of one width, (N, n_0) and (M, n_0); got {x.shape} and "
            f"{y.shape}"
        )
    weight_var, bias_var = _scalars(x.dtype, weight_var=weight_var, bias_var=bias_var)
    n = x.shape[1]
    k_xx, k_xy, k_yy = jnp.sum(x * x, 1)[:, None], x @ y.T, jnp.sum(y * y, 1)[None, :]
    return Covariances(*(weight_var * k / n + bias_var for k in (k_xx, k_xy, k_yy)))


def nngp_ntk(
    phi: Phi,
    k_xx: ArrayLike,
    k_xy: ArrayLike,
    k_yy: ArrayLike,
    *,
    depth: int,
    weight_var: ArrayLike,
    bias_var: ArrayLike = 0.0,
) -> Kernels:
    r"""Kernels of a fully connected network, after its last layer.

    Args:
        phi: Activation, its name, or a scalar callable.
        k_xx: Variances of the first pre-activations at the first inputs, see `first_layer`.
        k_xy: Covariances of the first pre-activations.
        k_yy: Variances at the second inputs. The shapes broadcast, such as `(N, 1)`, `(N, M)` and
            `(1, M)`.
        depth: Number of hidden layers; zero leaves the first layer alone.
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.

    Returns:
        Both kernels, of the common shape.

    Raises:
        ValueError: If the shapes do not broadcast, `depth` is negative, or, unless they are
            traced, a variance is negative or a covariance larger than the variances allow
            (under tracing the result is NaN there instead).

    Example:
        >>> from dltheory.theory import kernels
        >>> k = kernels.nngp_ntk("relu", 1.0, 0.0, 1.0, depth=1, weight_var=2.0)
        >>> print(f"{k.nngp:.4f} {k.ntk:.4f}")  # both 1 / pi
        0.3183 0.3183
    """
    state, variances = _start(k_xx, k_xy, k_yy, depth, weight_var, bias_var)
    _, nngp, _, ntk = _stack(activations.get(phi), state, depth, _DENSE, *variances)
    return Kernels(nngp, ntk)


def residual_nngp_ntk(
    phi: Phi,
    k_xx: ArrayLike,
    k_xy: ArrayLike,
    k_yy: ArrayLike,
    *,
    depth: int,
    weight_var: ArrayLike,
    bias_var: ArrayLike = 0.0,
    branch: ArrayLike = 1.0,
) -> Kernels:
    r"""Kernels of a fully connected residual network, after its last layer.

    .. math:: h_{l+1} = h_l + \beta\,(W_l\,\phi(h_l) + b_l), \qquad y = W \phi(h_L) + b

    Args:
        phi: Activation, its name, or a scalar callable.
        k_xx: Variances of the first layer's values `h_0` at the first inputs, see `first_layer`.
        k_xy: Covariances of these values.
        k_yy: Variances at the second inputs. The shapes broadcast.
        depth: Number of residual blocks.
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.
        branch: The factor of every branch, for instance `depth ** -0.5`, shape `()`.

    Returns:
        Both kernels, of the common shape.

    Raises:
        ValueError: As `nngp_ntk`.
    """
    phi = activations.get(phi)
    state, variances = _start(k_xx, k_xy, k_yy, depth, weight_var, bias_var)
    state = _stack(
        phi, state, depth, _DENSE, *variances, branch=jnp.asarray(branch, state[0].dtype)
    )
    _, nngp, _, ntk = _stack(phi, state, 1, _DENSE, *variances)
    return Kernels(nngp, ntk)


def conv_nngp_ntk(
    phi: Phi,
    x: ArrayLike,
    y: ArrayLike | None = None,
    net: ConvNet | None = None,
    *,
    depth: int,
    weight_var: ArrayLike,
    bias_var: ArrayLike = 0.0,
) -> Kernels:
    r"""Kernels of a convolutional network of many channels, after its last layer.

    A layer of filters averages the dual kernels over its window, at both positions in step:

    .. math:: K'(p, p') = \sigma_w^2\, \operatorname{mean}_\delta\,
        \mathbb{E}\,\phi(u_{p+\delta})\phi(v_{p'+\delta}) + \sigma_b^2

    A last layer that reads all positions needs those with `p = p'` alone, and one that reads their
    average all pairs of positions, at that many times the cost.

    Args:
        phi: Activation, its name, or a scalar callable.
        x: Images, shape `(N, *spatial, channels)` of one or two spatial dimensions.
        y: Others, shape `(M, *spatial, channels)`; `x` again by default.
        net: Filters, padding, the last layer, skip connections; by default `ConvNet()`.
        depth: Number of hidden layers; with skip connections, of residual blocks behind the first
            layer.
        weight_var: Weight variance times fan-in, shape `()`.
        bias_var: Bias variance, shape `()`.

    Returns:
        Both kernels, shape `(N, M)`.

    Raises:
        ValueError: If the images differ in size or are of another number of dimensions, `depth`
            is below one, the filters' size or padding is unknown, or a variance is negative (under
            tracing the result is NaN instead).

    Sources: Novak et al. (2019), Arora et al. (2019).
    """
    net = ConvNet() if net is None else net
    phi = activations.get(phi)
    x, y = _inputs(x, y)
    if x.ndim not in (3, 4) or x.shape[1:] != y.shape[1:]:
        raise ValueError(
            "x and y must be images of one size, (N, *spatial, channels) of one or two spatial "
            f"dimensions; got {x.shape} and {y.shape}"
        )
    check_choice("padding", net.padding, ("CIRCULAR", "SAME"))
    if net.size < 1 or depth < 1:
        raise ValueError(f"size and depth must be one or more; got {net.size} and {depth}")
    variances = _scalars(x.dtype, weight_var=weight_var, bias_var=bias_var)
    weight_var, bias_var = variances

    dims = x.ndim - 2
    behind = tuple(range(2, 2 + dims))
    beyond = tuple(range(2 + dims, 2 + 2 * dims)) if net.pool else behind
    # Positions of x stand behind the pair of examples, those of y behind these or in one with them.
    k_xx, k_yy = jnp.expand_dims(jnp.mean(x * x, -1), 1), jnp.mean(y * y, -1)[None]
    if net.pool:
        k_xy = jnp.tensordot(x, y, ((-1,), (-1,))) / x.shape[-1]
        k_xy = jnp.moveaxis(k_xy, 1 + dims, 1)
        k_xx, k_yy = jnp.expand_dims(k_xx, beyond), jnp.expand_dims(k_yy, behind)
    else:
        k_xy = jnp.mean(x[:, None] * y[None], -1)
    axes = [behind], [behind, beyond] if net.pool else [behind], [beyond]
    means = [partial(_window_mean, axes=which, net=net) for which in axes]

    k_xx, k_xy, k_yy = (
        weight_var * mean(k) + bias_var for mean, k in zip(means, (k_xx, k_xy, k_yy), strict=True)
    )
    state = (k_xx, k_xy, k_yy, k_xy)
    if net.branch is None:
        state = _stack(phi, state, depth - 1, means, *variances)
    else:
        state = _stack(
            phi, state, depth, means, *variances, branch=jnp.asarray(net.branch, x.dtype)
        )
    everywhere = lambda k: jnp.mean(k, range(2, k.ndim), keepdims=True)
    _, nngp, _, ntk = _stack(phi, state, 1, [lambda k: k, everywhere, lambda k: k], *variances)
    return Kernels(nngp.reshape(nngp.shape[:2]), ntk.reshape(ntk.shape[:2]))


_DENSE: _Means = (lambda k: k,) * 3


def _stack(
    phi: activations.Activation,
    state: _State,
    depth: int,
    means: _Means,
    weight_var: Array,
    bias_var: Array,
    *,
    branch: Array | None = None,
) -> _State:
    """Pass covariances and tangent kernel through a number of layers, each behind `phi`."""

    def layer(state: _State, _: None) -> tuple[_State, None]:
        *old, ntk = state
        values, slope = _duals(phi, *old)
        new = [weight_var * mean(k) + bias_var for mean, k in zip(means, values, strict=True)]
        ntk_new = new[1] + weight_var * means[1](slope * ntk)
        if branch is not None:
            new = [a + branch**2 * b for a, b in zip(old, new, strict=True)]
            ntk_new = ntk + branch**2 * ntk_new
        return (new[0], new[1], new[2], ntk_new), None

    if depth == 1:  # the last layer of a convolutional network changes the shape
        return layer(state, None)[0]
    return jax.lax.scan(layer, state, length=depth)[0]


def _duals(
    phi: activations.Activation, k_xx: Array, k_xy: Array, k_yy: Array
) -> tuple[list[Array], Array]:
    """The dual kernel at all three covariances, and that of the derivative between the inputs.

    All three are one call: so an input's covariance with itself stays equal to its variance to the
    bit, and its correlation one, where the kernel of a kinked activation has a singular slope.
    """
    q_x, q_y = (jnp.broadcast_to(k, k_xy.shape) for k in (k_xx, k_yy))
    parts = [(k_xx, k_xx, k_xx), (q_x, q_y, k_xy), (k_yy, k_yy, k_yy)]
    joined = [
        jnp.concatenate([k.reshape(-1) for k in column]) for column in zip(*parts, strict=True)
    ]
    values = jnp.split(dual.kernel(phi, *joined), [k_xx.size, k_xx.size + k_xy.size])
    values = [v.reshape(k.shape) for v, k in zip(values, (k_xx, k_xy, k_yy), strict=True)]
    return values, dual.derivative_kernel(phi, q_x, q_y, k_xy)


def _window_mean(k: Array, axes: list[tuple[int, ...]], net: ConvNet) -> Array:
    """Mean over the window of a filter, one spatial dimension after another.

    Args:
        k: An array over positions.
        axes: The axes of each image's positions: those of one spatial dimension move in step.
        net: The filter and what is beyond the border.
    """
    for together in zip(*axes, strict=True):
        total = jnp.zeros_like(k)
        for shift in range(-((net.size - 1) // 2), net.size // 2 + 1):
            if net.padding == "CIRCULAR":
                total += jnp.roll(k, (-shift,) * len(together), together)
            else:
                config = [
                    (-shift, shift, 0) if axis in together else (0, 0, 0) for axis in range(k.ndim)
                ]
                total += jax.lax.pad(k, jnp.zeros((), k.dtype), config)
        k = total / net.size
    return k


def _inputs(x: ArrayLike, y: ArrayLike | None) -> tuple[Array, Array]:
    """Two sets of inputs in one floating dtype."""
    y = x if y is None else y
    dtype = jnp.result_type(float, x, y)
    return jnp.asarray(x, dtype), jnp.asarray(y, dtype)


def _scalars(dtype: jnp.dtype, **given: ArrayLike) -> list[Array]:
    """Checked variances in the dtype of the covariances; one of each, for all layers and pairs."""
    for name, value in given.items():
        if jnp.ndim(value):
            raise ValueError(
                f"{name} must be one number; got shape {jnp.shape(value)}. Map over it by jax.vmap"
            )
    return [value.astype(dtype) for value in checked(**given)]


def _start(
    k_xx: ArrayLike,
    k_xy: ArrayLike,
    k_yy: ArrayLike,
    depth: int,
    weight_var: ArrayLike,
    bias_var: ArrayLike,
) -> tuple[_State, list[Array]]:
    """The state of a fully connected network behind its first layer, and the variances."""
    given = {"k_xx": k_xx, "k_xy": k_xy, "k_yy": k_yy}
    shapes = {name: jnp.shape(k) for name, k in given.items()}
    try:
        if len({len(shape) for shape in shapes.values()} - {0}) > 1:
            raise ValueError
        whole = jnp.broadcast_shapes(*shapes.values())
    except ValueError:
        raise ValueError(
            "k_xx, k_xy and k_yy must broadcast, such as (N, 1), (N, M) and (1, M); got "
            + ", ".join(map(str, shapes.values()))
        ) from None
    if depth < 0:
        raise ValueError(f"depth must be zero or more; got {depth}")
    dtype = jnp.result_type(float, k_xx, k_xy, k_yy)
    variances = _scalars(dtype, weight_var=weight_var, bias_var=bias_var)
    if not any(isinstance(k, Tracer) for k in given.values()):
        x, xy, y = (np.asarray(k) for k in given.values())
        slack = 1 + 32 * float(jnp.finfo(dtype).eps)
        if np.any(x < 0) or np.any(y < 0) or np.any(np.abs(xy) > np.sqrt(x) * np.sqrt(y) * slack):
            raise ValueError(
                "k_xx and k_yy must be zero or more, and k_xy at most sqrt(k_xx k_yy) in size; got "
                f"{k_xx}, {k_xy} and {k_yy}"
            )
    xx, xy, yy = (jnp.asarray(k, dtype) for k in given.values())
    bad = (xx < 0) | (yy < 0)
    xy = jnp.broadcast_to(jnp.where(bad, jnp.nan, xy), whole)
    rank = [(1,) * (len(whole) - k.ndim) + k.shape for k in (xx, yy)]
    xx, yy = (k.reshape(shape) for k, shape in zip((xx, yy), rank, strict=True))
    return (xx, xy, yy, xy), variances
