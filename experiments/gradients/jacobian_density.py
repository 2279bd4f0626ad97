r"""The whole spectrum of the Jacobian: free probability against networks, activation by activation.

Paper    Pennington, Schoenholz and Ganguli (2017), Resurrecting the sigmoid in deep learning
         through dynamical isometry; (2018), The emergence of spectral universality in deep
         networks. Of J = W_L D_L ... W_1 D_1 at infinite width the S-transforms multiply, which
         gives density, point masses and edge of the squared singular values, of mean one at the
         edge of chaos, and their variance L(mu_2/mu_1^2 - 1 - s_1).
Run      dltheory run jacobian_density                 (half a minute on two cores)
         dltheory run jacobian_density --profile full  (not timed)
Expect   All of it holds, for four activations with Gaussian and orthogonal weights. At depth 4 the
         relative variance is 4 for linear and 8 for ReLU networks with Gaussian weights, 0 and 4
         with orthogonal ones; the edge of Gaussian linear networks is 5^5/4^4 = 12.2, approached
         like width^(-2/3). Half of ReLU's singular values are zero, 53 in 100 at width 300, where
         the layer with the fewest active units decides. Orthogonal linear networks are isometries,
         and 82 in 100 of hard_tanh's values are one and the same, the largest.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, infinite_width, worst
from dltheory.experiment.sweep import Sweep
from dltheory.networks import activations
from dltheory.networks.activations import Activation
from dltheory.theory import dual, free_probability, mean_field

ACTIVATIONS = ("identity", "relu", "hard_tanh", "tanh")
ENSEMBLES = free_probability.ENSEMBLES
# But for rounding, values are zero, or on a point mass; products of Gaussians come close to zero.
ROUNDING, NOTHING = 1e-9, 1e-26


@dataclass(frozen=True)
class Config:
    """A network on its edge of chaos.

    Attributes:
        activation: Index of the activation, of identity, relu, hard_tanh and tanh.
        width: Units of each layer.
        depth: Number of factors W D.
        q: Variance of the pre-activations.
    """

    activation: int = 0
    width: int = 300
    depth: int = 4
    q: float = 0.25


def _edge_of_chaos(config):
    """Activation, and variances of weights and biases that fix the length q with chi_1 of one."""
    index = jnp.asarray(config.activation, jnp.int32)
    fn = lambda h: jax.lax.select_n(index, *(activations.get(name)(h) for name in ACTIVATIONS))
    # One program for all: the kinks of one are harmless to the others.
    phi = Activation("one of four", fn, (-1.0, 0.0, 1.0), 0)
    weight_var = 1 / dual.derivative_moment(phi, config.q)
    bias_var = config.q - mean_field.q_map(phi, config.q, weight_var=weight_var)
    return phi, weight_var, jnp.maximum(bias_var, 0)


def trial(key, config):
    """Squared singular values from the first to the last pre-activation, for both ensembles."""
    phi, weight_var, bias_var = _edge_of_chaos(config)
    n, depth = config.width, config.depth
    normal = jax.random.normal(key, (depth * n + depth + 1, n))
    h = normal[0] * jnp.sqrt(config.q / jnp.mean(normal[0] ** 2))
    biases = jnp.sqrt(bias_var) * normal[1 : depth + 1]
    weights = normal[depth + 1 :].reshape(depth, n, n)
    rotations, triangles = jnp.linalg.qr(weights)
    # Signs of the diagonal make them uniform (Haar).
    rotations *= jnp.sign(jnp.diagonal(triangles, axis1=1, axis2=2))[:, None]

    def squares(weights):
        layer = lambda h, item: (item[0] @ phi(h) + item[1], None)
        network = lambda h: jax.lax.scan(layer, h, (jnp.sqrt(weight_var) * weights, biases))[0]
        return jnp.linalg.svd(jax.jacfwd(network)(h), compute_uv=False) ** 2

    return {"squares": jax.lax.map(squares, jnp.stack([weights / math.sqrt(n), rotations]))}


def theory(key, config):
    """Density, point masses, edge and relative variance at infinite width, for both ensembles."""
    del key
    phi, weight_var, _ = _edge_of_chaos(config)
    found = []
    for ensemble in ENSEMBLES:
        at = {"q": config.q, "depth": config.depth, "weight_var": weight_var, "ensemble": ensemble}
        density = free_probability.squared_density(phi, points=256, **at)
        atoms = free_probability.squared_atoms(phi, **at)
        found.append(
            {
                "support": density.support,
                "density": density.density,
                "atom_values": atoms.values,
                "atom_masses": atoms.masses,
                "edge": free_probability.squared_edge(phi, **at),
                "variance": free_probability.jacobian_variance(phi, **at),
            }
        )
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *found)


def sweeps(profile, config):
    """Four activations, each with both ensembles, at several widths; wider in the full profile."""
    sizes = {"quick": {100: 150, 300: 64}, "full": {200: 1000, 400: 400, 800: 100}}[profile]
    shared = {"grid": {"activation": range(len(ACTIVATIONS))}, "batching": "map", "x64": True}
    nets = [
        Sweep(f"nets-{width}", trial, replace(config, width=width), seeds=seeds, **shared)
        for width, seeds in sizes.items()
    ]
    return [*nets, Sweep("theory", theory, config, **shared)]


def _panels(results):
    """Of each panel: depth, name, theory, and by width the squares, of shape (seeds, width)."""
    cells = dict(results)
    [(config, predicted)] = cells.pop("theory")
    for row, ensemble in enumerate(ENSEMBLES):
        for i, index in enumerate(predicted["activation"]):
            found = {k: a[i, 0, row] for k, a in predicted.items() if k != "activation"}
            squares = {c.width: a["squares"][i, :, row] for [(c, a)] in cells.values()}
            yield config.depth, f"{ACTIVATIONS[int(index)]}, {ensemble}", found, squares


def _share(x, found):
    """Theory's share of the values up to x."""
    support, masses = found["support"], found["atom_masses"]
    slope = found["density"] * support
    # Counted from above, since the grid leaves out a millionth below.
    above = np.cumsum(((slope[1:] + slope[:-1]) / 2 * np.diff(np.log(support)))[::-1])[::-1]
    rest = 1 - masses.sum()
    smooth = rest - np.interp(x, support, np.append(above, 0.0), left=rest)
    return smooth + (masses * (x[:, None] >= found["atom_values"])).sum(1)


