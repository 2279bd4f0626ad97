r"""Dead ReLUs against bias, correlation of the inputs, depth and learning rate.

Paper    Lu, Shin, Su and Karniadakis (2020) on dying ReLUs. A unit is dead if it is off for every
         input of the batch: it has no gradient. For B inputs whose pre-activations have the mean b,
         the variance q and one correlation c, given their common part u they are independent, so
             P(dead) = E_u Phi(-(b + sqrt(q c) u) / sqrt(q (1 - c)))^B,
         and correlations between two numbers give a probability between theirs (Slepian 1962).
Run      dltheory run dead_relus                 (about half a minute on two cores)
         dltheory run dead_relus --profile full  (not timed)
Expect   At initialisation P(dead) within four standard errors: in the first layer at any width, in
         the next ones extrapolated to infinite width, where depth kills by correlation. On digits
         it lies between Slepian's bounds; in training by full batches no unit of the first layer
         comes back, a high rate kills most, and a positive bias saves only at low rates.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, infinite_width, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import activations
from dltheory.networks import data, training
from dltheory.numerics import gaussian
from dltheory.theory import mean_field

INPUTS = 64
WEIGHT_VAR = 2.0
# A fraction is judged where so many dead units are expected: fewer have no standard error.
EXPECTED = 20


@dataclass(frozen=True)
class Config:
    """A ReLU network with weights of variance 2/fan-in, and a batch of inputs of mean square 1.

    Attributes:
        width: Units of each hidden layer.
        depth: Hidden layers.
        batch: Inputs.
        bias: The bias that every unit starts from.
        correlation: That of any two inputs.
        rate: Learning rate.
        steps: Steps of gradient descent.
    """

    width: int = 64
    depth: int = 4
    batch: int = 16
    bias: float = 0.0
    correlation: float = 0.5
    rate: float = 0.1
    steps: int = 200


def dead_probability(q, c, config):
    """Probability that `batch` pre-activations of one correlation are all negative."""
    common, own = jnp.sqrt(q * c), jnp.sqrt(q * (1 - c))
    given = lambda u: jnp.exp(config.batch * norm.logcdf(-(config.bias + common * u) / own))
    return gaussian.expectation(given)


def layer_map(q, c, bias):
    """Variance and correlation of the next layer's pre-activations, around the bias."""
    common, own = jnp.sqrt(q * c), jnp.sqrt(q * (1 - c))

    def mean(shift, std):
        return shift * norm.cdf(shift / std) + std * norm.pdf(shift / std)

    std = jnp.sqrt(q)
    square = (bias**2 + q) * norm.cdf(bias / std) + bias * std * norm.pdf(bias / std)
    product = gaussian.expectation(lambda u: mean(bias + common * u, own) ** 2)
    return WEIGHT_VAR * square, product / square


def theory(key, config):
    """Dead fraction of every layer at infinite width, and the correlation of its inputs."""
    del key  # Nothing here is random.

    def layer(state, _):
        q, c = state
        return layer_map(q, c, config.bias), (dead_probability(q, c, config), c)

    start = jnp.asarray(WEIGHT_VAR), jnp.asarray(config.correlation)
    _, (dead, correlation) = jax.lax.scan(layer, start, length=config.depth)
    known = mean_field.c_map("relu", start[1], q=start[0], weight_var=WEIGHT_VAR)
    return {"dead": dead, "correlations": correlation, "relu": known}


def network(params, x):
    """Pre-activations of the last layer."""
    layer = lambda h, p: (jax.nn.relu(h) @ p["weights"] + p["bias"][None], None)
    h = x @ params["first"]["weights"] + params["first"]["bias"][None]
    return jax.lax.scan(layer, h, params["hidden"])[0]


def draw(key, config):
    """Weights of variance 2/fan-in, all in one draw: a program is compiled in seconds for each."""
    n, depth = config.width, config.depth
    first, hidden = jnp.split(jax.random.normal(key, (INPUTS + (depth - 1) * n, n)), [INPUTS])
    scale = lambda fan_in: jnp.sqrt(WEIGHT_VAR / fan_in)
    hidden = scale(n) * hidden.reshape(depth - 1, n, n)
    bias = jnp.full((depth, n), config.bias)
    return {
        "first": {"weights": scale(INPUTS) * first, "bias": bias[0]},
        "hidden": {"weights": hidden, "bias": bias[1:]},
    }


