"""Receptive fields from the traced program against perturbations, arithmetic and gradients."""

import math
import re
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dltheory.measure import convolution
from dltheory.networks import sites
from dltheory.numerics.results import ReceptiveField
from dltheory.theory import architectures
from dltheory.theory import convolution as arithmetic
from tests.tier import cases

LAYOUT = ("NHWC", "HWIO", "NHWC")


# --- random architectures --------------------------------------------------------------------


def conv(x, taps, strides=(1, 1), padding="SAME", dilation=(1, 1)):
    """One with positive weights, so that nothing cancels."""
    if padding == "CIRCULAR":
        reach = [d * (k - 1) for k, d in zip(taps, dilation, strict=True)]
        x = jnp.pad(x, ((0, 0), *((r // 2, r - r // 2) for r in reach), (0, 0)), mode="wrap")
        padding = "VALID"
    kernel = jnp.full((*taps, x.shape[-1], 2), 1 / math.prod(taps))
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=LAYOUT
    )


def pool(x, taps, strides):
    """Mean pooling; Flax's own divides by an integer, which strict promotion refuses."""
    return lax.reduce_window(x, 0.0, lax.add, (1, *taps, 1), (1, *strides, 1), "VALID")


def pieces(rng):
    """Random layers, each a function of a batch of images."""
    taps = tuple(int(k) for k in rng.integers(1, 4, 2))
    strides = tuple(int(s) for s in rng.choice([1, 1, 2], 2))
    dilation = tuple(int(d) for d in rng.integers(1, 3, 2))
    padding = str(rng.choice(["SAME", "VALID", "CIRCULAR"]))
    return {
        "convolution": lambda x: conv(x, taps, strides, padding, dilation),
        "maximum": lambda x: nn.max_pool(x, taps, strides, padding.replace("CIRCULAR", "SAME")),
        "mean": lambda x: pool(x, taps, strides),
        "branches": lambda x: conv(x, taps, dilation=dilation) + conv(x, (1, 2)),
        "inception": lambda x: jnp.concatenate([jax.nn.softplus(x), conv(x, taps)], -1),
        "shift": lambda x: x + jnp.roll(x, 1, 1),
        "flip": lambda x: x[:, ::-1, ::-1],
        "slice": lambda x: x[:, 1::2, : x.shape[2] - 1],
        "fold": lambda x: (
            x[:, : x.shape[1] // 2 * 2].reshape(x.shape[0], -1, 2, *x.shape[2:]).mean(2)
        ),
        "turn": lambda x: jnp.swapaxes(x, 1, 2),
        "examples": lambda x: lax.scan(lambda c, one: (c, jax.nn.relu(one) * 2), 0.0, x)[1],
    }


def architecture(number):
    """Three to five random layers, the first always a convolution."""
    rng = np.random.default_rng(number)
    chosen = []
    for _ in range(int(rng.integers(3, 6))):
        made = pieces(rng)
        chosen.append(made[str(rng.choice(list(made))) if chosen else "convolution"])

    def f(_, x):
        for layer in chosen:
            x = layer(x)
        return x

    return f


def perturbed(f, image):
    """Per axis of the image, which pixels change the central unit of the result; and that unit.

    A whole line is made large at a time: it shows through maxima too, and with positive weights
    nothing cancels.
    """
    batch = [image[None]]
    for axis in range(2):
        lines = np.broadcast_to(image, (image.shape[axis], *image.shape)).copy()
        for pixel in range(image.shape[axis]):
            lines[(pixel, *[slice(None)] * axis, pixel)] += 1e4
        batch.append(lines)
    y = np.asarray(jax.jit(f)({}, np.concatenate(batch)))
    centre = tuple(n // 2 for n in y.shape[1:3])
    seen = np.any(y[1:, *centre] != y[0, *centre], axis=-1)
    return [np.flatnonzero(part) for part in np.split(seen, [image.shape[0]])], centre


def turned(f, shape):
    """Whether the axes of the result are those of the image swapped."""
    heights = (shape[0], shape[0] + 32)
    sizes = [jax.ShapeDtypeStruct((1, n, *shape[1:]), float) for n in heights]
    before, after = (jax.eval_shape(f, {}, size).shape[1] for size in sizes)
    return before == after


def stretch(pixels, size):
    """First pixel and length of the shortest stretch on a ring that holds the pixels."""
    gaps = np.diff(pixels, append=pixels[0] + size)
    widest = int(np.argmax(gaps))
    return int(pixels[(widest + 1) % len(pixels)]), size - int(gaps[widest]) + 1


@pytest.mark.parametrize("number", range(cases(100)))
def test_fields_are_those_of_perturbations(number):
    f = architecture(number)
    image = np.random.default_rng(number).uniform(1, 2, size=(70, 71, 1))
    fields = convolution.receptive_field(f, {}, jax.ShapeDtypeStruct((1, *image.shape), float))
    seen, centre = perturbed(f, image)
    order = centre[::-1] if turned(f, image.shape) else centre
    for field, pixels, unit, size in zip(fields, seen, order, image.shape, strict=False):
        assert field.size < size
        first = field.stride * unit - field.padding
        assert stretch(pixels, size) == (first % size, field.size)


# --- known networks --------------------------------------------------------------------------


def traced(network):
    """A network of one channel with the layers of an architecture; shortcuts add to their block."""

    def f(_, x):
        shortcut = None
        for layer in network.layers:
            pads = [(layer.padding, layer.padding)] * 2
            window, strides = (layer.kernel,) * 2, (layer.stride,) * 2
            if layer.skip:
                shortcut = conv(x, (1, 1), strides)
            elif layer.inputs:
                x = jax.nn.relu(conv(x, window, strides, pads))
            else:
                x = nn.max_pool(x, window, strides, pads)
            if shortcut is not None and shortcut.shape == x.shape and not layer.skip:
                x, shortcut = x + shortcut, None
        return x

    return f


@pytest.mark.parametrize(
    ("network", "size"),
    [
        (architectures.vgg(16), (212, 32, 90)),
        (architectures.resnet(50), (483, 32)),
        (architectures.resnet(50, "v1.5"), (427, 32)),
        (architectures.alexnet(), (195, 32)),
        (architectures.mobilenet(), (315, 32)),
    ],
)
def test_known_networks_see_what_was_published(network, size):
    x = jax.ShapeDtypeStruct((1, 640, 640, 1), float)
    fields = convolution.receptive_field(traced(network), {}, x)
    assert fields == (arithmetic.receptive_field(network.path),) * 2
    assert fields[0][: len(size)] == size


# --- what has no window ----------------------------------------------------------------------


def attention(x):
    q = x.reshape(x.shape[0], -1, x.shape[-1])
    weights = jax.nn.softmax(jnp.einsum("nqc,nkc->nqk", q, q))
    return jnp.einsum("nqk,nkc->nqc", weights, q)


@pytest.mark.parametrize(
    ("f", "wanted"),
    [
        (attention, [(8, 0, 0), (6, 0, 0)]),
        (lambda x: x.mean((1, 2)), [(8, 0, 0), (6, 0, 0)]),
        (lambda x: x - x.mean((1, 2), keepdims=True), [(8, 0, 0), (6, 0, 0)]),
        (lambda x: jnp.cumsum(x, 1), [(8, 0, 0), (1, 1, 0)]),
        (lambda x: jnp.fft.fft(x, axis=2).real, [(8, 0, 0), (6, 0, 0)]),
        (lambda x: x[:, 3:6:2].max(1), [(3, 0, -3), (1, 1, 0)]),
        (lambda x: jnp.sort(x, 2), [(1, 1, 0), (6, 0, 0)]),
        (lambda x: x[:, jnp.argmax(x[0, :, 0, 0])], [(8, 0, 0), (6, 0, 0)]),
        (lambda x: lax.cond(x[0, 2, 1, 0] > 0, lambda: x, lambda: -x), [(8, 0, 0), (6, 0, 0)]),
        (lambda x: jnp.split(x, 2, 1)[1], [(1, 1, -4), (1, 1, 0)]),
        (lambda x: x.reshape(-1, 48, 2), [(1, Fraction(1, 6), 0), (6, 0, 0)]),
    ],
)
def test_mixing_and_picking(f, wanted):
    """A stretch of stride zero holds what is seen where no window slides."""
    x = jax.ShapeDtypeStruct((2, 8, 6, 2), float)
    found = convolution.receptive_field(lambda _, x: f(x), {}, x)
    assert list(found) == [ReceptiveField(*field) for field in wanted]


@pytest.mark.parametrize("channels", [1, 2])
def test_shifts_side_by_side_as_channels_are_taps(channels):
    """As a convolution is written by hand; one channel is a window of its own length."""

    def layer(h):
        around = jnp.pad(h, ((0, 0), (0, 4), (0, 0)), mode="wrap")
        h = jnp.concatenate([around[:, i : i + 12] for i in range(5)], 2)
        return jnp.sum(h, 2, keepdims=True)

    x = jnp.ones((1, 12, channels))
    seen = [
        convolution.receptive_field(f, {}, x)[0].size
        for f in (lambda _, x: layer(x), lambda _, x: layer(layer(x)))
    ]
    assert seen == [5, 9]


def test_denser_units_than_pixels():
    x = jax.ShapeDtypeStruct((1, 8, 1, 2), float)
    (up, _) = convolution.receptive_field(lambda _, x: jnp.repeat(x, 2, 1), {}, x)
    assert up.stride == pytest.approx(0.5)
    assert up.size == 1
    transposed = lambda _, x: lax.conv_transpose(x, jnp.ones((4, 1, 2, 2)), (2, 1), "SAME")
    (field, _) = convolution.receptive_field(transposed, {}, x)
    assert field.stride == pytest.approx(0.5)
    assert field.size == 2


# --- sites -----------------------------------------------------------------------------------


def scanned(params, x):
    h = conv(x, (1, 1))
    return lax.scan(lambda h, w: (conv(jnp.tanh(h * w), (3, 1)), None), h, params["w"])[0]


def test_fields_of_scanned_layers_grow_layer_by_layer():
    params, x = {"w": jnp.ones(4)}, jnp.ones((1, 12, 5, 1))
    found = convolution.receptive_fields(scanned, params, x)
    assert [field[0].size for field in found.values()] == [1, 3, 5, 7]
    assert [str(site) for site in found] == [f"w[{k}]" for k in range(4)]
    assert convolution.receptive_field(scanned, params, x, "w[2]") == found[list(found)[2]]
    assert convolution.receptive_field(scanned, params, x)[0] == (9, 1, 4)
    with pytest.raises(sites.SiteError, match=re.escape("is stacked as (4,); name one of the")):
        convolution.receptive_field(scanned, params, x, "w")


# --- effective fields and shifts -------------------------------------------------------------


def test_the_effective_field_of_a_linear_net_is_the_profile():
    layers = [(3, 1, 1), (3, 2, 1), (3, 1, 2)]

    def f(params, x):
        for kernel, stride, dilation in layers:
            x = conv(x, (kernel, 1), (stride, 1), "VALID", (dilation, 1)) * params["gain"]
        return x

    params, x = {"gain": 1e-60}, jnp.ones((2, 15, 3, 1))
    found = np.asarray(convolution.effective_receptive_field(f, params, x))
    (field, _) = convolution.receptive_field(f, params, x)
    gradient = np.asarray(arithmetic.effective_profile(layers))
    wanted = np.zeros(15)
    first = field.stride * 1 - field.padding
    wanted[first : first + field.size] = gradient**2 / np.sum(gradient**2)
    np.testing.assert_allclose(found[:, 1], wanted, rtol=1e-12, atol=1e-15)
    assert np.all(found[:, [0, 2]] == 0)


def test_the_effective_field_of_random_weights_has_the_profile_of_theory():
    """Mean squares over draws, of kernels composed by hand; one draw is measured as well."""
    layers, draws = [(3, 1, 1)] * 3, 400
    kernels = np.random.default_rng(0).normal(size=(draws, 3, 3, 8, 8))

    def squares(kernels):
        whole = np.eye(8)[None]
        for kernel in kernels:
            longer = np.zeros((len(whole) + 2, 8, 8))
            for tap in range(3):
                longer[tap : tap + len(whole)] += whole @ kernel[tap]
            whole = longer
        return np.sum(whole**2, axis=(1, 2))

    every = np.stack([squares(one) for one in kernels]) / 8**4
    profile = 27 * np.asarray(arithmetic.effective_profile(layers))
    stderr = every.std(0) / np.sqrt(draws)
    assert np.all(np.abs(every.mean(0) - profile) < 4 * stderr)

    def f(params, x):
        for kernel in params:
            x = lax.conv_general_dilated(
                x, kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
            )
        return x

    found = convolution.effective_receptive_field(f, kernels[0], jnp.ones((1, 7, 8)))
    np.testing.assert_allclose(found, every[0] / every[0].sum(), rtol=1e-10)


def classifier(strides, padding):
    rng = np.random.default_rng(0)
    kernel, head = rng.normal(size=(3, 3, 1, 4)), rng.normal(size=(4, 3))

    def f(params, x):  # noqa: ARG001
        around = ((0, 0), (1, 1), (1, 1), (0, 0))
        x = jnp.pad(x, around, mode="wrap") if padding == "CIRCULAR" else jnp.pad(x, around)
        h = lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=LAYOUT)
        return jax.nn.relu(h).mean((1, 2)) @ head

    return f


def test_shift_consistency():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 6, 6, 1)))
    whole = convolution.shift_consistency(classifier((1, 1), "CIRCULAR"), {}, x, shifts=3)
    np.testing.assert_allclose(whole.consistency, 1, rtol=1e-15)
    np.testing.assert_allclose(whole.deviation, 0, atol=1e-14)
    strided = classifier((2, 2), "CIRCULAR")
    found = convolution.shift_consistency(strided, {}, x, shifts=2)
    moved = [jnp.roll(x, (a, b), (1, 2)) for a in range(2) for b in range(2)]
    y = np.stack([strided({}, one) for one in moved])
    parts = np.stack([(y.argmax(-1) == k).mean(0) for k in range(3)])
    np.testing.assert_allclose(found.consistency, np.sum(parts**2, 0), rtol=1e-12)
    apart = np.sum((y - y.mean(0)) ** 2, (0, 2)) / np.sum(y**2, (0, 2))
    np.testing.assert_allclose(found.deviation, apart**0.5, rtol=1e-10)
    assert np.all(found.deviation > 1e-3)
    bad = convolution.shift_consistency(strided, {}, x.at[0, 0, 0, 0].set(jnp.nan), shifts=2)
    np.testing.assert_array_equal(np.isnan(bad.consistency), [True, False, False])


def test_bad_input_is_named():
    x = jnp.ones((2, 6, 6, 1))
    flat = lambda _, x: x
    with pytest.raises(ValueError, match=re.escape("x has shape (2, 6); want (N, *spatial, chan")):
        convolution.receptive_field(flat, {}, jnp.ones((2, 6)))
    with pytest.raises(ValueError, match="the output does not depend on x"):
        convolution.receptive_field(lambda _, x: jnp.ones(3), {}, x)  # noqa: ARG005
    with pytest.raises(TypeError, match="f must return one array, got 2"):
        convolution.receptive_field(lambda _, x: (x, x), {}, x)
    with pytest.raises(sites.SiteError, match="no site is named 'missing'"):
        convolution.receptive_field(scanned, {"w": jnp.ones(4)}, x, "missing")
    with pytest.raises(ValueError, match="shifts is 0; want a positive integer"):
        convolution.shift_consistency(flat, {}, x, shifts=0)
    with pytest.raises(ValueError, match=re.escape("want (N, classes), here N = 2")):
        convolution.shift_consistency(flat, {}, x, shifts=1)
