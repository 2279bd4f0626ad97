"""Pieces on a line against enumeration by exact fractions and by NumPy, on nets of many kinds."""

import itertools
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dltheory.measure import regions
from dltheory.networks import models
from tests.tier import cases


def relu_net(params, x):
    """Two hidden layers, a skip past the second."""
    h = jax.nn.relu(x @ params["w1"] + params["b1"][None])
    return jax.nn.relu(h @ params["w2"] + params["b2"][None]) @ params["w3"] + h @ params["w4"]


def draw(rng, d=2, width=4):
    shapes = {"w1": (d, width), "b1": (width,), "w2": (width, width), "b2": (width,)}
    shapes |= {"w3": (width, 1), "w4": (width, 1)}
    return {name: np.round(rng.normal(size=s) * 16) / 16 for name, s in shapes.items()}


def brute_force(params, a, b):
    """Breakpoints in exact fractions: the zeros of each unit on each piece of the layer before."""
    exact = np.vectorize(Fraction, otypes=[object])
    w1, b1, w2, b2, w3, w4 = (exact(params[k]) for k in ("w1", "b1", "w2", "b2", "w3", "w4"))
    a, step = exact(a), exact(np.asarray(b) - np.asarray(a))

    def layer(forms, w, bias):
        start, slope = forms
        return start @ w + bias, slope @ w

    def cut(ends, forms):
        zeros = {-c / s for c, s in zip(*forms, strict=True) if s != 0}
        return [ends[0], *sorted(z for z in zeros if ends[0] < z < ends[1]), ends[1]]

    def rectified(forms, at):
        on = np.array([c + s * at > 0 for c, s in zip(*forms, strict=True)], dtype=int)
        return forms[0] * on, forms[1] * on

    slopes = []
    first = layer((a, step), w1, b1)
    edges = cut((Fraction(0), Fraction(1)), first)
    for ends in itertools.pairwise(edges):
        hidden = rectified(first, sum(ends) / 2)
        second = layer(hidden, w2, b2)
        inner = cut(ends, second)
        for left, right in itertools.pairwise(inner):
            deep = rectified(second, (left + right) / 2)
            slopes.append((left, (deep[1] @ w3 + hidden[1] @ w4)[0]))
    new = [
        slopes[0],
        *(s for before, s in itertools.pairwise(slopes) if s[1] != before[1]),
    ]
    return [float(t) for t, _ in new], [float(s) for _, s in new]


@pytest.mark.parametrize("seed", range(cases(200)))
def test_counts_equal_enumeration_in_fractions(seed):
    rng = np.random.default_rng(seed)
    params = draw(rng)
    a, b = np.round(rng.normal(size=(2, 2)) * 32) / 8
    found = regions.pieces_on_line(relu_net, params, a, b)
    starts, slopes = brute_force(params, a, b)
    assert len(found.slopes) == len(slopes)
    np.testing.assert_allclose(found.t[:-1], starts, atol=1e-12)
    np.testing.assert_allclose(found.slopes[:, 0], slopes, rtol=1e-12, atol=1e-12)
    ends = relu_net(params, a + found.t[:, None] * (b - a))
    np.testing.assert_allclose(found.values, ends, atol=1e-11)


def pooled(params, x):
    """Convolution, max-pooling, absolute values, a clamp and a mask."""
    h = lax.conv(x[:, None], params["w"], (1,), "SAME")
    h = lax.reduce_window(h, -jnp.inf, lax.max, (1, 1, 2), (1, 1, 2), "VALID")
    h = lax.clamp(-0.5, h.reshape(len(x), -1), 0.9)
    return jnp.where(h > 0.2, h, 0.5 * h).max(-1) - jnp.abs(h).sum(-1) / 3 + jnp.min(h, -1)


def scanned(rng):
    """A network whose depth is a scan, and its parameters."""
    shapes = {"first": (3, 6), "hidden": (3, 6, 6), "last": (6, 2)}
    params = {
        name: {"kernel": rng.normal(size=s) / 2, "bias": rng.normal(size=s[:-2] + s[-1:]) / 4}
        for name, s in shapes.items()
    }
    return models.MLP(6, 4, 2, activation=nn.relu).apply, {"params": params}


