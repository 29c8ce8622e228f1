"""One call right after a product: what each host's process does. The product and the call use the same pool, or do not.

fastbn is called as functions on NumPy's arrays after `np.matmul`, with `out=` given, and through its adapter and
autograd after `torch.matmul`. Beside the first stands PyTorch's own with preallocated outputs, beside the second
PyTorch's own with autograd, which allocates what it returns as the adapter does. JAX's are its formulas in its jit.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ours
from peers import jax_jit, numpy_plain, torch_eager
from problem import EPS, MOMENTUM, Problem, Run, check, draw
from suites import LAYOUTS, Case

FUNCTIONS = ours.NAME
ADAPTER = "fastbn's adapter"
OUT = "PyTorch, out="
AUTOGRAD = "PyTorch, autograd"
JAX = jax_jit.NAME
NAMES = {"numpy": (FUNCTIONS,), "torch": (ADAPTER, AUTOGRAD, OUT), "jax": (JAX,)}
# ours, theirs: whoever writes a trainer in NumPy has the first two to choose between, whoever has a model the last.
PAIRS = ((FUNCTIONS, OUT), (FUNCTIONS, JAX), (ADAPTER, AUTOGRAD))

# 2 GFLOP, some 10 ms on two cores, and 12 MB: as a layer's product is, long enough to send every thread to work, and
# large enough to leave nothing of batch norm's code or data in the second-level cache.
PRODUCT = 1024
# OpenBLAS's workers spin for 2^26 cycles after a product, some 20 ms, also beside the next host's process.
REST = 0.05

Builder = Callable[[Problem, str], Run]


def _through_autograd(function: Callable[..., Any]) -> Builder:
    """Return a builder of calls as a model makes them: of `torch.nn.functional.batch_norm`, or what does the same."""

    def build(problem: Problem, operation: str) -> Run:
        import torch

        p, axis = problem, problem.case.axis
        leaf = torch_eager.tensor(p.x, axis).requires_grad_()
        weight, bias = (torch_eager.tensor(a, 0).requires_grad_() for a in (p.weight, p.bias))
        mean, var = (torch_eager.tensor(a.copy(), 0) for a in (p.running_mean, p.running_var))

        def forward() -> Any:
            return function(leaf, mean, var, weight, bias, True, MOMENTUM, EPS)

        if operation == "forward":
            return Run(forward, lambda y: {"y": torch_eager.array(y.detach(), axis)})
        y, dy = forward(), torch_eager.tensor(p.dy, axis)

        def gradients(result: Any) -> dict[str, np.ndarray]:
            dx, dweight, dbias = result
            own = torch_eager.array(dweight, 0), torch_eager.array(dbias, 0)
            return dict(zip(("dx", "dweight", "dbias"), (torch_eager.array(dx, axis), *own), strict=True))

        return Run(lambda: torch.autograd.grad(y, (leaf, weight, bias), dy, retain_graph=True), gradients)

    return build


def _numpy(size: int) -> tuple[Callable[[], object], dict[str, Builder]]:
    a, b, c = np.random.default_rng(0).standard_normal((3, size, size), np.float32)
    return lambda: np.matmul(a, b, out=c), {FUNCTIONS: ours.build}


def _torch(size: int) -> tuple[Callable[[], object], dict[str, Builder]]:
    import torch

    from fastbn.adapters.torch import batch_norm

    a, b, c = torch.randn(3, size, size)
    builders = {
        ADAPTER: _through_autograd(batch_norm),
        AUTOGRAD: _through_autograd(torch.nn.functional.batch_norm),
        OUT: torch_eager.build,
    }
    return lambda: torch.matmul(a, b, out=c), builders


def _jax(size: int) -> tuple[Callable[[], object], dict[str, Builder]]:
    import jax

    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    product, on_device = jax.jit(jax.numpy.matmul), [jax.device_put(a), jax.device_put(b)]
    return lambda: jax.block_until_ready(product(*on_device)), {JAX: jax_jit.build}


class Calls:
    """The calls of one host."""

    def __init__(self, host: str) -> None:
        self._make = {"numpy": _numpy, "torch": _torch, "jax": _jax}[host]
        self._size = 0
        self._runs: dict[str, Run] = {}

    def prepare(self, shape: list[int], axis: int, operation: str, product: int = PRODUCT) -> list[str]:
        """Build every participant, check its result against plain NumPy's, and return their names."""
        self._runs = {}  # of the last case, whose memory is needed
        if product != self._size:
            self._product, self._builders = self._make(product)
            self._size = product
        assert (len(shape), axis) in LAYOUTS, (shape, axis)
        problem = draw(Case("company", tuple(shape), axis), "float32", operation)
        expected = numpy_plain.build(problem, operation).call()
        for name, build in self._builders.items():
            self._runs[name] = run = build(problem, operation)
            check(name, run.arrays(run.call()), expected, "float32")
        return list(self._runs)

    def burst(self, pairs: int, rest: float = REST) -> dict[str, float]:
        """Return the median seconds of so many calls each, in turn, each with the product before it."""
        time.sleep(rest)
        names = list(self._runs)
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(pairs + 1):
            random.shuffle(names)
            for name in names:
                call = self._runs[name].call
                self._product()
                started = time.perf_counter()
                result = call()
                times[name].append(time.perf_counter() - started)
                del result  # what it allocated is given back outside the time
        # The first one comes after a rest, when every pool sleeps.
        return {name: statistics.median(values[1:]) for name, values in times.items()}

    @property
    def actions(self) -> dict[str, Callable[..., Any]]:
        """What the process can be asked for."""
        return {"prepare": self.prepare, "burst": self.burst, "used": lambda: None}
