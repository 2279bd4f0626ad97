r"""SELU draws mean 0 and variance 1 from afar, layer by layer, and its gradients grow.

Paper    Klambauer, Unterthiner, Mayr and Hochreiter (2017): with weights of mean 0 and variance
         1/n, the map of a layer's mean and variance to the next one's has the stable fixed point
         (0, 1): deviations of the variance shrink by 0.7826 a layer there, and the Jacobian of the
         map has the spectral norm 0.7877. What the paper leaves out is mean-field theory's: squared
         gradients grow by E selu'(h)^2 = 1.07157 a layer.
Run      dltheory run selu_fixed_point                 (under half a minute on two cores)
         dltheory run selu_fixed_point --profile full  (not timed)
Expect   The fixed point to 1e-12 and the paper's digits. In random networks 60 layers deep, mean
         and variance along the path of the map, the gap between two starts that closes, and the
         growth of squared gradients: extrapolated to infinite width, within four standard errors.
         Beside it the lengths of tanh fade as 1/depth, and those of ReLU as 2^-depth.
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
from dltheory.networks import activations, sites
from dltheory.numerics import gaussian
from dltheory.theory import mean_field

# Mean and variance of the input; two close to the fixed point measure the contraction there.
STARTS = ((0.0, 1.0), (0.0, 0.9), (0.0, 1.1), (0.0, 0.1), (0.5, 1.5), (1.0, 2.0))
NAMES = ("selu", "tanh", "relu")


@dataclass(frozen=True)
class Config:
    """A fully connected network without biases, with weights of variance 1/fan-in.

    Attributes:
        activation: One of the catalogue.
        width: Units of each layer.
        depth: Hidden layers.
    """

    activation: str = "selu"
    width: int = 64
    depth: int = 60


def layer_map(phi, mean, variance):
    """Mean and variance of the activations of the next layer.

    The weights have mean 0: what the layer before it has of mean goes into the variance.
    """
    q = mean**2 + variance
    after = gaussian.expectation(phi, q, kinks=phi.kinks)
    return after, mean_field.q_map(phi, q, weight_var=1.0) - after**2


def theory(key, config):
    """The path of the map from every start, its Jacobian, and the growth of squared gradients."""
    del key  # Nothing here is random.
    starts = jnp.array(STARTS).T
    out = {}
    for name in NAMES:
        phi = activations.get(name)

        def layer(state, _, phi=phi):
            q = state[0] ** 2 + state[1]
            after = jnp.stack(layer_map(phi, *state))
            return after, (after, mean_field.chi_1(phi, q, weight_var=1.0))

        _, (path, growth) = jax.lax.scan(layer, starts, length=config.depth)
        out[f"{name}_path"] = path  # (layers, 2, starts)
        out[f"{name}_growth"] = growth
    selu = activations.get("selu")
    at = jnp.array([0.0, 1.0])
    one = lambda state: jnp.stack(layer_map(selu, *state))
    return {**out, "fixed": one(at), "jacobian": jax.jacrev(one)(at)}


def trial(key, config):
    """Mean and variance over the units of every layer, and the growth of squared gradients."""
    phi, n = activations.get(config.activation), config.width
    mean, variance = jnp.array(STARTS).T
    # All in one draw, since a program is compiled in seconds for each.
    weights, vectors = jnp.split(jax.random.normal(key, (config.depth + 1, n, n)), [config.depth])
    z, direction = vectors[0, :2]
    z = (z - z.mean()) / z.std()
    x = mean[:, None] + jnp.sqrt(variance)[:, None] * z[None]
    params = {"first": weights[0] / math.sqrt(n), "hidden": weights[1:] / math.sqrt(n)}

    def network(params, x):
        layer = lambda h, weights: (phi(h) @ weights, None)
        return jax.lax.scan(layer, x @ params["first"], params["hidden"])[0]

    _, values = sites.tapped(network, params, x)(params, x, {})
    units = phi(jnp.concatenate([values["first"][None], values["hidden"]]))
    loss = lambda h: jnp.sum(h * direction[None])
    logs = signal.gradient_norms(loss, network, params, x).log_norms[:, 0]
    return {
        "mean": units.mean(-1),  # (layers, starts)
        "variance": units.var(-1, ddof=1),
        "log_gradient": logs,
        "growth": jnp.exp(2 * (logs[:-1] - logs[1:])),
    }


def sweeps(profile, config):
    """SELU at three widths; tanh and ReLU beside it; and the map itself."""
    widths = {"quick": (48, 96, 192), "full": (128, 256, 512)}[profile]
    seeds = {"quick": (256, 128, 64), "full": (1000, 500, 250)}[profile]
    made = [Sweep("map", theory, config, x64=True)]
    for width, number in zip(widths, seeds, strict=True):
        made.append(
            Sweep(
                f"selu-{width}", trial, replace(config, width=width), seeds=number, batching="map"
            )
        )
    wide = replace(config, width=widths[-1])
    cells = {"activation": NAMES[1:]}
    return [*made, Sweep("beside", trial, wide, cells=cells, seeds=seeds[-1], batching="map")]


def _theory(results):
    """What `theory` returned, without the axis of seeds."""
    return {name: array[0] for name, array in results["map"][0].arrays.items()}


def _selu(results):
    """Results of SELU by width, arrays of shape (seeds, layers, ...)."""
    found = [results[name][0] for name in results if name.startswith("selu-")]
    return {config.width: arrays for config, arrays in found}


def claims(results):
    """The map, then networks against it."""
    found, measured = _theory(results), _selu(results)
    jacobian, path = found["jacobian"], found["selu_path"]
    norm = float(np.linalg.norm(jacobian, 2))
    text = "mean and variance after a layer, from mean 0 and variance 1"
    made = [
        worst(text, [0, 1], found["fixed"], 1e-12),
        Claim("derivative of the variance in the variance there", 0.7826, jacobian[1, 1], 5e-5),
        Claim("spectral norm of the Jacobian there", 0.7877, norm, 5e-5),
        worst("its derivatives in the mean", [0, 0], jacobian[:, 0], 1e-12),
        Claim("growth of squared gradients there", 1.07157, found["selu_growth"][0, 0], 5e-6),
    ]
    samples = {w: np.stack([a["mean"], a["variance"]], 2) for w, a in measured.items()}
    text = "mean and variance of the units of each layer, from every start"
    made.append(worst(text, path, *infinite_width(samples)))

    # Starts 1 and 2 share their weights, and with them most of their fluctuations.
    gap = {w: a[:, :8, 1, 2] - a[:, :8, 1, 1] for w, a in samples.items()}
    text = "variance from the start 1.1 less that from 0.9, layers 1 to 8"
    made.append(worst(text, path[:8, 1, 2] - path[:8, 1, 1], *infinite_width(gap)))

    growth = {w: a["growth"] for w, a in measured.items()}
    text = "growth of the squared gradient over each layer"
    made.append(worst(text, found["selu_growth"][1:, 0], *infinite_width(growth)))
    mean = {w: a.mean(-1) for w, a in growth.items()}
    text = "the same, mean over all layers"
    made.append(worst(text, found["selu_growth"][0, 0], *infinite_width(mean)))
    return made


def figure(results):
    """Mean and variance through depth, their plane, and gradients."""
    found, measured = _theory(results), _selu(results)
    width = max(measured)
    arrays, layers = measured[width], np.arange(1, found["selu_path"].shape[0] + 1)
    fig, axes = figures.axes(2, 2, size=(4.3, 3.1))
    (mean, variance), (length, gradient) = axes
    shown = layers <= 25
    for series, start in enumerate((0, 3, 4, 5)):
        label = r"$(\mu_0, \nu_0)$ = " + "({:g}, {:g})".format(*STARTS[start])
        for row, (ax, name) in enumerate(((mean, "mean"), (variance, "variance"))):
            figures.line(ax, layers[shown], found["selu_path"][shown, row, start], series=series)
            samples = arrays[name][:, shown, start]
            figures.band(ax, layers[shown], samples, spread="stderr", series=series, label=label)
    mean.set(xlabel="layer", ylabel=r"mean $\mu$")
    variance.set(xlabel="layer", ylabel=r"variance $\nu$")
    mean.set_title(f"SELU, width {width}")
    variance.set_title("from inputs of four means and variances")

    for series, name in enumerate(NAMES, start=4):
        here = arrays if name == "selu" else _beside(results, name)
        path = found[f"{name}_path"]
        square = path[:, 0, 0] ** 2 + path[:, 1, 0]
        figures.line(length, layers, np.log10(square), series=series)
        seen = here["mean"][..., 0] ** 2 + here["variance"][..., 0]
        figures.band(length, layers, np.log10(seen), series=series, label=name)
        logs = np.log10(np.exp(here["log_gradient"] - here["log_gradient"][:, -1:]))
        growth = np.log10(found[f"{name}_growth"][1:, 0])
        sums = np.append(np.cumsum(growth[::-1])[::-1], 0.0) / 2
        figures.line(gradient, layers, sums, series=series)
        figures.band(gradient, layers, logs, series=series)
    length.set(xlabel="layer", ylabel=r"$\log_{10}$ mean square")
    length.set_title("activations, input of mean square 1")
    gradient.set(xlabel="layer", ylabel=r"$\log_{10}\, \|g_l\| / \|g_L\|$")
    gradient.set_title("gradients; theory is of the mean square")
    gradient.set_ylim(-2.5, 1.5)  # Those of ReLU leave by half a decade every three layers.
    figures.legend(fig)
    return fig


def _beside(results, name):
    return next(arrays for config, arrays in results["beside"] if config.activation == name)
