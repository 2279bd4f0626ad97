r"""What a trained model makes of new examples: the gap, bias and variance, margins, complexity.

The complexity measures are for any classifier `f(params, x)`; its kernels are found in its program.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy import special
from jax.typing import ArrayLike

from dltheory.measure import kernel_norms
from dltheory.networks import regularizers
from dltheory.networks.data import Data, random_labels
from dltheory.numerics import norms


class Gap(NamedTuple):
    """How much worse a model is on new examples.

    Attributes:
        train: Mean loss on the examples that it was trained on.
        test: Mean loss on new ones.
        gap: The second less the first.
        stderr: Standard error of the gap.
        lower: Lower end of its confidence interval.
        upper: Upper end.
    """

    train: Array
    test: Array
    gap: Array
    stderr: Array
    lower: Array
    upper: Array


class Decomposition(NamedTuple):
    """The mean loss of an ensemble in three parts, which add up to it.

    Attributes:
        loss: Mean loss over members, draws of the targets and examples, shape `()`.
        bias: That of the typical prediction beyond the noise.
        variance: What the members add by differing from the typical one; for the 0-1 loss it is
            negative where they are right more often than that.
        noise: That of the best prediction.
    """

    loss: Array
    bias: Array
    variance: Array
    noise: Array


class Sources(NamedTuple):
    """Where the variance of an ensemble comes from; the parts add up to it.

    Attributes:
        data: From the sample of training examples.
        initialization: From all else that is random: initial weights, the order of examples.
    """

    data: Array
    initialization: Array


def gap(train_losses: Array, test_losses: Array, *, level: float = 0.95) -> Gap:
    r"""The gap between test and training loss, with a confidence interval.

    .. math:: \bar\ell_{test} - \bar\ell_{train} \pm
              z \sqrt{\frac{s_{test}^2}{n_{test}} + \frac{s_{train}^2}{n_{train}}}

    for one trained model, over the draw of examples. Another training would give another gap: for
    the spread over seeds take the standard error of `gap` over them.

    Args:
        train_losses: Loss, or error, of each training example, shape `(..., n_train)`.
        test_losses: The same of new examples, shape `(..., n_test)`.
        level: Level of confidence, in (0, 1).

    Returns:
        `Gap`, each field of the shape of the leading axes.

    Raises:
        ValueError: If there are fewer than two examples in either, the leading axes differ, or
            `level` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import generalization
        >>> found = generalization.gap(jnp.array([0.0, 0.2]), jnp.array([1.0, 0.8, 0.6]))
        >>> print(f"{found.gap:.2f} from {found.lower:.2f} to {found.upper:.2f}")
        0.70 from 0.40 to 1.00
    """
    shapes = train_losses.shape, test_losses.shape
    if min(map(len, shapes)) == 0 or min(shape[-1] for shape in shapes) < 2:
        raise ValueError(f"losses have the shapes {shapes}; want at least two examples in each")
    if shapes[0][:-1] != shapes[1][:-1]:
        raise ValueError(f"losses have the shapes {shapes}; want the same leading axes")
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1); got {level}")
    train, test = (jnp.mean(losses, axis=-1) for losses in (train_losses, test_losses))
    squares = [
        jnp.var(losses, axis=-1, ddof=1) / losses.shape[-1]
        for losses in (train_losses, test_losses)
    ]
    stderr = jnp.sqrt(squares[0] + squares[1])
    z = special.ndtri(jnp.asarray((1 + level) / 2, stderr.dtype))
    difference = test - train
    return Gap(train, test, difference, stderr, difference - z * stderr, difference + z * stderr)


def bias_variance(predictions: Array, targets: Array, *, kind: str = "squared") -> Decomposition:
    r"""The loss of an ensemble as bias, variance and noise.

    .. math:: \mathbb{E}\, \ell(f, y)
              &= \underbrace{\mathbb{E}\, \ell(\bar f, y) - \mathbb{E}\, \ell(\bar y, y)}_{bias} \\
              &+ \underbrace{\mathbb{E}\, \ell(f, y) - \mathbb{E}\, \ell(\bar f, y)}_{variance}
              + \underbrace{\mathbb{E}\, \ell(\bar y, y)}_{noise}

    with :math:`\bar f` and :math:`\bar y` the mean for the squared loss, where the parts are
    :math:`(\bar f - \bar y)^2` and the two variances, and the commonest label for the 0-1 loss. All
    are those of the members given: with few of them the bias is too large and the variance too
    small, by the variance over their number.

    Args:
        predictions: Of each member, shape `(members, N, ...)`; labels for the 0-1 loss, with the
            shape `(members, N)`.
        targets: Shape `(N, ...)`, or several draws of them, `(draws, N, ...)`, for the noise.
        kind: `"squared"`, summed over further axes, or `"zero_one"`.

    Returns:
        `Decomposition`.

    Raises:
        ValueError: If the shapes do not fit, there is no member or no example, or `kind` is
            neither.

    Sources: Geman, Bienenstock and Doursat (1992); James (2003), Variance and bias for general loss
        functions.
    """
    if kind not in ("squared", "zero_one"):
        raise ValueError(f"kind is {kind!r}; want 'squared' or 'zero_one'")
    draws = targets if targets.ndim == predictions.ndim else targets[None]
    wanted = 2 if kind == "zero_one" else predictions.ndim
    fits = predictions.ndim == wanted >= 2 and draws.shape[1:] == predictions.shape[1:]
    if not fits or 0 in (*predictions.shape[:2], draws.shape[0]):
        raise ValueError(
            "predictions must be (members, N, ...) and targets (N, ...) or (draws, N, ...), two "
            f"axes at most for labels; got {predictions.shape} and {targets.shape}"
        )
    if kind == "squared":
        typical = lambda a: jnp.mean(a, axis=0)
        total = lambda a: jnp.mean(jnp.sum(a.reshape(*a.shape[:3], -1), axis=-1))
        loss = lambda f, y: total((f[:, None] - y[None]) ** 2)
    else:
        typical = _commonest
        loss = lambda f, y: jnp.mean((f[:, None] != y[None]).astype(float))
    centre, best = typical(predictions)[None], typical(draws)[None]
    whole, noise = loss(predictions, draws), loss(best, draws)
    if kind == "squared":
        # The same numbers as differences of losses, without the cancellation.
        return Decomposition(whole, loss(centre, best), loss(predictions, centre), noise)
    middle = loss(centre, draws)
    return Decomposition(whole, middle - noise, whole - middle, noise)


def variance_sources(predictions: Array) -> Sources:
    r"""The variance of predictions, by the law of total variance.

    .. math:: \operatorname{Var} f = \operatorname{Var}_D \mathbb{E}[f | D]
              + \mathbb{E}_D \operatorname{Var}[f | D]

    Args:
        predictions: Shape `(data, initializations, N, ...)`: several trainings on each of several
            samples.

    Returns:
        `Sources`, means over examples and sums over further axes.

    Raises:
        ValueError: If there are fewer than three axes.

    Source: Neal et al. (2018), A modern take on the bias-variance tradeoff in neural networks.
    """
    if predictions.ndim < 3:
        raise ValueError(
            f"predictions has shape {predictions.shape}; want (data, initializations, N, ...)"
        )
    total = lambda a: jnp.mean(jnp.sum(a.reshape(*a.shape[:3], -1), axis=-1))
    each = jnp.mean(predictions, axis=1, keepdims=True)
    mean = jnp.mean(each, axis=0, keepdims=True)
    return Sources(total((each - mean) ** 2), total((predictions - each) ** 2))


def margins(outputs: Array, y: ArrayLike) -> Array:
    r"""By how much the output of the true class exceeds all others.

    .. math:: f_y(x) - \max_{k \ne y} f_k(x)

    Args:
        outputs: Shape `(N, classes)`.
        y: Labels, integers, shape `(N,)`.

    Returns:
        The margins, shape `(N,)`; negative where the model errs.

    Raises:
        TypeError: If `y` does not hold integers.
        ValueError: If the shapes do not fit, or a label is out of range (under tracing its margin
            is NaN).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import generalization
        >>> outputs = jnp.array([[3.0, 1.0], [0.0, 0.5]])
        >>> print(generalization.margins(outputs, jnp.array([0, 0])))
        [ 2.  -0.5]
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2 or jnp.shape(y) != outputs.shape[:1]:
        raise ValueError(
            "outputs must be (N, classes), two or more, and y (N,); got "
            f"{outputs.shape} and {jnp.shape(y)}"
        )
    classes = outputs.shape[1]
    y = regularizers.check_labels(y, classes)
    true = jax.nn.one_hot(y, classes, dtype=bool)
    own = jnp.sum(jnp.where(true, outputs, 0), axis=1)
    other = jnp.max(jnp.where(true, -jnp.inf, outputs), axis=1)
    return jnp.where((y >= 0) & (y < classes), own - other, jnp.nan)


