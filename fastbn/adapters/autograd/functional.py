"""The public function: a plain call or one that goes beyond, checked by the call itself."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

import fastbn
from fastbn.adapters.autograd import beyond, plain

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def batch_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    training: bool = True,
    momentum: float = 0.1,
    correction: float = 1,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | tuple[str, float] | None = None,
    residual: Any = None,
    mask: Array | None = None,
    ghost_batch_size: int | None = None,
    renorm: fastbn.Renorm | None = None,
    update_stats: bool = True,
    precision: str | None = None,
) -> Any:
    """Normalise every channel of a batch, then scale and shift it.

    Parameters
    ----------
    x, weight, bias, residual : array, or what autograd traces in its place
        As for `fastbn.batch_norm`; derivatives are taken by these four.
    running_mean, running_var : array of float32 or float64, shape (C,), optional
        Constants. With `training`, updated in place, once a call: taking derivatives does not update them again.
    training, momentum, correction, eps, axis, activation, mask, ghost_batch_size, renorm, update_stats, precision
        As for `fastbn.batch_norm`. Derivatives but the first backward pass are computed exactly in any case, except
        that those of an activation are autograd's, in the dtype of x.

    Returns
    -------
    array
        y. A gradient has the shape and dtype of what it is a gradient by.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit, before anything is written.
    """
    options = {
        "running_mean": running_mean, "running_var": running_var, "training": training, "momentum": momentum,
        "correction": correction, "eps": eps, "axis": axis, "update_stats": update_stats, "precision": precision,
    }  # fmt: skip
    more = {"activation": activation, "mask": mask, "ghost_batch_size": ghost_batch_size, "renorm": renorm}
    if residual is None and all(value is None for value in more.values()):
        return plain.batch_norm(x, weight, bias, options)
    return beyond.batch_norm(x, weight, bias, residual, options | more)
