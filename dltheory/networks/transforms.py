r"""Gradient clipping as `optax` transformations that report what they did.

Norms neither underflow nor overflow (`numerics.norms`), and every state is a `ClipState`: how often
the gradient was clipped, and by how much. A gradient that is NaN or infinite comes out as NaN, with
all that shares its norm: clipping never hides it. A gradient of length 1e30 is clipped to 1e-30
in its own direction, in float32.

What clipping does to a noisy gradient on average is known in closed form
(`dltheory.theory.clipping`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike

from dltheory.numerics import norms


class ClipState(NamedTuple):
    """What clipping has done so far; the last three fields are scalars, or dicts by layer.

    A state inside the state of an `optax.chain` is read by, for example,
    `optax.tree.get(state, "clipped")`.

    Attributes:
        steps: Updates seen.
        clipped: Number of updates that were clipped; where an update has many parts (coordinates,
            units) that are clipped one by one, each update counts by the share of parts clipped.
        scale: Norm of the last update after clipping over its norm before.
        log_scale: Sum over all updates of the natural logarithm of the scale.
    """

    steps: Array
    clipped: Any
    scale: Any
    log_scale: Any

    @property
    def rate(self) -> Any:
        """How often it clipped: the mean of `clipped` over all updates."""
        return jax.tree.map(lambda total: total / self.steps.astype(total.dtype), self.clipped)

    @property
    def mean_scale(self) -> Any:
        """How much: the geometric mean of the scale over all updates."""
        return jax.tree.map(
            lambda total: jnp.exp(total / self.steps.astype(total.dtype)), self.log_scale
        )


class _Report(NamedTuple):
    """Of one update: the share of it that was clipped, and the root of its scale."""

    clipped: Array
    root_scale: Array


def clip_by_value(max_value: ArrayLike) -> optax.GradientTransformation:
    r"""Clip each coordinate to :math:`[-C, C]`; this turns the gradient.

    Args:
        max_value: The threshold :math:`C > 0`; infinite to report only.

    Returns:
        The transformation. Its state counts the share of coordinates clipped, and the scale is
        that of the norm of all of them.

    Raises:
        ValueError: If `max_value` is not positive, or no scalar.
        TypeError: From `update`, if a gradient is not real.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import transforms
        >>> clip = transforms.clip_by_value(1.0)
        >>> g = jnp.array([0.5, -3.0])
        >>> updates, state = clip.update(g, clip.init(g))
        >>> print(updates, state.rate)
        [ 0.5 -1. ] 0.5

    Source: Mikolov (2012), Statistical language models based on neural networks.
    """
    _check_threshold("max_value", max_value)

    def clip(updates, params):
        del params
        for path, g in jax.tree.leaves_with_path(updates):
            if not jnp.issubdtype(jnp.result_type(g), jnp.floating):
                raise TypeError(
                    f"updates{jax.tree_util.keystr(path)} holds {jnp.result_type(g)}; "
                    "clip_by_value wants real gradients: clip by norm instead"
                )
        limit = lambda g: _positive(max_value, g.dtype)
        beyond = jax.tree.leaves(jax.tree.map(lambda g: jnp.sum(jnp.abs(g) > limit(g)), updates))
        # Infinity less itself is NaN: an overflow must not pass for a large gradient.
        clipped = jax.tree.map(lambda g: jnp.clip(g, -limit(g), limit(g)) + (g - g), updates)
        before, after = _root_norm(updates), _root_norm(clipped)
        size = sum(jnp.size(g) for g in jax.tree.leaves(updates))
        share = sum((b.astype(before.dtype) for b in beyond), jnp.zeros_like(before))
        ratio = jnp.where(before == 0, 1, after / jnp.where(before == 0, 1, before))
        return clipped, _Report(share / max(size, 1), ratio)

    return _transformation(clip)


def clip_by_global_norm(max_norm: ArrayLike) -> optax.GradientTransformation:
    r"""Scale the whole gradient to a norm of at most :math:`C`, its direction kept.

    .. math:: g \to g \min(1, C / \|g\|)

    Args:
        max_norm: The threshold :math:`C > 0`; infinite to report only.

    Returns:
        The transformation.

    Raises:
        ValueError: If `max_norm` is not positive, or no scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import transforms
        >>> clip = transforms.clip_by_global_norm(1.0)
        >>> g = {"w": jnp.array([3e25]), "b": jnp.array([4e25])}
        >>> updates, state = clip.update(g, clip.init(g))
        >>> print(updates["w"].round(3), updates["b"].round(3), state.clipped)
        [0.6] [0.8] 1.0

    Source:
        Pascanu, Mikolov and Bengio (2013), On the difficulty of training recurrent neural networks.
    """
    _check_threshold("max_norm", max_norm)

    def clip(updates, params):
        del params
        root = _root_norm(updates)
        report = _report(jnp.sqrt(_positive(max_norm, root.dtype)), root)
        return jax.tree.map(lambda g: _shrink(g, report.root_scale), updates), report

    return _transformation(clip)


def clip_by_layer_norm(
    max_norm: ArrayLike,
    *,
    layer: Callable[[str], str] = lambda leaf: leaf,
    stacked: Callable[[str], int] = lambda _: 0,
) -> optax.GradientTransformation:
    r"""Scale the gradient of each layer on its own to a norm of at most :math:`C`.

    .. math:: g_l \to g_l \min(1, C / \|g_l\|)

    Args:
        max_norm: The threshold :math:`C > 0` of every layer; infinite to report only.
        layer: From the path of a leaf, such as `params/Dense_0/kernel`, to the name of its layer;
            each leaf by default. `lambda leaf: leaf.rpartition("/")[0]` takes a kernel and its
            bias together.
        stacked: From the path of a leaf to the number of its leading axes that run over layers, as
            of the leaves of a scan; none by default. All leaves of one layer must agree in them.

    Returns:
        The transformation. The fields of its state are dicts by the name of the layer, each value
        of the shape of the stacked axes.

    Raises:
        ValueError: If `max_norm` is not positive, or no scalar; from `init` and `update`, if the
            leaves of a layer are not stacked alike.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import transforms
        >>> clip = transforms.clip_by_layer_norm(1.0)
        >>> g = {"w": jnp.array([3.0, 4.0]), "b": jnp.array([0.5])}
        >>> updates, state = clip.update(g, clip.init(g))
        >>> print(updates["w"].round(3), updates["b"], state.scale["w"].round(3))
        [0.6 0.8] [0.5] 0.2
    """
    _check_threshold("max_norm", max_norm)

    def clip(updates, params):
        del params
        reports = {}
        for name, members in _layers(updates, layer).items():
            stack = _stack(name, members, stacked)
            root_norm = _root_norm
            for _ in stack:
                root_norm = jax.vmap(root_norm)
            root = root_norm(members)
            reports[name] = _report(jnp.sqrt(_positive(max_norm, root.dtype)), root)

        def shrink(path, g):
            root = reports[layer(_text(path))].root_scale
            return _shrink(g, root.reshape(root.shape + (1,) * (jnp.ndim(g) - root.ndim)))

        return jax.tree_util.tree_map_with_path(shrink, updates), reports

    return _transformation(clip)


def adaptive_clip(
    max_ratio: ArrayLike,
    *,
    floor: ArrayLike = 1e-3,
    units: Callable[[str, int], tuple[int, ...]] = lambda _, ndim: (-1,) if ndim > 1 else (),
) -> optax.GradientTransformation:
    r"""Scale the gradient of each unit to a norm of at most a multiple of its weights' norm.

    .. math:: g_i \to g_i \min\left(1, \lambda \frac{\max(\|w_i\|, \epsilon)}{\|g_i\|}\right)

    for each unit :math:`i`, the weights into one output.

    Args:
        max_ratio: The greatest ratio :math:`\lambda > 0` of gradient to weights; infinite to
            report only.
        floor: The norm :math:`\epsilon > 0` below which that of weights is not counted, for those
            that start at zero.
        units: From the path and the number of axes of a leaf to the axes that run over its units;
            all other axes are summed over. The last axis by default, for kernels
            `(*spatial, inputs, outputs)`, and none for vectors, each one unit. The kernels of a
            scan, `(layers, inputs, outputs)`, want `(0, -1)`.

    Returns:
        The transformation; its `update` needs `params`. The fields of its state are dicts by the
        path of the leaf, `clipped` counting the share of its units clipped.

    Raises:
        ValueError: If `max_ratio` or `floor` is not positive, or no scalar; from `update`, if
            `params` is missing.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import transforms
        >>> clip = transforms.adaptive_clip(0.1)
        >>> w = {"kernel": jnp.ones((4, 2))}
        >>> g = {"kernel": jnp.ones((4, 2)) * jnp.array([[1.0, 0.01]])}
        >>> updates, state = clip.update(g, clip.init(w), w)
        >>> print(updates["kernel"][0], state.rate["kernel"])
        [0.1  0.01] 0.5

    Source:
        Brock, De, Smith and Simonyan (2021), High-performance large-scale image recognition without
        normalization.
    """
    _check_threshold("max_ratio", max_ratio)
    _check_threshold("floor", floor)

    def clip(updates, params):
        if params is None:
            raise ValueError(
                "params is None, but adaptive_clip compares gradients with weights: call "
                "update(updates, state, params)"
            )
        reports = {}

        def shrink(path, g, w):
            name = _text(path)
            along = {axis % jnp.ndim(g) for axis in units(name, jnp.ndim(g))}
            root_norm = lambda a: _root_norm_along(a, along)
            root = root_norm(g)
            dtype = root.dtype
            least = jnp.sqrt(_positive(floor, dtype))
            limit = jnp.sqrt(_positive(max_ratio, dtype))
            allowed = limit * jnp.maximum(root_norm(w).astype(dtype), least)
            report = _report(allowed, root)
            clipped = _shrink(g, report.root_scale)
            before, after = _root_norm(g), _root_norm(clipped)
            ratio = jnp.where(before == 0, 1, after / jnp.where(before == 0, 1, before))
            reports[name] = _Report(jnp.mean(report.clipped), ratio)
            return clipped

        return jax.tree_util.tree_map_with_path(shrink, updates, params), reports

    return _transformation(clip)


def _transformation(clip) -> optax.GradientTransformation:
    """The transformation of `clip(updates, params) -> (clipped, reports)`."""

    def init(params):
        reports = jax.eval_shape(lambda p: clip(p, p)[1], params)
        zeros = lambda field: _fields(reports, lambda one: jnp.zeros(one.shape, one.dtype), field)
        ones = _fields(reports, lambda one: jnp.ones(one.shape, one.dtype), "root_scale")
        return ClipState(jnp.zeros((), jnp.int32), zeros("clipped"), ones, zeros("root_scale"))

    def update(updates, state, params=None):
        clipped, reports = clip(updates, params)
        add = lambda total, more: total + more.astype(total.dtype)
        logs = _fields(reports, lambda root: 2 * jnp.log(root), "root_scale")
        scale = _fields(reports, lambda root: root**2, "root_scale")
        return clipped, ClipState(
            state.steps + 1,
            jax.tree.map(add, state.clipped, _fields(reports, lambda one: one, "clipped")),
            jax.tree.map(lambda old, new: new.astype(old.dtype), state.scale, scale),
            jax.tree.map(add, state.log_scale, logs),
        )

    return optax.GradientTransformation(init, update)


def _fields(reports, function, field):
    """A function of one field of a report, or of each of a dict of them."""
    is_report = lambda node: isinstance(node, _Report)
    return jax.tree.map(lambda one: function(getattr(one, field)), reports, is_leaf=is_report)


def _report(root_limit, root_norm) -> _Report:
    """Of scaling something of one norm to at most another one, both given by their roots."""
    beyond = root_norm > root_limit
    scale = jnp.where(beyond, root_limit / jnp.where(beyond, root_norm, 1), 1)
    # NaN is beyond nothing, but must not pass for a norm within the limit.
    unknown = jnp.isnan(root_norm) | jnp.isnan(root_limit)
    return _Report(beyond.astype(root_norm.dtype), jnp.where(unknown, jnp.nan, scale))


def _shrink(g, root_scale):
    """A gradient times a scale, given by its root: the scale itself may underflow."""
    with jax.numpy_dtype_promotion("standard"):
        wide = jnp.result_type(g, root_scale)
    root = root_scale.astype(wide)
    return jnp.where(root == 1, g, (g.astype(wide) * root * root).astype(g.dtype))


def _root_norm(tree) -> Array:
    """The square root of the Euclidean norm: finite even where the norm overflows."""
    norm = norms.global_norm(tree)
    # The norm of finite entries may exceed the largest number by the root of their count.
    down = 2.0**-64
    smaller = norms.global_norm(jax.tree.map(lambda g: g * down, tree))
    # The root has no derivative at 0, where the norm is flat by convention.
    flat, over = norm == 0, jnp.isinf(norm)
    root = jnp.sqrt(jnp.where(over, smaller, jnp.where(flat, 1, norm)))
    return jnp.where(over, root * down**-0.5, jnp.where(flat, 0, root))


def _root_norm_along(a, units) -> Array:
    """The root of the norm of each unit of an array, its other axes kept with length one."""
    order = [*sorted(units), *(axis for axis in range(jnp.ndim(a)) if axis not in units)]
    shape = [size if axis in units else 1 for axis, size in enumerate(jnp.shape(a))]
    rows = jnp.transpose(a, order).reshape(int(np.prod(shape)), -1)
    return jax.vmap(_root_norm)(rows).reshape(shape)


def _layers(tree, layer) -> dict[str, dict[str, Array]]:
    """The leaves of each layer, by their paths."""
    layers: dict[str, dict[str, Array]] = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = _text(path)
        layers.setdefault(layer(name), {})[name] = leaf
    return layers


def _stack(name, members, stacked) -> tuple[int, ...]:
    """The lengths of the leading axes of a layer's leaves that run over layers."""
    stacks = {path: jnp.shape(leaf)[: stacked(path)] for path, leaf in members.items()}
    if len(set(stacks.values())) > 1:
        raise ValueError(
            f"the leaves of layer {name!r} are stacked as {stacks}; want the same leading axes of "
            "all: name them by other layers, or give stacked=0 for each"
        )
    return next(iter(stacks.values()))


def _text(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_threshold(name, value) -> None:
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} has shape {jnp.shape(value)}; want a scalar")
    if not isinstance(value, Tracer) and not np.asarray(value) > 0:
        raise ValueError(f"{name} is {value}; want {name} > 0, infinite to clip nothing")


def _positive(value, dtype) -> Array:
    """A threshold in the dtype of what it bounds; NaN where a traced one is not positive."""
    value = jnp.asarray(value).astype(dtype)
    return jnp.where(value > 0, value, jnp.nan)
