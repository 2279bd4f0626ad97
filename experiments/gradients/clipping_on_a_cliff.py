r"""Clipping the gradient on a cliff: what it saves, and what bias it costs.

Paper    Pascanu, Mikolov and Bengio (2013), On the difficulty of training recurrent neural
         networks: a recurrent net of one unit, x_t = w sigma(x_{t-1}) + b, told what it should
         give after 50 steps, has a loss with a cliff, where gradient descent is thrown far away,
         and goes on if its gradient is clipped by norm. The cliff is where the net starts on its
         unstable fixed point, b = x_0 - w sigma(x_0), with lambda = w sigma'(x_0) > 1, and there
         the gradient is known: dx_T/d(w, b) = (sigma(x_0), 1) (lambda^T - 1) / (lambda - 1).
         Of a Gaussian gradient, clipping changes the mean and the variance, both known in closed
         form (dltheory.theory.clipping).
Run      dltheory run clipping_on_a_cliff                 (a quarter of a minute)
         dltheory run clipping_on_a_cliff --profile full  (not timed)
Expect   Gradients on the cliff as predicted, over seven decades. Of five hundred descents all
         arrive with clipping and a quarter without, whose longest step is sixty times as long. Bias
         and variance of clipped gradients within four standard errors of theory at every threshold
         that clips some of the samples and leaves some. Rate and threshold are chosen: at a tenth
         of the rate few descents arrive in a thousand steps, clipped or not.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.networks import data, training, transforms
from dltheory.theory import clipping

WEIGHTS = tuple(np.linspace(4.2, 6.6, 61).round(3).tolist())
BIASES = np.linspace(-3.9, -1.5, 241)
# A threshold beyond any gradient: no clipping.
NEVER = 1e30
# Of theory; every fourth one is measured.
THRESHOLDS = tuple(np.geomspace(0.2, 12, 61).round(4).tolist())
MEANS = (0.0, 1.5, 5.0)
# What varies even if every gradient is clipped.
NOISY = ("norm_bias", "norm_variance", "norm_scale")
# A descent has arrived if its loss is below this; the plateau it may fall to has 0.09 or more.
ARRIVED = 1e-3


@dataclass(frozen=True)
class Config:
    """A recurrent net of one unit, and a Gaussian gradient.

    Attributes:
        weight: The recurrent weight of the surface.
        start: The state that the net starts from.
        target: What its unit should give at the end.
        unrolled: Steps that the net is run.
        rate: Learning rate.
        steps: Steps of gradient descent.
        max_norm: To which gradients are clipped.
        mean: Norm of the mean gradient, along the first coordinate; its noise has variance 1.
        dim: Its coordinates.
    """

    weight: float = 5.0
    start: float = 0.5
    target: float = 0.7
    unrolled: int = 50
    rate: float = 0.1
    steps: int = 1000
    max_norm: float = 1.0
    mean: float = 1.5
    dim: int = 10


def _network(config):
    """The unit's value in the end as f(params, x), x the states to start from."""

    def f(params, x):
        weight, bias = params
        step = lambda x, _: (weight * jax.nn.sigmoid(x) + bias, None)
        return jax.nn.sigmoid(jax.lax.scan(step, x, length=config.unrolled)[0])

    return f


def _task(config):
    return data.Data(jnp.array([config.start]), jnp.array([config.target]))


def _loss(output, target):
    return jnp.mean((output - target) ** 2)


def surface(key, config):
    """Loss at one weight and all biases, and its gradient on the cliff."""
    del key
    f, task = _network(config), _task(config)
    loss = lambda params: _loss(f(params, task.x), task.y)
    weight = jnp.asarray(config.weight)
    cliff = config.start - weight * jax.nn.sigmoid(jnp.asarray(config.start))
    return {
        "loss": jax.vmap(lambda bias: loss((weight, bias)))(jnp.asarray(BIASES)),
        "gradient": jnp.hypot(*jax.grad(loss)((weight, cliff))),
    }


