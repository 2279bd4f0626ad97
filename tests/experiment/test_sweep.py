"""Points, keys and configurations of a sweep, and their evaluation on one device."""

import dataclasses
import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.experiment import execute
from dltheory.experiment.sweep import Sweep


@dataclass(frozen=True)
class Config:
    width: int = 3
    weight_var: float = 1.0
    bias_var: float = 0.0
    phi: str = "tanh"

    def __post_init__(self):
        if self.weight_var <= 0:
            raise ValueError(f"weight_var is {self.weight_var}, want more than 0")


def trial(key, config):
    draw = jax.random.normal(key, (config.width,))
    return {
        "draw": draw,
        "value": jnp.sum(draw) * config.weight_var + config.bias_var,
        "index": jnp.argmax(draw),
    }


GRID = {"weight_var": (0.5, 1.0, 2.0), "bias_var": (0.0, 1.0)}
SWEEP = Sweep("s", trial, Config(), cells={"width": (3, 5)}, grid=GRID, seeds=4, x64=True)


def by_hand(sweep, cell):
    """One trial at a time, with concrete configurations."""
    rows = []
    for point in itertools.product(*sweep.grid.values()):
        config = dataclasses.replace(cell.config, **dict(zip(sweep.grid, point, strict=True)))
        keys = [jax.random.fold_in(sweep.key(cell), index) for index in range(sweep.seeds)]
        rows += [trial(key, config) for key in keys]
    return {
        name: np.stack([row[name] for row in rows]).reshape(sweep.shape + rows[0][name].shape)
        for name in rows[0]
    }


@pytest.mark.parametrize("batching", ["vmap", "map"])
def test_a_cell_is_its_trials_one_by_one(batching):
    sweep = dataclasses.replace(SWEEP, batching=batching)
    for cell in sweep.split():
        arrays, chunk = execute.evaluate(sweep, cell)
        wanted = by_hand(sweep, cell)
        assert chunk == 24
        assert arrays["draw"].shape == (3, 2, 4, cell.config.width)
        for name, want in wanted.items():
            assert arrays[name].dtype == want.dtype
            np.testing.assert_allclose(arrays[name], want, rtol=1e-13)
        for axis, values in GRID.items():
            np.testing.assert_array_equal(arrays[axis], values)


def test_chunks_change_no_number_and_fill_the_memory():
    # 23 points: whatever the chunk, the last one is not full.
    whole = Sweep("s", trial, Config(), grid={"bias_var": np.linspace(0, 1, 23)}, x64=True)
    small = dataclasses.replace(whole, memory=1900)
    [cell] = whole.split()
    (wanted, all_at_once), done = execute.evaluate(whole, cell), []
    arrays, chunk = execute.evaluate(small, cell, callback=done.append)
    assert all_at_once == 23
    assert 1 < chunk < 23
    assert [event.done for event in done] == [0, *range(chunk, 23, chunk), 23]
    for name, want in wanted.items():
        np.testing.assert_allclose(arrays[name], want, rtol=1e-13)
    assert execute.evaluate(dataclasses.replace(whole, memory=1), cell)[1] == 1


def deep(key, config):
    """A chain of products, whose last bits follow the order of the sums."""
    weights = jax.random.normal(key, (6, 64, 64)) / 8
    x = jnp.ones(64) * config.weight_var
    for weight in weights:
        x = jnp.tanh(weight @ x)
    return {"x": x}


@pytest.mark.usefixtures("optimized")
def test_map_gives_the_same_bits_whatever_the_number_of_seeds_and_chunks():
    few = Sweep("s", deep, Config(), seeds=3, batching="map")
    # Enough for the loop, whose points follow each other, and not for three points at a time.
    many = dataclasses.replace(few, seeds=7, memory=1_000_000)
    tight = dataclasses.replace(few, memory=1)
    [cell] = few.split()
    (wanted, _), (long, chunk) = execute.evaluate(few, cell), execute.evaluate(many, cell)
    single, one = execute.evaluate(tight, cell)
    assert (chunk, one) == (7, 1)
    assert wanted["x"].dtype == np.float32
    assert wanted["x"].tobytes() == long["x"][:3].tobytes() == single["x"].tobytes()


def test_cells_draw_independently_and_the_points_of_a_grid_share_their_draws():
    (small, _), (large, _) = (execute.evaluate(SWEEP, cell) for cell in SWEEP.split())
    assert not np.isin(small["draw"], large["draw"]).any()
    np.testing.assert_array_equal(small["draw"], np.broadcast_to(small["draw"][0, 0], (3, 2, 4, 3)))
    assert len(np.unique(small["draw"][0, 0])) == 12


def test_keys_depend_on_names_and_not_on_the_order_of_cells():
    turned = dataclasses.replace(SWEEP, cells={"width": (9, 5, 3)})
    keys = {c.name: jax.random.key_data(SWEEP.key(c)).tolist() for c in SWEEP.split()}
    for cell in turned.split()[1:]:
        assert jax.random.key_data(turned.key(cell)).tolist() == keys[cell.name]
    other = dataclasses.replace(SWEEP, name="other")
    reseeded = dataclasses.replace(SWEEP, seed=1)
    for sweep in (other, reseeded):
        assert jax.random.key_data(sweep.key(SWEEP.split()[0])).tolist() != keys["width-3"]


