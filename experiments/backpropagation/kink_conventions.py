r"""What JAX takes for the derivative at a kink, function by function.

Paper    None fixes it: at a kink of a convex function any number between the one-sided slopes is a
         subgradient. Bolte and Pauwels (2021), Conservative set valued fields, show that training
         survives what automatic differentiation chooses.
         What automatic differentiation returns is a convention of each program.
Run      dltheory run kink_conventions                 (five seconds on two cores)
         dltheory run kink_conventions --profile full  (the same)
Expect   The recorded table: relu and relu6 take the flatter side, maximum, minimum and clip share
         ties out, abs and leaky_relu go on to the right, sqrt(x^2) and norms are not a number.
         A regression record for JAX 0.10.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim
from dltheory.experiment.sweep import Sweep
from dltheory.networks import activations

OTHERS = {
    "max(x, 0)": (lambda x: jnp.maximum(x, 0.0), 0.0),
    "min(x, 0)": (lambda x: jnp.minimum(x, 0.0), 0.0),
    "where(x > 0, x, 0)": (lambda x: jnp.where(x > 0, x, 0.0), 0.0),
    "max of (x, 0)": (lambda x: jnp.stack([x, 0 * x]).max(), 0.0),
    "last of sorted (x, 0)": (lambda x: jnp.sort(jnp.stack([x, 0 * x]))[1], 0.0),
    "clip to ±1": (lambda x: jnp.clip(x, -1.0, 1.0), 1.0),
    "sqrt(x²)": (lambda x: jnp.sqrt(x**2), 0.0),
    "norm of (x, 0)": (lambda x: jnp.linalg.norm(jnp.stack([x, 0 * x])), 0.0),
}
# What JAX 0.10 returns: the slope of a side, their mean, or no number.
RECORD = {
    "relu at 0": "left",
    "relu6 at 0": "left",
    "relu6 at 6": "right",
    "selu at 0": "left",
    "hard_swish at -3": "left",
    "hard_swish at 3": "right",
    "hard_sigmoid at -3": "left",
    "hard_sigmoid at 3": "right",
    "hard_tanh at -1": "right",
    "hard_tanh at 1": "left",
    "abs at 0": "right",
    "leaky_relu at 0": "right",
    "prelu at 0": "right",
    "max(x, 0) at 0": "mean",
    "min(x, 0) at 0": "mean",
    "where(x > 0, x, 0) at 0": "left",
    "max of (x, 0) at 0": "mean",
    "last of sorted (x, 0) at 0": "left",
    "clip to ±1 at 1": "mean",
    "sqrt(x²) at 0": "not a number",
    "norm of (x, 0) at 0": "not a number",
}


def table():
    """Names, functions and points: the catalogue's kinks with two slopes, and other functions."""
    rows = []
    for name in activations.names():
        entry = activations.get(name)
        if entry.smoothness == 0:
            rows += [(f"{name} at {k:g}", entry.fn, k) for k in entry.kinks]
    return rows + [(f"{name} at {k:g}", fn, k) for name, (fn, k) in OTHERS.items()]


@dataclass(frozen=True)
class Config:
    """The step of the one-sided differences.

    Attributes:
        step: It is exact in binary, so that linear pieces have exact slopes.
    """

    step: float = 2.0**-20


def trial(key, config):
    """Slopes to the left and to the right of each kink, and what JAX returns at it."""
    del key
    left, right, own = [], [], []
    for _, fn, kink in table():
        at = jnp.asarray(kink, float)
        below, here, above = (fn(at + sign * config.step) for sign in (-1, 0, 1))
        left.append((here - below) / config.step)
        right.append((above - here) / config.step)
        own.append(jax.grad(fn)(at))
    return {"left": jnp.stack(left), "right": jnp.stack(right), "jax": jnp.stack(own)}


def sweeps(profile, config):
    """One evaluation: nothing is random."""
    del profile
    return [Sweep("kinks", trial, config, seeds=1, x64=True)]


def _columns(results):
    config, arrays = results["kinks"][0]
    return config, [name for name, *_ in table()], *(arrays[k][0] for k in ("left", "right", "jax"))


def claims(results):
    """The record, kink by kink, against the one-sided slopes."""
    config, names, left, right, own = _columns(results)
    made = []
    for name, *slopes, value in zip(names, left, right, own, strict=True):
        kind = RECORD.get(name, "left")
        if kind == "not a number":
            made.append(Claim(f"{name}: not a number (1: so it is)", 1, np.isnan(value), 0))
            continue
        wanted = {"left": slopes[0], "right": slopes[1], "mean": sum(slopes) / 2}[kind]
        # One-sided differences are off by h f'' / 2, and |f''| <= 2 here.
        made.append(Claim(f"{name}: {kind}", float(wanted), float(value), config.step))
    return made


def figure(results):
    """The one-sided slopes of each kink, and where JAX's derivative lies."""
    _, names, left, right, own = _columns(results)
    fig, axes = figures.axes(1, 1, size=(6.4, 5.6))
    ax, rows = axes[0, 0], np.arange(len(names))[::-1]
    ax.hlines(rows, np.minimum(left, right), np.maximum(left, right), color="#bbbbbb", linewidth=3)
    for series, (values, marker, label) in enumerate(
        ((left, "<", "slope to the left"), (right, ">", "slope to the right"))
    ):
        style = {"color": figures.COLORS[series], "linestyle": "none", "markersize": 7}
        ax.plot(values, rows, marker, label=label, **style)
    seen = np.isfinite(own)
    ax.plot(own[seen], rows[seen], "o", color="#222222", markersize=4, label="JAX", zorder=5)
    for row in rows[~seen]:
        ax.text(0, row, "NaN", ha="center", va="center", fontsize=8)
    ax.set_yticks(rows, names, fontsize=8)
    ax.set(xlabel="derivative", title="What JAX returns at a kink")
    fig.legend(loc="outside lower center", ncols=3)
    return fig
