r"""Jacobians between the layers of any model, per example, and their singular values.

All layers share their passes: one forward pass with the basis of the input gives every
input-to-layer Jacobian, one reverse pass with the basis of the output every layer-to-output one,
and one forward pass of the model severed at its cuts every local one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dltheory.measure import batches, passes, stacks
from dltheory.measure.passes import Measured
from dltheory.networks import sites
from dltheory.networks.sites import Site, SiteError
from dltheory.numerics import krylov
from dltheory.numerics.results import Spectrum


class Resolved(NamedTuple):
    """Which singular values of `LayerSpectra` are told apart from rounding: booleans, as there.

    Attributes:
        input_to_layer: Per layer, shape `(N, min(dims))`.
        layer_to_output: Likewise.
        local: Likewise, or `None`.
    """

    input_to_layer: tuple[Array, ...]
    layer_to_output: tuple[Array, ...]
    local: tuple[Array | None, ...]


class LayerSpectra(NamedTuple):
    """Natural logarithms of the singular values of every layer's Jacobians, per example.

    Attributes:
        sites: The layers in run order, the output last (once, where the last layer is the output).
        input_to_layer: Per layer, spectrum of the Jacobian of its value with respect to the input,
            shape `(N, min(dims))`, descending.
        layer_to_output: Likewise of the output with respect to the layer.
        local: Likewise of the layer with respect to the cut before it; `None` for a layer that is
            no cut, past which some derivative path travels.
        resolved: Which of these values are more than rounding.
    """

    sites: tuple[Site, ...]
    input_to_layer: tuple[Array, ...]
    layer_to_output: tuple[Array, ...]
    local: tuple[Array | None, ...]
    resolved: Resolved


def jacobian(
    f: Callable,
    params: Any,
    x: Array,
    source: Site | str = "input",
    target: Site | str = "output",
    *,
    mode: str | None = None,
    coupled: bool = False,
) -> Array:
    r"""Jacobian from one layer to another, per example.

    .. math:: J = \partial h_\mathrm{target} / \partial h_\mathrm{source}

    along every path, skips included: the total derivative.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.
        source: A site, its text, or `"input"`.
        target: A site, its text, or `"output"`.
        mode: `"forward"`, `"reverse"`, or `None` for the one with fewer columns.
        coupled: Whether a model that couples its examples is allowed; then each example's own
            block is returned, at N times the cost.

    Returns:
        Shape `(N, target features, source features)`, values flattened in row-major order.

    Raises:
        SiteError: If a site does not exist, the target runs before the source, or the model
            couples its examples.
        ValueError: If `mode` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import jacobians
        >>> f = lambda w, x: jnp.maximum(x @ w["W1"], 0.0) @ w["W2"]
        >>> w = {"W1": jnp.array([[1.0, -1.0]]), "W2": jnp.array([[3.0], [5.0]])}
        >>> jacobians.jacobian(f, w, jnp.array([[2.0]]), "W1", "output")
        Array([[[3., 0.]]], dtype=float32)
    """
    measured = passes.prepare(f, params, x)
    start, stop = _ends(measured, source, target)
    if mode not in (None, "forward", "reverse"):
        raise ValueError(f"mode is {mode!r}, want 'forward', 'reverse' or None.")
    if mode is None:
        wide = measured.features(start[0]) > measured.features(stop[0])
        mode = "reverse" if wide else "forward"
    fun, at = _between(measured, params, x, start, stop)
    examples = jnp.arange(measured.batch) if coupled else None
    if mode == "forward":
        _, tangent_of = passes.push(fun, at)
        count = measured.features(start[0])
        answers = measured.respond(tangent_of, at, count, examples=examples)
        result = jnp.moveaxis(answers[stop[0]], 1, -1)
    else:
        value, pull = jax.vjp(fun, at)
        count = measured.features(stop[0])
        answers = measured.respond(lambda ct: pull(ct)[0], value, count, examples=examples)
        result = answers[start[0]]
    return result + jnp.asarray(_doubt(measured, params, x, coupled), result.dtype)


def spectrum(
    key: Array,
    f: Callable,
    params: Any,
    x: Array,
    source: Site | str = "input",
    target: Site | str = "output",
    *,
    k: int,
    tolerance: float | None = None,
    coupled: bool = False,
) -> Spectrum:
    r"""The `k` largest singular values of a Jacobian that need not be formed, per example.

    By block Lanczos on products with :math:`J` and :math:`J^\top`: for layers too large for
    `jacobian`, such as the feature maps of a convolutional network.

    Args:
        key: Key of the starting block.
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`; the cost grows as N squared.
        source: A site, its text, or `"input"`.
        target: A site, its text, or `"output"`.
        k: How many values.
        tolerance: Largest residual relative to the largest value; by default `eps ** (2 / 3)`.
        coupled: Whether a model that couples its examples is allowed; then the values are those of
            each example's own block.

    Returns:
        `Spectrum` with fields of shape `(N, k)`; residuals relative to the largest value.

    Raises:
        SiteError: As `jacobian`.
        ValueError: If `k` is not between 1 and the lesser dimension.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.measure import jacobians
        >>> f = lambda w, x: x * w["scale"]
        >>> w = {"scale": jnp.array([1.0, 4.0, 2.0])}
        >>> top = jacobians.spectrum(jax.random.key(0), f, w, jnp.ones((1, 3)), k=2)
        >>> jnp.exp(top.log_values).round(4)
        Array([[4., 2.]], dtype=float32)

    Source:
        `numerics.krylov.top_singular_values`.
    """
    measured = passes.prepare(f, params, x)
    start, stop = _ends(measured, source, target)
    fun, at = _between(measured, params, x, start, stop)
    _, tangent_of = passes.push(fun, at)
    (origin, goal), inside = (start[0], stop[0]), at[start[0]]
    axis, end = measured.axis(origin), measured.axis(goal)
    one = jax.ShapeDtypeStruct(inside.shape[:axis] + inside.shape[axis + 1 :], inside.dtype)

    def of(example):
        def linear_map(v):
            tangent = jnp.broadcast_to(jnp.expand_dims(v, axis), inside.shape)
            answer = tangent_of({origin: measured.only(origin, tangent, example)})[goal]
            return measured.only(goal, answer, example).sum(end)

        return krylov.top_singular_values(
            jax.random.fold_in(key, example), linear_map, one, k, tolerance=tolerance
        )

    values, residuals = jax.lax.map(of, jnp.arange(measured.batch))
    doubt = jnp.asarray(_doubt(measured, params, x, coupled), values.dtype)
    largest = values[:, :1]
    relative = residuals / jnp.where(largest == 0, 1, largest)
    resolved = (values > 2 * residuals) | (largest == 0)
    return Spectrum(jnp.log(values) + doubt, relative + doubt, resolved)


def layer_spectra(
    f: Callable,
    params: Any,
    x: Array,
    *,
    coupled: bool = False,
    log_domain: bool | None = None,
    batch_size: int | tuple[int, int] | None = None,
    max_bytes: int = 2**31,
) -> LayerSpectra:
    r"""Log singular values of the Jacobians of every layer, in shared passes, per example.

    .. math:: \log s_i(\partial h_l / \partial x), \quad
              \log s_i(\partial y / \partial h_l), \quad
              \log s_i(\partial h_l / \partial h_{l-1})

    Ranks lost through inactive units give exactly `-inf`. A value `s` of a formed matrix is right
    to `n * eps * s_max / s`, and those below `n * eps` of the largest are rounding; where a cut has
    such values, products of the local Jacobians are taken in the log domain, in float64, which
    resolves them at any depth: for that cut, and for all that are not right to nine digits.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.
        coupled: Whether a model that couples its examples is allowed: it is then measured one
            example at a time, the others held fixed.
        log_domain: Whether unresolved values are taken in the log domain. `None` does so where it
            costs less than half a minute or so; under `jit` the formed matrices are all there is.
        batch_size: How many examples are worked at once, or `(examples, columns)`: also how many
            columns of a basis; by default as many as `max_bytes` allows. A chunk is evaluated as a
            batch of its own: dropout drawn by the shape of the batch is drawn anew for it.
        max_bytes: Budget for the Jacobians of the examples at work and what their passes hold.

    Returns:
        `LayerSpectra`. All NaN for an example with an entry that is not finite. Values follow the
        dtype of each layer; Jacobians of half precision are decomposed, and their spectra
        returned, in float32.

    Raises:
        SiteError: If the model has no layers, or couples its examples and `coupled` is false.
        ValueError: If `x` holds no example, `log_domain` is true under `jit`, `batch_size` or
            `max_bytes` is not positive, or one example alone does not fit in `max_bytes`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import jacobians
        >>> f = lambda w, x: jnp.tanh(x @ w["W1"]) @ w["W2"]
        >>> w = {"W1": 2 * jnp.eye(3), "W2": 3 * jnp.eye(3)}
        >>> spectra = jacobians.layer_spectra(f, w, jnp.zeros((1, 3)))
        >>> [str(site) for site in spectra.sites]
        ['W1', 'W2']
        >>> jnp.exp(spectra.input_to_layer[-1]).round(4)
        Array([[6., 6., 6.]], dtype=float32)
    """
    where, kinds, doubt = batches.layer_spectra(
        f,
        params,
        x,
        coupled=coupled,
        log_domain=log_domain,
        batch_size=batch_size,
        max_bytes=max_bytes,
    )
    forward, reverse, local = (_arrays(kind.log_values, doubt) for kind in kinds)
    resolved = Resolved(*(_arrays(kind.resolved, False) for kind in kinds))
    return LayerSpectra(tuple(p.site for p in where), forward, reverse, local, resolved)


def _arrays(parts: list[Any], doubt: Any) -> tuple[Any, ...]:
    doubted = lambda part: part + jnp.asarray(doubt, part.dtype)
    return tuple(None if part is None else doubted(jnp.asarray(part)) for part in parts)


Place = tuple[str, tuple[int, ...] | None]


def _find(measured: Measured, site: Site | str) -> Place:
    """The layer and the index of a site; `("input", None)` and `("output", None)` as they are."""
    if site in ("input", "output"):
        return str(site), None
    text, index = sites.parse(site)
    layer = measured.program.layer(text)
    lengths = layer.lengths
    if len(index or ()) != len(lengths) or any(
        not 0 <= i < length for i, length in zip(index or (), lengths, strict=True)
    ):
        raise SiteError(
            f"site {str(site)!r} wants an index below {list(lengths)}, as in "
            f"'{layer.text}[{','.join('0' for _ in lengths)}]'."
            if lengths
            else f"site {str(site)!r} has an index, but {layer.text!r} is in no scan."
        )
    return layer.text, index


def _order(measured: Measured, place: Place) -> int:
    """Run order: the input first, the output last."""
    text, index = place
    if text == "input":
        return -1
    order = [(layer.text, site.index) for site, layer in sites.expand(measured.program.layers)]
    return len(order) if text == "output" else order.index((text, index))


def _between(measured: Measured, params, x: Array, start: Place, stop: Place):
    """The target as a function of the source, `{source: value} -> {target: value}`, and where."""
    source, target = start[0], stop[0]
    if source == "input":
        at = {"input": x}
    else:
        layer = measured.program.layer(source)
        at = {source: jnp.zeros(layer.shape, layer.dtype)}

    def fun(at):
        if source == "input":
            values = {"input": at["input"], **stacks.run(measured, params, at["input"])}
        else:
            taps = jnp.zeros((*layer.lengths, *layer.shape), layer.dtype)
            taps = {source: taps.at[start[1] or ()].add(at[source])}
            values = stacks.run(measured, params, x, taps)
        return {target: values[target][stop[1] or ()]}

    return fun, at


def _ends(measured: Measured, source: Site | str, target: Site | str) -> tuple[Place, Place]:
    """Source and target, found and in run order."""
    start, stop = _find(measured, source), _find(measured, target)
    if _order(measured, stop) < _order(measured, start):
        raise SiteError(
            f"target {str(target)!r} runs before source {str(source)!r}: swap them, the Jacobian "
            "against the run order is zero."
        )
    return start, stop


def _doubt(measured: Measured, params, x: Array, coupled: bool) -> Array | int:
    """Zero to add to a result, or NaN under `jit` where examples are coupled; else raises."""
    if coupled:
        return 0
    _, tangent_of = passes.push(lambda at: stacks.run(measured, params, at["input"]), {"input": x})
    return passes.refuse_coupling(passes.coupling(measured, tangent_of, x))
