"""Figures show the numbers they are given, and are the same bytes everywhere."""

import os
import subprocess
import sys

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

from dltheory.experiment import figures
from dltheory.measure import jacobians

DRAW = r"""
import hashlib, sys
import numpy as np
from dltheory.experiment import figures
with figures.style():
    fig, ax = figures.axes(1, 2, sharey=True)
    x = np.arange(1, 9)
    samples = np.random.default_rng(0).lognormal(size=(50, 8))
    for series in range(3):
        figures.band(ax[0, 0], x, samples, series=series, label=f"width {series}")
        figures.line(ax[0, 1], x, 1.0 / x, series=series)
    ax[0, 0].set(yscale="log", xlabel="layer $l$", ylabel=r"$\chi_1(q_l)$")
    ax[0, 1].plot(x, -x)
    figures.legend(fig)
for path in figures.save(fig, sys.argv[1]):
    print(path.suffix, hashlib.sha256(path.read_bytes()).hexdigest())
"""
HOSTILE_RC = """
font.size: 20
font.family: serif
lines.linewidth: 9
axes.facecolor: red
axes.prop_cycle: cycler('color', ['k'])
svg.fonttype: none
pdf.fonttype: 3
savefig.dpi: 33
savefig.bbox: tight
axes.unicode_minus: False
"""


def test_bytes_do_not_depend_on_the_users_surroundings(tmp_path):
    (tmp_path / "matplotlibrc").write_text(HOSTILE_RC)
    plain = {**os.environ, "MPLCONFIGDIR": str(tmp_path / "a"), "PYTHONHASHSEED": "1"}
    other = {
        **os.environ,
        "MPLCONFIGDIR": str(tmp_path / "b"),
        "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
        "PYTHONHASHSEED": "2",
        "TZ": "Asia/Kathmandu",
        "LANG": "de_DE.UTF-8",
        "LC_ALL": "C",
        "MPLBACKEND": "svg",
    }
    outputs = [
        subprocess.run(
            [sys.executable, "-c", DRAW, str(tmp_path / name / "figure")],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.splitlines()
        for name, environment in (("one", plain), ("two", other))
    ]
    assert [line.split()[0] for line in outputs[0]] == [".svg", ".pdf", ".png"]
    assert outputs[0] == outputs[1]


def test_the_users_settings_are_left_alone():
    with mpl.rc_context({"font.size": 17.0}):
        fig, ax = figures.axes()
        figures.line(ax[0, 0], [1, 2], [3, 4])
        assert mpl.rcParams["font.size"] == 17.0
        assert fig.dpi == 100
        assert ax[0, 0].xaxis.label.get_size() == 9


def test_axes_come_as_a_grid():
    fig, ax = figures.axes(2, 3, size=(2.0, 1.5), sharex=True)
    assert ax.shape == (2, 3)
    np.testing.assert_allclose(fig.get_size_inches(), (6.0, 3.0))


def test_line_draws_the_prediction():
    _, ax = figures.axes()
    figures.line(ax[0, 0], [1, 2], [3.0, 4.0], series=1, label="theory")
    [drawn] = ax[0, 0].lines
    np.testing.assert_array_equal(drawn.get_xydata(), [[1, 3], [2, 4]])
    assert drawn.get_color() == figures.COLORS[1]
    assert drawn.get_label() == "theory"


def extent(collection):
    """Lowest and highest ordinate of a filled band at each of its abscissae."""
    x, y = collection.get_paths()[0].vertices.T
    return {value: (y[x == value].min(), y[x == value].max()) for value in np.unique(x)}


def test_band_draws_median_and_quantiles():
    _, ax = figures.axes()
    samples = np.stack([np.arange(101.0), 10 * np.arange(101.0)], axis=1)
    figures.band(ax[0, 0], [1.0, 2.0], np.random.default_rng(0).permutation(samples))
    np.testing.assert_allclose(ax[0, 0].lines[0].get_ydata(), [50, 500])
    outer, inner = map(extent, ax[0, 0].collections)
    np.testing.assert_allclose([*outer[1.0], *outer[2.0]], [5, 95, 50, 950])
    np.testing.assert_allclose([*inner[1.0], *inner[2.0]], [25, 75, 250, 750])


def test_band_draws_mean_and_standard_error():
    _, ax = figures.axes()
    samples = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0], [7.0, 10.0]])
    figures.band(ax[0, 0], [1.0, 2.0], samples, spread="stderr")
    np.testing.assert_allclose(ax[0, 0].lines[0].get_ydata(), [4, 6])
    [band] = map(extent, ax[0, 0].collections)
    errors = [np.sqrt(20 / 3) / 2, 4 / np.sqrt(3)]
    np.testing.assert_allclose(band[1.0], (4 - 2 * errors[0], 4 + 2 * errors[0]))
    np.testing.assert_allclose(band[2.0], (6 - 2 * errors[1], 6 + 2 * errors[1]))


