"""Experiments as files: found by name, loaded, and configured from flags.

An experiment is `experiments/<system>/<name>.py`, or a file of the user's own, with a docstring
and four names:

- `Config`: a frozen dataclass with a default for every field;
- `sweeps(profile, config)`: a list of `Sweep`, for the profile `"quick"` or `"full"`;
- `figure(results)`: a matplotlib figure, or a dict of them;
- `claims(results)`: a list of `Claim`.

`results` maps the name of each sweep to its list of `Result`; figures and claims read nothing else.
"""

import ast
import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dltheory.experiment import execute, store
from dltheory.experiment.sweep import Sweep

FOLDER = Path("experiments")
EXPORTS = ("Config", "sweeps", "figure", "claims")
PROFILES = ("quick", "full")


class UsageError(ValueError):
    """A command that cannot be carried out as it was typed."""


class Request(NamedTuple):
    """Which experiment, and how it is configured: all that another process needs to load it.

    Attributes:
        path: Its file.
        profile: `"quick"` or `"full"`.
        root: Folder of all results.
        seeds: Number of seeds of every sweep; its own if None.
        seed: Root of the randomness of every sweep; its own if None.
        flags: Fields of the experiment's `Config`, as words of a command line. A flag whose field
            is an axis of a sweep replaces the axis by the one value given.
    """

    path: Path
    profile: str
    root: Path
    seeds: int | None = None
    seed: int | None = None
    flags: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Experiment:
    """An experiment's file, loaded and configured.

    Attributes:
        request: What it was loaded by.
        name: The file's stem.
        module: The file as a module.
        sweeps: Its sweeps.
        root: Folder of its results.
    """

    request: Request
    name: str
    module: ModuleType
    sweeps: tuple[Sweep, ...]
    root: Path

    def results(self) -> dict[str, list[execute.Result]]:
        """Read the results of every sweep.

        Returns:
            For each sweep's name, the `Result` of each cell.

        Raises:
            ResultError: If one is absent, damaged, or was computed with another configuration.
        """
        return {sweep.name: execute.load(sweep, self.root) for sweep in self.sweeps}


def paths() -> list[Path]:
    """List the files of the experiments under the current folder.

    Returns:
        Paths `experiments/<system>/<name>.py`, sorted; files named `_...` are left out.
    """
    return sorted(path for path in FOLDER.glob("*/*.py") if not path.name.startswith("_"))


def summary(path: Path) -> str:
    """Read what an experiment says of itself, without running it.

    Args:
        path: An experiment's file.

    Returns:
        The first line of its docstring; empty if it has none.
    """
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def find(target: str | None) -> list[Path]:
    """Find the files that a command means.

    Args:
        target: The name of an experiment, the path of a file ending in `.py`, or None for all.

    Returns:
        Paths, at least one.

    Raises:
        UsageError: If there is none, or the name is not unique.
    """
    if target is not None and target.endswith(".py"):
        if not Path(target).is_file():
            raise UsageError(f"{target} is no file")
        return [Path(target)]
    found = [path for path in paths() if target in (None, path.stem)]
    if not found:
        known = ", ".join(path.stem for path in paths()) or "none"
        wanted = "any experiment" if target is None else f"an experiment named {target!r}"
        raise UsageError(
            f"there is not {wanted} in {FOLDER.absolute()} (known: {known}); "
            "a file elsewhere is given by its path, ending in .py"
        )
    if target is not None and len(found) > 1:
        raise UsageError(f"{target!r} is {', '.join(map(str, found))}: give the path")
    return found


def load(request: Request) -> Experiment:
    """Load an experiment's file and configure its sweeps.

    Args:
        request: The file and the configuration.

    Returns:
        The `Experiment`.

    Raises:
        UsageError: If the file is no experiment, or its configuration is refused.
        SystemExit: With code 2 if a flag is refused, 0 after `--help`.
    """
    path, profile, root, seeds, seed, flags = request
    try:
        name = store.check_name(path.stem, "experiment")
    except ValueError as error:
        raise UsageError(str(error)) from error
    module = _import(path)
    if absent := [export for export in EXPORTS if not hasattr(module, export)]:
        raise UsageError(
            f"{path} has no {', '.join(absent)}; an experiment has Config, "
            "sweeps(profile, config), figure(results) and claims(results)"
        )
    try:
        config = _configure(module, flags, f"dltheory run {path}")
        sweeps = [sweep.pin(_given(flags)) for sweep in module.sweeps(profile, config)]
        given = {name: n for name, n in (("seeds", seeds), ("seed", seed)) if n is not None}
        sweeps = [dataclasses.replace(sweep, **given) for sweep in sweeps]
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error
    if not sweeps or len({sweep.name for sweep in sweeps}) < len(sweeps):
        raise UsageError(f"{path} has sweeps {[s.name for s in sweeps]}, want distinct names")
    return Experiment(request, name, module, tuple(sweeps), root / name / profile)


def _import(path: Path) -> ModuleType:
    name = f"dltheory_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dataclasses look their annotations up there.
    spec.loader.exec_module(module)
    return module


def _configure(module: ModuleType, flags: Sequence[str], program: str) -> Any:
    if not flags:
        return module.Config()
    try:
        import tyro
    except ImportError as error:
        raise UsageError(
            f"{' '.join(flags)} needs tyro, which is missing: pip install 'dltheory[experiments]'"
        ) from error
    about = (module.__doc__ or "").strip().partition("\n")[0]
    return tyro.cli(module.Config, args=list(flags), prog=program, description=about)


def _given(flags: Sequence[str]) -> set[str]:
    """The top-level fields that flags set: `--opt.lr` and `--no-bias` set `opt` and `bias`."""
    names = [word.partition("=")[0].removeprefix("--") for word in flags if word.startswith("--")]
    fields = {name.partition(".")[0].replace("-", "_") for name in names}
    return fields | {field.removeprefix("no_") for field in fields}
