"""How far a result of the GPU may be from the oracle: as `tolerance` says, and for float32 data in float32 arithmetic.

That is 4 units in the last place, 2^-23 each, of the terms that a result is added up from, absolute values standing for
those of a sum. The terms of y are w * xhat and b; w besides, for the mean, which is off by a part of a standard
deviation; and what float32 rounds off the mean, 2^-24 of it, which enters through the shift. Those of dx and of the
gradients of weight and bias are those of their formulas, likewise.
"""

import numpy as np

from tolerance import check, relative
from tolerance import check_backward as check_wide_backward
from tolerance import check_forward as check_wide_forward

FLOAT32 = np.dtype(np.float32)
FAST = 4 * 2.0**-23
VAR = 1e-6  # relative


def channelwise(values, like, axis):
    shape = [1] * like.ndim
    shape[axis] = -1
    return np.broadcast_to(np.asarray(values, np.longdouble), (like.shape[axis],)).reshape(shape)


def offs(f, axis):
    """|x - mean| / std at most, as float32 has it: 1 for the error of the mean, and what is rounded off it."""
    low = 2.0**-24 * np.abs(f.mean) * f.invstd
    return 1 + np.abs(f.xhat) + channelwise(low, f.xhat, axis)


def check_forward(y, f, weight=None, bias=None, *, axis=1, exact=False):
    """Check y against the oracle's forward pass."""
    if y.dtype != FLOAT32:
        check_wide_forward(y, f, weight, bias)
        return
    if exact:
        reach = float(np.abs(f.xhat).max(initial=0))
        w, b = (1 if weight is None else np.abs(weight).max()), (0 if bias is None else np.abs(bias).max())
        check(y, f.y, relative(y.size // f.mean.size, reach) * (reach * w + w + b))
        return
    terms = offs(f, axis) * channelwise(1 if weight is None else np.abs(weight), y, axis)
    terms = terms + channelwise(0 if bias is None else np.abs(bias), y, axis)
    close(y, f.y, FAST * terms)


def close(actual, expected, error):
    """Assert that every element is off by at most `error`."""
    assert np.isfinite(actual).all()
    excess = np.abs(np.asarray(actual, np.longdouble) - expected) / (np.asarray(error) + 2.0**-149)
    assert excess.max(initial=0) <= 1, f"off by {float(excess.max()):.3g} times what it may be"


def statistics_error(count, reach, dtype, *, exact=False):
    """The error of the statistics of data, and of what is computed with them, relative to the terms involved."""
    if np.dtype(dtype) == FLOAT32:
        return relative(count, reach) if exact else VAR
    return relative(count, reach, dtype)


def check_var(var, expected, f, count, dtype, *, exact=False):
    """Check variances of values of size 1; those of a constant may come out as next to nothing."""
    error = statistics_error(count, np.abs(f.xhat).max(), dtype, exact=exact) + 1e-12
    np.testing.assert_allclose(var, expected.astype(float), rtol=error, atol=1e-20)


def check_backward(grads, expected, dy, f, weight=None, *, axis=1, exact=False):
    """Check the gradients against the oracle's."""
    if dy.dtype != FLOAT32:
        check_wide_backward(grads, expected, dy, f, weight)
        return
    dx, dweight, dbias = expected
    along = tuple(i for i in range(dy.ndim) if i != axis % dy.ndim)
    size, off = np.abs(np.asarray(dy, np.longdouble)), offs(f, axis)
    sums = size.sum(along), (size * off).sum(along)
    if exact:
        reach, count, largest = float(np.abs(f.xhat).max()), dy.size // f.mean.size, float(size.max())
        scale = float(f.invstd.max()) * (1 if weight is None else np.abs(weight).max())
        error = relative(count, reach) * largest
        check(grads.dx, dx, error * scale * (2 + reach**2))
        for got, wanted, own in ((grads.dweight, dweight, count * (1 + reach)), (grads.dbias, dbias, count)):
            if got is not None:
                check(got, wanted, error * own)
        return
    count = dy.size // dy.shape[axis]
    scale = np.abs(f.invstd * (1 if weight is None else np.abs(np.asarray(weight, np.longdouble))))
    mean_dy, mean_xhat = (channelwise(total / count, dy, axis) for total in sums)
    close(grads.dx, dx, FAST * channelwise(scale, dy, axis) * (size + mean_dy + off * mean_xhat))
    for got, wanted, terms in ((grads.dweight, dweight, sums[1]), (grads.dbias, dbias, sums[0])):
        if got is not None:
            close(got, wanted, FAST * terms)
