r"""Residual networks: variance doubles at every block, unless the branches are small or normalised.

Paper    Hanin and Rolnick (2018), How to start training; Zhang, Dauphin and Ma (2019), Fixup: with
         He's weights a block h + W relu(h) doubles the variance of the signal, and the squared
         gradient likewise. Branches scaled by L^-1/2 leave (1 + 1/L)^L, below e at every depth.
         De and Smith (2020): with batch normalisation in the branches each of them adds the same,
         so that branch l carries the share 1 / (l + 1) of the variance: deep blocks are close to
         the identity, and gradients grow as a power of depth.
Run      dltheory run residual_growth                 (about half a minute on two cores)
         dltheory run residual_growth --profile full  (not timed)
Expect   In random networks of 32 blocks, extrapolated to infinite width and within four standard
         errors: 2 a block without scaling, for the signal and for the squared gradient; 2.44 at 4
         blocks to 2.68 at 32 with scaled branches; the shares 1/2, 1/3, 1/4, ... of normalised
         ones, and the growth of the gradient over each of them.
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
from dltheory.theory import batch_norm, mean_field

# Numbers of blocks of nets with scaled branches.
BLOCKS = (4, 8, 16, 32)
# One example by itself has no mean to be taken away; so many make a batch.
ROWS = 32


@dataclass(frozen=True)
class Config:
    """A residual ReLU network without biases.

    Attributes:
        width: Units of each layer.
        weight_var: Variance of the weights times the fan-in.
    """

    width: int = 64
    weight_var: float = 2.0


def schemes():
    """Factor before each branch, and whether it is normalised: plain, scaled, normalised."""
    deepest = BLOCKS[-1]
    branch = np.ones((2 + len(BLOCKS), deepest))
    for row, blocks in enumerate(BLOCKS, start=1):
        # A net of fewer blocks is one whose further branches are zero.
        branch[row] = np.where(np.arange(deepest) < blocks, blocks**-0.5, 0.0)
    normalised = np.arange(len(branch)) == len(branch) - 1
    return branch, normalised


def network(branch, normalised):
    """Blocks h + branch W relu(h), as f(params, x); with h normalised over the batch if asked."""

    def block(h, inputs):
        factor, weights = inputs
        std = jnp.std(h, axis=0, keepdims=True)
        mean = jnp.mean(h, axis=0, keepdims=True)
        z = jnp.where(normalised, (h - mean) / std, h)
        return h + (factor * jax.nn.relu(z)) @ weights, None

    def f(params, x):
        return jax.lax.scan(block, x @ params["first"], (branch, params["blocks"]))[0]

    return f


def trial(key, config):
    """Mean squares of branches and stream, and of the gradient in the stream, by scheme."""
    n, deepest = config.width, BLOCKS[-1]
    # All in one draw, since a program is compiled in a second for each.
    rows = (deepest + 1) * n
    weights, x, direction = jnp.split(
        jax.random.normal(key, (rows + 2 * ROWS, n)), [rows, rows + ROWS]
    )
    weights = weights.reshape(-1, n, n) / math.sqrt(n)
    params = {"first": weights[0], "blocks": jnp.sqrt(config.weight_var) * weights[1:]}

    def measured(branch, normalised):
        f = network(branch, normalised)
        q = signal.moments(f, params, x).q
        loss = lambda y: jnp.sum(y * direction)
        logs = signal.gradient_norms(loss, f, params, x).log_norms
        # After the first layer come branch, sum, branch, sum, ...
        stream = slice(0, None, 2)
        return {
            "q": q[stream].mean(1),
            "branch": q[1::2].mean(1),
            "gradient": jnp.exp(2 * logs[stream]).mean(1),
        }

    branch, normalised = schemes()
    return jax.vmap(measured)(jnp.asarray(branch, x.dtype), jnp.asarray(normalised))


def sweeps(profile, config):
    """Three widths."""
    widths = {"quick": (48, 96, 192), "full": (128, 256, 512)}[profile]
    seeds = {"quick": (128, 96, 64), "full": (1000, 500, 250)}[profile]
    return [
        Sweep(f"nets-{n}", trial, replace(config, width=n), seeds=number, batching="map")
        for n, number in zip(widths, seeds, strict=True)
    ]


def _theory(config):
    """Growth a block without scaling, with scaled branches by number of blocks, normalised."""
    with jax.enable_x64(True):
        at = {"weight_var": config.weight_var}
        plain = float(mean_field.residual_growth("relu", 1.0, **at))
        scaled = [
            float(mean_field.residual_growth("relu", 1.0, branch=blocks**-0.5, **at)) ** blocks
            for blocks in BLOCKS
        ]
        growth = batch_norm.residual_batch_norm_growth
        normalised = growth("relu", blocks=BLOCKS[-1], batch=ROWS, **at)
    return plain, np.array(scaled), np.array(normalised)


def _extrapolated(results, f):
    """A function of the arrays at infinite width, with what it may be off by."""
    return infinite_width({c.width: f(a) for [(c, a)] in results.values()})


def claims(results):
    """Growth of signal and gradient: plain, scaled, normalised."""
    config = next(iter(results.values()))[0].config
    plain, scaled, normalised = _theory(config)
    find = lambda f: _extrapolated(results, f)
    ratio = lambda a, step: a[..., 1:] / a[..., :-1] if step > 0 else a[..., :-1] / a[..., 1:]
    rows = slice(1, 1 + len(BLOCKS))
    count = np.arange(BLOCKS[-1] + 1)
    return [
        worst(
            "growth of the variance over each block, plain",
            plain,
            *find(lambda a: ratio(a["q"][:, 0], 1)),
        ),
        worst(
            "growth of the squared gradient over each block, plain",
            plain,
            *find(lambda a: ratio(a["gradient"][:, 0], -1)),
        ),
        worst(
            "growth of the variance over all L blocks, branches L^-1/2, every L",
            scaled,
            *find(lambda a: a["q"][:, rows, -1] / a["q"][:, rows, 0]),
        ),
        worst(
            "growth of the squared gradient over all L blocks, branches L^-1/2, every L",
            scaled,
            *find(lambda a: a["gradient"][:, rows, 0] / a["gradient"][:, rows, -1]),
        ),
        Claim("that of theory at any depth, below e", math.e, float(scaled.max()), 0.0, "<="),
        worst(
            "variance after l normalised blocks, relative to l + 1",
            1.0,
            *find(lambda a: a["q"][:, -1] / (count + 1)),
        ),
        worst(
            "share of branch l in the variance, times l + 1, normalised",
            1.0,
            *find(lambda a: a["branch"][:, -1] / a["q"][:, -1, 1:] * (count[1:] + 1)),
        ),
        worst(
            "growth of the squared gradient over each block, normalised",
            normalised,
            *find(lambda a: ratio(a["gradient"][:, -1], -1)),
        ),
    ]


def figure(results):
    """Variance and gradient through the blocks, growth against depth, and shares of branches."""
    fig, axes = figures.axes(2, 2, size=(4.3, 3.0))
    (variance, gradient), (depth, share) = axes
    [(config, arrays)] = list(results.values())[-1]
    plain, scaled, normalised = _theory(config)
    blocks = np.arange(BLOCKS[-1] + 1)
    small = scaled[-1] ** (1 / BLOCKS[-1])
    powers = {
        "plain": (0, plain**blocks, plain ** blocks[::-1]),
        rf"branches $\times {BLOCKS[-1]}^{{-1/2}}$": (-2, small**blocks, small ** blocks[::-1]),
        "batch normalised": (-1, blocks + 1, np.append(np.cumprod(normalised[::-1])[::-1], 1)),
    }
    for series, (label, (row, length, slope)) in enumerate(powers.items()):
        q, g = arrays["q"][:, row], arrays["gradient"][:, row]
        figures.line(variance, blocks, np.log10(length), series=series)
        figures.band(variance, blocks, np.log10(q / q[:, :1]), series=series, label=label)
        figures.line(gradient, blocks, np.log10(slope), series=series)
        figures.band(gradient, blocks, np.log10(g / g[:, -1:]), series=series)
        part = (length[1:] - length[:-1]) / length[1:]
        figures.line(share, blocks[1:], part, series=series)
        figures.band(share, blocks[1:], arrays["branch"][:, row] / q[:, 1:], series=series)
    variance.set(ylabel=r"$\log_{10}\, q_l / q_0$", xlabel="block l")
    variance.set_title(f"variance, width {config.width}")
    gradient.set(ylabel=r"$\log_{10}\, |g_l|^2 / |g_L|^2$", xlabel="block l")
    gradient.set_title("squared gradient")
    share.set(xscale="log", yscale="log", xlabel="block l", ylabel="share of the variance")
    share.set_xticks([1, 2, *BLOCKS], labels=map(str, [1, 2, *BLOCKS]))
    share.set_yticks([0.03, 0.1, 0.3, 0.5], labels=["0.03", "0.1", "0.3", "0.5"])
    share.set_xticks([], minor=True)
    share.set_yticks([], minor=True)
    share.set_title("what branch l is of the variance after it")

    rows = slice(1, 1 + len(BLOCKS))
    mean, allowed = _extrapolated(results, lambda a: a["q"][:, rows, -1] / a["q"][:, rows, 0])
    grid = np.geomspace(1, 64, 60)
    figures.line(depth, grid, (1 + 1 / grid) ** grid, series=1)
    marks = {"fmt": "o", "markersize": 4, "markerfacecolor": "white", "zorder": 4}
    depth.errorbar(BLOCKS, mean, allowed, color=figures.COLORS[1], **marks)
    depth.axhline(math.e, color="#222222", linewidth=0.8, linestyle=(0, (2, 2)))
    depth.text(1.1, math.e + 0.02, "e", color="#222222")
    depth.set(xscale="log", xlabel="number of blocks L", ylabel=r"$q_L / q_0$", ylim=(1.9, 2.9))
    depth.set_xticks([1, 2, *BLOCKS, 64], labels=map(str, [1, 2, *BLOCKS, 64]))
    depth.set_xticks([], minor=True)
    depth.set_title(r"branches $\times L^{-1/2}$; bars of 4 standard errors")
    figures.legend(fig)
    return fig
