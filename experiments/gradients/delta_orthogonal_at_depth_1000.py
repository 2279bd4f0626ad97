r"""A thousand convolutions: delta-orthogonal kernels keep every direction, Gaussian ones lose most.

Paper    Xiao, Bahri, Sohl-Dickstein, Schoenholz and Pennington (2018), Dynamical isometry and a
         mean field theory of CNNs: a kernel that is an orthogonal matrix at its centre and zero
         elsewhere makes a convolution whose singular values are all one, so that networks of ten
         thousand layers can be trained. Gaussian kernels of the same variance keep lengths in the
         mean, and no direction: at frequency zero the linear network is a product of Gaussian
         matrices, whose singular values Newman (1986) knows.
Run      dltheory run delta_orthogonal_at_depth_1000                 (under half a minute)
         dltheory run delta_orthogonal_at_depth_1000 --profile full  (not timed)
Expect   Every singular value of one convolution 1 within 1e-5 in float32: circular, zero-padded,
         and with stride 2. Of a thousand circular ones: 1 to rounding if the units are linear; with
         tanh at the edge of chaos between 1 and the product of the least slopes, a decade, and
         their mean logarithm as the lengths foretell; the smallest are those of the lengths
         themselves, one for each pixel. With Gaussian kernels the same network spans seven hundred
         decades, and the largest value is far below 1.
"""

import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import jacobians
from dltheory.networks import initializers
from dltheory.numerics import log_spectrum
from dltheory.theory import finite_width

ACTIVATIONS = ("linear", "tanh")
ENSEMBLES = ("Gaussian", "delta-orthogonal")
LAYOUT = ("NHWC", "HWIO", "NHWC")


@dataclass(frozen=True)
class Config:
    """A convolutional network without biases: kernels of 3 by 3, all layers alike.

    Attributes:
        tanh: Whether the units are tanh (1) or linear (0).
        orthogonal: Whether the kernels are delta-orthogonal (1) or Gaussian (0).
        size: Rows and columns of the image.
        channels: Channels of each layer.
        depth: Number of convolutions.
        weight_var: Variance of the weights times the fan-in: 1 is the edge of chaos.
        mean_square: Mean squared input.
    """

    tanh: float = 0.0
    orthogonal: float = 0.0
    size: int = 4
    channels: int = 8
    depth: int = 1000
    weight_var: float = 1.0
    mean_square: float = 0.001


def convolve(h, kernel):
    """Circular convolution."""
    padded = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    return jax.lax.conv_general_dilated(padded, kernel, (1, 1), "VALID", dimension_numbers=LAYOUT)


def one_layer(key, config):
    """Singular values of one convolution: circular, zero-padded, and with stride 2."""
    c = config.channels
    kernel = initializers.delta_orthogonal(config.weight_var)(key, (3, 3, c, c))
    basis = jnp.eye(config.size**2 * c).reshape(-1, config.size, config.size, c)
    same = lambda stride: jax.lax.conv_general_dilated(
        basis, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUT
    )
    outputs = {"circular": convolve(basis, kernel), "zeros": same(1), "stride": same(2)}
    matrices = {name: y.reshape(len(basis), -1) for name, y in outputs.items()}
    return {name: jnp.linalg.svd(m, compute_uv=False) for name, m in matrices.items()}


