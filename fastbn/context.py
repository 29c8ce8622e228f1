"""What a forward pass leaves for the backward pass, and what that returns."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastbn import arithmetic
from fastbn.activations import Activation
from fastbn.moments import Moments, Statistic
from fastbn.renorm import Renorm
from fastbn_kernels.saved import BIAS, INVSTD, M2, MEAN, MEAN_LO, WEIGHT

# A residual that is no longer there.
OVERWRITTEN = "overwritten"


class Beyond(NamedTuple):
    """What a forward pass did beyond plain batch normalization.

    Attributes
    ----------
    activation : Activation or None
        What was done after the normalization.
    residual : array or None
        What was added before that, as the caller holds it.
    mask : array of bool or None
        Which positions counted, in the shape of x with one channel.
    ghost_batch_size : int or None
        How many samples had statistics together.
    renorm : Renorm or None
        Whether statistics were corrected towards the running ones.
    """

    activation: Activation | None = None
    residual: Any = None
    mask: NDArray[np.bool_] | None = None
    ghost_batch_size: int | None = None
    renorm: Renorm | None = None


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
    beyond : Beyond or None
        What was done beyond plain batch normalization. With ghost batches there are as many of each statistic, (G, C),
        and `saved` is (G, 7, C).
    """

    device = "cpu"  # the backend that goes back through it

    __slots__ = (
        "_given", "axis", "beyond", "bias_dtype", "count", "description", "frozen", "precision", "saved",
        "weight_dtype", "x", "y",
    )  # fmt: skip

    def __init__(
        self,
        x: NDArray[Any] | None,
        axis: int,
        count: int,
        saved: NDArray[np.float64],
        weight_dtype: np.dtype[Any] | None,
        bias_dtype: np.dtype[Any] | None,
        frozen: bool = False,
        given: Moments | None = None,
        precision: str | None = None,
        beyond: Beyond | None = None,
    ) -> None:
        self.x: NDArray[Any] | None = x
        self.axis = axis
        self.count = count
        self.saved = saved
        self.weight_dtype = weight_dtype
        self.bias_dtype = bias_dtype
        self.frozen = frozen
        self.precision = precision or arithmetic.own()
        self.beyond = beyond
        self.y: NDArray[Any] | None = None  # what x was overwritten with, if x can be told from it
        self._given = given
        self.description = ""

    @property
    def own_statistics(self) -> bool:
        """Whether the statistics are those of this x, so that its own sums suffice for the backward pass."""
        return self.statistics_count == self.count

    @property
    def given(self) -> bool:
        """Whether the statistics were given: running ones, or moments."""
        return self.frozen or self._given is not None

    def by_statistics(self, sums: tuple[NDArray[Any], NDArray[Any]]) -> Callable[[], Any] | None:
        """Return what gives the gradients by statistics that were given, from the sums; it does not hold x."""
        return functools.partial(by_statistics, self.saved, *sums) if self.given else None

    @property
    def channels(self) -> int:
        """Return C."""
        return int(self.saved.shape[-1])

    @property
    def statistics_count(self) -> int:
        """Return how many values a channel the statistics were taken of, as far as that matters to the gradient."""
        return self.count if self._given is None else self._given.count

    @property
    def like(self) -> Any:
        """Return what dy has to be like: x as the caller holds it, or what it was overwritten with; else None."""
        return self.y if self.x is None else self.x

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """Return which positions counted, in the shape of x with one channel; None if all did."""
        return None if self.beyond is None else self.beyond.mask

    @property
    def batches(self) -> int:
        """Return how many batches had statistics of their own."""
        return 1

    def parts(self) -> Iterator[Context]:
        """Return a context of every batch with statistics of its own: this one."""
        yield self

    @property
    def renormalized(self) -> bool:
        """Whether statistics were corrected towards the running ones."""
        return self.beyond is not None and self.beyond.renorm is not None

    @property
    def invertible(self) -> bool:
        """Whether xhat can be told from y: nothing was added to it, and the activation loses nothing."""
        beyond = self.beyond
        return beyond is None or (
            (beyond.activation is None or beyond.activation.invertible) and beyond.residual is None
        )

    def overwritten(self, y: NDArray[Any], over_x: bool, over_residual: bool) -> None:
        """Take note of what y was written over."""
        if over_x:
            self.forget_x(y)
        if over_residual and self.beyond is not None and self.beyond.activation is not None:
            self.beyond = self.beyond._replace(residual=OVERWRITTEN)

    def forget_x(self, y: NDArray[Any] | None = None) -> None:
        """Drop x, which was overwritten, perhaps with y."""
        if self.x is not None:
            self.description = f"{self.x.shape}, {self.x.dtype}"
            self.x = None
        self.y = y if self.invertible else None

    @property
    def mean(self) -> Statistic:
        """Return the mean as the arithmetic on x holds it."""
        mean: Statistic = self.saved[..., MEAN, :]
        return mean

    @property
    def mean_lo(self) -> Statistic:
        """Return what that rounds off the mean."""
        mean_lo: Statistic = self.saved[..., MEAN_LO, :]
        return mean_lo

    @property
    def invstd(self) -> Statistic:
        """Return 1 / sqrt(var + eps)."""
        invstd: Statistic = self.saved[..., INVSTD, :]
        return invstd

    @property
    def weight(self) -> Statistic:
        """Return a copy of the weight; with `Renorm`, times its correction."""
        weight: Statistic = self.saved[..., WEIGHT, :]
        return weight

    @property
    def bias(self) -> Statistic:
        """Return a copy of the bias; with `Renorm`, with its correction."""
        bias: Statistic = self.saved[..., BIAS, :]
        return bias

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


