"""Chunks of examples and columns change nothing but the memory that is taken."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import batches, jacobians, passes, stacks
from dltheory.networks import models
from dltheory.networks.sites import SiteError
from tests.model_table import CASES

BY_NAME = {case.name: case for case in CASES}


def same(one, other, atol=1e-12):
    assert [str(site) for site in one.sites] == [str(site) for site in other.sites]
    assert [site.shape for site in one.sites] == [site.shape for site in other.sites]
    leaves, structure = jax.tree.flatten(one[1:])
    others, other_structure = jax.tree.flatten(other[1:])
    assert structure == other_structure
    for a, b in zip(leaves, others, strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=0, atol=atol)


def network(examples=5):
    """A tanh network with a skip, whose last chunk of two or three examples is not full."""
    keys = jax.random.split(jax.random.key(0), 4)
    w = {name: jax.random.normal(key, (3, 3)) for name, key in zip("abc", keys, strict=False)}
    f = lambda w, x: jnp.tanh(x @ w["a"] + jnp.tanh(x @ w["b"])) @ w["c"]
    return f, w, jax.random.normal(keys[3], (examples, 3))


@pytest.mark.parametrize("batch_size", [2, 5, 99, (3, 2), (5, 1)])
def test_chunks_of_examples_and_columns_change_nothing(batch_size):
    f, w, x = network()
    found = jacobians.layer_spectra(f, w, x, batch_size=batch_size)
    same(found, jacobians.layer_spectra(f, w, x))
    for example, one in enumerate(x):
        j = jax.jacrev(lambda x: f(w, x))(one)
        wanted = np.log(np.linalg.svd(j, compute_uv=False))
        np.testing.assert_allclose(found.input_to_layer[-1][example], wanted, atol=1e-9)


def test_chunks_within_a_trace_change_nothing_and_keep_the_derivative():
    f, w, x = network()

    def volume(w, batch_size):
        found = jacobians.layer_spectra(f, w, x, batch_size=batch_size)
        return sum(s.sum() for s in (*found.input_to_layer, *found.layer_to_output))

    whole, chunked = (jax.jit(jax.value_and_grad(volume), static_argnums=1)(w, b) for b in (5, 2))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_coupled_examples_are_worked_in_chunks_of_the_whole_batch():
    f = lambda w, x: jnp.tanh((x @ w) - (x @ w).mean(0, keepdims=True)) @ w
    w, x = network()[1]["a"], network()[2]
    whole = jacobians.layer_spectra(f, w, x, coupled=True)
    same(jacobians.layer_spectra(f, w, x, coupled=True, batch_size=(2, 2)), whole)
    # Alone, an example looks as if nothing moved it.
    with pytest.raises(SiteError, match="couples examples"):
        jacobians.layer_spectra(f, w, x, batch_size=1)
    spoilt = jax.jit(lambda x: jacobians.layer_spectra(f, w, x, batch_size=1).input_to_layer[0])(x)
    assert np.isnan(spoilt).all()


def test_a_budget_of_bytes_decides_how_many_examples_are_worked_at_once():
    f, w, x = network(64)
    measured = passes.prepare(f, w, x)
    matrices, column = batches._bytes(measured)
    each = matrices + 3 * column
    assert batches.plan(measured, None, 2**31) == (64, 3)
    assert batches.plan(measured, None, 5 * each) == (5, 3)
    assert batches.plan(measured, None, matrices + column) == (1, 1)
    assert batches.plan(measured, 7, matrices + column).examples == 7
    small = jacobians.layer_spectra(f, w, x, max_bytes=5 * each)
    same(small, jacobians.layer_spectra(f, w, x), atol=1e-9)


class CNN(nn.Module):
    """Two convolutions on an image."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3))(x))
        return nn.Dense(10)(nn.relu(nn.Conv(8, (3, 3))(x)).mean((1, 2)))


