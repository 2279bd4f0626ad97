r"""How flat the loss is around trained weights: by random steps, and by its curvature.

Each measure comes by the weights themselves, and relative to their sizes,
:math:`w_i = (1 + v_i)\, \hat w_i`: what the second kind sees does not change where a ReLU layer
is multiplied and the next one divided, unit by unit or as a whole, which leaves the function alone
and makes the first kind anything (Dinh et al. 2017).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from dltheory.measure import arguments, curvature
from dltheory.networks import regularizers

Loss = Callable[[Array], Array]

# Natural logarithms between which the deviation is looked for, and halvings of that.
_LOWEST, _HIGHEST, _HALVINGS = -16.0, 8.0, 40


def relative(f: Callable, params: Any) -> tuple[Callable, Any]:
    r"""A model by the relative changes of its weights.

    .. math:: g(v, x) = f\big((1 + v) \odot \hat w,\, x\big)

    Every measure of curvature of `g` at 0 is one relative to the sizes of the weights.

    Args:
        f: `f(params, x) -> y`.
        params: The weights :math:`\hat w`, any pytree of floating-point arrays.

    Returns:
        `g(v, x) -> y`, and the zeros to evaluate it at, a pytree like `params`.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import flatness
        >>> g, zeros = flatness.relative(lambda w, x: x @ w, jnp.array([2.0, 3.0]))
        >>> g(zeros + 0.5, jnp.ones((1, 2)))
        Array([7.5], dtype=float32)

    Source: Tsuzuku, Sato and Sugiyama (2020), Normalized flat minima.
    """
    zeros = jax.tree.map(jnp.zeros_like, params)
    return lambda v, x: f(jax.tree.map(lambda w, v: w + v * w, params, v), x), zeros


def tolerated_noise(
    key: Array,
    loss: Loss,
    f: Callable,
    params: Any,
    x: Array,
    *,
    rise: ArrayLike = 0.1,
    samples: int = 16,
) -> Array:
    r"""The largest deviation of Gaussian noise in the weights that the loss bears.

    .. math:: \sup \{\sigma : \mathbb{E}_z\, L(w + \sigma z) - L(w) \le \rho\}, \qquad
              z \sim \mathcal{N}(0, I)

    up to the first crossing that halving finds, with the same pairs of :math:`\pm z` at every
    :math:`\sigma`. For a quadratic loss it is :math:`(2 \rho / \operatorname{tr} H)^{1/2}`. A
    posterior of that deviation and a prior of the same around the initial weights have the relative
    entropy :math:`\|w - w_0\|^2 / 2 \sigma^2`: it is PAC-Bayes' measure of flatness.

    Args:
        key: The key of the directions.
        loss: `loss(y) -> scalar`, of the model's output alone; close over targets. The 0-1 loss
            will do.
        f: `f(params, x) -> y`. With `relative` the noise is relative to the weights.
        params: Any pytree of floating-point arrays.
        x: Inputs.
        rise: What the loss may rise by, more than 0.
        samples: Pairs of opposite directions.

    Returns:
        The deviation, shape `()`, between 1e-7 and 3e3.

    Raises:
        ValueError: If `samples` or `rise` is not positive (a traced `rise` gives NaN).

    Sources: Neyshabur, Bhojanapalli, McAllester and Srebro (2017), Exploring generalization in deep
        learning; Jiang et al. (2020), Fantastic generalization measures and where to find them.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; want 1 or more")
    leaves, structure = jax.tree.flatten(params)
    dtype = jnp.result_type(*map(jnp.result_type, leaves))
    rise = regularizers.checked("rise", rise, "more than 0", lambda a: a > 0, dtype)
    normal = jax.random.normal(key, (samples, sum(jnp.size(leaf) for leaf in leaves)), dtype)
    at = lambda weights: arguments.scalar(loss(f(weights, x))).astype(dtype)
    still = at(params)

    def moved(step: Array) -> Array:
        parts, start = [], 0
        for leaf in leaves:
            part = step[start : start + jnp.size(leaf)].reshape(jnp.shape(leaf))
            parts.append(leaf + part.astype(jnp.result_type(leaf)))
            start += jnp.size(leaf)
        return at(jax.tree.unflatten(structure, parts))

    def too_far(log_sigma: Array) -> Array:
        step = jnp.exp(log_sigma) * normal
        risen = lax.map(lambda z: moved(z) + moved(-z), step).mean() / 2 - still
        # Weights so far off that the loss overflows are too far.
        return ~(risen <= rise)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        far = too_far(middle)
        return jnp.where(far, low, middle), jnp.where(far, middle, high)

    ends = jnp.asarray(_LOWEST, dtype), jnp.asarray(_HIGHEST, dtype)
    found = jnp.exp(lax.fori_loop(0, _HALVINGS, halve, ends)[0])
    return jnp.where(jnp.isnan(still + rise), jnp.nan, found)


