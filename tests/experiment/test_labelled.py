"""Arrays with their axes named hold the same numbers, each in its place."""

from dataclasses import dataclass

import numpy as np
import pytest

from dltheory.experiment import labelled
from dltheory.experiment.execute import Result
from dltheory.experiment.sweep import Sweep


@dataclass(frozen=True)
class Config:
    width: int = 2
    rate: float = 1.0


SWEEP = Sweep("s", dict, Config(), cells={"width": (2, 3)}, grid={"rate": (0.1, 0.2)}, seeds=3)


def result(width):
    """Arrays whose entries say where they stand."""
    rate, seed, i = np.ogrid[:2, :3, :width]
    return Result(
        Config(width),
        {
            "rate": np.array([0.1, 0.2]),
            "loss": 10.0 * rate[..., 0] + seed[..., 0],
            "x": 100 * width + 10 * rate + seed + 0.1 * i,
        },
    )


def test_dimensions_and_coordinates():
    variables, coordinates = labelled.variables_of(SWEEP, result(3))
    assert {name: dims for name, (dims, _) in variables.items()} == {
        "loss": ("rate", "seed"),
        "x": ("rate", "seed", "x_0"),
    }
    np.testing.assert_array_equal(variables["x"][1], result(3).arrays["x"])
    assert coordinates["rate"].tolist() == [0.1, 0.2]
    assert coordinates["seed"].tolist() == [0, 1, 2]


def test_columns_are_a_row_for_each_trial():
    columns = labelled.columns_of(SWEEP, result(3))
    assert list(columns) == ["width", "rate", "seed", "loss", "x[0]", "x[1]", "x[2]"]
    assert {len(column) for column in columns.values()} == {6}
    rows = list(zip(*columns.values(), strict=True))
    np.testing.assert_allclose(rows[4], (3, 0.2, 1, 11, 311, 311.1, 311.2), rtol=1e-12)


def test_packages_agree_with_plain_values():
    xarray, pandas = pytest.importorskip("xarray"), pytest.importorskip("pandas")
    data = labelled.to_xarray(SWEEP, result(3))
    assert float(data.x.sel(rate=0.2, seed=1, x_0=2)) == result(3).arrays["x"][1, 1, 2]
    assert data.attrs == {"sweep": "s", "config": '{"rate":1.0,"width":3}'}
    assert isinstance(data, xarray.Dataset)
    table = labelled.to_dataframe(SWEEP, [result(2), result(3)])
    assert isinstance(table, pandas.DataFrame)
    assert len(table) == 12
    assert table.groupby("width")["x[2]"].count().tolist() == [0, 6]
    [value] = table.query("width == 3 and rate == 0.2 and seed == 1")["x[2]"]
    assert value == result(3).arrays["x"][1, 1, 2]
