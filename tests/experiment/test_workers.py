"""Cells on the workers of an executor: the same bits, and one failure that ends alone."""

import os
import subprocess
import sys
import threading
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from dltheory.experiment import catalogue, cli, execute, store, workers
from tests.tier import FULL

FILE = Path(__file__).with_name("linear_spectrum.py")


class InLine(Executor):
    """Runs what is submitted at once, in this thread."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "keep_compilations", lambda: None)
    workers._load.cache_clear()
    return catalogue.load(catalogue.Request(FILE, "quick", tmp_path / "results", seeds=2))


def arrays(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob(store.ARRAYS)}


def test_a_task_computes_its_cell_and_no_other(experiment):
    seen = []
    tasks = workers.tasks([experiment])
    assert [(task.sweep, task.cell) for task in tasks] == [
        ("gaussian", "width-8"),
        ("gaussian", "width-16"),
        ("one_by_one", "all"),
    ]
    workers.run(tasks[:1], InLine(), report=lambda *step: seen.append(step))
    assert execute.missing(experiment.sweeps[0], experiment.root) == ["width-16"]
    workers.run(tasks[:2], InLine(), report=lambda *step: seen.append(step))
    assert set(seen) == {
        (tasks[0], "computed"),
        (tasks[0], "present"),
        (tasks[1], "computed"),
    }


DEATH = """
import multiprocessing, os, signal
if multiprocessing.parent_process() is not None:
    def trial(key, config, alive=trial):
        once = Path(__file__).with_name("died")
        if config.width == 4 or (config.width == 16 and not once.exists()):
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return alive(key, config)
"""
LOST = (
    "dltheory: linear_spectrum/one_by_one/all: its worker died, and again when it was tried alone; "
    "killed from outside, or for want of memory\n"
)


def deadly(folder):
    """The experiment, in which one cell kills its worker once, and one cell each time."""
    path = folder / FILE.name
    path.write_text("from pathlib import Path\n" + FILE.read_text() + DEATH)
    return path


@pytest.mark.usefixtures("optimized")
def test_processes_that_die_take_one_cell_with_them_and_the_bits_are_those_of_one_process(
    experiment, tmp_path, capsys
):
    for sweep in experiment.sweeps:
        execute.run(sweep, experiment.root)
    spread = ["run", str(deadly(tmp_path)), "--results", str(tmp_path / "spread"), "--seeds", "2"]
    assert cli.main([*spread, "--workers", "2"]) == 1
    assert capsys.readouterr() == ("", LOST)
    whole, done = arrays(tmp_path / "results"), arrays(tmp_path / "spread")
    assert len(done) == 2
    assert whole == {**whole, **done}


CLUSTER = """
import sys
import dask
from distributed import LocalCluster
from dltheory.experiment import cli
if __name__ == "__main__":
    dask.config.set({"distributed.scheduler.allowed-failures": 1})
    # A worker that takes longer to come back is given up, and importing JAX may take that long.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "300s"})
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        sys.exit(cli.main([*sys.argv[1:], "--scheduler", cluster.scheduler_address]))
"""


@pytest.mark.skipif(not FULL, reason="starts a cluster, whose workers each import JAX")
@pytest.mark.usefixtures("optimized")
def test_workers_of_a_cluster_that_die(experiment, tmp_path):
    for sweep in experiment.sweeps:
        execute.run(sweep, experiment.root)
    script = tmp_path / "cluster.py"
    script.write_text(CLUSTER)
    words = ["run", str(deadly(tmp_path)), "--results", str(tmp_path / "spread"), "--seeds", "2"]
    done = subprocess.run(
        [sys.executable, str(script), *words],
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert LOST.strip() in done.stderr  # Other processes write in between.
    whole, spread = arrays(tmp_path / "results"), arrays(tmp_path / "spread")
    assert len(spread) == 2
    assert whole == {**whole, **spread}


class Cluster(InLine):
    """Workers that some cells kill: each of a list of cells as often as it is listed there."""

    def __init__(self, deadly):
        self.deadly, self.begun = list(deadly), []

    def submit(self, fn, /, task):
        self.begun.append(task.cell)
        if task.cell in self.deadly:
            self.deadly.remove(task.cell)
            future = Future()
            future.set_exception(BrokenExecutor("a worker died"))
            return future
        return super().submit(fn, task)


def test_a_cell_whose_worker_died_is_tried_again_alone_at_the_end(experiment, monkeypatch):
    monkeypatch.setattr(workers, "compute", lambda task: task.cell != "all")
    tasks, seen = workers.tasks([experiment]), []
    cluster = Cluster(["width-8", "width-8", "width-16"])
    lost = workers.run(tasks, cluster, report=lambda task, kind: seen.append((task.cell, kind)))
    assert lost == tasks[:1]
    assert cluster.begun[:3] == ["width-8", "width-16", "all"]
    assert sorted(cluster.begun[3:]) == ["width-16", "width-8"]
    assert seen[0] == ("all", "present")
    assert sorted(seen[1:]) == [("width-16", "computed"), ("width-8", "lost")]


def test_a_process_that_dies_is_replaced():
    with workers.Processes(1) as executor:
        first = executor.submit(os.getpid).result(60)
        with pytest.raises(BrokenExecutor):
            executor.submit(os._exit, 1).result(60)
        assert executor.submit(os.getpid).result(60) not in (first, os.getpid())
        with pytest.raises(ZeroDivisionError):
            executor.submit(divmod, 1, 0).result(60)


def test_the_first_error_stops_what_has_not_begun(experiment, monkeypatch):
    begun, release = [], threading.Event()

    def compute(task):
        begun.append(task.cell)
        if len(begun) == 1:
            raise store.ResultError("damaged")
        release.wait(10)

    class Pool(ThreadPoolExecutor):
        def shutdown(self, *args, **kwargs):
            release.set()
            super().shutdown(*args, **kwargs)

    monkeypatch.setattr(workers, "compute", compute)
    with Pool(1) as pool, pytest.raises(store.ResultError, match="damaged") as error:
        workers.run(workers.tasks([experiment]), pool, report=lambda *_: None)
    assert "all" not in begun
    assert error.value.__notes__ == [f"in the cell gaussian/width-8 of {FILE}"]


@pytest.mark.parametrize("word", ["0", "-1", "two"])
def test_a_number_of_workers_that_is_none_is_refused(word, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["run", str(FILE), "--workers", word])
    assert exit_.value.code == 2
    assert "--workers" in capsys.readouterr().err
