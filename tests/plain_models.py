"""Hand-written models: parameters in every shape that people keep them in, and the awkward cases.

Each model is written once, as a generator `run(params, x)` that yields `(site, value)` where a
site must be found and returns the output. The model is that function with the yields thrown away;
the expected values are the yields.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from tests.case import at, batch, case, normal

CASES = []


def _random(shapes, dtype):
    """Gaussian parameters from a tree of their shapes."""
    leaves, structure = jax.tree.flatten(shapes, is_leaf=lambda s: isinstance(s, tuple))
    arrays = [normal(2 + i, shape, dtype, 0.6) for i, shape in enumerate(leaves)]
    return jax.tree.unflatten(structure, arrays)


def _drain(run, params, x):
    """The output of a generator, and what it yielded as a dict."""
    values, steps = {}, run(params, x)
    while True:
        try:
            site, value = next(steps)
        except StopIteration as end:
            return end.value, values
        values[site] = value


def _model(shapes, sites, cuts=None, *, name=None, **flags):
    """Turn a generator into a case; `shapes` is the tree of the parameters' shapes."""

    def decorate(run):
        def build(dtype=jnp.float64):
            f = lambda params, x: _drain(run, params, x)[0]
            return f, _random(shapes, dtype), batch(dtype, 4)

        def expected(params, x):
            return _drain(run, params, x)[1]

        CASES.append(case(name or run.__name__, build, expected, sites, cuts, **flags))
        return run

    return decorate


# ------------------------------------------------------------------ how parameters may be kept


@_model([{"W": (4, 5), "b": (5,)}, {"W": (5, 6), "b": (6,)}, {"W": (6, 2), "b": (2,)}], "0 1 2")
def list_of_dicts(params, x):
    for i, layer in enumerate(params):
        x = (jnp.tanh(x) if i else x) @ layer["W"] + layer["b"][None]
        yield str(i), x
    return x


# The root holds several openers, so each names its own site; b1 joins W1 by reach.
@_model({"W1": (4, 5), "b1": (5,), "W2": (5, 2), "b2": (2,)}, "W1 W2")
def flat_dict(params, x):
    h = x @ params["W1"] + params["b1"][None]
    yield "W1", h
    y = jnp.tanh(h) @ params["W2"] + params["b2"][None]
    yield "W2", y
    return y


@_model({"W": [(4, 5), (5, 2)], "b": [(5,), (2,)]}, "W/0 W/1")
def dict_of_lists(params, x):
    for i in range(2):
        x = jnp.tanh(x) @ params["W"][i] + params["b"][i][None]
        yield f"W/{i}", x
    return x


# One leaf opens three times: occurrences, as for a shared layer. The module is the root.
@_model({"W": (3, 4, 4), "b": (3, 4)}, "W W#1 W#2")
def stacked_by_hand(params, x):
    for i in range(3):
        x = jnp.tanh(x) @ params["W"][i] + params["b"][i][None]
        yield f"W#{i}" if i else "W", x
    return x


@_model({"W": (4, 5), "b": (5,), "c": (4,)}, "W W#1")
def tied_weights(params, x):
    h = x @ params["W"] + params["b"][None]
    yield "W", h
    y = jnp.tanh(h) @ params["W"].T + params["c"][None]
    yield "W#1", y
    return y


# One leaf module whose one contraction reads three leaves: the module is the name.
@_model({"adapted": {"W": (4, 5), "A": (4, 2), "B": (2, 5)}, "head": {"W": (5, 2)}}, "adapted head")
def low_rank(params, x):
    p = params["adapted"]
    h = x @ (p["W"] + p["A"] @ p["B"])
    yield "adapted", h
    y = jnp.tanh(h) @ params["head"]["W"]
    yield "head", y
    return y


# Two modules in one contraction: joined by + under their lowest common module.
@_model(
    {"layer": {"base": {"W": (4, 5)}, "lora": {"A": (4, 2), "B": (2, 5)}}, "head": {"W": (5, 2)}},
    "layer/base+lora head",
)
def low_rank_modules(params, x):
    p = params["layer"]
    h = x @ (p["base"]["W"] + p["lora"]["A"] @ p["lora"]["B"])
    yield "layer/base+lora", h
    y = jnp.tanh(h) @ params["head"]["W"]
    yield "head", y
    return y


