"""Sweeps on the local devices: compile a cell once, run it in chunks, keep what is done."""

import functools
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

from dltheory.experiment import programs, provenance, stages, store
from dltheory.experiment.events import Event
from dltheory.experiment.parts import Parts
from dltheory.experiment.stages import Stages
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
    sweep: Sweep,
    cell: Cell,
    *,
    callback: Callable[[Event], None] | None = None,
    parts: Parts | None = None,
) -> tuple[dict[str, np.ndarray], int]:
    """Compute a cell.

    Args:
        sweep: The sweep.
        cell: One of `sweep.split()`.
        callback: Called with an `Event` once the program is compiled, and after each chunk and
            each stage of one.
        parts: Where to keep the chunks that are done, if there are several, and checkpoints, and
            to look for them. With several processes the first one does.

    Returns:
        The arrays, leading axes `(*grid, seeds)`, with the axes of the grid under their names; and
        the number of points that ran side by side.

    Raises:
        ResultError: If a chunk on disk is damaged, or was computed with another configuration.
        TypeError: If the trial returns anything but a dict of arrays that a result can hold.
    """
    tell = _teller(sweep, cell, callback)
    count, computed = math.prod(sweep.shape), []
    with jax.enable_x64(sweep.x64):
        narrow = lambda a: np.asarray(a, jax.dtypes.canonicalize_dtype(a.dtype))
        key, points = sweep.key(cell), jax.tree.map(narrow, sweep.points())
        program, chunk = programs.build(
            sweep, cell, key, points, chunk=parts.chunk() if parts is not None else 0
        )
        tell("compiled", 0)
        keep = parts if chunk < count else None
        for start in range(0, count, chunk):
            part = _found(keep, start, chunk, program)
            done = min(start + chunk, count)
            if part is None:
                # The last chunk repeats the last point: one program serves all of them.
                rows = np.minimum(np.arange(start, start + chunk), count - 1)
                at = jax.tree.map(operator.itemgetter(rows), points)
                if isinstance(program, Stages):
                    heard = functools.partial(tell, "progress", start, running=done - start)
                    part = stages.run(sweep, program, key, at, parts=parts, first=start, tell=heard)
                else:
                    outputs = program(key, at)
                    part = {name: np.asarray(array) for name, array in outputs.items()}
                if keep is not None and jax.process_index() == 0:
                    keep.save(start, chunk, part)
            computed.append(part)
            tell("progress", done)
    arrays = sweep.vectors
    for name in computed[0]:
        rows = np.concatenate([part[name] for part in computed])[:count]
        arrays[name] = rows.reshape(sweep.shape + rows.shape[1:])
    return arrays, chunk


def run(sweep: Sweep, root: Path, *, callback: Callable[[Event], None] | None = None) -> Tally:
    """Compute the cells that are absent from disk, and write each as it is done.

    Started again after it was killed, a run does only what is left, with the same numbers.

    Args:
        sweep: The sweep.
        root: Folder; the result of a cell is `root/<sweep>/<cell>`.
        callback: Called with every `Event`; the last one of a cell that was computed holds its
            configuration and arrays.

    Returns:
        The `Tally`.

    Raises:
        ResultError: If a result is damaged, or was computed with another configuration.
    """
    written = [compute(sweep, cell, root, callback=callback) for cell in sweep.split()]
    return Tally(sum(written), len(written) - sum(written))