def trial(key, config):
    """Fraction of dead units of each layer at initialisation, inputs of one correlation."""
    common, own = jnp.sqrt(config.correlation), jnp.sqrt(1 - config.correlation)
    axes = jnp.eye(config.batch + 1, INPUTS)
    x = math.sqrt(INPUTS) * (common * axes[:1] + own * axes[1:])
    return {"dead": activations.saturation(network, draw(key, config), x, phi="relu").dead}


def digits(config):
    """As many digits as the batch holds, each of mean square 1."""
    x, y = (a[: config.batch] for a in data.digits())
    return data.Data(x / jnp.sqrt(jnp.mean(x**2, axis=1, keepdims=True)), y)


def bounds(key, config):
    """Slepian's bounds on the dead fraction of the first layer on digits."""
    del key  # Nothing here is random.
    x = digits(config).x.astype(float)
    c = (x @ x.T / INPUTS)[np.triu_indices(config.batch, 1)]
    q = jnp.asarray(WEIGHT_VAR)
    return {
        "lower": dead_probability(q, c.min(), config),
        "upper": dead_probability(q, c.max(), config),
    }


def train(key, config):
    """Gradient descent on digits in full batches: dead units on the way."""
    images = digits(config)
    key_hidden, key_last = jax.random.split(key)
    init = lambda _: {
        **draw(key_hidden, config),
        "last": jax.random.normal(key_last, (config.width, 10)) / math.sqrt(config.width),
    }
    model = lambda params, x: jax.nn.relu(network(params, x)) @ params["last"]
    loss = lambda scores, y: optax.losses.softmax_cross_entropy_with_integer_labels(
        scores, y
    ).mean()

    def record(params):
        first = images.x @ params["first"]["weights"] + params["first"]["bias"][None]
        dead = activations.saturation(network, params, images.x, phi="relu").dead
        return {"dead": dead, "off": (first <= 0).all(0)}

    process = training.descent(model, init, loss, optax.sgd(config.rate), images, record=record)
    _, history = training.run(process, key, config.steps, every=config.steps // 10)
    off = history.record["off"]
    return {
        "dead": history.record["dead"],  # (records, layers)
        "revived": jnp.sum(off[:-1] & ~off[1:]),
        "loss": history.loss[-1],
        "at": history.at,
    }


def sweeps(profile, config):
    """Initialisation at three widths, with theory; training on digits, with bounds."""
    widths = {"quick": (64, 128, 256), "full": (128, 256, 512)}[profile]
    seeds = {"quick": (160, 80, 40), "full": (1000, 500, 250)}[profile]
    grid = {"bias": (-0.5, -0.25, 0.0, 0.5, 1.0), "correlation": (0.25, 0.5, 0.75)}
    made = [Sweep("theory", theory, config, grid=grid, x64=True)]
    for width, number in zip(widths, seeds, strict=True):
        wide = replace(config, width=width)
        made.append(Sweep(f"init-{width}", trial, wide, grid=grid, seeds=number, batching="map"))
    live = replace(config, batch=128, depth=3)
    grid = {"bias": (-0.5, 0.0, 0.5)}
    made.append(Sweep("bounds", bounds, live, grid=grid, x64=True))
    grid = {**grid, "rate": (0.01, 0.1, 0.3, 0.6, 1.0)}
    number = {"quick": 8, "full": 64}[profile]
    return [*made, Sweep("training", train, live, grid=grid, seeds=number, batching="map")]


def _theory(results):
    return {name: a[..., 0, :] for name, a in results["theory"][0].arrays.items() if a.ndim == 4}


def _init(results):
    """Dead fractions by width, seeds first: (seeds, biases, correlations, layers)."""
    found = [results[name][0] for name in results if name.startswith("init-")]
    return {config.width: np.moveaxis(arrays["dead"], 2, 0) for config, arrays in found}


def claims(results):
    """Initialisation, then digits, then training."""
    found, measured = _theory(results), _init(results)
    dead = found["dead"]
    # At bias 0 the recursion is the library's correlation map.
    arrays = results["theory"][0].arrays
    zero = list(arrays["bias"]).index(0.0)
    text = "correlation of the second layer without bias, by the common part and by the c map"
    made = [worst(text, arrays["relu"][zero, :, 0], found["correlations"][zero, :, 1], 1e-10)]

    for width, samples in measured.items():
        units = len(samples) * width
        judged = dead[..., 0] * units >= EXPECTED
        allowed = 4 * np.sqrt(dead[..., 0] * (1 - dead[..., 0]) / units)
        text = f"dead fraction of the first layer, every bias and correlation (width {width})"
        pairs = (a[judged] for a in (dead[..., 0], samples.mean(0)[..., 0], allowed))
        made.append(worst(text, *pairs))
    judged = np.all([dead[..., 1:] * len(a) * w >= EXPECTED for w, a in measured.items()], axis=0)
    samples = {w: a[..., 1:][:, judged] for w, a in measured.items()}
    text = "dead fraction of the next layers, every bias and correlation"
    made.append(worst(text, dead[..., 1:][judged], *infinite_width(samples)))
    return [*made, *_digits(results)]


def _digits(results):
    (_, limits), (_, arrays) = results["bounds"][0], results["training"][0]
    dead = arrays["dead"]  # (biases, rates, seeds, records, layers)
    start = dead[:, 0, :, 0, 0]
    error = 4 * start.std(1, ddof=1) / math.sqrt(start.shape[1])
    made = []
    for index, bias in enumerate(arrays["bias"]):
        text = f"dead fraction of the first layer on digits, bias {bias:g}"
        mean, slack = float(start[index].mean()), float(error[index])
        made.append(Claim(text, float(limits["lower"][index, 0]), mean, slack, ">="))
        made.append(Claim(text, float(limits["upper"][index, 0]), mean, slack, "<="))
    text = "units of the first layer that came back in training"
    made.append(Claim(text, 0.0, float(arrays["revived"].sum()), 0.0))

    last = dead[:, :, :, -1].mean(-1)  # All layers together.
    text = "dead fraction after training, rate {:g} less rate {:g}, 4 standard errors below"
    text = text.format(arrays["rate"][-1], arrays["rate"][0])
    made.append(_above(text, last[:, -1] - last[:, 0]))
    text = "the same at rate {:g}, bias {:g} less bias {:g}, 4 standard errors below"
    text = text.format(arrays["rate"][0], arrays["bias"][0], arrays["bias"][-1])
    made.append(_above(text, (last[0] - last[-1])[:1]))
    return made


def _above(text, samples):
    """The claim that every row of samples has a positive mean, by four standard errors."""
    lowest = samples.mean(1) - 4 * samples.std(1, ddof=1) / math.sqrt(samples.shape[1])
    return Claim(text, 0.0, float(lowest.min()), 0.0, ">=")


def figure(results):
    """Dead units at initialisation, by bias and depth; and in training, by time and rate."""
    return {"initialisation": _at_start(results), "training": _in_training(results)}


def _at_start(results):
    fig, axes = figures.axes(1, 2, size=(4.3, 3.2))
    first, deep = axes[0]
    found, measured = _theory(results), _init(results)
    arrays = results["theory"][0].arrays
    width, samples = max(measured.items())
    biases, zero = arrays["bias"], list(arrays["bias"]).index(0.0)
    layers = np.arange(1, found["dead"].shape[-1] + 1)
    for series, c in enumerate(arrays["correlation"]):
        label = f"correlation {c:g}"
        figures.line(first, biases, found["dead"][:, series, 0], series=series)
        seen = samples[:, :, series, 0]
        figures.band(first, biases, seen, spread="stderr", series=series, label=label)
        figures.line(deep, layers, found["dead"][zero, series], series=series)
        figures.band(deep, layers, samples[:, zero, series], spread="stderr", series=series)
    first.set(xlabel="bias", ylabel="fraction dead")
    first.set_title(f"first layer at initialisation, width {width}")
    deep.set(xlabel="layer", ylabel="fraction dead", xticks=layers)
    deep.set_title("by depth, without bias")
    figures.legend(fig)
    return fig


def _in_training(results):
    fig, axes = figures.axes(1, 2, size=(4.3, 3.2))
    time, after = axes[0]
    config, arrays = results["training"][0]
    zero, at = list(arrays["bias"]).index(0.0), arrays["at"][0, 0, 0]
    dead = arrays["dead"].mean(-1)  # All layers together.
    for series, index in enumerate(range(len(arrays["rate"]))[-3:], start=4):
        label = f"rate {arrays['rate'][index]:g}"
        seen = dead[zero, index]
        figures.band(time, at, seen, spread="stderr", series=series, label=label)
    time.set(xlabel="steps", ylabel="fraction dead", ylim=(0, 1.05))
    time.set_title("training on digits, without bias")
    for series, bias in enumerate(arrays["bias"]):
        seen = dead[series, :, :, -1].T
        label = f"bias {bias:g}"
        figures.band(after, arrays["rate"], seen, spread="stderr", series=series, label=label)
    after.set(xscale="log", xlabel="learning rate", ylabel="fraction dead", ylim=(0, 1.05))
    after.set_title(f"after {config.steps} steps")
    figures.legend(fig)
    return fig
