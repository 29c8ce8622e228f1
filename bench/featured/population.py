"""`recalibrate` beside `torch.optim.swa_utils.update_bn`, over two layers with a ReLU between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from peers.torch_eager import module, tensor
from problem import Problem

import fastbn

from .work import Work

BATCHES = 4


def _parts(problem: Problem) -> list[np.ndarray]:
    return np.array_split(problem.x, BATCHES)


def _nothing(kept: Any) -> None:
    """Go back through what has no gradient."""
    return


def _net(problem: Problem) -> tuple[list[fastbn.BatchNorm], Any]:
    """Return two layers, and what runs a batch through them, outputs preallocated."""
    C, axis = problem.case.channels, problem.case.axis
    first, second = fastbn.BatchNorm(C, axis=axis, activation="relu"), fastbn.BatchNorm(C, axis=axis)
    hidden = np.empty_like(_parts(problem)[0])
    return [first, second], lambda x: second(first(x, out=hidden[: len(x)]), out=hidden[: len(x)])


def passes(problem: Problem) -> Work:
    """Return the forward passes alone, in training: what a recalibration cannot do without."""
    parts, (_, forward) = _parts(problem), _net(problem)
    return Work(lambda: [forward(part) for part in parts] and None, _nothing, lambda _, __: {})


def recalibrated(problem: Problem) -> Work:
    """`fastbn.recalibrate`, by the method that update_bn has."""
    parts, (layers, forward) = _parts(problem), _net(problem)

    def results(_: object, __: object) -> dict[str, np.ndarray]:
        return {f"{n}{i}": getattr(layer, n) for i, layer in enumerate(layers) for n in ("running_mean", "running_var")}

    return Work(lambda: fastbn.recalibrate(layers, parts, forward, method="average", progress=False), _nothing, results)


def updated(problem: Problem) -> Work:
    """PyTorch's own."""
    torch = module()
    C, axis = problem.case.channels, problem.case.axis
    kind = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 4: torch.nn.BatchNorm2d}[problem.x.ndim]
    net = torch.nn.Sequential(kind(C), torch.nn.ReLU(inplace=True), kind(C))
    parts = [tensor(part, axis) for part in _parts(problem)]

    def results(_: object, __: object) -> dict[str, np.ndarray]:
        norms = [net[0], net[2]]
        return {f"{n}{i}": getattr(m, n).numpy() for i, m in enumerate(norms) for n in ("running_mean", "running_var")}

    return Work(lambda: torch.optim.swa_utils.update_bn(parts, net), _nothing, results)
