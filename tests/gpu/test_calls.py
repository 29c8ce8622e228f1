"""Calls on arrays on a GPU: parameters from anywhere, any strides, statistics given and taken, errors that teach."""

import numpy as np
import pytest

import fastbn
import reference
from gpu_helpers import gpu, gradients, here, needed, poisoned, there  # noqa: F401
from gpu_tolerance import FAST, check_backward, check_forward
from grid import affine, draw, thinned

pytestmark = needed

SHAPE = (6, 4, 8, 8)


@pytest.fixture
def x(rng):
    return draw(rng, SHAPE, np.float32, mean=3)


@pytest.fixture
def dy(rng):
    return draw(rng, SHAPE, np.float32)


@pytest.mark.parametrize(
    ("dtypes", "placed", "precision"), thinned(["ff", "dd", "fd", "df"], ["gpu", "numpy"], ["fast", "exact"])
)
def test_parameters_of_any_dtype_and_place(rng, x, dy, placed, dtypes, precision):
    exact = precision == "exact"
    weight, bias = affine(rng, 4, np.float64)
    weight, bias = weight.astype(dtypes[0]), bias.astype(dtypes[1])
    put = there if placed == "gpu" else np.copy
    mean, var = put(np.zeros(4, dtypes[0])), put(np.ones(4, dtypes[1]))
    y, ctx = fastbn.batch_norm(
        there(x), put(weight), put(bias), running_mean=mean, running_var=var, precision=precision
    )
    f = reference.forward(x, weight, bias)
    check_forward(here(y), f, weight, bias, exact=exact)
    unbiased = f.var * x[:, 0].size / (x[:, 0].size - 1)
    for moved, old, batch, dtype in ((mean, 0.0, f.mean, dtypes[0]), (var, 1.0, unbiased, dtypes[1])):
        expected = reference.running(np.full(4, old), batch, 0.1).astype(float)
        np.testing.assert_allclose(here(moved), expected, rtol=1e-13 if exact and dtype == "d" else 1e-6)
    grads = fastbn.batch_norm_backward(there(dy), ctx)
    assert isinstance(grads.dweight, np.ndarray) == (placed == "numpy")
    check_backward(gradients(grads), reference.backward(dy, x, weight), dy, f, weight, exact=exact)
    assert (here(grads.dweight).dtype, here(grads.dbias).dtype) == (weight.dtype, bias.dtype)
    assert (y.shape, ctx.count) == (x.shape, x[:, 0].size)


@pytest.mark.parametrize("given", ["weight", "bias", "neither"])
def test_affine_in_part(rng, x, dy, given):
    weight, bias = affine(rng, 4, np.float32)
    weight, bias = (weight if given == "weight" else None), (bias if given == "bias" else None)
    y, ctx = fastbn.batch_norm(
        there(x), None if weight is None else there(weight), None if bias is None else there(bias)
    )
    check_forward(here(y), reference.forward(x, weight, bias), weight, bias)
    grads = fastbn.batch_norm_backward(there(dy), ctx)
    assert (grads.dweight is None, grads.dbias is None) == (weight is None, bias is None)


