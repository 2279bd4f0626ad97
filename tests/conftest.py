"""The harshest settings JAX offers, for every test: float64, no implicit promotion of any kind."""

import os

import jax
import pytest
from hypothesis import settings

from tests.tier import FULL

# Batches of LAPACK calls that run at once block XLA's CPU threads for good if there are too few.
os.environ.setdefault("NPROC", "16")

# Nearly all the time goes into compilation, and small programs gain nothing from a good one.
jax.config.update("jax_disable_most_optimizations", not FULL)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A compilation takes seconds, so no deadline; the same examples on every run.
settings.register_profile("dltheory", deadline=None, derandomize=True, database=None)
settings.load_profile("dltheory")


@pytest.fixture(autouse=True)
def _promotion(request):
    """`promotes` marks a test whose library code (optax's Adam) needs the standard promotion."""
    if request.node.get_closest_marker("promotes") is None:
        yield
        return
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def optimized():
    """XLA as a user runs it: what promises the same bits is promised for that."""
    jax.clear_caches()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", not FULL)
    jax.clear_caches()


@pytest.fixture
def float32():
    """JAX's default precision, as a user meets it."""
    with jax.enable_x64(False):
        yield
