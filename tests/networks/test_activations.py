"""The catalogue against the functions themselves, and the facts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dltheory.networks import activations
from tests.facts import FACTS
from tests.tier import FULL, cases

GRID = np.concatenate([np.linspace(-40, 40, 160_001), [-1e4, -1e3, -1e2, 1e2, 1e3, 1e4]])
GRID.sort()


def catalogue():
    return pytest.mark.parametrize("name", activations.names())


@pytest.mark.parametrize("name", activations.names()[1 - FULL :: 1 if FULL else 3])
def test_facts_hold_on_a_grid(name):
    phi = activations.get(name)
    value = np.asarray(phi(jnp.asarray(GRID)))
    beside = [k + side * 1e-9 for k in phi.kinks for side in (-1, 1)]
    slopes = jax.vmap(jax.grad(phi))(jnp.asarray([*GRID, *beside]))
    low, high = phi.range
    assert np.all((value >= low - 1e-15) & (value <= high + 1e-15))
    for bound, reached in ((low, value.min()), (high, value.max())):
        assert abs(reached) >= 100 if math.isinf(bound) else abs(reached - bound) < 1e-4
    assert phi.monotone == bool(np.all(np.diff(value) >= -1e-14))
    steepest = np.max(np.abs(slopes))
    if math.isinf(phi.lipschitz):
        assert steepest > 100 or phi.smoothness == -1
    else:
        assert 1 - 1e-6 < steepest / phi.lipschitz < 1 + 1e-9


@pytest.mark.parametrize("name", activations.names()[:: 1 if FULL else 3])
def test_kinks_and_smoothness_are_found_again(name):
    phi = activations.get(name)
    found = activations.get(lambda h: phi(h))
    assert found.kinks == phi.kinks
    assert found.smoothness == phi.smoothness


@catalogue()
def test_saturation_follows_its_rate(name):
    """The distance from the limit between two points far out, by rate."""
    phi = activations.get(name)
    for side, limit in zip((-1, 1), phi.saturation, strict=True):
        value = lambda h, side=side: float(phi(jnp.float64(side * h)))
        if limit is None:
            assert abs(value(1e4)) >= 100 or abs(value(1e4) - value(1e4 + 1)) > 0.1
            continue
        near, mid, far = (abs(value(h) - limit.value) for h in (2.0, 4.0, 8.0))
        match limit.rate:
            case "exact":
                assert far == 0
            case "algebraic":
                assert 1.5 < mid / far < 2.5
            case "exponential":  # doubling the distance squares the gap, but for powers
                assert 0.5 < math.log(far) / math.log(mid) / 2 < 1.3
                assert far > 1e-12
            case "super-exponential":
                assert far < 1e-12
        assert near >= mid >= far


@catalogue()
def test_homogeneity(name):
    phi = activations.get(name)
    h = jnp.array([-5.0, -1.3, 0.7, 5.0])
    degrees = [k for k in (0, 1, 2) if np.allclose(phi(3 * h), 3.0**k * phi(h), rtol=1e-12)]
    assert phi.homogeneous == (degrees[0] if degrees else None)


TOLD = {"C^0": 0, "C^1": 1, "real-analytic": math.inf, "entire": math.inf}


@pytest.mark.parametrize("fact_id", [i for i in FACTS if i.endswith(".qual")])
def test_agrees_with_the_qualitative_facts(fact_id):
    name, told = fact_id.split(".", 1)[1].removesuffix(".qual"), FACTS[fact_id]["value"]
    phi = (
        activations.leaky_relu(float(name.removeprefix("leaky_relu_")))
        if name.startswith("leaky_relu_")
        else activations.get(name)
    )
    (smoothness,) = {v for k, v in TOLD.items() if told["smoothness"].startswith(k)}
    assert phi.smoothness == smoothness
    assert phi.monotone == told["monotone"].startswith("yes")
    left, right = (limit is not None for limit in phi.saturation)
    word = {(False, False): "none", (True, False): "left", (True, True): "both"}[left, right]
    assert told["saturation"].startswith(word)
    low, high = told["range"].strip("[]()").split(",")
    np.testing.assert_allclose(phi.range, [float(low.rstrip(".")), float(high)], rtol=1e-4)


def test_slopes_at_kinks_are_those_of_jax():
    """A record of conventions: none of them follows from mathematics."""
    slopes = {n: activations.get(n).kink_slopes for n in ("relu", "relu6", "abs", "hard_tanh")}
    assert slopes == {"relu": (0.0,), "relu6": (0.0, 0.0), "abs": (1.0,), "hard_tanh": (1.0, 1.0)}
    np.testing.assert_allclose(activations.get("hard_swish").kink_slopes, (0.0, 1.0), atol=1e-15)
    assert activations.get("leaky_relu").kink_slopes == (1.0,)


@pytest.mark.parametrize(
    ("fn", "kinks"),
    [
        (lambda h: jnp.tanh(1000 * h), ()),
        (lambda h: jnp.exp(h * h), ()),
        (lambda h: jnp.sin(20 * h) * jax.nn.gelu(h), ()),
        (lambda h: jnp.floor(h / 3), tuple(float(k) for k in range(-15, 16, 3))),
        (lambda h: jnp.sin(jnp.abs(h - 2.5)) * jnp.exp(h), (2.5,)),
        (lambda h: jax.nn.relu(h - 0.123456) ** 3, (0.123456,)),
        (lambda h: jax.nn.hard_tanh(jax.nn.elu(2 * h)), (0.0, 0.5)),
        (lambda h: h * jnp.abs(h) / 100, (0.0,)),
    ],
)
def test_find_kinks(fn, kinks):
    assert activations.find_kinks(fn) == kinks


@settings(max_examples=cases(30))
@given(
    st.lists(st.integers(-1000, 1000), min_size=1, max_size=4, unique=True),
    st.integers(0, 2),
    st.floats(0.05, 3),
)
def test_find_kinks_of_random_splines(hundredths, order, size):
    knots = tuple(sorted(h / 100 for h in hundredths if h % 2 == 0)) or (0.0,)

    def spline(h):
        parts = (jnp.where(h > k, 1.0, 0.0) * (h - k) ** order for k in knots)
        return jnp.sin(h) + size * sum(parts)

    found = activations.get(spline)
    apart = np.min(np.diff(knots), initial=1) > 1 / 32
    if apart:
        assert found.kinks == knots
        assert found.smoothness == order - 1


def test_gates():
    """Written out, and the mean square of each argument's law by itself."""
    a, b = jnp.linspace(-2, 2, 5), jnp.array([1.0, -2.0, 3.0, 0.0, 0.5])
    for name, phi in (("silu", jax.nn.silu), ("sigmoid", jax.nn.sigmoid), ("relu", jax.nn.relu)):
        np.testing.assert_allclose(activations.gated(name)(a, b), phi(a) * b, rtol=1e-15)
    x, w = np.polynomial.hermite_e.hermegauss(60)
    w /= w.sum()
    first, second = (jnp.asarray(g) for g in np.meshgrid(x, 2 * x, indexing="ij"))
    square = np.asarray(activations.gated("silu")(first, second)) ** 2
    one = w @ np.asarray(jax.nn.silu(jnp.asarray(x))) ** 2
    np.testing.assert_allclose(w @ square @ w, one * 4, rtol=1e-12)


