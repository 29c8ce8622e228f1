"""Numbers of 16 channels at a time are, to the bit, those of one channel at a time."""

import numpy as np
import pytest
from numba import njit

from fastbn_kernels.cpu import columns, params
from fastbn_kernels.cpu.simd.ops import value
from fastbn_kernels.formulas import finite_or_zero, group
from fastbn_kernels.saved import M2, MEAN, MEAN_LO, ROWS, VAR

EPS, COUNT = 1e-5, 12.0
AT = 3  # the first column of what is filled: vectors need not be aligned
SPECIAL = np.array([0.0, -0.0, 1.0, np.nan, np.inf, -np.inf, 1e-30, -1e-30, 1e30, -1e30, 1e-45, 3e38, 1e6, -1e6])


@njit
def by_sixteen(x, saved, sums, offsets, around):
    """Return all that `columns` makes of channels."""
    C = saved.shape[1]
    grouped, found = sums.copy(), np.full((2, C), np.nan)
    grouped[1] = np.abs(grouped[1])  # squares
    forward, again, gradient = np.zeros((4, C + AT)), np.zeros((4, C + AT)), np.zeros((7, C + AT))
    columns.group_columns(x, 0, 1.0 / COUNT, around, AT, C + AT, grouped)
    columns.fill_forward(x, saved, EPS, 0, C, forward, AT)
    columns.fill_sums(x, saved, 0, C, again, AT)
    columns.save_sums(x, saved, 0, C, sums, AT, found)
    columns.fill_gradient(x, COUNT, saved, found, 0, C, gradient, AT)
    moments = np.full((2, ROWS, C), np.nan)
    columns.save_moments(x, COUNT, offsets, AT, 0, C, moments[0])
    numbers = np.empty((3, C))
    for c in range(C):
        numbers[0, c] = finite_or_zero(value(x, c))
    numbers[1:] = offsets[:, AT:]
    columns.save_channel_moments(x, COUNT, numbers, moments[1])
    return grouped[:, AT:], forward[:, AT:], again[:, AT:], found, gradient[:, AT:], moments


@njit
def by_one(x, saved, sums, offsets, around):
    """Return the same, of one channel after the other."""
    C = saved.shape[1]
    grouped, found = np.empty((2, C)), np.empty((2, C))
    forward, again, gradient = np.empty((4, C)), np.empty((4, C)), np.empty((7, C))
    moments = np.full((2, ROWS, C), np.nan)
    for c in range(C):
        origin, unit = finite_or_zero(value(x, c)), np.float64(around[1, AT + c])
        k, total, product = -np.float64(around[0, AT + c]) / unit, sums[0, AT + c], sums[1, AT + c]
        squares = abs(product) / (unit * unit)
        grouped[0, c], grouped[1, c] = group(1.0 / COUNT, k - origin, total / unit, squares)
        forward[0, c], forward[1, c], forward[2, c], forward[3, c] = params.channel_params(x, saved, c, EPS)
        again[0, c], again[1, c], again[2, c], again[3, c] = params.normalized_with(x, saved, c)
        found[0, c], found[1, c] = total, params.xhat_sum(x, saved, c, total, product)
        made = params.gradient_params(x, COUNT, saved, c, found[0, c], found[1, c])
        for row in range(7):
            gradient[row, c] = made[row]
        for k in range(2):
            moments[k, MEAN, c], moments[k, MEAN_LO, c] = params.as_pair(x, origin, offsets[0, AT + c])
            moments[k, M2, c], moments[k, VAR, c] = offsets[1, AT + c], offsets[1, AT + c] / COUNT
    return grouped, forward, again, found, gradient, moments


NAMES = "group_columns", "fill_forward", "fill_sums", "save_sums", "fill_gradient", "save_moments"


def bits(values):
    """Return numbers as they are stored, but one NaN for all: which of two is kept nobody promises."""
    return np.where(np.isnan(values), np.nan, values).view(np.int64)


def drawn(rng, count):
    """Return numbers of every size, every third one special."""
    values = rng.choice([-1, 1], count) * 10 ** rng.uniform(-8, 6, count)
    return np.where(rng.random(count) < 1 / 3, rng.choice(SPECIAL, count), values)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.float64])
def test_they_are_those_of_one_channel_at_a_time(rng, dtype):
    """Saved means have digits that float32 does not hold, as those of an exact forward pass."""
    stored, computed = (np.float32, np.float64) if dtype == np.int32 else (dtype, dtype)
    for C in [1, 15, 16, 17, 40] * 8:
        x = drawn(rng, 2 * C).astype(stored).view(dtype).reshape(2, C)
        saved = drawn(rng, ROWS * C).reshape(ROWS, C)
        saved[VAR] = np.abs(saved[VAR])
        sums, offsets = (drawn(rng, 2 * (C + AT)).reshape(2, C + AT) for _ in range(2))
        units = 2.0 ** rng.choice([0, -70, 100], C + AT) if computed == np.float32 else np.ones(C + AT)
        with np.errstate(over="ignore"):
            around = np.array([-drawn(rng, C + AT) * units, units]).astype(computed)
        one, other = saved.copy(), saved.copy()
        found, expected = by_sixteen(x, one, sums, offsets, around), by_one(x, other, sums, offsets, around)
        for name, some, same in zip((*NAMES, "saved"), (*found, one), (*expected, other), strict=True):
            np.testing.assert_array_equal(bits(some), bits(same), err_msg=f"{name}, {C} channels")
