r"""The law of squared slopes and its transforms: behind `free_probability`.

The squared slope of a unit is :math:`a = \phi'(h)^2 / \mathbb{E}\,\phi'(h)^2`, `h` Gaussian. The
Gaussian's probability is cut into cells, at every kink too, and in each cell :math:`a` is a
parabola through three Gauss points. Its transforms

.. math:: M(u) = \mathbb{E}\,\frac{a}{u - a}, \qquad \mathbb{E}\,\ln(u - a)

are then closed forms, exact up to the real axis and within the support, where sums over points
would be useless.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import ndtr, ndtri

from dltheory.networks.activations import Activation

_CELLS = 256
_END = 8.6  # standard deviations; what lies beyond has probability 1e-17
_GAUSS = np.sqrt(0.6)
_SMALL = 0.01  # then the next term of a series is 1e-13


class Law(NamedTuple):
    """Law of the squared slopes, relative to their mean.

    Attributes:
        mean: Mean squared slope, shape `()`.
        largest: The largest, relative to the mean, shape `()`.
        mass: Probability of each cell, shape `(cells,)`.
        values: Squared slopes at the three Gauss points of each cell, shape `(cells, 3)`.
    """

    mean: Array
    largest: Array
    mass: Array
    values: Array


def of(phi: Activation, q: Array) -> Law:
    """The law of the squared slopes of an activation.

    Args:
        phi: Activation.
        q: Variance of the pre-activations, shape `()`.

    Returns:
        The law.
    """
    # As q tends to zero: both sides of a kink at the origin.
    std = jnp.sqrt(jnp.where(q == 0, jnp.finfo(q.dtype).tiny, q))
    # Cells are even in asinh(h), because slopes vary on a scale of one in h.
    ends = jnp.arcsinh(_END * std)
    grid = jnp.linspace(-1, 1, _CELLS + 1, dtype=q.dtype)
    edges = jnp.sinh(grid * ends) / std
    kinks = [jnp.clip(k / std, -_END, _END) for k in phi.kinks if k != 0]
    edges = jnp.sort(jnp.concatenate([edges, jnp.stack(kinks)])) if kinks else edges

    # By the smaller tail, where a probability has all its digits.
    side = jnp.where(edges[1:] + edges[:-1] > 0, -1, 1).astype(q.dtype)
    low, high = ndtr(side[None] * jnp.stack([edges[:-1], edges[1:]]))
    middle, half = (low + high) / 2, (high - low) / 2
    nodes = jnp.asarray([[-_GAUSS, 0, _GAUSS]], q.dtype)
    z = side[:, None] * ndtri(middle[:, None] + half[:, None] * nodes)
    slopes = jax.vmap(jax.vmap(jax.grad(phi)))(std * z)

    mass = jnp.abs(high - low)
    values, mass = jnp.square(slopes), mass / jnp.sum(mass)
    mean = jnp.sum(mass[:, None] * values * _weights(q.dtype))
    values = values / mean
    _, slope, bend = _parabola(values)
    curved = (bend < 0) & (jnp.abs(slope) <= -2 * bend)
    vertex = values[:, 1] - slope**2 / jnp.where(curved, 4 * bend, 1)
    largest = jnp.maximum(values.max(), jnp.max(jnp.where(curved, vertex, 0)))
    return Law(mean, largest, mass, values)


def pieces(phi: Activation, q: Array) -> tuple[Array, Array, Array]:
    """The pieces of an activation between its kinks.

    Args:
        phi: Activation.
        q: Variance of the pre-activations, shape `()`.

    Returns:
        The squared slope somewhere in each piece, whether it is constant, and the piece's
        probability, each of shape `(pieces,)`.
    """
    kinks = np.asarray(phi.kinks, float)
    ends = np.concatenate([[-np.inf], kinks, [np.inf]])
    steps = np.array([0.13, 0.37, 0.71])
    inside = []
    for low, high in itertools.pairwise(ends):
        if np.isinf(low) and np.isinf(high):
            inside.append(7 * steps - 3)
        elif np.isinf(low) or np.isinf(high):
            inside.append(high - 5 * steps if np.isinf(low) else low + 5 * steps)
        else:
            inside.append(low + (high - low) * steps)
    slopes = jax.vmap(jax.vmap(jax.grad(phi)))(jnp.asarray(np.stack(inside), q.dtype))
    squares = jnp.square(slopes)
    flat = jnp.ptp(squares, axis=1) <= 8 * jnp.finfo(q.dtype).eps * squares[:, 0]
    std = jnp.sqrt(jnp.where(q == 0, jnp.finfo(q.dtype).tiny, q))
    z = jnp.asarray(kinks, q.dtype) / std
    below = jnp.concatenate([jnp.zeros(1, q.dtype), ndtr(z), jnp.ones(1, q.dtype)])
    return squares[:, 0], flat, jnp.diff(below)


def points(law: Law) -> tuple[Array, Array]:
    """The law as point masses, for functions that are smooth on its support.

    Args:
        law: Law of the squared slopes.

    Returns:
        The points and their probabilities, each of shape `(3 * cells,)`.
    """
    masses = law.mass[:, None] * _weights(law.mass.dtype)
    return law.values.reshape(-1), masses.reshape(-1)


def one_plus_m(law: Law, u: Array) -> Array:
    r"""One more than the transform of moments, :math:`1 + M(u) = \mathbb{E}\,u / (u - a)`.

    Args:
        law: Law of the squared slopes.
        u: Where, complex, with positive imaginary parts, shape `(n,)`.

    Returns:
        The mean, shape `(n,)`.
    """
    # On each cell it is u (atanh w1 - atanh w2) / root.
    (x, y), slope, bend, (real, imag), gap_square, square = _cells(law, u)
    tiny = jnp.finfo(x.dtype).tiny
    # Twice the real part is the logarithm of a quotient, which is above one on one side.
    ahead = x + bend
    along = real * ahead + imag * y
    side = jnp.sign(along)
    near = jnp.square(ahead - side * real) + jnp.square(y - side * imag)
    log = side * jnp.log1p(4 * jnp.abs(along) / jnp.maximum(near, tiny)) / 4
    # Twice the imaginary part is minus two angles, each between zero and pi: that of a product.
    first = 4 * gap_square - square, 4 * jnp.maximum((slope + real) * y - imag * x, 0)
    second = square - 4 * bend * bend, 4 * jnp.abs(bend * imag)
    product = first[0] * second[0] - first[1] * second[1]
    angle = jnp.arctan2(first[0] * second[1] + first[1] * second[0], product)
    angle = -jnp.where(angle < 0, angle + 2 * np.pi, angle) / 2

    # Where w1 is small the closed form cancels, and the Gauss rule is exact.
    small = square <= 4 * _SMALL**2 * gap_square
    size = jnp.maximum(real * real + imag * imag, tiny)
    gaps = u.real[:, None, None] - law.values[None]
    shares = _weights(x.dtype)[None] / jnp.maximum(gaps * gaps + (y * y)[..., None], tiny)
    mean_real = jnp.where(small, jnp.sum(shares * gaps, -1), (log * real + angle * imag) / size)
    mean_imag = jnp.where(small, -y * jnp.sum(shares, -1), (angle * real - log * imag) / size)

    # Slopes of zero are real to the last digit: near zero all the rest is smaller than rounding.
    zero = jnp.all(law.values == 0, axis=1)
    mass = jnp.where(zero, 0, law.mass)[None]
    mean = jax.lax.complex(jnp.sum(mass * mean_real, -1), jnp.sum(mass * mean_imag, -1))
    return u * mean + jnp.sum(jnp.where(zero, law.mass, 0)).astype(u.dtype)


def mean_angle(law: Law, u: Array) -> Array:
    r"""The imaginary part of :math:`\mathbb{E} \ln(u - a)`.

    Args:
        law: Law of the squared slopes.
        u: Where, complex, with positive imaginary parts, shape `(n,)`.

    Returns:
        The mean angle, shape `(n,)`.
    """
    (x, y), slope, bend, (real, imag), gap_square, square = _cells(law, u)
    both, scale1 = slope + real, 0.5 / gap_square
    scale2 = -2 * bend / jnp.where(square == 0, 1, square)
    real = jnp.stack([(both * x + imag * y) * scale1, both * scale2])
    imag = jnp.stack([(imag * x - both * y) * scale1, -imag * scale2])
    # The mean of ln(1 - w s) is the sum of (1 + w) ln(1 + w) / (2 w) over w and -w, less one.
    real, imag = jnp.concatenate([real, -real]), jnp.concatenate([imag, -imag])
    size = real * real + imag * imag
    small = size < _SMALL**2
    near = jnp.maximum(jnp.square(1 + real) + imag * imag, jnp.finfo(x.dtype).tiny)
    closed = jnp.arctan2(imag, 1 + real) * (real + size) - jnp.log(near) / 2 * imag
    # Else -w**2 / 12 - w**4 / 40, and odd terms that cancel.
    series = -imag * real * (1 / 6 + (real * real - imag * imag) / 10)
    means = jnp.where(small, series, closed / jnp.where(small, 1, 2 * size))
    return jnp.sum(law.mass[None] * (jnp.arctan2(y, x) + jnp.sum(means, 0)), -1)


def _weights(dtype: jnp.dtype) -> Array:
    return jnp.asarray([[5 / 18, 8 / 18, 5 / 18]], dtype)


def _parabola(values: Array) -> tuple[Array, Array, Array]:
    """Coefficients of 1, s and s**2 on each cell, for s from -1 to 1."""
    below, middle, above = (values[:, i] for i in range(3))
    slope = (above - below) / (2 * _GAUSS).astype(values.dtype)
    bend = (above + below - 2 * middle) / np.asarray(2 * _GAUSS**2).astype(values.dtype)
    return middle, slope, bend


class _Cells(NamedTuple):
    """The quadratics u - a = gap - slope s - bend s**2 on the cells, with s from -1 to 1.

    In real arithmetic, because XLA's complex functions are ten times as long to compile. With
    slope >= 0 (else s changes its sign) they are gap (1 - w1 s)(1 - w2 s), where w1 = (slope +
    root) / (2 gap) lies in the lower half-plane, and w2 = -2 bend / (slope + root) in the upper
    one. All are of shape (n, cells) or (1, cells).
    """

    gap: tuple[Array, Array]
    slope: Array
    bend: Array
    root: tuple[Array, Array]  # of slope**2 + 4 bend gap, in the right half-plane
    gap_square: Array  # |gap|**2
    square: Array  # |slope + root|**2


def _cells(law: Law, u: Array) -> _Cells:
    middle, slope, bend = (c[None] for c in _parabola(law.values))
    x, y = u.real[:, None] - middle, u.imag[:, None]
    real, imag = slope * slope + 4 * bend * x, 4 * bend * y
    longer = jnp.sqrt((jnp.hypot(real, imag) + jnp.abs(real)) / 2)
    shorter = jnp.abs(imag) / jnp.where(longer > 0, 2 * longer, 1)
    right = real >= 0
    root = jnp.where(right, longer, shorter), jnp.sign(bend) * jnp.where(right, shorter, longer)
    gap_square = jnp.maximum(x * x + y * y, jnp.finfo(x.dtype).tiny)
    slope = jnp.abs(slope)
    square = jnp.square(slope + root[0]) + jnp.square(root[1])
    return _Cells((x, y), slope, bend, root, gap_square, square)
