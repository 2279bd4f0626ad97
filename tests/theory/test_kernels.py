"""NNGP and tangent kernels against the facts, and against recursions written out with numpy."""

import itertools
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.theory import dual, kernels
from dltheory.theory.kernels import ConvNet
from tests.facts import FACTS, assert_agrees
from tests.tier import FULL

NUMERIC = [i for i in FACTS if i.startswith("ntk.") and i != "ntk.fluct"]  # that one is an order
RHOS = (-0.5, 0.0, 0.5, 0.9, 1.0)


@cache
def dense(name, depth):
    """Kernels of unit inputs at all of the correlations, one compilation for all variances."""

    @jax.jit
    def run(q, cov, weight_var, bias_var):
        variances = {"weight_var": weight_var, "bias_var": bias_var}
        return kernels.nngp_ntk(name, q, cov, q, depth=depth, **variances)

    return run


def normalised(depth, rho):
    k = dense("relu", depth)(jnp.ones(len(RHOS)), jnp.array(RHOS), 2.0, 0.0)
    return [v[RHOS.index(rho)] for v in k]


def general(name, depth, rho, weight_var, bias_var):
    q, cov = (weight_var * jnp.array(r) + bias_var for r in ((1.0,) * len(RHOS), RHOS))
    k = dense(name, depth)(q, cov, weight_var, bias_var)
    return [v[RHOS.index(r)] for r in (rho, 1.0) for v in k]


def fourier(kernel):
    """The Fourier coefficients of a one-layer kernel on the circle, smooth from 0 to pi."""
    nodes, weights = np.polynomial.legendre.leggauss(48)
    angle = np.pi / 2 * (nodes + 1)
    k = kernels.nngp_ntk("relu", 1.0, jnp.cos(angle), 1.0, depth=1, weight_var=2.0)
    waves = np.cos(np.arange(9)[:, None] * angle)
    return waves @ (weights * np.asarray(getattr(k, kernel))) / 2


def gram_eigenvalues():
    """Three points of the circle, at 0, 1 and 2.5 radians; two hidden layers."""
    angle = jnp.array([0.0, 1.0, 2.5])
    x = jnp.stack([jnp.cos(angle), jnp.sin(angle)], 1)
    first = kernels.first_layer(x, weight_var=2.0)  # of two coordinates: x . y
    k = kernels.nngp_ntk("relu", *first, depth=2, weight_var=2.0)
    return np.linalg.eigvalsh(k.ntk)[::-1]


TABLE = [
    (r"ntk\.relu\.L(\d+)\.r(.+)", lambda depth, rho: normalised(int(depth), float(rho))),
    (r"ntk\.relu\.L(\d+)\.diag", lambda depth: normalised(int(depth), 1.0)),
    (r"ntk\.relu\.limit\.L(10)", lambda depth: normalised(int(depth), 0.0)[1] / 11),
    (
        r"ntk\.(erf|relu)(?:_bias)?\.L(\d+)\.r(.+)",
        lambda name, depth, rho: general(name, int(depth), float(rho), 2.0, 0.1),
    ),
    (r"ntk\.(tanh)\.L1", lambda name: general(name, 1, 0.5, 1.5, 0.1)),
    (r"ntk\.circle\.(nngp|ntk)", fourier),
    (r"ntk\.regression\.eigs", gram_eigenvalues),
]
CALLS = {}
for fact_id in NUMERIC:
    matches = ((call, re.fullmatch(pattern, fact_id)) for pattern, call in TABLE)
    CALLS[fact_id] = next((call, m.groups()) for call, m in matches if m)


@pytest.mark.parametrize("fact_id", CALLS)
def test_agrees_with_the_facts(fact_id):
    call, groups = CALLS[fact_id]
    assert_agrees(fact_id, call(*groups))


def test_the_facts_are_covered():
    assert set(CALLS) == set(NUMERIC)


# ------------------------------------------------------------------- recursions written out


def arc_cosine(q1, q2, cov):
    """E phi phi and E phi' phi' of ReLU."""
    rho = np.clip(cov / np.sqrt(q1 * q2), -1, 1)
    angle = np.pi - np.arccos(rho)
    value = np.sqrt(q1 * q2) * (np.sqrt(1 - rho**2) + rho * angle) / (2 * np.pi)
    return value, angle / (2 * np.pi)


def test_residual_recursion():
    branch, weight_var, bias_var = 0.7, 1.8, 0.2
    q, other, cov = 1.3, 0.4, -0.2
    ntk = cov
    for block in range(4):
        (a, _), (b, _) = (arc_cosine(v, v, v) for v in (q, other))
        value, slope = arc_cosine(q, other, cov)
        a, b, value = (weight_var * v + bias_var for v in (a, b, value))
        if block < 3:
            ntk = ntk + branch**2 * (value + weight_var * slope * ntk)
            q, other, cov = (v + branch**2 * u for v, u in ((q, a), (other, b), (cov, value)))
    wanted = value, value + weight_var * slope * ntk
    variances = {"weight_var": weight_var, "bias_var": bias_var, "branch": branch}
    k = kernels.residual_nngp_ntk("relu", 1.3, -0.2, 0.4, depth=3, **variances)
    np.testing.assert_allclose(k, wanted, rtol=1e-13)


