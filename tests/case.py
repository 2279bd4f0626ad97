"""One row of the table of models, and what its builders share."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

BATCH = 3


@dataclass(frozen=True)
class Case:
    """One model and what must be found in it.

    Attributes:
        name: What pytest shows.
        build: `build(dtype=float64) -> (f, params, x)`, a batch of three examples.
        expected: `expected(params, x) -> {site text: value}`, one entry for each of `sites`.
        sites: Every site in run order, "input" and "output" left out.
        cuts: Those of `sites` that every derivative path from input to output crosses.
        couples_examples: Whether one example's output depends on another's input.
        scanned: Whether some site carries a layer index. XLA compiles a scan's body as a whole, so
            its values equal those of the layers run one by one to rounding, not to the bit.
        closed: Those of `sites` that are opaque: a custom rule, or control flow.
        forward_mode: Whether `jax.jvp` passes through the model (a custom_vjp forbids it).
        promotes: Whether the framework's own code needs JAX's standard dtype promotion.
        example_axes: The axis of the examples at a site, where that is not 0.
    """

    name: str
    build: Callable
    expected: Callable
    sites: tuple[str, ...]
    cuts: tuple[str, ...]
    couples_examples: bool = False
    scanned: bool = False
    closed: tuple[str, ...] = ()
    forward_mode: bool = True
    promotes: bool = False
    example_axes: tuple[tuple[str, int], ...] = ()

    def __str__(self):
        return self.name


def case(name, build, expected, sites, cuts=None, **flags):
    """A case from texts with spaces between the sites; without `cuts` every site is one."""
    sites = tuple(sites.split())
    cuts = sites if cuts is None else tuple(cuts.split())
    return Case(name, build, expected, sites, cuts, **flags)


def normal(seed, shape, dtype, scale=1.0):
    """A Gaussian array of standard deviation `scale`."""
    return jnp.asarray(scale, dtype) * jax.random.normal(jax.random.key(seed), shape, dtype)


def batch(dtype, *shape):
    """The input of a case."""
    return normal(1, (BATCH, *shape), dtype)


def settled(params, dtype):
    """The parameters in `dtype`, each moved off its initial value: no bias 0, no scale 1."""
    leaves, structure = jax.tree.flatten(params)
    moved = [a.astype(dtype) + normal(2 + i, a.shape, dtype, 0.1) for i, a in enumerate(leaves)]
    return jax.tree.unflatten(structure, moved)


def at(stack, i):
    """The parameters of layer `i` of a stack."""
    return jax.tree.map(lambda a: a[i], stack)
