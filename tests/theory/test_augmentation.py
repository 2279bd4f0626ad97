"""Means over all draws against enumeration, quadrature and the transformations of training."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from dltheory.networks import regularizers
from dltheory.theory import augmentation, dropout, regression

RNG = np.random.default_rng(0)
X, Y, W = RNG.normal(size=(5, 3)), RNG.normal(size=5) + 1, np.array([0.5, -1.0, 2.0])


def test_noise_of_the_inputs_is_l2():
    """Of two-point noise, which has the same second moments as any."""
    signs = np.array(list(itertools.product([-1, 1], repeat=3)))
    plain = (Y - X @ W) ** 2
    noisy = (Y[:, None] - (X[:, None] + 0.3 * signs) @ W) ** 2
    found = augmentation.noise_penalty(X, W, 0.09)
    np.testing.assert_allclose(found, np.sum(noisy.mean(1) - plain), rtol=1e-12)
    # Least squares of noisy inputs is ridge: the slope of the whole loss is zero there.
    best = regression.ridge(X, Y, 0.09)
    loss = lambda w: jnp.sum((Y - X @ w) ** 2) + augmentation.noise_penalty(X, w, 0.09)
    np.testing.assert_allclose(jax.grad(loss)(best), 0, atol=1e-12)


@pytest.mark.parametrize("alpha", [0.3, 2.0])
def test_mixing_over_all_pairs_and_weights(alpha):
    """By the quadrature of the Beta law, which is exact for squares."""
    nodes, weights = special.roots_jacobi(4, alpha - 1, alpha - 1)
    shares = (1 + nodes[:, None, None]) / 2
    r = Y - X @ W
    mixed = (shares * r[:, None] + (1 - shares) * r[None]) ** 2
    want = np.average(mixed.mean((1, 2)), weights=weights)
    np.testing.assert_allclose(augmentation.mixup_loss(X, Y, W, alpha), want, rtol=1e-12)


def test_mixing_as_in_training():
    keys = jax.random.split(jax.random.key(0), 2000)

    def loss(key):
        x, y = regularizers.mixup(key, jnp.asarray(X), jnp.asarray(Y), 0.4)
        return jnp.mean((y - x @ W) ** 2)

    losses = np.asarray(jax.jit(jax.vmap(loss))(keys))
    error = 4 * losses.std(ddof=1) / np.sqrt(len(losses))
    assert abs(losses.mean() - augmentation.mixup_loss(X, Y, W, 0.4)) < error
    np.testing.assert_allclose(augmentation.mixup_loss(X, Y, W, 0.0), np.mean((Y - X @ W) ** 2))


def test_the_gap_is_the_minimum_of_the_smoothed_loss():
    targets = np.asarray(regularizers.smooth_labels(np.array([2]), 4, 0.2))[0]
    gap = augmentation.smoothed_gap(4, 0.2)
    loss = lambda z: -jnp.sum(targets * jax.nn.log_softmax(z))
    np.testing.assert_allclose(jax.grad(loss)(jnp.zeros(4).at[2].set(gap)), 0, atol=1e-12)
    np.testing.assert_array_equal(augmentation.smoothed_gap(4, np.array([0, 1.0])), [jnp.inf, 0])


@pytest.mark.parametrize("keep", [0.4, 1.0])
def test_predictions_of_monte_carlo_dropout(keep):
    predict = lambda mask: X @ (mask * W)
    mean = dropout.mask_mean(predict, 3, keep)
    variance = dropout.mask_mean(lambda mask: (predict(mask) - X @ W) ** 2, 3, keep)
    np.testing.assert_allclose(mean, X @ W, rtol=1e-12)
    np.testing.assert_allclose(dropout.prediction_variance(X, W, keep), variance, rtol=1e-12)


def test_bad_input():
    with pytest.raises(ValueError, match=r"var must be zero or more; got -1.0"):
        augmentation.noise_penalty(X, W, -1.0)
    with pytest.raises(ValueError, match=r"x must be \(n, p\) and w \(p,\); got \(5, 3\) and \(5,"):
        augmentation.noise_penalty(X, Y, 1.0)
    with pytest.raises(ValueError, match=r"x must be \(n, p\) and w \(p,\); got \(5, 3\) and \(5,"):
        augmentation.mixup_loss(X, Y, Y, 1.0)
    with pytest.raises(ValueError, match=r"alpha must be zero or more; got -0.1"):
        augmentation.mixup_loss(X, Y, W, -0.1)
    with pytest.raises(ValueError, match=r"smoothing must be in \[0, 1\]; got 1.2"):
        augmentation.smoothed_gap(3, 1.2)
    with pytest.raises(ValueError, match="classes is 0; want a positive integer"):
        augmentation.smoothed_gap(0, 0.2)
    assert np.isnan(jax.jit(lambda a: augmentation.smoothed_gap(3, a))(1.2))
