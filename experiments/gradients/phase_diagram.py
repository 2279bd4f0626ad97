r"""The phase diagram of tanh: how deep a correlation reaches, in theory and in live networks.

Paper    Poole et al. (2016): in the plane of weight and bias variance the edge of chaos parts nets
         that make all inputs alike (c* = 1) from nets that drive them apart to a c* < 1.
         Schoenholz et al. (2017): on either side the correlation of two inputs nears c* as
         exp(-l / xi_c), with xi_c^-1 = -log(sigma_w^2 E phi'(u) phi'(v)), and xi_c diverges at the
         edge. In the ordered phase 1 - c shrinks by chi_1 a layer.
Run      dltheory run phase_diagram                 (about half a minute on two cores)
         dltheory run phase_diagram --profile full  (not timed)
Expect   The edge at weight_var 1.76095 for bias_var 0.05, c* = 0.16506 in chaos at weight_var 4,
         and xi_c = 7.83 in order at 1.3. In nets the correlations of every layer on the iterates of
         the map and the depth scales on theory, both extrapolated to infinite width, within four
         standard errors.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, infinite_width, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import signal
from dltheory.theory import mean_field

# Where nets are measured: weight_var, bias_var, the fixed length, and two correlations to start
# from. In order one of them is that of equal inputs; in chaos they are on either side of c*.
POINTS = (
    (1.0, 0.05, 0.1936, 1.0, 0.999),
    (1.3, 0.05, 0.3153, 1.0, 0.999),
    (1.5, 0.05, 0.4180, 1.0, 0.999),
    (2.0, 0.05, 0.7218, 0.87, 0.62),
    (2.5, 0.05, 1.0640, 0.60, 0.30),
    (4.0, 0.05, 2.1955, 0.45, 0.03),
    (1.0, 0.20, 0.4605, 1.0, 0.999),
    (1.7, 0.20, 0.8031, 1.0, 0.999),
    (2.8, 0.20, 1.5169, 0.86, 0.66),
    (4.0, 0.20, 2.4102, 0.60, 0.30),
)
INPUTS = 8


@dataclass(frozen=True)
class Config:
    """A fully connected tanh network.

    Attributes:
        weight_var: Variance of the weights times the fan-in.
        bias_var: Variance of the biases.
        width: Units of each layer.
        depth: Layers.
    """

    weight_var: float = 1.0
    bias_var: float = 0.05
    width: int = 64
    depth: int = 30


def fixed(key, config):
    """Fixed points and depth scales at one point of the diagram."""
    del key  # Nothing here is random.
    at = {"weight_var": config.weight_var, "bias_var": config.bias_var}
    q = mean_field.fixed_point("tanh", **at)
    return {
        "q": q,
        "c": mean_field.correlation_fixed_point("tanh", **at),
        "chi_1": mean_field.chi_1("tanh", q, weight_var=config.weight_var),
        "xi_c": mean_field.depth_scales("tanh", **at).xi_c,
    }


def edge(key, config):
    """Weight variance at the edge of chaos."""
    del key
    return {"edge": mean_field.edge_of_chaos("tanh", bias_var=config.bias_var).weight_var}


def iterates(key, config):
    """Correlations of theory by layer, from both starts of every point: (points, 2, layers)."""
    del key
    weight_var, bias_var, q, *starts = jnp.array(POINTS).T

    def path(weight_var, bias_var, q, start):
        at = {"weight_var": weight_var, "bias_var": bias_var}
        return mean_field.propagate("tanh", q, start, depth=config.depth, **at).c

    one = jax.vmap(path, (None, None, None, 0))
    return {"c": jax.vmap(one)(weight_var, bias_var, q, jnp.stack(starts, 1))}


def network(params, x):
    """A tanh network as f(params, x); every layer is affine, and its value the pre-activation."""
    affine = lambda h, p: h @ p["weights"] + p["bias"][None]
    layer = lambda h, p: (affine(jnp.tanh(h), p), None)
    return jax.lax.scan(layer, affine(x, params["first"]), params["hidden"])[0]


def trial(key, config):
    """Mean correlation of inputs in every layer, from both starts of every point."""
    n = config.width
    # One draw for all points: a program is compiled in a second for each, and runs in that draw.
    normal = jax.random.normal(key, (config.depth, n + 1, n))
    basis = math.sqrt(n) * jnp.eye(INPUTS + 1, n)

    def correlations(point):
        weight_var, bias_var, q, *starts = point
        scale, shift = jnp.sqrt(weight_var / n), jnp.sqrt(bias_var)
        layers = {"weights": scale * normal[:, :n], "bias": shift * normal[:, n]}
        params = {
            "first": jax.tree.map(lambda a: a[0], layers),
            "hidden": jax.tree.map(lambda a: a[1:], layers),
        }
        # Inputs whose first pre-activations have the length q, and each two the start as theirs.
        shares = [(q * start - bias_var) / (q - bias_var) for start in starts]
        rows = [jnp.sqrt(s) * basis[:1] + jnp.sqrt(1 - s) * basis[1:] for s in shares]
        x = jnp.sqrt((q - bias_var) / weight_var) * jnp.concatenate(rows)
        c = signal.moments(network, params, x).c
        pairs = np.triu_indices(INPUTS, 1)
        blocks = [c[:, s : s + INPUTS, s : s + INPUTS] for s in (0, INPUTS)]
        return jnp.stack([block[:, *pairs].mean(-1) for block in blocks])

    return {"c": jax.vmap(correlations)(list(jnp.array(POINTS).T))}  # (points, 2, layers)


def sweeps(profile, config):
    """The map, its edge, and nets of three widths."""
    widths = {"quick": (64, 160), "full": (128, 256, 512)}[profile]
    seeds = {"quick": (256, 160), "full": (1000, 500, 500)}[profile]
    weight_var = np.round(np.arange(0.5, 4.51, 0.1), 9).tolist()
    bias_var = [0.001, *np.round(np.arange(0.025, 0.501, 0.025), 9).tolist()]
    grid = {"weight_var": weight_var, "bias_var": bias_var}
    edges = {"bias_var": [2.01e-5, *np.geomspace(1e-3, 0.5, 40).tolist(), 0.05, 0.2]}
    made = [
        Sweep("fixed", fixed, config, grid=grid, x64=True),
        Sweep("edge", edge, config, grid=edges, x64=True),
        Sweep("iterates", iterates, config, x64=True),
    ]
    for width, number in zip(widths, seeds, strict=True):
        wide = replace(config, width=width)
        made.append(Sweep(f"nets-{width}", trial, wide, seeds=number, batching="map", x64=True))
    return made


def _at(results, name, weight_var, bias_var):
    """What theory gives at one point of the diagram."""
    arrays = results["fixed"][0].arrays
    index = [
        int(np.argmin(np.abs(arrays[axis] - value)))
        for axis, value in (("weight_var", weight_var), ("bias_var", bias_var))
    ]
    return float(arrays[name][*index, 0])


def _nets(results):
    """Correlations by width, each of shape (seeds, points, 2, layers)."""
    found = [results[name][0] for name in results if name.startswith("nets-")]
    return {config.width: arrays["c"] for config, arrays in found}


def _slopes(results):
    r"""Slope of the correlation map at each point: theory, measurement, and what it may be off by.

    It is the weighted mean of what the gap d between both starts shrinks by a layer,
    sum(w d') / sum(w d). In order a net changes the gap by a random factor, so each layer of each
    net counts alike; in chaos it adds noise, so layers count as the gap of theory does.
    """
    path = results["iterates"][0].arrays["c"][0]
    rows = []
    for index, (weight_var, bias_var, *_) in enumerate(POINTS):
        ordered = _at(results, "c", weight_var, bias_var) == 1
        gap = path[index, 0] - path[index, 1]

        def sums(d, gap=gap, ordered=ordered):
            weights = 1 / d[..., :-1] if ordered else gap[:-1]
            return (weights * d[..., 1:]).sum(-1), (weights * d[..., :-1]).sum(-1)

        samples = {}
        for width, c in _nets(results).items():
            after, before = sums(c[:, index, 0] - c[:, index, 1])
            slope = after.mean() / before.mean()
            # Each net's share in the error of the ratio.
            samples[width] = slope + (after - slope * before) / before.mean()
        theory = math.exp(-1 / _at(results, "xi_c", weight_var, bias_var))
        after, before = sums(gap)
        rows.append((theory, *infinite_width(samples), abs(after / before - theory)))
    return np.array(rows).T


def claims(results):
    """Numbers of theory, then nets: every correlation, c* in chaos, and the depth scales."""
    edges = results["edge"][0].arrays
    made = []
    for bias_var, published, digits in ((0.05, 1.76095, 5e-6), (2.01e-5, 1.049996, 5e-7)):
        found = float(edges["edge"][np.argmin(np.abs(edges["bias_var"] - bias_var)), 0])
        text = f"weight_var at the edge of chaos, bias_var {bias_var:g}"
        made.append(Claim(text, published, found, digits))
    for name, text, weight_var, published, digits in (
        ("c", "c* in chaos", 4.0, 0.16506, 5e-6),
        ("chi_1", "chi_1 in order", 1.3, 0.8802, 5e-5),
        ("xi_c", "xi_c in order", 1.3, 7.83, 5e-3),
        ("xi_c", "xi_c in order", 1.5, 15.79, 5e-3),
        ("xi_c", "xi_c in order", 1.7, 74.92, 5e-3),
    ):
        found = _at(results, name, weight_var, 0.05)
        made.append(Claim(f"{text}, theory, at ({weight_var}, 0.05)", published, found, digits))

    path = results["iterates"][0].arrays["c"][0]
    for name, start in (("upper", 0), ("lower", 1)):
        # In order the upper start is that of equal inputs, which stay so.
        chosen = [i for i, point in enumerate(POINTS) if point[3 + start] < 1]
        found = infinite_width({n: c[:, chosen, start] for n, c in _nets(results).items()})
        text = f"correlation in each layer of nets from the {name} start, every point"
        made.append(worst(text, path[chosen, start], *found))

    chaos = POINTS.index(next(point for point in POINTS if point[:2] == (4.0, 0.05)))
    late = path.shape[-1] * 2 // 3
    mean, allowed = infinite_width(
        {n: c[:, chaos, 1, late:].mean(-1) for n, c in _nets(results).items()}
    )
    c = _at(results, "c", 4.0, 0.05)
    left = abs(path[chaos, 1, late:].mean() - c)
    made.append(Claim("c* of nets at (4.0, 0.05)", c, float(mean), float(allowed + left)))

    for (weight_var, bias_var, *_), row in zip(POINTS, _slopes(results).T, strict=True):
        theory, slope, allowed, left = row
        text = f"factor exp(-1/xi_c) in nets at ({weight_var}, {bias_var})"
        made.append(Claim(text, theory, slope, allowed + left))
    return made


def figure(results):
    """The diagram with measured points in its own colours; depth scales; decay through depth."""
    fig, axes = figures.axes(1, 3, size=(4.1, 3.5))
    plane, scales, decay = axes[0]
    arrays, edges = results["fixed"][0].arrays, results["edge"][0].arrays
    _, slope, allowed, _ = _slopes(results)
    xi = -1 / np.log(slope)
    bars = np.abs(-1 / np.log([slope - allowed, np.minimum(slope + allowed, 1)]) - xi)

    # Orders of magnitude of xi_c, which is infinite at the edge; the same colours for nets.
    style = {"cmap": "magma", "vmin": 0, "vmax": 2}
    map_ = plane.pcolormesh(
        arrays["weight_var"],
        arrays["bias_var"],
        np.log10(arrays["xi_c"][..., 0].T),
        shading="gouraud",
        rasterized=True,
        **style,
    )
    order = np.argsort(edges["bias_var"])
    plane.plot(edges["edge"][order, 0], edges["bias_var"][order], color="#222222", linewidth=1.2)
    where = np.array(POINTS)[:, :2].T
    plane.scatter(
        *where,
        c=np.log10(xi),
        s=42,
        edgecolors="white",
        linewidths=1,
        zorder=4,
        clip_on=False,
        **style,
    )
    fig.colorbar(map_, ax=plane, label=r"$\log_{10}\, \xi_c$")
    text = {"color": "white", "fontsize": 9, "ha": "center"}
    plane.text(1.05, 0.42, "order", **text)
    plane.text(3.5, 0.42, "chaos", **text)
    plane.set(xlabel=r"weight variance $\sigma_w^2$", ylabel=r"bias variance $\sigma_b^2$")
    plane.set_title("theory; dots: nets, in the same colours")
    plane.grid(visible=False)

    for series, bias_var in enumerate((0.05, 0.2)):
        row = int(np.argmin(np.abs(arrays["bias_var"] - bias_var)))
        # Between two points of the grid the curve goes to infinity.
        critical = edges["edge"][np.argmin(np.abs(edges["bias_var"] - bias_var)), 0]
        x = np.append(arrays["weight_var"], critical)
        y = np.append(arrays["xi_c"][:, row, 0], 1e4)
        figures.line(scales, np.sort(x), y[np.argsort(x)], series=series)
        here = where[1] == bias_var
        scales.errorbar(
            where[0, here],
            xi[here],
            bars[:, here],
            color=figures.COLORS[series],
            fmt="o",
            markersize=4,
            markerfacecolor="white",
            label=rf"$\sigma_b^2 = {bias_var}$",
            zorder=4,
        )
    scales.set(yscale="log", ylim=(0.9, 200), xlabel=r"$\sigma_w^2$", ylabel=r"$\xi_c$")
    scales.set_title("depth scales, bars of 4 standard errors")

    path = results["iterates"][0].arrays["c"][0]
    nets = _nets(results)
    width = max(nets)
    layers = np.arange(1, path.shape[-1] + 1)
    for series, index in enumerate((1, 2, 3, 4, 5), start=2):
        weight_var, bias_var, *_ = POINTS[index]
        gap = path[index, 0] - path[index, 1]
        d = (nets[width][:, index, 0] - nets[width][:, index, 1]) / gap[0]
        # Noise of a gap that is gone has no logarithm.
        seen = d.mean(0) > 4 * d.std(0) / math.sqrt(len(d))
        figures.line(decay, layers, gap / gap[0], series=series)
        label = rf"$\sigma_w^2 = {weight_var}$"
        xi_c = _at(results, "xi_c", weight_var, bias_var)
        style = {"color": "#222222", "linewidth": 0.8, "linestyle": (0, (1, 2)), "zorder": 5}
        slope = r"$e^{-l/\xi_c}$" if series == 2 else None
        decay.plot(layers, np.exp(-(layers - 1) / xi_c), label=slope, **style)
        figures.band(decay, layers[seen], d[:, seen], spread="stderr", series=series, label=label)
    decay.set(yscale="log", ylim=(5e-3, 1.5), xlabel="layer", ylabel="gap between two starts")
    decay.set_title(rf"decay of correlations, width {width}, $\sigma_b^2 = 0.05$")
    figures.legend(fig)
    return fig
