r"""A digit as a function on the square, approximated by ReLU networks with certified errors.

Paper    D'Azevedo & Simpson (1989), On optimal interpolation triangle incidences: on small
         triangles the error of linear interpolation is that of the quadratic with the target's
         Hessian. Arora et al. (2018), Understanding deep neural networks with rectified linear
         units: every continuous piecewise linear function is a ReLU network.
Run      dltheory run a_real_target                 (half a minute on two cores)
         dltheory run a_real_target --profile full  (not timed)
Expect   The error on a mesh of n x n squares, cut in two, is C / n^2 once squares are smaller than
         pixels, with about n^2 units: the rate -2/d in units, in d = 2 dimensions. The network has
         2 n^2 linear regions, no more. C comes from the target's Hessian alone.

The target is the function of least frequencies through the 64 pixels of a scanned zero: a sum of
cosines. Nothing is random, and a certificate is a search that cannot be traced: the trial writes
down and measures its networks while it is traced.
"""

import itertools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import approximation as measured
from dltheory.measure import regions
from dltheory.networks import data
from dltheory.numerics import scaling
from dltheory.theory import meshes

CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
SIDE = 8  # pixels
FINE = 96  # points of a picture along each axis, less one


@dataclass(frozen=True)
class Config:
    """Meshes of the square.

    Attributes:
        digit: Which of the scanned digits.
        cells: Squares along each axis.
        drawn: Which of them to draw.
        resolved: Relative width of the brackets that is asked for.
    """

    digit: int = 0
    cells: tuple[int, ...] = (4, 8, 16, 32)
    drawn: int = 8
    resolved: float = 0.1


def coefficients(pixels):
    """Of cosines of the two coordinates: the values at the middles of the pixels are theirs."""
    k = np.arange(SIDE)
    waves = np.cos(np.pi * np.outer(k, (k + 0.5) / SIDE)) * np.where(k == 0, 1, 2)[:, None] / SIDE
    return waves @ pixels.T @ waves.T


def target(weights):
    """The function of `x`, shape `(2,)`: across and down."""
    k = np.pi * np.arange(SIDE)
    return lambda x: jnp.cos(k * x[0]) @ weights @ jnp.cos(k * x[1])


def sampled(weights, n, order=(0, 0)):
    """Values or derivatives at the nodes of a mesh."""
    k, u = np.pi * np.arange(SIDE), np.linspace(0, 1, n + 1)
    # Each derivative is a quarter of a period further.
    across, down = (k**m * np.cos(np.outer(u, k) + m * np.pi / 2) for m in order)
    return across @ weights @ down.T


def trial(key, config):
    """Brackets of the errors, last axis (2,), units and regions of networks; pictures."""
    del key
    with jax.ensure_compile_time_eval():
        pixels = np.asarray(data.digits(flat=False).x[config.digit], float).reshape(SIDE, SIDE)
        weights = coefficients(pixels)
        f, errors, units, counts = target(weights), [], [], []
        for n in config.cells:
            net = meshes.interpolation(sampled(weights, n), np.zeros(2), np.ones(2))
            box = np.zeros(2), np.ones(2)
            errors.append(jnp.stack(measured.sup_error(f, net, box, rtol=config.resolved)))
            units.append(net.params["params"]["first"]["kernel"].shape[1])
            counts.append(regions.count_on_plane(net.apply, net.params, *CORNERS))
            if n == config.drawn:
                u = np.stack(np.meshgrid(*[np.linspace(0, 1, FINE + 1)] * 2, indexing="ij"), -1)
                drawn = net.apply(net.params, jnp.asarray(u.reshape(-1, 2)))
        return {
            "pixels": jnp.array(pixels),
            "errors": jnp.stack(errors),
            "units": jnp.array(units),
            "regions": jnp.array(counts),
            "target": jnp.array(sampled(weights, FINE)),
            "network": drawn.reshape(FINE + 1, FINE + 1),
        }


def sweeps(profile, config):
    """One digit; one mesh more in the full profile."""
    if profile == "full" and config == Config():
        config = Config(cells=(4, 8, 16, 32, 64), resolved=0.02)
    return [Sweep("digit", trial, config, x64=True)]


def constant(weights):
    """Largest n^2 times the error on a mesh of n squares, as n grows, from the Hessian.

    On a triangle with corners p the quadratic y H y / 2 errs by half of
    sum_i l_i p_i H p_i - y H y at the point y with barycentric coordinates l.
    """
    second = [sampled(weights, 256, order) for order in ((2, 0), (1, 1), (0, 2))]
    found = 0.0
    for corners in ([[0, 0], [1, 0], [1, 1]], [[0, 0], [0, 1], [1, 1]]):
        p = np.array(corners, float)
        for i, j in itertools.product(range(25), repeat=2):
            share = np.array([i, j, 24 - i - j]) / 24
            if share[2] < 0:
                continue
            spread = (p.T * share) @ p - np.outer(share @ p, share @ p)
            error = (
                spread[0, 0] * second[0] + 2 * spread[0, 1] * second[1] + spread[1, 1] * second[2]
            )
            found = max(found, float(np.abs(error).max()) / 2)
    return found


