r"""ReLU networks written down by a proof: certified sup errors against width, and against depth.

Paper    de Boor (1973): with free knots n linear pieces err by C / n^2 at best, interpolants by
         2 C / n^2, where 16 C = (int |f''|^(1/2))^2; n equal ones, of length h, by at most
         h^2 sup|f''| / 8. Yarotsky (2017): m layers of three units square within 2^(-2m-2).
         Telgarsky (2015): k layers of two units make a tent of 2^k linear pieces.
Run      dltheory run error_against_width                 (half a minute on two cores)
         dltheory run error_against_width --profile full  (not timed)
Expect   Slope -2; on equal knots -1/2 for the root and -1 for a kink, which two units represent
         exactly. Knots after the curvature err by 2/sqrt(3) of their constant where a piece begins
         at an inflection. Depth pays from 15 units on, and costs below. Every error is a bracket
         with a certificate, at most 1e-6 of it wide: the error bars lie within their points.

Nothing is random, and a certificate is a search that cannot be traced: the trials write down and
measure their networks while they are traced, and their programs return what was found.
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
from dltheory.measure import regions as counted
from dltheory.numerics import scaling
from dltheory.theory import approximation, constructions, regions

UNIT = (0.0, 1.0)
# Of a bracket, relative: what `sup_error` is asked for, and the rounding of the knots.
RESOLVED = 2e-9


class Target(NamedTuple):
    """A function to approximate, and what is known of its interpolants on equal knots.

    Attributes:
        title: Its formula.
        f: The function.
        interval: Where.
        factor: The error of `n` equal pieces is `factor / n**power`, or at most that.
        power: See there.
        exact: Whether it is that.
        free: Whether the curvature varies, for the knots to follow.
        curved: Whether there is any.
        inflections: Inner points where the second derivative changes its sign.
        best: Pieces of the best fit, where it is known exactly; 0 for none.
    """

    title: str
    f: Callable[[Any], Any]
    interval: tuple[float, float]
    factor: float
    power: float
    exact: bool = False
    free: bool = True
    curved: bool = True
    inflections: int = 0
    best: int = 0


TARGETS = {
    "square": Target("$x^2$", lambda x: x**2, UNIT, 1 / 4, 2, exact=True, free=False),
    "exp": Target("$e^x$", jnp.exp, UNIT, math.e / 8, 2),
    "root": Target(r"$\sqrt{x}$", jnp.sqrt, UNIT, 1 / 4, 1 / 2, exact=True, best=16),
    "sine": Target(
        r"$\sin 2 \pi x$", lambda x: jnp.sin(2 * jnp.pi * x), UNIT, math.pi**2 / 2, 2, inflections=1
    ),
    # A power of two leaves the kink at a third of its piece.
    "kink": Target(
        "$|x - 1/3|$",
        lambda x: jnp.abs(x - 1 / 3),
        UNIT,
        4 / 9,
        1,
        exact=True,
        free=False,
        curved=False,
        best=2,
    ),
    "runge": Target(
        "$1 / (1 + 25 x^2)$", lambda x: 1 / (1 + 25 * x**2), (-1.0, 1.0), 25.0, 2, inflections=2
    ),
}


@dataclass(frozen=True)
class Config:
    """Sizes of networks.

    Attributes:
        target: Name of the target.
        units: Units of the interpolants on equal knots, powers of two; the last for those errors
            alone that are not known exactly.
        free: Units of those on free knots.
        errors: Sup errors for which as few units as can be found are asked for.
        layers: Layers of three units each that square.
        folds: Layers of two units each that fold the tent.
    """

    target: str = "exp"
    units: tuple[int, ...] = (8, 32, 128, 256)
    free: tuple[int, ...] = (8, 16, 64)
    errors: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    layers: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7)
    folds: tuple[int, ...] = (1, 3, 6, 10)


def width(key, config):
    """Brackets of the errors of one hidden layer, last axis (2,), and the constant C."""
    del key
    _, f, interval, *_ = target = TARGETS[config.target]
    error = lambda net: _bracket(f, net, interval)
    with jax.ensure_compile_time_eval():
        knots = lambda units, free: jnp.stack(
            [error(constructions.interpolant(f, n, interval, free=free)) for n in units]
        )
        found = {"uniform": knots(config.units[: -1 if target.exact else None], False)}
        if target.free:
            found["free"] = knots(config.free, True)
        if target.best:
            net = constructions.best_piecewise_linear(f, target.best, interval)
            found["best"] = error(net)
        if target.curved:
            nets = [constructions.approximate(f, eps, interval) for eps in config.errors]
            found["fewest"] = jnp.stack([error(net) for net in nets])
            found["fewest_units"] = jnp.array([_units(net) for net in nets])
    if target.curved:
        found["constant"] = approximation.free_knot_constant(f, interval)
    return found


def _bracket(f, net, interval):
    return jnp.stack(measured.sup_error(f, net, interval))


def _units(net):
    return net.params["params"]["first"]["kernel"].shape[1]


def depth(key, config):
    """Brackets of squaring networks and of shallow ones of as many units; pieces of tents."""
    del key
    f = TARGETS["square"].f
    error = lambda net: _bracket(f, net, UNIT)
    count = lambda net: counted.count_on_line(net.apply, net.params, np.zeros(1), np.ones(1))
    with jax.ensure_compile_time_eval():
        shallow = lambda n: constructions.interpolant(f, n, UNIT)
        last = 3 * config.layers[-1]
        return {
            "deep": jnp.stack([error(constructions.square(m)) for m in config.layers]),
            "uniform": jnp.stack([error(shallow(3 * m)) for m in config.layers]),
            "best": error(constructions.best_piecewise_linear(f, last, UNIT)),
            "deep_pieces": jnp.array([count(constructions.tent(k)) for k in config.folds]),
            "shallow_pieces": jnp.array([count(shallow(2 * k)) for k in config.folds]),
        }


def sweeps(profile, config):
    """Six targets; and the square and the tent in depth."""
    if profile == "full" and config == Config():
        more = (8, 16, 32, 64, 128, 256, 512, 1024)
        config = Config(
            units=more,
            free=more[:-2],
            errors=(1e-1, 1e-2, 1e-3, 1e-4, 1e-5),
            layers=tuple(range(1, 9)),
        )
    return [
        Sweep("width", width, config, cells={"target": tuple(TARGETS)}, x64=True),
        Sweep("depth", depth, config, x64=True),
    ]


def _ratio(text, brackets, predicted):
    """The claim that measurements are what theory gives, up to the width of their brackets."""
    brackets = np.asarray(brackets) / np.asarray(predicted)[..., None]
    middle, half = brackets.mean(-1), np.diff(brackets)[..., 0] / 2
    return worst(f"{text}, over theory's", 1.0, middle, half + RESOLVED)


def _slope(text, units, brackets, predicted, tolerance):
    """The claim of a power law between the last two sizes, with brackets as its errors."""
    middle, half = brackets.mean(-1), np.diff(brackets)[..., 0] / 2
    fit = scaling.power_law(units[-2:], middle[-2:], stderr=half[-2:])
    return Claim(text, predicted, float(fit.exponent), tolerance)


def inflected():
    """Worst ratio of a piece's error to that of its share of the constant, at an inflection.

    On a piece from -a to 1 the cubic with f'' = x errs by |(1-x)(x+a)(x+1-a)| / 6 at most, and has
    the share ((2/3)(a^1.5 + 1))^2 / 8.
    """
    a = np.linspace(0, 1, 201)[:, None]
    x = -a + (1 + a) * np.linspace(0, 1, 2001)
    error = np.abs((1 - x) * (x + a) * (x + 1 - a)).max(-1) / 6
    return float((error / ((2 / 3) ** 2 * (a[:, 0] ** 1.5 + 1) ** 2 / 8)).max())


def claims(results):
    """Each target's errors, slopes and sizes; then depth."""
    made = []
    for config, arrays in results["width"]:
        made += _width_claims(config, {name: array[0] for name, array in arrays.items()})
    config, arrays = results["depth"][0]
    return made + _depth_claims(config, {name: array[0] for name, array in arrays.items()})


