"""Blur pooling against convolution by hand, and what it is for: less aliasing."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.networks import pooling


def test_it_is_a_binomial_mean():
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3))
    found = pooling.blur_pool(x, (3, 2), (2, 1))
    rows = np.array([1, 2, 1]) / 4
    wanted = sum(rows[t] * x[:, t : t + 5 : 2] for t in range(3))
    wanted = (wanted[:, :, :-1] + wanted[:, :, 1:]) / 2
    np.testing.assert_allclose(found, wanted, rtol=1e-13, atol=1e-15)
    single = pooling.blur_pool(x[0], (3, 2), (2, 1))
    np.testing.assert_allclose(single, wanted[0], rtol=1e-13, atol=1e-15)


def test_paddings():
    x = np.random.default_rng(0).normal(size=(1, 6, 1))
    circular = pooling.blur_pool(x, (3,), (2,), "CIRCULAR")[0, :, 0]
    wanted = [(x[0, i - 1, 0] + 2 * x[0, i, 0] + x[0, i + 1, 0]) / 4 for i in (0, 2, 4)]
    np.testing.assert_allclose(circular, wanted, rtol=1e-13)
    padded = pooling.blur_pool(x, (3,), (2,), [(1, 0)])[0, :, 0]
    np.testing.assert_allclose(padded[0], (2 * x[0, 0, 0] + x[0, 1, 0]) / 4, rtol=1e-13)
    assert pooling.blur_pool(x, (3,), (2,), "SAME").shape == (1, 3, 1)


def test_nothing_is_left_of_the_highest_frequency():
    """Which a stride of two would turn into a constant."""
    wave = jnp.array([1.0, -1.0] * 4)[None, :, None]
    assert np.all(np.asarray(wave[:, ::2]) == 1)
    np.testing.assert_array_equal(pooling.blur_pool(wave, (3,), (2,), "CIRCULAR"), 0)
    np.testing.assert_array_equal(pooling.blur_pool(0 * wave + 1, (5,), (2,), "CIRCULAR"), 1)


@pytest.mark.parametrize("given", [((3, 3), None), ((0,), None), ((3,), (0,)), ((3,), (1, 1))])
def test_bad_sizes_are_named(given):
    text = "want a positive integer for each of the spatial axes of inputs (5, 2), laid out"
    with pytest.raises(ValueError, match=re.escape(text)):
        pooling.blur_pool(jnp.ones((5, 2)), *given)
