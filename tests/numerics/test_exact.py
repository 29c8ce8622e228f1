"""Data whose statistics are known exactly: NIST's sets, and integers whose sums are exact in any order.

The expected values are rational numbers of the values as stored, not another floating-point computation.
"""

from fractions import Fraction

import numpy as np
import pytest

import fastbn
import reference
from grid import thinned
from tolerance import check_forward, statistics

# The univariate sets of NIST's Statistical Reference Datasets that are given by formula, with the certified mean and
# (n - 1) standard deviation: https://www.itl.nist.gov/div898/strd/univ/homepage.html. They were made to break
# one-pass sums: NumAcc4 has seven equal digits in front.
ALTERNATING = np.tile([-0.1, 0.1], 500)
NIST = {
    "NumAcc1": ([10000001, 10000003, 10000002], 10000002, 1),
    "NumAcc2": (np.r_[1.2, np.round(1.2 + ALTERNATING, 1)], 1.2, 0.1),
    "NumAcc3": (np.r_[1000000.2, np.round(1000000.2 + ALTERNATING, 1)], 1000000.2, 0.1),
    "NumAcc4": (np.r_[10000000.2, np.round(10000000.2 + ALTERNATING, 1)], 10000000.2, 0.1),
}

KINDS = [(np.float32, "fast"), (np.float32, "exact"), (np.float64, "exact")]

# How n values of one channel are laid out: a row each, one run, a run each, many channels of them.
LAYOUTS = {
    "rows": lambda values: (values[:, None], 1),
    "run": lambda values: (values[None, None], 1),
    "wide rows": lambda values: (np.repeat(values[:, None], 70, 1), 1),
    "short runs": lambda values: (np.repeat(values[:, None], 70, 1)[:, :, None] * np.ones(1, values.dtype), 1),
    "channels last": lambda values: (np.repeat(values[None, :, None], 9, 2), -1),
}


def rational(values):
    """Return the exact mean and sum of squared deviations."""
    exact = [Fraction(float(value)) for value in values]
    mean = sum(exact) / len(exact)
    return mean, sum((value - mean) ** 2 for value in exact)


def check_exactly(ctx, mean, m2, values, exact):
    """Compare the mean, as the pair that it is, and m2 with rational numbers."""
    std = float(m2 / len(values)) ** 0.5
    farthest = max(abs(float(Fraction(float(value)) - mean)) for value in values)
    reach = farthest / std if std else 0  # float32 holds NumAcc4 as one value, over and over
    error = Fraction(statistics(len(values), reach, values.dtype, exact))
    for found, low, squares in zip(ctx.mean, ctx.mean_lo, ctx.moments.m2, strict=True):
        assert abs(Fraction(found) + Fraction(low) - mean) <= error * Fraction(std)
        assert abs(Fraction(squares) - m2) <= error * m2


@pytest.mark.parametrize(("name", "kind", "layout"), thinned(NIST, KINDS, LAYOUTS))
def test_nist(name, kind, layout):
    dtype, precision = kind
    exact = precision == "exact"
    values, certified_mean, certified_std = NIST[name]
    values = np.asarray(values, dtype)
    x, axis = LAYOUTS[layout](values)
    y, ctx = fastbn.batch_norm(x, axis=axis, eps=1e-12, precision=precision)
    check_exactly(ctx, *rational(values), values, exact)
    check_forward(y, reference.forward(x, axis=axis, eps=1e-12), exact=exact)
    # Storing a decimal moves it by half its spacing; that moves the standard deviation by no more, because centring
    # values does not lengthen their vector, times sqrt(n / (n - 1)).
    stored = np.spacing(values.max()) / 2
    std = np.sqrt(ctx.moments.var(correction=1))
    own = statistics(len(values), 8, dtype, exact) * certified_std
    assert np.abs(std - certified_std).max() <= stored * np.sqrt(len(values) / (len(values) - 1)) + own
    assert np.abs(ctx.moments.mean - certified_mean).max() <= stored + own + np.spacing(float(certified_mean))


@pytest.mark.parametrize(("n", "dtype", "layout"), thinned([2, 64, 512], [np.float16, np.float32, np.float64], LAYOUTS))
def test_exact_in_any_order(rng, n, dtype, layout):
    """A power of two of integers: every sum, square and division is exact, so every order gives the same bits."""
    values = rng.integers(-40, 41, n).astype(dtype)
    mean, m2 = rational(values)
    for order in range(3):
        x, axis = LAYOUTS[layout](rng.permutation(values) if order else values)
        _, ctx = fastbn.batch_norm(x, axis=axis)
        np.testing.assert_array_equal(ctx.mean + ctx.mean_lo, float(mean))
        np.testing.assert_array_equal(ctx.moments.m2, float(m2))


@pytest.mark.parametrize("precision", ["fast", "exact"])
@pytest.mark.parametrize("layout", ["rows", "run"])
def test_many_tiles_of_integers(rng, layout, precision):
    """Tiles of unequal size are merged with rounded weights; what that costs stays within the bound."""
    values = rng.integers(-1000, 1001, 300_007).astype(np.float32) + np.float32(1 << 20)
    total, squares = int(values.sum(dtype=np.int64)), int((values.astype(np.int64) ** 2).sum())
    mean = Fraction(total, len(values))
    m2 = squares - total * mean
    x, axis = LAYOUTS[layout](values)
    _, ctx = fastbn.batch_norm(x, axis=axis, precision=precision)
    reach = float(max(values.max() - mean, mean - values.min())) / float(m2 / len(values)) ** 0.5
    error = statistics(len(values), reach, values.dtype, precision == "exact")
    assert abs(float(Fraction(ctx.mean[0]) + Fraction(ctx.mean_lo[0]) - mean)) <= error * float(m2 / len(values)) ** 0.5
    assert abs(float(Fraction(ctx.moments.m2[0]) / m2 - 1)) <= error
