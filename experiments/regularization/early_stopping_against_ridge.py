r"""Gradient flow stopped at time t against ridge at the penalty 1/t, on every design at every time.

Paper    Ali, Kolter and Tibshirani (2019), A continuous-time view of early stopping for least
         squares. Of an eigenvalue s of X'X/n, flow has learnt the share 1 - exp(-s t) and ridge
         s / (s + 1/t), which differ by a factor of at most 1.2985. So the risk of flow is at most
         1.6862 times that of ridge, for every design and target; the supremum is 1.68591, at
         s t = 1.7933. At the best time and penalty the two differ by less than 1.22.
Run      dltheory run early_stopping_against_ridge                 (ten seconds on two cores)
         dltheory run early_stopping_against_ridge --profile full  (not timed)
Expect   Ratios of at most 1.6859 on white and on correlated designs; without a signal, and with all
         eigenvalues close together, within 1 % of it. On white designs, risks at every time within
         four standard errors of the integrals over the Marchenko-Pastur law, extrapolated to
         infinite size; at its best flow risks 1.04 times as much as ridge for half as many
         parameters as examples, and 1.01 for twice as many. Gradient descent is as far from flow as
         its step allows, and no further.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, infinite_width, worst
from dltheory.experiment.sweep import Sweep
from dltheory.theory import early_stopping, regularization

GAMMAS = (0.1, 0.5, 1.0, 2.0)
DECAYS = (0.0, 1.0)
TIMES = 10 ** (np.arange(-12, 17) / 8)
# Of gradient descent: how many, and how large beside the inverse of the largest eigenvalue.
STEPS, STEP = 1024, 0.2


@dataclass(frozen=True)
class Config:
    """A linear target with noise.

    Attributes:
        examples: Of the training set.
        gamma: Parameters per example.
        decay: Of the variances of the inputs, 1 / j^decay.
        r2: Squared length of the target's coefficients.
        sigma2: Variance of the noise.
    """

    examples: int = 80
    gamma: float = 0.5
    decay: float = 0.0
    r2: float = 4.0
    sigma2: float = 1.0


def problem(key, config):
    """Design, target, and one draw of the noise; columns beyond gamma are zero."""
    n, most = config.examples, round(max(GAMMAS) * config.examples)
    p = jnp.round(config.gamma * n)
    index = jnp.arange(float(most))
    normal = jax.random.normal(key, (n, most + 1))
    scale = jnp.where(index < p, (1 + index) ** (-config.decay / 2), 0)
    coefficients = jnp.where(index < p, math.sqrt(config.r2) / jnp.sqrt(p), 0)
    return p, normal[:, :most] * scale[None], coefficients, normal[:, most]


def trial(key, config):
    """Squared error of the coefficients given the design, averaged over the noise, by time."""
    n = config.examples
    p, design, coefficients, _ = problem(key, config)
    s, vectors = jnp.linalg.eigh(design @ design.T / n)
    # Eigenvalues that are zero for lack of parameters count for nothing.
    s = jnp.where(jnp.arange(float(n)) < n - p, jnp.inf, s)[None]
    square = (design @ coefficients @ vectors)[None] ** 2 / (n * s)
    t = jnp.array(TIMES)[:, None]
    found = {}
    for name, lost in (("flow", jnp.exp(-s * t)), ("ridge", 1 / (1 + s * t))):
        found[f"{name}_bias"] = config.r2 - jnp.sum((1 - lost**2) * square, axis=1)
        found[f"{name}_variance"] = config.sigma2 / n * jnp.sum((1 - lost) ** 2 / s, axis=1)
    return found


def descent(key, config):
    """Gradient descent beside flow: how far apart they come, of the length of least norm."""
    n = config.examples
    _, design, coefficients, noise = problem(key, config)
    y = design @ coefficients + math.sqrt(config.sigma2) * noise
    s, vectors = jnp.linalg.eigh(design.T @ design / n)
    rate = STEP / s[-1]

    def step(b, _):
        b = b + rate * (design.T @ (y - design @ b)) / n
        return b, b

    path = jax.lax.scan(step, jnp.zeros_like(coefficients), length=STEPS)[1]
    alive = s > 1e-10 * s[-1]
    least = jnp.where(alive, vectors.T @ (design.T @ y) / n / jnp.where(alive, s, 1), 0)
    t = rate * jnp.arange(1.0, STEPS + 1)
    flow = (1 - jnp.exp(-t[:, None] * s[None])) * least[None]
    apart = jnp.linalg.norm(path @ vectors - flow, axis=1)
    return {"apart": apart.max() / jnp.linalg.norm(least)}


def sweeps(profile, config):
    """Risks at two sizes; descent at the smaller one."""
    sizes = {"quick": (40, 80), "full": (100, 200)}[profile]
    seeds = {"quick": (240, 120), "full": (2000, 1000)}[profile]
    grid = {"gamma": GAMMAS, "decay": DECAYS}
    small, large = (replace(config, examples=n) for n in sizes)
    return [
        Sweep(f"risk-{sizes[0]}", trial, small, grid=grid, seeds=seeds[0], x64=True),
        Sweep(f"risk-{sizes[1]}", trial, large, grid=grid, seeds=seeds[1], x64=True),
        Sweep("descent", descent, small, grid=grid, seeds=8, x64=True),
    ]


def _risks(results):
    """By examples, what the trial found; and a configuration."""
    found = [results[name][0] for name in results if name.startswith("risk-")]
    return {config.examples: arrays for config, arrays in found}, found[0][0]


def _total(arrays, name):
    """Bias and variance, shape (gammas, decays, seeds, times)."""
    return arrays[f"{name}_bias"] + arrays[f"{name}_variance"]


def _limits(config, times, r2):
    """Limits on white designs of flow and of ridge, shape (gammas, times)."""
    gamma, times = np.array(GAMMAS)[:, None], np.asarray(times)[None]
    noise = {"r2": r2, "sigma2": config.sigma2}
    flow = early_stopping.gradient_flow_risk(gamma, times, **noise)
    return np.asarray(flow), np.asarray(regularization.ridge_risk(gamma, 1 / times, **noise))


def claims(results):
    """The bound, the limits, the best times, and descent."""
    found, config = _risks(results)
    bound = early_stopping.flow_bound()
    x = np.geomspace(1e-2, 1e2, 4001)
    flow = regularization.gradient_flow_shrinkage(x, 1.0)
    shares = np.asarray(flow / regularization.ridge_shrinkage(x, 1.0))
    text = "squared ratio of the shares learnt, largest of all s t"
    made = [Claim(text, float(bound.risk), float(shares.max() ** 2), 1e-5)]
    largest = lambda part: float(max(_ratio(a, part).max() for a in found.values()))
    text = "risk of flow over that of ridge, largest of all designs and times"
    made.append(Claim(text, float(bound.risk), largest(None), 0.0, "<="))
    text = "the same for noise alone"
    made.append(Claim(text, float(bound.risk), largest("variance"), 0.0, "<="))
    text = "the same beside 99 % of the bound, which it passes"
    made.append(Claim(text, 0.99 * float(bound.risk), largest("variance"), 0.0, ">="))

    limits = dict(zip(("flow", "ridge"), _limits(config, TIMES, config.r2), strict=True))
    white = {
        name: {n: np.moveaxis(_total(a, name)[:, 0], 1, 0) for n, a in found.items()}
        for name in limits
    }
    for name, limit in limits.items():
        text = f"risk of {name} on white designs, every p/n and time, large n"
        made.append(worst(text, limit, *infinite_width(white[name])))
    tuned = []
    for index, gamma in enumerate(GAMMAS):
        stop, best = (limit[index].argmin() for limit in limits.values())
        least = limits["ridge"][index, best]
        ratio = limits["flow"][index, stop] / least
        # The two share their designs, so their difference is known better than either.
        excess = {
            n: a[:, index, stop] - ratio * white["ridge"][n][:, index, best]
            for n, a in white["flow"].items()
        }
        mean, allowed = infinite_width(excess)
        tuned.append(float(ratio + mean / least))
        text = f"risk of flow over that of ridge, each at its best (p/n = {gamma:g})"
        made.append(Claim(text, float(ratio), tuned[-1], float(allowed / least)))

    text = "the same, largest of all p/n"
    made.append(Claim(text, 1.22, max(tuned), 0.0, "<="))

    # The same distance for one eigenvalue, the largest, at the worst time.
    steps = np.arange(1, STEPS + 1)
    allowed = float(np.abs(np.exp(-STEP * steps) - (1 - STEP) ** steps).max())
    apart = float(results["descent"][0].arrays["apart"].max())
    text = "distance of gradient descent from flow, of the length of least norm, largest"
    made.append(Claim(text, allowed, apart, 0.0, "<="))
    return made


def _ratio(arrays, part=None):
    """Risk of flow, or a part of it, over that of ridge."""
    if part is None:
        return _total(arrays, "flow") / _total(arrays, "ridge")
    return arrays[f"flow_{part}"] / arrays[f"ridge_{part}"]


def figure(results):
    """Risks of flow in time, and what they are of those of ridge, with signal and without."""
    fig, axes = figures.axes(1, 3, size=(3.7, 3.3))
    found, config = _risks(results)
    n = max(found)
    arrays = found[n]
    dense = np.geomspace(TIMES[0], TIMES[-1], 200)
    flow, ridge = _limits(config, dense, config.r2)
    alone = np.divide(*_limits(config, dense, 0.0))
    panels = (
        (_total(arrays, "flow"), flow, f"risk of flow, {n} examples"),
        (_ratio(arrays), flow / ridge, "... over that of ridge at $1 / t$"),
        (_ratio(arrays, "variance"), alone, "... for noise alone"),
    )
    for ax, (samples, limit, title) in zip(axes[0], panels, strict=True):
        for series, gamma in enumerate(GAMMAS):
            figures.line(ax, dense, limit[series], series=series)
            label = f"$p / n = {gamma:g}$"
            figures.band(ax, TIMES, samples[series, 0], series=series, label=label)
        ax.set(xscale="log", xlabel="time $t$")
        ax.set_title(title)
    bound = float(early_stopping.flow_bound().risk)
    for ax in axes[0, 1:]:
        ax.axhline(bound, color="#222222", linewidth=0.9, linestyle=(0, (2, 2)), zorder=5)
        ax.text(TIMES[0], bound + 0.015, f"bound {bound:.4f}", fontsize=8, va="bottom")
        ax.set_ylim(0, 1.9)
    axes[0, 0].set(yscale="log", ylabel="excess risk")
    axes[0, 1].set_ylabel("ratio")
    figures.legend(fig)
    return fig
