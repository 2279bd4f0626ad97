"""Where the two wings of the house meet for one network: theory, measurement, and how far apart."""

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.experiment import figures
from dltheory.measure import passes, signal, stacks
from dltheory.networks import weights
from dltheory.networks.sites import Program, Site, SiteError, expand, parse, trace
from dltheory.numerics.results import Moments
from dltheory.theory.fluctuations import Prediction

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

_SYMBOLS = {"q": "$q_l$", "c": "$c_l$", "chi_1": r"$\chi_1(l)$"}
_TITLES = {"q": "length", "c": "correlation", "chi_1": "growth of squared gradients"}
_COLUMNS = 64  # of a basis at once: enough to fill a device


class Agreement(NamedTuple):
    r"""One quantity, layer by layer: NumPy arrays of shape `(layers,)`.

    Attributes:
        predicted: What theory gives.
        std: The finite-width band: its standard deviation from network to network; NaN without one.
        measured: What the network does: the mean over examples, or pairs of them.
        z: :math:`(\text{measured} - \text{predicted}) / \text{std}`, counting rounding in.
    """

    predicted: np.ndarray
    std: np.ndarray
    measured: np.ndarray
    z: np.ndarray


class Comparison(NamedTuple):
    """Theory beside measurement, for each layer of one network.

    Attributes:
        sites: The layers.
        q: The mean squared pre-activation.
        c: The correlation of two examples; measured NaN for a single one.
        chi_1: The mean squared singular value of the Jacobian from the layer to the next one.
    """

    sites: tuple[Site, ...]
    q: Agreement
    c: Agreement
    chi_1: Agreement


def compare(
    f: Callable,
    params: Any,
    x: Array,
    theory: Prediction | Moments,
    *,
    sites: Sequence[Site | str] | None = None,
) -> Comparison:
    r"""Lay what theory predicts beside what one network does, layer by layer.

    .. math:: z_l = \frac{\text{measured}_l - \text{predicted}_l}{\text{std}_l}

    The band is that of one input, or of one pair; the mean over several strays no further. Layers
    share what they stray by: a run of one sign is no evidence by itself. Give inputs of the length,
    and of the correlation, that `theory` starts from.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.
        theory: `theory.fluctuations.propagate` of the first layer's length and correlation; or
            `Moments` alone, such as those of `theory.mean_field.propagate`, which have no band and
            give no z-scores.
        sites: The layers that theory speaks of, in run order; the text of a scanned layer without
            an index is all of its stack. By default the dense and convolutional layers but for
            the output. A residual network's stream is its joins, to be named here.

    Returns:
        The `Comparison`. `chi_1` is NaN where it is not defined: for the last layer, between
        layers that some derivative path goes round, and where examples are coupled. All entries
        are NaN where the network's values are not finite.

    Raises:
        TypeError: If `theory` is neither of the two.
        ValueError: If its fields are not of one shape `(depth,)`, the number of layers is not the
            depth, or `x` holds no example.
        SiteError: If a site does not exist, or the model has no layers.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.experiment import report
        >>> from dltheory.theory import mean_field
        >>> f = lambda w, x: (x @ w["W1"]) @ w["W2"] @ w["W3"]
        >>> w = {"W1": 2 * jnp.eye(2), "W2": jnp.eye(2), "W3": jnp.eye(2)}
        >>> args = {"depth": 2, "weight_var": 1.0, "bias_var": 0.0}
        >>> theory = mean_field.propagate("identity", 2.0, 0.0, **args)
        >>> at = report.compare(f, w, jnp.eye(2), theory)
        >>> [str(site) for site in at.sites], at.q.measured.round(4)
        (['W1', 'W2'], array([2., 2.]))
    """
    fields = _fields(theory)
    program = trace(f, params, x)
    every = [site for site, _ in expand(program.layers)]
    chosen = _hidden(f, params, x, program) if sites is None else sites
    rows = _rows(program, every, chosen)
    _check_depth(len(fields["q"][0]), [str(every[row]) for row in rows], every, sites is None)
    measured = jax.jit(lambda params, x: _measure(f, params, x, rows))(params, x)
    both = zip(fields.values(), measured, strict=True)
    agreements = (_agreement(*theory, found) for theory, found in both)
    return Comparison(tuple(every[row] for row in rows), *agreements)


