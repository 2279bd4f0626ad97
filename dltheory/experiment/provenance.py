"""Where a result comes from: code, versions, devices, precision, commit."""

import ast
import functools
import hashlib
import importlib.metadata
import inspect
import os
import platform
import subprocess
from collections.abc import Callable
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


def source(trial: Callable[..., Any]) -> Path | None:
    """Find the file that defines a trial.

    Args:
        trial: A function, wrapped or partial.

    Returns:
        The path; None if there is none.
    """
    try:
        return Path(inspect.getfile(_unwrapped(trial)))
    except (TypeError, OSError):
        return None


def code(trial: Callable[..., Any], config: Any) -> str | None:
    """Hash the code that a trial uses of its own file.

    That is the trial, the class of its configuration, and every function, class, constant and
    import at the top of the file that they name, or that those name; figures and claims are none
    of it. What is imported counts by its name alone: for that there are versions and the commit.

    Args:
        trial: The trial.
        config: Its configuration.

    Returns:
        The SHA-256 of that text; None where there is no file of Python.
    """
    path = source(trial)
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        statements = ast.parse(text).body
    except (OSError, ValueError, SyntaxError):
        return None
    here = [used for used in (_unwrapped(trial), type(config)) if source(used) == path]
    names = {used.__qualname__.partition(".")[0] for used in here}
    lines, chosen = text.splitlines(), _reached(statements, names)
    return hashlib.sha256("\n".join(_text(lines, node) for node in chosen).encode()).hexdigest()


def _unwrapped(trial: Any) -> Any:
    while isinstance(trial, functools.partial):
        trial = trial.func
    return inspect.unwrap(trial)


def _reached(statements: list[ast.stmt], names: set[str]) -> list[ast.stmt]:
    """The statements that names need, in order; all of them if one of the names is not there."""
    defined = [_defined(node) for node in statements]
    if not names <= set().union(*defined):
        return statements
    reached: set[int] = set()
    while True:
        # A statement that defines nothing has another effect, unless it is a docstring.
        fresh = {
            i
            for i, node in enumerate(statements)
            if i not in reached and (names & defined[i] or not (defined[i] or _is_docstring(node)))
        }
        if not fresh:
            return [statements[i] for i in sorted(reached)]
        reached |= fresh
        for i in fresh:
            names = names | {n.id for n in ast.walk(statements[i]) if isinstance(n, ast.Name)}


def _defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    names = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            names.add(inner.id)
        elif isinstance(inner, ast.alias):
            names.add((inner.asname or inner.name).partition(".")[0])
        elif isinstance(inner, ast.FunctionDef | ast.ClassDef):
            names.add(inner.name)
    return names


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _text(lines: list[str], node: ast.stmt) -> str:
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return "\n".join(lines[first - 1 : node.end_lineno])


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
