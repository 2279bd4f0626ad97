"""Models of every kind with one planted fault, and healthy ones beside them."""

import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dltheory.networks import functional, models

INPUTS, WIDTH, OUTPUTS, BATCH = 20, 48, 5, 8


class Sick(NamedTuple):
    """A model, and what is wrong with it: nothing with a healthy one."""

    name: str
    build: Any
    finding: str = ""  # kind of fault, where it starts, kind of remedy


# --- programs: one for each kind of network, shared by all that differ in their numbers ----------


def plain(phi):
    def f(p, x):
        step = lambda h, w: (phi(h) @ w["W"] + w["b"][None], None)
        h = jax.lax.scan(step, x @ p["first"]["W"] + p["first"]["b"][None], p["hidden"])[0]
        return phi(h) @ p["last"]["W"] + p["last"]["b"][None]

    return f


def residual(phi, normalize=False):
    def f(p, x):
        def step(h, w):
            u = h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True)) if normalize else h
            return h + phi(u) @ w["W"] + w["b"][None], None

        h = jax.lax.scan(step, x @ p["first"]["W"] + p["first"]["b"][None], p["hidden"])[0]
        return phi(h) @ p["last"]["W"] + p["last"]["b"][None]

    return f


def convolutional(phi):
    def convolve(h, w):
        ring = jnp.pad(h, ((0, 0), (1, 1), (0, 0)), mode="wrap")
        y = jax.lax.conv_general_dilated(
            ring, w["W"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return y + w["b"][None, None]

    def f(p, x):
        h = convolve(x.reshape(len(x), 10, 2), p["first"])
        h = jax.lax.scan(lambda h, w: (convolve(phi(h), w), None), h, p["hidden"])[0]
        return phi(h).mean(1) @ p["last"]["W"] + p["last"]["b"][None]

    return f


def normalized(p, x):
    """ReLU after batch normalisation, in training."""

    def step(h, w):
        centred = h - h.mean(0, keepdims=True)
        u = centred / jnp.sqrt(jnp.mean(centred**2, 0, keepdims=True) + 1e-6)
        u = u * w["norm"]["scale"][None] + w["norm"]["bias"][None]
        return jax.nn.relu(u) @ w["dense"]["W"], None

    h = jax.lax.scan(step, x @ p["first"]["W"], p["hidden"])[0]
    return h @ p["last"]["W"]


def cut_off(p, x):
    """A tanh network whose second hidden layer is left out of training."""
    h = x @ p["first"]["W"]
    for k in range(3):
        w = p[f"hidden_{k}"]["W"]
        h = jnp.tanh(h) @ (jax.lax.stop_gradient(w) if k == 1 else w)
    return jnp.tanh(h) @ p["last"]["W"]


def cut_off_in_scan(p, x):
    def step(h, w):
        return jnp.tanh(h) @ jax.lax.stop_gradient(w["W"]) + w["b"][None], None

    h = jax.lax.scan(step, x @ p["first"]["W"] + p["first"]["b"][None], p["hidden"])[0]
    return jnp.tanh(h) @ p["last"]["W"] + p["last"]["b"][None]


def blocked(p, x):
    """A tanh network that stops the gradient of its signal."""
    h = x @ p["first"]["W"]
    for k in range(3):
        h = jnp.tanh(h) @ p[f"hidden_{k}"]["W"]
        h = jax.lax.stop_gradient(h) if k == 1 else h
    return jnp.tanh(h) @ p["last"]["W"]


TANH, RELU, SIGMOID = plain(jnp.tanh), plain(jax.nn.relu), plain(jax.nn.sigmoid)
GELU, SELU, LEAKY = plain(jax.nn.gelu), plain(jax.nn.selu), plain(jax.nn.leaky_relu)
LINEAR = plain(lambda h: h)
RESIDUAL_RELU, RESIDUAL_TANH = residual(jax.nn.relu), residual(jnp.tanh)
RESIDUAL_NORM = residual(jax.nn.relu, normalize=True)
CONV_RELU, CONV_TANH = convolutional(jax.nn.relu), convolutional(jnp.tanh)


# --- parameters --------------------------------------------------------------------------------


def dense(
    f,
    weight_var,
    *,
    bias_var=0.0,
    depth=20,
    start=0,
    before=None,
    orthogonal=False,
    window=(),
    inputs=INPUTS,
    shift=None,
    scale=1.0,
    dtype=jnp.float32,
    seed=0,
):
    """Parameters whose hidden layers have `weight_var` from `start` on, and `before` until then."""

    def build():
        random = np.random.default_rng(seed)
        draw = lambda fan_in, *shape: random.standard_normal(shape) / np.sqrt(fan_in)
        size = int(np.prod(window, dtype=int))
        hidden = draw(size * WIDTH, depth, *window, WIDTH, WIDTH)
        if orthogonal:
            hidden = np.linalg.qr(hidden)[0]
        factor = np.full(depth, weight_var)
        factor[:start] = weight_var if before is None else before
        hidden = hidden * np.sqrt(factor).reshape(-1, *[1] * (hidden.ndim - 1))
        biases = np.sqrt(bias_var) * random.standard_normal((depth + 1, WIDTH))
        if shift is not None:
            biases[1 + shift[0]] += shift[1]
        p = {
            "first": {"W": draw(size * inputs, *window, inputs, WIDTH), "b": biases[0]},
            "hidden": {"W": hidden, "b": biases[1:]},
            "last": {"W": draw(WIDTH, WIDTH, OUTPUTS), "b": np.zeros(OUTPUTS)},
        }
        x = scale * random.standard_normal((BATCH, INPUTS))
        return f, *jax.tree.map(lambda a: jnp.asarray(a, dtype), (p, x))

    return build


def conv(f, weight_var, **options):
    return dense(f, weight_var, window=(3,), inputs=2, **options)


def batch_norm(depth):
    def build():
        f, p, x = dense(normalized, 1.0, depth=depth)()
        norm = {
            "scale": jnp.ones((depth, WIDTH), x.dtype),
            "bias": jnp.zeros((depth, WIDTH), x.dtype),
        }
        hidden = {"norm": norm, "dense": {"W": p["hidden"]["W"]}}
        last = {"W": p["last"]["W"]}
        return f, {"first": {"W": p["first"]["W"]}, "hidden": hidden, "last": last}, x

    return build


def changed(build, change):
    """Another model with some of its parameters changed."""

    def new():
        f, p, x = build()
        return f, change(p), x

    return new


def zero_layer(number):
    def change(p):
        hidden = p["hidden"] | {"W": p["hidden"]["W"].at[number].set(0)}
        return p | {"hidden": hidden}

    return change


def zero_branches(p):
    return p | {"hidden": jax.tree.map(jnp.zeros_like, p["hidden"])}


def zero_head(p):
    return p | {"last": jax.tree.map(jnp.zeros_like, p["last"])}


def separate(f):
    def build():
        return f, *_separate()

    return build


def _separate():
    random = np.random.default_rng(3)
    names = ("first", "hidden_0", "hidden_1", "hidden_2", "last")
    shapes = ((INPUTS, WIDTH), *[(WIDTH, WIDTH)] * 3, (WIDTH, OUTPUTS))
    p = {
        name: {"W": jnp.asarray(random.standard_normal(s) / np.sqrt(s[0]), jnp.float32)}
        for name, s in zip(names, shapes, strict=True)
    }
    return p, jnp.asarray(random.standard_normal((BATCH, INPUTS)), jnp.float32)


def faint(build, factor):
    """The model with its output, and so every gradient, made small."""

    def new():
        f, p, x = build()
        return lambda p, x: f(p, x) * jnp.asarray(factor, x.dtype), p, x

    return new


def images(seed=5):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((4, 8, 8, 3)), jnp.float32)


def vectors(seed=4):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((BATCH, INPUTS)), jnp.float32)


