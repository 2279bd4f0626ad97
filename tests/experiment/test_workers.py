"""Cells on the workers of an executor: the same bits, and one failure that ends alone."""

import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from dltheory.experiment import catalogue, cli, execute, store, workers

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
    assert set(seen) == {(tasks[0], True), (tasks[0], False), (tasks[1], True)}


@pytest.mark.usefixtures("optimized")
def test_processes_give_the_bits_of_one_process(experiment, tmp_path, capsys):
    for sweep in experiment.sweeps:
        execute.run(sweep, experiment.root)
    spread = ["run", str(FILE), "--results", str(tmp_path / "spread"), "--seeds", "2"]
    assert cli.main([*spread, "--workers", "2"]) == 0
    assert capsys.readouterr().out.startswith("linear_spectrum: 3 cells computed, 0 already there")
    assert arrays(tmp_path / "spread") == arrays(tmp_path / "results")
    assert len(arrays(tmp_path / "spread")) == 3


def test_a_worker_that_dies_is_reported(tmp_path, capsys):
    deadly = tmp_path / FILE.name
    deadly.write_text("import multiprocessing, os\n" + FILE.read_text() + DEATH)
    code = cli.main(["run", str(deadly), "--results", str(tmp_path / "r"), "--workers", "2"])
    assert code == 1
    assert capsys.readouterr().err == (
        "dltheory: a worker died, killed from outside or for want of memory; the same command "
        "computes what is absent\n"
    )


DEATH = "\nif multiprocessing.parent_process() is not None:\n    os._exit(1)\n"


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
    with Pool(1) as pool, pytest.raises(store.ResultError, match="damaged"):
        workers.run(workers.tasks([experiment]), pool, report=lambda *_: None)
    assert "all" not in begun


@pytest.mark.parametrize("word", ["0", "-1", "two"])
def test_a_number_of_workers_that_is_none_is_refused(word, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["run", str(FILE), "--workers", word])
    assert exit_.value.code == 2
    assert "--workers" in capsys.readouterr().err
