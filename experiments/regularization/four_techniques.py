r"""L1, L2, dropout and early stopping on one overfitting network: the gap that each one closes.

Paper    Jacot, Gabriel and Hongler (2018) and Lee et al. (2019) for early stopping: a wide network
         learns as gradient flow on its tangent kernel does. Cavazza et al. (2018) and Wei, Kakade
         and Ma (2020) for dropout: of hidden units before a squared loss it adds, in the mean over
         masks, (1 - p) / p sum_k |h_k|^2 |w_k|^2. Du, Hu and Lee (2018) for the layers: nothing
         that sees their product alone changes D = |W_1|^2 - |W_2|^2, so dropout and stopping keep
         it, L2 shrinks it as exp(-2 lambda t), and L1 by 2 lambda (|W_1|_1 - |W_2|_1) a unit of
         time. Daubechies, Defrise and De Mol (2004) for L1 by proximal steps: exact zeros.
Run      dltheory run four_techniques                 (half a minute on two cores)
         dltheory run four_techniques --profile full  (not timed)
Expect   Each technique closes a third of the gap or more, and saves test loss, by more than four
         standard errors on both sets of data; most at the test gains L2. Masks and their penalty
         train networks of one test loss. D is kept, shrinks as exp(-2 lambda t), and loses what
         soft thresholds take, each within the steps' finite length. Width 64 is far from infinite:
         its test loss lies above that of flow, by less than half as much at four times the width.
"""

import functools
import math
from collections import namedtuple
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.networks import data, proximal, regularizers
from dltheory.theory import dropout, kernel_regression, kernels

CLASSES = 10
TRAIN, HELD, TEST = range(3)


@dataclass(frozen=True)
class Config:
    """A ReLU network of one hidden layer, the squared loss, and few examples.

    Attributes:
        dataset: "digits" or "mnist1d".
        examples: To train on.
        held: To choose strengths and the time to stop by.
        tests: To test on.
        share: Of all labels, how many are replaced by random ones.
        width: Hidden units, in pairs of opposite output: the network is zero before training.
        scale: What the output is multiplied by.
        l1: Penalties on the sum of absolute values.
        l2: Penalties on half the sum of squares.
        keep: Probabilities that dropout keeps a hidden unit.
        rate: Learning rate.
        momentum: Of the heavy ball.
        steps: Of training, on all examples.
        every: Steps between two records.
        patience: Records without progress after which training would have stopped.
    """

    dataset: str = "digits"
    examples: int = 100
    held: int = 250
    tests: int = 500
    share: float = 0.2
    width: int = 64
    scale: float = 0.5
    l1: tuple[float, ...] = (3e-4, 6e-4)
    l2: tuple[float, ...] = (5e-4, 1e-3)
    keep: tuple[float, ...] = (0.7, 0.5)
    rate: float = 0.5
    momentum: float = 0.9
    steps: int = 300
    every: int = 5
    patience: int = 20


# Of each run; `masked` tells dropout from its penalty.
Strengths = namedtuple("Strengths", "l1 l2 keep masked")


def runs(config):
    """Name and strength of each run: none, then each technique and the penalty of dropout."""
    strengths = {"L1": config.l1, "L2": config.l2, "dropout": config.keep, "penalty": config.keep}
    return [("none", 0.0), *((name, s) for name, all_ in strengths.items() for s in all_)]


def _table(config):
    """Strengths as arrays over runs."""
    names, s = (np.array(column) for column in zip(*runs(config), strict=True))
    dropped = (names == "dropout") | (names == "penalty")
    columns = s * (names == "L1"), s * (names == "L2"), np.where(dropped, s, 1), names == "dropout"
    return Strengths(*(jnp.asarray(a, bool if a.dtype == bool else float) for a in columns))


