"""PyTorch eager, through the operators that take preallocated outputs."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from problem import EPS, MOMENTUM, Problem, Run, Unavailable, numpy_dtype

NAME = "PyTorch eager"


def module() -> Any:
    try:
        import torch
    except ImportError as error:
        raise Unavailable("PyTorch is not installed") from error
    return torch


def tensor(array: np.ndarray, axis: int = 1) -> Any:
    """Return an array as a tensor over the same memory, channels second: NHWC becomes PyTorch's channels_last."""
    torch = module()
    second = min(1, array.ndim - 1)  # (C,) stays
    if array.dtype.name == "bfloat16":  # unknown to from_numpy
        return torch.from_numpy(np.moveaxis(array.view(np.int16), axis, second)).view(torch.bfloat16)
    return torch.from_numpy(np.moveaxis(array, axis, second))


def array(tensor: Any, axis: int = 1) -> np.ndarray:
    """Return a tensor as an array over the same memory, its channels where the case has them."""
    torch = module()
    second = min(1, tensor.ndim - 1)
    if tensor.dtype == torch.bfloat16:
        return np.moveaxis(tensor.view(torch.int16).numpy().view(numpy_dtype("bfloat16")), second, axis)
    return np.moveaxis(tensor.numpy(), second, axis)


class Tensors:
    """A problem's arrays as tensors, and the outputs."""

    def __init__(self, problem: Problem, operation: str) -> None:
        torch, axis = module(), problem.case.axis
        self.axis = axis
        self.x = tensor(problem.x, axis)
        self.y = torch.empty_like(self.x)
        self.weight, self.bias = tensor(problem.weight, 0), tensor(problem.bias, 0)
        self.mean, self.var = tensor(problem.running_mean.copy(), 0), tensor(problem.running_var.copy(), 0)
        self.save_mean, self.save_invstd = torch.empty_like(self.weight), torch.empty_like(self.weight)
        if operation in ("backward", "both"):
            self.dy, self.dx = tensor(problem.dy, axis), torch.empty_like(self.x)
            self.dweight, self.dbias = torch.empty_like(self.weight), torch.empty_like(self.weight)

    def normalised(self) -> dict[str, np.ndarray]:
        """Return the result of a forward pass."""
        return {"y": array(self.y, self.axis)}

    def gradients(self) -> dict[str, np.ndarray]:
        """Return the results of a backward pass."""
        return {"dx": array(self.dx, self.axis), "dweight": array(self.dweight, 0), "dbias": array(self.dbias, 0)}


def build(problem: Problem, operation: str) -> Run:
    torch = module()
    t = Tensors(problem, operation)
    forward_into = torch.ops.aten.native_batch_norm.out
    backward_into = torch.ops.aten.native_batch_norm_backward.out
    given = t.weight, t.bias, t.mean, t.var

    def forward() -> Any:
        return forward_into(t.x, *given, True, MOMENTUM, EPS, out=t.y, save_mean=t.save_mean, save_invstd=t.save_invstd)

    def backward() -> Any:
        return backward_into(
            t.dy, t.x, t.weight, t.mean, t.var, t.save_mean, t.save_invstd, True, EPS, [True, True, True],
            out0=t.dx, out1=t.dweight, out2=t.dbias,
        )  # fmt: skip

    if operation == "forward":
        return Run(forward, lambda _: t.normalised())
    if operation == "inference":
        saved = torch.empty(0, dtype=t.weight.dtype), torch.empty(0, dtype=t.weight.dtype)
        return Run(
            lambda: forward_into(
                t.x, *given, False, MOMENTUM, EPS, out=t.y, save_mean=saved[0], save_invstd=saved[1]
            ),
            lambda _: t.normalised(),
        )  # fmt: skip
    forward()  # the backward pass needs what it saves
    if operation == "backward":
        return Run(backward, lambda _: t.gradients())

    def both() -> None:
        forward()
        backward()

    return Run(both, lambda _: t.normalised() | t.gradients())


@contextlib.contextmanager
def threads(count: int) -> Any:
    """Let PyTorch use so many threads."""
    torch = module()
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
