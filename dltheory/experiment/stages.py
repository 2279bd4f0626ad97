"""Long trials in stages: a process of many steps, and its state on disk between two stages.

The trial is taken up again in every stage, from its key and configuration, and only the state of
its process goes from one to the next. So a stage is one compiled program, whether it follows
another one or a checkpoint, and its bits are the same.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.experiment import store
from dltheory.experiment.parts import Parts
from dltheory.experiment.sweep import Cell, Sweep
from dltheory.networks.training import Stepped

# The time between two checkpoints, in units of what the last one took: they cost five per cent.
_PAUSE = 20
RECORD = "of-"  # What a checkpoint's arrays of the history are named by; the others are the state.


class Stages(NamedTuple):
    """Compiled programs for a batch of processes.

    Attributes:
        start: `start(key, points) -> (state, record)`, the state as a list of plain arrays.
        advance: `advance(key, points, state) -> (state, loss, record)`, `every` steps later.
        state: Shapes and dtypes of the state.
    """

    start: Callable[..., tuple[list[Array], Mapping[str, Array]]]
    advance: Callable[..., tuple[list[Array], Array, Mapping[str, Array]]]
    state: Sequence[jax.ShapeDtypeStruct]


def start(
    sweep: Sweep, cell: Cell, key: Array, point: tuple[Array, Mapping[str, Array]]
) -> tuple[list[Array], Mapping[str, Any]]:
    """Start the process of one point.

    Args:
        sweep: The sweep.
        cell: One of `sweep.split()`.
        key: `sweep.key(cell)`.
        point: The seed's index and the grid's values.

    Returns:
        The state, and the first record.
    """
    process, key = sweep.process(cell, key, point)
    state = process.init(key)
    return _plain(state), process.read(state)


def advance(
    sweep: Sweep,
    cell: Cell,
    key: Array,
    point: tuple[Array, Mapping[str, Array]],
    state: Sequence[Array],
) -> tuple[list[Array], Array, Mapping[str, Any]]:
    """Take `every` steps of the process of one point.

    Args:
        sweep: The sweep.
        cell: One of `sweep.split()`.
        key: `sweep.key(cell)`.
        point: The seed's index and the grid's values.
        state: That of `start`, or of the stage before.

    Returns:
        The state, the losses and the record.
    """
    process, key = sweep.process(cell, key, point)
    step = lambda state, _: process.step(state)
    last, loss = jax.lax.scan(step, _own(process, key, state), length=sweep.every)
    return _plain(last), loss, process.read(last)


def run(
    sweep: Sweep,
    stages: Stages,
    key: Array,
    points: Any,
    *,
    parts: Parts | None,
    first: int,
    tell: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Run a batch of processes, from the last checkpoint if there is one.

    Args:
        sweep: The sweep.
        stages: The compiled programs.
        key: As they take it.
        points: As they take them.
        parts: Where to keep checkpoints, and to look for one.
        first: Index of the first point of the batch.
        tell: Called with the steps done, after every stage but the last.

    Returns:
        `loss`, and the records under their names.

    Raises:
        ResultError: If a checkpoint is damaged, or is that of another trial.
    """
    assert sweep.steps is not None
    assert sweep.every is not None
    chunk = len(points[0])
    found = None if parts is None else parts.checkpoint(first, chunk)
    if found is None:
        done, history = 0, {"loss": []}
        state, record = stages.start(key, points)
        history |= {name: [np.asarray(a)[:, None]] for name, a in record.items()}
    else:
        done, arrays = found
        state = _taken(parts.folder, stages, arrays)  # pyright: ignore
        records = (name for name in arrays if name.startswith(RECORD))
        history = {name.removeprefix(RECORD): [arrays[name]] for name in records}
        tell(done)
    clock, cost = time.perf_counter(), 0.0
    while done < sweep.steps:
        state, loss, record = stages.advance(key, points, state)
        history["loss"].append(np.asarray(loss))
        for name, array in record.items():
            history[name].append(np.asarray(array)[:, None])
        done += sweep.every
        if done == sweep.steps:
            break
        tell(done)
        if parts is not None and time.perf_counter() - clock >= _PAUSE * cost:
            clock = time.perf_counter()
            parts.keep(first, chunk, done, _written(state, history))
            cost, clock = time.perf_counter() - clock, time.perf_counter()
    return {name: np.concatenate(pieces, axis=1) for name, pieces in history.items()}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(state: Any) -> list[Array]:
    """The leaves as arrays of numbers, none of them weakly typed."""
    leaves = map(jnp.asarray, jax.tree.leaves(state))
    strong = lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype)
    return [jax.random.key_data(leaf) if _is_key(leaf) else strong(leaf) for leaf in leaves]


def _own(process: Stepped, key: Array, plain: Sequence[Array]) -> Any:
    """The state of a process of these leaves."""
    kinds = []

    def look(key: Array) -> Any:
        state = process.init(key)
        leaves = map(jnp.asarray, jax.tree.leaves(state))
        kinds.extend(jax.random.key_impl(leaf) if _is_key(leaf) else None for leaf in leaves)
        return state

    tree = jax.tree.structure(jax.eval_shape(look, key))
    own = lambda leaf, kind: leaf if kind is None else jax.random.wrap_key_data(leaf, impl=kind)
    return jax.tree.unflatten(tree, map(own, plain, kinds))


def _written(
    state: Sequence[Array], history: Mapping[str, Sequence[np.ndarray]]
) -> dict[str, np.ndarray]:
    """A checkpoint's arrays: the state, and the history so far."""
    arrays = {f"state-{i}": np.asarray(leaf) for i, leaf in enumerate(state)}
    arrays = {name: array.view(_storable(array.dtype)) for name, array in arrays.items()}
    whole = {RECORD + name: np.concatenate(all_, axis=1) for name, all_ in history.items()}
    return {**arrays, **whole}


def _taken(folder: Path, stages: Stages, arrays: Mapping[str, np.ndarray]) -> list[Any]:
    """The state out of a checkpoint's arrays, if it is one of these stages."""
    state = [arrays[name] for name in (f"state-{i}" for i in range(len(arrays))) if name in arrays]
    shapes = [(leaf.shape, leaf.dtype) for leaf in state]
    wanted = [(leaf.shape, _storable(np.dtype(leaf.dtype))) for leaf in stages.state]
    if shapes != wanted:
        raise store.ResultError(
            f"{folder} holds a state of {len(shapes)} arrays {shapes}, the trial's "
            f"is of {len(wanted)}: {wanted}. Remove the folder to begin the cell anew"
        )
    return [a.view(leaf.dtype) for a, leaf in zip(state, stages.state, strict=True)]


def _storable(dtype: np.dtype) -> np.dtype:
    """The dtype itself, or integers of its size where it is none of numpy's own (bfloat16)."""
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")
