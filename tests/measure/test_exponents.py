"""Exponents fitted to certified errors of constructions lie within their own intervals."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dltheory.measure import approximation
from dltheory.numerics import scaling
from dltheory.theory import constructions
from tests.tier import FULL

WIDTHS = (8, 16, 32)


def fitted(f, construct, interval):
    """The power law of certified errors, which are known up to half of their brackets."""
    brackets = np.array(
        [approximation.sup_error(f, construct(f, n, interval), interval) for n in WIDTHS]
    )
    middle = brackets.mean(1)
    # The brackets may close up to rounding.
    half = np.maximum(np.diff(brackets)[:, 0] / 2, 1e-12 * middle)
    assert np.all(half < 1e-8 * middle)
    return scaling.power_law(WIDTHS, middle, stderr=half)


@pytest.mark.skipif(not FULL, reason="ninety certificates take a minute")
def test_at_least_eight_of_ten_exponents_of_constructions_are_within_their_own_intervals():
    """Of random parabolas on random intervals, and of roots, by two constructions."""
    inside = np.zeros(3)
    for seed in range(10):
        a, b, low, length = np.random.default_rng(seed).uniform(0.5, 2, 4)
        parabola = lambda x, a=a, b=b: a * x**2 - b * x
        root = lambda x, a=a: a * jnp.sqrt(x)
        interval = low - 1.0, low - 1.0 + length
        kinds = (
            (parabola, constructions.interpolant, interval, -2),
            (parabola, constructions.best_piecewise_linear, interval, -2),
            (root, constructions.interpolant, (0.0, length), -1 / 2),
        )
        for k, (f, construct, where, theory) in enumerate(kinds):
            law = fitted(f, construct, where)
            score = float((law.exponent - theory) / law.exponent_stderr)
            inside[k] += abs(score) < stats.norm.ppf(0.975)
    assert np.all(inside >= 8), inside