def test_a_cell_is_traced_once():
    traces = []

    def counted(key, config):
        traces.append(config)
        return trial(key, config)

    sweep = Sweep("s", counted, Config(), grid=GRID, seeds=5)
    execute.evaluate(sweep, *sweep.split())
    assert len(traces) == 1
    assert isinstance(traces[0].weight_var, jax.core.Tracer)
    assert traces[0].width == 3


def test_precision_is_the_sweeps_own():
    for x64, dtype in ((False, np.float32), (True, np.float64)):
        sweep = Sweep("s", trial, Config(), x64=x64)
        assert execute.evaluate(sweep, *sweep.split())[0]["value"].dtype == dtype


def test_cells_are_named_by_their_values():
    @dataclass(frozen=True)
    class Names:
        a: object = None
        b: object = None

    sweep = Sweep("s", trial, Names(), cells={"a": (1e-5, 2e20, -0.5, (64, 32)), "b": (True, "x")})
    names = [cell.name for cell in sweep.split()]
    assert names[:4] == ["a-1e-05_b-True", "a-1e-05_b-x", "a-2e20_b-True", "a-2e20_b-x"]
    assert names[4:] == ["a--0.5_b-True", "a--0.5_b-x", "a-64x32_b-True", "a-64x32_b-x"]
    assert [cell.name for cell in Sweep("s", trial, Names()).split()] == ["all"]


def test_pinned_axes_take_the_value_of_the_configuration():
    config = Config(width=8, weight_var=3.0)
    pinned = dataclasses.replace(SWEEP, config=config).pin({"width", "weight_var", "phi"})
    assert pinned.cells == {"width": (8,)}
    assert pinned.grid == {"weight_var": (3.0,), "bias_var": (0.0, 1.0)}
    assert [cell.name for cell in pinned.split()] == ["width-8"]


@dataclass
class Mutable:
    width: int = 1


@dataclass(frozen=True)
class Derived:
    width: int = 1
    area: int = dataclasses.field(init=False, default=1)


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"name": "../up"}, ValueError, "sweep '../up' cannot be a folder"),
        ({"config": {"width": 1}}, TypeError, "config is a dict, want an instance of a dataclass"),
        ({"config": Config}, TypeError, "config is a type, want an instance"),
        ({"config": Mutable()}, TypeError, "Mutable can change, want @dataclass"),
        ({"config": Derived()}, TypeError, r"\['area'\] have init=False, want a property"),
        ({"batching": "pmap"}, ValueError, "batching is 'pmap', want 'vmap', 'map' or 'mesh'"),
        ({"seeds": 0}, ValueError, "seeds is 0, want an integer of at least 1"),
        ({"seeds": 1.5}, ValueError, "seeds is 1.5, want an integer"),
        ({"seed": 2**32}, ValueError, "want an integer below"),
        ({"memory": 0}, ValueError, "memory is 0, want an integer of at least 1"),
        ({"cells": {"widht": (1,)}}, ValueError, "axis 'widht' is no field of the configuration"),
        ({"cells": {"width": ()}}, ValueError, "axis 'width' has no values"),
        ({"cells": {"phi": ("relu", "../x")}}, ValueError, "cell 'phi-../x' cannot be a folder"),
        ({"cells": {"phi": ("relu", "relu")}}, ValueError, "cells share a name"),
        ({"cells": {"phi": (np.float64(1),)}}, TypeError, "phi is a float64"),
        ({"cells": {"weight_var": (1, 2)}}, ValueError, "axes of cells and of grid"),
        ({"grid": {"phi": ("relu",)}}, ValueError, "want a list of numbers; an axis that changes"),
        (
            {"grid": {"weight_var": 1.0}},
            TypeError,
            "axis 'weight_var' is 1.0, want a list of values",
        ),
        ({"cells": {"phi": "relu"}}, TypeError, "axis 'phi' is 'relu', want a list of values"),
        ({"grid": {"weight_var": (1.0, np.nan)}}, ValueError, "want finite numbers"),
        ({"grid": {"weight_var": (1.0, -1.0)}}, ValueError, "weight_var is -1.0, want more than 0"),
    ],
    ids=str,
)
def test_a_sweep_that_cannot_run_is_refused(fields, error, text):
    fields = {"name": "s", "trial": trial, "config": Config(), "grid": GRID, **fields}
    with pytest.raises(error, match=text):
        Sweep(**fields)


@pytest.mark.parametrize(
    ("output", "error", "text"),
    [
        (lambda x: x, TypeError, "want a dict of arrays"),
        (lambda x: {}, TypeError, "want a dict of arrays"),  # noqa: ARG005
        (lambda x: {"a": (x, x)}, TypeError, "returns a tuple as 'a', want an array"),
        (lambda x: {"weight_var": x}, TypeError, "returns 'weight_var', an axis of its grid"),
        (lambda x: {"a/b": x}, ValueError, "array 'a/b' cannot be a folder"),
        (lambda x: {"a": x.astype(jnp.bfloat16)}, TypeError, "convert bfloat16 to float32"),
        (lambda x: {"a": jax.random.key(0)}, TypeError, "is of dtype key"),  # noqa: ARG005
    ],
    ids=range(7),
)
def test_what_cannot_be_written_is_refused_before_it_is_computed(output, error, text):
    def bad(key, config):
        del config
        jax.debug.callback(lambda: pytest.fail("it ran"))
        return output(jax.random.normal(key))

    sweep = Sweep("s", bad, Config(), grid={"weight_var": (1.0,)})
    with pytest.raises(error, match=text):
        execute.evaluate(sweep, *sweep.split())
