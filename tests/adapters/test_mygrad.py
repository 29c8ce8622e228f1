"""Batch normalization of MyGrad's tensors: one backward call, under MyGrad's locks on memory."""

import importlib
import sys

import numpy as np
import pytest

import fastbn
import reference
from grid import draw, drawn
from tolerance import check_backward, check_differences, check_forward

pytest.importorskip("mygrad", reason="MyGrad is not installed; make test-all installs it")
import mygrad
from mygrad.nnet.layers import batchnorm

from fastbn.adapters.mygrad import batch_norm

pytestmark = pytest.mark.frameworks


def gradients(*tensors):
    return fastbn.Gradients(*(None if t is None else t.grad for t in tensors))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), [((32, 64), 1), ((4, 6, 5, 3), 1), ((4, 5, 3, 6), -1)])
def test_values_and_gradients_are_the_oracle_s(rng, shape, axis, dtype):
    x, weight, bias, dy = drawn(rng, shape, shape[axis], dtype, mean=3)
    mean, var = draw(rng, shape[axis], dtype), rng.uniform(0.5, 2, shape[axis]).astype(dtype)
    for given in ({}, {"mean": mean, "var": var}):
        running = {"running_mean": mean, "running_var": var, "training": False} if given else {}
        tensors = [mygrad.tensor(array) for array in (x, weight, bias)]
        y = batch_norm(*tensors, eps=1e-3, axis=axis, **running)
        f = reference.forward(x, weight, bias, eps=1e-3, axis=axis, **given)
        check_forward(y.data, f, weight, bias)
        y.backward(dy)
        assert [t.grad.dtype for t in tensors] == [dtype] * 3
        expected = reference.backward(dy, x, weight, eps=1e-3, axis=axis, **given)
        check_backward(gradients(*tensors), expected, dy, f, weight)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_a_net_are_central_differences(rng, training):
    x, weight, bias, dy = drawn(rng, (6, 3, 2), 3, np.float64)
    mean, var = rng.normal(size=3), rng.uniform(0.5, 2, 3)

    def loss(*inputs):
        running = {"running_mean": mean.copy(), "running_var": var.copy()}
        y = batch_norm(mygrad.tanh(inputs[0]), *inputs[1:], training=training, **running)
        return (mygrad.sin(y) * dy).sum()  # bounded, and so is what rounding it does to a difference

    tensors = [mygrad.tensor(array) for array in (x, weight, bias)]
    loss(*tensors).backward()
    for array, tensor in zip((x, weight, bias), tensors, strict=True):
        check_differences(lambda: float(loss(x, weight, bias).data), array, tensor.grad)


def test_one_backward_call_serves_all_inputs(rng, monkeypatch):
    calls = []
    backward = fastbn.batch_norm_backward
    monkeypatch.setattr(fastbn, "batch_norm_backward", lambda *a, **k: calls.append(1) or backward(*a, **k))
    x, weight, bias, dy = drawn(rng, (8, 4), 4, np.float32)
    batch_norm(mygrad.tensor(x), mygrad.tensor(weight), mygrad.tensor(bias)).backward(dy)
    assert len(calls) == 1


def test_constants_get_no_gradient(rng):
    x, weight, bias, dy = drawn(rng, (8, 4), 4, np.float32)
    for variable in range(3):
        tensors = [mygrad.tensor(a, constant=i != variable) for i, a in enumerate((x, weight, bias))]
        y = batch_norm(*tensors)
        assert not y.constant
        y.backward(dy)
        assert [t.grad is not None for t in tensors] == [i == variable for i in range(3)]
    assert batch_norm(x, weight, bias).constant  # arrays are constants
    assert batch_norm(mygrad.tensor(x), constant=True).constant
    with mygrad.no_autodiff:
        y = batch_norm(mygrad.tensor(x), mygrad.tensor(weight))
    assert y.creator is None
    np.testing.assert_array_equal(y.data, fastbn.batch_norm(x, weight)[0])


@pytest.mark.parametrize("given", [(), ("weight",), ("bias",)])
def test_weight_and_bias_may_be_missing(rng, given):
    x, weight, bias, dy = drawn(rng, (8, 4, 3), 4, np.float32)
    arrays = {name: array for name, array in (("weight", weight), ("bias", bias)) if name in given}
    tensors = {name: mygrad.tensor(array) for name, array in arrays.items()}
    tx = mygrad.tensor(x)
    y = batch_norm(tx, **tensors)
    expected, ctx = fastbn.batch_norm(x, **arrays)
    np.testing.assert_array_equal(y.data, expected)
    y.backward(dy)
    wanted = fastbn.batch_norm_backward(dy, ctx)
    np.testing.assert_array_equal(tx.grad, wanted.dx)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.grad, getattr(wanted, f"d{name}"))


