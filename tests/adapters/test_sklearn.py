"""fastbn.adapters.sklearn against scikit-learn's own checks, its `StandardScaler`, and exact sums."""

import pickle
from fractions import Fraction

import numpy as np
import pytest

import fastbn
import reference
from grid import draw
from tolerance import check, relative

pytest.importorskip("sklearn", reason="scikit-learn is not installed; make test-all installs it")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from fastbn.adapters.sklearn import BatchNormScaler

pytestmark = pytest.mark.frameworks

DTYPES = [np.float32, np.float64]
U = 2.0**-53


@parametrize_with_checks([BatchNormScaler(), BatchNormScaler(with_mean=False, eps=1e-5)])  # copy=False changes their X
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def expected(x, scaler):
    """The exact transform with exact statistics."""
    mean, var = reference.moments(x)
    scale = np.sqrt(var + np.longdouble(scaler.eps)) if scaler.with_std else 1
    scale = np.where(scale == 0, 1, scale)
    return (np.asarray(x, np.longdouble) - (mean if scaler.with_mean else 0)) / scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"with_mean": False}, {"with_std": False}, {"eps": 0.1}], ids=str)
@pytest.mark.parametrize("mean", [0, 1e6])
def test_results_are_the_exact_ones_rounded_once(rng, dtype, options, mean):
    x = draw(rng, (500, 7), dtype, mean)
    scaler = BatchNormScaler(**options).fit(x)
    y = scaler.transform(x)
    assert y.dtype == dtype
    want = expected(x, scaler)
    reach = float(np.abs(expected(x, BatchNormScaler())).max())
    # The float64 mean is itself rounded, by half a unit in the last place of it, in units of the scale.
    rounded = 0 if not scaler.with_mean else U * (abs(mean) + 1) / (1 if scaler.scale_ is None else scaler.scale_.min())
    check(y, want, relative(len(x), reach) * np.abs(want).max() + relative(len(x), reach) + rounded)
    back = scaler.inverse_transform(y)
    np.testing.assert_allclose(back, x, rtol=4 * np.finfo(dtype).eps, atol=4 * np.finfo(dtype).eps * (mean + reach))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_numbers_as_standard_scaler(rng, dtype):
    x = draw(rng, (1000, 20), dtype, mean=3)
    ours, theirs = BatchNormScaler().fit(x), StandardScaler().fit(x)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(ours.mean_, theirs.mean_, rtol=1e-13)
    np.testing.assert_allclose(ours.var_, theirs.var_, rtol=1e-13)
    np.testing.assert_allclose(ours.scale_, theirs.scale_, rtol=1e-13)
    assert ours.n_samples_seen_ == theirs.n_samples_seen_
    # StandardScaler rounds the mean, the difference and the scale to the dtype of X; its own float64 mean is a chain
    # of 1000 additions, see tolerance.py.
    atol = 8 * eps + 8 * np.sqrt(1000) * U * 3
    np.testing.assert_allclose(ours.transform(x), theirs.transform(x), rtol=2 * eps, atol=atol)
    np.testing.assert_allclose(ours.inverse_transform(x), theirs.inverse_transform(x), rtol=4 * eps, atol=2 * atol)


def test_a_feature_far_from_zero_keeps_its_digits(rng):
    x = draw(rng, (10000, 3), np.float32, mean=1e6)
    want = expected(x, BatchNormScaler())
    ours = np.abs(BatchNormScaler().fit_transform(x) - want).max()
    theirs = np.abs(StandardScaler().fit_transform(x) - want).max()
    assert ours < 4e-7  # half a unit in the last place of 5
    assert theirs > 1e-3  # the mean, rounded to float32, is off by up to 1/32


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_end_where_the_whole_does(rng, dtype):
    x = draw(rng, (5000, 6), dtype, mean=2)
    whole, parts = BatchNormScaler().fit(x), BatchNormScaler()
    for batch in np.array_split(x, 100):
        parts.partial_fit(batch)
    assert parts.n_samples_seen_ == 5000
    # A merge rounds each of them three times at most, by U of a part of the sum; see tolerance.py on chains of so many.
    close = 8 * np.sqrt(3 * 100) * U
    np.testing.assert_allclose(parts.mean_, whole.mean_, rtol=close)
    np.testing.assert_allclose(parts.var_, whole.var_, rtol=close)


def test_fit_forgets_what_was_before(rng):
    scaler = BatchNormScaler().fit(draw(rng, (50, 4), np.float64, mean=9))
    x = draw(rng, (20, 3), np.float64)
    scaler.fit(x)
    assert scaler.n_features_in_ == 3
    np.testing.assert_array_equal(scaler.mean_, BatchNormScaler().fit(x).mean_)


