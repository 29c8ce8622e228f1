"""Data sets: rescaled and decorrelated, in one piece and in many, in memory and not."""

import numpy as np
import pytest

import fastbn
import reference
import whitened
from fastbn import pieces
from grid import draw
from tolerance import check_forward


@pytest.fixture
def in_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 40)


def mixed(rng, shape, axis, dtype, mean=0.0):
    """Data whose channels are correlated: each is a random combination of all."""
    channels = shape[axis]
    mixing = np.eye(channels) + 0.5 * rng.uniform(-1, 1, (channels, channels)) / np.sqrt(channels)
    x = np.moveaxis(np.tensordot(mixing, rng.standard_normal(shape), (1, axis)), 0, axis)
    return np.ascontiguousarray((x + mean).astype(dtype))


@pytest.mark.bounds
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), [((30, 7), 1), ((30, 7), -1), ((6, 3, 5, 2), 1), ((4, 30), 0)])
def test_rescale(rng, in_pieces, dtype, shape, axis):
    x = draw(rng, shape, dtype, mean=3, std=2)
    y, transform = fastbn.rescale(x, axis=axis)
    check_forward(y, reference.forward(x, eps=0, axis=axis))
    mean, var = reference.moments(x, axis)
    test = draw(rng, shape, dtype)
    check_forward(transform(test), reference.forward(test, mean=mean, var=var, eps=0, axis=axis))
    assert y.dtype == dtype


def test_a_constant_channel_is_not_divided(rng, in_pieces):
    x = draw(rng, (50, 3), np.float32)
    x[:, 1] = 0.1
    y, transform = fastbn.rescale(x)
    assert (y[:, 1] == 0).all()
    assert transform.std[1] == 1
    np.testing.assert_allclose(transform(x + np.float32(2))[:, 1], 2, rtol=1e-6)


@pytest.mark.parametrize("prepared", [fastbn.rescale, fastbn.decorrelate])
def test_batches_files_and_places(rng, tmp_path, monkeypatch, prepared):
    """Batches, a memory-mapped array into another, and in place give what an array gives, but for last bits."""
    x = mixed(rng, (60, 5), 1, np.float64, mean=1)
    expected, transform = prepared(x)
    tolerance = {"rtol": 1e-12, "atol": 1e-13}
    np.testing.assert_allclose(transform(x), expected, **tolerance)
    batches, other = prepared([x[:7], x[7:8], x[:0], x[8:]])
    np.testing.assert_allclose(other.mean, transform.mean, **tolerance)
    np.testing.assert_allclose(np.concatenate(list(batches)), expected, **tolerance)
    monkeypatch.setattr(pieces, "PIECE", 40)
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", np.float64, "r", shape=x.shape)
    out = np.memmap(tmp_path / "y", np.float64, "w+", shape=x.shape)
    y, _ = prepared(mapped, out=out)
    assert y is out
    np.testing.assert_allclose(y, expected, **tolerance)
    again, _ = prepared(mapped)
    np.testing.assert_array_equal(y, again)
    copy = x.copy()
    assert prepared(copy, out=copy)[0] is copy
    np.testing.assert_array_equal(copy, y)


@pytest.mark.parametrize(("shape", "axis", "groups"), [((90, 6), 1, 1), ((20, 6, 3, 3), 1, 2), ((6, 90), 0, 3)])
def test_zca(rng, in_pieces, shape, axis, groups):
    x = mixed(rng, shape, axis, np.float64, mean=1e3)
    y, transform = fastbn.decorrelate(x, axis=axis, groups=groups)
    f = whitened.forward(x, axis, groups, eps=0)
    # x is known to 1e-13 of a standard deviation, the root to 2^-53 of its largest value times the condition of some 30
    np.testing.assert_allclose(y, f.y.astype(float), atol=1e-11)
    np.testing.assert_allclose(transform.matrix, f.root.astype(float), atol=1e-11)
    regular = fastbn.decorrelate(x, axis=axis, groups=groups, eps=0.5)[0]
    np.testing.assert_allclose(regular, whitened.forward(x, axis, groups, eps=0.5).y.astype(float), atol=1e-11)


def test_pca(rng, in_pieces):
    x = mixed(rng, (80, 5), 1, np.float64)
    y, transform = fastbn.decorrelate(x, method="pca")
    np.testing.assert_allclose(y.T @ y / 80, np.eye(5), atol=1e-12)
    assert (np.diff(transform.variances) <= 0).all()
    components = transform.matrix[0] * np.sqrt(transform.variances[0])[:, None]
    np.testing.assert_allclose(components @ components.T, np.eye(5), atol=1e-13)
    covariance = np.cov(x.T, bias=True)
    np.testing.assert_allclose(components @ covariance @ components.T, np.diag(transform.variances[0]), atol=1e-13)
    assert (np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1) > 0).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("method", ["zca", "pca"])
def test_what_only_rounding_left_is_not_divided(rng, dtype, method):
    """A constant feature, and one that is the sum of two others but for how it is stored: two components are noise."""
    x = mixed(rng, (200, 5), 1, np.float64, mean=1)
    x[:, 0], x[:, 4] = 2, x[:, 1] + x[:, 2]
    y, transform = fastbn.decorrelate(x.astype(dtype), method=method)
    off = 1e-3 if dtype == np.float16 else 1e-5
    values = np.linalg.eigvalsh(y.T.astype(float) @ y.astype(float) / 200)
    np.testing.assert_allclose(values, [0, 0, 1, 1, 1], atol=off)
    x[:, 0] += 1  # what is new in a test set is not blown up
    moved = transform(x.astype(dtype)) - y
    np.testing.assert_allclose(np.linalg.norm(moved.astype(float), axis=1), 1, atol=3 * off)


def test_digits_of_a_mean_far_away(rng, in_pieces):
    x = np.round(mixed(rng, (64, 3), 1, np.float64), 6)  # the same values at 1e8, but for 1e-8
    near, _ = fastbn.decorrelate(x)
    far, _ = fastbn.decorrelate(x + 1e8)
    np.testing.assert_allclose(far, near, atol=1e-6)
    again, _ = fastbn.decorrelate((x + 1e8) - 1e8)
    np.testing.assert_allclose(far, again, atol=1e-13)


def test_what_is_not_finite_stays_in_its_group(rng):
    x = mixed(rng, (30, 4), 1, np.float32)
    expected, _ = fastbn.decorrelate(x, groups=2)
    x[3, 0] = np.nan
    y, _ = fastbn.decorrelate(x, groups=2)
    assert np.isnan(y[:, :2]).all()
    np.testing.assert_array_equal(y[:, 2:], expected[:, 2:])
