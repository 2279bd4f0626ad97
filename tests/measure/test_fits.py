"""Fitted networks: their errors are those of the networks, and fall as fast as theorems say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import approximation, fits
from dltheory.numerics import scaling
from dltheory.theory import rates
from tests.tier import FULL, cases

UNIT = (0.0, 1.0)
KEY = jax.random.key(0)
WIDTHS = (4, 8, 16, 32)


def compiled(fit, *args, **options):
    """A fit whose arrays come out of one program, which compiles faster than its operations."""
    apply = []

    def arrays(key):
        found = fit(key, *args, **options)
        apply.append(found.apply)
        return found.params, found.error, found.stderr

    params, error, stderr = jax.jit(arrays)(KEY)
    return fits.Fit(args[2], params, apply[0], error, stderr)


@pytest.mark.parametrize(("unit", "power"), [("step", 0), ("relu", 1), ("relu2", 2)][: cases(10)])
def test_the_greedy_algorithm_decays_as_fast_as_its_theorem_says(unit, power):
    fit = compiled(fits.greedy_fit, jnp.exp, UNIT, WIDTHS, unit=unit)
    # The projection is on the units and the constant.
    elements = np.array(WIDTHS) + 1
    law = scaling.power_law(elements, fit.error)
    assert law.exponent < -rates.dictionary_exponent(1, power=power) + 2 * law.exponent_stderr
    # The plain bound in the convex hull: the variation of the target over the root.
    assert np.all(fit.error < np.e / np.sqrt(elements))
    if unit == "relu":
        # An independent measure of the errors, by Gauss's rule between the breakpoints.
        for i, width in enumerate(WIDTHS):
            value, error = approximation.l2_error(jnp.exp, fit.at(i), UNIT)
            allowed = 5 * (float(fit.stderr[i]) + error)
            assert value == pytest.approx(float(fit.error[i]), abs=allowed)
            assert np.sum(np.asarray(fit.at(i).params["params"]["last"]["kernel"]) != 0) == width


def test_a_greedy_fit_finds_what_is_there():
    """Two jumps, which two steps represent, up to the places that the dictionary has."""
    f = lambda x: jnp.where(x > 0.3, 2.0, 0.0) - jnp.where(x > 0.8, 1.0, 0.0)
    fit = compiled(fits.greedy_fit, f, UNIT, (1, 2, 6), unit="step")
    # One step at the larger jump leaves the variance of the other piece.
    np.testing.assert_allclose(fit.error[0], np.sqrt(0.5 * 0.2 / 0.7), rtol=0.02)
    assert fit.error[1] < 0.1
    first = fit.params["params"]["first"]
    knots = np.sort(np.asarray(-first["bias"] / first["kernel"][:, 0])[1, :2])
    np.testing.assert_allclose(knots, [0.3, 0.8], atol=2e-3)


def test_random_features_are_below_the_mean_of_their_representation():
    """Of exp on the unit interval, by units of both directions, with the weight a(t)."""
    t = (np.arange(2000) + 0.5) / 2000
    tilt = 1 + np.e  # twice the mean of the slopes at both ends
    # A law of the kinks that is as even on a larger interval has this share in it.
    bound = (
        9 / 8 * np.mean((np.exp(t) + tilt) ** 2 * (1 - t) ** 3 + (np.exp(t) - tilt) ** 2 * t**3) / 6
    )
    draws = 2 * cases(20)
    run = jax.jit(
        jax.vmap(lambda key: fits.random_feature_fit(key, jnp.exp, UNIT, WIDTHS, points=256)[3])
    )
    errors = np.asarray(run(jax.random.split(KEY, draws)))
    assert np.all(np.mean(errors**2, 0) < bound / np.array(WIDTHS))
    assert np.all(np.diff(errors) < 0)
    law = scaling.power_law(WIDTHS, np.sqrt(np.mean(errors**2, 0)))
    assert law.exponent < -0.5


@pytest.mark.skipif(not FULL, reason="compiles for half of this file's time")
def test_a_box_of_two_dimensions():
    f = lambda x: jnp.exp(-x @ x)
    box = -jnp.ones(2), jnp.array([1.0, 0.5])
    fit = compiled(fits.random_feature_fit, f, box, (8, 32), unit="tanh", points=512)
    value, error = approximation.l2_error(f, fit.at(1), box, key=KEY)
    assert value == pytest.approx(float(fit.error[1]), abs=5 * (float(fit.stderr[1]) + error))
    assert fit.params["params"]["first"]["kernel"].shape == (2, 2, 32)
    assert fit.error[1] < fit.error[0]


@pytest.mark.promotes
def test_training_improves_on_the_units_that_it_starts_from():
    f = lambda x: jnp.sin(5 * x)
    fit = lambda steps: compiled(
        fits.trained_fit, f, (0.0, 2.0), (2, 4), seeds=2, steps=steps, points=128
    )
    trained = fit(cases(2000))
    assert trained.error.shape == trained.stderr.shape == (2, 2)
    last = np.asarray(trained.params["params"]["last"]["kernel"])
    assert np.all(last[:, 0, 2:] == 0)
    assert np.all(last[:, 1] != 0)
    value = approximation.l2_error(f, trained.at(0, 1), (0.0, 2.0)).value
    assert value == pytest.approx(float(trained.error[0, 1]), abs=5 * float(trained.stderr[0, 1]))
    if FULL:
        assert np.all(trained.error.min(0) < fit(1).error.min(0))


def test_data_that_are_not_numbers_give_none():
    fit = compiled(fits.random_feature_fit, lambda x: jnp.log(x - 0.5), UNIT, (2, 4), points=64)
    assert np.all(np.isnan(fit.error))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="unit is 'cosine'; want one of relu, relu2, tanh, step"):
        fits.greedy_fit(KEY, jnp.exp, UNIT, WIDTHS, unit="cosine")
    with pytest.raises(ValueError, match=r"widths are \(8, 4\), points 2048 .* ascending"):
        fits.random_feature_fit(KEY, jnp.exp, UNIT, (8, 4))
    with pytest.raises(ValueError, match=r"interval is \(1.0, 0.0\); want bounded corners"):
        fits.greedy_fit(KEY, jnp.exp, (1.0, 0.0), WIDTHS)
    with pytest.raises(ValueError, match="unit is 'step', which has no gradient"):
        fits.trained_fit(KEY, jnp.exp, UNIT, WIDTHS, unit="step")


@pytest.mark.skipif(not FULL, reason="compiles another program")
@pytest.mark.usefixtures("float32")
def test_single_precision_is_enough():
    """Where rounding outweighs a small rest, dependent units would be chosen from then on."""
    fit = fits.greedy_fit(KEY, jnp.exp, UNIT, (16, 64))
    assert fit.error.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(fit.error) * np.array(fit.widths) ** 2, 0.067, rtol=0.1)
