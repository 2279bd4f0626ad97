r"""The Hessian and the Gauss-Newton matrix of a loss by the parameters, known by their products.

.. math::
    \mathcal L(\theta) = \ell(f(\theta, x)), \qquad
    H = J^\top \nabla^2 \ell\, J + \sum_i \frac{\partial \ell}{\partial y_i} \nabla^2 f_i, \qquad
    G = J^\top \nabla^2 \ell\, J

The loss may couple examples in any way; the model may not, where the data are worked in batches.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer

from dltheory.measure import arguments, passes
from dltheory.networks.sites import SiteError
from dltheory.numerics import krylov
from dltheory.numerics.results import Density

Loss = Callable[[Array], Array]
Product = Callable[[Any], Any]


class Trace(NamedTuple):
    """An estimated trace.

    Attributes:
        value: The estimate, shape `()`.
        stderr: Its standard error, shape `()`.
    """

    value: Array
    stderr: Array


def product(
    loss: Loss,
    f: Callable,
    params: Any,
    x: Array,
    *,
    kind: str = "hessian",
    batch_size: int | None = None,
) -> Product:
    r"""The curvature of a loss as a linear map, :math:`v \mapsto H v` or :math:`G v`.

    What does not depend on :math:`v` is computed once. In batches that would have to be kept for
    all data, so each product runs the model again, and never holds more than one batch of it.

    Args:
        loss: `loss(y) -> scalar`, a function of the model's output alone; close over targets.
        f: `f(params, x) -> y`; in batches the first axis of `x` and of `y` runs over examples, and
            each example's output may depend on that example alone.
        params: Any pytree of real floats, all of which influence the output.
        x: Inputs, shape `(N, ...)`.
        kind: `hessian` or `gauss_newton`.
        batch_size: How many examples are worked at once; all by default.

    Returns:
        A linear function of one argument, a pytree like `params`.

    Raises:
        TypeError: If a parameter is not a real float, or the loss not a real scalar.
        ValueError: If a parameter has no influence, the loss is NaN, `kind` is neither of the two,
            or `batch_size` is below 1.
        SiteError: If the model couples examples, and `batch_size` is given.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import curvature
        >>> loss = lambda y: jnp.sum(y**2) / 2
        >>> h = curvature.product(loss, lambda w, x: x @ w, jnp.ones(2), jnp.diag(jnp.arange(2.0)))
        >>> h(jnp.ones(2))
        Array([0., 1.], dtype=float32)

    Source: Pearlmutter (1994) for the Hessian, Schraudolph (2002) for the Gauss-Newton matrix.
    """
    arguments.refuse_integers("params", params)
    if kind not in ("hessian", "gauss_newton"):
        raise ValueError(f"kind is {kind!r}; want hessian or gauss_newton")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; want an integer of 1 or more")
    params = jax.tree.map(jnp.asarray, params)
    arguments.refuse_ignored("params", lambda params: f(params, x), params)
    scalar = lambda y: arguments.scalar(loss(y))
    if batch_size is not None and batch_size < x.shape[0]:
        return _in_batches(scalar, f, params, x, kind, batch_size)
    if kind == "hessian":
        total = lambda params: scalar(f(params, x))
        arguments.refuse_nan(total(params))
        return jax.linearize(jax.grad(total), params)[1]
    y, tangent_of = passes.push(lambda params: f(params, x), params)
    arguments.refuse_nan(scalar(y))
    pull = jax.vjp(lambda params: f(params, x), params)[1]
    curve = jax.linearize(jax.grad(scalar), y)[1]
    return lambda v: pull(curve(tangent_of(v)))[0]


def top_eigenvalues(
    key: Array,
    loss: Loss,
    f: Callable,
    params: Any,
    x: Array,
    k: int,
    *,
    kind: str = "hessian",
    batch_size: int | None = None,
) -> tuple[Array, Array]:
    r"""The `k` curvatures of largest magnitude, each with its residual; the first is the sharpness.

    .. math:: r_i = \|H v_i - \lambda_i v_i\|

    Some eigenvalue lies within :math:`r_i` of :math:`\lambda_i`.

    Args:
        key: A key for the starting block of the Krylov space.
        loss: As in `product`.
        f: As in `product`.
        params: As in `product`.
        x: As in `product`.
        k: How many, at most the number of parameters.
        kind: As in `product`.
        batch_size: As in `product`.

    Returns:
        The values, shape `(k,)`, by descending magnitude, and their residuals, shape `(k,)`.

    Raises:
        TypeError, ValueError, SiteError: As `product`, and if `k` is out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.measure import curvature
        >>> loss = lambda y: jnp.sum(y**2) / 2
        >>> f, x = lambda w, x: x @ w, jnp.diag(jnp.array([3.0, 1.0]))
        >>> curvature.top_eigenvalues(jax.random.key(0), loss, f, jnp.ones(2), x, 1)[0].round(4)
        Array([9.], dtype=float32)
    """
    curve = product(loss, f, params, x, kind=kind, batch_size=batch_size)
    return krylov.top_eigenvalues(key, curve, params, k)


def sharpness(
    key: Array,
    loss: Loss,
    f: Callable,
    x: Array,
    *,
    kind: str = "hessian",
    batch_size: int | None = None,
) -> Callable[[Any], Array]:
    r"""The sharpness as a function of the parameters, to be followed through training.

    .. math:: \theta \mapsto \lambda_\max(H(\theta))

    Gradient descent on a quadratic loss diverges where it exceeds :math:`2 / \eta`.

    Args:
        key: As in `top_eigenvalues`.
        loss: As in `product`.
        f: As in `product`.
        x: As in `product`.
        kind: As in `product`.
        batch_size: As in `product`.

    Returns:
        `read(params) -> ()`, the curvature of largest magnitude with its sign: the `record` of
        `networks.training.descent`. It raises what `top_eigenvalues` raises.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from dltheory.measure import curvature
        >>> from dltheory.networks import data, training
        >>> f, init = lambda w, x: w[0] * w[1] * x, lambda key: jnp.array([2.0, 0.1])
        >>> square = lambda y, wanted: jnp.mean((y - wanted) ** 2) / 2
        >>> line = data.Data(jnp.ones(1), jnp.ones(1))
        >>> read = curvature.sharpness(jax.random.key(0), lambda y: square(y, line.y), f, line.x)
        >>> process = training.descent(f, init, square, optax.sgd(0.1), line, record=read)
        >>> history = training.run(process, jax.random.key(0), 100)[1]
        >>> [f"{value:.2f}" for value in history.record]
        ['4.09', '4.43']

    Source: Cohen et al. (2021), Gradient descent on neural networks typically occurs at the edge of
    stability.
    """
    options = {"kind": kind, "batch_size": batch_size}
    return lambda params: top_eigenvalues(key, loss, f, params, x, 1, **options)[0][0]


def density(
    key: Array,
    loss: Loss,
    f: Callable,
    params: Any,
    x: Array,
    *,
    kind: str = "hessian",
    batch_size: int | None = None,
    probes: int = 8,
    steps: int = 64,
    width: float = 0.03,
) -> Density:
    """The density of all curvatures, by stochastic Lanczos quadrature.

    Args:
        key: A key for the random directions.
        loss: As in `product`.
        f: As in `product`.
        params: As in `product`.
        x: As in `product`.
        kind: As in `product`.
        batch_size: As in `product`.
        probes: Number of random directions, at least 2.
        steps: Number of quadrature nodes of each.
        width: Standard deviation of the smoothing, relative to the largest magnitude.

    Returns:
        The density, which integrates to 1, with its standard error.

    Raises:
        TypeError, ValueError, SiteError: As `product`, and if another number is out of range.

    Source: Ghorbani, Krishnan and Xiao (2019), An investigation into neural net optimization via
    Hessian eigenvalue density.
    """
    curve = product(loss, f, params, x, kind=kind, batch_size=batch_size)
    options = {"probes": probes, "steps": steps, "width": width}
    return krylov.spectral_density(key, curve, params, symmetric=True, **options)


def trace(
    key: Array,
    loss: Loss,
    f: Callable,
    params: Any,
    x: Array,
    *,
    kind: str = "hessian",
    batch_size: int | None = None,
    probes: int = 32,
) -> Trace:
    r"""The sum of all curvatures, from products with random signs.

    .. math:: \operatorname{tr} H \approx \frac1m \sum_i z_i^\top H z_i, \qquad z_i \in \{-1, 1\}^P

    It is exact where :math:`H` is diagonal.

    Args:
        key: A key for the signs.
        loss: As in `product`.
        f: As in `product`.
        params: As in `product`.
        x: As in `product`.
        kind: As in `product`.
        batch_size: As in `product`.
        probes: Number :math:`m` of random directions, at least 2.

    Returns:
        The estimate and its standard error.

    Raises:
        TypeError, ValueError, SiteError: As `product`, and if `probes` is below 2.

    Source: Hutchinson (1990).
    """
    if probes < 2:
        raise ValueError(f"probes is {probes}; want an integer of 2 or more")
    curve = product(loss, f, params, x, kind=kind, batch_size=batch_size)
    leaves, structure = jax.tree.flatten(params)

    def along(key: Array) -> Array:
        keys = jax.random.split(key, len(leaves))
        signs = [
            jax.random.rademacher(k, jnp.shape(leaf), jnp.result_type(leaf))
            for k, leaf in zip(keys, leaves, strict=True)
        ]
        image = jax.tree.leaves(curve(jax.tree.unflatten(structure, signs)))
        return jnp.stack([jnp.sum(a * b) for a, b in zip(signs, image, strict=True)]).sum()

    found = lax.map(along, jax.random.split(key, probes))
    return Trace(found.mean(), jnp.std(found, ddof=1) / math.sqrt(probes))


def _in_batches(loss: Loss, f: Callable, params: Any, x: Array, kind: str, size: int) -> Product:
    """Products that run the model batch by batch.

    The outputs of all examples are held, and so are their tangents, because the loss may couple
    them: its gradient and its Hessian are taken for all of them together.
    """
    total = x.shape[0]
    count = math.ceil(total / size)
    # The last batch is filled up with the last example, whose further copies get no weight.
    blocks = x[np.minimum(np.arange(count * size), total - 1)].reshape(count, size, *x.shape[1:])
    _refuse_coupling(f, params, x)

    def joined(parts: Array) -> Array:
        return parts.reshape(count * size, *parts.shape[2:])[:total]

    def cut(rows: Array) -> Array:
        filled = jnp.pad(rows, [(0, count * size - total)] + [(0, 0)] * (rows.ndim - 1))
        return filled.reshape(count, size, *rows.shape[1:])

    y = joined(lax.map(lambda block: f(params, block), blocks))
    arguments.refuse_nan(loss(y))
    slope, curve = jax.linearize(jax.grad(loss), y)

    def multiply(v: Any) -> Any:
        tangents = lambda block: passes.push(lambda p: f(p, block), params)[1](v)
        bent = curve(joined(lax.map(tangents, blocks)))

        def one(sums: Any, parts: tuple[Array, Array, Array]) -> tuple[Any, None]:
            block, slope, bent = parts

            def gradient(params: Any, weights: Array) -> Any:
                return jax.vjp(lambda p: f(p, block), params)[1](weights)[0]

            if kind == "hessian":
                added = jax.jvp(gradient, (params, slope), (v, bent))[1]
            else:
                added = gradient(params, bent)
            return jax.tree.map(jnp.add, sums, added), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        return lax.scan(one, zeros, (blocks, cut(slope), cut(bent)))[0]

    return multiply


def _refuse_coupling(f: Callable, params: Any, x: Array) -> None:
    """Raise SiteError if an example's output is known to depend on the batch that it is in."""
    both, alone = f(params, x[:2]), f(params, x[:1])
    if (both.shape[:1], alone.shape[:1]) != ((2,), (1,)):
        raise ValueError(
            f"f returns the shape {both.shape} for two examples; want them on its first axis, or "
            "no batch_size"
        )
    moved = jnp.max(jnp.abs(both[:1] - alone))
    # Rounding may have grown on its way through a deep network, hence the root of the root.
    allowed = jnp.finfo(alone.dtype).eps ** 0.25 * jnp.max(jnp.abs(alone))
    if not isinstance(moved, Tracer) and moved > allowed:
        raise SiteError(
            "the model couples examples: alone an example gives another output than in a batch "
            f"(by {float(moved):.2g}), as with BatchNorm in training. Leave batch_size out."
        )
