"""Figures: theory as lines, measurement as bands, the same bytes every time.

Matplotlib is imported when a figure is drawn. Everything happens under `style`, which replaces
the user's own settings, so that a figure depends on the results and the version of matplotlib
alone. A figure is made with `axes`, drawn on with `line`, `band` and matplotlib's own methods,
and returned; the command line saves it.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

    from dltheory.measure.jacobians import LayerSpectra

# Okabe and Ito's colours, told apart by colour-blind readers; their yellow is too light for lines.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222")
# A second mark for each series, for print without colour.
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (7, 1.5, 1.2, 1.5)))

_MARKER: dict[str, Any] = {
    "marker": "o",
    "markersize": 3.2,
    "markerfacecolor": "white",
    "markeredgewidth": 0.9,
}
_RC: dict[str, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "mathtext.fontset": "dejavusans",
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.labelcolor": "#111111",
    "ytick.labelcolor": "#111111",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "dltheory",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
}
# What would otherwise put a date or a version into the file.
_METADATA: dict[str, dict[str, None]] = {
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw under this project's settings, whatever the user's own are.

    Yields:
        Nothing.

    Raises:
        ImportError: If Matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError(
            "figures need Matplotlib, which is missing: pip install 'dltheory[experiments]'"
        ) from error

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(cast(Any, _RC))
        yield


@style()
def axes(rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (3.6, 2.7), **shared: Any):
    """Make a figure with a grid of axes.

    Args:
        rows: Number of rows.
        columns: Number of columns.
        size: Width and height of one of the axes, in inches.
        **shared: `sharex`, `sharey` and the like, as `Figure.subplots` takes them.

    Returns:
        The figure, and an array of axes of shape `(rows, columns)`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


@style()
def line(ax: "Axes", x: "ArrayLike", y: "ArrayLike", *, series: int = 0, label: str = "") -> None:
    """Draw what theory predicts.

    Args:
        ax: Axes to draw on.
        x: Abscissa, shape `(n,)`.
        y: Prediction, shape `(n,)`.
        series: Index of the series, which decides colour and dashes.
        label: Entry of the legend; none if empty.
    """
    ax.plot(
        np.asarray(x),
        np.asarray(y),
        color=COLORS[series % len(COLORS)],
        linestyle=DASHES[series % len(DASHES)],
        label=label or None,
        zorder=3,
    )


@style()
def band(
    ax: "Axes",
    x: "ArrayLike",
    samples: "ArrayLike",
    *,
    spread: Literal["quantiles", "stderr"] = "quantiles",
    series: int = 0,
    label: str = "",
) -> None:
    """Draw what was measured: a centre and its spread.

    Args:
        ax: Axes to draw on.
        x: Abscissa, shape `(n,)`.
        samples: Measurements, shape `(samples, n)`; NaN is left out.
        spread: `"quantiles"` marks the median within bands that hold the middle 50 % and 90 % of
            the samples; `"stderr"` marks the mean within two standard errors.
        series: Index of the series, which decides the colour.
        label: Entry of the legend; none if empty.

    Raises:
        ValueError: If `spread` is neither of the two, or `samples` is not `(samples, n)`.
    """
    x, samples = np.asarray(x), np.asarray(samples)
    if samples.ndim != 2 or samples.shape[1:] != x.shape:
        raise ValueError(f"samples is of shape {samples.shape}, want (samples, {x.size})")
    if spread == "quantiles":
        lowest, low, centre, high, highest = np.nanquantile(
            samples, [0.05, 0.25, 0.5, 0.75, 0.95], 0
        )
        bands = [(lowest, highest), (low, high)]
    elif spread == "stderr":
        count = np.sum(~np.isnan(samples), axis=0)
        centre, error = np.nanmean(samples, 0), np.nanstd(samples, 0, ddof=1) / np.sqrt(count)
        bands = [(centre - 2 * error, centre + 2 * error)]
    else:
        raise ValueError(f"spread is {spread!r}, want 'quantiles' or 'stderr'")

    color = COLORS[series % len(COLORS)]
    for lower, upper in bands:
        ax.fill_between(x, lower, upper, color=color, alpha=0.22, linewidth=0, zorder=2)
    ax.plot(
        x,
        centre,
        linestyle="none",
        markeredgecolor=color,
        **_MARKER,
        label=label or None,
        zorder=4,
    )


@style()
def layer_spectra(spectra: "LayerSpectra") -> "Figure":
    r"""Draw the singular values of a network's Jacobians: every layer, in all three directions.

    Columns are input-to-layer, layer-to-output and local Jacobians. Rows are `spectrum_bands`,
    `heat_map` and `densities` of all examples together.

    Args:
        spectra: Result of `measure.jacobians.layer_spectra`.

    Returns:
        The figure.
    """
    kinds = ("input_to_layer", "layer_to_output", "local")
    figure, grid = axes(3, 3, size=(2.9, 2.2))
    for column, kind in enumerate(kinds):
        values = getattr(spectra, kind), getattr(spectra.resolved, kind)
        spectrum_bands(grid[0, column], *values)
        heat_map(grid[1, column], *values)
        densities(grid[2, column], *values)
        grid[0, column].set_xlim(grid[1, column].get_xlim())
        grid[0, column].set_title(kind.replace("_", " "))
        grid[1, column].set_xlabel("layer")
        grid[2, column].set_xlabel(r"$\log_{10} s$")
    for row, label in enumerate((r"$\log_{10} s$", r"$\log_{10} s$", "density")):
        grid[row, 0].set_ylabel(label)
    legend(figure)
    return figure