def linen(model, x):
    return lambda: (model.apply, model.init(jax.random.key(0), x()), x())


def variance(value):
    return nn.initializers.variance_scaling(value, "fan_in", "normal")


class Cnn(nn.Module):
    """A convolutional network as Flax writes it."""

    weight_var: float
    depth: int = 8

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.relu(nn.Conv(16, (3, 3), kernel_init=variance(self.weight_var))(x))
        return nn.Dense(3)(x.mean((1, 2)))


def nnx_mlp(weight_var, bias, depth=12):
    def build():
        from flax import nnx

        class Net(nnx.Module):
            def __init__(self, rngs):
                draw = nnx.initializers.variance_scaling(weight_var, "fan_in", "normal")
                offset = nnx.initializers.normal(bias**0.5)
                options = {"kernel_init": draw, "bias_init": offset, "rngs": rngs}
                widths = [INPUTS, *[WIDTH] * depth]
                pairs = itertools.pairwise(widths)
                self.layers = nnx.List([nnx.Linear(a, b, **options) for a, b in pairs])
                self.readout = nnx.Linear(WIDTH, OUTPUTS, rngs=rngs)

            def __call__(self, x):
                for layer in self.layers:
                    x = jnp.tanh(layer(x))
                return self.readout(x)

        return *functional.pure(Net(nnx.Rngs(0))), vectors()

    return build


