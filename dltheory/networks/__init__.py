"""What the theory is about: activations, initializers, models, and the layers of any model.

- `activations`: the catalogue, each function with its kinks, range and Lipschitz constant;
- `initializers`: weights by variance, isometric, critical, and for residual branches;
- `models`: fully connected and residual networks, depth by scan;
- `image_models`: VGG, ResNet, AlexNet and MobileNet in Flax, of any width;
- `pooling`: anti-aliased pooling;
- `functional`: any Flax model as a pure `f(params, x)`;
- `sites`: the layers of any `f(params, x)`, found in its traced program, and taps on them;
- `weights`: which of its parameters are kernels, over which axes, and which are biases;
- `reinitialization`: its parameters drawn anew, by a scheme or from data;
- `data`: real inputs;
- `training`: any `optax` transformation within `lax.scan`, vmapped over seeds;
- `stochastic`: networks whose weights are drawn anew, and descent on the law that they come from;
- `transforms`: clipping of gradients that reports what it did;
- `regularizers`: penalties, dropout, mixup, smoothing, early stopping as pure functions;
- `spectral`: norms of layers as maps, and weights that keep to a bound of them;
- `proximal`: proximal L1 and projections of the weights, as `optax` transformations.
"""

from . import (  # noqa: F401
    activations,
    data,
    functional,
    image_models,
    initializers,
    models,
    pooling,
    proximal,
    regularizers,
    reinitialization,
    sites,
    spectral,
    stochastic,
    training,
    transforms,
    weights,
)
