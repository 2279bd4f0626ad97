r"""Gaussian averages of one and two variables, exact at kinks.

Gauss-Hermite rules lose their order at the first kink: they are wrong by per cents where this
module is right to rounding. Here the line is cut at every kink into panels, each with a
Gauss-Legendre rule. The panels are graded towards the origin, because a function of `h` whose
features have scale one is steep in `z = h / sqrt(var)` when `var` is large.

For a correlated pair the plane is rotated into two independent variables, the sum `p` and the
difference `d`. The inner integral over `p` is cut at the kinks of both functions, and graded
towards the two points where their arguments vanish. What is left is smooth in `d` except where a
kink of one function crosses a kink of the other, and the outer integral is cut there. No cut
depends badly on the correlation, so that nothing is lost near or at correlations of one. Where
there are no kinks the trapezoidal rule replaces the panels.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from dltheory.numerics import gaussian_axis
from dltheory.numerics.gaussian_axis import Grade

_RULE = np.polynomial.legendre.leggauss(16)
_GENTLE = Grade(steepness=2.5, step=0.095, nodes=38, panels=3, order=13)
_NODES = 88  # of the trapezoidal rule where it is steeper
_BLOCK = 1024  # points whose arrays fit into the caches


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

    rim = jnp.full_like(var, end)
    total = gaussian_axis.infinite_if_alive(
        total, [mapped(side * rim * std[..., 0]) for side in (1, -1)], rim
    )

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
        NaN at a node, infinite where the product outgrows the density. In float64 the error is
        below 1e-12 of the root mean squares, at every variance up to 1e4, for functions whose
        features of scale one lie near the origin. A function that oscillates or grows
        exponentially on a scale of one is resolved as well up to a variance of 36, and keeps
        six digits at 64.
        Derivatives are NaN at correlations of plus or minus one.

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
    points = _points("g1", kinks, g1), _points("g2", kinks, g2)

    def integral(args: tuple[Array, ...]) -> Array:
        var1, var2, rho = args
        return _plane(mapped1, mapped2, points, even, var1, var2, rho)

    if cov.size <= _BLOCK:
        return integral((var1, var2, rho))
    # In blocks that the caches hold; each is resolved as finely as its steepest point needs.
    fill = -cov.size % _BLOCK
    blocks = [jnp.pad(a.reshape(-1), (0, fill)).reshape(-1, _BLOCK) for a in (var1, var2, rho)]
    return jax.lax.map(integral, blocks).reshape(-1)[: cov.size].reshape(cov.shape)


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


def _line(std: Array, points: tuple[float, ...]) -> tuple[Array, Array, float]:
    """Nodes and weights in one dimension, `(..., panels, nodes)`, and where the line ends.

    The panels are graded towards zero, and reach almost to where the density underflows.
    """
    end = gaussian_axis.end(std.dtype)
    half_line = [0.0, *(1.47 * 3.0 ** np.arange(-6, 1)), 2.9, 5.0, *np.geomspace(9.0, end, 4)]
    grid = np.asarray(gaussian_axis.mirrored(half_line))
    moving = [k for k in points if k != 0]  # zero is an edge of the grid
    if moving:
        edges = jnp.stack([jnp.full_like(std, edge) for edge in grid])
        for k in moving:
            edges = gaussian_axis.insert(edges, gaussian_axis.in_deviations(k, std))
        ends = gaussian_axis.panels(edges)
        middle, half = (jnp.moveaxis(a, 0, -1)[..., 0, :, None] for a in ends)
    else:
        shape = (1,) * (std.ndim - 1) + (-1, 1)
        ends = grid[1:], grid[:-1]
        middle, half = ((ends[0] + sign * ends[1]).reshape(shape) / 2 for sign in (1, -1))
        middle, half = (jnp.asarray(a, std.dtype) for a in (middle, half))
    x, w = (jnp.asarray(row, std.dtype).reshape((1,) * std.ndim + (-1,)) for row in _RULE)
    z = middle + half * x
    shape = (*std.shape[:-1], *z.shape[-2:])
    return (
        jnp.broadcast_to(z, shape),
        jnp.broadcast_to(half * w * gaussian_axis.density(z), shape),
        end,
    )


def _plane(
    mapped1: Callable[[Array], Array],
    mapped2: Callable[[Array], Array],
    points: tuple[tuple[float, ...], tuple[float, ...]],
    even: bool,
    var1: Array,
    var2: Array,
    rho: Array,
) -> Array:
    """The integral over the plane, as finely resolved as the steepest of its points needs."""
    gap = 1 - jnp.abs(rho)
    alpha, beta = jnp.sqrt(1 - gap / 2), jnp.sqrt(gap / 2)
    sign = jnp.where(rho < 0, -1, 1).astype(rho.dtype)
    std1, std2 = jnp.sqrt(var1), jnp.sqrt(var2)

    def product(p: Array, d: Array) -> Array:
        u, v = std1 * (alpha * p + beta * d), std2 * (alpha * p - beta * d)
        return mapped1(u) * mapped2(sign * v)

    def total(grade: Grade) -> Array:
        return _resolved(product, points, even, grade, (alpha, beta, sign, std1, std2))

    # Most variances are gentle, and then fewer nodes do. Under vmap both sums are done.
    largest = jnp.max(jnp.maximum(std1, std2))
    # The nodes reach 20 deviations; up to a steepness of 6 they resolve sines of scale one too.
    steepness = jnp.clip(largest, 6, 1000)
    step = jnp.arcsinh(10 * steepness) / (_NODES - 1)
    steep = Grade(steepness, step, _NODES, panels=7, order=14)
    gentle = ~(largest > _GENTLE.steepness)
    if isinstance(gentle, Tracer):
        value = jax.lax.cond(gentle, partial(total, _GENTLE), partial(total, steep))
    else:
        value = total(_GENTLE if gentle else steep)

    rim, none = jnp.full_like(rho, gaussian_axis.end(rho.dtype)), jnp.zeros_like(rho)
    rays = [product(s * p, s * d) for p, d in ((rim, none), (none, rim)) for s in (1, -1)]
    return gaussian_axis.infinite_if_alive(value, rays, rim)


def _resolved(
    product: Callable[[Array, Array], Array],
    points: tuple[tuple[float, ...], tuple[float, ...]],
    even: bool,
    grade: Grade,
    geometry: tuple[Array, Array, Array, Array, Array],
) -> Array:
    """Gaussian integral of a product of functions of `alpha p + beta d` and `alpha p - beta d`.

    For one function of two equal variances the integrand is even in d if the correlation is
    positive, and even in p if it is negative. Then d is not negative; in the second case the
    half-plane p < 0 is free to hold the values that belong to -d.
    """
    alpha, beta, sign, std1, std2 = geometry
    points1, points2 = points
    kinks1 = [(k, gaussian_axis.in_deviations(k, std1)) for k in points1]
    kinks2 = [(k, gaussian_axis.in_deviations(k, std2)) for k in points2]
    steepness = jnp.maximum(std1, std2)
    width = lambda factor: 2 / jnp.clip(steepness * factor, 1, grade.steepness)

    crossings = None
    if points1 and points2:
        if even:
            near = sorted({abs(a - b) for a in points1 for b in points1} - {0.0})
            far = sorted({abs(a + b) for a in points1 for b in points1} - {0.0})
            pairs = itertools.zip_longest(near, far, fillvalue=0.0)
            crossings = [
                jnp.where(sign > 0, *(gaussian_axis.in_deviations(k, std1) for k in pair))
                for pair in pairs
            ]
        else:
            crossings = [a - sign * b for (_, a), (_, b) in itertools.product(kinks1, kinks2)]
        apart = 2 * jnp.where(beta > 0, beta, 1)
        crossings = [jnp.where(beta > 0, crossing / apart, 0) for crossing in crossings]

    def inner(d: Array) -> Array:
        shift = beta * d / alpha
        cuts1 = [k / alpha - shift for _, k in kinks1]
        cuts2 = [sign * k / alpha + shift for _, k in kinks2]
        if even:
            cuts1 = [jnp.where(sign > 0, cut, jnp.abs(cut)) for cut in cuts1]
            cuts2 = [jnp.where(sign > 0, cut, -jnp.abs(cut - 2 * shift)) for cut in cuts2]
        items, rule = gaussian_axis.axis(width(alpha), shift, (cuts1 + cuts2) or None, grade)

        def add(total: Array, item: tuple[Array, ...]) -> tuple[Array, None]:
            p, weight = rule(item)

            def term(p: Array, weight: Array) -> Array:
                mirrored = (sign < 0) & jnp.signbit(p) & even  # of the two zeros, one
                return weight * product(p, jnp.where(mirrored, -d, d))

            return total + jax.vmap(term)(p, weight), None

        first = jnp.zeros_like(rule(tuple(item[0] for item in items))[0])
        return jnp.sum(jax.lax.scan(add, first, items)[0], axis=0)

    # One outer node at a time: the nodes of the plane are never all in memory.
    items, rule = gaussian_axis.axis(width(beta), jnp.zeros_like(beta), crossings, grade, half=even)
    nodes = [a.reshape(-1, *beta.shape) for a in jax.vmap(rule)(items)]

    def add(total: Array, node: list[Array]) -> tuple[Array, None]:
        return total + node[1] * inner(node[0]), None

    total = jax.lax.scan(add, jnp.zeros_like(beta), nodes)[0]
    return 2 * total if even else total
