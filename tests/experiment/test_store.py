"""A result is whole or absent, and comes back as it went in."""

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dltheory.experiment import store
from tests.tier import cases

ARRAYS = {"values": np.arange(6.0).reshape(2, 3), "flag": np.array(True)}
MANIFEST = {"config": {"width": 4}, "config_hash": "abc"}


def is_whole(folder):
    manifest, arrays = store.load(folder)
    return manifest["config_hash"] == "abc" and np.array_equal(arrays["values"], ARRAYS["values"])


# --- what goes in comes out ------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3)),
        np.array(2.5),
        np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324]),
        np.array([1 + 2j, -3j], np.complex64),
        np.array([1.5, -2.0], np.float16),
        np.array([[1, 2], [3, 4]], np.int8).T,
        np.array([True, False]),
        np.array([2**64 - 1], np.uint64),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_come_back_bit_for_bit(tmp_path, array):
    store.save(tmp_path / "r", {"a": array}, MANIFEST)
    _, arrays = store.load(tmp_path / "r")
    assert arrays["a"].dtype == array.dtype
    assert arrays["a"].shape == array.shape
    assert arrays["a"].tobytes() == array.tobytes()


def test_the_same_result_is_the_same_bytes(tmp_path):
    store.save(tmp_path / "one", ARRAYS, MANIFEST)
    store.save(tmp_path / "two", dict(reversed(ARRAYS.items())), MANIFEST)
    for name in (store.ARRAYS, store.MANIFEST):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_numpy_reads_the_arrays_by_itself(tmp_path):
    store.save(tmp_path / "r", ARRAYS, MANIFEST)
    with np.load(tmp_path / "r" / store.ARRAYS) as arrays:
        assert np.array_equal(arrays["values"], ARRAYS["values"])


@pytest.mark.parametrize(
    "array",
    [
        np.array([object()]),
        np.array(["text"]),
        np.zeros(2, ml_dtypes.bfloat16),
        np.zeros(2, [("field", float)]),
        np.zeros(2, "datetime64[s]"),
    ],
    ids=lambda array: str(array.dtype),
)
def test_other_arrays_are_refused_before_anything_is_written(tmp_path, array):
    with pytest.raises(TypeError, match=r"array 'a' is of dtype .*results hold booleans"):
        store.save(tmp_path / "r", {"a": array}, MANIFEST)
    assert not list(tmp_path.iterdir())


# --- names and configurations ----------------------------------------------------------------

HOSTILE = ["", ".", "..", "../up", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\n", "-rf", ".hidden"]
HOSTILE += ["CON", "nul.txt", "com1", "naïve", "a b", "~", "$HOME", "x" * 101, "end.", None, 3]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_hostile_names_are_refused(name):
    with pytest.raises(ValueError, match="cannot be a folder: use 1 to 100 of"):
        store.check_name(name)


@given(st.text(max_size=20) | st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True))
def test_an_accepted_name_is_one_folder_below(name):
    try:
        store.check_name(name)
    except ValueError:
        return
    assert Path("/results", name).parent == Path("/results")
    assert os.path.normpath(f"/results/{name}") == f"/results/{name}"
    assert name.isascii()
    assert name.isprintable()


@dataclass(frozen=True)
class Inner:
    rate: object = 0.1


@dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    widths: tuple = (1, 2)


def test_canonical_json_is_one_text():
    assert store.canonical(Outer()) == '{"inner":{"rate":0.1},"widths":[1,2]}'
    assert store.canonical({"b": 1, "a": None}) == store.canonical({"a": None, "b": 1})
    assert store.fingerprint(Outer()) != store.fingerprint(
        Outer(Inner(np.nextafter(0.1, 1).item()))
    )


@pytest.mark.parametrize(
    ("leaf", "error", "text"),
    [
        (float("nan"), ValueError, "config.inner.rate is nan: a configuration holds finite"),
        (float("inf"), ValueError, "config.inner.rate is inf: a configuration holds finite"),
        (np.float32(1), TypeError, "config.inner.rate is a float32.*with .item()"),
        (np.float64(1), TypeError, "config.inner.rate is a float64.*with .item()"),
        (print, TypeError, "config.inner.rate is a builtin_function_or_method"),
        ({1}, TypeError, "config.inner.rate is a set"),
        ({1: 2}, TypeError, "config.inner.rate has the key 1: keys are text"),
        ([0, [np.int64(1)]], TypeError, r"config.inner.rate\[1\]\[0\] is a int64"),
    ],
    ids=repr,
)
def test_canonical_names_the_field_it_refuses(leaf, error, text):
    with pytest.raises(error, match=text):
        store.canonical(Outer(Inner(leaf)))


# --- whole or not at all ---------------------------------------------------------------------

STEPS = ("mkdir", "open", "write", "fsync", "close", "rename")