@functools.cache
def _inputs(dataset):
    """All examples, those of MNIST-1D that are meant for tests too, with one more input of 1."""
    with jax.ensure_compile_time_eval():
        if dataset == "digits":
            whole = data.digits(scale="example", dtype=jnp.float32)
        else:
            train, test = data.mnist1d(dtype=jnp.float32)
            whole = data.Data(*(jnp.concatenate(pair) for pair in zip(train, test, strict=True)))
        return whole._replace(x=jnp.pad(whole.x, ((0, 0), (0, 1)), constant_values=1))


def _draw(key, config):
    """Examples with wrong labels among them, and the weights to start from, in opposite pairs."""
    whole = _inputs(config.dataset)
    key_order, key_labels, key_params = jax.random.split(key, 3)
    count = config.examples + config.held + config.tests
    order = jax.random.permutation(key_order, len(whole.y))[:count]
    chosen = data.Data(whole.x[order], whole.y[order])
    chosen = data.random_labels(key_labels, chosen, CLASSES, config.share)
    d, half = chosen.x.shape[1], config.width // 2
    normal = jax.random.normal(key_params, (d + CLASSES, half), chosen.x.dtype)
    last = jnp.concatenate([normal[d:].T, -normal[d:].T])
    return chosen, {"first": jnp.tile(normal[:d], (1, 2)), "last": last}


def clock(config):
    """The time of gradient flow that the steps of each record stand for.

    A heavy ball moves 1 / (1 - momentum) times as far as its gradients, once it rolls.
    """
    k, beta = np.arange(0, config.steps + 1, config.every), config.momentum
    return config.rate / (1 - beta) * (k - beta * (1 - beta**k) / (1 - beta))


def _flow(config, x, y):
    """Outputs of the infinitely wide network at each record, shape (records, all, classes)."""
    n = config.examples
    k = [kernels.first_layer(a, x[:n], weight_var=2.0) for a in (x[:n], x)]
    train, whole = (kernels.nngp_ntk("relu", *c, depth=1, weight_var=2.0).ntk for c in k)
    time = jnp.asarray(clock(config), x.dtype) / n * config.scale**2
    return kernel_regression.predict(train, whole, y[:n], time=time)


def trial(key, config):
    """Train one network in every way at once, from the same weights on the same examples."""
    n, ends = config.examples, np.cumsum([config.examples, config.held])
    key_draw, key_masks = jax.random.split(key)
    chosen, start = _draw(key_draw, config)
    x, y = chosen.x, jax.nn.one_hot(chosen.y, CLASSES, dtype=chosen.x.dtype) - 1 / CLASSES
    table = _table(config)

    def hidden(params, x):
        h = jax.nn.relu(x @ params["first"] * math.sqrt(2 / x.shape[1]))
        return h * (config.scale * math.sqrt(2 / config.width))

    def loss(params, run, uniform):
        h = hidden(params, x[:n])
        dropped = jnp.where(run.masked & (uniform >= run.keep), 0, h)
        h = jnp.where(run.masked, dropped / run.keep, h)
        keep = jnp.where(run.masked, 1, run.keep)
        fit = jnp.sum((h @ params["last"] - y[:n]) ** 2)
        fit = fit + dropout.factor_penalty(h, params["last"].T, keep)
        return fit / (2 * n) + run.l2 * regularizers.l2(params)

    def descent(run):
        ball = optax.sgd(config.rate, config.momentum)
        return optax.chain(ball, proximal.proximal_l1(run.l1, config.rate / (1 - config.momentum)))

    def update(carry, run, uniform):
        params, memory, moved = carry
        gradient = jax.grad(loss)(params, run, uniform)
        updates, memory = descent(run).update(gradient, memory, params)
        return optax.apply_updates(params, updates), memory, moved + squares(updates)

    def step(carry, index):
        key_mask = jax.random.fold_in(key_masks, index)
        uniform = jax.random.uniform(key_mask, (n, config.width), x.dtype)
        return jax.vmap(update, in_axes=(0, 0, None))(carry, table, uniform), None

    def scores(f):
        means = lambda a: jnp.stack([part.mean() for part in jnp.split(a, ends)])
        wrong = (f.argmax(1) != chosen.y).astype(f.dtype)
        return {"loss": means(jnp.sum((f - y) ** 2, 1)), "error": means(wrong)}

    # What the first layer has more than the last one.
    squares = lambda w: jnp.sum(w["first"] ** 2) - jnp.sum(w["last"] ** 2)
    absolutes = lambda w: jnp.sum(abs(w["first"])) - jnp.sum(abs(w["last"]))
    outputs = lambda params: hidden(params, x) @ params["last"]

    def look(carry):
        params, _, moved = carry
        first = scores(outputs(jax.tree.map(lambda a: a[0], params)))
        sizes = {"squares": jax.vmap(squares)(params), "absolutes": jax.vmap(absolutes)(params)}
        return {**first, **sizes, "moved": moved}

    def block(carry, index):
        indices = index * config.every + jnp.arange(config.every)
        return jax.lax.scan(step, carry, indices)[0], look(carry)

    every = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(table.l1), *a.shape)), start)
    memory = jax.vmap(lambda params, run: descent(run).init(params))(every, table)
    carry = every, memory, jnp.zeros_like(table.l1, x.dtype)
    carry, path = jax.lax.scan(block, carry, jnp.arange(config.steps // config.every))
    path = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), path, look(carry))
    stop = regularizers.early_stopping(path["loss"][:, HELD], config.patience)
    zeros = lambda params: sum(jnp.sum(w == 0) for w in params.values())
    return {
        **{f"path_{name}": values for name, values in path.items()},
        "flow_loss": jax.vmap(lambda f: scores(f)["loss"])(_flow(config, x, y)),
        "stop": stop.best,
        **jax.vmap(lambda params: scores(outputs(params)))(carry[0]),
        "zeros": jax.vmap(zeros)(carry[0]) / sum(w.size for w in start.values()),
    }


