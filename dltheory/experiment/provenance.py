"""Where a result comes from: versions, devices, precision, commit."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

PACKAGES = ("dltheory", "jax", "jaxlib", "flax", "optax", "chex", "matfree", "numpy")


def environment(source: Path | None) -> dict[str, Any]:
    """Describe the machine and the code that a result is computed with.

    Args:
        source: The file that defines the trial, whose repository is named; None if there is none.

    Returns:
        Plain values, ready for a manifest: `python`, `packages`, `devices`, `precision`, `git`.
    """
    devices = jax.local_devices()
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "devices": {
            "backend": jax.default_backend(),
            "kind": devices[0].device_kind,
            "count": len(devices),
        },
        "precision": {
            "matmul": jax.config.jax_default_matmul_precision,  # pyright: ignore
            "prng": jax.config.jax_default_prng_impl,  # pyright: ignore
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        },
        "git": None if source is None else _git(source.resolve().parent),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _git(folder: Path) -> dict[str, Any] | None:
    """The commit of a folder's repository and whether files differ from it; None without one."""

    def ask(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    try:
        commit, changes = ask("rev-parse", "HEAD").strip(), ask("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}
