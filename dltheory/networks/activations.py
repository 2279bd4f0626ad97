r"""The catalogue of activation functions: each with what is known of it in closed form.

An `Activation` is a scalar function with its facts: where it has kinks, how smooth it is, its
range, its exact Lipschitz constant, whether it is monotone, where it saturates and how fast, and
its degree of homogeneity. `get` finds one by name, and wraps any other scalar callable with the
kinks that `find_kinks` finds in it.

JAX's own derivative at a kink is a convention of each function: 0 for `relu`, `relu6` and
`hard_tanh` (as everywhere where they are flat), the right derivative for `leaky_relu` and `abs`,
the left one for `selu`, one sixth at -3 and zero at 3 ... `kink_slopes` reads it off. No Gaussian
average depends on it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.numerics.gaussian import check_scalar_function


class Limit(NamedTuple):
    """How a function saturates on one side.

    Attributes:
        value: The finite limit.
        rate: How the limit is approached: "exact" (reached at a finite point),
            "super-exponential", "exponential" or "algebraic".
    """

    value: float
    rate: str


@dataclass(frozen=True)
class Activation:
    """A scalar function and the facts known about it; None where a fact is not known.

    Attributes:
        name: Name in the catalogue, or the name of the wrapped callable.
        fn: The function itself.
        kinks: Points where the function or one of its derivatives jumps, ascending.
        smoothness: Order of continuous differentiability: -1 with a jump, 0 with a jump of the
            derivative, 1 with a jump of the second derivative, `math.inf` if smooth.
        range: Infimum and supremum.
        lipschitz: Smallest Lipschitz constant, `math.inf` if there is none.
        monotone: Whether the function never decreases.
        saturation: The limits at minus and plus infinity, each None where there is no finite one.
        homogeneous: Degree k with `fn(a h) = a**k fn(h)` for every a > 0, or None.
    """

    name: str
    fn: Callable[[Array], Array]
    kinks: tuple[float, ...] = ()
    smoothness: float | None = None
    range: tuple[float, float] | None = None
    lipschitz: float | None = None
    monotone: bool | None = None
    saturation: tuple[Limit | None, Limit | None] | None = None
    homogeneous: int | None = None

    def __call__(self, h: Array) -> Array:
        """Apply the function element by element."""
        return self.fn(h)

    @cached_property
    def kink_slopes(self) -> tuple[float, ...]:
        """JAX's own derivative at each kink, a convention and no theorem."""
        with jax.ensure_compile_time_eval():
            return tuple(float(jax.grad(self.fn)(k)) for k in self.kinks)


def leaky_relu(slope: float = 0.01, name: str = "leaky_relu") -> Activation:
    """The leaky ReLU `max(h, 0) + slope min(h, 0)` with a slope of any sign.

    Args:
        slope: Derivative on the negative side.
        name: Name to give it.

    Returns:
        The activation with its facts.

    Source: Maas, Hannun and Ng (2013).
    """
    infimum = 0.0 if slope <= 0 else -math.inf
    flat = Limit(0.0, "exact") if slope == 0 else None
    fn = lambda h: jax.nn.leaky_relu(h, slope)
    rising = slope >= 0
    facts = ((infimum, math.inf), max(1.0, abs(slope)), rising, (flat, None), 1)
    return Activation(name, fn, (0.0,), 0, *facts)


