"""The numerical contract: any mean, any scale, NaN and infinity in their place."""

import numpy as np
import pytest

import fastbn
import reference
from grid import affine, draw, thinned
from tolerance import VAR, check_backward, check_forward, statistics

# Both families, every plan: whole channels, tiles of few channels, rows, and the serial ones.
DTYPES = [np.float32, np.float64]
KINDS = [(np.float32, "fast"), (np.float32, "exact"), (np.float64, "exact")]
SHAPES = [
    ((8, 8, 28, 28), 1),
    ((2, 3, 110, 110), 1),
    ((8, 24, 24, 8), -1),
    ((600, 64), 1),
    ((64, 16), 1),
    ((8, 4, 30), 1),
]


@pytest.mark.parametrize("mean", [0.0, 1.0, 100.0, 1e4, 1e6])
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_far_from_zero(rng, shape, axis, mean):
    """The contract asks for var within 1e-6 and 4 ulp of terms at |mean| / std up to 1e6; "exact" keeps it by far."""
    x, dy = draw(rng, shape, np.float32, mean=mean), draw(rng, shape, np.float32)
    weight, bias = affine(rng, shape[axis], np.float32)
    f = reference.forward(x, weight, bias, axis=axis)
    expected = reference.backward(dy, x, weight, axis=axis)
    y, ctx = fastbn.batch_norm(x, weight, bias, axis=axis, precision="fast")
    assert np.abs(ctx.moments.var() / f.var - 1).max() <= VAR
    check_forward(y, f, weight, bias)
    check_backward(fastbn.batch_norm_backward(dy, ctx), expected, dy, f, weight)
    y, ctx = fastbn.batch_norm(x, weight, bias, axis=axis, precision="exact")
    assert np.abs(ctx.moments.var() / f.var - 1).max() <= 1e-12
    terms = np.abs(reference.column(weight, x, axis)) * np.maximum(np.abs(f.xhat), 1) + np.abs(
        reference.column(bias, x, axis)
    )
    # y may be off by half an ulp and 1e-12 of its terms, which is as much if y is 2^-15 of them or less.
    ordinary = np.abs(f.y) >= 1e-12 * 2.0**24 / 0.5 * terms
    assert reference.ulps(y[ordinary], f.y[ordinary]) <= 1
    assert (
        ordinary.mean() > 0.9
    )  # far from zero, float32 has sixteen numbers a standard deviation, drawn many times each
    check_forward(y, f, weight, bias, exact=True)
    check_backward(fastbn.batch_norm_backward(dy, ctx), expected, dy, f, weight, exact=True)


@pytest.mark.parametrize(("case", "std", "kind"), thinned(SHAPES, [1e-20, 1e-3, 1e18, 1e30], KINDS))
def test_tiny_and_huge(rng, case, std, kind):
    """Squares and products leave the range of float32, but not what is computed in it."""
    (shape, axis), (dtype, precision) = case, kind
    x, dy = draw(rng, shape, dtype, std=std, mean=std), draw(rng, shape, dtype, std=std)
    eps = 1e-3 * std**2 + 1e-45
    y, ctx = fastbn.batch_norm(x, axis=axis, eps=eps, precision=precision)
    f = reference.forward(x, axis=axis, eps=eps)
    assert np.abs(ctx.moments.var() / f.var - 1).max() <= (VAR if precision == "fast" else 1e-12)
    check_forward(y, f, exact=precision == "exact")
    grads = fastbn.batch_norm_backward(dy, ctx)
    expected = reference.backward(dy, x, axis=axis, eps=eps)
    check_backward(grads, expected, dy, f, exact=precision == "exact")


