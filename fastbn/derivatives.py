"""Higher derivatives: of the backward pass by what it was given, and of the forward pass along tangents.

With xhat = (x - mean) * invstd, n values a channel and the projection P(u) = u - mean(u) - xhat * mean(u * xhat), which
is the identity through running statistics, the backward pass is linear in dy::

    dx = weight * invstd * P(dy)        dweight = sum(dy * xhat)        dbias = sum(dy)
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn import axes, dispatch
from fastbn.call import DoubleBackwardCall, JvpCall
from fastbn.context import Context

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def batch_norm_double_backward(
    ddx: Array | None, ddweight: Array | None, ddbias: Array | None, dy: Array, ctx: Context
) -> tuple[Array, Array, Array | None]:
    """Return the gradients of a loss of the gradients: go back through `batch_norm_backward`.

    With xhat = (x - mean) * invstd, n values a channel, P(u) = u - mean(u) - xhat * mean(u * xhat)::

        ddy     = weight * invstd * P(ddx) + ddweight * xhat + ddbias
        dweight = invstd * sum(ddx * P(dy))
        dx      = ddweight * invstd * P(dy)
                  - weight * invstd^2 * (xhat * mean(ddx * P(dy)) + mean(dy * xhat) * P(ddx) + mean(ddx * xhat) * P(dy))

    or, through running statistics (a forward pass with ``training=False``), with P(u) = u and
    ``dx = ddweight * invstd * dy``.

    Parameters
    ----------
    ddx : array, shape and dtype of x, or None
        The gradient of the loss by the dx that `batch_norm_backward` returned; None stands for zeros. Any strides.
    ddweight, ddbias : array of float32 or float64, shape (C,), or None
        The gradients of the loss by its dweight and dbias; None stands for zeros.
    dy : array, shape and dtype of x
        What `batch_norm_backward` was given. Any strides.
    ctx : Context
        From `batch_norm`, computed on the CPU, with statistics of this x alone or with running ones.

    Returns
    -------
    ddy : array
        The gradient of the loss by dy. Shape, dtype and memory order of x.
    dx : array
        The gradient of the loss by x. Shape, dtype and memory order of x.
    dweight : array of the weight's dtype, shape (C,), or None if there was no weight
        The gradient of the loss by the weight. It does not depend on the bias.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit; if x was overwritten by ``out=x``; if the forward pass used `moments` of another
        count than this x, or was computed on a GPU.

    Notes
    -----
    Accumulated and computed as the backward pass is with ``precision="exact"``, whatever that of the forward pass was:
    float32 in float64, rounded once (see docs/numerics.md). Nothing is divided by the weight, which may be 0. Results
    are the same bits for any number of threads.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> dy = np.array([[1.0], [0.0], [0.0]])
    >>> _, ctx = fastbn.batch_norm(x, weight=np.ones(1))
    >>> dx = fastbn.batch_norm_backward(dy, ctx).dx
    >>> ddy, _, _ = fastbn.batch_norm_double_backward(2 * dx, None, None, dy, ctx)  # of the loss (dx ** 2).sum()
    >>> bool(np.isclose((ddy * dy).sum(), 2 * (dx**2).sum()))  # which is homogeneous of degree 2 in dy
    True
    """
    axes.single(ctx)
    backend = dispatch.for_derivatives(ctx)
    gradients: tuple[Array, Array, Array | None] = backend.double_backward(
        DoubleBackwardCall.check(ddx, ddweight, ddbias, dy, ctx)
    )
    return gradients


def batch_norm_jvp(tx: Array | None, tweight: Array | None, tbias: Array | None, ctx: Context) -> Array:
    """Return the tangent of y along tangents of x, weight and bias: the forward mode of differentiation.

    With xhat = (x - mean) * invstd, n values a channel, P(u) = u - mean(u) - xhat * mean(u * xhat)::

        ty = weight * invstd * P(tx) + tweight * xhat + tbias

    or, through running statistics (a forward pass with ``training=False``), with P(u) = u.

    Parameters
    ----------
    tx : array, shape and dtype of x, or None
        The tangent of x; None stands for zeros. Any strides.
    tweight, tbias : array of float32 or float64, shape (C,), or None
        The tangents of weight and bias; None stands for zeros.
    ctx : Context
        From `batch_norm`, computed on the CPU, with statistics of this x alone or with running ones.

    Returns
    -------
    ty : array
        The tangent of y. Shape, dtype and memory order of x.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm_double_backward`.

    Notes
    -----
    float32 is computed in float64 and rounded once, whatever the precision of the forward pass.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> x = np.array([[1.0], [2.0], [6.0]])
    >>> y, ctx = fastbn.batch_norm(x)
    >>> bool(np.abs(fastbn.batch_norm_jvp(np.ones_like(x), None, None, ctx)).max() < 1e-12)  # a shift changes nothing
    True
    """
    axes.single(ctx)
    backend = dispatch.for_derivatives(ctx)
    ty: Array = backend.jvp(JvpCall.check(tx, tweight, tbias, ctx))
    return ty
