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

from fastbn.activations import Activation
from fastbn.checks import aliasing, arrays, beyond, place, scalars
from fastbn.context import Beyond, Context, GhostContext
from fastbn.moments import BackwardSums, Moments
from fastbn.renorm import Renorm

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
    residual: Any = None


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
        Where y goes: x or the residual itself, or memory apart from everything else.
    given : Given
        The same arrays as they were passed.
    activation : Activation or None
        What is done after the normalization.
    residual : array like x, or None
        What is added before that.
    mask : array of bool, or None
        The shape of x with one channel: the positions that count.
    ghost_batch_size : int or None
        How many samples have statistics together, if that is less than all of them.
    renorm : Renorm or None
        By how much batch statistics are corrected towards the running ones.
    update_stats : bool
        Whether running statistics may be moved.
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
    activation: Activation | None = None
    residual: Array | None = None
    mask: Array | None = None
    ghost_batch_size: int | None = None
    renorm: Renorm | None = None
    update_stats: bool = True

    @classmethod
    def check(
        cls, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: Any, momentum: Any,
        correction: Any, eps: Any, axis: Any, moments: Any, precision: Any, out: Any, activation: Any = None,
        residual: Any = None, mask: Any = None, ghost_batch_size: Any = None, renorm: Any = None,
        update_stats: Any = True, *, look: Look = as_it_is, in_place: bool = True,
    ) -> ForwardCall:  # fmt: skip
        """Check the arguments of `batch_norm`; raise before anything is written.

        Parameters
        ----------
        x, weight, bias, running_mean, running_var, training, momentum, correction, eps, axis, moments, precision, out
            As the caller passed them.
        activation, residual, mask, ghost_batch_size, renorm, update_stats
            As the caller passed them.
        look : callable
            Returns what NumPy sees of an argument, given its name and itself.
        in_place : bool
            Whether running statistics are moved where they are. A host whose arrays cannot be written returns new ones.
        """
        given = Given(x, weight, bias, running_mean, running_var, out, residual)
        data = arrays.data(look("x", x))
        axis = arrays.axis(axis, data)
        training = scalars.flag("training", training)
        channels = data.shape[axis]
        weight = arrays.parameter("weight", look("weight", weight), channels)
        bias = arrays.parameter("bias", look("bias", bias), channels)
        running = arrays.statistics(
            look("running_mean", running_mean), look("running_var", running_var), channels, required=not training
        )
        eps = scalars.eps(eps)
        correction = scalars.correction(correction)
        precision = scalars.precision(precision)
        activation = scalars.activation(activation)
        update_stats = scalars.flag("update_stats", update_stats)
        if residual is not None:
            given_residual, residual = residual, arrays.gradient(look("residual", residual), data, "residual")
            place.beside("residual", given_residual, x)
        count = _values_per_channel(data, axis)
        if mask is not None:
            mask = beyond.mask(look("mask", mask), data, axis, training)
            count = int(np.count_nonzero(mask))
        if moments is not None:
            moments = arrays.moments(moments, channels, training)
        elif training:
            arrays.batch(count, data)
        ghosts = beyond.ghosts(scalars.ghost_batch_size(ghost_batch_size), data, axis, training, moments, mask)
        renorm = beyond.renorm(renorm, running, training)
        statistics = {} if moments is None else {"moments.mean": moments.mean, "moments.m2": moments.m2}
        if running is not None and training and update_stats:
            momentum = scalars.momentum(momentum)
            for values in [count if moments is None else moments.count] if ghosts is None else ghosts.counts(mask):
                arrays.degrees_of_freedom(values, correction)
            if in_place:
                others = {"x": data, "weight": weight, "bias": bias, "residual": residual}
                arrays.updated(running, others | statistics)
        if out is not None:
            others = {"weight": weight, "bias": bias, "running_mean": None, "running_var": None}
            if running is not None:
                others["running_mean"], others["running_var"] = running
            aliases = {"x": data} if residual is None else {"x": data, "residual": residual}
            seen = arrays.output(look("out", out), data, aliases, others | statistics)
            place.beside("out", out, x)
        else:
            seen = None
        return cls(
            data, axis, weight, bias, running, training, momentum, correction, eps, moments, precision, seen, given,
            activation, residual, mask, None if ghosts is None else ghosts.size, renorm, update_stats,
        )  # fmt: skip

    @property
    def channels(self) -> int:
        """Return C."""
        return int(self.x.shape[self.axis])

    @property
    def count(self) -> int:
        """Return how many values a channel count in x."""
        return _values_per_channel(self.x, self.axis) if self.mask is None else int(np.count_nonzero(self.mask))

    @property
    def beyond(self) -> Beyond | None:
        """Return what a context has to know beyond plain batch normalization, if there is anything."""
        given = self.activation, self.given.residual, self.mask, self.ghost_batch_size, self.renorm
        return None if all(value is None for value in given) else Beyond(*given)

    @property
    def frozen(self) -> bool:
        """Whether no gradient flows through the statistics."""
        return not self.training

    @property
    def updates(self) -> bool:
        """Whether running statistics are moved."""
        return self.training and self.running is not None and self.update_stats

    @property
    def over_residual(self) -> bool:
        """Whether y is written where the residual is."""
        both = self.out is not None and self.residual is not None and self.x.size > 0
        return both and aliasing.same(self.residual, self.out)  # type: ignore[arg-type]

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
    """Statistics of a batch that can be taken: x as NumPy sees it and as it was passed, its channel axis, a mask."""

    x: Array
    axis: int
    given: Any
    mask: Array | None = None

    @classmethod
    def check(cls, x: Any, axis: Any, mask: Any = None, *, look: Look = as_it_is) -> MomentsCall:
        """Check the arguments of `batch_moments`."""
        data = arrays.data(look("x", x))
        axis = arrays.axis(axis, data)
        return cls(data, axis, x, None if mask is None else beyond.mask(look("mask", mask), data, axis, False))

    @property
    def count(self) -> int:
        """Return how many values a channel count in x."""
        return _values_per_channel(self.x, self.axis) if self.mask is None else int(np.count_nonzero(self.mask))


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
    residual : array or None
        What was added before an activation; without one it is not needed.
    """

    ctx: Context
    x: Array
    dy: Array
    sums: BackwardSums | None
    out: Array | None
    given_dy: Any
    given_out: Any
    residual: Array | None = None

    @classmethod
    def check(
        cls, dy: Any, ctx: Any, sums: Any, out: Any, *, look: Look = as_it_is, partial: bool = False
    ) -> BackwardCall:
        """Check the arguments of `batch_norm_backward`; with `partial` those of `backward_sums`."""
        given = arrays.context(ctx)
        x = look("x", given)
        if ctx.x is None:
            beyond.recoverable(ctx, x.dtype)
        residual = look("residual", beyond.residual(ctx))
        if isinstance(ctx, GhostContext):
            beyond.whole(sums, partial)
        gradient = arrays.gradient(look("dy", dy), x)
        place.beside("dy", dy, given)
        if sums is not None:
            sums = arrays.sums(sums, ctx)
        elif not partial:
            arrays.own_statistics(ctx)
        seen = None
        if out is not None:
            others = {} if sums is None else {"sums.sum_dy": sums.sum_dy, "sums.sum_dy_xhat": sums.sum_dy_xhat}
            if residual is not None:
                others["the residual"] = residual
            seen = arrays.output(look("out", out), x, {"dy": gradient, "x": x}, others)
            place.beside("out", out, given)
        return cls(ctx, x, gradient, sums, seen, dy, out, residual)

    @property
    def activation(self) -> Activation | None:
        """Return what was done after the normalization."""
        return None if self.ctx.beyond is None else self.ctx.beyond.activation

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
