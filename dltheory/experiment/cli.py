"""The command line: `dltheory list | run | figures | claims | status`."""

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from dltheory.experiment import catalogue, claims, execute, figures, store
from dltheory.experiment.catalogue import Experiment, UsageError
from dltheory.experiment.sweep import Sweep

USAGE = """\
dltheory list                         the experiments, and what each one claims
dltheory run NAME|PATH|--all          compute what is absent from disk
dltheory figures [NAME|PATH]          draw the figures from the results
dltheory claims [NAME|PATH]           print predicted, measured, tolerance and verdict
dltheory status [NAME|PATH]           say which results are there

All but list take --profile quick|full, --results DIR, --seeds N and, for one experiment, the
fields of its Config: `dltheory run NAME --help` lists them. The results of a run are found again
by the same flags.

Exit code: 0 if all is well and every verdict is as recorded, 1 if not, 2 for a wrong command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `dltheory`; those of the process if None.

    Returns:
        The exit code: 0, 1 or 2.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    commands = {"run": _run, "figures": _figures, "claims": _claims, "status": _status}
    try:
        if not words or words[0] in ("-h", "--help"):
            print(USAGE)
            return 0
        verb, *words = words
        if verb == "list":
            return _list()
        if verb not in commands:
            raise UsageError(f"{verb!r} is no command, want list, {', '.join(commands)}")
        # Each batch of LAPACK calls holds one of XLA's CPU threads while it waits for others of the
        # same pool: as many batches at once as there are cores, and nothing moves again. More
        # threads than batches cure it; XLA reads their number from here before its first use.
        os.environ.setdefault("NPROC", str(max(16, os.cpu_count() or 1)))
        options, experiments = _parse(verb, words)
        return commands[verb](experiments, options)
    except UsageError as error:
        print(f"dltheory: {error}", file=sys.stderr)
        return 2
    except (store.ResultError, OSError) as error:
        print(f"dltheory: {error}", file=sys.stderr)
        return 1


def _parse(verb: str, words: list[str]) -> tuple[argparse.Namespace, list[Experiment]]:
    """Read the target, the flags that all experiments share, and the fields of a Config."""
    # By hand: argparse would take the value of a Config's flag for the target.
    target = words.pop(0) if words and not words[0].startswith("-") else None
    parser = argparse.ArgumentParser(
        prog=f"dltheory {verb} {target or '[NAME|PATH]'}", allow_abbrev=False, add_help=False
    )
    parser.add_argument("--all", action="store_true", help="all files experiments/*/*.py")
    parser.add_argument("--profile", choices=catalogue.PROFILES, default=catalogue.PROFILES[0])
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds of every sweep")
    if verb == "figures":
        parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR")
    if "-h" in words or "--help" in words:
        parser.print_help()
        if target is None:
            raise SystemExit(0)
    options, flags = parser.parse_known_args(words)

    if target is not None and options.all:
        raise UsageError(f"{target} and --all are both given, want one or the other")
    if target is None and not options.all and verb == "run":
        raise UsageError("run needs the NAME or PATH of an experiment, or --all")
    paths = catalogue.find(target)
    if target is None and flags:
        raise UsageError(f"{' '.join(flags)}: the fields of a Config need one experiment, by NAME")
    return options, [
        catalogue.load(
            path,
            profile=options.profile,
            root=options.results,
            seeds=options.seeds,
            flags=flags,
        )
        for path in paths
    ]


def _list() -> int:
    for path in catalogue.paths():
        print(f"{path.stem:32} {catalogue.summary(path)}")
    return 0


def _run(experiments: list[Experiment], options: argparse.Namespace) -> int:
    del options
    _cache_compilations()
    for experiment in experiments:
        clock = time.perf_counter()
        with _progress(experiment) as report:
            tallies = [
                execute.run(sweep, experiment.root, report=report(sweep))
                for sweep in experiment.sweeps
            ]
        computed, present = (sum(counts) for counts in zip(*tallies, strict=True))
        print(
            f"{experiment.name}: {computed} cells computed, {present} already there, "
            f"{time.perf_counter() - clock:.1f} s, in {experiment.root}",
            flush=True,
        )
    return 0


def _figures(experiments: list[Experiment], options: argparse.Namespace) -> int:
    for experiment in experiments:
        results = experiment.results()
        with figures.style():
            drawn = experiment.module.figure(results)
            for part, figure in drawn.items() if isinstance(drawn, dict) else [("", drawn)]:
                stem = f"{experiment.name}-{part}" if part else experiment.name
                for path in figures.save(figure, options.out / store.check_name(stem, "figure")):
                    print(path)
    return 0


def _claims(experiments: list[Experiment], options: argparse.Namespace) -> int:
    del options
    from rich.console import Console

    # Where no terminal says how wide it is, wide enough to be read in a log.
    console = Console() if sys.stdout.isatty() else Console(width=140)
    as_recorded = True
    for experiment in experiments:
        stated = experiment.module.claims(experiment.results())
        if not stated:
            raise UsageError(f"{experiment.name} makes no claim, want at least one")
        console.print(claims.table(experiment.name, stated))
        as_recorded &= all(claim.as_recorded for claim in stated)
    return 0 if as_recorded else 1


def _status(experiments: list[Experiment], options: argparse.Namespace) -> int:
    del options
    for experiment in experiments:
        for sweep in experiment.sweeps:
            count, absent = len(sweep.split()), execute.missing(sweep, experiment.root)
            line = f"{experiment.name}/{sweep.name}: {count - len(absent)} of {count} cells"
            print(line + (f", absent: {', '.join(absent)}" if absent else ""))
    return 0


def _cache_compilations() -> None:
    """Keep compiled programs between processes, where the user has not said otherwise."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(home) / "dltheory" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


_Report = Callable[[str, int], None]


@contextlib.contextmanager
def _progress(experiment: Experiment) -> Iterator[Callable[[Sweep], _Report | None]]:
    """Draw a bar over all points of an experiment, if somebody is watching."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich import progress
    from rich.console import Console

    columns = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    ]
    total = sum(len(sweep.split()) * math.prod(sweep.shape) for sweep in experiment.sweeps)
    done: dict[tuple[str, str], int] = {}
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(experiment.name, total=total)

        def report(sweep: Sweep) -> _Report:
            def update(cell: str, count: int) -> None:
                done[sweep.name, cell] = count
                bar.update(task, completed=sum(done.values()), description=f"{sweep.name}/{cell}")

            return update

        yield report