def complexity_measures(f: Callable, params: Any, x: Array, y: ArrayLike) -> dict[str, Array]:
    r"""Norms and margins of a classifier, of which theories of generalisation are made.

    With a kernel :math:`W_l` for each layer and the margin :math:`\gamma`, the tenth percentile of
    those on `x`, the natural logarithms of

    - `log_l2`: :math:`\|\theta\|`, of all parameters;
    - `log_frobenius`: :math:`\prod_l \|W_l\|_F`;
    - `log_spectral`: :math:`\prod_l \|W_l\|_2`;
    - `log_path`: :math:`\big(\sum_{\text{paths}} \prod w^2\big)^{1/2}`, as :math:`f(\theta^2, 1)`:
      for ReLU networks without normalisation;
    - `log_spectral_complexity`:
      :math:`\prod_l \|W_l\|_2\, \big(\sum_l (\|W_l\|_{2,1} / \|W_l\|_2)^{2/3}\big)^{3/2}`;

    the last four once more over the margin (`log_path_margin` and so on; infinite where it is not
    positive); `margin` itself; `fisher_rao`,
    :math:`(\mathbb{E} \langle \theta, \nabla_\theta \ell \rangle^2)^{1/2}` for the cross-entropy
    :math:`\ell`; and the number of `parameters`. The norms of kernels are those of `kernel_norms`.

    Multiplying a ReLU layer and dividing the next one leaves all as they are but `log_l2`; doing so
    unit by unit, those with `path` in their names, `margin` and `fisher_rao`.

    Args:
        f: `f(params, x) -> outputs`, shape `(N, classes)`.
        params: Any pytree of floating-point arrays.
        x: Inputs, shape `(N, ...)`.
        y: Labels, integers, shape `(N,)`.

    Returns:
        Scalars by name.

    Raises:
        SiteError: If the model has no layers.
        ValueError: If a layer's weights are more than the axes of one leaf, the outputs are not
            `(N, classes)`, or a label is out of range.

    Sources: Neyshabur, Tomioka and Srebro (2015); Bartlett, Foster and Telgarsky (2017); Liang,
        Poggio, Rakhlin and Stokes (2019); Jiang et al. (2020).
    """
    kernels = kernel_norms.kernel_norms(f, params, x)
    spectral = jnp.sum(kernels.log_spectral)
    # A layer of zeros has units of norm zero, and no ratio.
    ratios = jnp.exp((kernels.log_units - kernels.log_spectral) * (2 / 3))
    ratios = jnp.sum(jnp.where(kernels.log_units == -jnp.inf, 0, ratios))

    outputs, along = jax.jvp(lambda params: f(params, x), (params,), (params,))
    margin = jnp.quantile(margins(outputs, y), jnp.asarray(0.1, outputs.dtype))
    squares = f(jax.tree.map(jnp.square, params), jnp.ones_like(x[:1]))
    residual = jax.nn.softmax(outputs) - jax.nn.one_hot(y, outputs.shape[1], dtype=outputs.dtype)
    scores = jnp.sum(residual * along, axis=1)
    products = {
        "log_frobenius": jnp.sum(kernels.log_frobenius),
        "log_spectral": spectral,
        "log_path": jnp.log(jnp.sum(squares)) / 2,
        "log_spectral_complexity": spectral + 1.5 * jnp.log(ratios),
    }
    right = margin > 0
    log_margin = jnp.where(right, jnp.log(jnp.where(right, margin, 1)), -jnp.inf)
    log_margin = jnp.where(jnp.isnan(margin), jnp.nan, log_margin)
    over = {f"{name}_margin": value - log_margin for name, value in products.items()}
    return {
        "log_l2": norms.log_global_norm(params),
        **products,
        **over,
        "margin": margin,
        "fisher_rao": jnp.sqrt(jnp.mean(scores**2)),
        "parameters": jnp.asarray(sum(map(jnp.size, jax.tree.leaves(params))), jnp.int32),
    }


