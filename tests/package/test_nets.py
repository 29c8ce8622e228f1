"""The layers of the demo: gradients against central differences, the convolution against its definition."""

import numpy as np
import pytest

import fastbn
from fastbn.experiments import nets
from tolerance import difference

STEP = 1e-6
BUILDERS = [nets.mlp, nets.convnet]


def rng():
    """Fixed, not fresh: once in a hundred runs, random data would put a ReLU's kink inside a difference."""
    return np.random.default_rng(7)


def check(f, array, gradient, samples=40):
    """Compare a gradient with central differences of f(), at up to `samples` elements."""
    assert gradient.shape == array.shape
    assert gradient.dtype == array.dtype == np.float64
    indices = np.argwhere(np.ones_like(array, bool))
    for index in map(tuple, rng().permutation(indices)[:samples]):
        np.testing.assert_allclose(gradient[index], difference(f, array, index, STEP), rtol=1e-5, atol=1e-8)


def check_layer(layer, x):
    """Check dx and the gradients of all parameters, for the loss sum(y * r) with random r."""
    r = rng().normal(size=layer(x).shape)
    dx = layer.backward(r)

    def loss():
        return float((layer(x) * r).sum())

    check(loss, x, dx)
    for name in ("weight", "bias"):
        parameter = getattr(layer, name, None)
        if parameter is not None:
            check(loss, parameter, getattr(layer, "d" + name))


@pytest.mark.parametrize("use_bias", [True, False])
def test_linear(use_bias):
    layer = nets.Linear(rng().normal(size=(12, 5)), use_bias)
    assert (layer.bias is not None) == use_bias
    check_layer(layer, rng().normal(size=(6, 12)))
    check_layer(layer, rng().normal(size=(6, 2, 2, 3)))  # flattened


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(2, 6, 4, 3), (3, 8, 8, 1)])
def test_conv2d(shape, stride, use_bias):
    layer = nets.Conv2d(rng().normal(size=(3, 3, shape[-1], 5)), stride, use_bias)
    check_layer(layer, rng().normal(size=shape))


@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d_is_a_convolution_with_zero_padding(stride):
    x = rng().normal(size=(2, 6, 4, 3))
    layer = nets.Conv2d(rng().normal(size=(3, 3, 3, 5)), stride)
    layer.bias += rng().normal(size=5)
    expected = np.empty((2, 6 // stride, 4 // stride, 5))
    for n, i, j, o in np.ndindex(expected.shape):
        total = layer.bias[o]
        for k, m in np.ndindex(3, 3):
            row, column = i * stride + k - 1, j * stride + m - 1
            if 0 <= row < 6 and 0 <= column < 4:
                total += x[n, row, column] @ layer.weight[k, m, :, o]
        expected[n, i, j, o] = total
    np.testing.assert_allclose(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer", [nets.Sigmoid(), nets.ReLU()], ids=["sigmoid", "relu"])
def test_activations(layer):
    check_layer(layer, rng().normal(size=(6, 7)))


def test_sigmoid_does_not_overflow():
    y = nets.Sigmoid()(np.array([-1e4, 0.0, 1e4], np.float32))
    np.testing.assert_array_equal(y, [0, 0.5, 1])


def test_cross_entropy():
    logits, labels = rng().normal(size=(5, 4)), np.array([0, 3, 1, 1, 2])
    loss, gradient = nets.cross_entropy(logits, labels)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert loss == pytest.approx(-np.log(probabilities[np.arange(5), labels]).mean())
    check(lambda: nets.cross_entropy(logits, labels)[0], logits, gradient)


def test_cross_entropy_does_not_overflow():
    loss, gradient = nets.cross_entropy(np.array([[1e4, -1e4]], np.float32), np.array([1]))
    assert loss == pytest.approx(2e4)
    np.testing.assert_array_equal(gradient, [[1, -1]])


@pytest.mark.parametrize("batch_norm", [False, True], ids=["plain", "fastbn"])
@pytest.mark.parametrize("build", BUILDERS)
def test_whole_nets(build, batch_norm):
    net = build(rng(), batch_norm, np.float64)
    x, labels = rng().normal(size=(7, 8, 8, 1)), np.arange(7)
    _, gradient = nets.cross_entropy(net(x), labels)
    dx = net.backward(gradient)

    def loss():
        return nets.cross_entropy(net(x), labels)[0]

    check(loss, x, dx, samples=10)
    for layer, name in net.parameters():
        check(loss, getattr(layer, name), getattr(layer, "d" + name), samples=5)


@pytest.mark.parametrize("build", BUILDERS)
def test_nets_differ_in_batch_norm_alone(build):
    plain, normalised = build(rng(), False), build(rng(), True)
    rest = [layer for layer in normalised.layers if not isinstance(layer, fastbn.BatchNorm)]
    assert len(normalised.layers) - len(rest) == 3
    assert [type(layer) for layer in rest] == [type(layer) for layer in plain.layers]
    for a, b in zip(plain.layers, rest, strict=True):
        if hasattr(a, "weight"):
            np.testing.assert_array_equal(a.weight, b.weight)
            last = a is plain.layers[-1]
            assert a.bias is not None
            assert (b.bias is not None) == last


@pytest.mark.parametrize("build", BUILDERS)
def test_float32_stays_float32(build):
    net = build(rng(), True)
    y = net(rng().normal(size=(4, 8, 8, 1)).astype(np.float32))
    loss_gradient = nets.cross_entropy(y, np.arange(4))[1]
    assert y.dtype == loss_gradient.dtype == net.backward(loss_gradient).dtype == np.float32
    assert all(getattr(layer, "d" + name).dtype == np.float32 for layer, name in net.parameters())


def test_preactivation_is_what_enters_the_last_activation():
    net = nets.mlp(rng(), True)
    logits = net(rng().normal(size=(4, 64)).astype(np.float32))
    assert net.preactivation.shape == (4, 100)
    np.testing.assert_array_equal(net.layers[-1](nets.Sigmoid()(net.preactivation)), logits)


def test_train_false_uses_running_statistics():
    net = nets.mlp(rng(), True)
    x = rng().normal(size=(8, 64)).astype(np.float32)
    net(x)
    net.train(False)
    # One image has no variance of its own; BLAS may sum a single row in another order than a row among others.
    np.testing.assert_allclose(net(x[:1]), net(x)[:1], rtol=1e-5)
    net.train()
    assert all(layer.training for layer in net.layers if isinstance(layer, fastbn.BatchNorm))


def test_sgd_with_momentum():
    net = nets.Net([nets.Sigmoid(), nets.Linear(np.zeros((1, 1)))])
    linear = net.layers[-1]
    optimiser = nets.SGD(net, rate=0.5, momentum=0.9)
    weight = linear.weight
    for expected in (-0.5, -0.5 - 0.95, -0.5 - 0.95 - 1.355):  # v = 0.9 v - 0.5
        linear.dweight, linear.dbias = np.ones((1, 1)), np.zeros(1)
        optimiser.step()
        np.testing.assert_allclose(linear.weight, expected)
    assert linear.weight is weight
