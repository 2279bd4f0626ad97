r"""Draw the parameters of an unmodified model anew: by a scheme, or from data.

Kernels and biases are found in the traced program (`weights`), so any `f(params, x)` will do:
Linen, NNX, written by hand, with its layers stacked in a scan. All other parameters are kept.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

from dltheory.networks import sites, weights
from dltheory.networks.initializers import Initializer, Scheme, normal, orthogonal
from dltheory.networks.sites import SiteError
from dltheory.networks.weights import Kernel
from dltheory.numerics import norms


def reinitialize(
    key: Array,
    f: Callable,
    params: Any,
    x: Array,
    scheme: Scheme | Callable[[str], Scheme | None],
) -> Any:
    """Parameters with kernels and biases drawn by a scheme.

    Each kernel is drawn as `(*spatial, inputs, outputs)`, whatever its layout in the model, and
    each one of a stack on its own; so its fan-in is the number of terms that the model sums. Where
    the model multiplies weights by a constant of its own, it still does.

    Args:
        key: The key.
        f: `f(params, x) -> y`, from one float array to one array.
        params: Any pytree of parameters; only shapes and dtypes are read, where they are drawn.
        x: A batch of inputs; only its shape and dtype are read.
        scheme: A `Scheme` for all layers, or a function from the text of a layer (as in
            `sites.tapped`) to its scheme, or to None where the layer is to be left as it is.

    Returns:
        Parameters of the same structure, shapes and dtypes.

    Raises:
        SiteError: As `sites.find`; or if the weights of a layer are no single leaf (a sum of
            several, a normalised one, one inside a custom derivative rule).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.networks import initializers, reinitialization
        >>> f = lambda p, x: jnp.tanh(p["W"] @ x) + p["b"]
        >>> params = {"W": jnp.ones((50, 200)), "b": jnp.ones(50)}
        >>> scheme = initializers.Scheme(initializers.gaussian(1.0), initializers.normal(0.0))
        >>> new = reinitialization.reinitialize(jax.random.key(0), f, params, jnp.ones(200), scheme)
        >>> print(f"{200 * new['W'].var():.1f}")
        1.0
    """
    found = weights.find(f, params, x)
    choose = (lambda _: scheme) if isinstance(scheme, Scheme) else scheme
    for layer in found.unknown:
        if choose(layer) is not None:
            raise SiteError(
                f"the weights of layer {layer!r} are no single parameter whose axes can be told, "
                "so they cannot be drawn: let scheme be a function that returns None for it"
            )
    leaves, structure = jax.tree.flatten(params)
    for kernel in found.kernels:
        chosen = choose(kernel.layer)
        if chosen is not None:
            leaf = leaves[kernel.leaf]
            own = jax.random.fold_in(key, kernel.leaf)
            leaves[kernel.leaf] = _draw(own, kernel, leaf, chosen.kernel)
    for number, layer in found.biases.items():
        chosen = choose(layer)
        if chosen is not None:
            leaf, own = leaves[number], jax.random.fold_in(key, number)
            leaves[number] = chosen.bias(own, leaf.shape, leaf.dtype)
    return jax.tree.unflatten(structure, leaves)


def lsuv(key: Array, f: Callable, params: Any, x: Array, *, variance: ArrayLike = 1.0) -> Any:
    r"""Layer-sequential unit-variance weights: orthonormal, then scaled by data.

    Biases are set to 0 and kernels drawn orthonormal; then layer by layer, in the order in which
    they run, each kernel is divided by the deviation of its layer's values over examples and units,

    .. math:: W_l \to W_l \sqrt{v / \operatorname{Var} h_l(x)},

    so that each has the variance :math:`v`, given the layers before it. Layers of a scan are
    treated one by one. A layer that runs several times is scaled by its first run. It takes one
    evaluation of the model for every layer.

    Args:
        key: The key.
        f: `f(params, x) -> y`, from one float array to one array.
        params: Any pytree of parameters.
        x: A batch of inputs that stands for the data.
        variance: The variance :math:`v > 0` wanted of every layer's values.

    Returns:
        Parameters of the same structure, shapes and dtypes; all NaN if a layer's values have no
        variance or it is not finite.

    Raises:
        SiteError: As `reinitialize`; or if one kernel is sliced into those of several layers
            outside of a scan.
        ValueError: If `variance` is not positive (under tracing the result is NaN instead).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.networks import reinitialization
        >>> f = lambda p, x: jnp.tanh(x @ p["W1"]) @ p["W2"]
        >>> x = 10 * jax.random.normal(jax.random.key(0), (100, 4))
        >>> params = {"W1": jnp.ones((4, 8)), "W2": jnp.ones((8, 3))}
        >>> params = reinitialization.lsuv(jax.random.key(1), f, params, x)
        >>> print(f"{f(params, x).var():.3f}")
        1.000

    Source:
        Mishkin and Matas (2016), All you need is a good init, Algorithm 1; with one step a layer,
        which is exact because values are linear in the kernel.
    """
    if not isinstance(variance, Tracer) and not np.asarray(variance) > 0:
        raise ValueError(f"variance is {variance}; want variance > 0")
    params = reinitialize(key, f, params, x, Scheme(orthogonal(1.0), normal(0.0)))
    traced = sites.trace(f, params, x)
    kernels = weights.find(f, params, x).kernels
    turns, total = _turns(kernels, traced.layers)
    leaves, structure = jax.tree.flatten(params)

    def step(turn, carry):
        leaves, sound = list(carry[0]), carry[1]
        _, values = traced.run(jax.tree.unflatten(structure, leaves), x)
        for kernel, (when, index) in zip(kernels, turns, strict=True):
            deviation = _deviation
            for _ in when.shape:
                deviation = jax.vmap(deviation)
            found = deviation(values[kernel.layer][index])
            factor = jnp.sqrt(jnp.asarray(variance).astype(found.dtype)) / found
            now = jnp.asarray(when) == turn
            sound &= ~jnp.any(now & ~(jnp.isfinite(factor) & (factor > 0)))
            leaf = leaves[kernel.leaf]
            factor = _along(jnp.where(now, factor, 1), kernel.scanned, leaf.ndim)
            leaves[kernel.leaf] = leaf * factor.astype(leaf.dtype)
        return leaves, sound

    leaves, sound = lax.fori_loop(0, total, step, (leaves, jnp.asarray(True)))
    floats = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]
    leaves = [
        jnp.where(sound, leaf, jnp.nan) if is_float else leaf
        for leaf, is_float in zip(leaves, floats, strict=True)
    ]
    return jax.tree.unflatten(structure, leaves)


def _draw(key, kernel: Kernel, leaf: Array, init: Initializer) -> Array:
    """A kernel in the layout of its leaf."""
    sizes = lambda axes: tuple(leaf.shape[axis] for axis in axes)
    stack = (*kernel.scanned, *kernel.stack)
    order = (*stack, *kernel.spatial, *kernel.inputs, *kernel.outputs)
    shape = (
        *sizes(kernel.spatial),
        math.prod(sizes(kernel.inputs)),
        math.prod(sizes(kernel.outputs)),
    )
    if stack:
        keys = jax.random.split(key, math.prod(sizes(stack)))
        drawn = jax.vmap(lambda one: init(one, shape, leaf.dtype))(keys)
    else:
        drawn = init(key, shape, leaf.dtype)
    return jnp.transpose(drawn.reshape(sizes(order)), np.argsort(order).tolist())


def _deviation(h: Array) -> Array:
    """The deviation of all entries, of any magnitude."""
    return norms.global_norm(h - jnp.mean(h)) / math.sqrt(h.size)


def _turns(kernels, layers):
    """Per kernel, when each one of its stack is scaled and the index of its value; how many."""
    runs: dict[str, list[tuple[int, ...]]] = {}
    when: dict[str, list[int]] = {}
    own, total = {kernel.layer for kernel in kernels}, 0
    for site, layer in sites.expand(layers):
        if layer.text in own:
            runs.setdefault(layer.text, []).append(site.index or ())
            when.setdefault(layer.text, []).append(total)
            total += 1
    lengths = {layer.text: layer.lengths for layer in layers}
    turns = []
    for kernel in kernels:
        several = sum(kernel.leaf in layer.leaves for layer in layers) > 1
        if kernel.stack and several:
            raise SiteError(
                f"the kernel of layer {kernel.layer!r} is sliced into those of several layers, "
                "which lsuv cannot scale one by one: keep them apart, or run them by a scan"
            )
        if kernel.scanned:
            order = np.empty(lengths[kernel.layer], np.int32)
            order[tuple(np.transpose(runs[kernel.layer]))] = when[kernel.layer]
            turns.append((order, ()))
        else:
            # Of several runs the first one decides.
            turns.append((np.int32(when[kernel.layer][0]), runs[kernel.layer][0]))
    return turns, total


def _along(factor, axes, ndim) -> Array:
    """A factor for each index along some axes of an array, to multiply the array with."""
    shape = [1] * ndim
    for axis, size in zip(axes, factor.shape, strict=True):
        shape[axis] = size
    return jnp.transpose(factor, np.argsort(axes).tolist()).reshape(shape) if axes else factor
