"""What each primitive does to a window that slides along an axis of its operand."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

Number = int | Fraction


class Window(NamedTuple):
    """What a value sees of one axis of the image.

    Attributes:
        axis: The axis of the value along which the window slides, or `None` where it stands still.
        stride: Pixels from one position to the next; zero where it stands still.
        lo: First pixel that the entry at position zero sees.
        hi: Last one.
    """

    axis: Any
    stride: Number
    lo: Number
    hi: Number

    def moved(self, axis: int | None) -> "Window":
        """The same window along another axis."""
        return self._replace(axis=axis)


class Equation(NamedTuple):
    """What a rule reads of an equation.

    Attributes:
        params: Its parameters.
        into: Shapes of its operands.
        shape: Shape of its first result.
    """

    params: dict[str, Any]
    into: list[tuple[int, ...]]
    shape: tuple[int, ...]


Rule = Callable[[Window], Window | None]
"""What becomes of a window that slides; `None` where it is none any more."""


def renamed(places: dict[int, int]) -> Rule:
    """The axes that are left, under their new numbers.

    Args:
        places: From old number to new one.

    Returns:
        The rule.
    """
    return lambda window: window.moved(places[window.axis]) if window.axis in places else None


def shifted(axis: int, offset: int) -> Rule:
    """Positions along an axis begin at an offset.

    Args:
        axis: The axis.
        offset: Where the first position comes to stand.

    Returns:
        The rule.
    """

    def rule(window):
        by = window.stride * offset if window.axis == axis else 0
        return window._replace(lo=window.lo - by, hi=window.hi - by)

    return rule


def slice_of(number: int) -> Rule:
    """One position of the leading axis.

    Args:
        number: Which.

    Returns:
        The rule.
    """

    def rule(window):
        if window.axis != 0:
            return window.moved(window.axis - 1)
        at = window.stride * number
        return Window(None, 0, window.lo + at, window.hi + at)

    return rule


def _slid(window: Window, taps, stride, before, base=1, dilation=1) -> Window:
    """A window through a kernel or a pooling along its own axis."""
    step = _exact(Fraction(window.stride) / base)
    ends = [-step * before, step * ((taps - 1) * dilation - before)]
    return window._replace(stride=step * stride, lo=window.lo + min(ends), hi=window.hi + max(ends))


def _exact(value: Fraction) -> Number:
    return int(value) if value.denominator == 1 else value


def _convolution(eqn: Equation) -> Rule:
    lhs, rhs, out = eqn.params["dimension_numbers"]

    def rule(window):
        if window.axis == lhs[0] and eqn.params["batch_group_count"] == 1:
            return window.moved(out[0])
        if window.axis in lhs[:2]:
            return None
        k = lhs.index(window.axis) - 2
        dilation = eqn.params["rhs_dilation"][k], eqn.params["lhs_dilation"][k]
        slid = _slid(
            window,
            eqn.into[1][rhs[k + 2]],
            eqn.params["window_strides"][k],
            eqn.params["padding"][k][0],
            dilation[1],
            dilation[0],
        )
        return slid.moved(out[k + 2])

    return rule


def _pooling(eqn: Equation) -> Rule:
    return lambda window: _slid(
        window,
        eqn.params["window_dimensions"][window.axis],
        eqn.params["window_strides"][window.axis],
        eqn.params["padding"][window.axis][0],
        eqn.params["base_dilation"][window.axis],
        eqn.params["window_dilation"][window.axis],
    )


def _reduction(eqn: Equation) -> Rule:
    kept = [axis for axis in range(len(eqn.into[0])) if axis not in eqn.params["axes"]]
    return renamed({axis: number for number, axis in enumerate(kept)})


def _squeeze(eqn: Equation) -> Rule:
    return _reduction(eqn._replace(params={"axes": eqn.params["dimensions"]}))


def _cumulative(eqn: Equation) -> Rule:
    return lambda window: None if window.axis == eqn.params["axis"] else window


def _transpose(eqn: Equation) -> Rule:
    return lambda window: window.moved(eqn.params["permutation"].index(window.axis))


def _broadcast(eqn: Equation) -> Rule:
    places = eqn.params["broadcast_dimensions"]
    return renamed({a: b for a, b in enumerate(places) if eqn.into[0][a] == eqn.shape[b]})


def _slice(eqn: Equation) -> Rule:
    def rule(window):
        start = eqn.params["start_indices"][window.axis] * window.stride
        step = eqn.params["strides"][window.axis] if eqn.params["strides"] else 1
        return Window(window.axis, window.stride * step, window.lo + start, window.hi + start)

    return rule


def _dynamic_slice(eqn: Equation) -> Rule:
    return lambda window: window if eqn.into[0][window.axis] == eqn.shape[window.axis] else None


def _rev(eqn: Equation) -> Rule:
    def rule(window):
        if window.axis not in eqn.params["dimensions"]:
            return window
        last = window.stride * (eqn.into[0][window.axis] - 1)
        return Window(window.axis, -window.stride, window.lo + last, window.hi + last)

    return rule


def _pad(eqn: Equation) -> Rule:
    def rule(window):
        before, _, between = eqn.params["padding_config"][window.axis]
        return _slid(window, 1, 1, before, between + 1)

    return rule


def _reshape(eqn: Equation) -> Rule:
    old = eqn.into[0]

    def rule(window):
        before, size = math.prod(old[: window.axis]), old[window.axis]
        starts = [k for k in range(len(eqn.shape)) if math.prod(eqn.shape[:k]) == before]
        if not starts:
            return None
        axis = starts[-1]
        if eqn.shape[axis] == size:
            return window.moved(axis)
        split, merged = divmod(size, eqn.shape[axis]), divmod(eqn.shape[axis], size)
        ends = math.prod(old[: window.axis + 1]), math.prod(eqn.shape[: axis + 1])
        if split[1] == 0 and any(
            math.prod(eqn.shape[:k]) == ends[0] for k in range(len(eqn.shape) + 1)
        ):
            # The axis is cut into pieces: a position along the first sees what its piece sees.
            rest = window.stride * (split[0] - 1)
            lo, hi = window.lo + min(0, rest), window.hi + max(0, rest)
            return Window(axis, window.stride * split[0], lo, hi)
        if merged[1] == 0 and any(math.prod(old[:k]) == ends[1] for k in range(len(old) + 1)):
            # The axis is the slow one of the result: positions count in parts of its own.
            step = _exact(Fraction(window.stride) / merged[0])
            back = -step * (merged[0] - 1)
            return Window(axis, step, window.lo + min(0, back), window.hi + max(0, back))
        return None

    return rule


RULES: dict[str, Callable[[Equation], Rule]] = {
    "conv_general_dilated": _convolution,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "rev": _rev,
    "pad": _pad,
    **dict.fromkeys(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"], _cumulative),
    **dict.fromkeys([f"reduce_window{kind}" for kind in ("", "_sum", "_max", "_min")], _pooling),
    **dict.fromkeys(
        [f"reduce_{kind}" for kind in ("sum", "max", "min", "prod", "and", "or", "xor")], _reduction
    ),
    **dict.fromkeys(["argmax", "argmin"], _reduction),
}
