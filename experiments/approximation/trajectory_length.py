r"""The length of a path grows with every layer, by the square root of chi_1.

Paper    Poole et al. (2016), Exponential expressivity in deep neural networks through transient
         chaos: a circle's image grows longer by the root of chi_1 in each layer of a wide random
         network, in the chaotic phase exponentially with depth; Raghu et al. (2017), On the
         expressive power of deep neural networks: depth, not width, makes trajectories long.
Run      dltheory run trajectory_length                 (a quarter of a minute on two cores)
         dltheory run trajectory_length --profile full  (not timed)
Expect   Squared lengths grow by chi_1(q_l) in layer l, to four standard errors and 5/width; for
         tanh with sigma_w = 4, sigma_b = 0.3 by 2.367 from the third layer on. For sigma_w = 1 the
         circle shrinks. ReLU networks grow by sigma_w^2 / 2 at any depth.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import regions
from dltheory.theory import mean_field

BIAS_VAR = 0.09
PHIS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


@dataclass(frozen=True)
class Config:
    """A network without an output layer, and a circle.

    Attributes:
        phi: The activation.
        weight_var: Variance of the weights times the width.
        width: Inputs, and units of each layer.
        depth: Layers.
        points: Points on the circle.
    """

    phi: str = "tanh"
    weight_var: float = 16.0
    width: int = 500
    depth: int = 7
    points: int = 1000


def trial(key, config):
    """Squared lengths of a circle in the pre-activations, over that of the input."""
    n, phi = config.width, PHIS[config.phi]
    drawn = jax.random.normal(key, (config.depth, n + 1, n))
    params = {
        "kernel": drawn[:, :n] * jnp.sqrt(config.weight_var / n),
        "bias": drawn[:, n] * math.sqrt(BIAS_VAR),
    }

    def network(params, x):
        def layer(h, params):
            return phi(h @ params["kernel"] + params["bias"][None]), None

        return jax.lax.scan(layer, x, params)[0]

    # The weights of a first layer do not know in which plane the circle lies.
    angle = jnp.linspace(0, 2 * jnp.pi, config.points + 1)
    plane = jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1) * math.sqrt(n)
    path = jnp.concatenate([plane, jnp.zeros((len(plane), n - 2))], 1)
    lengths = regions.trajectory_length(network, params, path).lengths
    return {"squares": (lengths / (2 * math.pi * math.sqrt(n))) ** 2}


def sweeps(profile, config):
    """Three variances of tanh, and He's for ReLU."""
    seeds = 8
    if profile == "full" and config == Config():
        config, seeds = Config(width=2000, depth=10, points=20_000), 10
    variances = {"tanh": (1.0, 4.0, 16.0), "relu": (2.0, 3.0)}
    return [
        Sweep(
            phi,
            trial,
            Config(phi, width=config.width, depth=config.depth, points=config.points),
            grid={"weight_var": values},
            seeds=seeds,
        )
        for phi, values in variances.items()
    ]


def theory(config, weight_var):
    """Squared lengths of the image over that of the circle, and their growth, layer by layer."""
    start = weight_var + BIAS_VAR
    found = mean_field.propagate(
        config.phi, start, 1.0, depth=config.depth, weight_var=weight_var, bias_var=BIAS_VAR
    )
    growth = np.asarray(found.chi_1, float)[:-1]
    return weight_var * np.cumprod(np.append(1.0, growth)), growth


def claims(results):
    """Growth in every layer, and in the chaotic phase that of the fixed point."""
    made = []
    for phi in PHIS:
        ((config, arrays),) = results[phi]
        for weight_var, squares in zip(arrays["weight_var"], arrays["squares"], strict=True):
            squares = squares.astype(float)
            growth = squares[:, 1:] / squares[:, :-1]
            predicted = theory(config, float(weight_var))[1]
            stderr = growth.std(0, ddof=1) / math.sqrt(len(growth))
            text = f"growth of the squared length, worst layer ({phi}, sigma_w^2 = {weight_var:g})"
            allowed = 4 * stderr + 5 * predicted / config.width
            made.append(worst(text, predicted, growth.mean(0), allowed))
            if phi == "tanh" and weight_var == 16:
                q = mean_field.fixed_point("tanh", weight_var=16.0, bias_var=BIAS_VAR)
                chi_1 = float(mean_field.chi_1("tanh", q, weight_var=16.0))
                text = "the same in the mean of layers 3 on, sigma_w = 4, sigma_b = 0.3"
                made.append(Claim(text, chi_1, float(growth[:, 1:].mean()), 0.03 * chi_1))
    return made


def figure(results):
    """Lengths through the layers, and their growth."""
    fig, axes = figures.axes(1, 2, size=(4.2, 3.3))
    lengths, growth = axes[0]
    series = 0
    for phi in PHIS:
        ((config, arrays),) = results[phi]
        layers = np.arange(1, config.depth + 1)
        for weight_var, squares in zip(arrays["weight_var"], arrays["squares"], strict=True):
            predicted, ratio = theory(config, float(weight_var))
            label = rf"{phi}, $\sigma_w^2 = {weight_var:g}$"
            figures.line(lengths, layers, np.sqrt(predicted), series=series)
            figures.band(lengths, layers, np.sqrt(squares), series=series, label=label)
            figures.line(growth, layers[1:], ratio, series=series)
            figures.band(growth, layers[1:], squares[:, 1:] / squares[:, :-1], series=series)
            series += 1
    lengths.set(yscale="log", xlabel="layer", ylabel="length over that of the circle")
    lengths.set_title(r"theory: root of $\sigma_w^2\,\chi_1(q_1) \cdots \chi_1(q_{l-1})$")
    growth.set(xlabel="layer", ylabel="growth of the squared length")
    growth.set_title(r"theory: $\chi_1(q_{l-1})$")
    figures.legend(fig)
    return fig
