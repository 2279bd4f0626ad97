"""Scalars, spectra and activations in, numbers out. Runs no network.

- `dual`: Gaussian moments, dual kernels and Hermite coefficients of any activation;
- `mean_field`: lengths, correlations and gradients through depth, and the edge of chaos;
- `finite_width`: what changes at a finite width: Lyapunov exponents of Gaussian products.
"""

from . import dual, finite_width, mean_field  # noqa: F401
