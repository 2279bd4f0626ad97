"""The networks are their formulas, at any depth, and follow the dtype of their input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.networks import initializers, models

RANDOM = {
    "kernel_init": initializers.gaussian(1.5),
    "bias_init": initializers.normal(0.3),
}


def _moved(params):
    """Every parameter off its initial value: a scale of 1 or a shift of 0 would hide mistakes."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    moved = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape, leaf.dtype)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, moved)


def _init(model):
    x = jax.random.normal(jax.random.key(1), (3, 4))
    return x, _moved(jax.jit(model.init)(jax.random.key(0), x))


def _affine(layer, h):
    return h @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def _norm(layer, h):
    centred = h - h.mean(-1, keepdims=True)
    unit = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-6)
    return unit * np.asarray(layer["scale"]) + np.asarray(layer["bias"])


def _layer(stack, i):
    return jax.tree.map(lambda a: a[i], stack)


@pytest.mark.parametrize("depth", [1, 4])
def test_mlp_is_its_formula(depth):
    model = models.MLP(5, depth, 2, activation=jnp.sin, **RANDOM)
    x, variables = _init(model)
    params = variables["params"]
    h = _affine(params["first"], np.asarray(x))
    for i in range(depth - 1):
        h = _affine(_layer(params["hidden"], i), np.sin(h))
    y = _affine(params["last"], np.sin(h))
    np.testing.assert_allclose(model.apply(variables, x), y, rtol=1e-12)


@pytest.mark.parametrize("normalize", [False, True])
def test_residual_mlp_is_its_formula(normalize):
    model = models.ResidualMLP(5, 3, 2, branch=0.7, normalize=normalize, **RANDOM)
    x, variables = _init(model)
    params = variables["params"]
    norm = _norm if normalize else lambda _, h: h
    h = _affine(params["first"], np.asarray(x))
    for i in range(3):
        block = _layer(params["blocks"], i)
        h = h + 0.7 * _affine(block["dense"], np.tanh(norm(block.get("norm"), h)))
    y = _affine(params["last"], np.tanh(norm(params.get("norm"), h)))
    np.testing.assert_allclose(model.apply(variables, x), y, rtol=1e-12)


def test_every_layer_has_a_draw_of_its_own():
    init = jax.jit(models.MLP(5, 4, 2, **RANDOM).init)
    variables = init(jax.random.key(0), jnp.ones((1, 4)))
    for leaf in jax.tree.leaves(variables["params"]["hidden"]):
        assert len(np.unique(leaf)) == leaf.size


def test_initializers_see_one_layer_and_not_the_stack():
    orthogonal = initializers.orthogonal(2.0)
    model = models.MLP(6, 4, 2, kernel_init=orthogonal)
    kernels = model.init(jax.random.key(0), jnp.ones((1, 4)))["params"]["hidden"]["kernel"]
    for W in np.asarray(kernels):
        np.testing.assert_allclose(W @ W.T, 2 * np.eye(6), atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64])
def test_dtype_follows_the_input(dtype):
    for model in (models.MLP(5, 2, 2), models.ResidualMLP(5, 2, 2, normalize=True)):
        x = jnp.ones((3, 4), dtype)
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(dtype)}
        assert jax.eval_shape(model.apply, variables, x).dtype == dtype


@pytest.mark.parametrize("model", [models.MLP, models.ResidualMLP])
def test_the_traced_program_does_not_grow_with_depth(model):
    def equations(depth):
        net, x = model(4, depth, 2), jnp.ones((1, 4))
        shapes = jax.eval_shape(net.init, jax.random.key(0), x)
        return len(jax.make_jaxpr(net.apply)(shapes, x).eqns)

    assert equations(1000) == equations(10)


@pytest.mark.parametrize("name", ["width", "depth", "outputs"])
def test_sizes_must_be_positive(name):
    sizes = {"width": 4, "depth": 3, "outputs": 2} | {name: 0}
    for model in (models.MLP, models.ResidualMLP):
        with pytest.raises(ValueError, match=f"{name} is 0; want a positive integer"):
            model(**sizes)
