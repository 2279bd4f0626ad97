"""Cells of experiments on any `concurrent.futures.Executor`: processes here, or machines elsewhere.

A task names a file, a sweep and a cell, and nothing else travels: a worker loads the experiment
from its file, computes the cell and writes the result itself. A task may therefore be repeated,
moved and run twice at once; the numbers are the same and one result is kept.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, as_completed
from typing import NamedTuple

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


def tasks(experiments: Iterable[Experiment]) -> list[Task]:
    """List the cells of experiments, in the order in which they are stated.

    Args:
        experiments: Loaded and configured experiments.

    Returns:
        One `Task` per cell, absent from disk or not.
    """
    return [
        Task(experiment.request, sweep.name, cell.name)
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


def run(tasks: Sequence[Task], executor: Executor, *, report: Callable[[Task, bool], None]) -> None:
    """Compute cells on the workers of an executor.

    The first error stops what has not begun; what is done is on disk.

    Args:
        tasks: The cells.
        executor: Processes of this machine or, by `distributed.Client.get_executor()`, of others.
        report: Called with each task that ends, and whether its result is new.

    Raises:
        ResultError: As `compute`.
        BrokenExecutor: If a worker of a process pool died; the message names the cells left.
    """
    pending = {executor.submit(compute, task): task for task in tasks}
    try:
        for future in as_completed(pending):
            report(pending[future], future.result())
    finally:
        for future in pending:
            future.cancel()


@functools.cache
def _load(request: Request) -> Experiment:
    """Load a file once per worker, however many of its cells come here."""
    execute.keep_compilations()
    return catalogue.load(request)
