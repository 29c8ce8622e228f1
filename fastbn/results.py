"""What a forward pass leaves for the backward pass, and what that returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastbn.moments import Moments, Statistic


@dataclass(slots=True, eq=False, repr=False)
class Context:
    """What `batch_norm` leaves for `batch_norm_backward`.

    It refers to x and does not copy it: leave x unchanged until the backward pass.

    Attributes
    ----------
    x : array or None
        The input; None after it was overwritten, by `out=x` forward or backward.
    axis : int
        Its channel axis.
    count : int
        Values a channel, in x.
    mean, low, invstd : array of float64, shape (C,)
        What x was normalised with: y = (x - (mean + low)) * invstd * weight + bias, where low is what float64 rounds
        off the mean.
    moments : Moments or None
        The batch statistics that these came from; None if they were running statistics.
    weight : array of float64, shape (C,)
        A copy of the weight, ones if there was none.
    """

    x: NDArray[Any] | None
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    axis: int
    count: int
    mean: Statistic
    low: Statistic
    invstd: Statistic
    moments: Moments | None
    weight: Statistic
    weight_dtype: np.dtype[Any] | None
    bias_dtype: np.dtype[Any] | None

    @property
    def frozen(self) -> bool:
        """Whether x was normalised with running statistics, through which no gradient flows."""
        return self.moments is None

    def __repr__(self) -> str:
        kind = "running" if self.frozen else "batch"
        return f"Context(x of shape {self.shape}, {self.dtype}, axis={self.axis}, {kind} statistics)"


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
