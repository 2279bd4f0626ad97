"""VGG, ResNet, AlexNet and MobileNet in Flax, of any width: known networks to hold theory against.

Made to be built abstractly: `jax.eval_shape` of `init` has the shapes of all parameters, of
hundreds of megabytes, without drawing one, and whatever reads the traced program reads these.
Images are `(N, H, W, channels)`. What the convolutions leave is the site `features`.
"""

import flax.linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name


class VGG(nn.Module):
    """VGG: 3x3 convolutions between five poolings, and three dense layers.

    Attributes:
        depth: Number of weight layers, 11, 13, 16 or 19.
        outputs: Number of classes.
        width: What the numbers of hidden channels and units are multiplied by.

    Raises:
        ValueError: If there is no VGG of that depth, or a size is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from dltheory.networks import image_models
        >>> x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        >>> params = jax.eval_shape(image_models.VGG(16).init, jax.random.key(0), x)
        >>> sum(leaf.size for leaf in jax.tree.leaves(params))
        138357544

    Source:
        Simonyan and Zisserman (2015), Very deep convolutional networks for large-scale image
        recognition, table 1.
    """

    depth: int = 16
    outputs: int = 1000
    width: float = 1.0

    def __post_init__(self):
        _check(self, _VGG)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply the network to images; returns `(N, outputs)`."""
        for channels, count in zip((64, 128, 256, 512, 512), _VGG[self.depth], strict=True):
            for _ in range(count):
                x = nn.relu(_conv(_scaled(channels, self.width), 3, x, use_bias=True)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        return _head(checkpoint_name(x, "features"), self.outputs, self.width)


class ResNet(nn.Module):
    r"""ResNet: blocks of convolutions, normalised, with a shortcut past each.

    .. math:: y = \phi\bigl(x + N(W_2 * \phi(N(W_1 * x)))\bigr)

    and from 50 layers on three convolutions, of 1x1, 3x3 and 1x1; where a block changes the shape,
    its shortcut is a normalised 1x1 convolution.

    Attributes:
        depth: Number of weight layers, 18, 34, 50, 101 or 152.
        outputs: Number of classes.
        width: What the numbers of hidden channels are multiplied by.
        version: Where a block of three takes its stride: in the first convolution (`"v1"`, as
            published) or in the second (`"v1.5"`, as most code does it).

    Raises:
        ValueError: If there is no ResNet of that depth or version, or a size is not positive.

    Source:
        He, Zhang, Ren and Sun (2016), Deep residual learning for image recognition, table 1.
    """

    depth: int = 50
    outputs: int = 1000
    width: float = 1.0
    version: str = "v1"

    def __post_init__(self):
        _check(self, _RESNET)
        if self.version not in ("v1", "v1.5"):
            raise ValueError(f"version is {self.version!r}; want 'v1' or 'v1.5'")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the network to images; returns `(N, outputs)`.

        In training the variables hold `batch_stats`, which are to be `mutable`.
        """
        x = nn.relu(_norm(_conv(_scaled(64, self.width), 7, x, 2)(x), train))
        x = nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])  # pyright: ignore[reportArgumentType]
        for stage, count in enumerate(_RESNET[self.depth]):
            channels = _scaled(64 * 2**stage, self.width)
            for block in range(count):
                stride = 2 if block == 0 and stage > 0 else 1
                if self.depth < 50:
                    layers = [(channels, 3, stride), (channels, 3, 1)]
                else:
                    first, second = (stride, 1) if self.version == "v1" else (1, stride)
                    layers = [(channels, 1, first), (channels, 3, second), (4 * channels, 1, 1)]
                x = _residual(x, layers, stride, train)
        x = checkpoint_name(x, "features").mean((1, 2))
        return nn.Dense(self.outputs, param_dtype=x.dtype)(x)


