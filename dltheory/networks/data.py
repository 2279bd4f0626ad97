"""Real inputs, as plain arrays: two sets that need no network, files of your own, and a target."""

import gzip
import random
import struct
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from dltheory.networks import regularizers

# Of an IDX file: the codes of its dtypes, all big-endian.
_IDX = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


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
            "digits come with scikit-learn, which is missing: pip install 'dltheory[experiments]'"
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


def mnist1d(*, shuffled: bool = False, dtype: DTypeLike = float) -> tuple[Data, Data]:
    """MNIST-1D, made by the procedure and the seed of its own package: nothing is downloaded.

    Args:
        shuffled: Whether the 40 positions are put in one random order, the same for all examples,
            so that nothing is left of their neighbourhood.
        dtype: Dtype of ``x``.

    Returns:
        4000 examples to train on and 1000 to test on, ``x`` of the shape ``(N, 40)`` and ``y`` the
        digit, 0 to 9. All inputs together have mean 0 and variance 1.

    Raises:
        ImportError: The package is missing.

    Source:
        Greydanus and Kobak (2024), Scaling down deep learning with MNIST-1D.
    """
    try:
        from mnist1d import data as package
    except ImportError as error:
        raise ImportError(
            "MNIST-1D comes with mnist1d, which is missing: pip install 'dltheory[experiments]'"
        ) from error
    arguments: Any = package.get_dataset_args()
    arguments.shuffle_seq = shuffled
    # The package seeds the generators of the whole process: they are put back as they were.
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        made = package.make_dataset(arguments)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    train, test = (
        Data(jnp.asarray(made[f"x{part}"], dtype), jnp.asarray(made[f"y{part}"], jnp.int32))
        for part in ("", "_test")
    )
    return train, test


def load_npz(path: str | Path, *, x: str = "x", y: str = "y") -> Data:
    """Inputs and labels from a file that ``numpy.savez`` wrote.

    Args:
        path: The file.
        x: The name of the inputs in it.
        y: The name of the labels or targets in it.

    Returns:
        The data, in the dtypes of the file as far as JAX has them.

    Raises:
        ValueError: A name is not in the file, or inputs and labels differ in number.
    """
    with np.load(path, allow_pickle=False) as file:
        if missing := {x, y} - set(file.files):
            raise ValueError(
                f"{path} holds no array {', '.join(map(repr, sorted(missing)))}, but "
                f"{', '.join(map(repr, sorted(file.files)))}: give their names as x= and y="
            )
        data = Data(jnp.asarray(file[x]), jnp.asarray(file[y]))
    _check_lengths(data)
    return data


def load_idx(path: str | Path) -> Array:
    """An array from an IDX file, the format of MNIST, compressed by gzip or not.

    Args:
        path: The file.

    Returns:
        The array, in the dtype of the file as far as JAX has it; images are integers up to 255.

    Raises:
        ValueError: It is no IDX file, or its length is not the one that its header states.
    """
    raw = Path(path).read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gzip.decompress(raw)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX:
        raise ValueError(f"{path} is no IDX file: it begins with {raw[:4].hex()}")
    start = 4 + 4 * raw[3]
    dtype = np.dtype(_IDX[raw[2]])
    shape = struct.unpack(f">{raw[3]}I", raw[4:start]) if len(raw) >= start else ()
    wanted = start + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if len(raw) != wanted:
        raise ValueError(f"{path} has {len(raw)} bytes, but its header asks for {wanted}")
    array = np.frombuffer(raw, dtype, offset=start).reshape(shape)
    return jnp.asarray(array.astype(dtype.newbyteorder("=")))


def linear_target(
    key: Array, n: int, p: int, *, r2: ArrayLike, sigma2: ArrayLike, dtype: DTypeLike = float
) -> tuple[Data, Array]:
    r"""A Gaussian design with a noisy linear target, as theories of regression assume it.

    .. math:: y = X \beta + \sigma \epsilon, \qquad x_{ij}, \epsilon_i \sim \mathcal{N}(0, 1),
              \qquad \|\beta\|^2 = r^2

    Args:
        key: The key of the design, the coefficients and the noise.
        n: Examples.
        p: Features.
        r2: Squared length of the coefficients, whose direction is uniform.
        sigma2: Variance of the noise.
        dtype: Dtype of all.

    Returns:
        The data and the coefficients, shape ``(p,)``: the excess risk of an estimate ``b`` is
        ``sum((b - beta)**2)``.

    Raises:
        ValueError: If `n` or `p` is not positive.
    """
    if n < 1 or p < 1:
        raise ValueError(f"n is {n} and p is {p}; want positive integers")
    # One draw, cut in parts, compiles in a third of the time of three.
    normal = jax.random.normal(key, (n + 1, p + 1), dtype)
    x, noise, beta = normal[:n, :p], normal[:n, p], normal[n, :p]
    beta = beta * jnp.sqrt(jnp.asarray(r2, x.dtype) / jnp.sum(beta**2))
    return Data(x, x @ beta + jnp.sqrt(jnp.asarray(sigma2, x.dtype)) * noise), beta


def random_labels(key: Array, data: Data, classes: int, share: ArrayLike = 1.0) -> Data:
    """Replace some of the labels by random ones: label noise, or nothing left to learn.

    Args:
        key: The key that decides which labels, and by what.
        data: ``N`` examples with integer labels.
        classes: How many classes there are; each is as likely as any other, the true one included.
        share: The probability that a label is replaced, in [0, 1].

    Returns:
        The data with its new labels.

    Raises:
        TypeError: The labels are no integers.
        ValueError: A label or `share` is out of range.

    Source:
        Zhang, Bengio, Hardt, Recht and Vinyals (2017), Understanding deep learning requires
        rethinking generalization.
    """
    y = regularizers.check_labels(data.y, classes)
    unit = lambda a: (a >= 0) & (a <= 1)
    share = regularizers.checked("share", share, "in [0, 1]", unit, jnp.result_type(float))
    key_which, key_label = jax.random.split(key)
    replaced = jax.random.uniform(key_which, y.shape, share.dtype) < share
    return data._replace(
        y=jnp.where(replaced, jax.random.randint(key_label, y.shape, 0, classes, y.dtype), y)
    )


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
    _check_lengths(data)
    if not 0 <= size <= n:
        raise ValueError(f"size is {size}; want 0 to {n}, the number of examples in data")
    order = jax.random.permutation(key, n)
    first = Data(data.x[order[:size]], data.y[order[:size]])
    return first, Data(data.x[order[size:]], data.y[order[size:]])


def _check_lengths(data: Data) -> None:
    n = len(data.y)
    if len(data.x) != n:
        raise ValueError(f"data holds {len(data.x)} inputs but {n} labels; want one label for each")