HALF = jnp.float16
SICK = [
    Sick("chaotic tanh", dense(TANH, 9.0, bias_var=0.05), "exploding hidden[0] initialisation"),
    Sick("unscaled skips", dense(RESIDUAL_RELU, 2.0, depth=24), "exploding hidden[0] skip scaling"),
    Sick("large relu", dense(RELU, 6.0), "exploding hidden[0] initialisation"),
    Sick("small relu", dense(RELU, 0.7), "vanishing hidden[0] initialisation"),
    Sick(
        "small relu from 8",
        dense(RELU, 0.2, start=8, before=2.0),
        "vanishing hidden[8] initialisation",
    ),
    Sick("deep sigmoid", dense(SIGMOID, 1.0), "vanishing hidden[0] centring"),
    Sick("dead relu", dense(RELU, 2.0, shift=(5, -30.0)), "dead hidden[5] initialisation"),
    Sick(
        "large input",
        dense(TANH, 1.76, bias_var=0.05, scale=200.0),
        "saturated first input scaling",
    ),
    Sick(
        "chaos from 6",
        dense(TANH, 16.0, bias_var=0.05, start=6, before=1.76),
        "exploding hidden[6] initialisation",
    ),
    Sick("batch norm", batch_norm(20), "exploding hidden/dense[0] linear normalisation"),
    Sick(
        "orthogonal small", dense(TANH, 0.6, orthogonal=True), "vanishing hidden[0] initialisation"
    ),
    Sick(
        "orthogonal large", dense(TANH, 6.0, orthogonal=True), "exploding hidden[0] initialisation"
    ),
    Sick(
        "half precision",
        faint(dense(RELU, 2.0, dtype=HALF), 2.0**-22),
        "underflow last loss scaling",
    ),
    Sick(
        "zero layer",
        changed(dense(TANH, 1.76, bias_var=0.05), zero_layer(7)),
        "frozen hidden[7] initialisation",
    ),
    Sick("cut off", separate(cut_off), "frozen hidden_1 program"),
    Sick(
        "cut off in scan", dense(cut_off_in_scan, 1.76, bias_var=0.05), "frozen hidden[0] program"
    ),
    Sick("blocked", separate(blocked), "frozen hidden_1 program"),
    Sick("small conv", conv(CONV_RELU, 0.5), "vanishing hidden[0] initialisation"),
    Sick("chaotic conv", conv(CONV_TANH, 12.0), "exploding hidden[0] initialisation"),
    Sick("overflow", dense(RELU, 1e5), "overflow hidden[16] initialisation"),
    Sick("nnx small", nnx_mlp(0.3, 0.05), "vanishing layers/1 initialisation"),
    Sick(
        "linen large",
        linen(models.MLP(WIDTH, 20, OUTPUTS, jax.nn.relu, variance(8.0)), vectors),
        "exploding hidden[0] initialisation",
    ),
    Sick("linen cnn", linen(Cnn(0.2), images), "vanishing Conv_1 initialisation"),
    Sick(
        "linen skips",
        linen(
            models.ResidualMLP(WIDTH, 24, OUTPUTS, jax.nn.relu, kernel_init=variance(2.0)), vectors
        ),
        "exploding blocks/dense[0] skip scaling",
    ),
]
HEALTHY = [
    Sick("critical tanh", dense(TANH, 1.76, bias_var=0.05)),
    Sick("scaled skips", dense(RESIDUAL_RELU, 2.0 / 24, depth=24)),
    Sick("critical relu", dense(RELU, 2.0)),
    Sick("critical gelu", dense(GELU, 1.97, bias_var=0.2)),
    Sick("orthogonal tanh", dense(TANH, 1.0, orthogonal=True)),
    Sick("orthogonal linear", dense(LINEAR, 1.0, orthogonal=True)),
    Sick("lecun selu", dense(SELU, 1.0)),
    Sick("leaky relu", dense(LEAKY, 2.0)),
    Sick("shallow sigmoid", dense(SIGMOID, 16.0, depth=3)),
    Sick("shallow large relu", dense(RELU, 4.0, depth=3)),
    Sick("ten unscaled skips", dense(RESIDUAL_TANH, 1.0, depth=10)),
    Sick("normalised skips", dense(RESIDUAL_NORM, 2.0)),
    Sick("zero branches", changed(dense(RESIDUAL_RELU, 2.0, depth=24), zero_branches)),
    Sick("zero head", changed(dense(TANH, 1.76, bias_var=0.05), zero_head)),
    Sick("shallow batch norm", batch_norm(4)),
    Sick("critical conv", conv(CONV_RELU, 2.0)),
    Sick("critical tanh conv", conv(CONV_TANH, 1.76, bias_var=0.05)),
    Sick("half precision", dense(RELU, 2.0, dtype=HALF)),
    Sick("nnx critical", nnx_mlp(1.76, 0.05)),
    Sick(
        "linen critical", linen(models.MLP(WIDTH, 20, OUTPUTS, jax.nn.relu, variance(2.0)), vectors)
    ),
    Sick("linen cnn", linen(Cnn(2.0), images)),
    Sick(
        "linen skips",
        linen(
            models.ResidualMLP(
                WIDTH, 24, OUTPUTS, jax.nn.relu, 24**-0.5, kernel_init=variance(2.0)
            ),
            vectors,
        ),
    ),
]
