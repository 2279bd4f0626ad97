r"""Five remedies for vanishing and exploding gradients, tried on the same nets: 50 layers, digits.

Paper    Glorot and Bengio (2010); Schoenholz et al. (2017) for critical initialisation; Pascanu,
         Mikolov and Bengio (2013) for clipping; He et al. (2016) and Hayou et al. (2021) for skip
         connections with branches of 1/sqrt(depth); Ba, Kiros and Hinton (2016) for layer
         normalisation. Theory foretells the growth of squared gradients over each layer: chi_1;
         with skips 1 + chi_1 / depth; with layer normalisation E phi'^2 / E phi^2. A net can be
         trained if its depth is below six times the depth scale: of the map of covariances, since
         that of correlations does not see lengths vanish, and would call plain ReLU trainable.
Run      dltheory run remedies_on_trial                 (about a minute on two cores)
         dltheory run remedies_on_trial --profile full  (not timed)
Expect   Growth before training as foretold, for every remedy and activation. Clipping lets plain
         tanh take longer steps, nine in ten of them clipped, and does nothing for sigmoid and ReLU:
         what vanishes is never clipped. Skips train all three. Layer normalisation sets the growth
         of ReLU from 1/2 to 1, and that of sigmoid to 0.15 only. Who learns is who should, with one
         exception, recorded as a known failure: sigmoids at their edge of chaos, sigma_w^2 = 103.
         That holds at rates and steps tuned for it: critical and normalised nets learn little in
         so few steps, and with rates a few times as large not at all.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import jacobians, signal
from dltheory.networks import activations, data, training, transforms
from dltheory.theory import dual, finite_width, mean_field

REMEDIES = ("plain", "critical", "clipping", "skips", "normalised")
PLAIN, CRITICAL, CLIPPING, SKIPS, NORMALISED = range(5)
ACTIVATIONS = ("sigmoid", "tanh", "relu")
PIXELS, CLASSES = 64, 10
# Digits to learn from, and the rest of them.
SEEN, UNSEEN = 1000, 797
# Before training, clipping is plain.
_BEFORE = [(i, name) for i, name in enumerate(REMEDIES) if i != CLIPPING]
# For each remedy about the best of 0.0003, 0.001, ..., 0.03, tuned on nets like these and on these.
RATES = (0.003, 0.0015, 0.01, 0.01, 0.0003)


@dataclass(frozen=True)
class Config:
    """A fully connected network on digits of mean 0 and mean square 1.

    Attributes:
        remedy: Index of one of the five remedies.
        activation: Index of one of the three activations.
        critical: The weight variances of the edge of chaos, by activation.
        critical_bias: The bias variances that go with them.
        max_norm: To which gradients are clipped.
        width: Units of each hidden layer.
        depth: Hidden layers.
        batch: Digits a step.
        steps: Steps of gradient descent with momentum 0.9.
    """

    remedy: float = 0.0
    activation: float = 0.0
    critical: tuple[float, ...] = (103.128494, 1.760955, 2.0)
    critical_bias: tuple[float, ...] = (0.05, 0.05, 0.0)
    max_norm: float = 1.0
    width: int = 32
    depth: int = 50
    batch: int = 50
    steps: int = 180


def _remedy(config, dtype):
    """What the remedy does to a layer: variances, factors of skip and branch, normalisation."""
    which, phi = (jnp.asarray(i).astype(int) for i in (config.remedy, config.activation))
    chosen = lambda values, plain: jnp.where(
        which == CRITICAL, jnp.asarray(values, dtype)[phi], jnp.asarray(plain, dtype)
    )
    skip = (which == SKIPS).astype(dtype)
    return {
        "weight_var": chosen(config.critical, 1.0),
        "bias_var": chosen(config.critical_bias, 0.0),
        "skip": skip,
        "branch": jnp.where(skip > 0, jnp.asarray(config.depth**-0.5, dtype), 1),
        "normalise": which == NORMALISED,
    }


def _draw(key, config, dtype):
    """Gaussian weights and biases, the same normal draws for every remedy and activation."""
    n, depth = config.width, config.depth
    drawn = _remedy(config, dtype)
    weights = lambda z: z * jnp.sqrt(drawn["weight_var"] / z.shape[-2])
    biases = lambda z: z * jnp.sqrt(drawn["bias_var"])
    # All in one draw, since a program is compiled in seconds for each.
    sizes = np.cumsum([PIXELS, (depth - 1) * n, CLASSES, depth - 1])
    normal = jax.random.normal(key, (sizes[-1] + 1, n), dtype)
    first, hidden, last, hidden_bias, first_bias = jnp.split(normal, sizes)
    hidden = hidden.reshape(depth - 1, n, n)
    return {
        "first": {"weights": weights(first), "bias": biases(first_bias[0])},
        "hidden": {"weights": weights(hidden), "bias": biases(hidden_bias)},
        "last": {"weights": weights(last.T), "bias": jnp.zeros(CLASSES, dtype)},
    }


def _network(config):
    """The network as f(params, x), for traced remedies and activations: one program for all."""

    def f(params, x):
        remedy = _remedy(config, x.dtype)
        functions = [activations.get(name) for name in ACTIVATIONS]
        which = jnp.asarray(config.activation).astype(int)

        def activated(h):
            centred = h - h.mean(-1, keepdims=True)
            length = jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-6)
            u = jnp.where(remedy["normalise"], centred / length, h)
            return jax.lax.switch(which, functions, u)

        affine = lambda h, p: h @ p["weights"] + p["bias"][None]
        layer = lambda h, p: remedy["skip"] * h + remedy["branch"] * affine(activated(h), p)
        h = affine(x, params["first"])
        h, _ = jax.lax.scan(lambda h, p: (layer(h, p), None), h, params["hidden"])
        return affine(activated(h), params["last"])

    return f


def trial(key, config):
    """Train one net; gradients and Jacobians before and after, and what it has learnt."""
    f = _network(config)
    digits = data.digits(scale="example", dtype=jnp.float32)
    seen, unseen = (
        data.Data(*(a[part] for a in digits)) for part in (slice(SEEN), slice(SEEN, None))
    )
    score = optax.losses.softmax_cross_entropy_with_integer_labels
    one, label = unseen.x[:1].astype(float), unseen.y[:1]

    def record(params):
        # The first layer and, past each site of its weights, the join with the skip.
        layers = slice(0, 2 * config.depth, 2)
        wide = jax.tree.map(lambda a: a.astype(float), params)
        gradients = signal.gradient_norms(lambda y: score(y, label).sum(), f, wide, one)
        spectra = jacobians.layer_spectra(f, wide, one)
        local = jnp.stack([s for s in spectra.local[layers][1:] if s is not None])[:, 0]
        whole, resolved = (s.input_to_layer[layers][-1][0] for s in (spectra, spectra.resolved))
        return {
            "log_gradient": gradients.log_norms[layers, 0],
            "mean_square": jnp.mean(jnp.exp(2 * local), axis=1),
            "spectrum": jnp.where(resolved, whole, jnp.nan),
        }

    clip = jnp.where(config.remedy == CLIPPING, config.max_norm, jnp.inf)
    rate = jnp.asarray(RATES, jnp.float32)[jnp.asarray(config.remedy).astype(int)]
    process = training.descent(
        f,
        lambda key: _draw(key, config, jnp.float32),
        lambda y, labels: score(y, labels).mean(),
        optax.chain(transforms.clip_by_global_norm(clip), optax.sgd(rate, momentum=0.9)),
        seen,
        batch=config.batch,
        record=record,
    )
    state, history = training.run(process, key, config.steps)
    guess = f(state.params, unseen.x).argmax(-1).astype(unseen.y.dtype)
    return {
        **history.record,
        "loss": history.loss,
        "accuracy": jnp.mean(guess == unseen.y),
        "chance": jnp.bincount(unseen.y, length=CLASSES).max() / len(unseen.y),
        "clipped": state.optimizer[0].rate,
    }


def foretell(key, config):
    """Theory at infinite width, layer by layer, and how far a finite width strays from it."""
    del key
    remedy = _remedy(config, float)
    skip, branch, normalise = (remedy[name] for name in ("skip", "branch", "normalise"))
    variances = {name: remedy[name] for name in ("weight_var", "bias_var")}
    steps = config.depth - 1

    def of(name):
        at = {"weight_var": remedy["weight_var"]}

        def layer(state, _):
            q, c = state
            u = jnp.where(normalise, 1.0, q)
            branched = branch**2 * mean_field.q_map(name, u, **variances)
            following = skip * q + branched
            skips = mean_field.residual_growth(name, q, branch=branch, **at)
            normalised = mean_field.layer_norm_growth(name) * following / q
            plain = mean_field.chi_1(name, q, **at)
            growth = jnp.select([skip > 0, normalise], [skips, normalised], plain)
            # The covariance of two digits, and how a change of it is passed on.
            covariance = skip * q * c + branched * mean_field.c_map(name, c, q=u, **variances)
            pull = at["weight_var"] * dual.derivative_kernel(name, u, u, u * c) * u / q
            return (following, covariance / following), (growth, skip + branch**2 * pull)

        q = variances["weight_var"] + variances["bias_var"]
        growth, slope = jax.lax.scan(layer, (q, jnp.full_like(q, 0.5)), length=steps)[1]
        u = jnp.where(normalise, 1.0, q)
        std = finite_width.log_gradient_std(name, u, depth=steps, width=config.width, **variances)
        # Normalisation keeps the length as it is; a skip adds the cross term of 1 and W phi'.
        var = jnp.where(normalise, steps * std[0] ** 2, std[-1] ** 2)
        var = jnp.where(skip > 0, 4 * jnp.sum(growth - 1) / config.width, var)
        return {"growth": growth, "depth_scale": 1 / jnp.abs(jnp.log(slope[-1])), "var": var}

    which = jnp.asarray(config.activation).astype(int)
    return jax.lax.switch(which, [lambda name=name: of(name) for name in ACTIVATIONS])


def sweeps(profile, config):
    """Every remedy for every activation, and what theory says of each."""
    if profile == "full":
        config = replace(config, width=128, steps=1000)
    seeds = 20 if profile == "full" else 5
    grid = {"remedy": range(len(REMEDIES)), "activation": range(len(ACTIVATIONS))}
    return [
        Sweep("theory", foretell, config, grid=grid, x64=True),
        Sweep("nets", trial, config, grid=grid, seeds=seeds, x64=True),
    ]


def _theory(results):
    """Without the axis of seeds, of length one: what is foretold does not depend on them."""
    [(config, arrays)] = results["theory"]
    return config, {name: arrays[name][:, :, 0] for name in ("growth", "depth_scale", "var")}


def _log_growth(arrays):
    """Mean log growth of squared gradients over a layer: (remedies, activations, seeds, 2)."""
    log_gradient = arrays["log_gradient"]
    with np.errstate(invalid="ignore"):
        whole = log_gradient[..., 0] - log_gradient[..., -1]
    return 2 * whole / (log_gradient.shape[-1] - 1)


def claims(results):
    """Growth of gradients as foretold, then who learns."""
    made = []
    config, theory = _theory(results)
    [(_, arrays)] = results["nets"]
    steps, seeds = config.depth - 1, arrays["accuracy"].shape[-1]
    # A squared gradient is log-normal: its typical logarithm is half the variance below the mean.
    foretold = (np.log(theory["growth"]).sum(-1) - theory["var"] / 2) / steps
    allowed = 4 * np.sqrt(theory["var"] / seeds) / steps
    found = _log_growth(arrays)[..., 0].mean(-1)
    for which, remedy in _BEFORE:
        text = f"log growth of squared gradients over a layer, worst of three ({remedy})"
        made.append(worst(text, foretold[which], found[which], allowed[which]))
    logs = np.log(arrays["mean_square"][:, :, :, 0]).mean(-1)
    foretold = np.log(theory["growth"]).mean(-1)
    error = 4 * logs.std(-1, ddof=1) / math.sqrt(seeds)
    for which, remedy in _BEFORE:
        text = f"log mean squared singular value of a layer, worst of three ({remedy})"
        allowed = error[which] + theory["var"][which] / 2 / steps
        made.append(worst(text, foretold[which], logs[which].mean(-1), allowed))

    chance = float(arrays["chance"].max())
    noise = 4 * math.sqrt(chance * (1 - chance) / UNSEEN)
    reason = (
        "no rate from 0.0003 to 0.03 trains it; likely because the sigmoids are so far out that "
        "a typical squared gradient is ten nats below its mean at this width"
    )
    for which, remedy in enumerate(REMEDIES):
        for index, phi in enumerate(ACTIVATIONS):
            accuracy = arrays["accuracy"][which, index]
            scale = 6 * theory["depth_scale"][which, index]
            what = f"net, as 6 xi = {scale:.0f} ({remedy}, {phi})"
            if config.depth < scale:
                failure = reason if (remedy, phi) == ("critical", "sigmoid") else None
                text, median = f"accuracy of the median {what}", float(np.median(accuracy))
                made.append(Claim(text, chance + noise, median, 0.0, ">=", failure))
            else:
                text, best = f"accuracy of the best {what}", float(accuracy.max())
                made.append(Claim(text, chance, best, noise, "<="))
    return made


def figure(results):
    """The trial, and its table."""
    return {"trial": _trial(results), "table": _table(results)}


def _trial(results):
    """Gradients before and after, the Jacobian of the whole net, and accuracy."""
    fig, axes = figures.axes(4, 3, size=(3.5, 2.35))
    config, theory = _theory(results)
    [(_, arrays)] = results["nets"]
    layers = np.arange(1, config.depth + 1)
    shown = np.array([0, *range(9, config.depth, 10)])
    for column, phi in enumerate(ACTIVATIONS):
        for series, remedy in enumerate(REMEDIES):
            logs = np.log(theory["growth"][series, column])
            # From the last layer, whose gradient is the measured one, back to the first.
            back = np.append(np.cumsum(logs[::-1])[::-1], 0.0) / 2
            first = arrays["log_gradient"][series, column, :, 0]
            for row in (1,) if series == CLIPPING else (0, 1):
                samples = arrays["log_gradient"][series, column, :, row, shown].T
                samples = np.where(np.isfinite(samples), samples, np.nan) / math.log(10)
                figures.band(axes[row, column], layers[shown], samples, series=series, label=remedy)
            if series != CLIPPING:
                line = (back + first[:, -1].mean()) / math.log(10)
                figures.line(axes[0, column], layers, line, series=series)
        axes[0, column].set_title(f"{phi}: gradients before training")
        axes[1, column].set_title("after training")
        axes[1, column].sharey(axes[0, column])
        axes[1, column].set_xlabel("layer")
        _spectra(axes[2, column], arrays["spectrum"][:, column])
        _accuracy(axes[3, column], config, theory, arrays, column)
    gradient = r"$\log_{10} |\partial L / \partial h_l|$"
    names = (gradient, gradient, r"$\log_{10} s$, input to last layer", "accuracy")
    for ax, name in zip(axes[:, 0], names, strict=True):
        ax.set_ylabel(name)
    figures.legend(fig)
    return fig


def _spectra(ax, spectra):
    """Singular values of the whole net by remedy: before training, and beside it after."""
    for series, color in zip(range(len(REMEDIES)), figures.COLORS, strict=False):
        for when, shift in enumerate((-0.17, 0.17)):
            values = spectra[series, :, when]
            values = values[np.isfinite(values)] / math.log(10)
            style = {"color": color, "linewidth": 0.9}
            face = {"facecolor": "white" if when == 0 else f"{color}55"}
            parts = {f"{part}props": style for part in ("whisker", "cap", "median")}
            parts |= {"boxprops": style | face, "whis": (5, 95), "showfliers": False}
            ax.boxplot(values, positions=[series + shift], widths=0.26, patch_artist=True, **parts)
    ax.set_title("resolved values: before, and filled after")
    ax.set_xticks(range(len(REMEDIES)), REMEDIES, rotation=20)


def _accuracy(ax, config, theory, arrays, column):
    """Every net's accuracy, solid where theory lets it be trained."""
    for series in range(len(REMEDIES)):
        color = figures.COLORS[series]
        trainable = config.depth < 6 * theory["depth_scale"][series, column]
        accuracy = arrays["accuracy"][series, column]
        x = series + np.linspace(-0.2, 0.2, len(accuracy))
        face = color if trainable else "white"
        ax.plot(x, np.sort(accuracy), "o", markersize=4, color=color, markerfacecolor=face)
    ax.axhline(arrays["chance"].max(), color="#444444", linewidth=0.8, linestyle=(0, (2, 2)))
    ax.set_title(f"solid: {config.depth} layers < 6 depth scales")
    ax.set_xticks(range(len(REMEDIES)), REMEDIES, rotation=20)
    ax.set_ylim(0, 1)


