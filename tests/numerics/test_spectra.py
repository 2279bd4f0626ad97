"""What a spectrum says, against its definition on matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dltheory.numerics import spectra
from dltheory.numerics.singular_values import singular_values

logs = st.lists(st.floats(-20, 20), min_size=4, max_size=4).map(lambda v: np.sort(v)[::-1].copy())


@given(logs)
def test_all_are_what_their_definitions_say(log_values):
    s = np.exp(log_values)
    p = s / s.sum()
    for measured, wanted in [
        (spectra.log_condition(log_values), np.log(s[0] / s[-1])),
        (spectra.log_mean_square(jnp.asarray(log_values)), np.log(np.mean(s**2))),
        (spectra.log_volume(log_values), np.log(s).sum()),
        (spectra.effective_rank(jnp.asarray(log_values)), np.exp(-(p * np.log(p)).sum())),
        (spectra.isometry_error(jnp.asarray(log_values)), np.mean((s**2 - 1) ** 2)),
    ]:
        np.testing.assert_allclose(measured, wanted, rtol=1e-11, atol=1e-11)


def test_zeros_and_the_ends_of_the_range():
    gone = jnp.array([0.0, 0.0, -jnp.inf])
    assert spectra.log_condition(gone) == jnp.inf
    assert spectra.log_volume(gone) == -jnp.inf
    np.testing.assert_allclose(spectra.effective_rank(gone), 2.0, rtol=1e-14)
    np.testing.assert_allclose(spectra.isometry_error(gone), 1 / 3, rtol=1e-14)
    far = jnp.array([5000.0, -5000.0])
    np.testing.assert_allclose(spectra.log_mean_square(far), 1e4 - np.log(2), rtol=1e-14)


@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_the_isometry_penalty_has_the_gradient_of_its_matrix_form(angle):
    turn = jnp.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    by_spectrum = lambda a: spectra.isometry_error(jnp.log(singular_values(a)))
    by_matrix = lambda a: jnp.sum((a @ a.T - jnp.eye(2)) ** 2) / 2
    for a in (turn, 1.3 * turn, turn * jnp.array([[1.0, 2.0]])):
        np.testing.assert_allclose(jax.grad(by_spectrum)(a), jax.grad(by_matrix)(a), atol=1e-12)
