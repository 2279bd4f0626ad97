"""Clipping at every magnitude of float32: bounds, directions, reports, and what is not finite."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal
from hypothesis import given, settings
from hypothesis import strategies as st

from dltheory.networks import transforms
from tests.tier import cases

EPS = float(np.finfo(np.float32).eps)
EXPONENT = st.floats(-37.5, 38.0)
THRESHOLD = st.floats(-35.0, 37.5)


def _tree(values, dtype=jnp.float32):
    """A tree of three leaves from eight numbers."""
    a = jnp.asarray(values, dtype)
    return {"w": a[:4].reshape(2, 2), "b": [a[4], a[5:]]}


def _flat(tree):
    return np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)]).astype(np.float64)


def _step(make):
    """One update from the initial state, compiled, with the threshold as an argument."""

    def step(limit, updates, params=None):
        clip = make(limit)
        return clip.update(updates, clip.init(updates if params is None else params), params)

    return jax.jit(step)


def _numbers(exponents, signs):
    return np.float32([(-1) ** s * 10**e for s, e in zip(signs, exponents, strict=True)])


magnitudes = given(
    st.lists(EXPONENT, min_size=8, max_size=8),
    st.lists(st.booleans(), min_size=8, max_size=8),
    THRESHOLD,
)

VALUE = _step(transforms.clip_by_value)
GLOBAL = _step(transforms.clip_by_global_norm)
LAYER = _step(transforms.clip_by_layer_norm)
ADAPTIVE = _step(lambda ratio: transforms.adaptive_clip(ratio, floor=1e-30))


def _assert_scaled(before, after, limit):
    """`after` is `before` scaled to a norm of at most `limit`, in exact direction."""
    norm = np.linalg.norm(before)
    scale = min(1.0, limit / norm) if norm else 1.0
    # Subnormal results are flushed to zero.
    np.testing.assert_allclose(after, scale * before, rtol=6 * EPS, atol=1.3e-38)
    assert np.linalg.norm(after) <= limit * (1 + 6 * EPS) + 4e-38
    if norm < limit * (1 - 4 * EPS):
        np.testing.assert_array_equal(after, before)
    return scale


@settings(max_examples=cases(500))
@magnitudes
def test_global_norm_over_the_whole_range(exponents, signs, log_limit):
    g, limit = _tree(_numbers(exponents, signs)), np.float32(10**log_limit)
    clipped, state = GLOBAL(limit, g)
    scale = _assert_scaled(_flat(g), _flat(clipped), float(limit))
    np.testing.assert_allclose(state.log_scale, math.log(scale), rtol=4 * EPS, atol=6 * EPS)
    np.testing.assert_allclose(state.scale, scale, rtol=8 * EPS, atol=2e-38)
    if abs(scale - 1) > 8 * EPS or scale == 1:
        assert float(state.clipped) == (scale < 1)
    assert state.steps == 1


@settings(max_examples=cases(300))
@magnitudes
def test_layer_norms_over_the_whole_range(exponents, signs, log_limit):
    g, limit = _tree(_numbers(exponents, signs)), np.float32(10**log_limit)
    clipped, state = LAYER(limit, g)
    assert set(state.scale) == {"w", "b/0", "b/1"}
    for name, before, after in (
        ("w", g["w"], clipped["w"]),
        ("b/0", g["b"][0], clipped["b"][0]),
        ("b/1", g["b"][1], clipped["b"][1]),
    ):
        scale = _assert_scaled(_flat(before), _flat(after), float(limit))
        np.testing.assert_allclose(
            state.log_scale[name], math.log(scale), rtol=4 * EPS, atol=6 * EPS
        )


@settings(max_examples=cases(300))
@magnitudes
def test_values_over_the_whole_range(exponents, signs, log_limit):
    g, limit = _tree(_numbers(exponents, signs)), np.float32(10**log_limit)
    clipped, state = VALUE(limit, g)
    before, after = _flat(g), _flat(clipped)
    np.testing.assert_array_equal(after, np.clip(before, -limit, limit).astype(np.float64))
    assert float(state.clipped) == np.mean(np.abs(before) > limit)
    scale = np.linalg.norm(after) / np.linalg.norm(before)
    np.testing.assert_allclose(state.log_scale, math.log(scale), rtol=4 * EPS, atol=8 * EPS)


@settings(max_examples=cases(300))
@magnitudes
def test_adaptive_clipping_is_by_unit(exponents, signs, log_ratio):
    numbers, ratio = _numbers(exponents, signs), np.float32(10 ** (log_ratio / 4))
    g, w = _tree(numbers), _tree(numbers[::-1])
    clipped, state = ADAPTIVE(ratio, g, w)
    beyond = []
    for unit in range(2):
        weights = max(np.linalg.norm(np.asarray(w["w"][:, unit], np.float64)), 1e-30)
        before = np.asarray(g["w"][:, unit], np.float64)
        limit = float(ratio) * weights
        if 1e-36 < limit < 1e38:
            scale = _assert_scaled(before, np.asarray(clipped["w"][:, unit], np.float64), limit)
            if not 1 - 8 * EPS < scale < 1:  # else rounding decides
                beyond.append(scale < 1)
    if len(beyond) == 2:
        assert float(state.clipped["w"]) == np.mean(beyond)


def test_norms_that_overflow_are_clipped_all_the_same():
    g = jnp.full(10_000, 3e38, jnp.float32)
    clipped, state = GLOBAL(np.float32(1.0), g)
    np.testing.assert_allclose(clipped, 0.01, rtol=1e-5)
    np.testing.assert_allclose(state.log_scale, -math.log(3e40), rtol=1e-6)


def test_where_a_sum_of_squares_fails():
    for size, limit in ((1e-22, 1e-23), (1e20, 1.0)):
        g = jnp.full(4, size, jnp.float32)
        naive = optax.clip_by_global_norm(limit).update(g, optax.EmptyState())[0]
        assert not np.allclose(naive / limit, 0.5)
        np.testing.assert_allclose(GLOBAL(np.float32(limit), g)[0] / limit, 0.5, rtol=1e-5)


@pytest.mark.parametrize("make", [transforms.clip_by_value, transforms.clip_by_global_norm])
def test_reports_add_up(make):
    clip = make(2.0)
    gradients = [jnp.array([k, -0.5 * k]) for k in (1.0, 3.0, 8.0, 0.0)]
    state, logs, clipped = clip.init(gradients[0]), [], []
    for g in gradients:
        after, state = clip.update(g, state)
        scale = float(jnp.linalg.norm(after) / jnp.linalg.norm(g)) if jnp.any(g) else 1.0
        np.testing.assert_allclose(state.scale, scale, rtol=1e-14)
        logs.append(math.log(scale))
        parts = after != g if make is transforms.clip_by_value else jnp.any(after != g)
        clipped.append(float(jnp.mean(parts)))
    assert state.steps == 4
    np.testing.assert_allclose(state.rate, np.mean(clipped), rtol=1e-14)
    np.testing.assert_allclose(state.mean_scale, np.exp(np.mean(logs)), rtol=1e-14)
    assert 0 < state.rate < 1


def test_one_layer_is_the_global_norm():
    g = _tree(np.arange(1.0, 9), jnp.float64)
    together = transforms.clip_by_layer_norm(1.0, layer=lambda _: "all")
    one, state = together.update(g, together.init(g))
    whole = transforms.clip_by_global_norm(1.0)
    other, wanted = whole.update(g, whole.init(g))
    assert_trees_all_close(one, other, rtol=1e-14)
    np.testing.assert_allclose(state.scale["all"], wanted.scale, rtol=1e-14)


def test_layers_of_a_stack_are_clipped_one_by_one():
    keys = jax.random.split(jax.random.key(0), 2)
    stack = {"kernel": jax.random.normal(keys[0], (3, 4, 5)), "bias": jnp.ones((3, 5))}
    stack = jax.tree.map(
        lambda a: a * jnp.array([0.01, 1, 100]).reshape(3, *[1] * (a.ndim - 1)), stack
    )
    hooks = {"layer": lambda _: "hidden", "stacked": lambda _: 1}
    clip = transforms.clip_by_layer_norm(1.0, **hooks)
    clipped, state = clip.update(stack, clip.init(stack))
    assert state.clipped["hidden"].shape == (3,)
    single = transforms.clip_by_global_norm(1.0)
    for i in range(3):
        layer = jax.tree.map(lambda a, i=i: a[i], stack)
        wanted, _ = single.update(layer, single.init(layer))
        assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], clipped), wanted, rtol=1e-14)
    np.testing.assert_array_equal(state.clipped["hidden"], [0, 1, 1])


def test_units_of_kernels_of_every_rank():
    # The unit of a kernel (*spatial, inputs, outputs) is an output, of rank three as of any other.
    for shape in ((6, 4), (3, 2, 4), (3, 3, 2, 4)):
        w, g = jnp.ones(shape), jnp.asarray(np.ones(shape) * [1.0, 0.5, 0.01, 0.0])
        clip = transforms.adaptive_clip(0.1)
        clipped, state = clip.update(g, clip.init(w), w)
        np.testing.assert_allclose(clipped, np.ones(shape) * [0.1, 0.1, 0.01, 0.0], rtol=1e-14)
        np.testing.assert_allclose(state.clipped[""], 0.5)
    # A stack of kernels has units of its own in each layer.
    w, g = jnp.ones((2, 3, 4)), jnp.ones((2, 3, 4)) * jnp.array([1.0, 0.01]).reshape(2, 1, 1)
    clip = transforms.adaptive_clip(0.1, units=lambda *_: (0, -1))
    clipped, _ = clip.update(g, clip.init(w), w)
    np.testing.assert_allclose(clipped[:, 0, 0], [0.1, 0.01], rtol=1e-14)


def test_weights_of_zero_count_as_the_floor():
    clip = transforms.adaptive_clip(0.5, floor=0.1)
    w, g = jnp.zeros(3), jnp.array([3.0, 0.0, 4.0])
    clipped, _ = clip.update(g, clip.init(w), w)
    np.testing.assert_allclose(clipped, [0.03, 0, 0.04], rtol=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden(bad):
    g = {"w": jnp.array([[1.0, bad], [1.0, 1.0]]), "b": jnp.ones(2)}
    clipped, state = GLOBAL(0.5, g)
    assert all(np.all(np.isnan(a)) for a in jax.tree.leaves(clipped))
    assert np.isnan(state.log_scale)
    clipped, state = LAYER(0.5, g)
    assert np.all(np.isnan(clipped["w"]))
    assert np.isnan(state.log_scale["w"])
    np.testing.assert_allclose(clipped["b"], 0.5 / math.sqrt(2), rtol=1e-14)
    clipped, _ = ADAPTIVE(0.5, g, jax.tree.map(jnp.ones_like, g))
    np.testing.assert_array_equal(np.isnan(clipped["w"]), [[False, True], [False, True]])
    clipped, state = VALUE(0.5, g)
    np.testing.assert_array_equal(np.isnan(clipped["w"]), [[False, True], [False, False]])
    assert np.isnan(state.log_scale)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_dtypes_are_kept_and_the_state_is_wide(dtype):
    g = _tree(np.full(8, 200.0), dtype)
    for step, args in ((GLOBAL, ()), (LAYER, ()), (VALUE, ()), (ADAPTIVE, (g,))):
        clipped, state = step(np.float32(0.5), g, *args)
        assert {a.dtype for a in jax.tree.leaves(clipped)} == {jnp.dtype(dtype)}
        assert {a.dtype.itemsize for a in jax.tree.leaves(state)} <= {4, 8}


def test_zero_is_not_clipped_and_infinite_thresholds_only_report():
    zero = _tree(np.zeros(8))
    clipped, state = GLOBAL(np.float32(1e-30), zero)
    assert_trees_all_equal(clipped, zero)
    assert state.clipped == state.log_scale == 0
    g = _tree(np.full(8, 1e38))
    for make in (transforms.clip_by_global_norm, transforms.clip_by_value):
        clip = make(math.inf)
        clipped, state = clip.update(g, clip.init(g))
        assert_trees_all_equal(clipped, g)
        assert state.clipped == state.log_scale == 0


@pytest.mark.promotes
def test_it_is_an_optax_transformation():
    # In a chain, under scan, with a schedule of thresholds, and read back by name.
    clip = optax.inject_hyperparams(transforms.clip_by_global_norm)(
        max_norm=lambda step: 1.0 / (1 + step)
    )
    optimizer = optax.chain(clip, optax.sgd(1.0))
    w = jnp.array([3.0, 4.0])

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(w, state, params)
        return (optax.apply_updates(params, updates), state), updates

    (_, state), updates = jax.lax.scan(step, (w, optimizer.init(w)), None, length=3)
    lengths = np.linalg.norm(updates, axis=1)
    np.testing.assert_allclose(lengths, [1, 1 / 2, 1 / 3], rtol=1e-6)
    assert optax.tree.get(state, "clipped") == 3
    np.testing.assert_allclose(optax.tree.get(state, "scale"), 1 / 15, rtol=1e-6)


def test_thresholds_may_be_traced_and_gradients_pass():
    g = jnp.array([3.0, 4.0])
    length = lambda limit: jnp.linalg.norm(GLOBAL(limit, g)[0])
    np.testing.assert_allclose(
        jax.vmap(jax.value_and_grad(length))(jnp.array([2.0, 9.0])), [[2, 5], [1, 0]], atol=1e-14
    )
    assert np.all(np.isnan(GLOBAL(-1.0, g)[0]))
    assert np.all(np.isnan(VALUE(-1.0, g)[0]))
    # A derivative through the clipping of a gradient of zero is the identity.
    jacobian = jax.jacobian(lambda g: GLOBAL(1.0, g)[0])(jnp.zeros(2))
    np.testing.assert_array_equal(jacobian, np.eye(2))


def test_illegal_arguments_are_named():
    for make, name in (
        (transforms.clip_by_value, "max_value"),
        (transforms.clip_by_global_norm, "max_norm"),
        (transforms.clip_by_layer_norm, "max_norm"),
        (transforms.adaptive_clip, "max_ratio"),
    ):
        for bad in (0.0, -1.0, math.nan):
            with pytest.raises(ValueError, match=rf"{name} is {bad}; want {name} > 0"):
                make(bad)
        with pytest.raises(ValueError, match=rf"{name} has shape \(2,\); want a scalar"):
            make(jnp.ones(2))
    with pytest.raises(ValueError, match=r"floor is 0; want floor > 0"):
        transforms.adaptive_clip(1.0, floor=0)
    clip = transforms.adaptive_clip(1.0)
    with pytest.raises(ValueError, match=r"params is None, .* update\(updates, state, params\)"):
        clip.update(jnp.ones(2), clip.init(jnp.ones(2)))
    clip = transforms.clip_by_value(1.0)
    with pytest.raises(TypeError, match=r"updates\['a'\] holds complex128; .* wants real"):
        clip.init({"a": jnp.ones(2, jnp.complex128)})
    clip = transforms.clip_by_layer_norm(1.0, layer=lambda _: "x", stacked=lambda _: 1)
    with pytest.raises(ValueError, match=r"leaves of layer 'x' are stacked as .* same leading"):
        clip.init({"a": jnp.ones((2, 3)), "b": jnp.ones(3)})
    with pytest.raises(TypeError, match=r"holds int32; want floating-point"):
        GLOBAL(1.0, {"n": jnp.ones(2, jnp.int32)})
