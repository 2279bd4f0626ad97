r"""The tangent kernel is not constant at finite width: it fluctuates as one over its square root.

Paper    Jacot, Gabriel and Hongler (2018); Lee, Xiao et al. (2019): at infinite width the tangent
         kernel of a random network is a number, at width n it strays from it by about n^-1/2.
         Hanin and Nica (2019): for ReLU its relative mean square grows as exp(5 L / n) with the
         depth L; it is known exactly at every width.
Run      dltheory run tangent_kernel_fluctuations                 (about half a minute on two cores)
         dltheory run tangent_kernel_fluctuations --profile full  (not timed)
Expect   For ReLU the mean of the kernel of theory at every width; its relative standard deviation
         at the exact value, within four standard errors, and so sqrt(n) times it at infinite width:
         sqrt(3) for one hidden layer, 2.54 for two, 3.69 for four. The exponent in the width is
         -1/2 within 0.05, for tanh too, where no prefactor is known here.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, infinite_width, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import ntk
from dltheory.numerics import scaling
from dltheory.theory import finite_width, kernels

ACTIVATIONS = ("relu", "tanh")
DEPTHS = (1, 2, 4)
# At which the length of the signal stays, and that of gradients.
WEIGHT_VARS = (2.0, 1.0)


@dataclass(frozen=True)
class Config:
    """A network without biases and with one output, in the NTK parameterization.

    Attributes:
        width: Inputs, and units of each layer.
    """

    width: int = 64


def network(phi, weight_var, depth, width):
    """A network as f(params, x), whose hidden layers beyond `depth` are skipped."""
    scale = jnp.sqrt(weight_var / width)

    def f(params, x):
        def layer(h, numbered):
            number, weights = numbered
            return jnp.where(number < depth, scale * (phi(h) @ weights), h), None

        numbers = jnp.arange(1, DEPTHS[-1])
        h, _ = jax.lax.scan(layer, scale * (x @ params["first"]), (numbers, params["hidden"]))
        return scale * (phi(h) @ params["last"])

    return f


def trial(key, config):
    """The tangent kernel at one input, by activation and depth."""
    n, deepest = config.width, DEPTHS[-1]
    # All in one draw, since a program is compiled in a second for each.
    first, hidden, last = jnp.split(jax.random.normal(key, (deepest * n + 1, n)), [n, deepest * n])
    params = {"first": first, "hidden": hidden.reshape(-1, n, n), "last": last.T}
    # Gaussian weights know no direction: any input of mean square 1 is as good.
    x = jnp.ones((1, n))

    def kernel(smooth, weight_var, depth):
        phi = lambda h: jnp.where(smooth, jnp.tanh(h), jax.nn.relu(h))
        f = network(phi, weight_var, depth, n)
        return ntk.empirical_ntk(f, params, x)[0, 0, 0, 0]

    each = jax.vmap(jax.vmap(kernel, (None, None, 0)), (0, 0, None))
    smooth = jnp.array([name == "tanh" for name in ACTIVATIONS])
    return {"kernel": each(smooth, jnp.array(WEIGHT_VARS), jnp.array(DEPTHS))}


def sweeps(profile, config):
    """Four widths."""
    widths = {"quick": (32, 64, 128, 256), "full": (64, 128, 256, 512, 1024)}[profile]
    seeds = {"quick": (3000, 2000, 1500, 800), "full": (10_000,) * 5}[profile]
    return [
        Sweep(f"nets-{n}", trial, replace(config, width=n), seeds=number, batching="map")
        for n, number in zip(widths, seeds, strict=True)
    ]


def _strays(results):
    """Relative deviation of each net, such that their mean is the relative standard deviation.

    What is added to it is each net's share in the error of the ratio.
    """
    samples = {}
    for [(config, arrays)] in results.values():
        k = arrays["kernel"]
        ratio = k.std(0, ddof=1) / k.mean(0)
        z = (k - k.mean(0)) / k.std(0)
        samples[config.width] = ratio * (1 + (z**2 - 1) / 2 - z * ratio)
    return samples


def _summary(results):
    """Widths, relative standard deviation and its standard error: (widths, activations, depths)."""
    samples = _strays(results)
    found = np.array([s.mean(0) for s in samples.values()])
    errors = np.array([s.std(0) / math.sqrt(len(s)) for s in samples.values()])
    return np.array([*samples]), found, errors


def _theory(widths, depth):
    """Relative standard deviation for ReLU, exact."""
    with jax.enable_x64(True):
        moments = [float(finite_width.relu_ntk_second_moment(int(n), depth)) for n in widths]
    return np.sqrt(np.array(moments) - 1)


def _mean(depth):
    """Mean of the kernel for ReLU, which is that of infinite width."""
    with jax.enable_x64(True):
        k = WEIGHT_VARS[0]
        at = {"depth": depth, "weight_var": k, "bias_var": 0.0}
        return float(kernels.nngp_ntk("relu", k, k, k, **at).ntk)


def claims(results):
    """Mean and standard deviation for ReLU, and the exponent in the width for both."""
    widths, found, errors = _summary(results)
    scaled = {n: math.sqrt(n) * samples for n, samples in _strays(results).items()}
    limits, allowed = infinite_width(scaled)
    nets = [arrays["kernel"][:, 0] for [(_, arrays)] in results.values()]
    made = []
    for column, depth in enumerate(DEPTHS):
        where = f"relu, hidden layers: {depth}"
        theory = _theory(widths, depth)
        means = np.array([k[:, column].mean() for k in nets])
        stderr = np.array([k[:, column].std() / math.sqrt(len(k)) for k in nets])
        text = f"mean of the tangent kernel, every width ({where})"
        made.append(worst(text, _mean(depth), means, 4 * stderr))
        text = f"its relative standard deviation, every width ({where})"
        made.append(worst(text, theory, found[:, 0, column], 4 * errors[:, 0, column]))
        [limit] = 1e3 * _theory([10**6], depth)
        text = f"sqrt(n) times that, at infinite width ({where})"
        made.append(Claim(text, float(limit), float(limits[0, column]), float(allowed[0, column])))
    exponent = lambda *at: float(
        scaling.power_law(widths, found[:, *at], stderr=errors[:, *at]).exponent
    )
    text = "exponent of the relative standard deviation in the width"
    made.append(Claim(f"{text} (relu, hidden layers: 1)", -0.5, exponent(0, 0), 0.05))
    exponents = [exponent(1, column) for column in range(len(DEPTHS))]
    made.append(worst(f"{text} (tanh, every depth)", -0.5, exponents, 0.05))
    return made


def figure(results):
    """Standard deviation against the width, and the distribution of the kernel."""
    fig, axes = figures.axes(1, 2, size=(4.4, 3.4))
    spread, whole = axes[0]
    widths, found, errors = _summary(results)
    grid = np.unique(np.geomspace(widths[0] / 1.3, widths[-1] * 1.3, 30).astype(int))
    for column, depth in enumerate(DEPTHS):
        figures.line(spread, grid, _theory(grid, depth), series=column)
        for row, name in enumerate(ACTIVATIONS if column == 0 else ACTIVATIONS[:1]):
            spread.errorbar(
                widths,
                found[:, row, column],
                4 * errors[:, row, column],
                color=figures.COLORS[6 if row else column],
                fmt="os"[row],
                markersize=4,
                markerfacecolor="white",
                label=f"{name}, {depth}",
                zorder=4,
            )
    # From the first point of tanh, where theory has an exponent and nothing else.
    guide = found[0, 1, 0] * (grid / widths[0]) ** -0.5
    style = {"color": figures.COLORS[6], "linewidth": 0.9, "linestyle": (0, (2, 2))}
    spread.plot(grid, guide, label=r"$n^{-1/2}$", **style)
    spread.set(xscale="log", yscale="log", xlabel="width n", ylabel="relative standard deviation")
    spread.set_xticks(widths, labels=map(str, widths))
    spread.set_yticks([0.05, 0.1, 0.2, 0.4, 0.8], labels=["0.05", "0.1", "0.2", "0.4", "0.8"])
    spread.set_xticks([], minor=True)
    spread.set_yticks([], minor=True)
    spread.set_title("by hidden layers; bars of 4 standard errors")

    bins = np.linspace(0, 2.6, 53)
    for series, [(config, arrays)] in enumerate(results.values()):
        k = arrays["kernel"][:, 0, 1]
        color = figures.COLORS[3 + series]
        whole.hist(
            k / _mean(DEPTHS[1]),
            bins=bins,
            density=True,
            histtype="step",
            linewidth=1.4,
            color=color,
            label=f"width {config.width}",
        )
    whole.axvline(1, color="#222222", linewidth=0.9, linestyle=(0, (2, 2)))
    whole.set(xlabel="kernel / kernel at infinite width", ylabel="density")
    whole.set_title("relu, two hidden layers")
    figures.legend(fig)
    return fig
