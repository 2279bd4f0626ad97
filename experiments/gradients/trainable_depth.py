r"""How deep a tanh network can be and still learn the digits: about six depth scales.

Paper    Schoenholz, Gilmer, Ganguli and Sohl-Dickstein (2017): a network trains if a signal gets
         through it. Accuracy over the plane of weight variance and depth falls from its best to
         chance near the curve 6 xi_c, in order and in chaos alike, and close to the edge of chaos
         networks of any depth can be trained.
Run      dltheory run trainable_depth                 (about half a minute on two cores)
         dltheory run trainable_depth --profile full  (not timed)
Expect   After 120 steps of plain gradient descent the depth at which accuracy on the training set
         is half way to chance is proportional to xi_c, at 4 to 5 xi_c, which is within a factor of
         two of the paper's 6; networks that are deeper than 6 xi_c learn little or nothing. Where
         6 xi_c is beyond the deepest network here, near the edge, width and steps set the limit.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.networks import data, training
from dltheory.numerics import scaling
from dltheory.theory import mean_field

PIXELS, CLASSES = 64, 10
DEPTHS = (3, 5, 8, 12, 18, 27, 40, 60)
WEIGHT_VARS = (0.7, 0.85, 1.0, 1.2, 1.35, 1.76, 2.3, 3.0, 3.5, 4.0)
# Half way between chance and all right.
HALF = (1 + 1 / CLASSES) / 2


@dataclass(frozen=True)
class Config:
    """A tanh network on digits of mean 0 and mean square 1.

    Attributes:
        weight_var: Variance of the weights times the fan-in.
        bias_var: Variance of the biases.
        depth: Hidden layers, at most the last of `DEPTHS`.
        width: Units of each.
        examples: Digits in the training set.
        batch: Examples a step.
        rate: Learning rate.
        steps: Steps of gradient descent.
    """

    weight_var: float = 1.0
    bias_var: float = 0.05
    depth: int = DEPTHS[0]
    width: int = 80
    examples: int = 500
    batch: int = 32
    rate: float = 0.01
    steps: int = 120


def scales(key, config):
    """Depth scale of the correlation."""
    del key  # Nothing here is random.
    at = {"weight_var": config.weight_var, "bias_var": config.bias_var}
    return {"xi_c": mean_field.depth_scales("tanh", **at).xi_c}


def draw(key, config):
    """Standard normal weights and biases of the deepest network."""
    n, deepest = config.width, DEPTHS[-1]
    # All in one draw, since a program is compiled in a second for each.
    parts = np.cumsum([PIXELS, deepest, (deepest - 1) * n])
    first, bias, hidden, last = jnp.split(
        jax.random.normal(key, (parts[-1] + CLASSES, n)), parts.tolist()
    )
    return {
        "first": {"weights": first, "bias": bias[0]},
        "hidden": {"weights": hidden.reshape(-1, n, n), "bias": bias[1:]},
        "last": {"weights": last.T},
    }


def network(depth):
    """A tanh network as f(params, x), whose hidden layers beyond `depth` are skipped."""
    affine = lambda h, p: h @ p["weights"] + p["bias"][None]

    def layer(h, numbered):
        number, p = numbered
        # The depth is one number for all weight variances: what is not taken costs nothing.
        further = lambda h: affine(jnp.tanh(h), p)
        return jax.lax.cond(number < depth, further, lambda h: h, h), None

    def f(params, x):
        numbers = jnp.arange(1, DEPTHS[-1])
        h, _ = jax.lax.scan(layer, affine(x, params["first"]), (numbers, params["hidden"]))
        return jnp.tanh(h) @ params["last"]["weights"]

    return f


def trial(key, config):
    """Train a network of one depth at each weight variance: accuracy on the training set."""
    key_draw, key_train = jax.random.split(key)
    images = data.digits(scale="example")
    images = data.Data(images.x[: config.examples], images.y[: config.examples])
    normal, f = draw(key_draw, config), network(config.depth)

    def loss(scores, y):
        return optax.losses.softmax_cross_entropy_with_integer_labels(scores, y).mean()

    def train(weight_var):
        def scaled(path, leaf):
            if path[-1].key == "bias":
                return jnp.sqrt(config.bias_var).astype(leaf.dtype) * leaf
            return jnp.sqrt(weight_var / leaf.shape[-2]) * leaf

        init = lambda _: jax.tree_util.tree_map_with_path(scaled, normal)
        right = lambda params: (f(params, images.x).argmax(-1) == images.y).mean()
        optimizer = optax.sgd(config.rate)
        process = training.descent(
            f, init, loss, optimizer, images, batch=config.batch, record=right
        )
        return training.run(process, key_train, config.steps)[1].record[-1]

    return {"accuracy": jax.vmap(train)(jnp.array(WEIGHT_VARS))}


def sweeps(profile, config):
    """Theory along the weight variance, and one program for all depths."""
    seeds = {"quick": 1, "full": 4}[profile]
    if profile == "full":
        config = replace(config, width=200, examples=1500, steps=1000)
    grid = {"weight_var": [*np.round(np.arange(0.6, 4.21, 0.05), 9).tolist(), *WEIGHT_VARS]}
    return [
        Sweep("scales", scales, config, grid=grid, x64=True),
        # One by one, so that layers which are skipped cost nothing.
        Sweep("train", trial, config, grid={"depth": DEPTHS}, seeds=seeds, batching="map"),
    ]


def _found(results):
    """By weight variance: xi_c, mean accuracy of shape (depths, ...), and the depth at half."""
    xi = results["scales"][0].arrays["xi_c"][-len(WEIGHT_VARS) :, 0]
    accuracy = results["train"][0].arrays["accuracy"].mean(1)
    logs, half = np.log(DEPTHS), []
    for column in accuracy.T:
        above = np.flatnonzero(column >= HALF)
        if len(above) == 0 or above[-1] == len(DEPTHS) - 1:
            half.append(math.nan)  # Beyond the depths that were tried.
            continue
        last = above[-1]
        share = (column[last] - HALF) / (column[last] - column[last + 1])
        half.append(math.exp(logs[last] + share * (logs[last + 1] - logs[last])))
    return xi, accuracy, np.array(half)


def claims(results):
    """The depth at half accuracy against xi_c, and what is deeper."""
    xi, accuracy, half = _found(results)
    within = 6 * xi <= DEPTHS[-1]
    law = scaling.power_law(xi[within], half[within])
    deeper = np.array(DEPTHS)[:, None] >= 6 * xi
    edge = WEIGHT_VARS.index(1.76)
    others = np.delete(accuracy[DEPTHS.index(40)], edge)
    return [
        worst(
            "log2 of the depth at half accuracy over 6 xi_c, every weight_var",
            0.0,
            np.log2(half / (6 * xi))[within],
            1.0,
        ),
        Claim(
            "exponent of that depth in xi_c",
            1.0,
            float(law.exponent),
            4 * float(law.exponent_stderr),
        ),
        Claim(
            "accuracy of a network deeper than 6 xi_c, highest",
            HALF,
            float(accuracy[deeper].max()),
            0.0,
            "<=",
        ),
        Claim(
            "accuracy at 40 layers at the edge of chaos, less the best elsewhere",
            0.0,
            float(accuracy[DEPTHS.index(40), edge] - others.max()),
            0.0,
            ">=",
        ),
    ]


def figure(results):
    """The map of accuracy with the curve 6 xi_c, and the depth at half accuracy against xi_c."""
    xi, accuracy, half = _found(results)
    curve = results["scales"][0].arrays
    order = np.argsort(curve["weight_var"])
    weight_var, scale = curve["weight_var"][order], curve["xi_c"][order, 0]
    fig, axes = figures.axes(1, 2, size=(4.7, 3.5))
    plane, line = axes[0]

    middle = lambda a: np.concatenate(
        [[1.5 * a[0] - a[1] / 2], (a[1:] + a[:-1]) / 2, [1.5 * a[-1] - a[-2] / 2]]
    )
    sides = middle(np.array(WEIGHT_VARS)), np.exp(middle(np.log(DEPTHS)))
    style = {"cmap": "magma", "vmin": 0, "vmax": 1, "rasterized": True}
    map_ = plane.pcolormesh(*sides, accuracy, **style)
    fig.colorbar(map_, ax=plane, label="accuracy on the training set")
    for multiple, dashes in ((6, "-"), (3, (0, (4, 2)))):
        plane.plot(
            weight_var,
            multiple * scale,
            color="white",
            linewidth=1.8 if multiple == 6 else 1.0,
            linestyle=dashes,
        )
        plane.annotate(
            rf"${multiple}\,\xi_c$",
            (weight_var[-8], multiple * scale[-8]),
            color="white",
            xytext=(0, 4),
            textcoords="offset points",
        )
    plane.set(yscale="log", ylim=sides[1][[0, -1]], xlim=sides[0][[0, -1]])
    plane.set_yticks(DEPTHS, labels=map(str, DEPTHS), minor=False)
    plane.set_yticks([], minor=True)
    plane.grid(visible=False)
    steps = results["train"][0].config.steps
    plane.set(xlabel=r"weight variance $\sigma_w^2$", ylabel="layers")
    plane.set_title(f"digits, tanh, {steps} steps")

    grid = np.array([1.5, 20.0])
    figures.line(line, grid, 6 * grid, series=6, label=r"$6\,\xi_c$")
    edge = WEIGHT_VARS.index(1.76)
    for series, (name, chosen) in enumerate(
        (("order", slice(0, edge)), ("chaos", slice(edge + 1, None)))
    ):
        color = figures.COLORS[series]
        marks = {"linestyle": "none", "marker": "o", "markerfacecolor": "white", "color": color}
        line.plot(xi[chosen], half[chosen], label=name, **marks)
    line.axhline(DEPTHS[-1], color="#999999", linewidth=0.8, linestyle=(0, (2, 2)))
    line.text(1.6, DEPTHS[-1] * 1.05, "deepest network", color="#666666", fontsize=8)
    line.set(
        xscale="log",
        yscale="log",
        xlabel=r"$\xi_c$",
        ylabel="layers at half accuracy",
        ylim=(4, 125),
    )
    line.set_xlim(1.5, 20)
    line.set_xticks([2, 4, 8, 16], labels=["2", "4", "8", "16"])
    line.set_yticks([5, 10, 20, 40, 80], labels=["5", "10", "20", "40", "80"])
    line.set_xticks([], minor=True)
    line.set_yticks([], minor=True)
    line.set_title("depth at which accuracy is half way to chance")
    figures.legend(fig)
    return fig
