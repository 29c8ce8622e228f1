"""One contract: every check and every default of a call is here, once, for every backend and every adapter.

A public function makes one of these of its arguments, a backend computes it. What exists has been checked: a backend
finds arrays that fit together, numbers in range and nothing left to refuse. Checks see arrays as NumPy has them; a
backend whose arrays are elsewhere shows what `look` makes of them, arrays of the same shape, strides, dtype and
address. The quick paths (`backends/cpu/small_calls.py`, `backends/cuda/launch_cache.py`) are the same
contract, compiled or remembered: they take a call that fits, or leave it to this file to say what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastbn.checks import aliasing, arrays, place, scalars
from fastbn.context import Context
from fastbn.moments import BackwardSums, Moments

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Look: TypeAlias = Callable[[str, Any], Any]


def as_it_is(name: str, value: Any) -> Any:
    """Look at an argument of NumPy's, or at what is no array at all."""
    return value


def _dtype(parameter: Array | None) -> np.dtype[Any] | None:
    return None if parameter is None else parameter.dtype


class Given(NamedTuple):
    """The arrays of a forward pass as the caller passed them."""

    x: Any
    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    out: Any


@dataclass(frozen=True, slots=True, eq=False)
class ForwardCall:
    """A forward pass that fits.

    Attributes
    ----------
    x : array
        As NumPy sees it: float32, float64, float16 or bfloat16, at least two axes.
    axis : int
        The channel axis, counted from the front.
    weight, bias : array of float32 or float64, shape (C,), or None
    running : tuple of two such arrays, or None
        Mean and variance: to be moved in place if `updates`, else used or, in training without statistics, absent.
    training : bool
    momentum, correction, eps : float
    moments : Moments or None
        Statistics to use in place of the batch's own.
    precision : {"fast", "exact"}
        In which arithmetic float32 x is computed.
    out : array or None
        Where y goes: x itself, or memory apart from everything else.
    given : Given
        The same arrays as they were passed.
    """

    x: Array
    axis: int
    weight: Array | None
    bias: Array | None
    running: tuple[Array, Array] | None
    training: bool
    momentum: float
    correction: float
    eps: float
    moments: Moments | None
    precision: str
    out: Array | None
    given: Given

    @classmethod
    def check(
        cls, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: Any, momentum: Any,
        correction: Any, eps: Any, axis: Any, moments: Any, precision: Any, out: Any, *, look: Look = as_it_is,
        in_place: bool = True,
    ) -> ForwardCall:  # fmt: skip
        """Check the arguments of `batch_norm`; raise before anything is written.

        Parameters
        ----------
        x, weight, bias, running_mean, running_var, training, momentum, correction, eps, axis, moments, precision, out
            As the caller passed them.
        look : callable
            Returns what NumPy sees of an argument, given its name and itself.
        in_place : bool
            Whether running statistics are moved where they are. A host whose arrays cannot be written returns new ones.
        """
        given = Given(x, weight, bias, running_mean, running_var, out)
        data = arrays.data(look("x", x))
        axis = arrays.axis(axis, data)
        training = scalars.flag("training", training)
        channels = data.shape[axis]
        count = _values_per_channel(data, axis)
        weight = arrays.parameter("weight", look("weight", weight), channels)
        bias = arrays.parameter("bias", look("bias", bias), channels)
        running = arrays.statistics(
            look("running_mean", running_mean), look("running_var", running_var), channels, required=not training
        )
        eps = scalars.eps(eps)
        correction = scalars.correction(correction)
        precision = scalars.precision(precision)
        if moments is not None:
            moments = arrays.moments(moments, channels, training)
        elif training:
            arrays.batch(count, data)
        statistics = {} if moments is None else {"moments.mean": moments.mean, "moments.m2": moments.m2}
        if running is not None and training:
            momentum = scalars.momentum(momentum)
            arrays.degrees_of_freedom(count if moments is None else moments.count, correction)
            if in_place:
                arrays.updated(running, {"x": data, "weight": weight, "bias": bias} | statistics)
        if out is not None:
            others = {"weight": weight, "bias": bias, "running_mean": None, "running_var": None}
            if running is not None:
                others["running_mean"], others["running_var"] = running
            seen = arrays.output(look("out", out), data, {"x": data}, others | statistics)
            place.beside("out", out, x)
        else:
            seen = None
        numbers = momentum, correction, eps
        return cls(data, axis, weight, bias, running, training, *numbers, moments, precision, seen, given)

    @property
    def channels(self) -> int:
        """Return C."""
        return int(self.x.shape[self.axis])

    @property
    def count(self) -> int:
        """Return how many values a channel there are in x."""
        return _values_per_channel(self.x, self.axis)

    @property
    def frozen(self) -> bool:
        """Whether no gradient flows through the statistics."""
        return not self.training

    @property
    def updates(self) -> bool:
        """Whether running statistics are moved."""
        return self.training and self.running is not None

    @property
    def over_x(self) -> bool:
        """Whether y is written where x is."""
        return self.out is not None and self.x.size > 0 and aliasing.same(self.x, self.out)

    @property
    def dtypes(self) -> tuple[np.dtype[Any] | None, np.dtype[Any] | None]:
        """Return the dtypes of weight and bias, which are those of their gradients."""
        return _dtype(self.weight), _dtype(self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class MomentsCall:
    """Statistics of a batch that can be taken: x as NumPy sees it and as it was passed, its channel axis."""

    x: Array
    axis: int
    given: Any

    @classmethod
    def check(cls, x: Any, axis: Any, *, look: Look = as_it_is) -> MomentsCall:
        """Check the arguments of `batch_moments`."""
        data = arrays.data(look("x", x))
        return cls(data, arrays.axis(axis, data), x)

    @property
    def count(self) -> int:
        """Return how many values a channel there are in x."""
        return _values_per_channel(self.x, self.axis)


@dataclass(frozen=True, slots=True, eq=False)
class BackwardCall:
    """A backward pass that fits, or the sums of one.

    Attributes
    ----------
    ctx : Context
        From the forward pass; its x is still there.
    x, dy : array
        As NumPy sees them, alike in shape and dtype.
    sums : BackwardSums or None
        Sums over the whole batch, if they are given instead of taken.
    out : array or None
        Where dx goes: dy or x itself, or memory apart from both.
    given_dy, given_out : object
        The same arrays as they were passed.
    """

    ctx: Context
    x: Array
    dy: Array
    sums: BackwardSums | None
    out: Array | None
    given_dy: Any
    given_out: Any

    @classmethod
    def check(
        cls, dy: Any, ctx: Any, sums: Any, out: Any, *, look: Look = as_it_is, partial: bool = False
    ) -> BackwardCall:
        """Check the arguments of `batch_norm_backward`; with `partial` those of `backward_sums`."""
        given = arrays.context(ctx)
        x = look("x", given)
        gradient = arrays.gradient(look("dy", dy), x)
        place.beside("dy", dy, given)
        if sums is not None:
            sums = arrays.sums(sums, ctx)
        elif not partial:
            arrays.own_statistics(ctx)
        seen = None
        if out is not None:
            others = {} if sums is None else {"sums.sum_dy": sums.sum_dy, "sums.sum_dy_xhat": sums.sum_dy_xhat}
            seen = arrays.output(look("out", out), x, {"dy": gradient, "x": x}, others)
            place.beside("out", out, given)
        return cls(ctx, x, gradient, sums, seen, dy, out)

    @property
    def precision(self) -> str:
        """Return in which arithmetic float32 x is computed: that of the forward pass."""
        return self.ctx.precision

    @property
    def over_x(self) -> bool:
        """Whether dx is written where x is."""
        return self.out is not None and self.x.size > 0 and aliasing.same(self.x, self.out)


@dataclass(frozen=True, slots=True, eq=False)
class DoubleBackwardCall:
    """A pass back through a backward pass that fits; arguments as `batch_norm_double_backward` names them."""

    ctx: Context
    x: Array
    ddx: Array | None
    ddweight: Array | None
    ddbias: Array | None
    dy: Array

    @classmethod
    def check(cls, ddx: Any, ddweight: Any, ddbias: Any, dy: Any, ctx: Any) -> DoubleBackwardCall:
        """Check the arguments of `batch_norm_double_backward`."""
        x = arrays.differentiable(ctx)
        dy = arrays.gradient(dy, x)
        if ddx is not None:
            ddx = arrays.gradient(ddx, x, "ddx")
        ddweight = arrays.derivative("ddweight", ddweight, ctx.weight_dtype, ctx.channels)
        ddbias = arrays.derivative("ddbias", ddbias, ctx.bias_dtype, ctx.channels)
        return cls(ctx, x, ddx, ddweight, ddbias, dy)


@dataclass(frozen=True, slots=True, eq=False)
class JvpCall:
    """A forward pass along tangents that fits; arguments as `batch_norm_jvp` names them."""

    ctx: Context
    x: Array
    tx: Array | None
    tweight: Array | None
    tbias: Array | None

    @classmethod
    def check(cls, tx: Any, tweight: Any, tbias: Any, ctx: Any) -> JvpCall:
        """Check the arguments of `batch_norm_jvp`."""
        x = arrays.differentiable(ctx)
        if tx is not None:
            tx = arrays.gradient(tx, x, "tx")
        tweight = arrays.derivative("tweight", tweight, ctx.weight_dtype, ctx.channels)
        tbias = arrays.derivative("tbias", tbias, ctx.bias_dtype, ctx.channels)
        return cls(ctx, x, tx, tweight, tbias)


def _values_per_channel(x: Array, axis: int) -> int:
    return int(math.prod(x.shape[:axis]) * math.prod(x.shape[axis + 1 :]))
