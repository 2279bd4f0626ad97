r"""A Flax CNN and a transformer block, as anyone writes them: each layer's Jacobian on digits.

Paper    Orhan and Pitkow (2018): skip connections keep a network away from the singularities of its
         layers. Dong, Cordonnier and Loukas (2021): without them attention loses rank. And an
         identity: layer normalisation takes the mean from each token, so that its Jacobian has one
         zero per token.
Run      dltheory run unmodified_models                 (under half a minute on two cores)
         dltheory run unmodified_models --profile full  (not timed)
Expect   No model knows that it is measured. The spectra equal those of Jacobians of the bare model,
         and of the outputs that Flax itself records, to 1e-10; so does the chain rule through a
         layer in the middle; the largest values without forming the matrix agree with those of the
         formed one within their residuals. Without skips the block loses what normalisation takes,
         and is worse conditioned by decades without normalisation too.
"""

import re
from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import jacobians
from dltheory.networks import data, sites


class CNN(nn.Module):
    """Three convolutions and two dense layers."""

    channels: int = 2

    @nn.compact
    def __call__(self, x):
        """Apply to images of shape (N, 8, 8)."""
        h = nn.relu(nn.Conv(self.channels, (3, 3))(x[..., None]))
        h = nn.relu(nn.Conv(self.channels, (3, 3))(h))
        h = nn.avg_pool(h, (2, 2), strides=(2, 2))
        h = nn.relu(nn.Conv(2 * self.channels, (3, 3))(h))
        h = nn.relu(nn.Dense(32)(h.reshape(x.shape[0], -1)))
        return nn.Dense(10)(h)


class Block(nn.Module):
    """A transformer block with normalisation before each branch, or without some of it."""

    skip: bool
    norm: bool

    @nn.compact
    def __call__(self, h):
        """Apply to tokens of shape (N, tokens, features)."""
        u = nn.LayerNorm()(h) if self.norm else h
        u = nn.MultiHeadDotProductAttention(num_heads=2)(u)
        h = h + u if self.skip else u
        u = nn.LayerNorm()(h) if self.norm else h
        u = nn.Dense(2 * h.shape[-1])(u)
        u = nn.Dense(h.shape[-1])(nn.gelu(u))
        return h + u if self.skip else u


class Transformer(nn.Module):
    """The rows of an image are its tokens."""

    skip: bool = True
    norm: bool = True

    @nn.compact
    def __call__(self, x):
        """Apply to images of shape (N, 8, 8)."""
        h = nn.Dense(16)(x)
        h = h + self.param("position", nn.initializers.normal(0.02), h.shape[1:])
        h = Block(self.skip, self.norm)(h)
        return nn.Dense(10)(h.mean(axis=1))


TOKENS, FEATURES = 8, 128
BLOCK = ("Dense_0", "Block_0/join#1")
# For each model, a map between two layers of 128 features that all its paths run through.
MODELS = {"cnn": (CNN(), "Conv_0", "Conv_1"), "transformer": (Transformer(), *BLOCK)}


@dataclass(frozen=True)
class Config:
    """A model on one digit, drawn anew for every seed.

    Attributes:
        model: `cnn` or `transformer`.
        skip: Whether the transformer has skip connections.
        norm: Whether it has layer normalisation.
    """

    model: str = "transformer"
    skip: bool = True
    norm: bool = True


