r"""What acts on the weights themselves after a step, as `optax` transformations.

Each turns an update `u` of the weights `w` into that which leads to a proximal map or a projection
of `w + u`, so it comes last in an `optax.chain`, after the learning rate.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from dltheory.networks import regularizers
from dltheory.networks.regularizers import Where


class ProximalState(NamedTuple):
    """What a schedule needs to know.

    Attributes:
        step: Updates done, shape `()`.
    """

    step: Array


def proximal_l1(
    strength: ArrayLike,
    learning_rate: ArrayLike | Callable[[Array], ArrayLike],
    *,
    where: Where = lambda _: True,
) -> optax.GradientTransformation:
    r"""Proximal descent on a sum of absolute values: weights become exactly zero.

    .. math:: w \to S(w + u,\, \eta \lambda), \qquad
              S(z, t) = \operatorname{sign}(z) \max(|z| - t, 0)

    After `optax.sgd(learning_rate)` it is the iterative soft-thresholding algorithm, which
    minimises the loss plus :math:`\lambda \|w\|_1`.

    Args:
        strength: The penalty :math:`\lambda`, zero or more.
        learning_rate: The step :math:`\eta`, zero or more, or a schedule of it.
        where: From the path of a leaf, such as `params/Dense_0/kernel`, to whether it is penalised.

    Returns:
        The transformation; its `update` needs `params`.

    Raises:
        ValueError: If `strength` or `learning_rate` is negative (NaN in place of the weights where
            it is traced); from `update`, if `params` is missing.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from dltheory.networks import proximal
        >>> steps = optax.chain(optax.sgd(0.1), proximal.proximal_l1(2.0, 0.1))
        >>> w = jnp.array([1.0, 0.15])
        >>> updates, _ = steps.update(jnp.array([1.0, 0.0]), steps.init(w), w)
        >>> [f"{new:.2f}" for new in optax.apply_updates(w, updates)]
        ['0.70', '0.00']

    Sources: Daubechies, Defrise and De Mol (2004); Parikh and Boyd (2014).
    """
    legal = lambda a: a >= 0
    check = lambda name, value, dtype: regularizers.checked(
        name, value, "zero or more", legal, dtype
    )
    check("strength", strength, float)
    if not callable(learning_rate):
        check("learning_rate", learning_rate, float)

    def shrink(w, step):
        rate = learning_rate(step) if callable(learning_rate) else learning_rate
        threshold = check("strength", strength, w.dtype) * check("learning_rate", rate, w.dtype)
        return w - jnp.clip(w, -threshold, threshold)

    return _after("proximal_l1", shrink, where)


def project_spectral(
    max_norm: ArrayLike, *, where: Where = lambda _: True
) -> optax.GradientTransformation:
    r"""Project each matrix onto those of a bounded operator norm.

    .. math:: U \operatorname{diag}(s)\, V^\top \to U \operatorname{diag}(\min(s, c))\, V^\top

    the nearest matrix in the Frobenius norm with :math:`\|W\|_2 \le c`, by a full decomposition: no
    power iteration that may stop short.

    Args:
        max_norm: The bound :math:`c`, zero or more.
        where: From the path of a leaf to whether it is projected. Leaves with one axis or none are
            left alone; of those with three, the first runs over matrices, as in a scan.

    Returns:
        The transformation; its `update` needs `params`.

    Raises:
        ValueError: If `max_norm` is negative (NaN in place of the weights where it is traced); from
            `update`, if `params` is missing, or a leaf has more than three axes: the operator norm
            of a convolution is not that of its kernel as a matrix.

    Sources: Lefkimmiatis, Ward and Unser (2013); Yoshida and Miyato (2017).
    """
    legal = lambda a: a >= 0
    regularizers.checked("max_norm", max_norm, "zero or more", legal, float)

    def project(w, step):
        del step
        limit = regularizers.checked("max_norm", max_norm, "zero or more", legal, w.dtype)
        u, s, vt = jnp.linalg.svd(w, full_matrices=False)
        nearest = (u * jnp.minimum(s, limit)[..., None, :]) @ vt
        # What is within the bound stays as it is, to the last digit.
        within = (jnp.max(s, axis=-1) <= limit)[..., None, None]
        return jnp.where(within, w, nearest)

    return _after("project_spectral", project, where, axes=(2, 3))


def project_max_norm(
    limit: ArrayLike,
    *,
    axis: int | tuple[int, ...] = 0,
    where: Where = lambda path: path.endswith("kernel"),
) -> optax.GradientTransformation:
    r"""Project the weights into each unit onto a ball, after each step.

    Args:
        limit: The radius, zero or more.
        axis: The axes that are summed over for one unit, as in `regularizers.max_norm`.
        where: From the path of a leaf to whether it is projected; kernels by default.

    Returns:
        The transformation; its `update` needs `params`.

    Raises:
        ValueError: If `limit` is negative (NaN in place of the weights where it is traced); from
            `update`, if `params` is missing.

    Source: Srivastava et al. (2014).
    """
    regularizers.checked("limit", limit, "zero or more", lambda a: a >= 0, float)
    project = lambda w, _: regularizers.max_norm(w, limit, axis=axis)
    return _after("project_max_norm", project, where)


def _after(name, function, where, axes=None) -> optax.GradientTransformation:
    """The transformation that applies `function(weights, step)` to the weights after an update."""

    def init(params: Any) -> ProximalState:
        del params
        return ProximalState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None):
        if params is None:
            raise ValueError(
                f"params is None, but {name} acts on the weights: call "
                "update(updates, state, params)"
            )

        def act(path, u, w):
            text = jax.tree_util.keystr(path, simple=True, separator="/")
            if not where(text) or (axes is not None and jnp.ndim(w) < min(axes)):
                return u
            if axes is not None and jnp.ndim(w) > max(axes):
                raise ValueError(
                    f"{text!r} has {jnp.ndim(w)} axes; {name} wants matrices: leave it out by "
                    "where, for the norm of a convolution is not that of its kernel"
                )
            return function(w + u, state.step) - w

        moved = jax.tree_util.tree_map_with_path(act, updates, params)
        return moved, ProximalState(state.step + 1)

    return optax.GradientTransformation(init, update)
