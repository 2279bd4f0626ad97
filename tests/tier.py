"""The two tiers of the suite: the same tests, a tenth of the cases in the quick one."""

import os

FULL = os.environ.get("DLTHEORY_TEST_TIER") == "full"


def cases(full: int) -> int:
    """How many cases to run of the `full` that the full tier runs: at least one, else a tenth."""
    return full if FULL else max(1, full // 10)
