r"""The chain rule: what it sends through a model, whether it is right, and what it costs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dltheory.measure import arguments, gradient_check, slope_estimates, timing
from dltheory.measure.chain_rule import Layer
from dltheory.networks import sites


class Backpropagation(NamedTuple):
    """What backpropagation computes on its way forwards and back.

    Attributes:
        loss: The loss, shape `()`.
        gradients: Its derivatives by the parameters, of their structure.
        values: The input, then the value of each layer.
        deltas: The derivatives of the loss by these values, each of its shape.
    """

    loss: Array
    gradients: list
    values: list[Array]
    deltas: list[Array]


class GradientCheck(NamedTuple):
    """What a check of a gradient found.

    Attributes:
        ok: Whether the verdict is `correct`.
        order: Observed order at which central differences approach the gradient: 2 for a smooth
            function, about 0 for a wrong gradient, infinite where they are exact but for rounding.
        leaf: The entry of the arguments that is worst, such as `args[0]['w'][2, 3]`; `None` where
            nothing is wrong with one.
        verdict: `correct`, `wrong`, `kink` or `noisy`.
        estimates: The slope along one random direction by `forward`, `central` and `richardson`
            differences, each with its best step, error and observed order; by `complex` steps too
            where the program of the function takes complex numbers and is complex differentiable,
            part by part. Empty where the gradient is not finite.
    """

    ok: bool
    order: float
    leaf: str | None
    verdict: str
    estimates: dict[str, slope_estimates.Estimate]


class Cost(NamedTuple):
    """What XLA says that a compiled function costs.

    Attributes:
        flops: Floating-point operations. The body of a loop counts once.
        bytes_accessed: Bytes read and written.
        temporary_bytes: Memory for values in between.
        argument_bytes: Memory of the arguments.
        output_bytes: Memory of the results.
    """

    flops: float
    bytes_accessed: float
    temporary_bytes: int
    argument_bytes: int
    output_bytes: int


class CostRatios(NamedTuple):
    """The price of derivatives relative to that of the function.

    Attributes:
        gradient: FLOPs of the value and the gradient.
        hessian_product: FLOPs of the gradient and one Hessian-vector product, forward over reverse.
        gradient_time: Time of the first, or `None` where none was taken.
        hessian_product_time: Time of the second, likewise.
    """

    gradient: float
    hessian_product: float
    gradient_time: float | None = None
    hessian_product_time: float | None = None


def deltas(loss: Callable[[Array], Array], f: Callable, params: Any, x: Array) -> dict[str, Array]:
    r"""The derivatives of a loss by the value of every layer, in one reverse pass.

    .. math:: \delta_l = \frac{\partial \mathcal{L}}{\partial h_l}
        = J_{l+1}^\top \delta_{l+1}

    The factors :math:`J_{l+1}` are those of `ledger.factors`.

    Args:
        loss: `loss(y) -> scalar`, a function of the model's output alone; close over targets.
        f: `f(params, x) -> y`, unmodified.
        params: Any pytree of parameters.
        x: A batch of inputs.

    Returns:
        By `input`, by the text of each layer in run order, and by `output`: the delta, of the
        shape of the value; those of a scanned stack have its leading axes.

    Raises:
        SiteError: If the model has no layers.
        TypeError: If a parameter is not a real float, or the loss not a real scalar.
        ValueError: If the loss is NaN or infinite.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import backprop
        >>> f = lambda w, x: (x @ w["W1"]) @ w["W2"]
        >>> w = {"W1": jnp.eye(2), "W2": jnp.array([[3.0], [4.0]])}
        >>> backprop.deltas(jnp.sum, f, w, jnp.ones((1, 2)))["W1"]
        Array([[3., 4.]], dtype=float32)

    Source: Rumelhart, Hinton and Williams (1986).
    """
    arguments.refuse_integers("params", params)
    program = sites.trace(f, params, x)
    _, values = jax.eval_shape(program.run, params, x)
    ends = {"input": x, "output": jax.ShapeDtypeStruct(program.shape, program.dtype)}
    order = ["input", *(layer.text for layer in program.layers), "output"]
    shapes = values | ends
    taps = {text: jnp.zeros(shapes[text].shape, shapes[text].dtype) for text in order}

    def total(taps: dict[str, Array]) -> Array:
        inner = {text: taps[text] for text in values}
        y, _ = program.run(params, x + taps["input"], inner)
        return arguments.scalar(loss(y + taps["output"]))

    value, gradient = jax.value_and_grad(total)(taps)
    arguments.refuse_nan(value)
    return {text: gradient[text] for text in order}


def backpropagate(
    params: Sequence,
    x: Array,
    y: Array,
    layers: Sequence[Layer],
    *,
    loss: str = "squared_error",
) -> Backpropagation:
    r"""Backpropagation as the textbook writes it: values forwards, deltas back, outer products.

    .. math::
        h_l = F_l(h_{l-1}), \qquad \delta_L = \frac{\partial \mathcal L}{\partial h_L}, \qquad
        \delta_{l-1} = \Big(\frac{\partial F_l}{\partial h_{l-1}}\Big)^\top \delta_l, \qquad
        \nabla_{\theta_l} = \Big(\frac{\partial F_l}{\partial \theta_l}\Big)^\top \delta_l

    with :math:`\delta_L = (h_L - y) / N` for the squared error
    :math:`\frac{1}{2N} \|h_L - y\|^2`, and :math:`(\operatorname{softmax}(h_L) - y) / N` for the
    cross-entropy.

    Args:
        params: Parameters of each layer, as its function in `measure.chain_rule` says.
        x: Inputs, shape `(N, ...)`.
        y: Targets of the shape of the output; probabilities of the classes for the cross-entropy.
        layers: Layers of `measure.chain_rule`, in order.
        loss: `squared_error` or `cross_entropy`, averaged over the examples.

    Returns:
        The loss, the gradients, and all values and deltas on the way.

    Raises:
        TypeError: If a parameter, `x` or `y` is not of real floats.
        ValueError: If there is not one entry of `params` for each layer, a parameter is not read,
            `y` is not of the shape of the output, `loss` is neither of the two, or its value is
            NaN or infinite.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import backprop, chain_rule
        >>> layers = [chain_rule.dense(), chain_rule.activation("tanh")]
        >>> params = [{"kernel": jnp.zeros((2, 1))}, {}]
        >>> x, y = jnp.array([[1.0, 2.0]]), jnp.array([[-0.5]])
        >>> backprop.backpropagate(params, x, y, layers).gradients[0]["kernel"]
        Array([[0.5],
               [1. ]], dtype=float32)

    Source: Rumelhart, Hinton and Williams (1986), Learning representations by back-propagating
    errors.
    """
    for name, given in (("params", params), ("x", x), ("y", y)):
        arguments.refuse_integers(name, given)
    if len(params) != len(layers):
        raise ValueError(
            f"params has {len(params)} entries for {len(layers)} layers; want one for each, {{}} "
            "where a layer has no parameters"
        )
    if loss not in ("squared_error", "cross_entropy"):
        raise ValueError(f"loss is {loss!r}; want squared_error or cross_entropy")
    values, memories = [x], []
    for layer, own in zip(layers, params, strict=True):
        value, memory = layer.forward(own, values[-1])
        values.append(value)
        memories.append(memory)
    out, count = values[-1], x.shape[0]
    if y.shape != out.shape:
        raise ValueError(f"y has shape {y.shape}; want {out.shape}, that of the output")
    if loss == "squared_error":
        total = jnp.sum((out - y) ** 2) / 2
        delta = out - y
    else:
        total = jnp.sum(y * (jax.nn.logsumexp(out, axis=-1, keepdims=True) - out))
        delta = jax.nn.softmax(out, axis=-1) * y.sum(axis=-1, keepdims=True) - y
    arguments.refuse_nan(total)
    gradients, found = [], [delta / count]
    for layer, own, memory in zip(layers[::-1], params[::-1], memories[::-1], strict=True):
        gradient, below = layer.backward(own, memory, found[-1])
        gradients.append(gradient)
        found.append(below)
    unread = set(arguments.names("params", params))
    unread -= set(arguments.names("params", gradients[::-1]))
    if unread:
        raise ValueError(
            f"{', '.join(sorted(unread))} is read by no layer: measure.chain_rule says what each "
            "layer's parameters are called."
        )
    return Backpropagation(total / count, gradients[::-1], values, found[::-1])


def check_gradient(fn: Callable, *args: Any) -> GradientCheck:
    r"""Tell a wrong gradient from a kink, and both from rounding.

    .. math::
        c(h) = \frac{f(x + hv) - f(x - hv)}{2h} - \nabla f \cdot v, \qquad
        j(h) = \frac{f(x + hv) + f(x - hv) - 2 f(x)}{h}

    along random directions :math:`v`, in all arguments and in each leaf alone, for steps
    :math:`h` over all decades that the dtype has. Where the gradient is right :math:`c \to 0`;
    where it is wrong :math:`c` stays; at a kink the one-sided slopes differ and :math:`j` stays.
    The rounding noise of :math:`f` is measured from differences of high order close to `x`, and
    decides which steps count. A gradient between the one-sided slopes, or as far off as they are
    apart, is a convention and not a bug: the verdict there is `kink`. A gradient that is not finite
    is `wrong`. Where no step resolves a twentieth of the slope the verdict is `noisy`: use float64.

    Args:
        fn: Any function of arrays or pytrees that JAX differentiates in reverse, with custom rules
            or without. Results that are no scalars are weighted at random.
        *args: Its arguments, pytrees of real floats. The directions are the same in every call.

    Returns:
        The verdict. The worst entry of a leaf of more than 64 entries is found by bisection.

    Raises:
        TypeError: If a leaf of the arguments, or a result, is not a real float.
        ValueError: If a leaf is not read by `fn`, or the value of `fn` is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.measure import backprop
        >>> backprop.check_gradient(jnp.sin, jnp.array(1.0)).verdict
        'correct'
        >>> backprop.check_gradient(jax.nn.relu, jnp.array(0.0)).verdict
        'kink'

    Source: Moré and Wild (2011), Estimating computational noise, for the noise; Squire and Trapp
    (1998), Using complex variables to estimate derivatives of real functions.
    """
    arguments.refuse_integers("args", args)
    arguments.refuse_ignored("args", lambda args: fn(*args), args)
    order, leaf, verdict, estimates = gradient_check.check(fn, args)
    return GradientCheck(verdict == "correct", order, leaf, verdict, estimates)


def cost(fn: Callable, *args: Any) -> Cost:
    """What a function costs, as XLA counts it on the program that it compiles.

    Args:
        fn: Any function that `jax.jit` takes.
        *args: Its arguments; arrays or `jax.ShapeDtypeStruct`. Nothing is run.

    Returns:
        FLOPs and memory. They depend on the backend and the version of XLA.

    Raises:
        NotImplementedError: If the backend has no such analysis.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import backprop
        >>> print(backprop.cost(jnp.matmul, jnp.ones((8, 16)), jnp.ones((16, 4))).flops)
        1024.0
    """
    return _account(jax.jit(fn).lower(*args).compile())


def cost_ratios(fn: Callable, *args: Any, rounds: int = 0) -> CostRatios:
    r"""The price of derivatives of a scalar function by its first argument.

    .. math:: \frac{\operatorname{cost}(f, \nabla f)}{\operatorname{cost}(f)} \le 3
        \text{ to } 5

    The cheap-gradient principle: a constant, whatever the number of inputs. It is 3 for products
    and quotients of two variables alone, 5 for all arithmetic, and 3 to 4 where moves of memory
    count too, then 7 to 10 for the second. Matrix products give 3 and 9.

    Args:
        fn: `fn(*args) -> scalar`.
        *args: Its arguments; the first is a pytree of real floats. Arrays or, where nothing is
            timed, `jax.ShapeDtypeStruct`.
        rounds: How often the three programs are run in turn to be timed as well. Times are no
            function of the arguments: by default none are taken.

    Returns:
        The ratios of FLOPs, and of times.

    Raises:
        TypeError: If a leaf of the first argument is not a real float, or `fn` no real scalar.
        ValueError: If a leaf of the first argument is not read by `fn`, or `rounds` is negative;
            where programs are run, also if the value of `fn` is NaN or infinite.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import backprop
        >>> model = lambda w, x: jnp.sum((x @ w[0]) @ w[1])
        >>> w, x = (jnp.ones((64, 64)), jnp.ones((64, 64))), jnp.ones((256, 64))
        >>> print(f"{backprop.cost_ratios(model, w, x).gradient:.1f}")
        2.5

    Source: Baur and Strassen (1983), The complexity of partial derivatives; Griewank and Walther
    (2008), Evaluating derivatives, sections 3.3 and 3.4, for moves of memory and Hessians.
    """
    arguments.refuse_integers("args[0]", args[0])
    if rounds < 0:
        raise ValueError(f"rounds is {rounds}; want the number of times to time each, or 0")
    scalar = lambda *args: arguments.scalar(fn(*args), "fn(*args)")
    arguments.refuse_ignored("args[0]", scalar, *args)
    both = jax.value_and_grad(scalar)

    def product(direction: Any, *args: Any) -> Any:
        return jax.jvp(lambda first: both(first, *args[1:])[1], (args[0],), (direction,))

    called = (scalar, args), (both, args), (product, (args[0], *args))
    compiled = [jax.jit(one).lower(*given).compile() for one, given in called]
    once, *flops = (_account(program).flops for program in compiled)
    times = [None, None]
    if rounds:
        arguments.refuse_nan(compiled[0](*args), "fn(*args)")
        runs = [partial(p, *given) for p, (_, given) in zip(compiled, called, strict=True)]
        times = timing.ratios(runs, rounds)[1:].tolist()
    return CostRatios(*(count / once for count in flops), *times)


def _account(compiled: jax.stages.Compiled) -> Cost:
    counts, memory = compiled.cost_analysis(), compiled.memory_analysis()
    if counts is None or memory is None:
        raise NotImplementedError("this backend of XLA has no analysis of cost and memory.")
    return Cost(
        float(counts.get("flops", 0)),
        float(counts.get("bytes accessed", 0)),
        int(memory.temp_size_in_bytes),
        int(memory.argument_size_in_bytes),
        int(memory.output_size_in_bytes),
    )
