"""Training a network whose tangent kernel stays as it is: gradient flow in closed form."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from dltheory.theory.parameters import checked


def predict(
    k_train: ArrayLike,
    k_test: ArrayLike,
    y: ArrayLike,
    *,
    time: ArrayLike = jnp.inf,
    ridge: ArrayLike = 0.0,
    initial: tuple[ArrayLike, ArrayLike] | None = None,
) -> Array:
    r"""Predictions of a network with a fixed tangent kernel after training for some time.

    .. math:: f_t = f_0 + K_{*}\,\frac{1 - e^{-(K + \lambda) t}}{K + \lambda}\,(y - f_0)

    is the gradient flow of :math:`\tfrac12\|f - y\|^2 + \tfrac{\lambda}{2}\|\theta - \theta_0\|^2`
    over the training set. At infinite time it is kernel (ridge) regression, and the posterior mean
    of a Gaussian process if the kernel is the NNGP's and the ridge the variance of its noise.

    Each eigenvalue of `K` has its own clock, exact for small ones too. At times when they would
    matter, eigenvalues that are zero to rounding are left out: the minimum-norm solution.

    Args:
        k_train: Kernel between training inputs, shape `(n, n)`, symmetric.
        k_test: Kernel between the inputs to predict at and the training inputs, shape `(m, n)`.
        y: Targets, shape `(n,)` or `(n, outputs)`; the outputs share the kernel.
        time: Training times, any shape; infinite for the end of training.
        ridge: The penalty, shape `()`.
        initial: Outputs before training at the training and at the other inputs, of the shapes of
            `y` and of the result; zero by default.

    Returns:
        Predictions, shape `(*time.shape, m)` or `(*time.shape, m, outputs)`. Derivatives with
        respect to `k_train` are NaN where it has equal eigenvalues.

    Raises:
        ValueError: If the shapes do not fit, or a time or the ridge is negative (under tracing
            the result is NaN instead).

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.theory import kernel_regression
        >>> k = jnp.array([[2.0, 1.0], [1.0, 2.0]])
        >>> y, time = jnp.array([1.0, -1.0]), jnp.array([0.0, 1.0, jnp.inf])
        >>> f = kernel_regression.predict(k, k[0][None], y, time=time)
        >>> print(jnp.round(f[:, 0], 3))  # 1 - exp(-t)
        [0.    0.632 1.   ]

    Sources: Jacot et al. (2018), Lee et al. (2019).
    """
    dtype = jnp.result_type(float, k_train, k_test, y)
    k_train, k_test, y = (jnp.asarray(a, dtype) for a in (k_train, k_test, y))
    n = k_train.shape[0] if k_train.ndim else 0
    if k_train.shape != (n, n) or k_test.shape[1:] != (n,) or y.shape[:1] != (n,) or y.ndim > 2:
        raise ValueError(
            "k_train must be (n, n), k_test (m, n) and y (n,) or (n, outputs); got "
            f"{k_train.shape}, {k_test.shape} and {y.shape}"
        )
    time, ridge = checked(time=time, ridge=ridge)
    time, ridge = time.astype(dtype)[..., None], ridge.astype(dtype)
    shapes = y.shape, (k_test.shape[0], *y.shape[1:])
    if initial is None:
        initial = jnp.zeros(shapes[0], dtype), jnp.zeros(shapes[1], dtype)
    f_train, f_test = (jnp.asarray(f, dtype) for f in initial)
    if (f_train.shape, f_test.shape) != shapes:
        raise ValueError(
            f"initial must hold outputs of the shapes {shapes[0]} and {shapes[1]}; got "
            f"{f_train.shape} and {f_test.shape}"
        )

    values, vectors = jnp.linalg.eigh(k_train)
    floor = n * jnp.finfo(dtype).eps * jnp.max(jnp.abs(values))
    rate = jnp.maximum(values, 0) + ridge
    rate = jnp.expand_dims(rate, tuple(range(time.ndim - 1)))
    # What is chosen against stays finite, for the sake of derivatives.
    some, ended = jnp.where(rate == 0, 1, rate), time == jnp.inf
    learnt = jnp.where(ended, 1, -jnp.expm1(-some * jnp.where(ended, 1, time)))
    clock = jnp.where(rate == 0, time, learnt / some)
    clock = jnp.where((rate <= floor) & ~(time * floor < 1), 0, clock)  # (*time.shape, n)

    residual = jnp.tensordot(vectors, y - f_train, ((0,), (0,)))
    times = tuple(range(clock.ndim - 1))
    towards = jnp.expand_dims(k_test @ vectors, times)
    return jnp.expand_dims(f_test, times) + jnp.tensordot(
        towards * clock[..., None, :], residual, ((-1,), (0,))
    )
