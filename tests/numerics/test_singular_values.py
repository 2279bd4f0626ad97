"""Singular values against exact matrices, mpmath and wider precision, and where they coincide."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy.linalg import hadamard

from dltheory.numerics.singular_values import on_host, singular_values

KEY = jax.random.key(0)


def _ratio(s, exact, n, dtype):
    """LAPACK's test ratio: the largest error in units of `n eps s_max`."""
    error = np.asarray(s, np.float64) - exact
    return np.max(np.abs(error)) / (np.max(exact) * n * np.finfo(dtype).eps)


def _with_values(key, values, m, n):
    """A matrix of float64 with (nearly) these singular values."""
    k = len(values)
    left, right = jax.random.split(key)
    u = jax.random.orthogonal(left, m)[:, :k]
    return (u * values[None]) @ jax.random.orthogonal(right, n)[:k]


SPECTRA = {
    "graded": jnp.logspace(0, -12, 8),
    "repeated": jnp.array([2.0, 2, 2, 1, 1, 1, 1e-3, 1e-3]),
    "deficient": jnp.array([3.0, 2, 1, 0, 0, 0, 0, 0]),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", [(8, 8), (11, 8), (8, 11)])
def test_float64_agrees_with_mpmath(spectrum, shape):
    a = _with_values(KEY, SPECTRA[spectrum], *shape)
    with mpmath.workdps(40):
        exact = mpmath.svd_r(mpmath.matrix(np.asarray(a).tolist()), compute_uv=False)
    s = singular_values(a)
    assert np.all(np.diff(s) <= 0)
    assert _ratio(s, np.array(exact, float).ravel(), max(shape), np.float64) < 30


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_float32_agrees_with_float64(scale):
    a = scale * jax.random.normal(KEY, (3, 40, 40))
    a = a.astype(jnp.float32)
    exact = np.linalg.svd(np.asarray(a, np.float64), compute_uv=False)
    s = singular_values(a)
    assert s.dtype == jnp.float32
    assert _ratio(s, exact, 40, np.float32) < 30


def test_a_hadamard_matrix_has_equal_values():
    np.testing.assert_allclose(singular_values(hadamard(16).astype(float)), np.full(16, 4.0))


def test_complex_matrices():
    a = jax.random.normal(KEY, (6, 4), jnp.complex128)
    s = singular_values(a)
    assert s.dtype == jnp.float64
    np.testing.assert_allclose(s**2, jnp.linalg.eigvalsh(a.conj().T @ a)[::-1], rtol=1e-12)
    np.testing.assert_allclose(singular_values(a.conj().T), s, rtol=1e-13)


POINTS = {
    "generic": jax.random.normal(KEY, (5, 5)),
    "tall": jax.random.normal(KEY, (6, 4)),
    "wide": jax.random.normal(KEY, (4, 6)),
    "orthogonal": jax.random.orthogonal(KEY, 5),
    "identity": jnp.eye(5),
    "deficient": jnp.ones((5, 5)),
    "zero": jnp.zeros((5, 3)),
}


@pytest.mark.parametrize("point", POINTS)
def test_gradients_of_symmetric_functions_where_values_coincide(point):
    a = POINTS[point]
    energy = jax.grad(lambda a: jnp.sum(singular_values(a) ** 2))
    np.testing.assert_allclose(energy(a), 2 * a, atol=1e-13)
    quartic = jax.grad(lambda a: jnp.sum(singular_values(a) ** 4))
    np.testing.assert_allclose(quartic(a), 4 * a @ a.T @ a, atol=1e-11)
    tangent = jax.jvp(singular_values, (a,), (jnp.ones_like(a),))[1]
    assert np.all(np.isfinite(tangent))


@pytest.mark.parametrize("point", ["generic", "orthogonal", "identity"])
def test_gradient_of_the_log_determinant(point):
    a = POINTS[point]
    gradient = jax.grad(lambda a: jnp.sum(jnp.log(singular_values(a))))(a)
    np.testing.assert_allclose(gradient, jnp.linalg.inv(a).T, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("point", ["generic", "tall", "wide"])
def test_each_value_has_the_derivative_of_finite_differences(point):
    a = POINTS[point]
    direction = jax.random.normal(jax.random.key(1), a.shape)
    h = 1e-5
    slope = (singular_values(a + h * direction) - singular_values(a - h * direction)) / (2 * h)
    np.testing.assert_allclose(jax.jvp(singular_values, (a,), (direction,))[1], slope, rtol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_own_matrix_and_no_other(bad):
    a = jax.random.normal(KEY, (3, 4, 4))
    spoilt = a.at[1, 2, 3].set(bad)
    s = jax.jit(singular_values)(spoilt)
    assert np.all(np.isnan(s[1]))
    np.testing.assert_allclose(s[::2], singular_values(a)[::2], rtol=1e-14)
    gradient = jax.grad(lambda a: jnp.sum(singular_values(a)))(spoilt)
    assert np.all(np.isnan(gradient[1]))
    assert np.all(np.isfinite(gradient[::2]))


@pytest.mark.parametrize(
    ("shape", "want"),
    [((0, 3), (0,)), ((3, 0), (0,)), ((2, 0, 3), (2, 0)), ((0, 4, 3), (0, 3)), ((0, 0), (0,))],
)
def test_empty_matrices(shape, want):
    assert singular_values(jnp.zeros(shape)).shape == want


def test_stacks_and_vmap():
    a = jax.random.normal(KEY, (2, 3, 5, 4))
    s = singular_values(a)
    assert s.shape == (2, 3, 4)
    np.testing.assert_allclose(jax.vmap(jax.vmap(singular_values))(a), s, rtol=1e-13)
    np.testing.assert_allclose(s[1, 2], singular_values(a[1, 2]), rtol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_computed_and_returned_in_float32(dtype):
    a = jax.random.normal(KEY, (4, 4)).astype(dtype)
    s = singular_values(a)
    assert s.dtype == jnp.float32
    np.testing.assert_array_equal(s, singular_values(a.astype(jnp.float32)))


def test_what_is_no_matrix_of_floats_is_refused():
    with pytest.raises(TypeError, match="a holds int64; want a floating-point or complex dtype"):
        singular_values(jnp.eye(3, dtype=int))
    with pytest.raises(ValueError, match=r"a has shape \(3,\); want matrices, \(..., m, n\)"):
        singular_values(jnp.ones(3))


# From here on: matrices too large for LAPACK's own loop over a stack, worked a few at a time.


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_large_graded_matrices_keep_their_small_values(scale):
    values = jnp.logspace(0, -12, 40)
    a = np.asarray(_with_values(KEY, values, 48, 40))
    s = on_host([scale * np.stack([a, 2 * a])])[0] / scale
    for factor, found in zip((1, 2), s, strict=True):
        assert np.all(np.diff(found) <= 0)
        assert _ratio(found, factor * np.asarray(values), 48, np.float64) < 30
        np.testing.assert_allclose(found, factor * np.asarray(values), rtol=1e-2)


def test_large_matrices_of_all_shapes_and_ranks_are_worked_together():
    rng = np.random.default_rng(0)
    stacks = []
    for shape in [(3, 40, 50), (2, 50, 40), (5, 64, 64)]:
        a = rng.normal(size=shape)
        for one in a[1:]:
            one[rng.random(shape[1]) < 0.3] = 0
            one[:, rng.random(shape[2]) < 0.5] = 0
        stacks.append(a)
    stacks[2][4] = 0
    stacks[2][3, 1, 2] = np.nan
    found = on_host([*stacks, stacks[0].astype(np.float32)])
    for a, s in zip([*stacks, stacks[0]], found, strict=True):
        finite = np.isfinite(a).all((1, 2))
        assert np.isnan(s[~finite]).all()
        wanted = np.linalg.svd(a[finite], compute_uv=False)
        eps = np.finfo(s.dtype).eps
        np.testing.assert_allclose(s[finite], wanted, rtol=0, atol=30 * 64 * eps * wanted.max())


@pytest.mark.parametrize("rows", [40, 120])
def test_a_product_is_worked_by_the_live_part_of_its_left_factor(rows):
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=(3, rows, 60)), rng.normal(size=(3, 60, 50))
    left[:, :, rng.random(60) < 0.5] = 0
    right[1, 7, 7] = np.inf
    single = left.astype(np.float32), right.astype(np.float32)
    for a, b in ((left, right), single):
        [s] = on_host([a], [b])
        assert s.dtype == a.dtype
        assert np.isnan(s[1]).all()
        for i in (0, 2):
            wanted = np.linalg.svd(np.float64(a[i]) @ np.float64(b[i]), compute_uv=False)
            wanted = wanted[: s.shape[-1]]
            eps = np.finfo(s.dtype).eps
            np.testing.assert_allclose(s[i], wanted, rtol=0, atol=128 * eps * wanted.max())