def _width_claims(config, arrays):
    name, target = config.target, TARGETS[config.target]
    n = np.array(config.units[: len(arrays["uniform"])])
    made = []
    theory = target.factor * n ** -float(target.power)
    if target.exact:
        made.append(_ratio(f"error on equal knots ({name})", arrays["uniform"], theory))
    else:
        largest = float((arrays["uniform"][:, 1] / theory).max())
        text = f"error on equal knots over h^2 sup|f''| / 8, largest ({name})"
        made.append(Claim(text, 1.0, largest, RESOLVED, "<="))
    # Of smooth targets the bound is approached to first order in h, which moves the slope.
    text = f"slope of the error on equal knots ({name})"
    made.append(_slope(text, n, arrays["uniform"], -target.power, 0.02))

    if target.free:
        few = np.array(config.free)
        scaled = arrays["free"].mean(-1) * few**2 / (2 * arrays["constant"])
        text = f"error on free knots times n^2 / 2C ({name})"
        if name == "exp":
            made.append(worst(text, 1.0, scaled, 1 / few**2))
        elif name == "sine":
            made.append(worst(text, 2 / math.sqrt(3), scaled, 1 / few))
        elif name == "runge":
            # Where the inflection lies in its piece, changes with n.
            made.append(Claim(f"{text}, largest", inflected(), float(scaled.max()), 0.0, "<="))
        if name != "runge":
            text = f"slope of the error on free knots ({name})"
            made.append(_slope(text, few, arrays["free"], -2.0, 0.02))

    text = f"error of the best {target.best} pieces ({name})"
    if name == "root":
        made.append(_ratio(text, arrays["best"], 1 / (4 * target.best * (target.best + 1))))
    elif name == "kink":
        made.append(Claim(text, 0.0, float(arrays["best"][1]), 1e-12))

    if target.curved:
        eps = config.errors[-1]
        least, found = float(np.sqrt(arrays["constant"] / eps)), float(arrays["fewest_units"][-1])
        # A whole number, and one more for each inflection. Pieces end where cells do within which
        # the target strays by 1/64 of the error: sqrt(1/128) of a piece, with 1/64 less to spend.
        allowed = 1 + target.inflections + least * (math.sqrt(1 / 128) + 1 / 128)
        made.append(
            Claim(f"fewest units found for an error of {eps:g} ({name})", least, found, allowed)
        )
    return made


