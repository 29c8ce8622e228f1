"""The training forward pass and inference agree with the oracle on every layout."""

import numpy as np
import pytest

import fastbn
import reference
from grid import LARGE, SMALL, STORED, affine, draw, poisoned, thinned
from tolerance import VAR, check_forward

DTYPES = [np.float32, np.float64]
KINDS = [(np.float32, "fast"), (np.float32, "exact"), (np.float64, "exact")]
STRIDED = [(6, 5, 9), (40, 6), (8, 16, 20, 20)]
WRITABLE = [name for name in STORED if name not in ("readonly", "subclass")]


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
@pytest.mark.parametrize(("shape", "axis"), SMALL + LARGE)
@pytest.mark.bounds
def test_training(rng, shape, axis, dtype, precision):
    x = draw(rng, shape, dtype, mean=3)
    weight, bias = affine(rng, shape[axis], dtype)
    y, ctx = fastbn.batch_norm(
        x, weight, bias, axis=axis, precision=precision, out=poisoned(shape, dtype)
    )  # fmt: skip
    f = reference.forward(x, weight, bias, axis=axis)
    check_forward(y, f, weight, bias, exact=precision == "exact")
    assert ctx.count == x.size // shape[axis]
    within = VAR if precision == "fast" else 1e-12
    std = np.sqrt(f.var.astype(float))
    np.testing.assert_array_less(np.abs(ctx.mean + ctx.mean_lo - f.mean), within * (std + 1e-9))
    np.testing.assert_array_equal(ctx.moments.mean, ctx.mean + ctx.mean_lo)
    np.testing.assert_allclose(ctx.moments.var(), f.var.astype(float), rtol=within, atol=1e-20)
    np.testing.assert_allclose(ctx.invstd, f.invstd.astype(float), rtol=within)


@pytest.mark.parametrize(
    ("shape", "given", "dtype"), thinned([(9, 4, 11), (40, 6)], ["both", "weight", "bias", "neither"], DTYPES)
)
def test_affine_in_part(rng, shape, given, dtype):
    axis = 1
    x = draw(rng, shape, dtype)
    weight, bias = affine(rng, shape[axis], dtype)
    weight = weight if given in ("both", "weight") else None
    bias = bias if given in ("both", "bias") else None
    y, _ = fastbn.batch_norm(x, weight, bias, axis=axis)
    f = reference.forward(x, weight, bias, axis=axis)
    check_forward(y, f, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis"), SMALL + LARGE)
@pytest.mark.bounds
def test_running_statistics(rng, shape, axis, dtype):
    x = draw(rng, shape, dtype, mean=3)
    count = shape[axis]
    weight, bias = affine(rng, count, dtype)
    mean, var = draw(rng, count, dtype), rng.uniform(0.1, 3, count).astype(dtype)
    y = fastbn.batch_norm_inference(x, mean, var, weight, bias, axis=axis, eps=1e-3, out=poisoned(shape, dtype))
    f = reference.forward(x, weight, bias, mean=mean, var=var, eps=1e-3, axis=axis)
    check_forward(y, f, weight, bias)
    z, ctx = fastbn.batch_norm(x, weight, bias, running_mean=mean, running_var=var, training=False, axis=axis, eps=1e-3)
    assert ctx.frozen
    np.testing.assert_array_equal(z, y)


@pytest.mark.parametrize(("shape", "stored", "dtype"), thinned(STRIDED, STORED, DTYPES))
def test_any_strides(rng, shape, stored, dtype):
    x = draw(rng, shape, dtype)
    weight, bias = affine(rng, shape[1], dtype)
    given = STORED[stored](x)
    y, ctx = fastbn.batch_norm(given, weight, bias)
    f = reference.forward(x, weight, bias)
    check_forward(y, f, weight, bias)
    np.testing.assert_array_equal(np.asarray(given), x)  # the input is as it was
    assert type(y) is np.ndarray
    assert y.dtype == dtype
    np.testing.assert_array_equal(np.asarray(ctx.x), x)


@pytest.mark.parametrize(
    ("shape", "stored", "into", "dtype"),
    thinned(STRIDED, ["contiguous", "channels_last", "sliced"], WRITABLE, DTYPES),
)
def test_out_of_any_strides(rng, shape, stored, into, dtype):
    x = draw(rng, shape, dtype)
    out = STORED[into](poisoned(shape, dtype))
    y, _ = fastbn.batch_norm(STORED[stored](x), out=out)
    assert y is out
    f = reference.forward(x)
    check_forward(y, f)


@pytest.mark.parametrize("stored", WRITABLE)
@pytest.mark.parametrize("shape", [*STRIDED, (9, 3, 90, 90)])
def test_in_place(rng, shape, stored):
    x = draw(rng, shape, np.float32)
    expected, _ = fastbn.batch_norm(STORED[stored](x))
    given = STORED[stored](x)
    y, ctx = fastbn.batch_norm(given, out=given)
    assert y is given
    np.testing.assert_array_equal(y, expected)
    assert ctx.x is None


def test_out_keeps_to_its_own_elements(rng):
    """A sliced output leaves what lies between its elements alone."""
    x = draw(rng, (4, 3, 5), np.float32)
    big = np.full((8, 6, 10), 7, np.float32)
    fastbn.batch_norm(x, out=big[::2, ::2, ::2])
    big[::2, ::2, ::2] = 7
    assert (big == 7).all()


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (64, 6)])
def test_memory_order_of_y_is_that_of_x(rng, shape):
    x = STORED["channels_last"](draw(rng, shape, np.float32))
    assert fastbn.batch_norm(x)[0].strides == x.strides


def test_contiguous_input_is_viewed_not_copied(rng, monkeypatch):
    """No layout that is contiguous in some order goes through a copy."""
    from fastbn import layout

    def refuse(*_):
        raise AssertionError("copied")

    monkeypatch.setattr(layout.np, "copyto", refuse)
    for order in ((0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0), (1, 0, 3, 2)):
        x = draw(rng, (3, 4, 5, 6), np.float32).transpose(order)
        for axis in range(4):
            y, ctx = fastbn.batch_norm(x, axis=axis)
            fastbn.batch_norm_backward(y, ctx)
            assert ctx.x is x


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0), (5, 0), (5, 0, 4)])
def test_inference_on_nothing_is_nothing(shape):
    x = np.empty(shape, np.float32)
    C = shape[1]
    y = fastbn.batch_norm_inference(x, np.zeros(C), np.ones(C))
    assert y.shape == shape
    assert y.dtype == np.float32


@pytest.mark.parametrize("shape", [(5, 0), (5, 0, 4)])
def test_training_without_channels_is_nothing(shape):
    y, ctx = fastbn.batch_norm(np.empty(shape, np.float32), running_mean=np.empty(0), running_var=np.empty(0))
    assert y.shape == shape
    assert ctx.moments.mean.shape == (0,)
    assert fastbn.batch_norm_backward(y, ctx).dx.shape == shape


def test_float64_population_statistics_of_float32_data(rng):
    """Statistics keep their float64 digits: at a mean of 1e6, a float32 mean would be off by 0.03 std."""
    x = draw(rng, (100, 4, 25), np.float32, mean=1e6)
    m = fastbn.batch_moments(x)
    y = fastbn.batch_norm_inference(x, m.mean, m.var())
    assert np.abs(y - reference.forward(x).y).max() < 1e-6
