"""A sweep of small networks beside the loops that one would write for it.

96 networks with one hidden layer (16 seeds of 6 widths) learn a sine from 64 points by 1000 steps
of Adam on all of them, in float32. Beside `training.run` under `vmap`, one program for each width:
a compiled step of Flax and optax called in a loop, its compilation excluded, and a plain loop of
PyTorch. All start from the same weights, and all 96 000 losses agree to 1e-5.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dltheory.networks import training
from dltheory.networks.data import Data

WIDTHS, SEEDS, STEPS, POINTS, RATE = (4, 8, 16, 32, 64, 128), 16, 1000, 64, 1e-3
X = np.linspace(-1, 1, POINTS, dtype=np.float32)
Y = np.sin(3 * X)


@functools.cache
def starts(width):
    """Weights to start from, by name, each of shape `(seeds, ...)`."""
    rng = np.random.default_rng(width)
    normal = lambda *shape: rng.normal(size=(SEEDS, *shape)).astype(np.float32)
    return {
        "W1": 2 * normal(width),
        "b1": normal(width),
        "W2": normal(width) / np.float32(width**0.5),
        "b2": np.zeros(SEEDS, np.float32),
    }


def ours():
    def f(params, x):
        return jnp.tanh(x[:, None] * params["W1"] + params["b1"]) @ params["W2"] + params["b2"]

    def losses(start):
        process = training.descent(
            f,
            lambda _: start,
            lambda prediction, y: jnp.mean((prediction - y) ** 2),
            optax.adam(RATE),
            Data(jnp.asarray(X), jnp.asarray(Y)),
        )
        return training.run(process, jax.random.key(0), STEPS, unroll=4)[1].loss

    train = jax.jit(jax.vmap(losses))
    return lambda: np.stack(jax.device_get([train(starts(width)) for width in WIDTHS]))


class Net(nn.Module):
    """One hidden layer."""

    width: int

    @nn.compact
    def __call__(self, x):
        """From `(points, 1)` to `(points, 1)`."""
        x = nn.Dense(self.width, name="hidden")(x)
        return nn.Dense(1, name="output")(jnp.tanh(x))


def flax_loop():
    x, y, optimizer = jnp.asarray(X)[:, None], jnp.asarray(Y)[:, None], optax.adam(RATE)

    @functools.partial(jax.jit, static_argnums=0)
    def step(net, params, memory):
        loss = lambda params: jnp.mean((net.apply(params, x) - y) ** 2)
        value, gradient = jax.value_and_grad(loss)(params)
        updates, memory = optimizer.update(gradient, memory)
        return optax.apply_updates(params, updates), memory, value

    def train(width, seed):
        W1, b1, W2, b2 = (jnp.asarray(a[seed]) for a in starts(width).values())
        hidden = {"kernel": W1[None], "bias": b1}
        params = {"params": {"hidden": hidden, "output": {"kernel": W2[:, None], "bias": b2[None]}}}
        memory, losses = optimizer.init(params), []
        for _ in range(STEPS):
            params, memory, loss = step(Net(width), params, memory)
            losses.append(loss)
        return jax.device_get(losses)

    return lambda: np.array([[train(w, seed) for seed in range(SEEDS)] for w in WIDTHS])


def torch_loop():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # Two make it slower.
    x, y = torch.tensor(X)[:, None], torch.tensor(Y)[:, None]

    def train(width, seed):
        W1, b1, W2, b2 = (torch.tensor(a[seed]) for a in starts(width).values())
        net = torch.nn.Sequential(
            torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 1)
        )
        with torch.no_grad():
            for parameter, start in zip(net.parameters(), (W1, b1, W2, b2), strict=True):
                parameter.copy_(start.reshape(parameter.shape))
        optimizer, losses = torch.optim.Adam(net.parameters(), lr=RATE), []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(net(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return lambda: np.array([[train(w, seed) for seed in range(SEEDS)] for w in WIDTHS])


@pytest.mark.parametrize("how", [ours, flax_loop, torch_loop])
def test_widths_and_seeds(benchmark, how):
    benchmark.group = "96 networks of one hidden layer, 1000 Adam steps each, float32"
    allow = jax.numpy_rank_promotion("allow")
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), allow:
        run = how()
        if how is ours:
            run()
        losses = benchmark.pedantic(run, rounds=5 if how is ours else 1)
        np.testing.assert_allclose(losses, ours()(), rtol=1e-5, atol=1e-5)
