r"""Coordinate check: how far a few steps of training move each layer, as the width grows.

Paper    Yang and Hu (2021), Tensor programs IV: feature learning in infinite-width neural networks,
         and the check of Yang et al. (2022), Tensor programs V. With standard weights and one
         learning rate a step of gradient descent moves the coordinates of layer l by a power of the
         width n: n^-1/2 in the first layer, n^1/2 in the hidden ones and n in the output, so that
         no rate suits all widths. The maximal update parametrisation, with output weights of
         variance 1 / n^2 and rates n, 1 and 1 / n for first, hidden and last layer, moves every
         layer by as much at every width.
Run      dltheory run mup_coordinate_check                 (a quarter of a minute)
         dltheory run mup_coordinate_check --profile full  (not timed)
Expect   Exponents of the width -1/2, 1/2, 1/2, 1 (standard) and 0 in every layer (muP), within 0.1,
         after one step and after ten. The digits are scaled to length one: at their own length of
         eight the standard hidden exponents are still 0.05 and 0.18 at widths 32 to 512, far from
         their limit.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim
from dltheory.experiment.sweep import Sweep
from dltheory.networks import data, sites, training
from dltheory.numerics.scaling import power_law

PIXELS, CLASSES = 64, 10
LAYERS = ("first", "second", "third", "output")
PARAMETRISATIONS = ("standard", "muP")
STANDARD, MUP = range(2)
# By layer: what a step moves its coordinates by, as a power of the width.
EXPONENTS = np.array([[-0.5, 0.5, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]])


@dataclass(frozen=True)
class Config:
    """A tanh network of three hidden layers on a batch of digits.

    Attributes:
        mup: 1 for the maximal update parametrisation, 0 for the standard one.
        width: Units of each hidden layer.
        rate: Learning rate of the hidden layers (muP).
        standard_rate: Learning rate of all layers (standard), small enough for the largest width.
        digits: Size of the batch.
        steps: Steps of gradient descent on it.
    """

    mup: float = 0.0
    width: int = 64
    rate: float = 1.0
    standard_rate: float = 0.0003
    digits: int = 32
    steps: int = 10


def f(params, x):
    """The network: a list of weights, tanh between them."""
    for weights in params[:-1]:
        x = jnp.tanh(x @ weights)
    return x @ params[-1]


def _draw(key, config):
    """Gaussian weights of variance one over the fan-in; those of the output smaller under muP."""
    n = config.width
    normal = jax.random.normal(key, (PIXELS + 2 * n + CLASSES, n))
    first, second, third, last = jnp.split(normal, np.cumsum([PIXELS, n, n]))
    last = last.T * jnp.where(config.mup > 0, n**-0.5, 1.0).astype(normal.dtype)
    return [first, second * n**-0.5, third * n**-0.5, last * n**-0.5]


def trial(key, config):
    """Root mean square move of every layer's coordinates, after each step."""
    n = config.width
    images = data.digits(scale="example")
    # Of length one: longer inputs move the first layer more, and hide the powers of the width that
    # the later layers have until it is larger still.
    batch = data.Data(images.x[: config.digits] / 8, images.y[: config.digits])
    factors = jnp.where(config.mup > 0, jnp.array([n, 1.0, 1.0, 1 / n]), jnp.ones(4))
    rates = factors * jnp.where(config.mup > 0, config.rate, config.standard_rate)
    descend = lambda gradient, _: [-r * g for r, g in zip(rates, gradient, strict=True)]
    loss = lambda y, labels: jnp.mean(
        optax.losses.softmax_cross_entropy_with_integer_labels(y, labels)
    )
    record = lambda params: list(sites.tapped(f, params, batch.x)(params, batch.x, {})[1].values())
    process = training.descent(
        f, lambda key: _draw(key, config), loss, optax.stateless(descend), batch, record=record
    )
    _, history = training.run(process, key, config.steps, every=1)
    moved = [jnp.sqrt(jnp.mean((h[1:] - h[:1]) ** 2, (1, 2))) for h in history.record]
    return {"moved": jnp.stack(moved, axis=-1), "loss": history.loss}


def sweeps(profile, config):
    """Both parametrisations, width by width."""
    widths = {"quick": (64, 128, 256, 512, 1024), "full": (64, 128, 256, 512, 1024, 2048, 4096)}
    seeds = {"quick": 8, "full": 32}[profile]
    cells = {"width": widths[profile]}
    grid = {"mup": (0.0, 1.0)}
    return [Sweep("nets", trial, config, cells=cells, grid=grid, seeds=seeds)]


def _moves(results):
    """Widths, and moves of shape (widths, parametrisations, seeds, steps, layers)."""
    widths = np.array([config.width for config, _ in results["nets"]])
    return widths, np.stack([arrays["moved"] for _, arrays in results["nets"]])


def _slopes(results, step):
    """Exponents of the width by parametrisation and layer, with their standard errors."""
    widths, moved = _moves(results)
    at = moved[:, :, :, step - 1].astype(float)
    mean, stderr = at.mean(2), at.std(2, ddof=1) / np.sqrt(at.shape[2])
    laws = [
        [
            power_law(widths.astype(float), mean[:, which, layer], stderr=stderr[:, which, layer])
            for layer in range(len(LAYERS))
        ]
        for which in range(len(PARAMETRISATIONS))
    ]
    read = lambda name: np.array([[float(getattr(law, name)) for law in row] for row in laws])
    return read("exponent"), read("exponent_stderr")


def claims(results):
    """The check: exponents of every layer's move, at first and in the end."""
    made = []
    steps = results["nets"][0].config.steps
    for step in (1, steps):
        slopes, _ = _slopes(results, step)
        for which, name in enumerate(PARAMETRISATIONS):
            for layer, title in enumerate(LAYERS):
                text = f"exponent of the width of the {title} layer's move, step {step} ({name})"
                exponent, slope = float(EXPONENTS[which, layer]), float(slopes[which, layer])
                made.append(Claim(text, exponent, slope, 0.1))
    slopes, stderr = _slopes(results, steps)
    text = f"least exponent past the first layer, step {steps} (standard), at 4 standard errors"
    least = (slopes - 4 * stderr)[STANDARD, 1:].min()
    made.append(Claim(text, 0.3, float(least), 0.0, ">="))
    return made


def figure(results):
    """Moves against the width, one line a layer; theory's slopes through the largest width."""
    widths, moved = _moves(results)
    steps = results["nets"][0].config.steps
    fig, axes = figures.axes(1, 2, size=(4.0, 3.3), sharey=True)
    for ax, which in zip(axes[0], (STANDARD, MUP), strict=True):
        for layer, label in enumerate(LAYERS):
            samples = moved[:, which, :, -1, layer].T
            figures.band(ax, widths, samples, spread="stderr", series=layer, label=f"{label} layer")
            anchor = samples.mean(0)[-1]
            line = anchor * (widths / widths[-1]) ** EXPONENTS[which, layer]
            figures.line(ax, widths, line, series=layer)
        ax.set(xscale="log", yscale="log", xlabel="width", xticks=widths)
        ax.set_xticklabels(widths)
        ax.xaxis.minorticks_off()
        ax.set_title(f"{PARAMETRISATIONS[which]} parametrisation")
    axes[0, 0].set_ylabel(f"root mean square move, {steps} steps")
    figures.legend(fig)
    return fig
