"""Batch normalization as functions of NumPy arrays, or of arrays on a GPU: check the call, hand it to a backend.

Names and meanings are those of `torch.nn.functional.batch_norm`. The kernels come with the first call.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn import axes, dispatch
from fastbn.call import BackwardCall, ForwardCall, MomentsCall
from fastbn.context import Context, Gradients
from fastbn.moments import BackwardSums, Moments
from fastbn.renorm import Renorm

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


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
    axis: int | tuple[int, ...] = 1,
    activation: str | tuple[str, float] | None = None,
    residual: Array | None = None,
    mask: Array | None = None,
    ghost_batch_size: int | None = None,
    renorm: Renorm | None = None,
    moments: Moments | None = None,
    update_stats: bool = True,
    precision: str | None = None,
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
    axis : int or tuple of int, default 1
        The channel axis, or several: one statistic for every index along them, and parameters in the shape of these
        axes of x, as Flax and Chainer have it. ``axis=(1, 2, 3)`` of (N, C, H, W) is every activation by itself.
    activation : str, optional
        What is done after that, without another pass over memory: "relu", "relu6", "leaky_relu" (a slope of 0.01, or
        ``("leaky_relu", slope)``), "tanh", "sigmoid", "silu" or "gelu" (with the error function).
    residual : array, shape and dtype of x, optional
        Added before the activation: ``y = activation(batch_norm(x) + residual)``. With an activation, leave it
        unchanged until the backward pass.
    mask : array of bool, optional
        Which positions count, broadcast to the shape of x without its channel axis: (N, T) for padded sequences
        (N, C, T). Where it is False nothing is read, y is 0 and so will dx be.
    ghost_batch_size : int, optional
        Normalise so many samples at a time, each with their own statistics; the last ones may be fewer. Samples lie
        along the first axis that is not `axis`. Running statistics move once for each, in order. With `training` only.
    renorm : Renorm, optional
        Batch renormalization: correct the batch's statistics towards the running ones. With `training` only.
    moments : Moments, optional
        Statistics to use instead of the batch's own: those of all ranks merged, say. With `training` only.
    update_stats : bool, default True
        Whether `training` moves the running statistics. Not twice, where activation checkpointing computes the forward
        pass again.
    precision : "fast" or "exact", optional
        In which arithmetic float32 x is computed, which is all that it matters for: "fast" is float32, with sums of
        more than 8 values in float64; "exact" is float64, rounded once, and slower. By default "fast", unless the
        environment variable ``FASTBN_PRECISION``, read once a process, says "exact". The backward pass does as the
        forward pass did.
    out : array, optional
        Where y goes: the shape and dtype of x, memory apart from it, or x itself, or the residual. The backward pass of
        ``out=x`` gets xhat back from y, if there is no residual and the activation is None or leaky_relu, and refuses
        weights that are too near zero for that (see `batch_norm_backward`).
    device : "cpu" or "cuda", optional
        Where to compute. By default an array on a GPU is computed there, and a NumPy array on the CPU unless
        ``FASTBN_DEVICE`` says otherwise; see `explain`.

    Returns
    -------
    y : array
        Shape, dtype and memory order of x, of the library that x is of; `out` if that was given.
    ctx : Context
        For `batch_norm_backward`. It refers to x, so leave x unchanged until then. It keeps the precision.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit, before anything is written. An empty batch has no statistics to train with;
        ``count <= correction`` has no running variance.

    Notes
    -----
    Mean and variance are accumulated from shifted sums over tiles, merged by Chan's formula in float64; y is computed
    in float64 for float64 x, and for float32 x with ``precision="exact"``, else in float32 with the mean held in more
    digits than that, and rounded once. Results are the same bits for any number of threads. Ioffe and Szegedy (2015),
    "Batch Normalization", arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.random.default_rng(0).normal(3, 2, size=(32, 8, 14, 14)).astype(np.float32)
    >>> y, ctx = fastbn.batch_norm(x)
    >>> bool(np.allclose(y.mean((0, 2, 3)), 0, atol=1e-6)), bool(np.allclose(y.std((0, 2, 3)), 1, atol=1e-4))
    (True, True)
    """
    if type(axis) is tuple:
        given = {
            "running_mean": running_mean, "running_var": running_var, "training": training, "momentum": momentum,
            "correction": correction, "eps": eps, "activation": activation, "mask": mask,
            "ghost_batch_size": ghost_batch_size, "renorm": renorm, "moments": moments, "update_stats": update_stats,
            "precision": precision, "device": device,
        }  # fmt: skip
        arrays = {"weight": weight, "bias": bias, "residual": residual, "out": out}
        return axes.batch_norm(batch_norm, x, axis, given | arrays)
    backend = dispatch.of(x, device)
    if moments is None and mask is None and ghost_batch_size is None and renorm is None and update_stats is True:
        done = backend.quick_forward(
            x, weight, bias, running_mean, running_var, training, momentum, correction, eps, axis, precision, out,
            activation, residual,
        )  # fmt: skip
        if done is not None:
            return done
    call = ForwardCall.check(
        x, weight, bias, running_mean, running_var, training, momentum, correction, eps, axis, moments, precision, out,
        activation, residual, mask, ghost_batch_size, renorm, update_stats, look=backend.look,
    )  # fmt: skip
    return backend.forward(call)


