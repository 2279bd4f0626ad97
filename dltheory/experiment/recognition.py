r"""Which activation stands before each layer of an unmodified model, found by trying it.

Every layer's value is replaced by one number :math:`t` for all units, every kernel by its mean
rule :math:`W_{ij} = 1 / \text{fan-in}` and every bias by zero. Then the value of a layer is
:math:`\sum_i W_{ij}\, \phi(t) = \phi(t)`: whatever stands between it and the layers before it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.networks import activations, sites, weights
from dltheory.networks.activations import Activation
from dltheory.networks.weights import Weights

# Edges of cells of one eighth: zero, one, three and six, where kinks stand, are edges.
GRID = np.linspace(-12.0, 12.0, 193)
# What most networks use comes first; the rest of the catalogue is tried after it.
_COMMON = ("relu", "tanh", "identity", "gelu", "gelu_tanh", "silu", "sigmoid")


def responses(f: Callable, params: Any, x: Array) -> dict[str, np.ndarray]:
    r"""What stands before each layer that a kernel opens, as a function of one number.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs; one example of it is used.

    Returns:
        By text of the layer, :math:`\phi(t)` on `GRID`, shape `(points, *scan lengths)`.

    Raises:
        SiteError: As `sites.find`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.experiment import recognition
        >>> f = lambda w, x: jnp.tanh(x @ w["W1"]) @ w["W2"]
        >>> w = {"W1": jnp.eye(3), "W2": jnp.eye(3)}
        >>> table = recognition.responses(f, w, jnp.ones((1, 3)))["W2"]
        >>> recognition.named(table).name
        'tanh'
    """
    found = weights.find(f, params, x)
    leaves = {kernel.leaf for kernel in found.kernels}
    layers = sites.trace(f, params, x).layers
    texts = tuple(layer.text for layer in layers if layer.leaves & leaves)
    answers, past = (
        _respond(f, _constant(params, found, even), x[:1], jnp.asarray(GRID, jnp.float32), texts)
        for even in (True, False)
    )
    # Without weights there is what a skip connection carries past them.
    return {text: np.asarray(answers[text] - past[text], float) for text in texts}


def named(table: np.ndarray) -> Activation | None:
    """The activation of the catalogue with these values.

    Args:
        table: Its values on `GRID`, shape `(points,)`.

    Returns:
        The activation; one that interpolates the table where the catalogue has none; None where
        the values are not finite or all alike, as behind a normalisation.
    """
    if not np.isfinite(table).all() or np.ptp(table) == 0:
        return None
    names = dict.fromkeys((*_COMMON, *activations.names()))
    close = lambda name: np.allclose(table, _values(name), rtol=2e-3, atol=2e-3)
    return next((activations.get(name) for name in names if close(name)), None) or _tabulated(
        tuple(table.tolist())
    )


def slopes(table: np.ndarray) -> np.ndarray:
    """How steep an activation is in each cell of `GRID`, relative to its steepest cell.

    Args:
        table: Its values on `GRID`, shape `(points,)`.

    Returns:
        The slopes, shape `(points - 1,)`.
    """
    steep = np.abs(np.diff(table))
    return steep / max(steep.max(), np.finfo(float).tiny)


def steepness(table: Array, rows: Array) -> Array:
    """The slope of an activation at the values of a layer, relative to its steepest.

    Args:
        table: `slopes` of the activation after each layer of a stack, `(*lengths, cells)`.
        rows: The values, `(N, *lengths, features)`.

    Returns:
        The slopes, of the shape of `rows`.
    """
    cells, reach = table.shape[-1], float(GRID[-1])
    # Rounded before the shift, which would lose the sign of a small value.
    place = jnp.floor(rows.astype(jnp.float32) * (cells / (2 * reach))) + cells // 2
    place = jnp.clip(place, 0, cells - 1)
    place = jnp.where(jnp.isnan(place), 0, place).astype(jnp.int32)
    flat = jnp.moveaxis(place, 0, -2).reshape(-1, rows.shape[0] * rows.shape[-1])
    found = jnp.take_along_axis(table.reshape(-1, cells), flat, axis=1)
    shape = (*rows.shape[1:-1], rows.shape[0], rows.shape[-1])
    return jnp.moveaxis(found.reshape(shape), -2, 0)


def values(phi: Activation) -> np.ndarray:
    """The values of an activation on `GRID`.

    Args:
        phi: The activation.

    Returns:
        Its values, shape `(points,)`.
    """
    return np.asarray(phi(jnp.asarray(GRID, jnp.float32)), float)


@functools.cache
def _values(name: str) -> np.ndarray:
    return values(activations.get(name))


@functools.cache
def _tabulated(table: tuple[float, ...]) -> Activation:
    """Straight between the points of a table, and beyond its ends."""
    grid, table_ = GRID, np.array(table)

    def fn(h: Array) -> Array:
        h = jnp.asarray(h)
        points, heights = jnp.asarray(grid, h.dtype), jnp.asarray(table_, h.dtype)
        cell = jnp.clip(jnp.searchsorted(points, h) - 1, 0, len(grid) - 2)
        low, high = heights[cell], heights[cell + 1]
        return low + (h - points[cell]) * (high - low) / jnp.asarray(grid[1] - grid[0], h.dtype)

    return Activation("an activation of its own", fn, (), 0)


def _constant(params: Any, found: Weights, even: bool) -> Any:
    """Parameters with every kernel at one over its fan-in, or at zero, and no bias."""
    leaves, structure = jax.tree.flatten(params)
    for kernel in found.kernels:
        leaf = leaves[kernel.leaf]
        fan_in = math.prod(leaf.shape[axis] for axis in (*kernel.spatial, *kernel.inputs))
        leaves[kernel.leaf] = jnp.full(leaf.shape, 1 / fan_in if even else 0, leaf.dtype)
    for leaf in found.biases:
        leaves[leaf] = jnp.zeros_like(leaves[leaf])
    return jax.tree.unflatten(structure, leaves)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _respond(f: Callable, params: Any, x: Array, grid: Array, texts: tuple[str, ...]):
    program = sites.trace(f, params, x)

    def at(t):
        severed = {
            layer.text: jnp.full((*layer.lengths, *layer.shape), t, layer.dtype)
            for layer in program.layers
        }
        _, values = program.run(params, x, None, severed)
        answers = {}
        for layer in program.layers:
            if layer.text in texts:
                # Away from the border, which padding with zeros would lower.
                middle = tuple(size // 2 for size in layer.shape)
                answers[layer.text] = values[layer.text][(..., *middle)].astype(jnp.float32)
        return answers

    return jax.lax.map(at, grid)
