"""`torch.nn.functional.batch_norm` by fastbn: which calls are fastbn's, and where they go."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastbn.adapters.torch import function, transforms
from fastbn.adapters.torch.native import register

PLAIN = (Tensor, nn.Parameter)


def _fits(parameter: Tensor | None, x: Tensor) -> bool:
    return parameter is None or (
        parameter.dtype in function.PARAMETERS
        and parameter.numel() == x.shape[1]
        and parameter.is_cpu == x.is_cpu
        and not parameter.is_meta
    )


def is_ours(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    training: bool, momentum: float, eps: float,
) -> bool:  # fmt: skip
    """Return whether fastbn computes a call."""
    if type(x) not in PLAIN or x.dtype not in function.DATA or x.layout is not torch.strided or x.ndim < 2:
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


def is_traced() -> bool:
    """Return whether somebody follows PyTorch's operations, of which fastbn's in compiled code are none.

    That is `torch.func`, `torch.jit.trace`, or a dispatch mode, such as a count of operations.
    """
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
    )


def is_transformed(x: Tensor, *given: Any) -> bool:
    """Return whether a call that somebody follows is fastbn's: one under `torch.func`, if nobody else follows it."""
    followed = torch._C._len_torch_dispatch_stack() > 0 or torch._C._get_tracing_state() is not None
    return not followed and x.is_cpu and is_ours(x, *given)


def is_native(x: Tensor, weight: Tensor | None, running_mean: Tensor | None) -> bool:
    """Return whether a call that nobody follows goes by an operator in compiled code.

    It does not with parameters of another dtype than PyTorch wants with x: fastbn takes float32 and float64 with any.
    """
    parameter = running_mean if weight is None else weight
    go_together = parameter is None or (parameter.dtype is torch.float64) is (x.dtype is torch.float64)
    return x.is_cpu and go_together and forward_ad._current_level < 0 and register.works()


def _by_pytorchs_operator(*given: Any) -> Tensor:
    """Let PyTorch make the call, its operator fastbn's; what that does not take is PyTorch's own, errors too."""
    try:
        register.mine()
        return nn.functional.batch_norm(*given)
    finally:
        register.not_mine()


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
        y. Its gradient is computed by fastbn, what is differentiated of that by PyTorch's formulas; where calls go by
        Python, and under the transforms of `torch.func`, second derivatives are fastbn's too.
    """
    given = input, running_mean, running_var, weight, bias, training, momentum, eps
    if torch.compiler.is_compiling():
        return function.compiled(*given) if is_ours(*given) else nn.functional.batch_norm(*given)
    if is_traced():
        return transforms.batch_norm(*given) if is_transformed(*given) else nn.functional.batch_norm(*given)
    if is_native(input, weight, running_mean):
        return _by_pytorchs_operator(*given)
    if not is_ours(*given):
        return nn.functional.batch_norm(*given)
    y: Tensor = function.BatchNormFunction.apply(*given)
    return y
