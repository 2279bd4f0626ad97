"""Networks drawn from a Fourier measure have exactly the error that theory states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from dltheory.measure import approximation
from dltheory.numerics import scaling
from dltheory.theory import barron
from tests.tier import cases

WIDTHS = (4, 16, 64, 256)
VAR = jnp.array([0.05, 0.4, jnp.inf])
WAVES = (
    jnp.array([[3.0, 0.0, 1.0], [-2.0, 5.0, 0.5], [3.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    jnp.array([1.0, -0.5, 0.25, 0.3]),
    jnp.array([0.3, 1.0, -2.0, 0.7]),
)
TARGETS = {"bump": barron.gaussian_bump(3, var=VAR), "waves": barron.cosines(*WAVES)}
each = pytest.mark.parametrize("name", TARGETS)


def nodes(count):
    """Gauss's rule on the cube of three dimensions."""
    x, w = np.polynomial.legendre.leggauss(count)
    grid = np.stack(np.meshgrid(x, x, x), -1).reshape(-1, 3) / 2
    weights = np.prod(np.stack(np.meshgrid(w, w, w), -1).reshape(-1, 3), -1) / 8
    return jnp.asarray(grid), jnp.asarray(weights)


@each
def test_the_target_is_the_mean_of_its_units(name):
    target, x = TARGETS[name], nodes(2)[0]
    omega, phi = target.draw(jax.random.key(0), 20_000)
    units = target.mass * np.cos(np.asarray(omega @ x.T) + np.asarray(phi)[:, None])
    score = (units.mean(0) - jax.vmap(target.f)(x)) / (units.std(0) / np.sqrt(len(units)))
    assert np.abs(score).max() < 4.5


@each
def test_the_spread_is_what_quadrature_gives(name):
    target = TARGETS[name]
    x, weights = nodes(16)
    square = float(weights @ jax.vmap(target.f)(x) ** 2)
    if name == "waves":
        omega, a, phi = WAVES
        units = weights @ jnp.cos(x @ omega.T + phi[None]) ** 2
        mean = float(jnp.sum(jnp.abs(a) * units) * jnp.sum(jnp.abs(a)))
    else:
        # One axis after the other: of cos^2 the mean over the frequencies is (1 + f(2x)) / 2.
        mean = float(weights @ (1 + jax.vmap(target.f)(2 * x))) / 2
        narrow = integrate.quad(lambda t: np.exp(-(t**2) / 0.05), -0.5, 0.5)[0]
        assert square == pytest.approx(
            narrow * integrate.quad(lambda t: np.exp(-(t**2) / 0.4), -0.5, 0.5)[0], rel=1e-8
        )
    np.testing.assert_allclose(target.spread, mean - square, rtol=1e-8)


def squared_errors(target, d, points=512):
    """Of one network at each width, quasi-Monte Carlo over the cube, with its own shifts."""
    root = np.linspace(1.1, 2, 100_001)
    root = root[np.argmin(np.abs(root ** (d + 1) - root - 1))]
    turns = jnp.asarray(np.arange(1, points + 1)[:, None] * root ** -np.arange(1.0, d + 1))

    def one(key, n):
        key_net, key_x = jax.random.split(key)
        net = barron.sample(key_net, target, n)
        x = jnp.mod(turns + jax.random.uniform(key_x, (1, d)), 1) - 0.5
        return jnp.mean((net.apply(net.params, x)[:, 0] - jax.vmap(target.f)(x)) ** 2)

    every = lambda key: jnp.stack(
        [one(jax.random.fold_in(key, n), n) for n in WIDTHS],
    )
    return jax.jit(lambda key: jax.lax.map(every, jax.random.split(key, 48)))


@pytest.mark.parametrize("d", [64, 2, 4, 8, 16, 32][: cases(10)])
def test_the_error_is_the_constant_over_the_root_of_n_in_any_dimension(d):
    """With fixed keys: eight of ten exponents or more within their own interval of 95 %."""
    seeds, inside = cases(10), 0
    target = barron.gaussian_bump(d, var=d / 12)
    theory = np.array([barron.sampling_error(target, n) ** 2 for n in WIDTHS])
    squares = squared_errors(target, d)
    for seed in range(seeds):
        found = np.asarray(squares(jax.random.key(seed)))
        mean, stderr = found.mean(0), found.std(0, ddof=1) / np.sqrt(len(found))
        assert np.abs((mean - theory) / stderr).max() < 5
        fit = scaling.power_law(WIDTHS, mean, stderr=stderr)
        inside += bool(abs(fit.exponent + 1) < stats.norm.ppf(0.975) * fit.exponent_stderr)
    assert inside >= 0.8 * seeds


def test_the_measured_error_of_one_network():
    target = barron.cosines(2 * jnp.pi * jnp.eye(2), jnp.array([1.0, 1.0]), jnp.zeros(2))
    # Drawn as often one as the other, or not: the error is known, and so is its chance.
    net = barron.sample(jax.random.key(2), target, 5)
    first = np.sum(np.asarray(net.params["params"]["first"]["kernel"])[0] > 0)
    box = -jnp.full(2, 0.5), jnp.full(2, 0.5)
    value, error = approximation.l2_error(target.f, net, box, key=jax.random.key(1))
    assert value == pytest.approx(abs(2 * first / 5 - 1), abs=5 * error + 1e-9)
    np.testing.assert_allclose(barron.sampling_error(target, 4), 0.5, rtol=1e-12)
    assert net.bound == 4
    assert net.params["params"]["last"]["kernel"].shape == (5, 1)


@pytest.mark.parametrize("n", [3, 11])
def test_no_features_are_nearer_to_a_basis_than_theory_allows(n):
    # Eleven functions of an orthonormal basis, features in random directions of a larger space.
    features = np.random.default_rng(n).normal(size=(20, n))
    inside = np.linalg.qr(features)[0][:11]
    rms = np.sqrt(np.mean(1 - np.sum(inside**2, 1)))
    assert rms >= barron.fixed_features_error(n, 11)
    own = np.sqrt(np.mean(np.arange(11) >= n))
    assert barron.fixed_features_error(n, 11) == pytest.approx(own)
    assert barron.fixed_features_error(12, 11) == 0


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"var has shape \(2,\); want \(\) or \(3,\)"):
        barron.gaussian_bump(3, var=jnp.ones(2))
    with pytest.raises(ValueError, match="var must be zero or more; got -1"):
        barron.gaussian_bump(3, var=-1)
    with pytest.raises(ValueError, match=r"shapes \(4, 3\), \(4,\) and \(1,\); want \(m, d\)"):
        barron.cosines(WAVES[0], WAVES[1], WAVES[2][:1])
    with pytest.raises(ValueError, match="n is 0; want a positive integer"):
        barron.sample(jax.random.key(0), TARGETS["bump"], 0)
    with pytest.raises(TypeError, match=r"functions is 1\.5, a float; want a positive integer"):
        barron.fixed_features_error(1, 1.5)
