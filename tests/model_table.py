"""The table of models that every measurement is tried on.

Each `Case` builds one unmodified model, small enough to be checked by brute force, and states what
must be found in it: every site in run order, those that are cuts, and the value at each as the
framework itself reports it, or as plain code computes it.
"""

import pytest

from tests import linen_models, nnx_models, plain_models
from tests.case import Case
from tests.linen_models import deep_linen_scan
from tests.plain_models import closed_over, deep_scan

__all__ = ["CASES", "Case", "closed_over", "deep_linen_scan", "deep_scan", "parameters"]

CASES: list[Case] = [*linen_models.CASES, *nnx_models.CASES, *plain_models.CASES]


def parameters(cases):
    """Cases for `pytest.mark.parametrize`, by name; those that must promote are marked so."""
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.promotes] if case.promotes else [])
        for case in cases
    ]
