"""Scalars, spectra and activations in, numbers out. Runs no network.

- `dual`: Gaussian moments, dual kernels and Hermite coefficients of any activation;
- `self_normalization`: gains, and the Gaussian fixed point that SELU was made for;
- `mean_field`: lengths, correlations and gradients through depth, and the edge of chaos;
- `shattering`: how alike the gradients at two inputs are, and the rates of independent gates;
- `kernels`: NNGP and tangent kernels of wide networks: dense, residual, convolutional;
- `kernel_regression`: training with a fixed tangent kernel, in closed form;
- `free_probability`: spectra of Jacobians: variance, moments, edge, density, point masses;
- `universality`: their limits at infinite depth;
- `finite_width`: what a finite width changes: log-normal norms, dead nets, Lyapunov exponents;
- `fluctuations`: bias and fluctuation of lengths, correlations and gradients at finite width;
- `clipping`: how often clipping acts on a noisy gradient, its bias and its variance.
- `backprop`: what gradients cost, how exact differences can be, checkpointing, linear dynamics;
- `training_dynamics`: deep linear networks, quadratic losses, feedback alignment;
- `layer_jacobians`: spectra of the Jacobians of softmax and layer normalization;
- `convolution`: receptive fields, borders, pooling, and signals by spatial frequency;
- `architectures`: VGG, ResNet, AlexNet and MobileNet as lists of layers;
"""

from . import (  # noqa: F401
    architectures,
    backprop,
    clipping,
    convolution,
    dual,
    finite_width,
    fluctuations,
    free_probability,
    kernel_regression,
    kernels,
    layer_jacobians,
    mean_field,
    self_normalization,
    shattering,
    training_dynamics,
    universality,
)
