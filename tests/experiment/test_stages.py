"""Trials in steps: what training gives, in stages that a run goes on from."""

import dataclasses
import errno
import shutil
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.experiment import execute, labelled, parts, stages, store
from dltheory.experiment.sweep import Sweep
from dltheory.networks.training import Stepped, run


@dataclass(frozen=True)
class Config:
    width: int = 3
    rate: float = 0.1


class Noisy(NamedTuple):
    """What a checkpoint must hold: a key, a type that numpy has not, a number, a weak type."""

    w: Any
    key: Any
    memory: Any
    count: Any
    weak: Any


def trial(key, config):
    """Descend to a point of the trial's own, with noise."""
    target = jax.random.normal(key, (config.width,))

    def init(key):
        key_w, key_noise = jax.random.split(key)
        w = jax.random.normal(key_w, (config.width,))
        return Noisy(w, key_noise, jnp.zeros(config.width, jnp.bfloat16), 0, 1.0)

    def step(state):
        w, key, memory, count, weak = state
        assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        assert memory.dtype == jnp.bfloat16
        key, now = jax.random.split(key)
        error = w - target
        memory = (0.5 * memory.astype(w.dtype) + error).astype(jnp.bfloat16)
        noise = 0.01 * jax.random.normal(now, w.shape)
        w = w - config.rate * memory.astype(w.dtype) + noise
        return Noisy(w, key, memory, count + 1, weak * 0.5), jnp.sum(error**2)

    return Stepped(init, step, lambda state: {"w": state.w, "count": jnp.asarray(state.count)})


WHOLE = Sweep(
    "s", trial, Config(), grid={"rate": (0.1, 0.3)}, seeds=3, steps=12, every=3, batching="map"
)
# Four points at a time; the last two stand beside the last one, repeated.
SWEEP = dataclasses.replace(WHOLE, memory=1)
[CELL] = WHOLE.split()


