r"""Barron's rate n^-1/2 in dimensions 2 to 64, where features that are fixed fall to the curse.

Paper    Barron (1993), Universal approximation bounds for superpositions of a sigmoidal function:
         n units drawn from the Fourier measure of a target err by (constant / n)^(1/2) in the mean
         square (Lemma 1, after Maurey), in any dimension; whatever n features are fixed before the
         target is known, their mean squared distance to N orthonormal targets is at least 1 - n/N
         of the norm (Lemma 6), and N grows with the dimension. Rahimi and Recht (2008).
Run      dltheory run barron_in_high_dimension                 (half a minute on two cores)
         dltheory run barron_in_high_dimension --profile full  (not timed)
Expect   Slope -1 of the mean squared error in every dimension, with exactly the constant of theory,
         for a Gaussian bump and for a sum of eight waves of random frequency and phase. Least
         squares on random features is far better in d = 2, but 256 of them leave three quarters of
         the target in d = 16 and all of it in d = 64: there are 2 d^2 orthogonal waves, of the
         frequencies that both are drawn from.

All dimensions are one program: a point has as many coordinates as the largest dimension, and the
frequencies are zero in those that are left over. The units of different widths are independent,
and each network is measured on quasi-Monte Carlo points with a random shift of their own.
"""

import itertools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm, qmc

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.numerics import scaling
from dltheory.theory import barron

DIMENSIONS = (2, 4, 8, 16, 32, 64)
WAVES = 8
TARGETS = ("bump", "waves")


@dataclass(frozen=True)
class Config:
    """Sizes.

    Attributes:
        target: Name of the target.
        d: Dimension, at most 64.
        units: Units of the sampled networks.
        features: Numbers of fixed features, fewer than half of the points.
        points: Points that errors are measured on, a power of two.
    """

    target: str = "waves"
    d: int = 2
    units: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    features: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    points: int = 256


def waves(key, shape, d):
    """Uniform frequencies of at most two coordinates one or minus one, times 2 pi, and phases.

    Up to a sign there are d^2: the pair (i, i) stands for e_i, and (i, j) for e_i + e_j or, if
    i > j, for e_i - e_j.
    """
    draws = jax.random.uniform(key, (3, *shape), jnp.float64)
    i, j = (jnp.floor(u * d).astype(jnp.int32) for u in draws[:2])
    sign = jnp.where(i == j, 0.0, jnp.where(i < j, 1.0, -1.0))
    axes = lambda i: jax.nn.one_hot(i, DIMENSIONS[-1], dtype=jnp.float64)
    return 2 * jnp.pi * (axes(i) + sign[..., None] * axes(j)), 2 * jnp.pi * draws[2]


def spectrum(key, config):
    """The target: a bump whose width grows with the dimension, or a sum of waves."""
    if config.target == "bump":
        axis = jnp.arange(DIMENSIONS[-1])
        var = jnp.where(axis < config.d, jnp.asarray(config.d, jnp.float64) / 12, jnp.inf)
        return barron.gaussian_bump(DIMENSIONS[-1], var=var)
    amplitudes = 2.0 ** -jnp.arange(1, WAVES + 1, dtype=jnp.float64)
    frequencies, phases = waves(key, (WAVES,), config.d)
    return barron.cosines(frequencies, amplitudes / amplitudes.sum(), phases)


def cube(points):
    """Points that fill the unit cube evenly."""
    return jnp.asarray(qmc.Sobol(DIMENSIONS[-1], scramble=False).random(points))


