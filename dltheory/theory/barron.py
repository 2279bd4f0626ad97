r"""Barron sampling: networks whose units are drawn from the Fourier measure of the target.

A target that is a mean of cosines is copied by the mean of `n` of them, drawn at random: Monte
Carlo, no weight is fitted. Its mean squared error on the unit cube :math:`[-1/2, 1/2]^d` is exactly
a constant of the target over `n`, in any dimension.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import erf
from jax.typing import ArrayLike

from dltheory.networks import models
from dltheory.theory.layouts import Construction
from dltheory.theory.parameters import check_count, checked


class Spectrum(NamedTuple):
    r"""A target as a mean of cosines.

    .. math:: f(x) = C\, \mathbb{E} \cos(\omega \cdot x + \varphi)

    Attributes:
        f: The target, from shape `(d,)` to `()`.
        mass: The constant :math:`C`, the integral of :math:`|\hat f|`, shape `()`.
        draw: `draw(key, n)`, frequencies of shape `(n, d)` and phases of shape `(n,)`.
        spread: :math:`C^2\, \mathbb{E} \|\cos(\omega \cdot x + \varphi)\|^2 - \|f\|^2` in L2 of
            the unit cube, shape `()`.
    """

    f: Callable[[Array], Array]
    mass: Array
    draw: Callable[[Array, int], tuple[Array, Array]]
    spread: Array


def gaussian_bump(d: int, *, var: ArrayLike = 1.0) -> Spectrum:
    r"""The spectrum of a Gaussian bump at the centre of the cube.

    .. math:: f(x) = \exp\Big(-\sum_i \frac{x_i^2}{2 \sigma_i^2}\Big), \qquad
              \omega_i \sim \mathcal{N}(0, \sigma_i^{-2}), \quad C = 1

    Args:
        d: Dimension.
        var: Squared widths :math:`\sigma_i^2`, more than zero, shape `()` or `(d,)`; infinite
            where the bump is flat.

    Returns:
        The spectrum.

    Raises:
        TypeError: If `d` is not an integer.
        ValueError: If `d` is not positive, `var` has another shape, or is negative (under tracing
            the result is NaN instead).

    Example:
        >>> from dltheory.theory import barron
        >>> for d in (2, 64):
        ...     print(f"{barron.gaussian_bump(d, var=d / 12).spread:.3f}")
        0.187
        0.199
    """
    check_count("d", d)
    (var,) = checked(var=var)
    if var.shape not in ((), (d,)):
        raise ValueError(f"var has shape {var.shape}; want () or ({d},), one for each axis")
    rate = jnp.broadcast_to(1 / var, (d,))

    def mean(rate):
        """Of a bump exp(-rate x^2) over the cube."""
        flat = rate < jnp.finfo(rate.dtype).eps
        root = jnp.sqrt(jnp.where(flat, 1, rate))
        return jnp.prod(jnp.where(flat, 1, math.sqrt(math.pi) * erf(root / 2) / root))

    def draw(key, n):
        return jnp.sqrt(rate)[None] * jax.random.normal(key, (n, d), rate.dtype), jnp.zeros(
            n, rate.dtype
        )

    return Spectrum(
        lambda x: jnp.exp(-jnp.sum(rate.astype(x.dtype) * x**2) / 2),
        jnp.ones((), rate.dtype),
        draw,
        (1 + mean(2 * rate)) / 2 - mean(rate),
    )


def cosines(frequencies: ArrayLike, amplitudes: ArrayLike, phases: ArrayLike) -> Spectrum:
    r"""The spectrum of a sum of `m` cosines.

    .. math:: f(x) = \sum_{j=1}^m a_j \cos(\omega_j \cdot x + \varphi_j), \qquad C = \sum_j |a_j|

    Args:
        frequencies: The vectors :math:`\omega_j`, shape `(m, d)`.
        amplitudes: The factors :math:`a_j`, shape `(m,)`, not all of them zero.
        phases: The angles :math:`\varphi_j`, shape `(m,)`.

    Returns:
        The spectrum.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    dtype = jnp.result_type(float, frequencies, amplitudes, phases)
    omega, a, phi = (jnp.asarray(x, dtype) for x in (frequencies, amplitudes, phases))
    if omega.ndim != 2 or a.shape != omega.shape[:1] or phi.shape != a.shape:
        raise ValueError(
            f"frequencies, amplitudes and phases have shapes {omega.shape}, {a.shape} and "
            f"{phi.shape}; want (m, d), (m,) and (m,)"
        )
    size, angle = jnp.abs(a), phi + jnp.where(a < 0, math.pi, 0).astype(dtype)
    mass = jnp.sum(size)
    # The mean of cos(w x + p) over the cube is this times cos(p).
    mean = lambda w: jnp.prod(jnp.sinc(w / (2 * math.pi)), -1)
    units = (1 + jnp.cos(2 * angle) * mean(2 * omega)) / 2
    pairs = sum(
        jnp.cos(angle[:, None] + sign * angle[None]) * mean(omega[:, None] + sign * omega[None])
        for sign in (1, -1)
    )

    def draw(key, n):
        index = jax.random.categorical(key, jnp.log(size), shape=(n,))
        return omega[index], angle[index]

    def f(x):
        cast = lambda part: part.astype(x.dtype)
        return jnp.sum(cast(a) * jnp.cos(cast(omega) @ x + cast(phi)))

    return Spectrum(f, mass, draw, mass * jnp.sum(size * units) - size @ pairs @ size / 2)


