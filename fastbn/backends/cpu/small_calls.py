"""The quick path of a call, for arrays as most callers have them.

The contract of `fastbn.call`, compiled: everything is still checked, but by one compiled function instead of a score of
calls of NumPy: types, dtypes, memory orders and writability by Numba's dispatcher, lengths and shared memory by the
kernel (`fastbn_kernels.cpu.small_calls`). Whatever is not as it has to be for this makes it return None with nothing
written; then `fastbn.call` says what is wrong, or the backend copes. Both give the same bits. 32 x 64 float32, with all
parameters: 5.5 us this way, 39 the other.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn import arithmetic, layout
from fastbn.activations import NAMES, SLOPE, Activation
from fastbn.arithmetic import EXACT
from fastbn.checks.scalars import is_half
from fastbn.context import Beyond, Context, Gradients
from fastbn_kernels.saved import ROWS

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

NDARRAY = np.ndarray
# An absent parameter, in the dtype that goes with each dtype of data; bfloat16 is added when it is seen.
NONE32, NONE64 = np.empty(0, np.float32), np.empty(0, np.float64)
ABSENT: dict[np.dtype[Any], Array] = {
    np.dtype(np.float16): NONE32,
    np.dtype(np.float32): NONE32,
    np.dtype(np.float64): NONE64,
}

WIDE = frozenset({np.dtype(np.float64)})

# What a call answers: it cannot and has written nothing; done; done, and the result lies where x was.
REFUSED, DONE, OVER_X = range(3)

NUMBERS = (int, float)
LARGE = 1e300  # below infinity, and what NaN is not

# The backend, once it is imported: a global is found in 30 ns, an imported module in 300.
_backend: Any = None


def backend() -> Any:
    """Return the backend; importing it imports Numba, which `import fastbn` must not."""
    global _backend
    if _backend is None:
        from fastbn.backends.cpu import launch as cpu

        _backend = cpu
    return _backend


def _fits(parameter: Any, channels: int) -> bool:
    return parameter is None or (type(parameter) is NDARRAY and parameter.size == channels)


def forward(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: Any, momentum: Any, correction: Any,
    eps: Any, axis: Any, precision: Any, out: Any, activation: Any, residual: Any,
) -> tuple[Array, Context] | None:  # fmt: skip
    """Return y and the context of a forward pass, or None."""
    if type(x) is not NDARRAY or type(axis) is not int or type(eps) is not float or type(momentum) is not float:
        return None
    if training is not True and training is not False:
        return None
    if precision is None:
        precision = arithmetic.default or arithmetic.learn()
    elif type(precision) is not str or precision not in arithmetic.NAMES:
        return None
    dtype, shape, strides = x.dtype, x.shape, x.strides
    absent = ABSENT.get(dtype)
    if absent is None and is_half(dtype):
        absent = ABSENT[dtype] = NONE32
    ndim = len(shape)
    if absent is None or ndim < 2 or not -ndim <= axis < ndim or type(correction) not in NUMBERS:
        return None
    if not (0.0 < eps < LARGE and 0.0 <= momentum <= 1.0 and 0.0 <= correction < LARGE):
        return None
    if (running_mean is None) is not (running_var is None):
        return None
    axis %= ndim
    own = layout.analyse(shape, strides, dtype.itemsize, axis)
    if not own.contiguous or own.size == 0:
        return None
    C = own.shape[1]
    if not (_fits(weight, C) and _fits(bias, C) and _fits(running_mean, C) and _fits(running_var, C)):
        return None
    y = np.empty_like(x) if out is None else out
    if type(y) is not NDARRAY or y.shape != shape or y.strides != strides or y.dtype != dtype:
        return None
    beyond = tail = None
    if activation is not None or residual is not None:
        beyond = _beyond(activation, residual)
        if beyond is None:
            return None
        if residual is not None:
            if residual.shape != shape or residual.strides != strides or residual.dtype != dtype:
                return None
            if out is not None and _overlaps(residual, out):
                return None
            if running_mean is not None and _overlaps(residual, running_mean, running_var):
                return None
            residual = own.compact(arithmetic.seen(residual, precision))
        tail = (_backend or backend()).tail(beyond.activation, residual)
    saved = np.empty((ROWS, C))
    source, target = x, y
    if precision == EXACT:
        source, target = arithmetic.seen(x, precision), arithmetic.seen(y, precision)
    done = (_backend or backend()).call_forward(
        own.compact(source),
        absent if weight is None else weight,
        absent if bias is None else bias,
        absent if running_mean is None else running_mean,
        absent if running_var is None else running_var,
        momentum,
        float(correction),
        eps,
        training,
        own.compact(target),
        saved,
        tail,
    )
    if done == REFUSED:
        return None
    ctx = Context(
        x,
        axis,
        own.per_channel,
        saved,
        None if weight is None else weight.dtype,
        None if bias is None else bias.dtype,
        not training,
        None,
        precision,
        beyond,
    )
    if done == OVER_X:
        ctx.forget_x(y)
    return y, ctx


def _overlaps(array: Array, *others: Any) -> bool:
    return any(np.may_share_memory(array, other) for other in others)


def _beyond(activation: Any, residual: Any) -> Beyond | None:
    """Return what is done after the normalization, if it is plainly right."""
    if residual is not None and type(residual) is not NDARRAY:
        return None
    known = _known.get(activation) if type(activation) is str else None
    if activation is not None and known is None:
        return None
    return Beyond(known, residual)


_known = {name: Activation(name, SLOPE if name == "leaky_relu" else None) for name in NAMES}


def backward(dy: Any, ctx: Any, out: Any) -> Gradients | None:
    """Return the gradients, or None."""
    if type(ctx) is not Context or type(dy) is not NDARRAY:
        return None
    x = ctx.x
    if x is None or not ctx.own_statistics:
        return None
    beyond = ctx.beyond
    if beyond is not None and not (beyond.mask is None and beyond.renorm is None):
        return None
    dtype, shape, strides = x.dtype, x.shape, x.strides
    absent = ABSENT.get(dtype)
    # Parameters of more digits than go with the data would get gradients that were rounded to fewer first.
    if absent is NONE32 and (ctx.weight_dtype in WIDE or ctx.bias_dtype in WIDE):
        return None
    if absent is None or dy.shape != shape or dy.strides != strides or dy.dtype != dtype:
        return None
    own = layout.analyse(shape, strides, dtype.itemsize, ctx.axis)
    if not own.contiguous or own.size == 0:
        return None
    dx = np.empty_like(x) if out is None else out
    if type(dx) is not NDARRAY or dx.shape != shape or dx.strides != strides or dx.dtype != dtype:
        return None
    dresidual = tail = None
    if beyond is not None:
        residual = beyond.residual
        if residual is not None:
            if beyond.activation is None:
                dresidual = dy
                if out is not None and _overlaps(out, dy):
                    return None
            else:
                if type(residual) is not NDARRAY or residual.strides != strides:
                    return None
                if out is not None and _overlaps(residual, out):
                    return None
                dresidual = np.empty_like(x)
        if beyond.activation is not None:
            views: list[Any] = [None, None]
            if dresidual is not None:
                views = [own.compact(arithmetic.seen(array, ctx.precision)) for array in (residual, dresidual)]
            tail = (_backend or backend()).tail_back(beyond.activation, *views)
    dweight, dbias = np.empty((2, own.shape[1]), absent.dtype)
    gradient, source, target = dy, x, dx
    if ctx.precision == EXACT:
        gradient, source, target = (arithmetic.seen(array, EXACT) for array in (dy, x, dx))
    done = (_backend or backend()).call_backward(
        own.compact(gradient), own.compact(source), ctx.saved, ctx.frozen, own.compact(target), dweight, dbias, tail
    )
    if done == REFUSED:
        return None
    if done == OVER_X:
        ctx.forget_x()
    by_statistics = ctx.by_statistics((dbias, dweight)) if ctx.given else None
    parameters = cast(dweight, ctx.weight_dtype), cast(dbias, ctx.bias_dtype)
    return Gradients(dx, *parameters, dresidual, by_statistics)


def cast(gradient: Array, dtype: np.dtype[Any] | None) -> Array | None:
    """Return the gradient of a parameter of a dtype, or of none."""
    if dtype is None or dtype == gradient.dtype:
        return None if dtype is None else gradient
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 does not hold is infinite, without a warning
        return gradient.astype(dtype)
