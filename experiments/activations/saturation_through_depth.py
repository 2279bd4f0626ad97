r"""Sigmoid, tanh and softsign units by layer, at initialisation and through training on digits.

Paper    Glorot and Bengio (2010), figures 2 to 4. With weights uniform within 1/sqrt(fan-in), here
         called standard, the last hidden layer of sigmoids falls towards 0 as training begins,
         while those below it stay above a half; layers of tanh saturate one after the other, the
         first one first; softsign ends at its knees, not at its ends. Variances
         2/(fan-in + fan-out), called Glorot's, keep more of the signal at initialisation: which is
         the length map of mean-field theory at sigma_w^2 = 1 rather than 1/3.
Run      dltheory run saturation_through_depth                 (about half a minute on two cores)
         dltheory run saturation_through_depth --profile full  (not timed)
Expect   Lengths of every layer at initialisation on the length map, extrapolated to infinite width,
         within four standard errors. The sigmoids do as in the paper, and softsign too. Tanh does
         not: on digits the last hidden layer saturates first, recorded as a known failure.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, infinite_width, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import activations as units
from dltheory.measure import signal
from dltheory.networks import activations, data, sites, training
from dltheory.theory import mean_field

NAMES = ("sigmoid", "tanh", "softsign")
RATES = (0.5, 0.05, 0.05)
INITS = ("standard", "Glorot")
PIXELS, CLASSES = 64, 10
BINS = 40
# A unit counts as saturated where its slope is below this part of the steepest.
MARGIN = 0.2


@dataclass(frozen=True)
class Config:
    """A fully connected network on digits of mean 0 and mean square 1.

    Attributes:
        activation: Of the hidden layers.
        glorot: 1 for Glorot's variance of the weights, 0 for the standard one.
        width: Units of each hidden layer.
        depth: Hidden layers.
        rate: Learning rate.
        batch: Examples a step.
        steps: Steps of gradient descent.
    """

    activation: str = "tanh"
    glorot: float = 0.0
    width: int = 64
    depth: int = 4
    rate: float = 0.05
    batch: int = 10
    steps: int = 1000


def variance(config, fan_in, fan_out):
    """Variance of the weights of a layer."""
    return jnp.where(config.glorot > 0, 2 / (fan_in + fan_out), 1 / (3 * fan_in))


def draw(key, config):
    """Weights uniform about 0, and biases of 0."""
    n, depth = config.width, config.depth
    # All in one draw, since a program is compiled in seconds for each.
    rows = PIXELS + (depth - 1) * n + CLASSES
    uniform = jax.random.uniform(key, (rows, n), minval=-1.0, maxval=1.0)
    first, hidden, last = jnp.split(uniform, [PIXELS, rows - CLASSES])
    limit = lambda *fans: jnp.sqrt(3 * variance(config, *fans)).astype(uniform.dtype)
    return {
        "first": {"weights": limit(PIXELS, n) * first, "bias": jnp.zeros(n)},
        "hidden": {
            "weights": limit(n, n) * hidden.reshape(depth - 1, n, n),
            "bias": jnp.zeros((depth - 1, n)),
        },
        "last": {"weights": limit(n, CLASSES) * last.T, "bias": jnp.zeros(CLASSES)},
    }


def network(phi):
    """The network of an activation as f(params, x)."""
    affine = lambda h, p: h @ p["weights"] + p["bias"][None]

    def f(params, x):
        layer = lambda h, p: (affine(phi(h), p), None)
        h, _ = jax.lax.scan(layer, affine(x, params["first"]), params["hidden"])
        return affine(phi(h), params["last"])

    return f


def initial(key, config):
    """Lengths of the hidden pre-activations for one digit, and those of theory; by activation."""
    key_digit, key_params = jax.random.split(key)
    images = data.digits(scale="example").x
    x = images[jax.random.randint(key_digit, (1,), 0, len(images))]
    params = draw(key_params, config)
    n = config.width
    q1, weight_var = variance(config, PIXELS, n) * PIXELS, variance(config, n, n) * n
    lengths, theory = [], []
    for name in NAMES:
        phi = activations.get(name)
        lengths.append(signal.moments(network(phi), params, x).q[:-1, 0])
        step = lambda q, _, phi=phi: (mean_field.q_map(phi, q, weight_var=weight_var), q)
        theory.append(jax.lax.scan(step, q1, length=config.depth)[1])
    return {"q": jnp.stack(lengths), "theory": jnp.stack(theory)}


def train(key, config):
    """Stochastic gradient descent, and what the hidden units do on the way."""
    phi = activations.get(config.activation)
    images = data.digits(scale="example")
    f, shown = network(phi), images.x[:300]
    edges = jnp.linspace(0.0 if config.activation == "sigmoid" else -1.0, 1.0, BINS + 1)

    def record(params):
        _, values = sites.tapped(f, params, shown)(params, shown, {})
        found = phi(jnp.concatenate([values["first"][None], values["hidden"]]))
        saturated = units.saturation(f, params, shown, phi=phi, margin=MARGIN).saturated[:-1]
        return {"mean": found.mean((1, 2)), "std": found.std((1, 2)), "saturated": saturated}

    loss = lambda scores, y: optax.losses.softmax_cross_entropy_with_integer_labels(
        scores, y
    ).mean()
    process = training.descent(
        f,
        lambda key: draw(key, config),
        loss,
        optax.sgd(config.rate),
        images,
        batch=config.batch,
        record=record,
    )
    state, history = training.run(process, key, config.steps, every=config.steps // 20)
    histograms = units.histograms(f, state.params, shown, phi=phi, edges=edges)[:-1]
    late = history.loss[-config.steps // 10 :].mean()
    return {**history.record, "at": history.at, "histograms": histograms, "loss": late}


def sweeps(profile, config):
    """Initialisation at three widths; training with each activation."""
    widths = {"quick": (48, 96, 192), "full": (128, 256, 512)}[profile]
    seeds = {"quick": (256, 128, 64), "full": (1000, 500, 250)}[profile]
    grid = {"glorot": (0.0, 1.0)}
    made = []
    for width, number in zip(widths, seeds, strict=True):
        wide = replace(config, width=width)
        made.append(
            Sweep(
                f"initial-{width}",
                initial,
                wide,
                grid=grid,
                seeds=number,
                batching="map",
                x64=True,
            )
        )
    number = {"quick": 8, "full": 32}[profile]
    width, steps = {"quick": (config.width, config.steps), "full": (256, 4000)}[profile]
    for name, rate in zip(NAMES, RATES, strict=True):
        one = replace(config, activation=name, rate=rate, width=width, steps=steps)
        made.append(Sweep(name, train, one, grid=grid, seeds=number))
    return made


def claims(results):
    """Initialisation, then training in the order of the paper's figures."""
    made = []
    initials = [results[name][0] for name in results if name.startswith("initial-")]
    for index, name in enumerate(NAMES):
        ratios = {c.width: (a["q"] / a["theory"])[:, :, index] for c, a in initials}
        for start, init in enumerate(INITS):
            text = f"length of each layer at initialisation, relative to the q map ({name}, {init})"
            found = infinite_width({width: a[start] for width, a in ratios.items()})
            made.append(worst(text, 1.0, *found))

    arrays = results["sigmoid"][0].arrays
    mean, saturated = arrays["mean"][0], arrays["saturated"][0]  # (seeds, records, layers)
    early = mean.shape[1] // 4
    text = "mean of the last sigmoid layer after a quarter of training, less that at its start"
    made.append(_sign(text, mean[:, early, -1] - mean[:, 0, -1], "<="))
    text = "means of the layers below it then: growth from a layer to the next, least"
    made.append(_sign(text, np.diff(mean[:, early, :-1]), ">="))
    text = "fraction saturated of the last sigmoid layer at the end, less that of any other"
    made.append(_sign(text, saturated[:, -1, -1:] - saturated[:, -1, :-1], ">="))

    saturated = results["tanh"][0].arrays["saturated"][0, :, -1]
    text = "fraction saturated of the first tanh layer at the end, less that of the last"
    reason = "on digits the last hidden layer saturates first"
    made.append(_sign(text, saturated[:, 0] - saturated[:, -1], ">=", reason))

    ends = {name: _ends(results, name) for name in NAMES[1:]}
    text = "share of tanh units beyond 0.9 at the end, less that of softsign, every layer"
    made.append(_sign(text, ends["tanh"] - ends["softsign"], ">="))
    return made


