"""Matrix-free spectra against dense ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.numerics.krylov import spectral_density, top_eigenvalues, top_singular_values
from tests.tier import cases

KEY = jax.random.key(0)
N, K = 96, 5  # Large enough for restarts.


def dense(function, *args, **options):
    """The function for the map of a matrix, compiled once for each shape."""

    def call(a, key=KEY):
        return function(key, lambda v: a @ v, jnp.zeros(a.shape[1], a.dtype), *args, **options)

    return jax.jit(call)


top = dense(top_singular_values, K)
top_symmetric = dense(top_eigenvalues, K)
density = dense(spectral_density)
density_symmetric = dense(spectral_density, symmetric=True)


def normal(seed, m=N, n=N):
    return np.random.default_rng(seed).normal(size=(m, n))


def orthogonal(seed, n=N):
    return np.linalg.qr(normal(seed, n, n))[0]


def with_values(values, seed=0):
    return orthogonal(seed) * values @ orthogonal(seed + 1)


SQUARE = {
    "gaussian": lambda: normal(0),
    "identity": lambda: np.eye(N),
    "orthogonal": lambda: orthogonal(0),
    "multiple": lambda: with_values(np.r_[[3.0] * 2, [2.0] * 4, np.linspace(0, 1, N - 6)]),
    "multiple at the edge": lambda: with_values(np.r_[[3.0] * 4, [2.0] * 9, np.ones(N - 13)]),
    "rank 3": lambda: normal(0, N, 3) @ normal(1, 3, N),
    "zero": lambda: np.zeros((N, N)),
    "graded": lambda: with_values(10.0 ** -np.arange(N)),
    "huge": lambda: 1e100 * normal(0),
}


def bounds_hold(values, residuals, exact):
    """Every value is within its residual, or rounding, of the exact one of the same index."""
    rounding = 50 * np.finfo(values.dtype).eps * exact[0]
    np.testing.assert_array_less(
        np.abs(values - exact[: len(values)]), residuals + rounding + 1e-99
    )


@pytest.mark.parametrize("name", SQUARE)
def test_top_values_of_square_maps(name):
    a = SQUARE[name]()
    exact = np.linalg.svd(a, compute_uv=False)
    values, residuals = map(np.asarray, top(jnp.asarray(a)))
    bounds_hold(values, residuals, exact)
    np.testing.assert_allclose(values, exact[:K], rtol=0, atol=1e-13 * exact[0] + 1e-99)
    assert np.all(residuals <= 1e-10 * exact[0])
    assert np.all(np.diff(values) <= 0)


@pytest.mark.parametrize("seed", range(cases(50)))
def test_top_values_do_not_depend_on_the_key(seed):
    a = SQUARE["multiple"]()
    values, residuals = top(jnp.asarray(a), jax.random.key(seed))
    np.testing.assert_allclose(values, [3, 3, 2, 2, 2], atol=1e-13)
    assert jnp.all(residuals < 1e-9)


@pytest.mark.parametrize("shape", [(N, 130), (130, N)], ids=["wide", "tall"])
def test_top_values_of_rectangular_maps(shape):
    a = normal(0, *shape)
    values, residuals = map(np.asarray, top(jnp.asarray(a)))
    np.testing.assert_allclose(values, np.linalg.svd(a, compute_uv=False)[:K], rtol=1e-13)
    assert np.all(residuals < 1e-9 * values[0])


@pytest.mark.parametrize("k", [1, 18, 20])
def test_any_number_of_values_of_a_small_map(k):
    a = normal(0, 20, 24)
    values, residuals = map(np.asarray, dense(top_singular_values, k)(jnp.asarray(a)))
    np.testing.assert_allclose(values, np.linalg.svd(a, compute_uv=False)[:k], rtol=1e-12)
    assert np.all(residuals < 1e-13 * values[0])


def test_a_rank_below_the_number_of_values():
    a = normal(0, 20, 2) @ normal(1, 2, 24)
    values, residuals = map(np.asarray, dense(top_singular_values, 18)(jnp.asarray(a)))
    exact = np.linalg.svd(a, compute_uv=False)[:18]
    np.testing.assert_allclose(values, exact, rtol=0, atol=1e-14 * exact[0])
    assert np.all(residuals < 1e-13 * values[0])


@pytest.mark.parametrize("name", ["gaussian", "identity", "multiple", "rank 3"])
def test_top_values_in_float32(name):
    a = SQUARE[name]().astype(np.float32)
    exact = np.linalg.svd(a.astype(float), compute_uv=False)
    values, residuals = map(np.asarray, top(jnp.asarray(a)))
    assert values.dtype == residuals.dtype == np.float32
    bounds_hold(values, residuals, exact)
    assert np.all(residuals < 3e-5 * exact[0])


def test_residuals_tell_when_restarts_run_out():
    a = with_values(np.linspace(0, 1, N) ** 0.01)
    values, residuals = dense(top_singular_values, K, max_restarts=0)(jnp.asarray(a))
    assert residuals.max() > 1e-6
    gaps = np.abs(np.asarray(values)[:, None] - np.linalg.svd(a)[1][None]).min(axis=1)
    np.testing.assert_array_less(gaps, residuals)


def test_derivatives_are_those_of_the_dense_values():
    a, t = jnp.asarray(normal(0)), jnp.asarray(normal(1))
    values = lambda a: top(a)[0]
    exact = lambda a: jnp.linalg.svd(a, compute_uv=False)[:K]
    forward = jax.jvp(values, (a,), (t,))[1]
    np.testing.assert_allclose(forward, jax.jvp(exact, (a,), (t,))[1], rtol=1e-8)
    weights = jnp.arange(1.0, K + 1)
    reverse = jax.grad(lambda a: weights @ values(a))(a)
    np.testing.assert_allclose(reverse, jax.grad(lambda a: weights @ exact(a))(a), atol=1e-9)


def test_the_gradient_at_a_multiple_value_is_finite():
    gradient = jax.grad(lambda a: (top(a)[0] ** 2).sum())(jnp.eye(N))
    np.testing.assert_allclose(jnp.trace(gradient), 2 * K, rtol=1e-12)


def test_maps_of_pytrees_under_vmap():
    def values(scale):
        linear_map = lambda tree: {"c": scale * tree["a"] + tree["b"].sum(), "d": 2 * tree["b"]}
        x = {"a": jax.ShapeDtypeStruct((), float), "b": jax.ShapeDtypeStruct((2, 2), float)}
        return top_singular_values(KEY, linear_map, x, 5)[0]

    scales = jnp.array([0.5, 3.0])
    for row, scale in zip(jax.vmap(values)(scales), scales, strict=True):
        matrix = np.diag([float(scale), 2, 2, 2, 2])
        matrix[0, 1:] = 1
        np.testing.assert_allclose(row, np.linalg.svd(matrix, compute_uv=False), rtol=1e-12)


def test_half_precision_is_upcast():
    values, residuals = top_singular_values(
        KEY, lambda v: 3 * v, jax.ShapeDtypeStruct((4,), jnp.bfloat16), 2
    )
    assert values.dtype == residuals.dtype == jnp.float32
    np.testing.assert_allclose(values, 3, rtol=1e-2)


@pytest.mark.parametrize("name", ["gaussian", "identity", "signs", "zero"])
def test_top_eigenvalues(name):
    q = orthogonal(0)
    a = q * np.r_[[2.0, -2.0, -2.0, 1.5], np.linspace(-1, 1, N - 4)] @ q.T
    a = a if name == "signs" else SQUARE[name]()
    a = (a + a.T) / 2
    values, residuals = map(np.asarray, top_symmetric(jnp.asarray(a)))
    exact = np.linalg.eigvalsh(a)
    size = np.abs(exact).max() + 1e-99
    np.testing.assert_allclose(np.abs(values), np.sort(np.abs(exact))[::-1][:K], atol=1e-12 * size)
    np.testing.assert_array_less(
        np.abs(values[:, None] - exact[None]).min(axis=1), residuals + 1e-13 * size
    )
    assert np.all(residuals <= 1e-10 * size)
    assert np.sum(np.isclose(values, -2)) == (2 if name == "signs" else 0)


def smoothed(exact, support, symmetric):
    width = 0.03 * np.abs(exact).max()
    centres = exact if symmetric else np.r_[exact, -exact]
    g = np.exp(-(((np.asarray(support)[:, None] - centres[None]) / width) ** 2) / 2)
    return g.sum(axis=1) / (len(exact) * width * np.sqrt(2 * np.pi))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["gaussian", "identity", "multiple", "rank 3"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["singular", "symmetric"])
def test_density_matches_a_known_spectrum_within_its_error(name, symmetric, dtype):
    a = SQUARE[name]()
    a = (a + a.T) / 2 if symmetric else a
    exact = np.linalg.eigvalsh(a) if symmetric else np.linalg.svd(a, compute_uv=False)
    compute = density_symmetric if symmetric else density
    result = jax.tree.map(np.asarray, compute(jnp.asarray(a.astype(dtype))))
    assert {z.dtype for z in result} == {np.dtype(dtype)}
    np.testing.assert_allclose(np.trapezoid(result.density, result.support), 1, atol=1e-5)
    expected = smoothed(exact, result.support, symmetric)
    error = np.abs(result.density - expected)
    rounding = 1e-4 * expected.max()
    assert np.mean(error <= 3 * result.stderr + rounding) > 0.9
    assert np.all(error <= 6 * result.stderr + 0.02 * expected.max())


@pytest.mark.parametrize("shape", [(30, N), (N, 30)], ids=["wide", "tall"])
def test_density_of_rectangular_maps_has_no_spurious_zeros(shape):
    a = np.linalg.qr(normal(0, N, 30))[0]
    result = density(jnp.asarray(a.T if shape == (30, N) else a))
    expected = smoothed(np.ones(30), result.support, False)
    np.testing.assert_allclose(result.density, expected, atol=1e-6 * expected.max())
    assert np.all(result.stderr < 1e-6 * expected.max())


@pytest.mark.parametrize("steps", [12, 16])
def test_too_few_steps_show_in_the_error(steps):
    """The probes of a large map agree with each other, though the nodes lie too far apart."""
    exact = np.linspace(0.2, 1, 1000)
    flat = lambda v: jnp.asarray(exact) * v
    result = spectral_density(KEY, flat, jnp.zeros(1000), probes=64, steps=steps)
    result = jax.tree.map(np.asarray, result)
    error = np.abs(result.density - smoothed(exact, result.support, False))
    assert np.mean(error <= 3 * result.stderr + 1e-3) > 0.85


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_entries_spoil_everything(bad):
    a = normal(0)
    a[3, 4] = bad
    for compute in (top, top_symmetric, density, density_symmetric):
        assert all(np.all(np.isnan(z)) for z in compute(jnp.asarray(a)))


x = jnp.zeros(4)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: top_singular_values(KEY, lambda v: v, x, 5), ValueError, "from 1 to 4"),
        (lambda: top_singular_values(KEY, lambda v: v[:2], x, 3), ValueError, "from 1 to 2"),
        (lambda: top_eigenvalues(KEY, lambda v: v, x, 0), ValueError, "k is 0"),
        (lambda: top_eigenvalues(KEY, lambda v: v[:2], x, 1), ValueError, "takes 4 numbers to 2"),
        (lambda: top_singular_values(KEY, jnp.fft.fft, x, 1), TypeError, "returns dtype comp"),
        (
            lambda: top_singular_values(KEY, lambda v: v, jnp.zeros(3, int), 1),
            TypeError,
            "x has dtype int64",
        ),
        (lambda: spectral_density(KEY, lambda v: v, x, probes=1), ValueError, "probes is 1"),
        (lambda: spectral_density(KEY, lambda v: v, x, steps=0), ValueError, "steps is 0"),
        (lambda: spectral_density(KEY, lambda v: v, x, width=0.0), ValueError, "width is 0.0"),
        (
            lambda: spectral_density(KEY, lambda v: v[:2], x, symmetric=True),
            ValueError,
            "ask for singular values",
        ),
    ],
)
def test_errors_name_the_cure(call, error, text):
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value)
