r"""Gradients at two inputs decorrelate like a power of the depth, not exponentially.

Paper    Balduzzi et al. (2017), The shattered gradients problem: correlations of gradients decay
         like 2^-L in plain ReLU networks and like (3/4)^L in residual ones, if the gates at the
         two inputs are independent at every layer. They are at the first one only, and there for
         orthogonal inputs: the correlation c of the signals tends to one, and a layer of a plain
         network multiplies that of the gradients by 1 - arccos(c) / pi. At infinite width the
         product decays like L^-3, and so does that of a residual network.
Run      dltheory run shattered_gradients                 (half a minute on two cores)
         dltheory run shattered_gradients --profile full  (not timed)
Expect   Both networks on the product at every depth, extrapolated to infinite width. The published
         rates fail, as recorded: over 8 layers plain networks keep thirteen times as much. What
         fails is their assumption: of the units that are active at one input a half would be
         active at the other, and at layer 16 seven in eight are.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, infinite_width, worst
from dltheory.experiment.sweep import Sweep
from dltheory.theory import shattering

WIDTHS = (64, 128, 256)
SKIPS = ("plain", "residual")
DEPTH, SHALLOW = 16, 8
DIRECTIONS = 8


@dataclass(frozen=True)
class Config:
    """A ReLU network with He's weights, at two orthogonal inputs.

    Attributes:
        skip: 1 for blocks h + W relu(h), 0 for layers W relu(h).
        width: Units of each layer.
    """

    skip: float = 0.0
    width: int = 128


def trial(key, config):
    """Correlations of the gradients over 1 to 16 layers, and shares of gates that agree."""
    n = config.width
    normal = jax.random.normal(key, (DEPTH * n + 2 + DIRECTIONS, n))
    weights = normal[2 + DIRECTIONS :].reshape(DEPTH, n, n) * jnp.sqrt(2 / n)
    # Orthogonal pre-activations of the first layer: their length is immaterial.
    first, second = normal[:2]
    second -= first * (first @ second) / (first @ first)
    h = jnp.stack([first, second * jnp.linalg.norm(first) / jnp.linalg.norm(second)])

    def layer(h, w):
        gates = (h > 0).astype(h.dtype)
        both = gates.prod(0).sum() / gates[0].sum()
        new = config.skip * h + (gates * h) @ w
        return new / jnp.linalg.norm(new), (gates, both)

    _, (gates, agree) = jax.lax.scan(layer, h, weights)

    # From every layer the same few gradients, each carried down to the first: all in one scan.
    seeds = jnp.stack([normal[2 : 2 + DIRECTIONS]] * 2, axis=1)

    def back(gradients, item):
        index, w, gate = item
        starts = (jnp.arange(DEPTH) == index)[:, None, None, None]
        gradients = jnp.where(starts, seeds[None], gradients)
        gradients = config.skip * gradients + gate[None, None] * (gradients @ w.T)
        size = jnp.sqrt((gradients**2).sum((1, 2, 3), keepdims=True))
        return gradients / jnp.where(size > 0, size, 1), None

    start = jnp.zeros((DEPTH, *seeds.shape))
    items = (jnp.arange(DEPTH), weights, gates)
    gradients, _ = jax.lax.scan(back, start, items, reverse=True)
    products = jnp.einsum("ldan,ldbn->lab", gradients, gradients)
    inner, squares = products[:, 0, 1], jnp.diagonal(products, axis1=1, axis2=2)
    return {"correlation": inner / jnp.sqrt(squares.prod(1)), "agree": agree}


def sweeps(profile, config):
    """Plain and residual networks at three widths."""
    widths = {"quick": WIDTHS, "full": (128, 256, 512)}[profile]
    seeds = {"quick": (400, 200, 60), "full": (4000, 2000, 1000)}[profile]
    grid = {"skip": (0.0, 1.0)}
    return [
        Sweep(f"nets-{width}", trial, replace(config, width=width), grid=grid, seeds=number)
        for width, number in zip(widths, seeds, strict=True)
    ]


def theory(skip, depth=DEPTH):
    """Correlations over 1 to `depth` layers, as they are and as published; and gates that agree."""
    at = {"depth": depth, "weight_var": 2.0, "branch": 1.0 if skip else None}
    true = np.asarray(shattering.gradient_correlation("relu", 1.0, 0.0, **at))
    published = np.asarray(shattering.independent_gates("relu", 1.0, **at))
    factors = true / np.append(1, true[:-1])
    return true, published, 2 * factors - 1 if skip else factors


def _samples(results, what, index):
    return {c.width: a[what][index] for _, [(c, a)] in results.items()}


def claims(results):
    """Theory at every depth; the published rates, and their assumption."""
    made = []
    for index, name in enumerate(SKIPS):
        true, published, agree = theory(index)
        found = infinite_width(_samples(results, "correlation", index))
        text = f"correlation of the gradients, worst of all depths ({name})"
        made.append(worst(text, true, *found))
        reason = "gates at the two inputs are not independent beyond the first layer"
        rate = ("2^-L", "(3/4)^L")[index]
        mean, allowed = (float(a[SHALLOW - 1]) for a in found)
        text = f"published {rate} at L = {SHALLOW} ({name})"
        made.append(Claim(text, published[SHALLOW - 1], mean, allowed, known_failure=reason))

        found = infinite_width(_samples(results, "agree", index))
        text = f"share of active units that are active at both inputs, worst of layers ({name})"
        made.append(worst(text, agree, *found))
        mean, allowed = (float(a[-1]) for a in found)
        text = f"the same if gates were independent, layer {DEPTH} ({name})"
        made.append(Claim(text, 0.5, mean, allowed, known_failure=reason))
    return made


def figure(results):
    """Correlations through depth beside both laws, and the gates that decide between them."""
    fig, axes = figures.axes(1, 2, size=(4.4, 3.4))
    decay, gates = axes[0]
    [(_, arrays)] = results[[*results][-1]]
    layers, deep = np.arange(1, DEPTH + 1), 64
    published_style = {"linewidth": 1.0, "linestyle": (0, (2, 2)), "zorder": 3}
    for index, name in enumerate(SKIPS):
        true, published, agree = theory(index, deep)
        color = figures.COLORS[index]
        samples = arrays["correlation"][index]
        figures.band(decay, layers, samples, spread="stderr", series=index, label=name)
        figures.line(decay, np.arange(1, deep + 1), true, series=index)
        decay.plot(np.arange(1, deep + 1), published, color=color, **published_style)
        figures.band(gates, layers, arrays["agree"][index], spread="stderr", series=index)
        figures.line(gates, layers, agree[:DEPTH], series=index)
    cube = np.array([20, deep])
    decay.plot(cube, 0.25 * theory(0, deep)[0][-1] * (deep / cube) ** 3, color="#222222", lw=0.9)
    decay.text(25, 3e-4, "$L^{-3}$", fontsize=9, ha="right")
    decay.text(6.2, 4.2e-3, "$2^{-L}$", color=figures.COLORS[0], fontsize=9, ha="right")
    decay.text(33, 4e-5, "$(3/4)^L$", color=figures.COLORS[1], fontsize=9)
    decay.set(xscale="log", yscale="log", ylim=(1e-5, 1.3), xlabel="layers L")
    decay.set_ylabel("correlation of the gradients")
    decay.set_title("as it is, and as published (dotted)")
    gates.axhline(0.5, color="#222222", **published_style)
    gates.text(DEPTH, 0.515, "independent gates", fontsize=9, ha="right")
    gates.set(xlabel="layer", ylabel="active at both inputs, of those at one", ylim=(0.45, 1))
    gates.set_title("the assumption")
    figures.legend(fig)
    return fig
