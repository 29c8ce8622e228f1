"""PyTorch's batch norm modules, computed by fastbn.

    from fastbn.adapters.torch import convert

    model = convert(model)  # or convert(model, inplace=True)

`BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` are PyTorch's own classes with another forward pass: options, state
dicts, checkpoints, `isinstance` and `repr` are unchanged. `batch_norm` is `torch.nn.functional.batch_norm`.

Tensors of float32, float64, float16 and (with `ml_dtypes`) bfloat16, on the CPU or a GPU, with parameters and
statistics of float32 or float64, are fastbn's. Everything else is computed by PyTorch's own batch norm: parameters of
16 bits, the other devices, subclasses of `Tensor`, calls under the transforms of `torch.func`, and calls that PyTorch
refuses, so that the error is PyTorch's.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from fastbn.adapters import torch_function as function

Module = TypeVar("Module", bound=nn.Module)

_PLAIN = (Tensor, nn.Parameter)


def _fits(parameter: Tensor | None, x: Tensor) -> bool:
    return parameter is None or (
        parameter.dtype in function.PARAMETERS
        and parameter.numel() == x.shape[1]
        and parameter.is_cpu == x.is_cpu
        and not parameter.is_meta
    )


def _is_ours(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    training: bool, momentum: float, eps: float,
) -> bool:  # fmt: skip
    """Return whether fastbn computes a call."""
    if type(x) not in _PLAIN or x.dtype not in function.DATA or x.layout is not torch.strided or x.ndim < 2:
        return False
    if not (x.is_cpu or (x.is_cuda and not torch.compiler.is_compiling())) or x.numel() == 0:
        return False
    if training and x.numel() == x.shape[1]:  # one value a channel has no variance: PyTorch's error
        return False
    if (running_mean is None) is not (running_var is None) or (running_mean is None and not training):
        return False
    if not (eps > 0 and 0 <= momentum <= 1):
        return False
    return _fits(weight, x) and _fits(bias, x) and _fits(running_mean, x) and _fits(running_var, x)


def _is_traced() -> bool:
    """Return whether somebody follows PyTorch's operations, of which fastbn's are none.

    That is `torch.func`, `torch.jit.trace`, or a dispatch mode, such as a count of operations.
    """
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Do what `torch.nn.functional.batch_norm` does.

    Parameters
    ----------
    input : Tensor of float32, float64, float16 or bfloat16, shape (N, C, ...)
        Contiguous, channels-last or in any other order of its axes, which y and the gradient then have too.
    running_mean, running_var, weight, bias, training, momentum, eps
        As PyTorch's.

    Returns
    -------
    Tensor
        y. Its first and second derivatives are computed by fastbn, higher ones by PyTorch.
    """
    given = input, running_mean, running_var, weight, bias, training, momentum, eps
    if torch.compiler.is_compiling():
        return function.compiled(*given) if _is_ours(*given) else nn.functional.batch_norm(*given)
    if _is_traced() or not _is_ours(*given):
        return nn.functional.batch_norm(*given)
    y: Tensor = function.BatchNormFunction.apply(*given)
    return y


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """PyTorch's batch norm with another forward pass."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch, as PyTorch's module does."""
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        tracks = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if tracks else (None, None)
        training = self.training or (mean is None and var is None)
        return batch_norm(input, mean, var, self.weight, self.bias, training, momentum, self.eps)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, computed by fastbn."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, computed by fastbn."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, computed by fastbn."""


_OURS: dict[type, type] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_LAZY = nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d


def _with_classes(module: Module, classes: dict[type, type], inplace: bool) -> Module:
    """Change the class of modules, which leaves them all else: parameters, buffers, hooks, mode."""
    model = module if inplace else copy.deepcopy(module)
    for part in model.modules():
        if type(part) in classes:
            part.__class__ = classes[type(part)]
    return model


def convert(module: Module, *, inplace: bool = False) -> Module:
    """Make fastbn compute the batch norms of a model.

    Modules of the classes `torch.nn.BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` themselves change their class and
    nothing else: parameters, buffers, hooks and training mode stay. `SyncBatchNorm` and subclasses of users are left
    as they are.

    Parameters
    ----------
    module : torch.nn.Module
        A model, or a batch norm itself.
    inplace : bool, default False
        Whether to change this model; otherwise a copy of it is changed and returned.

    Returns
    -------
    torch.nn.Module
        The model.

    Raises
    ------
    ValueError
        If a `LazyBatchNorm` has not seen a batch yet: it would become PyTorch's own then.
    """
    for name, part in module.named_modules():
        if isinstance(part, _LAZY):
            raise ValueError(
                f"module: expected every batch norm to know its channels, got {type(part).__name__} at {name!r}; "
                "pass a batch through the model first"
            )
    return _with_classes(module, _OURS, inplace)


def revert(module: Module, *, inplace: bool = False) -> Module:
    """Make PyTorch compute the batch norms of a model again: the reverse of `convert`.

    Parameters
    ----------
    module : torch.nn.Module
        A model, or a batch norm itself.
    inplace : bool, default False
        Whether to change this model; otherwise a copy of it is changed and returned.

    Returns
    -------
    torch.nn.Module
        The model.
    """
    return _with_classes(module, _THEIRS, inplace)