def sweeps(profile, config):
    """Both sets of data; and plain training of a wider network."""
    if profile == "full":
        config = replace(config, examples=300, width=256, steps=1000, every=10)
        few = (5e-5, 1e-4, 2e-4, 4e-4)
        config = replace(config, l1=few, l2=few, keep=(0.9, 0.8, 0.7, 0.5, 0.3))
    digits = replace(config, dataset="digits")
    # Of these few are learnt, wrong labels or not.
    sequences = replace(config, dataset="mnist1d", examples=3 * config.examples, share=0.0)
    wide = replace(digits, width=4 * config.width, l1=(), l2=(), keep=())
    configs = {"digits": digits, "mnist1d": sequences, "wide": wide}
    return [Sweep(name, trial, config, seeds=10) for name, config in configs.items()]


def _decay(config, strength):
    """What a heavy ball leaves of a weight that L2 alone acts on, at each record."""
    weights, speed = [1.0], 0.0
    for _ in range(config.steps):
        speed = config.momentum * speed - config.rate * strength * weights[-1]
        weights.append(weights[-1] + speed)
    return np.array(weights[:: config.every])


def _thresholds(config, strength, absolutes):
    """What soft thresholds have taken from the difference of squares by each record."""
    long = config.rate / (1 - config.momentum) * config.every
    parts = (absolutes[:, 1:] + absolutes[:, :-1]) / 2 * long
    return 2 * strength * np.pad(np.cumsum(parts, 1), ((0, 0), (1, 0)))


def _finite_steps(config, moved):
    """What steps add to the difference of squares, by their squared lengths."""
    return (1 + config.momentum) / (1 - config.momentum) * moved


def _chosen(config, arrays):
    """By technique its run of least mean loss on held examples, and losses (seeds, parts)."""
    names, held = runs(config), arrays["loss"][..., HELD].mean(0)
    found, seeds = {}, np.arange(len(arrays["loss"]))
    for technique in ("none", "early stopping", "L2", "L1", "dropout"):
        mine = [i for i, (name, _) in enumerate(names) if name == technique]
        best = min(mine, key=lambda i: held[i], default=0)
        found[technique] = best, arrays["loss"][:, best]
    found["early stopping"] = 0, arrays["path_loss"][seeds, arrays["stop"]]
    return found