STRIDED = {
    "every other sample": lambda a: a[::2],
    "every other column": lambda a: a[..., ::2],
    "every other channel": lambda a: a[:, ::2],
    "backwards": lambda a: a[::-1],
    "a corner": lambda a: a[1:5, 1:3, 2:7, 3:6],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("name", STRIDED)
def test_any_strides(rng, name, dtype):
    whole, gradient = draw(rng, SHAPE, dtype), draw(rng, SHAPE, dtype)
    view = STRIDED[name]
    x, dy = view(whole), view(gradient)
    device_x = view(there(whole))
    y, ctx = fastbn.batch_norm(device_x)
    f = reference.forward(np.ascontiguousarray(x))
    check_forward(here(y), f)
    grads = gradients(fastbn.batch_norm_backward(view(there(gradient)), ctx))
    check_backward(grads, reference.backward(dy, x), dy, f)
    room = there(np.full(SHAPE, np.nan, dtype))
    fastbn.batch_norm(there(np.ascontiguousarray(x)), out=view(room))
    result = here(room)
    check_forward(view(result), f)
    assert np.isnan(result).sum() == whole.size - x.size, "values outside the view were written"


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("skipped", [1, 2, 3])
def test_data_that_is_not_aligned(rng, dtype, skipped):
    values = draw(rng, (3 * 4 * 20 + skipped,), dtype)
    x = values[skipped:].reshape(3, 4, 20)
    device_x = there(values)[skipped:].reshape(3, 4, 20)
    y, ctx = fastbn.batch_norm(device_x)
    check_forward(here(y), reference.forward(x))
    check_backward(
        gradients(fastbn.batch_norm_backward(device_x, ctx)), reference.backward(x, x), x, reference.forward(x)
    )


def test_channels_last_stays_channels_last(rng):
    stored = draw(rng, (3, 8, 8, 4), np.float32)
    x = stored.transpose(0, 3, 1, 2)
    given = there(stored).transpose((0, 3, 1, 2)) if not hasattr(there(stored), "_ary") else None
    if given is None:  # the simulator's arrays copy where a transpose is asked for; a Fortran array shows the same
        x = np.asfortranarray(stored)
        given = fastbn.to_device(x)
    y, _ = fastbn.batch_norm(given)
    assert y.strides == given.strides
    check_forward(here(y), reference.forward(x))


def test_moments_given_and_taken(rng, x, dy):
    half = there(x[:3]), there(x[3:])
    m = fastbn.batch_moments(half[0]).merge(fastbn.batch_moments(half[1]))
    expected = fastbn.batch_moments(x)
    np.testing.assert_allclose(m.mean, expected.mean, rtol=1e-13)
    np.testing.assert_allclose(m.m2, expected.m2, rtol=1e-12)
    mean, var = there(np.zeros(4, np.float32)), np.ones(4, np.float32)
    parts = [fastbn.batch_norm(part, moments=m, running_mean=mean, running_var=var, momentum=1.0) for part in half]
    y = np.concatenate([here(part) for part, _ in parts])
    f = reference.forward(x)
    check_forward(y, f)
    np.testing.assert_allclose(here(mean), expected.mean, rtol=1e-6)
    np.testing.assert_allclose(var, expected.var(1), rtol=1e-6)
    sums = [fastbn.backward_sums(there(g), ctx) for g, (_, ctx) in zip((dy[:3], dy[3:]), parts, strict=True)]
    both = sums[0].merge(sums[1])
    with pytest.raises(ValueError, match="sums: expected the merged"):
        fastbn.batch_norm_backward(there(dy[:3]), parts[0][1])
    dx = [
        here(fastbn.batch_norm_backward(there(g), ctx, sums=both).dx)
        for g, (_, ctx) in zip((dy[:3], dy[3:]), parts, strict=True)
    ]
    own = fastbn.Gradients(np.concatenate(dx), None, None)
    check_backward(own, reference.backward(dy, x), dy, f)


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_a_round_trip_gives_what_the_cpu_gives(rng, x, dy, axis):
    weight, bias = affine(rng, SHAPE[axis], np.float32)
    stored = np.asfortranarray(x)
    over = stored.copy(order="K")
    y, ctx = fastbn.batch_norm(over, weight, bias, axis=axis, out=over, device="cuda")
    assert y is over
    check_forward(y, reference.forward(x, weight, bias, axis=axis), weight, bias, axis=axis)
    with pytest.raises(ValueError, match="overwritten"):
        fastbn.batch_norm_backward(dy, ctx)
    y, ctx = fastbn.batch_norm(stored, weight, bias, axis=axis, device="cuda")
    assert ctx.precision == "fast"
    assert (type(y), y.strides) == (np.ndarray, stored.strides)
    out = np.full(SHAPE, np.nan, np.float32)
    grads = fastbn.batch_norm_backward(dy, ctx, out=out)
    assert grads.dx is out
    f = reference.forward(x, axis=axis)
    check_backward(grads, reference.backward(dy, x, weight, axis=axis), dy, f, weight, axis=axis)
    sums = fastbn.backward_sums(dy, ctx)
    size = np.abs(dy).sum(tuple({0, 1, 2, 3} - {axis}))
    assert (np.abs(sums.sum_dy - dy.astype(float).sum(tuple({0, 1, 2, 3} - {axis}))) <= FAST * size).all()
    m = fastbn.batch_moments(stored, axis=axis, device="cuda")
    np.testing.assert_allclose(m.mean, fastbn.batch_moments(x, axis=axis, device="cpu").mean, rtol=1e-12)


def test_the_layer_computes_where_x_is(rng, x, dy):
    layer, expected = fastbn.BatchNorm(4), fastbn.BatchNorm(4, device="cpu")
    y = layer(there(x))
    assert not isinstance(y, np.ndarray)
    np.testing.assert_allclose(here(y), expected(x), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(here(layer.backward(there(dy))), expected.backward(dy), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(layer.dweight, expected.dweight, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(layer.running_var, expected.running_var, rtol=1e-6)
    assert layer.num_batches_tracked == 1
    y = fastbn.BatchNorm(4, device="cuda").eval()(x)
    assert isinstance(y, np.ndarray)


def test_an_empty_batch():
    empty = there(np.empty((0, 3, 4), np.float32))
    mean, var = there(np.zeros(3, np.float32)), there(np.ones(3, np.float32))
    assert fastbn.batch_norm_inference(empty, mean, var).shape == (0, 3, 4)
    assert fastbn.batch_moments(empty).count == 0
    with pytest.raises(ValueError, match="empty batch"):
        fastbn.batch_norm(empty)


WRONG = {
    "an axis": (lambda x: fastbn.batch_norm(there(x), axis=7), ValueError, "axis: expected"),
    "an eps": (lambda x: fastbn.batch_norm(there(x), eps=0.0), ValueError, "eps: expected"),
    "integers": (lambda x: fastbn.batch_norm(there(x.astype(np.int32))), TypeError, "x: expected"),
    "a short weight": (
        lambda x: fastbn.batch_norm(there(x), there(np.ones(3, np.float32))),
        ValueError, r"weight: expected shape \(4,\)",
    ),
    "a 16-bit weight": (
        lambda x: fastbn.batch_norm(there(x), there(np.ones(4, np.float16))), TypeError, "weight: expected",
    ),
    "one of two statistics": (
        lambda x: fastbn.batch_norm(there(x), running_mean=there(np.ones(4, np.float32))),
        ValueError, "running_var: expected",
    ),
    "no statistics": (lambda x: fastbn.batch_norm(there(x), training=False), ValueError, "running_mean, running_var"),
    "out on the host": (
        lambda x: fastbn.batch_norm(there(x), out=np.empty_like(x)), TypeError, "out: expected an array on",
    ),
    "out of another shape": (
        lambda x: fastbn.batch_norm(there(x), out=poisoned((6, 4, 8), x.dtype)), ValueError, "out: expected shape",
    ),
    "out of another dtype": (
        lambda x: fastbn.batch_norm(there(x), out=poisoned(SHAPE, np.float64)), TypeError, "out: expected dtype",
    ),
    "dy on the host": (
        lambda x: fastbn.batch_norm_backward(x, fastbn.batch_norm(there(x))[1]), TypeError, "dy: expected an array on",
    ),
    "dy of another shape": (
        lambda x: fastbn.batch_norm_backward(there(x[:2]), fastbn.batch_norm(there(x))[1]),
        ValueError, "dy: expected the shape",
    ),
    "the CPU for an array on a GPU": (
        lambda x: fastbn.batch_norm(there(x), device="cpu"), ValueError, "device: expected None or 'cuda'",
    ),
    "another device": (lambda x: fastbn.batch_norm(there(x), device="tpu"), ValueError, "device: expected"),
    "one value a channel": (
        lambda x: fastbn.batch_norm(
            there(x[:1, :, :1, :1].copy()),
            running_mean=there(np.ones(4, np.float32)), running_var=there(np.ones(4, np.float32)),
        ), ValueError, "correction: expected less",
    ),
    "a list": (lambda x: fastbn.batch_norm([[1.0]], device="cuda"), TypeError, "x: expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_errors_teach(x, name):
    call, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        call(x)


def test_nothing_is_written_before_an_error(x):
    values = there(np.arange(2 * x.size, dtype=np.float32))
    first, overlapping = values[: x.size].reshape(SHAPE), values[4 : 4 + x.size].reshape(SHAPE)
    mean, var = there(np.zeros(4, np.float32)), there(np.ones(4, np.float32))
    with pytest.raises(ValueError, match="out: expected x itself or memory apart"):
        fastbn.batch_norm(first, running_mean=mean, running_var=var, out=overlapping)
    np.testing.assert_array_equal(here(values), np.arange(2 * x.size))
    np.testing.assert_array_equal(here(mean), 0)
    with pytest.raises(ValueError, match="running_mean: expected memory apart"):
        fastbn.batch_norm(there(x), running_mean=mean, running_var=mean)
