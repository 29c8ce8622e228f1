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


def others(x, axis):
    """Return the axes that a channel's values lie along."""
    return tuple(i for i in range(x.ndim) if i != axis % x.ndim)


def column(values, x, axis):
    """Shape (C,) values so that they broadcast against x."""
    shape = [1] * x.ndim
    shape[axis] = x.shape[axis]
    return np.asarray(values, WIDE).reshape(shape)


def moments(x, axis=1):
    """Return mean and (biased) variance of every channel."""
    x = np.asarray(x, WIDE)
    mean = x.mean(others(x, axis))
    return mean, ((x - column(mean, x, axis)) ** 2).mean(others(x, axis))


def forward(x, weight=None, bias=None, *, mean=None, var=None, eps=1e-5, axis=1):
    """Normalise with the batch's own statistics, or with those given."""
    x = np.asarray(x, WIDE)
    if mean is None:
        mean, var = moments(x, axis)
    mean, var = np.asarray(mean, WIDE), np.asarray(var, WIDE)
    invstd = 1 / np.sqrt(var + WIDE(eps))
    xhat = (x - column(mean, x, axis)) * column(invstd, x, axis)
    y = xhat
    if weight is not None:
        y = y * column(weight, x, axis)
    if bias is not None:
        y = y + column(bias, x, axis)
    return Forward(y, xhat, mean, var, invstd)


def backward(dy, x, weight=None, *, mean=None, var=None, eps=1e-5, axis=1):
    """Return dx, dweight, dbias; given statistics are constants."""
    frozen = mean is not None
    f = forward(x, mean=mean, var=var, eps=eps, axis=axis)
    dy = np.asarray(dy, WIDE)
    along = others(dy, axis)
    dbias, dweight = dy.sum(along), (dy * f.xhat).sum(along)
    scale = f.invstd if weight is None else f.invstd * np.asarray(weight, WIDE)
    dx = dy
    if not frozen:
        dx = dx - column(dy.mean(along), dy, axis) - f.xhat * column((dy * f.xhat).mean(along), dy, axis)
    return dx * column(scale, dy, axis), dweight, dbias


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
