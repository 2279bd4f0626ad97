r"""A deep linear network learns the modes of its data one after the other, each along a sigmoid.

Paper    Saxe, McClelland and Ganguli (2014), Exact solutions to the nonlinear dynamics of learning
         in deep linear neural networks: on whitened inputs the singular modes of the input-output
         correlation are learnt independently, a mode of strength s as
         u(t) = s e^(2st) / (e^(2st) - 1 + s / u_0) with two weight matrices. The differences
         W_l W_l' - W_(l+1)' W_(l+1) are conserved.
Run      dltheory run deep_linear_modes                 (eight seconds on two cores)
         dltheory run deep_linear_modes --profile full  (not timed)
Expect   A trained network on the curve within 1 % of each strength, for two matrices and for four.
         From small Gaussian weights the modes come in the same order and rise as fast; what differs
         is when each begins. What flow conserves moves by less than the step times the loss.
"""

import itertools
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.theory import backprop, training_dynamics

MODES = (4.0, 3.0, 2.0, 1.0)
RECORDS = 120


@dataclass(frozen=True)
class Config:
    """A linear network, trained by full-batch gradient descent.

    Attributes:
        matrices: Weight matrices.
        width: Inputs, outputs, and units of each layer.
        examples: Of the training set, whose inputs are white.
        strength: Of each mode at the start; its scale for Gaussian weights.
        aligned: 1 to start on the modes and balanced, 0 from Gaussian weights.
        rate: Learning rate.
        time: Steps times the learning rate.
    """

    matrices: int = 2
    width: int = 12
    examples: int = 24
    strength: float = 1e-3
    aligned: float = 1.0
    rate: float = 1e-3
    time: float = 7.2


def trial(key, config):
    """Strengths of the modes in the network, and how far what is conserved has moved."""
    n, count, depth = config.width, config.examples, config.matrices
    normal = jax.random.normal(key, (depth + 3, count, n))
    # Orthogonal columns: the inputs are white to rounding.
    x, u, v = (jnp.linalg.qr(a)[0] for a in (normal[0], normal[1, :n], normal[2, :n]))
    x = x * math.sqrt(count)
    s = jnp.zeros(n).at[: len(MODES)].set(jnp.array(MODES))
    y = x @ (v * s[None]) @ u.T
    root = config.strength ** (1 / depth)
    inner = [jnp.eye(n)] * (depth - 2)
    on_modes = [root * w for w in (v, *inner, u.T)]
    gaussian = [root / math.sqrt(n) * w for w in normal[3:, :n]]
    weights = [
        jnp.where(config.aligned > 0, *pair) for pair in zip(on_modes, gaussian, strict=True)
    ]

    def network(weights):
        return jnp.linalg.multi_dot(weights) if depth > 2 else weights[0] @ weights[1]

    def loss(weights):
        error = x @ network(weights) - y
        return jnp.sum(error * error) / (2 * count)

    def step(weights, _):
        gradient = jax.grad(loss)(weights)
        return [w - config.rate * g for w, g in zip(weights, gradient, strict=True)], None

    def differences(weights):
        pairs = itertools.pairwise(weights)
        return jnp.stack([a.T @ a - b @ b.T for a, b in pairs])

    def advance(weights, _):
        moved = jnp.abs(differences(weights) - start).max()
        found = jnp.einsum("ik,ij,jk->k", v, network(weights), u)[: len(MODES)]
        every = round(config.time / config.rate / RECORDS)
        return jax.lax.scan(step, weights, length=every)[0], (found, moved)

    start = differences(weights)
    found, moved = jax.lax.scan(advance, weights, length=RECORDS + 1)[1]
    return {"strengths": found, "moved": moved}


def sweeps(profile, config):
    """Two matrices from both starts, and four from the modes."""
    seeds = {"quick": 8, "full": 100}[profile]
    rate = {"quick": 1e-3, "full": 2.5e-4}[profile]
    two = replace(config, rate=rate)
    four = replace(two, matrices=4, strength=0.03, time=6.0)
    both = {"aligned": (1.0, 0.0)}
    return [
        Sweep("two", trial, two, grid=both, seeds=seeds, x64=True),
        Sweep("four", trial, four, seeds=seeds, x64=True),
    ]


