"""Runs that stop and start, and results that are the ones asked for."""

import dataclasses
from collections import Counter
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from dltheory.experiment import execute, store
from dltheory.experiment.sweep import Sweep


@dataclass(frozen=True)
class Config:
    width: int = 2
    rate: float = 1.0


def trial(key, config):
    return {"draw": config.rate * jax.random.normal(key, (config.width,))}


SWEEP = Sweep("s", trial, Config(), cells={"width": (2, 3, 4)}, seeds=3)


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob(store.ARRAYS)}


def test_a_run_that_was_cut_off_resumes_to_the_same_bits(tmp_path):
    execute.run(SWEEP, tmp_path / "unbroken")

    def stop(event):
        if (event.cell, event.kind) == ("width-3", "progress"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute.run(SWEEP, tmp_path / "broken", callback=stop)
    assert execute.missing(SWEEP, tmp_path / "broken") == ["width-3", "width-4"]
    with pytest.raises(store.ResultError, match=r"lacks 2 of 3 cells \(width-3, width-4\): run it"):
        execute.load(SWEEP, tmp_path / "broken")

    events = []
    tally = execute.run(SWEEP, tmp_path / "broken", callback=events.append)
    assert tally == execute.Tally(computed=2, present=1)
    kinds = [("begun", 0), ("compiled", 0), ("progress", 3), ("computed", 3)]
    assert [(e.cell, e.kind, e.done) for e in events] == [
        ("width-2", "present", 3),
        *(("width-3", *kind) for kind in kinds),
        *(("width-4", *kind) for kind in kinds),
    ]
    assert {(e.sweep, e.points) for e in events} == {("s", 3)}
    assert [e.config.width for e in events if e.arrays is not None] == [3, 4]
    assert events[-1].arrays["draw"].shape == (3, 4)
    assert execute.missing(SWEEP, tmp_path / "broken") == []
    assert len(contents(tmp_path / "broken")) == 3
    assert contents(tmp_path / "broken") == contents(tmp_path / "unbroken")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("done")
    execute.run(SWEEP, root)
    return root


def test_results_come_in_order_with_their_configurations(done):
    results = execute.load(SWEEP, done)
    assert [config for config, _ in results] == [Config(width) for width in (2, 3, 4)]
    for cell, (config, arrays) in zip(SWEEP.split(), results, strict=True):
        np.testing.assert_array_equal(arrays["draw"], execute.evaluate(SWEEP, cell)[0]["draw"])
        assert arrays["draw"].shape == (3, config.width)


def test_a_finished_run_computes_nothing(done, monkeypatch):
    monkeypatch.setattr(execute, "evaluate", None)
    assert execute.run(SWEEP, done) == execute.Tally(computed=0, present=3)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seeds": 4}, "seeds: 3 recorded, 4 asked for"),
        ({"config": Config(rate=2.0)}, "config.rate: 1.0 recorded, 2.0 asked for"),
        ({"grid": {"rate": (1.0,)}}, r"grid.rate\[0\]|grid.rate.0: None recorded, 1.0 asked for"),
        ({"x64": True}, "x64: False recorded, True asked for"),
        ({"batching": "map"}, "batching: vmap recorded, map asked for"),
    ],
    ids=str,
)
def test_another_configuration_is_refused_with_both_hashes(done, change, text):
    other = dataclasses.replace(SWEEP, **change)
    [first, *_] = SWEEP.split()
    hashes = [store.fingerprint(s.identity(s.split()[0])) for s in (SWEEP, other)]
    for call in (execute.run, execute.load):
        with pytest.raises(store.ResultError, match=text) as caught:
            call(other, done)
        assert all(digest in str(caught.value) for digest in hashes)
        assert str(done / "s" / first.name) in str(caught.value)
    assert len(contents(done)) == 3


def test_a_damaged_cell_is_named_on_resume(tmp_path):
    execute.run(SWEEP, tmp_path)
    path = tmp_path / "s" / "width-3" / store.ARRAYS
    data = bytearray(path.read_bytes())
    data[-200] ^= 1
    path.write_bytes(data)
    for call in (execute.run, execute.load):
        with pytest.raises(store.ResultError, match=str(path)):
            call(SWEEP, tmp_path)


def test_another_process_may_be_faster(tmp_path, monkeypatch):
    evaluate = execute.evaluate

    def slow(sweep, cell, **options):
        monkeypatch.setattr(execute, "evaluate", evaluate)
        execute.run(sweep, tmp_path)
        return evaluate(sweep, cell, **options)

    monkeypatch.setattr(execute, "evaluate", slow)
    assert execute.run(SWEEP, tmp_path) == execute.Tally(computed=0, present=3)


def test_the_manifest_says_where_the_numbers_come_from(done):
    manifest = store.load_manifest(done / "s" / "width-2")
    assert manifest["config"] == {"width": 2, "rate": 1.0}
    assert manifest["seeds"] == manifest["chunk"] == 3
    assert manifest["seed"] == 0
    assert manifest["x64"] is False
    assert manifest["seconds"] > 0
    environment = manifest["environment"]
    assert environment["packages"]["jax"] == jax.__version__
    assert environment["devices"]["backend"] == jax.default_backend()
    assert environment["precision"].keys() == {"matmul", "prng", "xla_flags"}
    assert environment["git"] is None or len(environment["git"]["commit"]) == 40


def test_a_new_seed_finds_its_programs_compiled(tmp_path, monkeypatch):
    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    asked, counts = Counter(), []
    count = lambda event, **_: asked.update([event.rpartition("/")[2]])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update(names[0], None)
    compilation_cache.reset_cache()
    jax.monitoring.register_event_listener(count)
    try:
        execute.keep_compilations()
        for seed in range(2):
            jax.clear_caches()
            asked.clear()
            execute.run(dataclasses.replace(SWEEP, seed=seed), tmp_path / str(seed))
            counts.append((asked["cache_hits"], asked["cache_misses"]))
    finally:
        jax.monitoring.unregister_event_listener(count)
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
    programs = counts[0][1]
    assert programs > len(SWEEP.split())
    assert counts == [(0, programs), (programs, 0)]
    assert (tmp_path / "cache" / "dltheory" / "xla").is_dir()
    one, other = (contents(tmp_path / str(seed)) for seed in range(2))
    assert all(one[path] != other[path] for path in one)
