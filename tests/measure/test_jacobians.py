"""Jacobians of every model of the table: two modes, differences, and code that knows no sites."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from dltheory.measure import jacobians
from dltheory.networks import sites
from dltheory.networks.sites import SiteError
from dltheory.numerics import spectra
from tests.model_table import CASES, deep_linen_scan, deep_scan, kinds, parameters
from tests.tier import FULL

table = pytest.mark.parametrize("case", parameters(kinds()))


def chosen(case):
    """The sites to try: all of them in the full tier, one in the middle in the quick one."""
    return case.sites if FULL else case.sites[len(case.sites) // 2 :][:1]


def blocks(full, x, batch_axis=0):
    """Each example's own block, `(N, m, n)`, of a Jacobian over the whole batch."""
    full = jnp.moveaxis(full, batch_axis, 0)
    rows = full.reshape(full.shape[0], -1, *x.shape)
    return jnp.stack([rows[i, :, i].reshape(rows.shape[1], -1) for i in range(x.shape[0])])


@table
def test_both_modes_agree_with_differences(case):
    f, params, x = case.build()
    keys = jax.random.split(jax.random.key(7), 2)
    program = sites.trace(f, params, x)
    axes = sites.example_axes(f, params, x, program)
    for site in chosen(case):
        text, index = sites.parse(site)
        layer = program.layer(text)

        @jax.jit
        def both(params, x, site=site):
            modes = [
                jacobians.jacobian(f, params, x, site, mode=mode, coupled=case.couples_examples)
                for mode in ("forward", "reverse")
            ]
            into = jacobians.jacobian(f, params, x, "input", site, coupled=True)
            return *modes, into

        @jax.jit
        def output(tap, layer=layer, index=index):
            taps = jnp.zeros((*layer.lengths, *layer.shape), layer.dtype)
            return program.run(params, x, {layer.text: taps.at[index or ()].set(tap)})[0]

        forward, reverse, into = both(params, x)
        np.testing.assert_allclose(forward, reverse, rtol=0, atol=1e-12)
        # One example moves at a time, so that only its own block is in the difference.
        axis = axes[text]
        only = jnp.expand_dims(
            jnp.arange(x.shape[0]) == 1, [k for k in range(len(layer.shape)) if k != axis]
        )
        direction = jnp.where(only, jax.random.normal(keys[0], layer.shape), 0.0)
        h = 1e-5
        difference = (output(h * direction) - output(-h * direction))[1] / (2 * h)
        moved = jnp.moveaxis(direction, axis, 0)[1].reshape(-1)
        np.testing.assert_allclose(forward[1] @ moved, difference.reshape(-1), rtol=0, atol=1e-7)
        if site in case.cuts and not case.couples_examples:
            through = jacobians.jacobian(f, params, x)
            np.testing.assert_allclose(forward @ into, through, rtol=0, atol=1e-12)


@table
def test_layer_spectra_equal_those_of_naive_jacobians(case):
    f, params, x = case.build()
    found = jacobians.layer_spectra(f, params, x, coupled=case.couples_examples)
    texts = [str(site) for site in found.sites]
    assert texts == [*case.sites] + ["output"] * (len(texts) > len(case.sites))
    assert {t for t, s in zip(texts, found.local, strict=True) if s is not None} - {
        "output"
    } == set(case.cuts)
    values = jax.jit(case.expected)
    naive = jax.jit(jax.jacrev(values, argnums=1))(params, x)
    axes = dict(case.example_axes)
    before = blocks(jax.jacrev(lambda x: x)(x), x)
    for site, measured, local in zip(case.sites, found.input_to_layer, found.local, strict=False):
        j = blocks(naive[site], x, axes.get(site, 0))
        wanted = np.linalg.svd(j, compute_uv=False)
        np.testing.assert_allclose(np.exp(measured), wanted, rtol=0, atol=1e-13 * wanted.max())
        if (
            local is not None
            and before.shape[1] == before.shape[2]
            and np.linalg.cond(before).max() < 1e6
        ):
            piece = np.linalg.svd(j @ np.linalg.inv(before), compute_uv=False)
            np.testing.assert_allclose(np.exp(local), piece, rtol=0, atol=1e-8 * piece.max())
        if local is not None:
            before = j
    np.testing.assert_allclose(found.layer_to_output[-1], 0.0, atol=1e-14)
    whole = np.linalg.svd(
        jacobians.jacobian(f, params, x, case.sites[0], coupled=case.couples_examples),
        compute_uv=False,
    )
    np.testing.assert_allclose(
        np.exp(found.layer_to_output[0]), whole, rtol=0, atol=1e-13 * whole.max()
    )


