"""Any `f(params, x)` in, arrays out. Holds no closed form.

- `signal`: lengths, correlations and gradient norms, layer by layer;
- `jacobians`: Jacobians between layers, per example, and their spectra;
- `activations`: the facts of any callable; saturation and dead units of a live network.
"""

from . import activations, jacobians, signal  # noqa: F401
