"""Checks of what goes beyond plain batch normalization: masks, ghost batches, renormalization, y in the place of x."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastbn import in_place
from fastbn.checks import scalars
from fastbn.context import OVERWRITTEN, Context
from fastbn.moments import Moments
from fastbn.renorm import Renorm

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def mask(value: object, x: Array, axis: int, training: bool) -> Array:
    """Check a mask and return it in the shape of x with one channel, which it may have been broadcast to."""
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    expected = f"None or a numpy.ndarray of bool that broadcasts to {shape}, the shape of x without its channel axis"
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray) or value.dtype != np.bool_:
        hint = "; mask != 0 makes one of numbers" if isinstance(value, np.ndarray) else ""
        raise TypeError(f"mask: expected {expected}, got {scalars.described(value)}{hint}")
    try:
        full = np.broadcast_to(value, shape)
    except ValueError:
        raise ValueError(f"mask: expected {expected}, got shape {value.shape}") from None
    if training and not full.any():
        raise ValueError(f"mask: expected at least one True in training, got none in shape {value.shape}")
    return np.expand_dims(full, axis)


class Ghosts(NamedTuple):
    """Samples of x, by an axis, taken so many at a time."""

    axis: int
    samples: int
    size: int
    values: int  # of a channel, in a sample

    def counts(self, mask: Array | None) -> list[int]:
        """Return how many values a channel each ghost batch has."""
        starts = range(0, self.samples, self.size)
        if mask is None:
            return [self.values * (min(self.samples, start + self.size) - start) for start in starts]
        samples = np.count_nonzero(np.moveaxis(mask, self.axis, 0).reshape(self.samples, -1), axis=1)
        return [int(samples[start : start + self.size].sum()) for start in starts]


def batch_axis(axis: int) -> int:
    """Return which axis samples lie along: the first that is not the channels'."""
    return 1 if axis == 0 else 0


def ghosts(
    size: int | None, x: Array, axis: int, training: bool, moments: Moments | None, mask: Array | None
) -> Ghosts | None:
    """Check ghost batches; None where there is one of all samples, or nothing is taken of a batch."""
    if size is None:
        return None
    if moments is not None:
        raise ValueError(
            f"ghost_batch_size: expected None with moments=, which are used in place of statistics of x, got {size}"
        )
    at = batch_axis(axis)
    samples = x.shape[at]
    if not training or size >= samples:
        return None
    found = Ghosts(at, samples, size, x.size // max(1, x.shape[axis] * samples))
    if mask is not None and 0 in found.counts(mask):
        raise ValueError(
            f"mask: expected at least one True in every ghost batch of {size} samples, got none in ghost batch "
            f"{found.counts(mask).index(0)}"
        )
    return found


def renorm(value: object, running: tuple[Array, Array] | None, training: bool) -> Renorm | None:
    """Check batch renormalization, which needs statistics to correct towards; without training there is none."""
    limits = _renorm(value)
    if limits is None:
        return None
    if running is None:
        raise ValueError(
            "running_mean, running_var: expected two arrays with renorm=, which corrects towards them, got None"
        )
    return limits if training else None


def _renorm(value: object) -> Renorm | None:
    if value is not None and not isinstance(value, Renorm):
        raise TypeError(f"renorm: expected None or fastbn.Renorm, got {scalars.described(value)}")
    return value


def tracked(value: object, track_running_stats: bool) -> Renorm | None:
    """Check batch renormalization of a layer."""
    limits = _renorm(value)
    if limits is not None and not track_running_stats:
        raise ValueError(f"renorm: expected None with track_running_stats=False, got {value}; it corrects towards them")
    return limits


def recoverable(ctx: Context, dtype: np.dtype[Any]) -> None:
    """Check that x, which was overwritten with y, can be told from it: no weight is too near zero."""
    off, weight, bias = (np.atleast_2d(row) for row in (in_place.error(ctx, dtype), ctx.weight, ctx.bias))
    g, worst = np.unravel_index(off.argmax(), off.shape) if off.size else (0, 0)  # of ghost batches, a row each
    if off.size and off[g, worst] > in_place.OFF:
        raise ValueError(
            "ctx: expected weights that x can be told from y with, because x was overwritten (out=x), got "
            f"{weight[g, worst]:.3g} beside a bias of {bias[g, worst]:.3g} in channel {worst}: in {dtype}, "
            f"(x - mean) / std would be off by {off[g, worst]:.3g}, more than {in_place.OFF:g}; give the forward pass "
            "another out"
        )


def residual(ctx: Context) -> Any:
    """Check that a residual that an activation came after is still there, and return it as the caller holds it."""
    beyond = ctx.beyond
    if beyond is None or beyond.residual is None or beyond.activation is None:
        return None
    if isinstance(beyond.residual, str) and beyond.residual == OVERWRITTEN:
        raise ValueError(
            "ctx: expected one that still has the residual, but it was overwritten (out=residual); "
            "give the forward pass another out, or none, to go back through it"
        )
    return beyond.residual


def whole(sums: object, partial: bool) -> None:
    """Refuse sums with ghost batches, which have statistics of their own."""
    if partial:
        raise ValueError("ctx: expected one without ghost batches, whose sums concern nobody else, got one with them")
    if sums is not None:
        raise ValueError(
            f"sums: expected None with ghost batches, which have sums of their own, got {scalars.described(sums)}"
        )
