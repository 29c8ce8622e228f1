"""Activations of vectors, of every dtype, and the exponential that SILU is made of, against the oracle's floats."""

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

# The dtype of data, that of the arithmetic on them, and that of an exponential and what is made of it. 16-bit data have
# the arithmetic of float32, whose bits as integers are computed in float64.
DTYPES = {
    "float32": (np.float32, np.float32, np.float32),
    "exact": (np.int32, np.float64, np.float32),
    "float64": (np.float64, np.float64, np.float64),
}
EVERY_DTYPE = pytest.mark.parametrize("name", DTYPES)
# From where on exp(-|a|) is below all normal numbers, and from where on it is zero.
SUBNORMAL = {np.float32: (87.33, 103.98), np.float64: (708.39, 745.14)}
SPECIAL = [0.0, -0.0, 6.0, -6.0, 1.0, -1.0, np.inf, -np.inf, np.nan]


@njit
def exponentials(data, values, out):
    for i in range(0, values.shape[1], LANES):
        e = exp_neg_abs(data, param(values, 0, i, None))
        store(out, i, None, widen(e))


@njit
def outputs(data, values, activation, out):
    for i in range(0, values.shape[1], LANES):
        store(out, i, None, widen(activated(data, param(values, 0, i, None), activation)))


@njit
def slopes(data, values, activation, out):
    for i in range(0, values.shape[1], LANES):
        z = param(values, 0, i, None)
        store(out, i, None, widen(through(data, like(z, 1.0), z, activation)))


