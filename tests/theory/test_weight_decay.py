"""The equilibria against recursions of second moments, and against training on noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.theory import weight_decay


def settle(matrix, noise, target):
    """Stationary E ww, E wm and E mm under (w, m) -> A (w, m) + b z, by a linear system.

    `noise` is E (b z)(b z), and `target` scales it so that E ww is what it is for itself.
    """
    second = np.linalg.solve(np.eye(4) - np.kron(matrix, matrix), noise.ravel())
    return second.reshape(2, 2) * target


@pytest.mark.parametrize("alpha", [0.0, 0.6])
def test_descent_is_the_fixed_point_of_its_second_moments(alpha):
    eta, decay, gradient = 0.3, 0.2, 1.7
    # v' = alpha v + decay w + g, w' = w - eta v'.
    matrix = np.array([[1 - eta * decay, -eta * alpha], [decay, alpha]])
    kick = np.array([-eta, 1.0])
    unit = settle(matrix, np.outer(kick, kick), 1.0)
    # The square of the gradient is G^2 over that of the weights.
    square = np.sqrt(unit[0, 0]) * gradient
    found = weight_decay.equilibrium(eta, decay, gradient, momentum=alpha)
    np.testing.assert_allclose(found.norm**2, square, rtol=1e-12)
    kept = matrix[0] @ unit[0] / unit[0, 0]  # w w' of the mean of the noise, which is zero
    np.testing.assert_allclose(np.cos(found.angle), kept, rtol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_adam_is_the_fixed_point_of_its_second_moments(beta):
    eta, decay, size = 0.1, 0.3, 50.0
    # m' = beta m + (1 - beta) z, w' = (1 - eta decay) w - eta m'.
    matrix = np.array([[1 - eta * decay, -eta * beta], [0, beta]])
    kick = (1 - beta) * np.array([-eta, 1.0])
    second = settle(matrix, np.outer(kick, kick), size)
    found = weight_decay.adam_equilibrium(eta, decay, size, momentum=beta)
    np.testing.assert_allclose(found.norm**2, second[0, 0], rtol=1e-12)
    kept = matrix[0] @ second[0] / second[0, 0]
    np.testing.assert_allclose(np.cos(found.angle), kept, rtol=1e-12)


def test_adam_with_l2_is_descent_with_its_own_rate():
    eta, strength, gradient, size, beta = 1e-3, 1e-4, 2.0, 50.0, 0.9
    found = weight_decay.adam_l2_equilibrium(eta, strength, gradient, size, momentum=beta)
    mean = gradient / (float(found.norm) * np.sqrt(size))
    # Divided by its root mean square, the gradient of momentum is that of descent at 1 - beta.
    rate, decay = eta * (1 - beta), strength / mean
    length = np.sqrt(size) * float(found.norm)
    want = weight_decay.equilibrium(rate, decay, length, momentum=beta)
    np.testing.assert_allclose(found.norm, want.norm, rtol=rate * decay)
    np.testing.assert_allclose(found.angle, want.angle, rtol=1e-12)
    # Where all gradients have size one it is that of decay.
    alike = weight_decay.adam_equilibrium(eta, decay, size, momentum=beta)
    np.testing.assert_allclose(found.norm, alike.norm, rtol=20 * eta * decay)


def test_weights_in_the_plane_come_to_the_equilibrium():
    """Descent where the gradient is orthogonal and falls with the norm, with no randomness."""
    eta, decay, gradient = 0.1, 0.05, 0.8

    def step(w, _):
        turned = jnp.array([-w[1], w[0]]) / jnp.linalg.norm(w) ** 2
        new = (1 - eta * decay) * w - eta * gradient * turned
        cosine = w @ new / (jnp.linalg.norm(w) * jnp.linalg.norm(new))
        return new, (jnp.linalg.norm(w), jnp.arccos(cosine))

    w, (norms, angles) = jax.jit(lambda w: jax.lax.scan(step, w, length=4000))(np.array([3.0, 0]))
    want = weight_decay.equilibrium(eta, decay, gradient)
    np.testing.assert_allclose(np.linalg.norm(w), want.norm, rtol=1e-10)
    np.testing.assert_allclose(angles[-1], want.angle, rtol=1e-8)
    way = weight_decay.approach(3.0, want.norm, eta * decay, np.arange(4000.0))
    np.testing.assert_allclose(norms, way, rtol=eta * decay)


def test_ends_and_bad_input():
    assert weight_decay.equilibrium(0.1, 0.0, 1.0) == (jnp.inf, 0)
    assert weight_decay.adam_equilibrium(0.1, 0.0, 10.0) == (jnp.inf, 0)
    assert weight_decay.adam_l2_equilibrium(0.1, 0.0, 1.0, 10.0) == (jnp.inf, 0)
    with pytest.raises(ValueError, match=r"decay must be at most one, or weights change sign; got"):
        weight_decay.equilibrium(2.0, 1.0, 1.0)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\); got 1.0"):
        weight_decay.adam_equilibrium(0.1, 0.1, 1.0, momentum=1.0)
    with pytest.raises(ValueError, match=r"strength must be zero or more; got -1.0"):
        weight_decay.adam_l2_equilibrium(0.1, -1.0, 1.0, 1.0)
    traced = jax.jit(lambda decay, alpha: weight_decay.equilibrium(1.0, decay, 1.0, momentum=alpha))
    assert np.all(np.isnan([*traced(2.0, 0.5), *traced(0.5, 1.0)]))
