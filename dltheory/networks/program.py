"""The traced program of a model: what depends on what, what every derivative crosses, and a replay.

A model `f(params, x)` is traced once to a jaxpr and laid out as a tape: one entry per primitive,
with calls opened in place and each `scan` kept whole, its body a tape of its own. Everything
that `sites` needs is then a sweep over a tape. `replay` evaluates the program again, with a hook
at chosen entries, and keeps its scans, remats and compiled calls as they were.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.core import primitives

Path = tuple[int, ...]
"""Where an equation stands: its number in the program, then in the call it opens, and so on."""

X = "x"  # token: the value depends on the input
SMOOTH = "smooth"  # token: ... and a derivative can travel along that dependence
Tokens = frozenset[int | str]  # the tokens above, and the numbers of parameter leaves

_INLINED = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr"}


@dataclass(frozen=True)
class Entry:
    """One primitive of a tape; `ins` and `outs` number its values, `None` is a literal."""

    path: Path
    eqn: core.JaxprEqn
    ins: tuple[int | None, ...]
    outs: tuple[int, ...]
    body: "Tape | None" = None

    @property
    def name(self) -> str:
        """The primitive's name."""
        return self.eqn.primitive.name

    @property
    def length(self) -> int:
        """How often the body of a scan runs."""
        return self.eqn.params["length"]

    @property
    def num_consts(self) -> int:
        """How many leading inputs of a scan are the same in every iteration."""
        return self.eqn.params["num_consts"]

    @property
    def num_carry(self) -> int:
        """How many values a scan carries."""
        return self.eqn.params["num_carry"]


@dataclass
class Tape:
    """A program as a list of entries over numbered values, which the sweeps colour."""

    invars: list[int] = field(default_factory=list)
    outvars: list[int] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    avals: list[Any] = field(default_factory=list)
    tokens: list[Tokens] = field(default_factory=list)
    wanted: list[Tokens] = field(default_factory=list)

    def new(self, aval) -> int:
        """Number a new value."""
        self.avals.append(aval)
        return len(self.avals) - 1

    def smooth(self, value: int | None) -> bool:
        """Whether a derivative with respect to `x` passes through a value on to the output."""
        return value is not None and SMOOTH in self.tokens[value] and SMOOTH in self.wanted[value]

    def reads_x(self, value: int | None) -> bool:
        """Whether a value depends on the input `x`."""
        return value is not None and X in self.tokens[value]

    def leaves(self, value: int | None) -> frozenset[int]:
        """The parameter leaves of a value that depends on parameters only, else none."""
        if value is None or X in self.tokens[value]:
            return frozenset()
        return frozenset(t for t in self.tokens[value] if isinstance(t, int))


def flatten(jaxpr: core.Jaxpr, path: Path = ()) -> Tape:
    """Lay a jaxpr out as a tape, its calls and remats opened in place."""
    tape = Tape()
    for var in (*jaxpr.constvars, *jaxpr.invars):
        tape.invars.append(tape.new(var.aval))
    tape.outvars = _lay(tape, jaxpr, tape.invars, path)
    return tape


def called(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """The program of a call that may be opened in place, or `None`."""
    if eqn.primitive is primitives.remat_p:
        return core.ClosedJaxpr(eqn.params["jaxpr"], ())
    return eqn.params.get(_INLINED.get(eqn.primitive.name, ""))


def _lay(tape: Tape, jaxpr: core.Jaxpr, inputs: Sequence[int], path: Path) -> list[int]:
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), inputs, strict=True))
    for number, eqn in enumerate(jaxpr.eqns):
        here = (*path, number)
        ins = tuple(None if isinstance(a, core.Literal) else env[a] for a in eqn.invars)
        inner = called(eqn)
        if inner is not None:
            given = [
                tape.new(a.aval) if value is None else value
                for a, value in zip(eqn.invars, ins, strict=True)
            ]
            consts = [tape.new(var.aval) for var in inner.jaxpr.constvars]
            outs = tuple(_lay(tape, inner.jaxpr, [*consts, *given], here))
        else:
            body = None
            if eqn.primitive is primitives.scan_p:
                body = flatten(eqn.params["jaxpr"].jaxpr, here)
            outs = tuple(tape.new(var.aval) for var in eqn.outvars)
            tape.entries.append(Entry(here, eqn, ins, outs, body))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [tape.new(a.aval) if isinstance(a, core.Literal) else env[a] for a in jaxpr.outvars]


