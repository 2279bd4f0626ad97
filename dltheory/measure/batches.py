"""All spectra of a model, for as many examples at once as memory allows.

The Jacobians of one example take features times (features of the input + of the output + of the
widest cut) numbers, summed over the layers; examples are worked in chunks that fit in a budget of
bytes, and the columns of a pass too where its values in between are the larger part.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from dltheory.measure import passes, spectra, stacks
from dltheory.measure.passes import Measured
from dltheory.measure.spectra import Kinds, Place
from dltheory.measure.stacks import Stacks

# Calibrated on XLA's own count for the models of the tests: a Jacobian exists as the result of its
# pass and in its final order, and up to this many values of a column are alive at a time.
_COPIES = 2
_ALIVE = 8


class Plan(NamedTuple):
    """How much is worked at once.

    Attributes:
        examples: Examples.
        columns: Columns of a basis.
    """

    examples: int
    columns: int


def plan(measured: Measured, batch_size: int | tuple[int, int] | None, max_bytes: int) -> Plan:
    """Choose how many examples, and columns of a basis, are worked at once.

    Args:
        measured: The model.
        batch_size: The choice of the user: examples, or `(examples, columns)`, or `None`.
        max_bytes: Budget of bytes for the Jacobians and what their passes hold.

    Returns:
        The plan.

    Raises:
        ValueError: If `batch_size` or `max_bytes` is not positive, or one example alone does not
            fit.
    """
    given = batch_size if isinstance(batch_size, tuple) else (batch_size, None)
    if len(given) != 2 or not all(n is None or (isinstance(n, int) and n >= 1) for n in given):
        raise ValueError(
            f"batch_size is {batch_size!r}, want examples at once, or (examples, columns) at once, "
            "each at least 1."
        )
    if not max_bytes > 0:
        raise ValueError(f"max_bytes is {max_bytes!r}, want a positive number of bytes.")
    every = max(stacks.width(measured), measured.features("output"))
    matrices, column = _bytes(measured)
    columns = given[1] or every
    if given[1] is None and matrices + column * every > max_bytes:
        columns = max(1, min(every, int((max_bytes - matrices) // column)))
    examples = given[0] or int(max_bytes // (matrices + column * columns))
    if examples < 1:
        largest = max(
            measured.program.layers,
            key=lambda one: measured.features(one.text) * math.prod(one.lengths),
        )
        raise ValueError(
            f"the Jacobians of one example take {(matrices + column) / 2**20:,.0f} MiB, over "
            f"max_bytes, which is {max_bytes / 2**20:,.0f} MiB; the largest are those of "
            f"{largest.text!r} with {measured.features(largest.text):,} features. Raise max_bytes, "
            "or take the largest singular values alone: jacobians.spectrum(..., k=10)."
        )
    return Plan(min(examples, measured.batch), columns)


def _bytes(measured: Measured) -> tuple[int, int]:
    """For one example: bytes of all Jacobians, and of the values of one column in between."""
    features = measured.features
    ends, width = features("input") + features("output"), stacks.width(measured)
    size = (features("input") + width) * features("output")
    for layer in measured.program.layers:
        each = ends + (width if layer.is_cut else 0)
        size += math.prod(layer.lengths) * features(layer.text) * each
    dtypes = [layer.dtype for layer in measured.program.layers]
    itemsize = max(jnp.dtype(dtype).itemsize for dtype in dtypes)
    column = math.ceil(measured.program.largest / measured.batch)
    return _COPIES * itemsize * size, _ALIVE * itemsize * column


def layer_spectra(
    f: Callable,
    params: Any,
    x: Array,
    *,
    coupled: bool,
    log_domain: bool | None,
    batch_size: int | tuple[int, int] | None,
    max_bytes: int,
) -> tuple[list[Place], Kinds, Any]:
    """The work of `jacobians.layer_spectra`, which says what the arguments are.

    Returns:
        The layers; their spectra; and zero, or NaN under `jit` where examples are coupled.
    """
    leaves, structure = jax.tree.flatten((params, x))
    types = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    precision = jnp.result_type(float)
    tracing = any(isinstance(leaf, Tracer) for leaf in leaves)
    if tracing and log_domain:
        raise ValueError("log_domain is True, but under jit it cannot be: call it outside.")
    # What a trace makes must not outlive it, so nothing is kept then.
    prepare = _prepare.__wrapped__ if tracing else _prepare
    whole = prepare(f, structure, types, precision)
    chosen = plan(whole, batch_size, max_bytes)
    count = math.ceil(whole.batch / chosen.examples)
    # The last chunk is filled up with the last example again: one shape, one compilation.
    numbers = np.minimum(np.arange(count * chosen.examples), whole.batch - 1).reshape(count, -1)
    if not coupled:
        types = (*types[:-1], ((chosen.examples, *types[-1][0][1:]), types[-1][1]))
    measured = prepare(f, structure, types, precision)
    where = spectra.places(measured)
    if tracing:
        work = _work(measured, coupled, chosen.columns, host=False)
        kinds, _, moved = _mapped(functools.partial(work, params, x), jnp.asarray(numbers))
        kinds = jax.tree.map(lambda a: a[: whole.batch], kinds)
    else:
        host = _on_cpu(x)
        work = _compiled(measured, coupled, chosen.columns, host)
        if log_domain is None:
            log_domain = spectra.affordable(whole)
        parts, moved = [], {}
        for chunk in numbers:
            found, local, moved = work(params, x, chunk)
            if host:
                found, local = jax.device_get((found, local))
                found = spectra.of_host(Stacks(*found), where)
            parts.append(spectra.in_logs(found, local, where) if log_domain else found)
        join = np.concatenate if host else jnp.concatenate
        kinds = jax.tree.map(lambda *a: join(a)[: whole.batch], *parts)
    if coupled:
        return spectra.places(whole), kinds, 0
    if count > 1:
        probe = functools.partial(_probe, whole) if tracing else _compiled_probe(whole)
        moved = probe(params, x)
    return spectra.places(whole), kinds, passes.refuse_coupling(moved)


def _on_cpu(x) -> bool:
    return all(device.platform == "cpu" for device in jnp.asarray(x).devices())


@functools.lru_cache(maxsize=64)
def _prepare(f, structure, types, _precision) -> Measured:
    """The traced model on a batch of this shape."""
    params, x = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*one) for one in types])
    return passes.prepare(f, params, x)


def _work(measured: Measured, coupled: bool, columns: int, host: bool) -> Callable:
    """The work on one chunk: `(params, x, numbers of examples) -> (found, local, moved)`.

    What is found are the Jacobians where NumPy goes on with them, else their spectra.
    """
    where = spectra.places(measured)

    def work(params, x, chunk):
        examples = chunk if coupled else None
        x = x if coupled else x[chunk]
        found, moved = stacks.jacobians(measured, params, x, columns=columns, examples=examples)
        return found if host else spectra.of_traced(found, where), found.local, moved

    return work


@functools.lru_cache(maxsize=64)
def _compiled(measured: Measured, coupled: bool, columns: int, host: bool) -> Callable:
    return jax.jit(_work(measured, coupled, columns, host))


def _mapped(work: Callable, numbers: Array) -> Any:
    """One chunk after the other within a trace."""
    if len(numbers) == 1:
        return work(numbers[0])
    found, local, moved = jax.lax.map(work, numbers)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found), local, moved


def _probe(whole: Measured, params, x: Array) -> dict[str, Array]:
    """How far the examples of the whole batch are coupled: a chunk does not tell."""
    start = {"input": x}
    _, tangent_of = passes.push(lambda at: stacks.run(whole, params, at["input"]), start)
    return passes.coupling(whole, tangent_of, x)


@functools.lru_cache(maxsize=64)
def _compiled_probe(whole: Measured) -> Callable:
    return jax.jit(functools.partial(_probe, whole))
