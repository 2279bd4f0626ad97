"""What can be known of a model without running it on data: layers, kernels and activations."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.experiment import recognition
from dltheory.measure import passes
from dltheory.networks import activations, sites, weights
from dltheory.networks.activations import Activation
from dltheory.networks.sites import Site
from dltheory.networks.weights import Kernel, Weights


class Model(NamedTuple):
    """A model, what it is measured on, and what can be known of it without running it.

    Attributes:
        f: The function.
        x: The batch.
        loss: The loss as a function of the output, or None: a fixed random combination of it.
        sites: The layers, in run order.
        texts: Text of each layer, without the index of its stack.
        cuts: Whether every path crosses the layer.
        last: Whether the layer is the output.
        features: Numbers that one example has at each layer.
        half: Whether the layer is in half precision.
        weights: The kernels and biases.
        kernels: The kernel that opens each layer, or None.
        feeds: The activation between the layer before and this one, for layers with a kernel.
        tables: Its values on `recognition.GRID`.
        leaf_shapes: Shape of each leaf of the parameters.
        lengths: Lengths of the scans around each layer.
    """

    f: Callable
    x: Array
    loss: Callable | None
    sites: tuple[Site, ...]
    texts: tuple[str, ...]
    cuts: np.ndarray
    last: np.ndarray
    features: np.ndarray
    half: np.ndarray
    weights: Weights
    kernels: tuple[Kernel | None, ...]
    feeds: tuple[Activation | None, ...]
    tables: tuple[np.ndarray | None, ...]
    leaf_shapes: tuple[tuple[int, ...], ...]
    lengths: tuple[tuple[int, ...], ...]


def model(
    f: Callable,
    params: Any,
    x: Array,
    loss: Callable | None = None,
    phi: str | Callable | None = None,
) -> Model:
    """Find the layers, kernels and activations of a model.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.
        loss: `loss(y) -> scalar`, or None.
        phi: The activation before every layer; by default it is found.

    Returns:
        The `Model`.

    Raises:
        SiteError: If the model has no layers.
        ValueError: If `x` holds no example.
    """
    measured = passes.prepare(f, params, x)
    places = sites.expand(measured.program.layers)
    found = weights.find(f, params, x)
    texts = tuple(layer.text for _, layer in places)
    by_text = {kernel.layer: kernel for kernel in found.kernels}
    # One that runs again has the kernel of its first run.
    again = lambda layer: next((k for k in found.kernels if k.leaf in layer.leaves), None)
    kernels = tuple(by_text.get(layer.text) or again(layer) for _, layer in places)
    tables = _tables(f, params, x, places, kernels, phi)
    given = None if phi is None else activations.get(phi)
    feeds = tuple(None if table is None else given or recognition.named(table) for table in tables)
    half = [jnp.finfo(layer.dtype).bits < 32 for _, layer in places]
    return Model(
        f,
        x,
        loss,
        tuple(site for site, _ in places),
        texts,
        np.array([layer.is_cut for _, layer in places]),
        # Of a stack that ends in the output the last layer alone is the output.
        np.array(
            [
                layer.is_output and text not in texts[row + 1 :]
                for row, (text, layer) in enumerate(
                    zip(texts, (layer for _, layer in places), strict=True)
                )
            ]
        ),
        np.array([math.prod(site.shape) // x.shape[0] for site, _ in places]),
        np.array(half),
        found,
        kernels,
        feeds,
        tables,
        tuple(np.shape(leaf) for leaf in jax.tree.leaves(params)),
        tuple(layer.lengths for _, layer in places),
    )


def opened(model: Model) -> list[list[int]]:
    """The layers with a kernel between each cut and the cut before it, the cut included.

    Args:
        model: Result of `model`.

    Returns:
        Per layer their rows; none for layers that are no cuts.
    """
    rows, found = [], []
    for row, cut in enumerate(model.cuts):
        if model.kernels[row] is not None:
            rows.append(row)
        found.append(rows if cut else [])
        rows = [] if cut else rows
    return found


def _tables(f, params, x, places, kernels, phi) -> tuple[np.ndarray | None, ...]:
    """The activation before each layer with a kernel but the first layer, on the grid."""
    if phi is None:
        found = recognition.responses(f, params, x)
        pick = lambda text, index: found[text][(slice(None), *index)]
    else:
        given = recognition.values(activations.get(phi))
        pick = lambda *_: given
    rows = []
    for row, ((site, layer), kernel) in enumerate(zip(places, kernels, strict=True)):
        table = pick(layer.text, site.index or ()) if row and kernel is not None else None
        known = table is not None and np.isfinite(table).all() and np.ptp(table) > 0
        rows.append(table if known else None)
    return tuple(rows)
