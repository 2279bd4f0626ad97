"""Training as a pure function of a key: `optax` within `lax.scan`.

A process is three pure functions, `Stepped(init, step, read)`: a key becomes a state, a state the
next one, and a state what is to be recorded. `descent` makes one of a model, a loss and any
`optax` transformation, `run` goes through it, and `jax.vmap` of `run` over keys trains many seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from dltheory.networks.data import Data


class Stepped(NamedTuple):
    """A process in steps, three pure functions.

    Attributes:
        init: `init(key) -> state`.
        step: `step(state) -> (state, loss)`, the loss being that before the step.
        read: `read(state) -> record`, any pytree of arrays.
    """

    init: Callable[[Array], Any]
    step: Callable[[Any], tuple[Any, Array]]
    read: Callable[[Any], Any]


class State(NamedTuple):
    """What a step of `descent` starts from, and a checkpoint holds.

    Attributes:
        step: Steps done.
        key: The key that the order of each epoch is drawn from.
        order: Indices of the examples of this epoch, shape `(batches, batch)`; None in full batch.
        params: The parameters.
        optimizer: State of the `optax` transformation.
    """

    step: Array
    key: Array
    order: Array | None
    params: Any
    optimizer: Any


class History(NamedTuple):
    """What happened, as arrays.

    Attributes:
        loss: Loss of each batch before its step, shape `(steps,)`.
        at: Steps done at each record, shape `(records,)`: from 0 to all.
        record: What was read there, each leaf with a leading axis of that length.
    """

    loss: Array
    at: Array
    record: Any


def descent(
    f: Callable[[Any, Array], Array],
    init: Callable[[Array], Any],
    loss: Callable[[Array, Array], Array],
    optimizer: optax.GradientTransformation,
    data: Data,
    *,
    batch: int | None = None,
    record: Callable[[Any], Any] | None = None,
) -> Stepped:
    r"""Descend the loss of a model by its gradient, on all examples or on minibatches.

    .. math:: \theta_{t+1} = \theta_t + u_t, \qquad u_t = \text{optimizer}\left(
        \nabla_\theta\, \ell\big(f(\theta_t, x_{B_t}),\, y_{B_t}\big)\right)

    Each epoch takes the examples in a new random order, in batches; what does not fill the last
    batch is left out of that epoch. Transformations that ask for `value`, `grad` and `value_fn`
    (line searches, L-BFGS) are given them, those of the batch.

    Args:
        f: `f(params, x) -> y`.
        init: `init(key) -> params`, any pytree of floating-point arrays.
        loss: `loss(prediction, y) -> scalar`, a mean over the examples of a batch.
        optimizer: Any `optax` transformation. Some, Adam among them, need JAX's standard
            promotion of dtypes.
        data: Inputs and labels or targets, the examples along the first axis of both.
        batch: Examples a step, or None for all of them in their own order.
        record: `record(params)`, a pytree of arrays to follow through training.

    Returns:
        The process, whose state is a `State`.

    Raises:
        ValueError: If inputs and labels differ in number, or `batch` is out of range.
        TypeError: From `step`, if the loss is not a real scalar.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from dltheory.networks import data, training
        >>> line = data.Data(jnp.arange(4.0), 3 * jnp.arange(4.0))
        >>> process = training.descent(
        ...     lambda w, x: w * x,
        ...     lambda key: jax.random.normal(key),
        ...     lambda prediction, y: jnp.mean((prediction - y) ** 2),
        ...     optax.sgd(0.1),
        ...     line,
        ...     record=lambda w: w,
        ... )
        >>> state, history = training.run(process, jax.random.key(0), 20, every=10)
        >>> print(f"{state.params:.3f}")
        3.000
        >>> history.loss.shape, history.at.tolist(), history.record.shape
        ((20,), [0, 10, 20], (3,))
    """
    examples = len(data.y)
    if len(data.x) != examples:
        raise ValueError(
            f"data holds {len(data.x)} inputs but {examples} labels; want one label for each"
        )
    if batch is not None and not 1 <= batch <= examples:
        raise ValueError(
            f"batch is {batch}; want 1 to {examples}, the number of examples in data, or None"
        )
    transform = optax.with_extra_args_support(optimizer)
    size = examples if batch is None else batch
    batches = examples // size

    def start(key: Array) -> State:
        key_params, key_order = jax.random.split(key)
        params = init(key_params)
        order = None if batch is None else jnp.zeros((batches, size), jnp.int32)
        return State(jnp.zeros((), jnp.int32), key_order, order, params, transform.init(params))

    def draw(state: State) -> Array:
        key = jax.random.fold_in(state.key, state.step // batches)
        indices = jax.random.permutation(key, jnp.arange(examples, dtype=jnp.int32))
        return indices[: batches * size].reshape(batches, size)

    def step(state: State) -> tuple[State, Array]:
        order, (x, y) = state.order, data
        if order is not None:
            # One seed or many, they reach an epoch's end together: nothing is drawn in between.
            within = state.step % batches
            order = jax.lax.cond(within == 0, draw, lambda state: state.order, state)
            x, y = x[order[within]], y[order[within]]
        value_fn = lambda params: _scalar(loss(f(params, x), y))
        value, gradient = jax.value_and_grad(value_fn)(state.params)
        updates, memory = transform.update(
            gradient, state.optimizer, state.params, value=value, grad=gradient, value_fn=value_fn
        )
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, state.key, order, params, memory), value

    return Stepped(start, step, lambda state: {} if record is None else record(state.params))


def run(
    process: Stepped, key: Array, steps: int, *, every: int | None = None, unroll: int = 1
) -> tuple[Any, History]:
    """Start a process and take a number of steps.

    Args:
        process: Such as `descent` returns.
        key: The key that it starts from.
        steps: How many steps to take.
        every: Steps between two records, a divisor of `steps`; None for the first state and the
            last one only.
        unroll: Steps written out in the body of the loop. More take longer to compile; a few make
            small networks faster, whose steps cost no more than the loop itself.

    Returns:
        The last state, and the `History`.

    Raises:
        ValueError: If `steps` is not positive, or `every` does not divide it.
    """
    every = steps if every is None else every
    if steps < 1 or every < 1 or steps % every:
        raise ValueError(
            f"steps is {steps} and every is {every}; want positive numbers, steps a multiple of "
            "every"
        )
    step = lambda state, _: process.step(state)
    advance = lambda state: jax.lax.scan(step, state, length=every, unroll=unroll)
    state = process.init(key)
    losses = jax.eval_shape(advance, state)[1]
    rest = lambda state: (state, jnp.zeros(losses.shape, losses.dtype))

    def read_and_advance(state, index):
        # The last record has no steps after it; so `read` stands in the program once.
        record = process.read(state)
        state, losses = jax.lax.cond(index < steps // every, advance, rest, state)
        return state, (losses, record)

    indices = jnp.arange(steps // every + 1, dtype=jnp.int32)
    state, (losses, record) = jax.lax.scan(read_and_advance, state, indices)
    return state, History(losses[:-1].reshape(-1), indices * every, record)


def _scalar(value: Array) -> Array:
    value = jnp.asarray(value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(
            f"loss(prediction, y) is {value.dtype}{list(value.shape)}, want a real scalar: end it "
            "with a mean or a sum."
        )
    return value
