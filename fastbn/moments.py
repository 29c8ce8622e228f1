"""Statistics that can be merged: moments of the forward pass, sums of the backward pass.

Ranks, ghost batches and streams share statistics by making one of these each and merging them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastbn.checks import scalars

Statistic = NDArray[np.float64]


def held_mean(mean: Statistic) -> tuple[Statistic, Statistic]:
    """Return a mean as arithmetic in float32 holds it, which is that on 16-bit data, and what that rounds off."""
    with np.errstate(over="ignore", invalid="ignore"):
        held = mean.astype(np.float32).astype(np.float64)
        return held, np.nan_to_num(mean - held, nan=0.0, posinf=0.0, neginf=0.0)


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
        object.__setattr__(self, "count", scalars.count(self.count))
        object.__setattr__(self, "mean", scalars.per_channel("mean", self.mean))
        object.__setattr__(self, "m2", scalars.per_channel("m2", self.m2))
        scalars.as_many("m2", self.m2, "mean", self.mean)

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
        _check_others(others, Moments, mean.size)
        for other in others:
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
        TypeError, ValueError
            If the correction is no number >= 0, or count <= correction.
        """
        correction = scalars.correction(correction)
        scalars.divisor(self.count, correction)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # infinite or NaN, without a warning
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
        object.__setattr__(self, "count", scalars.count(self.count))
        object.__setattr__(self, "sum_dy", scalars.per_channel("sum_dy", self.sum_dy))
        object.__setattr__(self, "sum_dy_xhat", scalars.per_channel("sum_dy_xhat", self.sum_dy_xhat))
        scalars.as_many("sum_dy_xhat", self.sum_dy_xhat, "sum_dy", self.sum_dy)

    def merge(self, *others: BackwardSums) -> BackwardSums:
        """Return the sums over all the values together."""
        count, sum_dy, sum_dy_xhat = self.count, self.sum_dy, self.sum_dy_xhat
        _check_others(others, BackwardSums, sum_dy.size)
        with np.errstate(over="ignore", invalid="ignore"):  # as in `Moments.merge`
            for other in others:
                count += other.count
                sum_dy = sum_dy + other.sum_dy
                sum_dy_xhat = sum_dy_xhat + other.sum_dy_xhat
        return BackwardSums(count, sum_dy, sum_dy_xhat)


def _check_others(others: tuple[object, ...], kind: type[Moments] | type[BackwardSums], channels: int) -> None:
    """Check what is to be merged with statistics of so many channels."""
    for value in others:
        if not isinstance(value, kind):
            raise TypeError(f"others: expected fastbn.{kind.__name__}, got {scalars.described(value)}")
        size = (value.mean if isinstance(value, Moments) else value.sum_dy).size
        if size != channels:
            raise ValueError(f"others: expected {kind.__name__} of {channels} channels, got {size}")
