"""The chain rule by hand against `jax.grad`; deltas; what gradients cost and keep."""

import re
from itertools import pairwise
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dltheory.measure import backprop, chain_rule
from dltheory.theory import backprop as theory
from tests.facts import FACTS, assert_agrees


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


# --- the chain rule written out --------------------------------------------------------------

LAYERS = [
    chain_rule.convolution(strides=(2, 1)),
    chain_rule.batch_norm(),
    chain_rule.activation("gelu"),
    chain_rule.residual(
        chain_rule.convolution(),
        chain_rule.layer_norm(),
        chain_rule.activation(jnp.tanh),
    ),
    chain_rule.convolution(padding="VALID"),
    chain_rule.flatten(),
    chain_rule.dense(),
    chain_rule.residual(chain_rule.dense(), chain_rule.activation("relu")),
    chain_rule.layer_norm(),
    chain_rule.dense(),
]
AFFINE = {"scale": 1 + normal(3, seed=1) / 4, "bias": normal(3, seed=2)}
PARAMS = [
    {"kernel": normal(3, 2, 2, 3, seed=3), "bias": normal(3, seed=4)},
    AFFINE,
    {},
    [{"kernel": normal(3, 3, 3, 3, seed=5) / 4}, AFFINE, {}],
    {"kernel": normal(2, 3, 3, 2, seed=6)},
    {},
    {"kernel": normal(12, 6, seed=7), "bias": normal(6, seed=8)},
    [{"kernel": normal(6, 6, seed=9)}, {}],
    {"scale": normal(6, seed=10), "bias": normal(6, seed=11)},
    {"kernel": normal(6, 3, seed=12)},
]
X = normal(4, 5, 5, 2, seed=13)
Y = jax.nn.softmax(normal(4, 3, seed=14))


def reference(params, x):
    """The same network from JAX's own parts."""
    dims = ("NHWC", "HWIO", "NHWC")
    conv = lambda p, h, s=(1, 1), pad="SAME": lax.conv_general_dilated(
        h, p["kernel"], s, pad, dimension_numbers=dims
    )
    bias = lambda p, h: h + jnp.expand_dims(p["bias"], range(h.ndim - 1))

    def norm(p, h, axes, epsilon):
        h = jax.nn.standardize(h, axis=axes, epsilon=epsilon)
        return bias(p, h * jnp.expand_dims(p["scale"], range(h.ndim - 1)))

    h = bias(params[0], conv(params[0], x, (2, 1)))
    h = jax.nn.gelu(norm(params[1], h, (0, 1, 2), 1e-5), approximate=False)
    h = h + jnp.tanh(norm(params[3][1], conv(params[3][0], h), -1, 1e-6))
    h = conv(params[4], h, pad="VALID").reshape(4, -1)
    h = bias(params[6], h @ params[6]["kernel"])
    h = h + jax.nn.relu(h @ params[7][0]["kernel"])
    return norm(params[8], h, -1, 1e-6) @ params[9]["kernel"]


