r"""Effective receptive fields grow as the root of depth; what training does to them.

Paper    Luo, Li, Urtasun and Zemel (2016), Understanding the effective receptive field in deep
         convolutional neural networks: of L layers with k taps the gradient of an output (equal
         weights) or its mean square (random ones) spreads over the input with a standard deviation
         of sqrt(L (k^2 - 1) / 12), a part of the receptive field that shrinks as L^-1/2. ReLU
         leaves it as it is. With identity skips half of the layers are passed, on average:
         sqrt(L (k^2 - 1) / 24). Training is said to widen it.
Run      dltheory run effective_receptive_field                 (25 s of one core)
         dltheory run effective_receptive_field --profile full  (not timed)
Expect   Equal weights to rounding; random ones within 15 %, and exponents of 0.5 within 0.05. On
         MNIST-1D it depends. With skips the field is a tenth wider after 400 steps; two in a
         hundred, and not for certain, after 2000. Without skips, where it begins wider by a root of
         two, it is 7 % narrower after 400 steps and 15 % after 2000. Zeros around the image take
         the border's part of the squares in the first layer, and less in every further one.
"""

import functools
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import convolution as measured
from dltheory.networks import data, training
from dltheory.numerics import scaling
from dltheory.theory import convolution as theory

KINDS = ("equal weights", "random, linear", "random, ReLU", "random, ReLU, skips")
EQUAL, LINEAR, RELU, SKIPS = range(4)
BORDER = (3, 5, 7)  # Taps of kernels on a line of so many pixels, for so many layers:
SIZE, LAYERS = 16, 16
CLASSES = 10
EARLY = 400  # Steps of training, all of the quick profile.
NARROWER = (
    "on MNIST-1D nets without skips narrow while they learn; those of Luo et al. were a residual "
    "one on CIFAR-10 and one on larger images"
)
BACK = "with skips the field widens at first, and then goes back to where it was"


@dataclass(frozen=True)
class Untrained:
    """A network of equal layers on a line of pixels, zero-padded.

    Attributes:
        kind: Which of the four: equal weights, linear, ReLU, ReLU with skips.
        depth: Convolutions that are used.
        deepest: Convolutions that there are.
        taps: Of each.
        channels: Of each layer.
    """

    kind: int = LINEAR
    depth: int = 20
    deepest: int = 40
    taps: int = 3
    channels: int = 16


@dataclass(frozen=True)
class Config:
    """A classifier of MNIST-1D: convolutions, ReLU, and a mean over positions.

    Attributes:
        skips: Whether identities skip all layers but the first (1) or none (0).
        depth: Convolutions.
        taps: Of each.
        channels: Of each layer.
        batch: Examples a step.
        rate: Learning rate of Adam.
        examples: Of the test set, whose gradients are averaged.
    """

    skips: float = 0.0
    depth: int = 5
    taps: int = 5
    channels: int = 8
    batch: int = 25
    rate: float = 5e-3
    examples: int = 32


