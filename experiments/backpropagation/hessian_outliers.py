r"""A classifier's Hessian has about as many large eigenvalues as there are classes.

Paper    Sagun, Evci, Güney, Dauphin and Bottou (2018), Empirical analysis of the Hessian of
         over-parametrized neural networks: a bulk near zero, and outliers whose number is about
         that of the classes. Gur-Ari, Roberts and Dyer (2018), Gradient descent happens in a tiny
         subspace: the gradient comes to lie in the space of the K largest.
Run      dltheory run hessian_outliers                 (ten seconds on two cores)
         dltheory run hessian_outliers --profile full  (not timed)
Expect   For 2, 4, 6 and 10 classes of digits and the squared error, the widest gap between
         neighbouring eigenvalues, as a ratio, after K - 1 or K of them. The gap is as wide as what
         all examples share outweighs the rest, since that moves each of the K outputs alike: pixels
         and units here are positive. On centred inputs, or with the cross-entropy, whose curvature
         fades where examples are fitted, it is narrower and often elsewhere.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim
from dltheory.experiment.sweep import Sweep
from dltheory.measure import curvature
from dltheory.networks import data

CLASSES = (2, 4, 6, 10)
TOP = 13


@dataclass(frozen=True)
class Config:
    """A softplus network on the first classes of digits.

    Attributes:
        classes: How many, K.
        examples: Of the training set, before those of other classes are left out.
        width: Units of both hidden layers.
        rate: Learning rate.
        steps: Of full-batch gradient descent.
    """

    classes: int = 10
    examples: int = 400
    width: int = 24
    rate: float = 0.05
    steps: int = 1000


def trial(key, config):
    """The largest eigenvalues before and after training, and the accuracy."""
    key, key_lanczos = jax.random.split(key)
    w = config.width
    sizes = ((64, w), (w, w), (w, 10))
    normal = jax.random.normal(key, (3, 64, max(w, 10)))
    start = [((2 / a) ** 0.5 * normal[i, :a, :b], jnp.zeros(b)) for i, (a, b) in enumerate(sizes)]
    digits = data.digits(dtype=normal.dtype)
    x, labels = digits.x[: config.examples], digits.y[: config.examples]
    # One program for every number of classes: other examples and outputs get no weight.
    weights = jnp.where(labels < config.classes, 1.0, 0.0)
    weights = weights / jnp.sum(weights)
    outputs = jnp.where(jnp.arange(10) < config.classes, 1.0, 0.0)
    wanted = jax.nn.one_hot(labels, 10, dtype=normal.dtype)

    def network(params, x):
        for kernel, bias in params[:-1]:
            x = jax.nn.softplus(x @ kernel + bias[None])
        return x @ params[-1][0] + params[-1][1][None]

    loss = lambda out: weights @ ((out - wanted) ** 2) @ outputs / 2
    slope = jax.grad(lambda params: loss(network(params, x)))

    def step(params, _):
        return jax.tree.map(lambda p, g: p - config.rate * g, params, slope(params)), None

    params, _ = jax.lax.scan(step, start, length=config.steps)
    curve = curvature.top_eigenvalues
    values, residuals = curve(key_lanczos, loss, network, params, x, TOP)
    shut = jnp.where(outputs > 0, 0.0, -jnp.inf)[None]
    right = jnp.argmax(network(params, x) + shut, axis=1) == labels
    return {
        "values": values,
        "residuals": residuals,
        "accuracy": jnp.sum(jnp.where(right, weights, 0.0)),
    }


def sweeps(profile, config):
    """Four numbers of classes; a larger network in the full profile."""
    if profile == "full":
        config = replace(config, examples=1797, width=100)
    seeds = {"quick": 2, "full": 10}[profile]
    grid = {"classes": CLASSES}
    return [Sweep("classes", trial, config, grid=grid, seeds=seeds, batching="map")]


def _spectra(arrays):
    """Eigenvalues in descending order, shape (numbers of classes, seeds, TOP)."""
    values = np.sort(arrays["values"], axis=-1)[..., ::-1]
    return np.where(values > 0, values, np.nan)


def claims(results):
    """Where the gap is; that the networks have learnt, and the eigenvalues converged."""
    made = []
    [(_, arrays)] = results["classes"]
    for classes, spectra in zip(arrays["classes"], _spectra(arrays), strict=True):
        ratios = -np.diff(np.log(spectra).mean(0))
        # The number itself or one less, which is half a class from their middle.
        text = f"eigenvalues above the widest gap ({classes:g} classes)"
        made.append(Claim(text, float(classes) - 0.5, 1.0 + np.nanargmax(ratios), 0.5))
    text = "least accuracy on the training set"
    made.append(Claim(text, 0.8, float(arrays["accuracy"].min()), 0.0, ">="))
    relative = arrays["residuals"].max(-1) / np.abs(arrays["values"]).max(-1)
    made.append(Claim("largest residual, of the sharpness", 1e-4, float(relative.max()), 0.0, "<="))
    return made


def figure(results):
    """The largest eigenvalues, and the place where the gap should be."""
    fig, axes = figures.axes(1, len(CLASSES), size=(2.3, 2.9), sharey=True)
    [(_, arrays)] = results["classes"]
    ranks = np.arange(1, TOP + 1)
    for series, (ax, classes, spectra) in enumerate(
        zip(axes[0], arrays["classes"], _spectra(arrays), strict=True)
    ):
        ax.axvspan(classes - 0.5, classes + 0.5, color="#DDDDDD", linewidth=0, zorder=0)
        figures.band(ax, ranks, spectra, series=series)
        ax.set(yscale="log", xlabel="rank", xticks=ranks[::3])
        ax.set_title(f"K = {classes:g} classes")
    axes[0, 0].set_ylabel("eigenvalue of the Hessian")
    return fig
