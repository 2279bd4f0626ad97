"""A user's own experiment: the mean squared singular value of a Gaussian matrix is its variance.

Run      dltheory run tests/experiment/linear_spectrum.py    (2 s on one core)
Expect   weight_var within two per cent.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import claims as claiming
from dltheory.experiment import figures
from dltheory.experiment.sweep import Sweep

# The tests of the command line write copies of this file in which theory is wrong.
FACTOR = 1.0
KNOWN_FAILURE = None


@dataclass(frozen=True)
class Config:
    """Square matrices with entries of variance `weight_var / width`."""

    width: int = 8
    weight_var: float = 1.0
    scale: float = 1.0

    def __post_init__(self):
        if self.weight_var < 0:
            raise ValueError(f"weight_var is {self.weight_var}, want at least 0")


def trial(key, config):
    """Draw one matrix."""
    shape = config.width, config.width
    weights = (
        config.scale * jnp.sqrt(config.weight_var / config.width) * jax.random.normal(key, shape)
    )
    return {"mean_square": jnp.sum(weights**2) / config.width, "first": weights[0, 0]}


def sweeps(profile, config):
    """Two widths, three variances."""
    seeds = {"quick": 40, "full": 400}[profile]
    sweep = Sweep(
        "gaussian",
        trial,
        config,
        cells={"width": (8, 16)},
        grid={"weight_var": (0.5, 1.0, 2.0)},
        seeds=seeds,
    )
    one = Sweep("one_by_one", trial, replace(config, width=4), seeds=2, batching="map", x64=True)
    return [sweep, one]


def figure(results):
    """Theory and measurement against the variance."""
    fig, ax = figures.axes()
    for series, (config, arrays) in enumerate(results["gaussian"]):
        x = arrays["weight_var"]
        figures.line(ax[0, 0], x, x, series=series)
        label = f"width {config.width}"
        figures.band(ax[0, 0], x, arrays["mean_square"].T, series=series, label=label)
    ax[0, 0].set(xlabel=r"$\sigma_w^2$", ylabel="mean squared singular value")
    figures.legend(fig)
    return fig


def claims(results):
    """The mean over seeds is the variance, within four standard errors."""
    made = []
    for config, arrays in results["gaussian"]:
        samples = arrays["mean_square"]
        error = np.std(samples, axis=1, ddof=1) / np.sqrt(samples.shape[1])
        claim = claiming.worst(
            f"mean squared singular value, width {config.width}",
            FACTOR * arrays["weight_var"],
            samples.mean(axis=1),
            4 * error,
        )
        made.append(replace(claim, known_failure=KNOWN_FAILURE))
    return made
