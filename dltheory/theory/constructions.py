r"""Networks that are written down instead of trained, each with its proven error.

All are ReLU networks, but for `staircase`, in the layout of `networks.models.MLP`: the same names
and shapes, hidden layers of one width, stacked. The errors are those of the real function that
the stored parameters denote. Intervals have their ends rounded to the default floating dtype.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks import activations
from dltheory.numerics.gaussian import check_scalar_function
from dltheory.numerics.intervals import enclosure
from dltheory.numerics.sup_norm import sup_norm
from dltheory.theory import approximation, meshes, polylines, targets
from dltheory.theory.layouts import Construction, Layer, network
from dltheory.theory.parameters import check_count

_SLACK = 1 / 64  # of the error allowed that the target may use up within a cell


def interpolant(
    f: Callable[[Array], Array],
    n: int,
    interval: tuple[ArrayLike, ArrayLike],
    *,
    free: bool = False,
) -> Construction:
    r"""The piecewise linear interpolant of a target at `n + 1` knots, by `n` ReLU units.

    .. math:: y(x) = f(x_0) + \sum_{i=0}^{n-1} (m_i - m_{i-1}) \max(x - x_i, 0), \quad m_{-1} = 0

    with the slopes :math:`m_i` of the chords. Equal pieces err by at most
    :math:`h^2 \sup |f''| / 8`; free knots, at equal parts of :math:`\int \sqrt{|f''|}`, by about
    :math:`(\int \sqrt{|f''|})^2 / 8 n^2`, up to a fifth more where :math:`f''` changes its sign.

    Args:
        f: The target, from a scalar to a scalar.
        n: Number of pieces.
        interval: Its ends :math:`a < b`.
        free: Whether the knots follow the curvature of the target.

    Returns:
        The network; its bound holds on the interval, on the left of which it is constant.

    Raises:
        TypeError: If `n` is not an integer, or `f` does not map a scalar to a scalar.
        ValueError: If `n` is not positive, the interval is empty, or `f` is NaN in it.
        NotImplementedError: If `f` uses a primitive that has no interval rule.

    Example:
        >>> from dltheory.theory import constructions
        >>> net = constructions.interpolant(lambda x: x**2, 4, (0.0, 1.0))
        >>> print(net.params["params"]["first"]["kernel"].shape, f"{net.bound:.6f}")
        (1, 4) 0.015625
    """
    check_count("n", n)
    a, b = _numbers(interval)
    values = _values(f)
    knots = np.linspace(a, b, n + 1)
    if free:
        # Graded towards both ends, where the root of the curvature may have an integrable pole.
        t = np.linspace(0, 1, 1024 * n + 1)
        grade = lambda t: a + (b - a) * t**4 / (t**4 + (1 - t) ** 4)
        fine = grade(t)
        bend = np.abs(_values(jax.grad(jax.grad(f)))(grade((t[1:] + t[:-1]) / 2)))
        parts = np.sqrt(np.where(np.isfinite(bend), bend, 0)) * np.diff(fine)
        mass = np.concatenate([[0], np.cumsum(parts)])
        if mass[-1] > 0:
            knots[1:-1] = np.interp(np.arange(1, n) / n * mass[-1], mass, fine)
    knots = _stored(knots)
    return _certified(f, _polyline(knots, values(knots)), (a, b), knots)


def best_piecewise_linear(
    f: Callable[[Array], Array], n: int, interval: tuple[ArrayLike, ArrayLike]
) -> Construction:
    r"""The best sup-norm approximation of a convex or concave target by `n` ReLU units.

    Its error alternates between the ends of the pieces and the points in between
    (`theory.approximation.equal_ripple`); it is half the interpolant's.

    Args:
        f: The target, convex or concave, from a scalar to a scalar.
        n: Number of pieces.
        interval: Its ends :math:`a < b`.

    Returns:
        The network; its bound holds on the interval.

    Raises:
        TypeError: If `n` is not an integer, or `f` does not map a scalar to a scalar.
        ValueError: If `n` is not positive, the interval is empty, or the target is neither convex
            nor concave.
        NotImplementedError: If `f` uses a primitive that has no interval rule.
    """
    a, b = _numbers(interval)
    with jax.enable_x64(True):
        error, knots = (np.asarray(x) for x in approximation.equal_ripple(f, n, (a, b)))
    values = _values(f)
    middle = np.linspace(a, b, 65)[1:-1]
    chord = np.interp(middle, [a, b], values(np.array([a, b])))
    side = np.sign(np.sum(values(middle) - chord))  # convex targets lie below their chord
    knots = _stored(np.unique(knots))
    return _certified(f, _polyline(knots, values(knots) + side * error), (a, b), knots)


def staircase(
    f: Callable[[Array], Array],
    n: int,
    interval: tuple[ArrayLike, ArrayLike],
    *,
    slope: float = math.inf,
) -> Construction:
    r"""A staircase of `n` treads by `n - 1` Heaviside units, or sigmoids: Cybenko's theorem.

    .. math:: y(x) = c_0 + \sum_{i=1}^{n-1} (c_i - c_{i-1})\, \sigma(k (x - t_i))

    Steps lie at equal parts of the variation of the target, treads midway between its extremes.
    For a monotone continuous target and infinite `slope` the error is the least there is,
    :math:`|f(b) - f(a)| / 2n`.

    Args:
        f: The target, from a scalar to a scalar, continuous.
        n: Number of treads, at least two.
        interval: Its ends :math:`a < b`.
        slope: The steepness :math:`k` of the sigmoids; steps if it is infinite.

    Returns:
        The network; its bound holds on the interval.

    Raises:
        TypeError: If `n` is not an integer, or `f` does not map a scalar to a scalar.
        ValueError: If `n` is below two, the interval is empty, or `slope` is not positive.
        NotImplementedError: If `f` uses a primitive that has no interval rule.

    Source:
        Cybenko (1989), Approximation by superpositions of a sigmoidal function.
    """
    check_count("n", n)
    if n < 2 or not slope > 0:
        raise ValueError(f"n is {n} and slope {slope}; want two treads or more, and a rise")
    a, b = _numbers(interval)
    values = _values(f)
    fine = np.linspace(a, b, 64 * n + 1)
    heights = values(fine)
    walked = np.concatenate([[0], np.cumsum(np.abs(np.diff(heights)))])
    goals = np.arange(1, n) / n * walked[-1]
    cell = np.clip(np.searchsorted(walked, goals) - 1, 0, len(fine) - 2)
    low, high, base = fine[cell], fine[cell + 1], heights[cell]
    for _ in range(60):
        middle = (low + high) / 2
        short = np.abs(values(middle) - base) < goals - walked[cell]
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    steps = _stored((low + high) / 2)
    ends = values(np.concatenate([[a], steps, [b]]))
    treads = np.empty(n)
    for i, (left, right) in enumerate(zip([a, *steps], [*steps, b], strict=True)):
        seen = np.append(heights[(fine > left) & (fine < right)], ends[i : i + 2])
        treads[i] = (seen.min() + seen.max()) / 2
    steepness = 1.0 if math.isinf(slope) else slope
    first = np.full((n - 1, 1), steepness), -steepness * steps
    layers = [first, (np.diff(treads)[None], treads[:1])]
    rise = activations.get("step" if math.isinf(slope) else "sigmoid")
    return _certified(f, layers, (a, b), steps, rise)


def approximate(
    f: Callable[[Array], Array],
    eps: float,
    interval: tuple[ArrayLike, ArrayLike],
    *,
    lipschitz: float | None = None,
    curvature: float | None = None,
) -> Construction:
    r"""A ReLU network whose sup error is certified, as narrow as can be found.

    On an interval, by one hidden layer, the piecewise linear function of the fewest pieces that
    stays within a tube of radius `eps`, up to a few per cent; of a convex or concave target it is
    the best one. On a box of `d` dimensions, by `d` hidden layers, a function on a mesh (`meshes`);
    three take patience. The target is bounded by its own traced program, or by a derivative that
    is known.

    Args:
        f: The target, from a scalar or a vector to a scalar; kinks and infinite slopes are allowed.
        eps: Wanted sup error.
        interval: Its ends :math:`a < b`; or the corners of a box, shape `(d,)`.
        lipschitz: A bound on :math:`|f'|`, instead of the traced program.
        curvature: A bound on :math:`|f''|`, likewise.

    Returns:
        The network; `bound`, at most `eps`, holds on the interval. With a given bound it holds if
        that one does.

    Raises:
        TypeError: If `f` does not return a scalar.
        ValueError: If `eps` is not positive, the interval is empty, or the target jumps, cannot
            be bounded, or is not a number somewhere.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import constructions
        >>> net = constructions.approximate(jnp.sqrt, 1e-2, (0.0, 1.0))
        >>> net.params["params"]["first"]["kernel"].shape[1], bool(net.bound <= 1e-2)
        (5, True)
    """
    if not 0 < eps < math.inf:
        raise ValueError(f"eps is {eps}; want a positive number")
    if np.ndim(interval[0]) == 1:
        return meshes.certified(f, eps, *interval, lipschitz=lipschitz, curvature=curvature)
    a, b = _numbers(interval)
    sample = _values(f)
    if lipschitz is not None or curvature is not None:
        most, known = (math.inf if given is None else given for given in (lipschitz, curvature))
        stray = lambda low, high: np.fmin(most * (high - low) / 2, known * (high - low) ** 2 / 8)
        values = lambda x: _beside(sample(x))
    else:
        try:
            f_bounds = enclosure(f)
        except NotImplementedError as error:
            raise ValueError(
                f"f cannot be bounded by itself: {error}. Give lipschitz= or curvature=, or "
                "measure an uncertified network with measure.approximation"
            ) from error
        stray = polylines.stray_of(f_bounds)
        values = lambda x: f_bounds.natural(x, x)[0]
    cells = polylines.cells(values, stray, (a, b), allowed=eps * _SLACK, dtype=_dtype())
    near = np.fmax(np.append(cells.stray, 0), np.append(0, cells.stray))
    for margin in (1e-12, 1e-9, 1e-6, 1e-3, 1e-2):
        radius = eps * (1 - margin) - near
        vertices, heights = polylines.shortest(cells.x, cells.high - radius, cells.low + radius)
        net = network(_polyline(cells.x[vertices], heights), math.nan)
        first, last = (_as_float64(net.params)["params"][name] for name in ("first", "last"))
        units = -first["bias"], last["kernel"][:, 0], last["bias"][0]
        bound = polylines.error_of_units(*units, cells)
        if bound <= eps:
            return net._replace(bound=bound)
    raise ValueError(
        f"eps is {eps}, below what parameters of {_dtype()} can hold; the best found has "
        f"{bound:.3g}. Enable float64 or ask for less"
    )


def square(m: int) -> Construction:
    r"""Yarotsky's network for :math:`x^2` on `[0, 1]`: `m` hidden layers of three units.

    .. math:: f_m(x) = x - \sum_{s=1}^m 4^{-s} g_s(x), \qquad \sup |f_m - x^2| = 2^{-2m-2}

    with the `s`-fold tent :math:`g_s`. The error falls exponentially with the number of units.

    Args:
        m: Number of layers.

    Returns:
        The network; its bound, which is attained, holds on `[0, 1]`.

    Raises:
        TypeError: If `m` is not an integer.
        ValueError: If `m` is not positive.

    Example:
        >>> from dltheory.theory import constructions
        >>> constructions.square(3).bound
        0.00390625

    Source:
        Yarotsky (2017), Error bounds for approximations with deep ReLU networks.
    """
    check_count("m", m)
    start = np.ones((3, 1)), np.array([0.0, -0.5, 0.0])
    return network([start, *_squarings(m)], bound=4.0 ** -(m + 1))


def product(m: int) -> Construction:
    r"""A network for :math:`x y` on the unit square: `m + 1` hidden layers of six units.

    .. math:: f_m\!\left(\tfrac{x + y}2\right) - f_m\!\left(\tfrac{|x - y|}2\right), \qquad
              \sup |\cdot - x y| = 2^{-2m-2}

    with the network :math:`f_m` of `square`. Both of its errors have one sign, and do not add.

    Args:
        m: Number of layers of each squaring.

    Returns:
        The network of two inputs; its bound, which is attained, holds on the unit square.

    Raises:
        TypeError: If `m` is not an integer.
        ValueError: If `m` is not positive.

    Source:
        Yarotsky (2017), Error bounds for approximations with deep ReLU networks.
    """
    check_count("m", m)
    halves = np.array([[0.5, 0.5], [0.5, -0.5], [-0.5, 0.5]]), np.zeros(3)
    start = np.array([[1.0, 0, 0]] * 3 + [[0, 1.0, 1.0]] * 3), np.array([0, -0.5, 0] * 2)
    *inner, (last, shift) = _squarings(m)
    both = [(np.kron(np.eye(2), w), np.tile(b, 2)) for w, b in inner]
    return network([halves, start, *both, (np.hstack([last, -last]), shift)], bound=4.0 ** -(m + 1))


def tent(k: int) -> Construction:
    r"""Telgarsky's `k`-fold tent on `[0, 1]`: :math:`2^k` linear pieces by `k` layers of two units.

    .. math:: g(x) = 1 - |2 x - 1|, \quad g_k = g \circ \dots \circ g

    It has :math:`2^{k-1}` peaks. One hidden layer needs :math:`2^k - 1` units for it.

    Args:
        k: Number of layers.

    Returns:
        The network; it is exact on `[0, 1]`.

    Raises:
        TypeError: If `k` is not an integer.
        ValueError: If `k` is not positive.

    Source:
        Telgarsky (2015), Representation benefits of deep feedforward networks.
    """
    check_count("k", k)
    start = np.ones((2, 1)), np.array([0.0, -0.5])
    fold = np.array([[2.0, -4.0]] * 2), np.array([0.0, -0.5])
    return network([start, *[fold] * (k - 1), (np.array([[2.0, -4.0]]), np.zeros(1))], bound=0.0)


def _squarings(m: int) -> list[Layer]:
    """All layers of `square` but the first; units: the tent, the same less 1/2, what is summed."""
    fold = lambda s: [-2 * 4.0**-s, 4 * 4.0**-s, 1]
    inner = [
        (np.array([[2, -4, 0], [2, -4, 0], fold(s)]), np.array([0, -0.5, 0])) for s in range(1, m)
    ]
    return [*inner, (np.array([fold(m)]), np.zeros(1))]


def _polyline(knots: np.ndarray, heights: np.ndarray) -> list[Layer]:
    """One hidden layer for the polyline through given points."""
    slopes = np.diff(heights) / np.diff(knots)
    units = np.ones((len(slopes), 1)), -knots[:-1]
    return [units, (np.diff(slopes, prepend=0.0)[None], heights[:1])]


def _certified(f, layers, interval, cuts, activation=None) -> Construction:
    """A network with the certified distance to its target."""
    net = network(layers, math.nan, activation)
    params = _as_float64(net.params)
    gap = lambda x: net.apply(params, x[None, None])[0, 0] - f(x)
    return net._replace(bound=float(sup_norm(gap, *interval, cuts=cuts).upper))


def _numbers(interval: tuple[ArrayLike, ArrayLike]) -> tuple[float, float]:
    a, b = targets.ends(interval)
    return float(a), float(b)


def _values(f: Callable) -> Callable[[np.ndarray], np.ndarray]:
    """The target on NumPy arrays, in float64."""

    def values(x):
        with jax.enable_x64(True):
            return np.asarray(jax.vmap(f)(jnp.asarray(x, jnp.float64)), np.float64)

    with jax.enable_x64(True):
        check_scalar_function("f", f, jnp.dtype(jnp.float64))
    return values


def _beside(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values that a library computed, with the errors it may have made."""
    doubt = 16 * (np.finfo(np.float64).eps * np.abs(values) + 5e-324)
    return values - doubt, values + doubt


def _dtype() -> np.dtype:
    return np.dtype(jnp.result_type(float))


def _stored(x: np.ndarray) -> np.ndarray:
    """Numbers as parameters hold them, without those that coincide."""
    return np.unique(x.astype(_dtype()).astype(np.float64))


def _as_float64(params: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
