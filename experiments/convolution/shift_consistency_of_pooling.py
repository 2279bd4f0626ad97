r"""Pooling of stride two sees every second phase: blurring first makes trained networks steadier.

Paper    Zhang (2019), Making convolutional networks shift-invariant again, and Azulay and Weiss
         (2019), Why do deep convolutional networks generalize so poorly to small image
         transformations: layers of stride one on a circle commute with shifts, so that a global
         mean is invariant; two of stride two leave shifts by multiples of four alone, and no
         others. Blurring before pixels are left out restores part of what they lose.
Run      dltheory run shift_consistency_of_pooling                 (20 s of one core)
         dltheory run shift_consistency_of_pooling --profile full  (not timed)
Expect   Rounding alone under shifts by four and eight, 2 to 31 % of change under others; blurring
         steadier than the maximum, 95 % against 84 % of pairs of shifts, and the average than plain
         strides, 91 % against 75 %, in ten seeds of ten. Accuracies do not differ by their errors.

All pooling is one formula: a maximum of two or not, a filter of three taps, and every second pixel.
The same weights without leaving pixels out, taps further apart instead, are the mean over phases.
"""

import functools
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim
from dltheory.experiment.sweep import Sweep
from dltheory.measure import convolution
from dltheory.networks import data

CLASSES, POOLS = 10, 2
# Name, whether there is a maximum of two, and the filter before every second pixel is kept.
KINDS = (
    ("strided", False, (1.0, 0.0, 0.0)),
    ("average", False, (0.5, 0.5, 0.0)),
    ("maximum", True, (1.0, 0.0, 0.0)),
    ("blur", True, (0.25, 0.5, 0.25)),
)
STRIDED, AVERAGE, MAXIMUM, BLUR = range(4)


@dataclass(frozen=True)
class Config:
    """Three circular convolutions, pooling after the first two, a global mean and a dense layer.

    Attributes:
        kind: Index of the kind of pooling.
        channels: Of each convolution.
        kernel: Taps of each.
        rate: Learning rate of Adam.
        batch: Examples a step.
        epochs: Of training on MNIST-1D, in the order of the data.
        tests: Examples to test on.
    """

    kind: int = 0
    channels: int = 12
    kernel: int = 5
    rate: float = 0.01
    batch: int = 50
    epochs: int = 3
    tests: int = 400


@functools.cache
def _inputs():
    with jax.ensure_compile_time_eval():
        made = data.mnist1d(dtype=jnp.float32)
        return tuple(one._replace(x=one.x[..., None]) for one in made)


def pool(h, kind, step, stride):
    """Pool signals (N, pixels, channels) whose neighbours are `step` pixels apart."""
    taken = jnp.array([most for _, most, _ in KINDS])[kind]
    taps = jnp.array([taps for *_, taps in KINDS], h.dtype)[kind]
    count = h.shape[1]
    h = jnp.pad(h, ((0, 0), (0, 3 * step), (0, 0)), mode="wrap")
    at = lambda h, i: h[:, i * step : i * step + count : stride]
    most = lambda i: jnp.where(taken, jnp.maximum(at(h, i), at(h, i + 1)), at(h, i))
    return taps[0] * most(0) + taps[1] * most(1) + taps[2] * most(2)


def network(config, stride=2):
    """The model as f(params, x); at a stride of one, of the same weights with nothing left out."""

    def f(params, h):
        *hidden, last = params
        step = 1
        for number, layer in enumerate(hidden):
            reach = step * (config.kernel - 1)
            around, count = jnp.pad(h, ((0, 0), (0, reach), (0, 0)), mode="wrap"), h.shape[1]
            shifted = [around[:, i : i + count] for i in range(0, reach + 1, step)]
            h = jnp.concatenate(shifted, 2) @ layer["kernel"] + layer["bias"][None, None]
            h = jax.nn.relu(h)
            if number < POOLS:
                h = pool(h, config.kind, step, stride)
                step *= 2 // stride
        return h.mean(1) @ last["kernel"] + last["bias"][None]

    return f


def init(key, config):
    """Gaussian weights of variance two over the fan-in, in one draw; no biases."""
    c, taps = config.channels, config.kernel
    shapes = [(taps, c), (taps * c, c), (taps * c, c), (c, CLASSES)]
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    drawn = jnp.split(jax.random.normal(key, (int(ends[-1]),), jnp.float32), ends[:-1])
    return [
        {
            "kernel": values.reshape(shape) * math.sqrt(2 / shape[0]),
            "bias": jnp.zeros(shape[1], jnp.float32),
        }
        for shape, values in zip(shapes, drawn, strict=True)
    ]


def trial(key, config):
    """Train a network; then shift what it is tested on."""
    (x, y), test = _inputs()
    f, dense, adam = network(config), network(config, 1), optax.adam(config.rate)
    cut = lambda a: a.reshape(-1, config.batch, *a.shape[1:])

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(f(params, x), y).mean()

    def step(carry, batch):
        params, memory = carry
        updates, memory = adam.update(jax.grad(loss)(params, *batch), memory)
        return (optax.apply_updates(params, updates), memory), None

    epoch = lambda carry, _: (jax.lax.scan(step, carry, (cut(x), cut(y)))[0], None)
    params = init(key, config)
    (params, _), _ = jax.lax.scan(epoch, (params, adam.init(params)), length=config.epochs)

    x, y = (a[: config.tests] for a in test)
    period = 2**POOLS

    def outputs(shift):
        turned = jnp.roll(x, shift, 1)
        return f(params, turned), dense(params, turned)

    right = lambda h: 100 * jnp.mean(h.argmax(1) == y)
    size = lambda h: jnp.sqrt(jnp.sum(h**2, (-2, -1)))
    kept, every = jax.lax.map(outputs, jnp.arange(2 * period + 1))
    steady = convolution.shift_consistency(f, params, x, shifts=2 * period)
    return {
        "accuracy": right(kept[0]),
        "dense_accuracy": right(every[0]),
        "change": size(kept - kept[:1]) / size(kept[0]),
        "dense_change": size(every - every[:1]) / size(every[0]),
        "phases": size(every[0] - kept[:period].mean(0)) / size(every[0]),
        "consistency": 100 * steady.consistency.mean(),
    }


