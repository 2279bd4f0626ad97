r"""Networks of one hidden layer fitted to a target: greedily, by training, on random units.

The target is a function of one example, from a scalar or a vector to a scalar. Whatever chooses the
units, the outer weights are fitted last by least squares on quasi-Monte Carlo points, and the
error is measured on others.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks import activations, training
from dltheory.networks.data import Data

_UNITS = ("relu", "relu2", "tanh", "step")
_SHIFTS = 16
# Octaves of slopes that tanh units have, from one over the side of the box.
_OCTAVES = 7
# Of the side of the box, to which the kinks of units reach beyond it on each side: the theorems
# want units that are linear in the box in the dictionary.
_MARGIN = 1 / 16


class Fit(NamedTuple):
    """Networks of several widths fitted to one target, and their errors.

    Attributes:
        widths: Numbers of units, ascending.
        params: Parameters in the layout of `networks.models.MLP`, each leaf with the axes of
            `error` in front; filled up with zeros to the largest width.
        apply: `apply(params, x)`, from shape `(batch, d)` to `(batch, 1)`.
        error: L2 errors, shape `(widths,)`, or `(seeds, widths)`.
        stderr: Their standard errors over random shifts of the points, of the same shape.
    """

    widths: tuple[int, ...]
    params: Any
    apply: Callable[[Any, Array], Array]
    error: Array
    stderr: Array

    def at(self, *index: int) -> "Fit":
        """One of the networks, for `measure.approximation` to take.

        Args:
            *index: Of the width; or of the seed and the width.

        Returns:
            The fit of that network alone.
        """
        one = lambda leaf: leaf[index]
        widths = (self.widths[index[-1]],)
        params = jax.tree.map(one, self.params)
        return Fit(widths, params, self.apply, one(self.error), one(self.stderr))


def greedy_fit(
    key: Array,
    f: Callable[[Array], Array],
    interval: tuple[ArrayLike, ArrayLike],
    widths: Sequence[int],
    *,
    unit: str = "relu",
    candidates: int = 1024,
    points: int = 2048,
) -> Fit:
    r"""The orthogonal greedy algorithm on a dictionary of units.

    .. math:: g_n = \arg\max_g |\langle g, f - f_{n-1} \rangle|, \qquad
              f_n = \text{the projection of } f \text{ on } 1, g_1, \dots, g_n

    over units :math:`\phi(w \cdot x + b)` with random directions :math:`|w| = 1`, whose kinks run
    through quasi-random points in a box one eighth as large again; of tanh with random slopes. In
    the convex hull of all the units of :math:`d` variables, :math:`\max(\cdot, 0)^k`, the error
    falls as :math:`n^{-1/2 - (2k + 1)/2d}` (`theory.rates.dictionary_exponent`).

    Args:
        key: Of the candidates and the points.
        f: The target.
        interval: Its ends, or the lower and upper corner of a box, shape `(d,)`.
        widths: Numbers of units, ascending.
        unit: "relu", "relu2", "tanh" or "step".
        candidates: Number of units in the dictionary.
        points: Number of points to fit on, and to measure the error on; powers of two are best.

    Returns:
        The fit, NaN if the target is.

    Raises:
        ValueError: If the ends make no bounded interval, there is no such unit, or the numbers are
            not positive and ascending, below the number of points.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.measure import fits
        >>> fit = fits.greedy_fit(jax.random.key(0), jnp.exp, (0.0, 1.0), (4, 16))
        >>> fit.widths, fit.error.shape, bool(fit.error[1] < fit.error[0] / 4)
        ((4, 16), (2,), True)

    Source:
        Siegel & Xu (2022), Optimal convergence rates for the orthogonal greedy algorithm.
    """
    _check(widths, unit, points, candidates)
    key_units, key_points = jax.random.split(key)
    sample = _sample(key_points, f, interval, points)
    kernel, bias = _units(key_units, sample, candidates, unit, even=True)
    x, y = sample.x, sample.y
    phi = activations.get(unit)
    columns = phi(x @ kernel + bias[None])
    sizes = jnp.linalg.norm(columns, axis=0)
    basis = jnp.zeros((len(x), widths[-1] + 1), x.dtype).at[:, 0].set(len(x) ** -0.5)
    small = 16 * jnp.finfo(x.dtype).eps

    def choose(state, k):
        basis, rest, left = state
        index = jnp.argmax(jnp.where(left, jnp.abs(rest @ columns), -1))
        new = columns[:, index]
        # Twice is enough, where once loses orthogonality.
        for _ in range(2):
            new = new - basis @ (new @ basis)
        size = jnp.linalg.norm(new)
        fresh = size > small * sizes[index]
        new = jnp.where(fresh, new / jnp.where(fresh, size, 1), 0)
        basis = basis.at[:, k + 1].set(new)
        # All of it again: what rounding leaves along large units would outweigh small rests.
        rest = rest - basis @ (rest @ basis)
        return (basis, rest, left.at[index].set(False)), index

    start = basis, y - jnp.mean(y), jnp.ones(candidates, bool)
    chosen = jax.lax.scan(choose, start, jnp.arange(widths[-1]))[1]
    return _fitted(sample, kernel[:, chosen], bias[chosen], widths, unit)


def random_feature_fit(
    key: Array,
    f: Callable[[Array], Array],
    interval: tuple[ArrayLike, ArrayLike],
    widths: Sequence[int],
    *,
    unit: str = "relu",
    points: int = 2048,
) -> Fit:
    r"""Least squares on units that are drawn independently of the target.

    Directions are uniform, and kinks run through uniform points in a box one eighth as large again.
    For a target
    :math:`f = c + \mathbb{E}_\theta\, a(\theta)\, \phi_\theta` over the law of the units, the mean
    squared error is at most :math:`\mathbb{E}_\theta\, a^2 \|\phi_\theta\|^2 / n`, which the mean
    of :math:`a(\theta_i) \phi_{\theta_i}` has before any weight is fitted.

    Args:
        key: Of the units and the points.
        f: The target.
        interval: Its ends, or the lower and upper corner of a box, shape `(d,)`.
        widths: Numbers of units, ascending; wider networks keep the units of narrower ones.
        unit: "relu", "relu2", "tanh" or "step".
        points: Number of points to fit on, and to measure the error on; powers of two are best.

    Returns:
        The fit, NaN if the target is.

    Raises:
        ValueError: As `greedy_fit`.

    Source:
        Rahimi & Recht (2008), Weighted sums of random kitchen sinks.
    """
    _check(widths, unit, points)
    key_units, key_points = jax.random.split(key)
    sample = _sample(key_points, f, interval, points)
    kernel, bias = _units(key_units, sample, widths[-1], unit)
    return _fitted(sample, kernel, bias, widths, unit)


def trained_fit(
    key: Array,
    f: Callable[[Array], Array],
    interval: tuple[ArrayLike, ArrayLike],
    widths: Sequence[int],
    *,
    unit: str = "relu",
    seeds: int = 4,
    steps: int = 2000,
    rate: float = 0.02,
    points: int = 512,
) -> Fit:
    r"""Adam on all weights and all points at once, then least squares on the outer weights.

    The units start as those of `random_feature_fit`, the outer weights at the least squares fit;
    the rate falls to zero as a cosine. No theorem says what is reached.

    Args:
        key: Of the units and the points.
        f: The target.
        interval: Its ends, or the lower and upper corner of a box, shape `(d,)`.
        widths: Numbers of units, ascending. All run side by side, as wide as the largest.
        unit: "relu", "relu2" or "tanh".
        seeds: Networks of each width.
        steps: Steps of Adam, which needs JAX's standard promotion of dtypes.
        rate: Its rate in the beginning, in units of the box.
        points: Number of points to fit on, and to measure the error on; powers of two are best.

    Returns:
        The fit, with an axis of seeds in front, NaN if the target is.

    Raises:
        ValueError: As `greedy_fit`; and for the unit "step", which has no gradient, or if `seeds`
            or `steps` is not positive.
    """
    _check(widths, unit, points, seeds, steps)
    if unit == "step":
        raise ValueError("unit is 'step', which has no gradient; want relu, relu2 or tanh")
    key_points, key_seeds = jax.random.split(key)
    sample = _sample(key_points, f, interval, points)
    network = partial(_network, activations.get(unit))
    low, side = sample.low, sample.side
    # In coordinates of the unit box, so that the rate has one meaning.
    place = lambda x: (x - low[None]) / side[None]
    data = Data(place(sample.x), sample.y[:, None])
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def train(key, mask):
        def init(key):
            kernel, bias = _units(key, sample, widths[-1], unit)
            outer = _outer(sample.x, sample.y, kernel, bias, mask, unit)
            first = {"kernel": kernel * side[:, None], "bias": bias + low @ kernel}
            return {"params": {"first": first, "last": outer}}

        def f(params, x):
            last = params["params"]["last"]
            last = {"kernel": last["kernel"] * mask[:, None], "bias": last["bias"]}
            return network({"params": {**params["params"], "last": last}}, x)

        loss = lambda prediction, y: jnp.mean((prediction - y) ** 2)
        process = training.descent(f, init, loss, optimizer, data)
        params = training.run(process, key, steps)[0].params
        first = params["params"]["first"]
        kernel = first["kernel"] / side[:, None]
        return kernel, first["bias"] - low @ kernel

    masks = _masks(widths, sample.x.dtype)
    runs = jax.vmap(lambda key: jax.vmap(partial(train, key))(masks))
    kernel, bias = runs(jax.random.split(key_seeds, seeds))
    return _fitted(sample, kernel, bias, widths, unit)


class _Sample(NamedTuple):
    """Points to fit on, points to measure on with an axis of shifts in front, and the box."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array
    low: Array
    side: Array


