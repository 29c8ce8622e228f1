"""Who is timed beside fastbn: PyTorch with and without cuDNN, torch.compile, CuPy, and a copy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastbn

from .timing import Contender

EPS = 1e-5
MOMENTUM = 0.1
OPERATIONS = ("forward", "inference", "backward")
OURS = "fastbn"


@dataclass
class Inputs:
    """One set of inputs and outputs, in the library whose arrays they are."""

    x: Any
    y: Any
    dy: Any
    dx: Any
    weight: Any
    bias: Any
    mean: Any
    var: Any
    axis: int
    kept: dict[str, Any] = field(default_factory=dict)


def inputs(own: Any, shape: tuple[int, ...], layout: str, dtype: str) -> Inputs:
    """Return fresh inputs; Numba's channels_last is a shape with the channels last."""
    last = layout == "channels_last"
    axis = len(shape) - 1 if last and own.name == "numba" else 1
    x, y, dy, dx = (own.random(tuple(shape), dtype, last) for _ in range(4))
    rng = np.random.default_rng()
    low = (0.5, -1, -1, 0.5)
    own_dtype = np.float64 if dtype == "float64" else np.float32
    numbers = (own.send(rng.uniform(a, a + 1, shape[axis]).astype(own_dtype)) for a in low)
    return Inputs(x, y, dy, dx, *numbers, axis)


def precision_of(dtype: str) -> str:
    """Return in which arithmetic data are to be computed."""
    return "exact" if dtype == "exact" else "fast"


def ours(operation: str, sets: list[Inputs], dtype: str) -> Contender:
    options = {"eps": EPS, "precision": precision_of(dtype)}

    def make(s: Inputs) -> Callable[[], Any]:
        if operation == "forward":
            return lambda: fastbn.batch_norm(
                s.x, s.weight, s.bias, running_mean=s.mean, running_var=s.var, momentum=MOMENTUM, axis=s.axis,
                out=s.y, **options,
            )  # fmt: skip
        if operation == "inference":
            return lambda: fastbn.batch_norm_inference(
                s.x, s.mean, s.var, s.weight, s.bias, axis=s.axis, out=s.y, **options
            )  # fmt: skip
        _, ctx = fastbn.batch_norm(s.x, s.weight, s.bias, axis=s.axis, out=s.y, **options)
        return lambda: fastbn.batch_norm_backward(s.dy, ctx, out=s.dx)

    return Contender(OURS, [make(s) for s in sets])


def copy(own: Any, sets: list[Inputs]) -> Contender:
    return Contender("copy", [functools.partial(own.copy, s.y, s.x) for s in sets])


def eager(own: Any, operation: str, sets: list[Inputs], cudnn: bool) -> Contender:
    """PyTorch's own choice of kernels with cuDNN allowed or not; backwards, without autograd around them."""
    torch = own.torch

    def make(s: Inputs) -> Callable[[], Any]:
        given = s.weight, s.bias, s.mean, s.var
        if operation != "backward":
            training = operation == "forward"
            return lambda: torch.nn.functional.batch_norm(
                s.x, s.mean, s.var, s.weight, s.bias, training, MOMENTUM, EPS
            )  # fmt: skip
        _, *saved, reserve, choice = torch._batch_norm_impl_index(s.x, *given, True, MOMENTUM, EPS, cudnn)
        back = torch.ops.aten._batch_norm_impl_index_backward
        every = [True, True, True]
        return lambda: back(choice, s.x, s.dy, s.weight, s.mean, s.var, *saved, True, EPS, every, reserve)

    around = functools.partial(torch.backends.cudnn.flags, enabled=cudnn)
    with around():
        return Contender("cuDNN" if cudnn else "PyTorch", [make(s) for s in sets], around)


def compiled(own: Any, operation: str, sets: list[Inputs]) -> Contender:
    """torch.compile of the same, with a complete graph; otherwise it would run as eager does, under this name."""
    torch = own.torch
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # no pool of processes beside what is timed
    torch.compiler.reset()  # its limit of recompilations is counted for a function, over all cases

    def forward(x: Any, weight: Any, bias: Any, mean: Any, var: Any) -> Any:
        return torch.nn.functional.batch_norm(x, mean, var, weight, bias, operation == "forward", MOMENTUM, EPS)

    def backward(dy: Any, x: Any, weight: Any, mean: Any, var: Any, save_mean: Any, save_invstd: Any) -> Any:
        return torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, var, save_mean, save_invstd, True, EPS, [True, True, True]
        )  # fmt: skip

    function = torch.compile(backward if operation == "backward" else forward, dynamic=False, fullgraph=True)

    def make(s: Inputs) -> Callable[[], Any]:
        if operation != "backward":
            return lambda: function(s.x, s.weight, s.bias, s.mean, s.var)
        saved = torch.native_batch_norm(s.x, s.weight, s.bias, s.mean, s.var, True, MOMENTUM, EPS)[1:]
        return lambda: function(s.dy, s.x, s.weight, s.mean, s.var, *saved)

    return Contender("torch.compile", [make(s) for s in sets], torch.no_grad)


def cupy(operation: str, sets: list[Inputs]) -> Contender:
    """Write the formula with CuPy, on PyTorch's arrays without a copy."""
    import cupy as cp

    def make(s: Inputs) -> Callable[[], Any]:
        x, dy, weight, bias, mean, var = (cp.asarray(a) for a in (s.x, s.dy, s.weight, s.bias, s.mean, s.var))
        axes = tuple(i for i in range(x.ndim) if i != s.axis)
        weight, bias, mean, var = (
            a.reshape([-1 if i == s.axis else 1 for i in range(x.ndim)]) for a in (weight, bias, mean, var)
        )

        def forward() -> Any:
            batch = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
            return (x - batch[0]) / cp.sqrt(batch[1] + EPS) * weight + bias

        def inference() -> Any:
            return (x - mean) / cp.sqrt(var + EPS) * weight + bias

        def backward() -> Any:
            xhat = (x - mean) / cp.sqrt(var + EPS)
            sums = dy.mean(axes, keepdims=True), (dy * xhat).mean(axes, keepdims=True)
            return (dy - sums[0] - xhat * sums[1]) * (weight / cp.sqrt(var + EPS))

        return {"forward": forward, "inference": inference, "backward": backward}[operation]

    return Contender("CuPy", [make(s) for s in sets])
