"""The health of a network: a NamedTuple in code, a table in a terminal, HTML in a notebook."""

import html
import io
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.health import Fault
from dltheory.experiment.remedies import Remedy
from dltheory.networks.sites import Site
from dltheory.numerics.results import ReceptiveField

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Group
    from rich.table import Table

_SHOWN = 32  # rows of a table; of a deeper network some layers are left out
_HEADS = (
    ("length", "q"),
    ("theory", "q"),
    ("z", ""),
    ("corr.", "c"),
    ("growth", "chi_1"),
    ("theory", "chi_1"),
    ("gradient", "log10"),
    ("flat", "share"),
    ("dead", "share"),
)


class LayerHealth(NamedTuple):
    """What one layer does, beside what theory expects of it given the layer before.

    Numbers are NaN where they are not defined.

    Attributes:
        site: The layer.
        activation: Name of the activation before it, or None.
        weight_var: Mean squared weight times fan-in.
        bias_var: Mean squared bias.
        q: Mean squared value.
        q_expected: What theory says of it.
        q_std: The band of that at this width, one standard deviation.
        q_z: How many of them the measurement is off.
        c: Correlation of two examples.
        c_expected: What theory says of it.
        chi_1: Growth of squared gradients from the cut before, on the way back.
        chi_1_expected: What theory says of it.
        chi_1_std: The band of that.
        chi_1_z: How many of them the measurement is off.
        log_gradient: Natural log of the norm of the loss gradient with respect to its value.
        saturated: Share of its units, over examples, where the next activation is nearly flat.
        dead: Share of its units where it is so for every example.
        receptive_field: What a unit sees of the input, one an axis; None for flat inputs.
        local: Log singular values of the Jacobian from the cut before: 5 %, 50 % and 95 %
            quantiles; None where they were not measured.
        cumulative: Likewise of the Jacobian from the input.
    """

    site: Site
    activation: str | None
    weight_var: float
    bias_var: float
    q: float
    q_expected: float
    q_std: float
    q_z: float
    c: float
    c_expected: float
    chi_1: float
    chi_1_expected: float
    chi_1_std: float
    chi_1_z: float
    log_gradient: float
    saturated: float
    dead: float
    receptive_field: tuple[ReceptiveField, ...] | None
    local: tuple[float, float, float] | None
    cumulative: tuple[float, float, float] | None