def test_a_linear_chain_has_the_spectra_of_its_matrices():
    w = jax.random.normal(jax.random.key(0), (4, 5, 5))
    f = lambda w, x: functools.reduce(lambda h, i: h @ w[i], range(4), x)
    found = jacobians.layer_spectra(f, w, jnp.ones((2, 5)))
    for i in range(4):
        for measured, matrix in [
            (found.local[i], w[i]),
            (found.input_to_layer[i], functools.reduce(jnp.matmul, w[: i + 1])),
            (found.layer_to_output[i], functools.reduce(jnp.matmul, w[i + 1 :], jnp.eye(5))),
        ]:
            wanted = np.linalg.svd(matrix, compute_uv=False)
            np.testing.assert_allclose(
                np.exp(measured), np.stack([wanted, wanted]), rtol=1e-10, atol=1e-14
            )


@pytest.mark.parametrize("build", [deep_scan, deep_linen_scan])
def test_a_thousand_layers_compile_into_one_loop_each(build):
    f, params, x = build(1000, 4)
    found = jacobians.layer_spectra(f, params, x)
    assert len(found.sites) == 1000
    assert all(s.shape[0] == x.shape[0] for s in found.local)


def test_ten_thousand_layers_lose_no_singular_value():
    """Three hundred in the quick tier; determinants multiply, whatever the range of floats."""
    depth = 10_000 if FULL else 300
    f, params, x = deep_scan(depth, 32)
    found = jacobians.layer_spectra(f, params, x[:1])
    assert len(found.sites) == depth
    assert all(np.isfinite(spectrum).all() for part in found[1:4] for spectrum in part)
    assert found.input_to_layer[-1].min() < -2 * depth * np.log(2)
    volumes = np.cumsum([spectrum.sum() for spectrum in found.local])
    through = [spectrum.sum() for spectrum in found.input_to_layer]
    np.testing.assert_allclose(through, volumes, rtol=1e-11, atol=1e-9)


def test_a_second_call_neither_traces_nor_compiles():
    traces = []

    def f(w, x):
        traces.append(1)
        return jnp.tanh(x @ w)

    w, x = jnp.ones((2, 2)), jnp.ones((3, 2))
    jacobians.layer_spectra(f, w, x)
    before = len(traces)
    first = jacobians.layer_spectra(f, w, x).local[0]
    assert len(traces) == before
    again = jacobians.layer_spectra(f, 2 * w, x).local[0]
    assert len(traces) == before
    assert not np.array_equal(first, again)


@pytest.mark.usefixtures("float32")
def test_spectra_are_the_same_under_jit_and_follow_the_dtype():
    f, params, x = CASES[0].build(jnp.float32)
    eager = jacobians.layer_spectra(f, params, x).local
    traced = jax.jit(lambda p, x: jacobians.layer_spectra(f, p, x).local)(params, x)
    for a, b in zip(eager, traced, strict=True):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_a_local_spectrum_is_differentiable_in_the_parameters():
    # Not so if cuts were made by stop_gradient: then all but the last layer's part is lost.
    f = lambda w, x: jnp.tanh(jnp.tanh(x @ w["a"]) @ w["b"]) @ w["c"]
    keys = jax.random.split(jax.random.key(0), 3)
    w = {name: jax.random.normal(key, (3, 3)) for name, key in zip("abc", keys, strict=True)}
    x = jnp.ones((1, 3))
    volume = jax.jit(lambda w: sum(s.sum() for s in jacobians.layer_spectra(f, w, x).local))
    direction = jax.tree.map(lambda a: jnp.cos(jnp.arange(9.0)).reshape(3, 3) * a, w)
    slope = jax.jvp(volume, (w,), (direction,))[1]
    h = 1e-5
    move = lambda h: jax.tree.map(lambda a, d: a + h * d, w, direction)
    np.testing.assert_allclose(slope, (volume(move(h)) - volume(move(-h))) / (2 * h), rtol=1e-8)


