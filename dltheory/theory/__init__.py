"""Scalars, spectra and activations in, numbers out. Runs no network.

- `dual`: Gaussian moments, dual kernels and Hermite coefficients of any activation;
- `self_normalization`: gains, and the Gaussian fixed point that SELU was made for;
- `mean_field`: lengths, correlations and gradients through depth, and the edge of chaos;
- `batch_norm`: batch normalisation in batches of finite size, for any activation;
- `shattering`: how alike the gradients at two inputs are, and the rates of independent gates;
- `kernels`: NNGP and tangent kernels of wide networks: dense, residual, convolutional;
- `kernel_regression`: training with a fixed tangent kernel, in closed form;
- `free_probability`: spectra of Jacobians: variance, moments, edge, density, point masses;
- `universality`: their limits at infinite depth;
- `finite_width`: what a finite width changes: log-normal norms, dead nets, Lyapunov exponents;
- `fluctuations`: bias and fluctuation of lengths, correlations and gradients at finite width;
- `clipping`: how often clipping acts on a noisy gradient, its bias and its variance;
- `backprop`: what gradients cost, how exact differences can be, checkpointing, linear dynamics;
- `training_dynamics`: deep linear networks, quadratic losses, feedback alignment;
- `weight_decay`: where weight decay leads weights that a normalisation follows;
- `layer_jacobians`: spectra of the Jacobians of softmax and layer normalization;
- `regularization`: shrinkage, penalties and asymptotic risks of linear models;
- `early_stopping`: gradient flow against ridge, and when to stop;
- `regression`: ridge and the lasso on a given design, and the sparsity that it recovers;
- `sparse_recovery`: how many measurements recover sparse coefficients: the cone of descent;
- `dropout`: dropout of linear models as a ridge and as a nuclear norm;
- `augmentation`: what noise, mixing and smoothing of the data do to a loss;
- `random_features`: the risk of ridge on random features, double descent;
- `generalization`: bounds on the error on new examples, each with its verdict;
- `bounds`: what every bound returns, and which parameters it takes;
- `pac_bayes`: PAC-Bayes bounds in closed form;
- `capacity`: counts, dimensions, Rademacher complexities;
- `approximation`: how well a given target can be approximated by n units;
- `rates`: rates of approximation of whole classes of targets;
- `constructions`: networks written down by a proof, with their errors;
- `meshes`: networks on a regular mesh of a box, with their errors;
- `polynomials`: polynomials and Taylor patches as deep networks;
- `barron`: networks drawn from the Fourier measure of a target, with their exact mean error;
- `selections`: exact networks for maximum, minimum, median and bumps;
- `layouts`: networks from given layers;
- `regions`: how many linear regions there can be, and are on average;
- `convolution`: receptive fields, borders, pooling, and signals by spatial frequency;
- `architectures`: VGG, ResNet, AlexNet and MobileNet as lists of layers.
"""

from . import (  # noqa: F401
    approximation,
    architectures,
    augmentation,
    backprop,
    barron,
    batch_norm,
    bounds,
    capacity,
    clipping,
    constructions,
    convolution,
    dropout,
    dual,
    early_stopping,
    finite_width,
    fluctuations,
    free_probability,
    generalization,
    kernel_regression,
    kernels,
    layer_jacobians,
    layouts,
    mean_field,
    meshes,
    pac_bayes,
    polynomials,
    random_features,
    rates,
    regions,
    regression,
    regularization,
    selections,
    self_normalization,
    shattering,
    sparse_recovery,
    training_dynamics,
    universality,
    weight_decay,
)