def test_band_refuses_what_it_cannot_draw():
    _, ax = figures.axes()
    with pytest.raises(ValueError, match=r"samples is of shape \(2, 3\), want \(samples, 2\)"):
        figures.band(ax[0, 0], [1, 2], np.ones((2, 3)))
    with pytest.raises(ValueError, match="spread is 'sd', want 'quantiles' or 'stderr'"):
        figures.band(ax[0, 0], [1, 2], np.ones((2, 2)), spread="sd")


LOGS = [np.log(10) * np.array([[0.0, 1.0], [2.0, -np.inf]]), None, np.log(10) * np.full((2, 1), 5)]
RESOLVED = [np.array([[True, True], [True, True]]), None, np.array([[True], [False]])]


def test_spectrum_bands_leave_out_zeros_rounding_and_layers_that_are_no_cuts():
    _, ax = figures.axes()
    figures.spectrum_bands(ax[0, 0], LOGS, RESOLVED)
    np.testing.assert_allclose(ax[0, 0].lines[0].get_xydata(), [[1, 1], [3, 5]])


def test_the_heat_map_has_a_column_for_each_layer_and_its_own_peak():
    _, ax = figures.axes()
    figures.heat_map(ax[0, 0], LOGS, bins=10)
    [mesh] = ax[0, 0].collections
    image = mesh.get_array()
    assert image.shape == (10, 3)
    np.testing.assert_allclose(image.max(0), [1, 0, 1])
    np.testing.assert_array_equal((image > 0).sum(0), [3, 0, 1])
    assert ax[0, 0].get_xlim() == (0.5, 3.5)


def test_densities_integrate_to_one():
    _, ax = figures.axes()
    figures.densities(ax[0, 0], LOGS, RESOLVED, layers=[1, 3])
    for steps in ax[0, 0].patches:
        height, edges, _ = steps.get_data()
        np.testing.assert_allclose((height * np.diff(edges)).sum(), 1)


def test_spectra_without_a_single_value_are_drawn_empty():
    _, ax = figures.axes()
    for draw in (figures.spectrum_bands, figures.heat_map, figures.densities):
        draw(ax[0, 0], [np.full((2, 3), -np.inf)])
    assert not ax[0, 0].patches


def test_a_page_shows_all_spectra_of_a_network():
    w = np.stack([np.diag([1.0, 2.0]), np.diag([3.0, 0.5])])
    f = lambda w, x: jnp.tanh(x @ w[0]) @ w[1]
    spectra = jacobians.layer_spectra(f, jnp.asarray(w), jnp.zeros((1, 2)))
    fig = figures.layer_spectra(spectra)
    titles = [ax.get_title(loc="left") for ax in fig.axes[:3]]
    assert titles == ["input to layer", "layer to output", "local"]
    # Medians through depth: of diag(1, 2), then of diag(3, 1).
    medians = fig.axes[0].lines[0].get_ydata()
    np.testing.assert_allclose(medians, [np.log10(2) / 2, np.log10(3) / 2], atol=1e-12)


def test_legend_names_each_series_once_and_explains_the_marks():
    fig, ax = figures.axes(1, 2)
    for panel in ax[0]:
        figures.band(panel, [1, 2], np.ones((3, 2)), label="width 8")
        figures.line(panel, [1, 2], [1, 1])
    figures.legend(fig)
    [legend] = fig.legends
    assert [t.get_text() for t in legend.get_texts()] == ["width 8", "theory", "measurement"]
