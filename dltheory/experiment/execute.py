"""Sweeps on the local device: compile a cell once, run it in chunks, keep what is done."""

import functools
import inspect
import json
import math
import operator
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dltheory.experiment import provenance, store
from dltheory.experiment.sweep import Cell, Sweep


class Result(NamedTuple):
    """A cell's configuration and its arrays.

    Attributes:
        config: The configuration, an instance of the experiment's own class. Fields that are axes
            of the grid hold its base value; their values along the axis are in `arrays`.
        arrays: What the trial returned, with leading axes `(*grid, seeds)`, and each axis of the
            grid as a vector under the name of its field.
    """

    config: Any
    arrays: dict[str, np.ndarray]


class Tally(NamedTuple):
    """How many cells a run computed, and how many it found on disk.

    Attributes:
        computed: Cells that this run wrote.
        present: Cells that were there.
    """

    computed: int
    present: int


def evaluate(
    sweep: Sweep, cell: Cell, *, report: Callable[[int], None] | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """Compute a cell.

    Args:
        sweep: The sweep.
        cell: One of `sweep.split()`.
        report: Called with the number of points done, after each chunk.

    Returns:
        The arrays, leading axes `(*grid, seeds)`, with the axes of the grid under their names; and
        the number of points that ran side by side.

    Raises:
        TypeError: If the trial returns anything but a dict of arrays that a result can hold.
    """
    with jax.enable_x64(sweep.x64):
        key, points = sweep.key(cell), jax.tree.map(jax.numpy.asarray, sweep.points())
        count = math.prod(sweep.shape)
        program, chunk = _compile(sweep, cell, key, points, count)
        parts = []
        for start in range(0, count, chunk):
            # The last chunk repeats the last point: one program serves all of them.
            rows = np.minimum(np.arange(start, start + chunk), count - 1)
            part = program(key, jax.tree.map(operator.itemgetter(rows), points))
            parts.append({name: np.asarray(array) for name, array in part.items()})
            if report is not None:
                report(min(start + chunk, count))
    arrays = {axis: np.asarray(values) for axis, values in sweep.grid.items()}
    for name in parts[0]:
        rows = np.concatenate([part[name] for part in parts])[:count]
        arrays[name] = rows.reshape(sweep.shape + rows.shape[1:])
    return arrays, chunk


def run(sweep: Sweep, root: Path, *, report: Callable[[str, int], None] | None = None) -> Tally:
    """Compute the cells that are absent from disk, and write each as it is done.

    Started again after it was killed, a run does only what is left, with the same numbers.

    Args:
        sweep: The sweep.
        root: Folder; the result of a cell is `root/<sweep>/<cell>`.
        report: Called with the cell's name and the number of its points done.

    Returns:
        The `Tally`.

    Raises:
        ResultError: If a result is damaged, or was computed with another configuration.
    """
    written = [
        compute(sweep, cell, root, report=report and functools.partial(report, cell.name))
        for cell in sweep.split()
    ]
    return Tally(sum(written), len(written) - sum(written))


def compute(
    sweep: Sweep, cell: Cell, root: Path, *, report: Callable[[int], None] | None = None
) -> bool:
    """Compute one cell and write it, if it is absent from disk.

    Args:
        sweep: The sweep.
        cell: One of `sweep.split()`.
        root: Folder; the result is `root/<sweep>/<cell>`.
        report: Called with the number of points done.

    Returns:
        Whether this call wrote the result.

    Raises:
        ResultError: If the result on disk is damaged, or was computed with another configuration.
    """
    folder = _folder(sweep, cell, root)
    if folder.exists():
        _read(sweep, cell, root)
        if report is not None:
            report(math.prod(sweep.shape))
        return False
    store.make_folder(folder.parent)  # Where it cannot be, say so before the work.
    started, clock = datetime.now(UTC), time.perf_counter()
    arrays, chunk = evaluate(sweep, cell, report=report)
    identity = sweep.identity(cell)
    manifest = {
        **identity,
        "config_hash": store.fingerprint(identity),
        "chunk": chunk,
        "memory": sweep.memory,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 3),
        "environment": provenance.environment(_source(sweep.trial)),
    }
    try:
        store.save(folder, arrays, manifest)
    except FileExistsError:
        _read(sweep, cell, root)  # Another process was faster; the same cell is as good.
        return False
    return True


