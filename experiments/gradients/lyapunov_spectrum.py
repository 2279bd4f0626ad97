r"""Products of up to 1000 Gaussian matrices against Newman's exponents, and the product that lies.

Paper    Newman (1986): the singular values of a product of L Gaussian matrices grow as
         exp(L lambda_i), lambda_i = [log(2/n) + psi((n-i+1)/2)]/2. In L times lambda_i each factor
         adds the logarithm of a chi variable with n-i+1 degrees of freedom, of variance
         psi'((n-i+1)/2)/4, so that the values are known with their fluctuations.
Run      dltheory run lyapunov_spectrum                 (under half a minute on two cores)
         dltheory run lyapunov_spectrum --profile full  (not timed)
Expect   Every exponent within four standard errors. At depth L they are off by c/L, which the
         difference of two depths removes. The product that is formed and decomposed in float64
         holds but the values within 36 nats of the largest: the few that theory counts. All others
         are rounding, and look as if every exponent were the largest.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.numerics import log_spectrum
from dltheory.theory import finite_width

DEPTHS = (10, 20, 50, 100, 200, 500, 1000)
EPSILON = 2.0**-52
# A singular value is right if it is within one per cent.
RIGHT = 0.01


@dataclass(frozen=True)
class Config:
    """A product of square matrices with independent Gaussian entries.

    Attributes:
        width: Rows and columns of each.
        weight_var: Variance of the entries times the width.
    """

    width: int = 16
    weight_var: float = 1.0


def trial(key, config):
    """Singular values of the partial products: factored, and of the product that is formed."""
    shape = (DEPTHS[-1], config.width, config.width)
    factors = jax.random.normal(key, shape) * jnp.sqrt(config.weight_var / config.width)
    at = np.array(DEPTHS) - 1
    multiply = lambda product, factor: (factor @ product,) * 2
    _, products = jax.lax.scan(multiply, jnp.eye(config.width), factors)
    return {
        "log_values": log_spectrum.prefix_log_spectra(factors).log_values[at],
        "plain": jnp.log(jnp.linalg.svd(products[at], compute_uv=False)),
        "log_volume": jnp.cumsum(jnp.linalg.slogdet(factors)[1])[at],
        "exponents": finite_width.lyapunov_exponents(config.width, config.weight_var),
    }


def sweeps(profile, config):
    """One width in the quick profile; three in the full one."""
    seeds = {"quick": 48, "full": 1000}[profile]
    cells = {} if profile == "quick" else {"width": (8, 16, 32)}
    return [Sweep("product", trial, config, cells=cells, seeds=seeds, x64=True)]


def _right(arrays, depth):
    """Which values of the formed product are right, shape (seeds, width)."""
    at = DEPTHS.index(depth)
    return np.abs(arrays["plain"][:, at] - arrays["log_values"][:, at]) < RIGHT


def _counted(exponents, variances, depth, noise):
    """How many values theory expects to stand above `noise` times the largest one."""
    margin = -math.log(noise) - depth * (exponents[0] - exponents)
    spread = np.sqrt(depth * (variances[0] + variances))
    spread[0] = 0.0  # The largest value is compared with itself.
    return float(np.where(spread > 0, special.ndtr(margin / np.maximum(spread, 1e-300)), 1.0).sum())


def claims(results):
    """Exponents, fluctuations, volumes and bounds; then what the formed product gets right."""
    made = []
    for config, arrays in results["product"]:
        n = config.width
        logs, exponents = arrays["log_values"], arrays["exponents"][0]
        seeds = len(logs)
        stderr = lambda samples: samples.std(0, ddof=1) / math.sqrt(len(samples))

        early, late = DEPTHS.index(500), DEPTHS.index(1000)
        rate = (logs[:, late] - logs[:, early]) / (DEPTHS[late] - DEPTHS[early])
        text = f"growth of each log singular value from factor 500 to 1000, per factor (width {n})"
        made.append(worst(text, exponents, rate.mean(0), 4 * stderr(rate)))

        variances = special.polygamma(1, (n - np.arange(n)) / 2) / 4
        deviations = logs[:, late].std(0, ddof=1) / math.sqrt(DEPTHS[late])
        allowed = 4 * np.sqrt(variances) / math.sqrt(2 * (seeds - 1))
        text = f"fluctuation of each over seeds, per square root of a factor (width {n})"
        made.append(worst(text, np.sqrt(variances), deviations, allowed))

        # What log_spectrum states, for each of n values.
        error = logs.sum(-1) - arrays["log_volume"]
        made.append(worst(f"sum of all less the sum of log|det| (width {n})", 0, error, n * 1e-9))

        # Horn's inequality: the k largest have at least the product that QR gives k columns.
        sums = np.cumsum(logs, -1)
        excess = sums.mean(0) - np.outer(DEPTHS, np.cumsum(exponents))
        lowest = float((excess + 4 * stderr(sums))[:, :-1].min())
        text = f"sum of the k largest less L times that of their exponents, lowest (width {n})"
        made.append(Claim(text, 0.0, lowest, 0.0, ">="))

        for depth in (200, 1000):
            count = _right(arrays, depth).sum(-1)
            # An error between eps and n eps of the largest value is one per cent of the last.
            least, most = (
                _counted(exponents, variances, depth, c * EPSILON / RIGHT) for c in (n, 1)
            )
            text = f"values of {n} that the formed product gets right at depth {depth}, mean"
            allowed = (most - least) / 2 + 4 * float(stderr(count))
            made.append(Claim(text, (most + least) / 2, float(count.mean()), allowed))
    return made


def figure(results):
    """Exponents through depth, and the whole spectrum at one depth."""
    return {
        f"width_{config.width}": _figure(config, arrays) for config, arrays in results["product"]
    }


def _figure(config, arrays):
    fig, axes = figures.axes(1, 2, size=(4.4, 3.6))
    through, whole = axes[0]
    n, logs, plain = config.width, arrays["log_values"], arrays["plain"]
    exponents, depths = arrays["exponents"][0], np.array(DEPTHS)
    for series, i in enumerate(np.unique(np.linspace(0, n - 1, 5).round().astype(int))):
        figures.band(
            through, depths, logs[..., i] / depths, series=series, label=rf"$s_{{{i + 1}}}$"
        )
        figures.line(through, depths[[0, -1]], exponents[[i, i]], series=series)
        wrong = np.abs(plain[0, :, i] - logs[0, :, i]) >= RIGHT
        _lies(through, depths[wrong], (plain[0, :, i] / depths)[wrong], figures.COLORS[series])
    through.set(xscale="log", xlabel="factors L", ylabel=r"$\log s_i\,/\,L$")
    through.set_title(f"exponents, width {n}")

    at = DEPTHS.index(200)
    index = np.arange(1, n + 1)
    figures.line(whole, index, 200 * exponents / np.log(10), series=0)
    figures.band(whole, index, logs[:, at] / np.log(10), series=0)
    wrong = ~_right(arrays, 200)[0]
    _lies(whole, index[wrong], plain[0, at][wrong] / np.log(10), "#222222")
    whole.set(xlabel="index i", ylabel=r"$\log_{10} s_i$")
    whole.set_title("200 factors")
    figures.legend(fig)
    return fig


def _lies(ax, x, y, color):
    """Mark values of the formed product that are wrong, of one seed."""
    label = "formed product, wrong" if color in ("#222222",) else None
    ax.plot(x, y, linestyle="none", marker="x", markersize=5, color=color, label=label, zorder=5)
