r"""How well a given function of one variable can be approximated, and at what number of units.

A ReLU network with one hidden layer of `n` units is a continuous piecewise linear function with
as many pieces, so that theorems about splines are theorems about networks. The functions here
take the target itself, :math:`f`, from a scalar to a scalar.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import gammaln, xlog1py, xlogy
from jax.typing import ArrayLike

from dltheory.theory import targets
from dltheory.theory.parameters import check_choice, check_count, checked


class Ripple(NamedTuple):
    """The best continuous piecewise linear function, whose errors alternate at one size.

    Attributes:
        error: Its sup error, shape `()`.
        knots: The ends of its pieces, shape `(n + 1,)`. There it misses the target by the error,
            below a convex target and above a concave one.
    """

    error: Array
    knots: Array


def interpolation_error(
    f: Callable[[Array], Array],
    n: int,
    interval: tuple[ArrayLike, ArrayLike],
    *,
    norm: str = "sup",
) -> Array:
    r"""Error of the piecewise linear interpolant at the ends of `n` equal pieces.

    .. math:: \|f - I_n f\| \le \tfrac18 h^2 \sup |f''|, \quad h = (b - a) / n

    in the sup norm; here is the error itself. A network of `n` ReLU units attains it. On each
    piece the largest of 65 samples is closed in on, or, for the L2 norm, Gauss's rule applied.
    The best fit on the same pieces has half the sup error where the target is convex or concave.

    Args:
        f: The target.
        n: Number of pieces.
        interval: Its ends :math:`a < b`, shapes `()`.
        norm: "sup" or "l2", which is the root of the integral of the square.

    Returns:
        The error, shape `()`.

    Raises:
        TypeError: If `n` is not an integer, or `f` does not map a scalar to a scalar.
        ValueError: If `n` is not positive, the interval is empty or `norm` is neither.

    Example:
        >>> from dltheory.theory import approximation
        >>> print(f"{approximation.interpolation_error(lambda x: x**2, 4, (0.0, 1.0)):.6f}")
        0.015625
    """
    check_choice("norm", norm, ("sup", "l2"))
    check_count("n", n)
    a, b = targets.ends(interval)
    values = targets.everywhere(f, a)
    edges = targets.equal_parts(a, b, n)
    low, high = edges[:-1, None], edges[1:, None]
    start, rise = values(low), values(high) - values(low)
    # By its place in the piece, which does not move with the interval.
    error = lambda s: values(low + (high - low) * s) - start - rise * s
    if norm == "sup":
        return targets.largest(error, n, a.dtype)
    nodes, weights = np.polynomial.legendre.leggauss(16)
    squares = jnp.square(error(jnp.asarray(nodes[None] + 1, a.dtype) / 2))
    return jnp.sqrt(jnp.sum((high - low) * squares * jnp.asarray(weights[None], a.dtype)) / 2)


def equal_ripple(
    f: Callable[[Array], Array], n: int, interval: tuple[ArrayLike, ArrayLike]
) -> Ripple:
    r"""The best sup-norm approximation of a convex or concave target by `n` linear pieces.

    The knots are free. With Bregman's divergence
    :math:`D(x, t) = f(x) - f(t) - f'(t)(x - t)`, a piece of error :math:`E` that begins at
    :math:`u` touches at :math:`t` and ends at :math:`v`, where

    .. math:: D(u, t) = D(v, t) = 2 E, \qquad u < t < v,

    and the best error is the least one with which `n` such pieces, end to end, cover the
    interval. Found by bisection, and so not differentiable.

    Args:
        f: The target, convex or concave; kinks are allowed.
        n: Number of pieces.
        interval: Its ends :math:`a < b`, shapes `()`.

    Returns:
        The error and the knots.

    Raises:
        TypeError: If `n` is not an integer, or `f` does not map a scalar to a scalar.
        ValueError: If `n` is not positive, the interval is empty, or the target is neither
            convex nor concave (under tracing the result is NaN instead).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import approximation
        >>> error, knots = approximation.equal_ripple(jnp.abs, 2, (-1.0, 1.0))
        >>> print(f"{error:.4f}")
        0.0000
    """
    check_count("n", n)
    a, b = targets.ends(interval)
    values = targets.everywhere(f, a)
    sign = targets.convexity(values(targets.equal_parts(a, b, 256)), a, b)
    g = lambda x: sign * f(x)
    slope = jax.grad(g)
    steps = jnp.finfo(a.dtype).nmant + 8

    def first(holds, low, high):
        """Where a condition that holds at first ceases to, or the end."""

        def halve(_, ends):
            middle = (ends[0] + ends[1]) / 2
            goes_on = holds(middle)
            return jnp.where(goes_on, middle, ends[0]), jnp.where(goes_on, ends[1], middle)

        return lax.fori_loop(0, steps, halve, (low, high))[1]

    def knots(error):
        def piece(u, _):
            start = g(u)
            t = first(lambda t: start - g(t) - slope(t) * (u - t) < 2 * error, u, b)
            # At a kink the touching line has a slope between those of both sides.
            touch = g(t)
            tilt = (touch + 2 * error - start) / jnp.where(t > u, t - u, 1)
            v = first(lambda v: g(v) - touch - tilt * (v - t) < 2 * error, t, b)
            return v, v

        return lax.scan(piece, a, None, n)[1]

    parts = jnp.arange(1, 16, dtype=a.dtype) / 16
    one = lambda s: values(a + (b - a) * s) - values(a) - (values(b) - values(a)) * s

    def narrow(_, ends):
        low, high = ends
        tries = low + (high - low) * parts
        short = jnp.sum(jax.vmap(knots)(tries)[:, -1] < b)
        edges = jnp.concatenate([low[None], tries, high[None]])
        return edges[short], edges[short + 1]

    start = jnp.zeros_like(a), targets.largest(one, 1, a.dtype) / 2
    error = lax.fori_loop(0, steps // 4 + 1, narrow, start)[1]
    found = jnp.concatenate([a[None], knots(error)])
    # The float before the end is the end.
    found = found.at[-1].set(b)
    missing = jnp.isnan(sign) | jnp.isnan(start[1])
    return Ripple(*(jnp.where(missing, jnp.nan, x) for x in (error, found)))


def best_piecewise_linear_error(
    f: Callable[[Array], Array], n: int, interval: tuple[ArrayLike, ArrayLike]
) -> Array:
    r"""The least sup error of a continuous function of `n` linear pieces, their ends free.

    .. math:: E_n(f) \sim \frac{1}{16 n^2} \left(\int_a^b \sqrt{|f''|}\right)^2

    as `n` grows: half of what interpolation with the best knots has. No network with one hidden
    layer of fewer than `n` ReLU units does better. It is `equal_ripple(...).error`.

    Args:
        f: The target, convex or concave; kinks are allowed.
        n: Number of pieces.
        interval: Its ends :math:`a < b`, shapes `()`.

    Returns:
        The error, shape `()`; not differentiable.

    Raises:
        TypeError: If `n` is not an integer, or `f` does not map a scalar to a scalar.
        ValueError: If `n` is not positive, the interval is empty, or the target is neither
            convex nor concave (under tracing the result is NaN instead).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import approximation
        >>> error = approximation.best_piecewise_linear_error(jnp.sqrt, 2, (0.0, 1.0))
        >>> print(f"{1 / error:.3f}")
        24.000
    """
    return equal_ripple(f, n, interval).error


def free_knot_constant(
    f: Callable[[Array], Array],
    interval: tuple[ArrayLike, ArrayLike],
    *,
    kinks: Sequence[float] = (),
    norm: str = "sup",
) -> Array:
    r"""The constant :math:`C` in the error :math:`C n^{-2}` of the best `n` linear pieces.

    .. math::
        C_\infty = \frac{1}{16} \left(\int_a^b |f''|^{1/2}\right)^2, \qquad
        C_2 = \frac{1}{\sqrt{720}} \left(\int_a^b |f''|^{2/5}\right)^{5/2}

    The knots are free; interpolation at its best knots has twice :math:`C_\infty`. Integrals are
    cut where :math:`f''` changes its sign, and may diverge mildly at an end that is zero.

    Args:
        f: The target, with two derivatives but for its kinks.
        interval: Its ends :math:`a < b`, shapes `()`.
        kinks: Points where a derivative jumps; a finite number of them changes no rate.
        norm: "sup" or "l2".

    Returns:
        The constant, shape `()`.

    Raises:
        TypeError: If `f` does not map a scalar to a scalar.
        ValueError: If the interval is empty or `norm` is neither.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import approximation
        >>> print(f"{approximation.free_knot_constant(jnp.sqrt, (0.0, 1.0)):.4f}")
        0.2500

    Source:
        de Boor (1973), Good approximation by splines with variable knots.
    """
    check_choice("norm", norm, ("sup", "l2"))
    a, b = targets.ends(interval)
    curvature = targets.everywhere(jax.grad(jax.grad(f)), a)
    edges = targets.cells(curvature, a, b, kinks)
    power = 0.5 if norm == "sup" else 0.4
    total = targets.integral(lambda x: jnp.abs(curvature(x)) ** power, edges)
    return total**2 / 16 if norm == "sup" else total**2.5 / math.sqrt(720)


def staircase_error(
    f: Callable[[Array], Array],
    n: int,
    interval: tuple[ArrayLike, ArrayLike],
    *,
    kinks: Sequence[float] = (),
) -> Array:
    r"""Sup error of the best function of `n` constant pieces: `n - 1` Heaviside units and a bias.

    .. math:: E_n = \frac{1}{2 n} \int_a^b |f'|

    exactly for a continuous monotone target, and an upper bound for any other continuous one.

    Args:
        f: The target, continuous.
        n: Number of pieces.
        interval: Its ends :math:`a < b`, shapes `()`.
        kinks: Points where the derivative jumps, if it changes its sign there.

    Returns:
        The error, shape `()`.

    Raises:
        TypeError: If `n` is not an integer, or `f` does not map a scalar to a scalar.
        ValueError: If `n` is not positive or the interval is empty.
    """
    check_count("n", n)
    a, b = targets.ends(interval)
    edges = targets.cells(targets.everywhere(jax.grad(f), a), a, b, kinks)
    return jnp.sum(jnp.abs(jnp.diff(targets.everywhere(f, a)(edges)))) / (2 * n)


def bernstein_error(f: Callable[[Array], Array], n: int) -> Array:
    r"""Sup error of Bernstein's polynomial of degree `n` on the unit interval.

    .. math:: B_n f(x) = \sum_{k=0}^n f(k/n) \binom nk x^k (1 - x)^{n-k}

    Weierstrass's theorem as a construction, and a slow one: :math:`x(1 - x) f''(x) / 2n`.

    Args:
        f: The target on `[0, 1]`.
        n: Degree.

    Returns:
        The error, shape `()`.

    Raises:
        TypeError: If `n` is not an integer, or `f` does not map a scalar to a scalar.
        ValueError: If `n` is not positive.
    """
    check_count("n", n)
    a, b = targets.ends((0.0, 1.0))
    values = targets.everywhere(f, a)
    edges = targets.equal_parts(a, b, 16)[:-1, None]
    k = jnp.arange(n + 1, dtype=a.dtype)
    binomials = gammaln(k[-1:] + 1) - gammaln(k + 1) - gammaln(k[::-1] + 1)
    nodes = values(k / n)

    def polynomial(x):
        return jnp.sum(nodes * jnp.exp(binomials + xlogy(k, x) + xlog1py(k[::-1], -x)))

    def error(s):
        x = edges + s / 16
        return targets.everywhere(polynomial, a)(x) - values(x)

    return targets.largest(error, 16, a.dtype)


def gaussian_barron_norm(d: int, *, var: ArrayLike = 1.0, order: int = 1) -> Array:
    r"""Barron's norm of the Gaussian bump :math:`e^{-|x|^2 / 2 \sigma^2}`.

    .. math:: C_f = \int |\omega|^s\, |\hat f(\omega)|\, d\omega = \mathbb{E}\, |\omega|^s
              = \left(\frac{2}{\sigma^2}\right)^{s/2} \frac{\Gamma((d + s)/2)}{\Gamma(d/2)},
              \quad \omega \sim \mathcal{N}(0, \sigma^{-2} I_d)

    Args:
        d: Dimension.
        var: Squared width :math:`\sigma^2 > 0` of the bump, any shape.
        order: The moment :math:`s`: 1 for sigmoidal units, 2 for ReLU.

    Returns:
        The norm, of the shape of `var`.

    Raises:
        TypeError: If `d` or `order` is not an integer.
        ValueError: If `d` or `order` is not positive, or `var` is negative (under tracing the
            result is NaN instead).

    Source:
        Barron (1993), Universal approximation bounds for superpositions of a sigmoidal function.
    """
    check_count("d", d)
    check_count("order", order)
    (var,) = checked(var=var)
    half = jnp.asarray(d / 2, var.dtype)
    ratio = jnp.exp(gammaln(half + order / 2) - gammaln(half))
    return (2 / var) ** (order / 2) * ratio


def barron_rate(norm: ArrayLike, n: int, *, radius: ArrayLike = 1.0) -> Array:
    r"""Barron's bound on the L2 error of the best network of `n` sigmoidal units on a ball.

    .. math:: \|f - f_n\|_{L_2(\mu)} \le \frac{2 r C_f}{\sqrt n}

    for any probability :math:`\mu` on the ball :math:`|x| \le r`, in any dimension, where a fixed
    basis of `n` functions has at best :math:`n^{-1/d}`.

    Args:
        norm: Barron's norm :math:`C_f` of the target, any shape.
        n: Number of units.
        radius: Radius :math:`r` of the ball, any shape.

    Returns:
        The bound.

    Raises:
        TypeError: If `n` is not an integer.
        ValueError: If `n` is not positive, or `norm` or `radius` is negative (under tracing the
            result is NaN instead).

    Example:
        >>> from dltheory.theory import approximation
        >>> norm = approximation.gaussian_barron_norm(100)
        >>> print(f"{norm:.2f} {approximation.barron_rate(norm, 10_000):.3f}")
        9.98 0.200

    Source:
        Barron (1993), Universal approximation bounds for superpositions of a sigmoidal function.
    """
    check_count("n", n)
    norm, radius = checked(norm=norm, radius=radius)
    return 2 * radius * norm / math.sqrt(n)
