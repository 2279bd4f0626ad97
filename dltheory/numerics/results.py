"""The NamedTuples that theory and measurement both return, so that a comparison is one call."""

from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jax import Array


class Moments(NamedTuple):
    r"""Second moments of the signal, layer by layer.

    Attributes:
        q: Mean squared pre-activation :math:`q_l`, shape `(layers,)` from theory and
            `(layers, N)` from a measurement on `N` examples.
        c: Correlation :math:`c_l` between two inputs, shape `(layers,)` from theory and
            `(layers, N, N)` from a measurement.
        chi_1: Mean squared singular value of a layer's Jacobian, shape `(layers,)`; `None` where
            it was not measured.
    """

    q: Array
    c: Array
    chi_1: Array | None


class Spectrum(NamedTuple):
    """Natural logarithms of singular values.

    Attributes:
        log_values: Shape `(..., k)`, descending; exactly `-inf` where a value is zero.
        residuals: Shape `(..., k)`: an upper estimate of each value's error, relative to the
            largest value.
        resolved: Shape `(..., k)`, boolean: whether the value is told apart from rounding.
    """

    log_values: Array
    residuals: Array
    resolved: Array


class Density(NamedTuple):
    """A density on the line, normalised to one together with any point masses.

    Attributes:
        support: Grid, shape `(n,)`, ascending.
        density: Density at the grid, shape `(n,)`.
        stderr: Standard error of the density, shape `(n,)`; zero where it is exact.
    """

    support: Array
    density: Array
    stderr: Array


class Bracket(NamedTuple):
    """A number known to lie between two bounds.

    Attributes:
        lower: Lower bound, shape `()`; a NumPy float64 where it is a certificate, which JAX in
            single precision would round inwards.
        upper: Upper bound, likewise.
    """

    lower: Array | np.floating
    upper: Array | np.floating


class ReceptiveField(NamedTuple):
    """What a unit sees of the input, along one axis.

    The unit at position `i` sees the pixels from `i * stride - padding` on, `size` of them.

    Attributes:
        size: Pixels from the first to the last one that is seen.
        stride: Pixels between the fields of neighbouring units; zero where all see the same, a
            fraction where units are denser than pixels.
        padding: How far the field of the first unit begins before the first pixel.
    """

    size: int
    stride: int | Fraction
    padding: int
