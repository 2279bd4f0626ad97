r"""The chain rule of any model written as a ledger: every factor of every delta."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dltheory.measure import arguments, passes, stacks
from dltheory.networks import sites


class Factors(NamedTuple):
    """The chain rule of a model on a batch, factor by factor.

    Attributes:
        sites: `input`, the text of each cut in run order, and `output`: `S` in all. A cut is a
            layer that every path from the input to the output passes.
        jacobians: Between each two in a row, `S - 1` of shape `(N, m, n)`, from the input on.
        deltas: The derivatives of the loss at each, shape `(N, n)`: that at the output, and on the
            way down its products with the transposes of these factors.
    """

    sites: tuple[str, ...]
    jacobians: tuple[Array, ...]
    deltas: tuple[Array, ...]


def factors(loss: Callable[[Array], Array], f: Callable, params: Any, x: Array) -> Factors:
    r"""The deltas as products of local Jacobians, with each factor at hand.

    .. math:: \delta_l = J_{l+1}^\top J_{l+2}^\top \cdots J_L^\top \, \delta_L

    Args:
        loss: `loss(y) -> scalar`, a function of the model's output; it may couple the examples.
        f: `f(params, x) -> y`, unmodified.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.

    Returns:
        The factors, and their products, equal to `backprop.deltas` at the cuts to rounding.

    Raises:
        SiteError: If the model has no layers, or couples its examples.
        TypeError: If a parameter is not a real float, or the loss not a real scalar.
        ValueError: If the loss is NaN or infinite.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import ledger
        >>> f = lambda w, x: (x @ w["W1"]) @ w["W2"]
        >>> w = {"W1": jnp.eye(2), "W2": jnp.array([[3.0], [4.0]])}
        >>> found = ledger.factors(jnp.sum, f, w, jnp.ones((1, 2)))
        >>> found.sites, found.jacobians[1]
        (('input', 'W1', 'W2', 'output'), Array([[[3., 4.]]], dtype=float32))

    Source: Rumelhart, Hinton and Williams (1986).
    """
    arguments.refuse_integers("params", params)
    measured = passes.prepare(f, params, x)
    run = lambda at: stacks.run(measured, params, at["input"])
    values, tangent_of = passes.push(run, {"input": x})
    doubt = passes.refuse_coupling(passes.coupling(measured, tangent_of, x))
    value, delta = jax.value_and_grad(lambda y: arguments.scalar(loss(y)))(values["output"])
    arguments.refuse_nan(value)
    rows = stacks.between_cuts(measured, params, x, values, measured.respond)
    cuts = [
        (site, layer.text) for site, layer in sites.expand(measured.program.layers) if layer.is_cut
    ]
    places = [(None, "input"), *cuts, (None, "output")]
    local = []
    for (_, below), (site, text) in pairwise(places):
        index = () if site is None else site.index or ()
        row = rows[text][(slice(None), *index)][..., : measured.features(below)]
        local.append(row + doubt.astype(row.dtype))
    found = [measured.per_example("output", delta) + doubt.astype(delta.dtype)]
    for row in local[::-1]:
        found.append(jnp.einsum("nij,ni->nj", row, found[-1].astype(row.dtype)))
    texts = tuple(text if site is None else str(site) for site, text in places)
    return Factors(texts, tuple(local), tuple(found[::-1]))
