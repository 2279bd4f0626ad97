r"""Bias and variance over width: the variance rises, then falls as initial weights cease to matter.

Paper    Neal et al. (2018), A modern take on the bias-variance tradeoff in neural networks: beyond
         some width the variance falls with width as the bias does, the part from initial weights
         vanishes, and the part from the sample levels off. Yang et al. (2020), Rethinking
         bias-variance trade-off for generalization of neural networks: the bias falls throughout.
         Jacot, Gabriel and Hongler (2018): what is left are bias and variance of regression with
         the tangent kernel, gradient flow for the same time.
Run      dltheory run bias_variance_over_width                 (half a minute on two cores)
         dltheory run bias_variance_over_width --profile full  (not timed)
Expect   Parts that add up to rounding. The squared bias falls from 0.57 to 0.4; the variance rises
         up to width 8, and at 128 is half of that. Initial weights are a tenth of it there, with
         an exponent close to -1, and the rest is within 10 % of the tangent kernel's.
"""

import functools
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim
from dltheory.experiment.sweep import Sweep
from dltheory.measure import generalization
from dltheory.networks import data
from dltheory.theory import kernel_regression, kernels

PARTS = {"bias": "squared bias", "data": "sample", "labels": "label noise", "initial": "weights"}


@dataclass(frozen=True)
class Config:
    """Networks of one hidden layer on small pictures of digits, 0-4 against 5-9.

    Attributes:
        width: Hidden units, in pairs of opposite output: a network is zero before training.
        examples: To train on.
        tests: To test on.
        flips: The probability that a label is wrong.
        samples: Of training examples, disjoint.
        noises: Draws of the wrong labels for each.
        weights: Draws of initial weights for each of these.
        rate: Of gradient descent.
        steps: How many.
    """

    width: int = 64
    examples: int = 60
    tests: int = 200
    flips: float = 0.1
    samples: int = 4
    noises: int = 3
    weights: int = 4
    rate: float = 1.0
    steps: int = 400


@functools.cache
def _inputs():
    """All digits at 4 by 4 pixels, with one more input of 1, as rows of length one; and signs."""
    with jax.ensure_compile_time_eval():
        whole = data.digits(flat=False, scale="example", dtype=jnp.float32)
        x = whole.x.reshape(-1, 4, 2, 4, 2).mean((2, 4)).reshape(-1, 16)
        x = jnp.pad(x, ((0, 0), (0, 1)), constant_values=1)
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        return data.Data(x, jnp.where(whole.y >= 5, 1.0, -1.0).astype(x.dtype))


def parts(f, targets):
    """Bias, variance by source, noise and loss of predictions (samples, noises, weights, N)."""
    whole = generalization.bias_variance(f.reshape(-1, f.shape[-1]), targets)
    outer = generalization.variance_sources(f.reshape(f.shape[0], -1, f.shape[-1]))
    inner = jax.vmap(generalization.variance_sources)(f)
    return {
        **whole._asdict(),
        "data": outer.data,
        "labels": inner.data.mean(),
        "initial": inner.initialization.mean(),
    }


def trial(key, config):
    """Train every network of a crossed design, and regress with the kernel on the same samples."""
    n, count = config.examples, config.samples * config.examples
    key_order, key_flips, key_params = jax.random.split(key, 3)
    whole = _inputs()
    order = jax.random.permutation(key_order, len(whole.y))[: count + config.tests]
    x, y = whole.x[order], whole.y[order]
    train, test = x[:count].reshape(config.samples, n, -1), x[count:]
    flips = jax.random.uniform(key_flips, (config.noises, len(order)), x.dtype) < config.flips
    noisy = jnp.where(flips, -y[None], y[None])
    targets = noisy[:, :count].reshape(config.noises, config.samples, n).swapaxes(0, 1)
    d, half = x.shape[1], config.width // 2
    shape = (config.samples, config.noises, config.weights, d + 1, half)
    normal = jax.random.normal(key_params, shape, x.dtype)
    first, last = normal[..., :d, :], normal[..., d, :]
    params = jnp.concatenate([first, first], -1), jnp.concatenate([last, -last], -1)

    def f(params, x):
        h = jax.nn.relu(x @ params[0] * math.sqrt(2))
        return h @ params[1] / math.sqrt(config.width)

    def fit(params, x, y):
        loss = lambda params: jnp.sum((f(params, x) - y) ** 2) / (2 * n)

        def step(params, _):
            gradient = jax.grad(loss)(params)
            return jax.tree.map(lambda w, g: w - config.rate * g, params, gradient), None

        return f(jax.lax.scan(step, params, length=config.steps)[0], test)

    every = jax.vmap(jax.vmap(jax.vmap(fit, (0, None, None)), (0, None, 0)), (0, 0, 0))
    found = every(params, train, targets)

    def regress(x, y):
        between = [kernels.first_layer(a, x, weight_var=2.0 * d) for a in (x, test)]
        k = [kernels.nngp_ntk("relu", *c, depth=1, weight_var=1.0).ntk for c in between]
        time = config.rate * config.steps / n
        return kernel_regression.predict(k[0], k[1], y.T, time=time).T

    limit = jax.vmap(regress)(train, targets)[:, :, None]
    # In double precision, so that the parts add up.
    wide, new = found.astype(float), noisy[:, count:].astype(float)
    return {**parts(wide, new), **{f"{k}_limit": v for k, v in parts(limit, new).items()}}