def _times(config):
    return np.arange(RECORDS + 1) * config.time / RECORDS


def _curves(config, t):
    """What theory gives, shape (times, modes)."""
    modes = np.array(MODES)
    if config.matrices == 2:
        grid = np.broadcast_arrays(modes[None], config.strength, t[:, None])
        return np.asarray(backprop.linear_dynamics(*grid))
    curves = []
    for s in MODES:
        u = np.geomspace(config.strength * (1 + 1e-5), s * (1 - 1e-5), 4000)
        same = np.ones_like(u)
        arguments = s * same, config.strength * same, u
        at = training_dynamics.linear_time(*arguments, matrices=config.matrices)
        curves.append(np.interp(t, np.asarray(at), u))
    return np.stack(curves, 1)


def claims(results):
    """Curves, what is conserved, order and rise."""
    made = []
    for name in ("two", "four"):
        [(config, arrays)] = results[name]
        strengths = arrays["strengths"][0] if name == "two" else arrays["strengths"]
        off = (strengths - _curves(config, _times(config))[None]) / np.array(MODES)
        text = f"distance from the curve, of the strength, largest of all ({name} matrices)"
        made.append(Claim(text, 0.0, float(np.abs(off).max()), 0.01))

    [(config, arrays)] = results["two"]
    # A step changes the differences by the square of rate times gradient. The squares of the
    # gradients, times the rate, sum up to the loss at the start.
    bound = config.rate * sum(s * s for s in MODES) / 2
    text = "largest change of what flow conserves, from Gaussian weights"
    made.append(Claim(text, bound, float(arrays["moved"][1].max()), 0.0, "<="))
    random = arrays["strengths"][1]
    rise, half = (np.array([_crossings(one, _times(config), k) for one in random]) for k in (0, 1))
    wanted = np.log(81) / (2 * np.array(MODES))
    stderr = rise.std(0, ddof=1) / math.sqrt(len(rise))
    # Weights that start at a share of their final size are unbalanced by that share.
    allowed = 4 * stderr + 0.03 * wanted
    made.append(
        worst(
            "time from 10 to 90 % of a mode, from Gaussian weights", wanted, rise.mean(0), allowed
        )
    )
    ordered = (np.diff(half, axis=1) > 0).all(1).mean()
    made.append(
        Claim("share of such networks that learn the modes in order", 1.0, float(ordered), 0.0)
    )
    return made


def _crossings(strengths, t, kind):
    """For each mode the time from 10 to 90 % of its strength, or to half of it."""
    found = []
    for column, s in zip(strengths.T, MODES, strict=True):
        share = column / s
        at = [
            np.interp(level, share[: share.argmax() + 1], t[: share.argmax() + 1])
            for level in (0.1, 0.5, 0.9)
        ]
        found.append(at[1] if kind else at[2] - at[0])
    return found


def figure(results):
    """Strengths in time: on the modes, deeper, and from Gaussian weights."""
    fig, axes = figures.axes(1, 3, size=(3.3, 3.0), sharey=True)
    [(two, arrays)], [(four, deep)] = results["two"], results["four"]
    panels = (
        (two, arrays["strengths"][0], "two matrices, on the modes"),
        (four, deep["strengths"], "four matrices, on the modes"),
        (two, arrays["strengths"][1], "two, from Gaussian weights"),
    )
    for ax, (config, samples, title) in zip(axes[0], panels, strict=True):
        t = np.linspace(0, config.time, 400)
        curves, times = _curves(config, t), _times(config)
        for series, s in enumerate(MODES):
            label = f"mode of strength {s:g}"
            figures.band(ax, times[::4], samples[:, ::4, series], series=series, label=label)
            if samples is not arrays["strengths"][1]:
                figures.line(ax, t, curves[:, series], series=series)
        ax.set(xlabel=r"time (steps $\times$ learning rate)")
        ax.set_title(title)
    axes[0, 0].set_ylabel("strength in the network")
    figures.legend(fig)
    return fig
