r"""Everything that a health report reads off one network, by one compiled program.

One forward pass gives the signal of every layer, one reverse pass the gradient of every layer and
every parameter. A second reverse pass runs through the model severed at its cuts, with one random
vector `u` at each of them: from one cut to the next,

.. math:: \log \frac{\|J_l^\top u\|^2}{\|u\|^2} \approx \log \chi_l

is the growth of squared gradients over the layers between, however deep the network and however
small the gradient that arrives. Its noise is that of a Hutchinson estimate over all examples.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.experiment import anatomy, recognition
from dltheory.experiment.anatomy import Model
from dltheory.measure import passes
from dltheory.networks import sites

FLAT = 0.05  # of the steepest slope: what `measure.activations.saturation` takes for flat
_PAIRS = 16  # examples whose correlations are taken


class Readings(NamedTuple):
    """What is measured, in run order: NumPy arrays of shape `(layers,)`, NaN where undefined.

    Attributes:
        log_q: Log of the mean squared value.
        c: Correlation of two examples.
        finite: Whether all values are finite.
        log_gradient: Log of the norm of the loss gradient with respect to the layer's value.
        lost: Share of that gradient's entries that are exactly zero.
        largest: Largest entry of that gradient.
        growth: Log growth of squared gradients from the cut before, in backward direction.
        saturated: Share of the layer's units, over examples, where the next activation is flat.
        dead: Share of units where it is flat for every example.
        weight_var: Mean squared weight times fan-in.
        bias_var: Mean squared bias.
        kernel_gradient: Log of the norm of the gradient of the layer's kernel.
        coupled: Whether an example moves another one's output.
        log_output: Log of the mean squared output.
    """

    log_q: np.ndarray
    c: np.ndarray
    finite: np.ndarray
    log_gradient: np.ndarray
    lost: np.ndarray
    largest: np.ndarray
    growth: np.ndarray
    saturated: np.ndarray
    dead: np.ndarray
    weight_var: np.ndarray
    bias_var: np.ndarray
    kernel_gradient: np.ndarray
    coupled: bool
    log_output: float


def read(model: Model, params: Any, *, x: Array | None = None, scale: float = 1.0) -> Readings:
    """Measure a model at some parameters.

    Args:
        model: Result of `anatomy.model`.
        params: The parameters.
        x: Inputs in place of the model's own, of the same shape.
        scale: Factor of the loss.

    Returns:
        The `Readings`.
    """
    x = model.x if x is None else x
    out, shapes = _shapes(model.f, params, x)
    random = np.random.default_rng(0)
    draw = lambda one: jnp.asarray(random.standard_normal(one.shape), one.dtype)
    probes = {text: draw(shape) for text, shape in shapes.items()}
    cotangent = (_cotangent(model, params, x, out) * scale).astype(out.dtype)
    tables = _slopes(model)
    found = jax.device_get(_read(model.f, params, x, cotangent, probes, tables))
    one = cotangent * (jnp.arange(out.shape[0]) == 0).astype(out.dtype).reshape(
        -1, *[1] * (cotangent.ndim - 1)
    )
    others = jax.device_get(_read(model.f, params, x, one, probes, tables))["moved"]
    return _readings(model, params, found, bool(others > 0))


def loss_scale(model: Model, params: Any, readings: Readings) -> float:
    """The power of two that lifts gradients into the range of half precision.

    Args:
        model: Result of `anatomy.model`.
        params: The parameters.
        readings: Result of `read`.

    Returns:
        What brings the largest gradient to 2 ** 10, but no more than the output's own bears; one
        where no layer is in half precision.
    """
    if not model.half.any():
        return 1.0
    out, _ = _shapes(model.f, params, model.x)
    given = float(jnp.abs(_cotangent(model, params, model.x, out)).max())
    largest = max(float(np.nanmax(readings.largest)), 2.0**-24)
    room = min(10 - math.log2(largest), 14 - math.log2(max(given, 2.0**-100)))
    return 2.0 ** max(0, math.floor(room))


def has_skip(model: Model, params: Any) -> np.ndarray:
    """Whether a layer is reached past its kernel: gradients pass it with all weights at zero.

    Args:
        model: Result of `anatomy.model`.
        params: The parameters.

    Returns:
        Booleans, shape `(layers,)`, for cuts with a kernel between the cut before and them.
    """
    leaves, structure = jax.tree.flatten(params)
    for kernel in model.weights.kernels:
        leaves[kernel.leaf] = jnp.zeros_like(leaves[kernel.leaf])
    growth = read(model, jax.tree.unflatten(structure, leaves)).growth
    return np.isfinite(growth) & np.array([bool(rows) for rows in anatomy.opened(model)])


def _cotangent(model: Model, params: Any, x: Array, out) -> Array:
    """Gradient of the loss with respect to the output, in single precision at least."""
    if model.loss is not None:
        return jax.grad(model.loss)(_single(model.f(params, x)))
    random = np.random.default_rng(1).standard_normal(out.shape) / math.sqrt(out.shape[0])
    return _single(jnp.asarray(random, out.dtype))


def _slopes(model: Model) -> dict[str, Array]:
    """By text of a layer, the relative slopes of the activation after it, one row an index."""
    slopes: dict[str, np.ndarray] = {}
    cells = len(recognition.GRID) - 1
    for row, table in enumerate(model.tables):
        if table is None:
            continue
        text, index = model.texts[row - 1], model.sites[row - 1].index or ()
        lengths = model.lengths[row - 1]
        have = slopes.setdefault(text, np.ones((*lengths, cells), np.float32))
        have[index] = recognition.slopes(table)
    return {text: jnp.asarray(rows) for text, rows in slopes.items()}


def _shapes(f: Callable, params: Any, x: Array):
    """Shapes of the output and of all cuts, with the axes of their scans."""
    program = sites.trace(f, params, x)
    cuts = {
        layer.text: jax.ShapeDtypeStruct((*layer.lengths, *layer.shape), layer.dtype)
        for layer in program.layers
        if layer.is_cut
    }
    return jax.ShapeDtypeStruct(program.shape, program.dtype), cuts


@functools.partial(jax.jit, static_argnums=0)
def _read(f, params, x, cotangent, probes, tables) -> dict[str, Any]:
    measured = passes.prepare(f, params, x)
    run = measured.program.run
    leaves, structure = jax.tree.flatten(params)
    floats = [k for k, a in enumerate(leaves) if jnp.issubdtype(a.dtype, jnp.floating)]

    def forward(floating, x, taps):
        merged = list(leaves)
        for k, leaf in zip(floats, floating, strict=True):
            merged[k] = leaf
        return run(jax.tree.unflatten(structure, merged), x, taps)

    taps = {
        layer.text: jnp.zeros((*layer.lengths, *layer.shape), layer.dtype)
        for layer in measured.program.layers
    }
    y, pull, values = jax.vjp(forward, [leaves[k] for k in floats], x, taps, has_aux=True)
    gradients, moved, deltas = pull(cotangent)

    cuts = {text: jnp.zeros_like(values[text]) for text in probes}
    recorded = {text: values[text] for text in probes}

    def pieces(taps):
        after = run(params, x, taps, recorded)[1]
        return {text: after[text] for text in probes}

    pulled = jax.vjp(pieces, cuts)[1](probes)[0]
    ranks = {text: len(shape) for text, shape in measured.shapes.items()}
    square = lambda text, a: _log_mean_square(a, ranks[text])
    flags = {}
    for text, table in tables.items():
        rows = measured.per_example(text, values[text])
        flat = recognition.steepness(table, rows) < FLAT
        flags[text] = (
            flat.mean((0, -1), dtype=jnp.float32),
            flat.all(0).mean(-1, dtype=jnp.float32),
        )
    over = lambda text, a: tuple(range(a.ndim - ranks[text], a.ndim))
    each = lambda of, arrays: {text: of(text, a) for text, a in arrays.items()}
    return {
        "q": each(square, values),
        "c": each(lambda t, a: _correlation(measured.per_example(t, a)[:_PAIRS]), values),
        "finite": each(lambda t, a: jnp.isfinite(a).all(over(t, a)), values),
        "delta": each(square, deltas),
        "lost": each(lambda t, a: jnp.mean(a == 0, over(t, a), dtype=jnp.float32), deltas),
        "largest": each(lambda t, a: jnp.abs(a).max(over(t, a)), deltas),
        "pulled": each(square, pulled),
        "probe": each(square, probes),
        "flags": flags,
        "leaves": dict(zip(floats, gradients, strict=True)),
        "moved": jnp.abs(moved[1:]).max(initial=0),
        "y": _log_mean_square(y, y.ndim),
    }


def _log_mean_square(a: Array, rank: int) -> Array:
    """Over the last axes, at any magnitude."""
    a = _single(a)
    axes = tuple(range(a.ndim - rank, a.ndim))
    top = jnp.abs(a).max(axes, keepdims=True)
    mean = jnp.mean(jnp.square(a / jnp.where(top > 0, top, 1)), axes)
    return 2 * jnp.log(top.reshape(mean.shape)) + jnp.log(jnp.where(mean == 0, 1, mean))


def _single(a: Array) -> Array:
    """At least in single precision."""
    return a.astype(jnp.float32) if jnp.finfo(a.dtype).bits < 32 else a


def _correlation(rows: Array) -> Array:
    """Mean over pairs of examples; rows `(N, *lengths, features)`."""
    count = rows.shape[0]
    rows = _single(rows)
    top = jnp.abs(rows).max(-1, keepdims=True)
    rows = rows / jnp.where(top > 0, top, 1)
    unit = rows / jnp.sqrt(jnp.sum(jnp.square(rows), -1, keepdims=True))
    total = jnp.sum(jnp.square(unit.sum(0)), -1) - count
    return total / (count * (count - 1)) if count > 1 else total * jnp.nan


def _readings(model: Model, params: Any, found: dict, coupled: bool) -> Readings:
    def rows(part):
        have = found[part]
        pick = lambda text, site: float(have[text][site.index or ()])
        pairs = zip(model.texts, model.sites, strict=True)
        return np.array([pick(text, site) if text in have else np.nan for text, site in pairs])

    sizes = np.array([math.log(math.prod(site.shape)) for site in model.sites])
    growth = np.full(len(sizes), np.nan)
    probe, pulled = rows("probe") + sizes, rows("pulled") + sizes
    for before, after in itertools.pairwise(np.flatnonzero(model.cuts)):
        growth[after] = pulled[before] - probe[after]
    flags = found["flags"]
    share = lambda which: np.array(
        [
            float(flags[text][which][site.index or ()]) if text in flags else np.nan
            for text, site in zip(model.texts, model.sites, strict=True)
        ]
    )
    variances = [_of_parameters(model, params, found["leaves"], row) for row in range(len(sizes))]
    weight_var, bias_var, gradient = np.array(variances).T
    return Readings(
        rows("q"),
        rows("c"),
        rows("finite") > 0,
        (rows("delta") + sizes) / 2,
        rows("lost"),
        rows("largest"),
        growth,
        share(0),
        share(1),
        weight_var,
        bias_var,
        gradient,
        coupled,
        float(found["y"]),
    )


def _of_parameters(model: Model, params: Any, gradients: dict, row: int):
    """Weight and bias variance of a layer, and the log norm of its kernel's gradient."""
    kernel, site = model.kernels[row], model.sites[row]
    if kernel is None:
        return np.nan, np.nan, np.nan
    leaves = jax.tree.leaves(params)
    own = lambda leaf, axes: np.moveaxis(np.asarray(leaf, float), axes, range(len(axes)))[
        (site.index or ()) if axes else ()
    ]
    weight = own(leaves[kernel.leaf], kernel.scanned)
    fan_in = math.prod(leaves[kernel.leaf].shape[a] for a in (*kernel.spatial, *kernel.inputs))
    bias_var, lengths = 0.0, len(site.index or ())
    for leaf, text in model.weights.biases.items():
        if text == model.texts[row]:
            scanned = tuple(range(lengths)) if np.ndim(leaves[leaf]) > lengths > 0 else ()
            bias_var += float(np.mean(own(leaves[leaf], scanned) ** 2))
    gradient = own(gradients[kernel.leaf], kernel.scanned)
    top = np.abs(gradient).max(initial=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        norm = np.log(top) + np.log(np.sum((gradient / (top or 1)) ** 2)) / 2 if top else -np.inf
    return fan_in * float(np.mean(weight**2)), bias_var, float(norm)