class Report(NamedTuple):
    """The health of a network.

    Print it with rich, or let a notebook show it.

    Attributes:
        layers: A row for each layer, in run order.
        faults: What is wrong, by the layer where it starts; empty for a healthy network.
        remedies: What brings it back, one for each fault.
        skips: Texts of the layers that a skip connection leads past.
        coupled: Whether examples influence each other, as under batch normalisation.
    """

    layers: tuple[LayerHealth, ...]
    faults: tuple[Fault, ...]
    remedies: tuple[Remedy, ...]
    skips: tuple[str, ...]
    coupled: bool

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def words(self) -> tuple[str, ...]:
        """The findings in plain words, a sentence or two each."""
        if self.healthy:
            return (f"Healthy. {self._theory()}",)
        lines = []
        for fault, remedy in zip(self.faults, self.remedies, strict=False):
            lines.append(f"{fault.kind.capitalize()}: {fault.text}.")
            lines.append(f"Remedy: {remedy.text}. {_effect(remedy)}".rstrip())
        if not self.remedies:
            lines = [f"{fault.kind.capitalize()}: {fault.text}." for fault in self.faults]
        return (*lines, self._theory())

    def __rich__(self) -> "Group":
        """The report for a terminal."""
        from rich.console import Group
        from rich.text import Text

        marks = {"Healthy": "bold green", "Remedy": "bold cyan"}
        lines = []
        for line in self.words():
            head = line.partition(" ")[0].rstrip(":.")
            known = head in marks or any(head == f.kind.capitalize() for f in self.faults)
            text = Text(line)
            if known:
                text.stylize(marks.get(head, "bold red"), 0, len(head) + 1)
            lines.append(text)
        return Group(self._table(), *lines)

    def __str__(self) -> str:
        """The report as plain text."""
        from rich.console import Console

        out = io.StringIO()
        Console(file=out, width=110).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def _repr_html_(self) -> str:
        """The report for a notebook."""
        cell = lambda tag, text, css="": f"<{tag}{css}>{text}</{tag}>"
        right = ' style="text-align:right"'
        heads = cell("th", "layer") + "".join(
            cell("th", f"{name}<br><small>{unit}</small>", right) for name, unit in _HEADS
        )
        rows = []
        for layer in self._shown():
            if layer is None:
                rows.append(cell("tr", cell("td", "⋮")))
                continue
            red = any(fault.site == str(layer.site) for fault in self.faults)
            css = ' style="color:#c00;font-weight:bold"' if red else ""
            cells = cell("td", html.escape(str(layer.site)))
            cells += "".join(cell("td", text, right) for text in _cells(layer))
            rows.append(cell("tr", cells, css))
        words = "".join(cell("p", html.escape(line)) for line in self.words())
        return (
            f"<div>{words}{self._drawing()}<table>{cell('tr', heads)}{''.join(rows)}</table></div>"
        )

    def figure(self) -> "Figure":
        """Length, gradient and flat units by layer; theory is a line in its band."""
        with figures.style():
            return _draw(self)

    def _drawing(self) -> str:
        try:
            drawn = self.figure()
        except ImportError:  # without the extra for figures the numbers alone
            return ""
        out = io.StringIO()
        drawn.savefig(out, format="svg", metadata={"Date": None})
        return out.getvalue().partition("<svg")[1] + out.getvalue().partition("<svg")[2]

    def _theory(self) -> str:
        off = [one for one in self.layers if abs(one.q_z) > 4]
        known = [one for one in self.layers if math.isfinite(one.q_z)]
        names = list(dict.fromkeys(one.activation for one in self.layers if one.activation))
        if not known:
            return "No activation was recognised, so theory has nothing to say; give phi=."
        said = f"Activation: {', '.join(names)}. Lengths beside theory: {len(known)}, "
        if not off:
            return f"{said}all within four standard deviations."
        return (
            f"{said}of which {len(off)} off by more than four standard deviations, the first at "
            f"{off[0].site}: not the random weights of theory, or not Gaussian signals."
        )

    def _shown(self) -> list[LayerHealth | None]:
        """The layers of a table; None for those left out between two of them."""
        count = len(self.layers)
        keep = {fault.row + k for fault in self.faults for k in (-1, 0, 1)}
        keep |= {int(k) for k in np.linspace(0, count - 1, min(count, _SHOWN))}
        rows, last = [], -1
        for row in sorted(keep & set(range(count))):
            rows += [None] * (row > last + 1) + [self.layers[row]]
            last = row
        return rows if count > _SHOWN else list(self.layers)

    def _table(self) -> "Table":
        from rich.table import Table
        from rich.text import Text

        sheet = Table(expand=False)
        sheet.add_column("layer", overflow="fold")
        for name, unit in _HEADS:
            sheet.add_column(f"{name}\n[dim]{unit}[/dim]", justify="right", no_wrap=True)
        for layer in self._shown():
            if layer is None:
                sheet.add_row("⋮")
                continue
            red = any(fault.site == str(layer.site) for fault in self.faults)
            style = "bold red" if red else ""
            sheet.add_row(Text(str(layer.site)), *map(Text, _cells(layer)), style=style)
        return sheet


def _cells(layer: LayerHealth) -> list[str]:
    band = lambda mean, std: (
        f"{mean:.3g} ± {std:.1g}" if math.isfinite(mean) and math.isfinite(std) else "–"
    )
    gradient = layer.log_gradient / math.log(10)
    return [
        _number(layer.q, ".3g"),
        band(layer.q_expected, layer.q_std),
        _number(layer.q_z, "+.1f"),
        _number(layer.c, ".2f"),
        _number(layer.chi_1, ".3g"),
        band(layer.chi_1_expected, layer.chi_1_std),
        "0" if gradient == -math.inf else _number(gradient, "+.1f"),
        _number(layer.saturated, ".0%"),
        _number(layer.dead, ".0%"),
    ]


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def _effect(remedy: Remedy) -> str:
    parts = [f"{remedy.quantity}: {remedy.before:.2g} now"] if math.isfinite(remedy.before) else []
    if math.isfinite(remedy.predicted):
        most = "at most " * remedy.quantity.endswith("dead")
        parts.append(f"{most}{remedy.predicted:.2g} predicted")
    if math.isfinite(remedy.measured):
        parts.append(f"{remedy.measured:.2g} when tried")
    end = {True: "; it works", False: "; it does not suffice", None: ""}[remedy.works]
    said = f"{', '.join(parts)}{end}." if parts else ""
    if math.isfinite(remedy.clip):
        said += f" Until then, clip gradients at the norm they then have, {remedy.clip:.2g}."
    return said[:1].upper() + said[1:]


