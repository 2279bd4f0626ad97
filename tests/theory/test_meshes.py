"""Networks on meshes are the piecewise linear functions they should be, and certified on boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import approximation as measured
from dltheory.theory import constructions, meshes
from tests.tier import cases


def evaluated(net, x):
    return np.asarray(net.apply(net.params, jnp.asarray(x)))[:, 0]


def by_simplices(heights, x):
    """The definition: sort the fractions of the coordinates, walk through the corners."""
    shape = np.array(heights.shape) - 1
    cell = np.minimum(np.floor(x * shape), shape - 1).astype(int)
    part, at = x * shape - cell, cell.copy()
    order = np.argsort(-part)
    sizes = [1.0, *part[order], 0.0]
    total = (sizes[0] - sizes[1]) * heights[tuple(at)]
    for k, axis in enumerate(order):
        at[axis] += 1
        total += (sizes[k + 1] - sizes[k + 2]) * heights[tuple(at)]
    return total


@pytest.mark.parametrize("cells", [(4, 3), (5,), (3, 2, 4), (1, 1)][: cases(20)])
def test_it_interpolates_on_kuhns_simplices(cells):
    rng = np.random.default_rng(0)
    heights = rng.normal(size=[n + 1 for n in cells])
    net = meshes.interpolation(heights, np.zeros(len(cells)), np.ones(len(cells)))
    x = rng.uniform(size=(200, len(cells)))
    wanted = [by_simplices(heights, point) for point in x]
    np.testing.assert_allclose(evaluated(net, x), wanted, atol=1e-12)
    hidden = net.params["params"].get("hidden", {"kernel": ()})
    assert len(hidden["kernel"]) == len(cells) - 1


def test_what_does_not_bend_takes_no_unit():
    knots = np.linspace(0, 1, 5)
    sum_ = knots[:, None] ** 2 + 3 * knots[None] ** 3
    net = meshes.interpolation(sum_, np.zeros(2), np.ones(2))
    assert net.params["params"]["first"]["kernel"].shape == (2, 8)
    x = np.random.default_rng(1).uniform(size=(50, 2))
    wanted = np.interp(x[:, 0], knots, knots**2) + np.interp(x[:, 1], knots, 3 * knots**3)
    np.testing.assert_allclose(evaluated(net, x), wanted, atol=1e-13)


# Target, corners, wanted error.
BOXES = {
    "runge": (lambda x: 1 / (1 + 4 * x[0] ** 2 + 4 * x[1] ** 2), [-1.0, 0.0], [1.0, 1.0]),
    "wave": (lambda x: jnp.sin(jnp.pi * x[0]) * jnp.cos(jnp.pi * x[1]), [0.0, 0.0], [1.0, 1.0]),
    "root": (lambda x: jnp.sqrt(0.05 + x[0] + x[1] ** 2), [0.0, -1.0], [1.0, 1.0]),
}


@pytest.mark.parametrize("name", list(BOXES)[: cases(10)])
def test_a_box_is_certified(name):
    f, low, high = BOXES[name]
    net = constructions.approximate(f, 1e-2, (low, high))
    assert 0 < net.bound <= 1e-2
    rng = np.random.default_rng(0)
    x = rng.uniform(low, high, (cases(1_000_000), 2))
    dense = np.abs(evaluated(net, x) - np.asarray(jax.vmap(f)(x))).max()
    assert dense <= net.bound
    assert dense > 0.7 * net.bound
    lower, upper = measured.sup_error(f, net, (low, high), rtol=1e-4)
    assert dense <= upper <= lower * (1 + 1e-4)
    assert lower <= net.bound <= upper * (1 + 2e-3)


def test_half_of_what_interpolation_needs():
    """Of a convex target: half the error on one mesh, half the nodes for one error."""
    f = lambda x: x[0] ** 2 + x[1] ** 2 + 0.5 * x[0] * x[1]
    net = constructions.approximate(f, 1e-2, (np.zeros(2), np.ones(2)))
    n = round(np.sqrt(net.params["params"]["first"]["kernel"].shape[1]))
    # The diagonal of a cell of side h misses by h^2 (1 + 1 + 1/2) / 4, its middle by 10 / 9 of it
    # at most; balanced, by half.
    assert net.bound < 0.55 * 2.5 / 4 / (n - 1) ** 2 * 10 / 9


def test_a_known_derivative_serves_in_the_plane():
    f = lambda x: jax.scipy.special.gammaln(x[0] + x[1])
    box = np.array([1.0, 1.0]), np.array([1.5, 1.5])
    with pytest.raises(ValueError, match=r"f cannot be bounded by itself: .* Give lipschitz= or"):
        constructions.approximate(f, 1e-2, box)
    x = np.random.default_rng(0).uniform(*box, (2000, 2))
    exact = np.asarray(jax.vmap(f)(x))
    for known in ({"curvature": 2 * 0.645}, {"lipschitz": np.sqrt(2) * 0.93})[: cases(10)]:
        net = constructions.approximate(f, 1e-2, box, **known)
        assert np.abs(evaluated(net, x) - exact).max() <= net.bound <= 1e-2


def test_bad_boxes():
    flat = lambda x: x[0]
    with pytest.raises(ValueError, match="want corners of a box, lower < upper"):
        constructions.approximate(flat, 0.1, (np.ones(2), np.zeros(2)))
    with pytest.raises(ValueError, match="the box has 4 dimensions; a mesh serves in up to three"):
        constructions.approximate(flat, 0.1, (np.zeros(4), np.ones(4)))
    with pytest.raises(ValueError, match="f is no number at"):
        constructions.approximate(lambda x: jnp.log(x[0]), 0.1, (-np.ones(2), np.ones(2)))
    with pytest.raises(ValueError, match="more than 32768 nodes, or f is unbounded or jumps"):
        constructions.approximate(
            lambda x: 3 * jnp.sum(x**2), 1e-9, (np.zeros(2), np.ones(2)), curvature=6.0
        )
    with pytest.raises(TypeError, match=r"f must map one vector of shape \(2,\) to a scalar"):
        constructions.approximate(lambda x: x, 0.1, (np.zeros(2), np.ones(2)))
    with pytest.raises(ValueError, match=r"heights have shape \(1, 3\)"):
        meshes.interpolation(np.zeros((1, 3)), np.zeros(2), np.ones(2))