def _error(samples):
    """Four standard errors of the mean over seeds."""
    return 4 * samples.std(0, ddof=1) / math.sqrt(len(samples))


def claims(results):
    """What each technique closes of the gap; then the theory of each."""
    made = []
    for name in ("digits", "mnist1d"):
        config, arrays = results[name][0]
        made += _gap_claims(config, arrays) + _theory_claims(config, arrays)
    found = []
    for name in ("digits", "wide"):
        config, arrays = results[name][0]
        flow = arrays["flow_loss"].mean(0)
        excess = arrays["path_loss"].mean(0) - flow
        found.append(float(excess[flow[:, HELD].argmin(), TEST]))
    text = "test loss beyond flow's at flow's best time: at width 4 n, over that at n (digits)"
    return [*made, Claim(text, 0.5, found[1] / found[0], 0.0, "<=")]


def _gap_claims(config, arrays):
    made, chosen = [], _chosen(config, arrays)
    _, plain = chosen.pop("none")
    for technique, (_, losses) in chosen.items():
        saved = plain - losses
        gap = saved[:, TEST] - saved[:, TRAIN]
        for text, closed in (("gap closed by", gap), ("test loss saved by", saved[:, TEST])):
            text = f"{text} {technique}, beside four standard errors ({config.dataset})"
            made.append(Claim(text, float(_error(closed)), float(closed.mean()), 0.0, ">="))
    return made


def _theory_claims(config, arrays):
    names = runs(config)
    of = lambda kind: [i for i, run in enumerate(names) if run[0] == kind]
    where, test = f"({config.dataset})", arrays["loss"][..., TEST]
    apart = test[:, of("dropout")] - test[:, of("penalty")]
    text = f"test loss under masks less that under their penalty, worst keep {where}"
    # What masks do beyond their mean is of first order in the rate: half a per cent for it.
    made = [worst(text, 0.0, apart.mean(0), _error(apart) + 0.005 * test.mean())]

    squares, absolutes = arrays["path_squares"], arrays["path_absolutes"]
    ratio = squares[:, -1] / squares[:, 0]
    steps = _finite_steps(config, arrays["path_moved"][:, -1]) / squares[:, 0]
    kept = [i for i, (kind, _) in enumerate(names) if kind in ("none", "dropout", "penalty")]
    # Of float32, an epsilon a step for each of two sums, before and after.
    rounding = 4 * config.steps * float(np.finfo(np.float32).eps)
    text = f"D after training over D before, finite steps apart: none, dropout, penalty {where}"
    made.append(worst(text, 1.0, (ratio - steps)[:, kept], rounding))
    for i in of("L2"):
        logs = np.log(ratio[:, i])
        theory = 2 * math.log(_decay(config, names[i][1])[-1])
        allowed = float(_error(logs) + np.abs(steps[:, i]).mean())
        text = f"ln of D after L2 of {names[i][1]:g}, over D before {where}"
        made.append(Claim(text, theory, float(logs.mean()), allowed))
    for i in of("L1"):
        taken = _thresholds(config, names[i][1], absolutes[..., i])[:, -1] / squares[:, 0, i]
        allowed = float(_error(ratio[:, i] + taken) + np.abs(steps[:, i]).mean())
        text = f"D after L1 of {names[i][1]:g} over D before {where}"
        made.append(Claim(text, float(1 - taken.mean()), float(ratio[:, i].mean()), allowed))
    dense = [i for i, (kind, _) in enumerate(names) if kind != "L1"]
    text = f"share of weights that are exactly zero without L1, largest {where}"
    made.append(Claim(text, 0.0, float(arrays["zeros"][:, dense].max()), 0.0))
    return made


