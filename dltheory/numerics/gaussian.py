r"""Gaussian averages of one and two variables, exact at kinks.

Gauss-Hermite rules lose their order at the first kink: they are wrong by per cents where this
module is right to rounding. Here the line is cut at every kink into panels, each with a
Gauss-Legendre rule. The panels are graded towards the origin, because a function of `h` whose
features have scale one is steep in `z = h / sqrt(var)` when `var` is large.

For a correlated pair the plane is rotated into two independent variables, the sum `p` and the
difference `d`. The inner integral over `p` is cut at the kinks of both functions. What is left
is smooth in `d` except where a kink of one function crosses a kink of the other, and the outer
integral is cut there. No cut depends badly on the correlation, so that nothing is lost near or
at correlations of one.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

_RULE = np.polynomial.legendre.leggauss(16)
_PAIR_END = 8.6  # erfc(8.6 / sqrt(2)) = 8e-18, below the rounding of float64


def expectation(
    g: Callable[[Array], Array], var: ArrayLike = 1.0, *, kinks: Sequence[float] = ()
) -> Array:
    r"""Average of a function of one Gaussian variable.

    .. math:: \mathbb{E}\, g(h), \qquad h \sim \mathcal{N}(0, \text{var})

    In float64 the relative error is about 1e-14 for a function that is analytic between its
    kinks and whose features of scale one lie near the origin, for every `var` up to 1e6. A
    function that goes on oscillating on a scale of one is resolved up to a `var` of about 16.

    Args:
        g: Function from a scalar to a scalar; mapped over the nodes inside.
        var: Variance, any shape; zero gives `g(0)`.
        kinks: Points, in units of `h`, where `g` or one of its derivatives jumps. An object with
            an attribute `kinks`, such as an `Activation`, brings its own.

    Returns:
        The average, of the shape of `var`; infinite where `g` grows so fast that the integral
        diverges; NaN where `g` is NaN at a node. Its derivative with respect to `var` is exact
        at kinks and jumps too, but NaN at `var = 0`.

    Raises:
        TypeError: If `g` does not map a real floating-point scalar to another.
        ValueError: If `var` is negative (under tracing the result is NaN instead).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics import gaussian
        >>> print(f"{gaussian.expectation(jnp.abs, 2.0, kinks=(0.0,)):.4f}")  # 2 / sqrt(pi)
        1.1284
    """
    _check_variance("var", var)
    (var,) = _floats(var)
    dtype = var.dtype
    mapped = _mapped("g", g, dtype)
    points = _points("g", kinks, g)

    std = jnp.sqrt(var)[..., None]
    z, weights, end = _line(std, points)
    values = mapped(std[..., None] * z)
    # Where a weight is zero, by underflow or in an empty panel, the value may well overflow.
    total = jnp.sum(jnp.where(weights > 0, values * weights, 0), axis=(-2, -1))

    # The integral diverges if the integrand has not died out at the rim of the line.
    rim = jnp.full_like(var, end)
    right, left = (mapped(s * rim * std[..., 0]) * (rim * _density(rim)) for s in (1, -1))
    size = jnp.abs(right) + jnp.abs(left)
    floor = jnp.sqrt(jnp.finfo(dtype).eps) * (jnp.abs(total) + jnp.sqrt(jnp.finfo(dtype).tiny))
    infinity = jnp.sign(right) * jnp.inf + jnp.sign(left) * jnp.inf
    total = jnp.where(size > floor, infinity, total)

    # Without variance nothing is left to average but the two sides of a jump at the origin.
    side = jnp.asarray(jnp.finfo(dtype).tiny if 0.0 in points else 0.0, dtype)
    still = (mapped(side) + mapped(-side)) / 2
    return jnp.where(var == 0, still, jnp.where(var > 0, total, jnp.nan))


def pair_expectation(
    g1: Callable[[Array], Array],
    g2: Callable[[Array], Array],
    var1: ArrayLike,
    var2: ArrayLike,
    cov: ArrayLike,
    *,
    kinks: Sequence[float] = (),
) -> Array:
    r"""Average of a product of functions of two correlated Gaussian variables.

    .. math::
        \mathbb{E}\, g_1(u)\, g_2(v), \qquad
        (u, v) \sim \mathcal{N}\!\left(0,
        \begin{pmatrix} \text{var1} & \text{cov} \\ \text{cov} & \text{var2} \end{pmatrix}\right)

    With :math:`\rho` the correlation, :math:`u = \sqrt{\text{var1}}\,(\alpha p + \beta d)` and
    :math:`v = \pm\sqrt{\text{var2}}\,(\alpha p - \beta d)`, where :math:`p, d` are independent,
    :math:`\alpha^2 = (1 + |\rho|)/2` and :math:`\beta^2 = (1 - |\rho|)/2`.

    Args:
        g1: Function of `u`, from a scalar to a scalar.
        g2: Function of `v`, from a scalar to a scalar.
        var1: Variance of `u`, any shape.
        var2: Variance of `v`, of the same shape or a scalar.
        cov: Covariance, of the same shape or a scalar; `cov**2 = var1 * var2` is allowed.
        kinks: Kinks of both functions, in units of `u` and `v`; an object with an attribute
            `kinks` brings its own.

    Returns:
        The average, of the common shape of the last three arguments; NaN where a function is
        NaN at a node. In float64 it is exact to about 1e-14 up to variances of 4, and to 1e-12
        up to 25; a smooth function of scale one keeps nine digits at 100 and five at 1e4, a
        piecewise polynomial all. Its derivatives are NaN at correlations of plus or minus one.

    Raises:
        TypeError: If a function does not map a real floating-point scalar to another.
        ValueError: If the covariance matrix is not positive semi-definite (under tracing the
            result is NaN instead).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics import gaussian
        >>> value = gaussian.pair_expectation(jnp.sign, jnp.sign, 1.0, 4.0, 1.0, kinks=(0.0,))
        >>> print(f"{value:.4f}")  # 2 asin(1/2) / pi
        0.3333
    """
    even = g1 is g2 and var1 is var2
    var1, var2, cov, rho = correlation(var1, var2, cov)
    dtype = cov.dtype
    mapped1, mapped2 = _mapped("g1", g1, dtype), _mapped("g2", g2, dtype)
    points1, points2 = _points("g1", kinks, g1), _points("g2", kinks, g2)
    gap = 1 - jnp.abs(rho)
    alpha, beta = jnp.sqrt(1 - gap / 2)[..., None], jnp.sqrt(gap / 2)[..., None]
    sign = jnp.where(rho < 0, -1, 1).astype(dtype)[..., None]
    std1, std2 = jnp.sqrt(var1)[..., None], jnp.sqrt(var2)[..., None]
    steepness = jnp.maximum(std1, std2)

    # For one function of two equal variances the integrand is even in d if the correlation is
    # positive, and even in p if it is negative. Then d is not negative; in the second case the
    # half-plane p < 0 is free to hold the values that belong to -d.
    # Outer cuts: where a kink of g1 crosses one of g2, and towards d = 0, where steep parts do.
    outer = _graded(jnp.maximum(steepness * beta, 1))
    if points1 and points2 and any((*points1, *points2)):  # crossings away from d = 0 follow
        del outer[1]
    if even:
        near = sorted({abs(a - b) for a in points1 for b in points1} - {0.0})
        far = sorted({abs(a + b) for a in points1 for b in points1} - {0.0})
        pairs = itertools.zip_longest(near, far, fillvalue=0.0)
        crossings = [jnp.where(sign > 0, _over(a, std1), _over(b, std1)) for a, b in pairs]
    else:
        outer = _mirrored(outer)
        pairs = itertools.product(points1, points2)
        crossings = [_over(a, std1) - sign * _over(b, std2) for a, b in pairs]
    for crossing in crossings:
        apart = 2 * jnp.where(beta > 0, beta, 1)
        outer = _insert(outer, jnp.where(beta > 0, crossing / apart, 0))

    def inner(d: Array) -> Array:
        shift = beta * d[..., None] / alpha
        # Steep parts are centred at p = -shift and p = shift; a kink marks its own centre.
        grades = _graded(jnp.maximum(steepness * alpha, 1))[bool(points1 and points2) :]
        centred = [jnp.minimum(jnp.abs(shift) + grade, _PAIR_END) for grade in grades]
        edges = _mirrored([jnp.zeros_like(shift), *centred])
        cuts1 = [_over(k, std1) / alpha - shift for k in points1]
        cuts2 = [sign * _over(k, std2) / alpha + shift for k in points2]
        if even:
            cuts1 = [jnp.where(sign > 0, cut, jnp.abs(cut)) for cut in cuts1]
            cuts2 = [jnp.where(sign > 0, cut, -jnp.abs(cut - 2 * shift)) for cut in cuts2]
        for cut in (*cuts1, *cuts2):
            edges = _insert(edges, cut)

        middle, half = _panels(edges)
        mirrored = (sign < 0) & (middle < 0) & even
        difference = jnp.where(mirrored, -beta, beta) * d[..., None]

        def product(p: Array) -> Array:
            u, v = std1 * (alpha * p + difference), std2 * (alpha * p - difference)
            return mapped1(u) * mapped2(sign * v)

        return _integrate(product, middle, half)

    # One outer node at a time: the nodes of the plane are never all in memory.
    middle, half = (jnp.moveaxis(a, -1, 0) for a in _panels(outer))

    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        d, weight = node
        return total + weight * _density(d) * inner(d), None

    x, w = (jnp.asarray(row, dtype).reshape(-1, *(1,) * half.ndim) for row in _RULE)
    d, weights = (
        a.reshape(-1, *cov.shape) for a in (middle[None] + half[None] * x, half[None] * w)
    )
    total = jax.lax.scan(add, jnp.zeros_like(cov), (d, weights))[0]
    return 2 * total if even else total


def quadrature(var: ArrayLike = 1.0, *, kinks: Sequence[float] = ()) -> tuple[Array, Array]:
    r"""Nodes and weights of `expectation`, for sums that share the values of one function.

    .. math:: \mathbb{E}\, g(h) = \sum_i w_i\, g(\sqrt{\text{var}}\, z_i)

    Args:
        var: Variance, any shape.
        kinks: Points, in units of `h`, where the integrand or one of its derivatives jumps.

    Returns:
        The nodes `z` and the weights, each of shape `(*var.shape, nodes)`.

    Raises:
        ValueError: If `var` is negative (under tracing the result is NaN instead).
    """
    _check_variance("var", var)
    (var,) = _floats(var)
    z, weights, _ = _line(jnp.sqrt(var)[..., None], _points("the integrand", kinks))
    return z.reshape(*var.shape, -1), weights.reshape(*var.shape, -1)


def correlation(
    var1: ArrayLike, var2: ArrayLike, cov: ArrayLike
) -> tuple[Array, Array, Array, Array]:
    """Check a covariance matrix, and find its correlation.

    Rounding leaves a correlation of one at `1 - eps`, where a kernel with a singular slope at
    one is off by the root of that: what is within eight roundings of one counts as one.

    Args:
        var1: First variance, any shape.
        var2: Second variance.
        cov: Covariance.

    Returns:
        `var1`, `var2`, `cov` as arrays of one shape, and the correlation, zero where a variance
        is zero; all NaN where the matrix is not positive semi-definite under tracing.

    Raises:
        ValueError: If the matrix is not positive semi-definite.
    """
    _check_variance("var1", var1)
    _check_variance("var2", var2)
    given = (var1, var2, cov)
    var1, var2, cov = _floats(*given)
    eps = jnp.finfo(cov.dtype).eps
    largest = jnp.sqrt(var1) * jnp.sqrt(var2)
    outside = jnp.abs(cov) > largest * (1 + 32 * eps)
    if not any(isinstance(a, Tracer) for a in given):
        bound = np.sqrt(np.asarray(given[0]) * np.asarray(given[1]))
        if np.any(np.abs(np.asarray(given[2])) > bound * (1 + 32 * float(eps))):
            raise ValueError(
                f"cov must be at most sqrt(var1 * var2) = {bound} in size; got {given[2]}"
            )
    rho = cov / jnp.where(largest > 0, largest, 1)
    rho = jnp.where(jnp.abs(rho) > 1 - 8 * eps, jnp.sign(rho), rho)
    legal = (var1 >= 0) & (var2 >= 0) & ~outside
    var1, var2, cov, rho = (jnp.where(legal, a, jnp.nan) for a in (var1, var2, cov, rho))
    return var1, var2, cov, rho


def check_scalar_function(name: str, g: Callable[[Array], Array], dtype: jnp.dtype) -> None:
    """Refuse a function that does not map a real floating-point scalar to another.

    Args:
        name: What the caller calls the function.
        g: The function.
        dtype: Dtype of its argument.

    Raises:
        TypeError: If it returns another shape or another kind of number.
    """
    out = jax.eval_shape(g, jax.ShapeDtypeStruct((), dtype))
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != ():
        raise TypeError(f"{name} must map a scalar to a scalar; it returned {out}")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(
            f"{name} must return real floating-point numbers; it returned {out.dtype}. "
            "Let it return a float, for instance by .astype(h.dtype)"
        )


def _floats(*args: ArrayLike) -> list[Array]:
    """The arguments as arrays of one floating dtype and one shape."""
    dtype = jnp.result_type(float, *(a for a in args if not isinstance(a, int)))
    return list(jnp.broadcast_arrays(*(jnp.asarray(a, dtype) for a in args)))


def _check_variance(name: str, var: ArrayLike) -> None:
    """Raise ValueError for a negative variance, unless it is traced."""
    if not isinstance(var, Tracer) and np.any(np.asarray(var) < 0):
        raise ValueError(f"{name} must be zero or more, as a variance is; got {var}")


def _mapped(name: str, g: Callable, dtype: jnp.dtype) -> Callable[[Array], Array]:
    """Check `g` and map it over arrays."""
    check_scalar_function(name, g, dtype)
    return lambda h: jnp.vectorize(g)(h).astype(dtype)


def _points(name: str, kinks: Sequence[float], g: Callable | None = None) -> tuple[float, ...]:
    """The kinks given and those that `g` brings, sorted."""
    points = sorted({float(k) for k in (*kinks, *getattr(g, "kinks", ()))})
    if not all(np.isfinite(points)):
        raise ValueError(f"kinks of {name} must be finite; got {tuple(points)}")
    return tuple(points)


def _over(kink: float, std: Array) -> Array:
    """A kink in units of the standard deviation; zero stays zero where `std` is zero."""
    if kink == 0:
        return jnp.zeros_like(std)
    return kink / std


def _graded(steepness: Array) -> list[Array]:
    """Edges from zero to the end of the axis, for a function of width `1 / steepness`."""
    width = 1.5 / steepness
    end = jnp.full_like(width, _PAIR_END)
    return [jnp.zeros_like(width), width, jnp.sqrt(width * end), end]


def _mirrored(edges: list[Array]) -> list[Array]:
    """Edges of the whole axis, from those of its positive half."""
    return [*(-edge for edge in edges[:0:-1]), *edges]


def _line(std: Array, points: tuple[float, ...]) -> tuple[Array, Array, float]:
    """Nodes and weights in one dimension, `(..., panels, nodes)`, and where the line ends.

    The panels are graded towards zero, and reach almost to where the density underflows.
    """
    end = float(np.sqrt(-1.9 * np.log(float(jnp.finfo(std.dtype).tiny))))
    half_line = [0.0, *(1.47 * 3.0 ** np.arange(-6, 1)), 2.9, 5.0, *np.geomspace(9.0, end, 4)]
    grid = np.asarray(_mirrored(half_line))
    moving = [k for k in points if k != 0]  # zero is an edge of the grid
    if moving:
        edges = [jnp.full_like(std, edge) for edge in grid]
        for k in moving:
            edges = _insert(edges, _over(k, std))
        middle, half = (a[..., None] for a in _panels(edges))
    else:
        shape = (1,) * (std.ndim - 1) + (-1, 1)
        ends = grid[1:], grid[:-1]
        middle, half = ((ends[0] + sign * ends[1]).reshape(shape) / 2 for sign in (1, -1))
        middle, half = (jnp.asarray(a, std.dtype) for a in (middle, half))
    x, w = (jnp.asarray(row, std.dtype).reshape((1,) * std.ndim + (-1,)) for row in _RULE)
    z = middle + half * x
    shape = (*std.shape[:-1], *z.shape[-2:])
    return jnp.broadcast_to(z, shape), jnp.broadcast_to(half * w * _density(z), shape), end


def _insert(edges: list[Array], cut: Array) -> list[Array]:
    """Insert `cut` into sorted edges, clipped to their range."""
    cut = jnp.clip(cut, edges[0], edges[-1])
    # Not by maximum and minimum: at a tie they would give each side half of the derivative.
    return [
        jnp.where(above <= cut, above, jnp.where(below <= cut, cut, below))
        for below, above in zip([edges[0], *edges], [*edges, edges[-1]], strict=True)
    ]


def _panels(edges: list[Array]) -> tuple[Array, Array]:
    """Middle and half length of each panel, shape `(..., panels)`, from edges `(..., 1)`."""
    stacked = jnp.concatenate(edges, axis=-1)
    low, high = stacked[..., :-1], stacked[..., 1:]
    return (high + low) / 2, (high - low) / 2


def _integrate(f: Callable[[Array], Array], middle: Array, half: Array) -> Array:
    """Gaussian integral over the panels, one node of the rule at a time."""

    def add(total: Array, node: tuple[Array, Array]) -> tuple[Array, None]:
        z = middle + half * node[0]
        return total + f(z) * (node[1] * _density(z)), None

    x, w = (jnp.asarray(row, half.dtype) for row in _RULE)
    total, _ = jax.lax.scan(add, jnp.zeros_like(half), (x, w))
    return jnp.sum(total * half, axis=-1)


def _density(z: Array) -> Array:
    """Standard normal density."""
    return jnp.exp(-z * z / 2) / np.sqrt(2 * np.pi).astype(z.dtype)