def test_get():
    assert activations.get(jnp.tanh) is activations.get("tanh")
    assert activations.get(activations.get("relu")) is activations.get("relu")
    assert activations.get(jnp.cbrt, kinks=(0.0,)).kinks == (0.0,)
    assert activations.get(lambda h: h).lipschitz is None
    assert len(set(activations.names())) == len(activations.names()) >= 27
    # Kinks are static: they are found while a surrounding function is traced.
    shifted = lambda h: jnp.abs(h - 1)
    assert jax.jit(lambda x: x + activations.get(shifted).kinks[0])(1.0) == 2.0


def test_bad_input():
    with pytest.raises(ValueError, match="no activation is named 'rulu'; want one of relu, "):
        activations.get("rulu")
    with pytest.raises(TypeError, match="want the name of an activation or a scalar callable"):
        activations.get(3)
    with pytest.raises(ValueError, match="fn must be a number everywhere; it is NaN at -16"):
        activations.get(jnp.log)
    with pytest.raises(TypeError, match="fn must map a scalar to a scalar; it returned"):
        activations.get(lambda h: jnp.stack([h, h]))
    with pytest.raises(TypeError, match=r"fn must return real floating-point .* returned int64"):
        activations.get(lambda h: jnp.sign(h).astype(jnp.int64))
    with pytest.raises(TypeError, match="it returned complex128"):
        activations.get(lambda h: jax.lax.complex(h, h))


@pytest.mark.parametrize("knee", [-12.0, -2.0, 0.25, 1.0, 2.0, 2.5, 3.0, 4.0, 7.0, 15.0])
def test_a_kink_is_found_where_the_derivative_at_it_is_that_of_a_tie(knee):
    assert activations.find_kinks(lambda h: jnp.minimum(h, knee)) == (knee,)
    assert activations.find_kinks(lambda h: jnp.maximum(h, knee)) == (knee,)
    assert activations.find_kinks(lambda h: jnp.clip(h, -16.5, knee)) == (knee,)