def keep_compilations() -> None:
    """Keep compiled programs between processes, in the user's cache unless JAX was told where."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "dltheory" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def load(sweep: Sweep, root: Path) -> list[Result]:
    """Read the results of a sweep.

    Args:
        sweep: The sweep.
        root: The folder that `run` was given.

    Returns:
        One `Result` per cell, in the order of `sweep.split()`.

    Raises:
        ResultError: If a cell is absent, damaged, or was computed with another configuration.
    """
    if absent := missing(sweep, root):
        raise store.ResultError(
            f"{Path(root) / sweep.name} lacks {len(absent)} of {len(sweep.split())} cells "
            f"({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}): run it first"
        )
    return [Result(cell.config, _read(sweep, cell, root)) for cell in sweep.split()]


def missing(sweep: Sweep, root: Path) -> list[str]:
    """Name the cells that are still to be computed.

    Args:
        sweep: The sweep.
        root: The folder that `run` is given.

    Returns:
        Names of the cells without a result on disk.
    """
    return [cell.name for cell in sweep.split() if not _folder(sweep, cell, root).exists()]


def _folder(sweep: Sweep, cell: Cell, root: Path) -> Path:
    return Path(root) / sweep.name / cell.name


def _read(sweep: Sweep, cell: Cell, root: Path) -> dict[str, np.ndarray]:
    """Read a cell and make sure that it is the one asked for."""
    folder = _folder(sweep, cell, root)
    manifest, arrays = store.load(folder)
    wanted = sweep.identity(cell)
    recorded, asked = manifest.get("config_hash"), store.fingerprint(wanted)
    if recorded != asked:
        raise store.ResultError(
            f"{folder} holds another configuration: recorded {recorded}, asked for {asked} "
            f"({_differences(manifest, wanted)}). Remove it, or give another results folder"
        )
    return arrays


def _differences(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    plain = jax.tree_util.tree_leaves_with_path
    canonical = json.loads(store.canonical(wanted))
    old = dict(plain({name: recorded.get(name) for name in canonical}))
    new = dict(plain(canonical))
    return "; ".join(
        f"{jax.tree_util.keystr(path, simple=True, separator='.')}: {old.get(path)} recorded, "
        f"{new.get(path)} asked for"
        for path in sorted(old.keys() | new.keys(), key=str)
        if old.get(path) != new.get(path)
    )


def _compile(
    sweep: Sweep, cell: Cell, key: jax.Array, points: Any, count: int
) -> tuple[Callable[..., Mapping[str, jax.Array]], int]:
    """Compile the largest batch of points that fits the memory; chunks come out nearly even."""

    def batch(key, points):
        one = lambda point: sweep.run_point(cell, key, point)
        return jax.vmap(one)(points) if sweep.batching == "vmap" else jax.lax.map(one, points)

    chunk = count
    while True:
        lowered = jax.jit(batch).lower(key, jax.tree.map(operator.itemgetter(slice(chunk)), points))
        _check_outputs(sweep, lowered.out_info)
        program = lowered.compile()
        used = _bytes(program)
        if used <= sweep.memory or chunk == 1:
            return program, chunk
        fitting = max(1, min(chunk - 1, chunk * sweep.memory // used))
        chunk = math.ceil(count / math.ceil(count / fitting))


def _bytes(program: jax.stages.Compiled) -> int:
    """What a compiled program takes; zero where the backend does not say."""
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


def _source(trial: Callable[..., Any]) -> Path | None:
    try:
        return Path(inspect.getfile(inspect.unwrap(trial)))
    except TypeError:
        return None
