"""What the adapter for PyTorch costs, and how it compares with PyTorch's own batch norm.

python bench/bridges/with_torch.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from paired import compare  # noqa: E402

import fastbn  # noqa: E402
from fastbn.adapters.torch import BatchNorm1d, BatchNorm2d, revert  # noqa: E402

Function = Callable[[], object]


def _backward(layer: torch.nn.Module, x: torch.Tensor, dy: torch.Tensor) -> Function:
    """Return a call of the backward pass alone, through one forward pass."""
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y, inputs = layer(leaf), (leaf, *layer.parameters())
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


def bridge_us() -> float:
    """Return microseconds that forward and backward take beyond fastbn's own functions, on (32, 64)."""
    x, dy = torch.randn(32, 64), torch.randn(32, 64)
    layer = BatchNorm1d(64)
    leaf = x.clone().requires_grad_()
    inputs = (leaf, *layer.parameters())
    weight, bias, mean, var = (np.ones(64, np.float32) for _ in range(4))

    def own() -> Any:
        _, ctx = fastbn.batch_norm(x.numpy(), weight, bias, running_mean=mean, running_var=var)
        return fastbn.batch_norm_backward(dy.numpy(), ctx)

    both = compare({"fastbn": own, "adapter": lambda: torch.autograd.grad(layer(leaf), inputs, dy)})
    return 1e6 * (both.seconds["adapter"] - both.seconds["fastbn"])


def speedups(memory_format: torch.memory_format) -> tuple[float, float]:
    """Return PyTorch's time by ours, forward and backward, in training, on 32 x 64 x 28 x 28."""
    x, dy = (torch.randn(32, 64, 28, 28).to(memory_format=memory_format) for _ in range(2))
    layers = {"ours": BatchNorm2d(64)}
    layers["theirs"] = revert(layers["ours"])
    forward = compare({name: lambda layer=layer: layer(x) for name, layer in layers.items()})
    backward = compare({name: _backward(layer, x, dy) for name, layer in layers.items()})
    return forward.ratios["theirs"], backward.ratios["theirs"]


def measure() -> dict[str, Any]:
    """Return the figures of this host."""
    forward, backward = speedups(torch.contiguous_format)
    last = speedups(torch.channels_last)
    return {
        "host": "torch",
        "lines": 2,
        "bridge_us": round(bridge_us(), 1),
        "speedup_forward": round(forward, 2),
        "speedup_backward": round(backward, 2),
        "speedup_forward_channels_last": round(last[0], 2),
        "speedup_backward_channels_last": round(last[1], 2),
        "shape": [32, 64, 28, 28],
        "own": "torch.nn.BatchNorm2d",
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
