"""Theory beside measurement: the numbers are those of plain formulas, the errors say what to do."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from dltheory.experiment import report
from dltheory.networks import sites
from dltheory.networks.sites import SiteError
from dltheory.numerics.results import Moments
from dltheory.theory.fluctuations import Prediction

WIDTH = 12
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 5))


def dense(*shape):
    return RNG.standard_normal(shape) / np.sqrt(shape[-2])


def plain(w, x):
    h = x @ w["first"] + w["bias"][None]
    for name in ("second", "third"):
        h = jnp.tanh(h) @ w[name]
    return jnp.tanh(h) @ w["last"]


PLAIN = {
    "first": dense(5, WIDTH),
    "bias": RNG.standard_normal(WIDTH),
    "second": dense(WIDTH, WIDTH),
    "third": dense(WIDTH, WIDTH),
    "last": dense(WIDTH, 2),
}


def residual(w, x):
    def block(h, w):
        return h + jnp.tanh(h) @ w, None

    return jax.lax.scan(block, x @ w["first"], w["blocks"])[0] @ w["last"]


RESIDUAL = {"first": dense(5, WIDTH), "blocks": dense(4, WIDTH, WIDTH), "last": dense(WIDTH, 2)}


def prediction(depth, std=0.1):
    mean = Moments(*(jnp.linspace(a, 1.0, depth) for a in (2.0, 0.5, 0.9)))
    return Prediction(mean, jax.tree.map(lambda a: jnp.full_like(a, std), mean))


def lengths(values):
    """Mean length and correlation of values of shape `(layers, N, units)`."""
    gram = values @ np.swapaxes(values, 1, 2) / values.shape[-1]
    q = np.diagonal(gram, axis1=1, axis2=2)
    c = gram / np.sqrt(q[:, :, None] * q[:, None])
    first, second = np.triu_indices(len(X), 1)
    return q.mean(1), c[:, first, second].mean(1)


def test_a_plain_network_by_default():
    theory = prediction(3)
    found = report.compare(plain, PLAIN, X, theory)
    assert [str(site) for site in found.sites] == ["first", "second", "third"]
    h = [X @ PLAIN["first"] + PLAIN["bias"]]
    growth = []
    for name in ("second", "third"):
        slope = 1 / np.cosh(h[-1]) ** 2
        growth.append(np.mean(np.sum((slope[:, :, None] * PLAIN[name]) ** 2, (1, 2))) / WIDTH)
        h.append(np.tanh(h[-1]) @ PLAIN[name])
    q, c = lengths(np.array(h))
    np.testing.assert_allclose(found.q.measured, q, rtol=1e-12)
    np.testing.assert_allclose(found.c.measured, c, rtol=1e-12)
    np.testing.assert_allclose(found.chi_1.measured, [*growth, np.nan], rtol=1e-12)
    np.testing.assert_array_equal(found.q.predicted, theory.mean.q)
    np.testing.assert_allclose(found.c.z, (c - theory.mean.c) / 0.1, rtol=1e-9)

    bare = report.compare(plain, PLAIN, X[:1], theory.mean._replace(chi_1=None))
    np.testing.assert_allclose(bare.q.measured, [np.mean(a[0] ** 2) for a in h], rtol=1e-12)
    for nothing in (bare.q.z, bare.c.measured, bare.chi_1.predicted, bare.chi_1.z):
        assert np.isnan(nothing).all()


def test_the_stream_of_a_residual_network():
    """Its joins are named; a stack by the text of its layer. Without noise rounding is the band."""
    found = report.compare(residual, RESIDUAL, X, prediction(4), sites=["join"])
    assert [str(site) for site in found.sites] == [f"join[{layer}]" for layer in range(4)]
    h, growth, stream = X @ RESIDUAL["first"], [], []
    for w in RESIDUAL["blocks"]:
        slope = 1 / np.cosh(h) ** 2
        jacobian = np.eye(WIDTH) + slope[:, :, None] * w
        growth.append(np.mean(np.sum(jacobian**2, (1, 2))) / WIDTH)
        h = h + np.tanh(h) @ w
        stream.append(h)
    q, _ = lengths(np.array(stream))
    np.testing.assert_allclose(found.q.measured, q, rtol=1e-12)
    np.testing.assert_allclose(found.chi_1.measured, [*growth[1:], np.nan], rtol=1e-12)


def test_growth_past_a_skip_or_a_gap_is_not_measured():
    """A branch is no cut; and a stack is severed at each of its layers."""
    growth = lambda *names: (
        report.compare(residual, RESIDUAL, X, prediction(len(names)), sites=names).chi_1.measured
    )
    assert np.isnan(growth("blocks[0]", "first")).all()
    np.testing.assert_array_equal(np.isnan(growth("first", "join[0]", "join[2]")), [0, 1, 1])


def convolve(h, kernel):
    ring = jnp.pad(h, ((0, 0), (1, 1), (0, 0)), mode="wrap")
    return jax.lax.conv_general_dilated(
        ring, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )


@pytest.mark.parametrize("coupled", [False, True])
def test_convolutions_and_examples_that_are_coupled(coupled):
    def f(w, x):
        h = convolve(jnp.tanh(convolve(x, w["first"])), w["second"])
        h = h - h.mean(0, keepdims=True) if coupled else h
        return jax.nn.relu(h).reshape(len(x), -1) @ w["last"]

    x = RNG.standard_normal((2, 6, 2))
    w = {"first": dense(3, 2, 3), "second": dense(3, 3, 4), "last": dense(24, 2)}
    found = report.compare(f, w, x, prediction(2))
    assert [str(site) for site in found.sites] == ["first", "second"]
    h = np.asarray(convolve(x, w["first"]))
    # On a ring each unit is read once through each place of the window.
    slope = np.mean(1 / np.cosh(h) ** 4, axis=(0, 1))
    wanted = np.nan if coupled else np.sum(np.sum(w["second"] ** 2, (0, 2)) * slope) / 4
    np.testing.assert_allclose(found.chi_1.measured, [wanted, np.nan], rtol=1e-12)
    np.testing.assert_allclose(found.q.measured[0], np.mean(h**2), rtol=1e-12)


def hand_made():
    rows = np.array([[2.0, 1.0], [0.5, 0.0], [2.1, np.nan], [0.2, np.nan]])
    wild = rows + np.array([[0.0], [0.0], [3.0], [4.5]])
    nothing = np.full(2, np.nan)
    missing = report.Agreement(rows[0], rows[1], nothing, nothing)
    chosen = sites.find(plain, PLAIN, X)[::2]
    return report.Comparison(chosen, report.Agreement(*rows), missing, report.Agreement(*wild))


def test_table_and_figure():
    at = hand_made()
    sheet = report.table(at)
    text = io.StringIO()
    Console(file=text, width=100, force_terminal=True, color_system="standard").print(sheet)
    assert list(sheet.columns[0].cells) == ["q", "", "chi_1", ""]
    assert [str(c) for c in sheet.columns[1].cells] == ["first", "third"] * 2
    assert list(sheet.columns[4].cells) == ["2.1", "–", "5.1", "–"]
    assert [str(c) for c in sheet.columns[5].cells] == ["+0.2", "–", "+4.7", "–"]
    assert "\x1b[1;31m+4.7" in text.getvalue().replace(" ", "")

    fig = report.figure(at)
    assert [ax.get_title(loc="left") for ax in fig.axes[:2]] == [
        "length",
        "growth of squared gradients",
    ]
    line, points = fig.axes[0].lines
    np.testing.assert_array_equal(line.get_ydata(), [2, 1])
    np.testing.assert_array_equal(points.get_ydata(), [2.1, np.nan])
    bands = [c.get_paths()[0].get_extents() for c in fig.axes[0].collections]
    np.testing.assert_allclose([(b.y0, b.y1) for b in bands], [(1, 2.5), (1, 3)])
    np.testing.assert_allclose(fig.axes[3].get_ylim(), (-1.15 * 4.7, 1.15 * 4.7))


def test_bad_input():
    compare = lambda theory, **more: report.compare(plain, PLAIN, X, theory, **more)
    with pytest.raises(
        ValueError,
        match=r"theory speaks of 4 layers, but the model's hidden dense and convolutional layers "
        r"are 3: first, second, third\. Give theory of that depth, or name .* sites=\[\.\.\.\]; "
        r"the model has: first, second, third, last\.",
    ):
        compare(prediction(4))
    with pytest.raises(ValueError, match="speaks of 1 layers, but sites are 2: first, last"):
        compare(prediction(1), sites=["last", "first"])
    with pytest.raises(SiteError, match="no site is named 'Dense_7'; the model has: first, sec"):
        compare(prediction(1), sites=["Dense_7"])
    with pytest.raises(SiteError, match=r"site 'join\[7\]' does not exist; 'join' is join\[0\] to"):
        report.compare(residual, RESIDUAL, X, prediction(1), sites=["join[7]"])
    short = prediction(3)._replace(std=prediction(2).std)
    with pytest.raises(
        ValueError,
        match=r"theory's std of q has shape \(2,\) and that of q \(3,\); want \(depth,\)",
    ):
        compare(short)
    with pytest.raises(ValueError, match=r"theory's mean of q has shape \(\) and that of q \(\)"):
        compare(Moments(jnp.float64(1), jnp.float64(1), None))
    with pytest.raises(TypeError, match=r"theory is a tuple; want the Prediction of theory\.fluc"):
        compare((1.0, 2.0))
    with pytest.raises(ValueError, match=r"x has shape \(0, 5\), want \(N, \.\.\.\) with N >= 1"):
        report.compare(plain, PLAIN, X[:0], prediction(3))


@pytest.mark.usefixtures("float32")
def test_rounding_is_no_disagreement():
    """Where theory knows no fluctuation, as for the first layer of orthogonal weights."""
    w, x = {"W": np.float32(dense(5, 5)), "out": np.eye(5, dtype=np.float32)}, np.float32(X)
    q = np.mean(np.square(np.float64(x) @ np.float64(w["W"])))
    theory = Prediction(Moments(q[None], np.zeros(1), None), Moments(*np.zeros((2, 1)), None))
    found = report.compare(lambda w, x: jnp.tanh(x @ w["W"]) @ w["out"], w, x, theory)
    assert abs(found.q.z[0]) < 0.1
