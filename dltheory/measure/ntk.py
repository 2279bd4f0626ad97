r"""The tangent kernel of any finite network, at the cost of forward and backward passes."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer

from dltheory.measure import factored
from dltheory.networks.sites import SiteError

_PROBED = 8  # examples that are also evaluated alone


def empirical_ntk(
    f: Callable,
    params: Any,
    x1: Array,
    x2: Array | None = None,
    *,
    batch_size: int | None = None,
) -> Array:
    r"""Inner products of the gradients of a model's outputs at pairs of inputs.

    .. math:: \Theta_{nm,ij} = \sum_\theta \frac{\partial f_i(x_n)}{\partial \theta}
        \frac{\partial f_j(x'_m)}{\partial \theta}

    The gradients of weights in dense and convolutional layers stay in factors, which reverse
    passes give without forming them; weights may be shared, sliced, or stacked in a `scan`. The
    gradient of a parameter that is used otherwise is formed. Under `jax.jit` it is fastest.

    Args:
        f: `f(params, x) -> y` from `(N, ...)` to `(N, ...)`. Each example's output may depend on
            that example alone; this is checked on a few of them, by their values.
        params: Any pytree of parameters. The derivative is with respect to all floats in it.
        x1: Inputs, shape `(N, ...)`.
        x2: Others, shape `(M, ...)`; `x1` again by default.
        batch_size: Of how many inputs of each set the gradients are held at once; all by default.
            Smaller means less memory and more passes over `x2`.

    Returns:
        The kernel, shape `(N, M, O, O)`, where O counts the outputs of one example, flattened.

    Raises:
        TypeError: If `f` does not return one array of floats, or a parameter is complex.
        ValueError: If a set of inputs is empty, the two differ in the shape or dtype of an
            example, `f` returns no axis of examples, or `batch_size` is below one.
        SiteError: If an example's output depends on the batch that it is in, as with BatchNorm in
            training, or dropout (under `jax.jit` the result is NaN instead).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import ntk
        >>> f = lambda w, x: x @ w
        >>> ntk.empirical_ntk(f, jnp.ones((3, 1)), jnp.eye(3)[:2])[:, :, 0, 0]
        Array([[1., 0.],
               [0., 1.]], dtype=float32)

    Sources: Jacot et al. (2018); Novak, Sohl-Dickstein and Schoenholz (2022) for the factors.
    """
    for name, x in (("x1", x1), ("x2", x1 if x2 is None else x2)):
        if jnp.ndim(x) < 1 or x.shape[0] == 0:
            raise ValueError(f"{name} has shape {jnp.shape(x)}, want (N, ...) with N >= 1 examples")
    if x2 is not None and (x2.shape[1:], x2.dtype) != (x1.shape[1:], x1.dtype):
        raise ValueError(
            f"x1 and x2 must hold examples of one shape and dtype; got {x1.dtype}{x1.shape} and "
            f"{x2.dtype}{x2.shape}"
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be one or more; got {batch_size}")
    params = jax.tree.map(jnp.asarray, params)
    plan = factored.plan(f, params, x1)
    other = x1 if x2 is None else x2
    offset = _refuse_batch_dependence(f, params, x1)
    if x2 is not None:
        offset += _refuse_batch_dependence(f, params, x2)
    gradients = lambda x: factored.gradients(plan, params, x)
    if not plan.groups and not plan.explicit:
        dtype = plan.closed.out_avals[0].dtype
        return jnp.zeros((x1.shape[0], other.shape[0], plan.outputs, plan.outputs), dtype)
    if batch_size is None:
        first = gradients(x1)
        kernel = factored.inner(first, None if x2 is None else gradients(x2))
    else:
        blocks1, blocks2 = _blocks(x1, batch_size), _blocks(other, batch_size)

        def rows(block: Array) -> Array:
            first = gradients(block)
            return lax.map(lambda block: factored.inner(first, gradients(block)), blocks2)

        kernel = jnp.moveaxis(lax.map(rows, blocks1), 1, 3)  # block, N, O, block, M, O
        n, m = (math.prod(kernel.shape[k : k + 2]) for k in (0, 3))
        kernel = kernel.reshape(n, plan.outputs, m, plan.outputs)[
            : x1.shape[0], :, : other.shape[0]
        ]
    return jnp.transpose(kernel, (0, 2, 1, 3)) + offset.astype(kernel.dtype)


def _blocks(x: Array, size: int) -> Array:
    """A batch in blocks of one size, the last filled up with its last example."""
    size = min(size, x.shape[0])
    count = math.ceil(x.shape[0] / size)
    numbers = jnp.minimum(jnp.arange(count * size), x.shape[0] - 1)
    return x[numbers].reshape(count, size, *x.shape[1:])


def _refuse_batch_dependence(f: Callable, params: Any, x: Array) -> Array:
    """Raise if an example's output is another one alone than in a batch; under `jit` return NaN."""
    few = x[:_PROBED]
    together = f(params, few)
    alone = jax.vmap(lambda example: f(params, example[None])[0])(few)
    if together.shape != alone.shape:
        raise ValueError(
            f"f must return (N, ...) for N examples; for {few.shape[0]} it returns the shape "
            f"{together.shape}, and {alone.shape[1:]} for each of them alone"
        )
    # Rounding may have grown on its way through a deep network, hence the root of the root.
    allowed = jnp.finfo(alone.dtype).eps ** 0.25 * jnp.max(jnp.abs(together))
    moved = jnp.max(jnp.abs(together - alone))
    if isinstance(moved, Tracer):
        return jnp.where(moved > allowed, jnp.nan, 0.0)
    if moved > allowed:
        raise SiteError(
            "the model couples examples: alone an example gives another output than in a batch "
            f"(by {float(moved):.2g}), as with BatchNorm in training or dropout, so that it has no "
            "gradient of its own. Evaluate the model in inference mode."
        )
    return jnp.zeros(())
