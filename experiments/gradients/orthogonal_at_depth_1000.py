r"""A thousand layers: what orthogonal weights keep and Gaussian ones lose, value by value.

Paper    Saxe, McClelland and Ganguli (2014): the Jacobian of a linear network of orthogonal weights
         is an isometry at any depth, one of Gaussian weights in no direction. Pennington,
         Schoenholz and Ganguli (2017): so it stays for tanh near the edge of chaos with a small q.
         Newman (1986) gives the whole spectrum of the Gaussian linear network.
Run      dltheory run orthogonal_at_depth_1000                 (under half a minute on two cores)
         dltheory run orthogonal_at_depth_1000 --profile full  (not timed)
Expect   Orthogonal and linear: every singular value sigma_w^L, to rounding. Orthogonal and tanh:
         all values within one decade but one, that of the signal's length, which is forgotten over
         xi_q layers (Schoenholz et al. 2017) and so falls as exp(-L / xi_q). Gaussian: a thousand
         decades, as Newman says, of which the Jacobian that is formed holds sixteen. The mean log
         singular value has an exact theory at any width for all of them: E log|det W| and, layer by
         layer, E log phi' at the length that the layer before it sets.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import jacobians
from dltheory.networks import initializers, models, sites
from dltheory.numerics import log_spectrum
from dltheory.theory import finite_width, mean_field

ENSEMBLES = ("gaussian", "orthogonal")
ACTIVATIONS = ("linear", "tanh")


@dataclass(frozen=True)
class Config:
    """A network without biases on a random input.

    Attributes:
        activation: `tanh` or `linear`.
        ensemble: `gaussian` or `orthogonal` weights.
        width: Inputs, outputs, and units of each layer.
        depth: Number of weight matrices, at least 3.
        weight_var: Variance of the weights times the fan-in.
        mean_square: Mean squared input.
    """

    activation: str = "tanh"
    ensemble: str = "orthogonal"
    width: int = 32
    depth: int = 1000
    weight_var: float = 1.01
    mean_square: float = 0.005


def trial(key, config):
    """Spectrum of the input-output Jacobian, from its local factors and as a formed matrix."""
    key_x, key_params = jax.random.split(key)
    phi = {"tanh": jnp.tanh, "linear": lambda h: h}[config.activation]
    slope = jax.vmap(jax.vmap(jax.grad(phi)))
    x = jax.random.normal(key_x, (1, config.width))
    x = x * jnp.sqrt(config.mean_square / jnp.mean(x**2))
    network = models.MLP(
        config.width,
        config.depth - 1,
        config.width,
        activation=phi,
        kernel_init=getattr(initializers, config.ensemble)(config.weight_var),
    )
    params = network.init(key_params, x)

    _, values = sites.tapped(network.apply, params, x)(params, x, {})
    h = jnp.concatenate([values["first"], values["hidden"][:, 0]])
    layers: dict[str, Any] = dict(params["params"])
    first, hidden, last = (layers[name]["kernel"] for name in ("first", "hidden", "last"))
    kernels = jnp.concatenate([first[None], hidden, last[None]])
    # A local Jacobian is W D; Flax keeps W transposed, and the input meets no activation.
    slopes = jnp.concatenate([jnp.ones_like(x), slope(h)])
    factors = kernels.mT * slopes[:, None, :]
    formed = jacobians.jacobian(network.apply, params, x)[0]

    # Given the layer before it, the length of a layer is known, and its direction is uniform.
    q = config.weight_var * jnp.mean(jnp.concatenate([x, phi(h)]) ** 2, axis=1)
    nodes, weights = _quadrature(config.ensemble, config.width)
    at = jnp.sqrt(q[:-1])[:, None] * nodes[None]
    squared = slope(at) ** 2
    moments = squared @ weights, squared**2 @ weights
    return {
        "log_values": log_spectrum.log_singular_values(factors),
        "formed": jnp.log(jnp.linalg.svd(formed, compute_uv=False)),
        "log_slope": (jnp.log(squared) @ weights).sum() / 2,
        "variance": (moments[1] / moments[0] ** 2 - 1).sum(),
        "q": q,
    }


def _quadrature(ensemble, width):
    """Nodes and weights of the law of one pre-activation, given the length of its layer as 1.

    Gaussian weights make it Gaussian; orthogonal ones a coordinate on the sphere.
    """
    if ensemble == "gaussian":
        nodes, weights = np.polynomial.hermite_e.hermegauss(64)
    else:
        nodes, weights = special.roots_gegenbauer(64, (width - 2) / 2)
        nodes = math.sqrt(width) * nodes
    return jnp.asarray(nodes), jnp.asarray(weights / weights.sum())


def sweeps(profile, config):
    """Both ensembles, linear and tanh; and tanh, orthogonal, at half the width."""
    with jax.enable_x64(True):
        q = mean_field.fixed_point("tanh", weight_var=config.weight_var, bias_var=0.0)
    width, seeds = {"quick": (config.width, 16), "full": (64, 100)}[profile]
    # The first layer is at the fixed point already.
    mean_square = round(float(q) / config.weight_var, 9)
    wide = replace(config, width=width, mean_square=mean_square)
    narrow = replace(wide, width=width // 2)
    cells = {"activation": ACTIVATIONS, "ensemble": ENSEMBLES}
    # One by one, so that a branch of log_spectrum that is not taken costs nothing.
    shared = {"seeds": seeds, "x64": True, "batching": "map"}
    return [
        Sweep("wide", trial, wide, cells=cells, **shared),
        Sweep("narrow", trial, narrow, **shared),
    ]


def _log_weights(config):
    """Theory of log s of the linear network, value by value: shape (width,)."""
    if config.ensemble == "orthogonal":
        return np.full(config.width, config.depth / 2 * math.log(config.weight_var))
    with jax.enable_x64(True):
        exponents = finite_width.lyapunov_exponents(config.width, config.weight_var)
    return config.depth * np.asarray(exponents)


def _depth_scale(config):
    """Layers over which the length of a tanh network forgets a change."""
    with jax.enable_x64(True):
        scales = mean_field.depth_scales("tanh", weight_var=config.weight_var, bias_var=0.0)
    return float(scales.xi_q)


def claims(results):
    """Value by value where theory is; else the mean log, and how far the spectrum spreads."""
    made = []
    for config, arrays in results["wide"]:
        logs, theory = arrays["log_values"], _log_weights(config)
        what = f"{config.activation}, {config.ensemble}"
        if what == "linear, orthogonal":
            # What log_spectrum states for a thousand factors.
            made.append(worst(f"every log singular value ({what})", theory, logs, 1e-9))
        else:
            off = logs.mean(1) - theory.mean() - arrays["log_slope"]
            text = f"mean log singular value less its exact expectation ({what})"
            made.append(Claim(text, 0.0, float(off.mean()), 4 * _stderr(off)))
        if what == "linear, gaussian":
            # Horn: at finite depth the ends are further apart than L times their exponents.
            decades = _decades(logs[:, 0] - logs[:, -1])
            text = f"decades of the spectrum, mean ({what})"
            spread = float(_decades(theory[0] - theory[-1]))
            made.append(Claim(text, spread, float(decades.mean()), 4 * _stderr(decades), ">="))
        if what == "tanh, orthogonal":
            made += _isometry(config, arrays, dict(results["narrow"]))
        error = np.abs(arrays["formed"] - logs)
        if config.ensemble == "orthogonal":
            text = f"log singular values of the formed Jacobian less these, largest ({what})"
            made.append(Claim(text, 0.0, float(error.max()), 1e-9))
        else:
            right = (error < 0.01).sum(1)
            within = (theory[0] - theory < 52 * math.log(2)).sum()
            text = f"values of {config.width} that the formed Jacobian gets right, mean ({what})"
            made.append(Claim(text, float(within), float(right.mean()), 4 * _stderr(right), "<="))
    return made


def _isometry(config, arrays, narrow):
    """All singular values of the orthogonal tanh network but that of its length; and that one."""
    logs = arrays["log_values"]
    [half] = narrow.values()
    decades = _decades(logs[:, 0] - logs[:, -2])
    rate = logs[:, -1] / config.depth
    off = [_variance(found["log_values"]) - found["variance"] for found in (arrays, half)]
    # What is left of order 1 / width falls out between a width and its half.
    off, stderr = (
        2 * off[0].mean() - off[1].mean(),
        math.hypot(2 * _stderr(off[0]), _stderr(off[1])),
    )
    return [
        Claim(
            "decades of all values but the smallest, largest", 1.0, float(decades.max()), 0, "<="
        ),
        Claim(
            "relative variance of their squares less theory, at infinite width",
            0.0,
            float(off),
            4 * stderr,
        ),
        # A singular value differs from a product of growths by a factor of order one.
        Claim(
            "log of the smallest per layer, against -1 / xi_q",
            -1 / _depth_scale(config),
            float(rate.mean()),
            1 / config.depth + 4 * _stderr(rate),
        ),
    ]


def _variance(logs):
    """Relative variance of the squared singular values, all but the smallest: shape (seeds,)."""
    squares = np.exp(2 * logs[:, :-1])
    return (squares**2).mean(1) / squares.mean(1) ** 2 - 1


def _decades(nats):
    return nats / math.log(10)


def _stderr(samples):
    return float(samples.std(ddof=1) / math.sqrt(len(samples)))


def figure(results):
    """The spectra of both ensembles, and the length of the signal through the layers."""
    fig, axes = figures.axes(1, 3, size=(3.4, 3.2))
    for config, arrays in results["wide"]:
        series = ACTIVATIONS.index(config.activation)
        ax = axes[0, ENSEMBLES.index(config.ensemble)]
        index = np.arange(1, config.width + 1)
        logs = arrays["log_values"] / math.log(10)
        figures.band(ax, index, logs, series=series, label=config.activation)
        theory = _log_weights(config) + arrays["log_slope"].mean()
        if config.activation == "tanh" and config.ensemble == "orthogonal":
            # The smallest is that of the length; the rest have what it leaves of the volume.
            smallest = -config.depth / _depth_scale(config)
            theory = (config.width * theory - smallest) / (config.width - 1)
            theory[-1] = smallest
        figures.line(ax, index, _decades(theory), series=series)
        formed = arrays["formed"][0] / math.log(10)
        wrong = np.abs(formed - logs[0]) > 0.01
        style = {"linestyle": "none", "marker": "x", "markersize": 4, "zorder": 5}
        if wrong.any():
            label = "formed Jacobian, wrong" if series == 0 else None
            ax.plot(index[wrong], formed[wrong], color="#222222", label=label, **style)
        ax.set_title(f"{config.ensemble} weights, {config.depth} layers")
        ax.set(xlabel="index i", ylabel=r"$\log_{10} s_i$")
        if config.activation == "tanh":
            _lengths(axes[0, 2], config, arrays)
    axes[0, 2].set_title("length of the signal, tanh")
    figures.legend(fig)
    return fig


def _lengths(ax, config, arrays):
    layers = np.unique(np.geomspace(1, config.depth, 24).round().astype(int))
    series = 2 + ENSEMBLES.index(config.ensemble)
    q = np.log10(arrays["q"][:, layers - 1])
    figures.band(ax, layers, q, series=series, label=f"tanh, {config.ensemble}")
    # At small lengths tanh is linear: orthogonal weights stay at the fixed point of the mean, and
    # Gaussian ones follow their largest exponent.
    growth = 0.0 if config.ensemble == "orthogonal" else _log_weights(config)[0] / config.depth
    start = math.log10(config.mean_square * config.weight_var)
    figures.line(ax, layers, start + 2 * growth * (layers - 1) / math.log(10), series=series)
    ax.set(xscale="log", xlabel="layer", ylabel=r"$\log_{10} q$")
