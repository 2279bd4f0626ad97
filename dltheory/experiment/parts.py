"""What is done of a cell that is not finished: what a run that was cut off goes on from.

Chunks of points, and checkpoints of a chunk whose points take steps. Each is a result of its own,
in `.part-<cell>` beside the cell's folder, named by its first point and, a checkpoint, by the steps
done; they are removed once the cell is written. Their manifests say how many points ran side by
side, and what follows keeps to it: on more devices, or with more memory, the last bits would differ
otherwise. They also name the code that computed them: no result is made of two kinds.
"""

import re
from pathlib import Path

import numpy as np

from dltheory.experiment import store

_PREFIX = ".part-"
_PART = re.compile(r"\d+(-\d+)?")


def leftovers(root: Path) -> list[Path]:
    """Find the chunks of cells that are finished: their writer was killed before it removed them.

    Args:
        root: Folder of results; all folders below it are searched.

    Returns:
        The folders that hold chunks, sorted.
    """
    return sorted(
        folder
        for folder in Path(root).rglob(f"{_PREFIX}*")
        if (folder.with_name(folder.name.removeprefix(_PREFIX)) / store.MANIFEST).is_file()
        and all(_PART.fullmatch(part.name) for part in folder.iterdir())
    )


class Parts:
    """The chunks of one cell on disk.

    Args:
        folder: The folder of the cell's result.
        config_hash: Hash of what decides the cell's numbers.
        code: Hash of the code that computes them, as `provenance.code` gives it.
    """

    def __init__(self, folder: Path, config_hash: str, code: str | None = None):
        self.folder = folder.with_name(_PREFIX + folder.name)
        self.config_hash = config_hash
        self.code = code

    def chunk(self) -> int:
        """The size of the chunks that are on disk; 0 if there are none."""
        for part in self._named("[0-9]*"):
            if (manifest := self._manifest(part)) is not None:
                return manifest["chunk"]
        return 0

    def load(self, start: int, chunk: int) -> dict[str, np.ndarray] | None:
        """The arrays of the chunk whose first point is `start`; None if it is absent."""
        return self._load(self.folder / str(start), chunk)

    def checkpoint(self, start: int, chunk: int) -> tuple[int, dict[str, np.ndarray]] | None:
        """The latest checkpoint of the chunk: the steps done, and its arrays; None without one."""
        for folder in self._checkpoints(start):
            if (arrays := self._load(folder, chunk)) is not None:
                return _steps(folder), arrays
        return None

    def save(self, start: int, chunk: int, arrays: dict[str, np.ndarray]) -> None:
        """Write a chunk, in place of its checkpoints."""
        self._save(str(start), start, chunk, arrays)
        for folder in self._checkpoints(start):
            store.discard(folder)

    def keep(self, start: int, chunk: int, steps: int, arrays: dict[str, np.ndarray]) -> None:
        """Write a checkpoint of the chunk after a number of steps, in place of earlier ones."""
        self._save(f"{start}-{steps}", start, chunk, arrays)
        for folder in self._checkpoints(start):
            if _steps(folder) < steps:
                store.discard(folder)

    def remove(self) -> None:
        """Remove all chunks at once."""
        store.discard(self.folder)

    def _named(self, pattern: str) -> list[Path]:
        return sorted(path for path in self.folder.glob(pattern) if _PART.fullmatch(path.name))

    def _checkpoints(self, start: int) -> list[Path]:
        """Those of a chunk, the latest first."""
        return sorted(self._named(f"{start}-*"), key=_steps, reverse=True)

    def _save(self, name: str, start: int, chunk: int, arrays: dict[str, np.ndarray]) -> None:
        manifest = {"config_hash": self.config_hash, "code": self.code}
        try:
            store.save(self.folder / name, arrays, {**manifest, "start": start, "chunk": chunk})
        except FileExistsError:
            return  # Another process that computes the same cell was faster.

    def _load(self, folder: Path, chunk: int) -> dict[str, np.ndarray] | None:
        manifest = self._manifest(folder)
        if manifest is None or manifest["chunk"] != chunk:
            return None
        try:
            return store.load(folder)[1]
        except store.ResultError:
            if folder.exists():
                raise
            return None

    def _manifest(self, folder: Path) -> dict | None:
        """The manifest of a part; None without one, or if another process has removed it."""
        if not folder.exists():
            return None
        try:
            manifest = store.load_manifest(folder)
        except store.ResultError:
            if folder.exists():
                raise
            return None
        if manifest.get("config_hash") != self.config_hash:
            raise store.ResultError(
                f"{folder} is part of a cell of another configuration: recorded "
                f"{manifest.get('config_hash')}, asked for {self.config_hash}. Remove "
                f"{self.folder}, or give another results folder"
            )
        if manifest.get("code") != self.code:
            raise store.ResultError(
                f"{folder} is part of a cell that other code began: what the trial uses of its "
                f"file has changed since. Undo the change, or remove {self.folder} to begin anew"
            )
        return manifest


def _steps(folder: Path) -> int:
    return int(folder.name.partition("-")[2])
