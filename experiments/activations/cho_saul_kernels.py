r"""Arc-cosine kernels: closed form, quadrature that knows the kink, Gauss-Hermite, random layers.

Paper    Cho and Saul (2009): for h^n where h > 0, the mean product of two units of a wide random
         layer is an arc-cosine kernel of the angle t between the inputs, J_n(t) / 2 pi, with
             J_0 = pi - t,   J_1 = sin t + (pi - t) cos t,
             J_2 = 3 sin t cos t + (pi - t)(1 + 2 cos^2 t).
Run      dltheory run cho_saul_kernels                 (a quarter of a minute on two cores)
         dltheory run cho_saul_kernels --profile full  (not timed)
Expect   Quadrature with cuts at the kink within 1e-10 of the closed form at every angle; 64 nodes
         of Gauss and Hermite an axis off by 2.6 % for the step and 0.28 % for ReLU at 60 degrees; a
         random layer within four standard errors.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.networks import activations
from dltheory.numerics import gaussian
from dltheory.theory import dual

NAMES = ("step", "relu", "relu2")
TITLES = ("order 0, step", "order 1, ReLU", "order 2, squared ReLU")
NODES = 64


@dataclass(frozen=True)
class Config:
    """A random layer, and the angles between two unit inputs to it.

    Attributes:
        width: Units of the layer.
        angles: How many angles, from 0 to pi.
    """

    width: int = 20_000
    angles: int = 25


def angles(config):
    """The angles of a configuration."""
    return jnp.linspace(0.0, math.pi, config.angles)


def kernels(key, config):
    """Each kernel by its closed form and by both quadratures, shape (orders, angles)."""
    del key  # Nothing here is random.
    t = angles(config)
    c = jnp.cos(t)
    cut, fixed = [], []
    z, w = np.polynomial.hermite_e.hermegauss(NODES)
    z, w = jnp.asarray(z), jnp.asarray(w / w.sum())
    for name in NAMES:
        phi = activations.get(name)
        cut.append(gaussian.pair_expectation(phi, phi, jnp.ones_like(c), jnp.ones_like(c), c))
        # The textbook's rule: nodes on both axes, the same whatever the kernel.
        v = c[:, None, None] * z[:, None] + jnp.sin(t)[:, None, None] * z
        fixed.append(jnp.einsum("i,j,aij->a", w, w, phi(z)[None, :, None] * phi(v)))
    return {
        "closed": jnp.stack([_closed(order, t) for order in range(3)]),
        "dual": jnp.stack([dual.kernel(name, 1.0, 1.0, c) for name in NAMES]),
        "quadrature": jnp.stack(cut),
        "gauss_hermite": jnp.stack(fixed),
    }


def _closed(order, t):
    sin, cos = jnp.sin(t), jnp.cos(t)
    first = sin + (math.pi - t) * cos
    second = 3 * sin * cos + (math.pi - t) * (1 + 2 * cos**2)
    return (math.pi - t, first, second)[order] / (2 * math.pi)


def trial(key, config):
    """Mean products over the units of a random layer, at every angle; shape (orders, angles)."""
    u, v = jax.random.normal(key, (2, 1, config.width))
    t = angles(config)[:, None]
    first, second = u, jnp.cos(t) * u + jnp.sin(t) * v
    found = [activations.get(name) for name in NAMES]
    return {"kernel": jnp.stack([(phi(first) * phi(second)).mean(-1) for phi in found])}


def sweeps(profile, config):
    """The kernels themselves; and random layers."""
    seeds = {"quick": 32, "full": 1000}[profile]
    return [
        Sweep("kernels", kernels, config, x64=True),
        Sweep("layers", trial, config, seeds=seeds, batching="map"),
    ]


def _kernels(results):
    config, arrays = results["kernels"][0]
    return np.linspace(0, np.pi, config.angles), {name: a[0] for name, a in arrays.items()}


def claims(results):
    """Closed forms, quadratures, and layers."""
    t, found = _kernels(results)
    samples = results["layers"][0].arrays["kernel"]
    made = []
    for order, name in enumerate(NAMES):
        closed = found["closed"][order]
        text = f"{{}}, every angle ({name})"
        library = text.format("the library's kernel less Cho and Saul's")
        made.append(worst(library, 0.0, found["dual"][order] - closed, 1e-13))
        cut = text.format("quadrature that knows the kink less Cho and Saul's")
        made.append(worst(cut, 0.0, found["quadrature"][order] - closed, 1e-10))
    half = int(np.abs(t - np.pi / 3).argmin())
    for order, percent, digits in ((0, 2.6, 0.05), (1, 0.28, 0.005)):
        closed = found["closed"][order, half]
        off = 100 * float(abs(found["gauss_hermite"][order, half] / closed - 1))
        text = f"error of {NODES} Gauss-Hermite nodes an axis at 60 degrees, % ({NAMES[order]})"
        made.append(Claim(text, percent, off, digits))
    for order, name in enumerate(NAMES):
        mean = samples[:, order].mean(0)
        allowed = 4 * samples[:, order].std(0, ddof=1) / math.sqrt(len(samples))
        # At the angle pi every product is 0, but for rounding in float32.
        allowed += np.finfo(np.float32).eps * found["closed"][order].max()
        text = f"mean product over the units of a random layer, every angle ({name})"
        made.append(worst(text, found["closed"][order], mean, allowed))
    return made


def figure(results):
    """The three kernels, and the errors of the two quadratures."""
    fig, axes = figures.axes(2, 3, size=(3.2, 2.5), sharex=True)
    t, found = _kernels(results)
    samples = results["layers"][0].arrays["kernel"]
    for order, title in enumerate(TITLES):
        kernel, error = axes[:, order]
        closed = found["closed"][order]
        figures.line(kernel, t, closed, series=0)
        figures.band(kernel, t, samples[:, order], spread="stderr", series=0, label="random layer")
        kernel.set_title(title)
        for series, (name, label) in enumerate(
            (
                ("gauss_hermite", "Gauss-Hermite, 64 nodes an axis"),
                ("quadrature", "cut at the kink"),
            ),
            start=1,
        ):
            off = np.abs(found[name][order] - closed) / closed.max()
            error.plot(
                t,
                np.maximum(off, 1e-17),
                marker=".",
                linewidth=1,
                color=figures.COLORS[series],
                label=label,
            )
        error.set(yscale="log", ylim=(3e-18, 1), xlabel="angle")
        error.set_xticks([0, np.pi / 2, np.pi], ["0", r"$\pi/2$", r"$\pi$"])
    axes[0, 0].set_ylabel(r"$J_n / 2\pi$")
    axes[1, 0].set_ylabel("error / largest value")
    figures.legend(fig)
    return fig
