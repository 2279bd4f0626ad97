r"""Every singular value of a product of thousands of matrices, in logarithms.

The singular values of :math:`A_{L-1} \cdots A_0` spread over hundreds of nats, so that the product
itself holds but the few largest. It is kept in a factored form (`stratified`) whose singular values
are all found to high relative accuracy.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax

from dltheory.numerics import stratified
from dltheory.numerics.results import Spectrum

Factors = Array | Sequence[Array] | Callable[[Array], Array]

# A value whose estimated error exceeds this many nats is not told apart from rounding.
_UNRESOLVED = 0.5
# The estimate is a root of a sum of squares. After one sweep, an error of 83 times it has been met,
# in a product that is swept again; the final errors stayed within this multiple.
_SAFETY = 32
# Two factors are absorbed at once, in half the time, where that costs fewer nats than this.
_PAIR_LOSS = 1e-11
# A product with an estimated error of more nats than this is swept again, rounding carried along.
_REFINED = 1e-10


def log_singular_values(factors: Factors, *, length: int | None = None) -> Array:
    r"""All singular values of a product of matrices, as natural logarithms.

    .. math::
        \ln \sigma_i(A_{L-1} \cdots A_1 A_0), \qquad i = 1, \dots, n

    No value overflows, underflows or drowns in rounding, whatever the depth. Rank lost through
    rows or columns of zeros gives exactly `-inf`; a rank lost otherwise cannot be told from
    rounding, and `log_spectrum` marks the values.

    The work is done in float64 where it is enabled, whatever the dtype of the factors: a thousand
    factors then cost less than 1e-9. Where the estimated error is larger, for two products of
    twelve of a thousand Gaussian factors of width 64, the factors are multiplied once more, with
    what each rounding takes carried along, in seven times the time. Without float64, float32 errs
    by about 1e-3 after 200 factors and 1e-2 after 1000. Half precision is upcast to float32.
    Derivatives of both modes are implicit, by :math:`d\ln\sigma_i = u_i^\top dP\, v_i / \sigma_i`
    with every exponential cancelled; the derivative of a `-inf` is zero, that of a value among
    equals depends on the basis.

    Args:
        factors: `factors[0]` acts first. An array `(..., L, n, n)`; a sequence of matrices of
            shapes that chain, `(n_1, n_0), (n_2, n_1), ...`; or a function from an index
            (an integer array, `()`) to a factor `(n, n)`, called inside loops, more than once
            for an index, so that the factors are never in memory together.
        length: Number of factors. Wanted with a function, and only there.

    Returns:
        Shape `(..., n)`, descending; for a sequence, `n` is the least of all dimensions. The dtype
        is the factors'. All NaN if any entry of a factor is not finite.

    Raises:
        TypeError: If the factors are complex.
        ValueError: If the shapes do not chain, or `length` is missing or superfluous.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> log_singular_values(jnp.array([[[2.0, 0.0], [0.0, 1e-30]]] * 100)).round()
        Array([   69., -6908.], dtype=float32)

        A thousand Gaussian factors, never in memory together:

        >>> key = jax.random.key(0)
        >>> gaussian = lambda i: jax.random.normal(jax.random.fold_in(key, i), (4, 4)) / 2
        >>> log_singular_values(gaussian, length=1000).shape
        (4,)

    Source:
        Bai, Lee, Li and Xu (2011), Stable solutions of linear systems involving long chain of
        matrix multiplications; Demmel and Veselić (1992), Jacobi's method is more accurate
        than QR.
    """
    return log_spectrum(factors, length=length).log_values


def log_spectrum(factors: Factors, *, length: int | None = None) -> Spectrum:
    r"""All singular values of a product of matrices, each with its estimated error.

    A column that falls to :math:`\varrho` times its length when it is made orthogonal to the larger
    ones has lost :math:`1 / \varrho` of its accuracy, :math:`\epsilon \sqrt n / \varrho`. From
    then on the angle between two neighbours is known worse by as much as the lesser one grows
    beside the larger one: of 40 products of 200 random factors, one moved by 5e6 times its entries'
    rounding. The estimate sums both over the factors; it is that of the first sweep, also where a
    second one has removed most of the error.

    Args:
        factors: As in `log_singular_values`.
        length: As in `log_singular_values`.

    Returns:
        Spectrum with `log_values` as in `log_singular_values`; `residuals`, the estimated error of
        each value relative to the largest one; `resolved`, false where a value, or one above it,
        has an estimated error above half of itself: after a factor whose rank is lost otherwise
        than by zero rows or columns. An exact `-inf` is resolved.

    Raises:
        TypeError: If the factors are complex.
        ValueError: If the shapes do not chain, or `length` is missing or superfluous.

    Example:
        >>> import jax.numpy as jnp
        >>> log_spectrum(jnp.ones((1, 2, 2))).resolved
        Array([ True, False], dtype=bool)
    """
    if not callable(factors) and not isinstance(factors, Sequence) and jnp.ndim(factors) > 3:
        return jax.vmap(lambda f: log_spectrum(f, length=length))(factors)
    factor, xs, n, kept, dtype = _chain(factors, length)
    work = jnp.result_type(float)

    def balance(scale, x):
        before, finite = _column_scale(factor(x), scale)
        return before, (scale, finite)

    scale, (scales, finite) = lax.scan(balance, jnp.ones(n, work), xs, reverse=True)

    # The scale of a column moves into the row of the factor before it, where Householder's
    # reflections respect it. A scale of zero marks a unit that does not reach the output.
    def apply(u, before, x, after):
        return after[:, None] * (factor(x) @ (stratified.inverse(before)[:, None] * u))

    def one(carry, x):
        product, before = carry
        return (stratified.absorb(product, apply(product.u, before, *x))[0], x[1]), None

    def two(carry, x):
        product, before = carry
        (x1, middle), (x2, after) = (jax.tree.map(lambda z, i=i: z[i], x) for i in range(2))
        c = apply(product.u, before, x1, middle)
        pair, loss, _ = stratified.absorb(product, apply(c, middle, x2, after))
        return lax.cond(
            loss < _PAIR_LOSS,
            lambda: ((pair, after), None),
            lambda: (lax.scan(one, carry, x)[0], None),
        )

    product = stratified.identity(scale > 0)
    first, *_ = stratified.absorb(product, scale[:, None] * product.u)
    carry, every = (first, scale), (xs, scales)
    if jnp.finfo(work).eps * n**0.5 >= _PAIR_LOSS:
        (product, _), _ = lax.scan(one, carry, every)
        return _finish(product, finite.all(), kept, dtype)
    odd = scales.shape[0] % 2
    carry, _ = lax.scan(one, carry, jax.tree.map(lambda z: z[:odd], every))
    pairs = jax.tree.map(lambda z: z[odd:].reshape(-1, 2, *z.shape[1:]), every)
    (product, _), _ = lax.scan(two, carry, pairs)

    def exactly(carry, x):
        product, lost, before = carry
        b = x[1][:, None] * lax.stop_gradient(factor(x[0])) * stratified.inverse(before)[None, :]
        return (*stratified.absorb_exactly(product, lost, b), x[1]), None

    none = jax.tree.map(jnp.zeros_like, stratified.Lost(*first[:3]))

    def again():
        (product, lost, _), _ = lax.scan(exactly, (first, none, scale), every)
        return stratified.Better(product.d, product.t, lost), jnp.array(False)

    # A loop of one turn at most: unlike a branch, it costs nothing under vmap unless it is taken.
    error = jnp.sqrt(product.variance)
    poor = (product.d > -jnp.inf) & (error > _REFINED) & (_SAFETY * error < _UNRESOLVED)
    same = stratified.Better(*lax.stop_gradient(product[1:3]), none)
    better, _ = lax.while_loop(lambda state: state[1], lambda _: again(), (same, poor.any()))
    return _finish(product, finite.all(), kept, dtype, better)


def prefix_log_spectra(factors: Factors, *, length: int | None = None) -> Spectrum:
    r"""The singular values of every partial product, in one sweep.

    .. math::
        \ln \sigma_i(A_l \cdots A_1 A_0), \qquad l = 0, \dots, L - 1

    An ill-posed product is not multiplied twice, as it is by `log_spectrum`, and may err by more
    than 1e-9. For the partial products from the other end, give the transposed factors in reverse
    order.

    Args:
        factors: As in `log_singular_values`.
        length: As in `log_singular_values`.

    Returns:
        Spectrum as in `log_spectrum`, each field of shape `(..., L, n)`; for a sequence, `n` is the
        lesser dimension of the first factor. A product is all NaN from the first factor on that
        has an entry that is not finite.

    Raises:
        TypeError: If the factors are complex.
        ValueError: If the shapes do not chain, or `length` is missing or superfluous.

    Example:
        >>> import jax.numpy as jnp
        >>> prefix_log_spectra(jnp.exp(1.0) * jnp.ones((3, 1, 1))).log_values
        Array([[1.],
               [2.],
               [3.]], dtype=float32)
    """
    if not callable(factors) and not isinstance(factors, Sequence) and jnp.ndim(factors) > 3:
        return jax.vmap(lambda f: prefix_log_spectra(f, length=length))(factors)
    factor, xs, n, kept, dtype = _chain(factors, length)
    if isinstance(factors, Sequence):
        kept = min(jnp.shape(factors[0]))

    # What follows is unknown here, so the column scales are a factor of their own.
    def multiply(carry, x):
        product, finite = carry
        a = factor(x)
        scale, entries = _column_scale(a, jnp.ones(n, a.dtype))
        finite = finite & entries
        product, *_ = stratified.absorb(product, scale[:, None] * product.u)
        product, *_ = stratified.absorb(
            product, a @ (stratified.inverse(scale)[:, None] * product.u)
        )
        return (product, finite), _finish(product, finite, kept, dtype)

    init = (stratified.identity(jnp.ones(n, bool)), jnp.array(True))
    return lax.scan(multiply, init, xs)[1]


def _chain(factors: Factors, length: int | None):
    """The factors as a function of a scanned input, with their width, values kept and dtype."""
    work = jnp.result_type(float)
    if callable(factors):
        if length is None or length < 0:
            raise ValueError(
                f"length is {length}, but factors is a function: give the number of factors, "
                "length=L, an integer of at least 0."
            )
        one = jax.eval_shape(factors, jax.ShapeDtypeStruct((), jnp.result_type(int)))
        _check(one.shape, one.dtype)
        n = one.shape[0]
        factor = lambda i: factors(i).astype(work)
        return factor, jnp.arange(length), n, n, _result(one.dtype)
    if length is not None:
        raise ValueError(
            f"length is {length}, but factors is no function: it has a length of its own. "
            "Leave length out."
        )
    if isinstance(factors, Sequence):
        factors, kept = _stack(factors)
    else:
        factors = jnp.asarray(factors)
        kept = factors.shape[-1] if factors.ndim else 0
        _check(factors.shape[1:], factors.dtype)
    return lambda a: a.astype(work), factors, factors.shape[-1], kept, _result(factors.dtype)


def _check(shape, dtype) -> None:
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(
            f"factors has factors of shape {shape}, not square matrices (n, n) with n >= 1. Give "
            "factors of other shapes as a sequence of matrices."
        )
    if jnp.issubdtype(dtype, jnp.complexfloating):
        raise TypeError(f"factors has dtype {dtype}; only real factors are supported.")


def _result(dtype):
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.result_type(float)
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.dtype(jnp.float32)


def _stack(factors: Sequence[Array]) -> tuple[Array, int]:
    """Factors of any shapes that chain, padded by zeros to squares; the least dimension."""
    arrays = [jnp.asarray(a) for a in factors]
    if not arrays:
        raise ValueError("factors is an empty sequence, whose width is unknown: give a matrix.")
    for i, a in enumerate(arrays):
        if a.ndim != 2 or 0 in a.shape:
            raise ValueError(f"factors[{i}] has shape {a.shape}, not that of a matrix (m, n).")
        if i and a.shape[1] != arrays[i - 1].shape[0]:
            raise ValueError(
                f"factors[{i}] of shape {a.shape} cannot act after factors[{i - 1}] of shape "
                f"{arrays[i - 1].shape}: factors are applied first to last, and the columns of "
                "each must be the rows of the one before."
            )
    with jax.numpy_dtype_promotion("standard"):
        dtype = jnp.result_type(*arrays)
    n = max(max(a.shape) for a in arrays)
    _check((n, n), dtype)
    padded = [jnp.pad(a.astype(dtype), [(0, n - s) for s in a.shape]) for a in arrays]
    return jnp.stack(padded), min(min(a.shape) for a in arrays)


def _column_scale(a: Array, rows: Array) -> tuple[Array, Array]:
    """The size of each column of diag(rows) A as a power of two, the largest 1; is A finite?

    Zero for a column of zeros; else bounded below, so that no product underflows.
    """
    least = jnp.finfo(a.dtype).minexp // 4
    centred = jnp.ldexp(rows, -least // 2)
    size = lax.stop_gradient(centred @ jnp.abs(a))
    exponent = jnp.frexp(size)[1]
    top = jnp.where(size > 0, exponent, jnp.iinfo(exponent.dtype).min // 2).max()
    scale = jnp.ldexp(jnp.ones_like(size), jnp.maximum(exponent - top, least))
    scale = jnp.where(size > 0, scale, 0)
    return scale, jnp.isfinite(size).all()


def _finish(product: stratified.Product, finite: Array, kept: int, dtype, better=None) -> Spectrum:
    """The singular values of diag(e^d) T."""
    _, d, t, variance, _, rank = product
    values, variance, converged = stratified.log_lengths(d, t, variance, better)
    error = _SAFETY * jnp.sqrt(lax.cummax(variance))
    zero = jnp.arange(d.size) >= rank
    values = jnp.where(zero, -jnp.inf, values)
    resolved = zero | ((error < _UNRESOLVED) & (values > -jnp.inf) & converged)
    finite = finite & ~jnp.isnan(values).any()
    relative = jnp.exp(values - jnp.where(rank > 0, values[0], 0))
    residuals = jnp.where(values > -jnp.inf, error * relative, 0)
    values = jnp.where(finite, values, jnp.nan).astype(dtype)
    residuals = jnp.where(finite, residuals, jnp.nan).astype(dtype)
    return Spectrum(values[:kept], residuals[:kept], (resolved & finite)[:kept])