class Attention(nn.Module):
    """A transformer block without normalisation."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.MultiHeadDotProductAttention(2)(x)
        return (x + nn.Dense(8)(nn.relu(nn.Dense(16)(x)))).mean(1)


@pytest.mark.usefixtures("float32", "optimized")
@pytest.mark.parametrize("columns", [None, 16])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (models.MLP(32, 8, 10), (3, 16)),
        (models.ResidualMLP(32, 4, 10), (3, 32)),
        (CNN(), (3, 6, 6, 1)),
        (Attention(), (3, 12, 8)),
    ],
    ids=["mlp", "residual", "cnn", "attention"],
)
def test_the_estimate_is_what_the_compiler_takes(model, shape, columns):
    x = jnp.ones(shape)
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    measured = passes.prepare(model.apply, params, jax.ShapeDtypeStruct(shape, x.dtype))
    every = max(stacks.width(measured), measured.features("output"))
    work = batches._work(measured, False, columns or every, host=True)
    lowered = jax.jit(work).lower(params, x, jnp.arange(3))
    taken = lowered.compile().memory_analysis()
    taken = (taken.output_size_in_bytes + taken.temp_size_in_bytes) / 3
    matrices, column = batches._bytes(measured)
    assert 0.4 < taken / (matrices + column * (columns or every)) < 1.1


@pytest.mark.parametrize("name", ["linen_mlp", "scan", "linen_attention", "linen_batch_norm_train"])
def test_what_stays_on_a_device_is_what_numpy_finds(name, monkeypatch):
    case = BY_NAME[name]
    f, params, x = case.build()
    on_host = jacobians.layer_spectra(f, params, x, coupled=case.couples_examples)
    monkeypatch.setattr(batches, "_on_cpu", lambda _: False)
    on_device = jacobians.layer_spectra(f, params, x, coupled=case.couples_examples)
    same(on_device, on_host, atol=1e-8)


def test_a_device_takes_the_log_domain_too(monkeypatch):
    w = 0.1 * jax.random.normal(jax.random.key(0), (30, 4, 4))
    step = lambda h, w: (jnp.tanh(h) @ w, None)
    f = lambda w, x: jax.lax.scan(step, x @ w[0], w[1:])[0]
    x = jax.random.normal(jax.random.key(1), (2, 4))
    on_host = jacobians.layer_spectra(f, w, x)
    monkeypatch.setattr(batches, "_on_cpu", lambda _: False)
    on_device = jacobians.layer_spectra(f, w, x)
    assert all(r.all() for r in jax.tree.leaves(on_device.resolved))
    # A value that a formed matrix only just resolves is right to few digits.
    same(on_device, on_host, atol=1e-3)
    np.testing.assert_allclose(on_device.input_to_layer[-1], on_host.input_to_layer[-1], rtol=1e-9)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_worked_and_returned_in_single(dtype):
    f = lambda w, x: jnp.tanh(x @ w["a"]) @ w["b"]
    w = {"a": jnp.diag(jnp.array([1.0, 2.0, 4.0])), "b": jnp.diag(jnp.array([2.0, 1.0, 0.5]))}
    half = jax.tree.map(lambda a: a.astype(dtype), w)
    found = jacobians.layer_spectra(f, half, jnp.zeros((2, 3), dtype))
    assert {s.dtype for s in jax.tree.leaves(found[1:4])} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(np.exp(found.local[0][0]), [4, 2, 1], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found.input_to_layer[-1][0]), [2, 2, 2], rtol=1e-6)


@pytest.mark.usefixtures("float32")
def test_layers_of_several_dtypes_keep_their_own():
    f = lambda w, x: jnp.tanh(x @ w["a"]).astype(jnp.float16) @ w["b"]
    w = {"a": 2 * jnp.eye(3), "b": 4 * jnp.eye(3, dtype=jnp.float16)}
    found = jacobians.layer_spectra(f, w, jnp.zeros((1, 3)))
    assert [site.dtype for site in found.sites] == [jnp.float32, jnp.float16]
    np.testing.assert_allclose(np.exp(found.local[0][0]), [2, 2, 2], rtol=1e-6)
    np.testing.assert_allclose(np.exp(found.input_to_layer[-1][0]), [8, 8, 8], rtol=1e-3)


def test_a_model_without_layers_is_refused():
    with pytest.raises(SiteError, match="has no layer: no parameter in params ever meets x"):
        jacobians.layer_spectra(lambda _, x: jnp.tanh(x), {}, jnp.ones((2, 3)))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, r"batch_size is 0, want examples at once, or \(examples, columns\)"),
        ({"batch_size": (2, 0)}, r"batch_size is \(2, 0\), want"),
        ({"batch_size": 1.5}, r"batch_size is 1.5, want"),
        ({"max_bytes": 0}, "max_bytes is 0, want a positive number of bytes"),
        (
            {"max_bytes": 1000},
            r"one example take 0 MiB, over max_bytes, which is 0 MiB; the largest are those of "
            r"'\w+' with 3 features. Raise max_bytes, or .* jacobians.spectrum\(..., k=10\)",
        ),
    ],
)
def test_errors_name_what_is_wrong(options, text):
    f, w, x = network()
    with pytest.raises(ValueError, match=text):
        jacobians.layer_spectra(f, w, x, **options)


def test_chunks_share_one_compilation():
    f, w, x = network(7)
    traces = []

    def counted(w, x):
        traces.append(1)
        return f(w, x)

    jacobians.layer_spectra(counted, w, x, batch_size=2)
    before = len(traces)
    jacobians.layer_spectra(
        counted, jax.tree.map(functools.partial(jnp.add, 1.0), w), x, batch_size=2
    )
    assert len(traces) == before
