"""Activations of vectors, in both precisions, and the exponential that SILU is made of, against the oracle's floats."""

import copy
import pickle

import numpy as np
import pytest
from numba import njit

import reference
from fastbn_kernels.cpu.activations import activated, through
from fastbn_kernels.cpu.simd.ops import LANES, exp_neg_abs, like, param, store, widen
from fastbn_kernels.cpu.simd.tails import RELU, RELU6, SILU

pytestmark = pytest.mark.bounds

BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float64])
# From where on exp(-|a|) is below all normal numbers, and from where on it is zero.
SUBNORMAL = {np.float32: (87.33, 103.98), np.float64: (708.39, 745.14)}
SPECIAL = [0.0, -0.0, 6.0, -6.0, 1.0, -1.0, np.inf, -np.inf, np.nan]


@njit
def exponentials(values, out):
    for i in range(0, values.shape[1], LANES):
        store(out, i, None, widen(exp_neg_abs(param(values, 0, i, None))))


@njit
def outputs(values, activation, out):
    for i in range(0, values.shape[1], LANES):
        store(out, i, None, widen(activated(param(values, 0, i, None), activation)))


@njit
def slopes(values, activation, out):
    for i in range(0, values.shape[1], LANES):
        z = param(values, 0, i, None)
        store(out, i, None, widen(through(like(z, 1.0), z, activation)))


def run(function, values, *activation):
    """Return what a function makes of an array, in its dtype, which holds it to the bit."""
    whole = np.zeros((1, -(-values.size // LANES) * LANES), values.dtype)
    whole[0, : values.size] = values
    out = np.full(whole.size, np.nan)
    function(whole, *activation, out)
    found = out[: values.size].astype(values.dtype)
    np.testing.assert_array_equal(found.astype(np.float64), out[: values.size])
    return found


def points(rng, dtype):
    """Numbers of every size, and close to each multiple of ln 2 / 2, where another power of two is taken."""
    low, zero = SUBNORMAL[dtype]
    halves = np.arange(1, 2 * zero / np.log(2)) * (np.log(2) / 2)
    near = [halves * (1 + off) for off in (0, 1e-7, -1e-7, 2e-16, -2e-16)]
    spread = rng.uniform(0, zero + 1, 3000), 10 ** rng.uniform(-30, 0, 500), rng.uniform(low - 1, zero + 1, 500)
    found = np.concatenate([*near, *spread]).astype(dtype)
    return found * rng.choice(np.array([-1, 1], dtype), found.size)


@BOTH
def test_the_exponential(rng, dtype):
    a = points(rng, dtype)
    expected = np.exp(-np.abs(a.astype(np.longdouble)))
    normal = np.abs(a) < SUBNORMAL[dtype][0]
    found = run(exponentials, a)
    assert reference.ulps(found[normal], expected[normal]) < 1.5
    assert reference.ulps(found[~normal], expected[~normal]) < 2
    assert (found[np.abs(a) > SUBNORMAL[dtype][1]] == 0).all()
    largest = np.finfo(dtype).max
    special = np.array([0.0, -0.0, np.inf, -np.inf, largest, -largest, np.nan, -np.nan], dtype)
    np.testing.assert_array_equal(run(exponentials, special), np.exp(-np.abs(special)))


def silu(z):
    """Return z * sigmoid(z), its derivative, and what of that is a sum of two that may cancel, in the widest float."""
    z = z.astype(np.longdouble)
    e = np.exp(-np.abs(z))
    s, other = (
        np.where(z < 0, small, large) for small, large in ((e / (1 + e), 1 / (1 + e)), (1 / (1 + e), e / (1 + e)))
    )
    return z * s, s * (1 + z * other), s * np.abs(z) * other


@BOTH
def test_silu(rng, dtype):
    """A sigmoid errs by 6 roundings: 3 of the exponential, a sum, a quotient, a product; z times it by 7.

    The slope is s (1 + z s'): a product that errs by 7 and the sum and two products, by 9 in all.
    """
    z = points(rng, dtype)
    y, slope, product = silu(z)
    rounding, tiny = np.finfo(dtype).eps / 2, np.finfo(dtype).smallest_normal
    below = np.abs(z) * 4 * tiny * np.finfo(dtype).eps  # a subnormal exponential errs by a unit of its own, times z
    assert (np.abs(run(outputs, z, SILU) - y) <= 7 * rounding * np.abs(y) + below).all()
    assert (np.abs(run(slopes, z, SILU) - slope) <= rounding * (9 * np.abs(slope) + 7 * product) + below).all()


@BOTH
def test_far_away(dtype):
    """What overflows nowhere is the limit."""
    far = np.array([200, 1e3, 1e30, np.finfo(dtype).max, np.inf]).astype(dtype)
    if dtype == np.float64:
        far = far[1:]
    np.testing.assert_array_equal(run(outputs, far, SILU), far)
    np.testing.assert_array_equal(run(slopes, far, SILU), 1)
    np.testing.assert_array_equal(run(outputs, -far, SILU), 0)
    np.testing.assert_array_equal(run(slopes, -far, SILU), 0)
    assert np.isnan(run(outputs, np.array([np.nan], dtype), SILU)).all()
    assert np.isnan(run(slopes, np.array([np.nan], dtype), SILU)).all()


@BOTH
def test_relu_and_relu6(rng, dtype):
    """Between the bends, and at them; NaN lets a gradient pass, as in PyTorch."""
    z = np.concatenate([SPECIAL, 4 * rng.standard_normal(200), np.nextafter([0, 6], [[-9], [9]]).ravel()]).astype(dtype)
    np.testing.assert_array_equal(run(outputs, z, RELU), np.maximum(z, 0))
    np.testing.assert_array_equal(run(outputs, z, RELU6), np.clip(z, 0, 6))
    np.testing.assert_array_equal(run(slopes, z, RELU), ~(z <= 0))
    np.testing.assert_array_equal(run(slopes, z, RELU6), ~((z <= 0) | (z >= 6)))


@pytest.mark.parametrize("activation", [RELU, RELU6, SILU], ids=repr)
def test_there_is_one_object_of_an_activation(activation):
    for other in (copy.copy(activation), copy.deepcopy(activation), pickle.loads(pickle.dumps(activation))):
        assert other is activation
    assert pickle.loads(pickle.dumps(activation.type)) is activation.type
