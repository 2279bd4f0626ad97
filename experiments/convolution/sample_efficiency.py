r"""Convolutional, locally connected and dense networks: what sharing saves, and shuffling takes.

Paper    LeCun (1989), Generalization and network design strategies: of networks on the same
         images, those with fewer free weights need fewer examples, if what they assume is true.
         Greydanus and Kobak (2024), Scaling down deep learning with MNIST-1D: with all positions
         shuffled in one way a convolutional network loses more than 25 points, a dense one nothing.
Run      dltheory run sample_efficiency                 (half a minute of one core)
         dltheory run sample_efficiency --profile full  (not timed)
Expect   On all of MNIST-1D after 400 steps 49 % by 824 weights of a convolutional network, by the
         4080 of a locally connected one and by 22800 dense ones, but 36 % by 819 dense ones.
         Shuffled, the convolution falls to the 34 % of as many dense weights, below the 45 % of
         local ones. 400 steps are far from the paper's 6000: here sharing saves weights, not yet
         errors. Digits are centred, and there the widest dense network is the best of all.

Three networks of the same images from layer to layer, and so of the same receptive fields, and a
dense one of as many weights as the convolutional one has. A convolution is trained as what it is
among the locally connected layers: a projection, the mean of the weights over positions.
"""

import functools
import itertools
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim
from dltheory.experiment.sweep import Sweep
from dltheory.networks import data
from dltheory.theory import convolution

CLASSES, STRIDE = 10, 2
KINDS = ("convolution", "locally connected", "dense", "dense, few weights")
# Of the images: pixels along an axis, number of axes, and taps of each convolution.
IMAGES = {"mnist1d": (40, 1, (5, 3, 3)), "digits": (8, 2, (3, 3))}


@dataclass(frozen=True)
class Config:
    """A classifier of few examples.

    Attributes:
        dataset: "mnist1d" or "digits".
        dense: Whether layers are dense.
        small: Whether a dense network has two hidden layers and as many weights as a convolution.
        shared: Whether weights are shared among positions, one or zero.
        shuffled: Whether positions are, all images alike, one or zero.
        examples: To train on.
        channels: Of every hidden layer.
        rate: Learning rate of Adam.
        batch: Examples a step.
        steps: Of training, whatever the number of examples; half as many on digits.
        tests: Examples to test on.
    """

    dataset: str = "mnist1d"
    dense: bool = False
    small: bool = False
    shared: int = 0
    shuffled: int = 0
    examples: int = 100
    channels: int = 8
    rate: float = 0.01
    batch: int = 50
    steps: int = 400
    tests: int = 400


@functools.cache
def _inputs(dataset):
    """All examples, (2, N, pixels) in order and shuffled, and how many of them are to train on."""
    random = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        if dataset == "digits":
            whole = data.digits(scale="dataset", dtype=jnp.float32)
            order = random.permutation(len(whole.y))
            whole, train = data.Data(whole.x[order], whole.y[order]), 1297
        else:
            parts = data.mnist1d(dtype=jnp.float32)
            whole = data.Data(*(jnp.concatenate(pair) for pair in zip(*parts, strict=True)))
            train = len(parts[0].y)
        places = random.permutation(whole.x.shape[1])
        return data.Data(jnp.stack([whole.x, whole.x[:, places]]), whole.y), train


def layers(config):
    """Pixels along an axis after each hidden layer, and channels in and out, and taps."""
    size, _, taps = IMAGES[config.dataset]
    found, inputs = [], 1
    for kernel in taps:
        size //= STRIDE
        found.append((size, inputs, config.channels, kernel))
        inputs = config.channels
    return found


def counts(config):
    """Weights of hidden layers by theory: a stride reads the image as interleaved ones."""
    dims = IMAGES[config.dataset][1]
    made = [convolution.weight_counts(*layer, dims=dims) for layer in layers(config)]
    wide = [
        convolution.weight_counts(size, inputs * STRIDE**dims, outputs, taps, dims=dims)
        for size, inputs, outputs, taps in layers(config)
    ]
    total = lambda name, of: sum(getattr(layer, name) for layer in of)
    return {
        "dense": total("dense", wide),
        "local": total("local", made),
        "shared": total("shared", made),
    }


def last(config):
    """Inputs of the last layer, dense in all networks."""
    return layers(config)[-1][0] ** IMAGES[config.dataset][1] * config.channels


def shapes(config):
    """Shapes of weights by layer, inputs and outputs last."""
    size, dims, _ = IMAGES[config.dataset]
    if config.small:
        # Hidden width w: w^2 + (pixels + classes) w weights are those of the convolutional network.
        b, total = size**dims + CLASSES, counts(config)["shared"] + last(config) * CLASSES
        width = round((math.sqrt(b**2 + 4 * total) - b) / 2)
        return [(size**dims, width), (width, width), (width, CLASSES)]
    found = []
    for after, inputs, outputs, taps in layers(config):
        if config.dense:
            pixels = (STRIDE * after) ** dims, after**dims
            found.append((pixels[0] * inputs, pixels[1] * outputs))
        else:
            found.append((after**dims, taps**dims * inputs, outputs))
    return [*found, (last(config), CLASSES)]


