"""Kernels, their axes, and biases, in every model of the table."""

import jax
import jax.numpy as jnp
import pytest

from dltheory.networks import weights
from tests.model_table import CASES, kinds, parameters

BY_NAME = {case.name: case for case in CASES}
CLOSED = {case.name for case in CASES if case.closed}


def paths(params):
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree.leaves_with_path(params)
    ]


def is_kernel(path):
    return path.split("/")[-1] == "kernel" or any(part[:1] == "W" for part in path.split("/"))


@pytest.mark.parametrize("case", parameters(c for c in kinds() if "low_rank" not in c.name))
def test_every_kernel_and_every_bias_is_found_and_nothing_else(case):
    f, params, x = case.build()
    found = weights.find(f, params, x)
    if case.name in CLOSED:
        assert set(found.unknown) == set(case.closed)
        return
    names, leaves = paths(params), jax.tree.leaves(params)
    assert {names[kernel.leaf] for kernel in found.kernels} == set(filter(is_kernel, names))
    biases = {
        name
        for name in names
        if name.split("/")[-1] in ("bias", "b", "c", "b1", "b2") or name.startswith("b/")
    }
    assert {names[leaf] for leaf in found.biases} == {b for b in biases if "orm" not in b}
    assert found.unknown == ()
    for kernel in found.kernels:
        assert sorted(sum(kernel[2:], ())) == list(range(leaves[kernel.leaf].ndim))
        assert any(kernel.layer == site.partition("[")[0] for site in case.sites)


@pytest.mark.parametrize(
    ("case", "path", "axes"),
    [
        # scanned, stack, spatial, inputs, outputs
        ("linen_mlp", "params/Dense_1/kernel", ((), (), (), (0,), (1,))),
        ("linen_cnn", "params/Conv_0/kernel", ((), (), (0, 1), (2,), (3,))),
        ("linen_attention", "params/attend/query/kernel", ((), (), (), (0,), (1, 2))),
        ("linen_attention", "params/attend/out/kernel", ((), (), (), (0, 1), (2,))),
        ("linen_scan", "params/blocks/fc2/kernel", ((0,), (), (), (1,), (2,))),
        ("nested_scan", "W", ((0, 1), (), (), (2,), (3,))),
        ("stacked_by_hand", "W", ((), (0,), (), (1,), (2,))),
        ("batch_at_axis_1", "W1", ((), (), (), (1,), (0,))),
    ],
)
def test_axes(case, path, axes):
    f, params, x = BY_NAME[case].build()
    found = {paths(params)[kernel.leaf]: kernel for kernel in weights.find(f, params, x).kernels}
    assert found[path][2:] == axes


def axes_of(f, shape, x_shape=(5, 4)):
    found = weights.find(f, jnp.ones(shape), jnp.ones(x_shape))
    return [kernel[2:] for kernel in found.kernels], found.unknown


@pytest.mark.parametrize(
    ("f", "shape", "axes"),
    [
        (lambda w, x: x @ w.reshape(4, 6), (2, 2, 6), ((), (), (), (0, 1), (2,))),
        (lambda w, x: x @ (2 * w.T).astype(x.dtype), (6, 4), ((), (), (), (1,), (0,))),
        (lambda w, x: x @ w[:, :3], (4, 6), ((), (), (), (0,), (1,))),
        (lambda w, x: jnp.einsum("bi,oi->bo", x, w), (6, 4), ((), (), (), (1,), (0,))),
        (lambda w, x: x @ w[None, :, None].reshape(4, 1), (4,), ((), (), (), (0,), ())),
        (
            lambda w, x: jnp.einsum("bgi,gio->bgo", x.reshape(5, 2, 2), w),
            (2, 2, 3),
            ((), (0,), (), (1,), (2,)),
        ),
        (
            lambda w, x: jax.lax.conv_general_dilated(
                x.reshape(5, 1, 4), w, (1,), "SAME", feature_group_count=1
            ),
            (6, 1, 3),  # OIH
            ((), (), (2,), (1,), (0,)),
        ),
    ],
)
def test_axes_through_reshapes_slices_and_transposes(f, shape, axes):
    assert axes_of(f, shape) == ([axes], ())


@pytest.mark.parametrize(
    "f",
    [
        lambda w, x: x[:, :2] @ w[:2],  # part of an axis of inputs
        lambda w, x: x @ jnp.tanh(w),
        lambda w, x: x @ w[::-1],
        lambda w, x: x @ (w + w[:, ::-1]),
        lambda w, x: jax.lax.scan(lambda w, h: (2 * w, h @ w), w, x[:, None])[1],
    ],
)
def test_what_is_not_the_axes_of_one_leaf_is_unknown(f):
    assert axes_of(f, (4, 6)) == ([], ("params",))
