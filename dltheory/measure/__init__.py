"""Any `f(params, x)` in, arrays out. Holds no closed form.

- `signal`: lengths, correlations and gradient norms, layer by layer;
- `jacobians`: Jacobians between layers, per example, and their spectra;
- `ntk`: the empirical tangent kernel, at the cost of forward and backward passes;
- `backprop`: deltas, the chain rule by hand, the gradient check, cost;
- `ledger`: every local Jacobian of a model, and the deltas as their products;
- `checkpointing`: gradients of long chains with few states in memory, by any plan;
- `chain_rule`: layers with their derivatives written out;
- `curvature`: the Hessian and the Gauss-Newton matrix: extreme values, trace, density;
- `feedback_alignment`: learning without the transposes, and the angle to the true gradient;
- `activations`: the facts of any callable; saturation and dead units of a live network;
- `convolution`: spectra of convolutional layers, and what units of any network see;
- `convolution_matrix`: a convolutional layer as a dense matrix, and its reshaped norms;
- `generalization`: the gap, bias and variance, margins, complexity of any classifier;
- `kernel_norms`: norms of the kernels of any model, layer by layer;
- `flatness`: how flat the loss is around trained weights, also relative to their sizes;
- `approximation`: sup errors with certificates, L2 errors with error bars;
- `fits`: greedy, trained and random networks of one hidden layer, with error against width;
- `regions`: exact linear regions of lines and planes, the length of a path in each layer.
"""

from . import (  # noqa: F401
    activations,
    approximation,
    backprop,
    chain_rule,
    checkpointing,
    convolution,
    convolution_matrix,
    curvature,
    feedback_alignment,
    fits,
    flatness,
    generalization,
    jacobians,
    kernel_norms,
    ledger,
    ntk,
    regions,
    signal,
)
