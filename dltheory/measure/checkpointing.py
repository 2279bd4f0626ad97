r"""Gradients of long chains of layers with few states in memory.

A scan of `L` steps keeps `L` states for its gradient. Here some are kept and the others computed
again on the way back: `segmented_scan` keeps about twice the root of the depth and runs each step
once more; `planned_scan` carries out any plan, such as the optimal `theory.backprop.revolve`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dltheory.measure import arguments

Step = Callable[[Any, Any], tuple[Any, Any]]


class _Schedule(NamedTuple):
    """A plan as numbers: states are rows of one buffer, whose last row is where a run stands.

    Attributes:
        slots: Rows that are stored states; row 0 holds the initial one.
        stored: Shape `(L,)`: the row that the state before each step is first written to.
        moves: Shape `(moves, 4)`: from which row, from which step, to which step, to which row.
        ends: Shape `(L + 1,)`: the moves that go before each reversal, the last step first.
        rows: Shape `(L,)`: the row from which each step is reversed.
    """

    slots: int
    stored: np.ndarray
    moves: np.ndarray
    ends: np.ndarray
    rows: np.ndarray


def segmented_scan(
    step: Step, carry: Any, xs: Any, *, segments: int | None = None
) -> tuple[Any, Any]:
    r"""`jax.lax.scan` that keeps about :math:`2 \sqrt L` states for its gradient, not :math:`L`.

    The stack is cut into segments; on the way back each is run again from its first state, by
    `jax.checkpoint`: one forward pass more.

    Args:
        step: `step(carry, x) -> (carry, y)`, as for `scan`.
        carry: The state at the start.
        xs: What is scanned over, a pytree of arrays with `L` on their first axis.
        segments: Number of segments, the rounded root of `L` by default.

    Returns:
        What `scan` returns: the last state, and the stacked results.

    Raises:
        ValueError: If `xs` holds no array, or `segments` is not between 1 and `L`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.measure import checkpointing
        >>> step = lambda h, w: (jnp.tanh(h @ w), None)
        >>> w = jnp.stack([jnp.eye(2)] * 16)
        >>> loss = lambda w: checkpointing.segmented_scan(step, jnp.ones((1, 2)), w)[0].sum()
        >>> jax.grad(loss)(w).shape
        (16, 2, 2)

    Source: Chen, Xu, Zhang and Guestrin (2016), Training deep nets with sublinear memory cost.
    """
    length = _length(xs)
    count = max(1, round(math.sqrt(length))) if segments is None else segments
    if not 1 <= count <= max(length, 1):
        raise ValueError(f"segments is {segments}; want an integer from 1 to {length}, the length.")
    inner = max(1, math.ceil(length / count))
    whole = length // inner
    segment = lambda carry, xs: lax.scan(step, carry, xs)
    head = jax.tree.map(lambda a: a[: whole * inner].reshape(whole, inner, *a.shape[1:]), xs)
    # Within a loop XLA cannot merge the second run with the first, so nothing need prevent it.
    carry, ys = lax.scan(jax.checkpoint(segment, prevent_cse=False), carry, head)
    ys = jax.tree.map(lambda a: a.reshape(whole * inner, *a.shape[2:]), ys)
    if whole * inner == length:
        return carry, ys
    carry, more = jax.checkpoint(segment)(carry, jax.tree.map(lambda a: a[whole * inner :], xs))
    return carry, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), ys, more)


def planned_scan(
    step: Step, carry: Any, xs: Any, actions: Sequence[tuple[str, int, int]]
) -> tuple[Any, Any]:
    r"""`jax.lax.scan` whose gradient carries out a checkpointing plan, action by action.

    With the plan of `theory.backprop.revolve(L, s)` no more than `s` states are stored at once, and
    its `forward_steps`, the least possible number, are run besides the `L` that are taped one at a
    time. The program does not grow with the plan.

    Args:
        step: `step(carry, x) -> (carry, y)`, as for `scan`. It is differentiated by `carry` and
            `x` alone: pass what else has a gradient in one of them.
        carry: The state at the start, a pytree of real floats.
        xs: What is scanned over, a pytree of arrays of real floats with `L` on their first axis.
        actions: `(kind, start, stop)` in order, with the kinds of `theory.backprop.Action`.

    Returns:
        What `scan` returns. In reverse mode only: a forward-mode derivative raises.

    Raises:
        TypeError: If an array is not of real floats.
        ValueError: If `xs` holds no array, or the actions do not reverse `L` steps in order, each
            from a state that is there.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.measure import checkpointing
        >>> from dltheory.theory import backprop
        >>> step, plan = lambda h, w: (w * h, None), backprop.revolve(4, 2)
        >>> product = lambda w: checkpointing.planned_scan(step, 1.0, w, plan.actions)[0]
        >>> jax.grad(product)(jnp.array([1.0, 2.0, 3.0, 4.0]))
        Array([24., 12.,  8.,  6.], dtype=float32)

    Source: Griewank and Walther (2000), Algorithm 799: revolve.
    """
    length = _length(xs)
    arguments.refuse_integers("carry", carry)
    arguments.refuse_integers("xs", xs)
    schedule = _schedule(actions, length)
    moves, ends, rows = (jnp.asarray(a) for a in (schedule.moves, schedule.ends, schedule.rows))

    @jax.custom_vjp
    def run(carry, xs):
        return lax.scan(step, carry, xs)

    def forward(carry, xs):
        def keep(at, x):
            state, buffer = at
            x, row = x
            after, y = step(state, x)
            return (after, _write(buffer, row, state)), y

        blank = lambda a: jnp.zeros((schedule.slots + 1, *jnp.shape(a)), jnp.result_type(a))
        at = carry, jax.tree.map(blank, carry)
        (last, buffer), ys = lax.scan(keep, at, (xs, jnp.asarray(schedule.stored)))
        return (last, ys), (buffer, xs)

    def backward(memory, cotangents):
        buffer, xs = memory
        delta, ys = cotangents

        def advance(number, buffer):
            source, start, stop, target = moves[number]
            one = lambda k, state: step(state, _read(xs, k))[0]
            return _write(buffer, target, lax.fori_loop(start, stop, one, _read(buffer, source)))

        def reverse(at, k):
            buffer, delta = at
            count = length - 1 - k
            buffer = lax.fori_loop(ends[count], ends[count + 1], advance, buffer)
            _, pull = jax.vjp(step, _read(buffer, rows[count]), _read(xs, k))
            delta, gradient = pull((delta, _read(ys, k)))
            return (buffer, delta), gradient

        number = jnp.arange(length)
        (_, delta), gradients = lax.scan(reverse, (buffer, delta), number, reverse=True)
        return delta, gradients

    run.defvjp(forward, backward)
    return run(jax.tree.map(jnp.asarray, carry), xs)


def _length(xs: Any) -> int:
    leaves = jax.tree.leaves(xs)
    if not leaves:
        raise ValueError("xs holds no array; want a pytree of arrays with L on the first axis.")
    return leaves[0].shape[0]


def _read(stack: Any, k: Array) -> Any:
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, k, keepdims=False), stack)


def _write(stack: Any, k: Array, value: Any) -> Any:
    return jax.tree.map(lambda a, v: lax.dynamic_update_index_in_dim(a, v, k, 0), stack, value)


def _schedule(actions: Sequence[tuple[str, int, int]], length: int) -> _Schedule:
    """Lay a plan out in rows; raises ValueError where it cannot be carried out."""
    held, free, slots = {0: 0}, [], 1
    at_hand, due = 0, length - 1
    stored = np.full(length, -1)
    stored[:1] = 0
    moves, ends, rows = [], [0], []
    for number, (kind, start, stop) in enumerate(actions):
        first = not rows  # The way there runs every step: what it stores is all that matters.
        if kind == "advance" and start in held and start < stop < length:
            moves += [] if first else [[held[start], start, stop, -1]]
            at_hand = stop
        elif kind == "store" and start == at_hand and start not in held:
            held[start] = row = free.pop() if free else slots
            slots = max(slots, row + 1)
            stored[start] = row if first else stored[start]
            moves += [] if first else [[-1, start, start, row]]
        elif kind == "reverse" and start == due and (start in held or start == at_hand):
            rows.append(held.get(start, -1))
            ends.append(len(moves))
            at_hand, due = -1, due - 1
        elif kind == "free" and start in held:
            free.append(held.pop(start))
            stored[start] = -1 if first else stored[start]
        else:
            raise ValueError(
                f"actions[{number}], {kind} {start} {stop}, cannot be carried out on {length} "
                f"steps with step {due} due and the states before {sorted(held)} stored; want a "
                "plan for this length, such as theory.backprop.revolve gives."
            )
    if due != -1:
        raise ValueError(f"actions leave step {due} unreversed; want a plan for {length} steps.")
    # A row of zeros, so that there is one to index where a plan needs no moves.
    table = np.array(moves or [[0, 0, 0, -1]])
    table[:, [0, 3]] = np.where(table[:, [0, 3]] < 0, slots, table[:, [0, 3]])
    stored, last = np.where(stored < 0, slots, stored), np.where(np.array(rows) < 0, slots, rows)
    return _Schedule(slots, *(a.astype(np.int32) for a in (stored, table, np.array(ends), last)))