def _depth_claims(config, arrays):
    m, k = np.array(config.layers), np.array(config.folds)
    n = 3 * m
    last = f"{n[-1]} units"
    # A line has one piece more than one hidden layer has units.
    floor = 1 / (8 * (n + 1.0) ** 2)
    wins = lambda error: int(n[np.argmax(error < floor)])
    made = [
        worst(
            "error of the squaring network, over 2^(-2m-2)",
            1.0,
            arrays["deep"] * 4.0 ** (m + 1)[:, None],
            1e-6,
        ),
        _ratio("error of shallow interpolants of x^2", arrays["uniform"], 1 / (4.0 * n**2)),
        _ratio(f"error of the best shallow square, {last}", arrays["best"], 1 / (8.0 * n[-1] ** 2)),
        Claim(
            "units from which the squaring network beats every shallow one",
            wins(4.0 ** -(m + 1)),
            wins(arrays["deep"][:, 1]),
            0.0,
        ),
        Claim(
            f"best shallow error over deep error, {last}",
            floor[-1] * 4.0 ** (m[-1] + 1),
            float(arrays["best"][0] / arrays["deep"][-1, 1]),
            0.0,
            ">=",
        ),
        worst("linear pieces of the tent, over 2^k", 1.0, arrays["deep_pieces"] / 2.0**k, 0.0),
    ]
    most = np.array([regions.zaslavsky(int(2 * fold), 1) for fold in k])
    excess = float((arrays["shallow_pieces"] - most).max())
    made.append(Claim("pieces of shallow networks less the most there are", 0.0, excess, 0.0, "<="))
    return made


def figure(results):
    """Errors against width for each target; and depth against width."""
    fig, axes = figures.axes(2, 3, size=(3.1, 2.6), sharex=True)
    for ax, (config, arrays) in zip(axes.flat, results["width"], strict=True):
        _draw_width(ax, config, {name: array[0] for name, array in arrays.items()})
    for ax in axes[-1]:
        ax.set_xlabel("units")
    for ax in axes[:, 0]:
        ax.set_ylabel("sup error")
    figures.legend(fig)
    config, arrays = results["depth"][0]
    return {
        "width": fig,
        "depth": _draw_depth(config, {name: array[0] for name, array in arrays.items()}),
    }


