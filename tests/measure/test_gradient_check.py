"""The gradient check on forty functions: right, wrong, kinked and noisy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dltheory.measure import backprop
from tests.facts import FACTS
from tests.tier import cases


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def with_rule(f, rule):
    """`f` with `rule(cotangent, *args)` as its reverse rule."""
    wrapped = jax.custom_vjp(lambda *args: f(*args))
    wrapped.defvjp(lambda *args: (f(*args), args), lambda args, ct: rule(ct, *args))
    return wrapped


def with_slope(f, slope):
    """A scalar function with `slope(x)` as its forward rule."""
    wrapped = jax.custom_jvp(f)
    wrapped.defjvp(lambda p, t: (f(*p), slope(*p) * t[0]))
    return wrapped


def dense_rule(kernel=None, bias=None, inputs=None):
    """A dense layer, right but for the part that is given."""

    def rule(ct, p, x):
        gradients = {"kernel": x.T @ ct, "bias": ct.sum(axis=0)}
        gradients |= {"kernel": kernel(ct, x)} if kernel else {}
        gradients |= {"bias": bias(ct)} if bias else {}
        return gradients, inputs(ct, p) if inputs else ct @ p["kernel"].T

    return with_rule(lambda p, x: x @ p["kernel"] + p["bias"][None], rule)


def one_entry(x):
    return jnp.cos(x) * jnp.where(jnp.arange(x.size).reshape(x.shape) == 77, 0.5, 1)


def layer_norm(h):
    centred = h - h.mean()
    return centred / jnp.sqrt((centred**2).mean())


def without_the_mean(ct, h):
    unit = layer_norm(h)
    return ((ct - unit * (ct * unit).mean()) / h.std(),)


def relu_model(p, x):
    return jax.nn.relu(x @ p["kernel"] + p["bias"][None]).sum()


def pool(x):
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (2,), (2,), "VALID").sum()


def recurrent(w, x):
    return jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, length=6)[0]


SQUARE, VECTOR = normal(3, 3), normal(5)
P = {"kernel": SQUARE, "bias": normal(3, seed=1)}
X = normal(4, 3, seed=2)
ONES = np.ones((1, 3))
ZERO = {"kernel": np.array([[1.0, 2], [0.5, 1], [-1.5, 1]]), "bias": np.zeros(2)}
FIRST, KERNEL, BIAS = "args[0]", "args[0]['kernel']", "args[0]['bias']"

# name: function, arguments, where the verdict is laid
CORRECT = {
    "recurrent": (recurrent, (SQUARE, X)),
    "own rule": (dense_rule(), (P, X)),
    "own forward rule": (with_slope(jnp.sin, jnp.cos), (0.7,)),
    "second derivative jumps": (lambda x: x * jnp.abs(x), (0.0,)),
    "nothing changes": (lambda x: jax.nn.softmax(x).sum(), (VECTOR,)),
}
WRONG = {
    "sign": (with_slope(jnp.sin, lambda x: -jnp.cos(x)), (0.7,), FIRST),
    "factor": (with_slope(jnp.square, lambda x: x), (0.7,), FIRST),
    "transposed": (dense_rule(kernel=lambda ct, x: ct.T @ x), (P, X), KERNEL),
    "mean for sum": (dense_rule(bias=lambda ct: ct.mean(axis=0)), (P, X), BIAS),
    "forgotten": (dense_rule(bias=lambda ct: 0 * ct.sum(axis=0)), (P, X), BIAS),
    "not transposed": (dense_rule(inputs=lambda ct, p: ct @ p["kernel"]), (P, X), "args[1]"),
    "diagonal alone": (
        with_rule(jax.nn.softmax, lambda ct, z: (ct * jax.nn.softmax(z),)),
        (VECTOR,),
        FIRST,
    ),
    "at the input": (with_slope(jnp.tanh, lambda x: 1 - x**2), (0.7,), FIRST),
    "without the mean": (with_rule(layer_norm, without_the_mean), (VECTOR,), FIRST),
    "one per cent": (with_slope(jnp.exp, lambda x: 1.01 * jnp.exp(x)), (0.7,), FIRST),
    "one entry": (
        with_rule(lambda x: jnp.sin(x).sum(), lambda ct, x: (ct * one_entry(x),)),
        (normal(10, 20),),
        "args[0][3, 17]",
    ),
    "clipped": (
        with_rule(lambda x: (3 * x).sum(), lambda ct, x: (jnp.full_like(x, 1) * ct,)),
        (VECTOR,),
        FIRST,
    ),
    "stopped": (
        lambda p, x: x @ jax.lax.stop_gradient(p["kernel"]) + p["bias"][None],
        (P, X),
        KERNEL,
    ),
    "swapped": (
        with_rule(lambda a, b: a @ b, lambda ct, a, b: (ct @ a.T, b.T @ ct)),
        (SQUARE, normal(3, 3, seed=3)),
        "args[",
    ),
    "straight through": (with_slope(jax.nn.relu, lambda x: jnp.ones_like(x)), (-0.7,), FIRST),
}
KINKS = {
    "relu": (jax.nn.relu, (0.0,), FIRST),
    "abs": (lambda x: jnp.abs(x).sum(), (np.array([1.0, 0.0, -2.0]),), "args[0][1]"),
    "leaky relu": (jax.nn.leaky_relu, (0.0,), FIRST),
    "relu6": (jax.nn.relu6, (6.0,), FIRST),
    "hard tanh": (jax.nn.hard_tanh, (-1.0,), FIRST),
    "elu": (lambda x: jax.nn.elu(x, 0.5), (0.0,), FIRST),
    "selu": (jax.nn.selu, (0.0,), FIRST),
    "clip": (lambda x: jnp.clip(x, -0.5, 0.7), (0.7,), FIRST),
    "maximum": (lambda a, b: jnp.maximum(a, b * b), (0.25, 0.5), "args["),
    "largest": (lambda x: x.max(), (np.array([1.0, 3.0, 2.0, 3.0]),), "args[0]["),
    "sorted": (lambda x: jnp.sort(x) @ jnp.arange(3.0), (np.array([2.0, 1.0, 2.0]),), "args[0]["),
    "hinge": (lambda x, y: jnp.maximum(1 - x * y, 0), (2.0, 0.5), "args["),
    "pool": (pool, (np.array([1.0, 1.0, 4.0, 2.0]),), "args[0]["),
    "jump": (lambda x: jnp.floor(x) + x, (2.0,), FIRST),
    "model": (relu_model, (ZERO, ONES), "args["),
}
F32 = np.float32
NOISY = {
    "far from zero": (lambda x: 1e4 + jnp.sin(x), (F32(1),)),
    "farther": (lambda x: 1e6 + jnp.sin(x), (F32(1),)),
    "large logits": (lambda x: jax.nn.logsumexp(1e3 * x) - 1e3 * x[0], (F32(VECTOR),)),
    "variance": (lambda x: jnp.var(x + 1e3), (F32(VECTOR),)),
    "long sum": (lambda x: jnp.mean(jnp.tanh(x) * 1e3), (F32(normal(300, 300)),)),
}
TABLE = {
    "correct": CORRECT,
    "wrong": WRONG,
    "kink": KINKS,
    "noisy": NOISY,
}
ROWS = [(verdict, name) for verdict, rows in TABLE.items() for name in rows]
assert len(ROWS) == 40
STEP = len(ROWS) // cases(len(ROWS))


def check(verdict, name):
    fn, args, *leaf = TABLE[verdict][name]
    return backprop.check_gradient(fn, *jax.tree.map(jnp.asarray, args)), *leaf


@pytest.mark.parametrize(("verdict", "name"), ROWS[STEP // 2 - 1 :: STEP] if STEP > 1 else ROWS)
def test_verdicts(verdict, name):
    found, *leaf = check(verdict, name)
    if verdict == "noisy":
        assert found.verdict in ("noisy", "correct")
        return
    assert found.verdict == verdict
    assert found.ok == (verdict == "correct")
    assert found.leaf is None if verdict == "correct" else found.leaf.startswith(leaf[0])


def test_what_the_dtype_cannot_show_is_neither_right_nor_wrong():
    assert check("noisy", "farther")[0][:4] == (False, np.inf, None, "noisy")


def test_kinks_all_around_do_not_hide_a_bug():
    """A model of ReLUs in float32 has kinks within the smallest step that its values show."""
    w = {"in": F32(normal(8, 128)), "bias": F32(np.zeros(128)), "out": F32(normal(128, 4)) / 16}
    x = F32(normal(32, 8, seed=1))

    def loss(hidden):
        return lambda w: jnp.mean(jax.nn.logsumexp(hidden(w) @ w["out"], axis=1))

    right = lambda w: jax.nn.relu(x @ w["in"] + w["bias"][None])
    stopped = lambda w: jax.nn.relu(x @ w["in"] + jax.lax.stop_gradient(w["bias"])[None])
    assert backprop.check_gradient(loss(right), w)[2:4] == (None, "correct")
    leaf, verdict = backprop.check_gradient(loss(stopped), w)[2:4]
    assert verdict == "wrong"
    assert leaf.startswith("args[0]['bias'][")


def test_the_check_of_jax_cannot_tell_a_kink_from_a_bug():
    for verdict, name in (("wrong", "sign"), ("kink", "relu")):
        fn, args, _ = TABLE[verdict][name]
        with pytest.raises(AssertionError):
            check_grads(fn, jax.tree.map(jnp.asarray, args), order=1, modes=["rev"])


def test_orders_are_observed():
    assert backprop.check_gradient(jnp.exp, jnp.array(0.3)).order == pytest.approx(2, abs=0.01)
    assert check("correct", "second derivative jumps")[0].order == pytest.approx(1, abs=1e-6)
    assert check("wrong", "sign")[0].order == pytest.approx(0, abs=0.01)
    assert backprop.check_gradient(lambda x: 3 * x, jnp.array(0.3)).order == np.inf


def test_every_kind_of_difference_has_its_order_and_its_best_step():
    """The example of Squire and Trapp; the complex step alone is exact to rounding."""
    fn = lambda x: jnp.exp(x) / (jnp.sin(x) ** 3 + jnp.cos(x) ** 3)
    found = backprop.check_gradient(fn, jnp.array(1.5)).estimates
    orders = {"forward": 1, "central": 2, "richardson": 4, "complex": 2}
    assert set(found) == set(orders)
    exact = FACTS["bp.complexstep"]["value"]
    direction = found["complex"].slope / exact
    for name, order in orders.items():
        assert found[name].order == pytest.approx(order, abs=0.1), name
        allowed = {"forward": 1e-7, "central": 1e-9, "richardson": 1e-11, "complex": 1e-14}[name]
        assert found[name].error < allowed
        assert found[name].slope / direction == pytest.approx(exact, rel=2 * allowed)
    steps = [found[name].step for name in ("forward", "central", "richardson")]
    assert steps == sorted(steps)


def test_complex_steps_where_a_program_is_complex_differentiable():
    """Also where rounding hides the slope from all differences; and they see through rules."""
    hidden = check("noisy", "farther")[0].estimates
    assert hidden["complex"].error < 1e-6 < hidden["central"].error
    assert check("wrong", "sign")[0].estimates["complex"].error == pytest.approx(2, abs=1e-12)
    for fn in (jax.nn.relu, lambda x: jnp.abs(x), lambda x: jnp.where(x > 0, x, x * x)):
        assert "complex" not in backprop.check_gradient(fn, jnp.array(0.3)).estimates


def test_a_gradient_that_is_not_finite_is_wrong():
    found = backprop.check_gradient(lambda x: jnp.sqrt(x**2).sum(), jnp.array([1.0, 0.0]))
    assert found[2:] == ("args[0][1]", "wrong", {})


def test_a_function_that_ends_has_a_kink_there():
    """Infinity is no value: the slopes of one side alone exist."""
    fn = lambda x: jnp.where(x < 2, -jnp.inf, jnp.square(x))
    assert backprop.check_gradient(fn, jnp.array(2.0))[2:4] == ("args[0]", "kink")


def test_what_cannot_be_checked_is_named():
    w = jnp.ones(2)
    with pytest.raises(TypeError, match=r"args\[0\]\['n'\] is int64, want real floats: close over"):
        backprop.check_gradient(lambda p: p["w"].sum(), {"n": jnp.arange(2), "w": w})
    with pytest.raises(TypeError, match=r"args\[0\] is complex128, want real floats: pass its two"):
        backprop.check_gradient(lambda x: jnp.abs(x), jnp.array(1j))
    with pytest.raises(TypeError, match=r"fn\(\*args\)\[0\] is int64, want real floats"):
        backprop.check_gradient(lambda x: x.argmax(), w)
    with pytest.raises(ValueError, match=r"args\[1\] has no influence on the result, so all its"):
        backprop.check_gradient(jax.jit(lambda a, _: a.sum()), w, w)
    with pytest.raises(ValueError, match=r"fn\(\*args\) is not finite, so it has no gradient"):
        backprop.check_gradient(lambda x: jnp.log(x), jnp.array(-1.0))
