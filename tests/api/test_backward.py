"""The backward pass agrees with the oracle and with central differences."""

import numpy as np
import pytest

import fastbn
import reference
from grid import LARGE, SMALL, STORED, affine, draw, poisoned, thinned
from tolerance import check_backward, check_differences

DTYPES = [np.float64, np.float32]  # while another worker compiles what float32 takes forward
WRITABLE = [name for name in STORED if name not in ("readonly", "subclass")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SMALL + LARGE)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.bounds
def test_against_the_oracle(rng, shape, axis, dtype, frozen):
    x, dy = draw(rng, shape, dtype, mean=3), draw(rng, shape, dtype, mean=0.5)
    weight, bias = affine(rng, shape[axis], dtype)
    given = {}
    if frozen:
        given = {"mean": draw(rng, shape[axis], dtype), "var": rng.uniform(0.1, 3, shape[axis]).astype(dtype)}
        running = {"running_mean": given["mean"], "running_var": given["var"], "training": False}
    _, ctx = fastbn.batch_norm(x, weight, bias, axis=axis, **(running if frozen else {}))
    assert ctx.frozen is frozen
    grads = fastbn.batch_norm_backward(dy, ctx, out=poisoned(shape, dtype))
    expected = reference.backward(dy, x, weight, axis=axis, **given)
    check_backward(grads, expected, dy, reference.forward(x, axis=axis, **given), weight)
    assert {grads.dx.dtype, grads.dweight.dtype, grads.dbias.dtype} == {np.dtype(dtype)}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 1), ((4, 2, 3), 1), ((3, 2, 2, 2), -1), ((2, 3, 2, 2), 0)])
def test_against_central_differences(rng, shape, axis, training):
    x, dy = draw(rng, shape, np.float64), draw(rng, shape, np.float64)
    weight, bias = affine(rng, shape[axis], np.float64)
    running = {"running_mean": draw(rng, shape[axis], np.float64), "running_var": rng.uniform(0.5, 2, shape[axis])}

    def loss():
        given = {} if training else running
        return float((fastbn.batch_norm(x, weight, bias, axis=axis, training=training, **given)[0] * dy).sum())

    _, ctx = fastbn.batch_norm(x, weight, bias, axis=axis, training=training, **({} if training else running))
    grads = fastbn.batch_norm_backward(dy, ctx)
    for values, gradient in ((x, grads.dx), (weight, grads.dweight), (bias, grads.dbias)):
        check_differences(loss, values, gradient)


@pytest.mark.parametrize(("stored_x", "stored_dy", "dtype"), thinned(STORED, STORED, DTYPES))
def test_any_strides(rng, stored_x, stored_dy, dtype):
    shape = (6, 5, 4, 9)
    x, dy = draw(rng, shape, dtype), draw(rng, shape, dtype)
    weight, bias = affine(rng, 5, dtype)
    _, ctx = fastbn.batch_norm(STORED[stored_x](x), weight, bias)
    grads = fastbn.batch_norm_backward(STORED[stored_dy](dy), ctx)
    check_backward(grads, reference.backward(dy, x, weight), dy, reference.forward(x), weight)
    assert type(grads.dx) is np.ndarray


@pytest.mark.parametrize("into", WRITABLE)
@pytest.mark.parametrize("stored", ["contiguous", "channels_last", "sliced"])
def test_out_of_any_strides(rng, stored, into):
    shape = (6, 5, 4, 9)
    x, dy = draw(rng, shape, np.float32), draw(rng, shape, np.float32)
    _, ctx = fastbn.batch_norm(STORED[stored](x), np.ones(5, np.float32), np.zeros(5, np.float32))
    out = STORED[into](poisoned(shape, np.float32))
    grads = fastbn.batch_norm_backward(dy, ctx, out=out)
    assert grads.dx is out
    check_backward(grads, reference.backward(dy, x), dy, reference.forward(x))


@pytest.mark.parametrize(
    ("shape", "stored", "over"),
    thinned(
        [(6, 5, 9), (40, 6), (9, 3, 90, 90), (300, 200)],
        ["contiguous", "channels_last", "sliced", "reversed"],
        ["dy", "x"],
    ),
)
def test_in_place(rng, shape, stored, over):
    x, dy = draw(rng, shape, np.float32), draw(rng, shape, np.float32)
    given = {"x": STORED[stored](x), "dy": STORED[stored](dy)}
    _, ctx = fastbn.batch_norm(given["x"])
    expected = fastbn.batch_norm_backward(dy, ctx).dx
    grads = fastbn.batch_norm_backward(given["dy"], ctx, out=given[over])
    assert grads.dx is given[over]
    np.testing.assert_array_equal(grads.dx, expected)
    if over == "x":
        with pytest.raises(ValueError, match="ctx: expected one that still has x"):
            fastbn.batch_norm_backward(dy, ctx)
    else:
        np.testing.assert_array_equal(np.asarray(given["x"]), x)


def test_gradients_have_the_parameters_dtypes_and_are_none_without_them(rng):
    x = draw(rng, (8, 3), np.float32)
    _, ctx = fastbn.batch_norm(x, np.ones(3, np.float64), None)
    grads = fastbn.batch_norm_backward(x, ctx)
    assert grads.dweight.dtype == np.float64
    assert grads.dbias is None
    _, ctx = fastbn.batch_norm(x, None, np.ones(3, np.float32))
    grads = fastbn.batch_norm_backward(x, ctx)
    assert grads.dweight is None
    assert grads.dbias.dtype == np.float32


def test_the_weight_at_the_time_of_the_forward_pass_counts(rng):
    x, weight = draw(rng, (8, 3), np.float32), np.ones(3, np.float32)
    _, ctx = fastbn.batch_norm(x, weight)
    expected = fastbn.batch_norm_backward(x * x, ctx).dx
    weight[:] = 5
    np.testing.assert_array_equal(fastbn.batch_norm_backward(x * x, ctx).dx, expected)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4)])
def test_frozen_gradient_of_nothing(shape):
    x = np.empty(shape, np.float32)
    w = np.ones(3, np.float32)
    _, ctx = fastbn.batch_norm(x, w, w, running_mean=w, running_var=w, training=False)
    grads = fastbn.batch_norm_backward(x, ctx)
    assert grads.dx.shape == shape
    np.testing.assert_array_equal(grads.dweight, 0)
    np.testing.assert_array_equal(grads.dbias, 0)
