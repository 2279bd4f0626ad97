"""A claim: what theory predicts, what was measured, and a verdict that can be wrong."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from rich.table import Table

_SIGNS = {"==": "", "<=": "≤ ", ">=": "≥ "}


@dataclass(frozen=True)
class Claim:
    """One number of theory beside one number of measurement.

    Attributes:
        text: The claim, in words.
        predicted: What theory gives.
        measured: What was found.
        tolerance: How far off it may be, absolute; from a standard error or the dtype's epsilon.
        relation: `"=="`, or `"<="` and `">="` where theory gives a bound on the measurement.
        known_failure: Why the claim is known to fail here. It is printed as failing, and it is an
            error if it holds after all.

    >>> Claim("chi_1 of ReLU at weight_var 2", predicted=1.0, measured=0.98, tolerance=0.05).passed
    True
    """

    text: str
    predicted: float
    measured: float
    tolerance: float
    relation: Literal["==", "<=", ">="] = "=="
    known_failure: str | None = None

    def __post_init__(self):
        if self.relation not in _SIGNS:
            raise ValueError(f"relation is {self.relation!r}, want one of {list(_SIGNS)}")
        if self.tolerance < 0:
            raise ValueError(f"tolerance of {self.text!r} is {self.tolerance}, want at least 0")
        if self.known_failure is not None and not self.known_failure.strip():
            raise ValueError(f"known_failure of {self.text!r} is empty, want the reason")

    @property
    def passed(self) -> bool:
        """Whether the measurement bears the claim out; never with a number that is not finite."""
        if not all(map(math.isfinite, (self.predicted, self.measured, self.tolerance))):
            return False
        excess = self.measured - self.predicted
        distance = {"==": abs(excess), "<=": excess, ">=": -excess}[self.relation]
        return bool(distance <= self.tolerance)

    @property
    def as_recorded(self) -> bool:
        """Whether the verdict is the one the experiment states: fails if and only if known to."""
        return self.passed == (self.known_failure is None)

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.known_failure is None:
            return "holds" if self.passed else "FAILS"
        if self.passed:
            return f"HOLDS, though recorded as failing: {self.known_failure}"
        return f"fails, as recorded: {self.known_failure}"


def worst(
    text: str, predicted: "ArrayLike", measured: "ArrayLike", tolerance: "ArrayLike"
) -> Claim:
    """Make the claim that every entry agrees, stated for the entry that agrees least.

    Args:
        text: The claim, in words.
        predicted: What theory gives, an array.
        measured: What was found; the three broadcast together.
        tolerance: How far off each entry may be.

    Returns:
        The `Claim` of the entry with the largest error relative to its tolerance; an entry with a
        NaN is worse than all others.

    Raises:
        ValueError: If there are no entries.
    """
    entries = np.broadcast_arrays(*(np.asarray(a, float) for a in (predicted, measured, tolerance)))
    if entries[0].size == 0:
        raise ValueError(f"{text!r} has no entries, want at least one")
    p, m, t = (entry.ravel() for entry in entries)
    with np.errstate(divide="ignore", invalid="ignore"):
        # Exact agreement with a tolerance of zero is 0/0, and no fault.
        badness = np.where((p == m) & (t == 0), 0.0, np.abs(m - p) / t)
    index = int(np.argmax(np.where(np.isnan(badness), np.inf, badness)))
    return Claim(text, float(p[index]), float(m[index]), float(t[index]))


def infinite_width(samples: Mapping[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    r"""Extrapolate the mean over seeds to infinite width, with what it may be off by.

    .. math:: m_n = m_\infty + c / n, \qquad
        \min_{m_\infty,\, c} \sum_n (\bar m_n - m_\infty - c / n)^2 / \mathrm{SE}_n^2

    Args:
        samples: By width, measurements of shape `(seeds, ...)`; two widths or more.

    Returns:
        The mean at infinite width, shape `(...)`, and four standard errors of it, which count the
        noise of the fitted `c`.

    Raises:
        ValueError: If there is one width only.

    Example:
        >>> import numpy as np
        >>> noise = np.array([-0.1, 0.1, 0.0])
        >>> mean, allowed = infinite_width({n: 2 + 3 / n + noise for n in (10, 20, 40)})
        >>> mean.round(6).item(), bool(allowed > 0)
        (2.0, True)
    """
    if len(samples) < 2:
        raise ValueError(f"samples has the widths {list(samples)}, want two or more")
    rate = 1 / np.array([*samples])
    means = np.array([a.mean(0) for a in samples.values()])
    weights = np.array([len(a) / a.var(0, ddof=1) for a in samples.values()])
    s0, s1, s2 = (np.tensordot(rate**k, weights, 1) for k in range(3))
    m0, m1 = (np.tensordot(rate**k, weights * means, 1) for k in range(2))
    area = s0 * s2 - s1**2
    return (s2 * m0 - s1 * m1) / area, 4 * np.sqrt(s2 / area)


def table(title: str, claims: Sequence[Claim]) -> "Table":
    """Lay claims out for the terminal.

    Args:
        title: Title of the table.
        claims: The claims, one row each.

    Returns:
        A rich table: claim, predicted, measured, tolerance, verdict.
    """
    from rich.table import Table
    from rich.text import Text

    sheet = Table(title=title, title_justify="left", title_style="bold", expand=False)
    sheet.add_column("claim", overflow="fold")
    for column in ("predicted", "measured", "tolerance"):
        sheet.add_column(column, justify="right", no_wrap=True)
    sheet.add_column("verdict", overflow="fold")
    for claim in claims:
        text, *numbers, verdict = cells(claim)
        style = "green" if claim.as_recorded else "bold red"
        sheet.add_row(Text(text), *numbers, Text(verdict, style=style))
    return sheet


def cells(claim: Claim) -> tuple[str, str, str, str, str]:
    """Write a claim as the cells of a table's row.

    Args:
        claim: The claim.

    Returns:
        Claim, predicted, measured, tolerance and verdict.
    """
    predicted = f"{_SIGNS[claim.relation]}{claim.predicted:.5g}"
    numbers = predicted, f"{claim.measured:.5g}", f"{claim.tolerance:.2g}"
    return claim.text, *numbers, claim.verdict
