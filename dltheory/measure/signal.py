"""The signal on its way through a model: lengths, correlations, gradient norms, by layer."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dltheory.measure import passes
from dltheory.networks import sites
from dltheory.networks.sites import Site
from dltheory.numerics import norms
from dltheory.numerics.results import Moments


class GradientNorms(NamedTuple):
    """Norms of the gradient with respect to the value of each layer.

    Attributes:
        sites: The layers in run order.
        log_norms: Natural logarithms of the Euclidean norms, shape `(layers, N)`.
    """

    sites: tuple[Site, ...]
    log_norms: Array


def moments(f: Callable, params: Any, x: Array) -> Moments:
    r"""Mean squared value of each layer, and the correlation of each pair of examples.

    .. math:: q_l(a) = \frac{1}{n_l} \sum_i h_{l,i}(a)^2, \qquad
              c_l(a, b) = \frac{\sum_i h_{l,i}(a)\, h_{l,i}(b)}{n_l \sqrt{q_l(a)\, q_l(b)}}

    Not centred, as in mean-field theory, where :math:`h` is the pre-activation.

    Args:
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.

    Returns:
        `Moments` with `q` of shape `(layers, N)` and `c` of shape `(layers, N, N)`, in run order;
        `chi_1` is `None`: `jacobians.layer_spectra` measures it. `c` is NaN where a length is 0.

    Raises:
        SiteError: If the model has no layers.
        ValueError: If `x` holds no example.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import signal
        >>> f = lambda w, x: jnp.tanh(x @ w["W1"]) @ w["W2"]
        >>> w = {"W1": 2 * jnp.eye(2), "W2": jnp.eye(2)}
        >>> signal.moments(f, w, jnp.array([[1.0, 0.0], [0.0, 1.0]])).q[0].round(4)
        Array([2., 2.], dtype=float32)

    Source:
        Poole et al. (2016), Exponential expressivity in deep neural networks through transient
        chaos.
    """
    measured = passes.prepare(f, params, x)
    _, values = measured.program.run(params, x)
    q, c = {}, {}
    for text, array in values.items():
        rows = measured.per_example(text, array)
        length = _norms(norms.global_norm, rows)
        q[text] = (length / math.sqrt(rows.shape[-1])) ** 2
        # Twice by the root: the reciprocal of a large length is flushed to zero.
        root = 1 / jnp.sqrt(length)[..., None]
        unit = rows * root * root
        c[text] = jnp.einsum("a...i,b...i->ab...", unit, unit)
    q = passes.stack({text: jnp.moveaxis(a, 0, -1) for text, a in q.items()}, measured)
    c = passes.stack({text: jnp.moveaxis(a, (0, 1), (-2, -1)) for text, a in c.items()}, measured)
    return Moments(q, c, None)


def gradient_norms(
    loss: Callable[[Array], Array], f: Callable, params: Any, x: Array
) -> GradientNorms:
    r"""Log norm of the loss gradient at every layer, for each example, by one reverse pass.

    .. math:: \log \| \partial \mathcal{L} / \partial h_l(a) \|

    The norm itself neither underflows nor overflows; the gradient is computed in the dtype of the
    model, and where it underflows there the result is `-inf`: use float64 for wider ranges.

    Args:
        loss: `loss(y) -> scalar`, a function of the model's output alone; close over targets.
        f: `f(params, x) -> y`.
        params: Any pytree of parameters.
        x: A batch of inputs, shape `(N, ...)`.

    Returns:
        `GradientNorms`, in run order.

    Raises:
        SiteError: If the model has no layers.
        TypeError: If the loss is not a real scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import signal
        >>> f = lambda w, x: (x @ w["W1"]) @ w["W2"]
        >>> w = {"W1": jnp.eye(2), "W2": jnp.array([[3.0], [4.0]])}
        >>> jnp.exp(signal.gradient_norms(jnp.sum, f, w, jnp.ones((1, 2))).log_norms).round(4)
        Array([[5.],
               [1.]], dtype=float32)
    """
    measured = passes.prepare(f, params, x)
    _, values = jax.eval_shape(measured.program.run, params, x)
    taps = {text: jnp.zeros(value.shape, value.dtype) for text, value in values.items()}

    def total(taps):
        value = jnp.asarray(loss(measured.program.run(params, x, taps)[0]))
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(
                f"loss(y) is {value.dtype}{list(value.shape)}, want a real scalar: end it with a "
                "mean or a sum."
            )
        return value

    logs = {}
    for text, delta in jax.grad(total)(taps).items():
        rows = measured.per_example(text, delta)
        logs[text] = jnp.moveaxis(_norms(norms.log_global_norm, rows), 0, -1)
    found = tuple(site for site, _ in sites.expand(measured.program.layers))
    return GradientNorms(found, passes.stack(logs, measured))


def _norms(norm: Callable[[Array], Array], rows: Array) -> Array:
    """A norm of each row, the last axis."""
    flat = jax.vmap(norm)(rows.reshape(-1, rows.shape[-1]))
    return flat.reshape(rows.shape[:-1])
