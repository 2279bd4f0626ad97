"""What an activation function is, found from the bare callable, and what it does in a network.

`profile` finds the facts that the catalogue of `networks.activations` states, by automatic
differentiation and certified bounds, with no closed form. `saturation` and `histograms` say in
which part of the function the units of a live network work.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.measure import asymptotics, passes
from dltheory.measure.asymptotics import Line
from dltheory.measure.passes import stack
from dltheory.networks import activations, sites
from dltheory.networks.activations import Activation, Limit
from dltheory.networks.sites import Site
from dltheory.numerics import intervals
from dltheory.numerics.intervals import Enclosure
from dltheory.numerics.results import Bracket

_LARGEST = float(np.finfo(np.float32).max)
_HUGE = 1e30  # what comes to so much within float32's range is infinite
_WINDOW = 16.0
_TOL = 4e-7


class Profile(NamedTuple):
    """The facts of an `Activation`, measured, with what stands behind them.

    Attributes:
        kinks: As in `Activation`, between -16 and 16.
        smoothness: As in `Activation`.
        range: As in `Activation`: the infimum and supremum that are attained or approached.
        lipschitz: As in `Activation`.
        monotone: As in `Activation`.
        saturation: As in `Activation`.
        homogeneous: As in `Activation`; tried at points.
        kink_slopes: JAX's own derivative at each kink.
        asymptotes: The line that the function approaches at minus and at plus infinity, or None.
        infimum: Certified bounds on the infimum over float32's range, or over [-16, 16] if
            `assumed` says so.
        supremum: Likewise on the supremum.
        steepest: Likewise on the Lipschitz constant, from JAX's derivative away from the kinks.
        assumed: What is not certified: one sentence each, naming the fact. Empty if nothing.
    """

    kinks: tuple[float, ...]
    smoothness: float
    range: tuple[float, float]
    lipschitz: float
    monotone: bool
    saturation: tuple[Limit | None, Limit | None]
    homogeneous: int | None
    kink_slopes: tuple[float, ...]
    asymptotes: tuple[Line | None, Line | None]
    infimum: Bracket
    supremum: Bracket
    steepest: Bracket
    assumed: tuple[str, ...]


class Saturation(NamedTuple):
    """How the units of each layer work; shapes `(layers,)`, in run order.

    Attributes:
        sites: The layers.
        saturated: Fraction of pre-activations where the activation is nearly flat.
        dead: Fraction of units whose activation is flat for every example of the batch.
        linear: Fraction of pre-activations where the activation is nearly as steep as it gets.
    """

    sites: tuple[Site, ...]
    saturated: Array
    dead: Array
    linear: Array


def profile(fn: Callable[[Array], Array]) -> Profile:
    r"""Find what can be known of a scalar function from the function alone.

    Kinks and smoothness come from bisection on one-sided derivatives
    (`networks.activations.find_kinks`). Range, Lipschitz constant :math:`\sup |f'|` and
    monotonicity, :math:`f' \ge 0` to four in :math:`10^7`, are bounded by interval arithmetic
    (`numerics.intervals`) for all numbers of float32's range; where those bounds stay apart, over
    [-16, 16], and beyond that the function and its derivative are taken to be monotone between
    the powers of two: `assumed` says so. The derivative is JAX's own, custom rules included.

    Args:
        fn: Function from a scalar to a scalar, an `Activation` too, whose facts are not read.

    Returns:
        The profile. Ranges and constants are good to 1e-6 where nothing is assumed.

    Raises:
        ValueError: If the function is NaN somewhere between -16 and 16, or if its derivative in
            JAX is not its derivative (`stop_gradient`, a custom rule).
        TypeError: If it does not map a real floating-point scalar to another.
        NotImplementedError: If it uses a primitive that has no interval rule; the text names it.

    Example:
        >>> import jax
        >>> from dltheory.measure import activations
        >>> found = activations.profile(jax.nn.relu6)
        >>> found.kinks, found.range, found.lipschitz, found.monotone, found.assumed
        ((0.0, 6.0), (0.0, 6.0), 1.0, True, ())
    """
    bare = fn.fn if isinstance(fn, Activation) else fn
    f, slope = intervals.enclosure(bare), intervals.enclosure(jax.grad(bare))
    wrapped = activations.get(lambda h: bare(h))  # a fresh callable, unknown to the catalogue
    kinks, smoothness = wrapped.kinks, wrapped.smoothness
    assert smoothness is not None
    _check_derivative(f, slope, smoothness)

    assumed: list[str] = []
    infimum, supremum = _extremes(bare, (), f, "range", assumed)
    flattest, largest = _extremes(jax.grad(bare), kinks, slope, "derivative", assumed)
    zero: Any = 0.0
    steepest = _bracket(
        max(-flattest.upper, largest.lower, zero), max(-flattest.lower, largest.upper, zero)
    )
    left, right = (asymptotics.tail(f, slope, side) for side in (-1, 1))
    extent = _reach(infimum.upper, supremum.lower, (left.end, right.end), "range", assumed)
    ends = [asymptotics.end(slope, side) for side in (-1, 1)]
    slopes = _reach(flattest.upper, largest.lower, ends, "derivative", assumed)
    lipschitz = math.inf if smoothness < 0 else max(-slopes[0], slopes[1], 0.0)
    return Profile(
        kinks,
        smoothness,
        extent,
        lipschitz,
        _never_decreases(f, kinks, smoothness, flattest),
        (left.limit, right.limit),
        _degree(f),
        wrapped.kink_slopes,
        (left.asymptote, right.asymptote),
        infimum,
        supremum,
        steepest,
        tuple(assumed),
    )


def saturation(
    f: Callable,
    params: Any,
    x: Array,
    *,
    phi: str | Callable[[Array], Array],
    margin: float = 0.05,
    slope: float | None = None,
) -> Saturation:
    r"""Where the units of every layer work on their activation: flat, steep, or dead.

    With :math:`L = \sup |\varphi'|` and the margin :math:`\mu`, a pre-activation is

    .. math:: \text{saturated where } |\varphi'(h)| < \mu L, \qquad
              \text{linear where } |\varphi'(h)| \ge (1 - \mu) L

    and a unit (one entry of an example's value) is dead where it is saturated for every example.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.
        phi: The activation: a name, an `Activation` or a scalar callable. It is put on the value
            of every layer; read the rows of those that are pre-activations.
        margin: Between 0 and 1/2.
        slope: :math:`L`, where the activation has no finite one.

    Returns:
        `Saturation`, in run order; all NaN if any pre-activation is not finite.

    Raises:
        ValueError: If the margin is out of range, the activation has no Lipschitz constant and no
            `slope` is given, or `x` holds no example.
        SiteError: If the model has no layers.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import activations
        >>> f = lambda w, x: jnp.tanh(x @ w)
        >>> found = activations.saturation(f, jnp.eye(2), jnp.array([[0.0, 9.0]]), phi="tanh")
        >>> float(found.saturated[0]), float(found.dead[0]), float(found.linear[0])
        (0.5, 0.5, 0.5)

    Source:
        Glorot and Bengio (2010), Understanding the difficulty of training deep feedforward neural
        networks.
    """
    if not 0 < margin <= 0.5:
        raise ValueError(
            f"margin must lie in (0, 1/2], as a part of the steepest slope; got {margin}."
        )
    phi = activations.get(phi)
    if slope is None:
        slope = profile(phi).lipschitz if phi.lipschitz is None else phi.lipschitz
    if not 0 < slope < math.inf:
        raise ValueError(
            f"phi = {phi.name!r} has the Lipschitz constant {slope}, and flat is measured against "
            "it: give slope=, that of its steep part."
        )
    measured = passes.prepare(f, params, x)
    _, values = measured.program.run(params, x)
    fractions: tuple[dict[str, Array], ...] = ({}, {}, {})
    finite = jnp.array(True)
    for text, array in values.items():
        rows = measured.per_example(text, array)
        steepness = jnp.abs(jnp.vectorize(jax.grad(phi.fn))(rows)) / slope
        flat, steep = steepness < margin, steepness >= 1 - margin
        for part, flags in zip(fractions, (flat, flat.all(0, keepdims=True), steep), strict=True):
            part[text] = jnp.mean(flags, axis=(0, -1), dtype=rows.dtype)
        finite &= jnp.isfinite(rows).all()
    parts = (jnp.where(finite, stack(part, measured), jnp.nan) for part in fractions)
    return Saturation(tuple(site for site, _ in sites.expand(measured.program.layers)), *parts)


def histograms(
    f: Callable, params: Any, x: Array, *, phi: str | Callable[[Array], Array], edges: Array
) -> Array:
    """The distribution of the activations :math:`phi(h)` of every layer.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.
        phi: The activation, as in `saturation`; "identity" for the layers' own values.
        edges: Edges of the bins, ascending, shape `(bins + 1,)`.

    Returns:
        The fraction of a layer's activations in each bin, shape `(layers, bins)`, in run order.
        What lies outside the edges is in no bin.

    Raises:
        ValueError: If there are fewer than two edges, or `x` holds no example.
        SiteError: If the model has no layers.
    """
    if jnp.ndim(edges) != 1 or len(edges) < 2:
        raise ValueError(f"edges must be at least two numbers; got shape {jnp.shape(edges)}.")
    phi = activations.get(phi)
    measured = passes.prepare(f, params, x)
    _, values = measured.program.run(params, x)
    found = {}
    for text, array in values.items():
        rows = jnp.moveaxis(measured.per_example(text, array), 0, -1)
        lengths, flat = rows.shape[:-2], rows.reshape(-1, rows.shape[-2] * rows.shape[-1])
        counts = jax.vmap(lambda h: jnp.histogram(phi(h), bins=edges)[0])(flat)
        fractions = counts.astype(rows.dtype) / flat.shape[1]
        fractions = jnp.where(jnp.isfinite(flat).all(1, keepdims=True), fractions, jnp.nan)
        found[text] = fractions.reshape(*lengths, -1)
    return stack(found, measured)


def _extremes(
    fn: Callable, kinks: tuple[float, ...], f: Enclosure, fact: str, assumed: list[str]
) -> tuple[Bracket, Bracket]:
    """Bounds on infimum and supremum over all floats if they come close, else over the window."""
    whole = intervals.range_of(fn, -_LARGEST, _LARGEST, tol=_TOL, max_boxes=10_000, without=kinks)
    core = whole
    if not whole.certified:
        core = intervals.range_of(fn, -_WINDOW, _WINDOW, tol=_TOL, max_boxes=40_000, without=kinks)
    far_out = np.concatenate([-asymptotics.POWERS, asymptotics.POWERS])
    seen = f.natural(far_out, far_out)[0]
    brackets = []
    for name, sign, reached in (("infimum", 1, seen.upper), ("supremum", -1, seen.lower)):
        # The supremum is minus the infimum of minus the function.
        near, far = (sorted(sign * end for end in getattr(found, name)) for found in (core, whole))
        lower, upper = far[0], np.fmin.reduce(sign * reached, initial=min(near[1], far[1]))
        slack = _TOL * max(1.0, abs(upper))
        if upper - lower > slack and abs(upper) < _HUGE:
            lower = min(near[0], upper)
            if near[1] - near[0] > slack:
                assumed.append(f"{fact}: its {name} is not closer known than {lower} to {upper}")
            else:
                assumed.append(f"{fact}: its {name} is certified for |h| <= {_WINDOW:g} only")
        brackets.append(_bracket(*sorted((sign * lower, sign * upper))))
    return brackets[0], brackets[1]


def _check_derivative(f: Enclosure, slope: Enclosure, smoothness: float) -> None:
    """Refuse a function whose change over some cell is not what its derivative allows there."""
    edges = np.linspace(-16, 16, 4097)
    low, high = edges[:-1], edges[1:]
    values, (least, most) = f.natural(edges, edges)[0], slope.natural(low, high)[0]
    rise = np.diff((values.lower + values.upper) / 2) / (high - low)
    slack = 1e-6 * (1 + np.abs(rise))
    bad = (rise < least - slack) | (rise > most + slack)
    if smoothness >= 0 and bad.any():
        at = np.argmax(bad)
        raise ValueError(
            f"fn's derivative in JAX is not its derivative: between {low[at]:.4g} and "
            f"{high[at]:.4g} it rises by {rise[at]:.4g} per unit, but jax.grad gives "
            f"{least[at]:.4g} to {most[at]:.4g}. Look for stop_gradient or a custom rule."
        )


def _never_decreases(
    f: Enclosure, kinks: tuple[float, ...], smoothness: float, flattest: Bracket
) -> bool:
    if smoothness < 0:
        sides = np.array(kinks)[:, None] + np.array([-1e-8, 1e-8])
        values = f.natural(*[sides.reshape(-1)] * 2)[0].lower.reshape(sides.shape)
        if np.any(values[:, 1] < values[:, 0] - 1e-6):
            return False
    return bool(flattest.upper >= -_TOL)


def _degree(f: Enclosure) -> int | None:
    """The degree of homogeneity, tried at points of both signs."""
    h = np.array([-41.3, -3.7, -0.6, -0.013, 0.011, 0.7, 4.1, 37.9])
    at = lambda scale: np.mean(f.natural(scale * h, scale * h)[0], axis=0)
    for degree in range(4):
        if all(np.allclose(at(a), a**degree * at(1), rtol=1e-11, atol=0) for a in (0.31, 2.7)):
            return degree
    return None


def _reach(
    low: Any, high: Any, ends: Sequence[float], fact: str, assumed: list[str]
) -> tuple[float, float]:
    """Infimum and supremum from what is attained and from where the function goes at the ends."""
    ends = [end for end in ends if not math.isnan(end)]
    reach = min([float(low), *ends]), max([float(high), *ends])
    for bound, end in zip((low, high), reach, strict=True):
        if math.isinf(end) and abs(bound) < _HUGE:
            assumed.append(f"{fact}: taken to grow for ever, being {bound:.4g} at the largest h")
    low, high = (math.copysign(math.inf, e) if abs(e) >= _HUGE else e for e in reach)
    return low, high


def _bracket(lower: Any, upper: Any) -> Bracket:
    convert: Any = np.float64
    return Bracket(convert(lower), convert(upper))
