"""Differences from a reference are found, counted and located; rounding is none."""

from dataclasses import dataclass

import numpy as np
import pytest

from dltheory.experiment import reference
from dltheory.experiment.execute import Result
from dltheory.experiment.sweep import Sweep


@dataclass(frozen=True)
class Config:
    width: int = 2


SWEEP = Sweep("s", lambda *_: {}, Config(), cells={"width": (2, 3)})
WANTED = {
    "a": np.array([[1.0, -2.0, np.nan], [np.inf, 0.0, 1e6]]),
    "n": np.array([1, 2]),
    "z": np.array([1 + 1j]),
}


def compare(**changed):
    here = {name: a for name, a in {**WANTED, **changed}.items() if a is not None}
    results = [Result(Config(2), WANTED), Result(Config(3), here)]
    return reference.differences(SWEEP, results, [Result(Config(w), WANTED) for w in (2, 3)])


def moved(name, at, value):
    array = WANTED[name].copy()
    array[at] = value
    return {name: array}


@pytest.mark.parametrize(
    "same", [{}, moved("a", (1, 2), 1e6 + 9), moved("a", (1, 1), 1e-9), moved("z", 0, 1 + 1.00001j)]
)
def test_rounding_is_no_difference(same):
    assert compare(**same) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (moved("a", (0, 1), -2.001), "a: 1 of 6 differ, the most at [0, 1]: -2.001, -2 in the"),
        (moved("a", (1, 2), 1e6 + 11), "a: 1 of 6 differ, the most at [1, 2]: 1000011, 1000000 in"),
        (moved("a", (0, 2), 0.0), "a: 1 of 6 differ, the most at [0, 2]: 0, nan in the reference"),
        (moved("a", (1, 0), -np.inf), "a: 1 of 6 differ, the most at [1, 0]: -inf, inf in the"),
        (moved("n", 1, 3), "n: 1 of 2 differ, the most at [1]: 3, 2 in the reference"),
        (moved("z", 0, 1 - 1j), "z: 1 of 1 differ, the most at [0]: 1-1j, 1+1j in the reference"),
        ({"a": WANTED["a"] + 1}, "a: 3 of 6 differ, the most at [0, 0]: 2, 1 in the reference"),
        ({"a": WANTED["a"].T}, "a: has shape (3, 2), (2, 3) in the reference"),
        ({"a": None}, "a: is in the reference alone"),
        ({"b": WANTED["n"]}, "b: is not in the reference"),
    ],
    ids=range(10),
)
def test_a_difference_is_named(changed, line):
    [found] = compare(**changed)
    assert found.startswith(f"s/width-3 {line}")