def convolve(h, kernel):
    """Zero-padded convolution of `(N, pixels, in)` with `(taps, in, out)`, as one product."""
    taps, size = len(kernel), h.shape[1]
    padded = jnp.pad(h, ((0, 0), (taps // 2, taps // 2), (0, 0)))
    seen = jnp.concatenate([padded[:, t : t + size] for t in range(taps)], -1)
    return seen @ kernel.reshape(-1, kernel.shape[-1])


def spread(p):
    """Standard deviation of a distribution over pixels, the last axis."""
    place = jnp.arange(p.shape[-1], dtype=p.dtype)
    mean = p @ place
    return jnp.sqrt(jnp.sum(p * (place - mean[..., None]) ** 2, -1))


def untrained(key, config):
    """The effective receptive field of the central unit, and its spread."""
    size, c, k = 2 * config.deepest * (config.taps // 2) + 1, config.channels, config.taps
    normal = jax.random.normal(key, (config.deepest * k * c + size, c))
    x, kernels = normal[None, :size], normal[size:].reshape(-1, k, c, c)
    relu, skips = config.kind >= RELU, config.kind == SKIPS
    gain = jnp.sqrt(jnp.where(relu, 2.0, 1.0) / (k * c))
    kernels = jnp.where(config.kind == EQUAL, 1 / (k * c), gain * kernels)
    used = jnp.arange(config.deepest) < config.depth

    def f(kernels, x):
        def layer(h, one):
            kernel, use = one
            y = convolve(jnp.where(relu, jax.nn.relu(h), h), kernel)
            # Halved squares keep the signal of a skipped layer at its size.
            y = jnp.where(skips, jnp.sqrt(0.5) * (h + y), y)
            return jnp.where(use, y, h), None

        return jax.lax.scan(layer, x, (kernels, used))[0]

    p = measured.effective_receptive_field(f, kernels, x)
    gradient = jnp.sqrt(p) / jnp.sum(jnp.sqrt(p))
    return {"field": p, "std": spread(jnp.where(config.kind == EQUAL, gradient, p))}


def border(key, config):
    """Mean squares after each layer of a linear network with zeros around the image."""
    c, longest, taps = config.channels, max(BORDER), np.array(BORDER)
    normal = jax.random.normal(key, (LAYERS * longest * c + SIZE, c))
    x, kernels = normal[None, :SIZE], normal[SIZE:].reshape(LAYERS, longest, c, c)
    # A shorter kernel is the longest one with zeros at its ends.
    inside = abs(np.arange(longest) - longest // 2) <= taps[:, None] // 2
    gains = jnp.asarray(inside / np.sqrt(taps[:, None] * c), x.dtype)

    def squares(gain):
        layer = lambda h, kernel: ((y := convolve(h, gain[:, None, None] * kernel)), jnp.mean(y**2))
        return jax.lax.scan(layer, x, kernels)[1]

    return {"kept": jax.vmap(squares)(gains) / jnp.mean(x**2)}


@functools.cache
def _examples():
    with jax.ensure_compile_time_eval():
        return data.mnist1d(dtype=jnp.float32)


def trained(key, config):  # noqa: ARG001 - the process draws from its own
    """Training on MNIST-1D; on the way the effective receptive field on images of the test set."""
    train, test = (part._replace(x=part.x[..., None]) for part in _examples())
    c, k = config.channels, config.taps
    shown = test.x[: config.examples]

    def init(key):
        normal = jax.random.normal(key, ((config.depth * k) * c + 1, c))
        kernels = normal[:-1].reshape(config.depth, k, c, c)
        return {
            "first": kernels[0, :, :1] * math.sqrt(1 / k),
            "kernels": kernels[1:] * math.sqrt(2 / (k * c)),
            "biases": jnp.zeros((config.depth - 1, c)),
            "last": jnp.zeros((c + 1, CLASSES)),
        }

    def features(params, x):
        def layer(h, one):
            kernel, bias = one
            y = convolve(jax.nn.relu(h), kernel) + bias
            return jnp.where(config.skips > 0, jnp.sqrt(0.5) * (h + y), y), None

        stack = params["kernels"], params["biases"]
        return jax.lax.scan(layer, convolve(x, params["first"]), stack)[0]

    def f(params, x):
        pooled = jax.nn.relu(features(params, x)).mean(1)
        return pooled @ params["last"][:-1] + params["last"][-1]

    def record(params):
        p = measured.effective_receptive_field(features, params, shown)
        hits = jnp.mean((jnp.argmax(f(params, test.x), -1) == test.y).astype(p.dtype))
        return {"field": p, "std": spread(p), "accuracy": hits}

    loss = lambda y, labels: optax.softmax_cross_entropy_with_integer_labels(y, labels).mean()
    optimizer = optax.adam(config.rate)
    return training.descent(f, init, loss, optimizer, train, batch=config.batch, record=record)


def sweeps(profile, config):
    """Depths and kinds before training; then training, with and without skips; and borders."""
    base, depths, seeds = Untrained(), (5, 10, 20, 40), (8, 20, 200)
    steps, every = EARLY, 100
    if profile == "full":
        base, depths = replace(base, deepest=160, channels=64), (*depths, 80, 160)
        seeds, steps, every = (64, 100, 4000), 2000, 200
    grids = {"kind": tuple(range(4)), "depth": depths}, {"skips": (0.0, 1.0)}
    return [
        Sweep("untrained", untrained, base, grid=grids[0], seeds=seeds[0]),
        Sweep(
            "trained",
            trained,
            config,
            grid=grids[1],
            seeds=seeds[1],
            steps=steps,
            every=every,
            batching="map",
        ),
        Sweep("border", border, base, seeds=seeds[2]),
    ]


def _spread(layers, *, skips=False):
    """Theory's standard deviation; a skip passes over half of the layers, on average."""
    std = theory.effective_std(layers)
    return std * math.sqrt(0.5) if skips else std


def _start(config, number):
    """Theory's spread before training; the first layer has no skip."""
    first, rest = [(config.taps, 1, 1)], [(config.taps, 1, 1)] * (config.depth - 1)
    return math.hypot(theory.effective_std(first), _spread(rest, skips=number == 1))


def _profile(kind, layers):
    """Theory's shares of the squared gradient over the receptive field."""
    if kind != SKIPS:
        return np.asarray(theory.effective_profile(layers))
    taps = np.asarray(theory.effective_profile(layers[:1])) / 2
    taps[len(taps) // 2] += 0.5
    return functools.reduce(np.convolve, [taps] * len(layers))


def _borders():
    """Part of the squares that is left after each layer, and the powers of the first one's."""
    place, layers, found = np.arange(SIZE), np.arange(1, LAYERS + 1), []
    for taps in BORDER:
        share = (np.abs(place[:, None] - place) <= taps // 2) / taps
        exact = [np.linalg.matrix_power(share, layer).sum(1).mean() for layer in layers]
        found.append((exact, theory.border_factor(SIZE, taps, dims=1) ** layers))
    return found


def _stderr(samples):
    return samples.std(0, ddof=1) / math.sqrt(len(samples))


def claims(results):
    """Spreads and their exponents before training; growth in training; the border."""
    made = []
    config, arrays = results["untrained"][0]
    depths, stacks = arrays["depth"], _stacks(*results["untrained"][0])
    for kind, name in enumerate(KINDS):
        predicted = np.array([_spread(layers, skips=kind == SKIPS) for layers in stacks])
        std = arrays["std"][kind].mean(1)
        part = 0.01 if kind == EQUAL else 0.15
        text = f"spread over theory, worst of {len(depths)} depths ({name})"
        made.append(worst(text, 1.0, std / predicted, part))
        exponent = float(scaling.power_law(depths, std).exponent)
        made.append(Claim(f"exponent of its growth with depth ({name})", 0.5, exponent, 0.05))
    at = list(depths).index(20)
    size = theory.receptive_field(stacks[at]).size
    text = f"spread of 20 layers whose receptive field is {size} pixels ({KINDS[EQUAL]})"
    made.append(Claim(text, math.sqrt(40 / 3), float(arrays["std"][EQUAL, at].mean()), 1e-3))

    config, arrays = results["trained"][0]
    for number, name in enumerate(("no skips", "skips")):
        std, accuracy = arrays["std"][number], arrays["accuracy"][number]
        text = f"spread before training on MNIST-1D over theory ({name})"
        made.append(Claim(text, 1.0, float(std[:, 0].mean() / _start(config, number)), 0.15))
        for stage in sorted({EARLY, int(arrays["at"][-1])}):
            at = list(arrays["at"]).index(stage)
            failure = NARROWER if number == 0 else BACK if stage > EARLY else None
            when = f"after {stage} steps over before, less four standard errors ({name})"
            made.append(_raised(f"spread {when}", std[:, at] / std[:, 0], failure))
            made.append(_raised(f"test accuracy {when}", accuracy[:, at] / accuracy[:, 0]))

    _, arrays = results["border"][0]
    for taps, kept, (exact, powers) in zip(
        BORDER, np.moveaxis(arrays["kept"], 1, 0), _borders(), strict=True
    ):
        mean, allowed = kept.mean(0), 4 * _stderr(kept)
        text = f"part of the squares that zeros around {SIZE} pixels leave ({taps} taps)"
        made.append(Claim(text, float(powers[0]), float(mean[0]), float(allowed[0])))
        text = f"the same through {LAYERS} layers, worst of all ({taps} taps)"
        made.append(worst(text, exact, mean, allowed))
    return made


def _raised(text, ratios, failure=None):
    """The claim that a ratio is above one: the lower end of its interval, not just the upper."""
    low = float(ratios.mean() - 4 * _stderr(ratios))
    return Claim(text, 1.0, low, 0.0, ">=", failure)


def _stacks(config, arrays):
    """The layers of each depth, as theory takes them."""
    return [[(config.taps, 1, 1)] * int(depth) for depth in arrays["depth"]]


def figure(results):
    """Profile and spread before training; training; the border."""
    fig, axes = figures.axes(2, 2, size=(4.2, 3.1))
    _before(*axes[0], *results["untrained"][0])
    _training(axes[1, 0], *results["trained"][0])
    _zeros(axes[1, 1], results["border"][0][1])
    figures.legend(fig)
    return fig


def _before(profile, growth, config, arrays):
    depths, stacks = arrays["depth"], _stacks(config, arrays)
    at = list(depths).index(20)
    size = theory.receptive_field(stacks[at]).size
    place = np.arange(size) - size // 2
    middle = arrays["field"].shape[-1] // 2
    fields = arrays["field"][:, at, :, middle + place[0] : middle + place[-1] + 1]
    for kind in (LINEAR, SKIPS):
        figures.band(profile, place, fields[kind], spread="stderr", series=kind)
        figures.line(profile, place, _profile(kind, stacks[at]), series=kind)
    profile.set(xlabel="pixels from the centre", ylabel="share of the squared gradient")
    profile.set_title(f"20 layers of {config.taps} taps, over the whole receptive field")

    for kind, name in enumerate(KINDS):
        figures.band(growth, depths, arrays["std"][kind].T, series=kind, label=name)
        curve = [_spread(layers, skips=kind == SKIPS) for layers in stacks]
        figures.line(growth, depths, curve, series=kind)
    sizes = [theory.receptive_field(layers).size for layers in stacks]
    growth.plot(depths, sizes, ":", color="#222222", lw=1)
    growth.text(depths[1], sizes[1] * 0.9, "receptive field", va="top", fontsize=8)
    growth.set(xscale="log", yscale="log", xlabel="layers", ylabel="spread (pixels)")
    growth.set_title("before training")
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if tick < 1.1 * sizes[-1]]
    for axis, places in ((growth.xaxis, depths), (growth.yaxis, ticks)):
        axis.set_ticks(places, labels=[f"{place}" for place in places])
        axis.set_ticks([], minor=True)


def _training(ax, config, arrays):
    for number, name in enumerate(("MNIST-1D", "MNIST-1D, skips")):
        at, series = arrays["at"], 4 + number
        figures.band(ax, at, arrays["std"][number], spread="stderr", series=series, label=name)
        figures.line(ax, at, np.full(len(at), _start(config, number)), series=series)
    ax.set(xlabel="steps of training", ylabel="spread (pixels)", title="in training")


def _zeros(ax, arrays):
    layers = np.arange(1, LAYERS + 1)
    for number, (exact, powers) in enumerate(_borders()):
        color = figures.COLORS[number]
        figures.band(ax, layers, arrays["kept"][:, number], spread="stderr", series=number)
        figures.line(ax, layers, exact, series=number)
        ax.plot(layers, powers, ":", color=color, lw=1)
        ax.text(LAYERS + 0.5, exact[-1], f"{BORDER[number]} taps", va="center", fontsize=8)
    ax.set(xlabel="layers", ylabel="part of the squares that is left", xlim=(0.5, LAYERS + 3.5))
    ax.set(ylim=(0, 1.02))
    ax.set_title(f"zeros around {SIZE} pixels; dotted: powers of the first")
