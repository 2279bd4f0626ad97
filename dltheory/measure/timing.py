"""How long programs take relative to each other, on a machine that others use too."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np


def ratios(programs: Sequence[Callable[[], Any]], rounds: int) -> np.ndarray:
    """Times of programs over that of the first, run in turn so that each meets the same load.

    Args:
        programs: Functions without arguments; each is run once before it is timed.
        rounds: How often each is timed.

    Returns:
        Medians over the rounds of the ratios within a round, one for each program.
    """
    for program in programs:
        jax.block_until_ready(program())
    seconds = np.empty((rounds, len(programs)))
    for row in seconds:
        for number, program in enumerate(programs):
            start = time.perf_counter()
            jax.block_until_ready(program())
            row[number] = time.perf_counter() - start
    return np.median(seconds / seconds[:, :1], axis=0)
