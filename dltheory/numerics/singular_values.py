"""Singular values of dense matrices, without their vectors."""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import threadpoolctl
from jax import Array, lax
from jax.core import Tracer
from jax.typing import ArrayLike

_SMALL = 32  # up to here LAPACK's own loop over a stack beats one call a matrix


def singular_values(a: ArrayLike) -> Array:
    r"""All singular values of each matrix of a stack.

    The error is a small multiple of :math:`\epsilon\, s_{max}`: a value below about
    :math:`n\, \epsilon\, s_{max}` is rounding. The derivative :math:`ds_i = u_i^* \, dA\, v_i`
    is finite everywhere. Where values coincide (at an orthogonal matrix) those :math:`ds_i` depend
    on an arbitrary basis, but every smooth symmetric function of the values has its exact gradient;
    second derivatives need distinct values.

    Concrete arrays on a CPU are worked by NumPy on all cores in float64, as the square roots of the
    eigenvalues of a Gram matrix where that is accurate; rows and columns of zeros, such as those
    of inactive ReLUs, cost nothing. Elsewhere, and under transformations, by `jnp.linalg.svd`.

    Args:
        a: Real or complex floating-point matrices, shape ``(..., m, n)``.

    Returns:
        Shape ``(..., min(m, n))``, descending; float32 for half precision. All NaN for a matrix
        with an entry that is NaN or infinite, whatever its neighbours in the stack.

    Raises:
        TypeError: `a` holds integers or booleans.
        ValueError: `a` has fewer than two axes.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.numerics.singular_values import singular_values
        >>> singular_values(jnp.array([[0.0, 2.0], [3.0, 0.0]]))
        Array([3., 2.], dtype=float32)
    """
    a = jnp.asarray(a)
    if a.ndim < 2:
        raise ValueError(f"a has shape {a.shape}; want matrices, (..., m, n)")
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        raise TypeError(f"a holds {a.dtype}; want a floating-point or complex dtype: cast it first")
    if jnp.finfo(a.dtype).bits < 32:
        a = a.astype(jnp.float32)
    if a.size == 0:
        return jnp.zeros((*a.shape[:-2], min(a.shape[-2:])), a.real.dtype)
    if not isinstance(a, Tracer) and next(iter(a.devices())).platform == "cpu":
        return jnp.asarray(on_host([np.asarray(a)])[0])
    finite = jnp.all(jnp.isfinite(a), axis=(-2, -1), keepdims=True)
    # No backend promises what it does with NaN, so a bad matrix becomes zeros; the sum brings the
    # NaN back, into the derivative too.
    s = jnp.linalg.svd(jnp.where(finite, a, 0), compute_uv=False)
    spoilt = a.real * jnp.where(finite, 0, jnp.nan).astype(s.dtype)
    return s + jnp.sum(spoilt, axis=(-2, -1))[..., None]


def in_turn(stacks: Sequence[Array]) -> list[Array]:
    """`singular_values` of several stacks in one program, one stack after the other.

    Each batch of LAPACK calls holds a thread of XLA's CPU pool while it waits for others; as many
    batches at once as there are threads never end. A data dependency keeps them apart.

    Args:
        stacks: Arrays of matrices, each of shape `(..., m, n)`.

    Returns:
        Their singular values, each of shape `(..., min(m, n))`.
    """
    found: list[Array] = []
    for stack in stacks:
        if found:
            stack, found[-1] = lax.optimization_barrier((stack, found[-1]))
        found.append(singular_values(stack))
    return found