@style()
def spectrum_bands(
    ax: "Axes",
    log_values: Sequence[Any],
    resolved: Sequence[Any] | None = None,
    *,
    series: int = 0,
    label: str = "",
) -> None:
    """Draw singular values through depth: the median, and the middle 50 % and 90 % of them.

    Args:
        ax: Axes to draw on: layer against log10 of the singular values.
        log_values: Per layer, natural logs of any shape, or `None`; zeros (`-inf`) are left out.
        resolved: Per layer, which of them to draw; all by default.
        series: Index of the series, which decides the colour.
        label: Entry of the legend; none if empty.
    """
    layers, values = _decades(log_values, resolved)
    if not layers.size:
        return
    samples = np.full((max(map(len, values)), len(values)), np.nan)
    for number, column in enumerate(values):
        samples[: len(column), number] = column
    band(ax, layers, samples, series=series, label=label)


@style()
def heat_map(
    ax: "Axes",
    log_values: Sequence[Any],
    resolved: Sequence[Any] | None = None,
    *,
    bins: int = 60,
) -> None:
    """Draw singular values through depth as a map of their density, dark where there are many.

    Args:
        ax: Axes to draw on: layer against log10 of the singular values.
        log_values: As in `spectrum_bands`.
        resolved: As in `spectrum_bands`.
        bins: Number of bins.
    """
    layers, values = _decades(log_values, resolved)
    if not layers.size:
        return
    edges = _edges(values, bins)
    density = [np.histogram(column, edges, density=True)[0] for column in values]
    places = np.arange(layers[0], layers[-1] + 1)
    image = np.zeros((bins, len(places)))
    image[:, layers - layers[0]] = np.transpose(density)
    # The densest layer must not bleach all others: each layer is drawn against its own peak.
    image /= np.maximum(image.max(0), 1e-300)
    sides = np.append(places - 0.5, places[-1] + 0.5)
    ax.pcolormesh(sides, edges, image, cmap="Blues", vmin=0, vmax=1, rasterized=True)
    ax.grid(visible=False)


@style()
def densities(
    ax: "Axes",
    log_values: Sequence[Any],
    resolved: Sequence[Any] | None = None,
    *,
    layers: Sequence[int] | None = None,
    bins: int = 40,
) -> None:
    """Draw the density of log10 of the singular values of a few layers.

    Args:
        ax: Axes to draw on.
        log_values: As in `spectrum_bands`.
        resolved: As in `spectrum_bands`.
        layers: Numbers of layers; the first, a middle and the last one by default.
        bins: Number of bins.
    """
    found, values = _decades(log_values, resolved)
    if not found.size:
        return
    known = dict(zip(found.tolist(), values, strict=True))
    chosen = sorted({found[0], found[len(found) // 2], found[-1]}) if layers is None else layers
    edges = _edges([known[layer] for layer in chosen], bins)
    for series, layer in enumerate(chosen):
        height = np.histogram(known[layer], edges, density=True)[0]
        color = COLORS[series % len(COLORS)]
        ax.stairs(height, edges, color=color, linewidth=1.2, label=f"layer {layer}")


def _decades(log_values, resolved) -> tuple[np.ndarray, list[np.ndarray]]:
    """The layers that have any finite values to draw, counted from one, and log10 of these."""
    layers, values = [], []
    for number, logs in enumerate(log_values):
        if logs is None:
            continue
        logs = np.asarray(logs, float)
        seen = np.isfinite(logs)
        if resolved is not None:
            seen &= np.asarray(resolved[number])
        if seen.any():
            layers.append(number + 1)
            values.append(logs[seen] / np.log(10))
    return np.array(layers, int), values


def _edges(values: Sequence[np.ndarray], bins: int) -> np.ndarray:
    """Bins that hold all values, at least a tenth of a decade wide together."""
    low, high = min(v.min() for v in values), max(v.max() for v in values)
    margin = max(0.02 * (high - low), 0.05)
    return np.linspace(low - margin, high + margin, bins + 1)


@style()
def legend(figure: "Figure") -> None:
    """Name the labelled series once, below the figure, and say what lines and bands are.

    Args:
        figure: A figure whose axes are drawn.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: dict[str, Any] = {}
    lines = any(line.get_linestyle() != "None" for ax in figure.axes for line in ax.lines)
    bands = any(ax.collections for ax in figure.axes)
    for ax in figure.axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if lines:
        entries["theory"] = Line2D([], [], color="#555555")
    if bands:
        entries["measurement"] = (
            Patch(facecolor="#555555", alpha=0.3, linewidth=0),
            Line2D([], [], linestyle="none", **_MARKER, markeredgecolor="#555555"),
        )
    columns = max(2, int(figure.get_figwidth() / 1.25))  # Entries are about that many inches wide.
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)


@style()
def save(figure: "Figure", stem: Path) -> list[Path]:
    """Write a figure as SVG, PDF and PNG.

    Args:
        figure: The figure.
        stem: Path without a suffix; its folder is created.

    Returns:
        The three paths.
    """
    stem = Path(stem)
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, metadata in _METADATA.items():
        path = stem.with_name(f"{stem.name}.{suffix}")
        figure.savefig(path, format=suffix, metadata=metadata)
        paths.append(path)
    return paths