def compute(
    sweep: Sweep, cell: Cell, root: Path, *, callback: Callable[[Event], None] | None = None
) -> bool:
    """Compute one cell and write it, if it is absent from disk.

    Args:
        sweep: The sweep.
        cell: One of `sweep.split()`.
        root: Folder; the result is `root/<sweep>/<cell>`.
        callback: Called with every `Event`.

    Returns:
        Whether the cell was absent, so that it was computed and is now on disk.

    Raises:
        ResultError: If the result on disk is damaged, or was computed with another configuration.
    """
    tell = _teller(sweep, cell, callback)
    folder, count = _folder(sweep, cell, root), math.prod(sweep.shape)
    identity = sweep.identity(cell)
    code = provenance.code(sweep.trial, cell.config)
    parts = Parts(folder, store.fingerprint(identity), code)
    if _agreed(folder.exists()):
        if jax.process_index() == 0:
            _read(sweep, cell, root)
        parts.remove()
        tell("present", count)
        return False
    store.make_folder(folder.parent)  # Where it cannot be, say so before the work.
    tell("begun", 0)
    started, clock = datetime.now(UTC), time.perf_counter()
    # Of several processes each computes all, unless they share each trial: then parts are shared.
    kept = parts if sweep.batching == "mesh" or jax.process_count() == 1 else None
    arrays, chunk = evaluate(sweep, cell, callback=callback, parts=kept)
    if jax.process_index() > 0:
        return True  # All processes have it all, and the first one writes.
    manifest = {
        **identity,
        "config_hash": parts.config_hash,
        "chunk": chunk,
        "memory": sweep.memory,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - clock, 3),
        "code": code,
        "environment": provenance.environment(provenance.source(sweep.trial)),
    }
    try:
        store.save(folder, arrays, manifest)
    except FileExistsError:
        _read(sweep, cell, root)  # Another process was faster; the same cell is as good.
        tell("present", count)
        return False
    parts.remove()
    tell("computed", count, arrays=arrays)
    return True


def give_threads() -> None:
    """Let XLA have more threads than its calls of LAPACK can block; to be called before its use.

    Each batch of LAPACK calls holds one of XLA's CPU threads while it waits for others of the same
    pool: as many batches at once as there are cores, and nothing moves again. More threads than
    batches cure it; XLA reads their number from the environment before its first use.
    """
    os.environ.setdefault("NPROC", str(max(16, os.cpu_count() or 1)))


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


def seconds(sweep: Sweep, root: Path) -> float:
    """Add up how long the cells on disk took.

    Args:
        sweep: The sweep.
        root: The folder that `run` was given.

    Returns:
        Seconds, as the manifests say; compilation counts.

    Raises:
        ResultError: If a cell is absent or damaged.
    """
    manifests = (store.load_manifest(_folder(sweep, cell, root)) for cell in sweep.split())
    return sum(manifest["seconds"] for manifest in manifests)


def outdated(sweep: Sweep, root: Path) -> list[str]:
    """Name the cells on disk whose trial's code has changed since.

    Args:
        sweep: The sweep.
        root: The folder that `run` is given.

    Returns:
        Names of the cells whose manifest has another hash than `provenance.code` gives now.
    """
    names = []
    for cell in sweep.split():
        code = provenance.code(sweep.trial, cell.config)
        try:
            recorded = store.load_manifest(_folder(sweep, cell, root)).get("code")
        except store.ResultError:
            continue  # Absent or damaged: whoever reads it says so.
        if None not in (recorded, code) and recorded != code:
            names.append(cell.name)
    return names


def _teller(
    sweep: Sweep, cell: Cell, callback: Callable[[Event], None] | None
) -> Callable[..., None]:
    points, steps = math.prod(sweep.shape), sweep.steps or 0

    def tell(kind: Any, done: int, step: int | None = None, **more: Any) -> None:
        if callback is not None:
            step = step if step is not None else steps if done else 0
            more |= {"step": step, "steps": steps, "config": cell.config}
            callback(Event(kind, sweep.name, cell.name, done, points, **more))

    return tell


def _agreed(value: bool) -> bool:
    """What the first of all processes says: they must take the same way."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def _found(parts: Parts | None, start: int, chunk: int, program: Any) -> Any:
    """A chunk that is on disk; of several processes the first one reads it for all."""
    if parts is None:
        return None
    part = parts.load(start, chunk) if jax.process_index() == 0 else None
    if not _agreed(part is not None) or jax.process_count() == 1:
        return part
    from jax.experimental import multihost_utils

    blank = {name: np.zeros(info.shape, info.dtype) for name, info in program.out_info.items()}
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(part or blank))


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
