"""Lengths in ReLU networks: each layer multiplies the mean by half the weight variance.

Paper    He, Zhang, Ren and Sun (2015): without biases E q_{l+1} = (sigma_w^2 / 2) E q_l, so that
         sigma_w^2 = 2 keeps the length. It holds at every width.
Run      dltheory run docs/examples/relu_lengths.py    (20 s on two cores)
Expect   Every mean within four standard errors of theory.
"""

from dataclasses import dataclass

import jax
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import signal
from dltheory.networks import initializers, models
from dltheory.theory import mean_field


@dataclass(frozen=True)
class Config:
    """A ReLU network without biases, on one random input."""

    width: int = 64
    depth: int = 8
    weight_var: float = 2.0


def trial(key, config):
    """The length of every hidden layer relative to the first, and what theory expects of it."""
    key_x, key_params = jax.random.split(key)
    x = jax.random.normal(key_x, (1, 16))
    weights = initializers.gaussian(config.weight_var)
    network = models.MLP(config.width, config.depth, 1, activation=jax.nn.relu, kernel_init=weights)
    params = network.init(key_params, x)
    q = signal.moments(network.apply, params, x).q[:-1, 0]
    step = mean_field.q_map("relu", 1.0, weight_var=config.weight_var)
    return {"length": q / q[0], "theory": step ** jax.numpy.arange(config.depth)}


def sweeps(profile, config):
    """Two widths, three variances."""
    seeds = {"quick": 100, "full": 1000}[profile]
    axes = {"cells": {"width": (64, 128)}, "grid": {"weight_var": (1.0, 2.0, 3.0)}}
    return [Sweep("lengths", trial, config, seeds=seeds, **axes)]


def claims(results):
    """The mean over seeds against theory, for every layer and variance at once."""
    made = []
    for config, arrays in results["lengths"]:
        length, theory = arrays["length"], arrays["theory"]
        stderr = length.std(1, ddof=1) / np.sqrt(length.shape[1])
        text = f"mean length relative to the first layer, width {config.width}"
        made.append(worst(text, theory.mean(1), length.mean(1), 4 * stderr))
    return made


def figure(results):
    """Theory as lines, measurement as bands."""
    fig, axes = figures.axes()
    _, arrays = results["lengths"][-1]
    layers = np.arange(1, arrays["length"].shape[-1] + 1)
    for series, weight_var in enumerate(arrays["weight_var"]):
        label = rf"$\sigma_w^2 = {weight_var:g}$"
        figures.line(axes[0, 0], layers, arrays["theory"][series].mean(0), series=series)
        figures.band(
            axes[0, 0],
            layers,
            arrays["length"][series],
            spread="stderr",
            series=series,
            label=label,
        )
    axes[0, 0].set(xlabel="layer", ylabel="relative length", yscale="log")
    figures.legend(fig)
    return fig
