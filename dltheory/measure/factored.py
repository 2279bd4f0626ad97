r"""Gradients of a model's outputs with respect to its parameters, left in factors.

Where a weight meets a signal in a contraction, :math:`y = h W`, its gradient is an outer product
:math:`h^\top \delta` with :math:`\delta` the derivative of the output with respect to `y`. The
inner product of two such gradients is :math:`(h \cdot h')(\delta \cdot \delta')`: no gradient is
ever formed (Novak, Sohl-Dickstein and Schoenholz 2022).

The contractions are found in the traced program: a parameter is followed through transposes,
slices and scans to all of its uses. The program is then evaluated with a zero added to `y` at each;
the derivative with respect to the zero is :math:`\delta`, and `h` is recorded on the way. Where a
parameter is used in any other way its gradient is formed, by the same reverse pass.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend import core
from jax.extend.core import primitives

from dltheory.measure import contractions
from dltheory.measure.contractions import Groups, Use
from dltheory.networks import program
from dltheory.networks.program import SMOOTH, Path, X


@dataclass(frozen=True)
class Plan:
    """A traced model of one example, and in what form each parameter's gradient comes.

    Attributes:
        closed: The program, from the leaves of the parameters and the example to the output.
        groups: Uses whose factors belong together: those of one part of one leaf.
        explicit: Numbers of the leaves whose gradients are formed.
        outputs: How many numbers the model returns for one example.
    """

    closed: core.ClosedJaxpr
    groups: tuple[tuple[Use, ...], ...]
    explicit: tuple[int, ...]
    outputs: int


def plan(f: Callable, params: Any, x: Array) -> Plan:
    """Trace a model on one example and follow its parameters.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.

    Raises:
        TypeError: If the model does not return one array of floats, or a parameter is complex.
        ValueError: If its output has no axis of examples.
    """
    one = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    closed, out = jax.make_jaxpr(f, return_shape=True)(params, one)
    kinds = [leaf.dtype for leaf in jax.tree.leaves(out)]
    if len(kinds) != 1 or not jnp.issubdtype(kinds[0], jnp.floating):
        raise TypeError(f"f must return one array of floats; got {[str(kind) for kind in kinds]}")
    (out,) = jax.tree.leaves(out)
    if out.shape[:1] != (1,):
        raise ValueError(
            f"f must return (N, ...) for N examples; one example gives the shape {out.shape}"
        )
    leaves = jax.tree.leaves(params)
    if any(jnp.issubdtype(leaf.dtype, jnp.complexfloating) for leaf in leaves):
        raise TypeError("params must be real; split complex ones into real and imaginary parts")
    smooth = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    tape = program.flatten(closed.jaxpr)
    given = tape.invars[len(closed.jaxpr.constvars) :]
    program.want(tape, [frozenset({X, SMOOTH})] * len(tape.outvars))
    smooth = [i for i in smooth if tape.wanted[given[i]]]
    groups = contractions.group(contractions.find(tape, [leaf.shape for leaf in leaves], smooth))
    factored = {use.view.leaf for group in groups for use in group}
    explicit = tuple(i for i in smooth if i not in factored)
    return Plan(closed, groups, explicit, math.prod(out.shape))


def gradients(plan: Plan, params: Any, x: Array) -> tuple[list[Any], list[Array]]:
    """The gradients of all outputs of all examples.

    Args:
        plan: The traced model.
        params: Its parameters.
        x: Examples, shape `(N, ...)`.

    Returns:
        Per group of uses two factors `(N, O, kept, summed, own)`, O being one where a factor is
        the same for all outputs; and per explicit leaf the gradient, `(N, O, size)`.
    """
    leaves = jax.tree.leaves(params)
    uses = {use.path: use for group in plan.groups for use in group}

    def one(example: Array):
        def run(explicit: list[Array], taps: dict[Path, Array]):
            given = list(leaves)
            for number, leaf in zip(plan.explicit, explicit, strict=True):
                given[number] = leaf
            jaxpr, consts = plan.closed.jaxpr, plan.closed.consts
            (y,), signals = _replay(jaxpr, consts, [*given, example[None]], uses, taps)
            return y.reshape(-1), signals

        taps = {path: jnp.zeros(use.shape, use.dtype) for path, use in uses.items()}
        y, pull, signals = jax.vjp(run, [leaves[i] for i in plan.explicit], taps, has_aux=True)
        formed, deltas = jax.vmap(pull)(jnp.eye(plan.outputs, dtype=y.dtype))
        factors = []
        for group in plan.groups:
            pairs = [_pair(u, signals[u.path], deltas[u.path], y.dtype) for u in group]
            swap = [use.rows != group[0].rows for use in group]
            pairs = [(b, a) if s else (a, b) for (a, b), s in zip(pairs, swap, strict=True)]
            factors.append(_joined(pairs))
        return factors, [g.reshape(plan.outputs, -1).astype(y.dtype) for g in formed]

    return jax.vmap(one)(x)


def inner(
    first: tuple[list[Any], list[Array]], second: tuple[list[Any], list[Array]] | None = None
) -> Array:
    """Inner products of all gradients in one set with all in another: `(N, O, M, O)`.

    Args:
        first: What `gradients` returns for N examples.
        second: The same for M others; the first again by default, at less cost.
    """
    if second is None:
        half = jax.tree.leaves(first)[0].shape[0] // 2
        # Products of dense layers' factors cost too little to be cut.
        if half < _HALF or all(rows.shape[3] == 1 for rows, _ in first[0]):
            return inner(first, first)
        low, high = (
            jax.tree.map(lambda a, part=part: a[part], first)
            for part in (slice(half), slice(half, None))
        )
        across = inner(high, low)
        above = jnp.concatenate([inner(low, low), jnp.transpose(across, (2, 3, 0, 1))], 2)
        return jnp.concatenate([above, jnp.concatenate([across, inner(high, high)], 2)])
    terms = [_factored_inner(a, b) for a, b in zip(first[0], second[0], strict=True)]
    terms += [_products(a, b) for a, b in zip(first[1], second[1], strict=True)]
    return sum(terms[1:], terms[0])


# ----------------------------------------------------------------------------- evaluation


def _replay(
    jaxpr: core.Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    uses: dict[Path, Use],
    taps: dict[Path, Array],
    path: Path = (),
) -> tuple[list[Any], dict[Path, Array]]:
    """Evaluate a program with a tap added at each use, and record the signals there."""
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    signals: dict[Path, Array] = {}
    for number, eqn in enumerate(jaxpr.eqns):
        here = (*path, number)
        ins = [a.val if isinstance(a, core.Literal) else env[a] for a in eqn.invars]
        inside = {place: use for place, use in uses.items() if place[: len(here)] == here}
        if not inside or here in inside:
            given = {
                a: v
                for a, v in zip(eqn.invars, ins, strict=True)
                if not isinstance(a, core.Literal)
            }
            single = core.Jaxpr((), list(given), eqn.outvars, [eqn], eqn.effects, jaxpr.debug_info)
            outs = core.jaxpr_as_fun(core.ClosedJaxpr(single, ()))(*given.values())
            if here in inside:
                signals[here] = _grouped(_signal(eqn, ins[1 - uses[here].side]), uses[here].h)
                outs = [outs[0] + taps[here]]
        else:
            own = {place: taps[place] for place in inside}
            outs, found = _replay_within(eqn, ins, inside, own, here)
            signals |= found
        env.update(zip(eqn.outvars, outs, strict=True))
    return [a.val if isinstance(a, core.Literal) else env[a] for a in jaxpr.outvars], signals


def _replay_within(eqn, ins, uses, taps, path):
    """Evaluate a call or a scan with uses inside."""
    if eqn.primitive is not primitives.scan_p:
        called = program.called(eqn)
        assert called is not None, eqn.primitive.name
        run = lambda ins, taps: _replay(called.jaxpr, called.consts, ins, uses, taps, path)
        if eqn.primitive is primitives.remat_p:
            policy, cse = eqn.params["policy"], eqn.params["prevent_cse"]
            run = jax.checkpoint(run, policy=policy, prevent_cse=cse)
        return run(ins, taps)
    body, params = eqn.params["jaxpr"], eqn.params
    first = params["num_consts"]
    last = first + params["num_carry"]

    def step(carry, slices):
        xs, taps = slices
        args = [*ins[:first], *carry, *xs]
        outs, signals = _replay(body.jaxpr, body.consts, args, uses, taps, path)
        return outs[: last - first], (outs[last - first :], signals)

    carry, (ys, signals) = lax.scan(
        step,
        list(ins[first:last]),
        (list(ins[last:]), taps),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys], signals


def _signal(eqn: Any, h: Array) -> Array:
    """What a parameter is contracted with: the other operand, or its patches in a convolution."""
    if eqn.primitive.name == "dot_general":
        return h
    params = eqn.params
    numbers = params["dimension_numbers"]
    window = [eqn.invars[1].aval.shape[k] for k in numbers.rhs_spec[2:]]
    out = [eqn.outvars[0].aval.shape[k] for k in numbers.out_spec[2:]]
    h = jnp.transpose(h, numbers.lhs_spec)
    config = [
        (a, b, step - 1)
        for (a, b), step in zip(params["padding"], params["lhs_dilation"], strict=True)
    ]
    h = lax.pad(h, jnp.zeros((), h.dtype), [(0, 0, 0), (0, 0, 0), *config])

    def patch(*offset: int) -> Array:
        start = [a * step for a, step in zip(offset, params["rhs_dilation"], strict=True)]
        strides = params["window_strides"]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, out, strides, strict=True)]
        return lax.slice(h, (0, 0, *start), (*h.shape[:2], *stop), (1, 1, *strides))

    patches = jnp.stack([patch(*offset) for offset in itertools.product(*map(range, window))])
    return jnp.moveaxis(patches, 2, 0).reshape(h.shape[1], *window, h.shape[0], *out)


def _grouped(array: Array, groups: Groups) -> Array:
    """The last axes of an array in three: kept, summed, own."""
    order = [k for group in groups for k in group]
    lead = array.ndim - len(order)
    sizes = [math.prod(array.shape[lead + k] for k in group) for group in groups]
    array = jnp.transpose(array, [*range(lead), *(lead + k for k in order)])
    return array.reshape(*array.shape[:lead], *sizes)


def _pair(use: Use, h: Array, delta: Array, dtype: Any) -> tuple[Array, Array]:
    """The two factors of one use, `(1 or O, kept, summed, own)`, scans joined to what they are."""
    loops = use.view.loops
    kept = [k for k, d in enumerate(loops) if d is not None]
    summed = [k for k, d in enumerate(loops) if d is None]
    at = len(loops)
    groups: Groups = ((*kept, at), (*summed, at + 1), (at + 2,))
    h = _grouped(use.view.scale * h.astype(dtype), groups)[None]
    delta = _grouped(_grouped(delta, use.delta).astype(dtype), groups)
    return h, delta


def _joined(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    """A sum of products as one product, by laying the summed axes end to end."""
    if len(pairs) == 1:
        return pairs[0]
    rows, columns = zip(*pairs, strict=True)
    join = lambda parts: jnp.concatenate(
        [jnp.broadcast_to(p, (max(q.shape[0] for q in parts), *p.shape[1:])) for p in parts], axis=2
    )
    return join(rows), join(columns)


# ------------------------------------------------------------------------------ contraction

_STORE = 64  # what it costs to store a number and read it again, in multiplications
_HALF = 16  # so many examples in each half are worth the use of symmetry
_SMALL = 2  # how much more a multiplication costs in small products than in large ones


def _inner(text: str, *operands: Array) -> Array:
    return jnp.einsum(text, *operands, precision="highest")


def _factored_inner(first: tuple[Array, Array], second: tuple[Array, Array]) -> Array:
    """Inner products of gradients in factors, summed over what both factors keep."""
    kept = first[0].shape[2]
    if kept == 1:
        return _slice_inner(*(a[:, :, 0] for a in (*first, *second)))

    def add(total: Array, parts: tuple[Array, ...]) -> tuple[Array, None]:
        return total + _slice_inner(*parts), None

    parts = [jnp.moveaxis(a, 2, 0) for a in (*first, *second)]
    # From the shapes alone: a scan of length zero has no first slice.
    slices = (jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in parts)
    shape = jax.eval_shape(_slice_inner, *slices)
    return lax.scan(add, jnp.zeros(shape.shape, shape.dtype), tuple(parts))[0]


def _slice_inner(rows1: Array, columns1: Array, rows2: Array, columns2: Array) -> Array:
    """The same without kept axes, in whichever of three ways costs least."""
    (n, r1, t, a), (m, r2, s, _) = rows1.shape, rows2.shape
    (_, c1, _, b), c2 = columns1.shape, columns2.shape[1]
    o, p = max(r1, c1), max(r2, c2)
    costs = {
        _by_grams: n * m * t * s * (r1 * r2 * (a + _STORE) + c1 * c2 * (b + _STORE)),
        _by_gradients: (n * o * t + m * p * s + n * m * o * p) * a * b,
    }
    if r1 == r2 == 1 and t * s > 1:
        costs[_by_sweep] = n * m * (t * s * (a + c1 * b) + c1 * c2 * s * b) * _SMALL
    return min(costs, key=lambda way: costs[way])(rows1, columns1, rows2, columns2)


def _by_grams(rows1: Array, columns1: Array, rows2: Array, columns2: Array) -> Array:
    """By the products of both factors: best where there is nothing to sum over."""
    if rows1.shape[2] == rows2.shape[2] == 1:
        # Said as for a formed gradient, so that a bias's product is seen to be that of columns.
        left, right = (
            _products(a[:, :, 0], b[:, :, 0]) for a, b in ((rows1, rows2), (columns1, columns2))
        )
        return left * right
    left = _inner("nota,mpsa->notmps", rows1, rows2)
    right = _inner("notb,mpsb->notmps", columns1, columns2)
    return jnp.sum(left * right, axis=(2, 5))


def _by_sweep(rows1: Array, columns1: Array, rows2: Array, columns2: Array) -> Array:
    """By the products of the rows, applied to the columns, one example of the second set a step."""

    def one(example: tuple[Array, Array]) -> Array:
        gram = _inner("nta,sa->nts", rows1[:, 0], example[0][0])
        moved = _inner("notb,nts->nobs", columns1, gram)
        return _inner("nobs,psb->nop", moved, example[1])

    return jnp.moveaxis(lax.map(one, (rows2, columns2)), 0, 2)


def _by_gradients(rows1: Array, columns1: Array, rows2: Array, columns2: Array) -> Array:
    """By the gradients themselves: best where there is much to sum over."""
    return _products(_formed(rows1, columns1), _formed(rows2, columns2))


def _products(first: Array, second: Array) -> Array:
    """Inner products of formed gradients, `(N, O, size)`, as one product of two matrices."""
    rows, columns = (a.reshape(-1, a.shape[-1]) for a in (first, second))
    return _inner("ik,jk->ij", rows, columns).reshape(*first.shape[:2], *second.shape[:2])


def _formed(rows: Array, columns: Array) -> Array:
    """Gradients from their factors, `(N, O, size)`."""
    if rows.shape[1] == 1:
        gradient = _inner("nta,notb->noab", rows[:, 0], columns)
    elif columns.shape[1] == 1:
        gradient = _inner("nota,ntb->noab", rows, columns[:, 0])
    else:
        gradient = _inner("nota,notb->noab", rows, columns)
    return gradient.reshape(*gradient.shape[:2], -1)
