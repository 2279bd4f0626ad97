"""All singular values of a circular convolutional layer, beside the published recipes.

A 3x3 kernel with 64 channels on 32x32 pixels and with 128 channels on 16x16, float64. The pairs:
the NumPy recipe of Sedghi, Gupta and Long (2019), `fft2` and `svd` of every frequency, with one
BLAS thread as it is fastest; and the same by torch, where that is installed.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl

from dltheory.measure import convolution

GROUP = "singular values of a 3x3 convolution, {} channels on {}x{}, float64"


@functools.cache
def layer(channels):
    """A random kernel, HWIO."""
    return np.random.default_rng(0).normal(size=(3, 3, channels, channels))


def ours(channels, size):
    kernel = jnp.asarray(layer(channels))
    return lambda: jax.block_until_ready(convolution.singular_values(kernel, (size, size)))


def published(channels, size):
    kernel = layer(channels)

    def run():
        with threadpoolctl.threadpool_limits(1):
            symbol = np.fft.fft2(kernel, (size, size), axes=(0, 1))
            return np.linalg.svd(symbol, compute_uv=False)

    return run


def torch_fft(channels, size):
    torch = pytest.importorskip("torch")
    kernel = torch.tensor(layer(channels))

    def run():
        symbol = torch.fft.fft2(kernel, (size, size), dim=(0, 1))
        return torch.linalg.svdvals(symbol)

    return run


@pytest.mark.parametrize("how", [ours, published, torch_fft])
@pytest.mark.parametrize(("channels", "size"), [(64, 32), (128, 16)])
def test_all_values(benchmark, channels, size, how):
    benchmark.group = GROUP.format(channels, size, size)
    run = how(channels, size)
    run()
    benchmark.pedantic(run, rounds=5)
