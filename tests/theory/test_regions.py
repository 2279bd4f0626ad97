"""Numbers of regions against enumeration, and the law of breakpoints against random networks."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.theory import regions


@pytest.mark.parametrize(("n", "d", "biased"), [(5, 2, True), (4, 3, True), (6, 2, False)])
def test_arrangements_are_enumerated(n, d, biased):
    """Every region of a random arrangement holds a point of a large sample."""
    rng = np.random.default_rng(1)
    normals, offsets = rng.normal(size=(n, d)), biased * rng.normal(size=n)
    scales = 10 ** rng.uniform(-2, 3, (400_000, 1))
    points = rng.normal(size=(400_000, d)) * scales
    signs = (points @ normals.T + offsets > 0) @ (1 << np.arange(n))
    bound = regions.zaslavsky(n, d) if biased else regions.cover(n, d)
    assert len(np.unique(signs)) == bound


def test_bounds_of_one_layer_are_that_of_the_arrangement():
    for n, d in itertools.product((1, 3, 7, 40), (1, 2, 5)):
        exact = regions.zaslavsky(n, d)
        assert regions.montufar_upper(d, (n,)) == regions.serra_upper(d, [n]) == exact
        assert regions.montufar_lower(d, (n,)) == exact


def test_bounds_are_ordered():
    for widths in itertools.product((1, 3, 8), repeat=3):
        for d in (1, 2, 4):
            bounds = [
                bound(d, widths)
                for bound in (regions.montufar_lower, regions.serra_upper, regions.montufar_upper)
            ]
            assert bounds == sorted(bounds)


def test_serra_sums_over_its_set():
    """The sum as it is printed, over tuples."""
    d, widths = 3, (4, 3, 5)
    total = 0
    for off in itertools.product(*(range(n + 1) for n in widths)):
        left = [d, *(n - j for n, j in zip(widths, off, strict=True))]
        if all(j <= min(left[: i + 1]) for i, j in enumerate(off)):
            total += math.prod(math.comb(n, j) for n, j in zip(widths, off, strict=True))
    assert regions.serra_upper(d, widths) == total


def test_counts_are_exact_at_any_size():
    assert regions.zaslavsky(200, 200) == 2**200
    assert regions.montufar_lower(1, (10,) * 40) == 10**39 * 11


def test_every_unit_has_one_zero_on_the_line():
    for layer in (1, 2, 7):
        one = regions.expected_breakpoints(layer, weight_var=1.3, bias_var=0.4)
        np.testing.assert_allclose(one, 1, rtol=1e-15)


def test_zeros_of_random_networks():
    """The second layer of 400 networks of width 60, within four standard errors."""
    draws = np.random.default_rng(0).normal(size=(400, 60, 4))
    x = np.linspace(-2, 2, 801)
    inner = math.sqrt(1.5) * draws[..., :1] * x + 0.5 * draws[..., 1:2]
    h = np.einsum("kn,knx->kx", math.sqrt(1.5 / 60) * draws[..., 2], np.maximum(inner, 0))
    h += 0.5 * draws[:, :1, 3]
    counts = np.sum(h[:, 1:] * h[:, :-1] < 0, axis=1)
    expected = regions.expected_breakpoints(2, (-2.0, 2.0), weight_var=1.5, bias_var=0.25)
    assert abs(counts.mean() - expected) < 4 * counts.std() / 20 + 1 / 60


def test_is_differentiable_and_takes_arrays():
    each = regions.expected_pieces((3, 2), (-1.0, 1.0), bias_var=jnp.array([0.5, 2.0]))
    assert each.shape == (2,)
    slope = jax.grad(lambda b: regions.expected_pieces((3, 2), (-1.0, 1.0), bias_var=b))(1.0)
    wanted = -sum(n * math.sqrt(2 / k) / (1 + 2 / k) for k, n in ((1, 3), (2, 2))) / math.pi
    np.testing.assert_allclose(slope, wanted, rtol=1e-12)


def test_bad_input():
    with pytest.raises(ValueError, match="widths is empty; want the units of each hidden layer"):
        regions.serra_upper(2, ())
    with pytest.raises(ValueError, match="widths is 0; want a positive integer"):
        regions.montufar_upper(2, (3, 0))
    with pytest.raises(TypeError, match=r"d is 2.0, a float; want a positive integer"):
        regions.zaslavsky(3, 2.0)
    with pytest.raises(ValueError, match=r"bias_var must be zero or more; got -1.0"):
        regions.expected_breakpoints(1, bias_var=-1.0)
