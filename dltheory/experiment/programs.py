"""A cell as a compiled program: as many points at once as fit, spread over the local devices."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dltheory.experiment import stages, store
from dltheory.experiment.stages import Stages
from dltheory.experiment.sweep import Cell, Sweep


class Program(NamedTuple):
    """A compiled batch of trials.

    Attributes:
        run: `run(key, points) -> {name: array}`, for `chunk` points at a time; the `Stages` of
            their processes where the sweep has steps.
        chunk: How many points.
    """

    run: Callable[..., Mapping[str, Any]] | Stages
    chunk: int


def build(sweep: Sweep, cell: Cell, key: jax.Array, points: Any, *, chunk: int = 0) -> Program:
    """Compile the largest batch of points that fits the memory of each device.

    Points are dealt out evenly to the local devices, whole ones; chunks come out nearly even too.
    With `batching="mesh"` a chunk is one point, over the devices of all processes.

    Args:
        sweep: The sweep.
        cell: One of `sweep.split()`.
        key: `sweep.key(cell)`.
        points: `sweep.points()`.
        chunk: The size of the batch, where it was decided before; 0 to choose it.

    Returns:
        The `Program`.

    Raises:
        TypeError: If the trial returns anything but a dict of arrays that a result can hold, or a
            process that reads one.
    """
    if sweep.batching == "mesh":
        lowered = jax.jit(_on_all_devices(sweep, cell)).lower(key, _first(points, 1))
        _check_outputs(sweep, lowered.out_info)
        return Program(lowered.compile(), 1)
    count, devices = len(points[0]), jax.local_devices()
    if chunk:
        spread = _divisor(chunk, len(devices))
        return Program(_compile(sweep, cell, spread, key, points, chunk)[0], chunk)
    fitting = count
    while True:
        chunk = math.ceil(count / math.ceil(count / fitting))
        spread = min(len(devices), chunk)
        chunk = spread * math.ceil(chunk / spread)
        program, used = _compile(sweep, cell, spread, key, points, chunk)
        if used <= sweep.memory or chunk == spread:
            return Program(program, chunk)
        fitting = max(spread, min(chunk - spread, chunk * sweep.memory // used))


def _on_local_devices(sweep: Sweep, one: Callable[..., Any], spread: int, count: int) -> Any:
    """Compile `one(key, *each)`, of `count` arguments, for a batch of all of them."""

    def batch(key, *each):
        if sweep.batching == "vmap":
            return jax.vmap(functools.partial(one, key))(*each)
        return jax.lax.map(lambda each: one(key, *each), each)

    if spread == 1:
        return jax.jit(batch)
    devices = jax.local_devices()[:spread]
    mesh = jax.make_mesh((spread,), ("points",), (AxisType.Auto,), devices=devices)
    specs = PartitionSpec(), *[PartitionSpec("points")] * count
    # Unchecked: a trial may carry constants through its loops, which the check would refuse.
    mapped = jax.shard_map(batch, mesh=mesh, in_specs=specs, out_specs=specs[1], check_vma=False)
    shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
    return jax.jit(mapped, in_shardings=shardings, out_shardings=shardings[1])


def _on_all_devices(sweep: Sweep, cell: Cell) -> Callable[..., Any]:
    mesh = jax.make_mesh((jax.device_count(),), ("devices",), (AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())

    def batch(key, points):
        [point] = [jax.tree.map(lambda a: a[0], points)]
        outputs = sweep.run_point(cell, key, point, mesh)
        # Every process holds all of the result, so that the first can write it.
        return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a[None], whole), outputs)

    return batch


def _compile(
    sweep: Sweep, cell: Cell, spread: int, key: Any, points: Any, chunk: int
) -> tuple[Any, int]:
    """What `Program.run` holds, and the bytes that it takes of a device."""
    points = _first(points, chunk)
    if sweep.steps is None:
        one = functools.partial(sweep.run_point, cell)
        lowered = _on_local_devices(sweep, one, spread, 1).lower(key, points)
        _check_outputs(sweep, lowered.out_info)
        program = lowered.compile()
        return program, _bytes(program)
    start, advance = (functools.partial(f, sweep, cell) for f in (stages.start, stages.advance))
    first = _on_local_devices(sweep, start, spread, 1).lower(key, points)
    state, record = first.out_info
    following = _on_local_devices(sweep, advance, spread, 2).lower(key, points, state)
    _check_outputs(sweep, record, following.out_info[1])
    both = first.compile(), following.compile()
    return Stages(*both, state), max(map(_bytes, both))


def _first(points: Any, chunk: int) -> Any:
    rows = np.minimum(np.arange(chunk), len(points[0]) - 1)
    return jax.tree.map(lambda a: a[rows], points)


def _divisor(number: int, most: int) -> int:
    return max(d for d in range(1, min(number, most) + 1) if number % d == 0)


def _bytes(program: jax.stages.Compiled) -> int:
    """What a compiled program takes of a device; zero where the backend does not say."""
    use = program.memory_analysis()
    if use is None:
        return 0
    return use.argument_size_in_bytes + use.output_size_in_bytes + use.temp_size_in_bytes


def _check_outputs(sweep: Sweep, outputs: Any, loss: Any = None) -> None:
    """Refuse before any work what could not be written after it."""
    if not isinstance(outputs, Mapping) or not (outputs or sweep.steps):
        raise TypeError(f"the trial of {sweep.name!r} returns {outputs!r}, want a dict of arrays")
    if sweep.steps is not None:
        if taken := {"at", "loss"} & outputs.keys():
            raise TypeError(
                f"the trial of {sweep.name!r} reads {taken.pop()!r}, a name that results with "
                "steps have taken"
            )
        outputs = {"loss": loss, **outputs}
        for name in outputs:
            store.check_name(stages.RECORD + name, "array")
    for name, output in outputs.items():
        store.check_name(name, "array")
        if name in sweep.grid:
            raise TypeError(f"the trial of {sweep.name!r} returns {name!r}, an axis of its grid")
        if not isinstance(output, jax.ShapeDtypeStruct):
            raise TypeError(
                f"the trial of {sweep.name!r} returns a {type(output).__name__} as {name!r}, "
                "want an array: give each field a name of its own"
            )
        store.check_dtype(name, output.dtype)