def table(comparison: Comparison, title: str = "Theory and measurement") -> "Table":
    """Lay a comparison out for the terminal.

    Args:
        comparison: Result of `compare`.
        title: Title of the table.

    Returns:
        A rich table: quantity, layer, predicted, band, measured, z; a z beyond four is red.
    """
    from rich.table import Table
    from rich.text import Text

    sheet = Table(title=title, title_justify="left", title_style="bold", expand=False)
    sheet.add_column("quantity")
    sheet.add_column("layer", overflow="fold")
    for column in ("predicted", "± band", "measured", "z"):
        sheet.add_column(column, justify="right", no_wrap=True)
    for name, one in _quantities(comparison):
        for row, site in enumerate(comparison.sites):
            p, s, m, z = (float(column[row]) for column in one)
            wrong = "bold red" if abs(z) > 4 else ""
            cells = [_number(p, ".4g"), _number(s, ".2g"), _number(m, ".4g")]
            sheet.add_row(
                "" if row else name, Text(str(site)), *cells, Text(_number(z, "+.1f"), style=wrong)
            )
        sheet.add_section()
    return sheet


@figures.style()
def figure(comparison: Comparison) -> "Figure":
    """Draw a comparison: theory as lines in their band, measurement as points, z-scores below.

    Args:
        comparison: Result of `compare`.

    Returns:
        The figure: a column for each quantity.
    """
    quantities = _quantities(comparison)
    sheet, grid = figures.axes(
        2,
        len(quantities),
        size=(3.0, 1.9),
        sharex=True,
        gridspec_kw={"height_ratios": (2.6, 1)},
    )
    layers = np.arange(1, len(comparison.sites) + 1)
    points = {"linestyle": "none", "marker": "o", "markersize": 3.6, "zorder": 4}
    points |= {"markerfacecolor": "white", "markeredgecolor": figures.COLORS[1]}
    band = {"color": figures.COLORS[0], "linewidth": 0, "zorder": 2}
    for column, (name, one) in enumerate(quantities):
        above, below = grid[:, column]
        for width in (1, 2):
            low, high = one.predicted - width * one.std, one.predicted + width * one.std
            label = "one and two standard deviations" if width == 1 else None
            above.fill_between(layers, low, high, alpha=0.15, label=label, **band)
        figures.line(above, layers, one.predicted, label="theory")
        above.plot(layers, one.measured, label="measurement", **points)
        for width in (2, 1):
            below.axhspan(-width, width, alpha=0.15, **band)
        below.axhline(0, color=figures.COLORS[0], linewidth=1)
        below.plot(layers, one.z, **points)
        farthest = np.max(np.abs(one.z), initial=3, where=np.isfinite(one.z))
        below.set(xlabel="layer $l$", ylim=(-1.15 * farthest, 1.15 * farthest))
        below.xaxis.get_major_locator().set_params(integer=True)
        above.set(title=_TITLES[name], ylabel=_SYMBOLS[name])
    grid[1, 0].set_ylabel("$z$")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    sheet.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return sheet


