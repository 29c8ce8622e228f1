"""Several channel axes: one statistic for every index along them, as Flax and Chainer have it.

Arrays are seen with these axes as one, the last, of which the rest of fastbn knows. That is a view where the axes lie
side by side in memory, and a copy elsewhere. Parameters and running statistics have the shape of these axes of x.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from fastbn.checks import arrays, scalars
from fastbn.checks.place import on_gpu
from fastbn.context import Context, Gradients
from fastbn.moments import Moments

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class AxesContext(Context):
    """A `Context` of a call with several channel axes.

    Attributes
    ----------
    inner : Context
        That of the call with these axes as one, the last.
    axes : Axes
        Which they were.
    """

    __slots__ = ("axes", "inner")

    inner: Context
    axes: Axes

    @property
    def batches(self) -> int:
        """Return how many batches had statistics of their own."""
        return self.inner.batches

    def parts(self) -> Iterator[Context]:
        """Return a context of each of them, with these axes as one."""
        return self.inner.parts()

    @property
    def moments(self) -> Moments | None:
        """Return the batch statistics in one row, or None."""
        return self.inner.moments


class Axes:
    """Which axes of an array of some shape are channel axes, and how to get between the two ways to see it."""

    def __init__(self, shape: tuple[int, ...], axis: tuple[int, ...]) -> None:
        self.shape = shape
        self.axis = axis
        self.others = tuple(i for i in range(len(shape)) if i not in axis)
        self.channels = tuple(shape[i] for i in axis)
        self.size = math.prod(self.channels)

    @classmethod
    def check(cls, x: Array, axis: Any) -> Axes:
        """Check several channel axes of an x that is one."""
        found = [scalars.integer("axis", each) for each in axis]
        for index in found:
            if not -x.ndim <= index < x.ndim:
                raise ValueError(
                    f"axis: expected integers from {-x.ndim} to {x.ndim - 1} for x of shape {x.shape}, got {axis}"
                )
        places = sorted(index % x.ndim for index in found)
        if len(set(places)) != len(places) or not 0 < len(places) < x.ndim:
            raise ValueError(
                f"axis: expected from 1 to {x.ndim - 1} different axes for x of shape {x.shape}, got {axis}"
            )
        return cls(x.shape, tuple(places))

    def merged(self, array: Array) -> Array:
        """Return an array with the channel axes as one, the last: a view if it can be."""
        apart = array.transpose(*self.others, *self.axis)
        return apart.reshape(*(self.shape[i] for i in self.others), self.size)

    def put(self, merged: Array, array: Array) -> None:
        """Write what was computed of a merged array where it belongs."""
        if merged.size and not np.may_share_memory(merged, array):
            array.transpose(*self.others, *self.axis)[...] = merged.reshape(
                *(self.shape[i] for i in self.others), *self.channels
            )

    def parameter(self, name: str, value: Any) -> Any:
        """Return a parameter in one axis; what has no such shape is left to the checks of the call."""
        if not isinstance(value, np.ndarray):
            return value
        if value.shape != self.channels:
            raise ValueError(
                f"{name}: expected shape {self.channels}, that of the channel axes {self.axis} of x, "
                f"got shape {value.shape}"
            )
        return value.reshape(-1)

    def like(self, name: str, value: Any) -> Any:
        """Return an array like x merged; anything else is left to the checks of the call."""
        if not isinstance(value, np.ndarray):
            return value
        if value.shape != self.shape:
            raise ValueError(f"{name}: expected the shape of x and y, {self.shape}, got shape {value.shape}")
        return self.merged(value)


def checked(x: Any, axis: Any) -> Axes:
    """Check x and several channel axes."""
    if on_gpu(x):
        raise ValueError(f"axis: expected one integer for an array on a GPU, got {axis}")
    return Axes.check(arrays.data(x), axis)


def batch_norm(compute: Any, x: Any, axis: Any, given: dict[str, Any]) -> tuple[Array, Context]:
    """Return y and the context; `compute` is `batch_norm` with one axis, `given` its other arguments."""
    axes = checked(x, axis)
    data = arrays.data(x)
    out = given["out"]
    running = {name: given[name] for name in ("running_mean", "running_var")}
    options = dict(given)
    for name in ("weight", "bias", *running):
        options[name] = axes.parameter(name, given[name])
    options["residual"] = axes.like("residual", given["residual"])
    if out is not None:
        options["out"] = axes.like("out", out)
        if isinstance(out, np.ndarray):
            arrays.writable("out", out)
    merged, ctx = compute(axes.merged(data), axis=-1, **options)
    y = out if out is not None else np.empty_like(data, order="K", subok=False)
    if out is None and np.may_share_memory(axes.merged(y), y):
        y = _unmerged(axes, merged, y)
    else:
        axes.put(merged, y)
    for name, array in running.items():
        if array is not None and not np.may_share_memory(options[name], array):
            array[...] = options[name].reshape(array.shape)
    return y, _wrapped(ctx, axes)


def _unmerged(axes: Axes, merged: Array, like: Array) -> Array:
    """Return a merged array of new memory as one of the shape of x, without a copy if it is stored as x is."""
    if merged.strides == axes.merged(like).strides:
        back = merged.reshape(*(axes.shape[i] for i in axes.others), *axes.channels)
        return back.transpose(np.argsort((*axes.others, *axes.axis)))
    axes.put(merged, like)
    return like


def _wrapped(ctx: Context, axes: Axes) -> AxesContext:
    wrapped = AxesContext(
        ctx.x, ctx.axis, ctx.count, ctx.saved, ctx.weight_dtype, ctx.bias_dtype, ctx.frozen, None, ctx.precision,
        ctx.beyond,
    )  # fmt: skip
    wrapped.inner, wrapped.axes = ctx, axes
    return wrapped


def backward(compute: Any, dy: Any, ctx: AxesContext, sums: Any, out: Any) -> Gradients:
    """Return the gradients; `compute` is `batch_norm_backward`."""
    axes = ctx.axes
    merged_out = None if out is None else axes.like("out", out)
    grads = compute(axes.like("dy", dy), ctx.inner, sums=sums, out=merged_out)
    if out is None:
        dx = _unmerged(axes, grads.dx, np.empty(axes.shape, grads.dx.dtype))
    else:
        axes.put(grads.dx, out)
        dx = out
    dweight, dbias = (None if each is None else each.reshape(axes.channels) for each in (grads.dweight, grads.dbias))
    dresidual = grads.dresidual
    if dresidual is not None:
        dresidual = _unmerged(axes, dresidual, np.empty(axes.shape, dresidual.dtype))
    return Gradients(dx, dweight, dbias, dresidual, grads._by_statistics)


def single(ctx: object) -> None:
    """Refuse a context of several channel axes, which higher derivatives do not have."""
    if isinstance(ctx, AxesContext):
        raise ValueError(
            f"ctx: expected one with one channel axis for higher derivatives, got one with axes {ctx.axes.axis}"
        )
