r"""Gradient descent sharpens a network up to the edge where it would diverge, and stays there.

Paper    Cohen, Kaur, Li, Kolter and Talwalkar (2021), Gradient descent on neural networks typically
         occurs at the edge of stability: in full batch the largest eigenvalue of the Hessian rises
         until it reaches 2 / (learning rate), where descent on a quadratic loss stops converging.
         It hovers there, and the loss goes on falling, though not at every step.
Run      dltheory run edge_of_stability                 (twenty seconds on two cores)
         dltheory run edge_of_stability --profile full  (not timed)
Expect   From a start below all of them, in the last quarter a mean sharpness within 15 % of
         2 / (learning rate) for each of three learning rates, a loss that falls over that quarter,
         and more than one step in twenty that raises it. With a far smaller rate, less than half
         of what it would allow.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim
from dltheory.experiment.sweep import Sweep
from dltheory.measure import curvature
from dltheory.networks import data
from dltheory.theory import training_dynamics

EDGES = (7.0, 9.0, 12.0)
FAR = 48.0
RECORDS = 24


@dataclass(frozen=True)
class Config:
    """A tanh network on MNIST-1D, with the squared error of its ten outputs.

    Attributes:
        examples: Of the training set.
        width: Units of both hidden layers.
        edge: Twice the inverse of the learning rate.
        steps: Of full-batch gradient descent.
    """

    examples: int = 256
    width: int = 32
    edge: float = 9.0
    steps: int = 4800


def trial(key, config):
    """The sharpness now and then, and the loss of every step."""
    key, key_lanczos = jax.random.split(key)
    w = config.width
    sizes = ((40, w), (w, w), (w, 10))
    normal = jax.random.normal(key, (3, max(40, w), max(w, 10)))
    start = [(0.7 * normal[i, :a, :b] / a**0.5, jnp.zeros(b)) for i, (a, b) in enumerate(sizes)]
    train, _ = data.mnist1d(dtype=normal.dtype)
    x = train.x[: config.examples]
    y = jax.nn.one_hot(train.y[: config.examples], 10, dtype=normal.dtype)

    def network(params, x):
        for kernel, bias in params[:-1]:
            x = jnp.tanh(x @ kernel + bias[None])
        return x @ params[-1][0] + params[-1][1][None]

    loss = lambda out: jnp.mean(jnp.sum((out - y) ** 2, axis=1)) / 2
    read = curvature.sharpness(key_lanczos, loss, network, x)
    value_and_slope = jax.value_and_grad(lambda params: loss(network(params, x)))

    def step(params, _):
        value, slope = value_and_slope(params)
        return jax.tree.map(lambda p, g: p - 2 / config.edge * g, params, slope), value

    def advance(params, _):
        now = read(params)
        params, losses = jax.lax.scan(step, params, length=config.steps // RECORDS)
        return params, (now, losses)

    sharpness, losses = jax.lax.scan(advance, start, length=RECORDS)[1]
    return {"sharpness": sharpness, "losses": losses.reshape(-1)}


def sweeps(profile, config):
    """Three edges that are reached and one that is not; the full profile is longer and wider."""
    if profile == "full":
        config = replace(config, width=100, examples=1000, steps=10 * config.steps)
    seeds = {"quick": 1, "full": 5}[profile]
    return [Sweep("rates", trial, config, grid={"edge": (*EDGES, FAR)}, seeds=seeds)]


def _times(config):
    """Steps of the records."""
    return np.arange(RECORDS) * config.steps // RECORDS


def claims(results):
    """Where the sharpness stays, and what the loss does meanwhile."""
    made = []
    [(_, arrays)] = results["rates"]
    for index, edge in enumerate(arrays["edge"]):
        late = arrays["sharpness"][index][:, -RECORDS // 4 :]
        # The sharpness at which this step is the largest that converges.
        wanted = float(training_dynamics.largest_step(2 / edge))
        name = f"2/rate = {edge:g}"
        if edge == FAR:
            text = f"the same beside half of 2/rate, where the rate is small ({name})"
            made.append(Claim(text, 0.5 * wanted, float(late.mean()), 0.0, "<="))
            continue
        text = f"mean sharpness of the last quarter ({name})"
        made.append(Claim(text, wanted, float(late.mean()), 0.15 * wanted))
        losses = arrays["losses"][index]
        quarter = losses[:, -losses.shape[1] // 4 :]
        half = quarter.shape[1] // 2
        text = f"log ratio of mean losses of its two halves ({name})"
        ratio = np.log(quarter[:, half:].mean(1) / quarter[:, :half].mean(1))
        made.append(Claim(text, 0.0, float(ratio.max()), 0.0, "<="))
        text = f"share of its steps that raise the loss, at least one in twenty ({name})"
        made.append(Claim(text, 0.05, float((np.diff(quarter) > 0).mean()), 0.0, ">="))
    return made


def figure(results):
    """Sharpness, with the edges as lines, and loss by step."""
    fig, axes = figures.axes(1, 2, size=(4.2, 3.4))
    [(config, arrays)] = results["rates"]
    at = _times(config)
    left, right = axes[0]
    for series, edge in enumerate(arrays["edge"]):
        label = f"2 / rate = {edge:g}"
        samples = arrays["sharpness"][series]
        figures.band(left, at, samples, series=series, label=label)
        if edge != FAR:
            figures.line(left, at[[0, -1]], [edge, edge], series=series)
        losses = arrays["losses"][series].mean(0)
        right.plot(losses, color=figures.COLORS[series], linewidth=0.8)
    left.set(xlabel="step", ylabel="largest eigenvalue of the Hessian")
    left.set(ylim=(0, 1.25 * max(EDGES)))
    right.set(xlabel="step", ylabel="loss", yscale="log")
    figures.legend(fig)
    return fig
