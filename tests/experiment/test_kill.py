"""SIGKILL of a running sweep at random instants: nothing is half, nothing that was done is lost."""

import os
import re
import subprocess
import sys

from tests.tier import FULL

# One process imports JAX, and its forks are killed: none has started XLA's threads before.
RUNS = """
import dataclasses, os, random, signal, sys, time
from pathlib import Path
import jax, jax.numpy as jnp
from dltheory.experiment import execute, stages, store
from dltheory.experiment.sweep import Sweep
from dltheory.networks.training import Stepped

@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 1

def trial(key, config):
    return {"x": jnp.sin(jax.random.key_data(key)[0].astype(float) * jnp.ones(config.width))}

def steps(key, config):
    step = lambda state: (jnp.sin(state + config.width), state.sum())
    return Stepped(lambda key: jax.random.key_data(key).astype(float), step, lambda x: {"x": x})

SWEEPS = [
    Sweep("s", trial, Config(), cells={"width": (1, 2, 3)}, seeds=60, memory=600),
    Sweep("t", steps, Config(), cells={"width": (1, 2)}, seeds=3, steps=60, every=2),
]
stages._PAUSE = 0  # A checkpoint after every stage.

def begin(root):
    pid = os.fork()
    if pid:
        return pid
    log = os.open(root.with_suffix(".log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def tell(event):
        if event.kind == "computed":
            os.write(log, f"{event.sweep}/{event.cell}\\n".encode())
    try:
        execute.keep_compilations()
        for sweep in SWEEPS:
            execute.run(sweep, root, callback=tell)
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)

def results(folder):
    return {path.name: path for path in folder.glob("[!.]*")}

def files(root):
    paths = [path for sweep in "st" for path in results(root / sweep).values()]
    return {str(path.relative_to(root)): (path / store.ARRAYS).read_bytes() for path in paths}

def unfinished(root):
    return [*root.glob("*/.part-*")]

base, kills = Path(sys.argv[1]), int(sys.argv[2])
for name in ("unbroken", "again"):  # The second finds its programs compiled, as all others will.
    clock = time.perf_counter()
    assert os.waitpid(begin(base / name), 0)[1] == 0
    duration, unbroken = time.perf_counter() - clock, files(base / "unbroken")
wait, killed, halfway, runs = random.Random(0), 0, 0, 0
while killed < kills:
    root, ended = base / str(runs), None
    runs += 1
    while ended != 0:
        pid = begin(root)
        if killed < kills:
            left = 1 - len(files(root)) / len(unbroken)
            time.sleep(wait.uniform(0.1, 0.8) * (0.3 + 0.7 * left) * duration)
            os.kill(pid, signal.SIGKILL)
        ended = os.waitpid(pid, 0)[1]
        assert ended in (0, signal.SIGKILL), ended
        killed += ended == signal.SIGKILL
        for folder in [root / "s", root / "t", *unfinished(root)]:
            for path in results(folder).values():
                store.load(path)
        done, log = files(root), root.with_suffix(".log")
        assert unbroken == {**unbroken, **done}
        assert set(log.read_text().split() if log.exists() else []) <= done.keys()
        halfway += bool(unfinished(root)) or 0 < len(done) < len(unbroken)
    assert files(root) == unbroken
    assert not unfinished(root)
print(f"{killed} killed, {halfway} of them halfway, {runs} runs of {len(unbroken)} cells")
"""


def test_a_sweep_that_is_killed_loses_nothing_and_ends_with_the_same_bits(tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    (tmp_path / "runs").mkdir()
    kills = 100 if FULL else 3
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(tmp_path / "runs"), str(kills)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800 if FULL else 200,
    )
    assert (done.returncode, done.stderr) == (0, "")
    [killed, halfway, _, cells] = map(int, re.findall(r"\d+", done.stdout))
    assert (killed, cells) == (kills, 5)
    assert halfway >= kills // 5
