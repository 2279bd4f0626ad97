r"""What depth does with a few units, one hidden layer cannot: squares, products and tents.

Paper    Yarotsky (2017), Error bounds for approximations with deep ReLU networks: m layers square
         and multiply within 2^(-2m-2). Telgarsky (2015), Representation benefits of deep
         feedforward networks: k layers of two units make a tent of 2^k pieces, and a shallow
         network that crosses 1/2 too rarely misses it by a constant.
Run      dltheory run depth_against_width                 (half a minute on two cores)
         dltheory run depth_against_width --profile full  (not timed)
Expect   Errors of 4^-(m+1) to nine digits, 6e-8 of x^2 by 36 units, for which one hidden layer
         takes 2^(m-1/2): 2900. Of the tent one layer of n units misses 1/2 somewhere, as far
         as it has fewer than 2^k pieces, and 1/4 - n / 2^(k+1) on average, or more; the number 1/2
         alone misses no more than 1/2 and 1/4. With 2^k pieces one layer has it exactly.

The tent is 0 and 1 in turn at the 2^k + 1 multiples of 2^-k. To be within 1/2 of it everywhere
takes 2^k crossings of 1/2, of which a piece has one. On each of its 2^(k-1) periods the sign of the
tent less 1/2 is even about the middle and has mean zero: it is orthogonal to affine functions. So
on a period without a kink the mean error is at least that of 1/2 itself, 1/4; and n units have n
kinks.

Nothing is random, and certificates cannot be traced: the trials measure while they are traced.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import approximation as measured
from dltheory.theory import constructions, layouts

UNIT = (0.0, 1.0)
SQUARE = np.zeros(2), np.ones(2)
RESOLVED = 2e-9  # of a bracket, relative


@dataclass(frozen=True)
class Config:
    """Sizes of networks.

    Attributes:
        layers: Layers of three units each that square.
        products: Layers that multiply, of six units, one apart.
        shallow: Layers whose errors one hidden layer is to reach.
        folds: Layers of two units that fold the tent.
    """

    layers: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12)
    products: tuple[int, ...] = (1, 2, 3, 4, 5)
    shallow: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    folds: tuple[int, ...] = (3, 4, 5, 6, 7, 8)


def smooth(key, config):
    """Brackets of deep networks for x^2 and x y, last axis (2,); the fewest units of one layer."""
    del key
    squared, product = lambda x: x**2, lambda x: x[0] * x[1]
    error = lambda f, net, box: jnp.stack(measured.sup_error(f, net, box, max_boxes=1_000_000))
    with jax.ensure_compile_time_eval():
        nets = [constructions.approximate(squared, 4.0 ** -(m + 1), UNIT) for m in config.shallow]
        return {
            "square": jnp.stack(
                [error(squared, constructions.square(m), UNIT) for m in config.layers]
            ),
            "product": jnp.stack(
                [error(product, constructions.product(m), SQUARE) for m in config.products]
            ),
            "shallow": jnp.stack([error(squared, net, UNIT) for net in nets]),
            "units": jnp.array([net.params["params"]["first"]["kernel"].shape[1] for net in nets]),
        }


def tents(key, config):
    """Sup errors, as brackets, and mean ones of one layer: of 2k units, and of what it takes."""
    del key
    with jax.ensure_compile_time_eval():
        rows = {
            "fitted": [_missed(k, _fitted(k, 2 * k)) for k in config.folds],
            "followed": [_missed(k, _followed(k, 2 * k)) for k in config.folds],
            "fewer": [_missed(k, _chords(k, 2**k - 1)) for k in config.folds],
            "enough": [_missed(k, _chords(k, 2**k)) for k in config.folds],
        }
        return {
            f"{name}_{kind}": jnp.array([row[i] for row in found])
            for name, found in rows.items()
            for i, kind in enumerate(("sup", "mean"))
        }


def _missed(k, net):
    """The sup error, as a bracket, and the mean one of a network for a tent."""
    deep = constructions.tent(k)
    gap = lambda x: deep.apply(deep.params, x) - net.apply(net.params, x)
    bracket = measured.sup_error(lambda x: 0 * x, gap, UNIT)
    x = np.unique(np.concatenate([np.arange(2**k + 1) / 2**k, -_layer(net, "first")[1], [1.0]]))
    gap = _run(deep, x) - _run(net, x)
    a, b = np.abs(gap[:-1]), np.abs(gap[1:])
    # The mean size of an affine function, which may change its sign.
    crossing = (a**2 + b**2) / np.maximum(2 * (a + b), 1e-300)
    size = np.where(gap[:-1] * gap[1:] >= 0, (a + b) / 2, crossing)
    return [float(end) for end in bracket], float(size @ np.diff(x))


def _layer(net, name):
    layer = net.params["params"][name]
    return np.asarray(layer["kernel"]), np.asarray(layer["bias"])


def _run(net, x):
    """A network at points of the line."""
    kernel, bias = _layer(net, "first")
    h = x[:, None] @ kernel + bias
    if "hidden" in net.params["params"]:
        for kernel, bias in zip(*_layer(net, "hidden"), strict=True):
            h = np.maximum(h, 0) @ kernel + bias
    kernel, bias = _layer(net, "last")
    return (np.maximum(h, 0) @ kernel + bias)[:, 0]


def _fitted(k, n):
    """The best fit of a tent in least squares by a layer of `n` units with equal knots."""
    x, knots = (np.arange(2 ** (k + 4)) + 0.5) / 2 ** (k + 4), np.arange(n) / n
    features = np.column_stack([np.maximum(x[:, None] - knots, 0), np.ones_like(x)])
    *weights, bias = np.linalg.lstsq(features, _tent(k, x), rcond=None)[0]
    return layouts.network(
        [(np.ones((n, 1)), -knots), (np.array([weights]), np.array([bias]))], math.nan
    )


def _followed(k, n):
    """A layer of `n` units that follows a tent as far as it can, and then stays at 1/2."""
    x = np.append(np.arange(n), [n - 1.5, 2.0**k])[np.r_[: n - 1, n, n + 1]] / 2**k
    return _polyline(x, np.append(_tent(k, x[:-1]), 0.5))


def _chords(k, n):
    """The polyline through a tent at the ends of `n` equal pieces."""
    x = np.arange(n + 1) / n
    return _polyline(x, _tent(k, x))


def _tent(k, x):
    return np.abs((x * 2 ** (k - 1) + 0.5) % 1 - 0.5) * 2


def _polyline(x, y):
    weights = np.diff(np.diff(y) / np.diff(x), prepend=0.0)
    units = np.ones((len(weights), 1)), -x[:-1]
    return layouts.network([units, (weights[None], y[:1])], math.nan)


def sweeps(profile, config):
    """Squares and products; tents."""
    if profile == "full" and config == Config():
        config = Config(
            layers=tuple(range(1, 13)),
            products=tuple(range(1, 9)),
            shallow=tuple(range(1, 10)),
            folds=tuple(range(3, 12)),
        )
    return [Sweep("smooth", smooth, config, x64=True), Sweep("tents", tents, config, x64=True)]


def floor(k):
    """What a shallow network of as many units as the tent of `k` folds loses on average."""
    return 1 / 4 - k / 2.0**k


def _least(missed):
    """The smaller mean error of the two shallow networks."""
    return np.minimum(missed["fitted_mean"], missed["followed_mean"])


def claims(results):
    """Errors of deep networks, sizes of shallow ones for them; and what these lose of tents."""
    [(config, found)], [(_, missed)] = results["smooth"], results["tents"]
    found, missed = ({n: a[0] for n, a in arrays.items()} for arrays in (found, missed))
    exact = lambda m: 4.0 ** -(np.array(m)[:, None] + 1.0)
    made = []
    for name, text, m in (
        ("square", "x^2", config.layers),
        ("product", "x y", config.products),
    ):
        ratio = f"error of {m[-1]} layers and fewer for {text}, over 2^(-2m-2)"
        made.append(worst(ratio, 1.0, found[name] / exact(m), RESOLVED))
        wide = float((found[name][:, 1] / found[name][:, 0] - 1).max())
        made.append(Claim(f"width of the brackets for {text}, relative", 1e-9, wide, 0.0, "<="))
    m = np.array(config.shallow)
    least = np.ceil(2.0 ** (m - 0.5))
    # A whole number; pieces end where cells do (see error_against_width).
    spare = (1 + least * (math.sqrt(1 / 128) + 1 / 128))[-1]
    made += [
        Claim(
            f"units of one layer for the error of {m[-1]} layers of 3",
            float(least[-1]),
            float(found["units"][-1]),
            float(spare),
        ),
        Claim(
            "fewest units found less the fewest there are, smallest",
            0.0,
            float((found["units"] - least).min()),
            0.0,
            ">=",
        ),
    ]
    k = np.array(config.folds)
    rounding = 1e-9
    made += [
        Claim(
            "sup error of one layer of 2k units on the tent, smallest",
            0.5,
            float(min(missed[n][:, 0].min() for n in ("fitted_sup", "followed_sup"))),
            rounding,
            ">=",
        ),
        Claim(
            "mean error of one layer of 2k units less its floor, smallest",
            0.0,
            float((_least(missed) - floor(k)).min()),
            rounding,
            ">=",
        ),
        Claim(
            "sup error of one layer of 2^k - 1 pieces, smallest",
            0.5,
            float(missed["fewer_sup"][:, 0].min()),
            rounding,
            ">=",
        ),
        worst("sup error of one layer of 2^k pieces", 0.0, missed["enough_sup"][:, 1], rounding),
    ]
    return made


def figure(results):
    """Errors against units, and what is lost of tents."""
    [(config, found)], [(_, missed)] = results["smooth"], results["tents"]
    found, missed = ({n: a[0] for n, a in arrays.items()} for arrays in (found, missed))
    fig, axes = figures.axes(1, 2, size=(4.2, 3.4))
    left, right = axes[0]
    colors = figures.COLORS
    m = np.array(config.layers)
    span = np.geomspace(3, 4000, 200)
    point = {"linestyle": "none", "markerfacecolor": "white", "markersize": 4.5, "zorder": 4}
    figures.line(left, span[span < 40], 4.0 ** -(span[span < 40] / 3 + 1), series=1)
    figures.line(left, span, 1 / (8 * span**2), series=0)
    left.fill_between(
        span, 1e-9, 1 / (8 * (span + 1) ** 2), color="#222222", alpha=0.07, linewidth=0
    )
    left.plot(
        3 * m, found["square"].mean(-1), marker="o", color=colors[1], label="$x^2$, deep", **point
    )
    p = np.array(config.products)
    figures.line(left, span[span < 80], 4.0 ** -(span[span < 80] / 6), series=2)
    left.plot(
        6 * (p + 1),
        found["product"].mean(-1),
        marker="s",
        color=colors[2],
        label="$x y$, deep",
        **point,
    )
    left.plot(
        found["units"],
        found["shallow"].mean(-1),
        marker="^",
        color=colors[0],
        label="$x^2$, one layer",
        **point,
    )
    left.set(xscale="log", yscale="log", xlim=(1.6, 4000), ylim=(1e-9, 1))
    left.set(xlabel="units", ylabel="sup error, certified")
    left.set_title("Yarotsky: squares and products")
    left.annotate("$2^{-2m-2}$", (26, 2e-8), color=colors[1], ha="right")
    left.annotate("$1 / 8 n^2$", (400, 3e-6), color=colors[0])
    left.annotate("out of reach of one layer", (90, 3e-9), color="#555555", fontsize=8)

    k = np.array(config.folds)
    ends = np.linspace(k[0], k[-1], 100)
    right.fill_between(
        ends, 0, np.maximum(floor(ends), 0), color="#222222", alpha=0.07, linewidth=0
    )
    figures.line(right, ends, np.maximum(floor(ends), 0), series=0)
    figures.line(right, ends, np.full(100, 0.5), series=3)
    right.plot(
        k,
        missed["followed_sup"].mean(-1),
        marker="D",
        color=colors[3],
        label="one layer, sup error",
        **point,
    )
    right.plot(
        k, _least(missed), marker="^", color=colors[0], label="one layer, mean error", **point
    )
    right.plot(k, 0 * k, marker="o", color=colors[1], label="deep: exact", **point)
    right.set(ylim=(-0.03, 0.6), xlabel="folds $k$, of two units each", ylabel="error on the tent")
    right.set_title("Telgarsky: $2k$ units for $2^k$ pieces")
    right.annotate("at least 1/2", (k[0], 0.46), color=colors[3], va="top")
    right.annotate("at least $1/4 - k / 2^k$", (k[-1], 0.13), color=colors[0], ha="right")
    right.set_xticks(k)
    figures.legend(fig)
    return fig
