"""How far a result may be from the oracle: derived from the formats, not fitted.

float64, and float32 with precision="exact", are computed in float64 and rounded once to the dtype of the data, so the
error is half a unit in the last place plus the float64 error. The longest chain of additions is a tile, 8192 values;
with rounding errors that are independent and of mean zero, a chain of n errs by more than L sqrt(n) 2^-53 with a
probability below 2 exp(-L^2 / 2) (Higham and Mary 2019, "A new approach to probabilistic rounding error analysis", SIAM
J. Sci. Comput. 41). L = 8 makes that 3e-14. A tile's values are summed as (x - k) and (x - k)^2 with a k that is at
most 8 standard deviations off its mean, which magnifies errors by at most (1 + 8)^2, and by (1 + reach)^2 where reach,
the largest |x - mean| / std, is less. Merging a tile rounds four times more.

On float16 and bfloat16 the arithmetic is float32, but no chain of additions in it is longer than 8. What is then done
to a value rounds four times more: a coefficient or two, a difference, a multiply-add.

float32 is computed in float32 as well, and held to a contract: ULPS units in the last place of its terms, VAR for the
variance and, in standard deviations, the mean. With u = 2^-24, half a unit at most: a term (x - mean) * scale is
rounded as a difference and as a coefficient, the sum as a multiply-add and its other term as a coefficient, 3 u in all.
A sum of 8 is off by 8 u of its absolute terms at most, by some 2 u if errors are independent, a variance by 4 times
that at most (the shift is no more than sqrt(3) standard deviations off), and scale by half of it. The terms of a sum
are the sum of absolute values, those of xhat itself max(|xhat|, 1): the mean is off by some u of a standard deviation.
"""

import numpy as np

from reference import column, others

TILE = 8192
HALF_ULP = 0.5 + 1e-3  # the oracle, of 64 bits, is itself rounded
ULPS = 4
VAR = 1e-6


def is_fast(array, exact=False):
    """Whether results were computed in float32 from float32 data."""
    return array.dtype == np.float32 and not exact


def statistics(count, reach, dtype, exact=False):
    """The error of the statistics, relative to the variance or in standard deviations."""
    return VAR if np.dtype(dtype) == np.float32 and not exact else relative(count, reach, dtype)


