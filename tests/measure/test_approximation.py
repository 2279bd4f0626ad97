"""Sup errors are certified and attained, L2 errors come with their doubt."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dltheory.measure import approximation
from dltheory.networks import models
from dltheory.theory import constructions
from tests.tier import cases

UNIT = (0.0, 1.0)
TARGETS = [
    jnp.exp,
    lambda x: jnp.abs(x - 0.4) ** 1.5,
    lambda x: jnp.sin(3 * x),
    lambda x: 1 / (1 + 25 * x**2),
    lambda x: jnp.sqrt(jnp.abs(x)),
    lambda x: jnp.maximum(jnp.tanh(4 * x), x),
]
GRID = np.linspace(-1, 1, 2001)
ON_GRID = [np.asarray(jax.vmap(f)(GRID)) for f in TARGETS]
SHAPES = [(1, 4), (1, 3, 3)]


def network(weights, shape):
    """A ReLU network of one or two hidden layers, its weights taken from a list."""
    weights = np.array(weights)
    taken, layers = 0, []
    for inputs, outputs in zip(shape, (*shape[1:], 1), strict=True):
        size = inputs * outputs
        kernel = weights[taken : taken + size].reshape(inputs, outputs)
        layers.append((kernel, weights[taken + size : taken + size + outputs]))
        taken += size + outputs

    def net(x, maximum=jnp.maximum):
        for kernel, bias in layers[:-1]:
            x = maximum(x @ kernel + bias[None], 0)
        return x @ layers[-1][0] + layers[-1][1][None]

    return net


@settings(max_examples=cases(300))
@given(
    st.integers(0, len(TARGETS) - 1),
    st.integers(0, len(SHAPES) - 1),
    st.lists(st.floats(-2, 2), min_size=25, max_size=25),
)
def test_the_certificate_is_sound(target, shape, weights):
    net = network(weights, SHAPES[shape])
    lower, upper = approximation.sup_error(
        TARGETS[target], net, (-1.0, 1.0), rtol=1e-4, max_boxes=20_000
    )
    dense = np.abs(net(GRID[:, None], np.maximum)[:, 0] - ON_GRID[target]).max()
    assert dense <= upper + 1e-13
    assert lower <= upper
    # The lower end is attained: a grid of this width misses it by less than its slopes allow.
    assert lower <= dense + 0.1
    assert upper <= lower * (1 + 2e-4) + 1e-10


@pytest.mark.parametrize("n", [1, 5])
def test_errors_of_the_square_are_exact(n):
    net = constructions.interpolant(lambda x: x**2, n, UNIT)
    lower, upper = approximation.sup_error(lambda x: x**2, net, UNIT)
    assert lower <= 1 / (4 * n**2) * (1 + 1e-14)
    assert 1 / (4 * n**2) <= upper <= lower * (1 + 1e-9)
    value, error = approximation.l2_error(lambda x: x**2, net, UNIT, points=200)
    np.testing.assert_allclose(value, 1 / (np.sqrt(30) * n**2), rtol=1e-13)
    assert error < 1e-13


@pytest.mark.parametrize("m", [4, 9, *range(1, 4), *range(5, 9), 10, 11, 12][: cases(20)])
def test_deep_squares_have_their_exact_errors(m):
    exact = 4.0 ** -(m + 1)
    lower, upper = approximation.sup_error(lambda x: x**2, constructions.square(m), UNIT)
    assert lower <= exact * (1 + 1e-14)
    assert exact <= upper <= lower * (1 + 1e-9)


@pytest.mark.parametrize("m", [3, 1, 2, 4, 5, 6, 7, 8][: cases(10)])
def test_products_have_their_exact_errors(m):
    exact = 4.0 ** -(m + 1)
    box = np.zeros(2), np.ones(2)
    lower, upper = approximation.sup_error(
        lambda x: x[0] * x[1], constructions.product(m), box, max_boxes=2_000_000
    )
    assert lower <= exact * (1 + 1e-14)
    assert exact <= upper <= lower * (1 + 1e-9)


def test_a_scanned_network_is_bounded_as_well_as_any():
    mlp = models.MLP(4, 3, 1, activation=nn.relu)
    rng = np.random.default_rng(0)
    shapes = {"first": (1, 4), "hidden": (2, 4, 4), "last": (4, 1)}
    layer = lambda shape: {
        "kernel": rng.normal(size=shape),
        "bias": rng.normal(size=shape[:-2] + shape[-1:]),
    }
    params = {"params": {name: layer(shape) for name, shape in shapes.items()}}
    lower, upper = approximation.sup_error(
        jnp.cos, lambda x: mlp.apply(params, x), (-1.0, 2.0), max_boxes=5000
    )
    assert upper <= lower * (1 + 2e-9)


def test_without_a_certificate_the_error_is_sampled():
    f, net = jax.scipy.special.gammaln, lambda x: 2 * x[:, 0]
    lower, upper = approximation.sup_error(f, net, (1.0, 2.0), certified=False)
    np.testing.assert_allclose(lower, 4, rtol=1e-12)
    assert upper == np.inf
    lower, _ = approximation.sup_error(
        lambda x: x[0] * (1 - x[0]) + 0 * x[1],
        lambda x: jnp.zeros(len(x)),
        (np.zeros(2), np.ones(2)),
        certified=False,
    )
    np.testing.assert_allclose(lower, 0.25, rtol=1e-9)


def test_l2_errors_of_other_shapes():
    """A smooth network on a line, and a box by quasi-Monte Carlo."""
    value, error = approximation.l2_error(jnp.sin, lambda x: jnp.zeros(len(x)), (0.0, np.pi))
    np.testing.assert_allclose(value, np.sqrt(np.pi / 2), rtol=1e-13)
    assert error < 1e-12
    box = np.zeros(3), np.array([1.0, 2.0, 0.5])
    value, error = approximation.l2_error(
        lambda x: jnp.sum(x), lambda x: jnp.zeros(len(x)), box, key=jax.random.key(0)
    )
    assert abs(value - np.sqrt(1 * (1.75**2 + (1 + 4 + 0.25) / 12))) < 4 * error < 0.02


def test_a_step_is_missed_by_half():
    """Kinks at breakpoints of the network: the tent is a third of a third from one half."""
    tent = constructions.tent(3)
    value = approximation.l2_error(lambda x: 0.5 + 0 * x, tent, UNIT).value
    np.testing.assert_allclose(value, 1 / np.sqrt(12), rtol=1e-13)


def test_bad_input():
    zero = lambda x: jnp.zeros(len(x))
    with pytest.raises(ValueError, match=r"no certificate: .*'lgamma'.* pass certified=False"):
        approximation.sup_error(jax.scipy.special.gammaln, zero, (1.0, 2.0))
    with pytest.raises(ValueError, match="corners of a bounded box"):
        approximation.sup_error(jnp.exp, zero, (1.0, 0.0))
    with pytest.raises(ValueError, match="key is None; want a key for the random shifts"):
        approximation.l2_error(jnp.sum, zero, (np.zeros(2), np.ones(2)))
    with pytest.raises(ValueError, match="want bounded corners, the lower one first"):
        approximation.l2_error(jnp.exp, zero, (0.0, 0.0))
    with pytest.raises(ValueError, match="fn is NaN at"):
        approximation.sup_error(jnp.log, zero, (-1.0, 1.0), max_boxes=2000)