def _sign(text, samples, relation, known_failure=None):
    """The claim that every mean over seeds has a sign, by four standard errors."""
    mean = samples.mean(0)
    error = 4 * samples.std(0, ddof=1) / math.sqrt(len(samples))
    bound = (mean - error).min() if relation == ">=" else (mean + error).max()
    text = f"{text}, at 4 standard errors"
    return Claim(text, 0.0, float(bound), 0.0, relation, known_failure)


def _ends(results, name):
    """Share of the units of each layer beyond 0.9 on either side, standard weights."""
    histograms = results[name][0].arrays["histograms"][0]
    outer = np.abs(np.linspace(-1, 1, BINS + 1)[:-1] + 1 / BINS) > 0.9
    return histograms[..., outer].sum(-1)


def figure(results):
    """Lengths at initialisation; units through training, and where they end."""
    return {
        "initialisation": _initialisation(results),
        "units": _training(results, ("mean", "std", "std")),
        "saturated": _training(results, ("saturated",) * 3),
        "histograms": _histograms(results),
    }


def _initialisation(results):
    fig, axes = figures.axes(1, 2, size=(4.3, 3.2), sharey=True)
    name = [name for name in results if name.startswith("initial-")][-1]
    config, arrays = results[name][0]
    layers = np.arange(1, config.depth + 1)
    for start, (ax, init) in enumerate(zip(axes[0], INITS, strict=True)):
        for series, activation in enumerate(NAMES):
            q, theory = (arrays[key][start, :, series] for key in ("q", "theory"))
            figures.line(ax, layers, theory[0], series=series)
            figures.band(ax, layers, q, series=series, label=activation)
        ax.set(xlabel="layer", yscale="log", xticks=layers)
        ax.set_title(f"{init} weights, width {config.width}")
    axes[0, 0].set_ylabel("mean squared pre-activation")
    figures.legend(fig)
    return fig


