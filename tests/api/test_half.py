"""float16 and bfloat16: stored as such, computed in float32, rounded once, with and without the processor's help."""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numba
import numpy as np
import pytest
from numba import njit

import fastbn
import reference
from fastbn.backends.cpu.plan import PARALLEL_FROM
from fastbn_kernels.cpu.simd.ops import LANES, param, store, value
from grid import LARGE, SMALL, STORED, affine, draw, poisoned
from plans import force
from tolerance import check, check_backward, check_forward, relative

HALVES = [np.float16, ml_dtypes.bfloat16]
BITS = {np.float16: np.int16, ml_dtypes.bfloat16: np.uint16}
# One shape of every plan: rows, segments and groups of short segments, small and large, few channels.
PLANS = [
    ((32, 64), 1),
    ((4, 3, 7, 7), 1),
    ((3000, 40), 1),
    ((4, 16, 25, 25), 1),
    ((16, 40, 12, 12), 1),
    ((3, 1, 40000), 1),
    ((3, 8, 60, 60), 1),
]


def of_make_test(shape, axis):
    """Return the dtypes that `make test` takes a shape in; in another one it is slow, as each compiles its kernels.

    Large tensors go in one of both: what the two do otherwise, decode and encode, is tested bit by bit.
    """
    if np.prod(shape) < PARALLEL_FROM:
        return HALVES
    length = np.prod(shape[axis + 1 :], dtype=int)
    return [np.float16 if length >= 512 else ml_dtypes.bfloat16]


def halves(cases):
    """Return (shape, axis, dtype) for cases (shape, axis), in both dtypes."""
    found = []
    for shape, axis in cases:
        taken = of_make_test(shape, axis % len(shape))
        for dtype in HALVES:
            marks = () if dtype in taken else pytest.mark.slow
            found.append(pytest.param(shape, axis, dtype, marks=marks, id=f"{shape}-{axis}-{dtype.__name__}"))
    return found


both = pytest.mark.parametrize("dtype", HALVES, ids=lambda dtype: dtype.__name__)
every_case = pytest.mark.parametrize(("shape", "axis", "dtype"), halves(SMALL + LARGE))
every_plan = pytest.mark.parametrize(("shape", "axis", "dtype"), halves(PLANS))


@njit
def decoded(bits, out):
    for i in range(bits.size):
        out[i] = value(bits, i)


@njit
def encoded(numbers, bits):
    for i in range(0, bits.size, LANES):
        store(bits, i, None, param(numbers.reshape((1, -1)), 0, i, None))


@both
def test_every_bit_pattern_is_read_rightly(dtype):
    bits = np.arange(65536, dtype=np.uint16)
    out = np.empty(bits.size)
    decoded(bits.view(BITS[dtype]), out)
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes a quiet one
        np.testing.assert_array_equal(out, bits.view(dtype).astype(np.float64))


@both
def test_float32_is_rounded_to_the_nearest_even(rng, dtype):
    with np.errstate(all="ignore"):  # NaN and what overflows is among these on purpose
        every = np.arange(65536, dtype=np.uint16).view(dtype).astype(np.float32)
        halfway = ((every[:-1].astype(np.float64) + every[1:]) / 2).astype(np.float32)
        above, below = (np.nextafter(halfway, np.float32(to)) for to in (np.inf, -np.inf))
        anything = rng.integers(0, 2**32, 1 << 20, dtype=np.uint32).view(np.float32)
        values = np.concatenate([every, halfway, above, below, anything])
        values = np.concatenate([values, np.zeros(-values.size % LANES, np.float32)])
        expected = values.astype(dtype).astype(np.float32)
    bits = np.empty(values.size, BITS[dtype])
    encoded(values, bits)
    with np.errstate(invalid="ignore"):
        got = bits.view(dtype).astype(np.float32)
    np.testing.assert_array_equal(got, expected)
    number = ~np.isnan(values)
    np.testing.assert_array_equal(np.signbit(got)[number], np.signbit(values)[number])


@pytest.mark.bounds
@every_case
@pytest.mark.parametrize("training", [True, False])
def test_against_the_oracle(rng, shape, axis, training, dtype):
    x, dy = draw(rng, shape, dtype, mean=3), draw(rng, shape, dtype, mean=0.5)
    C = shape[axis]
    weight, bias = affine(rng, C, np.float32)
    mean, var = draw(rng, C, np.float32), rng.uniform(0.1, 3, C).astype(np.float32)
    given = {} if training else {"mean": mean.copy(), "var": var.copy()}
    f = reference.forward(x, weight, bias, axis=axis, **given)
    can_update = x.size // C > 1
    running = {"running_mean": mean, "running_var": var} if can_update or not training else {}
    y, ctx = fastbn.batch_norm(
        x, weight, bias, axis=axis, training=training, out=poisoned(shape, np.float32).astype(dtype), **running
    )
    assert y.dtype == dtype
    check_forward(y, f, weight, bias)
    if training:
        reach = np.abs(f.xhat).max()
        np.testing.assert_allclose(ctx.moments.var(), f.var.astype(float), rtol=relative(0, reach, dtype), atol=1e-20)
    grads = fastbn.batch_norm_backward(dy, ctx, out=poisoned(shape, np.float32).astype(dtype))
    assert (grads.dx.dtype, grads.dweight.dtype, grads.dbias.dtype) == (dtype, np.float32, np.float32)
    expected = reference.backward(dy, x, weight, axis=axis, **given)
    check_backward(grads, expected, dy, reference.forward(x, axis=axis, **given), weight)


