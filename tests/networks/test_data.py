"""The digits are scikit-learn's, scaled as stated; a split keeps every example once."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from dltheory.networks import data


def test_digits_are_those_of_scikit_learn():
    digits = data.digits()
    raw, labels = load_digits(return_X_y=True)
    assert digits.x.shape == (1797, 64)
    np.testing.assert_array_equal(digits.x * 16, raw)
    np.testing.assert_array_equal(digits.y, labels)
    assert digits.y.dtype == jnp.int32
    images = data.digits(flat=False, dtype=jnp.float32).x
    assert images.dtype == jnp.float32
    np.testing.assert_array_equal(images * 16, load_digits().images)


def test_scales():
    x = data.digits(scale="dataset").x
    np.testing.assert_allclose([jnp.mean(x), jnp.var(x)], [0, 1], atol=1e-12)
    x = data.digits(scale="example").x
    np.testing.assert_allclose(jnp.mean(x, 1), 0, atol=1e-12)
    np.testing.assert_allclose(jnp.mean(x**2, 1), 1, rtol=1e-12)
    with pytest.raises(ValueError, match="scale is 'pixel'; want 'unit', 'dataset' or 'example'"):
        data.digits(scale="pixel")


def test_without_scikit_learn_the_cure_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install dltheory\[experiments\]"):
        data.digits()


def test_a_split_keeps_every_example_once_with_its_label():
    digits = data.digits()
    train, test = data.split(jax.random.key(0), digits, 1500)
    assert (len(train.y), len(test.y)) == (1500, 297)
    together = np.concatenate([np.c_[part.x, part.y] for part in (train, test)])
    want = np.c_[digits.x, digits.y]
    np.testing.assert_array_equal(together[np.lexsort(together.T)], want[np.lexsort(want.T)])


def test_a_split_is_decided_by_its_key():
    every = data.Data(jnp.arange(50.0), jnp.arange(50))
    first, again = (data.split(jax.random.key(3), every, 20)[0].y for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert set(np.asarray(data.split(jax.random.key(4), every, 20)[0].y)) != set(np.asarray(first))


def test_illegal_splits_are_named():
    every = data.Data(jnp.arange(5.0), jnp.arange(5))
    with pytest.raises(ValueError, match="size is 6; want 0 to 5"):
        data.split(jax.random.key(0), every, 6)
    with pytest.raises(ValueError, match="data holds 4 inputs but 5 labels"):
        data.split(jax.random.key(0), every._replace(x=jnp.arange(4.0)), 2)
