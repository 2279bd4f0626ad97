"""Fourier modes of convolutional networks against the facts, matrices and live channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.theory import convolution, mean_field
from tests.facts import FACTS, assert_agrees


@pytest.mark.parametrize("name", [n for n in FACTS if n.startswith("cnn.mf.modes")])
def test_modes_agree_with_the_facts(name):
    given = FACTS[name]["inputs"]
    assert_agrees(name, convolution.fourier_modes(given["n"], given["filter"]))


@pytest.mark.parametrize("name", [n for n in FACTS if n.startswith("cnn.mf.scales")])
def test_scales_agree_with_the_facts(name):
    """A ReLU network has the slope weight_var / 2 of both maps."""
    given = FACTS[name]["inputs"]
    at = {"weight_var": 2 * given["chi"], "bias_var": 0.1}
    sizes = {"kernel_size": given["filter"], "size": given["n"]}
    solve = lambda: convolution.mode_depth_scales("relu", **sizes, **at)
    for scales in jax.jit(solve)():
        assert_agrees(name, scales[:3])


@pytest.mark.parametrize(("n", "k"), [(7, 1), (8, 3), (9, 4), (6, 6), (5, 7)])
def test_modes_are_eigenvalues_of_averaging(n, k):
    """Of an even kernel up to the phase of half a step."""
    average = sum(np.roll(np.eye(n), b, axis=1) for b in range(k)) / k
    wanted = np.abs(np.fft.fft(average[0]))[: n // 2 + 1]
    found = convolution.fourier_modes(n, k)
    np.testing.assert_allclose(np.abs(found), wanted, atol=1e-14)
    if k % 2:
        centred = np.roll(average[0], -(k // 2))
        np.testing.assert_allclose(found, np.fft.rfft(centred).real, atol=1e-14)


def test_a_live_network_loses_a_mode_at_its_rate():
    """A wave in the variance of a linear network of 1500 channels, through one layer."""
    rng, n, k, channels, weight_var = np.random.default_rng(0), 8, 3, 1500, 1.2
    wave = 1 + 0.5 * np.cos(2 * np.pi / n * np.arange(n))
    x = np.sqrt(wave) * rng.normal(size=(channels, n))
    kernel = rng.normal(0, np.sqrt(weight_var / (k * channels)), (k, channels, channels))
    y = sum(kernel[b] @ np.roll(x, b - 1, axis=1) for b in range(k))
    before, after = (np.fft.rfft((a**2).mean(0)).real for a in (x, y))
    modes = convolution.fourier_modes(n, k)
    ratio = after[:2] / before[:2]
    np.testing.assert_allclose(ratio, weight_var * modes[:2], rtol=8 / np.sqrt(channels))


def test_the_constant_mode_is_that_of_the_dense_network():
    at = {"weight_var": 1.5, "bias_var": 0.1}
    found = convolution.mode_depth_scales("leaky_relu", kernel_size=4, size=4, **at)
    dense = mean_field.depth_scales("leaky_relu", **at)
    np.testing.assert_allclose([xi[0] for xi in found], dense, rtol=1e-14)
    # A kernel as large as the ring leaves nothing else.
    np.testing.assert_array_equal([xi[1:] for xi in found], np.zeros((2, 2)))


def test_bad_input():
    with pytest.raises(ValueError, match="n is 0; want a positive integer"):
        convolution.fourier_modes(0, 3)
    with pytest.raises(TypeError, match=r"k is 3\.0, a float; want a positive integer"):
        convolution.fourier_modes(8, 3.0)
    with pytest.raises(ValueError, match="weight_var must be zero or more; got -1"):
        convolution.mode_depth_scales("relu", kernel_size=3, size=8, weight_var=-1.0, bias_var=0.0)


@pytest.mark.usefixtures("float32")
def test_follows_float32():
    at = {"kernel_size": 3, "size": 8, "bias_var": 0.1}
    solve = lambda w: convolution.mode_depth_scales("relu", weight_var=w, **at)
    found = jax.jit(solve)(1.5)
    assert found.xi_c.dtype == jnp.float32
    assert jnp.isfinite(found.xi_c).all()