def test_backpropagation_equals_autodiff():
    @jax.jit
    def both(params, x):
        by_hand = backprop.backpropagate(params, x, Y, LAYERS, loss="cross_entropy")

        def loss(params, x):
            return -jnp.sum(Y * jax.nn.log_softmax(reference(params, x))) / 4

        gradients = by_hand.gradients, by_hand.deltas[0]
        return (by_hand.loss, gradients), jax.value_and_grad(loss, (0, 1))(params, x)

    # The bias before batch normalization has no gradient but rounding.
    for a, b in zip(*map(jax.tree.leaves, both(PARAMS, X)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14 + 1e-12 * np.abs(b).max())


def worked():
    given = SimpleNamespace(**FACTS["bp.worked.grad"]["inputs"])
    first = {"kernel": jnp.array(given.W1).T, "bias": jnp.array(given.b1)}
    second = {"kernel": jnp.array(given.w2, float)[:, None], "bias": jnp.array([given.b2])}
    return [first, {}, second], jnp.array([given.x], float), jnp.array([[given.y]])


def test_the_worked_example_of_the_facts():
    layers = [chain_rule.dense(), chain_rule.activation("tanh"), chain_rule.dense()]
    run = jax.jit(lambda *given: backprop.backpropagate(*given, layers).gradients)
    first, _, second = run(*worked())
    parts = first["kernel"].T, first["bias"], second["kernel"], second["bias"]
    assert_agrees("bp.worked.grad", np.concatenate([np.ravel(part) for part in parts]))


# --- deltas ----------------------------------------------------------------------------------


def test_deltas_are_those_by_hand_and_pass_through_transposed_jacobians():
    layers, own, at = LAYERS[6:8], PARAMS[6:8], normal(2, 12, seed=15)
    y = normal(2, 6, seed=16)

    def model(params, x):
        for layer, p in zip(layers, params, strict=True):
            x = layer.forward(p, x)[0]
        return x

    @jax.jit
    def everything(params, x):
        by_hand = backprop.backpropagate(params, x, y, layers)
        found = backprop.deltas(lambda out: jnp.sum((out - y) ** 2) / 4, model, params, x)
        factors = [
            jax.jacfwd(lambda v, k=k: layers[k].forward(params[k], v)[0])(by_hand.values[k])
            for k in range(2)
        ]
        below = [jnp.einsum("abij,ab->ij", f, by_hand.deltas[k + 1]) for k, f in enumerate(factors)]
        return by_hand.deltas, below, found

    by_hand, below, found = everything(own, at)
    assert set(found) >= {"input", "output", "0"}
    for k, name in enumerate(("input", "0", "output")):
        np.testing.assert_allclose(found[name], by_hand[k], rtol=1e-12)
    for k in range(2):
        np.testing.assert_allclose(by_hand[k], below[k], rtol=1e-12)


def stack(w, x):
    step = lambda h, own: (h + jnp.tanh(h @ own), None)
    return lax.scan(step, x @ w["in"], w["stack"])[0] @ w["out"]


def test_deltas_of_a_scanned_stack_are_finite_differences():
    w = {"in": normal(3, 4), "stack": normal(5, 4, 4, seed=1), "out": normal(4, 2, seed=2)}
    x, direction, step = normal(2, 3, seed=3), normal(5, 2, 4, seed=4), 1e-5
    loss = lambda y: jnp.sum(jnp.sin(y))
    found = jax.jit(lambda w, x: backprop.deltas(loss, stack, w, x))(w, x)
    assert set(found) >= {"input", "in", "stack", "out", "output"}

    @jax.jit
    def moved(sign):
        step = lambda h, own: (h + jnp.tanh(h @ own[0] + sign * own[1]), None)
        return loss(lax.scan(step, x @ w["in"], (w["stack"], direction))[0] @ w["out"])

    central = (moved(step) - moved(-step)) / (2 * step)
    np.testing.assert_allclose(jnp.sum(found["stack"] * direction), central, rtol=1e-8)


def test_the_delta_of_the_cross_entropy_is_probability_less_label():
    z = jnp.array([FACTS["bp.ce.grad"]["inputs"]["z"]], float)
    loss = lambda y: jax.nn.logsumexp(y) - y[0, 0]
    model = lambda w, x: x @ w
    found = jax.jit(lambda z: backprop.deltas(loss, model, jnp.eye(4), z)["output"])(z)
    assert_agrees("bp.ce.grad", [*np.asarray(found[0]), loss(z)])


# --- cost ------------------------------------------------------------------------------------


def test_xla_counts_what_theory_counts():
    """Products alone, to the few per cent that the activations and the sums add."""
    widths, batch = [48, 64, 64, 32], 40
    w = [jnp.ones((a, b)) for a, b in pairwise(widths)]

    def model(w, x):
        for own in w[:-1]:
            x = jnp.maximum(x @ own, 0)
        return jnp.sum((x @ w[-1]) ** 2)

    x = jnp.ones((batch, widths[0]))
    forward, backward = theory.mlp_flops(widths, batch)
    found = backprop.cost(model, w, x)
    assert forward <= found.flops <= 1.04 * forward
    assert found.argument_bytes == 8 * (x.size + sum(own.size for own in w))
    assert found.output_bytes == 8
    gradient, product, *_ = backprop.cost_ratios(model, w, x)
    np.testing.assert_allclose(gradient, (forward + backward) / forward, rtol=0.05)
    # A tangent costs each product twice, but for the data, which have none.
    spared = 2 * batch * widths[0] * widths[1]
    wanted = (forward + backward + 2 * (forward + backward) - spared) / forward
    np.testing.assert_allclose(product, wanted, rtol=0.1)


def test_times_are_taken_on_demand_alone():
    model = lambda w, x: jnp.sum(jnp.tanh(x @ w))
    given = jnp.ones((64, 64)), jnp.ones((256, 64))
    shapes = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in given)
    assert backprop.cost_ratios(model, *shapes)[2:] == (None, None)
    found = backprop.cost_ratios(model, *given, rounds=3)
    assert min(found[2:]) > 0


