"""Training loops against loops written out, and the laws of seeds, batches and records."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from chex import assert_trees_all_close, assert_trees_all_equal

from dltheory.networks import training
from dltheory.networks.data import Data

EXAMPLES, INPUTS, STEPS, BATCH = 10, 3, 12, 4


def f(params, x):
    return jnp.tanh(x @ params["W1"] + params["b1"][None]) @ params["W2"]


def init(key):
    shapes = {"W1": (INPUTS, 5), "b1": (5,), "W2": (5, 1)}
    keys = jax.random.split(key, 3)
    return {
        name: jax.random.normal(k, shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def loss(prediction, y):
    return jnp.mean((prediction[:, 0] - y) ** 2)


def sample():
    x = np.random.default_rng(0).normal(size=(EXAMPLES, INPUTS))
    return Data(jnp.asarray(x), jnp.asarray(np.sin(x[:, 0])))


def grad_numpy(params, x, y):
    """Loss and gradient by the chain rule, in numpy."""
    hidden = np.tanh(x @ params["W1"] + params["b1"])
    error = hidden @ params["W2"][:, 0] - y
    delta = 2 * error[:, None] / len(y)
    back = (delta @ params["W2"].T) * (1 - hidden**2)
    gradient = {"W1": x.T @ back, "b1": back.sum(0), "W2": hidden.T @ delta}
    return np.mean(error**2), gradient


def momentum(params, batches, rate=0.1, decay=0.9):
    """Gradient descent with heavy-ball momentum, written out; the parameters after each step."""
    params = {name: np.asarray(a) for name, a in params.items()}
    trace = {name: np.zeros_like(a) for name, a in params.items()}
    losses, path = [], [params]
    for x, y in batches:
        value, gradient = grad_numpy(params, x, y)
        trace = {name: decay * trace[name] + gradient[name] for name in trace}
        params = {name: params[name] - rate * trace[name] for name in params}
        losses.append(value)
        path.append(params)
    return losses, path


def process(optimizer=None, **options):
    optimizer = optax.sgd(0.1, momentum=0.9) if optimizer is None else optimizer
    return training.descent(f, init, loss, optimizer, sample(), **options)


def test_full_batch_against_a_loop_written_out():
    made = process(record=lambda params: params)
    key = jax.random.key(1)
    state, history = jax.jit(lambda key: training.run(made, key, STEPS, every=4, unroll=3))(key)
    losses, path = momentum(made.init(key).params, [tuple(map(np.asarray, sample()))] * STEPS)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    assert history.at.tolist() == [0, 4, 8, 12]
    for index, at in enumerate(history.at):
        record = jax.tree.map(lambda a, index=index: a[index], history.record)
        assert_trees_all_close(record, path[int(at)], rtol=1e-12)
    assert_trees_all_close(state.params, path[-1], rtol=1e-12)
    assert state.order is None
    assert int(state.step) == STEPS


def test_minibatches_are_epochs_of_permutations():
    """Step by step: each epoch shows distinct examples, in a new order; then the same by `run`."""
    made = process(batch=BATCH)
    key = jax.random.key(2)
    step = jax.jit(made.step)
    state, rows = made.init(key), []
    start = state.params
    for number in range(STEPS):
        state, _ = step(state)
        rows.append(np.asarray(state.order[number % (EXAMPLES // BATCH)]))
    epochs = np.reshape(rows, (-1, EXAMPLES // BATCH * BATCH))
    assert all(len(set(epoch)) == len(epoch) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    assert set(epochs.ravel()) == set(range(EXAMPLES))

    x, y = map(np.asarray, sample())
    losses, path = momentum(start, [(x[row], y[row]) for row in rows])
    done, history = jax.jit(lambda key: training.run(made, key, STEPS))(key)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-12)
    assert_trees_all_close(done.params, path[-1], rtol=1e-12)
    assert_trees_all_close(done.params, state.params, rtol=1e-12)
    assert history.record == {}


def test_seeds_side_by_side():
    made = process(batch=BATCH, record=lambda params: params["b1"])
    one = lambda key: training.run(made, key, STEPS, every=3)
    keys = jax.random.split(jax.random.key(3), 3)
    together = jax.jit(jax.vmap(one))(keys)
    alone = jax.jit(one)
    for index, key in enumerate(keys):
        state, history = alone(key)
        of_this = jax.tree.map(lambda a, index=index: a[index], together[1])
        assert_trees_all_close(of_this, history, rtol=1e-12)
        assert_trees_all_equal(together[0].order[index], state.order)
    assert not np.allclose(together[1].loss[0], together[1].loss[1])
    # The next epoch is drawn when it begins: the draw stays conditional under vmap.
    program = str(jax.make_jaxpr(jax.vmap(one))(keys))
    assert program.count("cond[") == 2


def test_a_run_goes_on_from_any_state():
    """Twelve steps are seven and five: the state is all there is."""
    made = process(batch=BATCH)
    advance = jax.jit(made.step)
    state = whole = made.init(jax.random.key(4))
    last = again = None
    for _ in range(STEPS):
        whole, last = advance(whole)
    for _ in range(7):
        state, _ = advance(state)
    leaves, tree = jax.tree.flatten(state._replace(key=jax.random.key_data(state.key)))
    state = jax.tree.unflatten(tree, [np.asarray(leaf) for leaf in leaves])
    state = state._replace(key=jax.random.wrap_key_data(state.key))
    for _ in range(5):
        state, again = advance(state)
    assert_trees_all_equal(whole.params, state.params)
    assert last == again


def test_a_run_is_differentiable_in_its_data():
    def final(scale):
        data = sample()._replace(y=scale * sample().y)
        made = training.descent(f, init, loss, optax.sgd(0.1), data)
        return training.run(made, jax.random.key(5), 4, every=2)[1].loss[-1]

    final = jax.jit(final)
    slope = jax.grad(final)(1.3)
    h = 1e-5
    np.testing.assert_allclose(slope, (final(1.3 + h) - final(1.3 - h)) / (2 * h), rtol=1e-7)


@pytest.mark.promotes
@pytest.mark.parametrize(("name", "most"), [("adam", 0.2), ("lbfgs", 1e-3), ("polyak_sgd", 0.2)])
def test_any_optax_transformation(name, most):
    optimizer = {
        "adam": lambda: optax.adam(0.1),
        "lbfgs": lambda: optax.lbfgs(linesearch=optax.scale_by_backtracking_linesearch(10)),
        "polyak_sgd": lambda: optax.polyak_sgd(0.5),
    }[name]()
    made = process(optimizer)
    _, history = jax.jit(lambda key: training.run(made, key, 40))(jax.random.key(6))
    assert history.loss[-1] < most * history.loss[0]


@pytest.mark.promotes
def test_adam_in_its_own_words():
    """The first step of Adam is the rate times the sign of the gradient."""
    made = process(optax.adam(0.01, eps=0.0))
    start = made.init(jax.random.key(7))
    _, gradient = grad_numpy(jax.tree.map(np.asarray, start.params), *map(np.asarray, sample()))
    after, _ = jax.jit(made.step)(start)
    moved = jax.tree.map(lambda a, b: a - b, after.params, start.params)
    assert_trees_all_close(moved, jax.tree.map(lambda g: -0.01 * np.sign(g), gradient), rtol=1e-9)


@pytest.mark.usefixtures("float32")
def test_dtype_follows_the_parameters():
    data = jax.tree.map(lambda a: a.astype(jnp.float32), sample())
    made = training.descent(f, init, loss, optax.sgd(0.1), data, record=lambda p: p["W1"])
    state, history = training.run(made, jax.random.key(8), 2)
    assert {a.dtype for a in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    assert history.loss.dtype == history.record.dtype == jnp.float32


def test_what_is_not_finite_stays_so():
    made = training.descent(f, init, loss, optax.sgd(0.1), sample()._replace(y=sample().y * np.nan))
    state, history = jax.jit(lambda key: training.run(made, key, 3))(jax.random.key(9))
    assert np.isnan(history.loss).all()
    assert all(np.isnan(a).all() for a in jax.tree.leaves(state.params))


@pytest.mark.parametrize("batch", [0, EXAMPLES + 1])
def test_refuses_a_batch_out_of_range(batch):
    text = f"batch is {batch}; want 1 to 10, the number of examples in data, or None"
    with pytest.raises(ValueError, match=text):
        process(batch=batch)


def test_refuses_data_that_do_not_match():
    with pytest.raises(ValueError, match="data holds 10 inputs but 9 labels; want one label"):
        training.descent(f, init, loss, optax.sgd(0.1), sample()._replace(y=sample().y[1:]))


@pytest.mark.parametrize(("steps", "every"), [(0, 1), (5, 0), (5, 2)])
def test_refuses_records_that_do_not_fit(steps, every):
    text = f"steps is {steps} and every is {every}; want positive numbers, steps a multiple"
    with pytest.raises(ValueError, match=text):
        training.run(process(), jax.random.key(0), steps, every=every)


@pytest.mark.parametrize(
    ("bad", "what"),
    [(lambda p, y: p[:, 0] - y, r"float64\[10\]"), (lambda _, y: y.size, r"int\d+\[\]")],
)
def test_refuses_a_loss_that_is_no_scalar(bad, what):
    made = training.descent(f, init, bad, optax.sgd(0.1), sample())
    with pytest.raises(TypeError, match=rf"loss\(prediction, y\) is {what}, want a real scalar"):
        training.run(made, jax.random.key(0), 1)
