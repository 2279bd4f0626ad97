"""Results with their axes named: datasets of xarray and tables of pandas, where those are there.

Neither package is needed for anything else; each is imported when its function is called.
"""

import importlib
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dltheory.experiment import store
from dltheory.experiment.execute import Result
from dltheory.experiment.sweep import Sweep


def to_xarray(sweep: Sweep, result: Result) -> Any:
    """Name the axes of a cell's arrays.

    Args:
        sweep: The sweep.
        result: One of those that `execute.load` gives for it.

    Returns:
        An `xarray.Dataset` with the dimensions `(*grid, "seed")`, then `<name>_0`, `<name>_1`, ...
        for the axes of the trial's own; the grid's values as coordinates; and the attributes
        `sweep` and `config`, the latter as canonical JSON. Where a sweep has steps, the records
        have the dimension and coordinate `at`.

    Raises:
        ImportError: If xarray is not installed.
    """
    xarray = _imported("xarray", "to_xarray")
    variables, coordinates = variables_of(sweep, result)
    attributes = {"sweep": sweep.name, "config": store.canonical(result.config)}
    return xarray.Dataset(variables, coordinates, attributes)


def to_dataframe(sweep: Sweep, results: Sequence[Result]) -> Any:
    """Lay the results of a sweep out as one table, a row for each trial.

    Args:
        sweep: The sweep.
        results: Its results, as `execute.load` gives them.

    Returns:
        A `pandas.DataFrame` whose columns are the axes of `cells` and `grid`, `seed`, and the
        arrays: `name` where a trial gives a number, `name[i]` or `name[i,j]` for each entry where
        it gives more. What one cell has and another has not is NaN.

    Raises:
        ImportError: If pandas is not installed.
    """
    pandas = _imported("pandas", "to_dataframe")
    return pandas.concat(
        [pandas.DataFrame(columns_of(sweep, result)) for result in results], ignore_index=True
    )


def variables_of(
    sweep: Sweep, result: Result
) -> tuple[dict[str, tuple[tuple[str, ...], np.ndarray]], dict[str, np.ndarray]]:
    """Name the axes of a cell's arrays, in plain values.

    Args:
        sweep: The sweep.
        result: One of those that `execute.load` gives for it.

    Returns:
        For each array its dimensions and itself, and the coordinates.
    """
    shared = (*sweep.grid, "seed")

    def own(name: str, count: int) -> tuple[str, ...]:
        named = tuple(f"{name}_{i}" for i in range(count))
        return ("at", *named[1:]) if "at" in sweep.vectors and name != "loss" else named

    variables = {
        name: ((*shared, *own(name, array.ndim - len(shared))), array)
        for name, array in result.arrays.items()
        if name not in sweep.vectors
    }
    coordinates = {axis: result.arrays[axis] for axis in sweep.vectors}
    return variables, {**coordinates, "seed": np.arange(sweep.seeds)}


def columns_of(sweep: Sweep, result: Result) -> dict[str, Any]:
    """Lay a cell's arrays out as columns of equal length, in plain values.

    Args:
        sweep: The sweep.
        result: One of those that `execute.load` gives for it.

    Returns:
        The columns that `to_dataframe` describes.
    """
    trials = math.prod(sweep.shape)
    columns: dict[str, Any] = {a: [getattr(result.config, a)] * trials for a in sweep.cells}
    index, values = sweep.points()
    columns |= {**values, "seed": index.astype(int)}
    for name, array in result.arrays.items():
        if name in sweep.vectors:
            continue
        own = array.shape[len(sweep.shape) :]
        flat = array.reshape(trials, -1)
        for column, at in enumerate(itertools.product(*map(range, own))):
            label = f"{name}[{','.join(map(str, at))}]" if own else name
            columns[label] = flat[:, column]
    return columns


def _imported(package: str, caller: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(f"{caller} needs {package}: pip install {package}") from error
