r"""A matrix product kept as :math:`U \operatorname{diag}(e^d) T`, whatever its range.

:math:`U` has orthonormal columns, the scales :math:`d` are logarithms in descending order, and
:math:`T` is well conditioned: the stratified product of Loh et al. (1992) and of Bai, Lee, Li and
Xu (2011). What rounding takes from it can be carried along to first order (`absorb_exactly`). Its
singular values come from one-sided Jacobi rotations of the rows of
:math:`\operatorname{diag}(e^d) T`, each held as a unit vector and a logarithmic length (Demmel and
Veselić 1992). `log_spectrum` is the public face.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

# Cosines shrink quadratically; four to eight sweeps are usual.
_MAX_SWEEPS = 40
# What rounding takes is known to first order: well enough where it is less than this, in nats.
_FIRST_ORDER = 1e-5


class Product(NamedTuple):
    """A product in the form U diag(e^d) T, up to an orthogonal factor on its right."""

    u: Array  # (n, n), orthonormal columns; zero beyond the rank
    d: Array  # (n,), descending up to the present factor; -inf beyond the rank
    t: Array  # (n, n), well conditioned on its rows within the rank
    variance: Array  # (n,), of the estimated rounding error of d
    tilt: Array  # (n,), estimated error of the angle between each column of u and the next
    rank: Array  # (), the structural rank: what zero rows and columns leave


class Lost(NamedTuple):
    """What rounding has taken from each part of a product, to first order."""

    u: Array
    d: Array
    t: Array


class Better(NamedTuple):
    """A product computed with care, without its U, and what it has lost nevertheless."""

    d: Array
    t: Array
    lost: Lost


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
    zeros = jnp.zeros(n, dtype)
    return Product(u, d, jnp.diag(within.astype(dtype)), zeros, zeros, rank)


def absorb(product: Product, c: Array) -> tuple[Product, Array, Array]:
    """Multiply from the left by the factor A, given c = A U.

    Also the largest loss of accuracy, and R such that c = U' R but for rounding.
    """
    _, d, t, variance, tilt, rank = product
    n, dtype = d.size, d.dtype
    scale = _power_of_two(lax.stop_gradient(c), axis=0)
    d = d + jnp.log(scale)
    order = jnp.argsort(-lax.stop_gradient(d))
    before = lax.stop_gradient(product.d[order])
    d, t, variance = d[order], t[order], variance[order]
    c = (c * inverse(scale)[None, :])[:, order]

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
    tilt = _tilted(tilt, order, lax.stop_gradient(d) - before, loss, live)
    sign = jnp.where(live, jnp.sign(pivot), 0)
    product = Product(
        u=q * sign[None, :],
        d=d,
        t=jnp.where(live[:, None], ratio, 0) @ t,
        variance=variance + loss**2 + rounding**2 + tilt**2 + jnp.roll(tilt, 1) ** 2,
        tilt=tilt,
        rank=rank,
    )
    r = (sign[:, None] * r)[:, jnp.argsort(order)] * scale[None, :]
    return product, loss.max(), r


def _tilted(tilt: Array, order: Array, growth: Array, loss: Array, live: Array) -> Array:
    """The errors of the angles after a factor.

    The angle between two neighbours grows as the lesser one grows beside the larger one: a
    direction that all but misses one that grows later is known but poorly when that overtakes it.
    """
    pair = live & jnp.roll(live, -1).at[-1].set(False)
    following = jnp.roll(order, -1)
    adjacent = pair & (jnp.abs(order - following) == 1)
    carried = jnp.where(adjacent, tilt[jnp.minimum(order, following)], 0)
    grown = carried * jnp.exp(jnp.where(pair, jnp.minimum(jnp.roll(growth, -1) - growth, 80), 0))
    return jnp.where(pair, jnp.minimum(jnp.hypot(grown, loss), 1), 0)


def absorb_exactly(product: Product, lost: Lost, b: Array) -> tuple[Product, Lost]:
    """Multiply from the left by the factor B; carry along what rounding takes away."""

    def step(d, t, c):
        new, _, r = absorb(product._replace(d=d, t=t), c)
        return new[:3], (new, r)

    c = b @ product.u
    _, push, (new, r) = jax.linearize(step, product.d, product.t, c, has_aux=True)
    return new, Lost(*push(lost.d, lost.t, b @ lost.u + _residual(b, product.u, new.u, r)))


def _residual(b: Array, u: Array, q: Array, r: Array) -> Array:
    """B U - Q R, though it cancels to the last digit.

    Both are cut into slices of so few digits that products of the leading ones are exact
    (Ozaki, Ogita, Oishi and Rump 2012).
    """
    # Rows of R, and of U, may be graded: powers of two even them out.
    even_u, even_r = _power_of_two(u, axis=1), _power_of_two(r, axis=1)
    left = jnp.concatenate([b * even_u[None, :], -q * even_r[None, :]], axis=1)
    right = jnp.concatenate([inverse(even_u)[:, None] * u, inverse(even_r)[:, None] * r])
    bits = (jnp.finfo(b.dtype).nmant + 1 - math.ceil(math.log2(left.shape[1]))) // 2
    x, y = _slices(left, bits, axis=1), _slices(right, bits, axis=0)
    # The largest first: they cancel exactly.
    products = [x[i] @ y[k - i] for k in range(len(x)) for i in range(k + 1)]
    return functools.reduce(jnp.add, products)


def _slices(x: Array, bits: int, axis: int) -> list[Array]:
    """Three terms whose sum is x, the first two with so many bits below the largest entry."""
    terms = []
    for _ in range(2):
        unit = jnp.expand_dims(jnp.ldexp(_power_of_two(x, axis), -bits), axis)
        terms.append(jnp.round(x * inverse(unit)) * unit)
        x = x - terms[-1]
    return [*terms, x]


def _power_of_two(x: Array, axis: int) -> Array:
    """A power of two above the largest entry along an axis, zero where all are zero."""
    size = jnp.abs(x).max(axis=axis)
    return jnp.where(size > 0, jnp.ldexp(jnp.ones_like(size), jnp.frexp(size)[1]), 0)


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
def log_lengths(d: Array, t: Array, error: Array, better: Better | None = None):
    """Logarithms of the singular values of diag(e^d) T, descending; the errors; convergence.

    The values, but not their derivatives, are those of a better pair (d, T), if one is given.
    """
    if better is None:
        values, error, _, converged = _jacobi(d, t, error)
        return values, error, converged
    values, error, v, converged = _jacobi(better.d, better.t, error)
    change = _change(better.d, better.t, values, v, *better.lost[1:])
    values = values + jnp.where(jnp.abs(change) < _FIRST_ORDER, change, 0)
    return -jnp.sort(-values), error, converged


@log_lengths.defjvp
def _log_lengths_jvp(primals, tangents):
    (d, t, error, better), (dd, dt, *_) = primals, tangents
    values, error, v, converged = _jacobi(d, t, error)
    dvalues = _change(d, t, values, v, dd, dt)
    if better is not None:
        values = log_lengths(d, t, error, better)[0]
    zeros = jnp.zeros(converged.shape, jax.dtypes.float0)
    return (values, error, converged), (dvalues, jnp.zeros_like(error), zeros)


def _change(d: Array, t: Array, values: Array, v: Array, dd: Array, dt: Array) -> Array:
    """The derivative of the log lengths along (dd, dt)."""
    # d ln s_i = (a dX v)_i with a = Y^T diag(e^d) / s, and a T = V^T: no exponential is left.
    q, r = jnp.linalg.qr(t.T)
    r = r + jnp.diag(jnp.where(d > -jnp.inf, 0, 1).astype(r.dtype))
    a = lax.linalg.triangular_solve(r, v @ q, transpose_a=True)
    change = jnp.einsum("ij,ji->i", a, dd[:, None] * (t @ v.T) + dt @ v.T)
    return jnp.where(values > -jnp.inf, change, 0)


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
