"""The planted fault is found, where it starts, and what heals it; healthy models raise no alarm."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dltheory
from dltheory.experiment import (
    anatomy,
    catalogue,
    cli,
    examination,
    expectation,
    health,
    inspection,
    recognition,
)
from dltheory.networks import activations
from tests.experiment.sick_models import HEALTHY, SICK, TANH, dense
from tests.tier import cases

TABLE = [one for pair in itertools.zip_longest(SICK, HEALTHY) for one in pair if one is not None]
inspect = inspection.inspect


@pytest.fixture(scope="module")
def chaotic():
    """The report on a chaotic network, one program for all tests of its presentation."""
    return inspect(*SICK[0].build(), spectra=False)


@pytest.mark.parametrize(
    "model", TABLE[: cases(len(TABLE))], ids=lambda m: f"{m.name}, {m.finding or 'healthy'}"
)
def test_the_planted_fault_and_no_other(model):
    report = inspect(*model.build(), spectra=False)
    assert report.healthy == (not model.finding), report.words()
    if model.finding:
        fault, remedy = report.faults[0], report.remedies[0]
        assert f"{fault.kind} {fault.site} {remedy.kind}" == model.finding
        # A change of the program is all that cannot be tried.
        assert remedy.works is (None if remedy.kind == "program" else True), remedy


def test_readings_are_those_of_plain_formulas():
    f, p, x = dense(TANH, 2.0, bias_var=0.1, depth=2)()
    model = anatomy.model(f, p, x, loss=lambda y: jnp.sum(y[:, 0]))
    found = examination.read(model, p)
    assert [str(site) for site in model.sites] == ["first", "hidden[0]", "hidden[1]", "last"]
    assert [phi and phi.name for phi in model.feeds] == [None, "tanh", "tanh", "tanh"]
    p, x = jax.tree.map(lambda a: np.asarray(a, float), (p, x))
    h = [x @ p["first"]["W"] + p["first"]["b"]]
    for w, b in zip(p["hidden"]["W"], p["hidden"]["b"], strict=True):
        h.append(np.tanh(h[-1]) @ w + b)
    lengths = [np.mean(a**2) for a in h]
    np.testing.assert_allclose(np.exp(found.log_q[:3]), lengths, rtol=1e-4)
    unit = h[1] / np.linalg.norm(h[1], axis=1, keepdims=True)
    pairs = np.triu_indices(len(x), 1)
    np.testing.assert_allclose(found.c[1], (unit @ unit.T)[pairs].mean(), rtol=1e-3)
    slope = 1 / np.cosh(h[2]) ** 2
    delta = slope * p["last"]["W"][:, 0]
    np.testing.assert_allclose(found.log_gradient[2], np.log(np.linalg.norm(delta)), atol=1e-4)
    own = np.tanh(h[1]).T @ delta
    np.testing.assert_allclose(found.kernel_gradient[2], np.log(np.linalg.norm(own)), atol=1e-4)
    # The mean over all u of |J'u|^2 / |u|^2 is the squared Frobenius norm by the rows.
    square = np.mean(
        [np.sum((p["hidden"]["W"][1].T * (1 / np.cosh(a) ** 2)) ** 2) / 48 for a in h[1]]
    )
    np.testing.assert_allclose(np.exp(found.growth[2]), square, rtol=0.15)
    variances = 48 * np.mean(p["hidden"]["W"] ** 2, (1, 2)), np.mean(p["hidden"]["b"] ** 2, 1)
    np.testing.assert_allclose(found.weight_var[1:3], variances[0], rtol=1e-5)
    np.testing.assert_allclose(found.bias_var[1:3], variances[1], rtol=1e-5)
    flat = np.abs(1 / np.cosh(h[0]) ** 2) < 0.05
    np.testing.assert_allclose(found.saturated[0], flat.mean(), atol=0.02)
    assert found.finite.all()
    assert not found.coupled
    assert np.isnan(found.growth[0])
    theory = expectation.expect(model, found, np.zeros(4, bool))
    z, mass = np.polynomial.hermite_e.hermegauss(80)
    mean = lambda g: np.sum(mass * g(np.sqrt(lengths[0]) * z)) / np.sqrt(2 * np.pi)
    q = found.weight_var[1] * mean(lambda h: np.tanh(h) ** 2) + found.bias_var[1]
    chi_1 = found.weight_var[1] * mean(lambda h: np.cosh(h) ** -4)
    np.testing.assert_allclose([theory.q[1], theory.chi_1[1]], [q, chi_1], rtol=1e-4)


def test_theory_one_layer_ahead_of_relu():
    """Fourth moments of ReLU: E relu^4 = 3 q^2 / 2, so the band is known in closed form."""
    q = np.array([0.5, 3.0])
    found = expectation.averages(activations.get("relu"), q)
    half = np.full(2, 0.5)
    np.testing.assert_allclose(found, np.stack([q / 2, 1.5 * q**2, half, half]), rtol=1e-5)
    c = np.array([-0.5, 0.8])
    arc = (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) / np.pi
    weight_var, bias_var = np.full(2, 2.0), np.array([0.0, 1.0])
    found = expectation._next_correlation(activations.get("relu"), q, c, weight_var, bias_var)
    np.testing.assert_allclose(found, (q * arc + bias_var) / (q + bias_var), rtol=1e-5)


def test_activations_are_told_by_their_values():
    for name in activations.names()[: cases(20)]:
        table = recognition.values(activations.get(name))
        found = recognition.named(table)
        assert found is not None
        np.testing.assert_allclose(recognition.values(found), table, atol=2e-3, err_msg=name)
    bent = np.where(recognition.GRID > 0.5, 2 * recognition.GRID - 0.5, recognition.GRID)
    own = recognition.named(bent)
    assert own is not None
    np.testing.assert_allclose(own(jnp.array([-30.0, 0.3, 20.0])), [-30.0, 0.3, 39.5], rtol=1e-5)
    assert recognition.named(np.zeros(len(recognition.GRID))) is None
    relu = recognition.slopes(np.maximum(recognition.GRID, 0))
    rows = jnp.array([-1e-6, 1e-6, -99.0, 99.0]).reshape(2, 2)
    np.testing.assert_array_equal(recognition.steepness(jnp.asarray(relu), rows), [[0, 1], [0, 1]])


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [([-1, 2, 3, -1, 2], (1, 5)), ([-1, 2, -3, 4], (3, 4)), ([-1, -2], (0, 0)), ([], (0, 0))],
)
def test_the_stretch_with_the_largest_sum(steps, wanted):
    assert health.stretch(np.array(steps, float)) == wanted


def test_the_report_in_words_in_a_table_and_in_html(chaotic):
    fault, text = chaotic.faults[0], " ".join(str(chaotic).split())
    assert chaotic.words()[0] == f"Exploding: {fault.text}."
    assert fault.text.startswith("gradients explode, from hidden[0] on: by a factor of ")
    for part in ("draw Gaussian weights of weight_var = 1.7", "it works", "hidden[19]", "tanh."):
        assert part in text
    assert all(abs(one.q_z) < 5 for one in chaotic.layers[1:])
    page = chaotic._repr_html_()
    assert page.count("<tr") == 1 + len(chaotic.layers)
    assert "<svg" in page
    lengths, gradients, units = chaotic.figure().axes
    np.testing.assert_allclose(
        gradients.lines[1].get_ydata(),
        [one.log_gradient / np.log(10) for one in chaotic.layers],
    )
    off = gradients.lines[1].get_ydata() - gradients.lines[0].get_ydata()
    # The band of theory at the first of 20 layers, by its own formula for slopes and signs.
    noise = [3 * (one.chi_1_std / one.chi_1_expected) ** 2 + 2 / 48 for one in chaotic.layers[1:]]
    assert np.abs(off[0]) < 4 * np.sqrt(np.sum(noise)) / 2 / np.log(10)
    assert units.get_ylim() == (-3, 103)
    assert lengths.get_xlabel() == "layer $l$"


def test_the_command_and_the_alias(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "sick_factory.py").write_text(
        "from tests.experiment.sick_models import HEALTHY, SICK\n"
        "sick, healthy, number = SICK[0].build, HEALTHY[0].build, lambda: 3\n"
    )
    assert cli.main(["inspect", "sick_factory:healthy"]) == 0
    assert "Healthy. Activation: tanh." in capsys.readouterr().out
    assert cli.main(["inspect", "sick_factory:number"]) == 2
    assert "sick_factory:number returns int; want (f, params, x[, y])" in capsys.readouterr().err
    with pytest.raises(catalogue.UsageError, match="nowhere:f: No module named 'nowhere'; want"):
        inspection.made("nowhere:f")
    sys.modules.pop("sick_factory")
    assert dltheory.inspect is inspect
    with pytest.raises(AttributeError, match="module 'dltheory' has no attribute 'nothing'"):
        dltheory.nothing  # noqa: B018


def test_targets_and_wrong_arguments():
    f, p, x = SICK[0].build()
    with pytest.raises(TypeError, match="y and loss are both given; want one"):
        inspect(f, p, x, jnp.zeros(8), loss=jnp.sum)
    with pytest.raises(ValueError, match=r"y has shape \(3,\) for an output of shape \(8, 5\)"):
        inspection._loss(jnp.zeros(3, int), f(p, x))
    y = f(p, x)
    mean = np.mean((np.asarray(y) - 1) ** 2) / 2
    np.testing.assert_allclose(inspection._loss(jnp.ones_like(y), y), mean, rtol=1e-5)
    logits = np.asarray(y, float)
    chosen = np.log(np.exp(logits).sum(1)) - logits[:, 2]
    np.testing.assert_allclose(inspection._loss(jnp.full(8, 2), y), chosen.mean(), rtol=1e-5)
