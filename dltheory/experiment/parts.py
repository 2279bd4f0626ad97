"""The finished chunks of a cell that is not finished: what a run that was cut off goes on from.

Each is a result of its own, in `.part-<cell>` beside the cell's folder, and they are removed once
the cell is written. Their manifests say how many points ran side by side, and later chunks keep to
it: on more devices, or with more memory, the last bits would differ otherwise.
"""

from pathlib import Path

import numpy as np

from dltheory.experiment import store

_PREFIX = ".part-"


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
        and all(part.name.isdecimal() for part in folder.iterdir())
    )


class Parts:
    """The chunks of one cell on disk.

    Args:
        folder: The folder of the cell's result.
        config_hash: Hash of what decides the cell's numbers.
    """

    def __init__(self, folder: Path, config_hash: str):
        self.folder = folder.with_name(_PREFIX + folder.name)
        self.config_hash = config_hash

    def chunk(self) -> int:
        """The size of the chunks that are on disk; 0 if there are none."""
        first = self.folder / "0"
        return self._manifest(first)["chunk"] if first.exists() else 0

    def load(self, start: int, chunk: int) -> dict[str, np.ndarray] | None:
        """The arrays of the chunk whose first point is `start`; None if it is absent."""
        folder = self.folder / str(start)
        if not folder.exists() or self._manifest(folder)["chunk"] != chunk:
            return None
        return store.load(folder)[1]

    def save(self, start: int, chunk: int, arrays: dict[str, np.ndarray]) -> None:
        """Write a chunk; another process that computes the same cell may have been faster."""
        manifest = {"config_hash": self.config_hash, "start": start, "chunk": chunk}
        try:
            store.save(self.folder / str(start), arrays, manifest)
        except FileExistsError:
            return

    def remove(self) -> None:
        """Remove all chunks at once."""
        store.discard(self.folder)

    def _manifest(self, folder: Path) -> dict:
        manifest = store.load_manifest(folder)
        if manifest.get("config_hash") != self.config_hash:
            raise store.ResultError(
                f"{folder} is part of a cell of another configuration: recorded "
                f"{manifest.get('config_hash')}, asked for {self.config_hash}. Remove "
                f"{self.folder}, or give another results folder"
            )
        return manifest
