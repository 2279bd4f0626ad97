"""Log spectra of deep products, against mpmath, exact ranks and conserved quantities."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from dltheory.numerics.log_spectrum import log_singular_values, log_spectrum, prefix_log_spectra
from tests.tier import cases

spectrum = jax.jit(log_spectrum)
prefixes = jax.jit(prefix_log_spectra)


def gaussian(rng, depth, n):
    return rng.normal(size=(depth, n, n)) / np.sqrt(n)


def leaky(rng, depth, n):
    return np.where(rng.random((depth, n, 1)) < 0.5, 0.01, 1.0) * gaussian(rng, depth, n)


def orthogonal_tanh(rng, depth, n):
    slope = 1 - np.tanh(rng.normal(size=(depth, n, 1))) ** 2
    return slope * np.linalg.qr(rng.normal(size=(depth, n, n)))[0]


def residual(rng, depth, n):
    return np.eye(n) + 0.1 * gaussian(rng, depth, n)


FAMILIES = [gaussian, leaky, orthogonal_tanh, residual]


def truth(factors, digits):
    """Logs of the singular values of the exact product; -inf below 10^-digits of the largest."""
    with mpmath.workdps(digits + 50):
        product = mpmath.matrix(factors[0].tolist())
        for a in factors[1:]:
            product = mpmath.matrix(a.tolist()) * product
        values = sorted(mpmath.svd_r(product, compute_uv=False), reverse=True)
        floor = values[0] * mpmath.mpf(10) ** -digits
        return np.array([float(mpmath.log(v)) if v > floor else -np.inf for v in values])


def agree(values, expected, atol):
    """Equal where -inf, within atol elsewhere."""
    zero = np.isneginf(expected)
    np.testing.assert_array_equal(np.isneginf(values), zero)
    np.testing.assert_allclose(np.asarray(values)[~zero], expected[~zero], rtol=0, atol=atol)


@pytest.mark.parametrize("seed", range(cases(10)))
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("depth", "n", "digits"), [(20, 8, 150), (200, 8, 900), (1000, 5, 3500)])
def test_agrees_with_mpmath(family, depth, n, digits, seed):
    factors = family(np.random.default_rng([seed, depth]), depth, n)
    result = spectrum(jnp.asarray(factors))
    expected = truth(factors, digits)
    agree(result.log_values, expected, 1e-9)
    assert np.all(np.isfinite(expected))
    assert bool(result.resolved.all())
    shown = np.asarray(result.residuals) > 1e-290
    relative = np.asarray(result.residuals)[shown] / np.exp(expected - expected[0])[shown]
    assert np.all(np.abs(result.log_values - expected)[shown] <= relative)


def test_an_ill_posed_product_is_swept_again():
    """The logs move by 5e6 times the rounding of the entries; one sweep is off by 1e-7."""
    factors = leaky(np.random.default_rng([1, 200]), 200, 8)
    agree(spectrum(jnp.asarray(factors)).log_values, truth(factors, 900), 1e-11)


def gate(rng, depth, n, bottleneck):
    units = (rng.random((depth, n)) < 0.7).astype(float)
    units[:, :2] = 1
    units[depth // 2] = np.arange(n) < bottleneck
    return units


def dead(which):
    def make(rng, depth, n):
        factors = gaussian(rng, depth, n)
        if which == "inputs":
            factors[0][:, [1, 4]] = 0
        else:
            factors[-1][[0, 5]] = 0
        return factors

    make.__name__ = f"dead_{which}"
    return make


def gated_rows(rng, depth, n):
    return gate(rng, depth, n, 3)[:, :, None] * gaussian(rng, depth, n)


def gated_columns(rng, depth, n):
    return gaussian(rng, depth, n) * gate(rng, depth, n, 3)[:, None, :]


def gated_both(rng, depth, n):
    return gate(rng, depth, n, 4)[:, :, None] * gated_columns(rng, depth, n)


def annihilated(rng, depth, n):
    factors = gaussian(rng, depth, n)
    factors[0][4:] = 0
    factors[-1][:, :4] = 0
    factors[1:-1] = np.eye(n)
    return factors


@pytest.mark.parametrize("seed", range(cases(10)))
@pytest.mark.parametrize(
    ("make", "bound"),
    [
        (gated_rows, 3),
        (gated_columns, 3),
        (gated_both, 3),
        (dead("inputs"), 6),
        (dead("outputs"), 6),
        (annihilated, 0),
    ],
    ids=lambda f: getattr(f, "__name__", None),
)
def test_rank_is_exact(make, bound, seed):
    factors = make(np.random.default_rng(seed), 41, 8)
    result = spectrum(jnp.asarray(factors))
    expected = truth(factors, 300)
    assert np.isfinite(expected).sum() <= bound
    agree(result.log_values, expected, 1e-9)
    assert bool(result.resolved.all())
    last = jax.tree.map(lambda z: z[-1], prefixes(jnp.asarray(factors)))
    if bound:  # `annihilated` dies by a path of two factors, which a prefix cannot foresee.
        agree(last.log_values, expected, 1e-9)


@pytest.mark.parametrize("axis", [1, 2], ids=["rows", "columns"])
def test_scales_of_rows_and_columns_cost_nothing(axis):
    rng = np.random.default_rng(0)
    scale = np.expand_dims(10.0 ** rng.uniform(-12, 0, size=(41, 8)), 3 - axis)
    factors = gaussian(rng, 41, 8) * scale
    result = spectrum(jnp.asarray(factors))
    agree(result.log_values, truth(factors, 900), 1e-9)
    agree(prefixes(jnp.asarray(factors)).log_values[-1], truth(factors, 900), 1e-9)
    assert bool(result.resolved.all())


def test_diagonal_factors_have_known_logs():
    logs = np.arange(0, -8, -1.0)
    factors = np.stack([np.diag(np.exp(logs))] * 41)
    np.testing.assert_allclose(spectrum(jnp.asarray(factors)).log_values, 41 * logs, atol=1e-11)


def test_a_rank_lost_otherwise_is_marked():
    factors = gaussian(np.random.default_rng(0), 41, 8)
    factors[20] = factors[20][:, :3] @ factors[20][:3]
    for result in (
        spectrum(jnp.asarray(factors)),
        jax.tree.map(lambda z: z[-1], prefixes(jnp.asarray(factors))),
    ):
        np.testing.assert_array_equal(result.resolved, np.arange(8) < 3)
        agree(result.log_values[:3], truth(factors, 900)[:3], 1e-9)


def test_a_rank_lost_between_two_factors_is_exact_even_where_a_pivot_vanishes():
    factors = gaussian(np.random.default_rng(0), 400, 2).reshape(200, 2, 2, 2)
    factors[:, 0, 1] = 0
    result = spectrum(jnp.asarray(factors))
    assert bool(result.resolved.all())
    np.testing.assert_array_equal(np.isneginf(result.log_values), [[False, True]] * 200)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_entries_spoil_everything(bad):
    factors = gated_rows(np.random.default_rng(0), 41, 8)
    closed = int(np.argmin(factors[7].any(axis=1)))
    factors[7, closed, 2] = bad  # Even in a row that is dead later.
    result = spectrum(jnp.asarray(factors))
    assert np.all(np.isnan(result.log_values))
    assert np.all(np.isnan(result.residuals))
    assert not np.any(result.resolved)
    part = prefixes(jnp.asarray(factors)).log_values
    assert not np.any(np.isnan(part[:7]))
    assert np.all(np.isnan(part[7:]))


def test_prefixes_are_the_spectra_of_the_partial_products():
    factors = leaky(np.random.default_rng(0), 41, 8)
    result = prefixes(jnp.asarray(factors))
    assert bool(result.resolved.all())
    for depth in (1, 2, 20):
        agree(result.log_values[depth - 1], truth(factors[:depth], 200), 1e-10)


def test_suffixes_are_prefixes_of_the_reversed_transposes():
    factors = gaussian(np.random.default_rng(0), 41, 8)
    result = prefixes(jnp.asarray(factors[::-1].swapaxes(1, 2)))
    agree(result.log_values[4], truth(factors[-5:], 100), 1e-10)


def test_a_function_gives_the_same_as_stacked_factors():
    factor = lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (8, 8))
    stacked = jax.vmap(factor)(jnp.arange(41))
    for function, compiled in ((log_spectrum, spectrum), (prefix_log_spectra, prefixes)):
        drawn = jax.jit(lambda f=function: f(factor, length=41).log_values)()
        np.testing.assert_allclose(drawn, compiled(stacked).log_values, rtol=0, atol=1e-11)


def test_a_batch_is_a_batch_of_products():
    factors = gaussian(np.random.default_rng(0), 400, 2).reshape(200, 2, 2, 2)
    expected = np.log(np.linalg.svd(factors[:, 1] @ factors[:, 0], compute_uv=False))
    agree(spectrum(jnp.asarray(factors)).log_values, expected, 1e-11)
    assert jax.eval_shape(log_singular_values, factors[:0]).shape == (0, 2)


def test_a_sequence_may_hold_factors_of_any_shape_and_dtype():
    rng = np.random.default_rng(0)
    shapes = [(5, 3), (2, 5), (7, 2)]
    matrices = [rng.normal(size=s).astype(d) for s, d in zip(shapes, "dfd", strict=True)]
    product = matrices[2] @ matrices[1] @ matrices[0]
    expected = np.log(np.linalg.svd(product, compute_uv=False)[:2])
    np.testing.assert_allclose(spectrum(matrices).log_values, expected, rtol=0, atol=1e-13)
    part = prefixes(matrices).log_values
    assert part.shape == (3, 3)
    np.testing.assert_allclose(part[0], np.log(np.linalg.svd(matrices[0])[1]), atol=1e-13)
    np.testing.assert_array_equal(np.isneginf(part[1:]), [[False, False, True]] * 2)


def test_depth_ten_thousand():
    """Newman's exponents, and the determinant, which nothing but a sum of logs gives."""
    factors = jnp.asarray(gaussian(np.random.default_rng(0), 10_000, 32))
    values = spectrum(factors).log_values
    determinants = jnp.linalg.slogdet(factors)[1].sum()
    np.testing.assert_allclose(values.sum(), determinants, rtol=1e-12)
    top = (np.log(2) + float(mpmath.psi(0, 16)) - np.log(32)) / 2
    np.testing.assert_allclose(values[0] / 10_000, top, atol=5 / np.sqrt(64 * 10_000))


