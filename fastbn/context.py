"""What a forward pass leaves for the backward pass, and what that returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbn import arithmetic
from fastbn.moments import Moments, Statistic
from fastbn_kernels.saved import INVSTD, M2, MEAN, MEAN_LO, WEIGHT


class Context:
    """What `batch_norm` leaves for `batch_norm_backward`.

    It refers to x and does not copy it: leave x unchanged until the backward pass.

    A host that keeps arrays alone between forward and backward keeps x and `saved`, and makes the context again:
    ``Context(x, axis, count, saved, weight_dtype, bias_dtype, frozen)``. Nothing is checked then; the precision is that
    of the process (``FASTBN_PRECISION``), unless it is passed on, with ``precision=ctx.precision``.

    Attributes
    ----------
    x : array or None
        The input; None after it was overwritten, by `out=x` forward or backward.
    axis : int
        Its channel axis.
    count : int
        Values a channel, in x.
    mean, mean_lo, invstd : array of float64, shape (C,)
        What x was normalised with: y = (x - (mean + mean_lo)) * invstd * weight + bias, where mean_lo is what the
        arithmetic on x rounds off the mean.
    moments : Moments or None
        The batch statistics that these came from; None if they were running statistics.
    weight : array of float64, shape (C,)
        A copy of the weight, ones if there was none.
    saved : array of float64, shape (7, C)
        These and more, a row each (`fastbn_kernels.saved`); which row is which may change from release to release.
    weight_dtype, bias_dtype : dtype or None
        Those of the parameters that were given, which are those of their gradients.
    frozen : bool
        Whether x was normalised with running statistics, through which no gradient flows.
    precision : {"fast", "exact"}
        In which arithmetic to go back, which matters if x is float32.
    """

    device = "cpu"  # the backend that goes back through it

    __slots__ = (
        "_given", "axis", "bias_dtype", "count", "description", "frozen", "precision", "saved", "weight_dtype", "x",
    )  # fmt: skip

    def __init__(
        self,
        x: NDArray[Any],
        axis: int,
        count: int,
        saved: NDArray[np.float64],
        weight_dtype: np.dtype[Any] | None,
        bias_dtype: np.dtype[Any] | None,
        frozen: bool = False,
        given: Moments | None = None,
        precision: str | None = None,
    ) -> None:
        self.x: NDArray[Any] | None = x
        self.axis = axis
        self.count = count
        self.saved = saved
        self.weight_dtype = weight_dtype
        self.bias_dtype = bias_dtype
        self.frozen = frozen
        self.precision = precision or arithmetic.own()
        self._given = given
        self.description = ""

    @property
    def own_statistics(self) -> bool:
        """Whether the statistics are those of this x, so that its own sums suffice for the backward pass."""
        return self.statistics_count == self.count

    @property
    def channels(self) -> int:
        """Return C."""
        return int(self.saved.shape[1])

    @property
    def statistics_count(self) -> int:
        """Return how many values a channel the statistics were taken of, as far as that matters to the gradient."""
        return self.count if self._given is None else self._given.count

    @property
    def like(self) -> Any:
        """Return what dy has to be like: x as the caller holds it; None after it was overwritten."""
        return self.x

    def forget_x(self) -> None:
        """Drop x, which was overwritten."""
        if self.x is not None:
            self.description = f"{self.x.shape}, {self.x.dtype}"
            self.x = None

    @property
    def mean(self) -> Statistic:
        """Return the mean as the arithmetic on x holds it."""
        mean: Statistic = self.saved[MEAN]
        return mean

    @property
    def mean_lo(self) -> Statistic:
        """Return what that rounds off the mean."""
        mean_lo: Statistic = self.saved[MEAN_LO]
        return mean_lo

    @property
    def invstd(self) -> Statistic:
        """Return 1 / sqrt(var + eps)."""
        invstd: Statistic = self.saved[INVSTD]
        return invstd

    @property
    def weight(self) -> Statistic:
        """Return a copy of the weight."""
        weight: Statistic = self.saved[WEIGHT]
        return weight

    @property
    def moments(self) -> Moments | None:
        """Return the batch statistics, or None."""
        if self.frozen or self._given is not None:
            return self._given
        return Moments(self.count, self.saved[MEAN] + self.saved[MEAN_LO], self.saved[M2])

    def __repr__(self) -> str:
        kind = "running" if self.frozen else "batch"
        x = self.description if self.x is None else f"{self.x.shape}, {self.x.dtype}"
        return f"Context(x of shape {x}, axis={self.axis}, {kind} statistics)"


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """The gradients of a loss, given its gradient dy.

    Attributes
    ----------
    dx : array, shape and dtype of x
    dweight : array of the weight's dtype, shape (C,), or None if there was no weight
    dbias : array of the bias's dtype, shape (C,), or None if there was no bias
    """

    dx: NDArray[Any]
    dweight: NDArray[Any] | None
    dbias: NDArray[Any] | None