def rank_correlation(measure: Array, gaps: Array) -> Array:
    r"""Kendall's correlation of ranks, between a measure and what it is to predict.

    .. math:: \tau = \frac{\sum_{i < j} \operatorname{sign}(a_i - a_j)
              \operatorname{sign}(b_i - b_j)}{\sqrt{n_a\, n_b}}

    with the numbers of pairs that are not tied.

    Args:
        measure: Shape `(n,)`, at least two.
        gaps: Shape `(n,)`.

    Returns:
        The correlation, between -1 and 1; NaN where either is constant.

    Raises:
        ValueError: If the shapes differ, or there are fewer than two.

    Source: Kendall (1945).
    """
    if measure.ndim != 1 or measure.shape != gaps.shape or len(gaps) < 2:
        raise ValueError(
            f"measure and gaps have the shapes {measure.shape} and {gaps.shape}; want (n,) of two "
            "or more, of both"
        )
    dtype = jnp.result_type(float)
    a, b = (jnp.sign(v[:, None] - v[None, :]).astype(dtype) for v in (measure, gaps))
    return jnp.sum(a * b) / jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))


def under_random_labels(
    key: Array,
    fit: Callable[[Array, Data], Any],
    data: Data,
    classes: int,
    shares: Array,
) -> Any:
    """Fit a model again and again, with more and more of the labels replaced by random ones.

    Args:
        key: The key of the labels and of the fits.
        fit: `fit(key, data)`, any pytree of arrays: errors, losses, steps until they vanish.
        data: Examples with integer labels.
        classes: How many classes there are.
        shares: The probabilities that a label is replaced, shape `(shares,)`.

    Returns:
        What `fit` returned, each leaf with a leading axis over `shares`. The same labels and the
        same random numbers serve all: what is replaced at one share is at all larger ones.

    Raises:
        TypeError: If the labels are no integers.
        ValueError: If a label or a share is out of range (a traced share gives labels of -1).

    Source: Zhang, Bengio, Hardt, Recht and Vinyals (2017), Understanding deep learning requires
        rethinking generalization.
    """
    key_labels, key_fit = jax.random.split(key)
    regularizers.check_labels(data.y, classes)
    return jax.vmap(lambda share: fit(key_fit, random_labels(key_labels, data, classes, share)))(
        shares
    )


def _commonest(labels: Array) -> Array:
    """The commonest of the labels along the first axis; of several, the smallest."""
    counts = jnp.sum(labels[:, None] == labels[None], axis=1, dtype=jnp.int32)
    winners = counts == jnp.max(counts, axis=0, keepdims=True)
    return jnp.min(jnp.where(winners, labels, jnp.iinfo(labels.dtype).max), axis=0)
