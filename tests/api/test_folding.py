"""Batch norms folded into linear layers: against the composition of both, written as sums of products in float64."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import fastbn
from grid import draw
from reference import WIDE
from tolerance import check

UNIT = 2.0**-53
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def norm(rng, channels, dtype=np.float32, affine=True):
    """A batch norm with numbers of its own."""
    bn = fastbn.BatchNorm(channels, eps=1e-3, dtype=dtype, affine=affine).eval()
    for name, array in bn._arrays().items():
        array[:] = rng.uniform(0.2, 4, channels) if name == "running_var" else rng.normal(0, 2, channels)
    return bn


def coefficients(bn):
    """Scale, mean and bias of every channel, unrounded."""
    mean, var = (np.asarray(values, WIDE) for values in (bn.running_mean, bn.running_var))
    weight, bias = (WIDE(0) if values is None else np.asarray(values, WIDE) for values in (bn.weight, bn.bias))
    return (1 if bn.weight is None else weight) / np.sqrt(var + WIDE(bn.eps)), mean, bias


def columns(values, axis, ndim):
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(values).reshape(shape)


def random(rng, shape, dtype):
    return draw(rng, shape, np.float64).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize(
    ("shape", "axis"), [((6,), 0), ((6, 5), 0), ((5, 6), 1), ((5, 6), -1), ((6, 4, 3, 3), 0), ((3, 2, 6, 2, 5), -3)]
)
@pytest.mark.parametrize("affine", [True, False])
def test_fold_is_the_formula_rounded_once(rng, shape, axis, dtype, affine):
    """A factor is off by three roundings of float64, a product by one more; a shift by five of its terms."""
    bn = norm(rng, 6, affine=affine)
    weight, bias = random(rng, shape, dtype), random(rng, 6, dtype)
    kept = weight.tobytes(), bias.tobytes()
    scale, mean, shift = coefficients(bn)
    for given in (bias, None):
        w, b = fastbn.fold(weight, given, bn, axis)
        assert (w.shape, w.dtype, b.shape, b.dtype) == (weight.shape, weight.dtype, (6,), weight.dtype)
        exact = weight.astype(WIDE) * columns(scale, axis, len(shape))
        check_once(w, exact, 5 * UNIT * np.abs(exact))
        start = np.zeros(6, WIDE) if given is None else given.astype(WIDE)
        terms = (np.abs(start) + np.abs(mean)) * np.abs(scale) + np.abs(shift)
        check_once(b, (start - mean) * scale + shift, 6 * UNIT * terms)
        assert not any(np.shares_memory(new, old) for new in (w, b) for old in (weight, bias, *bn._arrays().values()))
    assert (weight.tobytes(), bias.tobytes()) == kept


def check_once(actual, expected, off):
    """`tolerance.check`, for bfloat16 too, whose spacing NumPy does not know: 2^16 of float32's."""
    if actual.dtype != ml_dtypes.bfloat16:
        return check(actual, expected, np.asarray(off, np.float64))
    expected = np.asarray(expected, np.float64)
    unit = 2.0**16 * np.spacing(np.abs(expected).astype(np.float32))
    assert (np.abs(actual.astype(np.float64) - expected) <= 0.5001 * unit + off).all()
    return None


@pytest.mark.parametrize(("shape", "axis"), [((5, 6), 1), ((6, 5), 0), ((3, 3, 6, 4), -2), ((4, 6, 3), 1)])
def test_fold_next_is_the_layer_on_what_was_normalised(rng, shape, axis):
    """Every window of a convolution without padding is a sum over all axes but that of the outputs."""
    bn = norm(rng, 6)
    weight, bias = random(rng, shape, np.float64), None
    out_axis = {0: 1, 1: 0, -2: -1}[axis]
    outputs = shape[out_axis]
    scale, mean, shift = (columns(v, axis, len(shape)) for v in coefficients(bn))
    window = draw(rng, [1 if i == out_axis % len(shape) else n for i, n in enumerate(shape)], np.float64, mean=2)
    along = tuple(i for i in range(len(shape)) if i != out_axis % len(shape))
    for bias in (random(rng, outputs, np.float64), None):
        w, b = fastbn.fold_next(bn, weight, bias, axis)
        start = np.zeros(outputs) if bias is None else bias
        exact = (weight * ((window - mean) * scale + shift)).sum(along) + start
        terms = (np.abs(weight) * ((np.abs(window) + np.abs(mean)) * np.abs(scale) + np.abs(shift))).sum(along)
        # Sums of at most 54 products, each of a few roundings.
        assert (np.abs((w * window).sum(along) + b - exact) <= 100 * UNIT * (terms + np.abs(start))).all()


def grouped(x, weight, groups):
    """A grouped convolution of one pixel: x (in,), weight (out, in / groups)."""
    parts = zip(np.split(x, groups), np.split(weight, groups), strict=True)
    return np.concatenate([w @ part for part, w in parts])


def transposed(x, weight, groups):
    """A grouped transposed convolution of one pixel: x (in,), weight (in, out / groups)."""
    parts = zip(np.split(x, groups), np.split(weight, groups), strict=True)
    return np.concatenate([part @ w for part, w in parts])


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups(rng, groups):
    """(out, in / groups) of convolutions and (in, out / groups) of transposed ones, into the layer before and after."""
    inputs, outputs = 8, 12
    before, after = norm(rng, inputs, np.float64), norm(rng, outputs, np.float64)
    x, bias = draw(rng, inputs, np.float64), draw(rng, outputs, np.float64)
    for layer, shape, out_axis in (
        (grouped, (outputs, inputs // groups), 0),
        (transposed, (inputs, outputs // groups), 1),
    ):
        weight = draw(rng, shape, np.float64)
        w, b = fastbn.fold(weight, bias, after, out_axis, groups=groups)
        y = after((layer(x, weight, groups) + bias)[np.newaxis])[0]
        np.testing.assert_allclose(layer(x, w, groups) + b, y, rtol=1e-12, atol=1e-12)
        w, b = fastbn.fold_next(before, weight, bias, 1 - out_axis, groups=groups)
        y = layer(before(x[np.newaxis])[0], weight, groups) + bias
        np.testing.assert_allclose(layer(x, w, groups) + b, y, rtol=1e-12, atol=1e-12)


def test_a_depthwise_kernel_of_keras(rng):
    """(height, width, in, out / in): the channels of an input lie together."""
    bn = norm(rng, 6)
    weight = draw(rng, (3, 3, 2, 3), np.float64)
    w, _ = fastbn.fold(weight, None, bn, -1, groups=2)
    np.testing.assert_allclose(w, weight * coefficients(bn)[0].reshape(2, 3).astype(float), rtol=1e-14)


def test_what_looks_like_a_batch_norm_will_do_and_dtypes_may_differ(rng):
    bn = norm(rng, 3)
    like = SimpleNamespace(**{name: [*getattr(bn, name)] for name in ("running_mean", "running_var", "weight", "bias")})
    like.eps = bn.eps
    weight, bias = random(rng, (3, 4), np.float16), random(rng, 3, np.float32)
    for a, b in zip(fastbn.fold(weight, bias, bn), fastbn.fold(weight, bias, like), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    assert b.dtype == np.float32
    assert fastbn.fold(weight, None, bn)[1].dtype == np.float16
