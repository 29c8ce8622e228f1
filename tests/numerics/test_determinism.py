"""The same bits from run to run, for every plan, and wherever the result goes; `test_threads.py` has 16 threads."""

import numba
import numpy as np
import pytest

import fastbn
from grid import STORED, draw
from plans import force

SHAPES = [
    ((8, 24, 25, 25), 1),
    ((16, 40, 12, 12), 1),
    ((2, 3, 110, 110), 1),
    ((3, 8, 60, 60), 1),  # past the cache, one channel is written while the next is summed
    ((200, 5, 7, 7), 1),
    ((3000, 40), 1),
    ((200, 700), 1),
    ((3, 1, 40000), 1),
]


def results(x, dy, axis):
    weight = np.linspace(0.5, 2, x.shape[axis]).astype(x.dtype)
    running_mean, running_var = np.zeros_like(weight), np.ones_like(weight)
    y, ctx = fastbn.batch_norm(x, weight, weight, axis=axis, running_mean=running_mean, running_var=running_var)
    grads = fastbn.batch_norm_backward(dy, ctx)
    m, sums = fastbn.batch_moments(x, axis=axis), fastbn.backward_sums(dy, ctx)
    z, _ = fastbn.batch_norm(
        x, weight, weight, axis=axis, running_mean=running_mean, running_var=running_var, training=False
    )
    return [
        y, running_mean, running_var, grads.dx, grads.dweight, grads.dbias,
        m.mean, m.m2, sums.sum_dy, sums.sum_dy_xhat, ctx.mean, ctx.mean_lo, ctx.moments.m2, ctx.invstd, z,
    ]  # fmt: skip


def same(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture(params=SHAPES, ids=lambda case: str(case[0]))
def case(request, rng):
    shape, axis = request.param
    return draw(rng, shape, np.float32, mean=10), draw(rng, shape, np.float32), axis


def test_run_to_run(case):
    same(results(*case), results(*case))


def test_any_number_of_threads(case):
    expected = results(*case)
    before = numba.get_num_threads()
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            same(results(*case), expected)
            assert numba.get_num_threads() == count
    finally:
        numba.set_num_threads(before)


def test_serial_and_parallel(case, monkeypatch):
    expected = results(*case)
    force(monkeypatch, parallel=False)
    same(results(*case), expected)


def test_whole_channels_and_tiles_of_channels(case, monkeypatch):
    found = []
    for family in ("channels_first", "tiles"):
        force(monkeypatch, family=family)
        found.append(results(*case))
    same(*found)


@pytest.mark.bounds
@pytest.mark.parametrize("past_cache", [False, True])
def test_through_the_cache_and_past_it(case, monkeypatch, past_cache):
    expected = results(*case)
    force(monkeypatch, past_cache=(past_cache, past_cache))
    same(results(*case), expected)
    x, _, axis = case
    force(monkeypatch, past_cache=(True, True))
    # Every place that an output may have in its first cache line; in plain Python, two.
    for shift in range(0, 20, 13 if numba.config.DISABLE_JIT else 3):
        out = np.full(x.size + 20, np.nan, x.dtype)
        y, _ = fastbn.batch_norm(x, axis=axis, out=out[shift : shift + x.size].reshape(x.shape))
        np.testing.assert_array_equal(y, fastbn.batch_norm(x, axis=axis)[0])
        assert np.isnan(out[:shift]).all()
        assert np.isnan(out[shift + x.size :]).all()


@pytest.mark.parametrize("stored", ["sliced", "reversed", "unaligned", "readonly"])
def test_wherever_x_and_y_are(case, stored):
    x, dy, axis = case
    expected, ctx = fastbn.batch_norm(x, axis=axis)
    expected_dx = fastbn.batch_norm_backward(dy, ctx).dx
    y, ctx = fastbn.batch_norm(STORED[stored](x), axis=axis)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(fastbn.batch_norm_backward(STORED[stored](dy), ctx).dx, expected_dx)
    x = x.copy()
    np.testing.assert_array_equal(fastbn.batch_norm(x, axis=axis, out=x)[0], expected)