@pytest.mark.parametrize("weight", [None, np.array([0.25, 3, 0, 1, 0.5])])
def test_a_constant_feature_becomes_zero(weight):
    x = np.array([[0.1, 1], [0.1, 2], [0.1, 4], [0.1, 8], [0.1, 16]])
    scaler = BatchNormScaler()
    for _ in range(3):
        scaler.partial_fit(x, sample_weight=weight)
    assert scaler.var_[0] == 0
    assert scaler.scale_[0] == 1
    np.testing.assert_array_equal(scaler.transform(x)[:, 0], np.zeros(5))


def test_weights_give_the_weighted_moments_exactly(rng):
    x, weight = draw(rng, (40, 1), np.float64, mean=100), rng.uniform(0, 2, 40)
    scaler = BatchNormScaler().partial_fit(x[:10]).partial_fit(x[10:25], sample_weight=weight[10:25])
    scaler.partial_fit(x[25:], sample_weight=weight[25:])
    weight[:10] = 1
    w, v = [Fraction(float(i)) for i in weight], [Fraction(float(i)) for i in x[:, 0]]
    mean = sum(a * b for a, b in zip(w, v, strict=True)) / sum(w)
    var = sum(a * (b - mean) ** 2 for a, b in zip(w, v, strict=True)) / sum(w)
    # 40 additions and two merges; a mean of 100 standard deviations is rounded in units of 2^-46, which var squares.
    np.testing.assert_allclose(scaler.mean_, [float(mean)], rtol=10 * U)
    np.testing.assert_allclose(scaler.var_, [float(var)], rtol=100 * U)
    np.testing.assert_allclose(scaler.n_samples_seen_, float(sum(w)), rtol=10 * U)


def test_copy_false_writes_into_x_and_copy_true_does_not(rng):
    x = draw(rng, (30, 4), np.float32)
    kept = x.copy()
    y = BatchNormScaler().fit(x).transform(x)
    np.testing.assert_array_equal(x, kept)
    z = BatchNormScaler(copy=False).fit(x).transform(x)
    assert z is x or np.shares_memory(z, x)
    np.testing.assert_array_equal(z, y)
    kept.flags.writeable = False
    np.testing.assert_array_equal(BatchNormScaler(copy=False).fit(kept).transform(kept), y)


def test_names_pipelines_pickles_and_clones(rng):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = pandas.DataFrame(draw(rng, (30, 2), np.float64), columns=["a", "b"])
    scaler = BatchNormScaler(eps=1e-3).set_output(transform="pandas").fit(frame)
    assert list(scaler.transform(frame).columns) == list(scaler.get_feature_names_out()) == ["a", "b"]
    assert list(scaler.feature_names_in_) == ["a", "b"]


def test_pipelines_pickles_and_clones(rng):
    x = draw(rng, (30, 2), np.float64)
    pipeline = make_pipeline(BatchNormScaler(eps=1e-3), StandardScaler()).fit(x)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(pipeline)).transform(x), pipeline.transform(x))
    fresh = clone(pipeline[0])
    assert list(pipeline[0].get_feature_names_out(["a", "b"])) == ["a", "b"]
    assert fresh.get_params() == {"copy": True, "with_mean": True, "with_std": True, "eps": 1e-3}
    with pytest.raises(NotFittedError):
        fresh.transform(x)


def test_what_does_not_fit_is_refused_and_changes_nothing(rng):
    sparse = pytest.importorskip("scipy.sparse")
    x = draw(rng, (10, 3), np.float64)
    scaler = BatchNormScaler().fit(x)
    mean = scaler.mean_.copy()
    with_nan = x.copy()
    with_nan[3, 1] = np.nan
    for bad, message in ((with_nan, "contains NaN"), (x[:, :2], "features"), (x[:0], "0 sample")):
        for method in (scaler.partial_fit, scaler.transform, scaler.inverse_transform):
            with pytest.raises(ValueError, match=message):
                method(bad)
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        scaler.partial_fit(sparse.csr_matrix(x))
    for weight, message in ((-np.ones(10), "[Nn]egative"), (np.zeros(10), "non-zero")):
        with pytest.raises(ValueError, match=message):
            scaler.partial_fit(x, sample_weight=weight)
    for eps in (-1, np.nan, np.inf, "1", True):
        with pytest.raises(ValueError, match="eps: expected a finite number >= 0"):
            BatchNormScaler(eps=eps).fit(x)
    np.testing.assert_array_equal(scaler.mean_, mean)
    assert scaler.n_samples_seen_ == 10


def test_the_statistics_are_fastbns(rng):
    x = draw(rng, (64, 5), np.float32, mean=7)
    moments, scaler = fastbn.batch_moments(x), BatchNormScaler().fit(x)
    np.testing.assert_array_equal(scaler.mean_, moments.mean)
    np.testing.assert_array_equal(scaler.var_, moments.var())
