r"""Regularisation as pure functions: penalties, noise, targets, norms, and when to stop.

What acts on the weights between two steps (proximal maps, projections) is in `proximal`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

Where = Callable[[str], bool]


class Stop(NamedTuple):
    """When training stopped, and what is kept of it.

    Attributes:
        step: Index of the last loss that was looked at, shape `()`.
        best: Index of the best loss until then, shape `()`: the parameters to keep.
        loss: That loss, shape `()`.
        stopped: Whether patience ran out, shape `()`; if not, `step` is the last index.
    """

    step: Array
    best: Array
    loss: Array
    stopped: Array


def l1(params: Any, *, where: Where = lambda _: True) -> Array:
    r"""The sum of absolute values, :math:`\|\theta\|_1`.

    Its gradient at zero is zero, so descent on it never makes a weight exactly zero:
    `proximal.proximal_l1` does.

    Args:
        params: Any pytree of floating-point arrays.
        where: From the path of a leaf, such as `params/Dense_0/kernel`, to whether it counts.

    Returns:
        The penalty, shape `()`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import regularizers
        >>> params = {"kernel": jnp.array([3.0, -4.0]), "bias": jnp.ones(2)}
        >>> print(regularizers.l1(params, where=lambda path: path.endswith("kernel")))
        7.0
    """
    # The derivative of `jnp.abs` at zero is one.
    return _total(params, where, lambda a: jnp.sum(lax.stop_gradient(jnp.sign(a)) * a))


def l2(params: Any, *, where: Where = lambda _: True) -> Array:
    r"""Half of the sum of squares, :math:`\tfrac12 \|\theta\|^2`, whose gradient is the weights.

    Added to a loss it is weight decay in gradient descent, and is not in adaptive methods, where
    the decay must not be divided by the size of gradients (`optax.adamw`).

    Args:
        params: Any pytree of floating-point arrays.
        where: From the path of a leaf to whether it counts.

    Returns:
        The penalty, shape `()`.

    Source: Loshchilov and Hutter (2019), Decoupled weight decay regularization.
    """
    return _total(params, where, lambda a: jnp.sum(a**2) / 2)


def elastic_net(
    params: Any, l1_weight: ArrayLike, l2_weight: ArrayLike, *, where: Where = lambda _: True
) -> Array:
    r"""Both, :math:`\lambda_1 \|\theta\|_1 + \tfrac{\lambda_2}{2} \|\theta\|^2`.

    Args:
        params: Any pytree of floating-point arrays.
        l1_weight: The weight :math:`\lambda_1`, zero or more.
        l2_weight: The weight :math:`\lambda_2`, zero or more.
        where: From the path of a leaf to whether it counts.

    Returns:
        The penalty, shape `()`.

    Raises:
        ValueError: If a weight is negative (under tracing the result is NaN instead).

    Source: Zou and Hastie (2005).
    """
    first, second = l1(params, where=where), l2(params, where=where)
    weights = (("l1_weight", l1_weight), ("l2_weight", l2_weight))
    wanted, legal = "zero or more", lambda a: a >= 0
    a, b = (checked(name, value, wanted, legal, first.dtype) for name, value in weights)
    return a * first + b * second


def dropout(key: Array, x: ArrayLike, keep: ArrayLike) -> Array:
    r"""Entries dropped at random and the others scaled up: :math:`x \odot M / p`.

    Args:
        key: The key of the mask.
        x: Any array.
        keep: Probability :math:`p` that an entry is kept, in (0, 1], shape `()`.

    Returns:
        The array with the mask applied; its mean over masks is `x`.

    Raises:
        ValueError: If `keep` is out of range (under tracing the result is NaN instead).

    Source: Srivastava et al. (2014).
    """
    x = jnp.asarray(x)
    keep = checked("keep", keep, "in (0, 1]", lambda p: (p > 0) & (p <= 1), x.dtype)
    kept = jax.random.uniform(key, x.shape, x.dtype) < keep
    # NaN is never dropped, and a bad probability never hidden.
    return jnp.where(kept | jnp.isnan(x + keep), x / keep, 0)


def mixup(key: Array, x: Array, y: Array, alpha: float) -> tuple[Array, Array]:
    r"""Convex combinations of pairs of examples and of their targets.

    .. math:: \tilde x = \lambda x + (1 - \lambda) x', \qquad
              \tilde y = \lambda y + (1 - \lambda) y', \qquad
              \lambda \sim \mathrm{Beta}(\alpha, \alpha)

    with `x'` the batch in a random order, and one :math:`\lambda` for each example.

    Args:
        key: The key of the order and of the weights.
        x: Inputs, shape `(N, ...)`.
        y: Targets, shape `(N, ...)`, floating-point: labels as rows of probabilities.
        alpha: The parameter :math:`\alpha`, zero or more; at 0 nothing is mixed.

    Returns:
        The mixed inputs and targets.

    Raises:
        TypeError: If `y` holds integers.
        ValueError: If `x` and `y` differ in length, or `alpha` is negative.

    Source: Zhang, Cisse, Dauphin and Lopez-Paz (2018), mixup: beyond empirical risk minimization.
    """
    if not jnp.issubdtype(y.dtype, jnp.floating):
        raise TypeError(f"y holds {y.dtype}; want probabilities: smooth_labels(y, classes, 0.0)")
    if len(x) != len(y):
        raise ValueError(f"x holds {len(x)} examples but y {len(y)}; want one target for each")
    if alpha < 0:
        raise ValueError(f"alpha must be zero or more; got {alpha}")
    if alpha == 0:
        return x, y
    key_order, key_weight = jax.random.split(key)
    order = jax.random.permutation(key_order, len(x))
    weight = jax.random.beta(key_weight, alpha, alpha, (len(x),), x.dtype)

    def mix(a):
        share = weight.astype(a.dtype).reshape(-1, *(1,) * (a.ndim - 1))
        return share * a + (1 - share) * a[order]

    return mix(x), mix(y)


def smooth_labels(y: ArrayLike, classes: int, smoothing: ArrayLike) -> Array:
    r"""Labels as probabilities, some of which is spread over all classes.

    .. math:: (1 - \epsilon)\, \mathbb{1}[k = y] + \epsilon / K

    Args:
        y: Labels, integers from 0 to `classes - 1`, any shape.
        classes: The number :math:`K` of classes.
        smoothing: The share :math:`\epsilon`, in [0, 1], shape `()`.

    Returns:
        Probabilities, shape `(*y.shape, classes)`.

    Raises:
        TypeError: If `y` does not hold integers.
        ValueError: If a label or `smoothing` is out of range (under tracing the result is NaN
            instead).

    Source: Szegedy et al. (2016), Rethinking the inception architecture for computer vision.
    """
    y = check_labels(y, classes)
    dtype = jnp.result_type(float, smoothing)
    unit = lambda a: (a >= 0) & (a <= 1)
    smoothing = checked("smoothing", smoothing, "in [0, 1]", unit, dtype)
    one_hot = jax.nn.one_hot(y, classes, dtype=dtype)
    legal = ((y >= 0) & (y < classes))[..., None]
    return jnp.where(legal, (1 - smoothing) * one_hot + smoothing / classes, jnp.nan)


def max_norm(w: ArrayLike, limit: ArrayLike, *, axis: int | tuple[int, ...] = 0) -> Array:
    r"""Project the weights into each unit onto a ball: :math:`w \min(1, c / \|w\|)`.

    Args:
        w: A kernel.
        limit: The radius :math:`c`, zero or more, shape `()`.
        axis: The axes that are summed over for one unit: 0 for kernels `(inputs, outputs)`.

    Returns:
        The projected kernel: the nearest with norms of at most the limit.

    Raises:
        ValueError: If `limit` is negative (under tracing the result is NaN instead).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import regularizers
        >>> print(regularizers.max_norm(jnp.array([[3.0, 0.3], [4.0, 0.4]]), 1.0))
        [[0.6 0.3]
         [0.8 0.4]]

    Sources: Srebro and Shraibman (2005); Srivastava et al. (2014).
    """
    w = jnp.asarray(w)
    limit = checked("limit", limit, "zero or more", lambda a: a >= 0, w.dtype)
    norm = jnp.sqrt(jnp.sum(w**2, axis=axis, keepdims=True))
    beyond = norm > limit
    scale = jnp.where(beyond, limit / jnp.where(beyond, norm, 1), 1)
    return jnp.where(jnp.isnan(norm + limit), jnp.nan, w * scale)


def early_stopping(losses: Array, patience: int, *, min_delta: ArrayLike = 0.0) -> Stop:
    """When to have stopped, from the history of the loss on held-out examples.

    The best loss so far is replaced by one that is lower by more than `min_delta`. Training stops
    when the best is `patience` steps old. A loss that is NaN is no improvement.

    Args:
        losses: The history, shape `(steps,)`, at least one.
        patience: How many steps in a row may bring no improvement, one or more.
        min_delta: How much lower an improvement must be, zero or more.

    Returns:
        `Stop`.

    Raises:
        ValueError: If there is no loss, `patience` is not positive, or `min_delta` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.networks import regularizers
        >>> history = jnp.array([3.0, 2.0, 2.5, 2.4, 1.0])
        >>> stop = regularizers.early_stopping(history, patience=2)
        >>> print(stop.step, stop.best, stop.loss, stop.stopped)
        3 1 2.0 True

    Source: Prechelt (1998), Early stopping - but when?
    """
    losses = jnp.asarray(losses)
    if losses.ndim != 1 or len(losses) == 0:
        raise ValueError(f"losses has shape {losses.shape}; want (steps,), at least one")
    if patience < 1:
        raise ValueError(f"patience is {patience}; want a positive integer")
    legal = lambda a: a >= 0
    min_delta = checked("min_delta", min_delta, "zero or more", legal, losses.dtype)

    def look(stop: Stop, now):
        step, loss = now
        better = (loss < stop.loss - min_delta) | (jnp.isnan(stop.loss) & ~jnp.isnan(loss))
        best = jnp.where(better, step, stop.best)
        seen = Stop(step, best, jnp.where(better, loss, stop.loss), step - best >= patience)
        return jax.tree.map(lambda old, new: jnp.where(stop.stopped, old, new), stop, seen), None

    steps = jnp.arange(len(losses), dtype=jnp.int32)
    start = Stop(steps[0], steps[0], losses[0], jnp.zeros((), bool))
    return lax.scan(look, start, (steps[1:], losses[1:]))[0]


def check_labels(y: ArrayLike, classes: int) -> Array:
    """Labels as an array, refused where they are no integers or known to be out of range.

    Args:
        y: The labels.
        classes: How many classes there are.

    Returns:
        The labels.

    Raises:
        TypeError: If they are no integers.
        ValueError: If one is not from 0 to `classes - 1`.
    """
    if not jnp.issubdtype(jnp.result_type(y), jnp.integer):
        raise TypeError(f"y holds {jnp.result_type(y)}; want labels, integers: cast them")
    if not isinstance(y, Tracer) and np.size(y):
        low, high = np.asarray(y).min(), np.asarray(y).max()
        if low < 0 or high >= classes:
            raise ValueError(f"y holds labels from {low} to {high}; want 0 to {classes - 1}")
    return jnp.asarray(y)


def checked(
    name: str, value: ArrayLike, wanted: str, legal: Callable[[Any], Any], dtype: Any
) -> Array:
    """A scalar in the dtype of what it acts on: refused if known to be illegal, NaN if traced.

    Args:
        name: What the caller calls it.
        value: The value.
        wanted: What it must be.
        legal: Whether an array is that.
        dtype: The dtype.

    Returns:
        The value.

    Raises:
        ValueError: If it is no scalar, or known not to be legal.
    """
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} has shape {jnp.shape(value)}; want a scalar")
    if not isinstance(value, Tracer) and not legal(np.asarray(value)):
        raise ValueError(f"{name} must be {wanted}; got {value}")
    array = jnp.asarray(value).astype(dtype)
    return jnp.where(legal(array), array, jnp.nan)


def _total(params, where, function):
    """The sum of a function of the leaves that count."""
    leaves = [
        function(leaf)
        for path, leaf in jax.tree.leaves_with_path(params)
        if where(jax.tree_util.keystr(path, simple=True, separator="/"))
    ]
    return sum(leaves[1:], leaves[0]) if leaves else jnp.zeros(())