# A constant factor between weight and bias: the bias still joins.
@_model({"in": {"W": (4, 5), "b": (5,)}, "out": {"W": (5, 2), "b": (2,)}}, "in out")
def ntk_parametrised(params, x):
    p = params["in"]
    h = x @ p["W"] / 4**0.5 + 0.3 * p["b"][None]
    yield "in", h
    p = params["out"]
    y = jnp.tanh(h) @ p["W"] / 5**0.5 + 0.3 * p["b"][None]
    yield "out", y
    return y


# ------------------------------------------------------------------------ branches and joins


@_model(
    {"mlp": {"Wg": (4, 5), "Wu": (4, 5), "Wd": (5, 2)}},
    "mlp/Wg mlp/Wu mlp/join mlp/Wd",
    "mlp/join mlp/Wd",
)
def gated(params, x):
    p = params["mlp"]
    gate = x @ p["Wg"]
    yield "mlp/Wg", gate
    up = x @ p["Wu"]
    yield "mlp/Wu", up
    h = gate * jax.nn.silu(up)
    yield "mlp/join", h
    y = h @ p["Wd"]
    yield "mlp/Wd", y
    return y


@_model(
    {"mix": {"left": {"W": (4, 5)}, "right": {"W": (4, 5)}}, "head": {"W": (5, 2)}},
    "mix/left mix/right mix/join head",
    "mix/join head",
)
def two_branches(params, x):
    left = x @ params["mix"]["left"]["W"]
    yield "mix/left", left
    right = x @ params["mix"]["right"]["W"]
    yield "mix/right", right
    h = jnp.tanh(left) + jnp.sin(right)
    yield "mix/join", h
    y = h @ params["head"]["W"]
    yield "head", y
    return y


# A single layer beside a skip: the lowest common module of one module is that module.
@_model([{"W": (4, 4), "b": (4,)}, {"W": (4, 4), "b": (4,)}], "0 0/join 1 1/join", "0/join 1/join")
def residual_by_hand(params, x):
    for i, layer in enumerate(params):
        u = jnp.tanh(x) @ layer["W"] + layer["b"][None]
        yield str(i), u
        x = x + u
        yield f"{i}/join", x
    return x


# The root's own scalar beside a layer.
@_model(
    {"alpha": (), "layer": {"W": (4, 4)}, "head": {"W": (4, 2)}},
    "layer alpha join head",
    "join head",
)
def block_scalar(params, x):
    u = x @ params["layer"]["W"]
    yield "layer", u
    u = params["alpha"] * jnp.tanh(u)
    yield "alpha", u
    h = x + u
    yield "join", h
    y = h @ params["head"]["W"]
    yield "head", y
    return y


# -------------------------------------------------------------------------- marks and axes


# The activation is marked by JAX's own name for a value: a site like any other.
@_model([{"W": (4, 5)}, {"W": (5, 2)}], "0 hidden 1")
def marked(params, x):
    h = x @ params[0]["W"]
    yield "0", h
    h = checkpoint_name(jnp.tanh(h), "hidden")
    yield "hidden", h
    y = h @ params[1]["W"]
    yield "1", y
    return y


# jax.vmap leaves the examples on axis 1 of W @ x, and moves them back after the last touch.
@_model({"W1": (5, 4), "W2": (2, 5)}, "W1 W2", example_axes=(("W1", 1), ("W2", 1)))
def batch_at_axis_1(params, x):
    h = jax.vmap(lambda u: params["W1"] @ u, out_axes=1)(x)
    yield "W1", h
    y = jax.vmap(lambda u: params["W2"] @ u, in_axes=1, out_axes=1)(jnp.tanh(h))
    yield "W2", y
    return y.T


# ---------------------------------------------------------------------------- closed sites


@jax.custom_vjp
def _clipped_layer(W, h):
    return jnp.tanh(h @ W)


def _clipped_forward(W, h):
    y = jnp.tanh(h @ W)
    return y, (W, h, y)


def _clipped_backward(saved, g):
    W, h, y = saved
    g = (1 - y**2) * g
    return h.T @ g, g @ W.T


_clipped_layer.defvjp(_clipped_forward, _clipped_backward)