def relative(count, reach, dtype=np.float64):
    """The error of the statistics of data, and of what is computed with them, relative to the terms involved."""
    magnified = (1 + min(float(reach), 8)) ** 2
    if np.dtype(dtype).itemsize == 2:
        return 2.0**-24 * (8 * np.sqrt(8) * magnified + 4)
    return 2.0**-53 * 8 * np.sqrt(min(count, TILE) + 8 + 4 * (count // TILE)) * magnified


def check(actual, expected, float64_error):
    """Assert that every element was rounded once from a float64 value that is off by at most `float64_error`."""
    expected = np.asarray(expected, np.longdouble)
    rounding = HALF_ULP * np.spacing(np.abs(expected).astype(actual.dtype))
    excess = np.abs(actual - expected) - rounding - float64_error
    assert np.isfinite(actual).all()
    assert excess.max(initial=-1) <= 0, f"off by {float(excess.max()):.3g} more than {float(np.max(float64_error)):.3g}"


def check_terms(actual, expected, terms, off=0.0):
    """Assert that every element is within ULPS units in the last place of its terms."""
    assert np.isfinite(actual).all()
    unit = np.spacing(np.asarray(terms, np.float64).astype(np.float32)).astype(np.float64)
    excess = np.abs(actual - np.asarray(expected, np.longdouble)) - off - ULPS * unit
    assert excess.max(initial=-1) <= 0, f"off by {float((excess / unit).max()) + ULPS:.3g} units of its terms"


def reaching(f):
    """Return max(|xhat|, 1)."""
    return np.maximum(np.abs(f.xhat), 1)


def _of(values, f, default):
    """Return |values|, a number a channel, against xhat; `default` for None."""
    return default if values is None else np.abs(column(values, f.xhat, f.axis))


def check_forward(y, f, weight=None, bias=None, exact=False):
    """Check y against the oracle's forward pass."""
    if is_fast(y, exact):
        check_terms(y, f.y, _of(weight, f, 1) * reaching(f) + _of(bias, f, 0))
        return
    reach = np.abs(f.xhat).max(initial=0)
    w = 1 if weight is None else np.abs(weight).max(initial=0)
    b = 0 if bias is None else np.abs(bias).max(initial=0)
    check(y, f.y, relative(y.size // f.mean.size, reach, y.dtype) * (float(reach) * w + w + b))


def _check_fast_backward(grads, expected, dy, f, weight, off):
    """Check gradients of float32 data; the terms of dx are those of its three parts."""
    dx, dweight, dbias = expected
    along, size = others(dy, f.axis), np.abs(np.asarray(dy, np.longdouble))
    count = dy.size // f.mean.size
    summed, products = size.sum(along), (size * reaching(f)).sum(along)
    scale = _of(weight, f, 1) * column(f.invstd, dy, f.axis)
    parts = size + column(summed / count, dy, f.axis) + reaching(f) * column(products / count, dy, f.axis)
    reach = float(np.abs(f.xhat).max())
    check_terms(grads.dx, dx, scale * parts, off * float(np.max(scale)) * (2 + reach**2))
    if grads.dweight is not None:
        check_terms(grads.dweight, dweight, products, off * count * (1 + reach))
    if grads.dbias is not None:
        check_terms(grads.dbias, dbias, summed, off * count)


def check_backward(grads, expected, dy, f, weight=None, off=0.0, exact=False):
    """Check the gradients against the oracle's; dy itself may be off, as one that came through an activation is."""
    if is_fast(dy, exact):
        _check_fast_backward(grads, expected, dy, f, weight, off)
        return
    reach = float(np.abs(f.xhat).max())
    count = dy.size // f.mean.size
    scale = float(f.invstd.max()) * (1 if weight is None else np.abs(weight).max())
    largest = float(np.abs(dy).max())
    error = relative(count, reach, dy.dtype) * largest + off
    dx, dweight, dbias = expected
    check(grads.dx, dx, error * scale * (2 + reach**2))
    if grads.dweight is not None:
        check(grads.dweight, dweight, error * count * (1 + reach))
    if grads.dbias is not None:
        check(grads.dbias, dbias, error * count)


def _sizes(dy, f, weight):
    """What the bounds of derivatives are made of: R, reach, values a channel, the largest scale and its invstd."""
    reach = float(np.abs(f.xhat).max())
    count = dy.size // f.mean.size
    return relative(count, reach, dy.dtype), reach, count, float(np.abs(f.invstd * weight).max()), float(f.invstd.max())


def check_jvp(ty, expected, tx, tweight, tbias, f, weight):
    """Check a tangent of y against the oracle's: weight * invstd * P(tx) + tweight * xhat + tbias.

    P(u) = u - mean(u) - xhat * mean(u * xhat) is the bracket of the backward pass and errs as that does.
    """
    error, reach, _, scale, _ = _sizes(tx, f, weight)
    terms = scale * np.abs(tx).max() * (2 + reach**2) + np.abs(tweight).max() * (1 + reach) + np.abs(tbias).max()
    check(ty, expected, error * float(terms))


def check_double_backward(results, expected, ddx, ddweight, ddbias, dy, f, weight):
    """Check ddy, dx and dweight against the oracle's.

    dx has the bracket of dy once, times ddweight; and weight * invstd^2 times three terms of products ddx * dy: the
    bracket of one times the mean of the other and xhat, twice, and xhat times the mean of ddx and the bracket of dy.
    """
    error, reach, count, scale, invstd = _sizes(dy, f, weight)
    ddy, dx, dweight = results
    v, g = float(np.abs(ddx).max()), float(np.abs(dy).max())
    bracket = 2 + reach**2
    check_jvp(ddy, expected[0], ddx, ddweight, ddbias, f, weight)
    terms = float(np.abs(ddweight).max()) * invstd * g * bracket + scale * invstd * v * g * 3 * (1 + reach) * bracket
    check(dx, expected[1], error * terms)
    if dweight is not None:
        check(dweight, expected[2], error * count * invstd * v * g * bracket)


def difference(loss, values, index, step):
    """Return the central difference of loss() by one element of an array that it reads."""
    saved = values[index]
    values[index] = saved + step
    above = loss()
    values[index] = saved - step
    below = loss()
    values[index] = saved
    return (above - below) / (2 * step)


def check_differences(loss, values, gradient, tolerance=1e-6):
    """Check a float64 gradient against central differences of a function without arguments, in place.

    The error of (f(v + h) - f(v - h)) / 2h is h^2 f''' / 6 + 2^-52 f / h: some 1e-10 with h = 1e-5.
    """
    for i in np.ndindex(values.shape):
        assert abs(difference(loss, values, i, 1e-5) - gradient[i]) < tolerance * (1 + abs(gradient[i]))
