"""What is said of programs between the corners of a simplex holds there; cuts make it exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.numerics import intervals, simplex_forms, simplex_sup
from tests.tier import cases

RNG = np.random.default_rng(0)
W, B, V = RNG.normal(size=(2, 6)), RNG.normal(size=6), RNG.normal(size=6)
PROGRAMS = {
    "relu": lambda x: jnp.maximum(x @ W + B, 0) @ V,
    "chosen": lambda x: jnp.sum(jnp.where(x @ W > B, x @ W - B, 0.1 * (x @ W - B)) * V),
    "jump": lambda x: jnp.where(x[0] < x[1], 1.0, x[0]),
    "minmax": lambda x: jnp.minimum(jnp.abs(x[0]), jnp.maximum(x[1], 0.2)) - x[0] / 4 + x[1],
    "deep": lambda x: jnp.abs(jnp.concatenate([jnp.abs(x @ W + B), x[None, 0]])[:6] @ W.T @ W @ V),
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", list(PROGRAMS))
def test_it_holds_between_the_corners(name, wide):
    f = PROGRAMS[name]
    program = jax.make_jaxpr(intervals.opened(jax.make_jaxpr(f)(jnp.zeros(2))))(jnp.zeros(2))
    corners = RNG.normal(size=(cases(400), 3, 2)) * RNG.choice([1.0, 0.1], (cases(400), 1, 1))
    form, kinks = simplex_forms.evaluate(program, (corners, 0 * corners), wide=wide)
    lam = RNG.dirichlet(np.full(3, 0.5), 500)
    points = np.einsum("pc,scd->spd", lam, corners)
    values = np.asarray(jax.vmap(jax.vmap(f))(points))
    off = np.abs(values - form.high @ lam.T)
    assert np.all(off <= form.error[:, None] + 1e-13)
    # Where nothing bends it is the function itself.
    calm = kinks.size == 0
    assert np.all(form.error[calm] < 1e-12)
    assert name == "jump" or 0 < calm.sum() < len(calm)
    # What is said is not much more than what is so.
    assert name == "jump" or np.median(form.error[~calm] / off.max(1)[~calm]) < 25


def test_a_cut_where_it_bends_removes_the_error():
    program = jax.make_jaxpr(lambda x: jnp.maximum(3 * x[0] - 1, 0))(jnp.zeros(1))
    corners = np.array([[[0.0], [1.0]]])
    form, kinks = simplex_forms.evaluate(program, (corners, 0 * corners))
    np.testing.assert_allclose(form.error, 2 / 3, rtol=1e-9)
    at = kinks.high[0, 0] / (kinks.high[0, 0] - kinks.high[0, 1])
    halves = np.array([[[0.0], [at]], [[at], [1.0]]])
    assert simplex_forms.evaluate(program, (halves, 0 * halves))[0].error.max() < 1e-14


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_peak_of_a_quadratic(count):
    """Never below a dense sample; on segments and triangles not above it either."""
    g = RNG.normal(size=(cases(3000), count))
    q = RNG.normal(size=(len(g), count * (count - 1) // 2)) * RNG.choice(
        [0.1, 1.0, 5.0], (len(g), 1)
    )
    q[::7] = np.round(q[::7])  # degenerate ones among them
    lam = RNG.dirichlet(np.full(count, 0.4), 3000)
    i, j = np.triu_indices(count, 1)
    dense = (g @ lam.T + q @ (lam[:, i] * lam[:, j]).T).max(1)
    peak = simplex_sup._peak(g, q)
    assert np.all(peak >= dense - 1e-12)
    if count < 4:
        assert np.quantile(peak - dense, 0.95) < 0.02
        assert np.all(peak - dense < 0.1)
