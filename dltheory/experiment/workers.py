"""Cells of experiments on any `concurrent.futures.Executor`: processes here, or machines elsewhere.

A task names a file, a sweep and a cell, and nothing else travels: a worker loads the experiment
from its file, computes the cell and writes the result itself. A task may therefore be repeated,
moved and run twice at once; the numbers are the same and one result is kept.
"""

import functools
import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from typing import Any, Literal, NamedTuple

from dltheory.experiment import catalogue, execute
from dltheory.experiment.catalogue import Experiment, Request


class Task(NamedTuple):
    """One cell of one experiment.

    Attributes:
        request: What `catalogue.load` needs to load and configure the experiment.
        sweep: Name of the sweep.
        cell: Name of the cell.
    """

    request: Request
    sweep: str
    cell: str


class Processes(Executor):
    """Processes of this machine, each of which may die alone.

    Where one dies, the call that it was running raises `BrokenExecutor`, and no other does; a
    `ProcessPoolExecutor` would give up all that wait.

    Args:
        count: How many processes.
    """

    def __init__(self, count: int):
        self._threads = ThreadPoolExecutor(count)
        self._mine = threading.local()
        self._all: list[ProcessPoolExecutor] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """Run a function in the next process that is free."""
        return self._threads.submit(self._run, fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes, once their calls have ended."""
        self._threads.shutdown(wait, cancel_futures=cancel_futures)
        for process in self._all:
            process.shutdown(wait)

    def _run(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        process = getattr(self._mine, "process", None)
        if process is None:
            # Forked, a process would inherit XLA's threads without the locks that they hold.
            process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            self._mine.process = process
            self._all.append(process)
        try:
            return process.submit(fn, *args, **kwargs).result()
        except BrokenExecutor:
            self._mine.process = None
            raise


def tasks(experiments: Iterable[Experiment]) -> list[Task]:
    """List the cells of experiments, in the order in which they are stated.

    Args:
        experiments: Loaded and configured experiments.

    Returns:
        One `Task` per cell, absent from disk or not, with absolute paths.
    """
    return [
        Task(_absolute(experiment.request), sweep.name, cell.name)
        for experiment in experiments
        for sweep in experiment.sweeps
        for cell in sweep.split()
    ]


def compute(task: Task) -> bool:
    """Compute one cell and write it, where it is absent: what a worker does.

    Args:
        task: The cell; its file and the folder of results must be there for the worker too.

    Returns:
        Whether this call wrote the result; False where it was on disk.

    Raises:
        ResultError: If what is on disk is damaged, or was computed with another configuration.
    """
    experiment = _load(task.request)
    sweep = next(sweep for sweep in experiment.sweeps if sweep.name == task.sweep)
    cell = next(cell for cell in sweep.split() if cell.name == task.cell)
    return execute.compute(sweep, cell, experiment.root)


def run(
    tasks: Sequence[Task],
    executor: Executor,
    *,
    report: Callable[[Task, Literal["computed", "present", "lost"]], None],
) -> list[Task]:
    """Compute cells on the workers of an executor.

    A cell whose worker died is tried once more when all others are done, alone, so that it can
    take nothing down with it. The first error of another kind stops what has not begun; what is
    done is on disk.

    Args:
        tasks: The cells.
        executor: `Processes` of this machine or, by `distributed.Client.get_executor(pure=False)`,
            of others.
        report: Called with each task that ends, and how.

    Returns:
        The cells that are lost: those whose worker died both times.

    Raises:
        ResultError: As `compute`; a note of the error names the cell.
    """
    lost = []
    for task in _round(tasks, executor, report):
        if _round([task], executor, report):
            lost.append(task)
            report(task, "lost")
    return lost


def _round(tasks: Sequence[Task], executor: Executor, report: Callable[..., None]) -> list[Task]:
    """Compute cells, and list those whose worker died."""
    pending = {executor.submit(compute, task): task for task in tasks}
    died = []
    try:
        for future in as_completed(pending):
            task = pending[future]
            try:
                report(task, "computed" if future.result() else "present")
            except _deaths():
                died.append(task)
            except Exception as error:
                error.add_note(f"in the cell {task.sweep}/{task.cell} of {task.request.path}")
                raise
    finally:
        for future in pending:
            future.cancel()
    return died


def _deaths() -> tuple[type[BaseException], ...]:
    """What an executor raises where a worker died."""
    distributed = sys.modules.get("distributed")  # Whoever uses its executor has imported it.
    return (BrokenExecutor,) if distributed is None else (BrokenExecutor, distributed.KilledWorker)


def _absolute(request: Request) -> Request:
    return request._replace(path=request.path.absolute(), root=request.root.absolute())


@functools.cache
def _load(request: Request) -> Experiment:
    """Load a file once per worker, however many of its cells come here."""
    execute.give_threads()
    execute.keep_compilations()
    return catalogue.load(request)
