r"""Double descent of least norm and of random features, and the penalty that removes it.

Paper    Hastie, Montanari, Rosset and Tibshirani (2022), Surprises in high-dimensional ridgeless
         least squares interpolation; Mei and Montanari (2022), The generalization error of random
         features regression. The excess risk of the solution of least norm peaks where there are
         as many parameters as examples, p = n, and falls again beyond. That of ridge has no peak
         at the best penalty, lambda* = p sigma^2 / (n r^2). All have closed forms for large n, p.
Run      dltheory run double_descent                 (about 15 seconds on two cores)
         dltheory run double_descent --profile full  (not timed)
Expect   On Gaussian designs, least norm within four standard errors of its exact mean at each size,
         and ridge, extrapolated to infinite size, of its limit; at lambda* it is below least norm
         at every p / n. ReLU features, extrapolated, agree with the limit of Mei and Montanari.
         Both peaks lie at p / n between 0.95 and 1.05, where least norm has no mean to judge.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, infinite_width, worst
from dltheory.experiment.sweep import Sweep
from dltheory.theory import random_features, regularization

GAMMAS = (0.2, 0.4, 0.6, 0.8, 0.9, 0.975, 1.0, 1.025, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)
# Zero is least norm; for linear regression the best penalty comes last, after these.
PENALTIES = (0.0, 0.05, 0.5)
# For random features: examples per input dimension, and examples of the test.
RATIO = 2
TESTS = 200
# A standard error of least norm needs fourth moments of an inverse Wishart matrix.
APART = 8


@dataclass(frozen=True)
class Config:
    """A linear target with noise.

    Attributes:
        examples: Of the training set.
        gamma: Parameters per example.
        r2: Squared length of the target's coefficients.
        sigma2: Variance of the noise.
    """

    examples: int = 80
    gamma: float = 1.0
    r2: float = 5.0
    sigma2: float = 1.0


def parameters(config):
    """How many there are; and which they are, of as many as there can be, shape (1, p)."""
    p = jnp.round(config.gamma * config.examples)
    return p, jnp.arange(max(GAMMAS) * config.examples)[None] < p


def spectrum(gram, p):
    """Eigenvalues, those that are zero for lack of parameters as infinite; and eigenvectors."""
    s, vectors = jnp.linalg.eigh(gram)
    return jnp.where(jnp.arange(float(len(s))) < len(s) - p, jnp.inf, s), vectors


def linear(key, config):
    """Excess risk given the design, averaged over the noise, by penalty."""
    n = config.examples
    p, kept = parameters(config)
    design = jnp.where(kept, jax.random.normal(key, (n, kept.size)), 0)
    s, vectors = spectrum(design @ design.T / n, p)
    # The design has no preferred direction, so the coefficients may all be the same.
    signal = math.sqrt(config.r2) / jnp.sqrt(p) * design.sum(1)
    square = (signal @ vectors) ** 2 / (n * s)
    best = config.gamma * config.sigma2 / config.r2
    lam = jnp.stack([*map(jnp.asarray, PENALTIES), best])[:, None]
    lost = jnp.where(s == jnp.inf, 1, lam / (lam + s[None]))
    bias = config.r2 - jnp.sum((1 - lost**2) * square[None], axis=1)
    variance = config.sigma2 / n * jnp.sum((1 - lost) ** 2 / s[None], axis=1)
    return {"risk": bias + variance}


def sphere(normal):
    """Rows of length one."""
    return normal / jnp.linalg.norm(normal, axis=1, keepdims=True)


def features(key, config):
    """Excess risk of ReLU features on fresh inputs, averaged over noise and target, by penalty."""
    n, d = config.examples, config.examples // RATIO
    p, kept = parameters(config)
    normal = jax.random.normal(key, (n + TESTS + kept.size, d))
    inputs, weights = sphere(normal[: n + TESTS]), sphere(normal[n + TESTS :])
    x = math.sqrt(d) * inputs
    phi = jnp.where(kept, jax.nn.relu(x @ weights.T), 0)
    s, vectors = spectrum(phi[:n] @ phi[:n].T / n, p)
    kernel = phi[n:] @ (phi[:n].T @ vectors) / n
    lam = jnp.array(PENALTIES)[:, None] * p / d
    inverse = 1 / (s[None] + lam)
    # Every direction of the input in turn is the target, (penalties, tests, directions).
    fitted = (kernel[None] * inverse[:, None]) @ (vectors.T @ x[:n])[None]
    bias = config.r2 * jnp.mean((fitted - x[None, n:]) ** 2, axis=(1, 2))
    variance = config.sigma2 * inverse**2 @ jnp.mean(kernel**2, axis=0)
    return {"risk": bias + variance}


def sweeps(profile, config):
    """Both models at two sizes."""
    sizes = {"quick": (40, 80), "full": (100, 200)}[profile]
    seeds = {
        linear: {"quick": (200, 100), "full": (2000, 1000)}[profile],
        features: {"quick": (80, 40), "full": (800, 400)}[profile],
    }
    return [
        Sweep(
            f"{trial.__name__}-{n}",
            trial,
            replace(config, examples=n),
            grid={"gamma": GAMMAS},
            seeds=number,
            x64=True,
        )
        for trial, numbers in seeds.items()
        for n, number in zip(sizes, numbers, strict=True)
    ]


def _measured(results, name):
    """By examples, risks of shape (seeds, gammas, penalties); and a configuration."""
    found = [results[sweep][0] for sweep in results if sweep.startswith(name)]
    return {c.examples: a["risk"].swapaxes(0, 1) for c, a in found}, found[0][0]


def _limits(config, gamma):
    """The limits of both models, shape (gammas, penalties)."""
    gamma = np.asarray(gamma)[:, None]
    noise = {"r2": config.r2, "sigma2": config.sigma2}
    fixed = np.broadcast_to(PENALTIES, (len(gamma), len(PENALTIES)))
    best = regularization.optimal_penalty(gamma, **noise)
    lam = np.concatenate([fixed, np.asarray(best)], axis=1)
    ridge = regularization.ridge_risk(gamma, lam, **noise)
    psi1, lam = np.broadcast_arrays(RATIO * gamma, np.array(PENALTIES)[None])
    return np.asarray(ridge), np.asarray(
        random_features.risk("relu", psi1, float(RATIO), lam, **noise)
    )


def _peak(samples):
    """Where the median of least norm is largest: its mean need not exist there."""
    return GAMMAS[int(np.argmax(np.median(samples[..., 0], axis=0)))]


def claims(results):
    """Linear regression, then random features."""
    made = []
    measured, config = _measured(results, "linear")
    ridge, random = _limits(config, GAMMAS)
    noise = {"r2": config.r2, "sigma2": config.sigma2}
    for n, samples in measured.items():
        p = np.round(np.array(GAMMAS) * n).astype(int)
        judged = abs(n - p) >= APART
        exact = [float(regularization.exact_min_norm_risk(n, int(k), **noise)) for k in p[judged]]
        least = samples[:, judged, 0]
        text = f"mean risk of least norm, |p - n| of {APART} and more ({n} examples)"
        made.append(worst(text, exact, least.mean(0), _error(least)))
    names = [*(f"ridge, lambda = {lam:g}" for lam in PENALTIES[1:]), "ridge, the best lambda"]
    for column, name in enumerate(names, 1):
        found = infinite_width({n: a[..., column] for n, a in measured.items()})
        made.append(worst(f"risk of {name}, every p/n, large n", ridge[:, column], *found))
    for n, samples in measured.items():
        text = f"p/n of the largest median risk of least norm ({n} examples)"
        made.append(Claim(text, 1.0, _peak(samples), 0.05))
    samples = measured[max(measured)]
    gain = np.log(samples[..., 0] / samples[..., -1])
    text = "ln of the risk of least norm over that of the best ridge, least of all p/n"
    lowest = float((gain.mean(0) - _error(gain)).min())
    made.append(Claim(f"{text}, 4 standard errors below", 0.0, lowest, 0.0, ">="))

    measured, _ = _measured(results, "features")
    for column, lam in enumerate(PENALTIES):
        # Near the peak least norm has no mean, and corrections of all orders in 1 / |p - n|.
        judged = abs(np.array(GAMMAS) - 1) >= (0 if lam else 0.4)
        found = infinite_width({n: a[:, judged, column] for n, a in measured.items()})
        name = f"ridge, lambda = {lam:g}, every p/n" if lam else "least norm, p/n <= 0.6 or >= 1.5"
        text = f"risk of ReLU features: {name}, large n"
        made.append(worst(text, random[judged, column], *found))
    for n, samples in measured.items():
        text = f"p/n of the largest median risk of ReLU features ({n} examples)"
        made.append(Claim(text, 1.0, _peak(samples), 0.05))
    least = measured[max(measured)][..., 0]
    under = np.array(GAMMAS) < 1
    text = f"risk of ReLU features at p/n = {GAMMAS[-1]:g}, beside the least of all p < n"
    before, after = (np.median(a, axis=0) for a in (least[:, under], least[:, -1]))
    made.append(Claim(text, float(before.min()), float(after), 0.0, "<="))
    return made


def _error(samples):
    """Four standard errors of the mean over seeds."""
    return 4 * samples.std(0, ddof=1) / math.sqrt(len(samples))


def figure(results):
    """Risks over p/n of both models, beside their limits."""
    fig, axes = figures.axes(1, 2, size=(4.5, 3.6), sharey=True)
    # Close to the peak, and not on it.
    near = np.geomspace(1e-3, 0.2, 50)
    dense = np.unique([*np.geomspace(GAMMAS[0], GAMMAS[-1], 150), *(1 - near), *(1 + near)])
    ridges = [rf"ridge, $\lambda = {lam:g}$" for lam in PENALTIES[1:]]
    labels = ["least norm", *ridges, r"ridge, best $\lambda$"]
    names = {"linear": "linear regression", "features": "ReLU features"}
    for ax, (name, title), limit in zip(axes[0], names.items(), (0, 1), strict=True):
        measured, config = _measured(results, name)
        n, limits = max(measured), _limits(config, dense)[limit]
        for series in range(limits.shape[1]):
            figures.line(ax, dense, limits[:, series], series=series)
            samples = measured[n][..., series]
            figures.band(ax, GAMMAS, samples, series=series, label=labels[series])
        ax.set(xscale="log", yscale="log", ylim=(0.2, 500))
        ax.set(xticks=(ticks := (0.2, 0.5, 1, 2, 5)), xticklabels=map(str, ticks))
        ax.minorticks_off()
        ax.set(xlabel="parameters per example, $p / n$")
        ax.set_title(f"{title}, {n} examples")
    axes[0, 0].set_ylabel("excess risk")
    figures.legend(fig)
    return fig
