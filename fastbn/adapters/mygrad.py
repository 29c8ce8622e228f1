"""Batch normalization of MyGrad's tensors: one operation with one backward call for all its inputs.

from fastbn.adapters.mygrad import batch_norm

y = batch_norm(x, weight, bias, running_mean=mean, running_var=var)
(y**2).sum().backward()
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

import fastbn

try:
    from mygrad import Tensor
    from mygrad.operation_base import Operation
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("fastbn.adapters.mygrad needs MyGrad: pip install mygrad", name=error.name) from error

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class BatchNorm(Operation):  # type: ignore[misc]  # Any, to who checks types without MyGrad
    """The node that a call of `batch_norm` leaves in the graph."""

    def __call__(self, x: Tensor, *others: Tensor, names: tuple[str, ...], **options: Any) -> Array:
        """Return y; MyGrad calls this with tensors that it has locked against writing."""
        self.variables = (x, *others)
        arrays = dict(zip(names, (other.data for other in others), strict=True))
        self.results = "dx", *(f"d{name}" for name in names)
        y, self.ctx = fastbn.batch_norm(x.data, **arrays, **options)
        return y

    def backward(self, grad: Array, **kwargs: Any) -> None:
        """Compute the gradients of all variables at once, then let MyGrad hand each to its own."""
        self.gradients = fastbn.batch_norm_backward(grad, self.ctx)
        super().backward(grad, **kwargs)

    def backward_var(self, grad: Array, index: int, **kwargs: Any) -> Array:
        """Return the gradient of one variable."""
        gradient: Array = getattr(self.gradients, self.results[index])
        return gradient


def batch_norm(
    x: Tensor | Array,
    weight: Tensor | Array | None = None,
    bias: Tensor | Array | None = None,
    *,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    training: bool = True,
    momentum: float = 0.1,
    correction: float = 1,
    eps: float = 1e-5,
    axis: int = 1,
    activation: str | tuple[str, float] | None = None,
    residual: Tensor | Array | None = None,
    mask: Array | None = None,
    ghost_batch_size: int | None = None,
    renorm: fastbn.Renorm | None = None,
    update_stats: bool = True,
    precision: str | None = None,
    constant: bool | None = None,
) -> Tensor:
    """Normalise every channel of a batch, then scale and shift it.

    Parameters
    ----------
    x : tensor or array of float32, float64 or float16
        At least two axes. Arrays are constants, as everywhere in MyGrad.
    weight, bias : tensor or array of float32 or float64, shape (C,), optional
        Scale and shift.
    running_mean, running_var : array of float32 or float64, shape (C,), optional
        Of NumPy, not tensors. With `training`, updated in place.
    residual : tensor or array, shape and dtype of x, optional
        Added before the activation; it has a gradient as x has.
    mask : array of bool, optional
        Of NumPy, as for `fastbn.batch_norm`.
    training, momentum, correction, eps, axis, activation, ghost_batch_size, renorm, update_stats, precision
        As for `fastbn.batch_norm`.
    constant : bool, optional
        Whether y is a constant. Default: if x, weight, bias and residual are.

    Returns
    -------
    mygrad.Tensor
        y, of the shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit, before anything is written.
    """
    others = {"weight": weight, "bias": bias, "residual": residual}
    given = {name: other for name, other in others.items() if other is not None}
    options = {
        "names": tuple(given), "running_mean": running_mean, "running_var": running_var, "training": training,
        "momentum": momentum, "correction": correction, "eps": eps, "axis": axis,
        "activation": activation, "mask": mask, "ghost_batch_size": ghost_batch_size, "renorm": renorm,
        "update_stats": update_stats, "precision": precision,
    }  # fmt: skip
    return Tensor._op(BatchNorm, x, *given.values(), op_kwargs=options, constant=constant)
