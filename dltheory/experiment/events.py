"""What happens while cells are computed: told to a callback, a bar, or a log of JSON lines."""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import IO, Any, Literal, NamedTuple


class Event(NamedTuple):
    """Something that happened to a cell.

    Attributes:
        kind: `"begun"`, `"compiled"`, `"progress"` (some points more are done) and `"computed"`
            (all are, and the result is on disk); `"present"` if it was there before; `"lost"` if
            its worker died, and died again when it was tried alone.
        sweep: Name of the sweep.
        cell: Name of the cell.
        done: Points done.
        points: Points of the cell, all of them.
        step: Steps done by the points at work; where none is, by those that are done.
        steps: Steps that each point takes; 0 where the trial has none.
        running: How many points are at work on their steps.
        config: The cell's configuration; None where the event comes from a worker.
        arrays: The result, if it was computed here just now; otherwise None.
    """

    kind: Literal["begun", "compiled", "progress", "computed", "present", "lost"]
    sweep: str
    cell: str
    done: int
    points: int
    step: int = 0
    steps: int = 0
    running: int = 0
    config: Any = None
    arrays: Mapping[str, Any] | None = None

    @property
    def work(self) -> float:
        """Points done, counting the steps of those at work as parts of a point."""
        return self.done + self.running * self.step / max(self.steps, 1)


def json_line(experiment: str, event: Event) -> str:
    """Write an event as one line of JSON.

    Args:
        experiment: Name of the experiment.
        event: The event; of its configuration and arrays nothing is written.

    Returns:
        The line, without its end.

    >>> line = json_line("lengths", Event("computed", "gaussian", "width-64", 50, 50))
    >>> line.partition('"sweep"')[2]
    ': "gaussian", "cell": "width-64", "done": 50, "points": 50}'
    """
    told = event._asdict()
    steps = ("step", "steps") if event.steps else ()
    told = {name: told[name] for name in ("kind", "sweep", "cell", "done", "points", *steps)}
    return json.dumps({"time": _now(), "experiment": experiment, **told})


def json_note(kind: Literal["error", "warning"], message: str) -> str:
    """Write an error or a warning as one line of JSON.

    Args:
        kind: Which of the two.
        message: What went wrong.

    Returns:
        The line, without its end.
    """
    return json.dumps({"time": _now(), "kind": kind, "message": message})


@contextlib.contextmanager
def bar(stream: IO[str], points: int, cells: int) -> Iterator[Callable[[str, Event], None]]:
    """Draw a bar over all points, with cells and steps counted and the time that is left.

    Args:
        stream: A terminal.
        points: Points of all cells.
        cells: Number of cells.

    Yields:
        A function of an experiment's name and an `Event`, which moves the bar.
    """
    from rich import progress
    from rich.console import Console

    columns = [
        progress.TextColumn("{task.fields[cells]} cells"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}"),
    ]
    done: dict[tuple[str, str, str], float] = {}
    ended: set[tuple[str, str, str]] = set()
    with progress.Progress(*columns, console=Console(file=stream)) as drawn:
        task = drawn.add_task("", total=points, cells=f"0/{cells}")

        def move(experiment: str, event: Event) -> None:
            cell = experiment, event.sweep, event.cell
            done[cell] = event.work
            step = f" step {event.step}/{event.steps}" if event.running else ""
            if event.kind in ("computed", "present", "lost"):
                ended.add(cell)
            drawn.update(
                task,
                completed=sum(done.values()),
                cells=f"{len(ended)}/{cells}",
                description="/".join(cell) + step,
            )

        yield move


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