def batch_norm_inference(
    x: Array,
    running_mean: Array,
    running_var: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    axis: int | tuple[int, ...] = 1,
    activation: str | tuple[str, float] | None = None,
    residual: Array | None = None,
    mask: Array | None = None,
    precision: str | None = None,
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
    weight, bias, eps, axis, activation, residual, mask, precision, out, device
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
    if mask is None and type(axis) is not tuple:
        done = dispatch.of(x, device).quick_forward(
            x, weight, bias, running_mean, running_var, False, 0.0, 0, eps, axis, precision, out, activation, residual
        )
        if done is not None:
            y: Array = done[0]
            return y
    return batch_norm(
        x, weight, bias,
        running_mean=running_mean, running_var=running_var, training=False, eps=eps, axis=axis, activation=activation,
        residual=residual, mask=mask, precision=precision, out=out, device=device,
    )[0]  # fmt: skip


def batch_moments(
    x: Array, *, axis: int | tuple[int, ...] = 1, mask: Array | None = None, device: str | None = None
) -> Moments:
    """Return count, mean and sum of squared deviations of every channel.

    Computed in float64 from float32 and float64 x, whatever the precision of `batch_norm`; from 16-bit x in float32,
    with long sums in float64.

    Parameters
    ----------
    x : array of float32, float64, float16 or bfloat16 (ml_dtypes), at least two axes
        Any shape and strides; an empty batch has count 0.
    axis : int or tuple of int, default 1
        The channel axis, or several, whose moments are in one row.
    mask : array of bool, optional
        Which positions count, as for `batch_norm`.
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
    if type(axis) is tuple:
        x, axis = axes.checked(x, axis).merged(x), -1
    backend = dispatch.of(x, device)
    return backend.moments(MomentsCall.check(x, axis, mask, look=backend.look))


def backward_sums(dy: Array, ctx: Context) -> BackwardSums:
    """Return the sums that the backward pass needs of a whole batch.

    Parameters
    ----------
    dy : array, shape and dtype of x
        The gradient of the loss by y.
    ctx : Context
        From `batch_norm`, whose precision this has.

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
    if type(ctx) is axes.AxesContext:
        dy, ctx = ctx.axes.like("dy", dy), ctx.inner
    backend = dispatch.of_context(ctx)
    return backend.sums(BackwardCall.check(dy, ctx, None, None, look=backend.look, partial=True))


def batch_norm_backward(
    dy: Array, ctx: Context, *, sums: BackwardSums | None = None, out: Array | None = None
) -> Gradients:
    """Return the gradients of a loss by x, weight and bias.

    With xhat = (x - mean) * invstd and n values a channel::

        dbias = sum(dy)        dweight = sum(dy * xhat)
        dx    = weight * invstd * (dy - dbias / n - xhat * dweight / n)

    or, through running statistics (a forward pass with ``training=False``), ``dx = weight * invstd * dy``. After an
    activation, dy is first multiplied by its derivative, which is computed again and is the gradient of a residual;
    where a derivative jumps it is 0. Positions that a mask leaves out are not read and get 0, ghost batches have sums
    of their own, and of renormalization ``dweight = sum(dy * (xhat * r + d))``.

    After ``out=x`` forward, xhat is ``(y - bias) / weight``, off by at most ``(u * |bias| + t) / |weight|``, where u is
    half a unit in the last place of 1 in the dtype of x and t half its smallest number (docs/numerics.md).

    Parameters
    ----------
    dy : array, shape and dtype of x
        The gradient of the loss by y. Any strides.
    ctx : Context
        From `batch_norm`, whose precision this has.
    sums : BackwardSums, optional
        The sums over the whole batch that the statistics were taken of, if that is more than this x: merge the
        `backward_sums` of all parts. `dweight` and `dbias` are then the whole batch's too, so do not add them up again.
    out : array, optional
        Where dx goes: the shape and dtype of x, memory apart from dy and x, or one of them itself.

    Returns
    -------
    Gradients
        `dx`, `dweight`, `dbias`, `dresidual`; `dmean` and `dvar` where statistics were given.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit, before anything is written; if x was overwritten by ``out=x`` and cannot be told
        from y: after an activation but leaky_relu, after a residual, or with weights so near zero that xhat would be
        off by more than 2^-8; if the forward pass used `moments` of another count than this x and no `sums` are given.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, ctx = fastbn.batch_norm(x, weight=np.ones(1))
    >>> grads = fastbn.batch_norm_backward(np.ones_like(x), ctx)
    >>> bool(np.abs(grads.dx).max() < 1e-12)
    True
    """
    if type(ctx) is axes.AxesContext:
        return axes.backward(batch_norm_backward, dy, ctx, sums, out)
    backend = dispatch.of_context(ctx)
    if sums is None:
        done = backend.quick_backward(dy, ctx, out)
        if done is not None:
            return done
    return backend.backward(BackwardCall.check(dy, ctx, sums, out, look=backend.look))