def sweeps(profile, config):
    """Four kinds of pooling on the same draws."""
    if profile == "full":
        config = replace(config, channels=25, epochs=40, tests=1000)
    seeds = {"quick": 10, "full": 40}[profile]
    grid = {"kind": tuple(range(len(KINDS)))}
    return [Sweep("pooling", trial, config, grid=grid, seeds=seeds)]


def claims(results):
    """What is exact; then what is steadier than what, seed by seed."""
    _, arrays = results["pooling"][0]
    change, steady = arrays["change"], arrays["consistency"]
    seeds, period = steady.shape[1], 2**POOLS
    rounding = 1e-5
    made = []
    for text, measured in (
        ("change of outputs under shifts by four and eight", change[..., period::period]),
        ("change of outputs under all shifts with nothing left out", arrays["dense_change"]),
        ("the same weights with nothing left out, less the mean over phases", arrays["phases"]),
    ):
        made.append(Claim(f"{text}, largest", 0.0, float(measured.max()), rounding))
    odd = np.delete(change, np.arange(0, 2 * period + 1, period), 2)
    text = "change of outputs under other shifts, smallest, beside rounding"
    made.append(Claim(text, rounding, float(odd.min()), 0.0, ">="))
    for better, worse in ((BLUR, MAXIMUM), (AVERAGE, STRIDED)):
        names = f"{KINDS[better][0]} pooling is steadier than {KINDS[worse][0]}"
        share = float((steady[better] > steady[worse]).mean())
        made.append(Claim(f"share of {seeds} seeds in which {names}", 0.9, share, 0.0, ">="))
    gain = arrays["accuracy"][BLUR] - arrays["accuracy"][MAXIMUM]
    error = 4 * gain.std(ddof=1) / math.sqrt(seeds)
    text = "test accuracy that blurring costs the maximum (%)"
    made.append(Claim(text, 0.0, float(-gain.mean()), float(error), "<="))
    return made


def figure(results):
    """Change by shift; consistency seed by seed; accuracy."""
    _, arrays = results["pooling"][0]
    fig, axes = figures.axes(1, 3, size=(3.4, 3.1))
    by_shift, steady, right = axes[0]
    shifts = np.arange(arrays["change"].shape[-1])
    names = [name for name, *_ in KINDS]
    kept = zip(names, arrays["change"], figures.COLORS, strict=False)
    every = arrays["dense_change"].reshape(-1, len(shifts))
    for name, change, color in (*kept, ("nothing left out", every, figures.COLORS[-1])):
        error = 2 * change.std(0, ddof=1) / math.sqrt(len(change))
        style = {"fmt": "o", "ms": 4, "mfc": "white", "color": color}
        by_shift.errorbar(shifts[1:], change.mean(0)[1:], error[1:], **style, label=name)
    by_shift.set(yscale="log", xlabel="shift (pixels)", ylabel="change of outputs, relative")
    by_shift.set_title("multiples of four change nothing")
    by_shift.set_xticks(shifts[1:])

    jitter = np.linspace(-0.12, 0.12, arrays["accuracy"].shape[1])
    for ax, name in ((steady, "consistency"), (right, "accuracy")):
        values = arrays[name]
        if ax is steady:
            for a, b in ((STRIDED, AVERAGE), (MAXIMUM, BLUR)):
                ax.plot([a + jitter, b + jitter], values[[a, b]], color="#BBBBBB", lw=0.6, zorder=1)
        for series, color in enumerate(figures.COLORS[: len(names)]):
            ax.plot(series + jitter, values[series], "o", ms=3.2, mfc="white", color=color)
            error = values[series].std(ddof=1) / math.sqrt(values.shape[1])
            ax.errorbar(series + 0.25, values[series].mean(), 2 * error, fmt="_", ms=9, color=color)
        ax.set(xticks=range(len(names)), xticklabels=names, xlim=(-0.5, len(names) - 0.3))
    dense = arrays["dense_accuracy"]
    for series in range(len(names)):
        error = dense[series].std(ddof=1) / math.sqrt(dense.shape[1])
        style = {"fmt": "o", "ms": 4, "mfc": "white", "color": figures.COLORS[-1]}
        right.errorbar(series + 0.4, dense[series].mean(), 2 * error, **style)
    right.set(ylabel="test accuracy (%)")
    right.set_title("points: seeds; bars: two standard errors")
    steady.axhline(100, color=figures.COLORS[-1], lw=1.2)
    steady.annotate("nothing left out: exactly 100", (-0.4, 99.6), va="top", fontsize=8)
    steady.set(ylabel="two shifts classified alike (%)")
    steady.set_title("seed by seed, the same first weights")
    figures.legend(fig)
    return fig
