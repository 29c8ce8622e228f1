"""Statistics that can be merged: moments of the forward pass, sums of the backward pass.

Ranks, ghost batches and streams share statistics by making one of these each and merging them.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Statistic = NDArray[np.float64]


def _channels(owner: str, name: str, value: ArrayLike) -> Statistic:
    if type(value) is np.ndarray and value.dtype == np.float64 and value.ndim == 1 and value.flags.carray:
        return value  # what fastbn's own calls come with
    array = np.asarray(value)
    if array.dtype.kind not in "fiu" or array.ndim != 1:
        raise TypeError(
            f"{owner}: expected {name} to be real numbers of shape (C,), got {array.dtype} of shape {array.shape}"
        )
    return np.require(array, np.float64, ("C", "A"))


def _count(owner: str, value: Any) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{owner}: expected count to be an integer, got {value!r}") from None
    if count < 0:
        raise ValueError(f"{owner}: expected count >= 0, got {count}")
    return count


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of the values of each channel.

    Parameters
    ----------
    count : int
        Values a channel.
    mean : array of float64, shape (C,)
        Their mean.
    m2 : array of float64, shape (C,)
        The sum of (value - mean)^2.

    Raises
    ------
    TypeError, ValueError
        If the count is no integer >= 0, or the arrays are not real and of one shape (C,).
    """

    count: int
    mean: Statistic
    m2: Statistic

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", _count("Moments", self.count))
        object.__setattr__(self, "mean", _channels("Moments", "mean", self.mean))
        object.__setattr__(self, "m2", _channels("Moments", "m2", self.m2))
        if self.mean.shape != self.m2.shape:
            raise ValueError(f"Moments: expected mean and m2 of one shape, got {self.mean.shape} and {self.m2.shape}")

    def merge(self, *others: Moments) -> Moments:
        """Return the moments of all the values together.

        Parameters
        ----------
        *others : Moments
            Of the same channels. The result depends on their order in its last bits, so fix it where ranks must agree.

        Returns
        -------
        Moments

        Notes
        -----
        Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances":
        mean = mean_a + d * n_b / n and m2 = m2_a + m2_b + d^2 * n_a * n_b / n with d = mean_b - mean_a.
        """
        count, mean, m2 = self.count, self.mean, self.m2
        for other in others:
            if not isinstance(other, Moments):
                raise TypeError(f"merge: expected Moments, got {type(other).__name__}")
            if other.mean.shape != mean.shape:
                raise ValueError(f"merge: expected moments of {mean.size} channels, got {other.mean.size}")
            if other.count == 0:
                continue
            if count == 0:
                count, mean, m2 = other.count, other.mean, other.m2
                continue
            share = other.count / (count + other.count)
            with np.errstate(over="ignore", invalid="ignore"):  # an infinite mean stays infinite, without a warning
                delta = other.mean - mean
                apart = mean * (1 - share) + other.mean * share
                mean = np.where(np.isfinite(delta), mean + delta * share, apart)
                m2 = m2 + other.m2 + delta * delta * (count * share)
            count += other.count
        return Moments(count, mean, m2)

    def var(self, correction: float = 0) -> Statistic:
        """Return the variance m2 / (count - correction).

        Parameters
        ----------
        correction : float, default 0
            0 for the variance of these values, which normalises a batch; 1 (Bessel's) for an unbiased estimate of the
            variance of the population that they were drawn from, which goes into running statistics.

        Returns
        -------
        array of float64, shape (C,)

        Raises
        ------
        ValueError
            If count <= correction.
        """
        if self.count <= correction:
            raise ValueError(
                f"correction: expected less than the {self.count} values of these moments, got {correction:g}"
            )
        return self.m2 / (self.count - correction)


@dataclass(frozen=True, slots=True, eq=False)
class BackwardSums:
    """What the backward pass needs to know of a whole batch.

    Parameters
    ----------
    count : int
        Values a channel.
    sum_dy : array of float64, shape (C,)
        The sum of dy, which is the gradient of the bias.
    sum_dy_xhat : array of float64, shape (C,)
        The sum of dy * xhat with xhat = (x - mean) / sqrt(var + eps), which is the gradient of the weight.
    """

    count: int
    sum_dy: Statistic
    sum_dy_xhat: Statistic

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", _count("BackwardSums", self.count))
        object.__setattr__(self, "sum_dy", _channels("BackwardSums", "sum_dy", self.sum_dy))
        object.__setattr__(self, "sum_dy_xhat", _channels("BackwardSums", "sum_dy_xhat", self.sum_dy_xhat))
        if self.sum_dy.shape != self.sum_dy_xhat.shape:
            raise ValueError(
                "BackwardSums: expected sum_dy and sum_dy_xhat of one shape, "
                f"got {self.sum_dy.shape} and {self.sum_dy_xhat.shape}"
            )

    def merge(self, *others: BackwardSums) -> BackwardSums:
        """Return the sums over all the values together."""
        count, sum_dy, sum_dy_xhat = self.count, self.sum_dy, self.sum_dy_xhat
        for other in others:
            if not isinstance(other, BackwardSums):
                raise TypeError(f"merge: expected BackwardSums, got {type(other).__name__}")
            if other.sum_dy.shape != sum_dy.shape:
                raise ValueError(f"merge: expected sums of {sum_dy.size} channels, got {other.sum_dy.size}")
            count += other.count
            sum_dy = sum_dy + other.sum_dy
            sum_dy_xhat = sum_dy_xhat + other.sum_dy_xhat
        return BackwardSums(count, sum_dy, sum_dy_xhat)
