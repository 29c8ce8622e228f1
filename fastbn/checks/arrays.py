"""Every check on the arrays of a call, and every error message; `scalars` has those on numbers and the like.

A message names the argument, says what was passed and what was expected, and how to get there where that is short.
All checks of a call come before anything is written.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn.checks import aliasing, scalars
from fastbn.context import Context
from fastbn.moments import BackwardSums, Moments

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

OVERWRITTEN_X = (
    "ctx: expected one that still has x, but x was overwritten (out=x); "
    "give the forward pass another out, or none, to go back through it"
)


def _plain(name: str, value: object, what: str, half: bool = False) -> Array:
    """Return an array of float32 or float64, or with `half` of a 16-bit float, as a plain ndarray."""
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name}: expected {what}, got {scalars.described(value)}; "
            "make one with numpy.asarray(..., dtype=numpy.float32)"
        )
    if isinstance(value, np.ma.MaskedArray | np.matrix):
        raise TypeError(
            f"{name}: expected {what}, got a {type(value).__name__}, whose rules fastbn does not follow; "
            f"pass numpy.asarray({name}) if its plain values are meant"
        )
    if value.dtype not in scalars.DTYPES and not (half and scalars.is_half(value.dtype)):
        expected = "float32, float64, float16 or bfloat16 (ml_dtypes)" if half else "float32 or float64"
        raise TypeError(
            f"{name}: expected {what} of {expected} in native byte order, got {scalars.described(value)}; "
            f"convert it with {name}.astype(numpy.float32)"
        )
    return value if type(value) is np.ndarray else value.view(np.ndarray)


def data(x: object, name: str = "x") -> Array:
    """Check the input of a forward pass."""
    array = _plain(name, x, "a numpy.ndarray", half=True)
    if array.ndim < 2:
        raise ValueError(
            f"{name}: expected at least 2 dimensions, of which one is the channel axis, got shape {array.shape}; "
            f"a single sample needs a batch axis, {name}[numpy.newaxis]"
        )
    return array


def axis(value: object, x: Array) -> int:
    """Check the channel axis and return it counted from the front."""
    index = scalars.integer("axis", value)
    if not -x.ndim <= index < x.ndim:
        raise ValueError(
            f"axis: expected an integer from {-x.ndim} to {x.ndim - 1} for x of shape {x.shape}, got {index}"
        )
    return index % x.ndim


def parameter(name: str, value: object, channels: int) -> Array | None:
    """Check a per-channel input; None stays None."""
    if value is None:
        return None
    array = _plain(name, value, f"None or a numpy.ndarray of shape ({channels},)")
    if array.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), one value a channel, got shape {array.shape}")
    return array


def statistics(mean: object, var: object, channels: int, *, required: bool) -> tuple[Array, Array] | None:
    """Check running_mean and running_var: both or neither."""
    if mean is None and var is None:
        if required:
            raise ValueError(
                "running_mean, running_var: expected two arrays for normalisation with running statistics, got None; "
                "pass training=True to normalise with the batch's own"
            )
        return None
    if mean is None or var is None:
        given, missing = ("running_var", "running_mean") if mean is None else ("running_mean", "running_var")
        raise ValueError(f"{missing}: expected an array of shape ({channels},) because {given} is given, got None")
    checked = parameter("running_mean", mean, channels), parameter("running_var", var, channels)
    assert checked[0] is not None
    assert checked[1] is not None
    return checked[0], checked[1]


def writable(name: str, array: Array) -> None:
    """Check that an array may be written and has memory of its own for every element."""
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, because it is written in place, got a read-only one")
    if aliasing.overlaps_itself(array):
        raise ValueError(f"{name}: expected memory for every element, got overlapping strides {array.strides}")


def degrees_of_freedom(count: int, correction: float) -> None:
    """Check that a variance divided by count - correction exists."""
    if count <= correction:
        raise ValueError(
            f"correction: expected less than the {count} value{'s' * (count != 1)} a channel, got {correction:g}; "
            "the running variance divides by values - correction, so pass more values or correction=0"
        )


def batch(count: int, x: Array) -> None:
    """Check that there is something to take statistics of."""
    if count == 0:
        raise ValueError(f"x: expected at least one value a channel for batch statistics, got an empty batch {x.shape}")


def output(out: object, like: Array, aliases: dict[str, Array], others: dict[str, Array | None]) -> Array:
    """Check `out`: shaped and typed as `like`, writable, each of `aliases` itself or apart from it and all others."""
    array = _plain("out", out, f"None or a numpy.ndarray of shape {like.shape}", half=True)
    if array.shape != like.shape:
        raise ValueError(f"out: expected shape {like.shape}, got shape {array.shape}")
    if array.dtype != like.dtype:
        raise TypeError(f"out: expected dtype {like.dtype}, got {array.dtype}")
    writable("out", array)
    for name, alias in aliases.items():
        if aliasing.overlap(array, alias) and not aliasing.same(array, alias):
            raise ValueError(f"out: expected {name} itself or memory apart from it, got an array that overlaps {name}")
    for name, other in others.items():
        if other is not None and aliasing.overlap(array, other):
            raise ValueError(f"out: expected memory apart from {name}, got an array that overlaps it")
    return array


def updated(running: tuple[Array, Array], others: dict[str, Array | None]) -> None:
    """Check running statistics that will be updated in place."""
    mean, var = running
    writable("running_mean", mean)
    writable("running_var", var)
    if aliasing.overlap(mean, var):
        raise ValueError("running_mean: expected memory apart from running_var, got arrays that overlap")
    for name, other in others.items():
        for own, array in (("running_mean", mean), ("running_var", var)):
            if other is not None and aliasing.overlap(array, other):
                raise ValueError(f"{own}: expected memory apart from {name}, got arrays that overlap")


def moments(value: object, channels: int, training: bool) -> Moments:
    """Check statistics that are given instead of taken."""
    if not isinstance(value, Moments):
        raise TypeError(f"moments: expected None or fastbn.Moments, got {scalars.described(value)}")
    if not training:
        raise ValueError(
            "moments: expected None with training=False, which normalises with running_mean, running_var, got Moments"
        )
    if value.mean.shape != (channels,):
        raise ValueError(f"moments: expected {channels} channels, as x has, got {value.mean.size}")
    if value.count == 0:
        raise ValueError("moments: expected moments of at least one value, got count 0")
    return value


def context(value: object) -> Any:
    """Check what a forward pass left and return its x, as the caller holds it."""
    if not isinstance(value, Context):
        raise TypeError(
            f"ctx: expected the fastbn.Context that batch_norm returned with y, got {scalars.described(value)}"
        )
    if value.like is None:
        raise ValueError(OVERWRITTEN_X)
    return value.like


def sums(value: object, ctx: Context) -> BackwardSums:
    """Check backward sums that are given instead of taken."""
    if not isinstance(value, BackwardSums):
        raise TypeError(f"sums: expected None or fastbn.BackwardSums, got {scalars.described(value)}")
    if value.sum_dy.shape != (ctx.channels,):
        raise ValueError(f"sums: expected {ctx.channels} channels, as x has, got {value.sum_dy.size}")
    if not ctx.frozen and value.count != ctx.statistics_count:
        raise ValueError(
            f"sums: expected sums over the {ctx.statistics_count} values a channel that the moments were taken of, "
            f"got sums over {value.count}; merge the backward_sums of all parts"
        )
    return value


def own_statistics(ctx: Context) -> None:
    """Check that the statistics were those of this x, so that its sums suffice."""
    if not ctx.own_statistics:
        raise ValueError(
            f"sums: expected the merged backward_sums of all parts, because the forward pass used moments of "
            f"{ctx.statistics_count} values a channel and x has {ctx.count}, got None"
        )


def gradient(value: object, x: Array, name: str = "dy") -> Array:
    """Check a gradient or a tangent that comes in, one value for each of x."""
    array = _plain(name, value, f"a numpy.ndarray of shape {x.shape}", half=True)
    if array.shape != x.shape:
        raise ValueError(f"{name}: expected the shape of x and y, {x.shape}, got shape {array.shape}")
    if array.dtype != x.dtype:
        raise TypeError(f"{name}: expected the dtype of x and y, {x.dtype}, got {array.dtype}")
    return array


def differentiable(ctx: object) -> Array:
    """Check a context for derivatives beyond the gradients and return its x."""
    x: Array = context(ctx)
    assert isinstance(ctx, Context)
    if ctx.x is None:
        raise ValueError(OVERWRITTEN_X)
    if ctx.beyond is not None:
        had = [name for name, value in zip(ctx.beyond._fields, ctx.beyond, strict=True) if value is not None]
        raise ValueError(
            f"ctx: expected one of a plain batch norm for higher derivatives, got one with {', '.join(had)}"
        )
    if not ctx.own_statistics:
        raise ValueError(
            f"ctx: expected statistics of this x alone, {ctx.count} values a channel, got moments of "
            f"{ctx.statistics_count}; higher derivatives need the whole batch in one x, without moments="
        )
    return x


def derivative(name: str, value: object, dtype: np.dtype[Any] | None, channels: int) -> Array | None:
    """Check a gradient or tangent of a parameter of a dtype, or of none, which has no gradient."""
    array = parameter(name, value, channels)
    if array is not None and dtype is None:
        of = "bias" if name.endswith("bias") else "weight"
        raise ValueError(f"{name}: expected None, because the forward pass had no {of}, got {scalars.described(value)}")
    return array


def channels(x: Array, along: int | tuple[int, ...], expected: int | tuple[int, ...]) -> None:
    """Check that x has a layer's channels."""
    if isinstance(along, tuple):
        found = tuple(x.shape[index] for index in sorted(axis(each, x) for each in along))
        if found != expected:
            raise ValueError(f"x: expected {expected} channels along axes {along}, got shape {x.shape}")
        return
    along = axis(along, x)
    if x.shape[along] != expected:
        raise ValueError(f"x: expected {expected} channels along axis {along}, got shape {x.shape}")
