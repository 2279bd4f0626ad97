r"""The error of a finite difference is a V over the step, and theory knows its bottom.

Paper    Nocedal and Wright (2006), section 8.1: truncation M h^p times a constant and rounding
         u |f| / h times another are least together at h* = 2 (u |f| / M)^(1/2) for forward
         differences, (3 u |f| / M)^(1/3) for central ones. In float64 that is 2.1e-8 and 6.9e-6
         where f and its derivatives are of one size, in float32 4.9e-4 and 5.6e-3.
Run      dltheory run finite_difference_v                      (four seconds on two cores)
         dltheory run finite_difference_v --profile full       (not timed)
Expect   exp at random points: slopes 1 and 2 on the right, -1 on the left; the best step is within
         half a decade of h*, and its error below the bound, since u is the worst rounding and not
         the usual one.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim
from dltheory.experiment.sweep import Sweep
from dltheory.numerics import scaling
from dltheory.theory import backprop

ORDERS = {1: "forward", 2: "central"}


@dataclass(frozen=True)
class Config:
    """A difference of the exponential function.

    Attributes:
        dtype: Dtype in which it is taken.
        log_step: Decimal logarithm of the step.
    """

    dtype: str = "float64"
    log_step: float = -5.0


def trial(key, config):
    """Errors of both differences at a random point of (1, 2), relative to the derivative."""
    x = jax.random.uniform(key, (), minval=1.0, maxval=2.0).astype(config.dtype)
    step = (10.0**config.log_step).astype(config.dtype)
    # The steps that are really made, for those asked for are not numbers of the dtype.
    up, down = x + step, x - step
    above, here, below = (jnp.exp(at).astype(float) for at in (up, x, down))
    high, middle, low = (at.astype(float) for at in (up, x, down))
    exact = jnp.exp(middle)
    return {
        "forward": jnp.abs((above - here) / (high - middle) / exact - 1),
        "central": jnp.abs((above - below) / (high - low) / exact - 1),
    }


def sweeps(profile, config):
    """Eight steps a decade; more points in the full profile."""
    seeds = {"quick": 500, "full": 5000}[profile]
    grid = {"log_step": tuple(np.arange(-112, 0) / 8)}
    cells = {"dtype": ("float32", "float64")}
    return [Sweep("errors", trial, config, cells=cells, grid=grid, seeds=seeds, x64=True)]


def _errors(arrays, config, order):
    """Steps that the dtype resolves, and the errors there, shape (steps, seeds)."""
    steps = 10.0 ** np.asarray(arrays["log_step"])
    seen = steps > 32 * np.finfo(config.dtype).eps
    return steps[seen], arrays[ORDERS[order]][seen]


def claims(results):
    """Both slopes, the best step and the least error."""
    made = []
    for config, arrays in results["errors"]:
        for order, name in ORDERS.items():
            steps, errors = _errors(arrays, config, order)
            middle = np.median(errors, 1)
            best = float(backprop.finite_difference_step(order, 1.0, config.dtype))
            bound = float(backprop.finite_difference_error(order, 1.0, 1.0, config.dtype))
            text = f"{name}, {config.dtype}"
            right, left = (steps > 8 * best) & (steps < 0.2), steps < best / 8
            slope = scaling.power_law(steps[right], middle[right]).exponent
            # The next term of the series adds h / 3, or h^2 / 20, to the error.
            made.append(Claim(f"slope of truncation ({text})", order, float(slope), 0.05))
            slope = scaling.power_law(steps[left], middle[left])
            allowed = 4 * float(slope.exponent_stderr)
            made.append(Claim(f"slope of rounding ({text})", -1, float(slope.exponent), allowed))
            found = np.log10(steps[middle.argmin()] / best)
            made.append(Claim(f"decades from the best step to h* ({text})", 0, found, 0.5))
            least = float(middle.min() / bound)
            made.append(Claim(f"least median error over its bound ({text})", 1, least, 0, "<="))
    return made


def figure(results):
    """Errors over steps, with the bound and its bottom."""
    fig, axes = figures.axes(1, 2, size=(4.2, 3.6), sharey=True)
    for ax, (order, name) in zip(axes[0], ORDERS.items(), strict=True):
        for series, (config, arrays) in enumerate(results["errors"]):
            steps, errors = _errors(arrays, config, order)
            shown = slice(None, None, 3)
            samples = np.where(errors > 0, errors, np.nan)[shown].T
            figures.band(ax, steps[shown], samples, series=series, label=config.dtype)
            unit = np.finfo(config.dtype).eps / 2
            truncation, rounding = {1: (1 / 2, 2), 2: (1 / 6, 1)}[order]
            bound = truncation * steps**order + rounding * unit / steps
            figures.line(ax, steps, bound, series=series)
            best = float(backprop.finite_difference_step(order, 1.0, config.dtype))
            least = float(backprop.finite_difference_error(order, 1.0, 1.0, config.dtype))
            ax.plot(best, least, "*", color=figures.COLORS[series], markersize=11, zorder=6)
        ax.set(xscale="log", yscale="log", xlabel="step h", title=f"{name} difference")
    axes[0, 0].set_ylabel("relative error")
    figures.legend(fig)
    return fig