@pytest.mark.parametrize(("dtype", "precision"), KINDS)
def test_drift_and_a_first_value_far_away(rng, dtype, precision):
    """Shifts are values of the data; a ramp and an outlier in first place are the worst that they can be."""
    n = 100_000
    ramp = np.linspace(-1e5, 1e5, n) + rng.standard_normal(n)
    outlier = rng.standard_normal(n)
    outlier[0] = 1e6
    for values in (ramp, outlier, ramp[::-1]):
        for shape, axis in (((n, 1), 1), ((n // 50, 1, 50), 1), ((1, 1, n), 1)):
            x = np.concatenate([values.reshape(shape)] * 2, axis=axis).astype(dtype)
            y, ctx = fastbn.batch_norm(x, axis=axis, precision=precision)
            f = reference.forward(x, axis=axis)
            exact = precision == "exact"
            assert np.abs(ctx.moments.var() / f.var - 1).max() <= statistics(n, 8, dtype, exact)
            check_forward(y, f, exact=exact)


@pytest.mark.parametrize(("case", "value", "dtype"), thinned(SHAPES, [0.0, 0.1, -3e7, 1e30], DTYPES))
def test_a_constant_channel_gives_exactly_the_bias(rng, case, value, dtype):
    shape, axis = case
    weight, bias = affine(rng, shape[axis], dtype)
    y, ctx = fastbn.batch_norm(np.full(shape, value, dtype), weight, bias, axis=axis)
    np.testing.assert_array_equal(ctx.moments.m2, 0)
    np.testing.assert_array_equal(y, np.broadcast_to(reference.column(bias, y, axis), shape))


@pytest.mark.parametrize(("case", "place", "bad"), thinned(SHAPES, [0, -1, "middle"], [np.nan, np.inf, -np.inf]))
def test_nan_and_infinity_stay_in_their_channel(rng, case, place, bad):
    shape, axis = case
    x, dy = draw(rng, shape, np.float32), draw(rng, shape, np.float32)
    clean, ctx = fastbn.batch_norm(x, axis=axis)
    clean_dx = fastbn.batch_norm_backward(dy, ctx).dx
    channel = np.moveaxis(x, axis, 0)[1].copy()
    channel.reshape(-1)[channel.size // 2 if place == "middle" else place] = bad
    np.moveaxis(x, axis, 0)[1] = channel
    y, ctx = fastbn.batch_norm(x, axis=axis)
    dx = fastbn.batch_norm_backward(dy, ctx).dx
    for got, want in ((y, clean), (dx, clean_dx)):
        rest = np.delete(got, 1, axis)
        np.testing.assert_array_equal(rest, np.delete(want, 1, axis))
        assert np.isnan(np.moveaxis(got, axis, 0)[1]).all()
    np.testing.assert_array_equal(ctx.moments.mean[1], bad)
    assert np.isnan(ctx.moments.m2[1])


def test_frozen_gradient_does_not_depend_on_x(rng):
    x, dy = draw(rng, (4, 3, 5), np.float32), draw(rng, (4, 3, 5), np.float32)
    x[1, 1, 1] = np.inf
    _, ctx = fastbn.batch_norm(x, running_mean=np.zeros(3), running_var=np.full(3, 3.0), training=False, eps=1.0)
    np.testing.assert_array_equal(fastbn.batch_norm_backward(dy, ctx).dx, dy / 2)


def test_a_variance_beyond_float32(rng):
    """x fits float32 and its variance does not: y is right, and the running variance is infinite, without a warning."""
    x = draw(rng, (64, 4, 30), np.float32, std=1e25)
    running_mean, running_var = np.zeros(4, np.float32), np.ones(4, np.float32)
    y, _ = fastbn.batch_norm(x, running_mean=running_mean, running_var=running_var)
    check_forward(y, reference.forward(x))
    assert np.isinf(running_var).all()


def test_denormals(rng):
    x = (rng.integers(-1000, 1000, (200, 3)) * np.float32(1e-45)).astype(np.float32)
    y, _ = fastbn.batch_norm(x, eps=1e-300)
    check_forward(y, reference.forward(x, eps=1e-300))
