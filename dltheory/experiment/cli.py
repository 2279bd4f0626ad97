"""The command line: `dltheory list | run | figures | claims | status`."""

import argparse
import contextlib
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

from dltheory.experiment import catalogue, claims, execute, figures, store, workers
from dltheory.experiment.catalogue import Experiment, Request, UsageError
from dltheory.experiment.sweep import Sweep

USAGE = """\
dltheory list                         the experiments, and what each one claims
dltheory run NAME|PATH|--all          compute what is absent from disk
dltheory figures [NAME|PATH]          draw the figures from the results
dltheory claims [NAME|PATH]           print predicted, measured, tolerance and verdict
dltheory status [NAME|PATH]           say which results are there

All but list take --profile quick|full, --results DIR, --seeds N and, for one experiment, the
fields of its Config: `dltheory run NAME --help` lists them. The results of a run are found again
by the same flags. run takes --workers N too: N processes, a cell each.

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
    if verb == "run":
        parser.add_argument("--workers", type=_positive, default=1, metavar="N", help="processes")
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
        catalogue.load(Request(path, options.profile, options.results, options.seeds, tuple(flags)))
        for path in paths
    ]


def _list() -> int:
    for path in catalogue.paths():
        print(f"{path.stem:32} {catalogue.summary(path)}")
    return 0


def _run(experiments: list[Experiment], options: argparse.Namespace) -> int:
    if options.workers > 1:
        return _run_on_processes(experiments, options.workers)
    execute.keep_compilations()
    for experiment in experiments:
        clock = time.perf_counter()
        with _progress(experiment) as report:
            tallies = [
                execute.run(sweep, experiment.root, report=report(sweep))
                for sweep in experiment.sweeps
            ]
        computed, present = (sum(counts) for counts in zip(*tallies, strict=True))
        _print_done(experiment, computed, present, time.perf_counter() - clock)
    return 0


def _run_on_processes(experiments: list[Experiment], count: int) -> int:
    """Spread the cells of all experiments over processes, and report each experiment's end."""
    clock = time.perf_counter()
    left = {e.request: len(workers.tasks([e])) for e in experiments}
    written = dict.fromkeys(left, 0)

    def report(task: workers.Task, new: bool) -> None:
        left[task.request] -= 1
        written[task.request] += new
        if not left[task.request]:
            [experiment] = [e for e in experiments if e.request == task.request]
            computed, cells = written[task.request], len(workers.tasks([experiment]))
            _print_done(experiment, computed, cells - computed, time.perf_counter() - clock)

    # Forked, a process would inherit XLA's threads without the locks that they hold.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as executor:
        try:
            workers.run(workers.tasks(experiments), executor, report=report)
        except BrokenExecutor:
            print(
                "dltheory: a worker died, killed from outside or for want of memory; the same "
                "command computes what is absent",
                file=sys.stderr,
            )
            return 1
    return 0


def _print_done(experiment: Experiment, computed: int, present: int, seconds: float) -> None:
    print(
        f"{experiment.name}: {computed} cells computed, {present} already there, "
        f"{seconds:.1f} s, in {experiment.root}",
        flush=True,
    )


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{word} is given, want at least 1")
    return number


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
