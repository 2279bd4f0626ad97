r"""Jacobians of random networks through depth, on real digits, against mean-field theory.

Paper    Poole et al. (2016) and Schoenholz et al. (2017): chi_1 = sigma_w^2 E phi'(h)^2 is the mean
         squared singular value of a layer's Jacobian and the growth of squared gradients, and its
         value 1 is the edge of chaos. Pennington, Schoenholz and Ganguli (2017): there, orthogonal
         weights keep the whole spectrum near one where Gaussian weights cannot.
Run      dltheory run jacobians_through_depth                 (over a minute on two cores)
         dltheory run jacobians_through_depth --profile full  (not timed)
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
        orthogonal: Whether the weights are orthogonal (1) or Gaussian (0).
        width: Units of each hidden layer.
        depth: Hidden layers.
        weight_var: Variance of the weights times the fan-in.
        bias_var: Variance of the biases.
        mean_square: Mean squared pixel that every digit is scaled to.
    """

    activation: str = "tanh"
    orthogonal: float = 0.0
    width: int = 64
    depth: int = 10
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
        kernel_init=_either(config),
        bias_init=initializers.normal(config.bias_var),
    )
    params = network.init(key_params, x)

    spectra = jacobians.layer_spectra(network.apply, params, x)
    seen = lambda logs, resolved: jnp.where(jnp.stack(resolved), jnp.stack(logs), jnp.nan)[:, 0]
    local = seen(spectra.local[1:-1], spectra.resolved.local[1:-1])
    q = signal.moments(network.apply, params, x).q[:-1, 0]
    direction = jax.random.normal(key_loss, (1, 10))
    loss = lambda y: jnp.sum(y * direction)
    gradients = signal.gradient_norms(loss, network.apply, params, x).log_norms[:-1, 0]
    return {
        "local": local,
        "cumulative": seen(spectra.input_to_layer[:-1], spectra.resolved.input_to_layer[:-1]),
        "mean_square": jnp.nanmean(jnp.exp(2 * local), axis=-1),
        "growth": jnp.exp(2 * (gradients[:-1] - gradients[1:])),
        "log_gradient": gradients,
        "chi_1": mean_field.chi_1(config.activation, q[:-1], weight_var=config.weight_var),
    }


def _either(config):
    """Weights of the one ensemble or the other, chosen when the program runs: one compilation."""
    gaussian = initializers.gaussian(config.weight_var)
    orthogonal = initializers.orthogonal(config.weight_var)

    def init(key, shape, dtype):
        return jnp.where(
            config.orthogonal > 0, orthogonal(key, shape, dtype), gaussian(key, shape, dtype)
        )

    return init


def sweeps(profile, config):
    """Three phases of tanh and ReLU at three widths; and one deep tanh network near criticality."""
    widths = {"quick": (32, 64, 96), "full": (128, 256, 512)}[profile]
    seeds = {"quick": (96, 64, 48), "full": (256, 128, 64)}[profile]
    # The configuration is part of the results' identity: the same digits on every machine.
    with jax.enable_x64(True):
        edge = round(float(mean_field.edge_of_chaos("tanh", bias_var=config.bias_var)[0]), 9)
        weight_var, bias_var = 1.05, 2.01e-5
        q = mean_field.fixed_point("tanh", weight_var=weight_var, bias_var=bias_var)
        mean_square = round((float(q) - bias_var) / weight_var, 9)
    made = []
    for activation, variance, weight_vars in (
        ("tanh", config.bias_var, (1.0, edge, 4.0)),
        ("relu", 0.0, (1.4, 2.0, 2.8)),
    ):
        for width, number in zip(widths, seeds, strict=True):
            made.append(
                Sweep(
                    f"{activation}-{width}",
                    trial,
                    replace(config, activation=activation, width=width, bias_var=variance),
                    grid={"orthogonal": (0.0, 1.0), "weight_var": weight_vars},
                    seeds=number,
                    x64=True,
                )
            )
    # The digits are scaled so that the first layer is at the fixed point already.
    near = replace(
        config,
        width=64,
        depth=20,
        weight_var=weight_var,
        bias_var=bias_var,
        mean_square=mean_square,
    )
    grid = {"orthogonal": (0.0, 1.0)}
    made.append(Sweep("isometry", trial, near, grid=grid, seeds=32, x64=True))
    return made