@pytest.mark.parametrize("name", ["relu", *["hard_tanh", "selu"] * FULL])
def test_kernels_of_a_point_with_itself_are_exact_at_kinks(name):
    """The slope of a kinked kernel is singular there: a correlation of 1 - eps costs 1e-8."""
    q = wanted = 1.1
    for _ in range(2):
        slope = dual.derivative_moment(name, q)
        q = 1.7 * dual.moment(name, q) + 0.1
        wanted = q + 1.7 * slope * wanted
    k = jax.jit(lambda v: kernels.nngp_ntk(name, v, v, v, depth=2, weight_var=1.7, bias_var=0.1))(
        1.1
    )
    np.testing.assert_allclose(k.nngp, q, rtol=1e-14)
    np.testing.assert_allclose(k.ntk, wanted, rtol=1e-13)


def conv_reference(x, y, net, depth, weight_var, bias_var):
    """All pairs of positions, one by one."""
    shape = x.shape[1:-1]
    places = list(itertools.product(*map(range, shape)))
    window = range(-((net.size - 1) // 2), net.size // 2 + 1)

    def mean(k):
        out = np.zeros_like(k)
        for i, p in enumerate(places):
            for j, r in enumerate(places):
                for delta in itertools.product(window, repeat=len(shape)):
                    one, two = np.add(p, delta), np.add(r, delta)
                    if net.padding == "CIRCULAR":
                        one, two = one % shape, two % shape
                    elif np.any([one < 0, two < 0, one >= shape, two >= shape]):
                        continue
                    at = places.index(tuple(one)), places.index(tuple(two))
                    out[i, j] += k[at] / net.size ** len(shape)
        return out

    x, y = (a.reshape(len(places), -1) for a in (x[0], y[0]))
    pairs = [(x, x), (x, y), (y, y)]
    xx, xy, yy = (weight_var * mean(a @ b.T / a.shape[1]) + bias_var for a, b in pairs)
    ntk = xy
    blocks = depth if net.branch is not None else depth - 1
    for step in range(blocks + 1):
        q, other = np.diag(xx)[:, None], np.diag(yy)[None, :]
        value, slope = arc_cosine(q, other, xy)
        if step == blocks:
            average = (lambda k: k.mean()) if net.pool else (lambda k: np.diag(k).mean())
            nngp = weight_var * average(value) + bias_var
            return nngp, nngp + weight_var * average(slope * ntk)
        new = [arc_cosine(q, q.T, xx)[0], value, arc_cosine(other.T, other, yy)[0]]
        new = [weight_var * mean(k) + bias_var for k in new]
        through = new[1] + weight_var * mean(slope * ntk)
        if net.branch is None:
            (xx, xy, yy), ntk = new, through
        else:
            xx, xy, yy = (k + net.branch**2 * n for k, n in zip((xx, xy, yy), new, strict=True))
            ntk = ntk + net.branch**2 * through
    raise AssertionError


@pytest.mark.parametrize(
    ("shape", "net"),
    [
        ((4, 5, 2), ConvNet(3, "SAME", pool=True)),
        ((4, 3, 2), ConvNet(3, "CIRCULAR", pool=False, branch=0.5)),
        ((6, 2), ConvNet(4, "SAME", pool=False)),
        ((6, 2), ConvNet(2, "CIRCULAR", pool=True)),
    ],
    ids=str,
)
def test_convolutional_recursion(shape, net):
    x, y = (jax.random.normal(jax.random.key(i), (1, *shape)) for i in (0, 1))
    variances = {"weight_var": 1.9, "bias_var": 0.1}
    k = jax.jit(lambda x: kernels.conv_nngp_ntk("relu", x, y, net, depth=2, **variances))(x)
    wanted = conv_reference(np.asarray(x), np.asarray(y), net, 2, 1.9, 0.1)
    np.testing.assert_allclose([k.nngp[0, 0], k.ntk[0, 0]], wanted, rtol=1e-12)


def test_images_of_one_pixel_are_plain_inputs():
    x = jax.random.normal(jax.random.key(0), (3, 1, 5))
    variances = {"weight_var": 1.5, "bias_var": 0.3}

    @jax.jit
    def both(x):
        first = kernels.first_layer(x[:, 0], x[:2, 0], **variances)
        image = kernels.conv_nngp_ntk("erf", x, x[:2], ConvNet(1), depth=3, **variances)
        return image, kernels.nngp_ntk("erf", *first, depth=3, **variances)

    for a, b in zip(*both(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13)


# ------------------------------------------------------------------------------- everything else


def test_without_hidden_layers_the_first_layer_is_left():
    k = kernels.nngp_ntk("tanh", 1.0, 0.3, 2.0, depth=0, weight_var=2.0)
    assert (k.nngp.item(), k.ntk.item()) == (0.3, 0.3)


@pytest.mark.usefixtures("float32")
def test_dtype_follows_the_covariances():
    run = jax.jit(lambda q, k: kernels.nngp_ntk("relu", q, k, 1.0, depth=1, weight_var=2.0))
    k = run(jnp.ones((2, 1)), jnp.zeros((2, 3)))
    assert k.ntk.shape == (2, 3)
    assert k.ntk.dtype == jnp.float32
    np.testing.assert_allclose(k.nngp, 1 / np.pi, rtol=1e-6)


def test_derivatives_in_every_argument():
    def ntk(args):
        q, cov, other, weight_var, bias_var = args
        variances = {"weight_var": weight_var, "bias_var": bias_var}
        return kernels.nngp_ntk("relu", q, cov, other, depth=3, **variances).ntk

    args, step = jnp.array([1.2, 0.4, 0.7, 1.9, 0.1]), 1e-5 * jnp.eye(5)
    run = jax.jit(jax.vmap(ntk))
    wanted = (run(args[None] + step) - run(args[None] - step)) / 2e-5
    np.testing.assert_allclose(jax.jit(jax.grad(ntk))(args), wanted, rtol=1e-7)


def test_what_is_illegal_under_tracing_is_nan():
    run = dense("relu", 1)
    one, half = jnp.ones(len(RHOS)), jnp.full(len(RHOS), 0.5)
    for args in (
        (one, half, -1.0, 0.0),
        (one, half, 1.0, -1.0),
        (-one, half, 1.0, 0.0),
        (one, 3 * one, 1.0, 0.0),
        (one * jnp.nan, half, 1.0, 0.0),
    ):
        assert np.all(np.isnan(run(*args)))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"depth": -1}, "depth must be zero or more; got -1"),
        ({"weight_var": -2.0}, "weight_var must be zero or more; got -2.0"),
        ({"bias_var": -2.0}, "bias_var must be zero or more; got -2.0"),
        ({"weight_var": jnp.ones(3)}, "weight_var must be one number; got shape (3,)"),
        ({"k_xx": -1.0}, "k_xx and k_yy must be zero or more, and k_xy at most sqrt(k_xx k_yy)"),
        ({"k_xy": 1.1}, "k_xy at most sqrt(k_xx k_yy) in size; got 1.0, 1.1 and 1.0"),
        ({"k_xx": jnp.ones(3), "k_xy": jnp.ones((3, 3))}, "k_xx, k_xy and k_yy must broadcast"),
        ({"k_xx": jnp.ones(3), "k_xy": jnp.ones(2)}, "(N, M) and (1, M); got (3,), (2,), ()"),
    ],
)
def test_errors(change, text):
    good = {"k_xx": 1.0, "k_xy": 0.5, "k_yy": 1.0, "depth": 1, "weight_var": 2.0}
    for function in (kernels.nngp_ntk, kernels.residual_nngp_ntk):
        with pytest.raises(ValueError, match=re.escape(text)):
            function("relu", **good | change)


