"""The short way through a call and the long one: the same bits, the same refusals, and who takes which."""

import numpy as np
import pytest

import fastbn
import reference
from fastbn.backends.cpu import small_calls as fast
from fastbn.checks import arrays as validate
from fastbn_kernels.saved import M2
from grid import LARGE, SMALL, STORED, affine, draw
from tolerance import check_backward

CASES = [
    *SMALL,
    *LARGE,
    ((16, 64, 3, 3), 1),
    ((4, 5000), 1),
]  # the last has more than one tile of columns


def results(x, dy, axis, training, over):
    weight, bias = affine(np.random.default_rng(0), x.shape[axis], np.float32)
    mean, var = np.zeros_like(weight), np.ones_like(weight)
    x, dy = x.copy(), dy.copy()
    y, ctx = fastbn.batch_norm(
        x, weight, bias, running_mean=mean, running_var=var, training=training, axis=axis, out=x if over else None
    )
    defined = ctx.saved if training else np.delete(ctx.saved, M2, axis=0)
    if over:
        assert ctx.x is None
        return y, mean, var, defined
    grads = fastbn.batch_norm_backward(dy, ctx, out=dy)
    assert grads.dx is dy
    return y, mean, var, defined, grads.dx, grads.dweight, grads.dbias


@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "axis"), [case for case in CASES if np.prod(case[0]) > case[0][case[1]]])
def test_the_same_bits(rng, shape, axis, training, over, monkeypatch):
    x, dy = draw(rng, shape, np.float32, mean=2), draw(rng, shape, np.float32)
    short = results(x, dy, axis, training, over)
    monkeypatch.setattr(fast, "forward", lambda *_: None)
    monkeypatch.setattr(fast, "backward", lambda *_: None)
    for a, b in zip(short, results(x, dy, axis, training, over), strict=True):
        np.testing.assert_array_equal(a, b)


def count_checks(monkeypatch):
    """Count the calls that go the long way."""
    calls = []
    check = validate.data
    monkeypatch.setattr(validate, "data", lambda x: calls.append(1) or check(x))
    return calls


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "axis"), [((32, 64), 1), ((4, 3, 7, 7), 1), ((64, 40, 28, 28), 1), ((4, 7, 7, 3), -1)]
)
def test_ordinary_calls_go_the_short_way(rng, shape, axis, dtype, monkeypatch):
    x = draw(rng, shape, dtype)
    parameters = np.float64 if dtype is np.float64 else np.float32
    weight, bias = affine(rng, shape[axis], parameters)
    mean, var = np.zeros(shape[axis], parameters), np.ones(shape[axis], parameters)
    fastbn.batch_norm(x, axis=axis)
    calls = count_checks(monkeypatch)
    for training in (True, False):
        for out in (None, np.empty_like(x)):
            fastbn.batch_norm(
                x, weight, bias, running_mean=mean, running_var=var, training=training, axis=axis, out=out
            )
    fastbn.batch_norm_inference(x, mean, var, axis=axis)
    assert calls == []


@pytest.mark.parametrize("stored", [name for name in STORED if name not in ("contiguous", "readonly")])
def test_whatever_else_goes_the_long_way(rng, stored, monkeypatch):
    x = STORED[stored](draw(rng, (6, 5, 9), np.float32))
    expected, _ = fastbn.batch_norm(np.ascontiguousarray(x))
    calls = count_checks(monkeypatch)
    y, _ = fastbn.batch_norm(x)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    y, _ = fastbn.batch_norm(x, np.ones(5))  # a float64 weight for float32 data
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    assert calls


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("wide", ["weight", "bias", "both"])
def test_gradients_of_float64_parameters_are_not_rounded_before(rng, dtype, wide):
    x, dy = draw(rng, (4, 3, 7, 7), dtype), draw(rng, (4, 3, 7, 7), dtype)
    weight = np.ones(3, np.float32 if wide == "bias" else np.float64)
    bias = np.zeros(3, np.float32 if wide == "weight" else np.float64)
    _, ctx = fastbn.batch_norm(x, weight, bias)
    grads = fastbn.batch_norm_backward(dy, ctx)
    assert (grads.dweight.dtype, grads.dbias.dtype) == (weight.dtype, bias.dtype)
    check_backward(grads, reference.backward(dy, x, weight), dy, reference.forward(x), weight)
