r"""What brings a sick network back, with the predicted effect, measured anew where it can be.

Every remedy but a change of the program is a change of parameters, inputs or loss, so it can be
tried on the unmodified model:

* *initialisation*: kernels and biases drawn anew on the edge of chaos of the activation
  (`theory.mean_field.edge_of_chaos`): :math:`\chi_1 = 1` at every layer;
* *centring*: for an activation with :math:`\phi(0) \ne 0`, such as sigmoid, the edge of chaos of
  :math:`\phi - \phi(0)`, which is a plain bias of :math:`-\phi(0) \sum_i W_{ij}`;
* *skip scaling*: branches divided by :math:`\sqrt L`, so that
  :math:`\prod_l (1 + (\chi_l - 1) / L) \le e^{\bar\chi - 1}` at any depth;
* *linear normalisation*: the shift after a batch normalisation raised by two standard deviations,
  where ReLU and its kin are nearly linear: growth
  :math:`\mathbb{E}\,\phi'(z + 2)^2 / \operatorname{Var} \phi(z + 2)` a layer;
* *input scaling*: inputs divided to give the first layer the length of the edge of chaos;
* *loss scaling*: by a power of two that lifts gradients into the range of half precision.

Sources: Schoenholz et al. (2017); Yang and Schoenholz (2017); Yang et al. (2019), A mean field
theory of batch normalization; Micikevicius et al. (2018), Mixed precision training.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dltheory.experiment import health
from dltheory.experiment.anatomy import Model
from dltheory.experiment.examination import Readings, read
from dltheory.experiment.expectation import Expectation, critical, expect, flat_share
from dltheory.experiment.health import Fault, Piece
from dltheory.networks.activations import Activation
from dltheory.networks.initializers import Scheme, gaussian, normal, orthogonal
from dltheory.networks.reinitialization import reinitialize
from dltheory.numerics import gaussian as averaging

_BIASES = (0.0, 0.05, 0.2, 0.6)  # tried in this order, after the model's own
_SHIFT = 2.0


class Remedy(NamedTuple):
    """A change that heals, and how well.

    Attributes:
        kind: "initialisation", "centring", "skip scaling", "linear normalisation",
            "input scaling", "loss scaling" or "program".
        text: What to do, in plain words.
        quantity: What `before`, `predicted` and `measured` are.
        before: The quantity as it is.
        predicted: What theory says it becomes.
        measured: What it became when it was tried; NaN if it cannot be.
        works: Whether the fault was gone when it was tried; None if it cannot be.
        params: Parameters with the remedy applied, or None.
        input_scale: Factor of the inputs.
        loss_scale: Factor of the loss.
        clip: Where gradients explode: the norm of those of all kernels when it was tried, a
            threshold at which to clip them until then; else NaN.
    """

    kind: str
    text: str
    quantity: str
    before: float
    predicted: float
    measured: float
    works: bool | None
    params: Any
    input_scale: float
    loss_scale: float
    clip: float = math.nan


def prescribe(
    model: Model,
    params: Any,
    readings: Readings,
    theory: Expectation,
    fault: Fault,
    *,
    key: Array,
    loss_scale: float = 1.0,
) -> Remedy:
    """The remedy for a fault, tried on the model.

    Args:
        model: Result of `anatomy.model`.
        params: The parameters.
        readings: Result of `examination.read`.
        theory: Result of `expectation.expect`.
        fault: One of `health.find`.
        key: Key of new parameters.
        loss_scale: For a model in half precision: what fills its range.

    Returns:
        The `Remedy`.
    """
    if fault.kind == "underflow":
        return _scale_loss(model, params, fault, loss_scale)
    if fault.kind == "frozen" and readings.weight_var[fault.row] > 0:
        text = f"take {fault.site} out of stop_gradient, or out of the frozen set of parameters"
        return Remedy("program", text, "gradient", 0.0, math.nan, math.nan, None, None, 1.0, 1.0)
    parts = health.pieces(model, readings, theory)
    if fault.kind == "saturated" and fault.row == _first(model):
        return _scale_input(model, params, readings, theory, fault)
    if fault.kind == "exploding":
        inside = [part for part in parts if part.stop >= fault.row]
        if any(theory.skips[part.stop] for part in inside):
            return _scale_branches(model, params, readings, theory, fault, parts)
        shifted = _shifted(model, params)
        if readings.coupled and shifted is not None:
            return _linearize(model, shifted, readings, theory, fault)
    return _redraw(model, params, readings, theory, fault, key)


def _first(model: Model) -> int:
    return next(row for row, kernel in enumerate(model.kernels) if kernel is not None)


def _tried(
    remedy: Remedy,
    model: Model,
    params: Any,
    readings: Readings,
    theory: Expectation,
    fault: Fault,
    x: Array | None,
) -> Remedy:
    """The remedy with its effect measured."""
    again = read(model, params, x=x)
    anew = expect(model, again, theory.skips)
    faults = health.find(model, again, anew)
    same = [one for one in faults if one.kind in (fault.kind, "overflow")]
    value = _quantity(model, again, anew, fault)
    before = _quantity(model, readings, theory, fault)
    remedy = remedy._replace(before=before, measured=value, works=not same)
    if fault.kind == "exploding" and not same:
        logs = again.kernel_gradient[np.isfinite(again.kernel_gradient)]
        remedy = remedy._replace(clip=float(np.exp(np.logaddexp.reduce(2 * logs) / 2)))
    return remedy


def _quantity(model: Model, readings: Readings, theory: Expectation, fault: Fault) -> float:
    if fault.kind == "dead":
        return float(readings.dead[fault.row])
    if fault.kind == "saturated":
        return float(readings.saturated[fault.row])
    name = "signal" if fault.what == "signal" else "growth"
    steps = [getattr(part, name) for part in health.pieces(model, readings, theory)]
    return float(np.sum(steps)) / 2


def _named(fault: Fault) -> str:
    if fault.kind in ("dead", "saturated"):
        return f"share of {fault.site}'s units that are {fault.kind}"
    whose = "signal" if fault.what == "signal" else "gradient"
    return f"log growth of the {whose}'s norm over the hidden layers"


def _redraw(
    model: Model, params: Any, readings: Readings, theory: Expectation, fault: Fault, key: Array
) -> Remedy:
    """Kernels and biases on the edge of chaos."""
    phi = _usual(model)
    own = float(np.nanmedian(readings.bias_var)) if fault.kind in ("exploding", "vanishing") else 0
    zero = 0.0 if phi is None else float(phi(jnp.zeros(())))
    centred = phi is not None and abs(zero) > 1e-6 and _biased(model)
    phi = _centred(phi) if phi is not None and centred else phi
    tried = [own, *_BIASES] if own < 1 else _BIASES
    points = ((b, critical(phi, round(b, 6))) for b in tried) if phi is not None else ()
    bias_var, point = next(((b, p) for b, p in points if p is not None), (0.0, None))
    name = "ReLU-like" if phi is None else phi.name
    if point is None:
        if phi is not None:
            text = f"{name} has no stable edge of chaos: use relu with weight_var = 2, bias_var = 0"
            return Remedy(
                "program", text, _named(fault), math.nan, 0.0, math.nan, None, None, 1.0, 1.0
            )
        point = (2.0, math.nan)
    weight_var, q = point
    straight = _orthonormal(model, params)
    ensemble = orthogonal if straight else gaussian
    scheme = Scheme(ensemble(weight_var), normal(bias_var))
    unknown = set(model.weights.unknown)
    new = reinitialize(
        key, model.f, params, model.x, lambda text: None if text in unknown else scheme
    )
    if centred:
        new = _recentre(model, new, zero)
    law = "orthogonal" if straight else "Gaussian"
    text = (
        f"draw {law} weights of weight_var = {weight_var:.4g} and biases of bias_var = "
        f"{bias_var:.4g}, the edge of chaos of {name}"
    )
    if centred:
        text += f", and take {zero:.3g} times the sum of its weights from each bias"
    predicted = 0.0
    if fault.kind in ("dead", "saturated"):
        predicted = _flat(model, fault.row, q)
    kind = "centring" if centred else "initialisation"
    remedy = Remedy(kind, text, _named(fault), math.nan, predicted, math.nan, None, new, 1.0, 1.0)
    return _tried(remedy, model, new, readings, theory, fault, None)


def _scale_branches(
    model: Model,
    params: Any,
    readings: Readings,
    theory: Expectation,
    fault: Fault,
    parts: list[Piece],
) -> Remedy:
    blocks = [part for part in parts if theory.skips[part.stop]]
    depth = len(blocks)
    leaves, structure = jax.tree.flatten(params)
    factor = depth**-0.5
    ends = {model.texts[part.kernels[-1]] for part in blocks}
    changed = {k.leaf for k in model.weights.kernels if k.layer in ends}
    changed |= {leaf for leaf, text in model.weights.biases.items() if text in ends}
    for leaf in changed:
        leaves[leaf] = leaves[leaf] * jnp.asarray(factor, leaves[leaf].dtype)
    new = jax.tree.unflatten(structure, leaves)
    name = "signal" if fault.what == "signal" else "growth"
    steps = [
        math.log1p(math.expm1(min(getattr(part, name), 300)) / depth)
        if theory.skips[part.stop]
        else getattr(part, name)
        for part in parts
    ]
    text = f"scale the {depth} branches by 1 / sqrt({depth}) = {factor:.3g}"
    remedy = Remedy(
        "skip scaling", text, _named(fault), math.nan, sum(steps) / 2, math.nan, None, new, 1.0, 1.0
    )
    return _tried(remedy, model, new, readings, theory, fault, None)


def _linearize(
    model: Model, new: Any, readings: Readings, theory: Expectation, fault: Fault
) -> Remedy:
    phi = _usual(model)
    count = len(health.pieces(model, readings, theory))
    step = math.nan
    if phi is not None:
        moved = lambda power, of: float(
            averaging.expectation(
                lambda z: of(z + _SHIFT) ** power, 1.0, kinks=[k - _SHIFT for k in phi.kinks]
            )
        )
        slope = moved(2, jax.grad(phi.fn))
        step = math.log(slope / (moved(2, phi.fn) - moved(1, phi.fn) ** 2))
    text = (
        f"raise the shift after each normalisation by {_SHIFT:g} standard deviations, where the "
        "activation is nearly linear, or add skip connections"
    )
    remedy = Remedy(
        "linear normalisation",
        text,
        _named(fault),
        math.nan,
        count * step / 2,
        math.nan,
        None,
        new,
        1.0,
        1.0,
    )
    return _tried(remedy, model, new, readings, theory, fault, None)


def _scale_input(
    model: Model, params: Any, readings: Readings, theory: Expectation, fault: Fault
) -> Remedy:
    phi = _usual(model)
    point = None if phi is None else critical(phi, 0.05)
    q = point[1] if point is not None and point[1] > 0 else 1.0
    scale = math.exp((math.log(q) - readings.log_q[fault.row]) / 2)
    text = f"multiply the inputs by {scale:.3g}, which gives {fault.site} a length of {q:.3g}"
    remedy = Remedy(
        "input scaling",
        text,
        _named(fault),
        math.nan,
        _flat(model, fault.row, q),
        math.nan,
        None,
        params,
        scale,
        1.0,
    )
    scaled = model.x * jnp.asarray(scale, model.x.dtype)
    return _tried(remedy, model, params, readings, theory, fault, scaled)


def _scale_loss(model: Model, params: Any, fault: Fault, scale: float) -> Remedy:
    again = read(model, params, scale=scale)
    far = read(model, params, scale=scale / 4)
    half = model.half
    lost = float(np.max(np.where(half, far.lost - again.lost, 0)))
    text = f"multiply the loss by {scale:g} and divide the gradients of the parameters by it"
    return Remedy(
        "loss scaling",
        text,
        f"share of {fault.site}'s gradients lost",
        fault.value,
        0.0,
        lost,
        lost <= health.LOST,
        params,
        1.0,
        scale,
    )


def _flat(model: Model, row: int, q: float) -> float:
    """Share of flat units at a length."""
    after = next((k for k in range(row + 1, len(model.sites)) if model.tables[k] is not None), None)
    return (
        math.nan
        if after is None
        else flat_share(model, after, math.log(max(q, 1e-12)) if math.isfinite(q) else 0.0)
    )


def _usual(model: Model) -> Activation | None:
    """The activation that most layers have before them."""
    feeds = [phi for phi in model.feeds if phi is not None]
    return max(feeds, key=feeds.count) if feeds else None


def _biased(model: Model) -> bool:
    """Whether every layer behind an activation has a bias."""
    texts = {text for text, phi in zip(model.texts, model.feeds, strict=True) if phi is not None}
    return texts <= set(model.weights.biases.values())


@functools.cache
def _centred(phi: Activation) -> Activation:
    fn = lambda h: phi.fn(h) - phi.fn(jnp.zeros_like(h))
    return Activation(f"centred {phi.name}", fn, phi.kinks, phi.smoothness)


def _recentre(model: Model, params: Any, zero: float) -> Any:
    """Biases less what the activation's value at zero adds to each unit."""
    leaves, structure = jax.tree.flatten(params)
    fed = {text for text, phi in zip(model.texts, model.feeds, strict=True) if phi is not None}
    for kernel in model.weights.kernels:
        if kernel.layer not in fed:
            continue
        weights = leaves[kernel.leaf]
        total = jnp.sum(weights, axis=(*kernel.spatial, *kernel.inputs))
        for leaf, text in model.weights.biases.items():
            if text == kernel.layer and leaves[leaf].size == total.size:
                shift = total.reshape(leaves[leaf].shape) * jnp.asarray(zero, weights.dtype)
                leaves[leaf] = leaves[leaf] - shift.astype(leaves[leaf].dtype)
    return jax.tree.unflatten(structure, leaves)


