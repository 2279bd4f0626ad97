"""Parameters drawn anew: the law of each layer, layouts, and unit variance from data."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chex import (
    assert_trees_all_close,
    assert_trees_all_equal,
    assert_trees_all_equal_shapes_and_dtypes,
)
from scipy import stats

from dltheory.networks import initializers, models, reinitialization, sites
from dltheory.networks.initializers import Scheme
from dltheory.networks.sites import SiteError
from tests.model_table import CASES, kinds, parameters

BY_NAME = {case.name: case for case in CASES}
KEY = jax.random.key(0)
GAUSSIAN = Scheme(initializers.gaussian(1.7), initializers.normal(0.3))
TIED = ("tied_weights", "stacked_by_hand")
OPEN = [case for case in kinds() if not case.closed and "low_rank" not in case.name]


@pytest.mark.parametrize("case", parameters(OPEN))
def test_structure_shapes_dtypes_and_all_other_parameters_are_kept(case):
    f, params, x = case.build()
    new = reinitialization.reinitialize(KEY, f, params, x, GAUSSIAN)
    assert_trees_all_equal_shapes_and_dtypes(new, params)
    assert f(new, x).shape == f(params, x).shape
    for path, leaf in jax.tree.leaves_with_path(params):
        text = jax.tree_util.keystr(path)
        changed = not np.array_equal(leaf, _at(new, path))
        # Neither kernel nor bias: normalisation, its statistics, and the scalar of a block.
        kept = any(word in text for word in ("Norm", "norm", "batch_stats", "alpha"))
        assert changed != kept, text
    again = reinitialization.reinitialize(KEY, f, params, x, lambda _: None)
    assert_trees_all_equal(again, params)


def _at(tree, path):
    return dict(jax.tree.leaves_with_path(tree))[path]


def test_the_law_of_every_layout():
    # One model with a transposed kernel, a scan, a convolution and heads: each has its own fan-in.
    shapes = {"conv": (3, 2, 60), "heads": (60, 6, 10), "out": (50, 6, 10), "stack": (3, 50, 50)}

    def f(params, x):
        numbers = ("NHC", "HIO", "NHC")
        h = jax.lax.conv_general_dilated(
            x, params["conv"], (1,), "SAME", dimension_numbers=numbers
        ).mean(1)
        h = jnp.einsum("bi,ihk->bhk", jnp.tanh(h), params["heads"])
        h = jnp.einsum("bhk,ohk->bo", jnp.tanh(h), params["out"])
        return jax.lax.scan(lambda h, w: (jnp.tanh(h) @ w, None), h, params["stack"])[0]

    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    fans = {"conv": 6, "heads": 60, "out": 60, "stack": 50}
    new = reinitialization.reinitialize(KEY, f, params, jnp.ones((1, 4, 2)), GAUSSIAN)
    for name, fan_in in fans.items():
        unit = np.ravel(new[name]) * np.sqrt(fan_in / 1.7)
        assert stats.kstest(unit, "norm").pvalue > 1e-3, name
    scheme = Scheme(initializers.orthogonal(1.7), initializers.normal(0.0))
    new = reinitialization.reinitialize(KEY, f, params, jnp.ones((1, 4, 2)), scheme)
    for matrix in (new["out"].reshape(50, 60).T, new["heads"].reshape(60, 60), *new["stack"]):
        s = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(s, np.sqrt(1.7), rtol=1e-12)
    assert not np.allclose(new["stack"][0], new["stack"][1])


def test_layers_may_have_schemes_of_their_own():
    # Fixup: the last layer of each branch starts at zero, so each block is the identity.
    f, params, x = BY_NAME["linen_scan_residual"].build()
    first, last = initializers.branch_factors("fixup", depth=3, layers=2)
    he, bias = initializers.he(), initializers.normal(0.0)

    def scheme(layer):
        factor = {"blocks/Dense_0": first, "blocks/Dense_1": last}.get(layer)
        return None if factor is None else Scheme(initializers.scaled(he, factor), bias)

    new = reinitialization.reinitialize(KEY, f, params, x, scheme)
    values = {str(site): value for site, value in sites.values(f, new, x).items()}
    np.testing.assert_array_equal(values["blocks/join[2]"], values["embed"])
    assert_trees_all_equal(new["params"]["head"], params["params"]["head"])


def test_it_may_be_compiled_and_vmapped_over_keys():
    f, params, x = BY_NAME["flat_dict"].build()
    keys = jax.random.split(KEY, 3)
    draw = lambda key: reinitialization.reinitialize(key, f, params, x, GAUSSIAN)
    many = jax.jit(jax.vmap(draw))(keys)
    for i in range(3):
        one = jax.tree.map(lambda a, i=i: a[i], many)
        assert_trees_all_close(one, draw(keys[i]), rtol=1e-12)
    assert not np.allclose(many["W1"][0], many["W1"][1])


@pytest.mark.parametrize("name", ["low_rank", "low_rank_modules", "custom_vjp"])
def test_weights_that_cannot_be_drawn_are_named(name):
    f, params, x = BY_NAME[name].build()
    (layer,) = BY_NAME[name].closed or BY_NAME[name].sites[:1]
    text = re.escape(f"weights of layer {layer!r} are no single parameter")
    with pytest.raises(SiteError, match=text):
        reinitialization.reinitialize(KEY, f, params, x, GAUSSIAN)
    with pytest.raises(SiteError, match="are no single parameter"):
        reinitialization.lsuv(KEY, f, params, x)
    others = lambda text: None if text == layer else GAUSSIAN
    new = reinitialization.reinitialize(KEY, f, params, x, others)
    assert not np.array_equal(f(new, x), f(params, x))


LSUV = [case for case in OPEN if case.name not in TIED]


@pytest.mark.parametrize("case", parameters(LSUV))
def test_lsuv_gives_every_layer_the_variance(case):
    f, params, x = case.build()
    new = jax.jit(lambda key: reinitialization.lsuv(key, f, params, x, variance=2.0))(KEY)
    assert_trees_all_equal_shapes_and_dtypes(new, params)
    values, seen = sites.values(f, new, x), set()
    for site, value in values.items():
        if any(word in site.name for word in ("orm", "join", "alpha")) or site.occurrence:
            continue
        if case.name == "marked" and site.name == "hidden":
            continue  # A value that the model marked, and no layer.
        np.testing.assert_allclose(value.var(), 2.0, rtol=1e-9, err_msg=str(site))
        seen.add(site.name)
    assert seen


def test_lsuv_scales_orthonormal_kernels_and_zeroes_biases():
    f, params, x = BY_NAME["flat_dict"].build()
    new = reinitialization.lsuv(KEY, f, params, x)
    gram = new["W1"].T @ new["W1"] if new["W1"].shape[0] > 5 else new["W1"] @ new["W1"].T
    np.testing.assert_allclose(gram, gram[0, 0] * np.eye(len(gram)), atol=1e-12)
    assert not np.any(new["b1"])


def test_lsuv_of_a_deep_stack():
    model = models.MLP(16, 40, 2, activation=jax.nn.relu)
    x = jax.random.normal(KEY, (20, 3))
    params = model.init(KEY, x)
    new = jax.jit(lambda: reinitialization.lsuv(KEY, model.apply, params, x))()
    for site, value in sites.values(model.apply, new, x).items():
        np.testing.assert_allclose(value.var(), 1, rtol=1e-9, err_msg=str(site))


def test_lsuv_of_shared_weights_goes_by_the_first_run():
    f, params, x = BY_NAME["tied_weights"].build()
    new = reinitialization.lsuv(KEY, f, params, x)
    values = {str(site): value for site, value in sites.values(f, new, x).items()}
    np.testing.assert_allclose(values["W"].var(), 1, rtol=1e-12)
    # Inside of a scan, too.
    f = lambda w, x: jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=3)[0]
    new = reinitialization.lsuv(KEY, f, jnp.ones((4, 4)), x)
    np.testing.assert_allclose((x @ new).var(), 1, rtol=1e-12)


def test_lsuv_says_what_it_cannot_do():
    f, params, x = BY_NAME["stacked_by_hand"].build()
    with pytest.raises(SiteError, match=r"layer 'W' is sliced into .* or run them by a scan"):
        reinitialization.lsuv(KEY, f, params, x)
    f, params, x = BY_NAME["flat_dict"].build()
    with pytest.raises(ValueError, match=r"variance is 0.0; want variance > 0"):
        reinitialization.lsuv(KEY, f, params, x, variance=0.0)
    for broken in (jnp.zeros_like(x), x.at[0, 0].set(jnp.nan)):
        new = reinitialization.lsuv(KEY, f, params, broken)
        assert all(np.all(np.isnan(leaf)) for leaf in jax.tree.leaves(new))