def trial(key, config):
    """Spectrum of the Jacobian of the whole network, and the lengths that explain it."""
    c, shape = config.channels, (3, 3, config.channels, config.channels)
    key_x, key_kernels = jax.random.split(key)
    x = jax.random.normal(key_x, (1, config.size, config.size, c))
    x = x * jnp.sqrt(config.mean_square / jnp.mean(x**2))
    draw = lambda ensemble: jax.vmap(lambda k: ensemble(config.weight_var)(k, shape))(
        jax.random.split(key_kernels, config.depth)
    )
    kernels = jnp.where(
        config.orthogonal > 0,
        draw(initializers.delta_orthogonal),
        draw(initializers.gaussian),
    )
    phi = lambda h: jnp.where(config.tanh > 0, jnp.tanh(h), h)
    layer = lambda h, kernel: (convolve(phi(h), kernel), h)
    f = lambda kernels, x: jax.lax.scan(layer, x, kernels)[0]

    last, h = jax.lax.scan(layer, x, kernels)
    formed = jacobians.jacobian(f, kernels, x)[0]
    # Given its length, the pre-activations of a pixel of the delta-orthogonal network are uniform
    # on a sphere.
    nodes, weights = special.roots_gegenbauer(16, (c - 2) / 2)
    nodes, weights = jnp.asarray(nodes), jnp.asarray(weights / weights.sum())
    slope = lambda u: jnp.where(config.tanh > 0, 1 - jnp.tanh(u) ** 2, 1.0)
    square = jnp.sum(h[:, 0] ** 2, -1)
    at = lambda square: jnp.multiply.outer(jnp.sqrt(square), nodes)
    log_slope = jnp.sum(jnp.log(slope(at(square))) @ weights, axis=0)
    length_map = lambda square, _: (c * (phi(at(square)) ** 2 @ weights), square)
    run = lambda square: jax.lax.scan(length_map, square, length=config.depth + 1)[1]
    theory, growth = jax.jvp(run, (square[0],), (jnp.ones_like(square[0]),))
    radial = jnp.log(growth[-1]) + jnp.log(theory[0] / theory[-1]) / 2
    return {
        "log_values": jnp.log(jnp.linalg.svd(formed, compute_uv=False)),
        "zero_frequency": log_spectrum.log_singular_values(kernels.sum((1, 2)).mT),
        "log_slope": log_slope.mean(),
        "log_radial": -jnp.sort(-radial.ravel()),
        "log_least": jnp.log(slope(h).min((1, 2, 3, 4))).sum(),
        "theory": theory.mean((1, 2)) / c,
        "q": jnp.append(jnp.mean(h**2, (1, 2, 3, 4)), jnp.mean(last**2)),
    }


def sweeps(profile, config):
    """One layer in float32; then linear and tanh networks of both ensembles."""
    seeds = {"quick": 6, "full": 32}[profile]
    if profile == "full":
        config = replace(config, size=8, channels=16)
    grid = {"tanh": (0.0, 1.0), "orthogonal": (0.0, 1.0)}
    return [
        Sweep("layer", one_layer, config, seeds=8),
        Sweep("network", trial, config, grid=grid, seeds=seeds, batching="map", x64=True),
    ]


def _network(results, tanh, orthogonal):
    """Configuration and arrays of one activation and ensemble, leading axis the seeds."""
    config, arrays = results["network"][0]
    axes = ("tanh", "orthogonal")
    return config, {name: a[tanh, orthogonal] for name, a in arrays.items() if name not in axes}


def _exponents(config):
    """Newman's logarithms of the singular values of the linear network at frequency zero."""
    with jax.enable_x64(True):
        return config.depth * np.asarray(
            finite_width.lyapunov_exponents(config.channels, config.weight_var)
        )


def claims(results):
    """One layer; a thousand of them, linear and tanh; and what Gaussian kernels lose."""
    made = []
    _, arrays = results["layer"][0]
    named = {"circular": "circular", "zeros": "zero-padded", "stride": "stride 2"}
    for name, what in named.items():
        text = f"every singular value of a convolution ({what}, float32)"
        made.append(worst(text, 1.0, arrays[name], 1e-5))

    config, arrays = _network(results, 0, 1)
    # A rounding error in each of the products and sums of a layer.
    rounding = 2.0**-52 * config.depth * config.channels
    text = "log of every singular value (delta-orthogonal, linear)"
    made.append(worst(text, 0.0, arrays["log_values"], rounding))
    text = "length after the last layer over that of the input (delta-orthogonal, linear)"
    made.append(worst(text, 1.0, arrays["q"][:, -1] / arrays["q"][:, 0], rounding))

    config, arrays = _network(results, 1, 1)
    logs = arrays["log_values"]
    text = "log of the largest singular value (delta-orthogonal, tanh)"
    made.append(Claim(text, 0.0, float(logs.max()), rounding, "<="))
    text = "log of the smallest less that of the product of least slopes (delta-orthogonal, tanh)"
    above = (logs.min(1) - arrays["log_least"]).min()
    made.append(Claim(text, 0.0, float(above), rounding, ">="))
    text = "mean log singular value less its expectation given the lengths (delta-orthogonal, tanh)"
    off = logs.mean(1) - arrays["log_slope"]
    made.append(Claim(text, 0.0, float(off.mean()), 4 * _stderr(off)))
    text = (
        "mean log of the smallest, one a pixel, less that of the lengths (delta-orthogonal, tanh)"
    )
    smallest = logs[:, -arrays["log_radial"].shape[1] :]
    off = (smallest - arrays["log_radial"]).mean(1)
    made.append(Claim(text, 0.0, float(off.mean()), 4 * _stderr(off)))
    text = "length after the last layer over that of theory (delta-orthogonal, tanh)"
    ratio = arrays["q"][:, -1] / arrays["theory"][:, -1]
    made.append(Claim(text, 1.0, float(ratio.mean()), 4 * _stderr(ratio)))

    config, arrays = _network(results, 0, 0)
    zero, exponents = arrays["zero_frequency"], _exponents(config)
    text = "mean log singular value at frequency zero (Gaussian, linear)"
    mean = zero.mean(1)
    made.append(Claim(text, float(exponents.mean()), float(mean.mean()), 4 * _stderr(mean)))
    # Horn: at finite depth the ends are further apart than the depth times their exponents.
    text = "decades of the spectrum at frequency zero, mean (Gaussian, linear)"
    decades = (zero[:, 0] - zero[:, -1]) / math.log(10)
    spread = float(exponents[0] - exponents[-1]) / math.log(10)
    made.append(Claim(text, spread, float(decades.mean()), 4 * _stderr(decades), ">="))
    # The mean of its square is 1 or more.
    text = "log10 of the largest singular value, mean (Gaussian, linear)"
    largest = arrays["log_values"][:, 0] / math.log(10)
    made.append(Claim(text, 0.0, float(largest.mean()), 4 * _stderr(largest), "<="))
    return made