def _draw(report: Report) -> "Figure":
    sheet, grid = figures.axes(1, 3, size=(3.2, 2.5))
    layers = np.arange(1, len(report.layers) + 1)
    column = lambda name: np.array([getattr(layer, name) for layer in report.layers], float)
    points = {"linestyle": "none", "marker": "o", "markersize": 3.4, "zorder": 4}
    points |= {"markerfacecolor": "white", "markeredgecolor": figures.COLORS[1]}
    shade = {"color": figures.COLORS[0], "alpha": 0.15, "linewidth": 0}
    length, gradient, units = grid[0]

    expected, std, q = column("q_expected"), column("q_std"), column("q")
    low, high = np.maximum(expected - 2 * std, expected / 10), expected + 2 * std
    length.fill_between(layers, low, high, label="two standard deviations", **shade)
    figures.line(length, layers, expected, label="theory, given the layer before")
    length.plot(layers, q, label="measurement", **points)
    positive = q[q > 0]
    if len(positive) and positive.max() > 30 * positive.min():
        length.set_yscale("log")

    norms = column("log_gradient") / math.log(10)
    norms[np.isinf(norms)] = np.nan
    curve, spread = _backwards(report)
    gradient.fill_between(layers, curve - 2 * spread, curve + 2 * spread, **shade)
    figures.line(gradient, layers, curve)
    gradient.plot(layers, norms, **points)

    flat = points | {"marker": "D", "markeredgecolor": figures.COLORS[2]}
    dead = points | {"marker": "s", "markeredgecolor": figures.COLORS[6]}
    units.plot(layers, 100 * column("saturated"), label="flat for one example", **flat)
    units.plot(layers, 100 * column("dead"), label="flat for all: dead", **dead)
    units.set_ylim(-3, 103)
    titles = "length $q_l$", r"gradient norm, $\log_{10}$", "flat units (%)"
    for ax, title in zip(grid[0], titles, strict=True):
        ax.set(title=title, xlabel="layer $l$")
        ax.xaxis.get_major_locator().set_params(integer=True)
        for fault in report.faults:
            ax.axvline(fault.row + 1, color=figures.COLORS[1], linewidth=1, ls=":", zorder=1)
    pairs = [ax.get_legend_handles_labels() for ax in (length, units)]
    handles, labels = ([one for pair in pairs for one in pair[k]] for k in (0, 1))
    sheet.legend(handles, labels, loc="outside lower center", ncols=3)
    return sheet


def _backwards(report: Report) -> tuple[np.ndarray, np.ndarray]:
    """The gradient's norm from the last layer back, as theory's growth has it, and its band."""
    count = len(report.layers)
    curve, spread = np.full(count, np.nan), np.full(count, np.nan)
    curve[-1], spread[-1] = report.layers[-1].log_gradient, 0.0
    for row in range(count - 1, 0, -1):
        layer = report.layers[row]
        if not layer.chi_1_expected > 0:
            break
        # Random signs of the weights add to what the slopes do: of ReLU together 5 / width.
        width = report.layers[row - 1].site.shape[-1]
        noise = 3 * (layer.chi_1_std / layer.chi_1_expected) ** 2 + 2 / width
        curve[row - 1] = curve[row] + math.log(layer.chi_1_expected) / 2 - noise / 4
        spread[row - 1] = math.sqrt(spread[row] ** 2 + noise / 4)
    return curve / math.log(10), spread / math.log(10)
