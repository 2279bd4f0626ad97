"""Laws of weights: their entropies by integration, and descent to a posterior that is known."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from dltheory.networks import stochastic, training
from dltheory.networks.data import Data
from dltheory.theory import pac_bayes
from tests.tier import cases

RNG = np.random.default_rng(0)
SQUARE = lambda prediction, y: jnp.mean((prediction - y) ** 2) / 2


def law():
    shapes = {"a": (2, 3), "b": (2,)}
    tree = lambda scale: {k: jnp.asarray(scale * RNG.normal(size=s)) for k, s in shapes.items()}
    return stochastic.Posterior(tree(1.0), tree(0.3), jnp.asarray(-0.4), tree(1.0))


def test_the_relative_entropy_is_an_integral():
    posterior, want = law(), 0.0
    prior_std = math.exp(-0.2)
    for name in ("a", "b"):
        of = (posterior.mean[name], posterior.log_std[name], posterior.prior_mean[name])
        for m, log_s, m0 in zip(*(np.asarray(a).ravel() for a in of), strict=True):
            q, p = (m, math.exp(log_s)), (m0, prior_std)
            ratio = lambda w, q=q, p=p: stats.norm.logpdf(w, *q) - stats.norm.logpdf(w, *p)
            want += stats.norm(*q).expect(ratio)
    np.testing.assert_allclose(stochastic.relative_entropy(posterior), want, rtol=1e-7)


def test_where_all_deviations_are_the_same_it_is_that_of_the_theory():
    start = stochastic.around(law().mean, 0.3)
    assert stochastic.relative_entropy(start) == 0
    moved = start._replace(
        mean=jax.tree.map(lambda w: w + 0.5, start.mean), log_prior_var=jnp.asarray(0.2)
    )
    want = pac_bayes.gaussian_kl(8 * 0.25, 8, var=0.09, prior_var=math.exp(0.2))
    np.testing.assert_allclose(stochastic.relative_entropy(moved), want, rtol=1e-12)


def test_draws_have_the_law():
    posterior, count = law(), cases(20000)
    keys = jax.random.split(jax.random.key(0), count)
    drawn = jax.jit(jax.vmap(stochastic.draw, (0, None)))(keys, posterior)
    scores = jax.tree.map(
        lambda w, m, log_s: (np.asarray(w) - np.asarray(m)) / np.exp(log_s),
        drawn,
        posterior.mean,
        posterior.log_std,
    )
    flat = np.concatenate([scores[name].reshape(count, -1) for name in ("a", "b")], axis=1)
    np.testing.assert_allclose(flat.mean(0), 0, atol=4.5 / math.sqrt(count))
    np.testing.assert_allclose(np.cov(flat.T), np.eye(8), atol=4.5 * math.sqrt(2 / count))


@pytest.mark.promotes
def test_descent_finds_the_posterior_of_bayes():
    """On orthogonal features, n times the square loss and the entropy: in closed form."""
    seeds, prior_var = cases(400), 0.5
    x = np.diag([3.0, 1.0, 0.5])
    y = np.array([1.0, -2.0, 1.0])
    precision = np.diag(x) ** 2 + 1 / prior_var

    def still(updates: Any, _):
        return updates._replace(log_prior_var=jnp.zeros(()))

    start = stochastic.around(jnp.full(3, 0.2), 1.0)._replace(
        log_prior_var=jnp.log(jnp.asarray(prior_var))
    )
    process = stochastic.descent(
        lambda w, x: x @ w,
        lambda _: start,
        lambda prediction, y: 3 * SQUARE(prediction, y),
        lambda risk, kl, _: risk + kl,
        optax.chain(
            optax.sgd(optax.cosine_decay_schedule(0.1, 600)),
            optax.stateless(still),
        ),
        Data(jnp.asarray(x), jnp.asarray(y)),
    )
    keys = jax.random.split(jax.random.key(1), seeds)
    found = jax.jit(jax.vmap(lambda key: training.run(process, key, 600)[0].posterior))(keys)
    np.testing.assert_array_equal(found.prior_mean, np.full((seeds, 3), 0.2))
    for values, want, slack in (
        (found.mean, (np.diag(x) * y + 0.2 / prior_var) / precision, 0.0),
        # The gradient of the logarithm is not linear in it: of second order in the rate.
        (found.log_std, -np.log(precision) / 2, 0.01),
    ):
        stderr = np.std(values, axis=0, ddof=1) / math.sqrt(seeds)
        assert np.all(np.abs(np.mean(values, axis=0) - want) < 4 * stderr + slack)
        assert np.all(stderr < 0.2)


def test_batches_and_risks():
    data = Data(jnp.arange(6.0)[:, None], jnp.zeros(6))
    f = lambda w, x: x @ w
    start = stochastic.around(jnp.ones(1), 0.5)
    process = stochastic.descent(
        f,
        lambda _: start,
        SQUARE,
        lambda risk, *_: risk,
        optax.sgd(0.0),
        data,
        batch=2,
    )
    count = cases(20000)
    _, history = jax.jit(lambda key: training.run(process, key, count))(jax.random.key(2))
    # E w^2 E x^2 / 2 = 1.25 * (55 / 6) / 2, over the batches and the weights.
    want = 1.25 * 55 / 12
    assert abs(history.loss.mean() - want) < 4 * history.loss.std() / math.sqrt(count)
    few = jax.jit(lambda key: stochastic.risks(key, f, start, SQUARE, data, count))
    risks = few(jax.random.key(3))
    assert risks.shape == (count,)
    assert abs(risks.mean() - want) < 4 * risks.std() / math.sqrt(count)


def test_bad_input():
    start, data = stochastic.around(jnp.ones(1), 0.5), Data(jnp.ones((3, 1)), jnp.ones(3))
    make = lambda data, batch: stochastic.descent(
        lambda w, x: x @ w, lambda _: start, SQUARE, lambda *of: of[0], optax.sgd(1.0), data,
        batch=batch,
    )  # fmt: skip
    with pytest.raises(ValueError, match="data holds 3 inputs but 2 labels; want one label"):
        make(data._replace(y=jnp.ones(2)), None)
    for batch in (0, 4):
        with pytest.raises(ValueError, match=rf"batch is {batch}; want 1 to 3, the number of"):
            make(data, batch)
    for std in (0.0, -1.0):
        with pytest.raises(ValueError, match=f"std must be more than 0; got {std}"):
            stochastic.around(jnp.ones(1), std)
    with pytest.raises(ValueError, match="samples is 0; want 1 or more"):
        stochastic.risks(jax.random.key(0), lambda w, x: x @ w, start, SQUARE, data, 0)
