"""Spectra of convolutional layers against explicit matrices; fields against perturbations."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from dltheory.measure import convolution, convolution_matrix
from dltheory.networks import convolution_geometry, initializers
from tests.facts import FACTS, assert_agrees
from tests.tier import cases

KEY = jax.random.key(0)


# --- the facts -------------------------------------------------------------------------------


def spectrum(kernel_oihw, n, **given):
    kernel = np.transpose(kernel_oihw, (2, 3, 1, 0))
    return np.asarray(convolution.singular_values(kernel, (n, n), **given))


def largest(kernel_oihw, n):
    return spectrum(kernel_oihw, n)[:6]


def statistics(kernel_oihw, n):
    s = spectrum(kernel_oihw, n)
    return [s[0], s[-1], np.sum(s**2), np.sum(s)]


def reshaped(kernel_oihw):
    norms = convolution_matrix.reshaped_norms(np.transpose(kernel_oihw, (2, 3, 1, 0)))
    return [*norms, spectrum(kernel_oihw, 4)[0]]


def strided(kernel, n, stride):
    return spectrum([[kernel]], n, strides=stride)


def binomial(n):
    return spectrum([[np.outer([1.0, 2.0, 1.0], [1.0, 2.0, 1.0])]], n, padding="SAME")[0]


def isometry(c_out, c_in, n):
    kernel = initializers.delta_orthogonal(1.0)(KEY, (3, 3, c_in, c_out), float)
    return np.asarray(convolution.singular_values(kernel, (n, n)))[[0, -1]]


def closed(n):
    kernel = FACTS["cnn.sv.laplace3"]["inputs"]["kernel_oihw"]
    return largest(kernel, n)[0]


TABLE = {
    r"cnn\.sv\.[^.]+\.stats": statistics,
    r"cnn\.sv\.laplace\.closed": closed,
    r"cnn\.sv\.stride2": strided,
    r"cnn\.sv\.reshape_bound": reshaped,
    r"cnn\.sv\.[^.]+": largest,
    r"cnn\.zero\.binomial2d": binomial,
    r"cnn\.delta_orth": isometry,
    r"cnn\.pool\.avg_overlap": lambda n: convolution.singular_values(jnp.ones((3, 1, 1)) / 3, n)[
        -1
    ],
}
MEASURED = [i for i in FACTS if re.fullmatch(r"cnn\.(sv\..+|zero\..+|delta_.+|pool\.avg_.+)", i)]


@pytest.mark.parametrize("fact_id", MEASURED)
def test_agrees_with_the_facts(fact_id):
    call = next(call for pattern, call in TABLE.items() if re.fullmatch(pattern, fact_id))
    assert_agrees(fact_id, call(**FACTS[fact_id]["inputs"]))


# --- the explicit matrix -----------------------------------------------------------------------


class Case(NamedTuple):
    kernel: np.ndarray
    image: tuple[int, ...]
    given: dict


def case(number):
    """A random layer: 1 to 3 axes, everything else at random too."""
    rng = np.random.default_rng(number)
    dims = int(rng.choice([1, 2, 2, 3]))
    most = {1: 9, 2: 6, 3: 4}[dims]
    groups = int(rng.choice([1, 1, 2, 3]))
    image = tuple(int(n) for n in rng.integers(2, most + 1, dims))
    taps = tuple(int(k) for k in rng.integers(1, 4 if dims < 3 else 3, dims))
    strides = tuple(int(s) for s in rng.integers(1, 4, dims))
    dilation = tuple(int(d) for d in rng.integers(1, 3, dims))
    padding = rng.choice(["CIRCULAR", "CIRCULAR", "SAME", "VALID", "pairs"])
    if padding == "CIRCULAR" and rng.random() < 0.7:
        image = tuple(s * max(1, n // s) for n, s in zip(image, strides, strict=True))
    reach = [d * (k - 1) + 1 for k, d in zip(taps, dilation, strict=True)]
    if padding == "VALID":
        image = tuple(max(n, r) for n, r in zip(image, reach, strict=True))
    if padding == "pairs":
        padding = [(int(rng.integers(0, 3)), r) for r in reach]
    channels = (int(rng.integers(1, 4)), groups * int(rng.integers(1, 4)))
    given = {"padding": padding, "strides": strides, "dilation": dilation, "groups": groups}
    if not isinstance(padding, list):
        given["padding"] = str(padding)
    return Case(rng.normal(size=(*taps, *channels)), image, given)


def explicit(kernel, image, padding, strides, dilation, groups):
    """The matrix by loops over outputs and taps: nothing shared with the library."""
    dims, (inputs, outputs) = len(image), kernel.shape[-2:]
    taps = kernel.shape[:dims]
    reach = [d * (k - 1) + 1 for k, d in zip(taps, dilation, strict=True)]
    size, before = [], []
    for axis, (n, r, s) in enumerate(zip(image, reach, strides, strict=True)):
        if padding in ("CIRCULAR", "SAME"):
            size.append(-(-n // s))
            total = max((size[-1] - 1) * s + r - n, 0) if padding == "SAME" else r - 1
            before.append(total // 2)
        else:
            low, high = (0, 0) if padding == "VALID" else padding[axis]
            size.append((n + low + high - r) // s + 1)
            before.append(low)
    a = np.zeros((*size, outputs, *image, inputs * groups))
    for place in np.ndindex(*size):
        for tap in np.ndindex(*taps):
            read = tuple(
                p * s + t * d - b
                for p, s, t, d, b in zip(place, strides, tap, dilation, before, strict=True)
            )
            if padding == "CIRCULAR":
                read = tuple(x % n for x, n in zip(read, image, strict=True))
            elif not all(0 <= x < n for x, n in zip(read, image, strict=True)):
                continue
            for out in range(outputs):
                first = out // (outputs // groups) * inputs
                where = (*place, out, *read, slice(first, first + inputs))
                a[where] += kernel[(*tap, slice(None), out)]
    return a.reshape(-1, np.prod(image) * inputs * groups)


@pytest.mark.parametrize("number", range(cases(200)))
def test_spectra_are_those_of_the_explicit_matrix(number):
    kernel, image, given = case(number)
    wanted = explicit(kernel, image, **given)
    s = np.linalg.svd(wanted, compute_uv=False)
    found = convolution.singular_values(kernel, image, **given)
    assert found.shape == s.shape
    np.testing.assert_allclose(found, s, rtol=0, atol=1e-12 * s[0])


@pytest.mark.parametrize(
    ("image", "shape", "strides", "dilation", "groups"),
    [
        ((12, 10), (3, 3, 2, 4), (2, 1), (1, 2), 2),
        ((12, 10), (2, 3, 3, 2), (1, 2), (1, 1), 1),
        ((8, 9), (3, 3, 3, 2), (1, 1), (1, 1), 1),
    ],
)
def test_images_large_beside_their_kernel(image, shape, strides, dilation, groups):
    """Through the autocorrelation of the kernel, which small images are too small for."""
    kernel = np.random.default_rng(0).normal(size=shape)
    given = {"strides": strides, "dilation": dilation, "groups": groups}
    wanted = explicit(kernel, image, padding="CIRCULAR", **given)
    s = np.linalg.svd(wanted, compute_uv=False)
    found = convolution.singular_values(kernel, image, **given)
    np.testing.assert_allclose(found, s, rtol=0, atol=1e-12 * s[0])


@pytest.mark.parametrize("number", range(0, cases(200), 5))
def test_brackets_of_small_layers_are_narrow(number):
    kernel, image, given = case(number)
    norm = np.linalg.norm(explicit(kernel, image, **given), 2)
    lower, upper = convolution.operator_norm(KEY, kernel, image, **given)
    assert norm * (1 - 1e-11) <= lower <= norm * (1 + 1e-15)
    assert norm * (1 - 1e-15) <= upper <= norm * (1 + 1e-11)


@pytest.mark.parametrize("number", range(0, cases(200), 10))
def test_the_matrix_is_that_of_the_loops(number):
    kernel, image, given = case(number)
    found = convolution_matrix.matrix(kernel, image, **given)
    np.testing.assert_allclose(found, explicit(kernel, image, **given), rtol=0, atol=1e-15)


@pytest.mark.parametrize("padding", [[(2, 0), (1, 3)], "SAME", "VALID"][: cases(3)])
def test_the_matrix_is_the_jacobian_of_the_framework(padding):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 6)))
    given = {"padding": padding, "strides": (2, 1), "dilation": (1, 2), "groups": 3}

    def layer(x):
        return lax.conv_general_dilated(
            x[None],
            kernel,
            (2, 1),
            padding,
            rhs_dilation=(1, 2),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=3,
        ).reshape(-1)

    wanted = jax.jacobian(layer)(jnp.zeros((5, 6, 6))).reshape(-1, 180)
    found = convolution_matrix.matrix(kernel, (5, 6), **given)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-15)


# --- other ways to the same values ---------------------------------------------------------------


def test_small_values_keep_their_digits():
    """Of a kernel with one tap, those of a matrix, whose Gram matrix loses digits of the small."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(2))
    wanted = np.array([1.0, 1e-3, 3e-5, 1e-6])
    kernel = np.zeros((3, 3, 4, 4))
    kernel[1, 0] = u * wanted @ v
    found = np.asarray(convolution.singular_values(kernel, (8, 8)))
    np.testing.assert_allclose(found, np.repeat(wanted, 64), rtol=0, atol=1e-15)
    zero = np.asarray(convolution.singular_values(np.zeros((3, 3, 2, 2)), (4, 4)))
    assert np.all(zero == 0)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_scales_do_not_matter(scale):
    kernel, image, given = case(3)._replace(given={"strides": 1}, image=(4, 4))
    kernel = np.random.default_rng(1).normal(size=(3, 3, 2, 2))
    s = convolution.singular_values(kernel, image, **given)
    scaled = convolution.singular_values(scale * kernel, image, **given)
    np.testing.assert_allclose(scaled / scale, s, rtol=0, atol=1e-13 * s[0])


