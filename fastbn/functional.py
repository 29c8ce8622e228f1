"""Batch normalization as functions of NumPy arrays: check, lay out, launch.

Names and meanings are those of `torch.nn.functional.batch_norm`. The kernels come with the first call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fastbn import dispatch as processors
from fastbn import layout
from fastbn.backends.cpu import small_calls as fast
from fastbn.checks import aliasing as memory
from fastbn.checks import arrays as validate
from fastbn.checks import scalars as values
from fastbn.context import Context, Gradients
from fastbn.moments import BackwardSums, Moments
from fastbn_kernels.saved import BIAS, INVSTD, M2, MEAN, MEAN_LO, ROWS, VAR, WEIGHT

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def _dtype(parameter: Array | None) -> np.dtype[Any] | None:
    return None if parameter is None else parameter.dtype


def _statistics(moments: Moments | None) -> dict[str, Array | None]:
    return {} if moments is None else {"moments.mean": moments.mean, "moments.m2": moments.m2}


def _sums(sums: BackwardSums | None) -> dict[str, Array | None]:
    return {} if sums is None else {"sums.sum_dy": sums.sum_dy, "sums.sum_dy_xhat": sums.sum_dy_xhat}


def _values_per_channel(x: Array, axis: int) -> int:
    return int(math.prod(x.shape[:axis]) * math.prod(x.shape[axis + 1 :]))


def batch_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    training: bool = True,
    momentum: float = 0.1,
    correction: float = 1,
    eps: float = 1e-5,
    axis: int = 1,
    moments: Moments | None = None,
    out: Array | None = None,
    device: str | None = None,
) -> tuple[Array, Context]:
    """Normalise every channel of a batch, then scale and shift it.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, a channel at a time, over all axes but `axis`.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16 (ml_dtypes), at least two axes
        Any shape and any strides, read-only or not. Contiguous in any order of its axes (NCHW, channels-last, a
        transpose), it is not copied. Of NumPy, or on a GPU: of PyTorch, CuPy, Numba or anything else with
        ``__cuda_array_interface__``; the other arrays then are there too, or parameters of NumPy.
    weight, bias : array of float32 or float64, shape (C,), optional
        Scale and shift, of `C = x.shape[axis]` channels. Default: 1 and 0.
    running_mean, running_var : array of float32 or float64, shape (C,), optional
        With `training`, updated in place: ``running = (1 - momentum) * running + momentum * batch``. Without, used
        instead of the batch's statistics.
    training : bool, default True
        Whether to normalise with the batch's own mean and (biased) variance, or with the running statistics.
    momentum : float, default 0.1
        The weight of the new value in the running statistics, from 0 to 1, as in PyTorch. Keras's is one minus this.
    correction : float, default 1
        The batch variance that enters `running_var` is divided by ``count - correction``.
    eps : float, default 1e-5
        Added to the variance; > 0.
    axis : int, default 1
        The channel axis.
    moments : Moments, optional
        Statistics to use instead of the batch's own: those of all ranks merged, say. With `training` only.
    out : array, optional
        Where y goes: the shape and dtype of x, memory apart from it, or x itself.
    device : "cpu" or "cuda", optional
        Where to compute. By default an array on a GPU is computed there, and a NumPy array on the CPU unless
        ``FASTBN_DEVICE`` or the rates that ``fastbn devices`` measured say otherwise; see `explain`.

    Returns
    -------
    y : array
        Shape, dtype and memory order of x, of the library that x is of; `out` if that was given.
    ctx : Context
        For `batch_norm_backward`. It refers to x, so leave x unchanged until then.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit, before anything is written. An empty batch has no statistics to train with;
        ``count <= correction`` has no running variance.

    Notes
    -----
    Mean and variance are accumulated in float64 from shifted sums over tiles, merged by Chan's formula; y is computed
    in float64 (for 16-bit x in float32) and rounded once. Results are the same bits for any number of threads. Ioffe
    and Szegedy (2015), "Batch Normalization", arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.random.default_rng(0).normal(3, 2, size=(32, 8, 14, 14)).astype(np.float32)
    >>> y, ctx = fastbn.batch_norm(x)
    >>> bool(np.allclose(y.mean((0, 2, 3)), 0, atol=1e-6)), bool(np.allclose(y.std((0, 2, 3)), 1, atol=1e-4))
    (True, True)
    """
    where = processors.of(x, device)
    if where is not None:
        result: tuple[Array, Context] = where.batch_norm(
            x, weight, bias, running_mean, running_var, training, momentum, correction, eps, axis, moments, out
        )
        return result
    if moments is None and (training is True or training is False):
        done = fast.forward(x, weight, bias, running_mean, running_var, momentum, correction, eps, axis, training, out)
        if done is not None:
            return done
    x = validate.data(x)
    axis = validate.axis(axis, x)
    training = values.flag("training", training)
    channels = x.shape[axis]
    count = _values_per_channel(x, axis)
    weight = validate.parameter("weight", weight, channels)
    bias = validate.parameter("bias", bias, channels)
    running = validate.statistics(running_mean, running_var, channels, required=not training)
    eps = values.eps(eps)
    correction = values.correction(correction)
    if moments is not None:
        moments = validate.moments(moments, channels, training)
    elif training:
        validate.batch(count, x)
    if running is not None and training:
        momentum = values.momentum(momentum)
        validate.degrees_of_freedom(count if moments is None else moments.count, correction)
        validate.updated(running, {"x": x, "weight": weight, "bias": bias} | _statistics(moments))
    if out is not None:
        others = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
        out = validate.output(out, x, {"x": x}, others | _statistics(moments))

    y = layout.empty(x) if out is None else out
    table = np.empty((ROWS, channels))
    with np.errstate(invalid="ignore"):  # a signalling NaN
        table[WEIGHT] = 1.0 if weight is None else weight
        table[BIAS] = 0.0 if bias is None else bias
    if training and moments is None and channels > 0:
        _normalize(x, axis, y, fast.backend().forward, table, eps)
    else:
        if moments is not None:
            mean, var = moments.mean, moments.var()
        elif running is not None:
            mean, var = running
        else:
            mean, var = np.empty(0), np.empty(0)
        with np.errstate(all="ignore"):  # of an empty batch nothing is computed but this
            table[MEAN], table[MEAN_LO], table[VAR] = mean, 0.0, var
            if x.size == 0:
                table[INVSTD] = 1 / np.sqrt(table[VAR] + eps)
        if x.size:
            _normalize(x, axis, y, fast.backend().normalize, table, eps)
    ctx = Context(x, axis, count, table, _dtype(weight), _dtype(bias), not training, moments)
    if training and running is not None:
        batch = ctx.moments
        assert batch is not None
        _update(running, batch, momentum, correction)
    if out is not None and x.size > 0 and memory.same(x, out):
        ctx.forget_x()
    return y, ctx


def _normalize(x: Array, axis: int, y: Array, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the backend that reads x and writes y, as (N, C, S)."""
    source, target, buffer = layout.for_forward(x, y, axis)
    result = function(source, *arguments, target)
    if buffer is not None:
        y[...] = buffer
    return result


