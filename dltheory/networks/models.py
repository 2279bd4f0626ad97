"""Fully connected networks as theory writes them: pre-activations, and depth by `scan`.

A layer acts on an activated signal, ``h -> W phi(h) + b``, so that the value of each site is a
pre-activation and the Jacobian between two consecutive ones is one factor ``W D`` of the theory.
The hidden layers are one scanned layer with stacked parameters: a thousand compile as fast as ten.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from dltheory.networks import initializers


class MLP(nn.Module):
    r"""A multilayer perceptron of equal hidden widths.

    .. math:: h_1 = W_1 x + b_1, \quad h_{l+1} = W_{l+1}\, \phi(h_l) + b_{l+1}, \quad y = h_{L+1}

    for a depth of :math:`L` hidden layers. Its sites are ``first``, ``hidden[0]`` to
    ``hidden[L-2]`` and ``last``; parameters take the dtype of the input they are initialised on.

    Attributes:
        width: Units of each hidden layer.
        depth: Number :math:`L \ge 1` of hidden layers.
        outputs: Number of outputs.
        activation: :math:`\phi`, any elementwise callable.
        kernel_init: Initializer of the weights.
        bias_init: Initializer of the biases.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.networks import initializers, models
        >>> mlp = models.MLP(8, 5, 3, kernel_init=initializers.gaussian(1.5))
        >>> x = jnp.ones((2, 4))
        >>> params = mlp.init(jax.random.key(0), x)
        >>> params["params"]["hidden"]["kernel"].shape
        (4, 8, 8)
        >>> mlp.apply(params, x).shape
        (2, 3)
    """

    width: int
    depth: int
    outputs: int
    activation: Callable[[Array], Array] = jnp.tanh
    kernel_init: initializers.Initializer = initializers.gaussian(1.0)
    bias_init: initializers.Initializer = initializers.normal(0.0)

    def __post_init__(self):
        _check_sizes(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply the network to ``x`` of shape ``(..., inputs)``; returns ``(..., outputs)``."""
        h = _dense(self, self.width, x.dtype, "first")(x)
        if self.depth > 1:
            hidden = _dense(self, self.width, x.dtype, "hidden")
            step = lambda layer, h: layer(self.activation(h))
            h = _scan(step, hidden, h, self.depth - 1)
        return _dense(self, self.outputs, x.dtype, "last")(self.activation(h))


class ResidualMLP(nn.Module):
    r"""A residual network whose blocks have one layer each, activated and normalised before it.

    .. math::
        h_0 = W_{first}\, x + b, \quad
        h_{l+1} = h_l + \beta\, (W_l\, \phi(N(h_l)) + b_l), \quad
        y = W_{last}\, \phi(N(h_L)) + b

    with :math:`N` layer normalisation or the identity. Its sites are ``first``, in each block
    ``blocks/norm[l]``, ``blocks/dense[l]`` and the join with the skip, and ``norm``, ``last``.

    Attributes:
        width: Units of each layer.
        depth: Number :math:`L \ge 1` of residual blocks.
        outputs: Number of outputs.
        activation: :math:`\phi`, any elementwise callable.
        branch: The factor :math:`\beta` of every branch; ``depth**-0.5`` keeps the signal of
            order one at any depth.
        normalize: Whether :math:`N` is layer normalisation, with a learnt scale and shift.
        kernel_init: Initializer of the weights.
        bias_init: Initializer of the biases.
    """

    width: int
    depth: int
    outputs: int
    activation: Callable[[Array], Array] = jnp.tanh
    branch: float = 1.0
    normalize: bool = False
    kernel_init: initializers.Initializer = initializers.gaussian(1.0)
    bias_init: initializers.Initializer = initializers.normal(0.0)

    def __post_init__(self):
        _check_sizes(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply the network to ``x`` of shape ``(..., inputs)``; returns ``(..., outputs)``."""
        h = _dense(self, self.width, x.dtype, "first")(x)
        blocks = _Branch(
            self.width,
            self.activation,
            self.normalize,
            self.kernel_init,
            self.bias_init,
            name="blocks",
        )
        h = _scan(lambda branch, h: h + self.branch * branch(h), blocks, h, self.depth)
        if self.normalize:
            h = _layer_norm(h, "norm")
        return _dense(self, self.outputs, x.dtype, "last")(self.activation(h))


class _Branch(nn.Module):
    width: int
    activation: Callable[[Array], Array]
    normalize: bool
    kernel_init: initializers.Initializer
    bias_init: initializers.Initializer

    @nn.compact
    def __call__(self, h):
        u = _layer_norm(h, "norm") if self.normalize else h
        return _dense(self, self.width, h.dtype, "dense")(self.activation(u))


def _dense(owner, features, dtype, name):
    return nn.Dense(
        features,
        param_dtype=dtype,
        kernel_init=owner.kernel_init,
        bias_init=owner.bias_init,
        name=name,
    )


def _layer_norm(h, name):
    # The two options keep float64 from being promoted with float32, which strict promotion refuses,
    # and the variance from cancelling.
    norm = nn.LayerNorm(
        param_dtype=h.dtype, force_float32_reductions=False, use_fast_variance=False, name=name
    )
    return norm(h)


def _scan(step, layer, h, length):
    """Apply `step(layer, h)` a number of times, each with parameters of its own, stacked."""
    scan = nn.scan(
        lambda layer, h, _: (step(layer, h), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=length,
    )
    return scan(layer, h, None)[0]


def _check_sizes(model) -> None:
    for name in ("width", "depth", "outputs"):
        size = getattr(model, name)
        if size < 1:
            raise ValueError(f"{name} is {size}; want a positive integer")
