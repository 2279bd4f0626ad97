r"""Convolutional networks as lists of layers: VGG, ResNet, AlexNet, MobileNet; sizes and costs.

A layer begins with the four numbers that `convolution.receptive_field` reads, so that the field of
a network is ``receptive_field(resnet(50).path)``. Nothing is built or run.
"""

from typing import NamedTuple

from dltheory.theory import convolution
from dltheory.theory.parameters import check_choice, check_count


class Layer(NamedTuple):
    """A convolution, or a pooling where it has no channels; square, with equal padding all around.

    Attributes:
        kernel: Taps along an axis.
        stride: Step between outputs.
        dilation: Step between taps.
        padding: Zeros before the first pixel.
        inputs: Channels in; zero for pooling.
        outputs: Channels out; zero for pooling.
        groups: Groups of channels that do not mix.
        bias: Whether it has a bias a channel.
        norm: Whether batch normalisation follows, a scale and a shift a channel.
        skip: Whether it stands on a shortcut, beside the layers that follow it.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    inputs: int = 0
    outputs: int = 0
    groups: int = 1
    bias: bool = True
    norm: bool = False
    skip: bool = False


class Architecture(NamedTuple):
    """A network: convolutions and pooling, then dense layers.

    Attributes:
        layers: Convolutions and pooling in order, shortcuts before the block that they skip.
        head: Dense layers, as pairs of inputs and outputs, each with a bias.
    """

    layers: tuple[Layer, ...]
    head: tuple[tuple[int, int], ...]

    @property
    def path(self) -> tuple[Layer, ...]:
        """The layers without the shortcuts, which see less."""
        return tuple(layer for layer in self.layers if not layer.skip)


def vgg(depth: int) -> Architecture:
    """VGG with 11, 13, 16 or 19 weight layers, for images of 224 pixels and 1000 classes.

    Args:
        depth: 11, 13, 16 or 19.

    Returns:
        The network; its path ends with the fifth pooling.

    Raises:
        ValueError: If there is no VGG of that depth.

    Example:
        >>> from dltheory.theory import architectures, convolution
        >>> convolution.receptive_field(architectures.vgg(16).path)
        ReceptiveField(size=212, stride=32, padding=90)

    Source:
        Simonyan and Zisserman (2015), table 1.
    """
    repeats = {11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
    _check_depth(depth, repeats)
    layers, inputs = [], 3
    for width, count in zip((64, 128, 256, 512, 512), repeats[depth], strict=True):
        for _ in range(count):
            layers.append(Layer(3, padding=1, inputs=inputs, outputs=width))
            inputs = width
        layers.append(Layer(2, 2))
    return Architecture(tuple(layers), ((512 * 49, 4096), (4096, 4096), (4096, 1000)))


def resnet(depth: int, version: str = "v1") -> Architecture:
    """ResNet with 18, 34, 50, 101 or 152 weight layers, for images of 224 pixels and 1000 classes.

    Args:
        depth: 18, 34, 50, 101 or 152; from 50 on with bottlenecks.
        version: Where a bottleneck takes its stride: in the first 1x1 convolution (`"v1"`, as
            published) or in the 3x3 one (`"v1.5"`, as most code does it). The receptive field of
            ResNet-50 is 483 in the first and 427 in the second.

    Returns:
        The network; its path ends before the global pooling.

    Raises:
        ValueError: If there is no ResNet of that depth or version.

    Source:
        He, Zhang, Ren and Sun (2016), Deep residual learning for image recognition, table 1.
    """
    blocks = {
        18: (2, 2, 2, 2),
        34: (3, 4, 6, 3),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }
    _check_depth(depth, blocks)
    check_choice("version", version, ("v1", "v1.5"))
    layers, inputs = [_conv(7, 3, 64, 2), Layer(3, 2, padding=1)], 64
    for stage, count in enumerate(blocks[depth]):
        width = 64 * 2**stage
        outputs = width if depth < 50 else 4 * width
        for block in range(count):
            stride = 2 if block == 0 and stage > 0 else 1
            if inputs != outputs or stride > 1:
                layers.append(_conv(1, inputs, outputs, stride)._replace(skip=True))
            if depth < 50:
                layers += [_conv(3, inputs, width, stride), _conv(3, width, width)]
            else:
                first, second = (stride, 1) if version == "v1" else (1, stride)
                layers += [
                    _conv(1, inputs, width, first),
                    _conv(3, width, width, second),
                    _conv(1, width, outputs),
                ]
            inputs = outputs
    return Architecture(tuple(layers), ((inputs, 1000),))


def alexnet(towers: int = 1) -> Architecture:
    """AlexNet, for 1000 classes.

    Args:
        towers: 2 for the published network, half of whose layers come in two groups; 1 for the
            later one without groups and with fewer channels.

    Returns:
        The network; its path ends with the last pooling.

    Raises:
        ValueError: If `towers` is neither 1 nor 2.

    Source:
        Krizhevsky, Sutskever and Hinton (2012); Krizhevsky (2014), One weird trick.
    """
    if towers not in (1, 2):
        raise ValueError(f"towers is {towers}; want 1 or 2")
    a, b, c, d = (64, 192, 384, 256) if towers == 1 else (96, 256, 384, 384)
    pool = Layer(3, 2)
    layers = (
        Layer(11, 4, padding=2, inputs=3, outputs=a),
        pool,
        Layer(5, padding=2, inputs=a, outputs=b, groups=towers),
        pool,
        Layer(3, padding=1, inputs=b, outputs=c),
        Layer(3, padding=1, inputs=c, outputs=d, groups=towers),
        Layer(3, padding=1, inputs=d, outputs=256, groups=towers),
        pool,
    )
    return Architecture(layers, ((256 * 36, 4096), (4096, 4096), (4096, 1000)))


def mobilenet() -> Architecture:
    """MobileNet v1 of full width, for images of 224 pixels and 1000 classes.

    Returns:
        The network; its path ends before the global pooling.

    Source:
        Howard et al. (2017), MobileNets, table 1.
    """
    widths = (64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)
    layers, inputs = [_conv(3, 3, 32, 2)], 32
    for number, width in enumerate(widths):
        stride = 2 if number in (1, 3, 5, 11) else 1
        layers += [_conv(3, inputs, inputs, stride, groups=inputs), _conv(1, inputs, width)]
        inputs = width
    return Architecture(tuple(layers), ((inputs, 1000),))


def parameter_count(network: Architecture) -> int:
    r"""Number of weights, biases, scales and shifts.

    .. math:: \sum_l k_l^2 \frac{c_{l-1}}{g_l} c_l + c_l\,[\text{bias}] + 2 c_l\,[\text{norm}]

    Args:
        network: The network.

    Returns:
        The number of parameters that are trained.

    Example:
        >>> from dltheory.theory import architectures
        >>> architectures.parameter_count(architectures.resnet(50))
        25557032
    """
    convolutions = sum(
        _weights(one) + one.outputs * (one.bias + 2 * one.norm) for one in network.layers
    )
    return convolutions + sum((inputs + 1) * outputs for inputs, outputs in network.head)


def multiply_adds(network: Architecture, size: int) -> int:
    """Multiplications of one image's pass through the convolutions and the dense layers.

    Args:
        network: The network.
        size: Pixels along a side of the image.

    Returns:
        The number of multiply-accumulates; biases, normalisation and pooling not counted.

    Raises:
        ValueError: If the image is too small for a layer.
    """
    total = sum(inputs * outputs for inputs, outputs in network.head)
    for one in network.layers:
        after = convolution.output_size(size, one)
        total += _weights(one) * after**2
        size = size if one.skip else after
    return total


def _conv(kernel: int, inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> Layer:
    """A convolution without bias, normalised, that keeps the image's size at a stride of one."""
    return Layer(kernel, stride, 1, kernel // 2, inputs, outputs, groups, False, True)


def _weights(layer: Layer) -> int:
    return layer.kernel**2 * layer.inputs * layer.outputs // layer.groups


def _check_depth(depth: int, known) -> None:
    check_count("depth", depth)
    if depth not in known:
        raise ValueError(f"depth is {depth}; want one of {', '.join(map(str, known))}")