def test_errors_of_inputs():
    x = jnp.ones((2, 4, 4, 3))
    calls = [
        (lambda: kernels.first_layer(x, weight_var=1.0), "x and y must be matrices of one width"),
        (
            lambda: kernels.first_layer(x[0, 0], x[0, 0, :, :2], weight_var=1.0),
            "got (4, 3) and (4, 2)",
        ),
        (
            lambda: kernels.conv_nngp_ntk("relu", x, x[:, 1:], depth=1, weight_var=1.0),
            "x and y must be images of one size",
        ),
        (
            lambda: kernels.conv_nngp_ntk("relu", x[0, 0], depth=1, weight_var=1.0),
            "of one or two spatial dimensions; got (4, 3) and (4, 3)",
        ),
        (
            lambda: kernels.conv_nngp_ntk("relu", x, depth=0, weight_var=1.0),
            "size and depth must be one or more; got 3 and 0",
        ),
        (
            lambda: kernels.conv_nngp_ntk(
                "relu", x, x, ConvNet(padding="VALID"), depth=1, weight_var=1.0
            ),
            "padding is 'VALID'; want one of CIRCULAR, SAME",
        ),
        (
            lambda: kernels.conv_nngp_ntk("relu", x, depth=1, weight_var=-1.0),
            "weight_var must be zero or more; got -1.0",
        ),
    ]
    for call, text in calls:
        with pytest.raises(ValueError, match=re.escape(text)):
            call()