@pytest.fixture(autouse=True, scope="module")
def compiled():
    """Programs of these two are compiled once."""
    build, programs = execute.programs.build, {}

    def once(sweep, cell, key, points, *, chunk=0):
        if sweep.trial is not trial:
            return build(sweep, cell, key, points)
        chunk = chunk or (4 if sweep.memory == 1 else 6)
        if (sweep.every, chunk) not in programs:
            programs[sweep.every, chunk] = build(sweep, cell, key, points, chunk=chunk)
        return programs[sweep.every, chunk]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute.programs, "build", once)
        yield


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every stage."""
    monkeypatch.setattr(stages, "_PAUSE", 0)


def cut(sweep, root, done, step):
    """Run a sweep until it has told of a step; what it told."""
    told = []

    def stop(event):
        told.append(event)
        if (event.done, event.step) == (done, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute.run(sweep, root, callback=stop)
    return told


def arrays(root):
    return (root / "s" / "all" / store.ARRAYS).read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    root = tmp_path_factory.mktemp("unbroken")
    told = []
    execute.run(SWEEP, root, callback=told.append)
    assert [path.name for path in (root / "s").iterdir()] == ["all"]
    return root, told


def test_a_sweep_of_steps_is_training_one_by_one(unbroken):
    manifest, got = store.load(unbroken[0] / "s" / "all")
    assert (manifest["steps"], manifest["every"]) == (12, 3)
    assert manifest["chunk"] == 4
    np.testing.assert_array_equal(got["at"], [0, 3, 6, 9, 12])
    assert got["loss"].shape == (2, 3, 12)
    assert got["w"].shape == (2, 3, 5, 3)
    np.testing.assert_array_equal(got["count"], np.broadcast_to(got["at"], (2, 3, 5)))

    @jax.jit
    @jax.vmap
    def by_hand(index, rate):
        key_trial, key_init = jax.random.split(jax.random.fold_in(WHOLE.key(CELL), index))
        process = trial(key_trial, Config(rate=rate))
        return run(process, key_init, 12, every=3)[1]

    with jax.enable_x64(False):
        index, axes = WHOLE.points()
        history = by_hand(index, axes["rate"].astype(np.float32))
    np.testing.assert_allclose(got["loss"].reshape(6, 12), history.loss, rtol=1e-5)
    np.testing.assert_allclose(got["w"].reshape(6, 5, 3), history.record["w"], rtol=1e-5)
    np.testing.assert_array_equal(got["at"], history.at[0])


def test_events_count_steps(unbroken):
    told = unbroken[1]
    assert [(e.done, e.step, e.running) for e in told if e.kind == "progress"] == [
        *((0, step, 4) for step in (3, 6, 9)),
        (4, 12, 0),
        *((4, step, 2) for step in (3, 6, 9)),
        (6, 12, 0),
    ]
    assert {event.steps for event in told} == {12}
    work = [event.work for event in told]
    assert work == sorted(work)
    assert (work[0], work[2], work[-1]) == (0, 4 * 3 / 12, 6)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize(("begun", "step"), [(0, 9), (4, 9), (4, 3)])
def test_a_run_goes_on_from_its_checkpoint_to_the_same_bits(tmp_path, unbroken, begun, step):
    cut(SWEEP, tmp_path, begun, step)
    # Stopped between a stage and its checkpoint: there is the one before, and no other.
    kept = sorted(path.name for path in (tmp_path / "s" / ".part-all").iterdir())
    assert kept == ["0"] * (begun > 0) + [f"{begun}-6"] * (step == 9)
    told = []
    # Another budget, and yet the same chunk.
    execute.run(dataclasses.replace(SWEEP, memory=1 << 30), tmp_path, callback=told.append)
    steps = [(e.done, e.step) for e in told if e.running]
    assert steps[0] == (begun, 6 if step == 9 else 3)
    assert arrays(tmp_path) == arrays(unbroken[0])
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["all"]


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory):
    """A run of one chunk that was cut off with a checkpoint of three steps."""
    root = tmp_path_factory.mktemp("broken")
    cut(WHOLE, root, 0, 6)
    return root


@pytest.fixture
def broken(tmp_path, cut_off):
    return shutil.copytree(cut_off, tmp_path / "broken")


def test_steps_before_a_checkpoint_are_not_taken_again(broken, monkeypatch):
    taken, build = [], execute.programs.build

    def counted(*args, **options):
        program, chunk = build(*args, **options)
        for name in ("start", "advance"):
            f = getattr(program, name)
            wrapped = lambda *a, f=f, name=name: taken.append(name) or f(*a)
            program = program._replace(**{name: wrapped})
        return program, chunk

    monkeypatch.setattr(execute.programs, "build", counted)
    execute.run(WHOLE, broken)
    assert taken == ["advance"] * 3


def test_checkpoints_cost_a_share_of_the_time(tmp_path, monkeypatch):
    kept = []
    keep = parts.Parts.keep
    monkeypatch.setattr(parts.Parts, "keep", lambda *a: kept.append(a[3]) or keep(*a))
    monkeypatch.setattr(stages, "_PAUSE", 1e9)
    execute.run(WHOLE, tmp_path)
    assert kept == [3]  # The first one says what they cost.


@pytest.mark.usefixtures("often")
def test_a_disk_that_is_full_leaves_the_last_checkpoint(tmp_path, unbroken, monkeypatch):
    write, keep = store._write, parts.Parts.keep

    def full(path, _):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def second(*args):
        monkeypatch.setattr(store, "_write", full if args[3] == 6 else write)
        return keep(*args)

    monkeypatch.setattr(parts.Parts, "keep", second)
    with pytest.raises(OSError, match=r"No space left on device: .*\.part-all"):
        execute.run(SWEEP, tmp_path)
    assert [path.name for path in (tmp_path / "s" / ".part-all").iterdir()] == ["0-3"]
    monkeypatch.undo()
    execute.run(SWEEP, tmp_path)
    assert arrays(tmp_path) == arrays(unbroken[0])


def test_a_checkpoint_that_cannot_be_used_is_named(broken, monkeypatch):
    folder = broken / "s" / ".part-all" / "0-3"
    other = dataclasses.replace(WHOLE, every=4)
    with pytest.raises(store.ResultError, match=r"0-3 is part of a cell of another configuration"):
        execute.run(other, broken)

    with monkeypatch.context() as patch:
        patch.setattr(execute.provenance, "code", lambda *_: "changed")
        with pytest.raises(store.ResultError, match=r"0-3 is part of a cell that other code began"):
            execute.run(WHOLE, broken)

    manifest, kept = store.load(folder)
    shutil.rmtree(folder)
    store.save(folder, {**kept, "state-0": kept["state-0"][:, :2]}, manifest)
    with pytest.raises(store.ResultError, match=r"part-all holds a state of 5 arrays .* is of 5: "):
        execute.run(WHOLE, broken)

    path = folder / store.ARRAYS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(store.ResultError, match=f"{path} is damaged"):
        execute.run(WHOLE, broken)


def test_checkpoints_of_a_finished_cell_are_left_over(broken):
    assert parts.leftovers(broken) == []
    shutil.copytree(broken / "s" / ".part-all", broken / "kept")
    execute.run(WHOLE, broken)
    (broken / "kept").rename(broken / "s" / ".part-all")
    assert parts.leftovers(broken) == [broken / "s" / ".part-all"]


def test_records_have_a_named_axis(unbroken):
    [result] = execute.load(SWEEP, unbroken[0])
    variables, coordinates = labelled.variables_of(SWEEP, result)
    assert variables["loss"][0] == ("rate", "seed", "loss_0")
    assert variables["w"][0] == ("rate", "seed", "at", "w_1")
    assert set(coordinates) == {"rate", "seed", "at"}
    columns = labelled.columns_of(SWEEP, result)
    assert "at" not in columns
    assert {"loss[11]", "w[4,2]", "count[0]"} <= columns.keys()


def test_a_sweep_without_steps_keeps_its_hash():
    sweep = Sweep("s", trial, Config(), cells={"width": (3,)}, grid={"rate": (0.1,)}, seeds=3)
    old = "5773003006ebd2c3f97b7b9c27a5c53804d95a76cde390e517ec7b3f8afafe4b"
    [cell] = sweep.split()
    assert store.fingerprint(sweep.identity(cell)) == old
    stepped = [dataclasses.replace(sweep, steps=12, every=n) for n in (4, 12)]
    hashes = {store.fingerprint(s.identity(cell)) for s in stepped}
    assert len(hashes | {old}) == 3


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"steps": 4}, "steps is 4 and every is None, want positive integers, steps a multiple"),
        ({"every": 4}, "steps is None and every is 4, want positive integers"),
        ({"steps": 5, "every": 2}, "steps is 5 and every is 2, want positive"),
        ({"steps": 0, "every": 1}, "steps is 0 and every is 1, want positive"),
        ({"steps": 4, "every": 0}, "steps is 4 and every is 0, want positive"),
        ({"steps": 4.0, "every": 2}, "steps is 4.0 and every is 2, want positive integers"),
        ({"steps": 4, "every": 2, "batching": "mesh"}, "batching is 'mesh', whose trials have no"),
    ],
    ids=str,
)
def test_steps_that_cannot_be_taken_are_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        Sweep("s", trial, Config(), **fields)


def test_an_axis_with_a_name_that_is_taken_is_refused():
    @dataclass(frozen=True)
    class Named:
        at: float = 1.0

    with pytest.raises(ValueError, match="grid axis 'at' has a name that results with steps have"):
        Sweep("s", trial, Named(), grid={"at": (1.0,)}, steps=2, every=1)


def reading(read, loss=lambda w: w):
    return lambda *_: Stepped(lambda _: jnp.ones(2), lambda w: (w, loss(w)), lambda _: read)


@pytest.mark.parametrize(
    ("bad", "error", "text"),
    [
        (lambda *_: {"a": jnp.ones(2)}, TypeError, "returns a dict, want a training.Stepped"),
        (reading(jnp.ones(2)), TypeError, "want a dict of arrays"),
        (reading({"at": jnp.ones(2)}), TypeError, "reads 'at', a name that results with steps"),
        (reading({"loss": jnp.ones(2)}), TypeError, "reads 'loss', a name that results"),
        (reading({"rate": jnp.ones(2)}), TypeError, "returns 'rate', an axis of its grid"),
        (reading({"a" * 99: jnp.ones(2)}), ValueError, "cannot be a folder"),
        (reading({}, lambda w: (w, w)), TypeError, "returns a tuple as 'loss', want an array"),
    ],
    ids=range(7),
)
def test_what_cannot_be_written_is_refused_before_it_is_computed(bad, error, text):
    sweep = dataclasses.replace(WHOLE, trial=bad)
    with pytest.raises(error, match=text):
        execute.evaluate(sweep, CELL)


def test_a_process_without_steps_is_refused():
    sweep = dataclasses.replace(WHOLE, steps=None, every=None)
    with pytest.raises(TypeError, match="returns a Stepped: give the sweep its steps and every"):
        execute.evaluate(sweep, CELL)
