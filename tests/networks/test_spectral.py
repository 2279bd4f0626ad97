"""Norms of layers against explicit matrices; clipped kernels against optimality."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dltheory.measure import convolution, convolution_matrix
from dltheory.networks import proximal, spectral
from dltheory.networks.spectral import Convolution
from tests.tier import cases

RNG = np.random.default_rng(0)
LAYERS = [
    Convolution((6, 5)),
    Convolution((6, 4), strides=2, groups=2),
    Convolution((5, 6), padding="SAME", dilation=(1, 2)),
    Convolution((5, 5), strides=2),
    Convolution((2, 4)),
]


def kernel_of(seed=0):
    return np.random.default_rng(seed).normal(size=(3, 3, 2, 4))


def explicit_norm(kernel, layer):
    shape, *rest = layer
    given = dict(zip(layer._fields[1:], rest, strict=True))
    return np.linalg.norm(convolution_matrix.matrix(kernel, shape, **given), 2)


@pytest.mark.parametrize("layer", LAYERS)
def test_the_norm_is_that_of_the_map_or_above(layer):
    kernel = kernel_of()
    found, wanted = float(spectral.norm(kernel, layer)), explicit_norm(kernel, layer)
    if layer in LAYERS[:2] + LAYERS[4:]:
        np.testing.assert_allclose(found, wanted, rtol=1e-13)
    else:
        assert wanted <= found <= 1.5 * wanted


def test_the_norm_is_differentiable():
    kernel, layer = jnp.asarray(kernel_of()), LAYERS[0]
    value, slope = jax.jit(jax.value_and_grad(lambda k: spectral.norm(k, layer)))(kernel)
    np.testing.assert_allclose(value, spectral.norm(kernel, layer), rtol=1e-13)
    direction = RNG.normal(size=kernel.shape)
    ends = [spectral.norm(kernel + step * direction, layer) for step in (1e-5, -1e-5)]
    np.testing.assert_allclose(np.sum(slope * direction), (ends[0] - ends[1]) / 2e-5, rtol=1e-7)
    # A norm is homogeneous of degree one (Euler).
    np.testing.assert_allclose(np.sum(slope * kernel), value, rtol=1e-12)


# One program a layer, whatever the bound and the kernel.
CLIP = {
    (layer, rounds): jax.jit(
        lambda k, c, layer=layer, r=rounds: spectral.clip(k, c, layer, rounds=r)
    )
    for layer in LAYERS
    for rounds in (1, 4, 200)
}


@pytest.mark.parametrize("layer", LAYERS[: cases(20)])
def test_clipped_kernels_are_within_the_bound(layer):
    kernel = kernel_of()
    size = float(spectral.norm(kernel, layer))
    clip = CLIP[layer, 4]
    for part in (0.0, 0.3, 0.9):
        clipped = clip(kernel, part * size)
        assert explicit_norm(clipped, layer) <= part * size * (1 + 1e-13)
        # Nearer than scaling the kernel down.
        assert np.linalg.norm(clipped - kernel) <= (1 - part) * np.linalg.norm(kernel) * (1 + 1e-12)
    np.testing.assert_array_equal(clip(kernel, 1.01 * size), kernel)


def test_a_kernel_with_one_tap_is_clipped_as_a_matrix():
    w = RNG.normal(size=(2, 4))
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    kernel = np.zeros((3, 3, 2, 4))
    kernel[1, 2] = w
    clipped = CLIP[LAYERS[0], 1](kernel, 1.0)
    kernel[1, 2] = u * np.minimum(s, 1) @ vt
    np.testing.assert_allclose(clipped, kernel, rtol=0, atol=1e-14)
    np.testing.assert_allclose(spectral.clip(w, 1.0), kernel[1, 2], rtol=0, atol=1e-14)


def test_many_rounds_lead_to_the_nearest_kernel():
    """The obtuse angle of a projection with every kernel within the bound."""
    layer = LAYERS[0]
    kernel = kernel_of()
    size = float(spectral.norm(kernel, layer))
    near, few, one = (np.asarray(CLIP[layer, r](kernel, 0.5 * size)) for r in (200, 4, 1))
    scale = np.linalg.norm(kernel) ** 2
    for seed in range(50):
        other = kernel_of(seed=seed)
        other *= min(1, 0.5 * size / float(spectral.norm(other, layer)))
        for point in (other, (other + 9 * near) / 10):
            assert np.sum((kernel - near) * (point - near)) <= 1e-6 * scale
    away = [np.linalg.norm(kernel - found) for found in (near, few, one)]
    assert away[0] <= away[1] <= away[2]


@settings(max_examples=cases(50), deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 1.5), st.sampled_from([1e-100, 1.0, 1e100]))
def test_clipping_follows_scales(seed, part, scale):
    layer = LAYERS[0]
    kernel = kernel_of(seed=seed)
    bound = part * float(spectral.norm(kernel, layer))
    clip = CLIP[layer, 4]
    plain, scaled = clip(kernel, bound), clip(scale * kernel, scale * bound)
    np.testing.assert_allclose(scaled / scale, plain, rtol=0, atol=1e-12)


def test_reshaped_norms_leave_a_norm_above_one():
    """The box kernel, at which the reshaped norm is the furthest below: by the root of the taps."""
    layer = Convolution((6, 6))
    kernel = jnp.ones((3, 3, 2, 2))
    by_reshaped = kernel / convolution_matrix.reshaped_norms(kernel).outputs
    np.testing.assert_allclose(explicit_norm(by_reshaped, layer), 3, rtol=1e-13)
    for w, of in ((kernel, layer), (kernel[0, 0], None)):
        np.testing.assert_allclose(spectral.norm(spectral.normalize(w, 0.5, of), of), 0.5)
    np.testing.assert_array_equal(spectral.normalize(0 * kernel, 1.0, layer), 0)


def test_as_transformations_on_dense_and_convolutional_layers():
    """The true norm of every layer after each step; other leaves and stacks of a scan too."""
    layer = Convolution((4, 4))
    kernels = {
        "conv": {"kernel": kernel_of(), "bias": np.ones(4)},
        "scan": {"kernel": np.stack([kernel_of(seed=s) for s in (1, 2)])},
        "dense": {"kernel": RNG.normal(size=(4, 3))},
    }
    layers = lambda path: None if "dense" in path else layer
    for how in [proximal.normalize_spectral, proximal.project_spectral][: cases(11)]:
        chain = optax.chain(optax.sgd(0.1), how(1.5, layers=layers))
        step = jax.jit(chain.update)
        updates, _ = step(kernels, chain.init(kernels), kernels)
        new = optax.apply_updates(kernels, updates)
        conv, scan = new["conv"]["kernel"], new["scan"]["kernel"]
        norms = [explicit_norm(k, layer) for k in (conv, *scan)]
        norms.append(np.linalg.norm(new["dense"]["kernel"], 2))
        np.testing.assert_allclose(norms, 1.5, rtol=1e-12)
        np.testing.assert_allclose(new["conv"]["bias"], 0.9)


def test_bad_weights_and_bounds():
    layer = LAYERS[0]
    kernel = kernel_of()
    assert np.all(np.isnan(CLIP[layer, 4](kernel, -1.0)))
    kernel[0, 0, 0, 0] = np.nan
    assert np.all(np.isnan(CLIP[layer, 4](kernel, 1.0)))
    assert np.all(np.isnan(spectral.normalize(kernel, 1.0, layer)))
    assert np.isnan(spectral.norm(kernel_of() * np.inf, LAYERS[1]))
    for call, text in (
        (lambda: spectral.norm(kernel), "w has shape (3, 3, 2, 4); want a matrix: of a kernel"),
        (lambda: spectral.norm(kernel[0], layer), "which is HWIO for images"),
        (lambda: spectral.clip(kernel, -1.0, layer), "max_norm must be zero or more; got -1.0"),
        (lambda: spectral.clip(kernel, 1.0, layer, rounds=0), "rounds is 0; want a positive int"),
        (lambda: spectral.normalize(kernel, -1.0, layer), "target must be zero or more; got -1.0"),
        (lambda: proximal.normalize_spectral(-1.0), "norm must be zero or more; got -1.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            call()


def test_single_precision(float32):  # noqa: ARG001
    layer = LAYERS[0]
    kernel = kernel_of().astype(np.float32)
    clipped = CLIP[layer, 4](kernel, 1.0)
    assert clipped.dtype == jnp.float32
    np.testing.assert_allclose(convolution.singular_values(clipped, (6, 5))[0], 1, rtol=1e-5)
