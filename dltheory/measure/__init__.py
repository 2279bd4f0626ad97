"""Any `f(params, x)` in, arrays out. Holds no closed form.

- `signal`: lengths, correlations and gradient norms, layer by layer;
- `jacobians`: Jacobians between layers, per example, and their spectra;
- `ntk`: the empirical tangent kernel, at the cost of forward and backward passes;
- `activations`: the facts of any callable; saturation and dead units of a live network.
- `convolution`: spectra of convolutional layers, and what units of any network see;
- `convolution_matrix`: a convolutional layer as a dense matrix, and its reshaped norms;
"""

from . import activations, convolution, convolution_matrix, jacobians, ntk, signal  # noqa: F401