def test_traced_values_are_the_concrete_ones_and_differentiable():
    rng = np.random.default_rng(2)
    kernel = jnp.asarray(rng.normal(size=(3, 2, 3, 4)))
    weights = jnp.asarray(rng.normal(size=72))

    def total(kernel):
        s = convolution.singular_values(kernel, (6, 4), strides=(2, 1), groups=1)
        circular = jnp.sum(jnp.sin(s / 3))
        s = convolution.singular_values(kernel, (3, 3), padding="VALID")
        return circular + jnp.sum(s**3), s

    (value, s), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(kernel)
    wanted, dense = total(kernel)
    np.testing.assert_allclose(s, dense, rtol=1e-12)
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    direction = weights.reshape(kernel.shape)
    step = 1e-5
    central = (total(kernel + step * direction)[0] - total(kernel - step * direction)[0]) / 2
    np.testing.assert_allclose(jnp.sum(slope * direction), central / step, rtol=1e-7)


def test_one_bad_weight_spoils_everything():
    kernel = np.ones((3, 3, 2, 4))
    kernel[0, 0, 0, 0] = np.nan
    for given in ({}, {"groups": 2}, {"groups": 2, "padding": "SAME"}, {"padding": "VALID"}):
        assert np.all(np.isnan(convolution.singular_values(kernel, (4, 4), **given)))
    kernel[0, 0, 0, 0] = np.inf
    assert np.all(np.isnan(convolution.singular_values(kernel, (4, 4), groups=2)))
    assert np.all(np.isnan(convolution.operator_norm(KEY, kernel, (4, 4), padding="SAME")))


