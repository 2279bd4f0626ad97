"""What the theory is about: activations, initializers, models, and the layers of any model.

- `activations`: the catalogue, each function with its kinks, range and Lipschitz constant;
- `initializers`: Gaussian and orthogonal weights by variance;
- `models`: fully connected and residual networks, depth by scan;
- `functional`: any Flax model as a pure `f(params, x)`;
- `sites`: the layers of any `f(params, x)`, found in its traced program, and taps on them;
- `data`: real inputs;
- `training`: any `optax` transformation within `lax.scan`, vmapped over seeds.
"""

from . import activations, data, functional, initializers, models, sites, training  # noqa: F401
