r"""Weight decay before a normalisation sets a speed of turning; L2 inside Adam sets none.

Paper    van Laarhoven (2017), L2 regularization versus batch and weight normalization; Wan, Zhu,
         Zhang and Sun (2021), Spherical motion dynamics: where decay and gradients of weights
         whose scale does not matter balance, |w|^4 = eta G^2 / (2 lambda (1 - alpha)), and each
         step turns them by sqrt(2 eta lambda / (1 + alpha)), whatever the loss. Loshchilov and
         Hutter (2019), Decoupled weight decay regularization; Kosson, Messmer and Jaggi (2024),
         Rotational equilibrium: of AdamW the same, sqrt(2 eta lambda (1 - beta) / (1 + beta)); of
         Adam with L2 it depends on the size of gradients.
Run      dltheory run weight_decay_equilibrium                 (about 15 seconds on two cores)
         dltheory run weight_decay_equilibrium --profile full  (not timed)
Expect   Under gradients that are pure noise, norms and angles of descent within four standard
         errors and terms of order 1 / d of theory, with momentum and without; of AdamW the same
         for gradients that differ 25-fold in size, of Adam with L2 as their size to the power of
         -1/3. In a batch-normalised network on the digits, angles of the same formula, and without
         momentum norms; with it successive gradients are not as independent as theory has them.
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
from dltheory.networks import data
from dltheory.theory import weight_decay

TURNINGS = (1e-3, 3e-3, 1e-2)
MOMENTA = (0.0, 0.9)
SIZES = (0.2, 1.0, 5.0)
CLASSES = 10


@dataclass(frozen=True)
class Config:
    """Weights before a normalisation.

    Attributes:
        weights: How many there are, under gradients of noise.
        turning: Learning rate times decay.
        rate: Learning rate.
        momentum: Of descent.
        size: Standard deviation of the gradients' entries at weights of norm one.
        decoupled: One for AdamW, zero for Adam with L2.
        adam_rate: Learning rate of both.
        betas: Of both.
        steps: Of training.
        every: Steps between records; the last quarter of all is averaged.
        batch: Digits in each step of the network.
        width: Its units.
    """

    weights: int = 100
    turning: float = 3e-3
    rate: float = 0.1
    momentum: float = 0.0
    size: float = 1.0
    decoupled: float = 1.0
    adam_rate: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    steps: int = 4000
    every: int = 40
    batch: int = 32
    width: int = 16


def angle(a, b):
    """Between two arrays, without the cancellation of the arc cosine."""
    a, b = a / jnp.linalg.norm(a), b / jnp.linalg.norm(b)
    return 2 * jnp.arcsin(jnp.minimum(jnp.linalg.norm(a - b) / 2, 1))


def run(config, update, start):
    """Train from a start; squares of norms, angles, and gradients at norm one, by record."""

    def step(carry, index):
        (w, state), sums = carry
        new, state, gradient = update(w, state, index)
        seen = jnp.sum(w**2), angle(w, new) ** 2, jnp.sum(gradient**2) * jnp.sum(w**2)
        return ((new, state), sums + jnp.stack(seen)), None

    def block(carry, index):
        indices = index * config.every + jnp.arange(config.every)
        zeros = jnp.zeros(3, start[0].dtype)
        (carry, sums), _ = jax.lax.scan(step, (carry, zeros), indices)
        return carry, sums / config.every

    _, found = jax.lax.scan(block, start, jnp.arange(config.steps // config.every))
    square, turned, gradient = found.T
    return {"square": square, "angle_square": turned, "gradient_square": gradient}


def noise(key, config, index, w):
    """A gradient that is noise orthogonal to the weights, and falls with their length."""
    normal = config.size * jax.random.normal(jax.random.fold_in(key, index), w.shape, w.dtype)
    square = jnp.sum(w**2)
    return (normal - w * (normal @ w) / square) / jnp.sqrt(square)


def descend(config, gradient):
    """One step of descent with momentum on a loss with L2."""

    def update(w, speed, index):
        g = gradient(w, index)
        speed = config.momentum * speed + g + config.turning / config.rate * w
        return w - config.rate * speed, speed, g

    return update


def descent(key, config):
    """Descent on noise, from weights three times as long as they will be."""
    d = config.weights
    gradient = lambda w, index: noise(key, config, index, w)
    end = _descent_theory(config).norm
    w = jnp.full(d, 3 * end / math.sqrt(d))
    return run(config, descend(config, gradient), (w, jnp.zeros(d)))


def _descent_theory(config):
    gradient = config.size * math.sqrt(config.weights - 1)
    decay = config.turning / config.rate
    return weight_decay.equilibrium(config.rate, decay, gradient, momentum=config.momentum)


def adam(key, config):
    """AdamW and Adam with L2 on noise, the two tuned alike where the gradients have size one."""
    wide, l2 = _of_adam(config, config.size)
    strength = _strength(config)
    scale = optax.scale_by_adam(*config.betas)

    def update(w, state, index):
        g = noise(key, config, index, w)
        moved, state = scale.update(g + (1 - config.decoupled) * strength * w, state)
        shrunk = (1 - config.decoupled * config.turning) * w
        return shrunk - config.adam_rate * moved, state, g

    # Where theory has them end: the mean squares of gradients must not remember other lengths.
    norm = jnp.where(config.decoupled == 1, wide.norm, l2.norm)
    w = jnp.full(config.weights, norm / math.sqrt(config.weights))
    return run(config, update, (w, scale.init(w)))


def _strength(config):
    """Of L2, for the same turning as the decay has where gradients have size one."""
    d, rate = config.weights, config.adam_rate
    return config.turning**1.5 * math.sqrt(2 * (d - 1)) / (rate**2 * d)


@functools.cache
def _digits():
    with jax.ensure_compile_time_eval():
        return data.digits(scale="example", dtype=jnp.float32)


def network(key, config):
    """A layer of batch-normalised ReLU units on the digits, before outputs that do not learn."""
    x, y = _digits()
    n, d = x.shape
    normal = jax.random.normal(key, (d + CLASSES, config.width), x.dtype)
    start, last = normal[:d] / math.sqrt(d), normal[d:].T * math.sqrt(2 / config.width)

    def loss(w, chosen):
        h = x[chosen] @ w
        h = (h - h.mean(0)[None]) / jnp.std(h, axis=0)[None]
        logits = jax.nn.relu(h) @ last
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[chosen]).mean()

    def gradient(w, index):
        chosen = jax.random.randint(jax.random.fold_in(key, index), (config.batch,), 0, n)
        return jax.grad(loss)(w, chosen)

    return run(config, descend(config, gradient), (start, jnp.zeros_like(start)))


def sweeps(profile, config):
    """Descent and Adam on noise, and descent on the digits."""
    if profile == "full":
        config = replace(config, weights=1000, steps=20000, batch=128, width=64)
    seeds = {"quick": (16, 4), "full": (100, 10)}[profile]
    turnings = {"turning": TURNINGS, "momentum": MOMENTA}
    kinds = {"decoupled": (1.0, 0.0), "size": SIZES}
    return [
        Sweep("descent", descent, config, grid=turnings, seeds=seeds[0]),
        Sweep("adam", adam, config, grid=kinds, seeds=seeds[0]),
        Sweep("network", network, config, grid=turnings, seeds=seeds[1]),
    ]


def _settled(arrays, name):
    """The mean over the last quarter of all records."""
    values = arrays[name]
    return values[..., -(values.shape[-1] // 4) :].mean(-1)


def _grid(*axes):
    return np.meshgrid(*map(np.asarray, axes), indexing="ij")


def _of_descent(config, gradient):
    """Norms and angles by turning and momentum."""
    turning, momentum = _grid(TURNINGS, MOMENTA)
    decay = turning / config.rate
    return weight_decay.equilibrium(config.rate, decay, gradient, momentum=momentum)


def _of_adam(config, sizes):
    """Of AdamW, which are scalars, and of Adam with L2, by the size of gradients."""
    d, rate, beta = float(config.weights), config.adam_rate, config.betas[0]
    gradient = jnp.asarray(sizes) * math.sqrt(d - 1)
    return (
        weight_decay.adam_equilibrium(rate, config.turning / rate, d, momentum=beta),
        weight_decay.adam_l2_equilibrium(rate, _strength(config), gradient, d, momentum=beta),
    )


def _judge(text, theory, squares, allowed):
    """Roots of mean squares beside theory, within four standard errors and a relative error."""
    mean = squares.mean(-1)
    error = squares.std(-1, ddof=1) / (2 * mean * math.sqrt(squares.shape[-1]))
    theory = np.asarray(theory, float)
    found = np.sqrt(mean)
    return worst(text, theory, found, found * (4 * error) + theory * allowed)


def claims(results):
    """Norms and angles of descent on noise, of Adam on noise, and of a network."""
    made = []
    turning, _ = _grid(TURNINGS, MOMENTA)
    config, arrays = results["descent"][0]
    # Theory is for gradients of one length, which differ by 1 / d in square, and small turns.
    small = 1 / config.weights + turning
    theory = _of_descent(config, config.size * math.sqrt(config.weights - 1))
    squares = _settled(arrays, "square"), _settled(arrays, "angle_square")
    made.append(_judge("norm under noise, worst", theory.norm, squares[0], small))
    made.append(_judge("angle of a step under noise, worst", theory.angle, squares[1], small))
    path = arrays["square"][:, 0].swapaxes(1, 2)
    on_the_way = _approach(config, np.asarray(theory.norm)[:, 0])
    text = "norm under noise on its way there, without momentum, worst of all steps"
    made.append(_judge(text, on_the_way, path, small[:, :1]))

    config, arrays = results["adam"][0]
    # Of the mean square over 1 / (1 - beta_2) gradients, of which the last is one.
    small = 1 / config.weights + config.turning + 1 - config.betas[1]
    for index, (name, theory) in enumerate(
        zip(("AdamW", "Adam with L2"), _of_adam(config, SIZES), strict=True)
    ):
        for part, key in (("norm", "square"), ("angle of a step", "angle_square")):
            wanted = getattr(theory, "norm" if part == "norm" else "angle")
            samples = _settled(arrays, key)[index]
            text = f"{part} of {name} under noise, worst size of gradients"
            made.append(_judge(text, np.broadcast_to(wanted, len(SIZES)), samples, small))
    angles = np.sqrt(_settled(arrays, "angle_square").mean(-1))
    for name, wanted, values in zip(("AdamW", "Adam with L2"), (0, -1 / 3), angles, strict=True):
        slope = math.log(values[-1] / values[0]) / math.log(SIZES[-1] / SIZES[0])
        text = f"exponent of the size of gradients in the angle of {name}"
        made.append(Claim(text, wanted, slope, small))

    config, arrays = results["network"][0]
    gradient = np.sqrt(_settled(arrays, "gradient_square"))
    angle = _of_descent(config, 1.0).angle
    text = "angle of a step on the digits, worst"
    made.append(_judge(text, angle, _settled(arrays, "angle_square"), turning))
    for index, alpha in enumerate(MOMENTA):
        theory = np.asarray(
            weight_decay.equilibrium(
                config.rate,
                np.array(TURNINGS)[:, None] / config.rate,
                gradient[:, index],
                momentum=alpha,
            ).norm
        )
        ratio = (np.sqrt(_settled(arrays, "square")[:, index]) / theory).T
        error = 4 * ratio.std(0, ddof=1) / math.sqrt(len(ratio))
        text = f"norm on the digits over that of gradients as found, momentum {alpha:g}, worst"
        known = "gradients of steps that momentum adds up are not independent" if alpha else None
        claim = worst(text, 1.0, ratio.mean(0), error + np.array(TURNINGS))
        made.append(replace(claim, known_failure=known))
    return made


def _approach(config, ends):
    """Norms on the way, the mean square of the steps of each record, by turning."""
    steps = np.arange(config.steps)[None]
    turning, ends = np.array(TURNINGS)[:, None], ends[:, None]
    norms = np.asarray(weight_decay.approach(3 * ends, ends, turning, steps), float)
    return np.sqrt((norms**2).reshape(len(ends), -1, config.every).mean(-1))


def figure(results):
    """The way to the equilibrium, the angles of descent, and those of Adam."""
    fig, axes = figures.axes(1, 3, size=(3.7, 3.2))
    config, arrays = results["descent"][0]
    theory = _of_descent(config, config.size * math.sqrt(config.weights - 1))
    on_the_way = _approach(config, np.asarray(theory.norm)[:, 0])
    at = config.every * (np.arange(on_the_way.shape[1]) + 0.5)
    for series, turning in enumerate(TURNINGS):
        figures.line(axes[0, 0], at, on_the_way[series], series=series)
        samples = np.sqrt(arrays["square"][series, 0])[:, ::4]
        label = rf"$\eta\lambda = {turning:g}$"
        figures.band(axes[0, 0], at[::4], samples, series=series, label=label)
    axes[0, 0].set(xlabel="step", ylabel="norm of the weights", yscale="log")
    axes[0, 0].set_title("descent on noise, the way there")

    ax, dense = axes[0, 1], np.geomspace(TURNINGS[0] / 2, TURNINGS[-1] * 2, 50)
    for index, alpha in enumerate(MOMENTA):
        angle = weight_decay.equilibrium(1.0, dense, 1.0, momentum=alpha).angle
        figures.line(ax, dense, np.asarray(angle), series=index + 3)
        for name, mark in (("network", "s"), ("descent", "o")):
            found = np.sqrt(_settled(results[name][0].arrays, "angle_square")[:, index].mean(-1))
            style = {"color": figures.COLORS[index + 3], "markerfacecolor": "none", "zorder": 4}
            size = 4 if mark == "o" else 8
            label = f"momentum {alpha:g}" if mark == "o" else None
            ax.plot(TURNINGS, found, mark, markersize=size, label=label, **style)
    ax.set(xscale="log", yscale="log", xlabel=r"rate times decay, $\eta\lambda$")
    ax.set_ylabel("angle of a step, radians")
    ax.set_title("angles on noise ○ and on digits □")

    config, arrays = results["adam"][0]
    dense = np.geomspace(SIZES[0] / 1.5, SIZES[-1] * 1.5, 50)
    wide, l2 = _of_adam(config, dense)
    angles = np.sqrt(_settled(arrays, "angle_square"))
    for index, (name, theory) in enumerate((("AdamW", wide.angle), ("Adam with L2", l2.angle))):
        series = index + 5
        figures.line(axes[0, 2], dense, np.broadcast_to(theory, dense.shape), series=series)
        figures.band(axes[0, 2], SIZES, angles[index].T, series=series, label=name)
    axes[0, 2].set(xscale="log", xlabel="size of gradients at norm one", ylim=(0, None))
    axes[0, 2].set_ylabel("angle of a step, radians")
    axes[0, 0].set(yticks=(ticks := (3, 5, 10)), yticklabels=map(str, ticks))
    ax.set(yticks=(ticks := (0.03, 0.1, 0.2)), yticklabels=map(str, ticks))
    axes[0, 2].set(xticks=SIZES, xticklabels=[f"{size:g}" for size in SIZES])
    for one in axes[0]:
        one.minorticks_off()
    axes[0, 2].set_title("Adam on noise")
    figures.legend(fig)
    return fig