@pytest.mark.parametrize("name", ["pooled", "scanned"])
def test_pieces_are_straight_and_meet(name):
    """The interpolant through the breakpoints is the network, and no breakpoint is idle."""
    rng = np.random.default_rng(3)
    if name == "pooled":
        f, params, d = pooled, {"w": rng.normal(size=(3, 1, 3))}, 12
    else:
        (f, params), d = scanned(rng), 3
    a, b = 2 * rng.normal(size=(2, d))
    found = regions.pieces_on_line(f, params, a, b)
    assert len(found.slopes) > 6
    t = np.linspace(0, 1, 4001)
    dense = np.asarray(f(params, jnp.asarray(a + t[:, None] * (b - a)))).reshape(len(t), -1)
    for k in range(dense.shape[1]):
        np.testing.assert_allclose(
            np.interp(t, found.t, found.values[:, k]), dense[:, k], atol=1e-12
        )
    assert (np.abs(np.diff(found.slopes, axis=0)).max(1) > 1e-8).all()


def test_a_thousand_units_have_a_thousand_breakpoints():
    rng = np.random.default_rng(0)
    w, v, knots = rng.normal(size=(1, 1000)), rng.normal(size=(1000, 1)), rng.uniform(size=1000)
    net = lambda params, x: jnp.maximum((x - knots[None]) * params[0], 0) @ params[1]
    found = regions.pieces_on_line(net, (w, v), np.zeros(1), np.ones(1))
    np.testing.assert_allclose(found.t[1:-1], np.sort(knots), atol=1e-14)


def test_kinks_on_simple_points():
    """Folds at dyadic points, where halving would land; dead units and equal slopes count once."""
    fold = lambda _, x: 2 * jnp.abs(jnp.abs(x - 0.5) - 0.25)
    assert regions.count_on_line(fold, None, np.zeros(1), np.ones(1)) == 4
    idle = lambda _, x: jnp.maximum(x, 0) - jnp.maximum(-x, 0) + 0 * jnp.abs(x - 0.3)
    assert regions.count_on_line(idle, None, -np.ones(1), np.ones(1)) == 1
    assert regions.count_on_line(fold, None, np.ones(1), np.ones(1)) == 1


def test_nan_is_the_whole_result():
    net = lambda params, x: jnp.maximum(x, 0) * params
    found = regions.pieces_on_line(net, jnp.nan, np.zeros(1), np.ones(1))
    assert all(np.isnan(part).all() for part in (found.values, found.slopes))


@pytest.mark.usefixtures("float32")
def test_single_precision_networks_are_counted_in_double():
    found = regions.pieces_on_line(
        lambda p, x: jnp.maximum(x - p, 0), jnp.float32(0.1), jnp.zeros(1), jnp.ones(1)
    )
    assert found.t[1] == float(np.float32(0.1))


def test_bad_input():
    line = np.zeros(1), np.ones(1)
    with pytest.raises(ValueError, match="not piecewise linear: it applies 'tanh' to what varies"):
        regions.count_on_line(lambda _, x: jnp.tanh(x), None, *line)
    with pytest.raises(ValueError, match="not piecewise linear: it applies 'mul' to what varies"):
        regions.count_on_line(lambda _, x: x * jnp.abs(x), None, *line)
    with pytest.raises(ValueError, match="f has a 'while' that varies along the line"):
        regions.count_on_line(
            lambda _, x: lax.while_loop(lambda h: h[0, 0] < 3, lambda h: h + 1, x), None, *line
        )
    with pytest.raises(ValueError, match=r"a and b have shapes \(1,\) and \(2,\); want two finite"):
        regions.count_on_line(lambda _, x: x, None, np.zeros(1), np.ones(2))
    with pytest.raises(ValueError, match="f has more than max_pieces = 2 pieces on the line"):
        regions.pieces_on_line(
            lambda _, x: jnp.abs(jnp.abs(x - 0.5) - 0.25), None, *line, max_pieces=2
        )