def _points(ax, x, brackets, series, label, marker="o"):
    """Middles of brackets, with their ends as error bars."""
    middle, half = brackets.mean(-1), np.diff(brackets)[..., 0] / 2
    color = figures.COLORS[series]
    ax.errorbar(
        x,
        middle,
        half,
        linestyle="none",
        marker=marker,
        markersize=4.5,
        markerfacecolor="white",
        color=color,
        label=label,
        zorder=4,
    )


def _draw_width(ax, config, arrays):
    target, n = TARGETS[config.target], np.array(config.units)[: len(arrays["uniform"])]
    span = np.geomspace(2, config.units[-1], 50)
    figures.line(ax, span, target.factor * span**-target.power, series=0)
    _points(ax, n, arrays["uniform"], 0, "equal knots")
    if "constant" in arrays:
        if target.free:
            twice = 2 * arrays["constant"] / span**2
            figures.line(ax, span, twice, series=1, label="$2 C / n^2$")
            _points(ax, config.free, arrays["free"], 1, "free knots")
        figures.line(ax, span, arrays["constant"] / span**2, series=2, label="$C / n^2$")
        _points(ax, arrays["fewest_units"], arrays["fewest"], 2, "fewest units", "^")
    if not target.curved:
        ax.axvline(2, color=figures.COLORS[3], linewidth=1.2, zorder=2)
        ax.annotate("two units: exact", (2.2, 3e-6), color=figures.COLORS[3], fontsize=8)
    elif target.best:
        _points(ax, np.array([target.best]), arrays["best"][None], 3, "best fit", "D")
    ax.set(xscale="log", yscale="log", ylim=(1e-6, 1))
    ax.set_xscale("log", base=2)
    ax.set_title(target.title)


def _draw_depth(config, arrays):
    fig, axes = figures.axes(1, 2, size=(4.2, 3.4))
    square, tent = axes[0]
    m, k = np.array(config.layers), np.array(config.folds)
    n, span = 3 * m, np.linspace(2.5, 3 * m[-1] + 1, 60)
    figures.line(square, span, 4.0 ** -(span / 3 + 1), series=1)
    figures.line(square, span, 1 / (4 * span**2), series=0)
    floor = "out of reach of one layer"
    square.fill_between(
        span, 1e-9, 1 / (8 * (span + 1) ** 2), color="#222222", alpha=0.08, linewidth=0, label=floor
    )
    _points(square, n, arrays["deep"], 1, "deep")
    _points(square, n, arrays["uniform"], 0, "one layer")
    _points(square, n[-1:], arrays["best"][None], 3, "one layer, best fit", "D")
    square.set(yscale="log", ylim=(1e-6, 1), xlabel="units", ylabel=r"sup error of $x^2$")
    square.set_title("Yarotsky: squaring, layers of 3 units")
    square.set_xticks(n)
    color = figures.COLORS
    square.annotate("$2^{-2m-2}$", (14.2, 8e-5), color=color[1], ha="right")
    square.annotate("$1 / 4 n^2$", (15.5, 1.6e-3), color=color[0])
    square.annotate("below $1 / 8 (n + 1)^2$", (3, 2e-5), color="#555555")
    span = np.linspace(2, 2 * k[-1], 60)
    figures.line(tent, span, 2 ** (span / 2), series=1)
    figures.line(tent, span, span + 1, series=0)
    exact = lambda pieces: np.stack([pieces, pieces], -1)
    _points(tent, 2 * k, exact(arrays["deep_pieces"]), 1, None)
    _points(tent, 2 * k, exact(arrays["shallow_pieces"]), 0, None)
    tent.set(yscale="log", xlabel="units", ylabel="linear pieces on $[0, 1]$")
    tent.set_title("Telgarsky: folding, layers of 2 units")
    tent.set_xticks(2 * k)
    tent.annotate("$2^k$", (13, 250), color=color[1], ha="right")
    tent.annotate("$n + 1$", (16.5, 25), color=color[0])
    figures.legend(fig)
    return fig