def test_single_precision(float32):  # noqa: ARG001
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype(np.float32)
    s = convolution.singular_values(kernel, (6, 6))
    assert s.dtype == jnp.float32
    given = {"padding": "CIRCULAR", "strides": (1, 1), "dilation": (1, 1), "groups": 1}
    wanted = np.linalg.svd(explicit(kernel, (6, 6), **given), compute_uv=False)
    np.testing.assert_allclose(s, wanted, rtol=0, atol=2e-7 * wanted[0])
    half = convolution.singular_values(kernel.astype(jnp.bfloat16), (6, 6))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, wanted, rtol=0, atol=2e-2 * wanted[0])


# --- the norm of large layers ------------------------------------------------------------------


@pytest.mark.parametrize("padding", [[(0, 3)], [(4, 1)], "SAME", "VALID"])
@pytest.mark.parametrize(("size", "taps", "stride", "dilation"), [(7, 3, 1, 2), (8, 4, 3, 1)])
def test_a_padded_layer_is_a_part_of_one_on_a_torus(padding, size, taps, stride, dilation):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(taps, 1, 1)))
    _, layer = convolution_geometry.layer(kernel, size, padding, stride, dilation, 1)
    torus = convolution_geometry.torus(layer)
    part, whole = (np.asarray(convolution_geometry.matrices(kernel, g))[0] for g in (layer, torus))
    shift = layer.pads[0][0] - dilation * (taps - 1) // 2
    placed = np.roll(whole, -shift, axis=1)[: layer.output[0], :size]
    np.testing.assert_array_equal(part, placed)


