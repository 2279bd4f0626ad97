"""A cell that was cut off goes on from its finished chunks, with chunks of the same size."""

import dataclasses
import shutil
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.experiment import execute, parts, store
from dltheory.experiment.sweep import Sweep


@dataclass(frozen=True)
class Config:
    scale: float = 1.0


def trial(key, config):
    draw = jax.random.key_data(key)
    return {"draw": draw, "value": config.scale * jnp.sin(draw[0].astype(float))}


WHOLE = Sweep("s", trial, Config(), seeds=23, x64=True)
SWEEP = dataclasses.replace(WHOLE, memory=400)
[CELL] = SWEEP.split()


def run(sweep, root, until=None, chunks=None):
    """Run a sweep, up to a number of points; the sizes of the chunks that are computed."""
    build = execute.programs.build

    def counted(*args, **options):
        program, chunk = build(*args, **options)

        def once(key, points):
            (chunks if chunks is not None else []).append(len(points[0]))
            return program(key, points)

        return once, chunk

    def stop(event):
        if until is not None and event.done >= until:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execute.programs, "build", counted)
        return execute.run(sweep, root, callback=stop)


def arrays(root):
    return (root / "s" / "all" / store.ARRAYS).read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    root = tmp_path_factory.mktemp("unbroken")
    chunks = []
    run(SWEEP, root, chunks=chunks)
    assert len(chunks) > 2
    assert not (root / "s" / ".part-all").exists()
    return arrays(root), chunks


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory, unbroken):
    """A run that was cut off after its second chunk."""
    root, [size, *_] = tmp_path_factory.mktemp("broken"), unbroken[1]
    with pytest.raises(KeyboardInterrupt):
        run(SWEEP, root, until=2 * size)
    assert [path.name for path in sorted((root / "s").iterdir())] == [".part-all"]
    return root


@pytest.fixture
def broken(tmp_path, cut_off):
    return shutil.copytree(cut_off, tmp_path / "broken")


@pytest.mark.parametrize("memory", [SWEEP.memory, 1 << 30, 1])
def test_what_is_left_is_computed_in_chunks_of_the_same_size(broken, unbroken, memory):
    wanted, sizes = unbroken
    chunks = []
    sweep = dataclasses.replace(SWEEP, memory=memory)
    assert run(sweep, broken, chunks=chunks) == execute.Tally(computed=1, present=0)
    assert chunks == sizes[2:]
    assert arrays(broken) == wanted
    assert store.load_manifest(broken / "s" / "all")["chunk"] == sizes[0]
    assert [path.name for path in (broken / "s").iterdir()] == ["all"]


def test_parts_of_another_configuration_are_refused_with_both_hashes(broken):
    other = dataclasses.replace(SWEEP, config=Config(scale=2.0))
    with pytest.raises(store.ResultError, match=r"part-all.0 is part of a cell of another") as e:
        run(other, broken)
    for sweep in (SWEEP, other):
        assert store.fingerprint(sweep.identity(sweep.split()[0])) in str(e.value)


def test_a_damaged_part_is_named(broken, unbroken):
    path = broken / "s" / ".part-all" / str(unbroken[1][0]) / store.ARRAYS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(store.ResultError, match=f"{path} is damaged"):
        run(SWEEP, broken)


def test_the_latest_checkpoint_is_taken(tmp_path, monkeypatch):
    kept = parts.Parts(tmp_path / "all", "hash")
    with monkeypatch.context() as patch:
        patch.setattr(store, "discard", lambda _: None)  # Killed before it had removed any.
        for steps in (10, 9, 2):
            kept.keep(4, 2, steps, {"a": np.full(2, steps)})
    assert kept.checkpoint(0, 2) is kept.checkpoint(4, 3) is None
    assert kept.chunk() == 2
    steps, arrays = kept.checkpoint(4, 2)
    assert (steps, arrays["a"][0]) == (10, 10)
    kept.keep(4, 2, 11, {"a": np.zeros(2)})
    assert [path.name for path in kept.folder.iterdir()] == ["4-11"]
    kept.save(4, 2, {"a": np.zeros(2)})
    assert [path.name for path in kept.folder.iterdir()] == ["4"]


def test_parts_of_a_finished_cell_are_left_over(broken):
    assert parts.leftovers(broken) == []
    run(SWEEP, broken)
    kept = parts.Parts(broken / "s" / "all", "hash")
    kept.save(0, 4, {"a": np.zeros(4)})
    kept.save(0, 4, {"a": np.ones(4)})
    assert kept.chunk() == 4
    assert not kept.load(0, 4)["a"].any()
    assert kept.load(0, 5) is kept.load(4, 4) is None
    assert parts.leftovers(broken) == [broken / "s" / ".part-all"]
    run(SWEEP, broken)
    assert parts.leftovers(broken) == []
