"""fastbn's ways, outputs preallocated, as in all of the bench."""

from __future__ import annotations

from typing import Any

import numpy as np
from problem import EPS, MOMENTUM, Problem

import fastbn

from .work import Work, cut


class Outputs:
    """Where y and dx go, of everyone in a group: what is timed is done one after the other."""

    def __init__(self, problem: Problem) -> None:
        self.y, self.dx = np.empty_like(problem.x), np.empty_like(problem.x)


def named(y: np.ndarray, gradients: fastbn.Gradients) -> dict[str, np.ndarray]:
    found = {"y": y, "dx": gradients.dx, "dweight": gradients.dweight, "dbias": gradients.dbias}
    return found if gradients.dresidual is None else found | {"dresidual": gradients.dresidual}


def _statistics(problem: Problem) -> dict[str, Any]:
    running = {"running_mean": problem.running_mean.copy(), "running_var": problem.running_var.copy()}
    return running | {"momentum": MOMENTUM, "eps": EPS, "axis": problem.case.axis}


def batch_norm(problem: Problem, outputs: Outputs, **given: Any) -> Work:
    """One call each way; `given` are its arguments beyond those of plain batch norm."""
    p, arguments = problem, _statistics(problem) | given
    return Work(
        lambda: fastbn.batch_norm(p.x, p.weight, p.bias, **arguments, out=outputs.y),
        lambda kept: fastbn.batch_norm_backward(p.dy, kept[1], out=outputs.dx),
        lambda kept, gradients: named(kept[0], gradients),
    )


def in_place(problem: Problem, outputs: Outputs, **given: Any) -> Work:
    """Y where x was."""
    p, arguments, x = problem, _statistics(problem) | given, problem.x.copy()
    return Work(
        lambda: fastbn.batch_norm(x, p.weight, p.bias, **arguments, out=x),
        lambda kept: fastbn.batch_norm_backward(p.dy, kept[1], out=outputs.dx),
        lambda kept, gradients: named(kept[0], gradients),
    )


def two_phases(problem: Problem, outputs: Outputs) -> Work:
    """Statistics first, then what is made of them: what micro-batches and ranks need, here of one part."""
    p, arguments = problem, _statistics(problem)
    axis = p.case.axis
    return Work(
        lambda: fastbn.batch_norm(
            p.x, p.weight, p.bias, **arguments, moments=fastbn.batch_moments(p.x, axis=axis), out=outputs.y
        ),
        lambda kept: fastbn.batch_norm_backward(
            p.dy, kept[1], sums=fastbn.backward_sums(p.dy, kept[1]), out=outputs.dx
        ),
        lambda kept, gradients: named(kept[0], gradients),
    )


def loop(problem: Problem, outputs: Outputs, size: int) -> Work:
    """Ghost batches as calls in a loop over slices."""
    p, arguments = problem, _statistics(problem)
    parts = list(cut(p, size))

    def forward() -> list[fastbn.Context]:
        return [fastbn.batch_norm(p.x[part], p.weight, p.bias, **arguments, out=outputs.y[part])[1] for part in parts]

    def backward(kept: list[fastbn.Context]) -> tuple[np.ndarray, np.ndarray]:
        sums = np.zeros((2, p.case.channels), np.float32)
        for part, ctx in zip(parts, kept, strict=True):
            gradients = fastbn.batch_norm_backward(p.dy[part], ctx, out=outputs.dx[part])
            sums[0] += gradients.dweight
            sums[1] += gradients.dbias
        return sums[0], sums[1]

    return Work(
        forward,
        backward,
        lambda _, sums: {"y": outputs.y, "dx": outputs.dx, "dweight": sums[0], "dbias": sums[1]},
    )


def whitened(problem: Problem, outputs: Outputs, groups: int) -> Work:
    """`DecorrelatedBatchNorm`, with the problem's parameters."""
    p = problem
    layer = fastbn.DecorrelatedBatchNorm(p.case.channels, groups=groups, axis=p.case.axis, eps=EPS)
    layer.weight[...], layer.bias[...] = p.weight, p.bias
    return Work(
        lambda: layer(p.x, out=outputs.y),
        lambda _: layer.backward(p.dy, out=outputs.dx),
        lambda _, dx: {"y": outputs.y, "dx": dx, "dweight": layer.dweight, "dbias": layer.dbias},
    )


def axes(problem: Problem, outputs: Outputs, shape: tuple[int, ...]) -> Work:
    """One statistic an activation: the problem's (N, C) in another shape, with all axes but the first as channels."""
    p, over, own = problem, tuple(range(1, len(shape))), shape[1:]
    arguments = {
        name: value.reshape(own) if isinstance(value, np.ndarray) else value for name, value in _statistics(p).items()
    } | {"axis": over}
    x, dy, y, dx = (array.reshape(shape) for array in (p.x, p.dy, outputs.y, outputs.dx))
    weight, bias = p.weight.reshape(own), p.bias.reshape(own)

    def results(_: object, gradients: fastbn.Gradients) -> dict[str, np.ndarray]:
        found = named(outputs.y, gradients)
        return {name: array.reshape(p.x.shape if name in ("y", "dx") else -1) for name, array in found.items()}

    return Work(
        lambda: fastbn.batch_norm(x, weight, bias, **arguments, out=y),
        lambda kept: fastbn.batch_norm_backward(dy, kept[1], out=dx),
        results,
    )
