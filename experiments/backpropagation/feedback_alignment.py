r"""Random fixed feedback teaches deep layers, because the weights turn towards the feedback.

Paper    Lillicrap, Cownden, Tweed and Akerman (2016), Random synaptic feedback weights support
         error backpropagation for deep learning; Nøkland (2016), Direct feedback alignment provides
         learning in deep neural networks. The update starts at a right angle to the gradient, and
         the angle falls well below 90 degrees as training goes on.
Run      dltheory run feedback_alignment                 (twenty seconds on two cores)
         dltheory run feedback_alignment --profile full  (not timed)
Expect   At the start, angles of 90 degrees within four standard errors. At the end, angles of
         hidden layers below 90 degrees by more than that, and losses below those of a network of
         which the last layer alone is trained: the hidden layers have learnt. Backpropagation
         stays ahead.
"""

import itertools
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import feedback_alignment
from dltheory.networks import data

RULES = ("backpropagation", "feedback alignment", "direct feedback", "last layer alone")
RECORDS = 25


@dataclass(frozen=True)
class Config:
    """A network of two hidden layers on digits, or a linear one on a linear target.

    Attributes:
        linear: Whether it is the linear one.
        width: Units of each hidden layer.
        examples: Of the training set.
        rate: Learning rate.
        steps: Of full-batch gradient descent.
    """

    linear: bool = False
    width: int = 64
    examples: int = 256
    rate: float = 0.2
    steps: int = 500


def trial(key, config):
    """Losses under four rules, and the angles of the updates to the gradient."""
    if config.linear:
        widths, phi = (30, config.width, config.width, 10), lambda z: z
    else:
        widths, phi = (64, config.width, config.width, 10), "relu"
    sizes = list(itertools.pairwise(widths))
    most, gain = max(widths), 1.0 if config.linear else 2.0
    normal = jax.random.normal(key, (8, max(most, config.examples), most))
    scaled = lambda at, a, b, v: math.sqrt(v / a) * normal[at, :a, :b]
    start = [{"kernel": scaled(i, a, b, gain)} for i, (a, b) in enumerate(sizes)]
    if config.linear:
        x = normal[6, : config.examples, : widths[0]]
        wanted = x @ scaled(7, widths[0], widths[-1], 1.0)
        loss = lambda y: jnp.mean((y - wanted) ** 2) / 2
    else:
        digits = data.digits(scale="dataset", dtype=normal.dtype)
        x, labels = digits.x[: config.examples], digits.y[: config.examples]
        wanted = jax.nn.one_hot(labels, widths[-1], dtype=normal.dtype)
        loss = lambda y: -jnp.mean(jnp.sum(jax.nn.log_softmax(y) * wanted, axis=1))

    # The sizes of forward weights, from the output to a layer.
    fixed = [scaled(3 + i, *sizes[1 + i], gain).T for i in range(2)]
    straight = [scaled(5 - i, config.width, widths[-1], gain).T for i in range(2)]
    transposes = lambda params: [layer["kernel"].T for layer in params[1:]]
    send = feedback_alignment.feedback_gradients
    direct = feedback_alignment.direct_feedback_gradients

    def last(params):
        found = send(loss, params, transposes(params), x, phi=phi)
        below = jax.tree.map(jnp.zeros_like, found.gradients[:-1])
        return found._replace(gradients=[*below, found.gradients[-1]])

    true = lambda params: send(loss, params, transposes(params), x, phi=phi)
    rules = (
        true,
        lambda params: send(loss, params, fixed, x, phi=phi),
        lambda params: direct(loss, params, straight, x, phi=phi),
        last,
    )

    def step(params, _):
        moved = [
            jax.tree.map(lambda w, g: w - config.rate * g, own, rule(own).gradients)
            for own, rule in zip(params, rules, strict=True)
        ]
        return moved, None

    def read(params):
        losses = jnp.stack([rule(own).loss for own, rule in zip(params, rules, strict=True)])
        angles = [
            feedback_alignment.gradient_angles(rules[i](params[i])[1], true(params[i])[1])
            for i in (1, 2)
        ]
        return losses, jnp.stack(angles)

    def advance(params, _):
        found = read(params)
        return jax.lax.scan(step, params, length=config.steps // RECORDS)[0], found

    losses, angles = jax.lax.scan(advance, [start] * len(rules), length=RECORDS + 1)[1]
    return {"losses": losses, "angles": angles}


def sweeps(profile, config):
    """Both networks; more seeds and steps in the full profile."""
    seeds, longer = {"quick": (8, 1), "full": (50, 8)}[profile]
    digits = replace(config, steps=config.steps * longer)
    linear = replace(digits, linear=True, width=20, rate=1.0)
    return [
        Sweep("digits", trial, digits, seeds=seeds),
        Sweep("linear", trial, linear, seeds=seeds),
    ]


def claims(results):
    """Angles at both ends, and losses at the end."""
    made = []
    for name, kind in (("digits", "ReLU on digits"), ("linear", "linear")):
        [(_, arrays)] = results[name]
        angles, losses = arrays["angles"][..., :2], arrays["losses"]
        error = lambda a: 4 * a.std(0, ddof=1) / math.sqrt(len(a))
        for index, rule in enumerate(RULES[1:3]):
            first, last = angles[:, 0, index], angles[:, -1, index]
            text = f"degrees to the gradient at the start, worst layer ({rule}, {kind})"
            made.append(worst(text, 90 * np.ones(2), first.mean(0), error(first)))
            layer = last.mean(0).argmax()
            text = f"the same at the end, largest of both layers, and 4 stderr ({rule}, {kind})"
            highest = float((last.mean(0) + error(last))[layer])
            made.append(Claim(text, 90.0, highest, 0.0, "<="))
            gain = np.log(losses[:, -1, 1 + index] / losses[:, -1, 3])
            text = f"log ratio of the loss to that with hidden layers fixed ({rule}, {kind})"
            made.append(Claim(text, 0.0, float(gain.mean() + error(gain)), 0.0, "<="))
    return made


def figure(results):
    """Losses above, angles of both hidden layers below."""
    fig, axes = figures.axes(3, 2, size=(4.2, 2.1), sharex="col")
    titles = {"digits": "ReLU network on digits", "linear": "linear network, linear target"}
    for column, (name, title) in enumerate(titles.items()):
        [(config, arrays)] = results[name]
        at = np.arange(RECORDS + 1) * config.steps / RECORDS
        for series, rule in enumerate(RULES):
            samples = arrays["losses"][..., series]
            figures.band(axes[0, column], at, samples, series=series, label=rule)
        for layer, ax in enumerate(axes[1:, column]):
            for series in (1, 2):
                samples = arrays["angles"][:, :, series - 1, layer]
                figures.band(ax, at, samples, spread="stderr", series=series)
            ax.axhline(90, color="#222222", linewidth=0.9, linestyle=(0, (2, 2)))
            ax.set(ylim=(45, 105))
            ax.set_title(f"layer {layer + 1}", y=0.02, x=0.02)
        axes[0, column].set(yscale="log")
        axes[0, column].set_title(title)
        axes[2, column].set_xlabel("step")
    axes[0, 0].set_ylabel("loss")
    for ax in axes[1:, 0]:
        ax.set_ylabel("degrees to the gradient")
    figures.legend(fig)
    return fig