def _check(widths: Sequence[int], unit: str, points: int, *counts: int) -> None:
    if unit not in _UNITS:
        raise ValueError(f"unit is {unit!r}; want one of {', '.join(_UNITS)}")
    ascending = all(a < b for a, b in zip([0, *widths], widths, strict=False))
    if len(widths) == 0 or not ascending or not widths[-1] < points or min(counts, default=1) < 1:
        raise ValueError(
            f"widths are {tuple(widths)}, points {points} and other counts {counts}; want positive "
            "numbers, the widths ascending and below the points"
        )


def _sample(key: Array, f: Callable, interval: tuple[ArrayLike, ArrayLike], points: int):
    low, high = (np.asarray(end, np.float64) for end in interval)
    if (
        low.shape != high.shape
        or low.ndim > 1
        or not np.all((low < high) & np.isfinite(low) & np.isfinite(high))
    ):
        raise ValueError(f"interval is {interval}; want bounded corners, the lower one first")
    dtype = jnp.result_type(float)
    d, scalar = low.size, low.ndim == 0
    low, high = (jnp.asarray(end.reshape(d), dtype) for end in (low, high))
    side = high - low
    shifts = jax.random.uniform(key, (_SHIFTS + 1, 1, d), dtype)

    def shifted(count, shifts):
        return low + side * jnp.mod(_even(count, d, dtype) + shifts, 1)

    with jax.numpy_rank_promotion("allow"):
        x, test_x = shifted(points, shifts[0]), shifted(-(-points // _SHIFTS), shifts[1:])
    run = jax.vmap(lambda x: f(x[0] if scalar else x))
    return _Sample(x, run(x), test_x, jax.vmap(run)(test_x), low, side)


def _even(count: int, d: int, dtype) -> Array:
    """Points that fill the unit cube evenly."""
    from scipy.stats import qmc  # Half a second, for those who fit.

    whole = qmc.Sobol(d, scramble=False).random_base2(max(count - 1, 1).bit_length())
    return jnp.asarray(whole[:count], dtype)


def _units(key: Array, sample: _Sample, count: int, unit: str, *, even: bool = False):
    """Kernel and bias of random units whose kinks meet the box, or what is near it."""
    d, dtype = len(sample.low), sample.low.dtype
    key_w, key_x, key_slope = jax.random.split(key, 3)
    w = jax.random.normal(key_w, (d, count), dtype)
    w = w / jnp.linalg.norm(w, axis=0, keepdims=True)
    if unit == "tanh":
        octave = jax.random.uniform(key_slope, (1, count), dtype, maxval=_OCTAVES)
        w = w * 2**octave / jnp.min(sample.side)
    if even:
        at = jnp.mod(_even(count, d, dtype) + jax.random.uniform(key_x, (1, d), dtype), 1)
    else:
        at = jax.random.uniform(key_x, (count, d), dtype)
    at = sample.low[None] + sample.side[None] * ((1 + 2 * _MARGIN) * at - _MARGIN)
    return w, -jnp.sum(w * at.T, 0)


def _masks(widths: Sequence[int], dtype) -> Array:
    """Which units each width has, shape (widths, units)."""
    return (jnp.arange(widths[-1])[None] < jnp.asarray(widths)[:, None]).astype(dtype)


def _outer(x: Array, y: Array, kernel: Array, bias: Array, mask: Array, unit: str):
    """The outer weights of least squares, zero where the mask is."""
    columns = activations.get(unit)(x @ kernel + bias[None]) * mask[None]
    columns = jnp.concatenate([jnp.ones_like(y)[:, None], columns], 1)
    sizes = jnp.linalg.norm(columns, axis=0)
    sizes = jnp.where(sizes > 0, sizes, 1)
    # Units of near kinks are nearly dependent, those that are masked exactly.
    least = 8 * float(jnp.finfo(y.dtype).eps)
    weights = jnp.linalg.lstsq(columns / sizes[None], y, rcond=least)[0] / sizes
    return {"kernel": (weights[1:] * mask)[:, None], "bias": weights[:1]}


def _fitted(sample: _Sample, kernel: Array, bias: Array, widths: Sequence[int], unit: str) -> Fit:
    """The outer weights and the errors of all widths.

    Units of shape `(d, n)` serve all widths; else they have the axes seeds and widths in front.
    """
    network = partial(_network, activations.get(unit))
    volume = jnp.prod(sample.side)

    def fit(mask, kernel, bias):
        outer = _outer(sample.x, sample.y, kernel, bias, mask, unit)
        params = {"params": {"first": {"kernel": kernel, "bias": bias}, "last": outer}}
        gaps = jax.vmap(lambda x, y: network(params, x)[:, 0] - y)(sample.test_x, sample.test_y)
        means = volume * jnp.mean(gaps**2, 1)
        error = jnp.sqrt(jnp.mean(means))
        doubt = jnp.std(means, ddof=1) / _SHIFTS**0.5
        return params, error, doubt / jnp.where(error > 0, 2 * error, 1)

    masks = _masks(widths, sample.x.dtype)
    if kernel.ndim == 2:
        found = jax.vmap(fit, (0, None, None))(masks, kernel, bias)
    else:
        found = jax.vmap(jax.vmap(fit), (None, 0, 0))(masks, kernel, bias)
    params, error, stderr = found
    return Fit(tuple(widths), params, network, error, stderr)


def _network(phi: Callable, params: Any, x: Array) -> Array:
    first, last = params["params"]["first"], params["params"]["last"]
    return phi(x @ first["kernel"] + first["bias"][None]) @ last["kernel"] + last["bias"][None]
