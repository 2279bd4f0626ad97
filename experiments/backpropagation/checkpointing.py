r"""Checkpointing trades memory for steps: the root of the depth, or any number of states.

Paper    Chen et al. (2016), Training deep nets with sublinear memory cost: segments of sqrt(L)
         layers keep about 2 sqrt(L) states and cost one forward pass more. Griewank and Walther
         (2000), Algorithm 799: s states, with the least possible number of steps run again.
Run      dltheory run checkpointing                 (fifteen seconds on two cores)
         dltheory run checkpointing --profile full  (not timed)
Expect   Memory of the gradient of a scanned stack, as XLA assigns it, in activations of a layer:
         exponent 1 of a plain scan, 0.5 of segments, 0 of a plan with eight states. Segments by
         jax.checkpoint cost one forward pass, counted in FLOPs of an unrolled stack, on which XLA
         can merge nothing.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim
from dltheory.experiment.sweep import Sweep
from dltheory.measure import backprop, checkpointing
from dltheory.numerics import scaling
from dltheory.theory import backprop as theory

SLOTS = 8
NAMES = ("scan", "segments", "revolve")


@dataclass(frozen=True)
class Config:
    """A stack of square layers.

    Attributes:
        depth: Number of layers.
        width: Their width.
        batch: Number of examples.
    """

    depth: int = 64
    width: int = 64
    batch: int = 1024


def _step(h, w):
    return jnp.tanh(h @ w), None


def _arrays(config):
    shapes = (config.depth, config.width, config.width), (config.batch, config.width)
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def memory(key, config):
    """Temporary memory of gradients, in activations of a layer. Nothing is run."""
    del key
    plan = theory.revolve(config.depth, SLOTS).actions
    planned = lambda step, carry, xs: checkpointing.planned_scan(step, carry, xs, plan)
    scans = lax.scan, checkpointing.segmented_scan, planned
    found = {}
    for name, scan in zip(NAMES, scans, strict=True):
        loss = lambda w, x, scan=scan: jnp.sum(scan(_step, x, w)[0])
        cost = backprop.cost(jax.grad(loss), *_arrays(config))
        found[name] = jnp.asarray(cost.temporary_bytes / (4 * config.batch * config.width))
    return found


def work(key, config):
    """FLOPs of a gradient by segments of an unrolled stack, less those of a plain one."""
    del key

    def stack(h, ws):
        for w in ws:
            h, _ = _step(h, w)
        return h

    def loss(ws, x, segment):
        size = theory.segments(config.depth).count
        for start in range(0, config.depth, size):
            x = segment(x, ws[start : start + size])
        return jnp.sum(x**2)

    args = _arrays(config)
    flops = [
        backprop.cost(change(lambda w, x, segment=segment: loss(w, x, segment)), *args).flops
        for change, segment in ((lambda f: f, stack), (jax.grad, stack))
    ]
    again = backprop.cost(jax.grad(lambda w, x: loss(w, x, jax.checkpoint(stack))), *args).flops
    return {"forwards": jnp.asarray((again - flops[1]) / flops[0])}


def sweeps(profile, config):
    """Depths up to 256; deeper ones in the full profile."""
    depths = {"quick": (16, 64, 256), "full": (16, 32, 64, 128, 256, 512, 1024)}[profile]
    unrolled = Config(16, config.width, config.batch)
    return [
        Sweep("memory", memory, config, cells={"depth": depths}, seeds=1),
        Sweep("work", work, unrolled, seeds=1),
    ]


def _memory(results):
    """Depths, and memory by name without the stacked weights that a scan sums up."""
    depths = np.array([config.depth for config, _ in results["memory"]])
    found = {name: np.array([a[name][0] for _, a in results["memory"]]) for name in NAMES}
    config = results["memory"][0][0]
    weights = depths * config.width / config.batch
    return depths, {n: a - (0 if n == "revolve" else weights) for n, a in found.items()}


def claims(results):
    """Exponents of memory, the bound of segments, the states of the plan, and the work."""
    depths, found = _memory(results)
    made = []
    for name, exponent in (("scan", 1.0), ("segments", 0.5), ("revolve", 0.0)):
        fit = scaling.power_law(depths, found[name]).exponent
        made.append(Claim(f"exponent of memory ({name})", exponent, float(fit), 0.15))
    bound = 6 * np.sqrt(depths[-1])
    text = f"activations kept by segments, {depths[-1]} layers: 6 sqrt(L)"
    made.append(Claim(text, float(bound), float(found["segments"][-1]), 0, "<="))
    text = f"activations kept by revolve with {SLOTS} states, {depths[-1]} layers"
    # Beside the states: the one at work, its delta, and three of the step that is taped.
    made.append(Claim(text, SLOTS + 5, float(found["revolve"][-1]), 1))
    extra = float(results["work"][0][1]["forwards"][0])
    return [*made, Claim("forward passes that segments cost", 1, extra, 0.15)]


def figure(results):
    """Memory against depth."""
    depths, found = _memory(results)
    fig, axes = figures.axes(1, 1, size=(4.6, 3.6))
    ax = axes[0, 0]
    # Theory gives the exponent; the line goes through the deepest point.
    exponents = 1.0, 0.5, 0.0
    labels = "scan: $L$", "segments: $\\sqrt{L}$", f"revolve, {SLOTS} states"
    for series, (name, power) in enumerate(zip(NAMES, exponents, strict=True)):
        color = figures.COLORS[series]
        figures.line(ax, depths, found[name][-1] * (depths / depths[-1]) ** power, series=series)
        ax.plot(depths, found[name], "o", color=color, label=labels[series], zorder=4)
    ax.set(xlabel="layers L", ylabel="memory [layer activations]")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_title("Temporary memory of a gradient, as XLA assigns it", fontsize=9)
    figures.legend(fig)
    return fig
