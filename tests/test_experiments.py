"""Every experiment states its claim in one form, and can be traced with what the library is now."""

import re
from functools import partial
from pathlib import Path

import jax
import pytest

from dltheory.experiment import catalogue, stages
from tests.tier import FULL

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "experiments").glob("*/*.py"))
each = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def load(path, profile):
    return catalogue.load(catalogue.Request(path, profile, Path("results")))


@each
def test_an_experiment_names_its_paper_its_command_and_what_to_expect(path):
    text = load(path, "quick").module.__doc__
    summary, _, rest = text.partition("\n")
    assert summary.endswith(".")
    assert len(summary) <= 100
    assert re.search(r"^Paper    .*\(?(19|20)\d\d\)?", rest, re.M | re.S)
    # The time it takes, too.
    assert re.search(rf"^Run      dltheory run {path.stem} +\(.*\)$", rest, re.M)
    assert f"dltheory run {path.stem} --profile full" in rest
    assert "\nExpect   " in rest


@each
def test_both_profiles_sweep_the_same_things(path):
    """Their names may end in a size."""
    kinds = [
        {re.sub(r"-\d+$", "", sweep.name) for sweep in load(path, profile).sweeps}
        for profile in catalogue.PROFILES
    ]
    assert kinds[0] == kinds[1]


@pytest.mark.skipif(not FULL, reason="the full tier traces every program, which takes minutes")
@pytest.mark.promotes
@each
def test_a_cell_of_each_sweep_traces(path):
    for sweep in load(path, "quick").sweeps:
        cell = sweep.split()[0]
        with jax.enable_x64(sweep.x64):
            point = jax.tree.map(lambda axis: axis[0], sweep.points())
            one = sweep.run_point if sweep.steps is None else partial(stages.start, sweep)
            found = jax.eval_shape(partial(one, cell), sweep.key(cell), point)
        assert found
