"""Decompositions that add up, measures that do not see a rescaling, and what they bound."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import stats

from dltheory.measure import generalization as measure
from dltheory.measure import kernel_norms
from dltheory.networks.data import Data
from dltheory.theory import generalization as theory
from tests.tier import cases

RNG = np.random.default_rng(0)


# --- the gap ---------------------------------------------------------------------------------


def test_the_interval_covers_the_true_gap_at_its_level():
    n, m, repeats = 40, 60, cases(20000)
    train, test = RNG.normal(0.2, 1.0, (repeats, n)), RNG.normal(0.9, 2.0, (repeats, m))
    found = jax.jit(lambda a, b: measure.gap(a, b, level=0.9))(train, test)
    np.testing.assert_allclose(found.gap, test.mean(1) - train.mean(1), rtol=1e-12)
    stderr = np.sqrt(stats.sem(train, axis=1) ** 2 + stats.sem(test, axis=1) ** 2)
    np.testing.assert_allclose(found.stderr, stderr, rtol=1e-12)
    covered = np.mean((found.lower < 0.7) & (found.upper > 0.7))
    # Student's law has the heavier tails: at these sizes a hundredth of the coverage.
    assert abs(covered - 0.9) < 4 * math.sqrt(0.09 / repeats) + 0.01


# --- bias and variance -----------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [(), (3,)])
def test_the_squared_loss_adds_up(outputs):
    f, y = RNG.normal(size=(7, 11, *outputs)), RNG.normal(size=(5, 11, *outputs))
    loss, bias, variance, noise = jax.jit(measure.bias_variance)(f, y)
    np.testing.assert_allclose(bias + variance + noise, loss, rtol=1e-12)
    per_example = lambda a: (
        a.reshape(*a.shape[: -len(outputs) or None], -1).sum(-1) if outputs else a
    )
    want = np.mean([per_example((a - b) ** 2).mean() for a, b in itertools.product(f, y)])
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    np.testing.assert_allclose(variance, per_example(f.var(0)).mean(), rtol=1e-12)
    np.testing.assert_allclose(noise, per_example(y.var(0)).mean(), rtol=1e-12)
    assert jax.jit(measure.bias_variance)(f, y[0]).noise == 0


def test_the_zero_one_loss_adds_up():
    f, y = RNG.integers(0, 4, (9, 50)), RNG.integers(0, 4, (6, 50))
    decompose = jax.jit(lambda f, y: measure.bias_variance(f, y, kind="zero_one"))
    loss, bias, variance, noise = decompose(f, y)
    np.testing.assert_allclose(bias + variance + noise, loss, rtol=1e-10)
    np.testing.assert_allclose(loss, np.mean(f[:, None] != y[None]), rtol=1e-12)
    best, main = stats.mode(y).mode, stats.mode(f).mode
    np.testing.assert_allclose(noise, np.mean(y != best), rtol=1e-12)
    np.testing.assert_allclose(noise + bias, np.mean(y != main), rtol=1e-12)
    # With two classes and no noise it is Domingos' unbiased less biased variance.
    f, y = RNG.integers(0, 2, (9, 50)), RNG.integers(0, 2, 50)
    found = decompose(f, y)
    biased, differs = stats.mode(f).mode != y, np.mean(f != stats.mode(f).mode, axis=0)
    np.testing.assert_allclose(found.bias, biased.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        found.variance, np.mean(differs * np.where(biased, -1, 1)), atol=1e-12
    )


def test_the_sources_of_variance_add_up():
    f = RNG.normal(size=(4, 3, 10, 2)) + 5 * RNG.normal(size=(4, 1, 10, 2))
    data, initialization = jax.jit(measure.variance_sources)(f)
    whole = f.reshape(12, 10, 2).var(axis=0).sum(-1).mean()
    np.testing.assert_allclose(data + initialization, whole, rtol=1e-12)
    np.testing.assert_allclose(initialization, f.var(axis=1).sum(-1).mean(), rtol=1e-12)


# --- margins and complexity ------------------------------------------------------------------

WIDTHS = (4, 6, 5, 3)
X, LABELS = jnp.asarray(RNG.normal(size=(20, 4))), RNG.integers(0, 3, 20)


def network(params, x):
    """ReLU layers, the middle one with the outputs first, biases but in the last."""
    h = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    h = jax.nn.relu(h @ params["second"].T + params["shift"][None])
    return h @ params["last"]


def draw():
    sizes = itertools.pairwise(WIDTHS)
    first, second, last = (RNG.normal(size=pair) / math.sqrt(pair[0]) for pair in sizes)
    params = {
        "first": {"kernel": first, "bias": RNG.normal(size=6)},
        "second": second.T,
        "shift": RNG.normal(size=5),
        "last": last,
    }
    return jax.tree.map(jnp.asarray, params)


@jax.jit
def measured(params):
    # Labels that the model gives itself, so that the margins are positive.
    y = jnp.argmax(network(draw_once, X), axis=1)
    return measure.complexity_measures(network, params, X, y)


draw_once = draw()


def test_measures_are_what_they_are_called():
    p, found = draw_once, measured(draw_once)
    kernels = [np.asarray(p["first"]["kernel"].T), np.asarray(p["second"]), np.asarray(p["last"].T)]
    frobenius = math.log(math.prod(np.linalg.norm(w) for w in kernels))
    spectral = math.log(math.prod(np.linalg.norm(w, 2) for w in kernels))
    np.testing.assert_allclose(found["log_frobenius"], frobenius, rtol=1e-12)
    np.testing.assert_allclose(found["log_spectral"], spectral, rtol=1e-12)
    complexity = jax.jit(theory.spectral_complexity)(kernels)
    np.testing.assert_allclose(found["log_spectral_complexity"], np.log(complexity), rtol=1e-12)
    # The path norm, by going along every path, from an input or a bias to an output.
    square = 0.0
    for k, j, i in itertools.product(range(3), range(5), range(6)):
        into = np.sum(kernels[0][i] ** 2) + p["first"]["bias"][i] ** 2
        square += kernels[2][k, j] ** 2 * kernels[1][j, i] ** 2 * into
    square += np.sum(kernels[2] ** 2 * np.asarray(p["shift"])[None] ** 2)
    np.testing.assert_allclose(found["log_path"], math.log(square) / 2, rtol=1e-12)
    outputs = np.asarray(jax.jit(network)(p, X))
    top = np.sort(outputs, axis=1)
    np.testing.assert_allclose(found["margin"], np.quantile(top[:, -1] - top[:, -2], 0.1), 1e-12)
    np.testing.assert_allclose(
        found["log_path_margin"], found["log_path"] - jnp.log(found["margin"]), rtol=1e-12
    )
    assert found["parameters"] == 4 * 6 + 6 + 6 * 5 + 5 + 5 * 3

    @jax.jit
    def loss(t):
        scaled = jax.tree.map(lambda w: (1 + t) * w, p)
        own = jax.nn.one_hot(jnp.argmax(outputs, axis=1), 3)
        return -jnp.sum(own * jax.nn.log_softmax(network(scaled, X)), axis=1)

    slopes = (loss(1e-5) - loss(-1e-5)) / 2e-5
    np.testing.assert_allclose(found["fisher_rao"], np.sqrt(np.mean(slopes**2)), rtol=1e-7)


def test_rescaling_of_relu_layers_changes_no_invariant():
    scale = jnp.asarray(10 ** RNG.uniform(-2, 2, 6))
    whole = jax.tree.map(lambda a: a, draw_once) | {
        "first": jax.tree.map(lambda a: 7 * a, draw_once["first"]),
        "second": draw_once["second"] / 7,
    }
    units = whole | {
        "first": {
            "kernel": draw_once["first"]["kernel"] * scale[None],
            "bias": draw_once["first"]["bias"] * scale,
        },
        "second": draw_once["second"] / scale[None],
    }
    before, layer, unit = measured(draw_once), measured(whole), measured(units)
    assert abs(layer["log_l2"] - before["log_l2"]) > 0.1
    for name in before.keys() - {"log_l2"}:
        np.testing.assert_allclose(layer[name], before[name], rtol=1e-10, err_msg=name)
    # Unit by unit, those that are sums over paths or derivatives along the parameters.
    for name in ("log_path", "log_path_margin", "margin", "fisher_rao"):
        np.testing.assert_allclose(unit[name], before[name], rtol=1e-10, err_msg=name)
    assert abs(unit["log_frobenius"] - before["log_frobenius"]) > 0.1


def test_norms_over_margins_do_not_depend_on_the_scale_of_outputs():
    louder = measured(draw_once | {"last": 5 * draw_once["last"]})
    for name, value in measured(draw_once).items():
        if name.endswith("_margin"):
            np.testing.assert_allclose(louder[name], value, rtol=1e-10, err_msg=name)
    silent = measured(draw_once | {"last": -draw_once["last"]})
    assert silent["margin"] < 0
    assert silent["log_path_margin"] == jnp.inf


def test_norms_are_never_below_what_they_bound():
    """The slope of the network between any two points, and its size, without biases."""
    bare = draw_once | {
        "first": {"kernel": draw_once["first"]["kernel"], "bias": jnp.zeros(6)},
        "shift": jnp.zeros(5),
    }
    found = measured(bare)
    lipschitz, path = jnp.exp(found["log_spectral"]), jnp.exp(found["log_path"])
    outputs = np.asarray(jax.jit(network)(bare, X))
    for i, j in itertools.combinations(range(len(X)), 2):
        assert np.linalg.norm(outputs[i] - outputs[j]) <= lipschitz * np.linalg.norm(X[i] - X[j])
    assert np.all(np.abs(outputs).max(1) <= path * np.linalg.norm(X, axis=1))


def test_scanned_and_convolutional_kernels():
    stack, conv = RNG.normal(size=(3, 4, 4)), RNG.normal(size=(3, 2, 1))

    def f(params, x):
        h = lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x, params["stack"])[0]
        h = lax.conv_general_dilated(
            h[:, :, None], params["conv"], (1,), "SAME", dimension_numbers=("NWC", "WOI", "NWC")
        )
        return jnp.sum(h, axis=1)

    params = {"stack": jnp.asarray(stack), "conv": jnp.asarray(conv)}
    found = jax.jit(lambda p: kernel_norms.kernel_norms(f, p, X)._replace(layers=None))(params)
    spectral = [np.linalg.norm(w, 2) for w in stack]
    # One channel in, two out: the circular operator of size 24 as a dense matrix.
    dense = np.zeros((48, 24))
    for out, at, tap in itertools.product(range(2), range(24), range(3)):
        dense[24 * out + at, (at + tap - 1) % 24] += conv[tap, out, 0]
    want = np.log([*spectral, np.linalg.norm(dense, 2)])
    np.testing.assert_allclose(found.log_spectral, want, rtol=1e-12)
    frobenius = np.log([np.linalg.norm(w) for w in (*stack, conv)])
    np.testing.assert_allclose(found.log_frobenius, frobenius, rtol=1e-12)
    units = [np.linalg.norm(w, axis=0).sum() for w in stack]
    units.append(np.linalg.norm(conv, axis=(0, 2)).sum())
    np.testing.assert_allclose(found.log_units, np.log(units), rtol=1e-12)


def test_rank_correlation():
    a, b = RNG.integers(0, 5, 30), RNG.normal(size=30)
    correlation = jax.jit(measure.rank_correlation)
    np.testing.assert_allclose(correlation(a, b), stats.kendalltau(a, b).statistic, rtol=1e-12)
    assert jnp.isnan(correlation(np.ones(30, int), b))


def test_random_labels_are_fitted_share_by_share():
    examples = Data(jnp.zeros((500, 1)), jnp.asarray(np.arange(500) % 4))
    fit = lambda key, data: (data.y, jax.random.key_data(key))
    y = np.arange(500) % 4
    run = jax.jit(lambda key, s: measure.under_random_labels(key, fit, examples, 4, s))
    labels, keys = map(np.asarray, run(jax.random.key(0), np.array([0.0, 0.5, 1.0])))
    np.testing.assert_array_equal(labels[0], y)
    half = labels[1] != y
    np.testing.assert_array_equal(labels[1][half], labels[2][half])
    assert 0.3 < np.mean(half) < 0.45
    np.testing.assert_array_equal(keys[0], keys[2])


# --- errors ----------------------------------------------------------------------------------


def test_bad_input():
    with pytest.raises(ValueError, match=r"\(\(0,\), \(3,\)\); want at least two examples in each"):
        measure.gap(jnp.zeros(0), jnp.zeros(3))
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\); got 1.0"):
        measure.gap(jnp.zeros(3), jnp.zeros(3), level=1.0)
    with pytest.raises(ValueError, match="want the same leading axes"):
        measure.gap(jnp.zeros((2, 3)), jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="kind is 'log'; want 'squared' or 'zero_one'"):
        measure.bias_variance(jnp.zeros((2, 3)), jnp.zeros(3), kind="log")
    for shapes in (((2, 3), (4,)), ((0, 3), (3,)), ((3,), (3,))):
        with pytest.raises(
            ValueError, match=r"predictions must be \(members, N, ...\) and targets"
        ):
            measure.bias_variance(*map(jnp.zeros, shapes))
    with pytest.raises(ValueError, match=r"want \(data, initializations, N, ...\)"):
        measure.variance_sources(jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="y holds labels from 0 to 3; want 0 to 2"):
        measure.margins(jnp.zeros((2, 3)), jnp.array([0, 3]))
    with pytest.raises(ValueError, match=r"outputs must be \(N, classes\), two or more, and y"):
        measure.margins(jnp.zeros((2, 1)), jnp.array([0, 0]))
    f = lambda p, x: x @ (p["u"] @ p["v"])
    with pytest.raises(ValueError, match=r"the weights of u\+v are made of more than the axes of"):
        measure.complexity_measures(f, {"u": jnp.eye(4), "v": jnp.eye(4)}, X, LABELS)
    with pytest.raises(ValueError, match="measure and gaps have the shapes"):
        measure.rank_correlation(jnp.ones(1), jnp.ones(1))
