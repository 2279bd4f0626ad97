"""Empirical tangent kernels against explicit Jacobians, and against theory as width grows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import factored, ntk
from dltheory.networks.sites import SiteError
from dltheory.theory import kernels
from tests.model_table import CASES, parameters
from tests.tier import FULL

# One of each kind for the quick tier.
_KINDS = (
    "linen_cnn",
    "linen_attention",
    "linen_shared",
    "nnx_eval",
    "stacked_by_hand",
    "tied_weights",
    "low_rank",
    "ntk_parametrised",
    "block_scalar",
    "batch_at_axis_1",
    "custom_vjp",
    "scan_remat",
    "nested_scan",
)
_COUPLED = ("linen_dropout_train", "linen_batch_norm_train", "nnx_train")
_MEASURED = [c for c in CASES if c.name not in _COUPLED and (FULL or c.name in _KINDS)]


def explicit(f, params, x1, x2):
    """The contraction of full Jacobians, of all floats in the parameters."""
    leaves, structure = jax.tree.flatten(params)
    floats = [i for i, a in enumerate(leaves) if jnp.issubdtype(a.dtype, jnp.floating)]

    def jacobian(x):
        def run(given):
            all_leaves = list(leaves)
            for i, leaf in zip(floats, given, strict=True):
                all_leaves[i] = leaf
            return f(jax.tree.unflatten(structure, all_leaves), x).reshape(x.shape[0], -1)

        parts = jax.jacrev(run)([leaves[i] for i in floats])
        return jnp.concatenate([p.reshape(*p.shape[:2], -1) for p in parts], -1)

    return jnp.einsum("nok,mpk->nmop", jacobian(x1), jacobian(x2))


def assert_explicit(f, params, x1, x2=None, tolerance=1e-10, **options):
    other = x1 if x2 is None else x2
    both = jax.jit(
        lambda p: (ntk.empirical_ntk(f, p, x1, x2, **options), explicit(f, p, x1, other))
    )
    measured, wanted = both(params)
    assert measured.shape == wanted.shape
    assert measured.dtype == wanted.dtype
    scale = jnp.max(jnp.abs(wanted))
    np.testing.assert_allclose(measured / scale, wanted / scale, rtol=0, atol=tolerance)
    return measured


@pytest.mark.parametrize("case", parameters(_MEASURED))
def test_equals_explicit_jacobians(case):
    f, params, x = case.build()
    kernel = assert_explicit(f, params, x)
    np.testing.assert_allclose(kernel, jnp.transpose(kernel, (1, 0, 3, 2)), atol=1e-10)
    n, _, o, _ = kernel.shape
    values = np.linalg.eigvalsh(jnp.moveaxis(kernel, 2, 1).reshape(n * o, n * o))
    assert values[0] >= -1e-10 * values[-1]


def forms(f, params, x):
    """How many parameters' gradients stay in factors, in how many uses, and how many are formed."""
    plan = factored.plan(f, params, x)
    leaves = {use.view.leaf for group in plan.groups for use in group}
    return len(leaves), sum(map(len, plan.groups)), len(plan.explicit)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape) / shape[0] ** 0.5


def slices(p, x):
    """One packed leaf, cut in three, one part of which serves twice."""
    h = jnp.tanh(x @ p["W"][:, :4]) + jnp.sin(x @ p["W"][:, 4:])
    return jnp.tanh(h @ (0.5 * p["W"][:, :4])) @ (-p["V"] / 3)


def overlapping(p, x):
    return jnp.tanh(x @ p["W"][:, :4]) @ p["W"][:, 3:7]


def merged(p, x):
    return jnp.tanh(x @ p["W"].reshape(4, 2, 2, 2).reshape(4, 8).T.T)[:, :4] @ p["V"]


def masked(p, x):
    """A product with a mask is no rearrangement; nor is a weight that also regularises."""
    return jnp.tanh(x @ (p["W"] * jnp.eye(4, 8))) @ p["U"] * (1 + jnp.sum(p["V"] ** 2))


def products(p, x):
    """Weights of their own for each group of features."""
    h = jnp.einsum("ngd,gde->nge", x.reshape(-1, 2, 2), p["W"].reshape(2, 2, 8))
    return jnp.tanh(h).reshape(-1, 16)[:, :4] @ p["V"]