def trial(key, config):
    """Spectra of all layers, and the same by `jax.jacrev` and by Flax's own records."""
    key, key_top = jax.random.split(key)
    model, source, target = MODELS[config.model]
    f, params, x = _drawn(key, model)

    spectra = jacobians.layer_spectra(f, params, x)
    recorded = jax.jacfwd(lambda x: _recorded(model, params, x))(x)
    bare = jax.jacrev(lambda x: f(params, x))(x).reshape(10, 64)
    errors, result = [_error(spectra.input_to_layer[-1], bare)], {}
    for number, site in enumerate(spectra.sites):
        label = f"{number:02d}-" + re.sub("[^A-Za-z0-9_.-]", ".", str(site))
        result[f"{label}-input"] = spectra.input_to_layer[number][0]
        local = spectra.local[number]
        if local is not None:
            result[f"{label}-local"] = local[0]
        if str(site) in recorded:
            errors.append(_error(spectra.input_to_layer[number], recorded[str(site)]))

    formed = jacobians.jacobian(f, params, x, source, target)[0]
    chain = jacobians.jacobian(f, params, x, target, "output")[0] @ formed
    chain = chain @ recorded[source].reshape(-1, 64)
    dense = jnp.linalg.svd(formed, compute_uv=False)
    top = jacobians.spectrum(key_top, f, params, x, source, target, k=5)
    return result | {
        "errors": jnp.stack(errors),
        "chain_error": jnp.abs(chain - bare).max() / jnp.abs(bare).max(),
        "top_error": jnp.abs(jnp.exp(top.log_values[0]) - dense[:5]) / dense[0],
        "top_residual": top.residuals[0],
    }


def block_trial(key, config):
    """Singular values of one transformer block, relative to the largest."""
    f, params, x = _drawn(key, Transformer(config.skip, config.norm))
    # The last layer of the block is the one before the readout.
    end = sites.find(f, params, x)[-2]
    matrices = {"block": jacobians.jacobian(f, params, x, BLOCK[0], end)[0]}
    if config.norm:
        layer = "Block_0/LayerNorm_0"
        matrices["layer_norm"] = jacobians.jacobian(f, params, x, BLOCK[0], layer)[0]
    values = {k: jnp.linalg.svd(matrix, compute_uv=False) for k, matrix in matrices.items()}
    return {k: s / s[0] for k, s in values.items()}


def _drawn(key, model):
    """A model, its parameters and a digit."""
    key_digit, key_params = jax.random.split(key)
    images = data.digits(flat=False, scale="dataset").x
    x = images[jax.random.randint(key_digit, (1,), 0, len(images))]
    return model.apply, model.init(key_params, x), x


def _recorded(model, params, x):
    """What each module returned, by its path, as Flax records it."""
    _, state = model.apply(params, x, capture_intermediates=True, mutable=["intermediates"])
    leaves = jax.tree_util.tree_leaves_with_path(state["intermediates"])
    name = lambda path: "/".join(part.key for part in path if hasattr(part, "key"))
    return {name(path).removesuffix("/__call__"): value for path, value in leaves}


def _error(log_values, jacobian):
    """Largest difference of singular values, relative to the largest of them."""
    s = jnp.linalg.svd(jacobian.reshape(-1, 64), compute_uv=False)
    return jnp.abs(jnp.exp(log_values[0]) - s).max() / s[0]


def sweeps(profile, config):
    """Two models before training, and the block with and without its parts."""
    seeds = {"quick": 4, "full": 100}[profile]
    parts = {"skip": (True, False), "norm": (True, False)}
    models = {"model": tuple(MODELS)}
    shared = {"seeds": seeds, "x64": True, "batching": "map"}
    return [
        Sweep("models", trial, config, cells=models, **shared),
        Sweep("block", block_trial, config, cells=parts, **shared),
    ]


def _lost(s):
    """How many values are lost to rounding, below n eps of the largest: shape (seeds,)."""
    return (s < s.shape[-1] * 2.0**-52).sum(-1)