# --- edges -----------------------------------------------------------------------------------

LINEAR = lambda w, x: x @ w["w"]
W = {"w": jnp.ones((2, 1))}
ONE = jnp.ones((1, 2))
DENSE = [chain_rule.dense()]
BAD = {
    "params['n'] is int64, want real floats: close over what has no derivative.": (
        TypeError,
        lambda: backprop.deltas(jnp.sum, LINEAR, W | {"n": jnp.arange(2)}, ONE),
    ),
    "params['w'] is complex128, want real floats: pass its two parts instead.": (
        TypeError,
        lambda: backprop.deltas(jnp.sum, LINEAR, {"w": jax.lax.complex(W["w"], W["w"])}, ONE),
    ),
    "loss(y) is float64[1, 1], want a real scalar: end it with a mean or a sum.": (
        TypeError,
        lambda: backprop.deltas(lambda y: y, LINEAR, W, ONE),
    ),
    "loss(f(params, x)) is nan, so it has no derivatives: look for the layer where": (
        ValueError,
        lambda: backprop.deltas(lambda y: jnp.log(-y.sum()), LINEAR, W, ONE),
    ),
    "params has 2 entries for 1 layers; want one for each, {} where a layer has no": (
        ValueError,
        lambda: backprop.backpropagate([{}, {}], ONE, ONE, DENSE),
    ),
    "y has shape (1, 2); want (1, 1), that of the output": (
        ValueError,
        lambda: backprop.backpropagate([{"kernel": W["w"]}], ONE, ONE, DENSE),
    ),
    "loss is 'hinge'; want squared_error or cross_entropy": (
        ValueError,
        lambda: backprop.backpropagate([{}], ONE, ONE, DENSE, loss="hinge"),
    ),
    "x is int64, want real floats: close over what has no derivative.": (
        TypeError,
        lambda: backprop.backpropagate([{"kernel": W["w"]}], jnp.ones((1, 2), int), ONE, DENSE),
    ),
    "y is int64, want real floats: close over what has no derivative.": (
        TypeError,
        lambda: backprop.backpropagate([{"kernel": W["w"]}], ONE, jnp.ones((1, 1), int), DENSE),
    ),
    "params[0]['scale'] is read by no layer: measure.chain_rule says what each": (
        ValueError,
        lambda: backprop.backpropagate(
            [{"kernel": W["w"], "scale": W["w"]}], ONE, jnp.ones((1, 1)), DENSE
        ),
    ),
    "loss(f(params, x)) is nan": (
        ValueError,
        lambda: backprop.backpropagate(
            [{"kernel": jnp.nan * W["w"]}], ONE, jnp.ones((1, 1)), DENSE
        ),
    ),
    "args[0]['n'] is int64, want real floats: close over what has no derivative.": (
        TypeError,
        lambda: backprop.cost_ratios(lambda p: p["w"].sum(), W | {"n": jnp.arange(2)}),
    ),
    "fn(*args) is float64[1, 1], want a real scalar: end it with a mean or a sum.": (
        TypeError,
        lambda: backprop.cost_ratios(LINEAR, W, ONE),
    ),
    "args[0]['n'] has no influence on the result, so all its derivatives are zero": (
        ValueError,
        lambda: backprop.cost_ratios(lambda p: p["w"].sum(), W | {"n": ONE}),
    ),
    "fn(*args) is nan, so it has no derivatives": (
        ValueError,
        lambda: backprop.cost_ratios(lambda w: jnp.log(-w.sum()), ONE, rounds=1),
    ),
    "rounds is -1; want the number of times to time each, or 0": (
        ValueError,
        lambda: backprop.cost_ratios(jnp.sum, ONE, rounds=-1),
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_input_is_named(text):
    error, call = BAD[text]
    with pytest.raises(error, match=re.escape(text)):
        call()
