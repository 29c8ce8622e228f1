"""The layer: its state, its modes, and a whole net's gradient through it."""

import copy
import pickle

import numpy as np
import pytest

import fastbn
import reference
from grid import draw
from tolerance import check_backward, check_differences, check_forward


def test_starts_as_the_identity_of_statistics():
    layer = fastbn.BatchNorm(3)
    np.testing.assert_array_equal(layer.weight, np.ones(3, np.float32))
    np.testing.assert_array_equal(layer.bias, np.zeros(3, np.float32))
    np.testing.assert_array_equal(layer.running_mean, np.zeros(3, np.float32))
    np.testing.assert_array_equal(layer.running_var, np.ones(3, np.float32))
    assert layer.weight.dtype == layer.running_var.dtype == np.float32
    assert layer.num_batches_tracked == 0
    assert layer.training is True
    assert layer.dweight is None
    assert layer.dbias is None


def test_train_and_eval(rng):
    layer = fastbn.BatchNorm(4, momentum=0.3)
    layer.weight[:] = draw(rng, 4, np.float32)
    layer.bias[:] = draw(rng, 4, np.float32)
    x = draw(rng, (10, 4, 5), np.float32, mean=2)
    check_forward(layer(x), reference.forward(x, layer.weight, layer.bias), layer.weight, layer.bias)
    assert layer.num_batches_tracked == 1
    mean, var = layer.running_mean.copy(), layer.running_var.copy()
    np.testing.assert_allclose(mean, 0.3 * x.mean((0, 2)), rtol=1e-5)
    assert layer.eval() is layer
    assert layer.training is False
    f = reference.forward(x, layer.weight, layer.bias, mean=mean, var=var)
    check_forward(layer(x), f, layer.weight, layer.bias)
    np.testing.assert_array_equal(layer.running_mean, mean)
    np.testing.assert_array_equal(layer.running_var, var)
    assert layer.num_batches_tracked == 1
    assert layer.train() is layer
    layer(x)
    assert layer.num_batches_tracked == 2


def test_a_frozen_layer_normalises_with_running_statistics_and_moves_nothing(rng):
    layer = fastbn.BatchNorm(4, momentum=None)
    for name, array in layer._arrays().items():
        array[:] = rng.uniform(0.5, 2, 4) if name == "running_var" else draw(rng, 4, np.float32)
    other = copy.deepcopy(layer).eval()
    before = layer.state_dict()
    x, dy = draw(rng, (10, 4), np.float32, mean=2), draw(rng, (10, 4), np.float32)
    assert layer.freeze() is layer
    for each in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert each.train() is each
        assert each.training
        assert each.frozen
        assert repr(each).endswith(", precision=None, frozen)")
        np.testing.assert_array_equal(each(x), other(x))
        np.testing.assert_array_equal(each.backward(dy), other.backward(dy))  # the statistics are constants
        np.testing.assert_array_equal(each.dweight, other.dweight)
        np.testing.assert_array_equal(each.dbias, other.dbias)
    f = reference.forward(x, layer.weight, layer.bias, mean=layer.running_mean, var=layer.running_var)
    expected = reference.backward(dy, x, layer.weight, mean=layer.running_mean, var=layer.running_var)
    grads = fastbn.Gradients(layer.backward(dy), layer.dweight, layer.dbias)
    check_backward(grads, expected, dy, f, layer.weight)
    for name, values in layer.state_dict().items():
        np.testing.assert_array_equal(values, before[name])
    layer.load_state_dict(before)
    assert layer.frozen
    assert not layer.eval().unfreeze().frozen
    assert not layer.training  # what was set meanwhile
    layer.train()(x)
    assert layer.num_batches_tracked == 1


def test_without_running_statistics_inference_uses_the_batch(rng):
    layer = fastbn.BatchNorm(4, track_running_stats=False).eval()
    assert layer.running_mean is None
    assert layer.running_var is None
    x = draw(rng, (10, 4), np.float32, mean=9)
    check_forward(layer(x), reference.forward(x))
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_without_parameters(rng):
    layer = fastbn.BatchNorm(4, affine=False)
    x = draw(rng, (10, 4), np.float32)
    layer(x)
    layer.backward(x)
    assert layer.weight is None
    assert layer.dweight is None
    assert set(layer.state_dict()) == {"running_mean", "running_var", "num_batches_tracked"}


def test_options_reach_the_computation(rng):
    layer = fastbn.BatchNorm(5, axis=-1, eps=0.5, momentum=1, correction=0, dtype=np.float64)
    x = draw(rng, (6, 7, 5), np.float64)
    f = reference.forward(x, eps=0.5, axis=-1)
    check_forward(layer(x), f)
    np.testing.assert_allclose(layer.running_var, f.var.astype(float), rtol=1e-13)
    assert repr(layer) == (
        "BatchNorm(5, axis=-1, eps=0.5, momentum=1.0, correction=0, "
        "weight=True, bias=True, track_running_stats=True, activation=None, ghost_batch_size=None, renorm=None, "
        "dtype=float64, precision=None)"
    )


