"""Pieces of lines and planes against enumeration by fractions, linear programs and arrangements."""

import itertools
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import optimize

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
    dense = np.asarray(jax.jit(f)(params, jnp.asarray(a + t[:, None] * (b - a)))).reshape(
        len(t), -1
    )
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


def cells_by_linear_programs(params):
    """Patterns of on and off that some disc in the unit square has: every cell of the plane."""

    def patterns(form, rows, sides):
        """Extend a cell by all sides of the zeros of some forms."""
        for signs in itertools.product((-1.0, 1.0), repeat=form.shape[1]):
            if any(s > 0 and not form[:, k].any() for k, s in enumerate(signs)):
                continue  # what is zero everywhere has one side
            more = [*rows, *(-s * form[1:, k] for k, s in enumerate(signs))]
            limits = [*sides, *(s * form[0, k] for k, s in enumerate(signs))]
            matrix = np.array(more)
            # The largest disc: its centre u, v and its radius r.
            found = optimize.linprog(
                (0, 0, -1),
                A_ub=np.column_stack([matrix, np.linalg.norm(matrix, axis=1)]),
                b_ub=limits,
                bounds=[(0, 1), (0, 1), (0, 1)],
            )
            if found.status == 0 and found.x[2] > 1e-9:
                yield np.array(signs) > 0, more, limits

    square = [(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)], [0.0, 1.0, 0.0, 1.0]
    bias = lambda b: np.array([[1.0], [0.0], [0.0]]) * b
    first = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]) @ params["w1"] + bias(params["b1"])
    cells = []
    for on, rows, sides in patterns(first, *square):
        hidden = first * on
        second = hidden @ params["w2"] + bias(params["b2"])
        for deep, _, _ in patterns(second, rows, sides):
            cells.append((second * deep) @ params["w3"] + hidden @ params["w4"])
    return np.array(cells)


UNIT_SQUARE = np.zeros(2), np.array([1.0, 0.0]), np.array([0.0, 1.0])


@pytest.mark.parametrize("seed", range(cases(200)))
def test_plane_equals_enumeration_by_linear_programs(seed):
    rng = np.random.default_rng(seed)
    params = draw(rng, width=3)
    params |= {"b1": params["b1"] - params["w1"].sum(0) / 2}
    found = regions.pieces_on_plane(relu_net, params, *UNIT_SQUARE)
    cells = cells_by_linear_programs(params)
    assert len(found.polygons) == len(cells)
    maps = np.concatenate([found.constants[:, None], found.gradients], 1)
    in_order = lambda a: a[np.lexsort(a[:, :, 0].round(9).T)]
    np.testing.assert_allclose(in_order(maps), in_order(cells), atol=1e-12)


def shallow(params, x):
    return jax.nn.relu(x @ params["w"] + params["b"][None]).sum(-1)


@pytest.mark.parametrize("seed", range(cases(100)))
def test_plane_of_one_layer_is_an_arrangement_of_lines(seed):
    """In a convex set: one more region than there are lines in it, and crossings in it."""
    rng = np.random.default_rng(seed)
    w, b = rng.normal(size=(2, 10)), rng.normal(size=10) / 2
    at_corners = _BOX @ w + b
    lines = np.flatnonzero((at_corners.min(0) < 0) & (at_corners.max(0) > 0))
    crossings = sum(
        bool((np.abs(np.linalg.solve(w[:, [i, j]].T, -b[[i, j]])) < 1).all())
        for i, j in itertools.combinations(lines, 2)
    )
    count = regions.count_on_plane(shallow, {"w": w, "b": b}, *_BOX[[0, 1, 3]])
    assert count == 1 + len(lines) + crossings


_BOX = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def test_ten_lines_in_general_position_make_56_regions():
    angle = np.arange(10) * 0.3
    params = {"w": np.stack([np.cos(angle), np.sin(angle)]), "b": 0.1 * np.cos(7 * angle**2)}
    assert regions.count_on_plane(shallow, params, *20 * _BOX[[0, 1, 3]]) == 56


