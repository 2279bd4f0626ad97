r"""Gradients of deep ReLU networks are log-normal, with a variance that grows as depth over width.

Paper    Hanin and Nica (2020), Products of many large random matrices and gradients in deep neural
         networks: ln |Jv|^2 of a He-initialised network of L layers of width n is close to
         N(-beta/2, beta), beta = 5 L / n. Layer by layer it is a sum of independent logarithms of
         chi-squared variables with a binomial number of degrees of freedom, whose mean and
         variance are exact at every width.
Run      dltheory run relu_lognormal_gradients                 (ten seconds on two cores)
         dltheory run relu_lognormal_gradients --profile full  (not timed)
Expect   Mean and variance within four standard errors of the digamma sums at every depth; the
         asymptotic -2.5 L/n and 5 L/n are off by a share of order 1/n, which is seen at n = 8. The
         mean of |Jv|^2 itself is one at every depth, and typical gradients vanish nevertheless.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.networks import initializers, models, sites
from dltheory.theory import finite_width

DEPTHS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Config:
    """A ReLU network without biases.

    Attributes:
        width: Inputs, outputs, and units of each layer.
    """

    width: int = 32


def trial(key, config):
    """Log squared norm of a vector pushed through the Jacobian, after layers 1 to 32."""
    key_x, key_v, key_params = jax.random.split(key, 3)
    n = config.width
    x, v = (jax.random.normal(k, (1, n)) for k in (key_x, key_v))
    init = initializers.gaussian(2.0)
    network = models.MLP(n, DEPTHS[-1], n, activation=jax.nn.relu, kernel_init=init)
    params = network.init(key_params, x)
    tapped = sites.tapped(network.apply, params, x)

    def signals(x):
        values = tapped(params, x, {})[1]
        return jax.nn.relu(jnp.concatenate([values["first"], values["hidden"][:, 0]]))

    _, pushed = jax.jvp(signals, (x,), (v,))
    return {"logs": jnp.log((pushed**2).sum(1) / (v**2).sum())[np.array(DEPTHS) - 1]}


def sweeps(profile, config):
    """Two widths; more nets in the full profile."""
    seeds = {"quick": 2000, "full": 10_000}[profile]
    return [Sweep("nets", trial, config, cells={"width": (8, 32)}, seeds=seeds, x64=True)]


def _alive(arrays):
    """Of the nets whose gradient is not zero at the deepest point: logs, shape (nets, depths)."""
    return arrays["logs"][np.isfinite(arrays["logs"]).all(1)]


def claims(results):
    """Mean, variance and shape of the logarithms; how many nets are dead."""
    made = []
    depths = np.array(DEPTHS)
    for config, arrays in results["nets"]:
        n, logs = config.width, _alive(arrays)
        count = len(logs)
        mean, variance = (float(a) for a in finite_width.relu_log_norm(n))
        stderr = logs.std(0, ddof=1) / math.sqrt(count)
        text = f"mean ln|Jv|^2, worst of all depths (width {n})"
        made.append(worst(text, mean * depths, logs.mean(0), 4 * stderr))
        squares = (logs - logs.mean(0)) ** 2
        allowed = 4 * squares.std(0, ddof=1) / math.sqrt(count)
        text = f"its variance, worst of all depths (width {n})"
        made.append(worst(text, variance * depths, squares.mean(0), allowed))

        # Kolmogorov and Smirnov at the deepest point; Edgeworth: the skewness of a sum of L.
        scores = np.sort((logs[:, -1] - mean * depths[-1]) / math.sqrt(variance * depths[-1]))
        steps = (np.arange(count) + 0.5) / count
        distance = float(np.abs(special.ndtr(scores) - steps).max())
        allowed = 1.95 / math.sqrt(count) + 0.13 * _skewness(n) / math.sqrt(depths[-1])
        text = f"distance of its distribution from the normal one at depth {depths[-1]} (width {n})"
        made.append(Claim(text, 0.0, distance, allowed))

        dead = 1 - count / len(arrays["logs"])
        chance = float(finite_width.relu_death_probability(n, DEPTHS[-1]))
        allowed = 4 * math.sqrt(max(chance * (1 - chance), 1e-9) / len(arrays["logs"]))
        made.append(Claim(f"share of dead nets (width {n})", chance, dead, allowed))
    return made


def _skewness(n):
    """Size of the skewness of the logarithm of one layer's factor."""
    k = np.arange(1, n + 1)
    log_weights = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    centred = special.digamma(k / 2) - weights @ special.digamma(k / 2)
    second = special.polygamma(1, k / 2)
    third = special.polygamma(2, k / 2) + 3 * centred * second + centred**3
    return abs(weights @ third) / (weights @ (second + centred**2)) ** 1.5


def figure(results):
    """Mean and deviation through depth, and the histogram at the deepest point."""
    fig, axes = figures.axes(1, 2, size=(4.4, 3.4))
    through, whole = axes[0]
    grid = np.linspace(DEPTHS[0], DEPTHS[-1], 50)
    for series, (config, arrays) in enumerate(results["nets"]):
        n, logs = config.width, _alive(arrays)
        mean, variance = (float(a) for a in finite_width.relu_log_norm(n))
        label = f"width {n}"
        figures.band(through, np.array(DEPTHS), logs, series=series, label=label)
        spread = 1.645 * np.sqrt(variance * grid)
        for line in (mean * grid, mean * grid - spread, mean * grid + spread):
            figures.line(through, grid, line, series=series)
        rough = "$-5L/2n$" if series == 0 else None
        style = {"color": "#222222", "linewidth": 0.9, "linestyle": (0, (2, 2)), "zorder": 5}
        through.plot(grid, -2.5 * grid / n, label=rough, **style)

        x = np.linspace(logs[:, -1].min(), logs[:, -1].max(), 200)
        normal = lambda m, v, x=x: np.exp(-((x - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
        color = figures.COLORS[series]
        whole.hist(logs[:, -1], bins=24, density=True, color=color, alpha=0.25)
        figures.line(whole, x, normal(mean * grid[-1], variance * grid[-1]), series=series)
        whole.plot(x, normal(-2.5 * grid[-1] / n, 5 * grid[-1] / n), **style)
    through.set(xlabel="layers L", ylabel=r"$\ln |Jv|^2$")
    through.set_title("mean, and where 90 % should lie")
    whole.set(xlabel=r"$\ln |Jv|^2$", ylabel="density")
    whole.set_title(f"{DEPTHS[-1]} layers; dotted: $N(-5L/2n,\\, 5L/n)$")
    figures.legend(fig)
    return fig
