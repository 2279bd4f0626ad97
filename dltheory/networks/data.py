"""Real inputs, as plain arrays."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike


class Data(NamedTuple):
    """Inputs and what belongs to them.

    Attributes:
        x: Inputs, shape ``(N, ...)``.
        y: Labels, shape ``(N,)``, integers; or targets.
    """

    x: Array
    y: Array


def digits(*, flat: bool = True, scale: str = "unit", dtype: DTypeLike = float) -> Data:
    """The handwritten digits that scikit-learn carries: 1797 images of 8 by 8 pixels.

    Args:
        flat: Whether ``x`` has the shape ``(1797, 64)`` rather than ``(1797, 8, 8)``.
        scale: ``"unit"``: pixels between 0 and 1. ``"dataset"``: all pixels together have mean 0
            and variance 1. ``"example"``: the pixels of each image have mean 0 and mean square 1,
            so that every input has the same length, as theory at one length q wants it.
        dtype: Dtype of ``x``.

    Returns:
        ``Data(x, y)`` with ``y`` the digit, 0 to 9, in the order of the data set.

    Raises:
        ValueError: `scale` is none of the three.
        ImportError: scikit-learn is missing.

    Source:
        Alpaydin and Kaynak (1998), the test set of the optical recognition of handwritten digits.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "digits come with scikit-learn, which is missing: pip install dltheory[experiments]"
        ) from error
    x, y = load_digits(return_X_y=True)
    x = np.asarray(x) / 16
    if scale == "dataset":
        x = (x - x.mean()) / x.std()
    elif scale == "example":
        x = x - x.mean(axis=1, keepdims=True)
        x = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True))
    elif scale != "unit":
        raise ValueError(f"scale is {scale!r}; want 'unit', 'dataset' or 'example'")
    shape = (-1, 64) if flat else (-1, 8, 8)
    return Data(jnp.asarray(x.reshape(shape), dtype), jnp.asarray(y, jnp.int32))


def split(key: Array, data: Data, size: int) -> tuple[Data, Data]:
    """Split data at random in two.

    Args:
        key: The key that decides which examples go where.
        data: ``N`` examples.
        size: How many of them the first part gets, 0 to ``N``.

    Returns:
        The first part and the rest, each shuffled; together every example once.

    Raises:
        ValueError: `size` is out of range, or ``data.x`` and ``data.y`` differ in length.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.networks import data
        >>> every = data.Data(jnp.arange(10.0), jnp.arange(10))
        >>> train, test = data.split(jax.random.key(0), every, 8)
        >>> train.x.shape, test.x.shape
        ((8,), (2,))
    """
    n = len(data.y)
    if len(data.x) != n:
        raise ValueError(f"data holds {len(data.x)} inputs but {n} labels; want one label for each")
    if not 0 <= size <= n:
        raise ValueError(f"size is {size}; want 0 to {n}, the number of examples in data")
    order = jax.random.permutation(key, n)
    first = Data(data.x[order[:size]], data.y[order[:size]])
    return first, Data(data.x[order[size:]], data.y[order[size:]])
