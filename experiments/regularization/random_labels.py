r"""Random labels are fitted to the last one: it takes longer, and no bound by capacity can help.

Paper    Zhang, Bengio, Hardt, Recht and Vinyals (2017), Understanding deep learning requires
         rethinking generalization: networks fit random labels without error, later than true ones,
         and test at chance; and 2 n + d weights in two layers suffice for n points in d dimensions
         (theorem 1). Arora, Du, Hu, Li and Wang (2019), Fine-grained analysis of optimization and
         generalization for overparameterized two-layer neural networks: the residual falls by the
         eigenvalues of the tangent kernel H, the slower the more labels are random, and
         (2 y' H^-1 y / n)^(1/2) bounds the error of true labels and says nothing of random ones.
Run      dltheory run random_labels                 (twenty seconds on two cores)
         dltheory run random_labels --profile full  (not timed)
Expect   No training error at any share. Random labels take six times as long as true ones, five by
         the kernel of infinite width, and test at 1/2. Both bounds are far above one; theorem 1's
         network of 100 units, written down, fits to rounding.
"""

import functools
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, infinite_width, worst
from dltheory.experiment.sweep import Sweep
from dltheory.networks import data
from dltheory.theory import capacity, kernel_regression, kernels

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
# Of the loss before training: where it counts as fitted.
FITTED = 0.25


@dataclass(frozen=True)
class Config:
    """A ReLU network of one hidden layer, and digits, 0-4 or 5-9.

    Attributes:
        examples: To train on.
        tests: To test on.
        share: Of the labels that are replaced by random ones.
        width: Hidden units, in pairs of opposite output: the network is zero before training.
        rate: Of gradient descent.
        steps: How many.
        every: Steps between two records.
    """

    examples: int = 100
    tests: int = 500
    share: float = 0.0
    width: int = 192
    rate: float = 1.0
    steps: int = 1200
    every: int = 6


@functools.cache
def _inputs():
    """All digits, with one more input of 1, as rows of length one."""
    with jax.ensure_compile_time_eval():
        whole = data.digits(scale="example", dtype=jnp.float32)
        x = jnp.pad(whole.x, ((0, 0), (0, 1)), constant_values=1)
        x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
        return data.Data(x, (whole.y >= 5).astype(jnp.int32))


def clock(config):
    """The time of gradient flow of half the sum of squares at each record."""
    return config.rate / config.examples * np.arange(0, config.steps + 1, config.every)


def trial(key, config):
    """Train one network on partly random labels; and its tangent kernel at infinite width."""
    key_order, key_labels, key_params = jax.random.split(key, 3)
    n, whole = config.examples, _inputs()
    order = jax.random.permutation(key_order, len(whole.y))[: n + config.tests]
    chosen = data.Data(whole.x[order], whole.y[order])
    noisy = data.random_labels(key_labels, data.Data(chosen.x[:n], chosen.y[:n]), 2, config.share)
    sign = lambda y: 2 * y.astype(chosen.x.dtype) - 1
    x, y, test, new = noisy.x, sign(noisy.y), chosen.x[n:], sign(chosen.y[n:])
    d, half = x.shape[1], config.width // 2
    normal = jax.random.normal(key_params, (d + 1, half), x.dtype)
    first, last = normal[:d], normal[d]
    params = jnp.concatenate([first, first], 1), jnp.concatenate([last, -last])

    def f(params, x):
        h = jax.nn.relu(x @ params[0] * math.sqrt(2))
        return h @ params[1] / math.sqrt(config.width)

    loss = lambda params: jnp.sum((f(params, x) - y) ** 2) / (2 * n)

    def step(params, _):
        gradient = jax.grad(loss)(params)
        return jax.tree.map(lambda w, g: w - config.rate * g, params, gradient), None

    def look(params):
        fitted, tested = f(params, x), f(params, test)
        return {
            "loss": jnp.mean((fitted - y) ** 2),
            "error": jnp.mean(fitted * y <= 0, dtype=x.dtype),
            "test": jnp.mean(tested * new <= 0, dtype=x.dtype),
        }

    def block(params, _):
        return jax.lax.scan(step, params, length=config.every)[0], look(params)

    params, path = jax.lax.scan(block, params, length=config.steps // config.every)
    path = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), path, look(params))
    # First inputs by second layer's weights: the variance of what the first layer sees is 2.
    k = kernels.first_layer(x, weight_var=2.0 * d)
    h = kernels.nngp_ntk("relu", *k, depth=1, weight_var=1.0).ntk
    flow = kernel_regression.predict(h, h, y, time=jnp.asarray(clock(config), x.dtype))
    residual = jnp.linalg.solve(h + 1e-6 * jnp.eye(n), y)
    return {
        **path,
        "flow": jnp.mean((flow - y[None]) ** 2, axis=1),
        "complexity": jnp.sqrt(2 * y @ residual / n),
        "built": _built(x, y),
    }


def _built(x, y):
    """Largest error of theorem 1's network of n units, which shares one direction among them."""
    x, y = x.astype(float), y.astype(float)
    a = jnp.sin(1 + jnp.arange(float(x.shape[1])) ** 2)
    order = jnp.argsort(x @ a)
    z, y = (x @ a)[order], y[order]
    biases = jnp.concatenate([z[:1] - 1, (z[1:] + z[:-1]) / 2])
    units = jax.nn.relu(z[:, None] - biases[None])
    return jnp.abs(units @ jax.scipy.linalg.solve_triangular(units, y, lower=True) - y).max()


