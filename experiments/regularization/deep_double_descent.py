r"""Deep double descent on MNIST-1D: test error of trained networks over their width.

Paper    Greydanus and Kobak (2024), Scaling down deep learning with MNIST-1D, after Nakkiran et al.
         (2020), Deep double descent: with 15 % of the labels random, the test error of networks of
         two hidden layers first falls with their width, rises to a peak about where they begin to
         fit all of their examples, and falls again, below its first minimum. Published, for 4000
         examples and 20 000 steps of 100: 48.97 % at width 9, 54.05 % at 47, 45.47 % at 300. With
         clean labels there is no pronounced peak.
Run      dltheory run deep_double_descent                 (half a minute on two cores)
         dltheory run deep_double_descent --profile full  (not timed)
Expect   With 1000 examples and 3000 steps, networks fit them all from width 24 on. Under noise both
         the error and the loss on the test peak within a factor of two of there: the loss by far,
         with clean labels too; the error by two points, and half as much with clean labels. At
         width 80 it is 62 %, after 67 % at its first minimum. So small a set shows the peak of the
         error faintly; the full profile has the published sizes, and judges the published numbers.
"""

import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim
from dltheory.experiment.sweep import Sweep
from dltheory.networks import data, training

CLASSES, POSITIONS = 10, 40
SHARES = (0.0, 0.15)
# Test errors with random labels among those of training, per cent, after 20 000 steps.
PUBLISHED = {"at the first minimum": 48.97, "at the peak": 54.05, "of the widest": 45.47}


@dataclass(frozen=True)
class Config:
    """A ReLU network of two hidden layers.

    Attributes:
        width: Units of each hidden layer.
        share: Of labels in training, how many are replaced by random ones.
        examples: To train on.
        sample: The seed that they, their wrong labels and the first weights are drawn by.
        tests: The last ones, to test on.
        rate: Learning rate.
        momentum: Of the heavy ball.
        batch: Examples a step.
    """

    width: int = 16
    share: float = 0.15
    examples: int = 1000
    sample: int = 0
    tests: int = 2000
    rate: float = 0.03
    momentum: float = 0.9
    batch: int = 100


@functools.cache
def _inputs():
    """All of MNIST-1D, those meant for tests last."""
    with jax.ensure_compile_time_eval():
        train, test = data.mnist1d(dtype=jnp.float32)
        return data.Data(*(jnp.concatenate(pair) for pair in zip(train, test, strict=True)))


def trial(key, config) -> Any:
    """The process of training, which records errors in training and on the test."""
    del key
    whole, n = _inputs(), config.examples
    # The same examples and wrong labels for every width. One draw, since it takes long to compile.
    drawn = jax.random.uniform(jax.random.key(config.sample), (3, len(whole.y) - config.tests))
    order = jnp.argsort(drawn[0])[:n]
    wrong = jnp.floor(CLASSES * drawn[1, :n]).astype(whole.y.dtype)
    noisy = jnp.where(drawn[2, :n] < config.share, wrong, whole.y[order])
    train = data.Data(whole.x[order], noisy)
    test = data.Data(*(a[-config.tests :] for a in whole))
    widths = (POSITIONS, config.width, config.width, CLASSES)
    shapes = [(inputs + 1, outputs) for inputs, outputs in itertools.pairwise(widths)]
    ends = np.cumsum([a * b for a, b in shapes])
    entropy = optax.softmax_cross_entropy_with_integer_labels
    descent = optax.sgd(config.rate, config.momentum)

    def init(key):
        key = jax.random.fold_in(key, config.sample)
        parts = jnp.split(jax.random.uniform(key, (ends[-1],), minval=-1.0), ends[:-1])
        params = [
            values.reshape(shape) / math.sqrt(shape[0] - 1)
            for shape, values in zip(shapes, parts, strict=True)
        ]
        return params, descent.init(params), jnp.zeros((), jnp.int32)

    def f(params, h):
        affine = lambda layer, h: h @ layer[:-1] + layer[-1]
        for layer in params[:-1]:
            h = jax.nn.relu(affine(layer, h))
        return affine(params[-1], h)

    def step(state):
        params, memory, count = state
        start = count * config.batch % n
        x, y = (jax.lax.dynamic_slice_in_dim(a, start, config.batch) for a in train)
        loss, gradient = jax.value_and_grad(lambda params: entropy(f(params, x), y).mean())(params)
        updates, memory = descent.update(gradient, memory)
        return (optax.apply_updates(params, updates), memory, count + 1), loss

    def read(state):
        wrong = lambda x, y: 100 * jnp.mean(f(state[0], x).argmax(1) != y)
        loss = entropy(f(state[0], test.x), test.y).mean()
        return {"train": wrong(*train), "test": wrong(*test), "entropy": loss}

    return training.Stepped(init, step, read)


