"""From the stacked Jacobians of a model to the spectra of all its layers, in run order.

A value below `n * eps` of the largest in its formed matrix is rounding. Where that happens to the
Jacobian of a cut with respect to the input, or of the output with respect to a cut, the product of
the local Jacobians is taken in the log domain instead, which resolves every value. As it comes
with all cuts at once, it then serves all those whose formed matrix is not right to nine digits.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.measure import stacks
from dltheory.measure.passes import Measured
from dltheory.measure.stacks import Stacks
from dltheory.networks import sites
from dltheory.networks.sites import Site
from dltheory.numerics import log_spectrum
from dltheory.numerics.singular_values import in_turn, on_host

_ACCURATE = 1e-9
# Products of this many multiplications in the log domain take half a minute on two cores.
_AFFORDABLE = 1e9


class Place(NamedTuple):
    """One layer in run order.

    Attributes:
        site: The layer.
        text: Its text in the stacks.
        index: Where it stands in its stack.
        features: How many numbers one example has there.
        before: Features of the cut before it.
        is_cut: Whether it is a cut; the output is one.
    """

    site: Site
    text: str
    index: tuple[int, ...]
    features: int
    before: int
    is_cut: bool

    def of(self, stacks: dict[str, Any]) -> Any:
        """This layer's part of a stack."""
        return stacks[self.text][:, *self.index]


class Values(NamedTuple):
    """Spectra of one kind, layer by layer: logs of shape `(N, k)`, and which are resolved."""

    log_values: list[Any]
    resolved: list[Any]


Kinds = tuple[Values, Values, Values]  # input to layer, layer to output, local


def places(measured: Measured) -> list[Place]:
    """The layers in run order, the output last (once, where the last layer is the output)."""
    found, before = [], measured.features("input")
    expanded = sites.expand(measured.program.layers)
    for site, layer in expanded:
        features = measured.features(layer.text)
        found.append(Place(site, layer.text, site.index or (), features, before, layer.is_cut))
        before = features if layer.is_cut else before
    if not expanded[-1][1].is_output:
        site = Site("output", 0, None, measured.program.shape, measured.program.dtype)
        found.append(Place(site, "output", (), measured.features("output"), before, True))
    return found


def of_traced(found: Stacks, where: Sequence[Place]) -> Kinds:
    """The spectra of formed matrices within a program that is being traced, stack by stack."""
    leaves, structure = jax.tree.flatten(found)
    values = jax.tree.unflatten(structure, in_turn(leaves))
    kinds = [[p.of(s) if p.text in s else None for p in where] for s in values]
    return _values(found, kinds, where, jnp)


def of_host(found: Stacks, where: Sequence[Place]) -> Kinds:
    """The spectra of formed matrices that are NumPy arrays."""
    return _values(found, _dense_on_host(found, where), where, np)


def in_logs(kinds: Kinds, local: dict[str, Any], where: Sequence[Place]) -> Kinds:
    """Spectra of cuts that the formed matrices do not resolve, by the product of their factors.

    Args:
        kinds: The spectra, NumPy's arrays or JAX's.
        local: The stacks of local Jacobians, likewise.
        where: The layers.

    Returns:
        The spectra.
    """
    forward, reverse, last = kinds
    order = [n for n, p in enumerate(where) if p.is_cut]
    factors = [where[n].of(local)[:, : where[n].features, : where[n].before] for n in order]
    forward = _replaced(forward, factors, order)
    transposed = [factor.swapaxes(-1, -2) for factor in factors[:0:-1]]
    return forward, _replaced(reverse, transposed, order[-2::-1]), last


def affordable(measured: Measured) -> bool:
    """Whether products in the log domain would take less than half a minute or so."""
    cuts = sum(math.prod(one.lengths) for one in measured.program.layers if one.is_cut)
    width = max(stacks.width(measured), measured.features("output"))
    return 2.0 * cuts * measured.batch * float(width) ** 3 <= _AFFORDABLE


def _values(found: Stacks, kinds, where, xp) -> Kinds:
    """Logs and what they resolve, from the singular values of formed matrices layer by layer."""
    # A product has no more rank than any of its factors: what is beyond that is zero exactly.
    bound = {p: _rank_bound(p.of(found.local), xp) for p in where if p.is_cut}
    ranks = [
        _least(where, bound, xp),
        _least(where, bound, xp, reverse=True),
        [bound.get(p) for p in where],
    ]
    result = []
    for matrices, values, rank in zip(found, kinds, ranks, strict=True):
        parts: list[Any] = []
        for p, s, r in zip(where, values, rank, strict=True):
            if s is None:
                parts.append(None)
                continue
            matrix = p.of(matrices)
            r = _rank_bound(matrix, xp) if r is None or not p.is_cut else r
            parts.append(_logs(s, r, max(matrix.shape[-2:]), xp))
        result.append(parts)
    return _cut(result, where)


