"""Theory of deep learning beside its measurement.

The modules are the namespace: `from dltheory.theory import mean_field`.

- `numerics`: mathematics that has never heard of a network;
- `networks`: activations, initializers, models, and the layers of any model;
- `theory`: scalars, spectra and activations in, numbers out;
- `measure`: any `f(params, x)` in, arrays out;
- `experiment`: sweeps, results, claims and figures; loaded when it is imported.

`dltheory.inspect` is `experiment.inspection.inspect`, loaded when it is used.
"""

import importlib
import importlib.metadata

from . import measure, networks, numerics, theory  # noqa: F401

__version__ = importlib.metadata.version("dltheory")


def __getattr__(name: str):
    if name == "inspect":
        return importlib.import_module("dltheory.experiment.inspection").inspect
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