def sample(key: Array, target: Spectrum, n: int) -> Construction:
    r"""A network of one hidden layer whose `n` units are drawn from the Fourier measure.

    .. math:: f_n(x) = \frac{C}{n} \sum_{i=1}^n \cos(\omega_i \cdot x + \varphi_i)

    Args:
        key: Random key.
        target: What to approximate.
        n: Number of units.

    Returns:
        The network, with the activation :math:`\cos`. Its bound, :math:`2 C`, holds everywhere and
        for any draw; for what is to be expected see `sampling_error`.

    Raises:
        TypeError: If `n` is not an integer.
        ValueError: If `n` is not positive.

    Example:
        >>> import jax
        >>> from dltheory.theory import barron
        >>> net = barron.sample(jax.random.key(0), barron.gaussian_bump(64), 256)
        >>> net.params["params"]["first"]["kernel"].shape
        (64, 256)

    Source:
        Barron (1993), Universal approximation bounds for superpositions of a sigmoidal function,
        Lemma 1, with its argument by Maurey; Rahimi & Recht (2008), Weighted sums of random kitchen
        sinks.
    """
    check_count("n", n)
    frequencies, phases = target.draw(key, n)
    outer = jnp.broadcast_to(target.mass / n, (n, 1)).astype(frequencies.dtype)
    params = {
        "first": {"kernel": frequencies.T, "bias": phases},
        "last": {"kernel": outer, "bias": jnp.zeros(1, frequencies.dtype)},
    }
    apply: Any = models.MLP(n, 1, 1, jnp.cos).apply
    bound: Any = 2 * target.mass
    return Construction({"params": params}, apply, bound)


def sampling_error(target: Spectrum, n: int) -> Array:
    r"""Root mean square L2 error on the unit cube of a network that is drawn by `sample`.

    .. math:: \left(\mathbb{E}\, \|f - f_n\|^2\right)^{1/2} = \left(\frac{
        C^2\, \mathbb{E} \|\cos(\omega \cdot x + \varphi)\|^2 - \|f\|^2}{n}\right)^{1/2}
        \le \frac{C}{\sqrt n}

    Args:
        target: What is approximated.
        n: Number of units.

    Returns:
        The error, shape `()`.

    Raises:
        TypeError: If `n` is not an integer.
        ValueError: If `n` is not positive.

    Example:
        >>> from dltheory.theory import barron
        >>> print(f"{barron.sampling_error(barron.gaussian_bump(64, var=64 / 12), 10_000):.5f}")
        0.00446

    Source:
        Barron (1993), Lemma 1.
    """
    check_count("n", n)
    return jnp.sqrt(target.spread / n)


def fixed_features_error(n: int, functions: int) -> float:
    r"""The least root mean square distance of :math:`N` orthonormal functions to `n` features.

    .. math:: \Big(\frac1N \sum_{j=1}^N \operatorname{dist}(e_j, \operatorname{span})^2\Big)^{1/2}
              \ge \Big(1 - \frac nN\Big)_+^{1/2}

    whatever the features, as long as all the functions share them; `n` of the functions themselves
    attain it. The :math:`2 d^2` waves on the cube of the :math:`d^2` slowest frequencies (at most
    two coordinates :math:`\pm 2 \pi`, up to a sign) are orthogonal, and so the number of fixed
    features that is needed grows with the dimension, where `sampling_error` does not.

    Args:
        n: Number of features.
        functions: Their number :math:`N`.

    Returns:
        The distance, relative to the norm of the functions.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If a number is not positive.

    Example:
        >>> from dltheory.theory import barron
        >>> print(f"{barron.fixed_features_error(256, 2 * 64**2):.3f}")
        0.984

    Source:
        Barron (1993), Lemma 6, from which the rate :math:`n^{-1/d}` of Theorem 6 follows.
    """
    check_count("n", n)
    check_count("functions", functions)
    return math.sqrt(max(0.0, 1 - n / functions))