def sweeps(profile, config):
    """Two widths."""
    if profile == "full":
        config = replace(config, examples=500, steps=20_000, every=100, rate=0.5, width=2048)
    seeds = {"quick": 8, "full": 40}[profile]
    return [
        Sweep(
            f"width-{width}",
            trial,
            replace(config, width=width),
            grid={"share": SHARES},
            seeds=seeds,
            x64=True,
        )
        for width in (config.width // 3, config.width)
    ]


def _fitted(config, losses):
    """Logarithm of the time at which the loss is `FITTED`, between records, shape (...)."""
    logs = np.log(losses) - math.log(FITTED)
    after = np.maximum(np.argmax(logs <= 0, axis=-1), 1)[..., None]
    high, low = (np.take_along_axis(logs, k, -1)[..., 0] for k in (after - 1, after))
    time = (after[..., 0] - low / (low - high)) * config.every * config.rate
    return np.log(np.where(logs[..., -1] <= 0, time, np.nan))


def _widest(results):
    return max((pair for found in results.values() for pair in found), key=lambda p: p[0].width)


def claims(results):
    """That all is fitted, and when; what the test says, and the bounds."""
    config, arrays = _widest(results)
    n, seeds = config.examples, arrays["error"].shape[1]
    made = [
        Claim(
            "training error in the end, any share of random labels and any seed",
            0.0,
            float(arrays["error"][..., -1].max()),
            0.0,
        )
    ]
    # (seeds, shares): by how much each network is later than its tangent kernel.
    later = {
        c.width: (_fitted(c, a["loss"]) - _fitted(c, a["flow"])).T
        for found in results.values()
        for c, a in found
    }
    mean, allowed = infinite_width(later)
    text = (
        f"ln time to {FITTED:g} of the loss, beside the tangent kernel's, every share, large width"
    )
    made.append(worst(text, 0.0, mean, allowed))
    times = [_fitted(config, arrays[name]) for name in ("flow", "loss")]
    slower = [(t[-1] - t[0]) for t in times]
    gap = slower[1] - slower[0]
    text = "ln of how much later random labels are fitted than true ones"
    # The tangent kernel of a network fluctuates by that much around its limit.
    tolerance = 4 * gap.std(ddof=1) / math.sqrt(seeds) + 1 / math.sqrt(config.width)
    made.append(Claim(text, float(slower[0].mean()), float(slower[1].mean()), tolerance))

    test = arrays["test"][-1, :, -1]
    allowed = 4 * test.std(ddof=1) / math.sqrt(seeds)
    made.append(Claim("test error of random labels", 0.5, float(test.mean()), allowed))
    lowest = float(arrays["complexity"][-1].min())
    text = "(2 y' H^-1 y / n)^(1/2) of random labels, least of all seeds"
    made.append(Claim(text, 1.0, lowest, 0.0, ">="))
    growth = float(np.diff(arrays["complexity"].mean(1)).min())
    text = "its mean at each share less that at the one before, the least"
    made.append(Claim(text, 0.0, growth, 0.0, ">="))
    # What fits every labelling of n points has a dimension of n, if not more.
    bound = float(capacity.vc_bound(0.0, n, n, 0.05).value)
    made.append(Claim("bound by the dimension of what fits n random labels", 1.0, bound, 0.0, ">="))
    # Neighbours a hundred thousandth apart, and slopes of their inverse, amplify rounding.
    text = "theorem 1: error of n units with 2 n + d weights, largest of all"
    made.append(Claim(text, 0.0, float(arrays["built"].max()), 1e-6))
    return made


def figure(results):
    """The loss through training, the time it takes, and the test."""
    fig, axes = figures.axes(1, 3, size=(3.3, 3.0))
    path, time, error = axes[0]
    config, arrays = _widest(results)
    steps = np.arange(0, config.steps + 1, config.every) * config.rate
    for series, share in enumerate(SHARES):
        if series % 2 == 0:
            thin = slice(1, None, 10)
            figures.line(path, steps[1:], arrays["flow"][series].mean(0)[1:], series=series)
            label = f"{share:.0%} random labels"
            losses = arrays["loss"][series][:, thin]
            figures.band(path, steps[thin], losses, series=series, label=label)
    path.axhline(FITTED, color="#222222", linewidth=0.8)
    path.annotate("fitted", (steps[-1], FITTED * 1.08), ha="right", fontsize=8)
    path.set(xscale="log", yscale="log", xlabel="time (steps times rate)", ylabel="training loss")
    path.set_title(f"{config.examples} digits, width {config.width}")
    kernel = np.exp(_fitted(config, arrays["flow"]).mean(1))
    figures.line(time, SHARES, kernel, series=6, label="infinite width")
    found = [pair for pairs in results.values() for pair in pairs]
    for series, (c, a) in enumerate(found, 3):
        figures.band(
            time,
            SHARES,
            np.exp(_fitted(c, a["loss"])).T,
            spread="stderr",
            series=series,
            label=f"width {c.width}",
        )
    time.set(
        ylim=(0, None), xlabel="share of random labels", ylabel=f"time to {FITTED:g} of the loss"
    )
    time.set_title("random labels take longer")
    figures.band(error, SHARES, arrays["test"][..., -1].T, spread="stderr", series=0, label="test")
    train = arrays["error"][..., -1].T
    figures.band(error, SHARES, train, spread="stderr", series=1, label="training")
    error.axhline(0.5, color="#222222", linewidth=0.8)
    error.annotate("chance", (0, 0.51), fontsize=8)
    error.set(ylim=(-0.02, 0.6), xlabel="share of random labels", ylabel="error")
    error.set_title("all is fitted, chance is what is left")
    figures.legend(fig)
    return fig
