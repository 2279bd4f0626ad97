"""Feedback by transposes is backpropagation; fixed feedback is what its formula says."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import feedback_alignment as fa
from dltheory.theory import training_dynamics

RNG = np.random.default_rng(0)
WIDTHS = (4, 6, 5, 3)
normal = lambda *shape: jnp.asarray(RNG.normal(size=shape))
PARAMS = [{"kernel": normal(a, b)} for a, b in itertools.pairwise(WIDTHS)]
PARAMS[1]["bias"] = normal(5)
X, TARGET = normal(7, 4), normal(7, 3)
FEEDBACK = [normal(5, 6), normal(3, 5)]
DIRECT = [normal(3, 6), normal(3, 5)]
loss = lambda y: jnp.mean((y - TARGET) ** 2)


def network(params):
    h = jnp.tanh(X @ params[0]["kernel"])
    h = jnp.tanh(h @ params[1]["kernel"] + params[1]["bias"][None])
    return h @ params[2]["kernel"]


@jax.jit
def everything(params, feedback, direct):
    transposes = [layer["kernel"].T for layer in params[1:]]
    true = jax.value_and_grad(lambda params: loss(network(params)))(params)
    send = lambda rule, feedback: rule(loss, params, feedback, X, phi="tanh")
    found = {
        "true": fa.Feedback(*true),
        "transposes": send(fa.feedback_gradients, transposes),
        "fixed": send(fa.feedback_gradients, feedback),
        "direct": send(fa.direct_feedback_gradients, direct),
    }
    angles = {k: fa.gradient_angles(v.gradients, true[1]) for k, v in found.items()}
    return found, angles


@pytest.fixture(scope="module")
def found():
    return everything(PARAMS, FEEDBACK, DIRECT)


def test_transposes_give_the_gradient(found):
    for a, b in zip(*(jax.tree.leaves(found[0][k]) for k in ("transposes", "true")), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found[1]["transposes"], 0, atol=1e-5)


@pytest.mark.parametrize("kind", ["fixed", "direct"])
def test_fixed_feedback_beside_numpy(kind, found):
    w = [np.asarray(layer["kernel"]) for layer in PARAMS]
    h1 = np.tanh(X @ w[0])
    h2 = np.tanh(h1 @ w[1] + np.asarray(PARAMS[1]["bias"]))
    top = 2 * (h2 @ w[2] - TARGET) / TARGET.size
    second = (1 - h2**2) * (top @ (FEEDBACK if kind == "fixed" else DIRECT)[1])
    first = (1 - h1**2) * (second @ FEEDBACK[0] if kind == "fixed" else top @ DIRECT[0])
    wanted = [X.T @ first, h1.T @ second, h2.T @ top]
    gradients = found[0][kind].gradients
    for one, gradient in zip(wanted, gradients, strict=True):
        np.testing.assert_allclose(gradient["kernel"], one, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(gradients[1]["bias"], second.sum(0), rtol=1e-12)
    true = found[0]["true"].gradients
    for index, angle in enumerate(np.asarray(found[1][kind])):
        u, v = (
            np.concatenate([np.ravel(z) for z in jax.tree.leaves(g[index])])
            for g in (gradients, true)
        )
        cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
        np.testing.assert_allclose(np.cos(np.radians(angle)), cosine, atol=1e-12)


def test_it_comes_to_rest_where_theory_says():
    """One input, a linear hidden layer that starts at zero: the gradient flow in closed form."""
    feedback, start, target = jnp.array([1.0, -0.5, 2.0]), jnp.array([0.3, 0.2, 0.1]), 1.5
    rest = training_dynamics.feedback_alignment(feedback, start, target)
    square = lambda y: jnp.sum((y - target) ** 2) / 2

    @jax.jit
    def train(params):
        def step(params, _):
            rule = fa.feedback_gradients
            sent = rule(square, params, [feedback[None]], jnp.ones((1, 1)), phi=lambda z: z)
            return jax.tree.map(lambda w, g: w - 2e-3 * g, params, sent.gradients), None

        return jax.lax.scan(step, params, length=5000)[0]

    params = train([{"kernel": jnp.zeros((1, 3))}, {"kernel": start[:, None]}])
    np.testing.assert_allclose(params[0]["kernel"][0], rest.w1, atol=3e-3)
    np.testing.assert_allclose(params[1]["kernel"][:, 0], rest.w2, atol=3e-3)


def test_angles_of_small_and_of_vanished_gradients():
    u = [{"w": jnp.array([1e-200, 0.0])}, {"w": jnp.zeros(2)}]
    v = [{"w": jnp.array([1e-200, 1e-208])}, {"w": jnp.ones(2)}]
    angles = fa.gradient_angles(u, v)
    np.testing.assert_allclose(angles[0], np.degrees(1e-8), rtol=1e-6)
    assert np.isnan(angles[1])
    np.testing.assert_allclose(fa.gradient_angles(v[1:], [{"w": -jnp.ones(2)}]), [180.0])


SUM = lambda y: y.sum()
BAD = {
    "feedback has the shapes [(6, 5), (3, 5)]; want [(5, 6), (3, 5)], one for each layer but the": (
        ValueError,
        lambda: fa.feedback_gradients(SUM, PARAMS, [FEEDBACK[0].T, FEEDBACK[1]], X),
    ),
    "feedback has the shapes [(3, 6)]; want [(3, 6), (3, 5)], one for each layer but the": (
        ValueError,
        lambda: fa.direct_feedback_gradients(SUM, PARAMS, DIRECT[:1], X),
    ),
    "loss(y) is float64[7, 3], want a real scalar": (
        TypeError,
        lambda: fa.feedback_gradients(lambda y: y, PARAMS, FEEDBACK, X),
    ),
    "params[0]['kernel'] is int64, want real floats": (
        TypeError,
        lambda: fa.feedback_gradients(SUM, [{"kernel": jnp.eye(4, dtype=int)}], [], X),
    ),
    "gradients have the structure": (ValueError, lambda: fa.gradient_angles(PARAMS, PARAMS[1:])),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_input_is_named(text):
    error, call = BAD[text]
    with pytest.raises(error, match=re.escape(text)):
        call()
