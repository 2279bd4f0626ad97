"""Chains with few states: the same gradients, the memory of theory, the steps of the plan."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dltheory.measure import backprop, checkpointing
from dltheory.theory import backprop as theory
from tests.tier import FULL


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def step(h, own):
    return jnp.tanh(h @ own), h.sum()


def planned(length, slots):
    return partial(checkpointing.planned_scan, actions=theory.revolve(length, slots).actions)


def segmented(segments):
    return partial(checkpointing.segmented_scan, segments=segments)


def test_the_gradient_is_that_of_a_scan():
    """Also where the segments do not divide the stack, and with one state or all of them."""
    w, x = normal(10, 3, 3), normal(2, 3, seed=1)
    loss = lambda carry, ys: jnp.sum(carry**2) + jnp.sum(jnp.sin(ys))
    scans = [lax.scan, *map(segmented, (4, 5)), *(planned(10, s) for s in (1, 3, 10))]
    values = [lambda w, x, scan=scan: loss(*scan(step, x, w)) for scan in scans]
    found = jax.jit(lambda *at: [jax.value_and_grad(v, (0, 1))(*at) for v in values])(w, x)
    for one in found[1:]:
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(found[0]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("length", "slots"), [(10, 3), (50, 5)] if FULL else [(10, 3)])
def test_no_step_is_run_more_often_than_the_plan_says(length, slots):
    """The facts' least number, the one to the output, and the tape of each."""
    count = []

    def counted(h, own):
        jax.debug.callback(lambda: count.append(1))
        return jnp.sin(h * own), None

    w = normal(length)
    loss = lambda w: planned(length, slots)(counted, jnp.ones(()), w)[0]
    jax.block_until_ready(jax.jit(jax.grad(loss))(w))
    jax.effects_barrier()
    # The output's pass runs every step; the plan's own first sweep all but the last.
    assert len(count) == theory.revolve(length, slots).forward_steps + 1 + length


@pytest.mark.usefixtures("float32")
def test_memory_is_that_of_the_plan():
    """256 layers of width 64 at a batch of 1024, in layer activations, stacked weights apart."""
    layers, activation = 256, 4 * 1024 * 64
    w = jax.ShapeDtypeStruct((layers, 64, 64), jnp.float32)
    x = jax.ShapeDtypeStruct((1024, 64), jnp.float32)
    kept = {}
    scans = {"scan": lax.scan, "segments": checkpointing.segmented_scan}
    for name, scan in (scans | {"revolve": planned(layers, 8)}).items():
        loss = lambda w, x, scan=scan: jnp.sum(scan(step, x, w)[0])
        kept[name] = backprop.cost(jax.grad(loss), w, x).temporary_bytes / activation
    weights = layers * 64 * 64 * 4 / activation
    assert kept["segments"] - weights <= 6 * math.sqrt(layers) < 200 < kept["scan"] - weights
    # Its states, and five of the step at work: no copy of the weights.
    assert kept["revolve"] <= 8 + 6


W, X = jnp.ones((3, 2, 2)), jnp.ones((1, 2))
PLAN = theory.revolve(3, 2).actions
BAD = {
    "segments is 4; want an integer from 1 to 3, the length.": lambda: segmented(4)(step, X, W),
    "xs holds no array; want a pytree of arrays with L on the first axis.": lambda: (
        checkpointing.segmented_scan(step, X, None)
    ),
    "actions leave step 1 unreversed; want a plan for 3 steps.": lambda: checkpointing.planned_scan(
        step, X, W, [("advance", 0, 2), ("reverse", 2, 2)]
    ),
    "actions[0], reverse 2 2, cannot be carried out on 3 steps with step 2 due and the states": (
        lambda: checkpointing.planned_scan(step, X, W, [("reverse", 2, 2)])
    ),
    "actions[0], advance 0 3, cannot be carried out": lambda: checkpointing.planned_scan(
        step, X, W, [("advance", 0, 3)]
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_a_plan_that_cannot_be_carried_out_is_named(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        BAD[text]()


def test_what_has_no_derivative_is_named():
    for name, given in (("carry", (1, W)), ("xs", (X, jnp.arange(3)))):
        with pytest.raises(TypeError, match=f"{name} is int64, want real floats: close over"):
            checkpointing.planned_scan(step, *given, PLAN)