def test_out(rng):
    layer, x = fastbn.BatchNorm(3), draw(rng, (4, 3), np.float32)
    y, dx = np.empty_like(x), np.empty_like(x)
    assert layer(x, out=y) is y
    assert layer.backward(x, out=dx) is dx


def test_backward_needs_a_forward():
    with pytest.raises(RuntimeError, match="backward: expected a call of the layer before it"):
        fastbn.BatchNorm(3).backward(np.zeros((2, 3), np.float32))


def test_state_round_trip(rng):
    layer = fastbn.BatchNorm(3)
    for _ in range(4):
        layer(draw(rng, (8, 3), np.float32, mean=4))
    layer.weight[:] = draw(rng, 3, np.float32)
    state = layer.state_dict()
    assert list(state) == ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert state["num_batches_tracked"].dtype == np.int64
    assert state["num_batches_tracked"] == 4
    other = fastbn.BatchNorm(3)
    weight = other.weight
    other.load_state_dict(state)
    assert other.weight is weight  # an optimiser that holds the array goes on with the new values
    for name, values in other.state_dict().items():
        np.testing.assert_array_equal(values, state[name])
    state["weight"][:] = 7
    assert not (layer.weight == 7).any()
    assert not (other.weight == 7).any()


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_are_independent(rng, clone):
    layer, x = fastbn.BatchNorm(3), draw(rng, (8, 3), np.float32)
    layer(x)
    other = clone(layer)
    other(x + 1)
    assert other.num_batches_tracked == 2
    assert layer.num_batches_tracked == 1
    assert (other.running_mean != layer.running_mean).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda s: s.pop("bias"), ValueError, r"missing \['bias'\], unknown \[\]"),
        (lambda s: s.update(extra=1), ValueError, r"missing \[\], unknown \['extra'\]"),
        (lambda s: s.update(running_var=np.ones(4)), ValueError, r"state\['running_var'\]: expected shape \(3,\)"),
        (lambda s: s.update(running_var=np.ones(3, int)), TypeError, r"state\['running_var'\]: expected real floating"),
        (lambda s: s.update(running_var="no"), TypeError, r"state\['running_var'\]: expected real floating"),
        (lambda s: s.update(num_batches_tracked=1.5), TypeError, "num_batches_tracked'.: expected one integer"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(rng, change, error, message):
    layer = fastbn.BatchNorm(3)
    layer(draw(rng, (8, 3), np.float32))
    before = layer.state_dict()
    state = {name: values + 1 for name, values in before.items()}
    change(state)
    with pytest.raises(error, match=message):
        layer.load_state_dict(state)
    for name, values in layer.state_dict().items():
        np.testing.assert_array_equal(values, before[name])


def test_a_failed_call_counts_no_batch(rng):
    layer = fastbn.BatchNorm(3)
    with pytest.raises(ValueError, match="x: expected 3 channels along axis 1"):
        layer(draw(rng, (8, 4), np.float32))
    with pytest.raises(ValueError, match="correction"):
        layer(draw(rng, (1, 3), np.float32))
    assert layer.num_batches_tracked == 0
    np.testing.assert_array_equal(layer.running_mean, 0)


@pytest.mark.parametrize("training", [True, False])
def test_the_whole_gradient_of_a_net(rng, training):
    """Linear, batch norm, tanh, linear, batch norm, squared error: every parameter against central differences."""
    x, target = draw(rng, (9, 4), np.float64), draw(rng, (9, 3), np.float64)
    w1, w2 = draw(rng, (4, 6), np.float64), draw(rng, (6, 3), np.float64)
    bn1, bn2 = (fastbn.BatchNorm(n, dtype=np.float64, momentum=0.0 if training else 0.1) for n in (6, 3))
    for bn in (bn1, bn2):
        bn.weight[:] = draw(rng, bn.num_features, np.float64)
        bn.bias[:] = draw(rng, bn.num_features, np.float64)
        bn.running_mean[:] = draw(rng, bn.num_features, np.float64)
        bn.running_var[:] = rng.uniform(0.5, 2, bn.num_features)
        bn.train(training)

    def forward():
        hidden = np.tanh(bn1(x @ w1))
        return hidden, bn2(hidden @ w2)

    def loss():
        return float(((forward()[1] - target) ** 2).sum())

    hidden, y = forward()
    g = bn2.backward(2 * (y - target))
    dw2 = hidden.T @ g
    g = bn1.backward((g @ w2.T) * (1 - hidden**2))
    gradients = [
        (w1, x.T @ g), (w2, dw2), (x, g @ w1.T),
        (bn1.weight, bn1.dweight), (bn1.bias, bn1.dbias), (bn2.weight, bn2.dweight), (bn2.bias, bn2.dbias),
    ]  # fmt: skip
    for values, gradient in gradients:
        check_differences(loss, values, gradient, tolerance=1e-5)
