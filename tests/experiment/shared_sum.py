"""A trial for all devices at once: the sum of squares of a matrix that none of them holds whole."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from dltheory.experiment.sweep import Sweep


@dataclass(frozen=True)
class Config:
    """The matrix has `size` rows, dealt out to the devices."""

    size: int = 64
    scale: float = 1.0


def trial(key, config, mesh):
    """Draw the matrix, multiply it with itself and sum."""
    rows = NamedSharding(mesh, PartitionSpec("devices"))
    x = jax.lax.with_sharding_constraint(jax.random.normal(key, (config.size, 16)), rows)
    return {
        "sum": config.scale * jnp.sum(x**2),
        "gram": x.T @ x,
        "devices": jnp.asarray(mesh.size),
    }


def sweeps(profile, config):
    """Two scales, two seeds."""
    del profile
    return [Sweep("shared", trial, config, grid={"scale": (1.0, 2.0)}, seeds=2, batching="mesh")]


def figure(results):
    """Nothing to draw."""
    del results
    return {}


def claims(results):
    """Nothing to claim."""
    del results
    return []