def _dense_on_host(host: Stacks, where: Sequence[Place]) -> list[list[Any]]:
    """Singular values of the formed matrices; a product with an inactive layer by its live part."""
    left, right, slots = [], [], []
    before: Any = None
    for number, p in enumerate(where):
        matrix = p.of(host.input_to_layer)
        if p.is_cut and before is not None and matrix.dtype == np.float32:
            factor = p.of(host.local)[..., : p.before]
            if not factor.any(-2).all():
                left.append(factor)
                right.append(before)
                slots.append((0, number))
                before = matrix
                continue
        left.append(matrix)
        right.append(None)
        slots.append((0, number))
        before = matrix if p.is_cut else before
    for kind, stack in ((1, host.layer_to_output), (2, host.local)):
        for number, p in enumerate(where):
            if p.text in stack:
                left.append(p.of(stack))
                right.append(None)
                slots.append((kind, number))
    kinds: list[list[Any]] = [[None] * len(where) for _ in range(3)]
    for (kind, number), values in zip(slots, on_host(left, right), strict=True):
        kinds[kind][number] = values
    return kinds


def _rank_bound(matrix, xp):
    """At most this rank: the number of rows, or of columns, that are not all zero."""
    live = matrix != 0
    return xp.minimum(live.any(-1).sum(-1), live.any(-2).sum(-1))


def _least(where, bound, xp, reverse=False) -> list[Any]:
    """Per layer, the least rank bound of the factors between it and the input, or the output."""
    found, least = [], None
    for p in reversed(where) if reverse else where:
        if reverse:
            found.append(least)
        if p in bound:
            least = bound[p] if least is None else xp.minimum(least, bound[p])
        if not reverse:
            found.append(least)
    return found[::-1] if reverse else found


def _logs(s, rank, n: int, xp) -> tuple[Any, Any]:
    """Logs of singular values, exactly `-inf` beyond the rank; and which are resolved."""
    zero = xp.broadcast_to(xp.arange(s.shape[-1]), s.shape) >= rank[..., None]
    largest = s[..., :1]
    # The logarithm never sees a zero, whose derivative would turn into NaN.
    gone = zero | (s == 0)
    logs = xp.where(gone, -xp.inf, xp.log(xp.where(gone, 1, s)))
    finfo = jnp.finfo(s.dtype)
    # Near the bottom of the range of floats, entries of the matrix have been flushed to zero.
    sound = (largest > float(finfo.tiny) / float(finfo.eps) ** 2) & xp.isfinite(largest)
    resolved = (zero | (s > n * float(finfo.eps) * largest)) & (sound | (rank == 0)[..., None])
    # Written so that NaN passes through where the rank would hide it.
    return xp.where(xp.isnan(largest), xp.nan, logs).astype(s.dtype), resolved


def _cut(kinds, where: Sequence[Place]) -> Kinds:
    """Spectra in the length of their Jacobian; the output depends on itself by the identity."""
    forward, reverse, local = kinds
    last = where[-1]
    logs, resolved = forward[-1]
    shape = (logs.shape[0], last.features)
    xp = jnp if isinstance(logs, Array) else np
    reverse[-1] = xp.zeros(shape, logs.dtype), xp.ones(shape, bool)
    for number, p in enumerate(where):
        if not p.is_cut:
            local[number] = None
            continue
        count = min(p.features, p.before)
        logs, resolved = local[number]
        local[number] = logs[:, :count], resolved[:, :count]
    return tuple(
        Values(*([None if part is None else part[k] for part in kind] for k in range(2)))
        for kind in (forward, reverse, local)
    )  # pyright: ignore[reportReturnType]


def _replaced(values: Values, factors: Sequence[Any], order: Sequence[int]) -> Values:
    """Spectra that are not resolved replaced by those of the factored products."""
    todo = {n for n in order if not values.resolved[n].all()}
    if not todo or not all(np.isfinite(f).all() for f in factors):
        return values
    xp = jnp if isinstance(factors[0], Array) else np
    width = max(max(f.shape[-2:]) for f in factors)
    todo |= {n for n in order if not _accurate(values.log_values[n], width)}
    # Outside of any trace float64 is at hand, whatever the default precision.
    with jax.enable_x64(True):
        padded = [
            xp.pad(
                f.astype(np.float64), ((0, 0), (0, width - f.shape[-2]), (0, width - f.shape[-1]))
            )
            for f in factors
        ]
        found = _prefixes(jnp.asarray(xp.stack(padded, axis=1)))
        if xp is np:
            found = jax.device_get(found)
        logs, resolved = list(values.log_values), list(values.resolved)
        for step, n in enumerate(order):
            if n in todo:
                count, dtype = logs[n].shape[-1], logs[n].dtype
                logs[n] = found.log_values[:, step, :count].astype(dtype)
                resolved[n] = found.resolved[:, step, :count]
    return Values(logs, resolved)


def _accurate(logs: Any, width: int) -> bool:
    """Whether rounding in a formed matrix, `eps` of its largest value, leaves all values right."""
    floor = logs[..., :1] + math.log(width * float(jnp.finfo(logs.dtype).eps) / _ACCURATE)
    return bool((np.isneginf(logs) | (logs > floor)).all())


_prefixes = jax.jit(log_spectrum.prefix_log_spectra)