def sampled(key, config):
    """Squared errors of one network of each width, and the constant of theory."""
    key_target, key_units, key_x = jax.random.split(key, 3)
    target = spectrum(key_target, config)
    frequencies, phases = target.draw(key_units, sum(config.units))
    shift = jax.random.uniform(key_x, (1, DIMENSIONS[-1]), jnp.float64)
    x = jnp.mod(cube(config.points) + shift, 1) - 0.5
    units = target.mass * jnp.cos(x @ frequencies.T + phases[None])
    ends = np.cumsum((0, *config.units))
    means = jnp.stack([units[:, a:b].mean(1) for a, b in itertools.pairwise(ends)])
    gaps = means - jax.vmap(target.f)(x)[None]
    return {"squares": jnp.mean(gaps**2, 1), "spread": target.spread}


def fixed(key, config):
    """Squared distances of 32 targets to the span of random features, over their squared norms."""
    key_target, key_units, key_x = jax.random.split(key, 3)
    targets = 32
    amplitudes = 2.0 ** -jnp.arange(1, WAVES + 1, dtype=jnp.float64)
    frequencies, phases = waves(key_target, (targets * WAVES,), config.d)
    count, points = config.features[-1], 16 * config.points
    # As good as features can be that know the frequencies of the targets, but not which.
    own, angle = waves(key_units, (count,), config.d)
    x = jax.random.uniform(key_x, (2, points, DIMENSIONS[-1]), jnp.float64) - 0.5
    y = jnp.cos(x @ frequencies.T + phases[None, None])
    y = y.reshape(2, points, targets, WAVES) @ amplitudes
    columns = jnp.cos(x @ own.T + angle[None, None])
    found = []
    for n in config.features:
        a, b = columns[0, :, :n], columns[1, :, :n]
        # Waves that were drawn twice or thrice are dependent.
        gram = a.T @ a + 1e-9 * points * jnp.eye(n)
        rest = y[1] - b @ jax.scipy.linalg.solve(gram, a.T @ y[0], assume_a="pos")
        found.append(jnp.mean(rest**2) / jnp.mean(y[1] ** 2))
    return {"squares": jnp.stack(found)}


def sweeps(profile, config):
    """Sampled networks of two targets, and fixed features, in all dimensions."""
    seeds = {"quick": (96, 6), "full": (1000, 20)}[profile]
    if profile == "full" and config == Config():
        config = Config(units=tuple(2**k for k in range(3, 13)), points=1024)
    grid = {"d": DIMENSIONS}
    return [
        Sweep(
            "sampled",
            sampled,
            config,
            cells={"target": TARGETS},
            grid=grid,
            seeds=seeds[0],
            x64=True,
        ),
        Sweep("fixed", fixed, config, grid=grid, seeds=seeds[1], x64=True),
    ]


def _relative(config, arrays):
    """Squared errors times n over the constant of each target: (dimensions, widths), with errors.

    Over seeds, of which each has a target, a network of each width, and points of its own.
    """
    ratios = arrays["squares"] * np.array(config.units) / arrays["spread"][..., None]
    return ratios.mean(1), ratios.std(1, ddof=1) / math.sqrt(ratios.shape[1])


def claims(results):
    """Slope and constant in each dimension; and what fixed features cannot do."""
    made = []
    for config, arrays in results["sampled"]:
        mean, stderr = _relative(config, arrays)
        n = np.array(config.units)
        name = config.target
        for d, values, errors in zip(arrays["d"], mean, stderr, strict=True):
            fit = scaling.power_law(n, values / n, stderr=errors / n)
            allowed = 4 * float(fit.exponent_stderr)
            text = f"slope of the mean squared error, d = {d:.0f} ({name})"
            made.append(Claim(text, -1.0, float(fit.exponent), allowed))
        text = f"mean squared error times n over the constant, worst of all ({name})"
        made.append(worst(text, 1.0, mean, 4 * stderr))
        p_values = [
            float(scaling.curvature(n, values / n, stderr=errors / n).p_value)
            for values, errors in zip(mean, stderr, strict=True)
        ]
        # The least of six uniform numbers is below this with at most the chance of 4 sigma.
        chance = float(2 * norm.sf(4)) / len(p_values)
        text = f"least p-value of a curvature of the six log-log plots ({name})"
        made.append(Claim(text, chance, min(p_values), 0.0, ">="))
    config, arrays = results["fixed"][0]
    squares = arrays["squares"]
    mean, stderr = squares.mean(1), squares.std(1, ddof=1) / math.sqrt(squares.shape[1])
    n = np.array(config.features)
    for d, values, errors in zip(arrays["d"], mean, stderr, strict=True):
        floor = np.array([barron.fixed_features_error(int(k), int(2 * d**2)) ** 2 for k in n])
        k = int(np.argmin((values - floor) / errors))
        text = f"squared distance of {n[k]} fixed features over the norm, d = {d:.0f}"
        made.append(Claim(text, floor[k].item(), float(values[k]), 4 * float(errors[k]), ">="))
    return made


