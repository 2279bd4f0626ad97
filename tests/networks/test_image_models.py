"""The known networks have their published sizes, and see what arithmetic says."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dltheory.measure import convolution
from dltheory.networks import image_models
from dltheory.theory import architectures
from dltheory.theory import convolution as arithmetic
from tests.tier import cases

IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
# The counts are those that frameworks print.
KNOWN = [
    (image_models.AlexNet(), architectures.alexnet(), 61_100_840),
    (image_models.MobileNet(), architectures.mobilenet(), 4_231_976),
    (image_models.VGG(16), architectures.vgg(16), 138_357_544),
    (image_models.ResNet(18), architectures.resnet(18), 11_689_512),
    (image_models.ResNet(50), architectures.resnet(50), 25_557_032),
    (image_models.ResNet(50, version="v1.5"), architectures.resnet(50, "v1.5"), 25_557_032),
    (image_models.VGG(11), architectures.vgg(11), 132_863_336),
    (image_models.VGG(13), architectures.vgg(13), 133_047_848),
    (image_models.VGG(19), architectures.vgg(19), 143_667_240),
    (image_models.ResNet(34), architectures.resnet(34), 21_797_672),
    (image_models.ResNet(101), architectures.resnet(101), 44_549_160),
    (image_models.ResNet(152), architectures.resnet(152), 60_192_808),
][: 6 + 6 * (cases(10) > 1)]


def abstract(model, image=IMAGE):
    return jax.eval_shape(model.init, jax.random.key(0), image)


def count(variables):
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(("model", "network", "published"), KNOWN, ids=lambda a: type(a).__name__)
def test_sizes_and_receptive_fields(model, network, published):
    variables = abstract(model)
    assert count(variables) == architectures.parameter_count(network) == published
    seen = convolution.receptive_field(model.apply, variables, IMAGE, "features")
    assert seen == (arithmetic.receptive_field(network.path),) * 2
    assert jax.eval_shape(model.apply, variables, IMAGE).shape == (1, 1000)
    # Global pooling and dense layers see all of it.
    output = convolution.receptive_field(model.apply, variables, IMAGE)
    assert output == ((224, 0, 0),) * 2


@pytest.mark.parametrize(("width", "millions"), [(1.0, 4.2), (0.75, 2.6), (0.5, 1.3), (0.25, 0.5)])
def test_mobilenets_of_less_width_have_the_sizes_of_their_paper(width, millions):
    """Howard et al. (2017), table 6."""
    assert round(count(abstract(image_models.MobileNet(width=width))) / 1e6, 1) == millions


def thin(model, size):
    """A network with random parameters, and an image."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, size, size, 3)))
    draw = lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)
    return x, jax.tree.map(draw, abstract(model, jax.ShapeDtypeStruct(x.shape, x.dtype)))


def test_a_block_whose_branch_is_silent_is_its_shortcut():
    """Of ResNet-18 a stem, three normalised 1x1 convolutions of stride two and a mean are left."""
    model = image_models.ResNet(18, outputs=3, width=1 / 32)
    x, variables = thin(model, 32)
    params = variables["params"]
    shortcuts = {f"Conv_{k}" for k in (7, 12, 17)}
    for name in [name for name in params if name.startswith("Conv") and name != "Conv_0"]:
        if name not in shortcuts:
            norm = name.replace("Conv", "BatchNorm")
            params[norm] = jax.tree.map(jnp.zeros_like, params[norm])

    found = jax.jit(model.apply)(variables, x)
    assert found.dtype == jnp.float64
    params, stats, x = jax.tree.map(np.asarray, (params, variables["batch_stats"], x))

    def normalised(name, h):
        (mean, var), one = (stats[name][k] for k in ("mean", "var")), params[name]
        return one["scale"] * (h - mean) / np.sqrt(var + 1e-5) + one["bias"]

    padded = np.pad(x[0], ((3, 3), (3, 3), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (0, 1))[::2, ::2]
    h = np.einsum("ijcuv,uvco->ijo", patches, params["Conv_0"]["kernel"])
    h = np.maximum(normalised("BatchNorm_0", h), 0)
    padded = np.pad(h, ((1, 1), (1, 1), (0, 0)))
    h = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))[::2, ::2].max((-1, -2))
    for name in sorted(shortcuts, key=lambda name: int(name[5:])):
        h = normalised(
            name.replace("Conv", "BatchNorm"), h[::2, ::2] @ params[name]["kernel"][0, 0]
        )
        h = np.maximum(h, 0)
    last = params["Dense_0"]
    wanted = h.mean((0, 1)) @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(found[0], wanted, rtol=1e-10)


def test_training_normalises_by_the_batch():
    model = image_models.MobileNet(outputs=3, width=1 / 32)
    image = jax.ShapeDtypeStruct((4, 32, 32, 3), jnp.float32)
    run = lambda variables, x: model.apply(variables, x, True, mutable=["batch_stats"])
    y, changed = jax.eval_shape(run, abstract(model, image), image)
    assert y.shape == (4, 3)
    assert len(changed["batch_stats"]) == 27


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: image_models.VGG(17), "depth is 17; want one of 11, 13, 16, 19"),
        (lambda: image_models.ResNet(20), "depth is 20; want one of 18, 34, 50, 101, 152"),
        (lambda: image_models.ResNet(50, version="v2"), "version is 'v2'; want 'v1' or 'v1.5'"),
        (lambda: image_models.AlexNet(0), "outputs is 0; want a positive integer"),
        (lambda: image_models.MobileNet(width=0.0), "width is 0.0; want a positive number"),
    ],
)
def test_bad_input_is_named(make, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        make()
