"""Convolutional arithmetic against the facts, and against the networks and arrays it counts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dltheory.theory import architectures, convolution
from tests.facts import FACTS, assert_agrees

NUMERIC = [i for i in FACTS if i.startswith("cnn.") and i != "cnn.mf.qmap"]


def field(_):
    return lambda layers_k_s_d: convolution.receptive_field(layers_k_s_d)[:2]


def count(name):
    """Parameters, and for most networks multiply-adds; for VGG first those of convolutions."""
    if name.startswith("alexnet"):
        return architectures.parameter_count(architectures.alexnet(2 if "2012" in name else 1))
    if name == "vgg16":
        network = architectures.vgg(16)
        counts = [architectures.parameter_count(network._replace(head=()))]
    else:
        network, counts = architectures.resnet(int(name.removeprefix("resnet")), "v1.5"), []
    return [
        *counts,
        architectures.parameter_count(network),
        architectures.multiply_adds(network, 224),
    ]


def same(k, n):
    """`n` equal layers of stride one."""
    return [(k, 1, 1)] * n


def ratio(k, n):
    """Four deviations over the field, and the narrowest odd window with 95.45 % of the profile."""
    profile = np.asarray(convolution.effective_profile(same(k, n)))
    centre = profile.size // 2
    window = next(r for r in range(centre) if profile[centre - r : centre + r + 1].sum() >= 0.9545)
    return [4 * convolution.effective_std(same(k, n)) / profile.size, 2 * window + 1]


# The pattern of an id, and what to call with its groups and with the fact's inputs.
TABLE = [
    (r"cnn\.rf\.(.+)", field),
    (
        r"cnn\.outsize\..+",
        lambda: (
            lambda n, k, stride, pad, dilation: convolution.output_size(
                n, (k, stride, dilation, pad)
            )
        ),
    ),
    (r"cnn\.erf\.std\..+", lambda: lambda k, n: convolution.effective_std(same(k, n))),
    (r"cnn\.erf\.ratio\..+", lambda: ratio),
    (r"cnn\.erf\.random", lambda: lambda k, n: convolution.effective_std(same(k, n)) ** 2),
    (r"cnn\.params\.(.+)", lambda name: lambda: count(name)),
    (r"cnn\.weight_sharing", lambda: lambda: convolution.weight_counts(32, 3, 64, 3)),
    (r"cnn\.zeropad\.loss\..+", lambda: lambda H, k: convolution.border_factor(H, k)),
    (r"cnn\.pool\.avg", lambda: lambda k: convolution.average_pool_lipschitz(k, k)),
    (
        r"cnn\.pool\.max_lipschitz",
        lambda: lambda k, stride: convolution.max_pool_lipschitz(k, stride),
    ),
]
CALLS = {
    i: call(*match.groups())
    for i in NUMERIC
    for pattern, call in TABLE
    if (match := re.fullmatch(pattern, i))
}
# Spectra are measured, not predicted: tests/measure/test_convolution.py has a table of its own.
MEASURED = r"cnn\.(sv\..+|zero\.binomial2d|delta_orth|pool\.avg_overlap)"
# Fourier modes and their depth scales have tests of their own.
MODES = r"cnn\.mf\..+"


@pytest.mark.parametrize("fact_id", CALLS)
def test_agrees_with_the_facts(fact_id):
    assert_agrees(fact_id, CALLS[fact_id](**FACTS[fact_id]["inputs"]))


def test_the_facts_are_covered():
    elsewhere = {i for i in NUMERIC if re.fullmatch(f"{MEASURED}|{MODES}", i)}
    assert set(CALLS) | elsewhere == set(NUMERIC)
    assert not set(CALLS) & elsewhere


@pytest.mark.parametrize(
    ("network", "fact_id"),
    [
        (architectures.vgg(11), "cnn.rf.vgg11.pool5"),
        (architectures.vgg(16), "cnn.rf.vgg16.pool5"),
        (architectures.vgg(19), "cnn.rf.vgg19.pool5"),
        (architectures.resnet(34), "cnn.rf.resnet34"),
        (architectures.resnet(50), "cnn.rf.resnet50.slim"),
        (architectures.resnet(101), "cnn.rf.resnet101.slim"),
        (architectures.mobilenet(), "cnn.rf.mobilenet_v1"),
    ],
)
def test_networks_see_what_was_published(network, fact_id):
    assert_agrees(fact_id, convolution.receptive_field(network.path)[:2])


def test_alexnet_v2_sees_195_pixels_and_the_usual_resnet_427():
    assert convolution.receptive_field(architectures.alexnet().path)[:2] == (195, 32)
    assert convolution.receptive_field(architectures.alexnet().path[:-1])[:2] == (163, 16)
    assert convolution.receptive_field(architectures.resnet(50, "v1.5").path)[:2] == (427, 32)
    assert convolution.receptive_field(architectures.resnet(152).path)[:2] == (1507, 32)
    assert architectures.parameter_count(architectures.mobilenet()) == 4231976


@pytest.mark.parametrize(
    "layers",
    [
        [(3, 2, 1, 1), (2, 1, 3, 0), (5, 1, 1, 2)],
        [(4, 3, 2, 3), (1, 2, 1), (3, 1, 2, 2)],
        [(2, 2, 1), (2, 2, 1), (2, 2, 1, 1)],
        [],
    ],
)
def test_the_field_is_where_gradients_are(layers):
    """Of kernels of ones; the profile is the gradient itself, once normalised."""
    size = 90

    def run(x):
        for kernel, stride, dilation, *padding in layers:
            pads = [tuple(padding * 2) or (0, 0)]
            taps = jnp.full((1, 1, kernel), 1 / kernel)
            x = lax.conv_general_dilated(x, taps, [stride], pads, rhs_dilation=[dilation])
        return x

    zeros = jnp.zeros((1, 1, size))
    outputs = size
    for layer in layers:
        outputs = convolution.output_size(outputs, layer)
    assert run(zeros).shape == (1, 1, outputs)
    found = convolution.receptive_field(layers)
    unit = outputs // 2
    gradient = np.asarray(jax.grad(lambda x: run(x)[0, 0, unit])(zeros))[0, 0]
    first = unit * found.stride - found.padding
    profile = np.asarray(convolution.effective_profile(layers))
    assert profile.shape == (found.size,)
    wanted = np.zeros(size)
    wanted[first : first + found.size] = profile
    np.testing.assert_allclose(gradient, wanted, atol=1e-15)
    place = np.arange(found.size)
    variance = profile @ place**2 - (profile @ place) ** 2
    np.testing.assert_allclose(convolution.effective_std(layers), variance**0.5, rtol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (5, 2), (5, 3), (4, 1), (2, 3)])
def test_pooling_constants_are_those_of_circular_images(kernel, stride):
    """Average: the norm of the matrix. Max: a spike in the middle of as many windows as can be."""
    size = 12
    rows = np.zeros((size // stride, size))
    for row in range(size // stride):
        for tap in range(kernel):
            rows[row, (row * stride + tap) % size] += 1 / kernel
    norm = np.linalg.norm(rows, 2)
    for dims in (1, 2):
        found = convolution.average_pool_lipschitz(kernel, stride, dims=dims)
        np.testing.assert_allclose(found, norm**dims, rtol=1e-12)
    windows = max(np.count_nonzero(rows[:, pixel]) for pixel in range(size))
    np.testing.assert_allclose(convolution.max_pool_lipschitz(kernel, stride), windows, rtol=1e-12)


def test_the_border_factor_is_the_part_of_taps_on_the_image():
    for size, kernel in [(8, 5), (3, 7), (1, 9), (4, 2), (6, 4)]:
        first = (kernel - 1) // 2
        places = np.arange(size)[:, None] + np.arange(kernel) - first
        part = np.mean((places >= 0) & (places < size))
        for dims in (1, 2):
            found = convolution.border_factor(size, kernel, dims=dims)
            np.testing.assert_allclose(found, part**dims, rtol=1e-12)


def test_parameters_are_counted_as_arrays_are():
    """A grouped convolution, a bias, a normalisation and a dense layer, by their shapes."""
    layer = architectures.Layer(3, inputs=4, outputs=6, groups=2, norm=True)
    network = architectures.Architecture((layer,), ((10, 3),))
    shapes = [(3, 3, 4 // 2, 6), (6,), (6,), (6,), (10, 3), (3,)]
    assert architectures.parameter_count(network) == sum(np.prod(shape) for shape in shapes)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda: convolution.receptive_field([(3, 1, 1), (3, 0, 1)]),
            ValueError,
            "stride of layer 1 is 0; want a positive integer",
        ),
        (
            lambda: convolution.receptive_field([(3.0, 1, 1)]),
            TypeError,
            "kernel of layer 0 is 3.0, a float; want a positive integer",
        ),
        (
            lambda: convolution.effective_std([(3, 1, 1, -1)]),
            ValueError,
            "padding of layer 0 is -1; want a positive integer",
        ),
        (
            lambda: convolution.effective_profile([(3, 1)]),
            ValueError,
            "layer 0 is (3, 1); want (kernel, stride, dilation) or (kernel, stride, dilation, "
            "padding)",
        ),
        (
            lambda: convolution.output_size(4, (3, 1, 2, 0)),
            ValueError,
            "layer spans 5 pixels, but the image has 4 and 0 zeros at each end: pad more, or take "
            "a smaller kernel or dilation",
        ),
        (lambda: convolution.border_factor(0, 3), ValueError, "size is 0; want a positive"),
        (lambda: convolution.max_pool_lipschitz(2, 0), ValueError, "stride is 0; want a positive"),
        (
            lambda: convolution.average_pool_lipschitz(0, 1),
            ValueError,
            "kernel is 0; want a positive",
        ),
        (
            lambda: convolution.weight_counts(8, 3, 0, 3),
            ValueError,
            "outputs is 0; want a positive",
        ),
        (lambda: architectures.vgg(12), ValueError, "depth is 12; want one of 11, 13, 16, 19"),
        (
            lambda: architectures.resnet(50, "v2"),
            ValueError,
            "version is 'v2'; want one of v1, v1.5",
        ),
        (lambda: architectures.alexnet(3), ValueError, "towers is 3; want 1 or 2"),
    ],
)
def test_bad_input_is_named(call, error, text):
    with pytest.raises(error, match=re.escape(text)):
        call()