def flatness_measures(
    key: Array,
    loss: Loss,
    f: Callable,
    params: Any,
    x: Array,
    *,
    start: Any = None,
    rise: ArrayLike = 0.1,
    samples: int = 16,
) -> dict[str, Array]:
    r"""Measures of flatness and the complexities that PAC-Bayes makes of them.

    - `noise`: the :math:`\sigma` of `tolerated_noise`;
    - `trace`: that of the Hessian, by random signs;
    - `sharpness`: its curvature of largest magnitude;
    - `pac_bayes`: :math:`\|w - w_0\|^2 / 2 \sigma^2`, the relative entropy to a prior of the same
      deviation around the initial weights, or around zero;

    the first three once more relative to the weights, as `relative_noise` and so on, and
    `relative_pac_bayes`, :math:`P / 2 \sigma^2`, the relative entropy to a prior around zero that
    knows the sizes of the :math:`P` weights. These four stay under rescaling of ReLU layers.

    Args:
        key: The key of all random directions.
        loss: `loss(y) -> scalar`, of the model's output alone, twice differentiable.
        f: `f(params, x) -> y`.
        params: Any pytree of floating-point arrays, all of which influence the output.
        x: Inputs.
        start: The initial weights, a pytree like `params`; zero by default.
        rise: As in `tolerated_noise`.
        samples: Pairs of directions of the noise, and random signs of the trace, at least 2.

    Returns:
        Scalars by name.

    Raises:
        TypeError, ValueError: As `tolerated_noise`, `curvature.trace` and
            `curvature.top_eigenvalues`.

    Sources: Dinh, Pascanu, Bengio and Bengio (2017), Sharp minima can generalize for deep nets;
        Neyshabur et al. (2017); Jiang et al. (2020).
    """
    away = params if start is None else jax.tree.map(jnp.subtract, params, start)
    squares = jnp.stack([jnp.sum(a**2) for a in jax.tree.leaves(away)]).sum()
    count = sum(map(jnp.size, jax.tree.leaves(params)))
    zeros = jax.tree.map(jnp.zeros_like, params)
    keys = jax.random.split(key, 3)

    def of(scale: Any) -> dict[str, Array]:
        g = lambda v, x: f(jax.tree.map(lambda w, s, v: w + s * v, params, scale, v), x)
        return {
            "noise": tolerated_noise(keys[0], loss, g, zeros, x, rise=rise, samples=samples),
            "trace": curvature.trace(keys[1], loss, g, zeros, x, probes=samples).value,
            "sharpness": curvature.top_eigenvalues(keys[2], loss, g, zeros, x, 1)[0][0],
        }

    # One program for both, which takes longer to compile than to run.
    both = lax.map(of, jax.tree.map(lambda w: jnp.stack([jnp.ones_like(w), w]), params))
    found = {}
    for index, (prefix, distance) in enumerate((("", squares), ("relative_", count))):
        mine = {f"{prefix}{name}": values[index] for name, values in both.items()}
        mine[f"{prefix}pac_bayes"] = distance / (2 * mine[f"{prefix}noise"] ** 2)
        found |= mine
    return found