def figure(results):
    """Plain training beside flow, the gaps, and the difference of layers, for both sets of data."""
    fig, axes = figures.axes(2, 3, size=(3.7, 2.9))
    titles = {"digits": "digits", "mnist1d": "MNIST-1D"}
    for row, (name, title) in zip(axes, titles.items(), strict=True):
        config, arrays = results[name][0]
        _draw_training(row[0], config, arrays, results["wide"] if name == "digits" else [])
        row[0].set_title(f"{title}, {config.examples} examples; shaded: stopped")
        _draw_gaps(row[1], config, arrays)
        row[1].set_title("training ● and test ○ loss, theory below")
        _draw_layers(row[2], config, arrays)
        row[2].set_title("$D = |W_1|^2 - |W_2|^2$")
    for ax, label in zip(
        axes[1], ("time", "squared loss, two standard errors", "time"), strict=True
    ):
        ax.set_xlabel(label)
    figures.legend(fig)
    return fig


def _draw_training(ax, config, arrays, wide):
    time, flow = clock(config)[1:], arrays["flow_loss"].mean(0)[1:]
    shown = [("train", TRAIN, config, arrays), ("test", TEST, config, arrays)]
    for series, (part, index, c, a) in enumerate([*shown, *(("test", TEST, *w) for w in wide)]):
        if c is config:
            figures.line(ax, time, flow[:, index], series=series)
        style = {"spread": "stderr", "series": series, "label": f"{part}, width {c.width}"}
        figures.band(ax, time[::2], a["path_loss"][:, 1::2, index], **style)
    stop = clock(config)[arrays["stop"]]
    ax.axvspan(stop.min(), stop.max(), color="#222222", alpha=0.07, linewidth=0)
    ax.set(xscale="log", ylabel="squared loss", ylim=(0, None))


def _draw_gaps(ax, config, arrays):
    found, names, flow = _chosen(config, arrays), runs(config), arrays["flow_loss"]
    best = flow[..., HELD].argmin(1)
    for place, (technique, (run, losses)) in enumerate(found.items()):
        ax.plot(losses.mean(0)[::2], [place] * 2, color="#BBBBBB", linewidth=2, zorder=2)
        for index, face in ((0, None), (2, "white")):
            values = losses[:, index]
            style = {"color": figures.COLORS[index // 2], "markerfacecolor": face, "zorder": 4}
            ax.errorbar(values.mean(), place, xerr=_error(values) / 2, fmt="o", **style)
        theory = None
        if technique == "none":
            theory = flow[:, -1]
        elif technique == "early stopping":
            theory = flow[np.arange(len(flow)), best]
        elif technique == "dropout":
            theory = arrays["loss"][:, names.index(("penalty", names[run][1]))]
        if theory is not None:
            style = {"color": "#222222", "linewidth": 0.9, "zorder": 3}
            ax.plot(theory.mean(0)[::2], [place + 0.27] * 2, "|-", **style)
    labels = [t if run == 0 else f"{t} {names[run][1]:g}" for t, (run, _) in found.items()]
    ax.set_yticks(range(len(found)), labels)
    ax.set(ylim=(len(found) - 0.4, -0.6), xlim=(0, None))
    ax.grid(axis="y", visible=False)


def _draw_layers(ax, config, arrays):
    names, time, found = runs(config), clock(config), _chosen(config, arrays)
    for series, technique in ((3, "none"), (6, "dropout"), (4, "L2"), (5, "L1")):
        run = found[technique][0]
        start = arrays["path_squares"][:, :1, run]
        share = arrays["path_squares"][..., run] / start
        theory = 1 + _finite_steps(config, arrays["path_moved"][..., run]) / start
        if technique == "L2":
            theory = _decay(config, names[run][1])[None] ** 2
        elif technique == "L1":
            theory = (
                1 - _thresholds(config, names[run][1], arrays["path_absolutes"][..., run]) / start
            )
        figures.line(ax, time, theory.mean(0), series=series)
        samples = share[:, ::4]
        figures.band(ax, time[::4], samples, spread="stderr", series=series, label=technique)
    ax.set(ylabel="share of $D$ left", ylim=(0, 1.15))