def descend(key, config):
    """Gradient descent from a place at random, not far from the cliff."""

    def init(key):
        across, along = jax.random.uniform(key, (2,))
        weight = 4.8 + 1.7 * along
        cliff = config.start - weight * jax.nn.sigmoid(jnp.asarray(config.start))
        return weight, cliff + 0.05 + 0.45 * across

    optimizer = optax.chain(transforms.clip_by_global_norm(config.max_norm), optax.sgd(config.rate))
    process = training.descent(
        _network(config), init, _loss, optimizer, _task(config), record=jnp.stack
    )
    state, history = training.run(process, key, config.steps, every=1)
    path = history.record
    return {
        "path": path[:: config.steps // 100],
        "longest": jnp.linalg.norm(jnp.diff(path, axis=0), axis=1).max(),
        "loss": history.loss[-1],
        "clipped": state.optimizer[0].rate,
    }


def _apply(clip, gradient) -> Any:
    """The gradient as it is after clipping, and the state that reports it."""
    return clip.update(gradient, clip.init(gradient))


def clipped(key, config):
    """One Gaussian gradient, clipped by norm and its first coordinate by value."""
    gradient = jax.random.normal(key, (config.dim,)).at[0].add(config.mean)
    whole, state = _apply(transforms.clip_by_global_norm(config.max_norm), gradient)
    first, state_value = _apply(transforms.clip_by_value(config.max_norm), gradient[:1])
    return {
        "norm_mean": whole[0],
        "norm_rest": jnp.sum(whole[1:] ** 2),
        "norm_rate": state.rate,
        "norm_scale": state.scale,
        "value_mean": first[0],
        "value_rate": state_value.rate,
    }


def moments(key, config):
    """Theory of the same: mean, bias, variance and rate."""
    del key
    norm = clipping.by_norm(config.mean, 1.0, config.max_norm, dim=config.dim)
    value = clipping.by_value(config.mean, 1.0, config.max_norm)
    scale = clipping.norm_scale(config.mean, 1.0, config.max_norm, dim=config.dim)
    named = {"norm": norm, "value": value}
    fields = {f"{kind}_{n}": a for kind, one in named.items() for n, a in one._asdict().items()}
    return {**fields, "norm_scale": scale}


def sweeps(profile, config):
    """The surface, descents on it with and without clipping, and the moments of clipped noise."""
    descents, samples = {"quick": (500, 2000), "full": (10_000, 100_000)}[profile]
    grid = {"mean": MEANS, "max_norm": THRESHOLDS}
    return [
        Sweep("surface", surface, config, grid={"weight": WEIGHTS}, x64=True),
        Sweep(
            "descents",
            descend,
            config,
            grid={"max_norm": (NEVER, config.max_norm)},
            seeds=descents,
            x64=True,
        ),
        Sweep("theory", moments, config, grid=grid, x64=True),
        Sweep(
            "noise",
            clipped,
            config,
            grid={**grid, "max_norm": THRESHOLDS[::4]},
            seeds=samples,
            x64=True,
        ),
    ]


def _unstable(config, weights):
    """The weights with a cliff, the factor lambda there, and the norm of the loss's gradient."""
    s = 1 / (1 + math.exp(-config.start))
    weights = np.asarray(weights)
    growth = weights * s * (1 - s)
    total = (growth**config.unrolled - 1) / (growth - 1)
    slope = 2 * abs(s - config.target) * s * (1 - s)
    return growth > 1, growth, slope * total * math.hypot(s, 1)


def claims(results):
    """The cliff, the descents, the moments."""
    config, arrays = results["surface"][0]
    cliff, growth, norm = _unstable(config, arrays["weight"])
    log = np.log(arrays["gradient"][:, 0])
    # A rounding error of the state, at most epsilon times w, grows by lambda a step, and moves the
    # logarithm of the slope by no more: two geometric sums.
    with np.errstate(divide="ignore"):
        rounding = 2.0**-52 * arrays["weight"] * growth**config.unrolled / (growth - 1) ** 2
    text = "log gradient norm on the cliff, worst of all weights"
    made = [worst(text, np.log(norm)[cliff], log[cliff], rounding[cliff])]

    config, arrays = results["descents"][0]
    longest, loss = arrays["longest"], arrays["loss"]
    bound = config.rate * config.max_norm
    text = "longest step of any descent with clipping"
    made.append(Claim(text, bound, float(longest[1].max()), 1e-12, "<="))
    text = "longest step of the median descent without, relative to that"
    made.append(Claim(text, 1.0, float(np.median(longest[0]) / bound), 0.0, ">="))
    arrived = np.where(np.isfinite(loss), loss < ARRIVED, False)
    share = arrived.mean(1)
    better = arrived[1].astype(float) - arrived[0]
    sure = better.mean() - 4 * _stderr(better)
    text = "share of descents that arrive, with clipping less without, at 4 standard errors"
    made.append(Claim(text, 0.0, float(sure), 0.0, ">="))
    text = "share that arrive with clipping"
    made.append(Claim(text, 1.0, float(share[1]), 4 * math.sqrt(0.25 / len(better)), ">="))

    theory, found = _moments(results)
    names = {
        "norm_rate": "share clipped by norm",
        "norm_bias": "bias of clipping by norm",
        "norm_variance": "variance of gradients clipped by norm",
        "norm_scale": "mean factor of clipping by norm",
        "value_rate": "share clipped by value",
        "value_bias": "bias of clipping by value",
        "value_variance": "variance of a coordinate clipped by value",
    }
    samples = results["noise"][0].arrays["norm_rate"].shape[-1]
    for name, text in names.items():
        kind, what = name.split("_")
        at = {field: a[:, ::4] for field, a in theory.items()}
        mean, stderr = found[name]
        # With a handful of samples on one side of the threshold, errors are not normal where they
        # hang on that side: shares on both, and all else of a single coordinate on the free one.
        some, free = (samples * p >= 20 for p in (at[f"{kind}_rate"], 1 - at[f"{kind}_rate"]))
        enough = (some | (what in ("bias", "variance"))) & (free | (name in NOISY))
        text = f"{text}, worst of {enough.sum()} means and thresholds"
        made.append(worst(text, at[name][enough], mean[enough], 4 * stderr[enough]))
    return made


def _moments(results):
    """Theory by name, shape (means, thresholds), and measured means with standard errors."""
    arrays = results["theory"][0].arrays
    theory = {name: a[..., 0] for name, a in arrays.items() if name not in ("mean", "max_norm")}
    arrays = results["noise"][0].arrays
    true = arrays["mean"][:, None, None]
    along, value = arrays["norm_mean"], arrays["value_mean"]
    deviation = lambda a: a - a.mean(-1, keepdims=True)
    samples = {
        "norm_bias": along - true,
        "norm_variance": deviation(along) ** 2 + arrays["norm_rest"],
        "value_bias": value - true,
        "value_variance": deviation(value) ** 2,
        **{name: arrays[name] for name in ("norm_rate", "norm_scale", "value_rate")},
    }
    return theory, {name: (a.mean(-1), _stderr(a)) for name, a in samples.items()}


def _stderr(samples):
    return samples.std(-1, ddof=1) / math.sqrt(samples.shape[-1])


def figure(results):
    """The surface with descents on it, and the moments of clipped gradients."""
    return {"cliff": _cliff(results), "moments": _curves(results)}


def _cliff(results):
    fig, axes = figures.axes(1, 3, size=(3.6, 3.3))
    config, arrays = results["surface"][0]
    weights = arrays["weight"]
    cliff, _, norm = _unstable(config, weights)
    s = 1 / (1 + math.exp(-config.start))
    # Where the target is a stable fixed point.
    state = math.log(config.target / (1 - config.target))
    valley = weights * config.target * (1 - config.target) < 1
    _, descents = results["descents"][0]
    arrived = np.flatnonzero((descents["loss"][1] < ARRIVED) & ~(descents["loss"][0] < ARRIVED))
    titles = ("descent without clipping", f"clipped to norm {config.max_norm:g}")
    for index, (ax, title) in enumerate(zip(axes[0, :2], titles, strict=True)):
        loss = np.log10(np.maximum(arrays["loss"][:, 0].T, 1e-6))
        style = {"cmap": "Blues_r", "vmin": -4, "vmax": 0.2, "rasterized": True}
        image = ax.pcolormesh(weights, BIASES, loss, **style)
        line = config.start - s * weights
        figures.line(ax, weights[cliff], line[cliff], series=1, label="cliff")
        line = state - config.target * weights
        figures.line(ax, weights[valley], line[valley], series=2, label="valley")
        for number, path in enumerate(descents["path"][index, arrived[:3]]):
            label = lambda text, first=number == 0: text if first else None
            ax.plot(*path.T, "-", color="#222222", linewidth=0.8, label=label("descents"))
            ax.plot(*path[0], "o", color="#222222", markersize=4, label=label("start"))
            ax.plot(*path[-1], "*", color=figures.COLORS[5], markersize=9, label=label("end"))
        ax.set(xlim=(weights[0], weights[-1]), ylim=(BIASES[0], BIASES[-1]), title=title)
        ax.set(xlabel="weight w", ylabel="bias b")
        ax.grid(visible=False)
    fig.colorbar(image, ax=axes[0, 1], label=r"$\log_{10}$ loss")
    ax = axes[0, 2]
    figures.line(ax, weights[cliff], norm[cliff], series=1)
    some = np.flatnonzero(cliff)[::5]
    figures.band(ax, weights[some], arrays["gradient"][some].T, series=1)
    ax.set(yscale="log", xlabel="weight w", title="gradient norm on the cliff")
    figures.legend(fig)
    return fig


def _curves(results):
    fig, axes = figures.axes(2, 3, size=(3.2, 2.4), sharex=True)
    theory, found = _moments(results)
    for row, kind in enumerate(("norm", "value")):
        for column, what in enumerate(("rate", "bias", "variance")):
            ax, name = axes[row, column], f"{kind}_{what}"
            for series, mean in enumerate(MEANS):
                label = rf"$|m| = {mean:g}$"
                figures.line(ax, THRESHOLDS, theory[name][series], series=series)
                centre, stderr = (a[series] for a in found[name])
                style = {"color": figures.COLORS[series], "markerfacecolor": "white"}
                ax.errorbar(
                    THRESHOLDS[::4],
                    centre,
                    2 * stderr,
                    fmt="o",
                    markersize=3.2,
                    label=label,
                    **style,
                )
            ax.set(xscale="log")
            ax.set_title(f"{what}, clipped by {kind}")
        axes[row, 0].set_ylabel("share clipped")
        axes[row, 1].set_ylabel("bias along the mean")
        axes[row, 2].set_ylabel("variance")
    for ax in axes[1]:
        ax.set_xlabel("threshold, in units of the noise")
    figures.legend(fig)
    return fig
