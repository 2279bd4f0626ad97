"""Networks that multiply stay within their proven errors, which fall as they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import approximation as measured
from dltheory.theory import polynomials
from tests.tier import cases

X = np.linspace(0, 1, 4001)


def evaluated(net, x):
    return np.asarray(net.apply(net.params, jnp.asarray(x)[:, None]))[:, 0]


@pytest.mark.parametrize("m", [3, 6, 9][: cases(20)])
def test_polynomials(m):
    for c in ([0.5, -1.0, 2.0, -3.0, 1.0], [0.0, 0.0, 1.0], [2.0, -1.0], [3.0])[: cases(20)]:
        net = polynomials.polynomial(c, m)
        error = np.abs(evaluated(net, X) - np.polynomial.polynomial.polyval(X, c)).max()
        proven = 4.0 ** -(m + 1) * sum(max(j - 1, 0) * abs(w) for j, w in enumerate(c))
        assert error <= net.bound + 1e-15
        assert net.bound <= proven + 1e-11
        if len(c) == 3:
            np.testing.assert_allclose(error, proven, rtol=1e-2)


def test_a_cube_is_certified():
    net = polynomials.polynomial([0, 0, 0, 1.0], 4)
    lower, upper = measured.sup_error(lambda x: x**3, net, (0.0, 1.0), rtol=1e-6)
    assert 0.3 * net.bound < lower <= upper <= net.bound


@pytest.mark.parametrize("order", [2, 1, 3][: cases(20)])
def test_taylor_patches_have_their_rate(order):
    f, ends = (lambda x: jnp.sin(3 * x)), (-0.5, 1.0)
    x = np.linspace(*ends, 4001)
    exact = np.asarray(jax.vmap(f)(x))
    errors = []
    for n in (4, 8):
        net = polynomials.taylor_patches(f, n, order, 14, ends)
        errors.append(np.abs(evaluated(net, x) - exact).max())
        remainder = 3.0 ** (order + 1) * (1.5 / n) ** (order + 1) / np.prod(range(1, order + 2))
        assert errors[-1] <= net.bound <= remainder * 1.01 + 1e-6
    # Hats weigh the remainders of two patches, and those are largest where the hats are least.
    assert 0.7 < np.log2(errors[0] / errors[1]) / (order + 1) < 1.3
    coarse = polynomials.taylor_patches(f, 8, order, 2, ends)
    assert np.abs(evaluated(coarse, x) - exact).max() <= coarse.bound


def test_bad_input():
    with pytest.raises(ValueError, match=r"coefficients are \[\]; want finite numbers"):
        polynomials.polynomial([], 3)
    with pytest.raises(TypeError, match=r"m is 2.5, a float; want a positive integer"):
        polynomials.polynomial([1.0, 2.0], 2.5)
    with pytest.raises(ValueError, match="derivative 2 of f has no bound on"):
        polynomials.taylor_patches(jnp.sqrt, 4, 1, 4, (0.0, 1.0))
    with pytest.raises(ValueError, match="a derivative of f cannot be bounded: there is no interv"):
        polynomials.taylor_patches(jax.scipy.special.gammaln, 4, 1, 4, (1.0, 2.0))
