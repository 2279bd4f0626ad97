r"""Dropout is a penalty: a ridge for each feature, and the nuclear norm of a product of factors.

Paper    Wager, Wang and Liang (2013), Dropout training as adaptive regularization; Srivastava et
         al. (2014), section 9.1. In the mean over masks, dropout of inputs adds (1 - p) / p
         sum_j |X_j|^2 w_j^2 to a sum of squares; to the logistic loss about half of that with the
         curvature as weights, good for small coefficients. Cavazza et al. (2018), Mianjy, Arora
         and Vidal (2018): dropout of the d hidden units of a linear network is
         (1 - p) / (p d) |Y|_*^2 of its product, which cuts small singular values off.
Run      dltheory run dropout_is_ridge                 (six seconds on two cores)
         dltheory run dropout_is_ridge --profile full  (not timed)
Expect   Losses over all masks equal to the closed form to 1e-12, and their minimum to 1e-10.
         Descent with random masks has the coefficients of that ridge in its mean, within four
         standard errors. The logistic penalty leaves its quadratic form as |w|^2, and is never
         further than log 2 an example from that of the hinge, which large coefficients see.
         Factors learn the soft-thresholded singular values, with equal columns.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.theory import dropout

KEEPS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 1.0)
SCALES = tuple(10 ** np.linspace(-2, 2, 17))
# Of the target of the factors.
SINGULAR = (4.0, 2.5, 1.5, 0.7, 0.3)


@dataclass(frozen=True)
class Config:
    """One design, on which masks are drawn or enumerated.

    Attributes:
        examples: Rows of the design.
        features: Its columns, of lengths that differ; all masks of them are enumerated.
        noise: Standard deviation of the noise of the targets.
        keep: Probability that an input, or a hidden unit, is kept.
        scale: What the coefficients of logistic regression are multiplied by.
        rate: Of descent with masks, per `keep`: they make gradients larger by its inverse.
        steps: Of it, the second half of which is averaged.
        width: Hidden units of the factors.
        factor_steps: Steps of descent on the factors, without masks.
    """

    examples: int = 24
    features: int = 8
    noise: float = 0.5
    keep: float = 0.5
    scale: float = 1.0
    rate: float = 0.2
    steps: int = 1200
    width: int = 8
    factor_steps: int = 20000


def design(config):
    """Inputs, coefficients and targets: the same for all seeds, which differ in their masks."""
    rng = np.random.default_rng(0)
    w = np.linspace(1.5, -1.0, config.features)
    x = rng.normal(size=(config.examples, config.features))
    x *= np.geomspace(0.6, 1.2, config.features)
    return x, w, x @ w + config.noise * rng.normal(size=config.examples)


def enumeration(key, config):
    """The loss over all masks beside the closed form, and its minimum beside that of ridge."""
    x, _, y = design(config)
    w = jax.random.normal(key, (config.features,))
    moments = lambda mask: (
        jnp.sum((y - (x * mask[None]) @ w) ** 2),
        (x * mask[None]).T @ (x * mask[None]),
    )
    flat = lambda mask: jnp.concatenate([jnp.ravel(a) for a in moments(mask)])
    loss, gram = jnp.split(dropout.mask_mean(flat, config.features, config.keep), [1])
    gram = gram.reshape(config.features, -1)
    closed = dropout.marginal_loss(x, y, w, config.keep)
    least = jnp.linalg.solve(gram, x.T @ y)
    ridge = dropout.minimizer(x, y, config.keep)
    return {
        "loss": loss[0] / closed - 1,
        "minimum": jnp.linalg.norm(least - ridge) / jnp.linalg.norm(ridge),
    }


def descent(key, config):
    """Gradient descent, each step with masks of its own for all examples."""
    x, _, y = design(config)
    half, rate = config.steps // 2, config.rate * config.keep

    def step(carry, index):
        w, total = carry
        uniform = jax.random.uniform(jax.random.fold_in(key, index), x.shape, x.dtype)
        dropped = jnp.where(uniform < config.keep, x, 0) / config.keep
        w = w - rate / config.examples * dropped.T @ (dropped @ w - y)
        return (w, total + jnp.where(index < half, 0, w)), None

    carry = jnp.zeros(config.features), jnp.zeros(config.features)
    (_, total), _ = jax.lax.scan(step, carry, jnp.arange(config.steps))
    return {"coefficients": total / (config.steps - half)}


def logistic(key, config):
    """What dropout adds to the logistic loss, exactly, to second order, and for large weights."""
    x, _, _ = design(config)
    w = jax.random.normal(key, (config.features,)) * config.scale
    return {
        "exact": dropout.penalty(jax.nn.softplus, x, w, config.keep),
        "quadratic": dropout.quadratic_penalty(jax.nn.softplus, x, w, config.keep),
        "hinge": dropout.penalty(jax.nn.relu, x, w, config.keep),
    }


def target():
    """A matrix with the singular values that are wanted."""
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.normal(size=(n, len(SINGULAR))))[0] for n in (7, 6))
    return left * np.array(SINGULAR) @ right.T


def factors(key, config):
    """Descent on two factors and what dropout of their hidden units adds."""
    wanted = jnp.asarray(target())
    m, n = wanted.shape
    normal = jax.random.normal(key, (m + n, config.width)) / 2
    loss = lambda uv: (
        jnp.sum((wanted - uv[:m] @ uv[m:].T) ** 2)
        + dropout.factor_penalty(uv[:m], uv[m:], config.keep)
    )
    step = lambda _, uv: uv - 0.02 * jax.grad(loss)(uv)
    uv = jax.lax.fori_loop(0, config.factor_steps, step, normal)
    u, v = uv[:m], uv[m:]
    sizes = jnp.linalg.norm(u, axis=0) * jnp.linalg.norm(v, axis=0)
    return {
        "singular": jnp.linalg.svd(u @ v.T, compute_uv=False)[: len(SINGULAR)],
        "unequal": jnp.max(jnp.abs(sizes / jnp.mean(sizes) - 1)),
    }


def sweeps(profile, config):
    """All masks, random masks, logistic regression, and factors."""
    if profile == "full":
        config = replace(config, features=12, steps=4000, factor_steps=40000)
    keeps = {"keep": KEEPS}
    many = {"quick": 100, "full": 400}[profile]
    return [
        Sweep("enumeration", enumeration, config, grid=keeps, seeds=8, x64=True),
        Sweep("descent", descent, config, grid=keeps, seeds=many, x64=True),
        Sweep("logistic", logistic, config, grid={"scale": SCALES}, seeds=16, x64=True),
        Sweep("factors", factors, config, grid=keeps, seeds=4, x64=True),
    ]


def _ridge(config, keeps):
    """Coefficients by probability."""
    x, _, y = design(config)
    return np.array([dropout.minimizer(x, y, float(keep)) for keep in keeps], float)


def _singular(config, keeps):
    """Singular values by probability."""
    learnt = [dropout.nuclear_shrinkage(target(), config.width, float(k)) for k in keeps]
    return np.array([np.linalg.svd(np.asarray(y), compute_uv=False) for y in learnt])[
        :, : len(SINGULAR)
    ]


def claims(results):
    """Linear regression, logistic regression, factors."""
    _, arrays = results["enumeration"][0]
    text = "squared loss over all masks, relative to the closed form, less one: largest"
    made = [Claim(text, 0.0, float(np.abs(arrays["loss"]).max()), 1e-12)]
    text = "minimum over all masks, relative distance from that of ridge: largest"
    made.append(Claim(text, 0.0, float(arrays["minimum"].max()), 1e-10))

    config, arrays = results["descent"][0]
    # Without masks nothing is random.
    found, ridge = arrays["coefficients"][:-1], _ridge(config, KEEPS)
    error = 4 * found.std(1, ddof=1) / math.sqrt(found.shape[1])
    text = "coefficient of descent with random masks, worst of all p and features"
    made.append(worst(text, ridge[:-1], found.mean(1), error))
    apart = np.abs(found.mean(1) - ridge[-1]).max(1) / error.max(1)
    text = "its largest distance from least squares without masks, in 4 standard errors, least of p"
    made.append(Claim(text, 1.0, float(apart.min()), 0.0, ">="))

    config, arrays = results["logistic"][0]
    off = np.abs(arrays["exact"] / arrays["quadratic"] - 1).mean(1)
    first, second = np.diff(np.log(off[:5:2])) / np.diff(np.log(SCALES[:5:2]))
    text = "exponent of |w| with which the logistic penalty leaves its quadratic form, |w| -> 0"
    # What the next powers do at larger coefficients is more than what they do here.
    made.append(Claim(text, 2.0, float(first), float(abs(second - first))))
    apart = np.abs(arrays["exact"] - arrays["hinge"]).max() / config.examples
    text = "distance of the logistic penalty from that of the hinge, per example, largest"
    made.append(Claim(text, math.log(2), float(apart), 0.0, "<="))

    config, arrays = results["factors"][0]
    theory = _singular(config, KEEPS)[:, None]
    text = "singular value of the product learnt, worst of all p and seeds"
    made.append(worst(text, theory, arrays["singular"], 1e-6 * max(SINGULAR)))
    text = "sizes |u_k| |v_k| of hidden units relative to their mean, less one: largest of p < 1"
    made.append(Claim(text, 0.0, float(arrays["unequal"][:-1].max()), 1e-4))
    return made


def figure(results):
    """Coefficients, logistic penalties and singular values."""
    fig, axes = figures.axes(1, 3, size=(3.7, 3.2))
    dense = np.linspace(KEEPS[0], 1, 60)
    config, arrays = results["descent"][0]
    ridge = _ridge(config, dense)
    shown = np.linspace(0, config.features - 1, 5).round().astype(int)
    for series, feature in enumerate(shown):
        figures.line(axes[0, 0], dense, ridge[:, feature], series=series)
        samples = arrays["coefficients"][..., feature].T
        label = f"feature {feature + 1}"
        figures.band(axes[0, 0], KEEPS, samples, spread="stderr", series=series, label=label)
    axes[0, 0].set(xlabel="probability $p$ of keeping", ylabel="coefficient")
    axes[0, 0].set_title("descent with masks beside ridge")

    config, arrays = results["logistic"][0]
    ax, n = axes[0, 1], config.examples
    for series, name in ((6, "quadratic"), (3, "hinge")):
        theory = np.median(arrays[name], axis=1) / n
        figures.line(ax, SCALES, theory, series=series)
    figures.band(ax, SCALES, arrays["exact"].T / n, series=0)
    ax.set(xscale="log", yscale="log", ylim=(2e-5, 60))
    ax.text(25, 0.012, "quadratic\nform", fontsize=8, color=figures.COLORS[6], ha="right")
    ax.text(0.011, 0.12, "hinge, for large $|w|$", fontsize=8, color=figures.COLORS[3])
    ax.set(xlabel="length scale of coefficients", ylabel="penalty per example")
    ax.set_title(f"logistic regression, $p = {config.keep:g}$")

    config, arrays = results["factors"][0]
    theory = _singular(config, dense)
    for series in range(len(SINGULAR)):
        figures.line(axes[0, 2], dense, theory[:, series], series=series)
        figures.band(axes[0, 2], KEEPS, arrays["singular"][..., series].T, series=series)
    axes[0, 2].set(xlabel="probability $p$ of keeping", ylabel="singular value of the product")
    axes[0, 2].set_title(f"factors with {config.width} hidden units")
    figures.legend(fig)
    return fig
