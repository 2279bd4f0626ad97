"""The facts file: values to ten digits and more, each with its source and its tolerance."""

import json
import math
from pathlib import Path

import numpy as np

FACTS = {
    entry["id"]: entry for entry in json.loads(Path(__file__).with_name("facts.json").read_text())
}


def assert_agrees(fact_id, measured):
    """Assert that `measured` equals the value of a fact within the tolerance the fact states."""
    fact = FACTS[fact_id]
    tolerance = fact["tolerance"]
    wanted = np.asarray(fact["value"], dtype=np.float64)
    measured = np.asarray(measured, dtype=np.float64)
    assert measured.shape == wanted.shape, f"{fact_id}: shape {measured.shape}, want {wanted.shape}"
    allowed = tolerance["abs"] + tolerance["rel"] * np.abs(wanted)
    worst = float(np.max(np.abs(measured - wanted) - allowed, initial=-math.inf))
    assert worst <= 0, f"{fact_id}: {measured} differs from {wanted} by more than {tolerance}"
