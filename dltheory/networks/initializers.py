r"""Random weights and biases by variance, in the manner of `jax.nn.initializers`.

Kernels have Flax's layout `(*spatial, inputs, outputs)`, and :math:`n`, the fan-in, is the number
of terms in each pre-activation: the product of all axes but the last. `gaussian` and `orthogonal`
weights have

.. math:: E\, W_{ij}^2 = \sigma_w^2 / n,

so that mean field theory reads the same ``weight_var`` :math:`= \sigma_w^2` off either. A `Scheme`
is what a whole layer starts from; `reinitialization` draws the parameters of any model anew by one.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

Initializer = Callable[..., Array]

_DISTRIBUTIONS = ("normal", "truncated_normal", "uniform")
# The deviation of a standard normal variable cut off at two deviations.
_TRUNCATED = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


class Scheme(NamedTuple):
    """How the parameters of a layer are drawn.

    Attributes:
        kernel: Initializer of its weights.
        bias: Initializer of its biases.
    """

    kernel: Initializer
    bias: Initializer


class HasWeightVar(Protocol):
    """A point of a phase diagram, such as `theory.mean_field.CriticalPoint`."""

    @property
    def weight_var(self) -> ArrayLike:
        """The weight variance there."""
        ...


def gaussian(weight_var: ArrayLike) -> Initializer:
    r"""Independent Gaussian weights :math:`W_{ij} \sim N(0, \sigma_w^2 / n)`.

    Args:
        weight_var: :math:`\sigma_w^2 \ge 0`.

    Returns:
        ``init(key, shape, dtype=float)`` for kernels of two or more axes.

    Raises:
        ValueError: `weight_var` is negative; from ``init``, `shape` has fewer than two axes.

    Example:
        >>> import jax
        >>> from dltheory.networks import initializers
        >>> W = initializers.gaussian(2.0)(jax.random.key(0), (100, 300))
        >>> print(f"{100 * W.var():.1f}")
        2.0
    """
    _check_variance("weight_var", weight_var)

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = float) -> Array:
        fan_in = _fan_in(shape)
        return _deviation(weight_var, fan_in, dtype) * jax.random.normal(key, shape, dtype)

    return init


def orthogonal(weight_var: ArrayLike) -> Initializer:
    r"""Weights with equal singular values, uniform over all such matrices.

    A kernel is drawn as a matrix :math:`(n, m)` of fan-in by outputs,

    .. math:: W = \sigma_w \sqrt{\max(n, m) / n}\; Q,

    where :math:`Q` has orthonormal columns (or rows, if :math:`m > n`) by Haar measure. For
    :math:`m \le n` every singular value is :math:`\sigma_w`; for :math:`m > n` it is
    :math:`\sigma_w \sqrt{m / n}`. In both cases :math:`E\, W_{ij}^2 = \sigma_w^2 / n` and the
    mean squared singular value are those of `gaussian`. A convolution kernel is orthogonal in
    this shape; the convolution itself is not.

    Args:
        weight_var: :math:`\sigma_w^2 \ge 0`.

    Returns:
        ``init(key, shape, dtype=float)`` for kernels of two or more axes.

    Raises:
        ValueError: `weight_var` is negative; from ``init``, `shape` has fewer than two axes.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.networks import initializers
        >>> W = initializers.orthogonal(4.0)(jax.random.key(0), (3, 3))
        >>> bool(jnp.allclose(W @ W.T, 4 * jnp.eye(3), atol=1e-5))
        True

    Source:
        Saxe, McClelland and Ganguli (2014); sampling by QR, Mezzadri (2007).
    """
    _check_variance("weight_var", weight_var)

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = float) -> Array:
        fan_in, outputs = _fan_in(shape), shape[-1]
        dtype = jax.dtypes.canonicalize_dtype(dtype)
        # LAPACK has no half precision.
        wide = jnp.float32 if jnp.finfo(dtype).bits < 32 else dtype
        q = jax.random.orthogonal(key, fan_in, dtype=wide, m=outputs)
        scale = _deviation(weight_var, fan_in / max(fan_in, outputs, 1), wide)
        return (scale * q).astype(dtype).reshape(shape)

    return init


def delta_orthogonal(weight_var: ArrayLike) -> Initializer:
    r"""Convolution kernels that are an orthogonal matrix at the centre and 0 elsewhere.

    With :math:`H` of orthonormal rows, uniform by Haar measure,

    .. math:: W_{k} = \sigma_w\, H\, \delta_{k, centre},

    every singular value of the convolution, circular or zero-padded to the same size, of any input
    size, is :math:`\sigma_w`. Where there are as many outputs as inputs, mean field theory reads
    this as ``weight_var``; where there are more, the length per output shrinks by their ratio.

    Args:
        weight_var: :math:`\sigma_w^2 \ge 0`.

    Returns:
        ``init(key, shape, dtype=float)`` for kernels ``(*spatial, inputs, outputs)`` of two or
        more axes.

    Raises:
        ValueError: `weight_var` is negative; from ``init``, `shape` has fewer than two axes or
            more inputs than outputs.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.networks import initializers
        >>> W = initializers.delta_orthogonal(1.0)(jax.random.key(0), (3, 3, 4, 4))
        >>> bool(jnp.allclose(W[1, 1] @ W[1, 1].T, jnp.eye(4), atol=1e-5)), float(W[0].max())
        (True, 0.0)

    Source:
        Xiao, Bahri, Sohl-Dickstein, Schoenholz and Pennington (2018), Dynamical isometry and a mean
        field theory of CNNs, Algorithm 1.
    """
    _check_variance("weight_var", weight_var)

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = float) -> Array:
        _fan_in(shape)
        *spatial, inputs, outputs = shape
        if inputs > outputs:
            raise ValueError(
                f"shape is {tuple(shape)}, with more inputs than outputs; delta_orthogonal wants "
                "inputs <= outputs, so that no signal is lost: use initializers.orthogonal there"
            )
        # Where the kernel is even, convolution pads less in front: this tap is the one in place.
        centre = tuple((size - 1) // 2 for size in spatial)
        # The factor of `orthogonal` for more outputs than inputs is undone.
        narrow = jnp.asarray(weight_var) * (inputs / max(outputs, 1))
        matrix = orthogonal(narrow)(key, (inputs, outputs), dtype)
        return jnp.zeros(shape, matrix.dtype).at[centre].set(matrix)

    return init


def lecun(distribution: str = "normal") -> Initializer:
    r"""Weights of variance :math:`1 / n`: with linear units, signals keep their length.

    Args:
        distribution: "normal", "truncated_normal" (at two deviations, its variance restored) or
            "uniform".

    Returns:
        ``init(key, shape, dtype=float)`` for kernels of two or more axes.

    Raises:
        ValueError: `distribution` is another one; from ``init``, `shape` has fewer than two axes.

    Source:
        LeCun, Bottou, Orr and Müller (1998), Efficient BackProp.
    """
    return _scaled_by_fans(lambda fan_in, _: 1 / fan_in, distribution)


def glorot(distribution: str = "normal") -> Initializer:
    r"""Weights of variance :math:`2 / (n_{in} + n_{out})`, between those of signal and gradient.

    The fan-out :math:`n_{out}` is the product of the outputs and the spatial axes.

    Args:
        distribution: As for `lecun`; "uniform" is the one of the paper.

    Returns:
        ``init(key, shape, dtype=float)`` for kernels of two or more axes.

    Raises:
        ValueError: `distribution` is another one; from ``init``, `shape` has fewer than two axes.

    Source:
        Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward neural
        networks.
    """
    return _scaled_by_fans(lambda fan_in, fan_out: 2 / (fan_in + fan_out), distribution)


def he(distribution: str = "normal", *, slope: float = 0.0) -> Initializer:
    r"""Weights of variance :math:`2 / (1 + a^2) n`: with (leaky) ReLU, signals keep their length.

    Args:
        distribution: As for `lecun`.
        slope: The slope :math:`a` of the activation below zero; 0 for ReLU.

    Returns:
        ``init(key, shape, dtype=float)`` for kernels of two or more axes.

    Raises:
        ValueError: `distribution` is another one; from ``init``, `shape` has fewer than two axes.

    Source:
        He, Zhang, Ren and Sun (2015), Delving deep into rectifiers.
    """
    return _scaled_by_fans(lambda fan_in, _: 2 / (1 + slope**2) / fan_in, distribution)


def scaled(init: Initializer, factor: ArrayLike) -> Initializer:
    """Weights times a factor, such as those of a residual branch (`branch_factors`).

    Args:
        init: The initializer.
        factor: What its draws are multiplied by; 0 gives zeros.

    Returns:
        ``init(key, shape, dtype=float)`` for the shapes that `init` takes.
    """

    def scaled_init(key: Array, shape: Sequence[int], dtype: DTypeLike = float) -> Array:
        draw = init(key, shape, dtype)
        return draw * jnp.asarray(factor).astype(draw.dtype)

    return scaled_init


def branch_factors(rule: str, *, depth: int, layers: int = 1) -> tuple[float, ...]:
    r"""The factors on the weights of each layer of a residual branch.

    .. math::
        \text{inverse\_sqrt}: (1, \dots, 1, L^{-1/2}), \quad
        \text{fixup}: (L^{-1/(2m - 2)}, \dots, L^{-1/(2m - 2)}, 0), \quad
        \text{zero}: (1, \dots, 1, 0)

    for :math:`L` branches of :math:`m` layers. With "inverse_sqrt" the signal stays of order one at
    any depth; with the other two each block starts as the identity, "fixup" such that a step of
    gradient descent changes the output by as much at any depth.

    Args:
        rule: "inverse_sqrt", "fixup" or "zero" (as in SkipInit, by the weights).
        depth: Number :math:`L` of branches.
        layers: Number :math:`m` of layers of each.

    Returns:
        One factor a layer, first to last; use `scaled`.

    Raises:
        ValueError: `rule` is another one, or a number is below one.

    Example:
        >>> from dltheory.networks import initializers
        >>> initializers.branch_factors("fixup", depth=16, layers=3)
        (0.5, 0.5, 0.0)

    Source:
        Zhang, Dauphin and Ma (2019), Fixup initialization; De and Smith (2020), Batch normalization
        biases residual blocks towards the identity function in deep networks (SkipInit); Hayou,
        Clerico, He, Deligiannidis, Doucet and Rousseau (2021), Stable ResNet, for the root.
    """
    if depth < 1 or layers < 1:
        raise ValueError(f"depth is {depth} and layers is {layers}; want both one or more")
    if rule == "inverse_sqrt":
        return (1.0,) * (layers - 1) + (depth**-0.5,)
    if rule == "fixup":
        return (depth ** (-0.5 / max(layers - 1, 1)),) * (layers - 1) + (0.0,)
    if rule == "zero":
        return (1.0,) * (layers - 1) + (0.0,)
    raise ValueError(f"rule is {rule!r}; want one of inverse_sqrt, fixup, zero")


def critical(
    point: HasWeightVar,
    *,
    bias_var: ArrayLike = 0.0,
    ensemble: Callable[[ArrayLike], Initializer] = gaussian,
) -> Scheme:
    """Weights and biases at a point of a phase diagram, such as one on the edge of chaos.

    Inputs should have the length that is fixed there: scale them such that the first
    pre-activations have the variance `q` of the point, if it has one.

    Args:
        point: Anything with a `weight_var`, such as `mean_field.edge_of_chaos` returns.
        bias_var: The bias variance that the point was found for.
        ensemble: `gaussian`, `orthogonal` or `delta_orthogonal`.

    Returns:
        The scheme.

    Raises:
        ValueError: If a variance is negative.

    Example:
        >>> from typing import NamedTuple
        >>> from dltheory.networks import initializers
        >>> class Point(NamedTuple):
        ...     weight_var: float
        >>> scheme = initializers.critical(Point(1.76), bias_var=0.05)
    """
    return Scheme(ensemble(point.weight_var), normal(bias_var))


def normal(bias_var: ArrayLike) -> Initializer:
    r"""Independent Gaussian biases :math:`b_i \sim N(0, \sigma_b^2)`.

    Args:
        bias_var: :math:`\sigma_b^2 \ge 0`, the variance of each bias whatever the fan-in.

    Returns:
        ``init(key, shape, dtype=float)`` for any shape.

    Raises:
        ValueError: `bias_var` is negative.
    """
    _check_variance("bias_var", bias_var)

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = float) -> Array:
        return _deviation(bias_var, 1, dtype) * jax.random.normal(key, shape, dtype)

    return init


def _scaled_by_fans(variance, distribution) -> Initializer:
    if distribution not in _DISTRIBUTIONS:
        raise ValueError(
            f"distribution is {distribution!r}; want one of {', '.join(_DISTRIBUTIONS)}"
        )

    def init(key: Array, shape: Sequence[int], dtype: DTypeLike = float) -> Array:
        fan_in = _fan_in(shape)
        fan_out = math.prod(shape[:-2]) * shape[-1]
        deviation = math.sqrt(variance(max(fan_in, 1), fan_out))
        if distribution == "normal":
            return deviation * jax.random.normal(key, shape, dtype)
        if distribution == "truncated_normal":
            return deviation / _TRUNCATED * jax.random.truncated_normal(key, -2, 2, shape, dtype)
        return math.sqrt(3) * deviation * jax.random.uniform(key, shape, dtype, -1, 1)

    return init


def _check_variance(name, value) -> None:
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} has shape {jnp.shape(value)}; want a scalar")
    if not isinstance(value, Tracer) and np.asarray(value) < 0:
        raise ValueError(f"{name} is {value}, but a variance is not negative; want {name} >= 0")


def _fan_in(shape) -> int:
    if len(shape) < 2:
        raise ValueError(
            f"shape is {tuple(shape)}, but a kernel has two or more axes (*spatial, inputs, "
            "outputs); for a bias use initializers.normal(bias_var)"
        )
    return math.prod(shape[:-1])


def _deviation(variance, divisor, dtype) -> Array:
    """The standard deviation; NaN where a traced variance is negative."""
    return jnp.sqrt(jnp.asarray(variance).astype(dtype) / divisor)