def _orthonormal(model: Model, params: Any) -> bool:
    """Whether the largest square kernel has orthogonal columns of one length."""
    leaves = jax.tree.leaves(params)
    for kernel in model.weights.kernels:
        if kernel.spatial or len(kernel.inputs) != 1 or len(kernel.outputs) != 1:
            continue
        w = np.moveaxis(np.asarray(leaves[kernel.leaf], float), kernel.inputs, (-1,))
        w = w.reshape(-1, *w.shape[-2:])[0]
        if w.shape[0] == w.shape[1] > 1:
            gram = w @ w.T / max(np.mean(np.sum(w**2, 1)), 1e-300)
            return bool(np.abs(gram - np.eye(len(w))).max() < 1e-2)
    return False


def _shifted(model: Model, params: Any) -> Any:
    """Parameters with the shifts of normalisations raised, or None where there are none."""
    leaves, structure = jax.tree.flatten(params)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    known = {kernel.leaf for kernel in model.weights.kernels} | set(model.weights.biases)
    found = False
    for number, path in enumerate(paths):
        name = str(getattr(path[-1], "key", getattr(path[-1], "name", "")))
        if number not in known and name in ("bias", "beta", "shift", "offset"):
            leaves[number] = leaves[number] + jnp.asarray(_SHIFT, leaves[number].dtype)
            found = True
    return jax.tree.unflatten(structure, leaves) if found else None