def claims(results):
    """Constant, rate and regions."""
    ((config, arrays),) = results["digit"]
    n, errors = np.array(config.cells), arrays["errors"][0]
    middle, half = errors.mean(-1), np.diff(errors)[:, 0] / 2
    limit = constant(coefficients(arrays["pixels"][0].astype(float)))
    # The shortest wave is two pixels long; of its square, (pi SIDE / n)^2, a twelfth is next.
    short = (math.pi * SIDE / n[-1]) ** 2 / 12
    made = [
        Claim(
            f"error times n^2, over that of the Hessian, {n[-1]} x {n[-1]} squares",
            1.0,
            float(middle[-1] * n[-1] ** 2 / limit),
            float(half[-1] * n[-1] ** 2 / limit) + short,
        ),
    ]
    units = arrays["units"][0].astype(float)
    fit = scaling.power_law(units[-2:], middle[-2:], stderr=half[-2:])
    allowed = float((half / middle)[-2:].sum() + 4 * short) / math.log(units[-1] / units[-2])
    text = "exponent of the error in units, last two"
    made.append(Claim(text, -1.0, float(fit.exponent), allowed))
    made.append(worst("units over (n + 1)^2 - 1", 1.0, units / ((n + 1.0) ** 2 - 1), 0.0))
    counts = arrays["regions"][0]
    made.append(worst("linear regions over 2 n^2", 1.0, counts / (2.0 * n**2), 0.0))
    wide = float((errors[:, 1] / errors[:, 0]).max()) - 1
    made.append(Claim("relative width of a bracket", config.resolved, wide, 1e-6, "<="))
    return made


def figure(results):
    """The digit, its function, a network and its error; errors against units."""
    ((config, arrays),) = results["digit"]
    fig, axes = figures.axes(1, 4, size=(2.6, 3.0))
    pixels, network, gap, rate = axes[0]
    shown = {"cmap": "magma", "vmin": -0.2, "vmax": 1.2, "extent": (0, 1, 1, 0)}
    pixels.imshow(arrays["target"][0].T, interpolation="bilinear", **shown)
    middles = (np.arange(SIDE) + 0.5) / SIDE
    x, y = np.meshgrid(middles, middles)
    pixels.scatter(
        x,
        y,
        c=arrays["pixels"][0],
        s=14,
        edgecolor="white",
        linewidth=0.4,
        **{k: shown[k] for k in ("cmap", "vmin", "vmax")},
    )
    pixels.set_title("64 pixels, and the target")
    n = config.drawn
    network.imshow(arrays["network"][0].T, interpolation="bilinear", **shown)
    for k in range(1 - n, n):
        edge = np.array([max(0, k), min(n, n + k)]) / n
        network.plot(edge, edge - k / n, color="white", linewidth=0.3)
        if k > 0:
            network.axvline(k / n, color="white", linewidth=0.3)
            network.axhline(k / n, color="white", linewidth=0.3)
    at = config.cells.index(n)
    network.set_title(f"{arrays['units'][0][at]} units in each layer")
    error = (arrays["network"][0] - arrays["target"][0]).T
    most = np.abs(error).max()
    gap.imshow(error, cmap="RdBu_r", vmin=-most, vmax=most, extent=(0, 1, 1, 0))
    low, high = arrays["errors"][0][at]
    gap.set_title(f"its error, {low:.2f} to {high:.2f} at most")
    for ax in (pixels, network, gap):
        ax.set(xticks=(), yticks=(), xlim=(0, 1), ylim=(1, 0))
        ax.grid(visible=False)
    units, errors = arrays["units"][0], arrays["errors"][0]
    limit = constant(coefficients(arrays["pixels"][0].astype(float)))
    span = np.geomspace(units[0] / 1.5, units[-1] * 1.5, 30)
    figures.line(rate, span, limit / (np.sqrt(span + 1) - 1) ** 2, label="Hessian")
    middle, half = errors.mean(-1), np.diff(errors)[:, 0] / 2
    rate.errorbar(
        units,
        middle,
        half,
        linestyle="none",
        marker="o",
        markersize=4.5,
        markerfacecolor="white",
        color=figures.COLORS[1],
        label="bracket of the sup error",
    )
    rate.set(xscale="log", yscale="log", xlabel="units of each layer", ylabel="sup error")
    rate.set_title(r"$C\,/\,n^2$, about $n^2$ units")
    figures.legend(fig)
    return fig
