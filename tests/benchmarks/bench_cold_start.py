"""How long a run takes until it computes: the first one ever, and one with a new seed.

Timed from the start of the process until the first cell is compiled, imports and all. Compiled
programs are kept between runs, and a seed is no part of a program.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "gradients" / "lyapunov_spectrum.py"
MAIN = "import sys; from dltheory.experiment.cli import main; sys.exit(main())"


def start(cache, results, seed):
    """Run the experiment until its first cell is compiled, and end it."""
    words = ["run", str(EXPERIMENT), "--results", str(results), "--seed", str(seed)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", MAIN, *words, "--log", "json"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        kinds = (json.loads(line)["kind"] for line in process.stderr)
        assert "compiled" in kinds
        process.kill()


@pytest.mark.parametrize("how", ["ours", "first_run"])
def test_start(benchmark, tmp_path, how):
    benchmark.group = "Lyapunov spectrum until it computes: with a new seed, and for the first time"
    number = itertools.count()

    def fresh():
        index = next(number)
        cache = tmp_path / ("cache" if how == "ours" else f"cache{index}")
        return (cache, tmp_path / f"results{index}", index), {}

    if how == "ours":
        start(*fresh()[0])
    benchmark.pedantic(start, setup=fresh, rounds=3)
