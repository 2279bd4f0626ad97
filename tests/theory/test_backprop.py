"""Costs, finite differences, checkpointing and solved dynamics against the facts."""

import math
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dltheory.theory import backprop, layer_jacobians, training_dynamics
from tests.facts import FACTS, assert_agrees

E = math.e
PARTIAL = FACTS["bp.fa.align"]["inputs"]
B = np.array(FACTS["bp.fa.scalar"]["inputs"]["b"])


def differences(order, value, bound):
    step = backprop.finite_difference_step(order, value / bound, jnp.float64)
    return step, backprop.finite_difference_error(order, value, bound, jnp.float64)


TIME = jax.jit(training_dynamics.linear_time, static_argnames="matrices")


def aligned(w0, target=2.0):
    solve = jax.jit(training_dynamics.feedback_alignment)
    found = solve(jnp.array(B), jnp.array(w0, float), target)
    return found, found.w1[0] / B[0]


# The pattern of an id, and what to call with its groups.
TABLE = {
    r"bp\.flops\.mlp\.([0-9-]+)\.B(\d+)": lambda widths, batch: backprop.mlp_flops(
        [int(n) for n in widths.split("-")], int(batch)
    ),
    r"bp\.fd\.forward\.exp": lambda: differences(1, E, E),
    r"bp\.fd\.central\.sin": lambda: differences(2, math.sin(1), math.cos(1)),
    r"bp\.revolve\.(\d+)\.(\d+)": lambda steps, s: backprop.revolve(int(steps), int(s))[:2],
    r"bp\.revolve\.beta\.(\d+)\.(\d+)": lambda s, t: backprop.longest_chain(int(s), int(t)),
    r"bp\.sqrtckpt\.(\d+)": lambda layers: backprop.segments(int(layers)),
    r"bp\.saxe\.2layer\.s([0-9.]+)": lambda s: backprop.linear_dynamics(
        float(s), {"3.0": 0.001, "1.0": 0.01}[s], jnp.array([0.5, 1, 1.5, 2, 5])
    ),
    r"bp\.saxe\.time\.s3\.0": lambda: TIME(3.0, 0.001, 0.95 * 3),
    r"bp\.saxe\.depth(\d)": lambda layers: TIME(2.0, 0.05, 1.9, matrices=int(layers) - 1),
    r"bp\.softmax\.jac": lambda: layer_jacobians.softmax_eigenvalues(
        jnp.array([1.0, 2.0, 0.5, -1.0])
    ),
    r"bp\.angle\.random\.(\d+)": lambda d: jnp.stack(training_dynamics.random_angle(int(d))),
    r"bp\.fa\.scalar": lambda: (aligned([0.0] * 3)[1], *(w[0] for w in aligned([0.0] * 3)[0][:2])),
    r"bp\.fa\.align": lambda: (aligned(PARTIAL["w0"])[1], *aligned(PARTIAL["w0"])[0][2:]),
    r"bp\.roundoff\.gamma": lambda: (
        backprop.rounding_bound(1024, jnp.float32),
        backprop.rounding_bound(64, jnp.bfloat16),
    ),
}
IDS = [i for i in FACTS if i.startswith("bp.")]
CALLS = {
    i: (call, match.groups())
    for i in IDS
    for pattern, call in TABLE.items()
    if (match := re.fullmatch(pattern, i))
}
UNCOVERED = {
    "bp.worked.grad": "tests/measure/test_backprop.py",
    "bp.ce.grad": "tests/measure/test_backprop.py",
    "bp.worked.hvp": "tests/measure/test_curvature.py",
    "bp.balanced": "below, with the dynamics",
    "bp.cheap_gradient": "constants of theorems for several models of cost: no function",
    "bp.hvp.mlp": "a count of products, without a function",
    "bp.fd.observed": "what a computer does, not a formula",
    "bp.complexstep": "tests/measure/test_gradient_check.py",
    "bp.tbptt": "an order of growth, without its constant",
}


