"""NNX models through `functional.pure`; the values come from running their layers one by one."""

import jax.numpy as jnp
from flax import nnx

from dltheory.networks import functional
from tests.case import batch, case, settled

CASES = []


def _nnx(name, construct, shape, sites, **flags):
    """A case of an NNX model that offers `steps(x)`, a generator of `(site, value)`."""

    def build(dtype=jnp.float64):
        f, params = functional.pure(construct())
        return f, settled(params, dtype), batch(dtype, *shape)

    def expected(params, x):
        model = construct()
        state = nnx.state(model, nnx.Not(nnx.RngState))
        nnx.replace_by_pure_dict(state, params)
        nnx.update(model, state)
        return dict(model.steps(x))

    CASES.append(case(name, build, expected, sites, **flags))


class _Steps(nnx.Module):
    """A module whose output is the last of its steps."""

    def __call__(self, x):
        return list(self.steps(x))[-1][1]


class _Mlp(_Steps):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def steps(self, x):
        for i, layer in enumerate(self.layers):
            x = layer(jnp.tanh(x))
            yield f"layers/{i}", x
        yield "head", self.head(jnp.tanh(x))


class _Shared(_Steps):
    def __init__(self, rngs):
        self.first = nnx.Linear(4, 4, rngs=rngs)
        self.second = self.first

    def steps(self, x):
        x = self.first(x)
        yield "first", x
        yield "first#1", self.second(jnp.tanh(x))


class _NormDropout(_Steps):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.dropout = nnx.Dropout(0.4, rngs=rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)

    def steps(self, x):
        h = self.linear(x)
        yield "linear", h
        h = self.norm(h)
        yield "norm", h
        yield "head", self.head(self.dropout(jnp.tanh(h)))


def _in_mode(train):
    def construct():
        model = _NormDropout(nnx.Rngs(0))
        model.train() if train else model.eval()
        return model

    return construct


_nnx("nnx_mlp", lambda: _Mlp(nnx.Rngs(0)), (4,), "layers/0 layers/1 head")
# Two attributes, one layer: NNX keeps its parameters once, under the first.
_nnx("nnx_shared", lambda: _Shared(nnx.Rngs(0)), (4,), "first first#1")
_nnx("nnx_eval", _in_mode(False), (4,), "linear norm head")
# In training NNX's BatchNorm promotes float64 with float32, which strict promotion refuses.
_nnx("nnx_train", _in_mode(True), (4,), "linear norm head", couples_examples=True, promotes=True)