def _update(running: tuple[Array, Array], moments: Moments, momentum: float, correction: float) -> None:
    """Move the running statistics towards the batch's; both are computed before either is written."""
    old, new = np.float64(1.0 - momentum), np.float64(momentum)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite batch gives infinite statistics, without a warning
        mean = running[0] * old + moments.mean * new
        var = running[1] * old + moments.var(correction) * new
        running[0][...] = mean
        running[1][...] = var


def batch_norm_inference(
    x: Array,
    running_mean: Array,
    running_var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    out: Array | None = None,
    device: str | None = None,
) -> Array:
    """Normalise with given statistics: ``y = (x - running_mean) / sqrt(running_var + eps) * weight + bias``.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16 (ml_dtypes), at least two axes
        Any shape and strides. An empty batch gives an empty array.
    running_mean, running_var : array of float32 or float64, shape (C,)
        The statistics of every channel: running ones, or a population's, such as `Moments.mean` and
        ``Moments.var(1)``, whose float64 digits are all used.
    weight, bias, eps, axis, out, device
        As for `batch_norm`.

    Returns
    -------
    y : array
        Shape, dtype and memory order of x; `out` if that was given.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit, before anything is written.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.ones((2, 3), np.float32)
    >>> fastbn.batch_norm_inference(x, np.zeros(3), np.full(3, 4.0), eps=1e-12)
    array([[0.5, 0.5, 0.5],
           [0.5, 0.5, 0.5]], dtype=float32)
    """
    return batch_norm(
        x, weight, bias,
        running_mean=running_mean, running_var=running_var, training=False, eps=eps, axis=axis, out=out, device=device,
    )[0]  # fmt: skip


def batch_moments(x: Array, *, axis: int = 1, device: str | None = None) -> Moments:
    """Return count, mean and sum of squared deviations of every channel.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16 (ml_dtypes), at least two axes
        Any shape and strides; an empty batch has count 0.
    axis : int, default 1
        The channel axis.
    device : "cpu" or "cuda", optional
        As for `batch_norm`.

    Returns
    -------
    Moments
        Of NumPy, float64, shape (C,). Merge those of several batches with `Moments.merge`.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> m = fastbn.batch_moments(np.array([[1.0, 10.0], [3.0, 10.0]]))
    >>> m.count, m.mean, m.var()
    (2, array([ 2., 10.]), array([1., 0.]))
    """
    where = processors.of(x, device)
    if where is not None:
        result: Moments = where.batch_moments(x, axis)
        return result
    x = validate.data(x)
    axis = validate.axis(axis, x)
    count = _values_per_channel(x, axis)
    if x.size == 0:
        return Moments(count, np.zeros(x.shape[axis]), np.zeros(x.shape[axis]))
    own = layout.of(x, axis)
    if not own.contiguous:
        x = np.array(x, order="K")
        own = layout.of(x, axis)
    saved = np.empty((ROWS, x.shape[axis]))
    fast.backend().moments(own.view(x), saved)
    return Moments(count, saved[MEAN] + saved[MEAN_LO], saved[M2])


