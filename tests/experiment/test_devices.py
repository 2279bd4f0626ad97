"""One device against two, in processes of their own and with a time limit."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dltheory.experiment import catalogue, execute, parts, provenance, store
from tests.tier import FULL

SHARED = Path(__file__).with_name("shared_sum.py")
MAIN = "import sys; from dltheory.experiment.cli import main; sys.exit(main())"
RUN = ["-c", MAIN, "run", str(SHARED), "--results"]
# The same sweeps on one device and on two; no LAPACK in them, whose batches block each other.
TWO_DEVICES = """
import dataclasses, sys
from pathlib import Path
import jax, jax.numpy as jnp
from dltheory.experiment import catalogue, execute, stages
from dltheory.experiment.sweep import Sweep
from dltheory.networks.training import Stepped

@dataclasses.dataclass(frozen=True)
class Config:
    rate: float = 0.1

def trial(key, config):
    weights = jax.random.normal(key, (4, 32, 32)) / 6
    def step(x, weight):
        return x + config.rate * jnp.tanh(weight @ x), jnp.sum(x)
    x, sums = jax.lax.scan(step, jnp.ones(32), weights)
    return {"x": x, "sums": sums}

def in_steps(key, config):
    weight = jax.random.normal(key, (32, 32)) / 6
    step = lambda x: (x + config.rate * jnp.tanh(weight @ x), jnp.sum(x))
    return Stepped(lambda key: jax.random.normal(key, (32,)), step, lambda x: {"x": x})

def until_checkpoint(event):
    if event.step == 2:
        raise KeyboardInterrupt

both = jax.local_devices()
assert len(both) == 2
one_by_one = Sweep("map", trial, Config(), grid={"rate": (0.1, 0.3)}, seeds=3, batching="map")
sweeps = [
    one_by_one,
    dataclasses.replace(one_by_one, name="vmap", batching="vmap"),
    dataclasses.replace(one_by_one, name="odd", grid={}, seeds=3),
    dataclasses.replace(one_by_one, name="single", grid={}, seeds=1),
    dataclasses.replace(one_by_one, name="tight", memory=1),
    dataclasses.replace(one_by_one, name="steps", trial=in_steps, steps=4, every=1),
]
stages._PAUSE = 0
file, *roots = map(Path, sys.argv[1:])
shared = catalogue.load(catalogue.Request(file, "quick", roots[1]))
execute.run(*shared.sweeps, shared.root)
for root, devices in zip(roots, (both[:1], both)):
    jax.local_devices = lambda: devices
    for sweep in sweeps:
        execute.run(sweep, root)
    if root == roots[0]:  # One device begins what two go on with.
        try:
            execute.run(sweeps[-1], roots[1], callback=until_checkpoint)
        except KeyboardInterrupt:
            assert (roots[1] / "steps" / ".part-all" / "0-1").exists()
"""


def run(*words, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """The results of the sweeps on one device, and on two."""
    roots = [tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")]
    finish(run("-c", TWO_DEVICES, *map(str, [SHARED, *roots]), devices=2))
    return roots


def test_one_device_against_two(roots):
    chunks = {}
    for name in ("map", "vmap", "odd", "single", "tight", "steps"):
        (old, one), (new, two) = (store.load(root / name / "all") for root in roots)
        assert one.keys() == two.keys()
        for array in one:
            if name == "vmap":
                np.testing.assert_allclose(one[array], two[array], rtol=1e-5, atol=1e-6)
            else:
                assert one[array].tobytes() == two[array].tobytes(), (name, array)
        assert new["environment"]["devices"]["count"] in (1, 2)
        chunks[name] = old["chunk"], new["chunk"]
    # Dealt out evenly: three points are two and two, the last one repeated and left out.
    assert chunks == {
        "map": (6, 6),
        "vmap": (6, 6),
        "odd": (3, 4),
        "single": (1, 1),
        "tight": (1, 2),
        "steps": (6, 6),
    }


def test_a_trial_is_given_a_mesh_of_all_devices(roots):
    experiment = catalogue.load(catalogue.Request(SHARED, "quick", roots[1]))
    [sweep], [cell] = experiment.sweeps, experiment.sweeps[0].split()
    [(_, arrays)] = execute.load(sweep, experiment.root)
    assert (arrays["devices"] == 2).all()
    assert arrays["gram"].shape == (2, 2, 16, 16)
    for seed in range(2):
        key = jax.random.fold_in(sweep.key(cell), seed)
        x = np.asarray(jax.random.normal(key, (64, 16), np.float32))
        np.testing.assert_allclose(arrays["gram"][1, seed], x.T @ x, rtol=1e-5, atol=2e-5)
        for scale in range(2):
            want = (1 + scale) * np.sum(x**2)
            np.testing.assert_allclose(arrays["sum"][scale, seed], want, rtol=1e-5)


@pytest.mark.skipif(not FULL, reason="each of the two processes imports JAX")
def test_two_processes_go_on_from_what_the_first_one_reads(tmp_path):
    experiment = catalogue.load(catalogue.Request(SHARED, "quick", tmp_path))
    [sweep], [cell] = experiment.sweeps, experiment.sweeps[0].split()
    digest, code = (
        store.fingerprint(sweep.identity(cell)),
        provenance.code(sweep.trial, cell.config),
    )
    kept = parts.Parts(experiment.root / sweep.name / cell.name, digest, code)
    mark = {"sum": np.float32([-1]), "gram": np.zeros((1, 16, 16), np.float32)}
    kept.save(1, 1, {**mark, "devices": np.int32([2])})
    first, _ = map(finish, together(tmp_path))
    assert "1 cells computed" in first
    [(_, arrays)] = execute.load(sweep, experiment.root)
    assert arrays["sum"].ravel()[1] == -1
    assert (np.delete(arrays["sum"].ravel(), 1) > 0).all()
    assert parts.leftovers(tmp_path) == []


def together(results):
    """Two processes of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [*RUN, str(results), "--distributed"]
    return [run(*words, f"{address},2,{index}") for index in range(2)]


@pytest.mark.skipif(not FULL, reason="each of the three processes imports JAX")
def test_two_processes_reduce_to_the_numbers_of_one(tmp_path):
    first, second = map(finish, together(tmp_path / "two"))
    assert "shared_sum: 1 cells computed, 0 already there" in first
    assert "shared_sum" not in second
    finish(run(*RUN, str(tmp_path / "one"), devices=2))
    (_, two), (_, one) = (
        store.load(tmp_path / name / "shared_sum" / "quick" / "shared" / "all")
        for name in ("two", "one")
    )
    assert (one["devices"] == 2).all()
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-6)
