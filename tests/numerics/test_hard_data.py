"""Float32 arithmetic on data made against it: rounding errors that are alike, shifts that are far off."""

import numpy as np
import pytest

import fastbn
import reference
from tolerance import VAR, check_backward, check_forward

# Whole calls, rows, columns of few rows, short segments, segments; and 2 to 20 values a channel.
SHAPES = [(33, 16), (2000, 24), (128, 260), (64, 24, 25), (4, 16, 600), *((n, 16) for n in (2, 3, 5, 8, 13, 20))]


def _blocks(rng, n, C, length):
    return np.repeat(rng.standard_normal((-(-n // length), C)), length, 0)[:n]


def _outlier(rng, n, C):
    values = rng.standard_normal((n, C))
    values[rng.integers(0, n, C), np.arange(C)] += 10.0 ** rng.uniform(1, 7, C)
    return values


def _first_unlike_the_rest(rng, n, C):
    values = rng.standard_normal((n, C))
    values[:16] += 10.0 ** rng.uniform(-1, 6, C)
    return values


# (values, channels) of each kind; a channel each has its own odds, outlier or period.
KINDS = {
    "two values": lambda rng, n, C: (rng.random((n, C)) < 10.0 ** rng.uniform(-3, -0.3, C)) * 1.0,
    "two blocks": lambda rng, n, C: (np.arange(n)[:, None] < n * rng.random(C)) * 1.0,
    "a ramp": lambda rng, n, C: np.arange(n)[:, None] + np.zeros(C),
    "a ramp and noise": lambda rng, n, C: (
        np.arange(n)[:, None] / n * 10.0 ** rng.uniform(0, 6, C) + rng.standard_normal((n, C))
    ),
    "blocks of 16": lambda rng, n, C: _blocks(rng, n, C, 16),
    "blocks of 128": lambda rng, n, C: _blocks(rng, n, C, 128),
    "an outlier": _outlier,
    "sorted": lambda rng, n, C: np.sort(rng.standard_normal((n, C)) ** 3, 0),
    "the first 16 unlike the rest": _first_unlike_the_rest,
    "a period": lambda rng, n, C: np.where(np.arange(n)[:, None] % 8 == 0, 1.0, -1 / 7) + np.zeros(C),
    "one place apart": lambda rng, n, C: 1 + (rng.random((n, C)) < 0.5) * 2.0**-23,
    "a heavy tail": lambda rng, n, C: np.exp(rng.standard_normal((n, C)) * rng.uniform(1, 5, C)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moved", [False, True], ids=["as it is", "any mean and scale"])
def test_hard_data(rng, kind, moved):
    for shape in SHAPES:
        C = shape[1]
        values = KINDS[kind](rng, int(np.prod(shape)) // C, C)
        if moved:
            values += 10.0 ** rng.uniform(-2, 6, C) * values.std(0)
            values *= 10.0 ** rng.uniform(-12, 12, C)
        rows = values.reshape(shape[0], -1, C) if len(shape) == 3 else values
        x = np.ascontiguousarray(np.moveaxis(rows, -1, 1), np.float32)
        dy, (weight, bias) = rng.standard_normal(shape, np.float32), rng.standard_normal((2, C), np.float32)
        y, ctx = fastbn.batch_norm(x, weight, bias, eps=1e-30, precision="fast")
        f = reference.forward(x, weight, bias, eps=1e-30)
        assert (np.abs(ctx.moments.var() - f.var) <= VAR * f.var).all()
        check_forward(y, f, weight, bias)
        expected = reference.backward(dy, x, weight, eps=1e-30)
        check_backward(fastbn.batch_norm_backward(dy, ctx), expected, dy, f, weight)
