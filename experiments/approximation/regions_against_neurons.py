r"""Linear regions go with the number of neurons, not with depth; what depth could do it does not.

Paper    Hanin & Rolnick (2019), Complexity of linear regions in deep networks: the pieces of a
         random ReLU network along a line grow in proportion to its neurons, however they are put
         in layers. Wide networks make 1 + sum_l n_l (2 / pi) arctan(T / s_l) of them on average
         between -T and T (Kac and Rice). One layer cuts the plane into sum_{j <= 2} C(n, j)
         regions at most (Zaslavsky 1975); two layers of four units make 44 (Montufar et al. 2014),
         eight units of one layer 37 at most.
Run      dltheory run regions_against_neurons                 (half a minute on two cores)
         dltheory run regions_against_neurons --profile full  (not timed)
Expect   Pieces in proportion to neurons at each depth, within the sampling error of Kac and Rice
         for one layer. 64 neurons in one to eight layers make numbers of pieces that differ by
         less than a factor 1.6, while what is possible grows by powers. Layers of eight units in a
         stack of eight fall short of wide ones. Constructions attain 56 and 44.

Counting is a search that cannot be traced: the trials draw their networks by NumPy and count while
they are traced, and their programs return what was found.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import regions as counted
from dltheory.numerics import scaling
from dltheory.theory import regions

WEIGHT_VAR, BIAS_VAR = 2.0, 0.1
BOX = np.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])


@dataclass(frozen=True)
class Config:
    """ReLU networks of two inputs and one output.

    Attributes:
        neurons: Neurons in all.
        depths: Numbers of layers that they are put in.
        draws: Networks of each kind.
        seed: Of the draws.
    """

    neurons: int = 64
    depths: tuple[int, ...] = (1, 2, 4, 8)
    draws: int = 40
    seed: int = 0


def network(layers, x):
    """A ReLU network with biases, linear at its end."""
    *hidden, (last, bias) = layers
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b[None])
    return x @ last + bias[None]


def drawn(rng, widths):
    """A random network of two inputs and one output."""
    sizes = zip((2, *widths), (*widths, 1), strict=True)
    return [
        (
            rng.normal(size=(m, n)) * math.sqrt(WEIGHT_VAR / m),
            rng.normal(size=n) * math.sqrt(BIAS_VAR),
        )
        for m, n in sizes
    ]


def line(key, config):
    """Pieces between two opposite corners of the square [-1, 1]^2, shape (depths, draws)."""
    del key
    counts = []
    for depth in config.depths:
        rng = np.random.default_rng((config.seed, config.neurons, depth))
        widths = (config.neurons // depth,) * depth
        nets = [drawn(rng, widths) for _ in range(config.draws)]
        with jax.ensure_compile_time_eval():
            counts.append([counted.count_on_line(network, net, BOX[0], -BOX[0]) for net in nets])
    return {"pieces": jnp.array(counts)}


def _drawable(tiling):
    """Polygons as one array, padded by their last corners, and the direction of the gradient."""
    most = max(len(corners) for corners in tiling.polygons)
    corners = np.stack([np.pad(p, ((0, most - len(p)), (0, 0)), "edge") for p in tiling.polygons])
    return {
        "corners": jnp.array(2 * corners - 1),
        "angle": jnp.arctan2(*jnp.array(tiling.gradients[:, ::-1, 0]).T),
        "count": jnp.array(tiling.regions.max() + 1),
    }


def plane(key, config):
    """The regions of one network of each depth on the square [-1, 1]^2."""
    del key
    found = {}
    for depth in config.depths:
        rng = np.random.default_rng((config.seed, config.neurons, depth))
        net = drawn(rng, (config.neurons // depth,) * depth)
        with jax.ensure_compile_time_eval():
            tiling = counted.pieces_on_plane(network, net, *BOX)
            found |= {f"{name}_{depth}": a for name, a in _drawable(tiling).items()}
    return found


def arrangement(n, centre, radius):
    """Weights `(2, n)` and biases of lines that touch a circle, no two of them parallel."""
    angle = math.pi * (np.arange(n) + 0.3) / n
    w = np.stack([np.cos(angle), np.sin(angle)])
    return w, radius - centre @ w


def folding():
    """Two layers of four units: the square is folded to its quarter, and that cut by four lines."""
    half = np.array([[2.0, 4.0, 0.0, 0.0], [0.0, 0.0, 2.0, 4.0]])
    fold = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    w, b = arrangement(4, np.array([0.5, 0.5]), 0.12)
    # All units are off in a bounded region, which then touches no fold: that of three crossings.
    pairs = ([0, 1], [1, 2], [2, 0])
    inside = np.mean([np.linalg.solve(w[:, pair].T, -b[pair]) for pair in pairs], 0)
    side = -np.sign(inside @ w + b)
    layers = [(half, np.array([0.0, -2.0, 0.0, -2.0])), (fold @ (w * side), b * side)]
    return [*layers, (np.array([[1.0], [0.8], [0.9], [0.7]]), np.zeros(1))]


def built(key, config):
    """The regions of the two constructions."""
    del key, config
    w, b = arrangement(10, np.zeros(2), 0.12)
    with jax.ensure_compile_time_eval():
        one = [(w, b), (np.linspace(1, 2, 10)[:, None], np.zeros(1))]
        found = {
            "shallow": counted.pieces_on_plane(network, one, *BOX),
            "deep": counted.pieces_on_plane(network, folding(), *SQUARE),
        }
        return {
            f"{name}_{kind}": array
            for kind, tiling in found.items()
            for name, array in _drawable(tiling).items()
        }


def sweeps(profile, config):
    """Lines at some numbers of neurons; the plane at the smallest; constructions."""
    numbers = (64, 128, 256)
    if profile == "full" and config == Config():
        numbers, config = (64, 128, 256, 512, 1024), Config(draws=1000)
    return [
        Sweep("line", line, config, cells={"neurons": numbers}, x64=True),
        Sweep("plane", plane, config, x64=True),
        Sweep("built", built, config, x64=True),
    ]


def _expected(neurons, depth):
    """Pieces of wide networks; the diagonal is one input of t times the root of two."""
    widths = (neurons // depth,) * depth
    ends = (-1.0, 1.0)
    return float(regions.expected_pieces(widths, ends, weight_var=WEIGHT_VAR, bias_var=BIAS_VAR))


def claims(results):
    """Means on lines, their slopes in neurons, their spread over depths; the constructions."""
    made, means, errors = [], {}, {}
    for config, arrays in results["line"]:
        pieces = arrays["pieces"][0]
        means[config.neurons] = pieces.mean(1)
        stderr = errors[config.neurons] = pieces.std(1, ddof=1) / math.sqrt(config.draws)
        theory = _expected(config.neurons, 1)
        text = f"mean pieces of one layer of {config.neurons}"
        made.append(Claim(text, theory, means[config.neurons][0], 4 * stderr[0]))
        # Zeros of a deep layer are those of a Gaussian process up to a share of depth over width.
        most = math.isqrt(config.neurons) // 2
        depths = np.array([depth for depth in config.depths if 1 < depth <= most])
        theory = np.array([_expected(config.neurons, int(depth)) for depth in depths])
        found, noise = (a[1 : 1 + len(depths)] for a in (means[config.neurons], 4 * stderr))
        allowed = noise + theory * (depths - 1) * depths / config.neurons
        text = f"mean pieces of {config.neurons} neurons in 2 to {depths[-1]} layers, worst"
        made.append(worst(text, theory, found, allowed))
        if config.neurons == 64:
            ratio = float(means[64].max() / means[64].min())
            text = "pieces of 64 neurons in 1, 2, 4 and 8 layers, largest over smallest"
            made.append(Claim(text, 1.6, ratio, 0.0, "<="))
    for k, depth in enumerate(results["line"][0][0].depths):
        # Layers at least twice as wide as there are of them.
        wide = [n for n in means if n >= 2 * depth**2]
        pieces, stderr = (np.array([a[n][k] for n in wide]) for a in (means, errors))
        fit = scaling.power_law(np.array(wide), pieces, stderr=stderr)
        text = f"exponent of the pieces in neurons, depth {depth}"
        made.append(Claim(text, 1.0, float(fit.exponent), 0.15))

    config, arrays = results["plane"][0]
    for depth in config.depths:
        most = regions.serra_upper(2, (config.neurons // depth,) * depth)
        count = float(arrays[f"count_{depth}"][0])
        text = f"regions on the plane, {depth} x {config.neurons // depth}, at most"
        made.append(Claim(text, most, count, 0.0, "<="))

    arrays = results["built"][0][1]
    shallow, deep = (float(arrays[f"count_{kind}"][0]) for kind in ("shallow", "deep"))
    made.append(Claim("regions of ten lines", regions.zaslavsky(10, 2), shallow, 0.0))
    lower = regions.montufar_lower(2, (4, 4))
    made.append(Claim("regions of two layers of four units", lower, deep, 0.0, ">="))
    text = "regions of two layers of four over the most of one layer of eight"
    made.append(Claim(text, 1.0, deep / regions.zaslavsky(8, 2), 0.0, ">="))
    return made


def figure(results):
    """Pieces against neurons and depth; the plane at each depth, and the constructions."""
    fig, axes = figures.axes(1, 2, size=(4.0, 3.2))
    growth, depth_ax = axes[0]
    cells = results["line"]
    numbers = np.array([config.neurons for config, _ in cells])
    span = np.geomspace(numbers[0] / 1.2, numbers[-1] * 1.2, 30)
    depths = np.array(cells[0][0].depths)
    for k, depth in enumerate(depths):
        pieces = np.stack([arrays["pieces"][0, k] for _, arrays in cells])
        theory = [1 + (_expected(1024, int(depth)) - 1) * n / 1024 for n in span]
        figures.line(growth, span, np.array(theory), series=k)
        _points(growth, numbers * 1.03 ** (k - 1.5), pieces, k, f"depth {depth}")
    growth.set(xscale="log", yscale="log", xlabel="neurons", ylabel="linear pieces on the line")
    growth.set_xscale("log", base=2)
    growth.set_xticks(numbers, [str(n) for n in numbers])
    growth.minorticks_off()
    ticks = [32, *numbers]
    growth.set_yticks(ticks, [str(n) for n in ticks])
    growth.set_title("in proportion to neurons")
    for k, (config, arrays) in enumerate(cells):
        theory = np.array([_expected(config.neurons, int(depth)) for depth in depths])
        figures.line(depth_ax, depths, theory, series=4 + k)
        _points(depth_ax, depths, arrays["pieces"][0], 4 + k, f"{config.neurons} neurons")
    depth_ax.set(xscale="log", yscale="log", xlabel="layers that share the neurons")
    depth_ax.set_xscale("log", base=2)
    depth_ax.set_xticks(depths, [str(depth) for depth in depths])
    depth_ax.minorticks_off()
    depth_ax.set_yticks(ticks, [str(n) for n in ticks])
    depth_ax.set_title("and hardly with depth")
    figures.legend(fig)

    config, arrays = results["plane"][0]
    planes, axes = figures.axes(2, 3, size=(3.0, 3.0))
    flat = [axes[0, 0], axes[0, 1], axes[1, 0], axes[1, 1]]
    for ax, depth in zip(flat, config.depths, strict=True):
        title = f"{depth} × {config.neurons // depth} neurons"
        _draw_plane(ax, arrays, str(depth), title)
    arrays = results["built"][0][1]
    _draw_plane(axes[0, 2], arrays, "shallow", "ten lines")
    _draw_plane(axes[1, 2], arrays, "deep", "4, 4: a fold and four lines")
    return {"pieces": fig, "planes": planes}


def _points(ax, x, pieces, series, label):
    """Means with their standard errors, four times."""
    mean, stderr = pieces.mean(1), pieces.std(1, ddof=1) / math.sqrt(pieces.shape[1])
    color = figures.COLORS[series % len(figures.COLORS)]
    ax.errorbar(
        x,
        mean,
        4 * stderr,
        linestyle="none",
        marker="o",
        markersize=4.5,
        markerfacecolor="white",
        color=color,
        label=label,
        zorder=4,
    )


def _draw_plane(ax, arrays, kind, title):
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection

    corners, angle = arrays[f"corners_{kind}"][0], arrays[f"angle_{kind}"][0]
    colors = colormaps["twilight"](angle / (2 * math.pi) + 0.5)
    tiles = PolyCollection(corners, facecolors=colors, edgecolors="white", linewidths=0.25)
    ax.add_collection(tiles)
    ax.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=(), yticks=())
    ax.set_title(f"{title}: {int(arrays[f'count_{kind}'][0])} regions")
