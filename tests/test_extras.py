"""Whoever lacks an optional package is told which, and what to install."""

import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dltheory.experiment import catalogue, cli, figures, labelled
from dltheory.experiment.execute import Result
from dltheory.experiment.sweep import Sweep
from dltheory.networks import data

ROOT = Path(__file__).parent.parent
FILE = ROOT / "docs" / "examples" / "relu_lengths.py"
EXTRA = "pip install 'dltheory[experiments]'"


@dataclass(frozen=True)
class Config:
    width: int = 2


SWEEP = Sweep("s", dict, Config(), grid={}, seeds=1)
RESULT = Result(Config(), {"loss": np.zeros(1)})

# What asks for each package, and what it says in the end.
CASES = {
    "matplotlib": (figures.axes, f"figures need Matplotlib, which is missing: {EXTRA}"),
    "tyro": (
        lambda: catalogue.load(catalogue.Request(FILE, "quick", Path(), flags=("--width", "64"))),
        f"relu_lengths: --width 64 needs tyro, which is missing: {EXTRA}",
    ),
    "sklearn": (data.digits, f"digits come with scikit-learn, which is missing: {EXTRA}"),
    "mnist1d": (data.mnist1d, f"MNIST-1D comes with mnist1d, which is missing: {EXTRA}"),
    "xarray": (
        lambda: labelled.to_xarray(SWEEP, RESULT),
        "to_xarray needs xarray: pip install xarray",
    ),
    "pandas": (
        lambda: labelled.to_dataframe(SWEEP, [RESULT]),
        "to_dataframe needs pandas: pip install pandas",
    ),
}


@pytest.mark.parametrize("package", CASES)
def test_an_absent_package_is_named_with_its_cure(monkeypatch, package):
    absent(monkeypatch, package)
    call, text = CASES[package]
    with pytest.raises((ImportError, catalogue.UsageError)) as told:
        call()
    assert str(told.value) == text


def test_without_dask_a_scheduler_says_what_to_install(monkeypatch, capsys):
    absent(monkeypatch, "distributed")
    assert cli.main(["run", str(FILE), "--scheduler", "tcp://127.0.0.1:1"]) == 2
    error = capsys.readouterr().err
    assert error == "dltheory: --scheduler needs Dask: pip install 'dltheory[cluster]'\n"


def test_every_package_of_an_extra_for_users_is_tried():
    """But rich, which Flax depends on: nobody lacks it."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {line.partition(">=")[0] for line in extras["optional-dependencies"]["experiments"]}
    assert listed - {"rich"} == {"scikit-learn" if p == "sklearn" else p for p in CASES} - {
        "xarray",
        "pandas",
    }
    assert extras["optional-dependencies"]["cluster"] == ["dask[distributed]>=2025.1"]


def absent(monkeypatch, package):
    """Make every import of a package fail, and of what is in it, whatever is imported by now."""
    for name in [*sys.modules, package]:
        if name == package or name.startswith(f"{package}."):
            monkeypatch.setitem(sys.modules, name, None)