@pytest.mark.parametrize("fact_id", CALLS)
def test_agrees_with_the_facts(fact_id):
    call, groups = CALLS[fact_id]
    assert_agrees(fact_id, call(*groups))


def test_every_fact_is_covered_or_has_a_reason():
    assert set(IDS) - set(CALLS) == set(UNCOVERED)


# --- cost ------------------------------------------------------------------------------------


def test_a_layer_of_every_kind_is_a_product_of_matrices():
    """A 1x1 convolution is a dense layer; attention without scores is four of them."""
    dense = backprop.mlp_flops([16, 32], 5 * 7 * 3)
    assert backprop.conv_flops((1, 1), (5, 7), (16, 32), 3).forward == dense.forward
    assert backprop.conv_flops((3, 3), (4, 4), (16, 32), 2, groups=4).forward * 4 == (
        backprop.conv_flops((3, 3), (4, 4), (16, 32), 2).forward
    )
    four = 4 * backprop.mlp_flops([8, 8], 6).forward
    assert backprop.attention_flops(6, 8, 1).forward == four + 2 * (2 * 6 * 6 * 8)
    assert backprop.attention_flops(6, 8, 1).backward == 2 * (four + 4 * 6 * 6 * 8)


# --- finite differences ----------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 4])
def test_the_step_is_the_minimum_of_the_two_errors(order):
    """Against a search over steps, of the bound written out with exact differences' weights."""
    value, bound, u = 2.0, 3.0, 2.0**-24
    truncation = {1: 1 / 2, 2: 1 / 6, 4: 4 / 120}[order]
    rounding = {1: 1 + 1, 2: (1 + 1) / 2, 4: (8 + 8 + 1 + 1) / 12}[order]
    h = np.geomspace(1e-5, 1, 200_001)
    error = truncation * bound * h**order + rounding * u * value / h
    step = backprop.finite_difference_step(order, value / bound, jnp.float32)
    np.testing.assert_allclose(step, h[error.argmin()], rtol=1e-4)
    least = backprop.finite_difference_error(order, value, bound, jnp.float32)
    np.testing.assert_allclose(least, error.min(), rtol=1e-7)


# --- checkpointing ---------------------------------------------------------------------------


@cache
def fewest(length, slots):
    """The least number of steps without taping, by dynamic programming over the first split."""
    if length == 1:
        return 0
    if slots == 1:
        return length * (length - 1) // 2
    return min(m + fewest(length - m, slots - 1) + fewest(m, slots) for m in range(1, length))


def carry_out(plan, length, slots):
    """Run a plan as it says; returns how many steps were run without taping."""
    state, stored, due, count = 0, {0}, length - 1, 0
    for kind, start, stop in plan.actions:
        if kind == "advance":
            assert start in stored
            assert stop > start
            state, count = stop, count + stop - start
        elif kind == "store":
            assert state == start
            stored.add(start)
            assert len(stored) <= slots
        elif kind == "reverse":
            assert start == due
            assert start in stored or state == start
            due -= 1
        else:
            stored.remove(start)
    assert due == -1
    return count


@given(st.integers(1, 45), st.integers(1, 12))
def test_plans_are_optimal_and_can_be_carried_out(length, slots):
    plan = backprop.revolve(length, slots)
    assert carry_out(plan, length, slots) == plan.forward_steps == fewest(length, slots)
    assert backprop.longest_chain(slots, plan.repetitions) >= length
    assert backprop.longest_chain(slots, plan.repetitions - 1) < length


def test_a_long_chain_with_a_checkpoint_for_each_step_runs_once():
    assert backprop.revolve(5000, 5000).forward_steps == 4999


@given(st.integers(1, 3000))
def test_segments_are_the_least_of_all(layers):
    every = {k: k + math.ceil(layers / k) for k in range(1, layers + 1)}
    found = backprop.segments(layers)
    assert found.peak == min(every.values()) == every[found.count]


# --- linear networks -------------------------------------------------------------------------


