"""torch.compile of the functional form, which writes into preallocated outputs."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from typing import Any

from problem import EPS, MOMENTUM, Problem, Run, Unavailable

from peers.torch_eager import Tensors, module

NAME = "torch.compile"


def _compile(function: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    """Compile and call once; without a complete graph it would run as eager does, under this name."""
    torch = module()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, about its own modules
            import torch._inductor.config as inductor

            inductor.compile_threads = 1  # no pool of processes beside the measurements
            compiled = torch.compile(function, dynamic=False, fullgraph=True)
            compiled(*arguments)
    except Exception as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise Unavailable(f"torch.compile: {lines[0] if lines else type(error).__name__}") from error
    return lambda: compiled(*arguments)


def build(problem: Problem, operation: str) -> Run:
    torch = module()
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise Unavailable("torch.compile needs a C++ compiler")
    torch.compiler.reset()  # its limit of recompilations is counted for a function, over all cases
    t = Tensors(problem, operation)

    def forward(x: Any, weight: Any, bias: Any, mean: Any, var: Any, y: Any) -> None:
        y.copy_(torch.nn.functional.batch_norm(x, mean, var, weight, bias, True, MOMENTUM, EPS))

    def inference(x: Any, weight: Any, bias: Any, mean: Any, var: Any, y: Any) -> None:
        y.copy_(torch.nn.functional.batch_norm(x, mean, var, weight, bias, False, MOMENTUM, EPS))

    def backward(dy: Any, x: Any, weight: Any, saved: Any, running: Any, out: Any) -> None:
        results = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, *running, *saved, True, EPS, [True, True, True]
        )  # fmt: skip
        for target, result in zip(out, results, strict=True):
            target.copy_(result)

    given = t.x, t.weight, t.bias, t.mean, t.var
    with torch.no_grad():
        if operation == "inference":
            run = _compile(inference, *given, t.y)
            return Run(run, lambda _: t.normalised())
        if operation == "forward":
            run = _compile(forward, *given, t.y)
            return Run(run, lambda _: t.normalised())
        out = torch.native_batch_norm(*given, True, MOMENTUM, EPS)
        arguments = t.dy, t.x, t.weight, out[1:], (t.mean, t.var), (t.dx, t.dweight, t.dbias)
        last = _compile(backward, *arguments)
        if operation == "backward":
            return Run(last, lambda _: t.gradients())
        first = _compile(forward, *given, t.y)

    def both() -> None:
        first()
        last()

    return Run(both, lambda _: t.normalised() | t.gradients())