def test_an_isometry_penalty_on_inactive_units_has_the_gradient_of_differences():
    f = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]
    keys = jax.random.split(jax.random.key(1), 2)
    w = {name: jax.random.normal(key, (3, 3)) for name, key in zip("ab", keys, strict=True)}
    x = jnp.ones((1, 3))
    assert (x @ w["a"] < 0).any()

    @jax.jit
    def penalty(w):
        found = jacobians.layer_spectra(f, w, x)
        return sum(spectra.isometry_error(s).sum() for s in (*found.local, *found.input_to_layer))

    direction = dict.fromkeys("ab", jnp.cos(jnp.arange(9.0)).reshape(3, 3))
    slope = jax.jvp(penalty, (w,), (direction,))[1]
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(penalty)(w)))
    h = 1e-5
    move = lambda h: jax.tree.map(lambda a, d: a + h * d, w, direction)
    np.testing.assert_allclose(slope, (penalty(move(h)) - penalty(move(-h))) / (2 * h), rtol=1e-7)


def test_nan_in_the_data_makes_its_spectra_nan_and_no_others():
    f, params, x = CASES[0].build()
    found = jacobians.layer_spectra(f, params, x.at[1, 0].set(jnp.nan))
    for s in (*found.input_to_layer[1:], *found.local[1:]):
        assert np.isnan(s[1]).all()
        assert np.isfinite(s[0]).all()


def coupled_model():
    f = lambda w, x: (x @ w) - (x @ w).mean(0, keepdims=True)
    return f, jnp.eye(2), jnp.array([[1.0, 2.0], [3.0, 5.0], [0.0, 1.0]])


def test_coupled_examples_are_refused_by_name_and_nan_under_jit():
    f, w, x = coupled_model()
    with pytest.raises(SiteError, match=r"couples examples: at 'join'.*coupled=True"):
        jacobians.jacobian(f, w, x)
    assert np.isnan(jax.jit(lambda x: jacobians.jacobian(f, w, x))(x)).all()
    block = jacobians.jacobian(f, w, x, coupled=True)
    np.testing.assert_allclose(block, np.stack([np.eye(2) * 2 / 3] * 3), rtol=1e-14)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"source": "Dense_9"}, SiteError, "no site is named 'Dense_9'; the model has: Dense_0"),
        ({"source": "Dense_0[1]"}, SiteError, "has an index, but 'Dense_0' is in no scan"),
        ({"source": "Dense_1", "target": "Dense_0"}, SiteError, "runs before source 'Dense_1'"),
        ({"mode": "sideways"}, ValueError, "mode is 'sideways', want 'forward', 'reverse'"),
    ],
)
def test_errors_name_what_is_wrong(options, error, text):
    with pytest.raises(error, match=text):
        jacobians.jacobian(*CASES[0].build(), **options)


def test_a_scanned_site_wants_its_index():
    f, params, x = deep_scan(3, 2)
    text = str(sites.find(f, params, x)[0]).split("[")[0]
    for site in (text, f"{text}[3]"):
        with pytest.raises(SiteError, match=r"wants an index below \[3\]"):
            jacobians.jacobian(f, params, x, site)


def test_an_empty_batch_is_refused():
    f, params, x = CASES[0].build()
    with pytest.raises(ValueError, match=r"x has shape \(0, 4\), want \(N, ...\) with N >= 1"):
        jacobians.layer_spectra(f, params, x[:0])


def wide(depth, width, activation, scale):
    """A hand-written network of one scanned stack, on one example."""
    w = scale * jax.random.normal(jax.random.key(3), (depth, width, width)) / width**0.5
    step = lambda h, w: (activation(h) @ w, None)
    f = lambda w, x: jax.lax.scan(step, x @ w[0], w[1:])[0]
    return f, w, jax.random.normal(jax.random.key(4), (1, width))


def exact_logs(matrices):
    """Log singular values of a product in 1000-digit arithmetic."""
    with mpmath.workdps(1000):
        product = mpmath.eye(matrices[0].shape[1])
        for matrix in matrices:
            product = mpmath.matrix(np.asarray(matrix).tolist()) * product
        values = mpmath.svd_r(product, compute_uv=False)
        return np.array([float(mpmath.log(v)) for v in values])


