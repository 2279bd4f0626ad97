"""Sites of unmodified models: found where the framework has its layers, and tapped unharmed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.networks import sites
from dltheory.networks.sites import SiteError
from tests.model_table import CASES, closed_over, deep_linen_scan, deep_scan, kinds, parameters
from tests.tier import FULL

table = pytest.mark.parametrize("case", parameters(CASES))


def mlp():
    f = lambda w, x: jnp.tanh(x @ w["W1"] + w["b1"][None]) @ w["W2"]
    return f, {"W1": jnp.ones((2, 3)), "b1": jnp.ones(3), "W2": jnp.ones((3, 1))}, jnp.ones((4, 2))


@table
def test_sites_values_and_output_are_those_of_the_table(case):
    f, params, x = case.build()
    program = sites.trace(f, params, x)
    found = sites.expand(program.layers)
    assert tuple(str(site) for site, _ in found) == case.sites
    assert {str(site) for site, layer in found if layer.is_cut} == set(case.cuts)
    given = dict(case.example_axes)
    axes = sites.example_axes(f, params, x, program)
    assert all(axes[layer.text] == given.get(str(site), 0) for site, layer in found)

    y, (eager, values) = f(params, x), program.run(params, x)
    allowed = 32 * jnp.finfo(y.dtype).eps * np.abs(y).max()
    # XLA compiles a scan's body as a whole, also in eager evaluation, and rounds as it fuses.
    np.testing.assert_allclose(eager, y, rtol=0, atol=allowed if case.scanned else 0)
    wanted = case.expected(params, x)
    for site, layer in found:
        value = values[layer.text][site.index or ()]
        assert (value.shape, value.dtype) == (site.shape, site.dtype)
        exact = 1e-14 if case.scanned else 0
        np.testing.assert_allclose(value, wanted[str(site)], rtol=0, atol=exact)

    if FULL or case in kinds():
        taps = jax.tree.map(jnp.zeros_like, values)
        compiled, _ = jax.jit(program.run)(params, x, taps)
        np.testing.assert_allclose(compiled, y, rtol=0, atol=allowed)


@pytest.mark.parametrize("case", parameters([case for case in kinds() if case.scanned]))
def test_run_one_operation_at_a_time_the_values_inside_scans_are_exact(case):
    f, params, x = case.build()
    program = sites.trace(f, params, x)
    with jax.disable_jit():
        y, (eager, values), wanted = f(params, x), program.run(params, x), case.expected(params, x)
    np.testing.assert_array_equal(eager, y)
    # Its norm calls jnp.var, a compiled function, which the traced program holds as it is.
    allowed = 1e-15 if case.name == "dltheory_residual" else 0
    for site, layer in sites.expand(program.layers):
        value = values[layer.text][site.index or ()]
        np.testing.assert_allclose(value, wanted[str(site)], rtol=0, atol=allowed)


def test_values_are_one_array_a_site():
    f, params, x = deep_scan(3, 2)
    values = sites.values(f, params, x)
    _, stacked = sites.tapped(f, params, x)(params, x)
    for i, (site, value) in enumerate(values.items()):
        assert site.index == (i,)
        np.testing.assert_array_equal(value, stacked[site.name][i])


def test_a_tap_adds_to_the_value_and_to_all_that_follows():
    f, params, x = mlp()
    run = sites.tapped(f, params, x)
    tap = jnp.arange(12.0).reshape(4, 3)
    y, values = run(params, x, {"W1": tap})
    h = x @ params["W1"] + params["b1"][None] + tap
    np.testing.assert_array_equal(values["W1"], h)
    np.testing.assert_array_equal(y, jnp.tanh(h) @ params["W2"])


def test_a_severed_layer_records_what_reached_it_and_goes_on_from_what_it_was_given():
    f, params, x = mlp()
    program = sites.trace(f, params, x)
    other = jnp.full((4, 3), 0.5)
    y, values = program.run(params, x, {}, {"W1": other})
    np.testing.assert_array_equal(values["W1"], x @ params["W1"] + params["b1"][None])
    np.testing.assert_array_equal(y, jnp.tanh(other) @ params["W2"])


@pytest.mark.parametrize("remat", [False, True])
def test_a_remat_and_a_compiled_call_stay_what_they_are(remat):
    call = jax.checkpoint if remat else jax.jit
    f = lambda w, x: call(lambda h: jnp.tanh(h @ w))(x).sum(-1, keepdims=True)
    w, x = jnp.eye(3), jnp.ones((2, 3))
    program = jax.make_jaxpr(sites.tapped(f, w, x))(w, x)
    names = {eqn.primitive.name for eqn in program.eqns}
    assert names & ({"remat2", "checkpoint", "remat"} if remat else {"jit", "pjit"})


def test_sites_of_a_bare_array_of_params():
    found = sites.find(lambda w, x: x @ w, jnp.ones((2, 3)), jnp.ones((4, 2)))
    assert [site.shape for site in found] == [(4, 3)]


def test_dead_code_holds_no_site():
    f, params, x = mlp()

    def g(params, x):
        _ = jnp.tanh(x @ params["W1"]) @ params["unused"]
        return f(params, x)

    found = sites.find(g, {**params, "unused": jnp.ones((3, 3))}, x)
    assert [str(site) for site in found] == ["W1", "W2"]


def test_a_nonlinearity_between_ends_a_layer():
    f = lambda w, x: jax.nn.silu(x @ w["W"]) * w["scale"][None]
    found = sites.find(f, {"W": jnp.ones((2, 3)), "scale": jnp.ones(3)}, jnp.ones((4, 2)))
    assert [str(site) for site in found] == ["W", "scale"]


def test_integer_and_stopped_paths_do_not_undo_a_cut():
    def f(w, x):
        h = x @ w["W1"]
        sign = (x > 0).astype(x.dtype) @ jnp.ones((2, 3))
        return (jnp.tanh(h) + sign + jax.lax.stop_gradient(x) @ jnp.ones((2, 3))) @ w["W2"]

    w = {"W1": jnp.ones((2, 3)), "W2": jnp.ones((3, 1))}
    layers = sites.trace(f, w, jnp.ones((4, 2))).layers
    assert [layer.is_cut for layer in layers] == [True, True]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("build", [deep_scan, deep_linen_scan])
def test_a_scan_of_a_thousand_layers_stays_one_scan(build, reverse):
    f, params, x = build(1000, 8)
    run = sites.tapped(f, params, x)
    fun = lambda x: run(params, x)[0].sum()
    program = jax.make_jaxpr(jax.grad(fun) if reverse else fun)(x)

    def equations(jaxpr):
        inner = [jax.extend.core.jaxprs_in_params(eqn.params) for eqn in jaxpr.eqns]
        return len(jaxpr.eqns) + sum(equations(one) for group in inner for one in group)

    assert equations(program.jaxpr) < 300
    assert len(sites.find(f, params, x)) == 1000


def test_closed_sites_refuse_what_is_inside_by_name():
    f, params, x = next(case for case in CASES if case.name == "custom_vjp").build()
    program = sites.trace(f, params, x)
    with pytest.raises(SiteError, match=r"'ruled/W' lies inside 'ruled'.*name 'ruled' instead"):
        program.layer("ruled/W")


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda f, w, x: sites.find(f, w, x.astype(int)), TypeError, r"x must be .* \['int64'\]"),
        (lambda f, w, x: sites.find(f, w, (x, x)), TypeError, "x must be one array of floats"),
        (lambda _, w, x: sites.find(lambda _, x: (x, x), w, x), TypeError, "return one of them"),
        (lambda f, w, x: sites.find(f, w, x[:, :1]), SiteError, r"cannot be traced: TypeError"),
        (lambda *_: sites.find(*closed_over()), SiteError, "has no layer.*constants to it"),
        (
            lambda f, w, x: sites.trace(f, w, x).layer("W3"),
            SiteError,
            "no site is named 'W3'; the model has: W1, W2",
        ),
        (
            lambda f, w, x: sites.tapped(f, w, x)(w, x, {"W9": x}),
            SiteError,
            r"a tap is on no layer: 'W9'; the model has \['W1', 'W2'\]",
        ),
        (
            lambda f, w, x: sites.tapped(f, w, x)(w, x, {"W1": x}),
            SiteError,
            r"tap on 'W1' has shape \(4, 2\), want \(4, 3\)",
        ),
        (
            lambda f, w, x: sites.tapped(f, w, x)(w, x[:2]),
            SiteError,
            r"x is float64\[2, 2\], but the model was traced with float64\[4, 2\]",
        ),
        (
            lambda f, w, x: sites.tapped(f, w, x)({**w, "W1": x}, x),
            SiteError,
            r"params\['W1'\] is float64\[4, 2\], but the model was traced with float64\[2, 3\]",
        ),
        (
            lambda f, w, x: sites.tapped(f, w, x)({"W1": x}, x),
            SiteError,
            "params has the structure",
        ),
    ],
)
def test_errors_name_what_was_given_and_what_is_wanted(call, error, text):
    with pytest.raises(error, match=text):
        call(*mlp())


def test_a_model_without_its_rng_says_what_to_give():
    import flax.linen as nn

    model = nn.Dropout(0.5, deterministic=False)
    f = lambda w, x: model.apply({}, x @ w)
    with pytest.raises(SiteError, match=r"rngs=\{\"dropout\": key\}"):
        sites.find(f, jnp.ones((2, 2)), jnp.ones((3, 2)))