def _widths(results, activation, ensemble):
    """Results of one activation and ensemble, by width: arrays of shape (phases, seeds, ...)."""
    found = {}
    for name in results:
        if name.startswith(f"{activation}-"):
            [(config, arrays)] = results[name]
            which = ENSEMBLES.index(ensemble)
            axes = {"orthogonal", "weight_var"}
            found[config.width] = {key: arrays[key][which] for key in arrays.keys() - axes}
            found[config.width]["weight_var"] = arrays["weight_var"]
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
    [(config, arrays)] = results["isometry"]
    for ensemble, cumulative in zip(ENSEMBLES, arrays["cumulative"], strict=True):
        # Values that are not resolved are smaller still, and left out.
        last = cumulative[:, -1]
        decades = np.median(np.nanmax(last, -1) - np.nanmin(last, -1)) / np.log(10)
        text = f"decades of the spectrum at depth {config.depth}, median ({ensemble})"
        if ensemble == "orthogonal":
            made.append(Claim(text, 1.0, float(decades), 0.0, "<="))
        else:
            made.append(Claim(text, 3.0, float(decades), 0.0, ">="))
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
    """Spectra of one layer and through depth, theory beside measurement, and the isometry."""
    return {
        "layer_spectra": _spectra(results, "local", "one layer"),
        "cumulative_spectra": _spectra(results, "cumulative", "input to layer"),
        "theory": _theory(results),
        "isometry": _isometry(results),
    }


def _spectra(results, name, what):
    """Bands of all singular values that are resolved and not zero, by phase and activation."""
    fig, axes = figures.axes(2, 3, size=(2.8, 2.3), sharex=True)
    for row, activation in enumerate(("tanh", "relu")):
        for series, ensemble in enumerate(ENSEMBLES):
            width, arrays = next(iter(_widths(results, activation, ensemble).items()))
            for column, phase in enumerate(PHASES):
                ax = axes[row, column]
                s = arrays[name][column] / np.log(10)
                s = np.where(np.isfinite(s), s, np.nan)
                depth = s.shape[1]
                first = 1 if name == "cumulative" else 2
                layers = np.arange(first, first + depth)
                samples = np.moveaxis(s, 1, 0).reshape(depth, -1).T
                figures.band(ax, layers, samples, series=series, label=ensemble)
                variance = f"{arrays['weight_var'][column]:.3g}"
                ax.set_title(rf"{activation}, {phase}, $\sigma_w^2 = {variance}$")
        axes[row, 0].set_ylabel(rf"$\log_{{10}} s$, {what}")
    for ax in axes[1]:
        ax.set_xlabel(f"layer (width {width})")
    figures.legend(fig)
    return fig


def _theory(results):
    """Mean squared singular value against chi_1, and the gradient against its product."""
    fig, axes = figures.axes(2, 2, size=(4.0, 2.6), sharex=True)
    for column, activation in enumerate(("tanh", "relu")):
        width, arrays = list(_widths(results, activation, "gaussian").items())[-1]
        layers = np.arange(1, arrays["log_gradient"].shape[-1] + 1)
        for phase, name in enumerate(PHASES):
            square, gradient = axes[:, column]
            chi = arrays["chi_1"][phase]
            figures.line(square, layers[1:], chi.mean(0), series=phase)
            found = arrays["mean_square"][phase]
            figures.band(square, layers[1:], found, spread="stderr", series=phase, label=name)
            # The growth from a layer to the last is the product of those in between.
            growth = np.append(np.cumsum(np.log(chi).mean(0)[::-1])[::-1], 0.0)
            figures.line(gradient, layers, growth / 2 / np.log(10), series=phase)
            logs = arrays["log_gradient"][phase]
            figures.band(gradient, layers, (logs - logs[:, -1:]) / np.log(10), series=phase)
        axes[0, column].set_title(f"{activation}, Gaussian weights, width {width}")
        axes[1, column].set_xlabel("layer")
    axes[0, 0].set_ylabel(r"mean $s^2$ of a layer, and $\chi_1$")
    axes[1, 0].set_ylabel(r"$\log_{10}\, \|g_l\| / \|g_L\|$")
    figures.legend(fig)
    return fig


def _isometry(results):
    fig, axes = figures.axes(1, 1, size=(4.6, 3.2))
    ax = axes[0, 0]
    [(config, arrays)] = results["isometry"]
    for series, ensemble in enumerate(ENSEMBLES):
        s = arrays["cumulative"][series] / np.log(10)
        layers = np.arange(1, s.shape[1] + 1)
        figures.band(ax, layers, s[..., 0], series=series, label=ensemble)
        figures.band(ax, layers, np.nanmin(s, -1), series=series)
        chi = np.append(0.0, np.cumsum(np.log(arrays["chi_1"][series]).mean(0))) / 2 / np.log(10)
        figures.line(ax, layers, np.log10(config.weight_var) / 2 + chi, series=series)
    ax.set_xticks(np.arange(2, 21, 2))
    ax.set(xlabel="layer", ylabel=r"$\log_{10}$ of largest and smallest resolved $s$")
    ax.set_title(r"tanh, $\sigma_w^2 = 1.05$, $\sigma_b^2 = 2.01\cdot 10^{-5}$, width 64")
    figures.legend(fig)
    return fig
