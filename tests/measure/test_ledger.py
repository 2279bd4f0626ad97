"""The ledger of the chain rule: its products are the deltas of any model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import backprop, ledger
from dltheory.networks.sites import SiteError
from tests.model_table import CASES, parameters
from tests.tier import FULL

ONE_OF_EACH = ("tied_weights", "scan_reverse", "batch_at_axis_1")
SHOWN = [case for case in CASES if FULL or case.name in ONE_OF_EACH]
LOSS = lambda y: jnp.mean(jnp.sin(y)) + jnp.sum(y) ** 2


@pytest.mark.parametrize("case", parameters([c for c in SHOWN if not c.couples_examples]))
def test_products_of_the_factors_are_the_deltas(case):
    f, params, x = case.build()
    texts = []

    @jax.jit
    def both(params, x):
        found = ledger.factors(LOSS, f, params, x)
        texts.extend(found.sites)
        return found[1:], backprop.deltas(LOSS, f, params, x)

    (jacobians, products), deltas = both(params, x)
    assert tuple(texts) == ("input", *case.cuts, "output")
    axes = dict(case.example_axes)
    for k, (text, product) in enumerate(zip(texts, products, strict=True)):
        name, _, index = text.partition("[")
        wanted = deltas[name][tuple(map(int, index[:-1].split(","))) if index else ()]
        wanted = jnp.moveaxis(wanted, axes.get(name, axes.get(text, 0)), 0).reshape(len(x), -1)
        size = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(product, wanted, rtol=1e-10, atol=1e-12 * size)
        if k:
            assert jacobians[k - 1].shape == (len(x), product.shape[1], products[k - 1].shape[1])


def test_coupled_examples_have_no_factors():
    w, x = {"w": jnp.ones((2, 2))}, jnp.array([[1.0, 2], [3, 5]])
    coupled = lambda w, x: (x - x.mean(0)[None]) @ w["w"]
    with pytest.raises(SiteError, match="the model couples examples: at 'w' one example"):
        ledger.factors(jnp.sum, coupled, w, x)
    found = jax.jit(lambda x: ledger.factors(jnp.sum, coupled, w, x)[1:])(x)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(found))


def test_bad_input_is_named():
    w, x = {"w": jnp.ones((2, 1))}, jnp.ones((1, 2))
    f = lambda w, x: x @ w["w"]
    with pytest.raises(TypeError, match=re.escape("params['n'] is int64, want real floats")):
        ledger.factors(jnp.sum, f, w | {"n": jnp.arange(2)}, x)
    with pytest.raises(TypeError, match=re.escape("loss(y) is float64[1, 1], want a real scalar")):
        ledger.factors(lambda y: y, f, w, x)
    with pytest.raises(ValueError, match=re.escape("loss(f(params, x)) is nan, so it has no")):
        ledger.factors(lambda y: jnp.log(-y.sum()), f, w, x)
