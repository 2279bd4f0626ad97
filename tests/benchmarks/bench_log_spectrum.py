"""All log singular values of 1000 factors of 64 x 64, beside Lyapunov exponents in numpy.

The pair computes less: exponents accumulated from QR equal the log singular values only in the
limit of depth, and are off by nats at a thousand factors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.numerics.log_spectrum import log_singular_values

DEPTH, WIDTH = 1000, 64
GROUP = "log spectrum of 1000 factors of 64 x 64, float64"


@pytest.fixture(scope="module")
def factors():
    return np.random.default_rng(0).normal(size=(DEPTH, WIDTH, WIDTH)) / np.sqrt(WIDTH)


def lyapunov(factors):
    basis, logs = np.eye(factors.shape[1]), np.zeros(factors.shape[1])
    for a in factors:
        basis, r = np.linalg.qr(a @ basis)
        logs += np.log(np.abs(np.diagonal(r)))
    return logs


def ours(factors):
    on_device, compiled = jnp.asarray(factors), jax.jit(log_singular_values)
    return lambda: compiled(on_device).block_until_ready()


def numpy_lyapunov_exponents(factors):
    return lambda: lyapunov(factors)


@pytest.mark.parametrize("how", [ours, numpy_lyapunov_exponents])
def test_log_spectrum(benchmark, factors, how):
    benchmark.group = GROUP
    run = how(factors)
    run()
    benchmark.pedantic(run, rounds=10)


def test_ours_cold(benchmark, factors):
    benchmark.group = GROUP
    on_device = jnp.asarray(factors)

    def cold():
        jax.clear_caches()
        jax.jit(log_singular_values)(on_device).block_until_ready()

    benchmark.pedantic(cold, rounds=2)
