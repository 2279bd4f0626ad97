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

from dltheory.networks import regularizers, spectral
from dltheory.networks.regularizers import Where

Layers = Callable[[str], spectral.Convolution | None]
"""From the path of a leaf to the convolution whose kernel it is; `None` for a matrix."""


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

    def shrink(path, w, step):
        del path
        rate = learning_rate(step) if callable(learning_rate) else learning_rate
        threshold = check("strength", strength, w.dtype) * check("learning_rate", rate, w.dtype)
        return w - jnp.clip(w, -threshold, threshold)

    return _after("proximal_l1", shrink, where)


def project_spectral(
    max_norm: ArrayLike,
    *,
    where: Where = lambda _: True,
    layers: Layers = lambda _: None,
    rounds: int = 4,
) -> optax.GradientTransformation:
    r"""Project the weights of each layer onto those of a bounded operator norm: spectral clipping.

    .. math:: U \operatorname{diag}(s)\, V^\top \to U \operatorname{diag}(\min(s, c))\, V^\top

    the nearest matrix in the Frobenius norm with :math:`\|W\|_2 \le c`, by a full decomposition: no
    power iteration that may stop short. Of a convolution it is the map from image to image that is
    clipped, by `spectral.clip`.

    Args:
        max_norm: The bound :math:`c`, zero or more.
        where: From the path of a leaf to whether it is projected. Leaves with one axis or none are
            left alone; with one axis more than a matrix, or than the kernel of a convolution, the
            first runs over layers, as in a scan.
        layers: From the path of a leaf to the `spectral.Convolution` whose kernel it is; `None`
            for matrices.
        rounds: Alternating projections of a convolution, as in `spectral.clip`.

    Returns:
        The transformation; its `update` needs `params`.

    Raises:
        ValueError: If `max_norm` is negative (NaN in place of the weights where it is traced); from
            `update`, if `params` is missing, or a leaf has other axes than its layer.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from dltheory.networks import proximal, spectral
        >>> layer = spectral.Convolution((8, 8))
        >>> clip = proximal.project_spectral(1.0, layers=lambda path: layer)
        >>> steps = optax.chain(optax.sgd(0.1), clip)
        >>> w = jnp.ones((3, 3, 1, 1))
        >>> updates, _ = steps.update(w, steps.init(w), w)
        >>> spectral.norm(optax.apply_updates(w, updates), layer).round(3)
        Array(1., dtype=float32)

    Sources: Lefkimmiatis, Ward and Unser (2013); Yoshida and Miyato (2017); Sedghi, Gupta and Long
    (2019).
    """
    regularizers.checked("max_norm", max_norm, "zero or more", lambda a: a >= 0, float)
    project = lambda w, layer: spectral.clip(w, max_norm, layer, rounds=rounds)
    return _after("project_spectral", _by_layer("project_spectral", project, layers), where, 2)


def normalize_spectral(
    norm: ArrayLike = 1.0,
    *,
    where: Where = lambda path: path.endswith("kernel"),
    layers: Layers = lambda _: None,
) -> optax.GradientTransformation:
    r"""Scale the weights of each layer to a given operator norm, after each step.

    .. math:: W \to c\, W / \|A\|

    with the norm of the layer as a map (`spectral.norm`), where frameworks take a few steps of
    power iteration on the reshaped kernel, whose norm is another one, and lower.

    Args:
        norm: The norm :math:`c`, zero or more.
        where: From the path of a leaf to whether it is scaled, as in `project_spectral`; kernels
            by default.
        layers: As in `project_spectral`.

    Returns:
        The transformation; its `update` needs `params`.

    Raises:
        ValueError: If `norm` is negative (NaN in place of the weights where it is traced); from
            `update`, as `project_spectral`.

    Sources: Miyato, Kataoka, Koyama and Yoshida (2018); Gouk, Frank, Pfahringer and Cree (2021).
    """
    regularizers.checked("norm", norm, "zero or more", lambda a: a >= 0, float)
    scale = lambda w, layer: spectral.normalize(w, norm, layer)
    return _after("normalize_spectral", _by_layer("normalize_spectral", scale, layers), where, 2)


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
    project = lambda _, w, __: regularizers.max_norm(w, limit, axis=axis)
    return _after("project_max_norm", project, where)


def _after(name, function, where, least=0) -> optax.GradientTransformation:
    """What applies `function(path, weights, step)` to weights of `least` axes after an update."""

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
            if not where(text) or jnp.ndim(w) < least:
                return u
            return function(text, w + u, state.step) - w

        moved = jax.tree_util.tree_map_with_path(act, updates, params)
        return moved, ProximalState(state.step + 1)

    return optax.GradientTransformation(init, update)


def _by_layer(name, function, layers):
    """`function(weights, layer)` on matrices and kernels, and on stacks of them."""

    def act(path, w, step):
        del step
        layer = layers(path)
        axes = 2 if layer is None else layer.axes
        if jnp.ndim(w) not in (axes, axes + 1):
            raise ValueError(
                f"{path!r} has {jnp.ndim(w)} axes; {name} wants {axes}, or one more for a stack: "
                "give the spectral.Convolution of a kernel by layers, or leave it out by where"
            )
        one = lambda w: function(w, layer)
        return jax.vmap(one)(w) if jnp.ndim(w) > axes else one(w)

    return act