def inverse(p, x):
    """A weight in the denominator: 1 / W must not pass for W."""
    return jnp.tanh(x @ (0.1 / p["W"])) @ p["U"]


def strided(p, x):
    """A convolution with strides, dilation, uneven padding and another order of the axes."""
    image = jnp.tanh(jnp.outer(jnp.arange(1.0, 8.0), jnp.ones(2)))[None] * x[:, :2][:, None]
    kernel = p["W"].reshape(2, 4, 4)  # in, window, out
    h = jax.lax.conv_general_dilated(
        image,
        kernel,
        (2,),
        [(1, 2)],
        lhs_dilation=(2,),
        rhs_dilation=(2,),
        dimension_numbers=("NWC", "IWO", "WNC"),
    )
    return jnp.tanh(jnp.moveaxis(h, 1, 0)).sum(1) @ p["V"]


MODELS = {
    slices: (2, 4, 0),
    overlapping: (0, 0, 1),
    merged: (2, 2, 0),
    masked: (1, 1, 2),
    products: (2, 2, 0),
    inverse: (1, 1, 1),
    strided: (2, 2, 0),
}


@pytest.mark.parametrize(("f", "wanted"), MODELS.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_finds_the_factors(f, wanted):
    params = {"W": normal(0, 4, 8), "V": normal(1, 4, 3), "U": normal(2, 8, 2)}
    x = normal(3, 3, 4)
    assert forms(f, params, x) == wanted
    assert_explicit(f, params, x)


def recurrent(p, x):
    """The same weights at every step of a scan, one slice of them once more behind it."""
    step = lambda h, u: (jnp.tanh(h @ p["W"][:, :4] + u @ p["U"]), None)
    h, _ = jax.lax.scan(step, x @ p["V"], jnp.stack([x, 2 * x, x**2]))
    return h @ p["W"][:, 4:]


def test_a_stack_of_no_layers_adds_nothing():
    f = lambda w, x: jax.lax.scan(lambda h, u: (jnp.tanh(h @ u), None), x @ w["V"], w["U"])[0]
    w = {"V": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3))), "U": jnp.ones((0, 3, 3))}
    assert_explicit(f, w, jnp.asarray(np.random.default_rng(1).normal(size=(2, 4))))


def test_recurrent_weights():
    params = {"W": normal(0, 4, 7), "U": normal(1, 4, 4), "V": normal(2, 4, 4)}
    x = normal(3, 3, 4)
    assert forms(recurrent, params, x) == (3, 4, 0)
    assert_explicit(recurrent, params, x)


@pytest.mark.parametrize("way", ["_by_grams", "_by_sweep", "_by_gradients"])
def test_all_ways_to_contract_agree(way):
    first = [normal(i, 3, o, 4, size) for i, (o, size) in enumerate([(1, 5), (2, 6)])]
    second = [normal(i, 2, o, 7, size) for i, (o, size) in enumerate([(1, 5), (2, 6)])]
    formed = [jnp.einsum("nta,notb->noab", r[:, 0], c) for r, c in (first, second)]
    wanted = jnp.einsum("noab,mpab->nomp", *formed)
    np.testing.assert_allclose(getattr(factored, way)(*first, *second), wanted, rtol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "way"),
    [((1, 64, 64), "_by_grams"), ((16, 64, 64), "_by_sweep"), ((256, 8, 8), "_by_gradients")],
    ids=str,
)
def test_the_cheapest_way_is_taken(sizes, way, monkeypatch):
    taken = []
    for name in ("_by_grams", "_by_sweep", "_by_gradients"):
        function = getattr(factored, name)
        monkeypatch.setattr(
            factored, name, lambda *a, name=name, fn=function: taken.append(name) or fn(*a)
        )
    t, a, b = sizes
    rows, columns = jnp.ones((2, 1, 1, t, a)), jnp.ones((2, 4, 1, t, b))
    factored.inner(([(rows, columns)], []), ([(rows, columns)], []))
    assert taken == [way]


