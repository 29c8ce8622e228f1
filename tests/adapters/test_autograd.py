"""The primitive for HIPS autograd: derivatives of every order in both modes, by one call of fastbn each."""

import importlib
import sys

import numpy as np
import pytest

import fastbn
import reference
from grid import draw, drawn
from tolerance import check_backward, check_differences, check_forward

pytest.importorskip("autograd", reason="autograd is not installed; make test-all installs it")
import autograd
import autograd.numpy as anp
from autograd.core import make_vjp
from autograd.test_util import check_grads

from fastbn.adapters.autograd import batch_norm

pytestmark = pytest.mark.frameworks

CALLS = "batch_norm", "batch_norm_backward", "batch_norm_double_backward", "batch_norm_jvp"
GIVEN = [("x",), ("x", "weight"), ("x", "bias"), ("x", "weight", "bias"), ("weight",), ("bias",), ("weight", "bias")]


@pytest.fixture
def counted(monkeypatch):
    """How often each function of fastbn was called."""
    counts = dict.fromkeys(CALLS, 0)

    def counting(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for name in CALLS:
        monkeypatch.setattr(fastbn, name, counting(name, getattr(fastbn, name)))
    return counts


@pytest.fixture
def seeded(rng):
    """autograd's checks draw from NumPy's global generator; restored afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(rng.integers(2**32))  # noqa: NPY002
    yield
    np.random.set_state(state)  # noqa: NPY002


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", GIVEN, ids="-".join)
def test_derivatives_pass_autograd_s_checks_to_the_second_order(rng, seeded, given, training):
    values = dict(zip(("x", "weight", "bias"), drawn(rng, (4, 3, 5), 3), strict=False))
    mean, var = rng.normal(size=3), rng.uniform(0.5, 2, 3)
    running = {} if training else {"running_mean": mean, "running_var": var, "training": False}

    def function(*inputs):
        # Squared, or the second derivatives by the parameters alone would all be zero.
        return batch_norm(**(values | dict(zip(given, inputs, strict=True))), **running) ** 2

    check_grads(function, modes=["fwd", "rev"], order=2)(*(values[name] for name in given))


def test_parameters_that_are_not_differentiated_may_be_missing(rng, seeded):
    x, weight, bias, _ = drawn(rng, (4, 3, 5), 3)
    check_grads(lambda x: batch_norm(x), modes=["fwd", "rev"], order=2)(x)
    check_grads(lambda x, weight: batch_norm(x, weight), modes=["fwd", "rev"], order=2)(x, weight)
    check_grads(lambda x, bias: batch_norm(x, None, bias), modes=["fwd", "rev"], order=2)(x, bias)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_third_derivatives_too(rng, seeded, axis):
    x, weight, bias, _ = drawn(rng, (3, 3, 3), 3)
    check_grads(lambda *inputs: batch_norm(*inputs, axis=axis), modes=["fwd", "rev"], order=3)(x, weight, bias)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), [((32, 64), 1), ((4, 6, 5, 3), 1), ((4, 5, 3, 6), -1)])
def test_values_and_gradients_are_the_oracle_s(rng, shape, axis, dtype):
    x, weight, bias, dy = drawn(rng, shape, shape[axis], dtype, mean=3)
    mean, var = draw(rng, shape[axis], dtype), rng.uniform(0.5, 2, shape[axis]).astype(dtype)
    for given in ({}, {"mean": mean, "var": var}):
        running = {"running_mean": mean, "running_var": var, "training": False} if given else {}
        vjp, y = make_vjp(
            lambda inputs: batch_norm(*inputs, eps=1e-3, axis=axis, **running),  # noqa: B023
            (x, weight, bias),
        )
        f = reference.forward(x, weight, bias, eps=1e-3, axis=axis, **given)
        check_forward(y, f, weight, bias)
        found = vjp(dy)
        assert [gradient.dtype for gradient in found] == [dtype] * 3
        expected = reference.backward(dy, x, weight, eps=1e-3, axis=axis, **given)
        check_backward(fastbn.Gradients(*found), expected, dy, f, weight)


BEYOND = {
    "activation": {"activation": "tanh"},
    "residual": {"residual": True},
    "both": {"residual": True, "activation": "silu"},
    "mask": {"mask": True, "activation": "gelu", "residual": True},
    "ghosts": {"ghost_batch_size": 3, "activation": "sigmoid"},
    "renorm": {"renorm": fastbn.Renorm(1.1, 0.1), "activation": ("leaky_relu", 0.3)},
    "all": {"renorm": fastbn.Renorm(1.1, 0.1), "ghost_batch_size": 2, "mask": True, "residual": True},
    "frozen": {"training": False, "mask": True, "residual": True, "activation": "tanh"},
}


def beyond_call(rng, name, shape=(4, 3, 5), dtype=np.float64):
    """A call that goes beyond plain batch norm, and its arrays; r and d are off their limits at every channel."""
    values = dict(zip(("x", "weight", "bias"), drawn(rng, shape, shape[1], dtype), strict=False))
    options = dict(BEYOND[name])
    if options.pop("residual", False):
        values["residual"] = draw(rng, shape, dtype)
    if "mask" in options:
        options["mask"] = np.arange(shape[2]) < np.array([5, 2, 3, 4])[:, None]
        values["x"][~np.broadcast_to(options["mask"][:, None], shape)] = np.nan
    if "renorm" in options or "training" in options:
        options |= {"running_mean": np.full(shape[1], 9, dtype), "running_var": np.full(shape[1], 4, dtype)}
    options["update_stats"] = False
    return values, options


def finite(values):
    """The same, and what a mask left out filled: central differences read it."""
    return {name: np.nan_to_num(value, nan=0.5) for name, value in values.items()}


@pytest.mark.parametrize("name", BEYOND)
def test_what_goes_beyond_passes_autograd_s_checks_to_the_second_order(rng, seeded, name):
    values, options = beyond_call(rng, name)
    values = finite(values)

    def function(*inputs):
        return batch_norm(**dict(zip(values, inputs, strict=True)), **options) ** 2

    if "renorm" not in options:
        check_grads(function, modes=["fwd", "rev"], order=2)(*values.values())
        return
    # r and d are constants to the gradient, not to a difference: the first gradients are fastbn's, held against the
    # oracle by its own tests, and further ones are those of the first.
    gradient = autograd.grad(lambda *inputs: anp.sum(function(*inputs)), tuple(range(len(values))))
    along = [draw(rng, value.shape, np.float64) for value in values.values()]
    forward = autograd.make_jvp(lambda inputs: function(*inputs))(tuple(values.values()))(tuple(along))[1]
    found = sum((one * other).sum() for one, other in zip(gradient(*values.values()), along, strict=True))
    np.testing.assert_allclose(forward.sum(), found, rtol=1e-10)


@pytest.mark.parametrize("name", BEYOND)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_goes_beyond_gives_the_bits_of_fastbn_and_one_call_of_each(rng, counted, name, dtype):
    values, options = beyond_call(rng, name, dtype=dtype)
    dy = draw(rng, values["x"].shape, dtype)
    vjp, y = make_vjp(lambda inputs: batch_norm(**dict(zip(values, inputs, strict=True)), **options),
                      tuple(values.values()))  # fmt: skip
    found = vjp(dy)
    assert list(counted.values()) == [1, 1, 0, 0]
    expected, ctx = fastbn.batch_norm(**values, **options)
    np.testing.assert_array_equal(y, expected)
    wanted = fastbn.batch_norm_backward(dy, ctx)
    for given, gradient in zip(values, found, strict=True):
        np.testing.assert_array_equal(gradient, getattr(wanted, f"d{given}"))


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "tanh", "sigmoid", "silu", "gelu"])
def test_derivatives_of_activations_of_every_order_are_those_of_the_first(rng, seeded, activation):
    x, weight, bias, dy = drawn(rng, (6, 3, 2), 3)
    bias += 2  # some beyond 6, some below 0

    def first(x, weight, bias):
        return autograd.grad(lambda *a: anp.sum(batch_norm(*a, activation=activation) * dy), (0, 1, 2))(x, weight, bias)

    check_grads(lambda *a: batch_norm(*a, activation=activation), modes=["fwd", "rev"], order=1)(x, weight, bias)
    check_grads(first, modes=["rev"], order=2)(x, weight, bias)


def test_what_is_masked_does_no_harm_to_further_derivatives(rng):
    values, options = beyond_call(rng, "mask")
    x, residual = values.pop("x"), values.pop("residual")
    residual = np.where(np.isnan(x), np.nan, residual)

    def loss(x, residual):
        return anp.sum(batch_norm(x, residual=residual, **values, **options) ** 2)

    v = draw(rng, x.shape, np.float64)
    found = autograd.grad(lambda *a: anp.sum(autograd.grad(loss, 0)(*a) * v), (0, 1))(x, residual)
    filled = autograd.grad(lambda *a: anp.sum(autograd.grad(loss, 0)(*a) * v), (0, 1))(
        np.nan_to_num(x), np.nan_to_num(residual)
    )
    for one, other in zip(found, filled, strict=True):
        assert (one[np.isnan(x)] == 0).all()
        np.testing.assert_array_equal(one, other)


def test_a_float32_net_has_float32_gradients_of_any_order(rng):
    """A float64 constant after y makes dy float64, which autograd does not cast back."""
    x, weight, bias, _ = drawn(rng, (6, 3), 3, np.float32, mean=100)
    dy = rng.normal(size=x.shape)

    def loss(x, weight, bias):
        return anp.sum(anp.tanh(batch_norm(x, weight, bias)) * dy)

    def plain(x, weight, bias):
        centred = x - anp.mean(x, 0)
        return anp.sum(anp.tanh(centred / anp.sqrt(anp.mean(centred**2, 0) + 1e-5) * weight + bias) * dy)

    def descended(loss, order):
        if order == 0:
            return loss
        return descended(lambda *a: anp.sum(autograd.grad(loss, 0)(*a) * direction[: len(x)]), order - 1)

    direction = rng.normal(size=x.shape)
    wide = [array.astype(np.float64) for array in (x, weight, bias)]
    for order in range(3):
        found = [autograd.grad(descended(loss, order), i)(x, weight, bias) for i in range(3)]
        expected = [autograd.grad(descended(plain, order), i)(*wide) for i in range(3)]
        # y, rounded to float32, and what is computed with it, one rounding for each of some ten steps an order. Terms
        # that cancel in one gradient are as large as the largest of all: 22 x 2^-24 of it at most in 1500 runs.
        largest = max(np.abs(gradient).max() for gradient in expected)
        for got, wanted in zip(found, expected, strict=True):
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * largest)


def test_a_net_s_gradients_are_central_differences(rng):
    x, weight, bias, dy = drawn(rng, (6, 3, 2), 3)

    def loss(x, weight, bias):
        return anp.sum(anp.exp(batch_norm(anp.tanh(x), weight, bias)) * dy)

    gradients = autograd.grad(loss, (0, 1, 2))(x, weight, bias)
    for array, gradient in zip((x, weight, bias), gradients, strict=True):
        check_differences(lambda: float(loss(x, weight, bias)), array, gradient)


def test_hessians_in_all_four_ways_agree(rng):
    x, weight, bias, dy = drawn(rng, (3, 2), 2)

    def loss(x):
        return anp.sum(anp.sin(batch_norm(x, weight, bias)) * dy)

    v = rng.normal(size=x.shape)
    reverse = autograd.grad
    along = lambda f: lambda x: autograd.make_jvp(f)(x)(v)[1]  # noqa: E731
    towards = lambda f: lambda x: anp.sum(reverse(f)(x) * v)  # noqa: E731
    expected = np.tensordot(autograd.hessian(loss)(x), v, 2)
    assert np.abs(expected).max() > 1e-3
    for found in (along(reverse(loss))(x), reverse(towards(loss))(x), reverse(along(loss))(x)):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(along(along(loss))(x), (expected * v).sum(), rtol=1e-9)


def test_one_call_of_fastbn_gives_all_gradients(rng, counted):
    x, weight, bias, dy = drawn(rng, (8, 4), 4, np.float32)
    autograd.grad(lambda *a: anp.sum(batch_norm(*a) * dy), (0, 1, 2))(x, weight, bias)
    assert list(counted.values()) == [1, 1, 0, 0]
    autograd.make_jvp(lambda inputs: batch_norm(*inputs))((x, weight, bias))((x, weight, bias))
    assert list(counted.values()) == [2, 1, 0, 1]


def test_a_hessian_vector_product_takes_four_calls(rng, counted):
    x, weight, bias, dy = drawn(rng, (8, 4), 4, np.float32)
    loss = lambda x, weight: anp.sum(anp.tanh(batch_norm(x, weight, bias)) * dy)  # noqa: E731
    autograd.hessian_vector_product(loss)(x, weight, dy)
    # y, dx; then back through both: the double backward, and the backward of y, which the loss needs besides
    assert list(counted.values()) == [1, 2, 1, 0]


def test_running_statistics_move_once_a_call_whatever_is_derived(rng, counted):
    x, weight, bias, dy = drawn(rng, (8, 4), 4)
    expected = np.zeros(4), np.ones(4)
    fastbn.batch_norm(x, running_mean=expected[0], running_var=expected[1], momentum=0.3)

    def loss(x):
        y = batch_norm(x, weight, bias, running_mean=found[0], running_var=found[1], momentum=0.3)
        return anp.sum(anp.sin(y) * dy)

    for derive in (
        lambda: loss(x),
        lambda: autograd.grad(loss)(x),
        lambda: autograd.make_jvp(loss)(x)(dy),
        lambda: autograd.hessian_vector_product(loss)(x, dy),
        lambda: autograd.make_jvp(autograd.grad(loss))(x)(dy),
    ):
        found = np.zeros(4), np.ones(4)
        derive()
        np.testing.assert_array_equal(found, expected)


def test_frozen_derivatives_are_through_the_statistics_of_the_call(rng):
    """A training call that moves the running statistics in between changes nothing."""
    x, weight, bias, dy = drawn(rng, (8, 4), 4)
    running = {"running_mean": rng.normal(size=4), "running_var": rng.uniform(0.5, 2, 4)}
    found = []
    for move in (False, True):
        copies = {name: array.copy() for name, array in running.items()}
        vjp, _ = make_vjp(
            lambda x: batch_norm(x, weight, bias, training=False, **copies),  # noqa: B023
            x,
        )
        if move:
            batch_norm(x, **copies)
        found.append(vjp(dy))
    np.testing.assert_array_equal(*found)


def test_gradients_that_are_broadcast_or_strided(rng):
    x, weight, bias, _ = drawn(rng, (8, 4, 3), 4, mean=1)
    for function, dy in [
        (anp.sum, np.ones_like(x)),
        (lambda y: anp.sum(y[::2]), np.where(np.arange(8) % 2, 0.0, 1.0)[:, None, None] * np.ones_like(x)),
        (lambda y: anp.sum(anp.transpose(y) * x.T), x),
    ]:
        found = autograd.grad(lambda x: function(batch_norm(x, weight, bias)))(x)  # noqa: B023
        np.testing.assert_array_equal(found, fastbn.batch_norm_backward(dy, fastbn.batch_norm(x, weight)[1]).dx)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"x": np.zeros((3, 4), int)}, "x: expected a numpy.ndarray of float32"),
        ({"x": [[1.0, 2.0]]}, "x: expected a numpy.ndarray"),
        ({"x": np.zeros(4)}, "x: expected at least 2 dimensions"),
        ({"weight": np.ones(3)}, r"weight: expected shape \(4,\)"),
        ({"bias": 1.0}, "bias: expected None or a numpy.ndarray"),
        ({"eps": 0}, "eps: expected a number > 0"),
        ({"axis": 2}, "axis: expected an integer from -2 to 1"),
    ],
)
def test_what_does_not_fit_is_refused(bad, message):
    with pytest.raises((TypeError, ValueError), match=message):
        batch_norm(**({"x": np.ones((3, 4))} | bad))


def test_running_statistics_are_no_variables():
    x, mean, var = np.ones((3, 4)), np.zeros(4), np.ones(4)
    with pytest.raises(TypeError, match="running_mean: expected None"):
        autograd.grad(lambda mean: anp.sum(batch_norm(x, running_mean=mean, running_var=var)))(mean)


def test_without_autograd_the_import_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "autograd.numpy", None)
    monkeypatch.delattr(autograd, "numpy")
    for name in [name for name in sys.modules if name.startswith("fastbn.adapters.autograd")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match="needs autograd: pip install autograd"):
        importlib.import_module("fastbn.adapters.autograd")
