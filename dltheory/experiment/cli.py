"""The command line: `dltheory list | run | figures | claims | status | gc | inspect`."""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor
from pathlib import Path
from typing import Literal

import jax

from dltheory.experiment import (
    catalogue,
    claims,
    events,
    execute,
    figures,
    gallery,
    inspection,
    parts,
    reference,
    store,
    workers,
)
from dltheory.experiment.catalogue import Experiment, Request, UsageError
from dltheory.experiment.events import Event

USAGE = """\
dltheory list                         the experiments, and what each one claims
dltheory run NAME|PATH|--all          compute what is absent from disk
dltheory figures [NAME|PATH]          draw the figures from the results
dltheory claims [NAME|PATH]           print predicted, measured, tolerance and verdict
dltheory status [NAME|PATH]           say which results are there
dltheory gc                           remove what killed runs have left behind
dltheory inspect MODULE:FACTORY       the health of a model, (f, params, x[, y])

All but list and inspect take --results DIR; run to status take --profile quick|full, --seeds N,
--seed S and, for one experiment, the fields of its Config: `dltheory run NAME --help` lists
them. The results of a run are found again by the same flags.

run --workers N            N processes, a cell each
run --scheduler ADDRESS    the workers of a Dask cluster, a cell each
run --distributed          one of several processes that share each trial, on many hosts
run --log json             a line of JSON for each event, on standard error
figures --check DIR        compare the results with those in DIR, and draw nothing
figures --gallery DIR      write a page for each experiment too, for the documentation
gc --older HOURS           spare what is younger (1)

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
    # A log is JSON to its last line, whatever goes wrong.
    as_json = "--log=json" in words or ("--log", "json") in itertools.pairwise(words)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(USAGE)
            return 0
        verb, *words = words
        if verb == "list":
            return _list()
        if verb == "gc":
            return _gc(words)
        if verb == "inspect":
            return _inspect(words)
        if verb not in commands:
            known = f"list, {', '.join(commands)}, gc, inspect"
            raise UsageError(f"{verb!r} is no command, want {known}")
        execute.give_threads()
        options, experiments = _parse(verb, words)
        _warn(experiments, as_json)
        return commands[verb](experiments, options)
    except UsageError as error:
        _complain(str(error), as_json)
        return 2
    except (store.ResultError, OSError) as error:
        _complain(str(error), as_json)
        return 1


def _complain(message: str, as_json: bool) -> None:
    line = events.json_note("error", message) if as_json else f"dltheory: {message}"
    print(line, file=sys.stderr)


def _warn(experiments: list[Experiment], as_json: bool) -> None:
    """Say which results were computed by other code; what is drawn of them may still be wanted."""
    for experiment in experiments:
        for sweep in experiment.sweeps:
            if old := execute.outdated(sweep, experiment.root):
                message = (
                    f"{experiment.name}/{sweep.name}: the trial's code has changed since "
                    f"{len(old)} of {len(sweep.split())} cells were computed "
                    f"({', '.join(old[:3])}{', ...' if len(old) > 3 else ''}); remove them from "
                    f"{experiment.root / sweep.name} to compute them anew"
                )
                line = f"dltheory: warning: {message}"
                print(events.json_note("warning", message) if as_json else line, file=sys.stderr)


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
    parser.add_argument("--seed", type=int, metavar="S", help="root of all randomness")
    if verb == "figures":
        parser.add_argument("--out", type=Path, default=Path("figures"), metavar="DIR")
        parser.add_argument("--check", type=Path, metavar="DIR", help="results to compare with")
        parser.add_argument("--gallery", type=Path, metavar="DIR", help="folder of pages")
        parser.add_argument("--rtol", type=float, default=1e-5, help="relative tolerance")
        parser.add_argument("--atol", type=float, default=1e-8, help="absolute tolerance")
    if verb == "run":
        where = parser.add_mutually_exclusive_group()
        where.add_argument("--workers", type=_positive, default=1, metavar="N", help="processes")
        where.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster")
        where.add_argument(
            "--distributed",
            nargs="?",
            const=(),
            type=_place,
            metavar="HOST:PORT,COUNT,INDEX",
            help="by jax.distributed; Slurm and other systems that JAX knows say the rest",
        )
        parser.add_argument("--log", choices=("bar", "json"), default="bar")
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
    if verb == "run" and options.distributed is not None:
        _join(options.distributed)  # Before a file is loaded: it may use JAX.
    shared = options.profile, options.results, options.seeds, options.seed, tuple(flags)
    return options, [catalogue.load(Request(path, *shared)) for path in paths]


def _list() -> int:
    for path in catalogue.paths():
        print(f"{path.stem:32} {catalogue.summary(path)}")
    return 0


def _run(experiments: list[Experiment], options: argparse.Namespace) -> int:
    if options.distributed is not None:
        _check_distributed(experiments)
    with contextlib.ExitStack() as stack:
        if options.scheduler:
            executor = stack.enter_context(_dask(options.scheduler))
        elif options.workers > 1:
            executor = stack.enter_context(workers.Processes(options.workers))
        else:
            executor = None
        tell = stack.enter_context(_listener(experiments, options.log))
        if executor is not None:
            return _run_on_workers(experiments, executor, tell, options.log == "json")
        execute.keep_compilations()
        for experiment in experiments:
            clock, callback = time.perf_counter(), functools.partial(tell, experiment.name)
            tallies = [
                execute.run(sweep, experiment.root, callback=callback)
                for sweep in experiment.sweeps
            ]
            computed, present = (sum(counts) for counts in zip(*tallies, strict=True))
            if options.distributed is None or jax.process_index() == 0:
                _print_done(experiment, computed, present, time.perf_counter() - clock)
    return 0


def _run_on_workers(
    experiments: list[Experiment],
    executor: Executor,
    tell: Callable[[str, Event], None],
    as_json: bool,
) -> int:
    """Spread the cells of all experiments over workers, and report each experiment's end."""
    clock, owner, points, left, computed = time.perf_counter(), {}, {}, {}, {}
    for experiment in experiments:
        size = {sweep.name: math.prod(sweep.shape) for sweep in experiment.sweeps}
        tasks = workers.tasks([experiment])
        left[experiment.request], computed[experiment.request] = len(tasks), 0
        for task in tasks:
            owner[task], points[task] = experiment, size[task.sweep]

    def report(task: workers.Task, kind: Literal["computed", "present", "lost"]) -> None:
        experiment, total = owner[task], points[task]
        done = 0 if kind == "lost" else total
        tell(experiment.name, Event(kind, task.sweep, task.cell, done, total))
        left[experiment.request] -= kind != "lost"
        computed[experiment.request] += kind == "computed"
        if not left[experiment.request]:
            new, cells = computed[experiment.request], len(workers.tasks([experiment]))
            _print_done(experiment, new, cells - new, time.perf_counter() - clock)

    try:
        lost = workers.run(list(owner), executor, report=report)
    except CancelledError as error:
        raise OSError(
            "the scheduler went away; the same command computes what is absent"
        ) from error
    for task in lost:
        _complain(
            f"{owner[task].name}/{task.sweep}/{task.cell}: its worker died, and again when it was "
            "tried alone; killed from outside, or for want of memory",
            as_json,
        )
    return 1 if lost else 0