def finite(factors, mask):
    values = log_singular_values(mask * factors)
    return jnp.where(jnp.isfinite(values), values, 0)


jacobian = jax.jit(jax.jacrev(finite))
along = jax.jit(lambda f, mask, t: jax.jvp(lambda f: finite(f, mask), (f,), (t,)))


@pytest.mark.parametrize("gated", ["rows", "columns", "nothing"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.__name__)
def test_derivatives_are_those_of_differences(family, gated):
    rng = np.random.default_rng(0)
    units = gate(rng, 12, 5, 3)
    mask = {"rows": units[:, :, None], "columns": units[:, None], "nothing": np.ones((12, 1, 1))}
    mask = jnp.asarray(np.broadcast_to(mask[gated], (12, 5, 5)))
    factors, t = jnp.asarray(family(rng, 12, 5)), jnp.asarray(gaussian(rng, 12, 5))
    step = 1e-6 * jnp.abs(factors).min()
    difference = along(factors + step * t, mask, t)[0] - along(factors - step * t, mask, t)[0]
    forward = along(factors, mask, t)[1]
    np.testing.assert_allclose(forward, difference / (2 * step), rtol=1e-5, atol=1e-2)
    reverse = (jacobian(factors, mask) * t[None]).sum((1, 2, 3))
    np.testing.assert_allclose(reverse, forward, rtol=1e-9, atol=1e-9 * jnp.abs(forward).max())


def test_derivatives_of_a_thousand_factors():
    """Scaling a factor scales every value; the sum of all is the log determinant."""
    factors = jnp.asarray(gaussian(np.random.default_rng(0), 1000, 5))
    derivative = jacobian(factors, jnp.ones_like(factors))
    np.testing.assert_allclose((derivative * factors[None]).sum((2, 3)), 1, atol=1e-9)
    inverse = jnp.linalg.inv(factors).swapaxes(1, 2)
    np.testing.assert_allclose(derivative.sum(0), inverse, atol=1e-9 * jnp.abs(inverse).max())


def test_the_gradient_is_finite_at_orthogonal_factors():
    """The squared Frobenius norm of a product of orthogonal factors, whatever the basis."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 5, 5)))[0]
    derivative = jacobian(jnp.asarray(q), jnp.ones((12, 5, 5)))
    np.testing.assert_allclose(derivative.sum(0), q, atol=1e-12)


def test_float32_factors_are_treated_in_float64():
    factors = gaussian(np.random.default_rng(0), 200, 8).astype(np.float32)
    result = spectrum(jnp.asarray(factors))
    assert result.log_values.dtype == jnp.float32
    expected = truth(factors.astype(float), 900)
    np.testing.assert_allclose(result.log_values, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.usefixtures("float32")
@pytest.mark.parametrize(("depth", "n", "atol"), [(200, 8, 1e-3), (1000, 5, 1e-2)])
def test_float32_alone(depth, n, atol):
    factors = gaussian(np.random.default_rng(0), depth, n).astype(np.float32)
    result = spectrum(jnp.asarray(factors))
    assert result.log_values.dtype == jnp.float32
    agree(result.log_values, truth(factors.astype(float), 900), atol)
    assert bool(result.resolved.all())


@pytest.mark.parametrize(("dtype", "result"), [("bfloat16", "float32"), ("int32", "float64")])
def test_other_dtypes_are_upcast(dtype, result):
    assert jax.eval_shape(log_singular_values, jnp.full((3, 2, 2), 2, dtype)).dtype == result


def test_half_precision_is_taken_at_its_values():
    values = spectrum(jnp.full((3, 2, 2), 2, jnp.bfloat16)).log_values
    np.testing.assert_allclose(values[0], 3 * np.log(4), rtol=1e-6)


def test_no_factors_are_the_identity():
    values = spectrum(jnp.zeros((0, 3, 3))).log_values
    np.testing.assert_allclose(values, np.zeros(3), atol=1e-14)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: log_singular_values(jnp.ones((3, 2, 4))), ValueError, "shape (2, 4), not square"),
        (lambda: log_singular_values(jnp.ones((3, 0, 0))), ValueError, "with n >= 1"),
        (lambda: log_singular_values(jnp.ones((2, 2))), ValueError, "shape (2,), not square"),
        (lambda: log_singular_values([]), ValueError, "empty sequence, whose width is unknown"),
        (
            lambda: log_singular_values([jnp.ones((2, 3)), jnp.ones((2, 3))]),
            ValueError,
            "factors[1] of shape (2, 3) cannot act after factors[0] of shape (2, 3)",
        ),
        (lambda: log_singular_values([jnp.ones(3)]), ValueError, "factors[0] has shape (3,)"),
        (lambda: log_singular_values(jnp.diag), ValueError, "give the number of fact"),
        (lambda: log_spectrum(jnp.ones((1, 2, 2)), length=1), ValueError, "Leave length out"),
        (
            lambda: prefix_log_spectra(jnp.ones((1, 2, 2), complex)),
            TypeError,
            "dtype complex128; only real factors",
        ),
    ],
)
def test_errors_name_the_cure(call, error, text):
    with pytest.raises(error) as raised:
        call()
    assert text in str(raised.value)