@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_deep_spectra_are_right_where_the_formed_product_resolves_nothing(scale):
    depth = 300 if FULL else 60
    f, w, x = wide(depth, 5, jnp.tanh, scale)
    found = jacobians.layer_spectra(f, w, x)
    assert all(r.all() for r in jax.tree.leaves(found.resolved))
    h, factors = x @ w[0], [w[0].T]
    for matrix in w[1:]:
        factors.append((matrix * (1 - jnp.tanh(h[0]) ** 2)[:, None]).T)
        h = jnp.tanh(h) @ matrix
    for end in (depth // 2, depth):
        wanted = exact_logs(factors[:end])
        assert np.ptp(wanted) > 40
        np.testing.assert_allclose(found.input_to_layer[end - 1][0], wanted, rtol=0, atol=1e-9)
    wanted = exact_logs(factors[1:])
    np.testing.assert_allclose(found.layer_to_output[0][0], wanted, rtol=0, atol=1e-9)


@pytest.mark.usefixtures("float32")
def test_inactive_units_lose_rank_exactly_and_single_precision_neither_underflows():
    f, w, x = wide(200, 6, jax.nn.relu, 0.05)
    found = jacobians.layer_spectra(f, w, x)
    last = np.asarray(found.input_to_layer[-1][0])
    h = np.maximum(np.asarray(found.local[3][0]), -np.inf)
    assert np.isneginf(h).any()
    assert np.isneginf(last).any()
    # No product has more rank than the least of its factors, whichever side it is taken from.
    formed = jacobians.layer_spectra(f, w, x, log_domain=False)
    ranks = [int(np.isfinite(s[0]).sum()) for s in formed.local]
    assert any(min(ranks[:end]) < ranks[end] for end in range(1, 200))
    for end in range(200):
        assert np.isfinite(formed.input_to_layer[end]).sum() <= min(ranks[: end + 1])
        assert np.isfinite(formed.layer_to_output[end]).sum() <= min(ranks[end + 1 :], default=6)
    f, w, x = wide(200, 6, jnp.tanh, 0.05)
    found = jacobians.layer_spectra(f, w, x)
    formed = jacobians.layer_spectra(f, w, x, log_domain=False)
    assert np.isneginf(formed.input_to_layer[-1]).all()
    assert not formed.resolved.input_to_layer[-1].any()
    last = np.asarray(found.input_to_layer[-1][0])
    assert np.isfinite(last).all()
    # The log-volume of a product is the sum of those of its factors.
    np.testing.assert_allclose(last.sum(), sum(s.sum() for s in found.local), rtol=1e-5)


def test_the_live_part_of_a_product_is_all_of_it():
    with jax.enable_x64(False):
        f, w, x = wide(4, 40, jax.nn.relu, 1.4)
        found = jacobians.layer_spectra(f, w, x)
        for site, s in zip(found.sites, found.input_to_layer, strict=True):
            j = np.asarray(jacobians.jacobian(f, w, x, "input", site)[0], np.float64)
            wanted = np.linalg.svd(j, compute_uv=False)
            np.testing.assert_allclose(np.exp(s[0]), wanted, rtol=0, atol=1e-5 * wanted[0])


def test_the_log_domain_under_jit_is_refused():
    f, w, x = wide(3, 2, jnp.tanh, 1.0)
    with pytest.raises(ValueError, match="log_domain is True, but under jit it cannot be"):
        jax.jit(lambda x: jacobians.layer_spectra(f, w, x, log_domain=True).local)(x)


@pytest.mark.parametrize("name", ["linen_cnn", "linen_attention", "scan", "custom_vjp"])
def test_the_top_values_of_a_jacobian_that_is_not_formed(name):
    case = next(case for case in CASES if case.name == name)
    f, params, x = case.build()
    source = case.sites[0]
    top = jax.jit(
        lambda params, x: jacobians.spectrum(
            jax.random.key(0), f, params, x, source, k=2, tolerance=1e-9
        )
    )(params, x)
    j = jax.jit(lambda params, x: jacobians.jacobian(f, params, x, source))(params, x)
    wanted = np.linalg.svd(j, compute_uv=False)[:, :2]
    assert top.resolved.all()
    assert (top.residuals <= 1e-9).all()
    np.testing.assert_allclose(np.exp(top.log_values), wanted, rtol=0, atol=2e-9 * wanted.max())