class AlexNet(nn.Module):
    """AlexNet in one tower, the later one without groups and with fewer channels ("v2").

    Attributes:
        outputs: Number of classes.
        width: What the numbers of hidden channels and units are multiplied by.

    Raises:
        ValueError: If a size is not positive.

    Source:
        Krizhevsky (2014), One weird trick for parallelizing convolutional neural networks.
    """

    outputs: int = 1000
    width: float = 1.0

    def __post_init__(self):
        _check(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Apply the network to images; returns `(N, outputs)`."""
        layers = ((64, 11), (192, 5), (384, 3), (256, 3), (256, 3))
        for number, (channels, kernel) in enumerate(layers):
            stride, padding = (4, 2) if number == 0 else (1, None)
            conv = _conv(_scaled(channels, self.width), kernel, x, stride, padding, use_bias=True)
            x = nn.relu(conv(x))
            if number in (0, 1, 4):
                x = nn.max_pool(x, (3, 3), (2, 2))
        return _head(checkpoint_name(x, "features"), self.outputs, self.width)


class MobileNet(nn.Module):
    """MobileNet v1: 3x3 convolutions within each channel, and 1x1 ones between channels.

    Attributes:
        outputs: Number of classes.
        width: What the numbers of hidden channels are multiplied by, the paper's alpha.

    Raises:
        ValueError: If a size is not positive.

    Source:
        Howard et al. (2017), MobileNets, table 1.
    """

    outputs: int = 1000
    width: float = 1.0

    def __post_init__(self):
        _check(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Apply the network to images; returns `(N, outputs)`.

        In training the variables hold `batch_stats`, which are to be `mutable`.
        """
        x = nn.relu(_norm(_conv(_scaled(32, self.width), 3, x, 2)(x), train))
        for number, channels in enumerate((64, 128, 128, 256, 256, *(512,) * 6, 1024, 1024)):
            stride, inputs = (2 if number in (1, 3, 5, 11) else 1), x.shape[-1]
            depthwise = _conv(inputs, 3, x, stride, feature_group_count=inputs)
            x = nn.relu(_norm(depthwise(x), train))
            x = nn.relu(_norm(_conv(_scaled(channels, self.width), 1, x)(x), train))
        x = checkpoint_name(x, "features").mean((1, 2))
        return nn.Dense(self.outputs, param_dtype=x.dtype)(x)


_VGG = {11: (1, 1, 2, 2, 2), 13: (2,) * 5, 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_RESNET = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


def _residual(x, layers, stride, train):
    """A block and its shortcut; `layers` are channels, kernel and stride."""
    h = x
    for number, (channels, kernel, step) in enumerate(layers):
        h = h if number == 0 else nn.relu(h)
        h = _norm(_conv(channels, kernel, h, step)(h), train)
    if h.shape != x.shape:
        x = _norm(_conv(h.shape[-1], 1, x, stride)(x), train)
    return nn.relu(x + h)


def _conv(channels, kernel, x, stride=1, padding=None, *, use_bias=False, **options):
    """As many zeros before as behind: half the kernel, unless another number is given."""
    around = kernel // 2 if padding is None else padding
    return nn.Conv(
        channels,
        (kernel, kernel),
        (stride, stride),
        [(around, around)] * 2,
        use_bias=use_bias,
        param_dtype=x.dtype,
        **options,
    )


def _norm(x, train):
    # The last option keeps float64 from being promoted with float32, which strict promotion
    # refuses.
    norm = nn.BatchNorm(not train, param_dtype=x.dtype, force_float32_reductions=False)
    return norm(x)


def _head(x, outputs, width):
    """The three dense layers of VGG and AlexNet."""
    x = x.reshape(x.shape[0], -1)
    for _ in range(2):
        x = nn.relu(nn.Dense(_scaled(4096, width), param_dtype=x.dtype)(x))
    return nn.Dense(outputs, param_dtype=x.dtype)(x)


def _scaled(size, width):
    return max(1, round(size * width))


def _check(model, depths=None) -> None:
    if depths is not None and model.depth not in depths:
        raise ValueError(f"depth is {model.depth}; want one of {', '.join(map(str, depths))}")
    if model.outputs < 1:
        raise ValueError(f"outputs is {model.outputs}; want a positive integer")
    if not model.width > 0:
        raise ValueError(f"width is {model.width}; want a positive number")
