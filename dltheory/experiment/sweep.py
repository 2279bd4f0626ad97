"""What an experiment computes: one pure trial, over cells x grid x seeds."""

import copy
import dataclasses
import itertools
import math
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from dltheory.experiment import store
from dltheory.networks.training import Stepped


class Cell(NamedTuple):
    """One compiled program of a sweep.

    Attributes:
        name: The folder of its result, such as `width-64_depth-20`.
        config: The sweep's configuration with the cell's values in it.
    """

    name: str
    config: Any


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A trial, a configuration, and the axes along which it varies.

    The trial is a pure function `trial(key, config) -> dict of arrays`. Each point of
    `grid x seeds` is one call of it, and each result array has the leading axes
    `(*grid, seeds)` in the order in which `grid` names them.

    Two rules make results trustworthy. The key of a point depends on the sweep, the cell and the
    index of the seed alone: cells are independent of each other, the points of a grid share their
    draws, and more seeds leave the earlier ones as they were. And a field of `grid` reaches the
    trial as a traced scalar, in a copy of the configuration that is made without calling
    `__post_init__`: a configuration may check its fields there, since every point of the grid is
    first built, and so checked, with its concrete numbers.

    Attributes:
        name: Folder of the results; unique within an experiment.
        trial: `trial(key, config) -> {name: array}`, pure and traceable; with `"mesh"`,
            `trial(key, config, mesh)`. With `steps` it returns a `training.Stepped`, such as
            `training.descent` does, whose `read` gives the dict of arrays.
        config: A frozen dataclass of None, bool, int, float, str, tuples and dataclasses.
        cells: Axes that change the program (width, depth, activation): field -> values.
        grid: Axes that are numbers in one program (variances, rates): field -> values.
        seeds: How many seeds.
        seed: The root of all randomness.
        steps: How many steps the trial's process takes; None for a trial that has none. A result
            then holds `loss`, with a last axis of `steps`; what `read` gives, each with an axis
            for the records behind the seeds; and `at`, the steps done at each record.
        every: Steps between two records, a divisor of `steps`, in one compiled loop. Between two
            of them a checkpoint may be written, from which a run that was killed goes on.
        batching: `"vmap"` runs points side by side, in chunks that fit `memory`; `"map"` runs them
            one by one on each device, with the same bits whatever the number of points and devices.
            Both share the points out among the local devices. `"mesh"` is for a trial that is too
            large for one device: points follow each other, and each is given a mesh with the one
            axis `devices`, all devices of all processes, to lay its arrays out on.
        x64: Whether the trial runs in double precision.
        memory: Bytes that one chunk may take of a device. With `"vmap"` it decides the last bits,
            as the size of a batch does; the chunk is recorded in the manifest.
    """

    name: str
    trial: Callable[..., Mapping[str, Any] | Stepped]
    config: Any
    cells: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    grid: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    seeds: int = 1
    seed: int = 0
    steps: int | None = None
    every: int | None = None
    batching: Literal["vmap", "map", "mesh"] = "vmap"
    x64: bool = False
    memory: int = 1 << 30

    def __post_init__(self):
        store.check_name(self.name, "sweep")
        _check_config(self.config)
        if self.batching not in ("vmap", "map", "mesh"):
            raise ValueError(f"batching is {self.batching!r}, want 'vmap', 'map' or 'mesh'")
        for name, least in (("seeds", 1), ("seed", 0), ("memory", 1)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value:
                raise ValueError(f"{name} is {value!r}, want an integer of at least {least}")
        if self.seed >= 1 << 32:
            raise ValueError(f"seed is {self.seed}, want an integer below 2**32")
        self._check_steps()
        fields = {f.name for f in dataclasses.fields(self.config)}
        for axis, values in [*self.cells.items(), *self.grid.items()]:
            if axis not in fields:
                raise ValueError(
                    f"axis {axis!r} is no field of the configuration: {sorted(fields)}"
                )
            if isinstance(values, str) or not hasattr(values, "__len__"):
                raise TypeError(f"axis {axis!r} is {values!r}, want a list of values")
            if len(values) == 0:
                raise ValueError(f"axis {axis!r} has no values, want at least one")
        if both := self.cells.keys() & self.grid.keys():
            raise ValueError(f"{sorted(both)} are axes of cells and of grid, want one or the other")
        for axis, values in self.grid.items():
            numbers = np.asarray(values)
            if numbers.dtype.kind not in "iuf" or numbers.ndim != 1:
                raise ValueError(
                    f"grid axis {axis!r} is {values!r}, want a list of numbers; an axis that "
                    "changes the program belongs in cells"
                )
            if not np.isfinite(numbers).all():
                raise ValueError(f"grid axis {axis!r} is {values!r}, want finite numbers")
        for cell in self.split():
            for point in itertools.product(*map(_numbers, self.grid.values())):
                dataclasses.replace(cell.config, **dict(zip(self.grid, point, strict=True)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Leading axes of every result array: `(*grid, seeds)`."""
        return (*(len(values) for values in self.grid.values()), self.seeds)

    @property
    def vectors(self) -> dict[str, np.ndarray]:
        """What a result holds as vectors, by name: the axes of `grid` and, with `steps`, `at`."""
        vectors = {axis: np.asarray(values) for axis, values in self.grid.items()}
        if self.steps is not None:
            vectors["at"] = np.arange(0, self.steps + 1, self.every, dtype=np.int32)
        return vectors

    def split(self) -> tuple[Cell, ...]:
        """List the cells, the last axis fastest.

        Returns:
            One `Cell` per combination of the values in `cells`; one named `all` if there is none.

        Raises:
            TypeError: If a field holds what a configuration cannot.
            ValueError: If a configuration is refused, by its own `__post_init__` or because it is
                not finite, or two cells would share a name.
        """
        cells = []
        for values in itertools.product(*self.cells.values()):
            chosen = dict(zip(self.cells, values, strict=True))
            config = dataclasses.replace(self.config, **chosen)
            store.canonical(config)
            name = "_".join(f"{axis}-{_label(value)}" for axis, value in chosen.items()) or "all"
            cells.append(Cell(store.check_name(name, "cell"), config))
        if len({cell.name for cell in cells}) < len(cells):
            raise ValueError(f"cells share a name: {[cell.name for cell in cells]}")
        return tuple(cells)

    def pin(self, fields: Collection[str]) -> "Sweep":
        """Let the configuration's own value replace an axis.

        Args:
            fields: Names of fields; those that are no axis are left alone.

        Returns:
            The sweep in which each of these axes has one value, that of `config`.
        """

        def pinned(axes: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
            return {a: (getattr(self.config, a),) if a in fields else v for a, v in axes.items()}

        return dataclasses.replace(self, cells=pinned(self.cells), grid=pinned(self.grid))

    def identity(self, cell: Cell) -> dict[str, Any]:
        """All that decides a cell's numbers, up to rounding.

        Args:
            cell: One of `split()`.

        Returns:
            Plain values; two results may share a folder only if these agree.
        """
        stages = {} if self.steps is None else {"steps": self.steps, "every": self.every}
        return {
            "sweep": self.name,
            "config": cell.config,
            "grid": {axis: _numbers(values) for axis, values in self.grid.items()},
            "seeds": self.seeds,
            "seed": self.seed,
            "batching": self.batching,
            "x64": self.x64,
            **stages,
        }

    def key(self, cell: Cell) -> Array:
        """The cell's random key, which the index of the seed is folded into.

        Args:
            cell: One of `split()`.

        Returns:
            A typed key.
        """
        stream = zlib.crc32(f"{self.name}/{cell.name}".encode())
        return jax.random.fold_in(jax.random.key(self.seed), np.uint32(stream))

    def points(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """All points of a cell in order: the seed's index, and the value of each axis of `grid`.

        Returns:
            Arrays of shape `(points,)`, with `points` the product of `shape`.
        """
        axes = [np.asarray(values) for values in self.grid.values()]
        *values, index = np.meshgrid(*axes, np.arange(self.seeds, dtype=np.uint32), indexing="ij")
        return index.ravel(), {a: v.ravel() for a, v in zip(self.grid, values, strict=True)}

    def run_point(
        self, cell: Cell, key: Array, point: tuple[Array, Mapping[str, Array]], *mesh: Mesh
    ) -> Mapping[str, Any]:
        """Run the trial at one point.

        Args:
            cell: One of `split()`.
            key: `key(cell)`.
            point: The seed's index and the grid's values, scalars, traced or not.
            *mesh: What the trial is given besides, with `batching="mesh"`.

        Returns:
            What the trial returns.

        Raises:
            TypeError: If that is a process, and the sweep has no steps for it.
        """
        outputs = self.trial(jax.random.fold_in(key, point[0]), _configured(cell, point), *mesh)
        if isinstance(outputs, Stepped):
            raise TypeError(
                f"the trial of {self.name!r} returns a Stepped: give the sweep its steps and every"
            )
        return outputs

    def process(
        self, cell: Cell, key: Array, point: tuple[Array, Mapping[str, Array]]
    ) -> tuple[Stepped, Array]:
        """Ask the trial for its process at one point.

        Args:
            cell: One of `split()`.
            key: `key(cell)`.
            point: The seed's index and the grid's values, scalars, traced or not.

        Returns:
            The process, and the key to start it from. The trial is given another one, so that
            both may draw from theirs.

        Raises:
            TypeError: If the trial returns anything else.
        """
        key_trial, key_init = jax.random.split(jax.random.fold_in(key, point[0]))
        process = self.trial(key_trial, _configured(cell, point))
        if not isinstance(process, Stepped):
            raise TypeError(
                f"the trial of {self.name!r} returns a {type(process).__name__}, want a "
                "training.Stepped, since the sweep has steps"
            )
        return process, key_init

    def _check_steps(self) -> None:
        if self.steps is None and self.every is None:
            return
        whole = type(self.steps) is int and type(self.every) is int
        if not whole or self.every < 1 or self.steps < 1 or self.steps % self.every:  # pyright: ignore
            raise ValueError(
                f"steps is {self.steps!r} and every is {self.every!r}, want positive integers, "
                "steps a multiple of every"
            )
        if taken := {"at", "loss"} & self.grid.keys():
            raise ValueError(
                f"grid axis {taken.pop()!r} has a name that results with steps have taken, "
                "want another one"
            )
        if self.batching == "mesh":
            raise ValueError(
                "batching is 'mesh', whose trials have no steps, want 'vmap' or 'map'; or let the "
                "trial take its steps itself"
            )


def _check_config(config: Any) -> None:
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"config is a {type(config).__name__}, want an instance of a dataclass")
    if not type(config).__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise TypeError(f"config {type(config).__name__} can change, want @dataclass(frozen=True)")
    if derived := [f.name for f in dataclasses.fields(config) if not f.init]:
        raise TypeError(f"config fields {derived} have init=False, want a property instead")


def _configured(cell: Cell, point: tuple[Array, Mapping[str, Array]]) -> Any:
    config = copy.copy(cell.config)
    for axis, value in point[1].items():
        object.__setattr__(config, axis, value)
    return config


def _numbers(values: Sequence[float]) -> list[float]:
    """The values as Python numbers: what a configuration holds and JSON writes exactly."""
    return np.asarray(values).tolist()


def _label(value: Any) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, float) and math.isfinite(value):
        return repr(value).replace("+", "")
    if isinstance(value, tuple):
        return "x".join(map(_label, value))
    if dataclasses.is_dataclass(value):
        return store.fingerprint(value)[:12]
    return str(value)