def _fields(theory: Prediction | Moments) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and band of each quantity, of one shape; NaN where theory gives none."""
    if isinstance(theory, Moments):
        mean, std = theory, None
    elif isinstance(theory, Prediction):
        mean, std = theory
    else:
        raise TypeError(
            f"theory is a {type(theory).__name__}; want the Prediction of "
            "theory.fluctuations.propagate, or Moments such as those of theory.mean_field.propagate"
        )
    depth = np.shape(mean.q)
    fields = {}
    for name in Moments._fields:
        pair = tuple(
            np.full(depth, np.nan) if values is None else np.asarray(values, float)
            for values in (getattr(mean, name), getattr(std, name, None))
        )
        for part, values in zip(("mean", "std"), pair, strict=True):
            if values.shape != depth or len(depth) != 1:
                raise ValueError(
                    f"theory's {part} of {name} has shape {values.shape} and that of q {depth}; "
                    "want (depth,) for all alike: one number a layer"
                )
        fields[name] = pair
    return fields


def _hidden(f: Callable, params: Any, x: Array, program: Program) -> list[str]:
    """The layers that kernels open, but for the output."""
    found = weights.find(f, params, x)
    texts = {kernel.layer for kernel in found.kernels} | set(found.unknown)
    return [one.text for one in program.layers if one.text in texts and not one.is_output]


def _rows(program: Program, every: Sequence[Site], chosen: Sequence[Site | str]) -> tuple[int, ...]:
    """Where the chosen layers stand among all, in run order."""
    rows = set()
    for site in chosen:
        text, index = parse(site)
        layer = program.layer(text)
        same = [row for row, one in enumerate(every) if parse(one)[0] == layer.text]
        here = [row for row in same if index is None or every[row].index == index]
        if not here:
            raise SiteError(
                f"site {str(site)!r} does not exist; {text!r} is {every[same[0]]} to "
                f"{every[same[-1]]}."
            )
        rows.update(here)
    return tuple(sorted(rows))


def _check_depth(depth: int, found: list[str], every: Sequence[Site], default: bool) -> None:
    if len(found) == depth:
        return
    whose = "the model's hidden dense and convolutional layers" if default else "sites"
    raise ValueError(
        f"theory speaks of {depth} layers, but {whose} are {len(found)}: {', '.join(found)}. Give "
        f"theory of that depth, or name the layers it speaks of by sites=[...]; the model has: "
        f"{', '.join(map(str, every))}."
    )


def _measure(f: Callable, params: Any, x: Array, rows: tuple[int, ...]) -> tuple[Array, ...]:
    """Length, correlation and growth of the chosen layers, shape `(layers,)` each."""
    moments = signal.moments(f, params, x)
    pairs = np.triu_indices(x.shape[0], 1)
    q, c = moments.q[np.array(rows)], moments.c[np.array(rows)][:, *pairs]
    return q.mean(1), c.mean(1) if len(pairs[0]) else q[:, 0] * jnp.nan, _growth(f, params, x, rows)


def _growth(f: Callable, params: Any, x: Array, rows: tuple[int, ...]) -> Array:
    r"""Mean squared singular value of the Jacobian from each layer to the next one chosen.

    That is its squared Frobenius norm by the number of its rows, and wants no decomposition. The
    model is severed at the layers, so that one pass with the widest basis serves them all.
    """
    measured = passes.prepare(f, params, x)
    program, run = measured.program, measured.program.run
    every = expand(program.layers)
    texts = {every[row][1].text for row in rows}
    values = {text: value for text, value in run(params, x)[1].items() if text in texts}
    taps = jax.tree.map(jnp.zeros_like, values)

    def pieces(at):
        after = run(params, x, at, values)[1]
        return {text: after[text] for text in texts}

    _, tangent_of = passes.push(pieces, taps)

    def squares(tangents):
        rates = tangent_of(tangents)
        return {text: _mean_square(measured, text, rate) for text, rate in rates.items()}

    count = max(measured.features(text) for text in texts)
    answers = measured.respond(squares, taps, count, columns=_COLUMNS)
    totals = {text: jnp.moveaxis(a.sum((1, -1)), 0, -1) for text, a in answers.items()}
    growth = {}
    severed = [row for row, (_, layer) in enumerate(every) if layer.text in texts]
    for row, following in itertools.pairwise(severed):
        site, layer = every[following]
        if every[row][1].is_cut and layer.is_cut:
            growth[row, following] = totals[layer.text][site.index or ()].mean()
    inputs = {"input": x}
    _, moved = passes.push(lambda at: stacks.run(measured, params, at["input"]), inputs)
    coupled = jnp.stack([*passes.coupling(measured, moved, x).values()]).max()
    steps = [growth.get(pair, jnp.nan) for pair in itertools.pairwise(rows)]
    return jnp.where(coupled > 0, jnp.nan, jnp.stack([*map(jnp.asarray, steps), jnp.nan]))


def _mean_square(measured: passes.Measured, text: str, rate: Array) -> Array:
    """Mean square over the features of a layer, all axes kept."""
    first = rate.ndim - len(measured.shapes[text])
    features = [axis for axis in range(first, rate.ndim) if axis != first + measured.axis(text)]
    return jnp.square(rate).mean(features, keepdims=True)


def _agreement(predicted: np.ndarray, std: np.ndarray, measured: Array) -> Agreement:
    rounding = 100 * float(jnp.finfo(measured.dtype).eps)
    values = np.asarray(measured, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = (values - predicted) / np.hypot(std, rounding * predicted)
    return Agreement(predicted, std, values, z)


def _quantities(comparison: Comparison) -> list[tuple[str, Agreement]]:
    """The quantities with a measurement and a prediction to show."""
    named = ((name, getattr(comparison, name)) for name in Moments._fields)
    shown = lambda one: np.any(np.isfinite(one.measured) & np.isfinite(one.predicted))
    return [(name, one) for name, one in named if name == "q" or shown(one)]


def _number(value: float, form: str) -> str:
    return format(value, form) if np.isfinite(value) else "–"
