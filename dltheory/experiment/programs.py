"""A cell as a compiled program: as many points at once as fit, spread over the local devices."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from dltheory.experiment import store
from dltheory.experiment.sweep import Cell, Sweep


class Program(NamedTuple):
    """A compiled batch of trials.

    Attributes:
        run: `run(key, points) -> {name: array}`, for `chunk` points at a time.
        chunk: How many points.
    """

    run: Callable[..., Mapping[str, Any]]
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
        TypeError: If the trial returns anything but a dict of arrays that a result can hold.
    """
    if sweep.batching == "mesh":
        return Program(_compile(sweep, _on_all_devices(sweep, cell), key, points, 1), 1)
    count, devices = len(points[0]), jax.local_devices()
    if chunk:
        batch = _on_local_devices(sweep, cell, _divisor(chunk, len(devices)))
        return Program(_compile(sweep, batch, key, points, chunk), chunk)
    fitting = count
    while True:
        chunk = math.ceil(count / math.ceil(count / fitting))
        spread = min(len(devices), chunk)
        chunk = spread * math.ceil(chunk / spread)
        program = _compile(sweep, _on_local_devices(sweep, cell, spread), key, points, chunk)
        used = _bytes(program)
        if used <= sweep.memory or chunk == spread:
            return Program(program, chunk)
        fitting = max(spread, min(chunk - spread, chunk * sweep.memory // used))


def _on_local_devices(sweep: Sweep, cell: Cell, spread: int) -> Callable[..., Any]:
    def batch(key, points):
        one = functools.partial(sweep.run_point, cell, key)
        return jax.vmap(one)(points) if sweep.batching == "vmap" else jax.lax.map(one, points)

    if spread == 1:
        return batch
    devices = jax.local_devices()[:spread]
    mesh = jax.make_mesh((spread,), ("points",), (AxisType.Auto,), devices=devices)
    each = PartitionSpec("points")
    # Unchecked: a trial may carry constants through its loops, which the check would refuse.
    return jax.shard_map(
        batch, mesh=mesh, in_specs=(PartitionSpec(), each), out_specs=each, check_vma=False
    )


def _on_all_devices(sweep: Sweep, cell: Cell) -> Callable[..., Any]:
    mesh = jax.make_mesh((jax.device_count(),), ("devices",), (AxisType.Auto,))
    whole = NamedSharding(mesh, PartitionSpec())

    def batch(key, points):
        [point] = [jax.tree.map(lambda a: a[0], points)]
        outputs = sweep.run_point(cell, key, point, mesh)
        # Every process holds all of the result, so that the first can write it.
        return jax.tree.map(lambda a: jax.lax.with_sharding_constraint(a[None], whole), outputs)

    return batch


def _compile(sweep: Sweep, batch: Callable[..., Any], key: Any, points: Any, chunk: int) -> Any:
    rows = np.minimum(np.arange(chunk), len(points[0]) - 1)
    lowered = jax.jit(batch).lower(key, jax.tree.map(lambda a: a[rows], points))
    _check_outputs(sweep, lowered.out_info)
    return lowered.compile()


def _divisor(number: int, most: int) -> int:
    return max(d for d in range(1, min(number, most) + 1) if number % d == 0)


def _bytes(program: jax.stages.Compiled) -> int:
    """What a compiled program takes of a device; zero where the backend does not say."""
    use = program.memory_analysis()
    if use is None:
        return 0
    return use.argument_size_in_bytes + use.output_size_in_bytes + use.temp_size_in_bytes


def _check_outputs(sweep: Sweep, outputs: Any) -> None:
    """Refuse before any work what could not be written after it."""
    if not isinstance(outputs, Mapping) or not outputs:
        raise TypeError(f"the trial of {sweep.name!r} returns {outputs!r}, want a dict of arrays")
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