def figure(results):
    """Errors against width: sampled networks of both targets, and fixed features."""
    fig, axes = figures.axes(1, 3, size=(3.3, 3.2))
    colors = [figures.COLORS[k] for k in (4, 0, 2, 5, 1, 3)]
    # In the mean over the phases, whatever frequencies coincide.
    weights = 2.0 ** -np.arange(1, WAVES + 1)
    size = math.sqrt((weights**2).sum() / 2) / weights.sum()
    titles = {"bump": "sampled: a Gaussian bump", "waves": "sampled: eight random waves"}
    for ax, (config, arrays) in zip(axes[0], results["sampled"], strict=False):
        mean, stderr = _relative(config, arrays)
        n = np.array(config.units)
        span = np.geomspace(n[0] / 1.3, n[-1] * 1.3, 20)
        for k, d in enumerate(arrays["d"]):
            constant = math.sqrt(arrays["spread"][k].mean())
            constant /= size if config.target == "waves" else 1
            root = np.sqrt(mean[k] / n) * constant
            ax.plot(span, constant / np.sqrt(span), color=colors[k], linewidth=1)
            _points(ax, n, root, root * stderr[k] / mean[k] / 2, colors[k], f"$d = {d:.0f}$")
        ax.set_title(titles[config.target])
    axes[0, 0].set(ylabel="root mean square L2 error", ylim=(0.02, 0.3))
    axes[0, 1].set(ylabel="the same, over the norm", ylim=(0.03, 1.5))

    ax = axes[0, 2]
    config, arrays = results["fixed"][0]
    n = np.array(config.features)
    span = np.geomspace(n[0] / 1.3, n[-1] * 1.3, 200)
    for k, d in enumerate(arrays["d"]):
        floor = np.sqrt(np.maximum(1 - span / (2 * d**2), 1e-12))
        ax.plot(span, floor, color=colors[k], linewidth=1)
        squares = arrays["squares"][k]
        root = np.sqrt(squares.mean(0))
        error = squares.std(0, ddof=1) / math.sqrt(len(squares)) / (2 * root)
        _points(ax, n, root, error, colors[k], None)
    sampled_line = constant / np.sqrt(span)
    dashed = {"color": "#222222", "linestyle": (0, (5, 1.5))}
    ax.plot(span, sampled_line, label="sampled, any $d$", **dashed)
    ax.set(ylabel="L2 distance over the norm", ylim=(0.03, 1.5))
    ax.set_title("the same waves by fixed features")
    for ax in axes[0]:
        ax.set(xscale="log", yscale="log", xlabel="units $n$")
        ax.set_xscale("log", base=2)
    axes[0, 0].set_yticks([0.03, 0.1, 0.3], ["0.03", "0.1", "0.3"])
    axes[0, 0].minorticks_off()
    figures.legend(fig)
    return fig


def _points(ax, x, y, error, color, label):
    """Measurements with their standard errors."""
    style = {"linestyle": "none", "marker": "o", "markersize": 4, "markerfacecolor": "white"}
    ax.errorbar(x, y, error, color=color, label=label, zorder=4, **style)
