r"""Networks whose weights are drawn anew at each use, and descent on the law that they come from.

The law is a Gaussian with a mean and a deviation of its own for each weight. It is held to a prior
around weights that have seen no example, so that what a bound says of both, such as
`theory.pac_bayes`, can be descended and then certified.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax
from jax.typing import ArrayLike

from dltheory.networks import regularizers
from dltheory.networks.data import Data
from dltheory.networks.training import Stepped


class Posterior(NamedTuple):
    r"""A Gaussian law of the weights, :math:`w_i \sim \mathcal{N}(m_i, s_i^2)`, and its prior.

    Attributes:
        mean: The means, a pytree such as the model takes.
        log_std: Natural logarithms of the deviations, a pytree like `mean`.
        log_prior_var: That of the prior's one variance, shape `()`.
        prior_mean: The means of the prior, a pytree like `mean`.
    """

    mean: Any
    log_std: Any
    log_prior_var: Array
    prior_mean: Any


class State(NamedTuple):
    """What a step of `descent` starts from.

    Attributes:
        step: Steps done.
        key: The key that all draws are made from.
        posterior: The law.
        optimizer: State of the `optax` transformation.
    """

    step: Array
    key: Array
    posterior: Posterior
    optimizer: Any


def around(params: Any, std: ArrayLike) -> Posterior:
    """A law that is its own prior, around weights that have seen no example.

    Args:
        params: Any pytree of floating-point arrays.
        std: The deviation of each weight, more than zero.

    Returns:
        The law.

    Raises:
        ValueError: If `std` is not positive (under tracing the law is NaN instead).
    """
    dtype = jnp.result_type(*map(jnp.result_type, jax.tree.leaves(params)))
    log_std = jnp.log(regularizers.checked("std", std, "more than 0", lambda a: a > 0, dtype))
    spread = jax.tree.map(lambda w: jnp.full_like(w, log_std), params)
    return Posterior(params, spread, 2 * log_std, params)


def draw(key: Array, posterior: Posterior) -> Any:
    """Draw the weights of one network.

    Args:
        key: The key.
        posterior: The law.

    Returns:
        Weights, a pytree like `posterior.mean`, with derivatives along the law's parameters.

    Source: Kingma and Welling (2014), section 2.4.
    """
    leaves, structure = jax.tree.flatten(posterior.mean)
    # One draw, cut in parts, compiles in a fraction of the time of one for each leaf.
    normal = jax.random.normal(key, (sum(leaf.size for leaf in leaves),))
    noise, start = [], 0
    for leaf in leaves:
        noise.append(normal[start : start + leaf.size].reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    noise = jax.tree.unflatten(structure, noise)
    return jax.tree.map(
        lambda m, log_s, z: m + jnp.exp(log_s) * z, posterior.mean, posterior.log_std, noise
    )


def relative_entropy(posterior: Posterior) -> Array:
    r"""The relative entropy of a law to its prior.

    .. math:: \mathrm{KL} = \frac12 \sum_i \left[\frac{s_i^2 + (m_i - m_i^0)^2}{\lambda} - 1
              + \log \frac{\lambda}{s_i^2}\right]

    Args:
        posterior: The law.

    Returns:
        The relative entropy in nats, shape `()`.

    Source: Dziugaite and Roy (2017).
    """
    log_var = posterior.log_prior_var

    def of(mean, log_std, centre):
        ratio = 2 * log_std - log_var.astype(mean.dtype)
        away = (mean - centre) ** 2 * jnp.exp(-log_var).astype(mean.dtype)
        return jnp.sum(jnp.expm1(ratio) - ratio + away) / 2

    parts = jax.tree.map(of, posterior.mean, posterior.log_std, posterior.prior_mean)
    return jnp.stack([part.astype(log_var.dtype) for part in jax.tree.leaves(parts)]).sum()


def risks(
    key: Array,
    f: Callable[[Any, Array], Array],
    posterior: Posterior,
    loss: Callable[[Array, Array], Array],
    data: Data,
    samples: int,
) -> Array:
    """The losses of networks drawn from a law, on all examples.

    Args:
        key: The key of the networks.
        f: `f(params, x) -> y`.
        posterior: The law.
        loss: `loss(prediction, y) -> scalar`, a mean over examples.
        data: The examples.
        samples: How many networks.

    Returns:
        Their losses, shape `(samples,)`.

    Raises:
        ValueError: If there is no sample.
    """
    if samples < 1:
        raise ValueError(f"samples is {samples}; want 1 or more")
    one = lambda key: loss(f(draw(key, posterior), data.x), data.y)
    return lax.map(one, jax.random.split(key, samples))


def descent(
    f: Callable[[Any, Array], Array],
    init: Callable[[Array], Posterior],
    loss: Callable[[Array, Array], Array],
    bound: Callable[[Array, Array, Array], Array],
    optimizer: optax.GradientTransformation,
    data: Data,
    *,
    batch: int | None = None,
    record: Callable[[Posterior], Any] | None = None,
) -> Stepped:
    r"""Descend a bound on the risk of networks drawn from a law, by the law's parameters.

    .. math:: (m, s, \lambda) \mapsto B\big(\hat R(m + s \odot z),\,
              \mathrm{KL}(\mathcal{N}(m, s^2) \,\|\, \mathcal{N}(m^0, \lambda)),\, \lambda\big),
              \qquad z \sim \mathcal{N}(0, I)

    with a new :math:`z` and new examples in each step. Means, deviations and the prior's variance
    move; the prior's means stay.

    Args:
        f: `f(params, x) -> y`.
        init: `init(key) -> Posterior`, such as `around` makes of initial weights.
        loss: `loss(prediction, y) -> scalar`, a mean over the examples of a batch; between 0 and 1
            where the bound asks for it, as those of `theory.pac_bayes` do.
        bound: `bound(risk, kl, prior_var) -> scalar`.
        optimizer: Any `optax` transformation.
        data: Inputs and labels, the examples along the first axis of both.
        batch: Examples a step, drawn with replacement, or None for all of them.
        record: `record(posterior)`, a pytree of arrays to follow through training.

    Returns:
        The process, whose state is a `State`; `training.run` goes through it.

    Raises:
        ValueError: If inputs and labels differ in number, or `batch` is out of range.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from dltheory.networks import data, stochastic, training
        >>> process = stochastic.descent(
        ...     lambda w, x: w * x,
        ...     lambda key: stochastic.around(jnp.zeros(1), 1.0),
        ...     lambda prediction, y: 50 * jnp.mean((prediction - y) ** 2),
        ...     lambda risk, kl, prior_var: risk + kl,
        ...     optax.sgd(1e-3),
        ...     data.Data(jnp.ones(1), jnp.ones(1)),
        ... )
        >>> state, _ = training.run(process, jax.random.key(0), 1000)
        >>> bool(jnp.exp(state.posterior.log_std)[0] < 0.2)
        True

    Source: Dziugaite and Roy (2017), Computing nonvacuous generalization bounds for deep
        (stochastic) neural networks with many more parameters than training data.
    """
    examples = len(data.y)
    if len(data.x) != examples:
        raise ValueError(
            f"data holds {len(data.x)} inputs but {examples} labels; want one label for each"
        )
    if batch is not None and not 1 <= batch <= examples:
        raise ValueError(
            f"batch is {batch}; want 1 to {examples}, the number of examples in data, or None"
        )

    def start(key: Array) -> State:
        key_params, key = jax.random.split(key)
        posterior = init(key_params)
        memory = optimizer.init(posterior._replace(prior_mean=None))
        return State(jnp.zeros((), jnp.int32), key, posterior, memory)

    def step(state: State) -> tuple[State, Array]:
        key, (x, y) = jax.random.fold_in(state.key, state.step), data
        if batch is not None:
            key, key_batch = jax.random.split(key)
            chosen = jax.random.randint(key_batch, (batch,), 0, examples, jnp.int32)
            x, y = x[chosen], y[chosen]

        def value(moving: Posterior) -> Array:
            posterior = moving._replace(prior_mean=state.posterior.prior_mean)
            kl, prior_var = relative_entropy(posterior), jnp.exp(posterior.log_prior_var)
            return bound(loss(f(draw(key, posterior), x), y), kl, prior_var)

        # What is None is no part of a pytree: the optimizer never sees the prior's means.
        moving = state.posterior._replace(prior_mean=None)
        found, gradient = jax.value_and_grad(value)(moving)
        updates, memory = optimizer.update(gradient, state.optimizer, moving)
        moving: Any = optax.apply_updates(moving, updates)
        posterior = moving._replace(prior_mean=state.posterior.prior_mean)
        return State(state.step + 1, state.key, posterior, memory), found

    return Stepped(start, step, lambda state: {} if record is None else record(state.posterior))