def _inexact(aval) -> bool:
    return hasattr(aval, "dtype") and jnp.issubdtype(aval.dtype, jnp.inexact)


def _through(tape: Tape, entry: Entry, tokens: Tokens, value: int) -> Tokens:
    """The tokens that pass an entry into, or out of, one of its values."""
    if entry.eqn.primitive is primitives.stop_gradient_p or not _inexact(tape.avals[value]):
        return tokens - {SMOOTH}
    return tokens


def spread(tape: Tape, given: Sequence[Tokens]) -> None:
    """Forward sweep: what each value depends on. A scan's carry is swept to its fixpoint."""
    tape.tokens = [frozenset()] * len(tape.avals)
    for value, tokens in zip(tape.invars, given, strict=True):
        tape.tokens[value] = frozenset(tokens)
    for entry in tape.entries:
        ins = [frozenset() if v is None else tape.tokens[v] for v in entry.ins]
        if entry.body is None:
            outs = [frozenset().union(*ins)] * len(entry.outs)
        else:
            first, last = entry.num_consts, entry.num_consts + entry.num_carry
            while True:
                spread(entry.body, [*([frozenset()] * (len(entry.body.invars) - len(ins))), *ins])
                outs = [entry.body.tokens[v] for v in entry.body.outvars]
                carry = [a | b for a, b in zip(ins[first:last], outs, strict=False)]
                if carry == ins[first:last]:
                    break
                ins[first:last] = carry
        for value, tokens in zip(entry.outs, outs, strict=True):
            tape.tokens[value] = _through(tape, entry, tokens, value)


def want(tape: Tape, asked: Sequence[Tokens]) -> None:
    """Backward sweep: which values reach the output (token `X`), and smoothly so (`SMOOTH`)."""
    tape.wanted = [frozenset()] * len(tape.avals)
    for value, tokens in zip(tape.outvars, asked, strict=True):
        tape.wanted[value] |= tokens
    for entry in reversed(tape.entries):
        outs = [_through(tape, entry, tape.wanted[v], v) for v in entry.outs]
        if entry.body is None:
            ins = [frozenset().union(*outs)] * len(entry.ins)
        else:
            first, last = entry.num_consts, entry.num_consts + entry.num_carry
            while True:
                want(entry.body, outs)
                ins = [entry.body.wanted[v] for v in entry.body.invars][-len(entry.ins) :]
                carry = [a | b for a, b in zip(outs, ins[first:last], strict=False)]
                if carry == outs[: entry.num_carry]:
                    break
                outs[: entry.num_carry] = carry
        for value, tokens in zip(entry.ins, ins, strict=True):
            if value is not None:
                tape.wanted[value] |= _through(tape, entry, tokens, value)


def cuts(tape: Tape, source: int, sink: int) -> set[tuple[Path, int]]:
    """The outputs of equations that every derivative path from `source` to `sink` crosses.

    In topological order a value is such a cut exactly when no edge of the derivative jumps over
    it, which one sweep decides. The body of a scan is searched too where one carry is the only
    way through it.
    """
    last = {sink: len(tape.entries)}
    for at, entry in enumerate(tape.entries):
        if any(tape.smooth(v) for v in entry.outs):
            for value in entry.ins:
                if value is not None and tape.smooth(value):
                    last[value] = max(at, last.get(value, at))
    found: set[tuple[Path, int]] = set()
    horizon = last.get(source, -1)
    for at, entry in enumerate(tape.entries):
        outs = [k for k, v in enumerate(entry.outs) if tape.smooth(v)]
        if horizon <= at and len(outs) == 1:
            found.add((entry.path, outs[0]))
            through = [k for k, v in enumerate(entry.ins) if tape.smooth(v)]
            if entry.body is not None and through == [entry.num_consts + outs[0]]:
                body = entry.body
                carried = body.invars[len(body.invars) - len(entry.ins) + through[0]]
                found |= cuts(body, carried, body.outvars[outs[0]])
        horizon = max([horizon, *(last.get(entry.outs[k], at) for k in outs)])
    return found