class GhostContext(Context):
    """A `Context` of ghost batches: of every statistic there are as many, (G, C), and `saved` is (G, 7, C).

    Attributes
    ----------
    batch_axis : int
        The axis of x that samples lie along.
    counts : tuple of int
        Values a channel of each ghost batch.
    """

    __slots__ = ("batch_axis", "counts")

    batch_axis: int
    counts: tuple[int, ...]

    @property
    def batches(self) -> int:
        """Return how many ghost batches there are."""
        return len(self.counts)

    @property
    def moments(self) -> Moments:
        """Return the statistics of the whole batch: those of the ghost batches, merged."""
        first, *others = (part.moments for part in self.parts())
        assert first is not None
        return first.merge(*(other for other in others if other is not None))

    def cut(self, g: int) -> tuple[slice, ...]:
        """Return where ghost batch g lies in x."""
        assert self.beyond is not None
        size = self.beyond.ghost_batch_size
        assert size is not None
        return *[slice(None)] * self.batch_axis, slice(g * size, (g + 1) * size)

    def parts(self) -> Iterator[Context]:
        """Make the context of every ghost batch."""
        assert self.beyond is not None
        for g, count in enumerate(self.counts):
            cut = self.cut(g)
            residual, mask = self.beyond.residual, self.beyond.mask
            if residual is not None and not isinstance(residual, str):
                residual = residual[cut]
            beyond = self.beyond._replace(
                residual=residual, mask=None if mask is None else mask[cut], ghost_batch_size=None
            )
            own = None if all(value is None for value in beyond) else beyond
            like, kept = self.like, self.x is not None
            part = Context(
                None if like is None else like[cut], self.axis, count, self.saved[g], self.weight_dtype,
                self.bias_dtype, False, None, self.precision, own,
            )  # fmt: skip
            if not kept and like is not None:
                part.forget_x(like[cut])
            yield part


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """The gradients of a loss, given its gradient dy.

    Attributes
    ----------
    dx : array, shape and dtype of x
    dweight : array of the weight's dtype, shape (C,), or None if there was no weight
    dbias : array of the bias's dtype, shape (C,), or None if there was no bias
    dresidual : array, shape and dtype of x, or None if there was no residual
        Without an activation it is dy itself, unless dx was written there.
    """

    dx: NDArray[Any]
    dweight: NDArray[Any] | None
    dbias: NDArray[Any] | None
    dresidual: NDArray[Any] | None = None
    _by_statistics: Callable[[], tuple[Statistic, Statistic]] | None = field(default=None, repr=False)

    @property
    def dmean(self) -> Statistic | None:
        """Return the gradient by the mean, float64, where statistics were given: ``-weight * invstd * sum(dy)``.

        Running statistics (``training=False``) and `moments` are given; a batch's own are not, and have None. It is
        that of mean and variance as arguments of their own: of `moments` that x is a part of, dx has it already.
        """
        return None if self._by_statistics is None else self._by_statistics()[0]

    @property
    def dvar(self) -> Statistic | None:
        """Return the gradient by the variance likewise: ``-weight * invstd**2 * sum(dy * xhat) / 2``."""
        return None if self._by_statistics is None else self._by_statistics()[1]


def by_statistics(saved: NDArray[Any], sum_dy: NDArray[Any], sum_dy_xhat: NDArray[Any]) -> tuple[Statistic, Statistic]:
    """Return the gradients by mean and variance, from what was saved and the sums of the backward pass."""
    invstd = saved[INVSTD]
    with np.errstate(all="ignore"):
        scale = -saved[WEIGHT] * invstd
        return scale * sum_dy, scale * invstd * sum_dy_xhat / 2
