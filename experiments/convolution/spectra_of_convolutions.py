r"""All singular values of convolutional layers by Fourier blocks, and what is taken for their norm.

Paper    Sedghi, Gupta and Long (2019): the singular values of a circular convolution are those of
         the blocks of channels of its Fourier transform, one for each frequency. With a stride the
         frequencies that alias share a block. The norm of the kernel reshaped to a matrix, which
         spectral normalisation takes, is that of one patch and so too low; k times the smaller of
         the two reshaped norms is too high (Singla and Feizi, 2021).
Run      dltheory run spectra_of_convolutions                 (10 s of one core)
         dltheory run spectra_of_convolutions --profile full  (not timed)
Expect   Blocks and explicit matrices agree to rounding, with and without a stride. Zeros around the
         image take the border's part of the squares away, 0.89 here, and leave every norm below
         that of the torus two pixels larger. The reshaped norm is about 0.6 of the true one.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import convolution, convolution_matrix
from dltheory.theory import convolution as theory

SIZE, TAPS = 12, 3


@dataclass(frozen=True)
class Config:
    """A layer with a Gaussian 3x3 kernel on an image of 12 by 12 pixels.

    Attributes:
        channels: Channels in and out.
        weight_var: Variance of the weights times the fan-in.
    """

    channels: int = 4
    weight_var: float = 1.0


def explicit(kernel, stride, mode):
    """Singular values of the Jacobian of the layer as it is run."""
    channels = kernel.shape[2]

    def layer(x):
        x = jnp.pad(x[None], ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
        layout = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, (stride,) * 2, "VALID", dimension_numbers=layout)

    jacobian = jax.jacrev(layer)(jnp.zeros((SIZE, SIZE, channels)))
    return jnp.linalg.svd(jacobian.reshape(-1, SIZE**2 * channels), compute_uv=False)


def trial(key, config):
    """Spectra by blocks and of explicit matrices; circular, strided and zero-padded."""
    fan_in = TAPS**2 * config.channels
    shape = (TAPS, TAPS, config.channels, config.channels)
    kernel = jax.random.normal(key, shape) * jnp.sqrt(config.weight_var / fan_in)
    values = lambda size, **given: convolution.singular_values(kernel, (size, size), **given)
    return {
        "circular": values(SIZE),
        "strided": values(SIZE, strides=2),
        "torus": values(SIZE + 2)[0],
        "explicit": explicit(kernel, 1, "wrap"),
        "explicit_strided": explicit(kernel, 2, "wrap"),
        "padded": explicit(kernel, 1, "constant"),
        "reshaped": jnp.stack(convolution_matrix.reshaped_norms(kernel)),
        "squares": jnp.sum(kernel**2),
    }


def sweeps(profile, config):
    """Few seeds of one layer in the quick profile; three widths in the full one."""
    cells = {} if profile == "quick" else {"channels": (2, 4, 8)}
    return [
        Sweep(
            "layer", trial, config, cells=cells, seeds={"quick": 4, "full": 32}[profile], x64=True
        )
    ]


def claims(results):
    """Blocks are exact; sums of squares; what bounds what."""
    made = []
    for config, arrays in results["layer"]:
        text = f"({config.channels} channels)"
        for name, words in (("circular", "circular"), ("strided", "of stride two")):
            both = arrays[name], arrays["explicit" + "_strided" * (name == "strided")]
            gap = np.abs(both[0] - both[1]).max(-1) / both[1][:, 0]
            made.append(worst(f"blocks less the explicit matrix, {words} {text}", 0, gap, 1e-12))
        circular, padded = (
            np.sum(arrays[name] ** 2, -1) / arrays["squares"] for name in ("circular", "padded")
        )
        made.append(
            worst(
                f"sum of squares over that of the kernel, circular {text}",
                SIZE**2,
                circular,
                1e-9,
            )
        )
        part = padded / SIZE**2
        stderr = float(part.std(ddof=1) / np.sqrt(len(part)))
        kept = theory.border_factor(SIZE, TAPS)
        made.append(
            Claim(
                f"part of it that zero padding keeps, mean {text}",
                kept,
                float(part.mean()),
                4 * stderr,
            )
        )
        ratio = float((arrays["padded"][:, 0] / arrays["torus"]).max())
        made.append(
            Claim(f"norm with zeros over that of a larger torus {text}", 1.0, ratio, 1e-12, "<=")
        )
        true = arrays["circular"][:, 0]
        ratio = float((true / (TAPS * arrays["reshaped"].min(-1))).max())
        made.append(Claim(f"norm over three reshaped norms {text}", 1.0, ratio, 1e-12, "<="))
        ratio = float((true / arrays["reshaped"][:, 0]).min())
        made.append(Claim(f"norm over the reshaped norm, lowest {text}", 1.0, ratio, 1e-12, ">="))
    return made


def figure(results):
    """The spectra of one layer, and its norms."""
    return {f"channels_{config.channels}": _figure(arrays) for config, arrays in results["layer"]}


def _figure(arrays):
    fig, axes = figures.axes(1, 2, size=(4.2, 3.4))
    spectra, norms = axes[0]
    rows = (("circular", "explicit", "circular"), ("strided", "explicit_strided", "stride two"))
    for series, (blocks, exact, label) in enumerate(rows):
        values = arrays[blocks][0]
        rank = np.arange(1, len(values) + 1) / len(values)
        figures.line(spectra, rank, values, series=series, label=f"{label}, Fourier blocks")
        some = np.unique(np.linspace(0, len(values) - 1, 25).astype(int))
        spectra.plot(
            rank[some],
            arrays[exact][0][some],
            "o",
            ms=4,
            mfc="none",
            color=figures.COLORS[series],
            label="explicit matrix" if series == 0 else None,
        )
    padded = arrays["padded"][0]
    rank = np.arange(1, len(padded) + 1) / len(padded)
    spectra.plot(rank, padded, color=figures.COLORS[2], lw=1, ls=":", label="zero padding")
    spectra.set(xlabel="rank, relative", ylabel=r"$s_i$", ylim=(0, None))
    spectra.set_title("all singular values")

    true = arrays["circular"][:, 0]
    shown = {
        "zero padding": arrays["padded"][:, 0],
        "stride two": arrays["strided"][:, 0],
        "reshaped": arrays["reshaped"][:, 0],
        "3 reshaped": TAPS * arrays["reshaped"].min(-1),
    }
    for place, (series, values) in enumerate(zip((2, 1, 3, 4), shown.values(), strict=True)):
        points = {"ms": 5, "mfc": "none", "color": figures.COLORS[series]}
        norms.plot(np.full(len(true), place), values / true, "o", **points)
    norms.axhline(1, color="#222222", lw=1)
    norms.set(
        xticks=range(len(shown)),
        xticklabels=list(shown),
        ylabel="relative to the circular norm",
        xlim=(-0.5, 3.5),
    )
    norms.set_title("norms, one point a seed")
    figures.legend(fig)
    return fig