def _zeros(mass, width, depth):
    """Share of zeros at a finite width: what the layer with the most flat units takes away."""
    at_most = stats.binom.cdf(np.arange(width), width, mass)
    return float((1 - at_most**depth).sum() / width)


def claims(results):
    """Distribution, relative variance and edge of each panel, and the shares of point masses."""
    made = []
    for depth, what, found, squares in _panels(results):
        values, masses, edge = found["atom_values"], found["atom_masses"], float(found["edge"])
        largest = {n: s.max(1) for n, s in squares.items()}
        if np.isclose(masses[values > 0].sum(), 1):
            off = max(float(np.abs(s / edge - 1).max()) for s in squares.values())
            text = f"s^2, relative to the one value it has, less 1: largest ({what})"
            made.append(Claim(text, 0, off, ROUNDING))
            continue

        n, widest = max(squares.items())
        zero = float(masses[values == 0].sum())
        expected = _zeros(zero, n, depth)
        x = np.geomspace(1e-6, 2 * edge, 512)
        shares = np.stack([np.searchsorted(np.sort(s), x, side="right") for s in widest]) / n
        distance = np.abs(shares.mean(0) - _share(x, found))
        at = distance.argmax()
        # One value of n, and the zeros that a finite width adds.
        allowed = 1 / n + expected - zero + _four_stderr(shares[:, at])
        text = f"largest distance of the distributions, width {n} ({what})"
        made.append(Claim(text, 0, float(distance[at]), float(allowed)))

        ratios = {n: s.var(1) / s.mean(1) ** 2 for n, s in squares.items()}
        text = f"relative variance, extrapolated ({what})"
        made.append(worst(text, found["variance"], *infinite_width(ratios)))

        if (top := masses[values > 0].sum()) > 0:
            off = max(float(np.abs(s / edge - 1).max()) for s in largest.values())
            text = f"largest value relative to its point mass, less 1 ({what})"
            made.append(Claim(text, 0, off, ROUNDING))
            on = {n: (np.abs(s / edge - 1) < ROUNDING).mean(1) for n, s in squares.items()}
            text = f"share at the largest value, extrapolated ({what})"
            made.append(worst(text, top, *infinite_width(on)))
        else:
            # Lengths that fluctuate move all values; an edge is approached like width**(-2/3).
            slowly = {n ** (2 / 3): s / squares[n].mean(1) for n, s in largest.items()}
            text = f"largest value relative to the mean, extrapolated ({what})"
            made.append(worst(text, edge, *infinite_width(slowly)))
        if what.startswith("relu"):
            shares = (widest < NOTHING).mean(1)
            text = f"share of zeros, width {n} ({what})"
            made.append(Claim(text, expected, float(shares.mean()), _four_stderr(shares)))
    return made


def _four_stderr(samples):
    return 4 * float(samples.std(ddof=1)) / math.sqrt(len(samples))


def figure(results):
    """Density of log10 of the squares: theory as lines, histograms of the widest nets behind."""
    panels = list(_panels(results))
    fig, axes = figures.axes(2, len(panels) // 2, size=(2.5, 2.3), sharex=True)
    color, mass_color, bins = figures.COLORS[0], figures.COLORS[1], np.linspace(-6, 1.8, 79)
    for ax, (_, what, found, squares) in zip(axes.flat, panels, strict=True):
        n, widest = max(squares.items())
        masses, values = found["atom_masses"], found["atom_values"]
        within = {"transform": ax.get_xaxis_transform(), "va": "top", "fontsize": 8}
        top = np.flatnonzero((masses > 0) & (values > 0))
        on = (np.abs(widest[..., None] / values[top] - 1) < ROUNDING).any(-1)
        logs = np.log10(np.maximum(widest[~on], NOTHING))
        heights = np.histogram(logs, bins)[0] / widest.size / np.diff(bins)
        label = f"networks of width {n}"
        ax.stairs(heights, bins, fill=True, color=color, alpha=0.25, label=label)
        per_decade = found["density"] * found["support"] * math.log(10)
        if masses.sum() < 1 - ROUNDING:
            figures.line(ax, np.log10(found["support"]), per_decade)
            ax.locator_params(axis="y", nbins=5)
        else:
            ax.set_yticks([])
        for i in top:
            at, label = math.log10(values[i]), "point mass (measured)"
            ax.axvline(at, color=mass_color, label=label)
            text = f"{masses[i]:.0%}\n({on.mean():.0%})"
            ax.text(at + 0.15, 0.96, text, color=mass_color, **within)
        if (zero := masses[values == 0].sum()) > 0:
            text = f"{zero:.1%} at zero\n({(widest < NOTHING).mean():.1%})"
            ax.text(bins[0] + 0.2, 0.96, text, color=mass_color, **within)
        ax.set(xlim=bins[[0, -1]], ylim=(0, None), title=what)
    for ax in axes[1]:
        ax.set_xlabel(r"$\log_{10} s^2$")
    for ax in axes[:, 0]:
        ax.set_ylabel("density per decade")
    figures.legend(fig)
    return fig
