"""The oracle: batch normalization as its formulas say, in the widest float of the machine (80 bits on x86).

Nothing here is fast or clever, and nothing is shared with fastbn.
"""

from dataclasses import dataclass

import numpy as np

WIDE = np.longdouble


@dataclass
class Forward:
    """Everything about one forward pass, unrounded."""

    y: np.ndarray
    xhat: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    invstd: np.ndarray
    axis: int
    counted: np.ndarray | bool = True  # of a mask: where values count, to broadcast against x
    count: float = 0  # values a channel


def others(x, axis):
    """Return the axes that a channel's values lie along."""
    return tuple(i for i in range(x.ndim) if i != axis % x.ndim)


def column(values, x, axis):
    """Shape (C,) values so that they broadcast against x."""
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return np.asarray(values, WIDE).reshape(shape)


def counting(x, axis, mask):
    """Return where values of x count, to broadcast against it, of a mask that lacks its channels; and how many do."""
    if mask is None:
        return True, WIDE(x.size // x.shape[axis])
    shape = [n for i, n in enumerate(x.shape) if i != axis % x.ndim]
    mask = np.broadcast_to(mask, shape)
    return np.expand_dims(mask, axis % x.ndim), WIDE(np.count_nonzero(mask))


def moments(x, axis=1, mask=None):
    """Return mean and (biased) variance of every channel, over the positions that a mask says count."""
    x = np.asarray(x, WIDE)
    counted, count = counting(x, axis, mask)
    mean = np.where(counted, x, 0).sum(others(x, axis)) / count
    apart = np.where(counted, x - column(mean, x, axis), 0)
    return mean, (apart**2).sum(others(x, axis)) / count


def forward(x, weight=None, bias=None, *, mean=None, var=None, eps=1e-5, axis=1, mask=None):
    """Normalise with the batch's own statistics, or with those given; what does not count is zero."""
    x = np.asarray(x, WIDE)
    counted, count = counting(x, axis, mask)
    if mean is None:
        mean, var = moments(x, axis, mask)
    mean, var = np.asarray(mean, WIDE), np.asarray(var, WIDE)
    invstd = 1 / np.sqrt(var + WIDE(eps))
    xhat = np.where(counted, (x - column(mean, x, axis)) * column(invstd, x, axis), 0)
    y = xhat
    if weight is not None:
        y = y * column(weight, x, axis)
    if bias is not None:
        y = np.where(counted, y + column(bias, x, axis), 0)
    return Forward(y, xhat, mean, var, invstd, axis, counted, count)


def backward(dy, x, weight=None, *, mean=None, var=None, eps=1e-5, axis=1, mask=None):
    """Return dx, dweight, dbias; given statistics are constants, and what does not count gets no gradient."""
    frozen = mean is not None
    f = forward(x, mean=mean, var=var, eps=eps, axis=axis, mask=mask)
    dy = np.where(f.counted, np.asarray(dy, WIDE), 0)
    along = others(dy, axis)
    dbias, dweight = dy.sum(along), (dy * f.xhat).sum(along)
    scale = f.invstd if weight is None else f.invstd * np.asarray(weight, WIDE)
    dx = dy
    if not frozen:
        dx = dx - column(dbias / f.count, dy, axis) - f.xhat * column(dweight / f.count, dy, axis)
        dx = np.where(f.counted, dx, 0)
    return dx * column(scale, dy, axis), dweight, dbias


def jvp(tx, tweight, tbias, x, weight, *, mean=None, var=None, eps=1e-5, axis=1):
    """Return the tangent of y, through mean, variance and 1 / sqrt one by one; given statistics are constants."""
    f = forward(x, mean=mean, var=var, eps=eps, axis=axis)
    xmu, tx = np.asarray(x, WIDE) - column(f.mean, x, axis), np.asarray(tx, WIDE)
    txhat = tx * column(f.invstd, x, axis)
    if mean is None:
        along = others(x, axis)
        apart = tx - column(tx.mean(along), x, axis)
        tvar = 2 * (xmu * apart).mean(along)
        txhat = apart * column(f.invstd, x, axis) + xmu * column(-(f.invstd**3) * tvar / 2, x, axis)
    return txhat * column(weight, x, axis) + f.xhat * column(tweight, x, axis) + column(tbias, x, axis)


def double_backward(ddx, ddweight, ddbias, dy, x, weight, *, mean=None, var=None, eps=1e-5, axis=1):
    """Return ddy, dx, dweight: the gradients of sum(jvp(ddx, ddweight, ddbias) * dy), every step of `jvp` taken back.

    That sum is the one that the loss is linear in: ddx, ddweight, ddbias times dx, dweight, dbias.
    """
    f = forward(x, mean=mean, var=var, eps=eps, axis=axis)
    ddy = jvp(ddx, ddweight, ddbias, x, weight, mean=mean, var=var, eps=eps, axis=axis)
    along, v, g = others(x, axis), np.asarray(ddx, WIDE), np.asarray(dy, WIDE)

    def wide(values):
        return column(values, x, axis)

    count = WIDE(v.size // f.mean.size)
    by_txhat, by_xhat = g * wide(weight), g * wide(ddweight)
    if mean is not None:
        return ddy, by_xhat * wide(f.invstd), (g * v).sum(along) * f.invstd
    xmu = np.asarray(x, WIDE) - wide(f.mean)
    apart = v - wide(v.mean(along))
    tvar = 2 * (xmu * apart).mean(along)
    tinvstd = -(f.invstd**3) * tvar / 2
    dweight = (g * (apart * wide(f.invstd) + xmu * wide(tinvstd))).sum(along)
    by_tinvstd = (by_txhat * xmu).sum(along)
    by_tvar = -by_tinvstd * f.invstd**3 / 2
    by_invstd = (by_txhat * apart + by_xhat * xmu).sum(along) - by_tinvstd * f.invstd**2 * tvar * 3 / 2
    by_var = -by_invstd * f.invstd**3 / 2
    by_xmu = by_txhat * wide(tinvstd) + by_xhat * wide(f.invstd)
    by_xmu = by_xmu + 2 / count * (apart * wide(by_tvar) + xmu * wide(by_var))
    return ddy, by_xmu - wide(by_xmu.mean(along)), dweight


def running(old, batch, momentum):
    """Return the next value of a running statistic."""
    return (1 - WIDE(momentum)) * np.asarray(old, WIDE) + WIDE(momentum) * np.asarray(batch, WIDE)


def ulps(actual, expected):
    """Return the largest error, in units in the last place of the expected value in the dtype of the actual one."""
    actual = np.asarray(actual)
    if actual.size == 0:
        return 0.0
    expected = np.asarray(expected, WIDE)
    unit = np.spacing(np.abs(expected).astype(actual.dtype)).astype(WIDE)
    error = np.abs(actual.astype(WIDE) - expected) / unit
    return float(np.nan_to_num(error, nan=np.inf).max())
