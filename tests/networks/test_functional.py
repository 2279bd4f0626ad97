"""`pure` gives the model's own output, writes nothing, and says which key is missing."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dltheory.networks import functional

X = jax.random.normal(jax.random.key(1), (3, 4), jnp.float32)
KEY = jax.random.key(5)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        h = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(jnp.tanh(h)))


class Nnx(nnx.Module):
    def __init__(self, rngs, dropout_rngs="same"):
        self.layers = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs if dropout_rngs == "same" else dropout_rngs)

    def __call__(self, x, *, gain=1.0):
        h = self.dropout(jnp.tanh(self.norm(self.layers[0](x))))
        return gain * self.layers[1](h)


@pytest.fixture
def linen():
    return Linen(), Linen().init({"params": KEY, "dropout": KEY}, X, train=False)


def test_linen_in_evaluation_is_apply(linen):
    model, variables = linen
    f, params = functional.pure(model, variables, train=False)
    assert params is variables
    np.testing.assert_array_equal(f(params, X), model.apply(variables, X, train=False))


def test_linen_in_training_is_apply_without_its_updates(linen):
    model, variables = linen
    f, params = functional.pure(model, variables, rngs={"dropout": KEY}, train=True)
    y, _ = model.apply(variables, X, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"])
    np.testing.assert_array_equal(f(params, X), y)
    np.testing.assert_array_equal(f(params, X), y)
    other, _ = functional.pure(model, variables, rngs={"dropout": jax.random.key(6)}, train=True)
    assert not np.array_equal(other(params, X), y)


def test_a_bound_linen_module_brings_its_variables():
    model = nn.Dense(2)
    variables = model.init(KEY, X)
    f, params = functional.pure(model.bind(variables))
    np.testing.assert_array_equal(f(params, X), model.apply(variables, X))
    with pytest.raises(ValueError, match="variables were given for a Linen module that is bound"):
        functional.pure(model.bind(variables), variables)


def test_nnx_in_evaluation_is_the_call():
    model = Nnx(nnx.Rngs(0))
    model.eval()
    f, params = functional.pure(model, gain=2.0)
    assert sorted(params) == ["layers", "norm"]
    assert sorted(params["layers"][0]) == ["bias", "kernel"]
    np.testing.assert_array_equal(f(params, X), model(X, gain=2.0))


def test_nnx_in_training_is_the_first_call_every_time():
    model = Nnx(nnx.Rngs(0))
    model.train()
    f, params = functional.pure(model)
    first = f(params, X)
    np.testing.assert_array_equal(f(params, X), first)
    # Tracing must neither fail on the counter of the random stream nor leave a mark.
    np.testing.assert_allclose(jax.jit(f)(params, X), first, rtol=1e-6)
    jax.jvp(f, (params, X), (params, X))
    assert model.dropout.rngs.count[...] == 0
    assert not np.any(model.norm.mean[...])
    np.testing.assert_array_equal(model(X), first)
    # The call above moved the model's counter and statistics; f stays where it was.
    np.testing.assert_array_equal(f(params, X), first)


def test_nnx_takes_keys_by_the_name_of_a_stream():
    model = Nnx(nnx.Rngs(0, dropout=1))
    model.train()
    (f, params), (g, _) = (
        functional.pure(model, rngs={"dropout": jax.random.key(seed)}) for seed in (1, 2)
    )
    assert not np.array_equal(f(params, X), g(params, X))
    nnx.reseed(model, dropout=jax.random.key(1))
    np.testing.assert_array_equal(f(params, X), model(X))


def test_parameters_are_a_snapshot_of_an_nnx_model():
    model = Nnx(nnx.Rngs(0))
    model.eval()
    f, params = functional.pure(model)
    before = f(params, X)
    model.layers[0].kernel[...] = jnp.zeros((4, 5), jnp.float32)
    np.testing.assert_array_equal(f(params, X), before)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_gradients_reach_every_parameter(kind, linen):
    if kind == "linen":
        f, params = functional.pure(*linen, train=False)
    else:
        model = Nnx(nnx.Rngs(0))
        model.eval()
        f, params = functional.pure(model)
    gradient = jax.grad(lambda params: jnp.sum(f(params, X) ** 2))(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_missing_key_is_named(linen):
    f, params = functional.pure(*linen, train=True)
    with pytest.raises(ValueError) as caught:
        f(params, X)
    assert str(caught.value) == (
        "rngs holds none, but the model draws from another stream: Dropout_0 needs PRNG for "
        '"dropout"; give pure(..., rngs={name: key}), or switch the layer\'s randomness off'
    )

    model = Nnx(nnx.Rngs(0), dropout_rngs=None)
    model.train()
    f, params = functional.pure(model)
    with pytest.raises(
        ValueError, match=r"streams are none, but a layer that draws has none:.*"
    ) as (caught):
        f(params, X)
    assert "rngs=nnx.Rngs(...), or call model.eval() first" in str(caught.value)
    with pytest.raises(
        ValueError, match="rngs holds 'dropout', but the model's random streams are"
    ):
        functional.pure(model, rngs={"dropout": KEY})


def test_other_errors_of_a_model_pass_unchanged():
    model = Nnx(nnx.Rngs(0))
    f, params = functional.pure(model)
    with pytest.raises(TypeError, match="dot_general"):
        f(params, X[:, :3])


def test_what_is_no_model_is_refused(linen):
    model, variables = linen
    with pytest.raises(TypeError, match="model has the type int; want a Linen or an NNX module"):
        functional.pure(3)
    with pytest.raises(ValueError, match=r"variables is None, .* variables=model.init\(key, x\)"):
        functional.pure(model)
    with pytest.raises(ValueError, match="variables were given for an NNX module"):
        functional.pure(Nnx(nnx.Rngs(0)), variables)
