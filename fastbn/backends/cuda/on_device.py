"""The functions of `functional` for arrays on a GPU: check, lay out, launch there, copy nothing of the tensor's size.

Parameters and statistics of NumPy may come with data on the GPU: they are sent there, and what is written to them is
fetched, which waits for the GPU. With everything on the GPU nothing waits.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn import layout
from fastbn.backends.cuda import launch_cache as device_fast
from fastbn.backends.cuda.arrays import is_device_array
from fastbn.backends.cuda.device_call import Call, DeviceContext
from fastbn.checks import aliasing as memory
from fastbn.checks import arrays as validate
from fastbn.checks import scalars as values
from fastbn.context import Gradients
from fastbn.dispatch import cuda_backend
from fastbn.moments import BackwardSums, Moments
from fastbn_kernels.saved import M2, MEAN, MEAN_LO, ROWS, VAR

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def _dtype(parameter: Array | None) -> np.dtype[Any] | None:
    return None if parameter is None else parameter.dtype


def _common_dtype(x: Array, *parameters: Array | None) -> np.dtype[Any]:
    """Return the one dtype that the parameters of a launch come in: theirs, or float64 if they differ."""
    given = {p.dtype for p in parameters if p is not None}
    if len(given) == 1:
        return given.pop()
    return np.dtype(np.float64) if given or x.dtype == np.float64 else np.dtype(np.float32)


def _output(call: Call, out: Any, like: Array, aliases: dict[str, Array], others: dict[str, Array | None]) -> Array:
    """Check `out` and return its shadow."""
    shadow = validate.output(call.shadow("out", out), like, aliases, others)
    if not is_device_array(out):
        raise TypeError("out: expected an array on the GPU, where x is, got a numpy.ndarray")
    return shadow


def batch_norm(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool, momentum: float,
    correction: float, eps: float, axis: int, moments: Moments | None, out: Any,
) -> tuple[Any, DeviceContext]:  # fmt: skip
    """Do what `functional.batch_norm` does, on a GPU."""
    given = x, weight, bias, running_mean, running_var, training, momentum, correction, eps, axis, out
    if moments is None:
        done = device_fast.forward(*given)
        if done is not None:
            return done
    call = Call(x)
    source = validate.data(call.shadow("x", x))
    axis = validate.axis(axis, source)
    training = values.flag("training", training)
    C = source.shape[axis]
    count = layout.of(source, axis).per_channel
    w = validate.parameter("weight", call.shadow("weight", weight), C)
    b = validate.parameter("bias", call.shadow("bias", bias), C)
    shadows = call.shadow("running_mean", running_mean), call.shadow("running_var", running_var)
    running = validate.statistics(*shadows, C, required=not training)
    eps = values.eps(eps)
    correction = values.correction(correction)
    if moments is not None:
        moments = validate.moments(moments, C, training)
    elif training:
        validate.batch(count, source)
    updates = running is not None and training
    if running is not None and training:
        momentum = values.momentum(momentum)
        validate.degrees_of_freedom(count if moments is None else moments.count, correction)
        validate.updated(running, {"x": source, "weight": w, "bias": b})
    others = {"weight": w, "bias": b, "running_mean": shadows[0], "running_var": shadows[1]}
    y, target = (out, _output(call, out, source, {"x": source}, others)) if out is not None else call.like(x, source)

    dtype = _common_dtype(source, w, b, *(running or ()))
    there, table = call.new((ROWS, C), np.float64)
    ctx = DeviceContext(x, axis, count, there, _dtype(w), _dtype(b), not training, moments)
    ctx.on_host = weight is not None and not is_device_array(weight), bias is not None and not is_device_array(bias)
    if source.size == 0:
        return y, ctx
    backend = cuda_backend()
    parameters = call.parameter(weight, w, dtype), call.parameter(bias, b, dtype)
    statistics: tuple[Array | None, Array | None] = (None, None)
    if running is not None and moments is None:
        statistics = (
            call.parameter(running_mean, running[0], dtype, written=updates),
            call.parameter(running_var, running[1], dtype, written=updates),
        )
    own = call.common_layout(axis, target, source)
    read, write = call.read(source, own), call.write(target, own)
    if training and moments is None:
        launched = backend.forward(read, *parameters, *statistics, momentum, correction, eps, write, table, call.stream)
    else:
        if moments is not None:
            backend.copy(call.sent(_given_rows(moments, source)), table, call.stream)
        launched = backend.normalize(read, *parameters, *statistics, eps, write, table, call.stream)
    call.done()
    if moments is None:
        device_fast.keep_forward(call, ctx, launched, *given)
    if moments is not None and running is not None and training:
        call.update((running_mean, running_var), moments, momentum, correction)
    if out is not None and memory.same(source, target):
        ctx.forget_x()
    return y, ctx


def _given_rows(moments: Moments, x: Array) -> Array:
    """Return a table with statistics that were given: the mean as the arithmetic holds it, what it lacks, variance."""
    rows = np.zeros((ROWS, moments.mean.size))
    rows[MEAN], rows[VAR] = moments.mean, moments.var()
    if x.itemsize == 2:
        with np.errstate(over="ignore", invalid="ignore"):
            rows[MEAN] = moments.mean.astype(np.float32)
            rows[MEAN_LO] = np.nan_to_num(moments.mean - rows[MEAN], nan=0.0, posinf=0.0, neginf=0.0)
    return rows


def batch_moments(x: Any, axis: int) -> Moments:
    """Do what `functional.batch_moments` does, on a GPU; wait for the result."""
    call = Call(x)
    source = validate.data(call.shadow("x", x))
    axis = validate.axis(axis, source)
    own = layout.of(source, axis)
    C = source.shape[axis]
    if source.size == 0:
        return Moments(own.per_channel, np.zeros(C), np.zeros(C))
    there, table = call.new((ROWS, C), np.float64)
    own = call.common_layout(axis, source)
    cuda_backend().moments(call.read(source, own), table, call.stream)
    rows = call.library.fetch(there)
    return Moments(own.per_channel, rows[MEAN] + rows[MEAN_LO], rows[M2].copy())


def backward_sums(dy: Any, ctx: DeviceContext) -> BackwardSums:
    """Do what `functional.backward_sums` does, on a GPU; wait for the result."""
    x = validate.context(ctx)
    call = Call(x)
    source = call.shadow("x", x)
    gradient = _gradient(call, dy, source)
    C = source.shape[ctx.axis]
    if source.size == 0:
        return BackwardSums(ctx.count, np.zeros(C), np.zeros(C))
    own = call.common_layout(ctx.axis, source, gradient)
    there, result = call.new((2, C), np.float64)
    table = call.shadow("table", ctx.table_there)
    cuda_backend().sums(call.read(gradient, own), call.read(source, own), table, result, call.stream)
    sums = call.library.fetch(there)
    return BackwardSums(ctx.count, sums[0].copy(), sums[1].copy())


def _gradient(call: Call, dy: Any, x: Array) -> Array:
    shadow = validate.gradient(call.shadow("dy", dy), x)
    if not is_device_array(dy):
        raise TypeError("dy: expected an array on the GPU, where x is, got a numpy.ndarray")
    return shadow


def batch_norm_backward(dy: Any, ctx: DeviceContext, sums: BackwardSums | None, out: Any) -> Gradients:
    """Do what `functional.batch_norm_backward` does, on a GPU."""
    x = validate.context(ctx)
    if sums is None:
        done = device_fast.backward(dy, ctx, out)
        if done is not None:
            return done
    call = Call(x)
    source = call.shadow("x", x)
    gradient = _gradient(call, dy, source)
    if sums is not None:
        sums = validate.sums(sums, ctx)
    else:
        validate.own_statistics(ctx)
    if out is None:
        dx, target = call.like(x, source)
    else:
        dx, target = out, _output(call, out, source, {"dy": gradient, "x": source}, {})
    over_x = out is not None and memory.same(target, source)
    C = source.shape[ctx.axis]
    wanted = ctx.weight_dtype, ctx.bias_dtype
    own = call.common_layout(ctx.axis, source, gradient)
    table = call.shadow("table", ctx.table_there)
    if sums is None and source.size == 0:
        sums = BackwardSums(ctx.count, np.zeros(C), np.zeros(C))
    if sums is not None:
        if source.size:
            rows = call.sent(np.stack([sums.sum_dy, sums.sum_dy_xhat]))
            read = call.read(gradient, own), call.read(source, own)
            write = call.write(target, own)
            cuda_backend().gradient(*read, table, rows, sums.count, ctx.frozen, write, call.stream)
        grads = [
            None if dtype is None else call.result(values.astype(dtype), on_host)
            for values, dtype, on_host in zip((sums.sum_dy_xhat, sums.sum_dy), wanted, ctx.on_host, strict=True)
        ]
    else:
        common = {dtype for dtype in wanted if dtype is not None}
        dtype = common.pop() if len(common) == 1 else np.dtype(np.float64)
        made = [None if own_dtype is None else call.new((C,), dtype) for own_dtype in wanted]
        shadows = [None if pair is None else pair[1] for pair in made]
        read, write = (call.read(gradient, own), call.read(source, own)), call.write(target, own)
        launched = cuda_backend().backward(*read, table, ctx.frozen, write, *shadows, call.stream)
        device_fast.keep_backward(call, ctx, launched, dy, out)
        grads = [
            None if pair is None or own_dtype is None else call.delivered(*pair, own_dtype, on_host)
            for pair, own_dtype, on_host in zip(made, wanted, ctx.on_host, strict=True)
        ]
    call.done()
    if over_x:
        ctx.forget_x()
    return Gradients(dx, *grads)