BEYOND = {
    "residual": {"residual": True},
    "both": {"residual": True, "activation": "silu"},
    "mask": {"residual": True, "mask": True},
    "ghosts": {"ghost_batch_size": 3, "activation": ("leaky_relu", 0.3)},
    "renorm": {"renorm": fastbn.Renorm(1.1, 0.1), "activation": "relu"},
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_goes_beyond_plain_batch_norm_has_the_bits_of_fastbn(rng, name):
    x, weight, bias, dy = drawn(rng, (8, 4, 3), 4, np.float32)
    options, arrays = dict(BEYOND[name]), {"x": x, "weight": weight, "bias": bias}
    if options.pop("residual", False):
        arrays["residual"] = draw(rng, x.shape, np.float32)
    if "mask" in options:
        options["mask"] = np.arange(3) < np.arange(8)[:, None] % 4
        x[4] = np.nan  # counts nowhere
    states = [{"running_mean": np.full(4, 2, "f"), "running_var": np.ones(4, "f")} for _ in range(2)]
    tensors = {name: mygrad.tensor(array) for name, array in arrays.items()}
    y = batch_norm(**tensors, **states[0], **options)
    expected, ctx = fastbn.batch_norm(**arrays, **states[1], **options)
    np.testing.assert_array_equal(y.data, expected)
    (y * dy).sum().backward()
    wanted = fastbn.batch_norm_backward(dy, ctx)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.grad, getattr(wanted, f"d{name}"))
    np.testing.assert_array_equal(states[0]["running_mean"], states[1]["running_mean"])
    batch_norm(x, weight, **states[0], update_stats=False, **options)
    np.testing.assert_array_equal(states[0]["running_mean"], states[1]["running_mean"])


def test_running_statistics_move_once_a_call(rng):
    x, weight, bias, dy = drawn(rng, (8, 4), 4, np.float32)
    found, expected = ([np.zeros(4, np.float32), np.ones(4, np.float32)] for _ in range(2))
    batch_norm(mygrad.tensor(x), weight, bias, running_mean=found[0], running_var=found[1], momentum=0.3).backward(dy)
    fastbn.batch_norm(x, running_mean=expected[0], running_var=expected[1], momentum=0.3)
    np.testing.assert_array_equal(found, expected)


def test_arrays_are_locked_until_the_graph_is_gone(rng):
    x, weight, _, dy = drawn(rng, (8, 4), 4, np.float32)
    tx = mygrad.tensor(x, copy=False)
    y = batch_norm(tx, weight)
    assert not any(array.flags.writeable for array in (x, weight, y.data))
    y.backward(dy)
    assert x.flags.writeable
    assert weight.flags.writeable


def test_a_tensor_changed_in_place_afterwards_does_not_change_the_gradient(rng):
    x, weight, _, dy = drawn(rng, (8, 4), 4, np.float32)
    tx = mygrad.tensor(x)
    first = tx * 1
    y = batch_norm(first, weight)
    first[:2] = 0
    (y * dy).sum().backward()
    expected = fastbn.batch_norm_backward(dy, fastbn.batch_norm(x, weight)[1]).dx
    np.testing.assert_allclose(tx.grad, expected, rtol=1e-5, atol=1e-6)  # the order of memory may be another


def test_gradients_of_two_uses_add_up(rng):
    x, weight, bias, dy = drawn(rng, (8, 4), 4, np.float64)
    tensors = [mygrad.tensor(array) for array in (x, weight, bias)]
    ((batch_norm(*tensors) + batch_norm(*tensors)) * dy).sum().backward()
    once = fastbn.batch_norm_backward(dy, fastbn.batch_norm(x, weight, bias)[1])
    for tensor, gradient in zip(tensors, (once.dx, once.dweight, once.dbias), strict=True):
        np.testing.assert_array_equal(tensor.grad, 2 * gradient)


def test_agrees_with_mygrad_s_own_and_beats_it_at_large_means(rng):
    x, weight, bias, dy = drawn(rng, (16, 8, 7, 7), 8, np.float32, mean=0)
    for mean, less in ((0, 0), (1e4, 100)):
        x = (x + mean).astype(np.float32)
        f = reference.forward(x, weight, bias)
        dx = reference.backward(dy, x, weight)[0]
        errors = []
        for function in (
            batch_norm, lambda x, weight, bias: batchnorm(x, gamma=weight, beta=bias, eps=1e-5),
        ):  # fmt: skip
            tensors = [mygrad.tensor(array) for array in (x, weight, bias)]
            y = function(*tensors)
            y.backward(dy)
            errors.append([float(np.abs(y.data - f.y).max()), float(np.abs(tensors[0].grad - dx).max())])
        ours, theirs = errors
        if less:
            assert less * ours[0] < theirs[0]
        else:
            assert max(ours + theirs) < 1e-5


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"x": np.zeros((3, 4), int)}, "x: expected a numpy.ndarray of float32"),
        ({"x": [[1, 2], [3, 4]]}, "x: expected a numpy.ndarray of float32"),
        ({"x": np.zeros(4)}, "x: expected at least 2 dimensions"),
        ({"weight": np.ones(3)}, r"weight: expected shape \(4,\)"),
        ({"eps": 0}, "eps: expected a number > 0"),
        ({"axis": 2}, "axis: expected an integer from -2 to 1"),
        ({"running_mean": mygrad.zeros(4), "running_var": mygrad.ones(4)}, "running_mean: expected"),
    ],
)
def test_what_does_not_fit_is_refused_and_unlocked(bad, message):
    x = np.ones((3, 4))
    with pytest.raises((TypeError, ValueError), match=message):
        batch_norm(**({"x": x} | bad))
    assert x.flags.writeable


def test_without_mygrad_the_import_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mygrad", None)
    monkeypatch.delitem(sys.modules, "fastbn.adapters.mygrad")
    with pytest.raises(ModuleNotFoundError, match="needs MyGrad: pip install mygrad"):
        importlib.import_module("fastbn.adapters.mygrad")