def gated(phi: str | Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    r"""The gate of two arguments that an activation makes.

    .. math:: (a, b) \mapsto \phi(a)\, b

    Of sigmoid it is GLU, of relu ReGLU, of gelu GEGLU and of silu SwiGLU. For independent Gaussian
    `a` and `b` of mean zero its mean square is :math:`\mathbb{E}\,\phi(a)^2 \operatorname{Var} b`.

    Args:
        phi: Activation, its name, or a scalar callable.

    Returns:
        The gate, of two arrays of one shape.

    Example:
        >>> from dltheory.networks import activations
        >>> activations.gated("relu")(3.0, -2.0).item()
        -6.0

    Source: Dauphin et al. (2017); Shazeer (2020).
    """
    phi = get(phi)
    return lambda a, b: phi(a) * b


def get(
    name: str | Callable[[Array], Array], *, kinks: tuple[float, ...] | None = None
) -> Activation:
    """An activation by name, or any scalar callable wrapped as one.

    Args:
        name: One of `names()`, an `Activation`, or a callable from a scalar to a scalar. A
            callable is wrapped with its kinks between -16 and 16; further facts stay None.
        kinks: The kinks of a callable, where they are known or lie further out; they are taken
            for jumps of the first derivative.

    Returns:
        The activation.

    Raises:
        ValueError: If there is no such name, or the callable is NaN somewhere in range.
        TypeError: If the callable does not map a real floating-point scalar to another.

    Example:
        >>> from dltheory.networks import activations
        >>> activations.get("relu6").kinks
        (0.0, 6.0)
        >>> activations.get(lambda h: abs(h - 1)).kinks
        (1.0,)
    """
    if isinstance(name, Activation):
        return name
    if isinstance(name, str):
        if name not in _CATALOGUE:
            raise ValueError(f"no activation is named {name!r}; want one of {', '.join(names())}")
        return _CATALOGUE[name]
    if not callable(name):
        raise TypeError(f"want the name of an activation or a scalar callable; got {name!r}")
    for activation in _CATALOGUE.values():
        if activation.fn is name:
            return activation
    found = _jumps(name) if kinks is None else tuple((float(k), 1) for k in sorted(kinks))
    smoothness = min((order for _, order in found), default=math.inf) - 1
    kinks = tuple(point for point, _ in found)
    return Activation(getattr(name, "__name__", type(name).__name__), name, kinks, smoothness)


def names() -> tuple[str, ...]:
    """The names of the catalogue.

    Returns:
        The names that `get` knows, in the order of the catalogue.
    """
    return tuple(_CATALOGUE)


def find_kinks(fn: Callable[[Array], Array]) -> tuple[float, ...]:
    """Points between -16 and 16 where a function or a derivative up to the third jumps.

    Every interval of a fine grid is bisected towards the largest jump of the function and of each
    derivative, taken by automatic differentiation on either side, until the interval is as short
    as rounding allows. What has shrunk with the interval was smooth; what has not is a jump.
    Points closer than one 64th may hide each other.

    Args:
        fn: Function from a scalar to a scalar. It must not depend on traced values.

    Returns:
        The points, ascending.

    Raises:
        ValueError: If the function is NaN somewhere between -16 and 16.
        TypeError: If it does not map a real floating-point scalar to another.

    Example:
        >>> import jax
        >>> from dltheory.networks import activations
        >>> activations.find_kinks(jax.nn.hard_tanh), activations.find_kinks(jax.nn.gelu)
        ((-1.0, 1.0), ())
    """
    return tuple(point for point, _ in _jumps(fn))


def _jumps(fn: Callable[[Array], Array]) -> tuple[tuple[float, int], ...]:
    """Each point where `fn` or a derivative jumps, with the lowest order of such a derivative."""
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        check_scalar_function("fn", fn, jnp.dtype(jnp.float64))
        tower = [fn]
        for _ in range(4):
            tower.append(jax.grad(tower[-1]))
        values = jax.jit(jax.vmap(lambda h: jnp.stack([f(h) for f in tower])))
        evaluate = lambda h: np.asarray(values(h.reshape(-1))).T.reshape(5, *h.shape)

        # The grid avoids every simple number, where a kink would sit on a node.
        edges = np.linspace(-16, 16, 2049) + 0.1 / math.pi / 64
        bad = np.isnan(evaluate(edges)[0])
        if bad.any():
            raise ValueError(f"fn must be a number everywhere; it is NaN at {edges[bad][0]:.4g}")

        left, right = (np.tile(e, (4, 1)) for e in (edges[:-1], edges[1:]))
        early = np.zeros(())
        for step in range(44):
            middle = (left + right) / 2
            take = _mismatch(evaluate, left, middle) > _mismatch(evaluate, middle, right)
            left, right = np.where(take, left, middle), np.where(take, middle, right)
            if step == 20:
                early = _jump(evaluate, left, right)[0]
        late, size = _jump(evaluate, left, right)
        noise = np.maximum(1e-6 * size, 1e-10 * size.max(axis=1)[:, None])
        # At a tie JAX's derivative of a minimum is the mean of both sides: half the jump is left.
        real = (late > 0.1 * early) & (late > noise) & (late > 1e-9)
    found: dict[float, int] = {}
    for order, cell in np.argwhere(real):
        point = round(float(left[order, cell] + right[order, cell]) / 2, 10) + 0.0
        found.setdefault(point, int(order))
    return tuple(sorted(found.items()))


def _mismatch(evaluate: Callable, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How far each derivative's change over `[a, b]` is from what the next one explains."""
    orders = np.arange(4)[:, None], np.arange(a.shape[1])[None]
    fa, fb = evaluate(a), evaluate(b)
    change = fb[orders[0], orders[0], orders[1]] - fa[orders[0], orders[0], orders[1]]
    slope = fb[orders[0] + 1, orders[0], orders[1]] + fa[orders[0] + 1, orders[0], orders[1]]
    return np.abs(change - (b - a) * slope / 2)


def _jump(evaluate: Callable, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Change of each derivative over `[a, b]`, and the size of that derivative there."""
    index = np.arange(4)[:, None], np.arange(4)[:, None], np.arange(a.shape[1])[None]
    fa, fb = evaluate(a)[index], evaluate(b)[index]
    return np.abs(fb - fa), np.abs(fa) + np.abs(fb)


_INF, _ALL, _POSITIVE, _SIGNED = math.inf, (-math.inf, math.inf), (0.0, math.inf), (-1.0, 1.0)
_NONE = (None, None)
_SELU = 1.7580993408473768599  # lambda alpha of Klambauer et al. (2017)


def _left(value: float, rate: str) -> tuple[Limit, None]:
    return Limit(value, rate), None


def _both(below: float, above: float, rate: str) -> tuple[Limit, Limit]:
    return Limit(below, rate), Limit(above, rate)


# Minima and steepest slopes that have no closed form are roots of derivatives, to all digits.
# fmt: off
_TABLE: Any = (
    # name, function, kinks, smoothness, range, Lipschitz constant, monotone, saturation, degree
    ("relu", jax.nn.relu, (0.0,), 0, _POSITIVE, 1.0, True, _left(0.0, "exact"), 1),
    ("relu6", jax.nn.relu6, (0.0, 6.0), 0, (0.0, 6.0), 1.0, True, _both(0.0, 6.0, "exact")),
    ("relu2", lambda h: jnp.square(jax.nn.relu(h)),
     (0.0,), 1, _POSITIVE, _INF, True, _left(0.0, "exact"), 2),
    ("elu", jax.nn.elu, (0.0,), 1, (-1.0, _INF), 1.0, True, _left(-1.0, "exponential")),
    ("celu", jax.nn.celu, (0.0,), 1, (-1.0, _INF), 1.0, True, _left(-1.0, "exponential")),
    ("selu", jax.nn.selu, (0.0,), 0, (-_SELU, _INF), _SELU, True, _left(-_SELU, "exponential")),
    ("gelu", lambda h: jax.nn.gelu(h, approximate=False),
     (), _INF, (-0.16997120747990366, _INF), 1.1289041451851548, False,
     _left(0.0, "super-exponential")),
    ("gelu_tanh", lambda h: jax.nn.gelu(h, approximate=True),
     (), _INF, (-0.17004075057125405, _INF), 1.1289930686587718, False,
     _left(0.0, "super-exponential")),
    ("silu", jax.nn.silu, (), _INF, (-0.2784645427610738, _INF), 1.0998393201288669, False,
     _left(0.0, "exponential")),
    ("mish", jax.nn.mish, (), _INF, (-0.3088434130172504, _INF), 1.0884981612517279, False,
     _left(0.0, "exponential")),
    ("hard_swish", jax.nn.hard_swish, (-3.0, 3.0), 0, (-0.375, _INF), 1.5, False,
     _left(0.0, "exact")),
    ("softplus", jax.nn.softplus, (), _INF, _POSITIVE, 1.0, True, _left(0.0, "exponential")),
    ("squareplus", jax.nn.squareplus, (), _INF, _POSITIVE, 1.0, True, _left(0.0, "algebraic")),
    ("sigmoid", jax.nn.sigmoid, (), _INF, (0.0, 1.0), 0.25, True, _both(0.0, 1.0, "exponential")),
    ("log_sigmoid", jax.nn.log_sigmoid, (), _INF, (-_INF, 0.0), 1.0, True,
     (None, Limit(0.0, "exponential"))),
    ("hard_sigmoid", jax.nn.hard_sigmoid, (-3.0, 3.0), 0, (0.0, 1.0), 1 / 6, True,
     _both(0.0, 1.0, "exact")),
    ("tanh", jnp.tanh, (), _INF, _SIGNED, 1.0, True, _both(-1.0, 1.0, "exponential")),
    ("hard_tanh", jax.nn.hard_tanh, (-1.0, 1.0), 0, _SIGNED, 1.0, True, _both(-1.0, 1.0, "exact")),
    ("erf", jax.scipy.special.erf, (), _INF, _SIGNED, 2 / math.sqrt(math.pi), True,
     _both(-1.0, 1.0, "super-exponential")),
    ("softsign", jax.nn.soft_sign, (0.0,), 1, _SIGNED, 1.0, True, _both(-1.0, 1.0, "algebraic")),
    ("sin", jnp.sin, (), _INF, _SIGNED, 1.0, False, _NONE),
    ("cos", jnp.cos, (), _INF, _SIGNED, 1.0, False, _NONE),
    ("identity", lambda h: jnp.asarray(h), (), _INF, _ALL, 1.0, True, _NONE, 1),
    ("abs", jnp.abs, (0.0,), 0, _POSITIVE, 1.0, False, _NONE, 1),
    ("step", lambda h: jnp.heaviside(h, 0.0), (0.0,), -1, (0.0, 1.0), _INF, True,
     _both(0.0, 1.0, "exact"), 0),
)
# fmt: on
_ENTRIES = (*(Activation(*row) for row in _TABLE), leaky_relu(), leaky_relu(0.25, "prelu"))
_CATALOGUE = {entry.name: entry for entry in _ENTRIES}