@contextlib.contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("--scheduler needs Dask: pip install 'dltheory[cluster]'") from error
    try:
        client = Client(address)
    except ValueError as error:
        raise UsageError(f"--scheduler {address}: {error}") from error
    with client, client.get_executor(pure=False) as executor:
        yield executor


def _join(place: tuple[str, int, int] | tuple[()]) -> None:
    try:
        jax.distributed.initialize(*place)  # pyright: ignore
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"--distributed: {error}; want HOST:PORT,COUNT,INDEX") from error


def _check_distributed(experiments: list[Experiment]) -> None:
    sweeps = [(e.name, sweep) for e in experiments for sweep in e.sweeps]
    if refused := [f"{name}/{sweep.name}" for name, sweep in sweeps if sweep.batching != "mesh"]:
        raise UsageError(
            f"--distributed is for sweeps whose trial takes a mesh (batching='mesh'), not for "
            f"{', '.join(refused)}; cells are spread with --workers or --scheduler"
        )


def _print_done(experiment: Experiment, computed: int, present: int, seconds: float) -> None:
    print(
        f"{experiment.name}: {computed} cells computed, {present} already there, "
        f"{seconds:.1f} s, in {experiment.root}",
        flush=True,
    )


def _positive(word: str) -> int:
    if (number := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{word} is given, want at least 1")
    return number


def _place(word: str) -> tuple[str, int, int]:
    """The coordinator's address, how many processes there are, and which one this is."""
    try:
        address, count, index = word.split(",")
        if ":" in address and 0 <= int(index) < int(count):
            return address, int(count), int(index)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{word} is given, want HOST:PORT,COUNT,INDEX")


def _hours(word: str) -> float:
    if not 0 <= (number := float(word)) < math.inf:
        raise argparse.ArgumentTypeError(f"{word} is given, want a number of at least 0")
    return number


def _figures(experiments: list[Experiment], options: argparse.Namespace) -> int:
    if options.check is not None:
        return _check(experiments, options)
    for experiment in experiments:
        results = experiment.results()
        with figures.style():
            drawn = experiment.module.figure(results)
            for part, figure in drawn.items() if isinstance(drawn, dict) else [("", drawn)]:
                stem = f"{experiment.name}-{part}" if part else experiment.name
                for path in figures.save(figure, options.out / store.check_name(stem, "figure")):
                    print(path)
    if options.gallery is not None:
        print(gallery.write(experiments, options.out, options.gallery)[0])
    return 0


def _check(experiments: list[Experiment], options: argparse.Namespace) -> int:
    """Compare the results with those of a folder that was once a folder of results."""
    agree = True
    for experiment in experiments:
        beside = options.check / experiment.name / experiment.request.profile
        results = experiment.results()
        wanted = dataclasses.replace(experiment, root=beside).results()
        lines = [
            line
            for sweep in experiment.sweeps
            for line in reference.differences(
                sweep, results[sweep.name], wanted[sweep.name], rtol=options.rtol, atol=options.atol
            )
        ]
        for line in lines:
            print(f"{experiment.name}/{line}")
        verdict = f"{len(lines)} arrays differ from" if lines else "all arrays agree with"
        print(f"{experiment.name}: {verdict} {beside}")
        agree &= not lines
    return 0 if agree else 1


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


def _gc(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="dltheory gc", allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--older", type=_hours, default=1.0, metavar="HOURS")
    options = parser.parse_args(words)
    for folder in parts.leftovers(options.results):
        store.discard(folder)
        print(f"removed {folder}")
    for folder in store.leftovers(options.results, 3600 * options.older):
        shutil.rmtree(folder)
        print(f"removed {folder}")
    return 0


def _inspect(words: list[str]) -> int:
    from rich.console import Console

    parser = argparse.ArgumentParser(prog="dltheory inspect", allow_abbrev=False)
    parser.add_argument("target", metavar="MODULE:FACTORY", help="returns f, params, x and maybe y")
    found = inspection.inspect(*inspection.made(parser.parse_args(words).target))
    Console(width=None if sys.stdout.isatty() else 110).print(found)
    return 0 if found.healthy else 1


@contextlib.contextmanager
def _listener(experiments: list[Experiment], log: str) -> Iterator[Callable[[str, Event], None]]:
    """Log lines of JSON, or draw a bar if somebody is watching."""
    if log == "json":
        yield lambda name, event: print(events.json_line(name, event), file=sys.stderr, flush=True)
    elif sys.stderr.isatty():
        cells = [(len(s.split()), math.prod(s.shape)) for e in experiments for s in e.sweeps]
        points = sum(count * size for count, size in cells)
        with events.bar(sys.stderr, points, sum(count for count, _ in cells)) as move:
            yield move
    else:
        yield lambda *_: None
