r"""Jacobians of random networks through depth, on real digits, against mean-field theory.

Paper    Poole et al. (2016) and Schoenholz et al. (2017): chi_1 = sigma_w^2 E phi'(h)^2 is the mean
         squared singular value of a layer's Jacobian and the growth of squared gradients, and its
         value 1 is the edge of chaos. Pennington, Schoenholz and Ganguli (2017): there, orthogonal
         weights keep the whole spectrum near one where Gaussian weights cannot.
Run      dltheory run jacobians_through_depth                 (2 minutes on two cores)
         dltheory run jacobians_through_depth --profile full  (half an hour)
Expect   Every layer's mean squared singular value within four standard errors plus c/width of
         chi_1; fluctuations over seeds that fall as width^-1/2; at depth 20 near the edge of chaos
         a spectrum within one decade for orthogonal weights, past three for Gaussian ones.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import jacobians, signal
from dltheory.networks import data, initializers, models
from dltheory.numerics.scaling import power_law
from dltheory.theory import mean_field

ENSEMBLES = ("gaussian", "orthogonal")
PHASES = ("ordered", "critical", "chaotic")


@dataclass(frozen=True)
class Config:
    """A fully connected network on one digit, drawn anew for every seed.

    Attributes:
        activation: `tanh` or `relu`.
        ensemble: `gaussian` or `orthogonal` weights.
        width: Units of each hidden layer.
        depth: Hidden layers.
        weight_var: Variance of the weights times the fan-in.
        bias_var: Variance of the biases.
        mean_square: Mean squared pixel that every digit is scaled to.
    """

    activation: str = "tanh"
    ensemble: str = "gaussian"
    width: int = 64
    depth: int = 16
    weight_var: float = 1.0
    bias_var: float = 0.05
    mean_square: float = 1.0


def trial(key, config):
    """Measure one network on one digit, and evaluate theory at the lengths it has."""
    key_digit, key_params, key_loss = jax.random.split(key, 3)
    images = data.digits().x
    x = images[jax.random.randint(key_digit, (1,), 0, len(images))]
    x = x * jnp.sqrt(config.mean_square / jnp.mean(x**2))
    phi = {"tanh": jnp.tanh, "relu": jax.nn.relu}[config.activation]
    network = models.MLP(
        config.width,
        config.depth,
        10,
        activation=phi,
        kernel_init=getattr(initializers, config.ensemble)(config.weight_var),
        bias_init=initializers.normal(config.bias_var),
    )
    params = network.init(key_params, x)

    spectra = jacobians.layer_spectra(network.apply, params, x)
    local = jnp.stack(spectra.local[1:-1])[:, 0]
    q = signal.moments(network.apply, params, x).q[:-1, 0]
    direction = jax.random.normal(key_loss, (1, 10))
    loss = lambda y: jnp.sum(y * direction)
    gradients = signal.gradient_norms(loss, network.apply, params, x).log_norms[:-1, 0]
    return {
        "local": local,
        "cumulative": jnp.stack(spectra.input_to_layer[:-1])[:, 0],
        "mean_square": jnp.mean(jnp.exp(2 * local), axis=-1),
        "growth": jnp.exp(2 * (gradients[:-1] - gradients[1:])),
        "log_gradient": gradients,
        "chi_1": mean_field.chi_1(config.activation, q[:-1], weight_var=config.weight_var),
    }


def sweeps(profile, config):
    """Three phases of tanh and ReLU at three widths; and one deep tanh network near criticality."""
    widths = {"quick": (64, 128, 256), "full": (128, 256, 512)}[profile]
    seeds = {"quick": (64, 64, 32), "full": (256, 128, 64)}[profile]
    edge = float(mean_field.edge_of_chaos("tanh", bias_var=config.bias_var).weight_var)
    made = []
    for activation, bias_var, weight_vars in (
        ("tanh", config.bias_var, (1.0, edge, 4.0)),
        ("relu", 0.0, (1.4, 2.0, 2.8)),
    ):
        for width, number in zip(widths, seeds, strict=True):
            made.append(
                Sweep(
                    f"{activation}-{width}",
                    trial,
                    replace(config, activation=activation, width=width, bias_var=bias_var),
                    cells={"ensemble": ENSEMBLES},
                    grid={"weight_var": weight_vars},
                    seeds=number,
                )
            )
    # The digits are scaled so that the first layer is at the fixed point already.
    weight_var, bias_var = 1.05, 2.01e-5
    q = float(mean_field.fixed_point("tanh", weight_var=weight_var, bias_var=bias_var))
    near = replace(
        config,
        width=64,
        depth=20,
        weight_var=weight_var,
        bias_var=bias_var,
        mean_square=(q - bias_var) / weight_var,
    )
    made.append(Sweep("isometry", trial, near, cells={"ensemble": ENSEMBLES}, seeds=seeds[0]))
    return made


def _widths(results, activation, ensemble):
    """Results of one activation and ensemble, by width: arrays of shape (phases, seeds, ...)."""
    found = {}
    for name in results:
        if name.startswith(f"{activation}-"):
            for config, arrays in results[name]:
                if config.ensemble == ensemble:
                    found[config.width] = arrays
    return dict(sorted(found.items()))


def _deviation(arrays, name):
    """Mean over seeds of measurement less theory, and its standard error: (phases, layers)."""
    samples = arrays[name] - arrays["chi_1"]
    return samples.mean(1), samples.std(1, ddof=1) / np.sqrt(samples.shape[1])


def _beyond(by_width, name):
    """Deviations from theory and what is allowed: 4 standard errors plus c/width.

    The term c/width of a width is fitted to the deviations at the other widths.
    """
    found = {width: _deviation(arrays, name) for width, arrays in by_width.items()}
    deviations, allowed = [], []
    for width, (deviation, stderr) in found.items():
        others = [(w, *found[w]) for w in found if w != width]
        # Least squares of deviation = c / width, weighted by the standard errors.
        norm = sum(1 / (w * s) ** 2 for w, _, s in others)
        c = sum(d / (w * s**2) for w, d, s in others) / norm
        deviations.append(deviation)
        allowed.append(4 * stderr + np.abs(c) / width)
    return np.array(deviations), np.array(allowed)


def claims(results):
    """Theory against measurement, in the order of the docstring."""
    made = []
    for activation in ("tanh", "relu"):
        for ensemble in ENSEMBLES:
            by_width = _widths(results, activation, ensemble)
            what = f"{activation}, {ensemble}"
            deviation, allowed = _beyond(by_width, "mean_square")
            text = f"mean squared singular value of each layer less chi_1 ({what})"
            made.append(worst(text, 0.0, deviation, allowed))
            deviation, allowed = _beyond(by_width, "growth")
            text = f"growth of the squared gradient over each layer less chi_1 ({what})"
            made.append(worst(text, 0.0, deviation, allowed))
            made.append(_fluctuation(what, by_width))
    for config, arrays in results["isometry"]:
        decades = np.median(np.ptp(arrays["cumulative"][:, -1], axis=-1)) / np.log(10)
        bound = {"orthogonal": (1.0, "<="), "gaussian": (3.0, ">=")}[config.ensemble]
        text = f"decades of the spectrum at depth {config.depth}, median ({config.ensemble})"
        made.append(Claim(text, bound[0], float(decades), 0.0, bound[1]))
    return made


def _fluctuation(what, by_width):
    """The exponent of the RMS fluctuation over seeds, at the edge of chaos, in the width."""
    found = [_rms(arrays["mean_square"][1]) for arrays in by_width.values()]
    rms, stderr = np.array(found).T
    law = power_law(np.array([*by_width], float), rms, stderr=stderr)
    text = f"exponent of its RMS fluctuation over seeds in the width, critical ({what})"
    return Claim(text, -0.5, float(law.exponent), 4 * float(law.exponent_stderr))


def _rms(samples):
    """RMS fluctuation over seeds, all layers together, and its standard error by the jackknife."""
    rms = lambda kept: np.sqrt(kept.var(0, ddof=1).mean())
    n = len(samples)
    without = np.array([rms(np.delete(samples, i, 0)) for i in range(n)])
    return rms(samples), np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())


def figure(results):
    """One page for the three phases, one for the isometry near the edge of chaos."""
    return {"phases": _phases(results), "isometry": _isometry(results)}


def _phases(results):
    fig, axes = figures.axes(4, 2, size=(4.2, 2.5), sharex=True)
    for column, activation in enumerate(("tanh", "relu")):
        by_width = _widths(results, activation, "gaussian")
        width, arrays = next(iter(by_width.items()))
        layers = np.arange(1, arrays["log_gradient"].shape[-1] + 1)
        for phase, name in enumerate(PHASES):
            label = f"{name}, measured" if column == 0 else ""
            theory = f"{name}, theory" if column == 0 else ""
            for row, values in ((0, "local"), (1, "cumulative")):
                s = np.where(np.isfinite(arrays[values][phase]), arrays[values][phase], np.nan)
                s = np.moveaxis(s / np.log(10), 1, 0).reshape(s.shape[1], -1).T
                x = layers[1:] if values == "local" else layers
                figures.band(axes[row, column], x, s, series=phase, label=label)
            figures.line(axes[2, column], layers[1:], arrays["chi_1"][phase].mean(0), series=phase)
            figures.band(
                axes[2, column],
                layers[1:],
                arrays["mean_square"][phase],
                spread="stderr",
                series=phase,
            )
            log_chi = np.log(arrays["chi_1"][phase]).mean(0)
            decay = np.append(np.cumsum(log_chi[::-1])[::-1], 0.0) / 2 / np.log(10)
            gradient = arrays["log_gradient"][phase]
            gradient = (gradient - gradient[:, -1:]) / np.log(10)
            figures.line(axes[3, column], layers, decay, series=phase, label=theory)
            figures.band(axes[3, column], layers, gradient, series=phase)
        axes[0, column].set_title(f"{activation}, Gaussian weights, width {width}")
        axes[3, column].set_xlabel("layer")
    for row, text in enumerate(
        (
            r"$\log_{10} s$, one layer",
            r"$\log_{10} s$, input to layer",
            r"mean $s^2$ of a layer, and $\chi_1$",
            r"$\log_{10} \|g_l\| / \|g_L\|$",
        )
    ):
        axes[row, 0].set_ylabel(text)
    figures.legend(fig)
    return fig


def _isometry(results):
    fig, axes = figures.axes(1, 1, size=(4.6, 3.2))
    ax = axes[0, 0]
    for series, (config, arrays) in enumerate(results["isometry"]):
        s = arrays["cumulative"] / np.log(10)
        layers = np.arange(1, s.shape[1] + 1)
        for quantile, label in ((-1, config.ensemble), (0, "")):
            figures.band(ax, layers, s[..., quantile], series=series, label=label)
        chi = np.append(0.0, np.cumsum(np.log(arrays["chi_1"]).mean(0))) / 2 / np.log(10)
        first = np.log10(config.weight_var) / 2
        figures.line(ax, layers, first + chi, series=series, label="root mean square, theory")
    ax.set(xlabel="layer", ylabel=r"$\log_{10}$ of largest and smallest $s$, input to layer")
    ax.set_title(r"tanh, $\sigma_w^2 = 1.05$, $\sigma_b^2 = 2.01\cdot 10^{-5}$")
    figures.legend(fig)
    return fig
