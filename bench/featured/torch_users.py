"""What a PyTorch user writes for each feature today: eager, with autograd, on as many threads.

Operators work in place where PyTorch's documentation says that they may. Autograd's results cannot be preallocated, so
that these ways pay for memory which fastbn's are given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from peers.torch_eager import array, module, tensor
from problem import EPS, MOMENTUM, Problem

from .work import Work


class Given:
    """A problem's arrays as tensors, leaves of autograd; channels second."""

    def __init__(self, problem: Problem) -> None:
        self.axis = problem.case.axis
        self.x, self.dy = tensor(problem.x, self.axis).requires_grad_(), tensor(problem.dy, self.axis)
        self.weight, self.bias = (tensor(a.copy(), 0).requires_grad_() for a in (problem.weight, problem.bias))
        self.mean, self.var = tensor(problem.running_mean.copy(), 0), tensor(problem.running_var.copy(), 0)

    def batch_norm(self, x: Any, running: bool = True) -> Any:
        """Normalise in training, with everything that is given."""
        statistics = (self.mean, self.var) if running else (None, None)
        return module().nn.functional.batch_norm(x, *statistics, self.weight, self.bias, True, MOMENTUM, EPS)

    @property
    def over(self) -> tuple[int, ...]:
        """The axes that sums run over."""
        return tuple(i for i in range(self.x.ndim) if i != 1)

    def lined_up(self, row: Any) -> Any:
        """Return (C,) so that it goes with x."""
        return row.reshape(-1, *[1] * (self.x.ndim - 2))


def autograd(given: Given, function: Callable[[], Any], residual: Any = None) -> Work:
    """Return the work of a function of `given`, and the gradients that autograd finds."""
    torch = module()
    names = ["dx", "dweight", "dbias"]
    leaves = [given.x, given.weight, given.bias]
    if residual is not None:
        names, leaves = [*names, "dresidual"], [*leaves, residual]

    def results(y: Any, gradients: Any) -> dict[str, np.ndarray]:
        found = {"y": y.detach()} | dict(zip(names, gradients, strict=True))
        return {n: array(t, given.axis) if t.ndim > 1 else array(t, 0) for n, t in found.items()}

    return Work(function, lambda y: torch.autograd.grad(y, leaves, given.dy, retain_graph=True), results)


def activated(name: str | None, y: Any) -> Any:
    """Return an activation of what nobody else needs."""
    torch = module()
    functional = torch.nn.functional
    if name in ("relu", "relu6", "silu"):
        return getattr(functional, name)(y, inplace=True)
    if name == "leaky_relu":
        return functional.leaky_relu(y, 0.01, inplace=True)
    if name in ("tanh", "sigmoid"):
        return getattr(y, f"{name}_")()
    return functional.gelu(y) if name == "gelu" else y  # which has no in-place form


def tail(problem: Problem, activation: str | None, residual: np.ndarray | None) -> Work:
    """F.batch_norm, then add_, then the activation."""
    given = Given(problem)
    other = None if residual is None else tensor(residual, given.axis).requires_grad_()

    def forward() -> Any:
        y = given.batch_norm(given.x)
        return activated(activation, y if other is None else y.add_(other))

    return autograd(given, forward, other)


def masked(problem: Problem, mask: np.ndarray) -> Work:
    """x[mask] with channels last, F.batch_norm of the rows, and back to where they were."""
    torch = module()
    given, chosen = Given(problem), torch.from_numpy(mask)

    def forward() -> Any:
        x = given.x.movedim(1, -1)
        y = torch.zeros_like(x)
        y[chosen] = given.batch_norm(x[chosen])
        return y.movedim(-1, 1)

    return autograd(given, forward)


def ghosts(problem: Problem, size: int) -> Work:
    """Loop over chunks and put them together again."""
    torch, given = module(), Given(problem)
    return autograd(given, lambda: torch.cat([given.batch_norm(part) for part in given.x.split(size)]))


def renormalized(problem: Problem, r_max: float, d_max: float) -> Work:
    """Batch renormalization by its formulas."""
    torch, given = module(), Given(problem)
    count = problem.x.size // problem.case.channels

    def forward() -> Any:
        var, mean = torch.var_mean(given.x, given.over, correction=0)
        std = torch.sqrt(var + EPS)
        with torch.no_grad():
            running = torch.sqrt(given.var + EPS)
            r = (std / running).clamp_(1 / r_max, r_max)
            d = ((mean - given.mean) / running).clamp_(-d_max, d_max)
            given.mean.lerp_(mean, MOMENTUM)
            given.var.lerp_(var * (count / (count - 1)), MOMENTUM)
        scale, shift = r / std, d
        xhat = (given.x - given.lined_up(mean)) * given.lined_up(scale) + given.lined_up(shift)
        return xhat * given.lined_up(given.weight) + given.lined_up(given.bias)

    return autograd(given, forward)


def without_running(problem: Problem) -> Work:
    """F.batch_norm that is given no running statistics."""
    given = Given(problem)
    return autograd(given, lambda: given.batch_norm(given.x, running=False))


def two_phases(problem: Problem) -> Work:
    """Statistics first, then what is made of them: F.batch_norm has no gradient by statistics that it is given."""
    torch, given = module(), Given(problem)

    def forward() -> Any:
        var, mean = torch.var_mean(given.x, given.over, correction=0)
        scale = given.weight * torch.rsqrt(var + EPS)
        return (given.x - given.lined_up(mean)) * given.lined_up(scale) + given.lined_up(given.bias)

    return autograd(given, forward)


def flat(problem: Problem, axes: int) -> Work:
    """So many axes from the second on as one of channels; the problem's is (N, C) already."""
    given = Given(problem)
    shape = problem.x.shape[0], *[1] * (axes - 1), problem.case.channels
    return autograd(given, lambda: given.batch_norm(given.x.reshape(shape).flatten(1)))


def whitened(problem: Problem, groups: int) -> Work:
    """ZCA by torch.linalg.eigh, through which autograd goes."""
    torch, given = module(), Given(problem)
    C, count = problem.case.channels, problem.x.size // problem.case.channels
    d = C // groups
    running_mean, running_cov = torch.zeros(C), torch.eye(d).repeat(groups, 1, 1)

    def forward() -> Any:
        rows = given.x.transpose(0, 1).reshape(groups, d, -1)
        mean = rows.mean(2, keepdim=True)
        z = rows - mean
        cov = z @ z.transpose(1, 2) / count
        values, vectors = torch.linalg.eigh(cov)
        root = vectors @ (torch.rsqrt(values + EPS)[:, :, None] * vectors.transpose(1, 2))
        with torch.no_grad():
            running_mean.lerp_(mean.reshape(-1), MOMENTUM)
            running_cov.lerp_(cov * (count / (count - 1)), MOMENTUM)
        y = (root @ z).reshape(given.x.transpose(0, 1).shape).transpose(0, 1)
        return y * given.lined_up(given.weight) + given.lined_up(given.bias)

    return autograd(given, forward)
