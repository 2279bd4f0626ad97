"""The nearest convolution to a dense map: a projection onto all matrices of the layer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import convolution_matrix
from tests.tier import cases

LAYERS = [
    ((3, 2, 2, 3), (4, 5), {}),
    ((3, 3, 1, 4), (5, 4), {"strides": (2, 1), "groups": 2}),
    ((3, 1, 2), (9,), {"padding": "VALID", "dilation": 2}),
    ((2, 2, 2, 1, 2), (3, 3, 2), {"padding": "SAME", "strides": 2, "groups": 2}),
    ((3, 2, 2), (6,), {"padding": [(4, 0)]}),
    ((3, 2, 3), (2,), {}),  # two taps on one pixel
]


@pytest.mark.parametrize(("shape", "image", "given"), LAYERS[: cases(30)])
def test_the_nearest_convolution_is_a_projection(shape, image, given):
    rng = np.random.default_rng(0)
    kernel, other = rng.normal(size=(2, *shape))
    matrix = lambda kernel: np.asarray(convolution_matrix.matrix(kernel, image, **given))
    nearest = lambda a: convolution_matrix.nearest_kernel(a, shape, image, **given)
    own = matrix(kernel)
    found = nearest(own)
    np.testing.assert_allclose(matrix(found), own, rtol=0, atol=1e-14)
    if image != (2,):
        np.testing.assert_allclose(found, kernel, rtol=0, atol=1e-14)
    dense = rng.normal(size=own.shape)
    found = nearest(dense)
    left = dense - matrix(found)
    assert abs(np.sum(left * matrix(other))) < 1e-12 * np.linalg.norm(left) * np.linalg.norm(own)
    # By least squares on the matrices of all kernels with one weight: the shortest solution.
    basis = np.stack([matrix(e.reshape(shape)).reshape(-1) for e in np.eye(kernel.size)], 1)
    wanted = np.linalg.lstsq(basis, dense.reshape(-1))[0].reshape(shape)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)


def test_the_nearest_kernel_is_linear_in_the_map():
    shape, image, given = LAYERS[0]
    nearest = lambda a: convolution_matrix.nearest_kernel(a, shape, image, **given)
    a = jnp.asarray(np.random.default_rng(1).normal(size=(60, 40)))
    kernel, back = jax.vjp(nearest, a)
    # The adjoint of a projection's coordinates: the mean over the entries that share a weight.
    wanted = convolution_matrix.matrix(kernel, image, **given) / 20
    np.testing.assert_allclose(back(kernel)[0], wanted, rtol=0, atol=1e-15)


def test_bad_maps_are_named():
    with pytest.raises(ValueError, match=re.escape("a has shape (4, 5); want (3, 4), (output pix")):
        convolution_matrix.nearest_kernel(jnp.ones((4, 5)), (2, 1, 1), 4, padding="VALID")
    with pytest.raises(TypeError, match="a holds int64; want floating-point numbers"):
        convolution_matrix.nearest_kernel(jnp.ones((4, 4), int), (2, 1, 1), 4)
    with pytest.raises(ValueError, match="which is HWIO for images"):
        convolution_matrix.nearest_kernel(jnp.ones((4, 4)), (2, 1), 4)