def fail_at(monkeypatch, step, error):
    """Let the `step`-th call of the system raise; a write does half of its work first."""
    calls = []

    def guard(name, call):
        def guarded(*args, **kwargs):
            calls.append(name)
            if len(calls) != step:
                return call(*args, **kwargs)
            if name == "write":
                call(args[0], args[1][: len(args[1]) // 2])
            raise error

        return guarded

    for name in STEPS:
        monkeypatch.setattr(os, name, guard(name, getattr(os, name)))
    return calls


def all_steps(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        calls = fail_at(patch, 0, None)
        store.save(tmp_path / "dry" / "new" / "run", ARRAYS, MANIFEST)
    return calls


class Death(BaseException):
    """The process dies here."""


def test_files_are_synced_before_the_rename_and_the_folder_after_it(tmp_path):
    steps = all_steps(tmp_path)
    assert steps.count("rename") == 1
    before, after = steps[: steps.index("rename")], steps[steps.index("rename") + 1 :]
    file, folder = ["open", "write", "fsync", "close"], ["open", "fsync", "close"]
    assert before[-12:] == ["mkdir", *file, *file, *folder]
    assert after == folder


def test_death_at_any_step_leaves_it_whole_or_absent(tmp_path, monkeypatch):
    steps = all_steps(tmp_path)
    committed = steps.index("rename") + 1
    # The dead do not clean up.
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    for step in range(1, len(steps) + 1):
        folder = tmp_path / str(step) / "new" / "run"
        with pytest.MonkeyPatch.context() as patch:
            fail_at(patch, step, Death())
            with pytest.raises(Death):
                store.save(folder, ARRAYS, MANIFEST)
        assert folder.exists() == (step > committed), steps[step - 1]
        if folder.exists():
            assert is_whole(folder)
        else:
            store.save(folder, ARRAYS, MANIFEST)
            assert is_whole(folder)


def test_a_full_disk_at_any_step_is_an_error_with_the_path_and_no_leftovers(tmp_path):
    steps = all_steps(tmp_path)
    committed = steps.index("rename") + 1
    for step in range(1, len(steps) + 1):
        folder = tmp_path / str(step) / "run"
        folder.parent.mkdir()
        store.save(folder.parent / "old", ARRAYS, MANIFEST)
        with pytest.MonkeyPatch.context() as patch:
            calls = fail_at(patch, step, OSError(errno.ENOSPC, "No space left on device"))
            try:
                store.save(folder, ARRAYS, MANIFEST)
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
                assert str(folder) in str(error)  # noqa: PT017
            else:
                assert len(calls) < step  # The folders above were there: fewer steps.
        left = {path.name for path in folder.parent.iterdir()}
        assert left <= {"old", "run"}
        assert is_whole(folder.parent / "old")
        if "run" in left:
            assert is_whole(folder)
        else:
            assert step <= committed


FULL_DISK = """
import errno, importlib.util, subprocess, sys
from pathlib import Path
import numpy as np
spec = importlib.util.spec_from_file_location("store", sys.argv[1])
store = importlib.util.module_from_spec(spec); spec.loader.exec_module(store)
root = Path(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(root)], check=True)
arrays, full = {"a": np.arange(1000.0)}, 0
for i in range(20):
    try:
        store.save(root / f"r{i}", arrays, {"i": i})
    except OSError as error:
        assert error.errno == errno.ENOSPC
        assert str(root / f"r{i}") in str(error).replace(".tmp-", "")
        full += 1
kept = sorted(path.name for path in root.iterdir())
for name in kept:
    manifest, found = store.load(root / name)
    assert name == f"r{manifest['i']}" and np.array_equal(found["a"], arrays["a"])
print(len(kept), full)
"""


def test_a_disk_that_is_full_in_fact(tmp_path):
    # In a name space of its own: no rights are needed, and it is gone with the process.
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    tried = [*alone, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    try:
        refused = subprocess.run(tried, capture_output=True, text=True, timeout=60).stderr
    except FileNotFoundError as error:
        refused = str(error)
    if refused:
        pytest.skip(f"no tmpfs may be mounted here: {refused.strip()}")
    done = subprocess.run(
        [*alone, sys.executable, "-c", FULL_DISK, store.__file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    kept, full = map(int, done.stdout.split())
    assert kept >= 3
    assert full >= 10
    assert kept + full == 20


WRITER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("store", sys.argv[1])
store = importlib.util.module_from_spec(spec); spec.loader.exec_module(store)
import numpy as np
from pathlib import Path
for i in range(10**6):
    store.save(Path(sys.argv[2], f"r{i}"), {"a": np.full(2000, float(i))}, {"i": i})
    print(i, flush=True)
"""


def test_sigkill_loses_nothing_that_was_reported(tmp_path):
    wait = random.Random(0)
    for attempt in range(cases(100)):
        root = tmp_path / str(attempt)
        command = [sys.executable, "-c", WRITER, store.__file__, str(root)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "0\n"
            try:
                process.wait(wait.uniform(0, 0.05))
            except subprocess.TimeoutExpired:
                process.kill()
            reported = [0, *(int(line) for line in process.stdout.read().split("\n")[:-1])]
        results = {path.name for path in root.iterdir() if not path.name.startswith(".tmp-")}
        assert {f"r{i}" for i in reported} <= results
        for name in results:
            manifest, arrays = store.load(root / name)
            assert name == f"r{manifest['i']}"
            assert np.array_equal(arrays["a"], np.full(2000, float(manifest["i"])))


def test_one_of_many_writers_wins(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "lexists", lambda path: Path(path, store.MANIFEST).exists())
    for attempt in range(cases(100)):
        barrier, wins = threading.Barrier(4), []

        def write(i, folder=tmp_path / f"r{attempt}", barrier=barrier, wins=wins):
            barrier.wait()
            try:
                store.save(folder, {"a": np.full(9, i)}, MANIFEST)
            except FileExistsError:
                return
            wins.append(i)

        threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert store.load(tmp_path / f"r{attempt}")[1]["a"][0] == wins[0]
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_result_is_never_replaced(tmp_path):
    store.save(tmp_path / "r", ARRAYS, MANIFEST)
    with pytest.raises(FileExistsError, match="r exists: a result is written once, remove it"):
        store.save(tmp_path / "r", {}, MANIFEST)
    assert is_whole(tmp_path / "r")
