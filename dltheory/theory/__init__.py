"""Scalars, spectra and activations in, numbers out. Runs no network.

- `dual`: Gaussian moments, dual kernels and Hermite coefficients of any activation;
- `self_normalization`: gains, and the Gaussian fixed point that SELU was made for;
- `mean_field`: lengths, correlations and gradients through depth, and the edge of chaos;
- `free_probability`: spectra of Jacobians: variance, moments, edge, density, point masses;
- `universality`: their limits at infinite depth;
- `finite_width`: what a finite width changes: log-normal norms, dead nets, Lyapunov exponents.
"""

from . import (  # noqa: F401
    dual,
    finite_width,
    free_probability,
    mean_field,
    self_normalization,
    universality,
)