def backward_sums(dy: Array, ctx: Context) -> BackwardSums:
    """Return the sums that the backward pass needs of a whole batch.

    Parameters
    ----------
    dy : array, shape and dtype of x
        The gradient of the loss by y.
    ctx : Context
        From `batch_norm`.

    Returns
    -------
    BackwardSums
        Of the values in this x; merge those of all ranks with `BackwardSums.merge` and pass the result to
        `batch_norm_backward` as `sums`.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit.
    """
    where = ctx.where if isinstance(ctx, Context) else None
    if where is not None:
        result: BackwardSums = where.backward_sums(dy, ctx)
        return result
    x = validate.context(ctx)
    dy = validate.gradient(dy, x)
    if x.size == 0:
        return BackwardSums(ctx.count, np.zeros(ctx.mean.size), np.zeros(ctx.mean.size))
    g, source, _ = layout.for_backward(dy, x, ctx.axis)
    return BackwardSums(ctx.count, *fast.backend().sums(g, source, ctx.table))


def batch_norm_backward(
    dy: Array, ctx: Context, *, sums: BackwardSums | None = None, out: Array | None = None
) -> Gradients:
    """Return the gradients of a loss by x, weight and bias.

    With xhat = (x - mean) * invstd and n values a channel::

        dbias = sum(dy)        dweight = sum(dy * xhat)
        dx    = weight * invstd * (dy - dbias / n - xhat * dweight / n)

    or, through running statistics (a forward pass with ``training=False``), ``dx = weight * invstd * dy``.

    Parameters
    ----------
    dy : array, shape and dtype of x
        The gradient of the loss by y. Any strides.
    ctx : Context
        From `batch_norm`.
    sums : BackwardSums, optional
        The sums over the whole batch that the statistics were taken of, if that is more than this x: merge the
        `backward_sums` of all parts. `dweight` and `dbias` are then the whole batch's too, so do not add them up again.
    out : array, optional
        Where dx goes: the shape and dtype of x, memory apart from dy and x, or one of them itself.

    Returns
    -------
    Gradients
        `dx`, `dweight`, `dbias`.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit, before anything is written; if x was overwritten by ``out=x``; if the forward
        pass used `moments` of another count than this x and no `sums` are given.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, ctx = fastbn.batch_norm(x, weight=np.ones(1))
    >>> grads = fastbn.batch_norm_backward(np.ones_like(x), ctx)
    >>> bool(np.abs(grads.dx).max() < 1e-12)
    True
    """
    where = ctx.where if isinstance(ctx, Context) else None
    if where is not None:
        result: Gradients = where.batch_norm_backward(dy, ctx, sums, out)
        return result
    if sums is None:
        grads = fast.backward(dy, ctx, out)
        if grads is not None:
            return grads
    x = validate.context(ctx)
    dy = validate.gradient(dy, x)
    if sums is not None:
        sums = validate.sums(sums, ctx)
    else:
        validate.own_statistics(ctx)
    if out is not None:
        out = validate.output(out, x, {"dy": dy, "x": x}, _sums(sums))
    over_x = out is not None and memory.same(out, x)
    if x.size == 0:
        dx = layout.empty(x) if out is None else out
        sums = sums or BackwardSums(ctx.count, np.zeros(ctx.mean.size), np.zeros(ctx.mean.size))
    else:
        g, source, template = layout.for_backward(dy, x, ctx.axis)
        dx = layout.empty(template) if out is None else out
        fits = layout.of(dx, ctx.axis).fits(layout.of(template, ctx.axis))
        buffer = dx if fits else layout.empty(template)
        target = layout.of(buffer, ctx.axis).view(buffer)
        if sums is None:
            sums = BackwardSums(ctx.count, *fast.backend().backward(g, source, ctx.table, ctx.frozen, target))
        else:
            given = np.array([sums.sum_dy, sums.sum_dy_xhat])
            fast.backend().gradient(g, source, ctx.table, given, sums.count, ctx.frozen, target)
        if not fits:
            dx[...] = buffer
        if over_x:
            ctx.forget_x()
    return Gradients(dx, fast.cast(sums.sum_dy_xhat, ctx.weight_dtype), fast.cast(sums.sum_dy, ctx.bias_dtype))
