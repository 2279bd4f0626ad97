"""The two wings of the house, cell by cell: activation x weight ensemble x architecture.

Random networks of three widths are measured by `measure.signal`, and laid beside what
`theory.mean_field` says of them: the lengths of their layers, and the growth of squared gradients
between them. The mean over networks, taken to infinite width along `a + c / n`, agrees with theory
within four standard errors; and what one network is off theory shrinks as the root of the width.
"""

import math
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.experiment.claims import infinite_width
from dltheory.measure import signal
from dltheory.networks import activations
from dltheory.numerics.scaling import power_law
from dltheory.theory import dual, fluctuations, mean_field
from tests.tier import FULL, cases

LAYERS, BRANCH = 3, 0.5
NETWORKS = {32: 768, 64: 384, 128: 192} if FULL else {32: 384, 64: 192, 128: 96}
ENSEMBLES = ("gaussian", "orthogonal")
ARCHITECTURES = ("plain", "residual", "normalized")
COUNT = cases(len(activations.names()))
NAMES = activations.names()[:: len(activations.names()) // COUNT][:COUNT]
# What mean-field theory has nothing to say of. No activation of the catalogue has an infinite mean
# square, so that each of them has a theory of lengths.
NO_GRADIENT = {"step": "E phi'^2 is infinite at a jump, where the derivative of a program is zero"}
# Layer normalisation fixes the first two moments of a layer's units, and orthogonal weights carry
# a Gram matrix over exactly. What varies is of third order in the activation: nothing for these,
# whose networks differ from theory by their bias alone, and little for others, where both show.
NO_FLUCTUATION = ("identity", "abs")
# Cells whose widths are too small for the law of large ones, though not for the mean.
TOO_NARROW = {
    ("relu2", "plain"): "the last length is an eighth power, and fluctuates by more than itself",
    ("hard_sigmoid", "orthogonal"): "all that varies is due to units beyond 3: less than one a net",
}


class Row(NamedTuple):
    """One quantity of one layer in one cell; `exponent` is NaN where nothing deviates."""

    cell: tuple[str, str, str]
    quantity: str
    predicted: float
    measured: float
    allowed: float
    exponent: float
    exponent_stderr: float


def network(phi, skip, normalize):
    """Stacked weights and the first pre-activations in, the last ones out."""

    def f(weights, h):
        def layer(h, w):
            u = h - h.mean(-1, keepdims=True)
            u = u / jnp.sqrt(jnp.square(u).mean(-1, keepdims=True))
            return skip * h + phi(jnp.where(normalize, u, h)) @ w.T, None

        return jax.lax.scan(layer, h, weights)[0]

    return f


def measurement(name):
    """Lengths of all layers and growth between them, for many networks; compiled once a width."""
    phi = activations.get(name)

    def measure(weights, h, target, skip, normalize):
        f = network(phi, skip, normalize)
        q = signal.moments(f, weights, h).q[1::2, 0]  # the joins: each branch has a site of its own
        loss = lambda y: jnp.sum(y * target)
        logs = signal.gradient_norms(loss, f, weights, h).log_norms[1::2, 0]
        return jnp.concatenate([q, jnp.exp(2 * (logs[:-1] - logs[1:]))])

    return jax.jit(jax.vmap(measure, (0, 0, 0, None, None)))


@cache
def draws(ensemble, width):
    """Weights of variance 1 / width, Gaussian first pre-activations of length one, a direction."""
    rng, count = np.random.default_rng(width), NETWORKS[width]
    h, target = rng.standard_normal((2, count, 1, width))
    weights = rng.standard_normal((count, LAYERS, width, width)) / np.sqrt(width)
    if ensemble == "orthogonal":
        h *= np.sqrt(width) / np.linalg.norm(h, axis=-1, keepdims=True)
        weights, r = np.linalg.qr(weights)
        weights *= np.sign(np.diagonal(r, axis1=-2, axis2=-1))[..., None, :]
    return weights, h, target


def prediction(name, architecture, weight_var):
    """What mean-field theory says, from a first layer of length one."""
    phi, at = activations.get(name), {"weight_var": weight_var}
    q, lengths = jnp.float64(1), []
    for _ in range(LAYERS):
        if architecture == "plain":
            q = mean_field.q_map(phi, q, **at)
        elif architecture == "residual":
            q = q + BRANCH**2 * mean_field.q_map(phi, q, **at)
        else:
            q = mean_field.q_map(phi, 1.0, **at)
        lengths.append(q)
    growth = {
        "plain": lambda q: mean_field.chi_1(phi, q, **at),
        "residual": lambda q: mean_field.residual_growth(phi, q, branch=BRANCH, **at),
        "normalized": lambda _: mean_field.layer_norm_growth(phi),
    }[architecture]
    return np.array([*lengths, *map(growth, lengths[:-1])])


@cache
def rows(name):
    """The rows of one activation: all its cells, layer by layer."""
    weight_var = 0.9 / dual.moment(name)
    measure, found = measurement(name), []
    names = [f"q[{layer}]" for layer in range(1, LAYERS + 1)]
    names += [f"growth[{a}->{b}]" for a, b in pairwise(range(1, LAYERS + 1))]
    for ensemble in ENSEMBLES:
        for architecture in ARCHITECTURES:
            residual, normalize = architecture == "residual", architecture == "normalized"
            scale = np.sqrt(weight_var) * (BRANCH if residual else 1.0)
            samples = {}
            for width in NETWORKS:
                weights, h, target = draws(ensemble, width)
                answer = measure(weights * scale, h, target, float(residual), normalize)
                samples[width] = np.asarray(answer)
            predicted = prediction(name, architecture, weight_var)
            for column, quantity in enumerate(names):
                if quantity.startswith("growth") and name in NO_GRADIENT:
                    continue
                here = {n: a[:, column] for n, a in samples.items()}
                cell = name, ensemble, architecture
                found.append(row(cell, quantity, predicted[column], here))
    return found


def row(cell, quantity, predicted, samples):
    off = [np.abs(a - predicted) for a in samples.values()]
    if max(a.max() for a in off) < 1e-12 * predicted:  # every single network is where theory says
        return Row(cell, quantity, predicted, predicted, 0.0, np.nan, np.nan)
    measured, allowed = infinite_width(samples)
    error = np.array([a.std(ddof=1) / np.sqrt(len(a)) for a in off])
    fit = power_law([*samples], np.array([a.mean() for a in off]), stderr=error)
    exponent = float(fit.exponent), float(fit.exponent_stderr)
    return Row(cell, quantity, predicted, float(measured), float(allowed), *exponent)


def table(found):
    """The rows as text, to be read: `pytest -s` shows it."""
    lines = [
        f"{'activation':<13}{'weights':<12}{'network':<12}{'quantity':<14}"
        f"{'predicted':>11}{'measured':>11}{'allowed':>10}{'exponent':>17}"
    ]
    for one in found:
        head = "".join(f"{text:<{wide}}" for text, wide in zip(one.cell, (13, 12, 12), strict=True))
        shrinks = f"{one.exponent:.2f} ± {one.exponent_stderr:.2f}"
        lines.append(
            f"{head}{one.quantity:<14}{one.predicted:>11.4f}{one.measured:>11.4f}"
            f"{one.allowed:>10.4f}{'exact' if np.isnan(one.exponent) else shrinks:>17}"
        )
    return "\n".join(lines)


@pytest.mark.parametrize("name", NAMES)
def test_measurement_agrees_with_theory_at_infinite_width(name):
    found = rows(name)
    print(f"\n{table(found)}")
    wrong = [one for one in found if not abs(one.measured - one.predicted) <= one.allowed]
    assert not wrong, f"\n{table(wrong)}"
    quantities = LAYERS if name in NO_GRADIENT else 2 * LAYERS - 1
    assert len(found) == len(ENSEMBLES) * len(ARCHITECTURES) * quantities


@pytest.mark.parametrize("name", NAMES)
def test_what_a_network_is_off_theory_shrinks_as_the_root_of_the_width(name):
    for one in rows(name):
        _, ensemble, architecture = one.cell
        if {(name, ensemble), (name, architecture)} & set(TOO_NARROW):
            continue
        expected = (-0.5, -0.5)
        if (ensemble, architecture) == ("orthogonal", "normalized"):
            expected = (-1, -1) if name in NO_FLUCTUATION else (-1, -0.5)
        low, high = (e + s * one.exponent_stderr for e, s in zip(expected, (-4, 4), strict=True))
        assert np.isnan(one.exponent) or low <= one.exponent <= high, f"\n{table([one])}"


def test_cells_that_are_too_narrow():
    """As first order says itself: of the length, and of the units of the widest network."""
    assert set(TOO_NARROW) == {("relu2", "plain"), ("hard_sigmoid", "orthogonal")}
    at = {"depth": LAYERS + 1, "width": min(NETWORKS), "weight_var": 0.9 / 1.5}
    std = jax.jit(lambda q: fluctuations.lengths("relu2", q, **at).std.q)(1.0)
    assert std[-1] > prediction("relu2", "plain", at["weight_var"])[LAYERS - 1]
    assert max(NETWORKS) * math.erfc(3 / math.sqrt(2)) < 1


@pytest.mark.parametrize(("name", "reason"), NO_GRADIENT.items())
def test_cells_without_a_theory_of_gradients(name, reason):
    assert jnp.isinf(mean_field.chi_1(name, 1.0, weight_var=1.0)), reason