LARGE = [
    ((9, 8), {"padding": [(0, 2), (3, 0)], "strides": (2, 1), "dilation": (1, 2)}),
    ((7, 9), {"strides": 2, "groups": 2}),
    ((10, 9), {"padding": "SAME"}),
]


@pytest.mark.parametrize(("image", "given"), LARGE[: cases(3)])
def test_the_bracket_of_a_large_layer_contains_its_norm(monkeypatch, image, given):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6))
    exact = convolution.singular_values(kernel, image, **given)[0]
    monkeypatch.setattr(convolution, "_SMALL", 0)
    few = {"failure": 0.0, "steps": 20}
    likely, sure = jax.jit(
        lambda k: [convolution.operator_norm(KEY, k, image, **given, **how) for how in ({}, few)]
    )(kernel)
    assert likely.lower <= exact <= likely.upper <= min(1.01 * likely.lower, sure.upper)
    np.testing.assert_allclose(likely.lower, exact, rtol=1e-9)
    assert sure.lower <= exact <= sure.upper <= 1.5 * exact


def large(number):
    """A random layer, not circular or with a stride that does not divide, too large to form."""
    rng = np.random.default_rng(number)
    pick = lambda choices: choices[int(rng.integers(len(choices)))]
    stride, dilation, groups = pick([1, 2]), pick([1, 2]), pick([1, 1, 2])
    padding = ["SAME", "VALID", [(0, 2), (3, 1)], "CIRCULAR"][number % 4]
    stride = 2 if padding == "CIRCULAR" else stride
    image = pick([(19, 19), (21, 18), (15, 25)])
    channels = 5 if stride == 1 else 9
    kernel = rng.normal(size=(pick([2, 3]), pick([3, 5]), channels, groups * channels))
    # Half of them smooth, whose largest singular values lie close together.
    kernel = kernel + pick([0, 2])
    given = {"padding": padding, "strides": stride, "dilation": dilation, "groups": groups}
    return Case(kernel, image, given)


@pytest.mark.parametrize("number", range(cases(16)))
def test_brackets_of_large_layers_contain_the_truth_within_a_percent(number):
    kernel, image, given = large(number)
    _, geometry = convolution_geometry.layer(kernel, image, *given.values())
    assert geometry.entries > convolution._SMALL
    assert not geometry.on_torus
    exact = convolution.singular_values(kernel, image, **given)[0]
    lower, upper = convolution.operator_norm(KEY, kernel, image, **given)
    assert lower <= exact <= upper <= 1.01 * lower


def test_the_norm_is_differentiable(monkeypatch):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2)))
    wanted = jax.grad(lambda k: convolution.singular_values(k, 9, padding="SAME")[0])(kernel)
    monkeypatch.setattr(convolution, "_SMALL", 0)
    norm = lambda k: convolution.operator_norm(KEY, k, 9, padding="SAME").lower
    np.testing.assert_allclose(jax.jit(jax.grad(norm))(kernel), wanted, rtol=1e-8, atol=1e-10)


def test_reshaped_norms_are_on_either_side_of_the_layers():
    rng = np.random.default_rng(0)
    for kernel in (np.ones((3, 2, 2, 2)), *rng.normal(size=(4, 3, 2, 2, 2))):
        norms = np.asarray(convolution_matrix.reshaped_norms(kernel))
        true = float(convolution.singular_values(kernel, (5, 4))[0])
        assert norms.max() < true <= np.sqrt(6) * norms.min() * (1 + 1e-14)
    ones = convolution_matrix.reshaped_norms(jnp.ones((3, 3, 2, 2)))
    np.testing.assert_allclose(ones, [6.0, 6.0], rtol=1e-14)


# --- shifts --------------------------------------------------------------------------------------


def circular(kernel, x, stride):
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride,) * 2, "VALID", dimension_numbers=layout)