def on_host(
    stacks: Sequence[np.ndarray], right: Sequence[np.ndarray | None] | None = None
) -> list[np.ndarray]:
    """Singular values of NumPy arrays, on all cores and with one BLAS thread each.

    Args:
        stacks: Arrays of matrices, each of shape `(..., m, n)`.
        right: Per stack, an array of matrices `(..., n, k)` to multiply with, or `None`. A product
            costs little where its left factor has columns of zeros.

    Returns:
        Singular values of each stack, or of its product, in the stack's precision: shape
        `(..., min(m, n))`, or `(..., min(m, k))`; all NaN for a matrix that is not finite.
    """
    found, items, jobs = [], [], []
    for number, stack in enumerate(stacks):
        other = None if right is None else right[number]
        columns = stack.shape[-1] if other is None else other.shape[-1]
        count = min(stack.shape[-2], columns)
        values = np.zeros((*stack.shape[:-2], count), np.finfo(stack.dtype).dtype)
        found.append(values)
        flat, out = stack.reshape(-1, *stack.shape[-2:]), values.reshape(-1, count)
        if other is None and max(stack.shape[-2:]) <= _SMALL:
            parts = np.array_split(np.arange(len(flat)), max(1, len(flat) // 64))
            jobs += [functools.partial(_many, out, flat, part) for part in parts]
        else:
            others = [None] * len(flat) if other is None else other.reshape(-1, *other.shape[-2:])
            items += [_Item(out[i], flat[i], others[i]) for i in range(len(flat))]
    # NumPy lets other threads run only while it works on more than one matrix, and matrices of
    # about one size are padded the least.
    items.sort(key=lambda item: (item.left.dtype.char, item.live))
    jobs += [functools.partial(_together, items[i : i + 4]) for i in range(0, len(items), 4)]
    on_all_cores(jobs)
    return found


def on_all_cores(jobs: Sequence[Callable[[], object]]) -> None:
    """Run NumPy jobs on all cores, each with one BLAS thread, and wait for them.

    Args:
        jobs: What to call.
    """
    with _blas().limit(limits=1), ThreadPoolExecutor(_cores()) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()


def _many(out: np.ndarray, stack: np.ndarray, part: np.ndarray) -> None:
    """Small matrices, by one call."""
    a = stack[part].astype(np.result_type(stack.dtype, np.float64))
    finite = np.asarray(np.isfinite(a).all((-2, -1)))
    s = np.linalg.svd(np.where(finite[:, None, None], a, 0), compute_uv=False)
    out[part] = np.where(finite[:, None], s, np.nan)


class _Item:
    """A matrix, or the product of two, and where its singular values go."""

    def __init__(self, out: np.ndarray, left: np.ndarray, right: np.ndarray | None):
        self.out, self.left, self.right = out, left, right
        self.used = left.any(axis=0)
        self.live = int(self.used.sum())

    def reduced(self) -> np.ndarray | None:
        """The matrix in double precision without its zero rows and columns; None if not finite."""
        a, right = self.left, self.right
        if not np.isfinite(a).all() or not (right is None or np.isfinite(right).all()):
            return None
        a = _chosen(a, self.used, 1).astype(np.result_type(a.dtype, np.float64))
        if right is not None:
            right = _chosen(right, self.used, 0).astype(a.dtype)
            # The triangle of a tall left factor has the same Gram matrix and fewer rows.
            if a.shape[0] > 1.3 * a.shape[1]:
                a = np.asarray(np.linalg.qr(a, mode="r"))
            a = a @ right
            a = _chosen(a, a.any(axis=0), 1)
        return _chosen(a, a.any(axis=1), 0)


def _chosen(a: np.ndarray, which: np.ndarray | np.bool, axis: int) -> np.ndarray:
    """Some rows or columns; no copy where it is all of them."""
    return a if which.all() else a.compress(which, axis)


def _together(items: Sequence[_Item]) -> None:
    """A few matrices of one dtype by the eigenvalues of their Gram matrices, where accurate."""
    kept, grams, again = [], [], []
    for item in items:
        a = item.reduced()
        if a is None:
            item.out[:] = np.nan
        elif a.size:
            a = a if a.shape[0] <= a.shape[1] else a.conj().T
            if 1e-140 < np.abs(a).max() < 1e140:
                kept.append((item, a))
                grams.append(a @ a.conj().T)
            else:
                again.append((item, a))
    squares = np.linalg.eigvalsh(_padded(grams))[:, ::-1] if kept else ()
    for (item, a), square in zip(kept, squares, strict=True):
        square = square[: len(a)]
        # The error of a square is eps s_max^2, so that of a value is eps s_max^2 / s: too much for
        # small values in double precision, and for none in single precision.
        single = item.left.dtype.itemsize <= (8 if np.iscomplexobj(a) else 4)
        if not single and square[-1] < 1e-10 * square[0]:
            again.append((item, a))
        else:
            item.out[: len(a)] = np.sqrt(np.maximum(square, 0))
    if again:
        values = np.linalg.svd(_padded([a for _, a in again]), compute_uv=False)
        for (item, a), s in zip(again, values, strict=True):
            item.out[: len(a)] = s[: len(a)]


def _padded(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Matrices in one stack, with zeros where they are smaller than the largest."""
    rows, columns = (max(a.shape[k] for a in matrices) for k in range(2))
    stack = np.zeros((len(matrices), rows, columns), matrices[0].dtype)
    for padded, a in zip(stack, matrices, strict=True):
        padded[: a.shape[0], : a.shape[1]] = a
    return stack


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.lru_cache(maxsize=1)
def _blas() -> threadpoolctl.ThreadpoolController:
    """The BLAS libraries of this process, whose own threads would fight with ours."""
    return threadpoolctl.ThreadpoolController()