@pytest.mark.parametrize("matrices", [1, 2, 3, 5])
def test_a_linear_network_takes_the_time_that_its_flow_does(matrices):
    """Scalar weights by gradient flow from balanced ones, with Runge-Kutta."""
    s, u0, u = 1.7, 0.3, 1.5
    time = float(TIME(s, u0, u, matrices=matrices))
    weights, steps = np.full(matrices, u0 ** (1 / matrices)), 2000
    flow = lambda w: (s - w.prod()) * w.prod() / w
    h = time / steps
    for _ in range(steps):
        k1 = flow(weights)
        k2 = flow(weights + h / 2 * k1)
        k3 = flow(weights + h / 2 * k2)
        weights = weights + h / 6 * (k1 + 2 * k2 + 2 * k3 + flow(weights + h * k3))
    np.testing.assert_allclose(weights.prod(), u, rtol=1e-10)
    if matrices == 2:
        np.testing.assert_allclose(backprop.linear_dynamics(s, u0, time), u, rtol=1e-12)


def test_modes_learn_apart_and_the_balance_is_kept():
    """`bp.balanced`: gradient flow of two matrices, integrated from balanced weights."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(2))
    s, u0 = np.array([2.0, 1.0, 0.4]), np.array([0.01, 0.02, 0.05])
    data = left * s @ right.T
    w1, w2 = np.sqrt(u0)[:, None] * right.T, left * np.sqrt(u0)
    off = rng.normal(size=(3, 3)) * 0
    h, steps = 1e-3, 3000

    def flow(w1, w2):
        error = data - w2 @ w1
        return w2.T @ error, error @ w1.T

    for _ in range(steps):
        a1, a2 = flow(w1, w2)
        b1, b2 = flow(w1 + h / 2 * a1, w2 + h / 2 * a2)
        w1, w2 = w1 + h * b1, w2 + h * b2
    strengths = np.diag(left.T @ w2 @ w1 @ right)
    solved = backprop.linear_dynamics(jnp.array(s), jnp.array(u0), h * steps)
    np.testing.assert_allclose(strengths, solved, rtol=1e-4)
    np.testing.assert_allclose(w1 @ w1.T - w2.T @ w2, off, atol=1e-5)


def test_limits_of_the_linear_dynamics():
    assert backprop.linear_dynamics(0.0, 0.5, 3.0) == pytest.approx(0.5 / (1 + 2 * 3 * 0.5))
    assert backprop.linear_dynamics(2.0, 0.1, 1e4) == 2.0
    assert backprop.linear_dynamics(2.0, 0.0, 1.0) == 0.0
    assert jnp.isnan(TIME(1.0, 0.1, 1.0))


# --- quadratic losses ------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9])
def test_rates_are_spectral_radii_and_reach_one_at_the_largest_step(momentum):
    steps = np.linspace(0, 1.3, 14)
    rates = np.asarray(training_dynamics.convergence_rate(2.0, steps, momentum))
    for step, rate in zip(steps, rates, strict=True):
        matrix = np.array([[1 + momentum - 2 * step, -momentum], [1, 0]])
        radius = np.abs(np.linalg.eigvals(matrix)).max()
        np.testing.assert_allclose(rate, radius, rtol=1e-7)
    largest = training_dynamics.largest_step(2.0, momentum)
    below, above = training_dynamics.convergence_rate(
        2.0, largest * jnp.array([1 - 1e-6, 1 + 1e-6]), momentum
    )
    assert below < 1 < above


@pytest.mark.parametrize("heavy_ball", [True, False])
def test_no_neighbour_beats_the_best_descent(heavy_ball):
    curvatures = jnp.array([9.0, 1.0])
    step, momentum, rate = training_dynamics.best_descent(9.0, 1.0, heavy_ball=heavy_ball)
    worst = lambda a, b: training_dynamics.convergence_rate(curvatures, a, b).max()
    np.testing.assert_allclose(worst(step, momentum), rate, rtol=1e-6)
    for factor in (0.97, 1.03):
        assert worst(step * factor, momentum) > rate
        if heavy_ball:
            assert worst(step, momentum * factor) > rate


def test_feedback_alignment_comes_to_rest_on_target():
    starts = jnp.linspace(-9, 9, 37)[:, None] * jnp.array([[1.0, 0.5, -0.2]])
    rest = jax.vmap(lambda w: training_dynamics.feedback_alignment(jnp.array(B), w, -1.3))
    w1, w2, *_ = jax.jit(rest)(starts)
    np.testing.assert_allclose(jnp.sum(w1 * w2, axis=1), -1.3, rtol=1e-9)


# --- factors of the chain rule ---------------------------------------------------------------


def jacobian(function, h):
    """By complex steps, in NumPy: exact to rounding, and no other derivative is involved."""
    return np.stack([function(h + 1e-30j * unit).imag / 1e-30 for unit in np.eye(h.size)], axis=1)


def test_spectra_of_softmax_and_layer_norm():
    h = np.array([0.3, -1.0, 2.0, 0.7])
    for epsilon in (0.0, 0.3):

        def normalize(h, epsilon=epsilon):
            centred = h - h.mean()
            return centred / np.sqrt((centred**2).mean() + epsilon)

        dense = np.linalg.svd(jacobian(normalize, h), compute_uv=False)
        found = layer_jacobians.layer_norm_singular_values(h, epsilon)
        np.testing.assert_allclose(found, dense, rtol=1e-12, atol=1e-15)
    values = np.linalg.eigvalsh(jacobian(lambda z: np.exp(z) / np.exp(z).sum(), h))
    np.testing.assert_allclose(layer_jacobians.softmax_eigenvalues(h), values, atol=1e-15)
    assert layer_jacobians.softmax_eigenvalues(jnp.zeros(4)).max() == pytest.approx(0.25)


# --- edges -----------------------------------------------------------------------------------

BAD = {
    "a size is 0; want a positive integer": lambda: backprop.mlp_flops([3, 0], 1),
    "widths is [3]; want two widths or more, input and output": lambda: backprop.mlp_flops([3], 1),
    "kernel (3, 3) and output (8,) differ in length; want the spatial sizes alone": lambda: (
        backprop.conv_flops((3, 3), (8,), (1, 1), 1)
    ),
    "groups is 2; want a divisor of both channel counts (4, 3)": lambda: backprop.conv_flops(
        (3,), (8,), (4, 3), 1, groups=2
    ),
    "order is 3; want 1 (forward), 2 (central) or 4 (central, extrapolated)": lambda: (
        backprop.finite_difference_step(3, 1.0, jnp.float32)
    ),
    "magnitude must be zero or more; got -1.0": lambda: backprop.finite_difference_step(
        1, -1.0, jnp.float32
    ),
    "checkpoints is 0; want a positive integer": lambda: backprop.revolve(3, 0),
    "s must be zero or more; got -1.0": lambda: backprop.linear_dynamics(-1.0, 0.1, 1.0),
    "feedback has shape (2,) and w2 (3,); want two vectors of one length": lambda: (
        training_dynamics.feedback_alignment(jnp.ones(2), jnp.ones(3), 1.0)
    ),
    "h has shape (1,); want (..., d) with d of 2 or more": lambda: (
        layer_jacobians.layer_norm_singular_values(jnp.ones(1))
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_input_is_named(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        BAD[text]()


def test_counts_are_integers():
    with pytest.raises(TypeError, match=r"steps is 2\.0, a float; want a positive integer"):
        backprop.revolve(2.0, 1)


def test_illegal_values_are_nan_under_jit():
    assert jnp.isnan(jax.jit(backprop.linear_dynamics)(-1.0, 0.1, 1.0))


@pytest.mark.usefixtures("float32")
def test_follows_float32():
    assert backprop.linear_dynamics(3.0, 0.001, 1.5).dtype == jnp.float32
    assert layer_jacobians.layer_norm_singular_values(jnp.arange(3.0)).dtype == jnp.float32
    found = TIME(3.0, 0.001, 0.95 * 3)
    np.testing.assert_allclose(found, FACTS["bp.saxe.time.s3.0"]["value"], rtol=1e-5)
