r"""Which pixels each value of a traced program depends on, as windows that slide along its axes.

Along one axis of the image the entry at position `p` of a value's axis depends on the pixels from
:math:`s p + lo` to :math:`s p + hi`. Each primitive maps such windows to others; where its result
is no sliding window, or the primitive is not known, the window becomes the stretch that holds all
pixels in question, the same for every entry. So a window may be too wide but never too narrow.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import jax
from jax import Array

from dltheory.measure.window_rules import (
    RULES,
    Equation,
    Rule,
    Window,
    renamed,
    shifted,
    slice_of,
)
from dltheory.networks import program, sites
from dltheory.networks.layers import Layer
from dltheory.networks.program import Entry, Tape
from dltheory.numerics.results import ReceptiveField

Windows = tuple[Window, ...] | None
"""A window for each axis of the image, or `None` for a value that does not depend on it."""

Records = dict[tuple[program.Path, tuple[int, ...]], list[Windows]]
"""Windows of the outputs of each equation, by its place and its index in the scans around it."""

_ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp complex conj convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2
    expm1 floor ge gt igamma igammac imag integer_pow is_finite le lgamma log log1p logistic lt
    max min mul name ne neg nextafter not or population_count pow real reduce_precision rem round
    rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square
    stop_gradient sub tan tanh xor
    """.split()  # noqa: SIM905 - names, as one reads them
)
_CALLS = {"custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr"}


def of_model(f: Callable, params: Any, x: Array | jax.ShapeDtypeStruct) -> tuple[Windows, Records]:
    """The windows of all values of a model.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of images `(N, *spatial, channels)`.

    Returns:
        The windows of the output, one for each spatial axis, and those of all equations.

    Raises:
        TypeError: If `f` does not return one array.
        ValueError: If `x` has no spatial axes.
    """
    check_images(x)
    closed = jax.make_jaxpr(f)(params, x)
    if len(closed.out_avals) != 1:
        raise TypeError(f"f must return one array, got {len(closed.out_avals)}: return one of them")
    tape = program.flatten(closed.jaxpr)
    sizes = tuple(x.shape[1:-1])
    given: list[Windows] = [None] * len(tape.invars)
    given[-1] = tuple(Window(1 + axis, 1, 0, 0) for axis in range(len(sizes)))
    records: Records = {}
    return _Sweep(sizes, records).run(tape, given, ())[0], records


def of_site(
    f: Callable, params: Any, x: Array | jax.ShapeDtypeStruct, site: sites.Site | str | None
) -> Windows:
    """The windows of one site.

    Args:
        f: As in `of_model`.
        params: As in `of_model`.
        x: As in `of_model`.
        site: A site or its text, or `None` for the output.

    Returns:
        Its windows.

    Raises:
        SiteError: If there is no such site.
        TypeError: As `of_model`.
        ValueError: As `of_model`.
    """
    output, records = of_model(f, params, x)
    if site is None:
        return output
    layer, index = parsed(sites.trace(f, params, x), site)
    return records[layer.place, index][layer.out]


def parsed(traced: sites.Program, site: sites.Site | str) -> tuple[Layer, tuple[int, ...]]:
    """The layer of a site and the index in its stack.

    Args:
        traced: The model.
        site: A site or its text.

    Returns:
        The layer and the index, empty outside of scans.

    Raises:
        SiteError: If there is no such site.
    """
    text, index = sites.parse(site)
    layer, index = traced.layer(text), index or ()
    fits = len(index) == len(layer.lengths)
    if not fits or any(i >= n for i, n in zip(index, layer.lengths, strict=True)):
        raise sites.SiteError(
            f"site {str(site)!r} has the index {index}, but {layer.text!r} is stacked as "
            f"{layer.lengths}; name one of the stack, such as {layer.text}"
            f"[{','.join('0' * len(layer.lengths))}]."
        )
    return layer, index


def fields(windows: Windows, site: sites.Site | str | None) -> tuple[ReceptiveField, ...]:
    """Windows as receptive fields.

    Args:
        windows: Those of a site.
        site: The site, for the error.

    Returns:
        One field an axis of the image.

    Raises:
        ValueError: If the site does not see the image.
    """
    if windows is None:
        raise ValueError(f"{site or 'the output'} does not depend on x")
    return tuple(
        ReceptiveField(math.floor(w.hi - w.lo) + 1, w.stride, -math.ceil(w.lo)) for w in windows
    )


