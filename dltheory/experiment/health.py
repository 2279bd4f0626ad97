r"""What is wrong with a network, where it starts, and the bound of theory that says so.

Let a network fall into pieces at its cuts, each with at least one kernel, the last layer apart.
A piece multiplies squared gradients by :math:`e^{g}`, with :math:`g = \log \chi_1` in theory.

* *Exploding, vanishing*: over some stretch of layers
  :math:`\left|\sum_l g_l\right| > 6 + 4 \sqrt{\sum_l v_l}`. Six is the depth up to which networks
  train, :math:`L \le 6\,\xi` with :math:`\xi = 1 / |\log \chi_1|` (Schoenholz et al. 2017, who
  measured it of the correlation's depth scale); :math:`v_l` is the relative variance of
  :math:`\chi_1` at this width. Likewise the length of the signal.
* *Dead*: more units are flat for every example than a Gaussian signal of that length would leave
  flat for a single one, by four standard deviations of a binomial share.
* *Saturated*: more than half of all units are flat, by four standard deviations: half is what a
  one-sided activation such as ReLU leaves flat at any length.
* *Frozen*: a gradient is exactly zero though neither units nor precision explain it.
* *Underflow*: in half precision more than one gradient in twenty is zero that is not when the
  loss is scaled up.
* *Overflow*: a value or gradient is not finite.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from dltheory.experiment.anatomy import Model, opened
from dltheory.experiment.examination import Readings
from dltheory.experiment.expectation import Expectation, averages

DEPTH = 6.0
BAND = 4.0
LOST = 0.05


class Fault(NamedTuple):
    """One thing that is wrong.

    Attributes:
        kind: "overflow", "underflow", "frozen", "dead", "saturated", "exploding" or "vanishing".
        row: Number of the layer where it starts, in run order.
        site: Its text.
        what: What it happens to: "signal", "gradients" or "signal and gradients", "units".
        value: The number measured.
        limit: The bound that it passes.
        text: All of it in plain words.
    """

    kind: str
    row: int
    site: str
    what: str
    value: float
    limit: float
    text: str


class Piece(NamedTuple):
    """Layers between two cuts, with one kernel at least.

    Attributes:
        start: Row of the cut before.
        stop: Row of the cut after.
        kernels: Rows of the layers with a kernel between them.
        growth: Log growth of squared gradients, backwards.
        signal: Log growth of the squared signal, forwards.
        growth_var: Variance of the first at this width.
        signal_var: Variance of the second at this width.
        growth_expected: The first as theory gives it for these weights, or as measured.
        signal_expected: The second likewise.
    """

    start: int
    stop: int
    kernels: tuple[int, ...]
    growth: float
    signal: float
    growth_var: float
    signal_var: float
    growth_expected: float
    signal_expected: float


def pieces(model: Model, readings: Readings, theory: Expectation) -> list[Piece]:
    """The hidden part of a network in pieces.

    Args:
        model: Result of `anatomy.model`.
        readings: Result of `examination.read`.
        theory: Result of `expectation.expect`.

    Returns:
        The pieces in run order; a piece without a kernel, such as a normalisation, belongs to the
        one before it. The piece that ends in the output is left out.
    """
    with np.errstate(all="ignore"):
        return _pieces(model, readings, theory)


def _pieces(model: Model, readings: Readings, theory: Expectation) -> list[Piece]:
    found: list[Piece] = []
    cuts = np.flatnonzero(model.cuts & ~model.last)
    kernels = opened(model)
    for before, after in itertools.pairwise(cuts.tolist()):
        growth = float(readings.growth[after])
        signal = float(readings.log_q[after] - readings.log_q[before])
        if kernels[after]:
            noise = _noise(model, readings, kernels[after])
            expected = growth, signal
            if kernels[after] == [after] and before == after - 1 and not theory.skips[after]:
                own = np.log(theory.chi_1[after]), np.log(theory.q[after]) - readings.log_q[before]
                expected = tuple(
                    o if math.isfinite(o) else e for o, e in zip(own, expected, strict=True)
                )
            found.append(
                Piece(before, after, tuple(kernels[after]), growth, signal, *noise, *expected)
            )
        elif found:
            last = found[-1]
            found[-1] = last._replace(
                stop=after,
                growth=last.growth + growth,
                signal=last.signal + signal,
                growth_expected=last.growth_expected + growth,
                signal_expected=last.signal_expected + signal,
            )
    return found


def find(
    model: Model, readings: Readings, theory: Expectation, scaled: Readings | None = None
) -> tuple[Fault, ...]:
    """Find what is wrong, the cause first.

    Args:
        model: Result of `anatomy.model`.
        readings: Result of `examination.read`.
        theory: Result of `expectation.expect`.
        scaled: Readings with the loss scaled up, for a model in half precision.

    Returns:
        The faults, by the layer where they start; what follows from another fault is left out.
    """
    if found := _overflow(model, readings):
        return (found,)
    if scaled is not None and (found := _underflow(model, readings, scaled)):
        return (found,)
    if found := _dead(model, readings, theory) or _frozen(model, readings):
        return (found,)
    parts = pieces(model, readings, theory)
    flat = _saturated(model, readings)
    # Where units are flat, gradients vanish behind them.
    signs = (1,) if flat else (1, -1)
    found = [flat, *(_chain(model, parts, sign) for sign in signs)]
    return tuple(sorted((one for one in found if one), key=lambda fault: fault.row))


def _overflow(model: Model, readings: Readings) -> Fault | None:
    bad = np.flatnonzero(~readings.finite)
    if len(bad) or math.isnan(readings.log_output) or readings.log_output == math.inf:
        row = int(bad[0]) if len(bad) else len(model.sites) - 1
        text = f"the values of {model.sites[row]} are not finite, the first in run order"
        return Fault("overflow", row, str(model.sites[row]), "signal", math.nan, math.nan, text)
    bad = np.flatnonzero(np.isnan(readings.log_gradient) | (readings.log_gradient == np.inf))
    if not len(bad):
        return None
    row = int(bad[-1])
    text = f"the gradient of {model.sites[row]} is not finite, the first on the way back"
    return Fault("overflow", row, str(model.sites[row]), "gradients", math.nan, math.nan, text)


def _underflow(model: Model, readings: Readings, scaled: Readings) -> Fault | None:
    lost = np.where(model.half, readings.lost - scaled.lost, 0)
    bad = np.flatnonzero(lost > LOST)
    if not len(bad):
        return None
    row, share = int(bad[-1]), float(lost[bad[-1]])
    text = (
        f"{share:.0%} of the gradients of {model.sites[row]} are too small for its precision and "
        f"come out as zero, and those of {len(bad) - 1} layers before it"
    )
    return Fault("underflow", row, str(model.sites[row]), "gradients", share, LOST, text)


def _frozen(model: Model, readings: Readings) -> Fault | None:
    kernels = np.array([kernel is not None for kernel in model.kernels])
    empty = kernels & (readings.weight_var == 0) & model.cuts & ~model.last
    empty &= ~np.isfinite(readings.growth)
    stopped = kernels & (readings.kernel_gradient == -np.inf) & (readings.weight_var > 0)
    stopped &= np.isfinite(readings.log_gradient)
    for row in np.flatnonzero(stopped):
        # Nothing to learn from a layer that hands on nothing.
        before = row - 1
        silent = before >= 0 and (readings.dead[before] == 1 or readings.log_q[before] == -np.inf)
        stopped[row] = not silent
    bad = np.flatnonzero(empty | stopped)
    if len(bad):
        row = int(bad[0])
        why = (
            "its weights are all zero, and no gradient passes them"
            if empty[row]
            else "the gradient of its weights is exactly zero, that of its values is not: they are "
            "cut off, as by stop_gradient"
        )
        text = f"{model.sites[row]} is frozen: {why}"
        return Fault("frozen", row, str(model.sites[row]), "gradients", 0.0, 0.0, text)
    return _blocked(model, readings)


def _blocked(model: Model, readings: Readings) -> Fault | None:
    """The last layer that no gradient reaches, though the layer after it has one."""
    none = readings.log_gradient == -np.inf
    head = np.flatnonzero([kernel is not None for kernel in model.kernels])[-1]
    if not none.any() or none[-1] or readings.weight_var[head] == 0:
        return None
    row = int(np.flatnonzero(none)[-1])
    passes = np.isfinite(readings.growth[row + 1])
    if passes or readings.dead[row] == 1 or readings.saturated[row] == 1:
        return None
    text = (
        f"no gradient passes from {model.sites[row + 1]} back to {model.sites[row]}: it and all "
        "before it are frozen, as by stop_gradient"
    )
    return Fault("frozen", row, str(model.sites[row]), "gradients", 0.0, 0.0, text)


def _dead(model: Model, readings: Readings, theory: Expectation) -> Fault | None:
    units = _units(model)
    p = theory.flat
    with np.errstate(invalid="ignore"):
        limit = np.minimum(p + BAND * np.sqrt(np.maximum(p * (1 - p), 0) / units), 1 - 1e-6)
        bad = np.flatnonzero(readings.dead > limit)
    if not len(bad):
        return None
    row = int(bad[0])
    value, bound = float(readings.dead[row]), float(limit[row])
    more = f"; so are those of {len(bad) - 1} later layers" if len(bad) > 1 else ""
    text = (
        f"{value:.0%} of the units of {model.sites[row]} are dead, flat for every example{more}; "
        f"a Gaussian signal leaves {float(p[row]):.0%} flat, and at this width less than "
        f"{bound:.0%}"
    )
    return Fault("dead", row, str(model.sites[row]), "units", value, bound, text)


def _saturated(model: Model, readings: Readings) -> Fault | None:
    limit = np.minimum(0.5 + BAND * np.sqrt(0.25 / _units(model)), 1 - 1e-6)
    with np.errstate(invalid="ignore"):
        bad = np.flatnonzero(readings.saturated > limit)
    if not len(bad):
        return None
    row = int(bad[0])
    value, bound = float(readings.saturated[row]), float(limit[row])
    more = f", and of {len(bad) - 1} later layers" if len(bad) > 1 else ""
    text = (
        f"{value:.0%} of the units of {model.sites[row]}{more} are saturated, where the activation "
        f"is nearly flat; at this width less than {bound:.0%} should be"
    )
    return Fault("saturated", row, str(model.sites[row]), "units", value, bound, text)


def _chain(model: Model, parts: list[Piece], sign: int) -> Fault | None:
    """The stretch over which gradients, or else the signal, grow (1) or shrink (-1) too far."""
    found = []
    for what, name in (("gradients", "growth"), ("signal", "signal")):
        steps = np.array([getattr(part, name) for part in parts])
        noise = np.array([getattr(part, f"{name}_var") for part in parts])
        # What is exactly zero is another fault.
        steps = np.where(np.isfinite(steps), sign * steps, 0)
        # Theory of these weights is less noisy than what one draw of gates makes of them.
        where = sign * np.array([getattr(part, f"{name}_expected") for part in parts])
        where = np.where(np.isfinite(where), where, 0)
        start, stop = stretch(where - DEPTH / 2 / max(len(parts), 1))
        if stop > start:
            # Between a healthy level and that of the stretch the best line is half way.
            start, stop = stretch(where - where[start:stop].mean() / 2)
        value, limit = steps[start:stop].sum(), DEPTH + BAND * math.sqrt(noise[start:stop].sum())
        if value > limit:
            found.append((what, start, stop, float(value), limit))
    if not found:
        return None
    what, start, stop, value, limit = found[0]
    row = parts[start].kernels[0]
    both = "signal and gradients" if len(found) == 2 else what
    verb = "explode" if sign > 0 else "vanish"
    verb = verb if both != "signal" else f"{verb}s"
    factor = math.exp(sign * value / 2 / (stop - start))
    text = (
        f"{both} {verb}, from {model.sites[row]} on: by a factor of "
        f"{math.exp(min(sign * value / 2, 300)):.2g} over {stop - start} layers, {factor:.3g} a "
        f"layer; theory trusts a factor of {math.exp(sign * limit / 2):.2g} at most"
    )
    kind = "exploding" if sign > 0 else "vanishing"
    return Fault(kind, row, str(model.sites[row]), both, value, limit, text)


def stretch(steps: np.ndarray) -> tuple[int, int]:
    """The stretch of steps with the largest sum.

    Args:
        steps: The steps, shape `(n,)`.

    Returns:
        Where it starts, and where it has stopped; twice zero where no step is positive.

    Source:
        Page (1954), Continuous inspection schemes.
    """
    best, total, start, found = 0.0, 0.0, 0, (0, 0)
    for at, step in enumerate(steps):
        if total <= 0:
            total, start = 0.0, at
        total += step
        if total > best:
            best, found = total, (start, at + 1)
    return found


def _units(model: Model) -> np.ndarray:
    """Independent units of each layer: channels of a convolution, else features."""
    counts = []
    for kernel, features in zip(model.kernels, model.features, strict=True):
        shape = () if kernel is None else model.leaf_shapes[kernel.leaf]
        own = features if kernel is None else math.prod(shape[a] for a in kernel.outputs)
        counts.append(min(own, features))
    return np.array(counts, float)


def _noise(model: Model, readings: Readings, rows: list[int]) -> tuple[float, float]:
    """Relative variance of growth and of signal over some kernels, at this width."""
    growth = signal = 0.0
    units = _units(model)
    for row in rows:
        phi, width = model.feeds[row], units[max(row - 1, 0)]
        log_q = readings.log_q[row - 1] if row else math.nan
        relative = np.array([1.0, 5.0])  # ReLU's, where nothing better is known
        if phi is not None and math.isfinite(log_q):
            square, fourth, slope, slope_fourth = averages(phi, np.exp(np.clip([log_q], -30, 30)))[
                :, 0
            ]
            with np.errstate(all="ignore"):
                own = np.array([slope_fourth / slope**2, fourth / square**2]) - 1
            relative = np.where(np.isfinite(own), np.clip(own, 0, width), relative)
        growth += relative[0] / width
        signal += relative[1] / width + 2 / units[row]
    return growth, signal
