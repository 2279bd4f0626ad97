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
from tests.tier import FULL

__all__ = ["CASES", "Case", "closed_over", "deep_linen_scan", "deep_scan", "kinds", "parameters"]

CASES: list[Case] = [*linen_models.CASES, *nnx_models.CASES, *plain_models.CASES]

# One of each kind, for what costs seconds a case: the quick tier's share of the table.
_KINDS = (
    "linen_cnn",
    "linen_batch_norm_train",
    "nnx_mlp",
    "tied_weights",
    "scan_reverse",
    "custom_vjp",
    "batch_at_axis_1",
)


def parameters(cases):
    """Cases for `pytest.mark.parametrize`, by name; those that must promote are marked so."""
    return [
        pytest.param(case, id=case.name, marks=[pytest.mark.promotes] if case.promotes else [])
        for case in cases
    ]


def kinds():
    """All cases in the full tier; in the quick one, one of each kind."""
    return [case for case in CASES if FULL or case.name in _KINDS]
