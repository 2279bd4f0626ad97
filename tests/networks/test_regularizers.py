"""Penalties, noise and projections against their definitions; a plain loop against `lax.scan`."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optax import projections

from dltheory.networks import proximal, regularizers
from dltheory.theory import regression, regularization
from tests.tier import cases

RNG = np.random.default_rng(0)
KEY = jax.random.key(0)
PARAMS = {"a": {"kernel": jnp.array([[1.0, -2.0], [0.0, 3.0]]), "bias": jnp.array([10.0, 20.0])}}
KERNELS = lambda path: path.endswith("kernel")


# --- penalties -------------------------------------------------------------------------------


def test_penalties_and_their_gradients():
    of = lambda p: (
        regularizers.l1(p, where=KERNELS),
        regularizers.l2(p, where=KERNELS),
        regularizers.elastic_net(p, 0.3, 0.7, where=KERNELS),
        regularizers.l1(p),
    )
    values, slopes = jax.jit(lambda p: (of(p), jax.jacrev(of)(p)))(PARAMS)
    np.testing.assert_allclose(values, [6, 7, 0.3 * 6 + 0.7 * 7, 36], rtol=1e-15)
    kernel = np.asarray(PARAMS["a"]["kernel"])
    np.testing.assert_array_equal(slopes[0]["a"]["kernel"], np.sign(kernel))
    np.testing.assert_array_equal(slopes[1]["a"]["kernel"], kernel)
    assert all(not np.any(slope["a"]["bias"]) for slope in slopes[:3])
    assert regularizers.l2({}) == 0


# --- noise and targets -----------------------------------------------------------------------


def test_dropout_keeps_the_mean():
    keep, n = 0.3, 40000
    x = jnp.full(n, 2.0)
    dropped = jax.jit(regularizers.dropout)(KEY, x, keep)
    assert set(np.asarray(dropped).tolist()) == {0.0, 2.0 / keep}
    assert abs(jnp.mean(dropped == 0) - 0.7) < 4 * math.sqrt(0.21 / n)
    np.testing.assert_array_equal(jax.jit(regularizers.dropout)(KEY, x, 1.0), x)
    assert jnp.all(jnp.isnan(jax.jit(regularizers.dropout)(KEY, x, 0.0)))
    assert jnp.all(jnp.isnan(jax.jit(regularizers.dropout)(KEY, x * jnp.nan, keep)))


def test_mixup_mixes_inputs_and_targets_alike():
    x = RNG.normal(size=(50, 3))
    x, targets = jnp.asarray(x), jnp.asarray(np.concatenate([x, x**0], axis=1))
    mixed, y = jax.jit(lambda k: regularizers.mixup(k, x, targets, 0.4))(KEY)
    np.testing.assert_allclose(y[:, :3], mixed, rtol=1e-14)
    np.testing.assert_allclose(y[:, 3:], 1, rtol=1e-15)
    np.testing.assert_allclose(np.linalg.matrix_rank(mixed - x), 3)
    for same, given_ in zip(regularizers.mixup(KEY, x, targets, 0.0), (x, targets), strict=True):
        np.testing.assert_array_equal(same, given_)
    with pytest.raises(TypeError, match=r"y holds int64; want probabilities: smooth_labels\(y,"):
        regularizers.mixup(KEY, x, jnp.arange(50), 0.4)
    with pytest.raises(ValueError, match="x holds 50 examples but y 2; want one target for each"):
        regularizers.mixup(KEY, x, targets[:2], 0.4)
    with pytest.raises(ValueError, match=r"alpha must be zero or more; got -1.0"):
        regularizers.mixup(KEY, x, targets, -1.0)


def test_smooth_labels():
    smooth = jax.jit(lambda: regularizers.smooth_labels(jnp.array([2, 0]), 3, 0.3))()
    np.testing.assert_allclose(smooth, [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]], rtol=1e-14)
    with pytest.raises(ValueError, match="y holds labels from 0 to 3; want 0 to 2"):
        regularizers.smooth_labels(jnp.array([0, 3]), 3, 0.1)
    with pytest.raises(TypeError, match="y holds float64; want labels, integers: cast them"):
        regularizers.smooth_labels(jnp.array([0.0]), 3, 0.1)
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\]; got 1.5"):
        regularizers.smooth_labels(jnp.array([0]), 3, 1.5)
    traced = jax.jit(lambda y: regularizers.smooth_labels(y, 3, 0.1))(jnp.array([0, 3]))
    np.testing.assert_array_equal(jnp.isnan(traced[:, 0]), [False, True])


# --- when to stop ----------------------------------------------------------------------------


def plain(losses, patience, min_delta):
    best = 0
    for step in range(1, len(losses)):
        if losses[step] < losses[best] - min_delta or (
            math.isnan(losses[best]) and not math.isnan(losses[step])
        ):
            best = step
        if step - best >= patience:
            return step, best, True
    return len(losses) - 1, best, False


STOP = {
    patience: jax.jit(
        lambda losses, delta, p=patience: regularizers.early_stopping(losses, p, min_delta=delta)
    )
    for patience in (1, 4)
}


@settings(max_examples=cases(300))
@given(
    st.lists(st.integers(0, 6) | st.just(math.nan), min_size=12, max_size=12),
    st.sampled_from([1, 4]),
    st.sampled_from([0.0, 1.0]),
)
def test_early_stopping_is_a_plain_loop(losses, patience, min_delta):
    stop = STOP[patience](jnp.array(losses, float), min_delta)
    step, best, stopped = plain(losses, patience, min_delta)
    assert (stop.step, stop.best, stop.stopped) == (step, best, stopped)
    np.testing.assert_array_equal(stop.loss, losses[best])


def test_early_stopping_refuses():
    with pytest.raises(ValueError, match=r"losses has shape \(0,\); want \(steps,\), at least one"):
        regularizers.early_stopping(jnp.zeros(0), 1)
    with pytest.raises(ValueError, match="patience is 0; want a positive integer"):
        regularizers.early_stopping(jnp.zeros(3), 0)
    with pytest.raises(ValueError, match=r"min_delta must be zero or more; got -1.0"):
        regularizers.early_stopping(jnp.zeros(3), 1, min_delta=-1.0)


# --- proximal maps and projections -----------------------------------------------------------


def test_the_proximal_step_is_a_soft_threshold():
    transform = proximal.proximal_l1(
        2.0, lambda step: jnp.where(step == 0, 0.1, 0.5), where=KERNELS
    )
    state, update = transform.init(PARAMS), jax.jit(transform.update)
    updates = jax.tree.map(lambda w: 0.05 * np.asarray(w) - 0.1, PARAMS)
    for rate in (0.1, 0.5):
        moved, state = update(updates, state, PARAMS)
        add = lambda u: jax.tree.map(lambda a, b: np.asarray(a) + np.asarray(b), PARAMS, u)["a"]
        new, plain = add(moved), add(updates)
        want = regularization.soft_threshold(plain["kernel"], 2.0 * rate)
        np.testing.assert_allclose(new["kernel"], want, rtol=1e-15, atol=1e-15)
        np.testing.assert_array_equal(new["kernel"] == 0, want == 0)
        np.testing.assert_array_equal(new["bias"], plain["bias"])


def test_proximal_descent_finds_the_lasso():
    x = RNG.normal(size=(20, 5))
    y = x @ np.array([2.0, 0.0, -1.0, 0.0, 0.1])
    steps = optax.chain(optax.sgd(0.2), proximal.proximal_l1(0.3, 0.2))

    def step(carry, _):
        w, state = carry
        updates, state = steps.update(x.T @ (x @ w - y) / 20, state, w)
        return (optax.apply_updates(w, updates), state), None

    @jax.jit
    def descend(w):
        (w, _), _ = jax.lax.scan(step, (w, steps.init(w)), length=3000)
        return w, regression.lasso_violation(x, y, w, 0.3), regression.lasso(x, y, 0.3)

    w, violation, want = descend(np.zeros(5))
    assert violation < 1e-8
    np.testing.assert_array_equal(w == 0, want == 0)
    np.testing.assert_allclose(w, want, atol=1e-8)


def test_the_spectral_projection_is_the_nearest_matrix():
    w = RNG.normal(size=(2, 4, 3)) * np.array([1.0, 0.01])[:, None, None]  # those of a scan
    transform = proximal.project_spectral(1.0)
    params = {"w": w, "b": w[0, 0]}
    moved, _ = jax.jit(transform.update)(params | {"w": 0 * w}, transform.init(w), params)
    new = np.asarray(w + moved["w"])
    s = np.linalg.svd(w[0], compute_uv=False)
    np.testing.assert_allclose(
        np.linalg.svd(new[0], compute_uv=False), np.minimum(s, 1), rtol=1e-12
    )
    np.testing.assert_array_equal(new[1], w[1])
    np.testing.assert_array_equal(moved["b"], w[0, 0])
    for _ in range(30):  # the obtuse angle of a projection with every point of the convex set
        other = RNG.normal(size=(4, 3))
        other /= max(1, np.linalg.norm(other, 2))
        assert np.sum((np.asarray(w[0]) - new[0]) * (other - new[0])) <= 1e-12
    with pytest.raises(ValueError, match="'conv' has 4 axes; project_spectral wants 2, or one"):
        transform.update(
            {"conv": jnp.ones((3, 3, 1, 1))}, transform.init(w), {"conv": jnp.ones((3, 3, 1, 1))}
        )


def test_max_norm_is_the_projection_on_balls():
    w = RNG.normal(size=(4, 3)) * np.array([[3.0, 1.0, 0.1]])
    ball = lambda column: projections.projection_l2_ball(column, 0.8)
    want = jax.jit(jax.vmap(ball, 1, 1))(w)
    project = jax.jit(regularizers.max_norm)
    np.testing.assert_allclose(project(w, 0.8), want, rtol=1e-14)
    params = {"kernel": w, "bias": w[0]}
    transform = proximal.project_max_norm(0.8)
    zeros = jax.tree.map(np.zeros_like, params)
    moved, _ = jax.jit(transform.update)(zeros, transform.init(params), params)
    np.testing.assert_allclose(w + moved["kernel"], want, rtol=1e-14)
    np.testing.assert_array_equal(moved["bias"], 0)
    np.testing.assert_array_equal(project(w, 0.0), 0)
    w[0] = np.nan
    assert np.all(np.isnan(project(w, 0.8)))


def test_bad_input():
    for keep in (0.0, 1.5, -0.1):
        with pytest.raises(ValueError, match=rf"keep must be in \(0, 1\]; got {keep}"):
            regularizers.dropout(KEY, jnp.ones(3), keep)
    with pytest.raises(ValueError, match=r"keep has shape \(2,\); want a scalar"):
        regularizers.dropout(KEY, jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"l1_weight must be zero or more; got -1.0"):
        regularizers.elastic_net(PARAMS, -1.0, 1.0)
    with pytest.raises(ValueError, match=r"limit must be zero or more; got -1.0"):
        proximal.project_max_norm(-1.0)
    with pytest.raises(ValueError, match=r"max_norm must be zero or more; got -1.0"):
        proximal.project_spectral(-1.0)
    with pytest.raises(ValueError, match=r"strength must be zero or more; got -1.0"):
        proximal.proximal_l1(-1.0, 0.1)
    transform = proximal.proximal_l1(1.0, 0.1)
    with pytest.raises(ValueError, match=r"params is None, but proximal_l1 acts on the weights"):
        transform.update(PARAMS, transform.init(PARAMS))