def claims(results):
    """Against the bare model; the chain rule; without forming; and what skips are for."""
    made = []
    for config, arrays in results["models"]:
        name, count = config.model, arrays["errors"].shape[1] - 1
        _, source, target = MODELS[name]
        text = f"singular values of {count} layers and the output less those by plain JAX ({name})"
        made.append(Claim(text, 0.0, float(arrays["errors"].max()), 1e-10))
        text = f"chain rule through {source} and {target} less jacrev ({name})"
        made.append(Claim(text, 0.0, float(arrays["chain_error"].max()), 1e-10))
        text = f"5 largest values, {source} to {target}, less those of the formed matrix ({name})"
        allowed = arrays["top_residual"] + FEATURES * 2.0**-52
        made.append(worst(text, 0.0, arrays["top_error"], allowed))

    found = {(c.skip, c.norm): arrays for c, arrays in results["block"]}
    lost = {parts: _lost(arrays["block"]) for parts, arrays in found.items()}
    zeros = _lost(found[True, True]["layer_norm"])
    made.append(worst(f"zeros of the Jacobian of LayerNorm on {TOKENS} tokens", TOKENS, zeros, 0.0))
    text = "values of the block that are zero or rounding, with skips"
    both = np.concatenate([lost[True, True], lost[True, False]])
    made.append(worst(text, 0, both, 0.0))
    # A product has no more rank than a factor, and normalisation is a factor of all paths here.
    text = "the same without skips, least"
    made.append(Claim(text, TOKENS, float(lost[False, True].min()), 0.0, ">="))
    condition = {skip: -np.log10(found[skip, False]["block"][:, -1]) for skip in (True, False)}
    text = "log10 condition without LayerNorm: least without skips, against largest with them"
    made.append(Claim(text, float(condition[True].max()), float(condition[False].min()), 0.0, ">="))
    return made


def figure(results):
    """Every layer of each model, and the spectrum of the block with and without its parts."""
    made = {config.model: _layers(config, arrays) for config, arrays in results["models"]}
    return made | {"block": _block(results)}


def _layers(config, arrays):
    fig, axes = figures.axes(1, 2, size=(4.6, 4.0), sharey=True)
    for ax, kind, color in zip(axes[0], ("input", "local"), figures.COLORS, strict=False):
        names = sorted(name for name in arrays if name.endswith(f"-{kind}"))
        for number, name in enumerate(names):
            s = arrays[name] / np.log(10)
            # What is rounding, or zero, is left out.
            s = s[s > s[:, :1] - 13]
            style = {"linestyle": "none", "marker": "_", "markersize": 10, "markeredgewidth": 0.6}
            ax.plot(np.full(s.size, number), s, color=color, alpha=0.35, **style)
        labels = [_short(name) for name in names]
        ax.set_xticks(range(len(names)), labels, rotation=60, ha="right", rotation_mode="anchor")
        title = {"input": "input to layer", "local": "cut to cut"}[kind]
        ax.set_title(f"{config.model}: {title}")
    axes[0, 0].set_ylabel(r"$\log_{10} s$ of all seeds")
    return fig


def _short(name):
    """A layer's name from an array's: `07-Block_0.join-local` is `join`."""
    name = name[3:].rsplit("-", 1)[0].replace("MultiHeadDotProductAttention_0", "Attention")
    return name.replace("Block_0.", "block ").replace("join.1", "join#1")


def _block(results):
    fig, axes = figures.axes(1, 1, size=(5.0, 3.4))
    ax = axes[0, 0]
    rounding = np.log10(FEATURES * 2.0**-52)
    ax.axhspan(-20, rounding, color="#EFEFEF", zorder=0)
    ax.text(2, rounding - 1.2, "rounding", fontsize=8)
    for series, (config, arrays) in enumerate(results["block"]):
        s = np.log10(np.maximum(arrays["block"], 1e-20))
        index = np.arange(1, s.shape[-1] + 1)
        label = ["neither", "norm only", "skips only", "both"][2 * config.skip + config.norm]
        figures.band(ax, index[1::3], s[:, 1::3], series=series, label=label)
    ax.set(xlabel="index i", ylabel=r"$\log_{10}\, s_i / s_1$")
    ax.set_title("transformer block of 128 features: skips and LayerNorm")
    figures.legend(fig)
    return fig
