r"""Greedy, trained and random-feature networks beside a construction, on five targets.

Paper    Siegel and Xu (2022), Optimal convergence rates for the orthogonal greedy algorithm: on
         ReLU units of one variable it errs by C / n^2 in L2 where f'' is a measure of finite mass.
         Barron, Cohen, Dahmen and DeVore (2008), Approximation and learning by greedy algorithms:
         elsewhere by a constant times the least of |f - h| + |h|_1 / n^(1/2). Rahimi and Recht
         (2008), Weighted sums of random kitchen sinks: n random units, and so refitted ones, by a
         constant over n^(1/2) where the norm of f'' is finite. de Boor (1973): the best n linear
         pieces, joined or not, err by C_2 / n^2.
Run      dltheory run fits_against_width                 (half a minute on two cores)
         dltheory run fits_against_width --profile full  (not timed)
Expect   Greedy and random networks decay at least as fast as their theorems say on all targets, and
         mostly faster by far: greedy ones come near to C_2 / n^2 itself. Trained ones have no
         theorem and are shown beside them: with 4 units they are as good as any, with 32 they are
         not.

The targets are one program: which of them is a traced number. All have the unit interval. The
square root has no second derivative of finite mass: cut off at e it has the variation e^(-1/2)
and is e away, so that greedy networks must reach n^(-1/3) and random ones n^(-1/4). The kink has
one whose square is not finite: rounded over e it is e^(3/2) away, with e^(-1/2) for the norm, so
that random ones must reach n^(-3/8).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import approximation as measured
from dltheory.measure import fits
from dltheory.numerics import scaling
from dltheory.theory import approximation, constructions

UNIT = (0.0, 1.0)


class Target(NamedTuple):
    """A function, and the rates that theorems give for it.

    Attributes:
        name: What claims call it.
        title: Its formula.
        f: The function.
        greedy: Exponent of greedy networks.
        random: Exponent of refitted random features.
        kinks: Where its derivative jumps.
    """

    name: str
    title: str
    f: Callable[[Any], Any]
    greedy: float
    random: float
    kinks: tuple[float, ...] = ()


TARGETS = (
    Target("exp", "$e^x$", jnp.exp, 2, 1 / 2),
    Target("kink", "$|x - 1/3|$", lambda x: jnp.abs(x - 1 / 3), 2, 3 / 8, (1 / 3,)),
    Target(
        "Runge", "$1 / (1 + 25 (2x - 1)^2)$", lambda x: 1 / (1 + 25 * (2 * x - 1) ** 2), 2, 1 / 2
    ),
    Target("root", r"$\sqrt{x}$", jnp.sqrt, 1 / 3, 1 / 4),
    Target(
        "step", r"$1 / (1 + e^{-60 (x - 0.4)})$", lambda x: jax.nn.sigmoid(60 * (x - 0.4)), 2, 1 / 2
    ),
)


@dataclass(frozen=True)
class Config:
    """Sizes of networks.

    Attributes:
        target: Index of the target.
        units: Units of greedy and random networks.
        trained: Units of trained ones.
        steps: Steps of Adam.
        points: Points to fit on, and to measure on.
        pieces: Units of interpolants on equal knots.
    """

    target: int = 0
    units: tuple[int, ...] = (4, 8, 16, 32, 64)
    trained: tuple[int, ...] = (4, 8, 16, 32)
    steps: int = 1000
    points: int = 2048
    pieces: tuple[int, ...] = (4, 16, 64)


def _target(config):
    branches = [target.f for target in TARGETS]
    return lambda x: jax.lax.switch(jnp.asarray(config.target, jnp.int32), branches, x)


def untrained(key, config):
    """L2 errors of greedy and random networks of each width, with their standard errors."""
    found = {}
    for name, fit in (("greedy", fits.greedy_fit), ("random", fits.random_feature_fit)):
        made = fit(key, _target(config), UNIT, config.units, points=config.points)
        found |= {name: made.error, f"{name}_stderr": made.stderr}
    return found


def trained(key, config):
    """L2 errors of trained networks of each width, with their standard errors."""
    points = config.points // 8
    with jax.numpy_dtype_promotion("standard"):
        made = fits.trained_fit(
            key, _target(config), UNIT, config.trained, seeds=1, steps=config.steps, points=points
        )
    return {"trained": made.error[0], "trained_stderr": made.stderr[0]}


def constructed(key, config):
    """L2 errors of the interpolants of all targets, what theory gives for them, and C_2."""
    del key
    errors, stated, constants = [], [], []
    with jax.ensure_compile_time_eval():
        for target in TARGETS:
            nets = [constructions.interpolant(target.f, n, UNIT) for n in config.pieces]
            errors.append([measured.l2_error(target.f, net, UNIT).value for net in nets])
    for target in TARGETS:
        theory = lambda n, f=target.f: approximation.interpolation_error(f, n, UNIT, norm="l2")
        stated.append(jnp.stack([theory(n) for n in config.pieces]))
        constant = approximation.free_knot_constant(target.f, UNIT, kinks=target.kinks, norm="l2")
        constants.append(constant)
    return {
        "errors": jnp.array(errors),
        "stated": jnp.stack(stated),
        "constant": jnp.stack(constants),
    }


def sweeps(profile, config):
    """All targets and some seeds, in two programs."""
    seeds = {"quick": (4, 3), "full": (40, 20)}[profile]
    if profile == "full" and config == Config():
        config = Config(
            units=(4, 8, 16, 32, 64, 128, 256),
            trained=(4, 8, 16, 32, 64, 128),
            steps=20_000,
            points=16384,
        )
    grid = {"target": tuple(range(len(TARGETS)))}
    return [
        Sweep("untrained", untrained, config, grid=grid, seeds=seeds[0], x64=True),
        Sweep("trained", trained, config, grid=grid, seeds=seeds[1], x64=True),
        Sweep("constructed", constructed, config, x64=True),
    ]


def _mean(errors):
    """Root mean square over seeds, the second axis, and its standard error."""
    squares = (errors**2).mean(1)
    stderr = (errors**2).std(1, ddof=1) / math.sqrt(errors.shape[1])
    root = np.sqrt(squares)
    return root, stderr / (2 * root)


def _laws(config, arrays):
    """Power laws of greedy and random networks on each target.

    In the number of functions that are combined, which the constant is one of.
    """
    elements = np.array(config.units) + 1
    return {
        name: [scaling.power_law(elements, root) for root in _mean(arrays[name])[0]]
        for name in ("greedy", "random")
    }


def claims(results):
    """One-sided rates; how near greedy networks are to the best; the construction."""
    made = []
    config, arrays = results["untrained"][0]
    for name, laws in _laws(config, arrays).items():
        for target, law in zip(TARGETS, laws, strict=True):
            theory = -getattr(target, name)
            allowed = 4 * float(law.exponent_stderr)
            text = f"slope of the error of {name} networks, {target.name}"
            made.append(Claim(text, theory, float(law.exponent), allowed, "<="))
    _, built = results["constructed"][0]
    n = config.units[-1]
    root, stderr = (values[:, -1] for values in _mean(arrays["greedy"]))
    for target, constant, error, doubt in zip(
        TARGETS, built["constant"][0], root, stderr, strict=True
    ):
        if constant > 0:
            # A network of n units has a piece more.
            unit = constant / (n + 1) ** 2
            text = f"error of {n} greedy units over that of the best pieces, {target.name}"
            made.append(Claim(text, 1.0, float(error / unit), 4 * float(doubt / unit), ">="))
    text = "L2 error of interpolants over theory's"
    # Theory takes 16 nodes a piece, and misses what is sharp within by their squared distance.
    allowed = [[1e-6 if target.name in ("exp", "Runge") else 16**-2] for target in TARGETS]
    made.append(worst(text, 1.0, (built["errors"] / built["stated"])[0], allowed))
    return made


def figure(results):
    """Errors against width for each target, and the exponents beside those of the theorems."""
    fig, axes = figures.axes(2, 3, size=(3.3, 2.7))
    config, arrays = results["untrained"][0]
    few, descended = results["trained"][0]
    made, built = results["constructed"][0]
    n = np.array(config.units)
    span = np.geomspace(3.5, n[-1] * 1.15, 30)
    for k, (ax, target) in enumerate(zip(axes.flat, TARGETS, strict=False)):
        figures.line(ax, made.pieces, built["stated"][0, k], series=0)
        _points(ax, made.pieces, built["errors"][0, k], 0, 0, "equal knots", "s")
        for series, name in ((1, "greedy"), (2, "random")):
            root, stderr = (values[k] for values in _mean(arrays[name]))
            _points(ax, n, root, stderr, series, name)
            slope = -getattr(target, name)
            figures.line(ax, span, 1.6 * root[0] * (span / n[0]) ** slope, series=series)
        seeds = descended["trained"][k]
        _points(ax, few.trained, np.median(seeds, 0), 0, 3, "trained, median and all", "D")
        at = np.broadcast_to(few.trained, seeds.shape)
        ax.plot(at, seeds, ".", color=figures.COLORS[3], markersize=2.5)
        if built["constant"][0, k] > 0:
            best = built["constant"][0, k] / (span + 1) ** 2
            ax.plot(span, best, ":", color="#222222", label="best pieces, $C_2 / (n + 1)^2$")
        ax.set(xscale="log", yscale="log", title=target.title, xlim=(3.3, 80))
        ax.set_xscale("log", base=2)
    for ax in (axes[0, 2], *axes[1, :2]):
        ax.set_xlabel("units")
    for ax in axes[:, 0]:
        ax.set_ylabel("L2 error")

    ax = axes[1, 2]
    for series, (name, laws) in enumerate(_laws(config, arrays).items(), 1):
        color = figures.COLORS[series]
        for k, (target, law) in enumerate(zip(TARGETS, laws, strict=True)):
            y = -k + 0.15 * (3 - 2 * series)
            figures.line(ax, [-getattr(target, name)] * 2, [y - 0.14, y + 0.14], series=series)
            error = 2 * float(law.exponent_stderr)
            style = {"marker": "o", "markersize": 4.5, "markerfacecolor": "white"}
            ax.errorbar(float(law.exponent), y, xerr=error, color=color, zorder=4, **style)
    ax.set_yticks(-np.arange(len(TARGETS)), [target.name for target in TARGETS])
    ax.set(xlabel="exponent; right of its theorem's is a fault", title="measured and proven")
    figures.legend(fig)
    return fig


def _points(ax, x, y, stderr, series, label, marker="o"):
    """Measurements with their standard errors."""
    style = {"linestyle": "none", "markersize": 4.5, "markerfacecolor": "white", "zorder": 4}
    color = figures.COLORS[series]
    ax.errorbar(x, y, stderr, marker=marker, color=color, label=label, **style)
