r"""Which sparsity the least sum of absolute values recovers: all of it or none, along one curve.

Paper    Donoho and Tanner (2009), Observed universality of phase transitions; Donoho, Maleki and
         Montanari (2009), Message-passing algorithms for compressed sensing: of p coefficients k
         are not zero, and n noiseless measurements recover them for k / n < rho(n / p) and not
         beyond. Amelunxen, Lotz, McCoy and Tropp (2014), Living on the edge: at any size the chance
         is that of n being more than the dimension of the cone of descent, whose mean and variance
         are known. Tibshirani (1996) for the lasso with noise and its optimality conditions.
Run      dltheory run lasso_transition                 (about 15 seconds on two cores)
         dltheory run lasso_transition --profile full  (not timed)
Expect   The chance of recovery within four standard errors, and half a measurement, of theory at
         every number of measurements and sparsity; half chance on the curve, at rho = 0.3857 for
         half as many measurements as coefficients, as far as finite size allows. The lasso
         satisfies its optimality conditions to 1e-8 along its path, and is zero at lambda_max.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.theory import regression, sparse_recovery

DELTAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RHOS = tuple(np.arange(1, 20) / 20)
# Penalties of the lasso, as shares of the least one at which it is zero.
SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02, 0.01)


@dataclass(frozen=True)
class Config:
    """A Gaussian design and coefficients that are one or zero.

    Attributes:
        coefficients: How many there are.
        delta: Measurements per coefficient.
        steps: Of the splitting that finds the least sum of absolute values.
        threshold: Of its soft thresholds.
        noise: Standard deviation of that of the lasso's targets.
        examples: For the lasso.
    """

    coefficients: int = 100
    delta: float = 0.5
    steps: int = 600
    threshold: float = 0.3
    noise: float = 0.5
    examples: int = 40


def recovery(key, config):
    """Whether each sparsity is recovered, and whether it is not: by certificates, for one design.

    Signs and places of the coefficients do not matter to a Gaussian design. Douglas and Rachford's
    splitting keeps every iterate among the solutions of the measurements, so that one of a smaller
    sum proves that the true coefficients are not recovered.
    """
    p = config.coefficients
    number = jnp.arange(p, dtype=float)
    n = jnp.round(config.delta * p)
    wide = jnp.linalg.qr(jax.random.normal(key, (p, p)))[0]
    rows = jnp.where(number[None] < n, wide, 0)
    seen = rows @ rows.T
    true = (number[:, None] < sparsities(config)[None]).astype(rows.dtype)
    least = seen @ true
    solve = lambda z: z - seen @ z + least

    def step(_, z):
        x = solve(z)
        mirrored = 2 * x - z
        shrunk = mirrored - jnp.clip(mirrored, -config.threshold, config.threshold)
        # Relaxed beyond the plain step, which is slower.
        return z + 1.5 * (shrunk - x)

    x = solve(jax.lax.fori_loop(0, config.steps, step, least))
    error = jnp.linalg.norm(x - true, axis=0) / jnp.linalg.norm(true, axis=0)
    excess = jnp.sum(jnp.abs(x), axis=0) / jnp.sum(true, axis=0) - 1
    return {"recovered": error < 1e-3, "lost": (error >= 1e-3) & (excess < -1e-4)}


def sparsities(config):
    """How many coefficients are not zero, one at least, by `RHOS`."""
    n = jnp.round(config.delta * config.coefficients)
    return jnp.maximum(jnp.round(jnp.array(RHOS) * n), 1)


def lasso(key, config):
    """The path of the lasso on few examples with noise: its violations and its zeros."""
    n, p = config.examples, config.coefficients
    normal = jax.random.normal(key, (n, p + 1))
    x = normal[:, :p]
    y = jnp.sum(x[:, : n // 8], axis=1) + config.noise * normal[:, p]
    # A little beyond, so that rounding does not decide.
    largest = regression.lasso_lambda_max(x, y) * (1 + 1e-9)
    lam = largest * jnp.array(SHARES)
    b = regression.lasso(x, y, lam)
    violation = jax.vmap(lambda b, lam: regression.lasso_violation(x, y, b, lam))(b, lam)
    return {"violation": violation / largest, "active": jnp.sum(b != 0, axis=1)}


def sweeps(profile, config):
    """Recovery of all sparsities on many designs, and the lasso on a few."""
    if profile == "full":
        config = replace(config, coefficients=200, steps=2000)
    seeds = {"quick": 120, "full": 400}[profile]
    small = replace(config, coefficients=80)
    return [
        Sweep("recovery", recovery, config, grid={"delta": DELTAS}, seeds=seeds),
        Sweep("lasso", lasso, small, seeds={"quick": 8, "full": 100}[profile], x64=True),
    ]


def _sizes(config):
    """Measurements, and coefficients that are not zero, shape (deltas, rhos)."""
    n = [int(np.round(np.float32(delta) * config.coefficients)) for delta in DELTAS]
    k = [np.asarray(sparsities(replace(config, delta=delta))) for delta in DELTAS]
    return np.array(n)[:, None], np.array(k)


def _chance(n, p, k):
    return np.asarray(sparse_recovery.recovery_chance(*np.broadcast_arrays(n, p, k)), float)


def claims(results):
    """The chances, the curve, and the lasso."""
    config, arrays = results["recovery"][0]
    n, k = _sizes(config)
    p, seeds = config.coefficients, arrays["recovered"].shape[1]
    found, lost = (arrays[name].mean(1) for name in ("recovered", "lost"))
    chance = _chance(n, p, k)
    # Half a measurement more or less; what was left undecided; and one draw at the least.
    step = np.maximum(_chance(n + 0.5, p, k) - chance, chance - _chance(n - 0.5, p, k))
    error = 4 * np.sqrt(np.maximum(chance * (1 - chance), 1 / seeds) / seeds)
    text = f"chance of recovery at {p} coefficients, worst of all n / p and k / n"
    made = [worst(text, chance, found, error + step + (1 - found - lost))]

    # Where recovery falls below one half, between two sparsities.
    below = (found < 0.5).argmax(1)[:, None]
    after, before = (np.take_along_axis(found, below - i, 1) for i in (0, 1))
    high, low = (np.take_along_axis(k, below - i, 1) for i in (0, 1))
    half = (low + (high - low) * (before - 0.5) / (before - after))[:, 0]
    slope = (_chance(n, p, half[:, None] - 0.5) - _chance(n, p, half[:, None] + 0.5))[:, 0]
    excess = np.asarray(sparse_recovery.descent_cone(half / p).excess, float)
    rho = np.asarray(regression.sparsity_transition(np.array(DELTAS)), float)
    per_measurement = (_chance(n + 0.5, p, half[:, None]) - _chance(n - 0.5, p, half[:, None]))[
        :, 0
    ]
    # The curve is for infinite size: beside it the excess of the cone, half a measurement, half a
    # coefficient, and the error of the chance.
    allowed = 0.5 + (per_measurement * (0.5 + excess) + 2 / math.sqrt(seeds)) / slope
    text = "k / n of half chance, worst of all n / p"
    made.append(worst(text, rho, half / n[:, 0], allowed / n[:, 0]))
    one = DELTAS.index(0.5)
    text = "the same at n / p = 0.5"
    made.append(
        Claim(text, float(rho[one]), float(half[one] / n[one, 0]), float(allowed[one] / n[one, 0]))
    )

    config, arrays = results["lasso"][0]
    text = "violation of the lasso's optimality conditions over lambda_max, largest of the path"
    made.append(Claim(text, 0.0, float(arrays["violation"].max()), 1e-8, "<="))
    text = "coefficients of the lasso that are not zero, at lambda_max"
    made.append(Claim(text, 0.0, float(arrays["active"][:, 0].max()), 0.0))
    text = "the same, largest of the path, beside the number of examples"
    made.append(Claim(text, float(config.examples), float(arrays["active"].max()), 0.0, "<="))
    return made


def figure(results):
    """The chance over the plane, along sparsity for some numbers of measurements, and the lasso."""
    fig, axes = figures.axes(1, 3, size=(3.7, 3.2))
    config, arrays = results["recovery"][0]
    n, k = _sizes(config)
    p, found = config.coefficients, arrays["recovered"].mean(1)
    ax = axes[0, 0]
    image = ax.pcolormesh(DELTAS, RHOS, found.T, cmap="Blues", vmin=0, vmax=1, rasterized=True)
    dense = np.linspace(0.02, 0.98, 100)
    rho = np.asarray(regression.sparsity_transition(dense))
    figures.line(ax, dense, rho, series=1)
    fig.colorbar(image, ax=ax, label="share recovered")
    ax.grid(visible=False)
    ax.set(xlim=(0.05, 0.95), ylim=(0.025, 0.975))
    ax.set(
        xlabel="measurements per coefficient, $n / p$", ylabel="not zero per measurement, $k / n$"
    )
    ax.set_title(f"exact recovery, $p = {p}$")
    for series, delta in enumerate((0.2, 0.5, 0.8)):
        one = DELTAS.index(delta)
        fine = np.linspace(1, n[one, 0], 200)
        chance = _chance(np.full_like(fine, n[one, 0]), p, fine)
        figures.line(axes[0, 1], fine / n[one, 0], chance, series=series)
        samples = arrays["recovered"][one].astype(float)
        label = f"$n / p = {delta:g}$"
        style = {"spread": "stderr", "series": series, "label": label}
        figures.band(axes[0, 1], k[one] / n[one, 0], samples, **style)
    axes[0, 1].set(xlabel="not zero per measurement, $k / n$", ylabel="chance of recovery")
    axes[0, 1].set_title("... along three columns")

    config, arrays = results["lasso"][0]
    ax = axes[0, 2]
    ax.axhline(config.examples, color="#222222", linewidth=0.9, linestyle=(0, (2, 2)))
    ax.text(1, config.examples - 0.6, "no more than examples", fontsize=8, ha="right", va="top")
    figures.band(ax, SHARES, arrays["active"].astype(float), series=4)
    ax.set(
        xscale="log", xlabel=r"penalty $\lambda / \lambda_{max}$", ylabel="coefficients not zero"
    )
    ax.set_title(f"path of the lasso, {config.examples} examples")
    figures.legend(fig)
    return fig