def _table(results):
    """What was foretold and what was found, one row for each remedy and activation."""
    config, theory = _theory(results)
    [(_, arrays)] = results["nets"]
    growth = np.exp(_log_growth(arrays).mean(2))
    steps = config.depth - 1
    mean = np.log(theory["growth"]).mean(-1)
    typical = np.exp(mean - theory["var"] / 2 / steps)
    rows = []
    for here in np.ndindex(mean.shape):
        scale = 6 * theory["depth_scale"][here]
        accuracy = np.sort(arrays["accuracy"][here])
        row = [
            REMEDIES[here[0]],
            ACTIVATIONS[here[1]],
            f"{np.exp(mean[here]):.3f}",
            f"{typical[here]:.3f}",
            *(f"{one:.3f}" if one > 0 else "dead" for one in growth[here]),
            *(f"{_median(arrays['spectrum'][here][:, when]):.1f}" for when in (0, 1)),
            f"{scale:.0f}, {'yes' if config.depth < scale else 'no'}",
            f"{100 * arrays['clipped'][here].mean():.0f} %",
            f"{np.median(accuracy):.2f} ({accuracy[0]:.2f} to {accuracy[-1]:.2f})",
        ]
        rows.append(row)
    names = (
        "remedy|activation|growth,\ninfinite width|typical at\nthis width|measured,\nbefore|"
        "measured,\nafter|median $\\log_{10} s$,\nbefore|median $\\log_{10} s$,\nafter|"
        "$6\\,\\xi$: beyond\nthe depth?|steps\nclipped|accuracy: median\n(least to largest)"
    )
    fig, axes = figures.axes(1, 1, size=(11.0, 4.4))
    axes[0, 0].axis("off")
    widths = np.array([1.0] * 10 + [1.6]) / 11.6
    table = axes[0, 0].table(
        rows, None, "center", widths, colLabels=names.split("|"), bbox=(0, 0, 1, 1)
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for (row, _), cell in table.get_celld().items():
        cell.set(edgecolor="#BBBBBB", linewidth=0.6)
        cell.visible_edges = "B" if row % len(ACTIVATIONS) == 0 else ""
        if row == 0:
            cell.set_height(2 * cell.get_height())
    return fig


def _median(spectrum):
    """The median in decades of the values that are resolved and not zero."""
    return np.median(spectrum[np.isfinite(spectrum)]) / math.log(10)