@every_plan
def test_running_statistics_and_moments(rng, shape, axis, dtype):
    x = draw(rng, shape, dtype, mean=5)
    C, count = shape[axis], x.size // shape[axis]
    mean, var = np.zeros(C, np.float32), np.ones(C, np.float32)
    fastbn.batch_norm(x, running_mean=mean, running_var=var, axis=axis)
    m = fastbn.batch_moments(x, axis=axis)
    batch_mean, batch_var = reference.moments(x, axis)
    reach = float((np.abs(x.astype(np.float64) - 5)).max())
    np.testing.assert_allclose(m.mean, batch_mean.astype(float), rtol=0, atol=relative(0, reach, dtype))
    check(mean, reference.running(np.zeros(C), batch_mean, 0.1), 0.1 * relative(0, reach, dtype) * (5 + reach))
    check(
        var,
        reference.running(np.ones(C), batch_var * count / (count - 1), 0.1),
        0.1 * relative(0, reach, dtype) * reach**2,
    )


@every_plan
def test_a_mean_far_from_zero(rng, shape, axis, dtype):
    """As far as the format holds it: the spacing of the data is an eighth of their standard deviation."""
    far = 2.0 ** (np.finfo(np.float16).nmant - 3) if dtype is np.float16 else 2.0 ** (ml_dtypes.finfo(dtype).nmant - 3)
    x = draw(rng, shape, dtype, mean=far)
    y, _ = fastbn.batch_norm(x, axis=axis)
    check_forward(y, reference.forward(x, axis=axis))


@every_plan
def test_the_same_bits(rng, shape, axis, dtype, monkeypatch):
    x, dy = draw(rng, shape, dtype), draw(rng, shape, dtype)

    def results():
        y, ctx = fastbn.batch_norm(x, axis=axis)
        over = x.copy()
        fastbn.batch_norm(over, axis=axis, out=over)
        np.testing.assert_array_equal(over, y)
        grads = fastbn.batch_norm_backward(dy, ctx)
        return y.view(np.uint16), grads.dx.view(np.uint16), ctx.saved

    expected = results()
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(1)
        for a, b in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    finally:
        numba.set_num_threads(before)
    force(monkeypatch, past_cache=(True, True))
    for a, b in zip(results(), expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("shape", "axis", "dtype"), halves([((6, 5, 9), 1), ((40, 6), 1), ((8, 16, 20, 20), 1)]))
def test_any_strides(rng, shape, axis, stored, dtype):
    x, dy = draw(rng, shape, dtype), draw(rng, shape, dtype)
    expected, expected_ctx = fastbn.batch_norm(x)
    y, ctx = fastbn.batch_norm(STORED[stored](x))
    check_forward(y, reference.forward(x))
    check_forward(expected, reference.forward(x))
    dx = fastbn.batch_norm_backward(STORED[stored](dy), ctx).dx
    assert dx.dtype == dtype
    check(dx, reference.backward(dy, x)[0], 100 * 2.0**-24)
    check(fastbn.batch_norm_backward(dy, expected_ctx).dx, reference.backward(dy, x)[0], 100 * 2.0**-24)


@every_plan
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_stay_in_their_channel(rng, shape, axis, bad, dtype):
    x = draw(rng, shape, dtype)
    if shape[axis] == 1:
        pytest.skip("one channel")
    clean, _ = fastbn.batch_norm(x, axis=axis)
    index = [0] * x.ndim
    index[axis] = 1
    x[tuple(index)] = bad
    y, ctx = fastbn.batch_norm(x, axis=axis)
    np.testing.assert_array_equal(np.delete(y, 1, axis), np.delete(clean, 1, axis))
    assert np.isnan(np.moveaxis(y, axis, 0)[1]).all()
    np.testing.assert_array_equal(ctx.moments.mean[1], bad)


@both
def test_parameters_may_be_float64(rng, dtype):
    x = draw(rng, (40, 6), dtype)
    weight, bias = affine(rng, 6, np.float64)
    y, ctx = fastbn.batch_norm(x, weight, bias)
    check_forward(y, reference.forward(x, weight, bias), weight, bias)
    assert fastbn.batch_norm_backward(x, ctx).dweight.dtype == np.float64


@both
def test_the_layer(rng, dtype):
    layer = fastbn.BatchNorm(6)
    x = draw(rng, (40, 6), dtype, mean=1)
    y = layer(x)
    dx = layer.backward(y)
    assert (y.dtype, dx.dtype, layer.dweight.dtype, layer.running_mean.dtype) == (dtype, dtype, np.float32, np.float32)
    assert layer.eval()(x).dtype == dtype


@pytest.mark.skipif(os.environ.get("NUMBA_CPU_NAME") == "generic", reason="this is that processor")
@pytest.mark.parametrize(
    "names",
    [
        "test_every_bit_pattern or test_float32_is_rounded",
        # bfloat16 is converted by the same operations on every processor.
        pytest.param("test_against_the_oracle and True and not bfloat16", marks=pytest.mark.slow),
    ],
    ids=["conversions", "kernels"],
)
def test_without_conversion_instructions(names):
    """The same tests on code for a processor that has none."""
    environment = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", __file__, "-m", "not slow", "-k", names]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