def check_images(x: Array | jax.ShapeDtypeStruct) -> None:
    """Refuse what has no spatial axes.

    Args:
        x: The images.

    Raises:
        ValueError: If `x` has fewer than three axes.
    """
    if len(x.shape) < 3:
        raise ValueError(f"x has shape {x.shape}; want (N, *spatial, channels), such as NHWC")


class _Sweep:
    """One pass through a program; `sizes` are the pixels along each axis of the image."""

    def __init__(self, sizes: tuple[int, ...], records: Records):
        self.sizes, self.records = sizes, records

    def run(self, tape: Tape, given: Sequence[Windows], index: tuple[int, ...]) -> list[Windows]:
        known: list[Windows] = [None] * len(tape.avals)
        for value, windows in zip(tape.invars, given, strict=True):
            known[value] = windows
        for entry in tape.entries:
            ins = [None if value is None else known[value] for value in entry.ins]
            outs: list[Windows] = [None] * len(entry.outs)
            if any(windows is not None for windows in ins):
                outs = self.outputs(entry, ins, index)
            self.records[entry.path, index] = outs
            for value, windows in zip(entry.outs, outs, strict=True):
                known[value] = windows
        return [known[value] for value in tape.outvars]

    def outputs(self, entry: Entry, ins: list[Windows], index: tuple[int, ...]) -> list[Windows]:
        name, params = entry.name, entry.eqn.params
        into, shapes = (_shapes(atoms) for atoms in (entry.eqn.invars, entry.eqn.outvars))
        if entry.body is not None:
            return self.scan(entry, ins, into, shapes, index)
        if name in _CALLS:
            return self.call(params[_CALLS[name]], ins, entry, index)
        if name == "cond":
            branches = [self.call(one, ins[1:], entry, index) for one in params["branches"]]
            chosen = self.still(ins[0], into[0])
            return [
                self.join([*outs, chosen], shape)
                for shape, *outs in zip(shapes, *branches, strict=True)
            ]
        if name in _ELEMENTWISE:
            return [self.join(ins, shapes[0])]
        if name == "optimization_barrier":
            return list(ins)
        if name == "concatenate":
            return [self.concatenate(ins, into, params["dimension"], shapes[0])]
        if name == "split":
            return self.split(ins[0], params)
        if name == "sort":
            apart = [
                self.mixed(w, s, {params["dimension"]}) for w, s in zip(ins, into, strict=True)
            ]
            return [self.join(apart, shape) for shape in shapes]
        if name == "dot_general":
            return [self.dot(ins, into, params["dimension_numbers"], shapes[0])]
        rule = RULES.get(name)
        first, *rest = ins
        if rule is None or any(windows is not None for windows in rest):
            everything = [self.still(w, s) for w, s in zip(ins, into, strict=True)]
            return [self.join(everything, shape) for shape in shapes]
        moved = self.each(first, into[0], rule(Equation(params, into, shapes[0])))
        return [moved] * len(shapes)

    def still(self, windows: Windows, shape: Sequence[int]) -> Windows:
        """The stretches that hold all that is seen at any position."""
        return self.each(windows, shape, lambda _: None)

    def mixed(self, windows: Windows, shape: Sequence[int], axes: set[int]) -> Windows:
        """The windows where some axes of the value are mixed."""
        return self.each(windows, shape, lambda one: None if one.axis in axes else one)

    def each(self, windows: Windows, shape: Sequence[int], rule: Rule) -> Windows:
        """Windows through a rule, which is not asked where they stand still already."""
        if windows is None:
            return None
        found = []
        for number, window in enumerate(windows):
            moved = window if window.axis is None else rule(window)
            found.append(self.hull(window, shape, number) if moved is None else moved)
        return tuple(found)

    def hull(self, window: Window, shape: Sequence[int], number: int) -> Window:
        """The stretch of the image that holds a window at all its positions."""
        if window.axis is None:
            return window
        last = window.stride * (shape[window.axis] - 1)
        lo, hi = window.lo + min(0, last), window.hi + max(0, last)
        most = self.sizes[number] - 1
        return Window(None, 0, min(max(lo, 0), most), max(min(hi, most), 0))

    def join(self, several: Sequence[Windows], shape: Sequence[int]) -> Windows:
        """What values of one shape see together."""
        seen = [windows for windows in several if windows is not None]
        return reduce(lambda a, b: self.union(a, b, shape), seen) if seen else None

    def union(self, a, b, shape: Sequence[int]) -> Windows:
        found = []
        for number, (one, other) in enumerate(zip(a, b, strict=True)):
            if one[:2] != other[:2]:
                one, other = (self.hull(window, shape, number) for window in (one, other))
            found.append(one._replace(lo=min(one.lo, other.lo), hi=max(one.hi, other.hi)))
        return tuple(found)

    def call(self, closed, ins, entry: Entry, index: tuple[int, ...]) -> list[Windows]:
        tape = program.flatten(closed.jaxpr, entry.path)
        constants: list[Windows] = [None] * (len(tape.invars) - len(ins))
        return self.run(tape, [*constants, *ins], index)

    def scan(self, entry: Entry, ins, into, out, index: tuple[int, ...]) -> list[Windows]:
        body = entry.body
        assert body is not None
        first, last = entry.num_consts, entry.num_consts + entry.num_carry
        constants: list[Windows] = [None] * (len(body.invars) - len(ins))
        carry, stacked = list(ins[first:last]), []
        steps = range(entry.length)
        for number in reversed(steps) if entry.eqn.params["reverse"] else steps:
            pairs = zip(ins[last:], into[last:], strict=True)
            slices = [self.each(w, s, slice_of(number)) for w, s in pairs]
            given = [*constants, *ins[:first], *carry, *slices]
            outs = self.run(body, given, (*index, number))
            carry = outs[: entry.num_carry]
            stacked.append(outs[entry.num_carry :])
        if not stacked:
            stacked = [[None] * (len(entry.outs) - entry.num_carry)]
        shapes = [s[1:] for s in out[entry.num_carry :]]
        ys = [
            self.join(several, s)
            for several, s in zip(zip(*stacked, strict=True), shapes, strict=True)
        ]
        return [*carry, *(self.each(y, (), _stacked) for y in ys)]

    def concatenate(self, ins, into, dimension: int, shape: Sequence[int]) -> Windows:
        placed, offset = [], 0
        for windows, size in zip(ins, (s[dimension] for s in into), strict=True):
            if windows is not None:
                placed.append((size, self.each(windows, shape, shifted(dimension, offset))))
            offset += size
        longest, main = max(placed, key=lambda pair: pair[0])
        turned = [self.turned(w, main, (longest, offset), dimension) for _, w in placed]
        return self.join(turned, shape)

    def turned(self, windows, main, rings: tuple[int, ...], axis: int) -> Windows:
        """Windows of a border moved by whole turns onto the main ones: rolled, or wrapped around.

        A turn is that of the image, or of a map of one of some lengths, along the joined axis:
        along any other what is joined are channels, and their shifts are taps.
        """
        found = []
        for size, one, other in zip(self.sizes, windows, main, strict=True):
            apart, by = other.lo - one.lo, 0
            if one[:2] == other[:2] and one.axis == axis:
                turns = [size, *(abs(one.stride) * ring for ring in rings)]
                by = apart if any(turn and apart % turn == 0 for turn in turns) else 0
            found.append(one._replace(lo=one.lo + by, hi=one.hi + by))
        return tuple(found)

    def split(self, windows, params) -> list[Windows]:
        found, offset = [], 0
        for size in params["sizes"]:
            found.append(self.each(windows, (), shifted(params["axis"], -offset)))
            offset += size
        return found

    def dot(self, ins, into, numbers, shape: Sequence[int]) -> Windows:
        contracted, batched = numbers
        free, sides = len(batched[0]), []
        for windows, size, gone, batch in zip(ins, into, contracted, batched, strict=True):
            kept = [a for a in range(len(size)) if a not in (*gone, *batch)]
            places = {a: k for k, a in enumerate(batch)}
            places |= {a: free + k for k, a in enumerate(kept)}
            free += len(kept)
            sides.append(self.each(windows, size, renamed(places)))
        return self.join(sides, shape)


def _stacked(window: Window) -> Window:
    """A window of a value that becomes one of many."""
    return window.moved(None if window.axis is None else window.axis + 1)


def _shapes(atoms) -> list[tuple[int, ...]]:
    return [tuple(atom.aval.shape) for atom in atoms]
