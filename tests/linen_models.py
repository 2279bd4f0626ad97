"""Linen models, unmodified; the values come from Flax's own interceptor."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dltheory.networks import functional, models
from tests.case import at, batch, case, settled

CASES = []


def _captured(model, params, x, *, rngs=None, **options):
    """What each call of each submodule returned, by `path`, `path#1`, ... in run order."""
    values = {}

    def record(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(y, jax.Array):
            path = "/".join(context.module.path)
            n = sum(key.split("#")[0] == path for key in values)
            values[f"{path}#{n}" if n else path] = y
        return y

    mutable = [name for name in params if name != "params"]
    with nn.intercept_methods(record):
        model.apply(params, x, rngs=rngs, mutable=mutable, **options)
    return values


def _linen(
    name,
    model,
    shape,
    sites,
    cuts=None,
    *,
    twin=None,
    renamed=None,
    derived=None,
    rngs=None,
    options=None,
    **flags,
):
    """A case of a Linen model.

    `twin` is the same model without the transformation that an interceptor's values leak from;
    `renamed` maps a site to the module that returns it, where that is called otherwise; `derived`
    gives the values that no module returns from those of all modules.
    """
    options = options or {}

    def build(dtype=jnp.float64):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(7)}
        variables = model.init(keys, batch(jnp.float32, *shape), **options)
        f, params = functional.pure(model, settled(variables, dtype), rngs=rngs, **options)
        return f, params, batch(dtype, *shape)

    def expected(params, x):
        values = _captured(twin or model, params, x, rngs=rngs, **options)
        extra = derived(values, params, x) if derived else {}
        values |= {site: values[module] for site, module in (renamed or {}).items()} | extra
        return {site: values[site] for site in sites.split()}

    CASES.append(case(name, build, expected, sites, cuts, **flags))


def _layer_norm_module(h):
    # By default Flax promotes float64 with float32 on the way, which strict promotion refuses.
    return nn.LayerNorm(param_dtype=h.dtype, force_float32_reductions=False)


def _layer_norm(h):
    return _layer_norm_module(h)(h)


class _Mlp(nn.Module):
    dense: type[nn.Module] = nn.Dense

    @nn.compact
    def __call__(self, x):
        h = jnp.tanh(self.dense(5)(x))
        h = jnp.tanh(self.dense(6)(h))
        return self.dense(2)(h)


class _Block(nn.Module):
    """A pre-normalised residual block of two layers."""

    @nn.compact
    def __call__(self, h):
        u = nn.Dense(7)(_layer_norm(h))
        return h + nn.Dense(h.shape[-1])(nn.gelu(u))


class _ScalarBlock(nn.Module):
    """A residual block with one learnt scalar that belongs to the block itself."""

    @nn.compact
    def __call__(self, h):
        alpha = self.param("alpha", nn.initializers.ones, (), h.dtype)
        return h + alpha * jnp.tanh(nn.Dense(h.shape[-1])(h))


class _Residual(nn.Module):
    block: type[nn.Module]

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(5, name="embed")(x)
        for i in range(2):
            h = self.block(name=f"Block_{i}")(h)
        return nn.Dense(2, name="head")(jnp.tanh(h))


class _Cnn(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.max_pool(jnp.tanh(nn.Conv(3, (3, 3))(x)), (2, 2), (2, 2))
        h = jnp.tanh(nn.Conv(4, (2, 2), strides=2, padding="VALID")(h))
        return nn.Dense(2)(h.reshape(h.shape[0], -1))


class _Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.MultiHeadDotProductAttention(num_heads=2, name="attend")(x)
        return nn.Dense(3)(h)


class _Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        attend = nn.MultiHeadDotProductAttention(num_heads=2, name="attend")
        h = x + attend(_layer_norm(x))
        return h + nn.Dense(6)(jnp.tanh(nn.Dense(7)(_layer_norm(h))))


class _Shared(nn.Module):
    @nn.compact
    def __call__(self, x):
        shared = nn.Dense(4, name="shared")
        for _ in range(3):
            x = jnp.tanh(shared(x))
        return nn.Dense(2)(x)


class _Dropout(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        h = jnp.tanh(nn.Dense(5)(x))
        h = nn.Dropout(0.4, deterministic=not train)(h)
        return nn.Dense(2)(h)


class _BatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        h = nn.Dense(5)(x)
        norm = nn.BatchNorm(
            use_running_average=not train, param_dtype=h.dtype, force_float32_reductions=False
        )
        h = norm(h)
        return nn.Dense(2)(jnp.tanh(h))


_linen("linen_mlp", _Mlp(), (4,), "Dense_0 Dense_1 Dense_2")
# The module of a bare layer's leaves is the root, which has no name: the leaf gives it.
_linen("linen_bare_dense", nn.Dense(3), (4,), "kernel", renamed={"kernel": ""})
_linen(
    "linen_residual",
    _Residual(_Block),
    (4,),
    "embed Block_0/LayerNorm_0 Block_0/Dense_0 Block_0/Dense_1 Block_0/join "
    "Block_1/LayerNorm_0 Block_1/Dense_0 Block_1/Dense_1 Block_1/join head",
    "embed Block_0/join Block_1/join head",
    renamed={"Block_0/join": "Block_0", "Block_1/join": "Block_1"},
)
_linen("linen_cnn", _Cnn(), (6, 6, 2), "Conv_0 Conv_1 Dense_0")
# nn.remat renames the class, and with it the parameters.
_linen(
    "linen_remat",
    _Mlp(nn.remat(nn.Dense)),
    (4,),
    "CheckpointDense_0 CheckpointDense_1 CheckpointDense_2",
    twin=_Mlp(type("CheckpointDense", (nn.Dense,), {})),
)
_linen("linen_shared", _Shared(), (4,), "shared shared#1 shared#2 Dense_0")
_linen("linen_dropout_eval", _Dropout(), (4,), "Dense_0 Dense_1", options={"train": False})
_linen(
    "linen_dropout_train",
    _Dropout(),
    (4,),
    "Dense_0 Dense_1",
    rngs={"dropout": jax.random.key(3)},
    options={"train": True},
)
_linen(
    "linen_batch_norm_eval",
    _BatchNorm(),
    (4,),
    "Dense_0 BatchNorm_0 Dense_1",
    options={"train": False},
)
_linen(
    "linen_batch_norm_train",
    _BatchNorm(),
    (4,),
    "Dense_0 BatchNorm_0 Dense_1",
    options={"train": True},
    couples_examples=True,
)
_linen(
    "linen_block_scalar",
    _Residual(_ScalarBlock),
    (4,),
    "embed Block_0/Dense_0 Block_0/alpha Block_0/join "
    "Block_1/Dense_0 Block_1/alpha Block_1/join head",
    "embed Block_0/join Block_1/join head",
    renamed={"Block_0/join": "Block_0", "Block_1/join": "Block_1"},
    # The scaled branch is no module's output.
    derived=lambda v, params, _: {
        f"Block_{i}/alpha": params["params"][f"Block_{i}"]["alpha"]
        * jnp.tanh(v[f"Block_{i}/Dense_0"])
        for i in range(2)
    },
)
# The heads meet in the weighted values, which no module of Flax returns: written out here, in the
# layout (batch, head, feature, query) in which the contraction leaves them.
_linen(
    "linen_attention",
    _Attention(),
    (5, 6),
    "attend/query attend/key attend/value attend/join attend/out Dense_0",
    "attend/join attend/out Dense_0",
    derived=lambda v, *_: {
        "attend/join": nn.dot_product_attention(
            v["attend/query"], v["attend/key"], v["attend/value"]
        ).transpose(0, 2, 3, 1)
    },
)
# Inside a branch that a skip passes by, values where sub-branches meet are no cuts, hence no joins.
# Flax names by construction, sites come in run order: the nested Dense_1 runs before Dense_0.
_linen(
    "linen_transformer",
    _Transformer(),
    (5, 6),
    "LayerNorm_0 attend/query attend/key attend/value attend/out join "
    "LayerNorm_1 Dense_1 Dense_0 join#1",
    "join join#1",
    derived=lambda v, _, x: {"join": x + v["attend"], "join#1": v[""]},
)


# -------------------------------------------------------------------------------- stacks by scan


def _scanned(layer, length, name, **options):
    """Apply `length` copies of a Linen module by `nn.scan`, their parameters stacked."""
    scan = nn.scan(
        lambda module, h, _: (module(h), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=length,
        **options,
    )
    return lambda h: scan(layer(name=name), h, None)[0]


class _TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, h):
        u = jnp.tanh(nn.Dense(6, name="fc1")(h))
        return jnp.tanh(nn.Dense(h.shape[-1], name="fc2")(u))


class _Stack(nn.Module):
    layer: type[nn.Module]
    length: int

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(5, name="embed")(x)
        h = _scanned(self.layer, self.length, "blocks")(h)
        return nn.Dense(2, name="head")(h)


def _linen_stack(name, layer, length, body, cuts, *, plain=None, joined=False):
    """A stack scanned over `layer`; each index is replayed by the layer (or its `plain` twin)."""
    model = _Stack(layer, length)

    def index_major(names):
        middle = [f"blocks/{site}[{i}]" for i in range(length) for site in names.split()]
        return " ".join(["embed", *middle, "head"])

    def build(dtype=jnp.float64):
        variables = model.init(jax.random.key(0), batch(jnp.float32, 4))
        return *functional.pure(model, settled(variables, dtype)), batch(dtype, 4)

    twin = plain or layer

    def expected(params, x):
        params = params["params"]
        h = nn.Dense(5).apply({"params": params["embed"]}, x)
        values = {"embed": h}
        for i in range(length):
            inner = _captured(twin(), {"params": at(params["blocks"], i)}, h)
            h = inner.pop("")
            if joined:
                inner["join"] = h
            values |= {f"blocks/{key}[{i}]": value for key, value in inner.items()}
        return values | {"head": nn.Dense(2).apply({"params": params["head"]}, h)}

    CASES.append(case(name, build, expected, index_major(body), index_major(cuts), scanned=True))


_linen_stack("linen_scan", _TwoLayers, 4, "fc1 fc2", "fc1 fc2")
_linen_stack("linen_scan_remat", nn.remat(_TwoLayers), 3, "fc1 fc2", "fc1 fc2", plain=_TwoLayers)
_linen_stack(
    "linen_scan_residual", _Block, 3, "LayerNorm_0 Dense_0 Dense_1 join", "join", joined=True
)


def _own(name, model, sites, cuts, expected):
    """A case of a model of `dltheory.networks.models`, its layers replayed one by one."""

    def build(dtype=jnp.float64):
        x = batch(dtype, 4)
        return *functional.pure(model, settled(model.init(jax.random.key(0), x), dtype)), x

    CASES.append(case(name, build, expected, sites, cuts, scanned=True))


def _dense(layer, h):
    return nn.Dense(layer["kernel"].shape[-1]).apply({"params": layer}, h)


def _own_mlp(params, x):
    params = params["params"]
    h = _dense(params["first"], x)
    values = {"first": h}
    for i in range(2):
        h = _dense(at(params["hidden"], i), jnp.tanh(h))
        values[f"hidden[{i}]"] = h
    return values | {"last": _dense(params["last"], jnp.tanh(h))}


def _own_residual(params, x):
    params = params["params"]
    norm = lambda layer, h: _layer_norm_module(h).apply({"params": layer}, h)
    h = _dense(params["first"], x)
    values = {"first": h}
    for i in range(2):
        block = at(params["blocks"], i)
        values[f"blocks/norm[{i}]"] = u = norm(block["norm"], h)
        values[f"blocks/dense[{i}]"] = u = _dense(block["dense"], jnp.sin(u))
        values[f"blocks/join[{i}]"] = h = h + 0.5 * u
    values["norm"] = h = norm(params["norm"], h)
    return values | {"last": _dense(params["last"], jnp.sin(h))}


_own(
    "dltheory_mlp",
    models.MLP(5, 3, 2),
    "first hidden[0] hidden[1] last",
    None,
    _own_mlp,
)
_own(
    "dltheory_residual",
    models.ResidualMLP(5, 2, 2, activation=jnp.sin, branch=0.5, normalize=True),
    "first blocks/norm[0] blocks/dense[0] blocks/join[0] "
    "blocks/norm[1] blocks/dense[1] blocks/join[1] norm last",
    "first blocks/join[0] blocks/join[1] norm last",
    _own_residual,
)


def deep_linen_scan(depth, width, dtype=jnp.float64):
    """`(f, params, x)` of `depth` scanned Dense layers, for checks of compile time."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, h):
            return nn.Dense(width, param_dtype=h.dtype)(jnp.tanh(h))

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x):
            return _scanned(Layer, depth, "layers")(x)

    x = batch(dtype, width)
    return *functional.pure(Deep(), Deep().init(jax.random.key(0), x)), x
