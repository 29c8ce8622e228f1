"""oneDNN, through PyTorch's mkldnn tensors. It allocates its outputs; the calls take none."""

from __future__ import annotations

from typing import Any

import numpy as np
from problem import EPS, MOMENTUM, Problem, Run, Unavailable

from peers.torch_eager import array, module, tensor

NAME = "oneDNN"


def build(problem: Problem, operation: str) -> Run:
    torch = module()
    if problem.case.layout != "NCHW":
        raise Unavailable("PyTorch hands oneDNN's batch norm NCHW alone")
    if problem.x.dtype.name not in ("float32", "bfloat16"):
        raise Unavailable(f"PyTorch hands oneDNN no {problem.x.dtype.name}")
    if not torch.backends.mkldnn.is_available():
        raise Unavailable("this PyTorch is built without oneDNN")
    p = problem
    try:
        x = tensor(p.x).to_mkldnn()
        weight, bias = tensor(p.weight, 0), tensor(p.bias, 0)
        mean, var = tensor(p.running_mean.copy(), 0), tensor(p.running_var.copy(), 0)
        function = torch.ops.aten.native_batch_norm.default

        def forward() -> Any:
            return function(x, weight, bias, mean, var, True, MOMENTUM, EPS)

        if operation == "forward":
            call, results = forward, _normalised
        elif operation == "inference":
            call, results = lambda: function(x, weight, bias, mean, var, False, MOMENTUM, EPS), _normalised
        else:
            dy, saved = tensor(p.dy).to_mkldnn(), forward()[1:]
            gradient = torch.ops.aten.native_batch_norm_backward.default

            def backward() -> Any:
                return gradient(dy, x, weight, mean, var, *saved, True, EPS, [True, True, True])

            def both() -> Any:
                return forward(), backward()

            if operation == "backward":
                call, results = backward, _gradients
            else:
                call, results = both, lambda r: _normalised(r[0]) | _gradients(r[1])
        call()
    except RuntimeError as error:  # bfloat16 on a processor without AVX-512, for one
        raise Unavailable(f"oneDNN: {str(error).splitlines()[0]}") from error
    return Run(call, results)


def _normalised(result: Any) -> dict[str, np.ndarray]:
    return {"y": array(result[0].to_dense())}


def _gradients(result: Any) -> dict[str, np.ndarray]:
    dx, dweight, dbias = result
    return {"dx": array(dx.to_dense()), "dweight": array(dweight, 0), "dbias": array(dbias, 0)}