def sweeps(profile, config):
    """Over width."""
    widths, seeds = (2, 4, 8, 32, 128), 6
    if profile == "full":
        config = replace(config, examples=100, samples=8, noises=4, weights=8)
        widths, seeds = (2, 4, 8, 16, 32, 64, 128, 256, 512), 20
    return [Sweep("nets", trial, config, cells={"width": widths}, seeds=seeds, x64=True)]


def _error(samples):
    """Four standard errors of the mean over seeds."""
    return 4 * samples.std(0, ddof=1) / math.sqrt(len(samples))


def _left(config, initial):
    """What the means over few draws of weights keep of the variance from them, by part."""
    d, k, w = config.samples, config.noises, config.weights
    one = initial / (w - 1)
    return {"bias": one / (d * k), "data": one / k * (1 - 1 / d), "labels": one * (1 - 1 / k)}


def claims(results):
    """That parts add up; what falls with width; and where it ends."""
    widths = np.array([config.width for config, _ in results["nets"]])
    arrays = {k: np.stack([a[k] for _, a in results["nets"]], 1) for k in results["nets"][0][1]}
    whole = arrays["bias"] + arrays["variance"] + arrays["noise"] - arrays["loss"]
    sources = arrays["data"] + arrays["labels"] + arrays["initial"] - arrays["variance"]
    excess = float(max(abs(whole).max(), abs(sources).max()))
    made = [
        Claim("loss less its parts, and variance less its sources, largest", 0.0, excess, 1e-10)
    ]

    def falls(text, before, after):
        change = after - before
        text = f"{text}, 4 standard errors above"
        made.append(Claim(text, 0.0, float(change.mean() + _error(change)), 0.0, "<="))

    bias, variance, initial = (arrays[k] for k in ("bias", "variance", "initial"))
    falls(f"bias at width {widths[-1]} less that at {widths[0]}", bias[:, 0], bias[:, -1])
    peak = int(np.argmax(variance.mean(0)))
    text = f"variance at width {widths[-1]} less that at {widths[peak]}, where it is largest"
    falls(text, variance[:, peak], variance[:, -1])
    # Of as many independent units as there are pairs; corrections are of one order more.
    slopes = np.log(initial[:, -1] / initial[:, -2]) / math.log(widths[-1] / widths[-2])
    text = f"exponent of the variance from initial weights, widths {widths[-2]} to {widths[-1]}"
    allowed = float(_error(slopes)) + 2 / widths[-2]
    made.append(Claim(text, -1.0, float(slopes.mean()), allowed))
    config = results["nets"][-1][0]
    for name, left in _left(config, initial[:, -1]).items():
        ratio = np.log((arrays[name][:, -1] - left) / arrays[f"{name}_limit"][:, -1])
        text = f"ln of the {PARTS[name]} part at width {widths[-1]} over that of the tangent kernel"
        # The kernel of one network fluctuates by that much around its limit.
        made.append(
            Claim(text, 0.0, float(ratio.mean()), float(_error(ratio)) + 1 / math.sqrt(widths[-1]))
        )
    return made


def figure(results):
    """Loss and its parts over width; and the sources of variance."""
    fig, axes = figures.axes(1, 2, size=(4.2, 3.3))
    whole, sources = axes[0]
    widths = np.array([config.width for config, _ in results["nets"]])
    arrays = {k: np.stack([a[k] for _, a in results["nets"]], 1) for k in results["nets"][0][1]}
    ends = [widths[0], widths[-1]]
    for ax, names in (
        (whole, ("loss", "bias", "variance")),
        (sources, ("data", "labels", "initial")),
    ):
        for series, name in enumerate(names, 0 if ax is whole else 3):
            label = f"variance: {PARTS[name]}" if ax is sources else PARTS.get(name, name)
            figures.band(ax, widths, arrays[name], spread="stderr", series=series, label=label)
            if name != "initial":
                limit = arrays[f"{name}_limit"].mean()
                figures.line(ax, ends, [limit, limit], series=series)
        ax.set(xscale="log", xlabel="hidden units", ylim=(0, None))
        ax.set_xticks(widths, [str(w) for w in widths])
        ax.minorticks_off()
    whole.axhline(arrays["noise"].mean(), color="#222222", linewidth=0.8)
    whole.annotate("noise", (widths[0], arrays["noise"].mean()), va="bottom", fontsize=8)
    span = np.geomspace(widths[-2], widths[-1], 30)
    last = arrays["initial"][:, -1].mean()
    figures.line(sources, span, last * widths[-1] / span, series=5, label="1 / width")
    whole.set_ylabel("squared loss")
    whole.set_title("the variance rises, then falls")
    sources.set_title("where the variance comes from")
    figures.legend(fig)
    return fig
