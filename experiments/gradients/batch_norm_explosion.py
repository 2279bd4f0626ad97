r"""Batch normalisation keeps every length at one and makes gradients explode with depth.

Paper    Yang, Pennington, Rao, Sohl-Dickstein and Schoenholz (2019), A mean field theory of batch
         normalization: with batch normalisation before each ReLU, and no skips, squared gradients
         grow by pi / (pi - 1) = 1.46694 a layer for large batches, at any weight variance, and
         faster for small ones. The cause is that a batch has its mean taken away: in general the
         factor is E phi'^2 / Var phi, at least one, and one for linear phi alone.
Run      dltheory run batch_norm_explosion                 (about half a minute on two cores)
         dltheory run batch_norm_explosion --profile full  (not timed)
Expect   In random networks the growth of the squared gradient over a layer, extrapolated to
         infinite width, at the value of theory for the size of the batch, within four standard
         errors: 1.788 at 8 examples for ReLU, down to 1.494 at 64.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, infinite_width, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import signal
from dltheory.theory import mean_field

# Slope below zero by name. abs is not here: its batches were seen to leave the symmetric state that
# theory is about, though theory.batch_norm.stability finds it stable against small changes.
SLOPES = {"relu": 0.0, "prelu": 0.25}
BATCHES = (8, 16, 32, 64)
# Layers whose growth counts: the batch has to find its fixed point on the way up, the gradient
# its own on the way down.
INNER = slice(2, -5)


@dataclass(frozen=True)
class Config:
    """A network without biases, with batch normalisation before each activation.

    Attributes:
        width: Units of each layer.
        depth: Layers.
    """

    width: int = 64
    depth: int = 20


def network(batch, slope):
    """The network as f(params, x), where x holds several batches one after the other."""

    def layer(h, weights):
        number = jnp.arange(len(h)) // batch
        # The size of the batch is a number in one program: means are products with this matrix.
        mean = jnp.where(number[:, None] == number[None], 1 / batch, 0.0)
        centred = h - mean @ h
        z = centred / jnp.sqrt(mean @ centred**2)
        return jnp.where(z > 0, z, slope * z) @ weights, None

    return lambda params, x: jax.lax.scan(layer, x @ params["first"], params["hidden"])[0]


def trial(key, config):
    """Log of the squared gradient at every layer, by activation and size of the batch."""
    n, depth, rows = config.width, config.depth, BATCHES[-1]
    # All in one draw, since a program is compiled in a second for each.
    normal = jax.random.normal(key, (depth * n + 2 * rows, n))
    weights, x, direction = jnp.split(normal, [depth * n, depth * n + rows])
    weights = weights.reshape(depth, n, n) / math.sqrt(n)
    params = {"first": weights[0], "hidden": weights[1:]}

    def log_squares(slope, batch):
        loss = lambda y: jnp.sum(y * direction)
        found = signal.gradient_norms(loss, network(batch, slope), params, x)
        return jax.nn.logsumexp(2 * found.log_norms, axis=1)

    one = jax.vmap(jax.vmap(log_squares, (None, 0)), (0, None))
    slopes = jnp.array(list(SLOPES.values()))
    return {"log_square": one(slopes, jnp.array(BATCHES))}  # (activations, batches, layers)


def sweeps(profile, config):
    """Three widths."""
    widths = {"quick": (64, 128, 256), "full": (128, 256, 512)}[profile]
    seeds = {"quick": (128, 96, 48), "full": (1000, 500, 250)}[profile]
    return [
        Sweep(f"nets-{n}", trial, replace(config, width=n), seeds=number, batching="map")
        for n, number in zip(widths, seeds, strict=True)
    ]


def _growth(results):
    """Growth of the squared gradient over each layer, by width: (seeds, phi, batches, layers)."""
    found = {c.width: a["log_square"] for [(c, a)] in results.values()}
    return {width: np.exp(logs[..., :-1] - logs[..., 1:]) for width, logs in found.items()}


def _theory(name, batches):
    with jax.enable_x64(True):
        return np.array([float(mean_field.batch_norm_growth(name, batch=b)) for b in batches])


def claims(results):
    """The numbers of the paper; then nets, by activation and size of the batch."""
    [limit, eight] = _theory("relu", (math.inf, 8))
    made = [
        Claim("growth for ReLU in large batches, theory", math.pi / (math.pi - 1), limit, 1e-12),
        Claim("growth for ReLU in batches of 8, theory", 1.788, eight, 5e-4),
    ]
    growth = _growth(results)
    inner = {width: g[..., INNER] for width, g in growth.items()}
    mean, allowed = infinite_width({width: g.mean(-1) for width, g in inner.items()})
    each = infinite_width(inner)
    for row, name in enumerate(SLOPES):
        theory = _theory(name, BATCHES)
        for column, batch in enumerate(BATCHES):
            text = f"growth of the squared gradient over a layer ({name}, batch {batch})"
            made.append(
                Claim(text, theory[column], float(mean[row, column]), float(allowed[row, column]))
            )
        text = f"the same, every layer by itself ({name})"
        made.append(worst(text, theory[:, None], each[0][row], each[1][row]))
    return made


def figure(results):
    """Gradients through depth, and growth against the size of the batch."""
    fig, axes = figures.axes(1, 2, size=(4.4, 3.4))
    depth, sizes = axes[0]
    width, arrays = max((c.width, a) for [(c, a)] in results.values())
    logs = arrays["log_square"][:, 0] / math.log(10)
    layers = np.arange(1, logs.shape[-1] + 1)
    anchor = INNER.stop
    for series, column in enumerate((0, 1, 3)):
        batch = BATCHES[column]
        samples = logs[:, column] - logs[:, column, anchor, None]
        [rate] = np.log10(_theory("relu", (batch,)))
        line = -rate * (layers - layers[anchor])
        figures.line(depth, layers, line, series=series)
        figures.band(depth, layers, samples, series=series, label=f"batch {batch}")
    depth.set(xlabel="layer", xticks=[1, 5, 10, 15, 20], ylabel=r"$\log_{10}$ squared gradient")
    depth.set_title(f"ReLU, width {width}")

    mean, allowed = infinite_width({n: g[..., INNER].mean(-1) for n, g in _growth(results).items()})
    grid = (4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 64, 128, 256)
    for row, name in enumerate(SLOPES):
        series = 3 + row
        figures.line(sizes, grid, _theory(name, grid), series=series)
        color = figures.COLORS[series]
        [limit] = _theory(name, (math.inf,))
        sizes.axhline(limit, color=color, linewidth=0.8, linestyle=(0, (1, 2)))
        marks = {"fmt": "o", "markersize": 4, "markerfacecolor": "white", "zorder": 4}
        sizes.errorbar(BATCHES, mean[row], allowed[row], color=color, label=name, **marks)
    sizes.set(xscale="log", xlabel="size of the batch", ylabel="growth a layer", ylim=(1, 2.5))
    sizes.set_xticks([4, 8, 16, 32, 64, 128, 256], labels=map(str, [4, 8, 16, 32, 64, 128, 256]))
    sizes.set_xticks([], minor=True)
    sizes.set_title("bars of 4 standard errors; dotted: large batches")
    figures.legend(fig)
    return fig