def run(function, name, values, *activation):
    """Return what a function makes of numbers for data of a dtype, as float64, which holds it to the bit."""
    stored, dtype, _ = DTYPES[name]
    whole = np.zeros((1, -(-values.size // LANES) * LANES), dtype)
    whole[0, : values.size] = values
    out = np.full(whole.size, np.nan)
    function(np.empty(0, stored), whole, *activation, out)
    return out[: values.size]


def points(rng, name):
    """Numbers of every size, and close to each multiple of ln 2 / 2, where another power of two is taken."""
    _, dtype, narrow = DTYPES[name]
    low, zero = SUBNORMAL[narrow]
    halves = np.arange(1, 2 * zero / np.log(2)) * (np.log(2) / 2)
    near = [halves * (1 + off) for off in (0, 1e-7, -1e-7, 2e-16, -2e-16)]
    spread = rng.uniform(0, zero + 1, 3000), 10 ** rng.uniform(-30, 0, 500), rng.uniform(low - 1, zero + 1, 500)
    found = np.concatenate([*near, *spread]).astype(dtype)
    return found * rng.choice(np.array([-1, 1], dtype), found.size)


@EVERY_DTYPE
def test_the_exponential(rng, name):
    a, (_, dtype, narrow) = points(rng, name), DTYPES[name]
    expected = np.exp(-np.abs(a.astype(np.longdouble)))
    normal = np.abs(a) < SUBNORMAL[narrow][0]
    found = run(exponentials, name, a).astype(narrow)
    np.testing.assert_array_equal(found.astype(np.float64), run(exponentials, name, a))
    assert reference.ulps(found[normal], expected[normal]) < 1.5
    assert reference.ulps(found[~normal], expected[~normal]) < 2
    assert (found[np.abs(a) > SUBNORMAL[narrow][1]] == 0).all()
    largest = np.finfo(dtype).max
    special = np.array([0.0, -0.0, np.inf, -np.inf, largest, -largest, np.nan, -np.nan], dtype)
    np.testing.assert_array_equal(run(exponentials, name, special), np.exp(-np.abs(special)))


def silu(z):
    """Return z * sigmoid(z), its derivative, and what of that is a sum of two that may cancel, in the widest float."""
    z = z.astype(np.longdouble)
    e = np.exp(-np.abs(z))
    s, other = (
        np.where(z < 0, small, large) for small, large in ((e / (1 + e), 1 / (1 + e)), (1 / (1 + e), e / (1 + e)))
    )
    return z * s, s * (1 + z * other), s * np.abs(z) * other


@EVERY_DTYPE
def test_silu(rng, name):
    """A sigmoid errs by 6 roundings: 3 of the exponential, a sum, a quotient, a product; z times it by 7.

    The slope is s (1 + z s'): a product that errs by 7 and the sum and two products, by 9 in all; times a gradient, 10.
    Of exact float32 data z itself, but for the exponential, is rounded once more, to float32: 8 roundings, 4 units.
    """
    z, (_, dtype, narrow) = points(rng, name), DTYPES[name]
    y, slope, product = silu(z)
    z_rounded = int(dtype != narrow)
    rounding, tiny = np.finfo(narrow).eps / 2, np.finfo(narrow).smallest_normal
    below = np.abs(z) * 4 * tiny * np.finfo(narrow).eps  # a subnormal exponential errs by a unit of its own, times z
    found = run(outputs, name, z, SILU), run(slopes, name, z, SILU)
    assert (np.abs(found[0] - y) <= (7 + z_rounded) * rounding * np.abs(y) + below).all()
    allowed = rounding * (9 * np.abs(slope) + (7 + z_rounded) * product) + below
    assert (np.abs(found[1] - slope) <= allowed).all()


@EVERY_DTYPE
def test_far_away(name):
    """What overflows nowhere is the limit."""
    _, dtype, narrow = DTYPES[name]
    far = np.array([200, 1e3, 1e30, np.finfo(narrow).max, np.inf]).astype(narrow)
    if narrow == np.float64:
        far = far[1:]
    np.testing.assert_array_equal(run(outputs, name, far, SILU), far)
    np.testing.assert_array_equal(run(slopes, name, far, SILU), 1)
    np.testing.assert_array_equal(run(outputs, name, -far, SILU), 0)
    np.testing.assert_array_equal(run(slopes, name, -far, SILU), 0)
    assert np.isnan(run(outputs, name, np.array([np.nan, -np.nan], dtype), SILU)).all()
    assert np.isnan(run(slopes, name, np.array([np.nan, -np.nan], dtype), SILU)).all()


def test_beyond_float32(rng):
    """What was normalised of float32 data in float64 may be larger than they."""
    far = 10 ** rng.uniform(39, 300, 20)
    np.testing.assert_array_equal(run(outputs, "exact", far, SILU), np.inf)
    np.testing.assert_array_equal(run(slopes, "exact", far, SILU), 1)
    np.testing.assert_array_equal(run(outputs, "exact", -far, SILU), 0)
    np.testing.assert_array_equal(run(slopes, "exact", -far, SILU), 0)


@EVERY_DTYPE
def test_relu_and_relu6(rng, name):
    """Between the bends, and at them; NaN lets a gradient pass, as in PyTorch."""
    near = np.nextafter([0, 6], [[-9], [9]]).ravel()
    z = np.concatenate([SPECIAL, 4 * rng.standard_normal(200), near]).astype(DTYPES[name][1])
    np.testing.assert_array_equal(run(outputs, name, z, RELU), np.maximum(z, 0))
    np.testing.assert_array_equal(run(outputs, name, z, RELU6), np.clip(z, 0, 6))
    np.testing.assert_array_equal(run(slopes, name, z, RELU), ~(z <= 0))
    np.testing.assert_array_equal(run(slopes, name, z, RELU6), ~((z <= 0) | (z >= 6)))


@pytest.mark.parametrize("activation", [RELU, RELU6, SILU], ids=repr)
def test_there_is_one_object_of_an_activation(activation):
    for other in (copy.copy(activation), copy.deepcopy(activation), pickle.loads(pickle.dumps(activation))):
        assert other is activation
    assert pickle.loads(pickle.dumps(activation.type)) is activation.type
