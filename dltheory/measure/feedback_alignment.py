r"""Learning without the transposes: feedback alignment, and the angle to the true gradient.

.. math::
    h_l = \phi(z_l), \quad z_l = h_{l-1} W_l + b_l, \qquad
    \nabla_{W_l} \approx h_{l-1}^\top \delta_l

of a dense network whose last layer is linear. Backpropagation sends :math:`\delta` down by
:math:`W^\top`; here fixed random matrices stand in its place.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from dltheory.measure import arguments
from dltheory.measure.chain_rule import Layer, activation, dense

Loss = Callable[[Array], Array]


class Feedback(NamedTuple):
    """What feedback sends to the weights.

    Attributes:
        loss: The loss, shape `()`.
        gradients: What stands in the place of its derivatives, of the structure of the parameters.
    """

    loss: Array
    gradients: list


def feedback_gradients(
    loss: Loss, params: Sequence, feedback: Sequence, x: Array, *, phi: Any = "relu"
) -> Feedback:
    r"""Feedback alignment: a fixed matrix for each transpose.

    .. math:: \delta_{l-1} = \phi'(z_{l-1}) \odot (\delta_l B_l)

    With :math:`B_l = W_l^\top` it is backpropagation.

    Args:
        loss: `loss(y) -> scalar`, a function of the network's output alone; close over targets.
        params: For each layer a dict of `kernel`, shape `(in, out)`, and perhaps `bias`, `(out,)`.
        feedback: For each layer but the first, :math:`B_l` of shape `(out, in)`.
        x: Inputs, shape `(N, in)`.
        phi: Activation between the layers, its name, or a scalar callable.

    Returns:
        The loss and what replaces its gradients; those of the last layer are the true ones.

    Raises:
        TypeError: If a parameter is not a real float, or the loss not a real scalar.
        ValueError: If the matrices of `feedback` do not have these shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from dltheory.measure import feedback_alignment
        >>> params = [{"kernel": jnp.eye(2)}, {"kernel": jnp.ones((2, 1))}]
        >>> found = feedback_alignment.feedback_gradients(
        ...     jnp.sum, params, [jnp.array([[3.0, 4.0]])], jnp.array([[1.0, 0.5]])
        ... )
        >>> found.gradients[0]["kernel"]
        Array([[3. , 4. ],
               [1.5, 2. ]], dtype=float32)

    Source: Lillicrap, Cownden, Tweed and Akerman (2016), Random synaptic feedback weights support
    error backpropagation for deep learning.
    """
    wanted = [jnp.shape(layer["kernel"])[::-1] for layer in params[1:]]
    _check_shapes(feedback, wanted, "each layer but the first, that of its transposed kernel")
    return _send(loss, params, x, phi, lambda layer, below, _: below @ feedback[layer])


def direct_feedback_gradients(
    loss: Loss, params: Sequence, feedback: Sequence, x: Array, *, phi: Any = "relu"
) -> Feedback:
    r"""Direct feedback alignment: the error goes from the output to every layer at once.

    .. math:: \delta_l = \phi'(z_l) \odot (\delta_L B_l)

    Args:
        loss: As in `feedback_gradients`.
        params: As in `feedback_gradients`.
        feedback: For each layer but the last, :math:`B_l` of shape `(outputs, out)`, with `out` the
            width of the layer.
        x: As in `feedback_gradients`.
        phi: As in `feedback_gradients`.

    Returns:
        The loss and what replaces its gradients; those of the last layer are the true ones.

    Raises:
        TypeError, ValueError: As `feedback_gradients`.

    Source: Nøkland (2016), Direct feedback alignment provides learning in deep neural networks.
    """
    outputs = jnp.shape(params[-1]["kernel"])[1]
    wanted = [(outputs, jnp.shape(layer["kernel"])[1]) for layer in params[:-1]]
    _check_shapes(feedback, wanted, "each layer but the last: of the outputs by its width")
    return _send(loss, params, x, phi, lambda layer, _, top: top @ feedback[layer])


def gradient_angles(gradients: Sequence, others: Sequence) -> Array:
    r"""The angle between two gradients, layer by layer.

    .. math:: \angle(u, v) = 2 \arctan\frac{\|\hat u - \hat v\|}{\|\hat u + \hat v\|}

    It does not lose digits where the angle is small. An update at less than 90 degrees to the true
    gradient descends; `theory.training_dynamics.random_angle` is what chance gives.

    Args:
        gradients: A sequence with a pytree for each layer.
        others: Another of the same structure.

    Returns:
        The angles in degrees, one for each layer, shape `(layers,)`; NaN where a gradient is zero.

    Raises:
        ValueError: If the two differ in structure.
    """
    if jax.tree.structure(list(gradients)) != jax.tree.structure(list(others)):
        raise ValueError(
            f"gradients have the structure {jax.tree.structure(list(gradients))} and others "
            f"{jax.tree.structure(list(others))}; want the same"
        )

    def unit(tree: Any) -> Array:
        flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])
        # By the largest entry first, whose square may underflow.
        flat = flat / jnp.max(jnp.abs(flat))
        return flat / jnp.sqrt(jnp.sum(flat * flat))

    def angle(u: Array, v: Array) -> Array:
        apart, along = (jnp.sqrt(jnp.sum(w * w)) for w in (u - v, u + v))
        return 2 * jnp.arctan2(apart, along)

    pairs = zip(gradients, others, strict=True)
    return jnp.degrees(jnp.stack([angle(unit(a), unit(b)) for a, b in pairs]))


def _send(loss: Loss, params: Sequence, x: Array, phi: Any, send: Callable) -> Feedback:
    """Forwards by the layers of `chain_rule`, and back by `send(layer, delta above, delta)`."""
    arguments.refuse_integers("params", params)
    layer, bend = dense(), activation(phi)
    value, memories = x, []
    for index, own in enumerate(params):
        value, seen = layer.forward(own, value)
        memories.append((seen, value))
        if index < len(params) - 1:
            value = bend.forward({}, value)[0]
    total, top = jax.value_and_grad(lambda y: arguments.scalar(loss(y)))(value)
    gradients, delta = [], top
    for index in range(len(params) - 1, -1, -1):
        seen, z = memories[index]
        if index < len(params) - 1:
            delta = bend.backward({}, z, send(index, delta, top))[1]
        gradients.append(_outer(layer, params[index], seen, delta))
    return Feedback(total, gradients[::-1])


def _outer(layer: Layer, own: dict, seen: Array, delta: Array) -> dict:
    # The delta that the layer would send down by its transpose is dropped.
    return layer.backward(own, seen, delta)[0]


def _check_shapes(feedback: Sequence, wanted: Sequence, text: str) -> None:
    found = [jnp.shape(matrix) for matrix in feedback]
    if found != list(wanted):
        raise ValueError(f"feedback has the shapes {found}; want {list(wanted)}, one for {text}")
