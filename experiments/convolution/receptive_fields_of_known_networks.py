r"""What the units of known networks see: by arithmetic, from their traced programs, and published.

Paper    Araujo, Norris and Sim (2019), Computing receptive fields of convolutional neural networks:
         r = 1 + sum_l (k_l - 1) prod_{i<l} s_i, and a table of 212 pixels for VGG-16 up to 1507 for
         ResNet-152. Theory is given lists of layers; the measurement reads the traced program of a
         model in Flax that knows nothing of them, built abstractly.
Run      dltheory run receptive_fields_of_known_networks                 (10 s of one core)
         dltheory run receptive_fields_of_known_networks --profile full  (half a minute)
Expect   Equality, at every convolution of every network; and of the number of parameters. ResNet-50
         sees 483 pixels as published and 427 as most code builds it (v1.5), with its stride in the
         3x3 convolution.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dltheory.experiment import figures
from dltheory.experiment.claims import Claim, worst
from dltheory.experiment.sweep import Sweep
from dltheory.measure import convolution
from dltheory.networks import image_models
from dltheory.theory import architectures
from dltheory.theory import convolution as arithmetic

# Model, layers, and the receptive field in the table of Araujo et al., where it is there.
NETWORKS = {
    "AlexNet-v2": (image_models.AlexNet(), architectures.alexnet(), 195),
    "VGG-16": (image_models.VGG(16), architectures.vgg(16), 212),
    "MobileNet-v1": (image_models.MobileNet(), architectures.mobilenet(), 315),
    "ResNet-50-v1.5": (
        image_models.ResNet(50, version="v1.5"),
        architectures.resnet(50, "v1.5"),
        None,
    ),
    "ResNet-50-v1": (image_models.ResNet(50), architectures.resnet(50), 483),
    "ResNet-101-v1": (image_models.ResNet(101), architectures.resnet(101), 1027),
    "ResNet-152-v1": (image_models.ResNet(152), architectures.resnet(152), 1507),
    "VGG-11": (image_models.VGG(11), architectures.vgg(11), None),
    "VGG-13": (image_models.VGG(13), architectures.vgg(13), None),
    "VGG-19": (image_models.VGG(19), architectures.vgg(19), None),
    "ResNet-18": (image_models.ResNet(18), architectures.resnet(18), None),
    "ResNet-34": (image_models.ResNet(34), architectures.resnet(34), None),
}
STRIDE = 32  # Of all of them.


@dataclass(frozen=True)
class Config:
    """A network.

    Attributes:
        network: Its name.
        size: Pixels along a side of the image.
    """

    network: str = "VGG-16"
    size: int = 224


def trial(key, config):
    """Receptive fields after each convolution and at the end, both ways; and the parameters."""
    model, network, _ = NETWORKS[config.network]
    image = jax.ShapeDtypeStruct((1, config.size, config.size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, key, image)
    every = convolution.receptive_fields(model.apply, variables, image)
    traced = [field[0] for field in _on_path(every, variables["params"])]
    traced.append(convolution.receptive_field(model.apply, variables, image, "features")[0])
    ends = [number for number, layer in enumerate(network.path, 1) if layer.inputs]
    by_hand = [arithmetic.receptive_field(network.path[:end]) for end in (*ends, None)]
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    return {
        "traced": jnp.asarray(traced),
        "arithmetic": jnp.asarray(by_hand),
        "parameters": jnp.asarray([count, architectures.parameter_count(network)]),
    }


def _on_path(fields, params):
    """Fields of the convolutions, not those of shortcuts: each reads what the last one wrote."""
    written = None
    for site, field in fields.items():
        if not site.name.startswith("Conv"):
            continue
        *_, inputs, outputs = params[site.name.split("/")[0]]["kernel"].shape
        depthwise = inputs == 1
        if written is None or depthwise or inputs == written:
            written = outputs
            yield field


def sweeps(profile, config):
    """The published ones; all of them in the full profile."""
    names = tuple(NETWORKS)[: {"quick": 7, "full": None}[profile]]
    return [Sweep("networks", trial, config, cells={"network": names}, seeds=1)]


def claims(results):
    """Tracing, arithmetic and the published table agree."""
    made = []
    for config, arrays in results["networks"]:
        name, published = config.network, NETWORKS[config.network][2]
        traced, by_hand = arrays["traced"][0], arrays["arithmetic"][0]
        if published is not None:
            made.append(Claim(f"receptive field of {name}, published", published, traced[-1, 0], 0))
            made.append(Claim(f"its stride ({name})", STRIDE, traced[-1, 1], 0))
        count = len(by_hand) - 1
        text = f"sizes, strides and paddings after each of {count} convolutions ({name})"
        made.append(worst(text, by_hand, traced, 0))
        found, counted = arrays["parameters"][0]
        made.append(Claim(f"number of parameters ({name})", float(counted), float(found), 0))
    return made


def figure(results):
    """Receptive fields through depth, and the final ones."""
    fig, axes = figures.axes(1, 2, size=(4.4, 3.5))
    through, final = axes[0]
    names = []
    for series, (config, arrays) in enumerate(results["networks"]):
        traced, by_hand = arrays["traced"][0, :, 0], arrays["arithmetic"][0, :, 0]
        color = figures.COLORS[series % len(figures.COLORS)]
        layers = np.arange(1, len(traced))
        figures.line(through, layers, by_hand[:-1], series=series, label=config.network)
        some = np.unique(np.geomspace(1, len(layers), 12).round().astype(int)) - 1
        points = {"ls": "none", "mfc": "white", "color": color, "zorder": 4}
        through.plot(layers[some], traced[some], "o", ms=3.5, **points)

        label = lambda text, series=series: text if series == 0 else None
        final.barh(series, by_hand[-1], 0.6, color=color, alpha=0.25, label=label("arithmetic"))
        final.plot(traced[-1], series, "o", ms=5, label=label("traced"), **points)
        published = NETWORKS[config.network][2]
        if published is not None:
            final.plot(published, series, "x", color="#222222", ms=9, label=label("published"))
        final.text(traced[-1] + 40, series, f"{traced[-1]}", va="center", fontsize=8)
        names.append(config.network)
    through.set(xscale="log", yscale="log", xlabel="convolution", ylabel="receptive field (pixels)")
    through.set_title("after each convolution; points: traced")
    final.set(yticks=range(len(names)), yticklabels=names, xlabel="receptive field (pixels)")
    final.set_xlim(0, 1.15 * max(a["traced"][0, -1, 0] for _, a in results["networks"]))
    final.grid(axis="y", visible=False)
    final.invert_yaxis()
    final.set_title("of the last feature map")
    figures.legend(fig)
    return fig
