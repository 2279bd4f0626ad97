"""From the stacked Jacobians of a model to the spectra of all its layers, in run order.

A value below `n * eps` of the largest in its formed matrix is rounding. Where that happens to the
Jacobian of a cut with respect to the input, or of the output with respect to a cut, the product of
the local Jacobians is taken in the log domain instead, which resolves every value.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.measure.passes import Measured
from dltheory.measure.stacks import Stacks
from dltheory.networks import sites
from dltheory.networks.sites import Site
from dltheory.numerics import log_spectrum
from dltheory.numerics.singular_values import in_turn, on_host

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


def places(measured: Measured, dtype) -> list[Place]:
    """The layers in run order, the output last (once, where the last layer is the output)."""
    found, before = [], measured.features("input")
    expanded = sites.expand(measured.program.layers)
    for site, layer in expanded:
        features = measured.features(layer.text)
        found.append(Place(site, layer.text, site.index or (), features, before, layer.is_cut))
        before = features if layer.is_cut else before
    if not expanded[-1][1].is_output:
        site = Site("output", 0, None, measured.program.shape, dtype)
        found.append(Place(site, "output", (), measured.features("output"), before, True))
    return found


def traced(stacks: Stacks, where: Sequence[Place]) -> tuple[Values, Values, Values]:
    """The spectra within a program that is being traced: of the formed matrices, stack by stack."""
    leaves, structure = jax.tree.flatten(stacks)
    values = jax.tree.unflatten(structure, in_turn(leaves))
    kinds = []
    for matrices, s in zip(stacks, values, strict=True):
        bounds = {text: _rank_bound(matrix) for text, matrix in matrices.items()}
        parts = [
            _logs(p.of(s), p.of(bounds), max(p.of(matrices).shape[-2:]), jnp)
            if p.text in matrices
            else None
            for p in where
        ]
        kinds.append(parts)
    return _cut(kinds, where)


def concrete(
    stacks: Stacks, where: Sequence[Place], log_domain: bool | None
) -> tuple[Values, Values, Values]:
    """The spectra of concrete Jacobians, in the log domain where the formed ones resolve less."""
    on_cpu = all(one.platform == "cpu" for one in jax.tree.leaves(stacks)[0].devices())
    host = jax.device_get(stacks)
    if on_cpu:
        kinds = _dense_on_host(host, where)
    else:
        values = jax.device_get(
            jax.jit(
                lambda s: jax.tree.unflatten(jax.tree.structure(s), in_turn(jax.tree.leaves(s)))
            )(stacks)
        )
        kinds = [[p.of(s) if p.text in s else None for p in where] for s in values]
    # A product has no more rank than any of its factors: what is beyond that is zero exactly.
    bound = {p: _rank_bound(p.of(host.local)) for p in where if p.is_cut}
    ranks = [
        _least(where, bound),
        _least(where, bound, reverse=True),
        [bound.get(p) for p in where],
    ]
    result = []
    for matrices, values, rank in zip(host, kinds, ranks, strict=True):
        parts: list[Any] = []
        for p, s, r in zip(where, values, rank, strict=True):
            if s is None:
                parts.append(None)
                continue
            matrix = p.of(matrices)
            r = _rank_bound(matrix) if r is None or not p.is_cut else r
            parts.append(_logs(s, r, max(matrix.shape[-2:]), np))
        result.append(parts)
    forward, reverse, local = _cut(result, where)
    if log_domain is not False:
        factors = [p.of(host.local)[:, : p.features, : p.before] for p in where if p.is_cut]
        if log_domain or _cost(factors) <= _AFFORDABLE:
            _in_logs(forward, factors, where)
            transposed = [np.swapaxes(f, -1, -2) for f in factors[:0:-1]]
            _in_logs(reverse, transposed, where, reverse=True)
    return forward, reverse, local


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


def _rank_bound(matrix):
    """At most this rank: the number of rows, or of columns, that are not all zero."""
    live = matrix != 0
    rows, columns = live.any(-1).sum(-1), live.any(-2).sum(-1)
    return jnp.minimum(rows, columns) if isinstance(matrix, Array) else np.minimum(rows, columns)


def _least(where, bound, reverse=False) -> list[Any]:
    """Per layer, the least rank bound of the factors between it and the input, or the output."""
    found, least = [], None
    for p in reversed(where) if reverse else where:
        if reverse:
            found.append(least)
        if p in bound:
            least = bound[p] if least is None else np.minimum(least, bound[p])
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


def _cut(kinds, where: Sequence[Place]) -> tuple[Values, Values, Values]:
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


def _cost(factors: Sequence[np.ndarray]) -> float:
    width = max(max(f.shape[-2:]) for f in factors)
    return 2.0 * len(factors) * factors[0].shape[0] * float(width) ** 3


def _in_logs(values: Values, factors, where: Sequence[Place], reverse: bool = False) -> None:
    """Replace the spectra of cuts that hold unresolved values by those of the factored product."""
    order = [n for n, p in enumerate(where) if p.is_cut]
    order = order[-2::-1] if reverse else order
    todo = [n for n in order if not values.resolved[n].all()]
    if not todo or not all(np.isfinite(f).all() for f in factors):
        return
    width = max(max(f.shape[-2:]) for f in factors)
    padded = np.zeros((factors[0].shape[0], len(factors), width, width))
    for number, f in enumerate(factors):
        padded[:, number, : f.shape[-2], : f.shape[-1]] = f
    # Outside of any trace float64 is at hand, whatever the default precision.
    with jax.enable_x64(True):
        found = jax.device_get(_prefixes(jnp.asarray(padded)))
    for step, n in enumerate(order):
        if n in todo:
            count = values.log_values[n].shape[-1]
            dtype = values.log_values[n].dtype
            values.log_values[n] = found.log_values[:, step, :count].astype(dtype)
            values.resolved[n] = found.resolved[:, step, :count]


_prefixes = jax.jit(log_spectrum.prefix_log_spectra)
