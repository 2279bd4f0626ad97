"""The digits are scikit-learn's, scaled as stated; a split keeps every example once."""

import gzip
import random
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from dltheory.networks import data
from tests.tier import FULL


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


# --- MNIST-1D, files, and targets ------------------------------------------------------------


def test_mnist1d_is_what_its_package_makes():
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    train, test = data.mnist1d()
    assert (train.x.shape, test.x.shape) == ((4000, 40), (1000, 40))
    x, y = np.concatenate([train.x, test.x]), np.concatenate([train.y, test.y])
    np.testing.assert_allclose([x.mean(), x.var()], [0, 1], atol=1e-12)
    np.testing.assert_array_equal(np.bincount(y), 500)
    # The generators of the process are as they were.
    after = random.random(), np.random.rand()  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert after == (random.random(), np.random.rand())  # noqa: NPY002


@pytest.mark.skipif(not FULL, reason="makes the whole set twice")
def test_the_positions_of_shuffled_mnist1d_are_one_permutation():
    plain, shuffled = (data.mnist1d(shuffled=flag)[0] for flag in (False, True))
    np.testing.assert_array_equal(plain.y, shuffled.y)
    # The scale is that of the set, whose sum in another order rounds another way.
    near = lambda column: np.all(np.isclose(plain.x, column[:, None], rtol=1e-9), axis=0)
    order = [int(np.argmax(near(column))) for column in np.asarray(shuffled.x).T]
    assert sorted(order) == list(range(40)) != order
    np.testing.assert_allclose(plain.x[:, np.array(order)], shuffled.x, rtol=1e-9)


def test_npz_files(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, images=np.ones((3, 2), np.float32), labels=np.arange(3))
    loaded = data.load_npz(path, x="images", y="labels")
    assert loaded.x.dtype == jnp.float32
    np.testing.assert_array_equal(loaded.y, [0, 1, 2])
    with pytest.raises(ValueError, match="holds no array 'x', 'y', but 'images', 'labels': give"):
        data.load_npz(path)
    np.savez(path, x=np.ones(3), y=np.ones(2))
    with pytest.raises(ValueError, match="data holds 3 inputs but 2 labels; want one label"):
        data.load_npz(path)


@pytest.mark.parametrize(("code", "dtype"), [(8, ">u1"), (11, ">i2"), (13, ">f4"), (14, ">f8")])
def test_idx_files(tmp_path, code, dtype):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    raw = struct.pack(">BBBB3I", 0, 0, code, 3, 2, 3, 4) + array.tobytes()
    for name, content in (("plain", raw), ("packed", gzip.compress(raw))):
        (tmp_path / name).write_bytes(content)
        loaded = data.load_idx(tmp_path / name)
        assert loaded.dtype == np.dtype(dtype).newbyteorder("=")
        np.testing.assert_array_equal(loaded, array)
    (tmp_path / "short").write_bytes(raw[:-1])
    with pytest.raises(ValueError, match=f"has {len(raw) - 1} bytes, but its header asks for"):
        data.load_idx(tmp_path / "short")
    (tmp_path / "other").write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match="is no IDX file: it begins with 504b0304"):
        data.load_idx(tmp_path / "other")


def test_a_linear_target_is_linear_with_noise_of_its_variance():
    draw = jax.jit(lambda key: data.linear_target(key, 2000, 8, r2=3.0, sigma2=0.25))
    (x, y), beta = jax.tree.map(np.asarray, draw(jax.random.key(0)))
    np.testing.assert_allclose(np.sum(beta**2), 3, rtol=1e-12)
    assert abs(np.var(y - x @ beta) / 0.25 - 1) < 4 * np.sqrt(2 / 2000)
    assert abs(np.mean(x**2) - 1) < 4 * np.sqrt(2 / 16000)
    with pytest.raises(ValueError, match="n is 0 and p is 8; want positive integers"):
        data.linear_target(jax.random.key(0), 0, 8, r2=3.0, sigma2=0.25)


def test_random_labels_replace_their_share():
    clean = data.Data(jnp.zeros(4000), jnp.asarray(np.arange(4000) % 5))
    replace = jax.jit(lambda key: data.random_labels(key, clean, 5, 0.5))
    noisy = np.asarray(replace(jax.random.key(0)).y)
    changed = np.mean(noisy != np.arange(4000) % 5)
    assert abs(changed - 0.4) < 4 * np.sqrt(0.24 / 4000)
    assert set(noisy) == set(range(5))
    with pytest.raises(ValueError, match="y holds labels from 0 to 4; want 0 to 2"):
        data.random_labels(jax.random.key(0), clean, 3)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\]; got 1.5"):
        data.random_labels(jax.random.key(0), clean, 5, 1.5)
