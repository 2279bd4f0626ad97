"""Products, spectra, traces and densities of the curvature against dense matrices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dltheory.measure import curvature
from dltheory.networks.sites import SiteError
from tests.facts import FACTS, assert_agrees

KEY = jax.random.key(0)
KINDS = ("hessian", "gauss_newton")


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def model(w, x):
    h = jnp.tanh(x @ w["in"] + w["bias"][None])
    return jnp.sin(h @ w["out"])


W = {"in": normal(3, 5), "bias": normal(5, seed=1), "out": normal(5, 2, seed=2)}
X, TARGET = normal(7, 3, seed=3), normal(7, 2, seed=4)
V = {"in": normal(3, 5, seed=5), "bias": normal(5, seed=6), "out": normal(5, 2, seed=7)}


def loss(y):
    """One that couples the examples, and whose own Hessian is neither diagonal nor definite."""
    error = y - TARGET
    return jnp.sum(error**2) / 14 + jnp.log(1 + jnp.sum(error) ** 2)


@pytest.fixture(scope="module")
def dense():
    """The Hessian by reverse over reverse; the Gauss-Newton matrix of the linearized model."""
    flat, unravel = ravel_pytree(W)

    @jax.jit
    def matrices(flat):
        y = lambda v: model(unravel(v), X)
        jacobian = jax.jacrev(y)(flat).reshape(14, -1)
        inner = jax.jacrev(jax.grad(lambda z: loss(z.reshape(7, 2))))(y(flat).ravel())
        return jax.jacrev(jax.grad(lambda v: loss(y(v))))(flat), jacobian.T @ inner @ jacobian

    return dict(zip(KINDS, matrices(flat), strict=True))


@jax.jit
def products(v):
    curve = lambda kind, size: curvature.product(loss, model, W, X, kind=kind, batch_size=size)
    return {kind: [curve(kind, size)(v) for size in (None, 3, 7)] for kind in KINDS}


def test_products_are_those_of_the_dense_matrices(dense):
    """Also where the data are worked in batches that do not divide them."""
    for kind, found in products(V).items():
        wanted = dense[kind] @ ravel_pytree(V)[0]
        for one in found:
            np.testing.assert_allclose(ravel_pytree(one)[0], wanted, rtol=1e-11, atol=1e-13)


def test_the_worked_example_of_the_facts():
    given = FACTS["bp.worked.grad"]["inputs"]
    v = FACTS["bp.worked.hvp"]["inputs"]["v"]
    pack = lambda w1, b1, w2, b2: {"1": (w1.T, b1), "2": (w2, b2)}
    params = pack(*(jnp.array(given[name], float) for name in ("W1", "b1", "w2", "b2")))
    v = jnp.array(v)
    direction = pack(v[:4].reshape(2, 2), v[4:6], v[6:8], v[8])

    def f(p, x):
        return jnp.tanh(x @ p["1"][0] + p["1"][1][None]) @ p["2"][0] + p["2"][1]

    x = jnp.array([given["x"]], float)
    square = lambda y: jnp.sum((y - given["y"]) ** 2) / 2
    found = jax.jit(lambda v: curvature.product(square, f, params, x)(v))(direction)
    parts = (found["1"][0].T, found["1"][1], *found["2"])
    assert_agrees("bp.worked.hvp", np.concatenate([np.ravel(part) for part in parts]))


@pytest.mark.parametrize("kind", KINDS)
def test_top_eigenvalues_have_honest_residuals(kind, dense):
    top = jax.jit(lambda key: curvature.top_eigenvalues(key, loss, model, W, X, 3, kind=kind))
    values, residuals = top(KEY)
    exact = np.linalg.eigvalsh(dense[kind])
    exact = exact[np.argsort(-np.abs(exact))]
    np.testing.assert_allclose(values, exact[:3], rtol=1e-6)
    assert np.all(np.abs(values - exact[:3]) <= residuals + 1e-12 * np.abs(exact[0]))
    assert np.all(residuals < 1e-6 * np.abs(exact[0]))


def test_sharpness_along_a_path(dense):
    """It reads the top eigenvalue with its sign, under vmap too."""
    read = curvature.sharpness(KEY, lambda y: -loss(y), model, X)
    paths = jax.tree.map(lambda w: jnp.stack([w, w]), W)
    exact = np.linalg.eigvalsh(-dense["hessian"])
    exact = exact[np.abs(exact).argmax()]
    np.testing.assert_allclose(jax.jit(jax.vmap(read))(paths), [exact, exact], rtol=1e-8)


def test_the_trace_is_within_its_error_bar(dense):
    traces = jax.jit(lambda key: curvature.trace(key, loss, model, W, X, probes=200, batch_size=4))
    value, stderr = traces(KEY)
    exact = np.trace(dense["hessian"])
    off = dense["hessian"] - np.diag(np.diag(dense["hessian"]))
    np.testing.assert_allclose(stderr, np.sqrt(2 * (off**2).sum() / 200), rtol=0.25)
    assert abs(value - exact) < 4 * stderr


def test_the_density_has_the_moments_of_the_matrix(dense):
    rho = jax.jit(lambda key: curvature.density(key, loss, model, W, X, probes=64, steps=30))(KEY)
    exact = np.linalg.eigvalsh(dense["hessian"])
    step = rho.support[1] - rho.support[0]
    assert np.isclose(rho.density.sum() * step, 1, rtol=1e-6)
    mean = (rho.support * rho.density).sum() * step
    assert abs(mean - exact.mean()) < 4 * exact.std() * np.sqrt(2 / exact.size / 64)
    width = 0.03 * np.abs(exact).max()
    bumps = np.exp(-(((np.asarray(rho.support)[:, None] - exact) / width) ** 2) / 2)
    smooth = bumps.mean(axis=1) / (width * np.sqrt(2 * np.pi))
    assert np.abs(rho.density - smooth).max() < 0.25 * smooth.max()
    assert np.mean(np.abs(rho.density - smooth) <= 4 * rho.stderr + 1e-3 * smooth.max()) > 0.95


def test_custom_rules_are_differentiated():
    """Forward mode is forbidden to a custom_vjp: its transpose serves."""
    tanh = jax.custom_vjp(jnp.tanh)
    tanh.defvjp(lambda h: (jnp.tanh(h),) * 2, lambda h, ct: ((1 - h * h) * ct,))
    ruled = lambda w, x: jnp.sin(tanh(x @ w["in"] + w["bias"][None]) @ w["out"])

    @jax.jit
    def both(v):
        f = lambda f: [
            curvature.product(loss, f, W, X, kind=kind, batch_size=size)(v)
            for kind, size in (("hessian", 4), ("gauss_newton", None), ("gauss_newton", 4))
        ]
        return f(ruled), f(model)

    a, b = both(V)
    np.testing.assert_allclose(ravel_pytree(a)[0], ravel_pytree(b)[0], rtol=1e-11, atol=1e-13)


@pytest.mark.usefixtures("float32")
def test_follows_float32():
    w, x = jnp.ones((2, 1)), jnp.eye(2)
    run = lambda key: curvature.top_eigenvalues(key, lambda y: (y**2).sum(), jnp.matmul, x, w, 1)
    values, residuals = jax.jit(run)(KEY)
    assert (values.dtype, residuals.dtype) == (jnp.float32, jnp.float32)


F = lambda w, x: x @ w["w"]
ONES = {"w": jnp.ones((2, 1))}
BATCH = jnp.eye(2)
SUM = lambda y: jnp.sum(y**2)
CENTRED = lambda w, x: F(w, x) - F(w, x).mean()
BAD = {
    "params['n'] is int64, want real floats: close over what has no derivative.": (
        TypeError,
        lambda: curvature.product(SUM, F, ONES | {"n": jnp.arange(2)}, BATCH),
    ),
    "params['w'] is complex128, want real floats: pass its two parts instead.": (
        TypeError,
        lambda: curvature.product(SUM, F, {"w": jnp.ones((2, 1), complex)}, BATCH),
    ),
    "loss(y) is float64[2, 1], want a real scalar: end it with a mean or a sum.": (
        TypeError,
        lambda: curvature.product(lambda y: y, F, ONES, BATCH),
    ),
    "params['u'] has no influence on the result, so all its derivatives are zero: pass what": (
        ValueError,
        lambda: curvature.product(SUM, F, ONES | {"u": jnp.ones(1)}, BATCH),
    ),
    "loss(f(params, x)) is nan, so it has no derivatives: look for the layer": (
        ValueError,
        lambda: curvature.product(lambda y: jnp.log(-jnp.sum(y)), F, ONES, BATCH),
    ),
    "kind is 'fisher'; want hessian or gauss_newton": (
        ValueError,
        lambda: curvature.product(SUM, F, ONES, BATCH, kind="fisher"),
    ),
    "batch_size is 0; want an integer of 1 or more": (
        ValueError,
        lambda: curvature.product(SUM, F, ONES, BATCH, batch_size=0),
    ),
    "probes is 1; want an integer of 2 or more": (
        ValueError,
        lambda: curvature.trace(KEY, SUM, F, ONES, BATCH, probes=1),
    ),
    "the model couples examples: alone an example gives another output than in a batch (by 0.5)": (
        SiteError,
        lambda: curvature.product(
            SUM, lambda w, x: F(w, x) * (1 + 0.5 * (x.shape[0] - 1)), ONES, BATCH, batch_size=1
        ),
    ),
    "f returns the shape (1,) for two examples; want them on its first axis, or no batch_size": (
        ValueError,
        lambda: curvature.product(SUM, lambda w, x: F(w, x).sum(0), ONES, BATCH, batch_size=1),
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_input_is_named(text):
    error, call = BAD[text]
    with pytest.raises(error, match=re.escape(text)):
        call()