def test_one_set_with_itself_needs_half_the_products(monkeypatch):
    """From a few examples on the kernel is put together of blocks, here uneven ones."""
    first = [jnp.asarray(normal(i, 5, o, 3, 4)) for i, o in enumerate((1, 2))]
    gradients = [tuple(a[:, :, None] for a in first)], [normal(2, 5, 2, 6)]
    wanted = factored.inner(gradients, gradients)
    products = []
    count = factored._products
    monkeypatch.setattr(
        factored, "_products", lambda a, b: products.append(a.shape[0] * b.shape[0]) or count(a, b)
    )
    for half, cost in ((3, 25), (2, 19)):
        monkeypatch.setattr(factored, "_HALF", half)
        products.clear()
        np.testing.assert_allclose(factored.inner(gradients), wanted, rtol=1e-12)
        assert sum(products) == 2 * cost  # one in factors, one formed


@pytest.mark.usefixtures("float32")
def test_other_inputs_in_blocks():
    """Blocks that do not divide the sets; in JAX's default precision."""
    params = [jnp.asarray(normal(i, 4, 4), jnp.float32) for i in range(3)]
    f = lambda p, x: jnp.tanh(jnp.tanh(x @ p[0]) @ p[1] + p[2][0][None])
    x = jnp.asarray(normal(4, 8, 4), jnp.float32)
    for size in (2, 100):
        assert_explicit(f, params, x[:5], x[5:], tolerance=1e-6, batch_size=size)
    assert_explicit(f, params, x[:5], x[5:], tolerance=1e-6)


def test_parameters_that_do_not_matter():
    x = jnp.ones((2, 3))
    zero = ntk.empirical_ntk(lambda _, x: jnp.tanh(x), {"unused": jnp.ones(3)}, x)
    np.testing.assert_array_equal(zero, np.zeros((2, 2, 3, 3)))
    count = {"W": jnp.eye(3), "steps": jnp.arange(3)}
    kernel = ntk.empirical_ntk(lambda p, x: x @ p["W"] + p["steps"][None].astype(float), count, x)
    np.testing.assert_allclose(kernel[0, 1], 3 * np.eye(3))


# --------------------------------------------------------------------------- beside the theory


def relu_network(depth, weight_var=2.0, bias_var=0.1):
    """A ReLU network in the NTK parameterization, and its parameters from a key."""

    def f(params, x):
        for i, (W, b) in enumerate(params):
            h = x if i == 0 else jax.nn.relu(x)
            x = (weight_var / h.shape[1]) ** 0.5 * (h @ W) + bias_var**0.5 * b[None]
        return x

    def init(key, inputs, width):
        sizes = [inputs, *[width] * depth, 1]
        keys = jax.random.split(key, 2 * (depth + 1)).reshape(2, depth + 1)
        return [
            (jax.random.normal(k, (a, b)), jax.random.normal(c, (b,)))
            for k, c, a, b in zip(*keys, sizes, sizes[1:], strict=False)
        ]

    return f, init


def test_fluctuates_about_theory_as_the_root_of_width():
    f, init = relu_network(depth=2)
    x = jnp.asarray([[1.0, 0.5, -0.3], [0.2, -1.0, 0.8]])
    variances = {"weight_var": 2.0, "bias_var": 0.1}
    wanted = kernels.nngp_ntk("relu", *kernels.first_layer(x, **variances), depth=2, **variances)
    widths, seeds = ((12, 36, 108), 300) if FULL else ((24, 96), 200)

    def spread(width):
        def one(key):
            return ntk.empirical_ntk(f, init(key, 3, width), x)[:, :, 0, 0]

        samples = jax.jit(lambda keys: jax.lax.map(one, keys))(
            jax.random.split(jax.random.key(width), seeds)
        )
        error = samples - wanted.ntk[None]
        bias, noise = error.mean(0), error.std(0) / seeds**0.5
        assert np.all(np.abs(bias) < 4 * noise + 3 * wanted.ntk / width)
        return float(jnp.sqrt(jnp.mean((error / wanted.ntk[None]) ** 2)))

    exponent = np.polyfit(np.log(widths), np.log([spread(width) for width in widths]), 1)[0]
    # Four standard errors of a root mean square over so many seeds.
    assert abs(exponent + 0.5) < (0.08 if FULL else 0.2)