def area(corners):
    x, y = corners.T
    return (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


@pytest.mark.parametrize("name", ["pooled", "scanned"])
def test_polygons_tile_and_carry_the_network(name):
    rng = np.random.default_rng(3)
    if name == "pooled":
        f, params, d = pooled, {"w": rng.normal(size=(3, 1, 3))}, 12
    else:
        (f, params), d = scanned(rng), 3
    a, b, c = rng.normal(size=(3, d))
    found = regions.pieces_on_plane(f, params, a, b, c)
    areas = [area(corners) for corners in found.polygons]
    assert min(areas) > 0
    assert sum(areas) == pytest.approx(1, abs=1e-12)
    # Near the corners, which are never outside.
    uv = np.concatenate([0.9 * p + 0.1 * p.mean(0) for p in found.polygons])
    at = np.repeat(np.arange(len(areas)), [len(p) for p in found.polygons])
    expected = found.constants[at] + np.einsum("ni,nio->no", uv, found.gradients[at])
    fill = np.resize(uv, (8192, 2))
    assert len(uv) <= len(fill)
    x = jnp.asarray(a + fill[:, :1] * (b - a) + fill[:, 1:] * (c - a))
    values = np.asarray(jax.jit(f)(params, x)).reshape(len(fill), -1)[: len(uv)]
    np.testing.assert_allclose(expected, values, atol=1e-11)
    # Its edge is a line; corners in another order are the same plane.
    edge = regions.pieces_on_line(f, params, a, b)
    touching = {
        r for p, r in zip(found.polygons, found.regions, strict=True) if (p[:, 1] < 1e-13).sum() > 1
    }
    assert len(touching) <= len(edge.slopes)
    turned = regions.pieces_on_plane(f, params, a, c, b)
    assert turned.regions.max() == found.regions.max()


def test_a_region_is_connected_and_may_be_bent():
    bent = lambda _, x: jnp.maximum(jnp.maximum(x, 0).sum(-1) - 1, 0)
    found = regions.pieces_on_plane(bent, None, *2 * _BOX[[0, 1, 3]])
    assert (len(found.polygons), found.regions.max() + 1) == (7, 4)
    ridge = lambda _, x: jnp.maximum(1 - jnp.abs(x[:, 0]), 0)
    assert regions.count_on_plane(ridge, None, *2 * _BOX[[0, 1, 3]]) == 4
    assert regions.count_on_plane(lambda _, x: 0 * x, None, *_BOX[[0, 1, 3]]) == 1


def test_choices_among_many():
    """The first of equal rows is taken, as by JAX; any number of players."""
    chosen = lambda w, x: x[:, :1] * w[jnp.argmax(jnp.maximum(x @ w.T, 0), -1)]
    w = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0], [3.0, 3.0]])
    found = regions.pieces_on_plane(chosen, w, *_BOX[[0, 1, 3]])
    middles = np.stack([p.mean(0) for p in found.polygons])
    expected = found.constants + np.einsum("ni,nio->no", middles, found.gradients)
    values = jax.jit(chosen)(jnp.asarray(w), jnp.asarray(2 * middles - 1))
    np.testing.assert_allclose(expected, values, atol=1e-12)


def test_length_of_a_path_in_each_layer():
    f, params = scanned(np.random.default_rng(1))
    path = np.stack([np.cos(np.arange(9)), np.sin(np.arange(9)), np.arange(9) / 4], 1)
    sites, lengths = regions.trajectory_length(f, params, jnp.asarray(path))
    h, expected = path, []
    layers = params["params"]
    weights = [
        layers["first"],
        *(jax.tree.map(lambda a, k=k: a[k], layers["hidden"]) for k in range(3)),
    ]
    for layer in [*weights, layers["last"]]:
        h = h @ layer["kernel"] + layer["bias"]
        expected.append(np.linalg.norm(np.diff(h, axis=0), axis=1).sum())
        h = np.maximum(h, 0)
    assert [site.index for site in sites] == [None, (0,), (1,), (2,), None]
    np.testing.assert_allclose(lengths, expected, rtol=1e-12)


def test_nan_is_the_whole_result():
    net = lambda params, x: jnp.maximum(x, 0) * params
    found = regions.pieces_on_line(net, jnp.nan, np.zeros(1), np.ones(1))
    assert all(np.isnan(part).all() for part in (found.values, found.slopes))
    tiling = regions.pieces_on_plane(net, jnp.nan, np.zeros(2), np.ones(2), np.arange(2))
    assert len(tiling.polygons) == 1
    assert np.isnan(tiling.constants).all()
    assert np.isnan(tiling.gradients).all()


@pytest.mark.usefixtures("float32")
def test_single_precision_networks_are_counted_in_double():
    found = regions.pieces_on_line(
        lambda p, x: jnp.maximum(x - p, 0), jnp.float32(0.1), jnp.zeros(1), jnp.ones(1)
    )
    assert found.t[1] == float(np.float32(0.1))


def test_bad_input():
    line = np.zeros(1), np.ones(1)
    with pytest.raises(
        ValueError, match="not piecewise linear: it applies 'tanh' to what varies with"
    ):
        regions.count_on_line(lambda _, x: jnp.tanh(x), None, *line)
    with pytest.raises(
        ValueError, match="not piecewise linear: it applies 'mul' to what varies with"
    ):
        regions.count_on_line(lambda _, x: x * jnp.abs(x), None, *line)
    with pytest.raises(ValueError, match="f has a 'while' that varies with the input"):
        regions.count_on_line(
            lambda _, x: lax.while_loop(lambda h: h[0, 0] < 3, lambda h: h + 1, x), None, *line
        )
    with pytest.raises(ValueError, match=r"a and b have shapes \(1,\) and \(2,\); want finite"):
        regions.count_on_line(lambda _, x: x, None, np.zeros(1), np.ones(2))
    with pytest.raises(ValueError, match=r"a, b and c have shapes \(1,\), \(1,\) and \(2,\); want"):
        regions.count_on_plane(lambda _, x: x, None, *line, np.ones(2))
    with pytest.raises(ValueError, match="f pools over dilated windows; want windows without gaps"):
        regions.count_on_line(
            lambda _, x: lax.reduce_window(
                x, -jnp.inf, lax.max, (1, 2), (1, 1), "SAME", window_dilation=(1, 2)
            ),
            None,
            np.zeros(4),
            np.ones(4),
        )
    with pytest.raises(ValueError, match="f has more than max_pieces = 2 pieces; want"):
        regions.pieces_on_line(
            lambda _, x: jnp.abs(jnp.abs(x - 0.5) - 0.25), None, *line, max_pieces=2
        )
