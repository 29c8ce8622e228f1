"""Data and an oracle of batch norms with something beyond, and how close results are to be."""

import itertools
import math
import os

import numpy as np
import pytest

import reference
from reference import WIDE

F4, F8 = np.float32, np.float64

# One shape for each way to take a tensor that has kernels of its own: small in rows and in segments, and large.
SHAPES = [(12, 20), (6, 5, 7), (64, 600), (16, 20, 130)]


INTERPRETED = os.environ.get("NUMBA_DISABLE_JIT") == "1"


def cases(*values, compiled):
    """Return all combinations where nothing is compiled (`make interpreted`), and elsewhere those that are named."""
    everything = list(itertools.product(*values))
    assert set(compiled) <= set(everything)
    chosen, marks = (everything, pytest.mark.bounds) if INTERPRETED else (compiled, ())
    return [pytest.param(*case, marks=marks, id="-".join(map(str, case))) for case in chosen]


def data(rng, shape, dtype=F4):
    """x, dy, residual, weight, bias."""
    arrays = [rng.standard_normal(shape).astype(dtype) for _ in range(3)]
    arrays[0] = arrays[0] * 2 + dtype(3)
    return *arrays, *(rng.standard_normal((2, shape[1])).astype(F8 if dtype == F8 else F4))


erf = np.vectorize(math.erf, otypes=[float])


def activated(activation, z):
    """Return an activation of z and its derivative there; where that jumps, it is 0, as PyTorch has it."""
    name, slope = activation if isinstance(activation, tuple) else (activation, 0.01)
    z = np.asarray(z, WIDE)
    sigmoid = 1 / (1 + np.exp(-z))
    if name is None:
        return z, np.ones_like(z)
    if name == "relu":
        return np.maximum(z, 0), (z > 0).astype(WIDE)
    if name == "relu6":
        return np.clip(z, 0, 6), ((z > 0) & (z < 6)).astype(WIDE)
    if name == "leaky_relu":
        return np.where(z > 0, z, slope * z), np.where(z > 0, WIDE(1), WIDE(slope))
    if name == "tanh":
        return np.tanh(z), 1 - np.tanh(z) ** 2
    if name == "sigmoid":
        return sigmoid, sigmoid * (1 - sigmoid)
    if name == "silu":
        return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))
    assert name == "gelu", name
    below = (1 + erf(z / math.sqrt(2))) / 2
    return z * below, below + z * np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def passes(x, dy, weight, bias, activation=None, residual=None, **given):
    """Return y and (dx, dweight, dbias, dresidual); `given` are statistics, as for `reference.forward`."""
    z = reference.forward(x, weight, bias, **given).y
    y, slope = activated(activation, z if residual is None else z + residual)
    g = np.asarray(dy, WIDE) * slope
    return y, (*reference.backward(g, x, weight, **given), g)


def close(found, expected, dtype, terms=1.0):
    """Within some units of the format of the largest value, or of the terms that it is made of."""
    expected = np.asarray(expected, F8)
    unit = {2: 2.0**-10, 4: 2.0**-23, 8: 2.0**-50}[np.dtype(dtype).itemsize]
    np.testing.assert_allclose(
        np.asarray(found, F8), expected, rtol=0, atol=16 * unit * max(terms, abs(expected).max())
    )
