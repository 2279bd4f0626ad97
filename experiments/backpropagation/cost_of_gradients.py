r"""A gradient costs a few evaluations of the function, whatever the number of parameters.

Paper    Baur and Strassen (1983); Griewank and Walther (2008), Evaluating derivatives: value and
         gradient cost at most 5 times the function, and 3 to 4 times where moves of memory count;
         a Hessian-vector product at most 10 times. Matrix products alone give 3 and 9.
Run      dltheory run cost_of_gradients                 (ten seconds on two cores)
         dltheory run cost_of_gradients --profile full  (not timed)
Expect   FLOPs as XLA counts them: the gradient between 2 and 4 for dense, convolutional and
         attention layers, the gradient with a Hessian-vector product below 10.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim
from dltheory.experiment.sweep import Sweep
from dltheory.measure import backprop
from dltheory.theory import backprop as theory

KINDS = ("dense", "convolution", "attention")


@dataclass(frozen=True)
class Config:
    """Two layers of one kind.

    Attributes:
        kind: What they are.
        width: Width, channels, or width of a token.
        batch: Number of examples.
        length: Tokens of a sequence, or pixels of a side.
    """

    kind: str = "dense"
    width: int = 64
    batch: int = 16
    length: int = 16


def _model(config):
    """A loss, the shapes of its weights and data, and FLOPs of its products by theory."""
    n, b, t = config.width, config.batch, config.length
    if config.kind == "dense":
        layer = lambda w, h: jnp.tanh(h @ w)
        return layer, (n, n), (b, n), theory.mlp_flops([n, n], b).forward
    if config.kind == "convolution":
        dims = ("NHWC", "HWIO", "NHWC")
        product = lambda w, h: lax.conv_general_dilated(
            h, w, (1, 1), "VALID", dimension_numbers=dims
        )
        # One pixel of padding on every side, so that both layers have the same sizes.
        pad = lambda h: jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
        layer = lambda w, h: jnp.tanh(product(w, pad(h)))
        flops = theory.conv_flops((3, 3), (t, t), (n, n), b).forward
        return layer, (3, 3, n, n), (b, t, t, n), flops

    def layer(w, h):
        q, k, v = (h @ w[i] for i in range(3))
        scores = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / n**0.5, axis=-1)
        return (scores @ v) @ w[3]

    return layer, (4, n, n), (b, t, n), theory.attention_flops(t, n, b).forward


def trial(key, config):
    """FLOPs by XLA over those of theory, and the ratios of derivatives. Nothing is run."""
    del key
    layer, weights, data, flops = _model(config)
    loss = lambda w, x: jnp.sum(layer(w[1], layer(w[0], x)) ** 2)
    w = tuple(jax.ShapeDtypeStruct(weights, jnp.float32) for _ in range(2))
    x = jax.ShapeDtypeStruct(data, jnp.float32)
    ratios = backprop.cost_ratios(loss, w, x)
    counted = backprop.cost(loss, w, x).flops / (2 * flops)
    found = {"counted": counted, "gradient": ratios.gradient, "product": ratios.hessian_product}
    return {name: jnp.asarray(value) for name, value in found.items()}


def sweeps(profile, config):
    """Three kinds of layer; several widths in the full profile."""
    widths = {"quick": (64,), "full": (16, 32, 64, 128, 256)}[profile]
    return [Sweep("ratios", trial, config, cells={"kind": KINDS, "width": widths}, seeds=1)]


def claims(results):
    """Ratios within the bounds."""
    made = []
    for config, arrays in results["ratios"]:
        text = f"{config.kind}, width {config.width}"
        gradient, product = (float(arrays[k][0]) for k in ("gradient", "product"))
        made.append(Claim(f"cost of value and gradient ({text})", 3, gradient, 1))
        made.append(Claim(f"of gradient and Hessian product ({text})", 10, product, 0, "<="))
    return made


def figure(results):
    """Ratios of both derivatives beside the bounds."""
    fig, axes = figures.axes(1, 1, size=(5.2, 3.6))
    ax = axes[0, 0]
    for series, (name, bound, label) in enumerate(
        (("gradient", 5, "value and gradient"), ("product", 10, "gradient and Hessian product"))
    ):
        heights = [float(arrays[name][0]) for _, arrays in results["ratios"]]
        at = np.arange(len(heights)) + 0.36 * (series - 0.5)
        color = figures.COLORS[series]
        ax.bar(at, heights, 0.34, color=color, alpha=0.8, label=label)
        ax.axhline(bound, color=color, linestyle=figures.DASHES[series], label=f"bound {bound}")
    names = [f"{c.kind}\n{c.width}" for c, _ in results["ratios"]]
    ax.set_xticks(np.arange(len(names)), names)
    ax.set(ylabel="FLOPs over those of the function", title="What derivatives cost")
    fig.legend(loc="outside lower center", ncols=2)
    return fig