@jax.custom_jvp
def _ruled_layer(W, h):
    return jnp.tanh(h @ W)


@_ruled_layer.defjvp
def _ruled_jvp(primals, tangents):
    (W, h), (dW, dh) = primals, tangents
    y = jnp.tanh(h @ W)
    return y, (1 - y**2) * (dh @ W + h @ dW)


def _with_rule(name, layer, **flags):
    shapes = {"first": {"W": (4, 5)}, "ruled": {"W": (5, 6)}, "last": {"W": (6, 2)}}

    @_model(shapes, "first ruled last", closed=("ruled",), name=name, **flags)
    def run(params, x):
        h = x @ params["first"]["W"]
        yield "first", h
        h = layer(params["ruled"]["W"], h)
        yield "ruled", h
        y = h @ params["last"]["W"]
        yield "last", y
        return y


_with_rule("custom_vjp", _clipped_layer, forward_mode=False)
_with_rule("custom_jvp", _ruled_layer)


def _switched(W, h):
    return jax.lax.cond(W[0, 0] > 0, lambda: jnp.tanh(h @ W), lambda: h @ W)


_with_rule("cond", _switched)


# ------------------------------------------------------------------------- stacks by lax.scan


def _scan_stack(name, length, *, remat=False, reverse=False):
    """A hand-written stack; `reverse` runs it from the last stored layer to the first."""
    order = list(range(length))[:: -1 if reverse else 1]
    sites = " ".join(["W_in", *(f"layers[{i}]" for i in order), "W_out"])
    shapes = {"W_in": (4, 5), "W_out": (5, 2), "layers": {"W": (length, 5, 5), "b": (length, 5)}}

    def step(h, layer):
        return jnp.tanh(h) @ layer["W"] + layer["b"][None], None

    step = jax.checkpoint(step) if remat else step

    def build(dtype=jnp.float64):
        def f(params, x):
            h, _ = jax.lax.scan(step, x @ params["W_in"], params["layers"], reverse=reverse)
            return jnp.tanh(h) @ params["W_out"]

        return f, _random(shapes, dtype), batch(dtype, 4)

    def expected(params, x):
        h = x @ params["W_in"]
        values = {"W_in": h}
        for i in order:
            h, _ = step(h, at(params["layers"], i))
            values[f"layers[{i}]"] = h
        return values | {"W_out": jnp.tanh(h) @ params["W_out"]}

    CASES.append(case(name, build, expected, sites, scanned=True))


_scan_stack("scan", 4)
_scan_stack("scan_remat", 3, remat=True)
_scan_stack("scan_reverse", 3, reverse=True)


def _nested_scan():
    """A scan of scans: two indices, the outer one first."""
    places = [(i, j) for i in range(2) for j in range(3)]
    sites = " ".join(f"W[{i},{j}]" for i, j in places)

    def step(h, W):
        return jnp.tanh(h) @ W, None

    def build(dtype=jnp.float64):
        def f(params, x):
            return jax.lax.scan(lambda h, W: jax.lax.scan(step, h, W), x, params["W"])[0]

        return f, _random({"W": (2, 3, 4, 4)}, dtype), batch(dtype, 4)

    def expected(params, x):
        values = {}
        for i, j in places:
            x, _ = step(x, params["W"][i, j])
            values[f"W[{i},{j}]"] = x
        return values

    CASES.append(case("nested_scan", build, expected, sites, scanned=True))


_nested_scan()


def deep_scan(depth, width, dtype=jnp.float64):
    """`(f, params, x)` of `depth` layers by `lax.scan`, for checks of compile time."""

    def f(params, x):
        step = lambda h, layer: (jnp.tanh(h) @ layer["W"] + layer["b"][None], None)
        return jax.lax.scan(step, x, params)[0]

    W = normal(2, (depth, width, width), dtype, width**-0.5)
    return f, {"W": W, "b": normal(3, (depth, width), dtype, 0.1)}, batch(dtype, width)


def closed_over(dtype=jnp.float64):
    """`(f, params, x)` of a model that keeps its weights to itself: no site."""
    W = normal(2, (4, 2), dtype)
    return lambda _, x: jnp.tanh(x @ W), {"unused": W}, batch(dtype, 4)