def test_circular_networks_commute_with_shifts_and_strided_ones_with_even_shifts():
    first, second, x = (
        jnp.asarray(np.random.default_rng(0).normal(size=shape))
        for shape in ((3, 3, 2, 3), (3, 3, 3, 2), (4, 8, 6, 2))
    )
    shifts = np.array([[0, 0], [2, 4], [-2, 0], [1, 0], [3, 5]])

    def net(stride, pooled):
        def f(_, x):
            h = circular(second, jax.nn.relu(circular(first, x, 1)), stride)
            return jnp.mean(h, (1, 2)) if pooled else h

        return f

    errors = jax.jit(
        lambda x: [
            convolution.equivariance_error(net(stride, pooled), {}, x, shifts)
            for stride in (1, 2)
            for pooled in (False, True)
        ]
    )(x)
    plain, invariant, strided, subsampled = (np.asarray(e) for e in errors)
    assert plain.shape == (5, 4)
    assert max(plain.max(), invariant.max()) < 1e-14
    assert max(strided[:3].max(), subsampled[:3].max()) < 1e-14
    assert min(strided[3:].min(), subsampled[3:].min()) > 1e-2


def test_bad_shifts_are_named():
    f, x = lambda _, x: x, jnp.ones((1, 4, 4, 1))
    with pytest.raises(ValueError, match=re.escape("shifts has shape (2,); want (S, 2), one")):
        convolution.equivariance_error(f, {}, x, [1, 2])
    with pytest.raises(TypeError, match="shifts hold float64; want integers, whole pixels"):
        convolution.equivariance_error(f, {}, x, [[1.0, 2.0]])
    assert convolution.equivariance_error(lambda _, x: 0 * x, {}, x, [[1, 2]]) == 0


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "image", "given", "error", "text"),
    [
        ((5, 5, 1, 1), (4, 4), {"padding": "VALID"}, ValueError, "spans (5, 5) pixels, more than"),
        ((3, 3, 2, 4), (4, 4), {"groups": 3}, ValueError, "groups is 3, which does not divide the"),
        ((3, 3, 2, 4), (4, 4), {"strides": 0}, ValueError, "strides is 0; want positive integers"),
        ((3, 3, 2, 4), (4, 4), {"strides": (1,)}, ValueError, "want one number, or 2, one a spat"),
        ((3, 3, 2, 4), (4, 4), {"dilation": 1.0}, TypeError, "dilation is 1.0; want positive int"),
        ((3, 3, 2, 4), (4, 4, 2), {}, ValueError, "which is HWIO for images; input_shape has the"),
        ((3, 3, 2, 4), (4, 0), {}, ValueError, "input_shape is (4, 0); want positive integers"),
        ((3, 0, 2, 4), (4, 4), {}, ValueError, "want no axis of length zero"),
        ((3, 3, 2, 4), (4, 4), {"padding": "ZEROS"}, ValueError, "padding is 'ZEROS'; want 'CIRC"),
        ((3, 3, 2, 4), (4, 4), {"padding": [(1, 1)]}, ValueError, "a pair of numbers for each of"),
        ((3, 3, 64, 4), (512, 512), {"padding": "SAME"}, ValueError, "or operator_norm"),
        ((64, 3, 3, 3), (32, 32), {"padding": "VALID"}, ValueError, "(*spatial, in / groups, out)"),
    ],
)
def test_bad_input_is_named(kernel, image, given, error, text):
    with pytest.raises(error, match=re.escape(text)):
        convolution.singular_values(jnp.ones(kernel), image, **given)


def test_bad_arguments_of_the_norm_are_named():
    kernel = jnp.ones((3, 1, 1))
    with pytest.raises(ValueError, match="steps is 0; want a positive integer"):
        convolution.operator_norm(KEY, kernel, 4, steps=0)
    with pytest.raises(ValueError, match="failure is 1; want a probability"):
        convolution.operator_norm(KEY, kernel, 4, failure=1)
    with pytest.raises(TypeError, match="kernel holds int64; want floating-point numbers"):
        convolution.singular_values(jnp.ones((3, 1, 1), int), 4)
    with pytest.raises(ValueError, match=re.escape("kernel has shape (3, 1); want (*spatial")):
        convolution_matrix.reshaped_norms(jnp.ones((3, 1)))
