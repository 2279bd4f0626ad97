r"""What a gradient costs, how exact finite differences can be, and dynamics that are solved.

Counts are exact integers and take Python integers alone. A FLOP is one multiplication or one
addition; only matrix products and convolutions are counted, which is nearly all of them.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.theory.parameters import check_count, checked

# Order of a difference: its truncation error is h^order times the next derivative times the first
# number, its rounding error u |f| / h times the second.
_DIFFERENCES = {1: (1 / 2, 2.0), 2: (1 / 6, 1.0), 4: (1 / 30, 1.5)}


class Flops(NamedTuple):
    """Operations of a layer or network.

    Attributes:
        forward: For its output.
        backward: On top of that, for the gradients of its weights and of its input.
    """

    forward: int
    backward: int


class Action(NamedTuple):
    """One instruction of a checkpointing plan.

    Attributes:
        kind: `store` the state `start`, just reached; `advance` from the stored state `start` to
            `stop` without taping; `reverse` step `start`: tape it from its state, then go back
            through it; `free` the stored state `start`.
        start: Number of the state before a step; 0 is the initial one.
        stop: The state reached, `start` again where none is.
    """

    kind: str
    start: int
    stop: int


class Plan(NamedTuple):
    """How to reverse a chain of steps with few stored states.

    Attributes:
        forward_steps: Steps that are run without taping, the least possible number.
        repetitions: The most often that any one step is run without taping.
        actions: The instructions in order.
    """

    forward_steps: int
    repetitions: int
    actions: tuple[Action, ...]


class Segments(NamedTuple):
    """A chain cut into equal segments, each run again when it is reversed.

    Attributes:
        peak: States held at once: the first one of each segment, and all of one segment.
        count: Number of segments.
    """

    peak: int
    count: int


def mlp_flops(widths: Sequence[int], batch: int) -> Flops:
    r"""FLOPs of a multilayer perceptron, forward and backward.

    .. math:: F = 2B \sum_l n_{l-1} n_l, \qquad 2F - 2B n_0 n_1

    Backward takes a product for weights and one for the input, which the first layer is spared.

    Args:
        widths: Widths from the input to the output, two at least.
        batch: Number of examples.

    Returns:
        Both counts.

    Raises:
        TypeError, ValueError: If a number is no integer of 1 or more, or fewer than two widths.

    Example:
        >>> from dltheory.theory import backprop
        >>> backprop.mlp_flops([784, 512, 512, 10], 128)
        Flops(forward=171180032, backward=239599616)
    """
    if len(widths) < 2:
        raise ValueError(f"widths is {widths!r}; want two widths or more, input and output")
    for value in (*widths, batch):
        check_count("a size", value)
    products = [a * b for a, b in pairwise(widths)]
    return Flops(2 * batch * sum(products), 2 * batch * (2 * sum(products) - products[0]))


def conv_flops(
    kernel: Sequence[int],
    output: Sequence[int],
    channels: tuple[int, int],
    batch: int,
    *,
    groups: int = 1,
) -> Flops:
    r"""FLOPs of a convolutional layer, forward and backward.

    .. math:: F = 2B \prod_i h_i \prod_i k_i \, \frac{c_\text{in}}{g} c_\text{out}, \qquad 2F

    Products with padding are counted, as most implementations carry them out.

    Args:
        kernel: Its spatial sizes :math:`k_i`.
        output: Spatial sizes :math:`h_i` of the output.
        channels: Channels of the input and of the output.
        batch: Number of examples.
        groups: Number of groups :math:`g`, which divides both channel counts.

    Returns:
        Both counts; backward holds the gradient of the input.

    Raises:
        TypeError, ValueError: If a number is no integer of 1 or more, `kernel` and `output` differ
            in length, or `groups` does not divide the channels.

    Example:
        >>> from dltheory.theory import backprop
        >>> backprop.conv_flops((3, 3), (32, 32), (16, 32), 1)
        Flops(forward=9437184, backward=18874368)
    """
    for value in (*kernel, *output, *channels, batch, groups):
        check_count("a size", value)
    if len(kernel) != len(output):
        raise ValueError(
            f"kernel {kernel} and output {output} differ in length; want the spatial sizes alone"
        )
    if channels[0] % groups or channels[1] % groups:
        raise ValueError(f"groups is {groups}; want a divisor of both channel counts {channels}")
    taps = math.prod(kernel) * channels[0] // groups
    forward = 2 * batch * math.prod(output) * taps * channels[1]
    return Flops(forward, 2 * forward)


def attention_flops(tokens: int, width: int, batch: int) -> Flops:
    r"""FLOPs of a self-attention layer, forward and backward, for any number of heads.

    .. math:: F = 2B\,(4 T d^2 + 2 T^2 d), \qquad 2F

    Four dense layers, the scores and the weighted sums; a causal mask is taken to save nothing.

    Args:
        tokens: Length :math:`T` of a sequence.
        width: Width :math:`d` of a token, shared out among the heads.
        batch: Number of sequences.

    Returns:
        Both counts; backward holds the gradient of the input.

    Raises:
        TypeError, ValueError: If a number is no integer of 1 or more.
    """
    for value in (tokens, width, batch):
        check_count("a size", value)
    forward = 2 * batch * (4 * tokens * width**2 + 2 * tokens**2 * width)
    return Flops(forward, 2 * forward)


def finite_difference_step(order: int, magnitude: ArrayLike, dtype: Any) -> Array:
    r"""The step at which truncation and rounding of a finite difference are least together.

    .. math::
        \min_h \; a_p M h^p + b_p \frac{u |f|}{h}: \qquad
        h^* = \Big(\frac{b_p}{p\,a_p}\, u \frac{|f|}{M}\Big)^{1/(p+1)}

    with :math:`u` the unit roundoff and :math:`M` a bound of the next derivative: forward
    differences (:math:`p = 1`) give :math:`2\sqrt{u|f|/M}`, central ones (:math:`p = 2`)
    :math:`(3u|f|/M)^{1/3}`.

    Args:
        order: 1 for forward differences, 2 for central ones, 4 for central ones extrapolated from
            steps :math:`h` and :math:`2h`.
        magnitude: :math:`|f| / M`, with :math:`M = |f^{(\text{order} + 1)}|`, any shape.
        dtype: Floating dtype in which :math:`f` is computed.

    Returns:
        The step, of the shape of `magnitude`.

    Raises:
        ValueError: If `order` is none of the three, or `magnitude` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import backprop
        >>> print(f"{backprop.finite_difference_step(2, 1.0, jnp.float32):.4f}")
        0.0056

    Source: Nocedal and Wright (2006), section 8.1.
    """
    truncation, rounding = _difference(order)
    (magnitude,) = checked(magnitude=magnitude)
    unit = float(jnp.finfo(dtype).eps) / 2
    return (rounding / (order * truncation) * unit * magnitude) ** (1 / (order + 1))


def finite_difference_error(order: int, value: ArrayLike, bound: ArrayLike, dtype: Any) -> Array:
    r"""The least bound on the error of a finite difference, that at its best step.

    .. math:: e^* = \frac{p+1}{p}\, b_p\, \frac{u|f|}{h^*}

    Args:
        order: As in `finite_difference_step`.
        value: :math:`|f|`, any shape.
        bound: The bound :math:`M > 0` of the derivative of order `order + 1`.
        dtype: Floating dtype in which :math:`f` is computed.

    Returns:
        The error, of the shape of `value` and `bound`.

    Raises:
        ValueError: If `order` is not 1, 2 or 4, or a size is negative.
    """
    value, bound = checked(value=value, bound=bound)
    rounding = _difference(order)[1]
    unit = float(jnp.finfo(dtype).eps) / 2
    step = finite_difference_step(order, value / bound, dtype)
    return (1 + 1 / order) * rounding * unit * value / step


def rounding_bound(terms: int, dtype: Any) -> float:
    r"""The bound on the relative rounding error of a sum of products, in any order of summation.

    .. math:: \gamma_n = \frac{n u}{1 - n u}

    Args:
        terms: Number :math:`n` of terms.
        dtype: Floating dtype of the sum, with unit roundoff :math:`u`.

    Returns:
        The bound, relative to the sum of the absolute values; infinite where :math:`n u \ge 1`.

    Raises:
        TypeError, ValueError: If `terms` is no integer of 1 or more.

    Source: Higham (2002), Accuracy and stability of numerical algorithms, chapter 3.
    """
    check_count("terms", terms)
    small = terms * float(jnp.finfo(dtype).eps) / 2
    return small / (1 - small) if small < 1 else math.inf


def longest_chain(checkpoints: int, repetitions: int) -> int:
    r"""The longest chain that can be reversed with so many checkpoints and repetitions.

    .. math:: \beta(s, t) = \binom{s + t}{s}

    Args:
        checkpoints: Number :math:`s` of states stored at once, the initial one included.
        repetitions: How often any one step may be run without taping, :math:`t \ge 0`.

    Returns:
        The number of steps.

    Raises:
        TypeError, ValueError: If `checkpoints` is no integer of 1 or more.

    Source: Griewank (1992).
    """
    check_count("checkpoints", checkpoints)
    return math.comb(checkpoints + repetitions, checkpoints) if repetitions >= 0 else 0


def revolve(steps: int, checkpoints: int) -> Plan:
    r"""The plan that reverses a chain with few checkpoints and the least recomputation.

    .. math:: p(l, s) = t\,l - \binom{s + t}{t - 1}, \qquad
        t = \min\{t : \tbinom{s+t}{s} \ge l\}

    Args:
        steps: Length :math:`l` of the chain. Taping each step, one at a time, is not counted.
        checkpoints: Number :math:`s` of states stored at once, the initial one included.

    Returns:
        The plan. Its first state is stored without being told.

    Raises:
        TypeError, ValueError: If a number is no integer of 1 or more.

    Example:
        >>> from dltheory.theory import backprop
        >>> plan = backprop.revolve(10, 3)
        >>> plan.forward_steps, plan.repetitions
        (15, 2)

    Source: Griewank (1992); Griewank and Walther (2000), Algorithm 799.
    """
    check_count("steps", steps)
    check_count("checkpoints", checkpoints)
    actions: list[Action] = []
    ahead: list[tuple[int, int, int] | Action] = [(0, steps, checkpoints)]
    while ahead:
        if isinstance(chain := ahead.pop(), Action):
            actions.append(chain)
            continue
        start, length, slots = chain
        if slots == 1 or length == 1:
            for step in reversed(range(start, start + length)):
                if step > start:
                    actions.append(Action("advance", start, step))
                actions.append(Action("reverse", step, step))
            continue
        middle = start + _split(length, slots)
        actions += [Action("advance", start, middle), Action("store", middle, middle)]
        rest = (middle, start + length - middle, slots - 1)
        ahead += [(start, middle - start, slots), Action("free", middle, middle), rest]
    t = _repetitions(steps, checkpoints)
    saved = math.comb(checkpoints + t, t - 1) if t else 0
    return Plan(t * steps - saved, t, tuple(actions))


def segments(layers: int) -> Segments:
    r"""Checkpointing at equal distances: memory of about twice the root of the depth.

    .. math:: \min_k \; k + \lceil L / k \rceil \approx 2 \sqrt L

    Args:
        layers: Number :math:`L` of layers.

    Returns:
        The least peak, and the smallest number of segments that reaches it.

    Raises:
        TypeError, ValueError: If `layers` is no integer of 1 or more.

    Source: Chen et al. (2016), Training deep nets with sublinear memory cost.
    """
    check_count("layers", layers)
    counts = range(1, min(layers, 2 * math.isqrt(layers)) + 1)
    return Segments(*min((count + math.ceil(layers / count), count) for count in counts))


def _difference(order: int) -> tuple[float, float]:
    if order not in _DIFFERENCES:
        raise ValueError(
            f"order is {order!r}; want 1 (forward), 2 (central) or 4 (central, extrapolated)"
        )
    return _DIFFERENCES[order]


def _repetitions(length: int, slots: int) -> int:
    t = 0
    while longest_chain(slots, t) < length:
        t += 1
    return t


def _split(length: int, slots: int) -> int:
    """How many steps to advance before the next checkpoint: the least of the optimal choices."""
    t = _repetitions(length, slots)
    return max(1, longest_chain(slots, t - 2), length - longest_chain(slots - 1, t))


def linear_dynamics(s: ArrayLike, u0: ArrayLike, t: ArrayLike) -> Array:
    r"""How strong a mode is that a linear network of two layers learns by gradient flow.

    .. math:: \dot u = 2u\,(s - u), \qquad u(t) = \frac{s\,e^{2st}}{e^{2st} - 1 + s / u_0}

    for whitened inputs and balanced weights; time in units of the time constant of learning.

    Args:
        s: Strength of the mode in the data, a singular value of its input-output correlations.
        u0: Strength in the network at the start.
        t: Time. The three have one shape, or are scalars.

    Returns:
        The strength at that time.

    Raises:
        ValueError: If a number is negative.

    Example:
        >>> from dltheory.theory import backprop
        >>> print(f"{backprop.linear_dynamics(3.0, 0.001, 1.5):.4f}")
        2.1896

    Source: Saxe, McClelland and Ganguli (2014).
    """
    s, u0, t = checked(s=s, u0=u0, t=t)
    x = 2 * s * t
    still = x == 0
    mean_decay = jnp.where(still, 1, -jnp.expm1(-x) / jnp.where(still, 1, x))
    return u0 / (jnp.exp(-x) + 2 * t * u0 * mean_decay)