@pytest.mark.parametrize(
    ("padding", "pool"),
    [("SAME", True), ("CIRCULAR", False), *[("SAME", False), ("CIRCULAR", True)] * FULL],
)
def test_one_convolution_agrees_with_theory_at_any_width(padding, pool):
    """With one hidden layer the mean over initialisations is exact, whatever the channels."""
    channels, spatial, weight_var, bias_var = 6, (4, 3), 1.7, 0.2
    x = normal(0, 2, *spatial, 2) * 2**0.5
    positions = 1 if pool else 12

    def f(params, x):
        K, b, V, c = params
        padded = x
        if padding == "CIRCULAR":
            padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
        h = jax.lax.conv_general_dilated(
            padded,
            (weight_var / 18) ** 0.5 * K,
            (1, 1),
            "SAME" if padding == "SAME" else "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        h = jax.nn.relu(h + bias_var**0.5 * b.reshape(1, 1, 1, -1))
        h = h.mean((1, 2)) if pool else h.reshape(h.shape[0], -1)
        return (weight_var / h.shape[1]) ** 0.5 * (h @ V) + bias_var**0.5 * c[None]

    def one(key):
        shapes = [(3, 3, 2, channels), (channels,), (positions * channels, 1), (1,)]
        keys = jax.random.split(key, 4)
        params = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
        return ntk.empirical_ntk(f, params, x)[:, :, 0, 0], f(params, x)[:, 0]

    keys = jax.random.split(jax.random.key(1), 400)
    samples, y = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    net = kernels.ConvNet(3, padding, pool)
    wanted = kernels.conv_nngp_ntk(
        "relu", x, net=net, depth=1, weight_var=weight_var, bias_var=bias_var
    )
    for sample, theory in ((samples, wanted.ntk), (y[:, :, None] * y[:, None], wanted.nngp)):
        noise = sample.std(0) / np.sqrt(len(sample))
        assert np.all(np.abs(sample.mean(0) - theory) < 4 * noise)


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "case", parameters([c for c in CASES if c.name in _COUPLED[: 3 if FULL else 2]])
)
def test_coupled_examples_are_refused(case):
    f, params, x = case.build()
    with pytest.raises(SiteError, match="the model couples examples: alone an example gives"):
        ntk.empirical_ntk(f, params, x)
    assert np.all(np.isnan(jax.jit(lambda p: ntk.empirical_ntk(f, p, x))(params)))


def test_nan_in_weights_gives_nan():
    run = jax.jit(lambda p: ntk.empirical_ntk(lambda p, x: jnp.tanh(x @ p), p, jnp.ones((2, 3))))
    assert np.all(np.isnan(run(jnp.full((3, 2), jnp.nan))))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"x1": jnp.ones((0, 3))}, "x1 has shape (0, 3), want (N, ...) with N >= 1 examples"),
        ({"x2": jnp.ones(())}, "x2 has shape (), want (N, ...) with N >= 1 examples"),
        ({"x2": jnp.ones((2, 4))}, "x1 and x2 must hold examples of one shape and dtype"),
        ({"batch_size": 0}, "batch_size must be one or more; got 0"),
        ({"f": lambda p, x: (x @ p).sum()}, "f must return (N, ...) for N examples; one example"),
        ({"f": lambda p, x: (x @ p).sum(0, keepdims=True)}, "for 2 it returns the shape (1, 3)"),
    ],
)
def test_errors(change, text):
    given = {"f": lambda p, x: x @ p, "params": jnp.eye(3), "x1": jnp.ones((2, 3))} | change
    with pytest.raises(ValueError, match=re.escape(text)):
        ntk.empirical_ntk(**given)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"f": lambda p, x: (x @ p, x)}, "f must return one array of floats; got ['float64'"),
        ({"f": lambda p, x: x @ p > 0}, "f must return one array of floats; got ['bool']"),
        ({"params": jnp.eye(3, dtype=complex)}, "params must be real; split complex ones"),
    ],
)
def test_errors_of_type(change, text):
    given = {"f": lambda p, x: x @ p.real, "params": jnp.eye(3), "x1": jnp.ones((2, 3))} | change
    with pytest.raises(TypeError, match=re.escape(text)):
        ntk.empirical_ntk(**given)