def sweeps(profile, config):
    """Widths, each with clean and with noisy labels."""
    widths, samples, steps = (5, 9, 16, 24, 40, 80), 4, 3000
    if profile == "full":
        config = replace(config, examples=4000, tests=1000, rate=0.01)
        widths = (2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 47, 61, 80, 104, 135, 177, 230, 300)
        samples, steps = 3, 20_000
    axes = {"cells": {"width": widths}, "grid": {"share": SHARES, "sample": range(samples)}}
    return [Sweep("mlp", trial, config, **axes, steps=steps, every=steps)]


class Course(NamedTuple):
    """Over widths: errors in training and on the test, and loss there, shape (samples, widths)."""

    train: np.ndarray
    test: np.ndarray
    entropy: np.ndarray

    @property
    def fits(self):
        """Index of the least width without errors in training, up to one in a hundred."""
        return int(np.argmax(self.train.mean(0) < 1))

    def turns(self, values):
        """Indices of the first minimum, before that width, and of the peak behind it."""
        mean = values.mean(0)
        first = int(np.argmin(mean[: self.fits]))
        return first, first + int(np.argmax(mean[first:]))


def _courses(results):
    """A configuration, the widths, and a course each for clean and noisy labels."""
    cells = sorted(results["mlp"], key=lambda cell: cell[0].width)
    widths = np.array([config.width for config, _ in cells])
    of = lambda name: np.stack([arrays[name][..., 0, -1] for _, arrays in cells], -1)
    courses = [Course(*found) for found in zip(*map(of, Course._fields), strict=True)]
    return cells[0][0], widths, courses


def claims(results):
    """Where the peak is, how high, and what comes behind it; with clean labels too."""
    config, widths, (clean, noisy) = _courses(results)
    made = []
    for name, values in (("error", noisy.test), ("loss", noisy.entropy)):
        ratio = math.log2(widths[noisy.turns(values)[1]] / widths[noisy.fits])
        text = f"log2 of the width where the test {name} peaks over that of no training errors"
        made.append(Claim(text, 0.0, ratio, 1.0))
    first, peak = noisy.turns(noisy.entropy)
    logs = np.log(noisy.entropy)
    for name, at in (("at the first minimum", first), ("of the widest", -1)):
        rise = logs[:, peak] - logs[:, at]
        allowed = 4 * rise.std(ddof=1) / math.sqrt(len(rise))
        text = f"ln of the test loss at the peak over that {name}, beside four standard errors"
        made.append(Claim(text, float(allowed), float(rise.mean()), 0.0, ">="))
    first, peak = noisy.turns(noisy.test)
    error, plain = noisy.test.mean(0), clean.test.mean(0)
    text = "test error of the widest, beside that at the first minimum (%)"
    made.append(Claim(text, float(error[first]), float(error[-1]), 0.0, "<="))
    rise = float(error[peak] - error[first])
    first_clean, peak_clean = clean.turns(clean.test)
    text = "clean labels: rise of the test error to its peak, beside that under noise (%)"
    made.append(Claim(text, rise, float(plain[peak_clean] - plain[first_clean]), 0.0, "<="))
    if config.examples == 4000:
        for (name, value), at in zip(PUBLISHED.items(), (first, peak, -1), strict=True):
            text = f"test error {name}, as published (%)"
            made.append(Claim(text, value, float(error[at]), 4.0))
    return made


def figure(results):
    """Errors over width, clean and noisy; and the losses of both."""
    fig, axes = figures.axes(1, 3, size=(3.6, 3.2))
    config, widths, courses = _courses(results)
    titles = [f"{share:.0%} of labels random" for share in SHARES]
    for index, (ax, course) in enumerate(zip(axes[0], courses, strict=False)):
        for series, name in enumerate(("train", "test")):
            samples = getattr(course, name)
            label = f"{name} error"
            figures.band(ax, widths, samples, spread="stderr", series=series, label=label)
        ax.set(ylabel="error (%)", ylim=(0, 80))
        ax.set_title(f"{config.examples} examples, {titles[index]}")
        label = f"test loss, {titles[index]}"
        kind = {"spread": "stderr", "series": 2 + index, "label": label}
        figures.band(axes[0, 2], widths, course.entropy, **kind)
    axes[0, 2].set(ylabel="cross-entropy", ylim=(0, None))
    axes[0, 2].set_title("test loss")
    ticks = [w for w in (2, 5, 10, 20, 50, 100, 200) if widths[0] <= w <= widths[-1]]
    for ax in axes[0]:
        fits = widths[courses[1].fits]
        ax.vlines(fits, 0, ax.get_ylim()[1], color="#222222", linewidth=0.9, linestyles=":")
        ax.set(xscale="log", xlabel="width of both hidden layers; dotted: fits all")
        ax.set_xticks(ticks, map(str, ticks))
        ax.minorticks_off()
    figures.legend(fig)
    return fig
