"""Statistics can be taken, merged and given, forward and backward, and nothing depends on how a batch was cut."""

import numpy as np
import pytest

import fastbn
import reference
from fastbn import Moments
from grid import LARGE, SMALL, STORED, affine, draw
from tolerance import check, check_backward, check_forward, relative


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), SMALL + LARGE)
@pytest.mark.bounds
def test_batch_moments(rng, shape, axis, dtype):
    x = draw(rng, shape, dtype, mean=5)
    m = fastbn.batch_moments(x, axis=axis)
    mean, var = reference.moments(x, axis)
    assert m.count == x.size // shape[axis]
    assert m.mean.dtype == m.m2.dtype == np.float64
    f = reference.forward(x, axis=axis)
    error = relative(m.count, np.abs(f.xhat).max())
    check(m.mean, mean, error * np.sqrt(var).max())
    check(m.m2, var * m.count, error * (var * m.count).max())


@pytest.mark.parametrize("stored", STORED)
def test_batch_moments_of_any_strides(rng, stored):
    x = draw(rng, (6, 5, 9), np.float64)
    m = fastbn.batch_moments(STORED[stored](x))
    np.testing.assert_allclose(m.mean, x.mean((0, 2)), rtol=1e-13, atol=1e-15)


def test_of_nothing():
    m = fastbn.batch_moments(np.empty((0, 3), np.float32))
    assert m.count == 0
    np.testing.assert_array_equal(m.mean, np.zeros(3))
    with pytest.raises(ValueError, match="correction: expected less than the 0 values"):
        m.var()


def test_merge_is_the_whole(rng):
    x = draw(rng, (50, 4, 6), np.float64, mean=1e3)
    whole = fastbn.batch_moments(x)
    parts = [fastbn.batch_moments(part) for part in np.split(x, [0, 1, 20])]
    assert [part.count for part in parts] == [0, 6, 114, 180]
    merged = parts[0].merge(*parts[1:])
    assert merged.count == whole.count
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-11)
    np.testing.assert_allclose(merged.var(1), x.var((0, 2), ddof=1), rtol=1e-11)


def test_merge_by_hand():
    m = Moments(2, [1.0], [2.0]).merge(Moments(2, [5.0], [0.0]))  # 0, 2 and 5, 5
    assert (m.count, m.mean[0], m.m2[0]) == (4, 3.0, 18.0)
    assert m.var()[0] == 4.5
    assert m.var(correction=1)[0] == 6.0


def test_welford_one_value_at_a_time(rng):
    """Merging single values is Welford's recurrence."""
    x = rng.standard_normal((40, 2)) + 7
    m = Moments(0, np.zeros(2), np.zeros(2))
    mean, m2 = np.zeros(2), np.zeros(2)
    for n, row in enumerate(x, 1):
        m = m.merge(Moments(1, row, np.zeros(2)))
        delta = row - mean
        mean = mean + delta / n
        m2 = m2 + delta * (row - mean)
    np.testing.assert_allclose(m.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(m.m2, m2, rtol=1e-13)


@pytest.mark.parametrize("cuts", [[10], [1, 2], [5, 20, 29]])
@pytest.mark.parametrize("shape", [(30, 6), (30, 6, 7), (30, 40, 8, 8)])
@pytest.mark.bounds
def test_ranks_that_share_statistics_are_one_batch(rng, shape, cuts):
    """Every rank normalises its part with all ranks' moments, and goes back with all ranks' sums."""
    x, dy = draw(rng, shape, np.float32, mean=2), draw(rng, shape, np.float32)
    weight, bias = affine(rng, shape[1], np.float32)
    f = reference.forward(x, weight, bias)
    expected = reference.backward(dy, x, weight)
    xs, dys = np.split(x, cuts), np.split(dy, cuts)
    parts = [fastbn.batch_moments(part) for part in xs]
    moments = parts[0].merge(*parts[1:])
    ys, ctxs = zip(*(fastbn.batch_norm(part, weight, bias, moments=moments) for part in xs), strict=True)
    check_forward(np.concatenate(ys), f, weight, bias)
    partial = [fastbn.backward_sums(g, ctx) for g, ctx in zip(dys, ctxs, strict=True)]
    sums = partial[0].merge(*partial[1:])
    assert sums.count == moments.count
    grads = [fastbn.batch_norm_backward(g, ctx, sums=sums) for g, ctx in zip(dys, ctxs, strict=True)]
    for own in grads:
        np.testing.assert_array_equal(own.dweight, grads[0].dweight)
    dx = np.concatenate([own.dx for own in grads])
    check_backward(fastbn.Gradients(dx, grads[0].dweight, grads[0].dbias), expected, dy, f, weight)


def test_sums_are_the_gradients_of_the_parameters(rng):
    x, dy = draw(rng, (9, 4, 5), np.float32), draw(rng, (9, 4, 5), np.float32)
    _, ctx = fastbn.batch_norm(x, np.ones(4, np.float32), np.ones(4, np.float32))
    sums, grads = fastbn.backward_sums(dy, ctx), fastbn.batch_norm_backward(dy, ctx)
    assert sums.count == 45
    np.testing.assert_array_equal(sums.sum_dy_xhat.astype(np.float32), grads.dweight)
    np.testing.assert_array_equal(sums.sum_dy.astype(np.float32), grads.dbias)
    np.testing.assert_array_equal(fastbn.batch_norm_backward(dy, ctx, sums=sums).dx, grads.dx)


def test_running_statistics_from_given_moments(rng):
    x = draw(rng, (8, 3), np.float32)
    moments = fastbn.batch_moments(draw(rng, (100, 3), np.float32))
    mean, var = np.zeros(3), np.ones(3)
    fastbn.batch_norm(x, moments=moments, running_mean=mean, running_var=var, momentum=0.5)
    np.testing.assert_allclose(mean, 0.5 * moments.mean, rtol=1e-15)
    np.testing.assert_allclose(var, 0.5 + 0.5 * moments.var(1), rtol=1e-15)
