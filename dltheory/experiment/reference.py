"""Results beside those of a reference, which somebody else computed, or an older version."""

from collections.abc import Mapping, Sequence

import numpy as np

from dltheory.experiment.execute import Result
from dltheory.experiment.sweep import Sweep


def differences(
    sweep: Sweep,
    results: Sequence[Result],
    reference: Sequence[Result],
    *,
    rtol: float = 1e-5,
    atol: float = 1e-8,
) -> list[str]:
    r"""Say where the arrays of a sweep differ from those of a reference.

    Numbers with decimals agree if

    .. math:: |a - b| \le \text{atol} + \text{rtol} \, |b|

    with :math:`b` the reference, or if both are NaN or the same infinity; integers and booleans
    if they are equal.

    Args:
        sweep: The sweep.
        results: Its results, as `execute.load` gives them.
        reference: Those of the reference, of the same sweep.
        rtol: Allowed error, relative to the reference.
        atol: Allowed error besides.

    Returns:
        One line for each array that differs; empty if none does.
    """
    lines = []
    for cell, result, wanted in zip(sweep.split(), results, reference, strict=True):
        at = f"{sweep.name}/{cell.name}"
        lines += [f"{at} {line}" for line in _compare(result.arrays, wanted.arrays, rtol, atol)]
    return lines


def _compare(
    arrays: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], rtol: float, atol: float
) -> list[str]:
    lines = []
    for name in sorted(arrays.keys() | wanted.keys()):
        if name not in wanted:
            lines.append(f"{name}: is not in the reference")
        elif name not in arrays:
            lines.append(f"{name}: is in the reference alone")
        elif (a := arrays[name]).shape != (b := wanted[name]).shape:
            lines.append(f"{name}: has shape {a.shape}, {b.shape} in the reference")
        elif (count := np.sum(wrong := ~_close(a, b, rtol, atol))) > 0:
            at = _worst(a, b, wrong)
            lines.append(
                f"{name}: {count} of {a.size} differ, the most at {[int(i) for i in at]}: "
                f"{a[at]:.9g}, {b[at]:.9g} in the reference"
            )
    return lines


def _close(a: np.ndarray, b: np.ndarray, rtol: float, atol: float) -> np.ndarray:
    if a.dtype.kind in "biu" and b.dtype.kind in "biu":
        return a == b
    return np.isclose(a, b, rtol=rtol, atol=atol, equal_nan=True)


def _worst(a: np.ndarray, b: np.ndarray, wrong: np.ndarray) -> tuple[np.intp, ...]:
    with np.errstate(invalid="ignore"):
        gap = np.abs(a.astype(complex) - b.astype(complex))
    gap = np.where(wrong, np.where(np.isnan(gap), np.inf, gap), -1.0)
    return np.unravel_index(np.argmax(gap), gap.shape)
