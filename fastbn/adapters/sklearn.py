"""scikit-learn: a scaler that does `StandardScaler`'s job with fastbn's moments and fastbn's inference.

Moments of batches are merged exactly, so that `partial_fit` over a stream ends where `fit` on all of it does, and a
feature whose mean is a million standard deviations off zero is scaled as well as any other.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, validate_data

import fastbn

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
# A count of samples or a sum of weights, and mean and sum of squared deviations of every feature.
Sums: TypeAlias = tuple[int | float, Array, Array]

DTYPES = (np.float64, np.float32)  # kept; everything else becomes float64
NO_EPS = 1e-300  # fastbn wants an eps > 0; beside a variance of 1 this one vanishes


class BatchNormScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Standardise features: ``(x - mean) / scale``, as `sklearn.preprocessing.StandardScaler` does.

    Statistics are float64, and so is the arithmetic, whatever ``FASTBN_PRECISION`` says; results have the dtype of X,
    float32 or float64. NaN, infinity and sparse matrices are refused.

    Parameters
    ----------
    copy : bool, default True
        If False, `transform` and `inverse_transform` write into X where they can.
    with_mean, with_std : bool, default True
        Whether to centre, and whether to scale.
    eps : float, default 0
        Added to the variance before the root is taken, as batch normalization does. A feature whose variance plus eps
        is zero is centred and not scaled.

    Attributes
    ----------
    mean_, var_ : array of float64, shape (n_features,)
        Of the samples so far; the variance is the biased one.
    scale_ : array of float64, shape (n_features,), or None
        What values are divided by: sqrt(var_ + eps), or 1 where that is zero; None without `with_std`.
    m2_ : array of float64, shape (n_features,)
        The sum of squared deviations from the mean, which merges without a loss.
    n_samples_seen_ : int or float
        The samples so far, or the sum of their weights.
    n_features_in_, feature_names_in_
        As for every estimator.

    Examples
    --------
    >>> from fastbn.adapters.sklearn import BatchNormScaler
    >>> BatchNormScaler().fit_transform([[0.0, 5.0], [2.0, 5.0]])
    array([[-1.,  0.],
           [ 1.,  0.]])
    """

    mean_: Array
    m2_: Array
    scale_: Array | None

    def __init__(self, *, copy: bool = True, with_mean: bool = True, with_std: bool = True, eps: float = 0.0) -> None:
        self.copy = copy
        self.with_mean = with_mean
        self.with_std = with_std
        self.eps = eps

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BatchNormScaler:
        """Take the statistics of X alone; see `partial_fit`."""
        return self._take(X, sample_weight, first=True)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BatchNormScaler:
        """Add samples to the statistics.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)
        y : None
            Ignored.
        sample_weight : array-like, shape (n_samples,), optional
            Weights >= 0. They are summed by NumPy in float64, which takes a few copies of X and several times as long.

        Returns
        -------
        self
        """
        return self._take(X, sample_weight, first=not hasattr(self, "n_samples_seen_"))

    def _take(self, X: Any, sample_weight: Any, first: bool) -> BatchNormScaler:
        if isinstance(self.eps, bool) or not isinstance(self.eps, numbers.Real) or not 0 <= self.eps < math.inf:
            raise ValueError(f"eps: expected a finite number >= 0, got {self.eps!r}")
        X = validate_data(self, X, dtype=DTYPES, reset=first)
        batch = _weighted(X, sample_weight) if sample_weight is not None else _unweighted(X)
        if not first:
            batch = _merge((self.n_samples_seen_, self.mean_, self.m2_), batch)
        self.n_samples_seen_, self.mean_, self.m2_ = batch
        self.var_ = self.m2_ / self.n_samples_seen_
        self.scale_ = None
        if self.with_std:
            scale = np.sqrt(self.var_ + self.eps)
            self.scale_ = np.where(scale == 0, 1.0, scale)
        return self

    def transform(self, X: Any) -> Any:
        """Return (X - mean_) / scale_.

        Parameters
        ----------
        X : array-like, shape (n_samples, n_features)

        Returns
        -------
        array of float32 or float64, shape (n_samples, n_features)
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=DTYPES, reset=False)
        zeros, ones = np.zeros_like(self.mean_), np.ones_like(self.mean_)
        weight = ones if self.scale_ is None else 1 / self.scale_
        return self._apply(X, self.mean_ if self.with_mean else zeros, weight, None)

    def inverse_transform(self, X: Any) -> Array:
        """Return X * scale_ + mean_; takes and returns what `transform` does."""
        check_is_fitted(self)
        X = check_array(X, dtype=DTYPES)
        if X.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected {self.n_features_in_} features, got {X.shape[1]}")
        return self._apply(X, np.zeros_like(self.mean_), self.scale_, self.mean_ if self.with_mean else None)

    def _apply(self, X: Array, mean: Array, weight: Array | None, bias: Array | None) -> Array:
        out = X if not self.copy and X.flags.writeable else None
        # A feature may be in units far from 1 that float32 holds and a scale of which it does not.
        return fastbn.batch_norm_inference(
            X, mean, np.ones_like(mean), weight, bias, eps=NO_EPS, precision="exact", out=out
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _unweighted(X: Array) -> Sums:
    moments = fastbn.batch_moments(X)
    return moments.count, moments.mean, moments.m2


def _weighted(X: Array, sample_weight: Any) -> Sums:
    """Sum around the value of most weight, then around the mean, so that a constant feature has a variance of 0."""
    weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
    total = float(weight.sum())
    if not 0 < total < math.inf:  # whatever scikit-learn's releases let pass
        raise ValueError(f"sample_weight: expected a finite sum > 0, got {total}")
    share = weight / total
    origin = X[weight.argmax()].astype(np.float64)
    off = X - origin
    mean = share @ off
    off -= mean
    return total, origin + mean, weight @ (off * off)


def _merge(a: Sums, b: Sums) -> Sums:
    """Return the statistics of the samples of both."""
    (count, mean, m2), (more, its_mean, its_m2) = a, b
    if isinstance(count, int) and isinstance(more, int):
        moments = fastbn.Moments(count, mean, m2).merge(fastbn.Moments(more, its_mean, its_m2))
        return moments.count, moments.mean, moments.m2
    total = count + more  # Chan's formula, as in `Moments.merge`, for sums of weights
    share = more / total
    delta = its_mean - mean
    return total, mean + delta * share, m2 + its_m2 + delta * delta * (count * share)