def _training(results, shown):
    """One quantity of each activation's layers through training, both kinds of weights."""
    fig, axes = figures.axes(2, 3, size=(3.2, 2.5), sharex=True, sharey="col")
    for column, (name, what) in enumerate(zip(NAMES, shown, strict=True)):
        arrays = results[name][0].arrays
        at = arrays["at"][0, 0]
        for row, init in enumerate(INITS):
            ax, samples = axes[row, column], arrays[what][row]
            for series in range(samples.shape[-1]):
                label = f"layer {series + 1}"
                figures.band(ax, at, samples[..., series], series=series, label=label)
            ax.set_title(f"{name}, {init}")
            ax.set_ylabel({"std": "standard deviation"}.get(what, what))
        axes[1, column].set_xlabel("steps")
    figures.legend(fig)
    return fig


def _histograms(results):
    fig, axes = figures.axes(2, 3, size=(3.2, 2.5), sharex="col", sharey="col")
    for column, name in enumerate(NAMES):
        config, arrays = results[name][0]
        edges = np.linspace(0 if name == "sigmoid" else -1, 1, BINS + 1)
        for row, init in enumerate(INITS):
            ax, density = axes[row, column], arrays["histograms"][row].mean(0) / np.diff(edges)
            for series, layer in enumerate(density):
                color, label = figures.COLORS[series], f"layer {series + 1}"
                ax.stairs(layer, edges, color=color, linewidth=1.3, label=label)
            ax.set_title(f"{name}, {init}, after {config.steps} steps")
            # Where all units of a layer are in one bin, the others would not be seen.
            ax.set(yscale="log", ylim=(1e-2, 40))
        axes[1, column].set_xlabel("activation")
    axes[0, 0].set_ylabel("density")
    axes[1, 0].set_ylabel("density")
    figures.legend(fig)
    return fig