def largest(tape: Tape) -> int:
    """Number of elements of the largest value that depends on `x`, one iteration of a scan long."""
    sizes = [math.prod(tape.avals[v].shape) for v in tape.invars if tape.reads_x(v)]
    for entry in tape.entries:
        if entry.body is not None:
            sizes.append(largest(entry.body))
        else:
            sizes += [math.prod(tape.avals[v].shape) for v in entry.outs if tape.reads_x(v)]
    return max(sizes, default=0)


def replay(
    jaxpr: core.Jaxpr,
    consts: Sequence[Any],
    args: Sequence[Any],
    marked: frozenset[Path],
    extra: Mapping[Path, Any],
    hook: Callable[[Path, list[Any], Any], tuple[list[Any], Any]],
    path: Path = (),
) -> tuple[list[Any], dict[Path, Any]]:
    """Evaluate a jaxpr, handing the outputs of the marked equations to a hook.

    Args:
        jaxpr: The program.
        consts: Its constants.
        args: Its arguments.
        marked: The places of the equations to hand over.
        extra: What the hook is given at each place, a pytree; inside a scan with a leading axis
            for the iterations.
        hook: `hook(place, outputs, extra) -> (outputs to go on with, record)`.
        path: Where the program stands in the whole one.

    Returns:
        The outputs, and the record of each place; inside a scan with a leading axis.
    """
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
    opened = {place[: len(path) + 1] for place in marked if len(place) > len(path) + 1}
    records: dict[Path, Any] = {}
    for number, eqn in enumerate(jaxpr.eqns):
        here = (*path, number)
        ins = [a.val if isinstance(a, core.Literal) else env[a] for a in eqn.invars]
        if here in opened:
            inside = frozenset(p for p in marked if p[: len(here)] == here and p != here)
            given = {place: extra[place] for place in inside}
            outs, inner = _reopen(eqn, ins, inside, given, hook, here)
            records |= inner
        else:
            outs = _evaluate(eqn, ins, jaxpr)
        if here in marked:
            outs, records[here] = hook(here, outs, extra[here])
        env.update(zip(eqn.outvars, outs, strict=True))
    outs = [a.val if isinstance(a, core.Literal) else env[a] for a in jaxpr.outvars]
    return outs, records


def _evaluate(eqn: core.JaxprEqn, ins: Sequence[Any], whole: core.Jaxpr) -> list[Any]:
    """Evaluate one equation by a program that holds nothing else."""
    pairs = zip(eqn.invars, ins, strict=True)
    given = {a: value for a, value in pairs if not isinstance(a, core.Literal)}
    single = core.Jaxpr((), list(given), eqn.outvars, [eqn], eqn.effects, whole.debug_info)
    return core.jaxpr_as_fun(core.ClosedJaxpr(single, ()))(*given.values())


def _reopen(eqn, ins, marked, extra, hook, path):
    """Evaluate a call or a scan with marked equations inside, as the same kind of call."""
    if eqn.primitive is primitives.scan_p:
        return _rescan(eqn, ins, marked, extra, hook, path)
    inner = called(eqn)
    assert inner is not None, eqn.primitive.name

    def run(ins, extra):
        return replay(inner.jaxpr, inner.consts, ins, marked, extra, hook, path)

    if eqn.primitive is primitives.remat_p:
        run = jax.checkpoint(
            run, policy=eqn.params["policy"], prevent_cse=eqn.params["prevent_cse"]
        )
    elif eqn.primitive.name in ("jit", "pjit"):
        run = jax.jit(run, inline=eqn.params.get("inline", False))
    return run(ins, extra)


def _rescan(eqn, ins, marked, extra, hook, path):
    inner, params = eqn.params["jaxpr"], eqn.params
    first = params["num_consts"]
    last = first + params["num_carry"]
    fixed = ins[:first]

    def step(carry, slices):
        xs, here = slices
        args = [*fixed, *carry, *xs]
        outs, records = replay(inner.jaxpr, inner.consts, args, marked, here, hook, path)
        return outs[: last - first], (outs[last - first :], records)

    carry, (ys, records) = lax.scan(
        step,
        list(ins[first:last]),
        (list(ins[last:]), extra),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys], records
