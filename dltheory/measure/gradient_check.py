r"""The work of `backprop.check_gradient`: differences of a function along lines through a point.

A line gives two sequences over the step `h`: `bend`, the central difference less the directional
derivative, and `jump`, the difference of the one-sided slopes. Both are weighed against the
rounding noise at that step. Points are rounded to the dtype of the arguments, so what was really
added to them is used throughout.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.measure import arguments, slope_estimates
from dltheory.measure.slope_estimates import Estimate

_LINES = 4  # random directions in all arguments together
_SURE = 8  # standard deviations of the noise that a difference has to exceed
_RESOLVED = 0.05  # part of the slope that must be seen for a verdict
_FEW = 64  # entries of a leaf that are searched one by one


class Line(NamedTuple):
    """What was found along one direction.

    Attributes:
        bend: Error of the directional derivative, if it stays down to the smallest step at which
            it can be seen, else 0.
        bend_at: That step.
        beside: Jump at that step, which an error has to exceed.
        jump: Difference of the one-sided slopes, if it stays, else 0.
        jump_at: That step.
        order: Observed order of convergence of the central difference.
        bar: How exactly the slope is known.
        slope: Size of the slopes.
        rounding: Rounding error that the directional derivative itself may have.
    """

    bend: float
    bend_at: float
    beside: float
    jump: float
    jump_at: float
    order: float
    bar: float
    slope: float
    rounding: float

    def wrong(self, kink: float) -> bool:
        """Whether the derivative is off by more than rounding, and than kinks explain."""
        return abs(self.bend) > self.rounding + 2 * max(abs(self.beside), kink)

    @property
    def unresolved(self) -> bool:
        """Whether no step shows enough of the slope."""
        return not self.bar <= _RESOLVED * self.slope


# Steps, changes ahead, changes back, and the noise of the value at each step.
Sides = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Probe:
    """A function at a point, with its gradient, weighted to one number in double precision."""

    def __init__(self, fn: Callable, args: Any):
        """Evaluate and differentiate once."""
        leaves, structure = jax.tree.flatten(args)
        leaves = [jnp.asarray(leaf) for leaf in leaves]
        self.names = arguments.names("args", args)
        self.run = jax.jit(lambda xs: jax.tree.leaves(fn(*jax.tree.unflatten(structure, xs))))
        out = jax.eval_shape(self.run, leaves)
        arguments.refuse_integers("fn(*args)", out)
        rng = np.random.default_rng(0)
        self.weights = [rng.normal(size=one.shape) if one.shape else np.ones(()) for one in out]
        cotangents = [w.astype(one.dtype) for w, one in zip(self.weights, out, strict=True)]
        # What the gradient is weighted by has to be what the values are weighted by.
        self.weights = [w.astype(np.float64) for w in cotangents]
        pull = lambda xs, cotangents: jax.vjp(self.run, xs)[1](cotangents)[0]
        pull, cotangents = jax.jit(pull), [jnp.asarray(w) for w in cotangents]
        self.gradient = lambda xs: _host(pull(xs, cotangents))
        self.value, self.slopes = _host(self.run(leaves)), self.gradient(leaves)
        self.leaves = leaves
        self.dtypes = [leaf.dtype for leaf in leaves]
        self.x = _host(leaves)
        self.unit = max(
            float(jnp.finfo(d).eps) / 2 for d in [*self.dtypes, *(o.dtype for o in out)]
        )
        if not all(np.isfinite(v).all() for v in self.value):
            raise ValueError("fn(*args) is not finite, so it has no gradient to be checked.")
        squares = [float(np.mean(x * x)) if x.size else 0.0 for x in self.x]
        self.scale = [np.sqrt(s) if s > 0 else 1.0 for s in squares]
        self.noise = 0.0
        self.size = float(np.sqrt(self._norm(self.value, np.zeros_like)))

    def direction(self, rng: np.random.Generator, leaf: int | None = None) -> list[np.ndarray]:
        """A random direction in all leaves or in one, in units of the size of each."""
        return [
            s * rng.normal(size=x.shape) if leaf in (None, k) else np.zeros(x.shape)
            for k, (x, s) in enumerate(zip(self.x, self.scale, strict=True))
        ]

    def change(self, direction: list[np.ndarray], step: float) -> tuple[float, float, float]:
        """Change of the value, the same by the gradient, and the rounding of the value."""
        there = self._point(direction, step)
        value = _host(self.run(there))
        moved = zip(self.weights, value, self.value, strict=True)
        true = sum(float(np.sum(w * (b - a))) for w, b, a in moved)
        steps = zip(self.slopes, _host(there), self.x, strict=True)
        linear = sum(float(np.sum(g * (b - a))) for g, b, a in steps)
        return true, linear, self.unit * np.sqrt(self._norm(value, np.abs))

    def kinked(self, direction: list[np.ndarray], line: Line) -> bool:
        """Whether the slopes of the two sides differ here.

        A large model has kinks within the smallest step that its values show in a low precision.
        Gradients show closer ones, but may be wrong: they are asked where values leave a doubt.
        """
        large = abs(line.jump) >= line.slope / 2 and line.jump_at <= np.sqrt(self.unit)
        if large or not line.jump:
            return large
        near = [self.gradient(self._point(direction, sign * 8 * self.unit)) for sign in (1, -1)]
        parts = zip(*near, direction, strict=True)
        return abs(sum(float(np.sum((a - b) * v)) for a, b, v in parts)) > abs(line.jump) / 2

    def _point(self, direction: list[np.ndarray], step: float) -> list:
        """The point at a step along a direction, in the dtypes of the arguments."""
        parts = zip(self.x, direction, self.dtypes, strict=True)
        return [jnp.asarray((x + step * v).astype(dtype)) for x, v, dtype in parts]

    def _norm(self, value: list[np.ndarray], other: Callable) -> float:
        pairs = zip(self.weights, value, self.value, strict=True)
        return sum(float(np.sum((w * np.maximum(np.abs(a), other(b))) ** 2)) for w, a, b in pairs)

    def measure_noise(self, directions: list[list[np.ndarray]]) -> None:
        """Noise of the value: third differences close by, on one side, where curvature is nil.

        At two distances, since rounding to a grid is not seen between its points; the median over
        directions, since one may meet a kink.
        """
        found = []
        for distance in (64 * self.unit, 1024 * self.unit):
            squares = []
            for direction in directions:
                near = [self.change(direction, distance * j) for j in range(1, 9)]
                rest = np.array([true - linear for true, linear, _ in near])
                squares.append(np.mean(np.diff(rest, n=3) ** 2) / 20)
            found.append(np.nanmedian(squares))
        self.noise = float(np.sqrt(max(found)))

    def sides(self, direction: list[np.ndarray]) -> Sides:
        """Changes along a direction over all steps."""
        h = 10.0 ** -np.arange(1, -np.log10(16 * self.unit), 0.5)
        up = np.array([self.change(direction, step) for step in h])
        down = np.array([self.change(direction, -step) for step in h])
        noise = np.maximum(self.noise, np.maximum(up[:, 2], down[:, 2])) * np.sqrt(2)
        return h, up, down, noise

    def estimates(self, direction: list[np.ndarray], sides: Sides) -> dict[str, Estimate]:
        """The slope along a direction by every kind of difference that there is."""
        parts = zip(self.slopes, direction, strict=True)
        slope = sum(float(np.sum(g * v)) for g, v in parts)
        found = slope_estimates.from_sides(*sides, slope, _trend)
        exact = slope_estimates.by_complex_step(
            self.run, self.leaves, direction, self.weights, slope, _trend
        )
        return found if exact is None else found | {"complex": exact}

    def line(self, direction: list[np.ndarray], sides: Sides | None = None) -> Line:
        """Differences along a direction over all steps."""
        h, up, down, noise = self.sides(direction) if sides is None else sides
        bend = (up[:, 0] - down[:, 0] - up[:, 1] + down[:, 1]) / (2 * h)
        jump = (up[:, 0] + down[:, 0] - up[:, 1] - down[:, 1]) / h
        terms = [g * v for g, v in zip(self.slopes, direction, strict=True)]
        along = float(np.sqrt(sum(np.sum(t * t) for t in terms)))
        seen = np.maximum(np.abs(up[:, 0]), np.abs(down[:, 0])) - _SURE * noise
        slope = max(along, np.nanmax(np.r_[0.0, seen / h]))
        if along <= 4 * self.unit * self.size:
            slope = max(slope, np.sqrt(self.unit) * self.size)
        rounding = 256 * self.unit * float(sum(np.sum(np.abs(t)) for t in terms))
        if not np.isfinite(bend[-3:]).all():
            return self._edge(up, down, slope)
        bars = np.r_[np.inf, np.abs(np.diff(bend))] + _SURE * noise / h
        bars = np.where(np.isfinite(bars), bars, np.inf)
        unseen = 2 * _SURE * noise / h + rounding
        order, bent, stays = _trend(bend, unseen, h, 2)
        _, jumped, kink = _trend(jump, unseen, h, 3)
        return Line(
            float(bend[bent]) if stays else 0.0,
            float(h[bent]),
            float(jump[bent]),
            float(jump[jumped]) if kink else 0.0,
            float(h[jumped]),
            order,
            float(bars.min()),
            float(slope),
            rounding,
        )

    def _edge(self, up: np.ndarray, down: np.ndarray, slope: float) -> Line:
        """A line on which the function ends: a kink, if it goes on to one side."""
        if not (np.isfinite(up[-3:, 0]).all() or np.isfinite(down[-3:, 0]).all()):
            raise ValueError(
                "fn is finite at its arguments but not beside them: no difference can be taken."
            )
        return Line(0.0, 0.0, 0.0, np.inf, 0.0, np.inf, 0.0, slope, 0.0)


def check(fn: Callable, args: Any) -> tuple[float, str | None, str, dict[str, Estimate]]:
    """Order, worst entry, verdict and estimates, as `backprop.check_gradient` returns them."""
    with np.errstate(all="ignore"):
        probe = Probe(fn, args)
        for k, gradient in enumerate(probe.slopes):
            if not np.isfinite(gradient).all():
                worst = np.unravel_index(np.isfinite(gradient).argmin(), gradient.shape)
                return np.nan, _entry(probe.names[k], worst), "wrong", {}
        rng = np.random.default_rng(1)
        everywhere = [probe.direction(rng) for _ in range(_LINES)]
        probe.measure_noise(everywhere)
        each = [probe.direction(rng, k) for k in range(len(probe.x))]
        sides = probe.sides(everywhere[0])
        lines = [probe.line(everywhere[0], sides), *map(probe.line, everywhere[1:])]
        estimates = probe.estimates(everywhere[0], sides)
        alone = [probe.line(direction) for direction in each]
        order = float(np.median([line.order for line in lines]))
        kink = max(abs(line.jump) for line in [*lines, *alone])
        if any(line.wrong(kink) for line in [*lines, *alone]):
            leaf = int(np.argmax([abs(line.bend) - 2 * abs(line.beside) for line in alone]))
            return order, _worst(probe, leaf, alone[leaf].bend_at, _bend, rng), "wrong", estimates
        if any(map(probe.kinked, [*everywhere, *each], [*lines, *alone])):
            leaf = int(np.argmax([abs(line.jump) for line in alone]))
            return order, _worst(probe, leaf, alone[leaf].jump_at, _jump, rng), "kink", estimates
        noisy = any(line.unresolved for line in lines)
        return order, None, "noisy" if noisy else "correct", estimates


def _bend(up: tuple, down: tuple) -> float:
    return up[0] - down[0] - up[1] + down[1]


def _jump(up: tuple, down: tuple) -> float:
    return up[0] + down[0] - up[1] - down[1]


def _worst(probe: Probe, leaf: int, step: float, part: Callable, rng: np.random.Generator) -> str:
    """The entry of a leaf that a difference is largest for, by bisection with random signs."""

    def size(entries: np.ndarray) -> float:
        direction = [np.zeros(x.shape) for x in probe.x]
        signs = rng.choice([-1.0, 1.0], size=entries.size) if entries.size > 1 else 1.0
        direction[leaf].flat[entries] = probe.scale[leaf] * signs
        found = abs(part(probe.change(direction, step), probe.change(direction, -step)))
        return found if np.isfinite(found) else np.inf

    entries = np.arange(probe.x[leaf].size)
    if step > 0:
        while entries.size > _FEW:
            halves = np.array_split(entries, 2)
            entries = max(halves, key=lambda half: sum(size(half) ** 2 for _ in range(3)))
        entries = entries[[int(np.argmax([size(one) for one in entries[:, None]]))]]
    return _entry(probe.names[leaf], np.unravel_index(entries[0], probe.x[leaf].shape))


def _entry(name: str, index: tuple) -> str:
    return f"{name}[{', '.join(str(int(i)) for i in index)}]" if index else name


def _trend(
    values: np.ndarray, unseen: np.ndarray, h: np.ndarray, steps: int
) -> tuple[float, int, bool]:
    """The power of `h` at the smallest steps in a row that stand out, the last, whether it stays.

    What stays is constant there, and would not be seen at the next step. The power is infinite
    where no row is long enough: what vanishes sooner than it can be seen.
    """
    size = np.abs(values)
    rows = np.lib.stride_tricks.sliding_window_view(size > unseen, steps).all(axis=1)
    if not rows.any():
        return np.inf, len(h) - 1, False
    first = int(np.flatnonzero(rows)[-1])
    last = first + steps - 1
    power = float(np.log(size[first] / size[last]) / np.log(h[first] / h[last]))
    # An effect of a kink close by is gone at the next step, where it would still be seen.
    ends = last == len(h) - 1 or unseen[last + 1] > size[last] / 2
    return power, last, bool(power < 0.3 and ends)


def _host(arrays: list) -> list[np.ndarray]:
    return [np.asarray(a).astype(np.float64) for a in jax.device_get(arrays)]
