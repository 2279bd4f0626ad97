"""Verdicts, and the failures that are known."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from dltheory.experiment.claims import Claim, infinite_width, table, worst


@pytest.mark.parametrize(
    ("predicted", "measured", "tolerance", "relation", "passed"),
    [
        (1.0, 1.25, 0.25, "==", True),
        (1.0, 0.75, 0.25, "==", True),
        (1.0, 1.2500001, 0.25, "==", False),
        (1.0, 1.0, 0.0, "==", True),
        (1.0, -9.0, 0.0, "<=", True),
        (1.0, 1.1, 0.2, "<=", True),
        (1.0, 1.3, 0.2, "<=", False),
        (3.0, 9.0, 0.0, ">=", True),
        (3.0, 2.9, 0.2, ">=", True),
        (3.0, 2.7, 0.2, ">=", False),
        (1.0, math.nan, math.inf, "==", False),
        (math.nan, 1.0, 1.0, "==", False),
        (1.0, 1.0, math.nan, "==", False),
        (1.0, 5.0, math.inf, "==", False),
        (1.0, -math.inf, 0.0, "<=", False),
        (1.0, math.nan, 0.0, ">=", False),
        (math.inf, math.inf, 0.0, "==", False),
    ],
)
def test_verdict(predicted, measured, tolerance, relation, passed):
    claim = Claim("c", predicted, measured, tolerance, relation)
    assert claim.passed is passed
    assert claim.as_recorded is passed
    known = Claim("c", predicted, measured, tolerance, relation, known_failure="too narrow")
    assert known.passed is passed
    assert known.as_recorded is not passed


def test_verdict_in_words():
    holds, fails = (1.0, 1.0, 0.1), (1.0, 2.0, 0.1)
    assert Claim("c", *holds).verdict == "holds"
    assert Claim("c", *fails).verdict == "FAILS"
    assert Claim("c", *fails, known_failure="why").verdict == "fails, as recorded: why"
    text = "HOLDS, though recorded as failing: why"
    assert Claim("c", *holds, known_failure="why").verdict == text


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"relation": "<"}, "relation is '<', want one of"),
        ({"tolerance": -1.0}, "tolerance of 'c' is -1.0, want at least 0"),
        ({"known_failure": " "}, "known_failure of 'c' is empty, want the reason"),
    ],
    ids=str,
)
def test_a_claim_without_sense_is_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        Claim(**{"text": "c", "predicted": 1.0, "measured": 1.0, "tolerance": 0.0, **fields})


def test_worst_states_the_entry_that_agrees_least():
    claim = worst("c", 1.0, [[1.2, 1.3], [0.5, 1.0]], [[0.1, 1.0], [1.0, 0.5]])
    assert (claim.predicted, claim.measured, claim.tolerance) == (1.0, 1.2, 0.1)
    assert not claim.passed
    assert worst("c", [1.0, 2.0], [1.0, 2.1], 0.2).passed
    assert worst("c", [1.0, 2.0], [1.0, 2.0], 0.0).passed
    assert not worst("c", [1.0, 2.0], [1.0, 2.1], 0.0).passed


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("where", range(3))
def test_worst_never_hides_a_nan(position, where):
    arrays = [np.ones(3), np.array([1.0, 1.5, 9.0]), np.full(3, 100.0)]
    assert worst("c", *arrays).passed
    arrays[where][position] = np.nan
    assert not worst("c", *arrays).passed


def test_worst_of_nothing_is_refused():
    with pytest.raises(ValueError, match="'c' has no entries"):
        worst("c", [], [], [])


def test_table_shows_every_number_and_no_markup():
    claims = [
        Claim("E[s^2] = chi_1", 1.0, 1.01, 0.02),
        Claim("spread [bold]of[/bold] s", 3.0, 2.5, 0.0, ">=", known_failure="width [8]"),
    ]
    text = io.StringIO()
    Console(file=text, width=140).print(table("digits", claims))
    for word in (
        "digits",
        "claim",
        "predicted",
        "measured",
        "tolerance",
        "verdict",
        "1.01",
        "0.02",
    ):
        assert word in text.getvalue()
    assert "≥ 3" in text.getvalue()
    assert "spread [bold]of[/bold] s" in text.getvalue()
    assert "fails, as recorded: width [8]" in text.getvalue()


def test_the_mean_at_infinite_width_is_covered_by_its_standard_error():
    rng = np.random.default_rng(0)
    draw = lambda n, seeds: 2 + 3 / n + rng.normal(size=(seeds, 5000)) / 10
    mean, allowed = infinite_width({n: draw(n, 4000 // n) for n in (10, 20, 40)})
    # Four standard errors: unbiased, and of the right size to a few percent.
    scatter = (mean - 2) / allowed
    assert abs(scatter.mean()) < 4 * 0.25 / np.sqrt(scatter.size)
    np.testing.assert_allclose(scatter.std(), 0.25, rtol=0.06)


def test_one_width_is_no_extrapolation():
    with pytest.raises(ValueError, match=r"samples has the widths \[8\], want two or more"):
        infinite_width({8: np.ones((3, 1))})
