"""Flatness: closed forms of quadratic losses, and what a rescaling of ReLU layers does to it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import flatness
from tests.tier import cases

RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(30, 4))), jnp.asarray(RNG.integers(0, 3, 30))
HALF = lambda y: jnp.mean(y**2) / 2


def network(params, x):
    h = jax.nn.relu(x @ params["first"] + params["bias"][None])
    return jax.nn.relu(h @ params["second"]) @ params["last"]


def entropy(outputs):
    own = jax.nn.one_hot(Y, 3, dtype=outputs.dtype)
    return -jnp.mean(jnp.sum(own * jax.nn.log_softmax(outputs), axis=1))


def test_of_a_quadratic_loss_the_noise_is_known_by_the_trace():
    """In the mean over directions; pairs of opposite ones leave no linear term."""
    w, samples = jnp.asarray(RNG.normal(size=4)), cases(4000)
    f = lambda w, x: x @ w
    loss = lambda y: HALF(y - 3)
    curvature = np.asarray(X.T @ X) / len(X)
    find = jax.jit(
        lambda f, w, x: flatness.tolerated_noise(
            jax.random.key(0), loss, f, w, x, rise=0.3, samples=samples
        ),
        static_argnums=0,
    )
    for g, at, h in (
        (f, w, curvature),
        (*flatness.relative(f, w), curvature * np.outer(w, w)),
    ):
        # z'Hz has the mean tr H and the variance 2 tr H^2.
        stderr = math.sqrt(2 * np.trace(h @ h) / samples) / np.trace(h)
        ratio = 0.6 / np.trace(h) / find(g, at, X) ** 2
        assert abs(ratio - 1) < 4 * stderr
    assert jnp.isnan(find(f, w, X.at[0, 0].set(jnp.nan)))


@jax.jit
def measured(params):
    start = jax.tree.map(jnp.zeros_like, params) | {"bias": params["bias"]}
    key = jax.random.key(1)
    return flatness.flatness_measures(key, entropy, network, params, X, start=start, samples=4)


def test_relative_measures_do_not_see_a_rescaling_and_the_others_do():
    widths = {"first": (4, 5), "bias": (5,), "second": (5, 6), "last": (6, 3)}
    params = {name: jnp.asarray(RNG.normal(size=size)) for name, size in widths.items()}
    unit, layer = jnp.asarray(10 ** RNG.uniform(-1, 1, 5)), 7.0
    rescaled = {
        "first": params["first"] * unit[None],
        "bias": params["bias"] * unit,
        "second": layer * params["second"] / unit[:, None],
        "last": params["last"] / layer,
    }
    before, after = measured(params), measured(rescaled)
    for name, value in before.items():
        if name.startswith("relative_"):
            np.testing.assert_allclose(after[name], value, rtol=1e-10, err_msg=name)
        else:
            assert abs(jnp.log(after[name] / value)) > 0.1, name
    squares = sum(jnp.sum(params[name] ** 2) for name in widths if name != "bias")
    np.testing.assert_allclose(before["pac_bayes"], squares / (2 * before["noise"] ** 2))
    count = sum(math.prod(size) for size in widths.values())
    want = count / (2 * before["relative_noise"] ** 2)
    np.testing.assert_allclose(before["relative_pac_bayes"], want)
    # The largest curvature against the Hessian written out.
    sizes = np.cumsum([params[name].size for name in widths])[:-1]

    def whole(v):
        parts = jnp.split(v, sizes)
        named = zip(widths, parts, strict=True)
        return entropy(network({n: p.reshape(widths[n]) for n, p in named}, X))

    flat = jnp.concatenate([params[name].ravel() for name in widths])
    values = np.linalg.eigvalsh(jax.jit(jax.hessian(whole))(flat))
    np.testing.assert_allclose(before["sharpness"], max(values, key=abs), rtol=1e-6)


def test_bad_input():
    find = lambda **options: flatness.tolerated_noise(
        jax.random.key(0), HALF, lambda w, x: x @ w, jnp.ones(4), X, **options
    )
    with pytest.raises(ValueError, match="samples is 0; want 1 or more"):
        find(samples=0)
    for rise in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"rise must be more than 0; got {rise}"):
            find(rise=rise)
    traced = jax.jit(lambda rise: find(rise=rise, samples=2))
    assert jnp.isnan(traced(-1.0))
    assert jnp.isfinite(traced(0.1))
