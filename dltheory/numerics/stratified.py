r"""A matrix product kept as :math:`U \operatorname{diag}(e^d) T`, whatever its range.

:math:`U` has orthonormal columns, the scales :math:`d` are logarithms in descending order, and
:math:`T` is well conditioned: the stratified product of Loh et al. (1992) and of Bai, Lee, Li and
Xu (2011). Its singular values come from one-sided Jacobi rotations of the rows of
:math:`\operatorname{diag}(e^d) T`, each held as a unit vector and a logarithmic length (Demmel and
Veselić 1992). `log_spectrum` is the public face.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

# Cosines shrink quadratically; four to eight sweeps are usual.
_MAX_SWEEPS = 40


class Product(NamedTuple):
    """A product in the form U diag(e^d) T, up to an orthogonal factor on its right."""

    u: Array  # (n, n), orthonormal columns; zero beyond the rank
    d: Array  # (n,), descending up to the present factor; -inf beyond the rank
    t: Array  # (n, n), well conditioned on its rows within the rank
    variance: Array  # (n,), of the estimated rounding error of d
    rank: Array  # (), the structural rank: what zero rows and columns leave


def identity(live: Array) -> Product:
    """The identity on the live inputs, in a random basis.

    A random basis makes every leading group of columns generic ever after, so that QR needs no
    pivoting to find the rank.
    """
    n, dtype = live.size, jnp.result_type(float)
    c = jax.random.normal(jax.random.key(0), (n, n), dtype)
    rank = live.sum()
    u = _qr(jnp.where(live[:, None], c, 0), rank)[0]
    within = jnp.arange(n) < rank
    d = jnp.where(within, jnp.zeros(n, dtype), -jnp.inf)
    return Product(u, d, jnp.diag(within.astype(dtype)), jnp.zeros(n, dtype), rank)


def absorb(product: Product, c: Array) -> tuple[Product, Array]:
    """Multiply from the left by the factor A, given c = A U; also the largest loss of accuracy."""
    _, d, t, variance, rank = product
    n, dtype = d.size, d.dtype
    size = jnp.abs(lax.stop_gradient(c)).max(axis=0)
    d = d + jnp.log(size)
    order = jnp.argsort(-lax.stop_gradient(d))
    d, t, variance = d[order], t[order], variance[order]
    c = (c * inverse(size)[None, :])[:, order]

    rank = jnp.minimum(rank, (c != 0).any(axis=1).sum())
    q, r, size = _qr(c, rank)
    diagonal = jnp.diagonal(r)
    live = (diagonal != 0) & (d > -jnp.inf)
    pivot = jnp.where(live, diagonal, 1)
    row_d = jnp.where(live, d, 0)
    # d descends, so no exponential exceeds one above the diagonal.
    ratio = jnp.exp(jnp.minimum(d[None, :] - row_d[:, None], 0)) * r / pivot[:, None]
    loss = jnp.finfo(dtype).eps * n**0.5 * size / jnp.abs(lax.stop_gradient(pivot))
    loss = jnp.where((jnp.arange(n) < rank) & ~live, jnp.inf, loss)
    d = jnp.where(live, row_d + jnp.log(jnp.abs(pivot)), -jnp.inf)
    rounding = jnp.finfo(dtype).eps * jnp.abs(lax.stop_gradient(jnp.where(live, d, 0)))
    product = Product(
        u=q * jnp.where(live, jnp.sign(pivot), 0)[None, :],
        d=d,
        t=jnp.where(live[:, None], ratio, 0) @ t,
        variance=variance + loss**2 + rounding**2,
        rank=rank,
    )
    return product, loss.max()


@jax.custom_jvp
def _qr(c: Array, rank: Array) -> tuple[Array, Array, Array]:
    """QR of the leading `rank` columns, exact about zero rows; R also for the other columns.

    Rows are sorted by size, the third result: Householder's reflections then respect graded rows
    (Powell and Reid 1969), and rows of zeros, being last, stay exactly zero.
    """
    size = jnp.abs(c).max(axis=1)
    rows = jnp.argsort(-size)
    q, r = jnp.linalg.qr(c[rows])
    within = jnp.arange(rows.size) < rank
    q = jnp.where(within[None, :], q[jnp.argsort(rows)], 0)
    return q, jnp.where(within[:, None], r, 0), size[rows]


@_qr.defjvp
def _qr_jvp(primals, tangents):
    (c, rank), (dc, _) = primals, tangents
    q, r, size = _qr(c, rank)
    within = (jnp.arange(c.shape[0]) < rank)[None, :]
    lead = jnp.where(within, r, 0)
    lead = lead + jnp.diag(jnp.where(jnp.diagonal(lead) == 0, 1, 0).astype(c.dtype))
    solved = lax.linalg.triangular_solve(lead, jnp.where(within, dc, 0))
    x = q.T @ solved
    lower = jnp.tril(x, -1)
    turn = lower - lower.T
    dq = q @ turn + solved - q @ x
    return (q, r, size), (dq, jnp.triu(q.T @ dc - turn @ r), jnp.zeros_like(size))


@jax.custom_jvp
def log_lengths(d: Array, t: Array, error: Array) -> tuple[Array, Array, Array]:
    """Logarithms of the singular values of diag(e^d) T, descending, and the errors with them."""
    values, error, _, converged = _jacobi(d, t, error)
    return values, error, converged


@log_lengths.defjvp
def _log_lengths_jvp(primals, tangents):
    (d, t, error), (dd, dt, _) = primals, tangents
    values, error, v, converged = _jacobi(d, t, error)
    # d ln s_i = (a dX v)_i with a = Y^T diag(e^d) / s, and a T = V^T: no exponential is left.
    q, r = jnp.linalg.qr(t.T)
    r = r + jnp.diag(jnp.where(d > -jnp.inf, 0, 1).astype(r.dtype))
    a = lax.linalg.triangular_solve(r, v @ q, transpose_a=True)
    tv = t @ v.T
    dvalues = jnp.einsum("ij,ji->i", a, dd[:, None] * tv + dt @ v.T)
    dvalues = jnp.where(values > -jnp.inf, dvalues, 0)
    zeros = jnp.zeros(converged.shape, jax.dtypes.float0)
    return (values, error, converged), (dvalues, jnp.zeros_like(error), zeros)


def _jacobi(d: Array, t: Array, error: Array) -> tuple[Array, Array, Array, Array]:
    """One-sided Jacobi on the rows of diag(e^d) T: log lengths, errors, unit rows, convergence."""
    n, dtype = d.size, d.dtype
    half = (n + 1) // 2
    norm = jnp.linalg.norm(t, axis=1)
    x = jnp.pad(t * inverse(norm)[:, None], ((0, 2 * half - n), (0, 0)))
    length = jnp.pad(d + jnp.log(norm), (0, 2 * half - n), constant_values=-jnp.inf)
    tolerance = jnp.asarray(n * jnp.finfo(dtype).eps, dtype)

    def rotate(_, state):
        x, length, worst = state
        (x1, x2), (l1, l2) = jnp.split(x, 2), jnp.split(length, 2)
        first = l1 >= l2
        difference = jnp.where(jnp.maximum(l1, l2) > -jnp.inf, -jnp.abs(l1 - l2), -jnp.inf)
        r = jnp.exp(difference)
        g = (x1 * x2).sum(axis=1)
        h = 1 - r * r
        # For the longer row p and the shorter q: tan = tau r, so that r = 0 is harmless.
        denominator = h + jnp.sqrt(h * h + 4 * (g * r) ** 2)
        tau = jnp.where(denominator > 0, 2 * g, 0) / jnp.where(denominator > 0, denominator, 1)
        cosine = 1 / jnp.sqrt(1 + (tau * r) ** 2)
        towards, away = cosine * tau * r * r, -cosine * tau
        y1 = cosine[:, None] * x1 + jnp.where(first, towards, away)[:, None] * x2
        y2 = cosine[:, None] * x2 + jnp.where(first, away, towards)[:, None] * x1
        y = jnp.concatenate([y1, y2])
        norm = jnp.sqrt((y * y).sum(axis=1))
        y = y * inverse(norm)[:, None]
        length = length + jnp.log(norm)
        # The circle method: the first row stays, the others move on by one place.
        turn = lambda z: jnp.concatenate(
            [z[:1], z[half : half + 1], z[1 : half - 1], z[half + 1 :], z[half - 1 : half]]
        )
        if half > 1:
            y, length = turn(y), turn(length)
        return y, length, jnp.maximum(worst, jnp.abs(g).max())

    def sweep(state):
        x, length, _, count = state
        worst = jnp.zeros((), dtype)
        x, length, worst = lax.fori_loop(0, 2 * half - 1, rotate, (x, length, worst))
        return x, length, worst, count + 1

    def unfinished(state):
        return (state[2] > tolerance) & (state[3] < _MAX_SWEEPS)

    init = (x, length, jnp.asarray(jnp.inf, dtype), jnp.array(0))
    x, length, worst, _ = lax.while_loop(unfinished, sweep, init)
    order = jnp.argsort(-length[:n])
    return length[order], error[order], x[order], worst <= tolerance


def inverse(scale: Array) -> Array:
    """The pseudo-inverse of a diagonal of sizes: zero where the size is zero."""
    return jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