def windows(h, taps, size):
    """Windows of images (N, *spatial, channels), `size` along an axis: (N, positions, values)."""
    dims = h.ndim - 2
    h = jnp.pad(h, ((0, 0), *(((taps - 1) // 2, taps // 2),) * dims, (0, 0)))
    reach = STRIDE * (size - 1) + 1
    cuts = [
        h[(slice(None), *(slice(i, i + reach, STRIDE) for i in tap))]
        for tap in itertools.product(range(taps), repeat=dims)
    ]
    return jnp.concatenate(cuts, -1).reshape(len(h), size**dims, -1)


def _shared(w):
    return jnp.broadcast_to(w.mean(0, keepdims=True), w.shape)


def network(config):
    """The model as f(params, x), from (N, pixels)."""
    size, dims, _ = IMAGES[config.dataset]

    def f(params, h):
        *hidden, end = params
        if config.dense or config.small:
            for w in hidden:
                h = jax.nn.relu(h @ w)
            return h @ end
        h = h.reshape(len(h), *(size,) * dims, 1)
        for w, (after, _, outputs, taps) in zip(hidden, layers(config), strict=True):
            w = jnp.where(config.shared == 1, _shared(w), w)
            h = jax.nn.relu(jnp.einsum("npk,pkc->npc", windows(h, taps, after), w))
            h = h.reshape(len(h), *(after,) * dims, outputs)
        return h.reshape(len(h), -1) @ end

    return f


def init(key, config):
    """Gaussian weights of variance two over the fan-in, in one draw; there are no biases."""
    ends = np.cumsum([math.prod(shape) for shape in shapes(config)])
    drawn = jnp.split(jax.random.normal(key, (int(ends[-1]),), jnp.float32), ends[:-1])
    params = []
    for shape, w in zip(shapes(config), drawn, strict=True):
        w = w.reshape(shape) * math.sqrt(2 / shape[-2])
        if len(shape) == 3:
            w = jnp.where(config.shared == 1, _shared(w) * math.sqrt(len(w)), w)
        params.append(w)
    return params


def trial(key, config):
    """Train on some of the examples, and test."""
    (x, y), train = _inputs(config.dataset)
    x = x[config.shuffled]
    key_which, key_params = jax.random.split(key)
    start = jax.random.randint(key_which, (), 0, train)
    f, adam = network(config), optax.adam(config.rate)

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(f(params, x), y).mean()

    def step(carry, index):
        params, memory = carry
        within = (index * config.batch + jnp.arange(config.batch)) % config.examples
        chosen = (start + within) % train
        updates, memory = adam.update(jax.grad(loss)(params, x[chosen], y[chosen]), memory)
        return (optax.apply_updates(params, updates), memory), None

    params = init(key_params, config)
    carry = params, adam.init(params)
    (params, _), _ = jax.lax.scan(step, carry, jnp.arange(config.steps))
    tests = slice(train, train + config.tests)
    right = f(params, x[tests]).argmax(1) == y[tests]
    weights = sum(w.size for w in jax.tree.leaves(params))
    return {"accuracy": 100 * jnp.mean(right), "weights": weights}


def sweeps(profile, config):
    """Two sets of data; for each the layers with windows, and two networks of dense ones."""
    many = {"mnist1d": (100, 600, 4000), "digits": (50, 250, 1297)}
    seeds = 4
    if profile == "full":
        config = replace(config, channels=25, steps=6000, tests=500)
        sizes = (50, 100, 200, 400, 800)
        many, seeds = {"mnist1d": (*sizes, 1600, 4000), "digits": (*sizes, 1297)}, 10
    made = []
    for dataset, examples in many.items():
        grid = {"shuffled": (0, 1), "examples": examples}
        steps = config.steps if dataset == "mnist1d" else config.steps // 2
        one = replace(config, dataset=dataset, steps=steps)
        sweep = functools.partial(Sweep, trial=trial, seeds=seeds)
        made += [
            sweep(f"{dataset}_windows", config=one, grid={"shared": (1, 0), **grid}),
            sweep(f"{dataset}_dense", config=replace(one, dense=True), grid=grid),
            sweep(f"{dataset}_small", config=replace(one, small=True), grid=grid),
        ]
    return made


def _together(results, dataset):
    """For each kind of network its accuracies, shape (shuffled, examples, seeds)."""
    windows = results[f"{dataset}_windows"][0][1]["accuracy"]
    dense = [results[f"{dataset}_{name}"][0][1]["accuracy"] for name in ("dense", "small")]
    return dict(zip(KINDS, (*windows, *dense), strict=True))


def _error(*samples):
    """Four standard errors of a sum or difference of means over seeds."""
    return 4 * np.sqrt(sum(a.var(-1, ddof=1) / a.shape[-1] for a in samples))


def claims(results):
    """Counts of weights; what sharing and locality are worth in order, and shuffled."""
    made = []
    for dataset in IMAGES:
        found = {name: results[f"{dataset}_{name}"][0] for name in ("windows", "dense", "small")}
        weights = {name: float(arrays["weights"].max()) for name, (_, arrays) in found.items()}
        config = found["windows"][0]
        theory = {name: n + last(config) * CLASSES for name, n in counts(config).items()}
        for name, n in (("windows", theory["local"]), ("dense", theory["dense"])):
            made.append(Claim(f"weights of {name} network ({dataset})", n, weights[name], 0.0))
        off = abs(weights["small"] / theory["shared"] - 1)
        text = f"weights of the small dense network over the convolution's, less one ({dataset})"
        # Of a width that is a whole number, and moves the count by about width over weights.
        made.append(Claim(text, 0.0, off, 0.05))
        kinds = _together(results, dataset)
        for kind in KINDS[2:]:
            ordered, shuffled = kinds[kind]
            # Four seeds give no size a reliable error; their mean over sizes does.
            ordered, shuffled = ordered.mean(0), shuffled.mean(0)
            cost, error = ordered.mean() - shuffled.mean(), _error(ordered, shuffled)
            text = f"what shuffling costs {kind}, mean over examples (%, {dataset})"
            made.append(Claim(text, 0.0, float(cost), float(error)))

    kinds = _together(results, "mnist1d")
    (conv, conv_shuffled), (local, local_shuffled), _, (few, few_shuffled) = (
        accuracy[:, -1] for accuracy in kinds.values()
    )
    less = lambda a, b: float(a.mean() - b.mean())
    landmark = results["mnist1d_windows"][0][0].steps == 6000
    cost = less(conv, conv_shuffled)
    text = "what shuffling costs convolution, all examples (%, mnist1d)"
    made.append(
        Claim(text, 25.0 if landmark else float(_error(conv, conv_shuffled)), cost, 0.0, ">=")
    )
    text = "convolution less dense of as many weights, all examples (%, mnist1d)"
    made.append(Claim(text, float(_error(conv, few)), less(conv, few), 0.0, ">="))
    error = float(_error(conv_shuffled, few_shuffled))
    made.append(
        Claim(
            text.replace("weights,", "weights, shuffled,"),
            0.0,
            less(conv_shuffled, few_shuffled),
            error,
        )
    )
    text = "convolution less locally connected, all examples (%, mnist1d)"
    made.append(Claim(text, 0.0, less(conv, local), float(_error(conv, local)), ">="))
    error = float(_error(conv_shuffled, local_shuffled))
    text = text.replace("connected,", "connected, shuffled,")
    made.append(Claim(text, -error, less(conv_shuffled, local_shuffled), 0.0, "<="))
    return made


def figure(results):
    """Accuracy against the number of examples, in order and shuffled."""
    fig, axes = figures.axes(2, 2, size=(4.0, 2.8), sharex="row", sharey="row")
    titles = {"mnist1d": "MNIST-1D", "digits": "digits"}
    for row, (dataset, title) in zip(axes, titles.items(), strict=True):
        config, arrays = results[f"{dataset}_windows"][0]
        theory = {name: n + last(config) * CLASSES for name, n in counts(config).items()}
        few = int(results[f"{dataset}_small"][0][1]["weights"].max())
        weights = [theory["shared"], theory["local"], theory["dense"], few]
        for series, (kind, accuracy) in enumerate(_together(results, dataset).items()):
            color = figures.COLORS[series]
            for ax, samples in zip(row, accuracy, strict=True):
                error = 2 * samples.std(-1, ddof=1) / math.sqrt(samples.shape[-1])
                style = {"color": color, "marker": "o", "ms": 4, "mfc": "white", "lw": 1.2}
                ax.errorbar(arrays["examples"], samples.mean(-1), error, **style, label=kind)
            row[0].annotate(
                f"{weights[series]} weights",
                (0.97, 0.32 - 0.09 * series)
                if dataset == "digits"
                else (0.25, 0.94 - 0.09 * series),
                xycoords="axes fraction",
                color=color,
                fontsize=8,
                ha="right",
            )
        for ax, order in zip(row, ("in order", "positions shuffled"), strict=True):
            ax.set(xscale="log", xlabel="examples to train on")
            ax.set_title(f"{title}, {order}")
        row[0].set_ylabel("test accuracy (%)")
        if dataset == "digits":
            row[0].set_ylim(55, 100)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=4)
    return fig