def _stderr(samples):
    return float(samples.std(ddof=1) / math.sqrt(len(samples)))


def figure(results):
    """Spectra of both ensembles, that of tanh alone, and the lengths through depth."""
    fig, axes = figures.axes(1, 3, size=(3.5, 3.2))
    whole, close, lengths = axes[0]
    for orthogonal, label in enumerate(ENSEMBLES):
        config, arrays = _network(results, 0, orthogonal)
        logs = arrays["log_values"] / math.log(10)
        # Below the largest by more than the digits of a float all is rounding.
        resolved = logs > logs[:, :1] + math.log10(2.0**-52 * logs.shape[1])
        index = np.arange(1, logs.shape[1] + 1)
        seen = np.where(resolved, logs, np.nan)[:, resolved.any(0)]
        figures.band(whole, index[resolved.any(0)], seen, series=orthogonal, label=label)
    figures.line(whole, index, 0 * index, series=1)
    config, arrays = _network(results, 0, 0)
    zero = arrays["zero_frequency"] / math.log(10)
    every = np.arange(1, config.channels + 1) * len(index) / config.channels
    figures.band(whole, every, zero, series=2, label="Gaussian, frequency 0")
    figures.line(whole, every, _exponents(config) / math.log(10), series=2)
    whole.set(xlabel="index i", ylabel=r"$\log_{10} s_i$", yscale="symlog")
    whole.set_title(f"linear, {config.depth} layers; resolved values")

    _, arrays = _network(results, 1, 1)
    logs = arrays["log_values"] / math.log(10)
    figures.band(close, index, logs, series=3, label="delta-orthogonal, tanh")
    for bound in (0.0, arrays["log_least"].min() / math.log(10)):
        figures.line(close, index, 0 * index + bound, series=3)
    # One value of each pixel is that of its length; the others have what it leaves of the volume.
    radial = arrays["log_radial"].mean(0) / math.log(10)
    whole_mean = arrays["log_slope"].mean() / math.log(10)
    rest = len(index) - len(radial)
    others = (len(index) * whole_mean - radial.sum()) / rest
    figures.line(close, index[:rest], np.full(rest, others), series=3)
    figures.line(close, index[rest:], radial, series=3)
    close.set(xlabel="index i", ylabel=r"$\log_{10} s_i$", title="tanh: bounds, mean, and lengths")

    layers = np.unique(np.geomspace(1, config.depth, 24).round().astype(int))
    for series, tanh, orthogonal in ((0, 0, 0), (1, 0, 1), (3, 1, 1)):
        _, arrays = _network(results, tanh, orthogonal)
        figures.band(lengths, layers, np.log10(arrays["q"][:, layers]), series=series)
        theory = np.log10(arrays["theory"].mean(0))
        figures.line(lengths, layers, theory[layers], series=series)
    lengths.set(xscale="log", xlabel="layer", ylabel=r"$\log_{10} q$", title="lengths")
    figures.legend(fig)
    return fig
