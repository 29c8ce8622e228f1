"""Training steps of a PyTorch model, plain and with fastbn, in turn in one process: what the torch process does."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import fastbn.adapters.torch as adapter

from . import models, turns
from .turns import PLAIN, WITHOUT

CONVERT, FUSE, ENABLE = "convert", "convert, fuse=True", "enable()"
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
RATE, MOMENTUM = 1e-3, 0.9
ROUNDS, WARM = 21, 2

# y of PyTorch's batch norm with channels last is off by 52 ulp of its terms, more than anybody else's, for data around
# zero (README.md, Accuracy): 52 * 2^-24. In the worst case the errors of all layers add up.
LAYER_ERROR = 52 * 2.0**-24


@contextlib.contextmanager
def _enabled() -> Any:
    adapter.enable()
    try:
        yield
    finally:
        adapter.disable()


@dataclass
class Variant:
    """A net that trains on one batch."""

    model: nn.Module
    x: torch.Tensor
    target: torch.Tensor
    scope: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=RATE, momentum=MOMENTUM)

    def step(self) -> torch.Tensor:
        """Take one step; return the loss before it."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(self.model(self.x), self.target)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def timed(self) -> float:
        """Return the seconds of a step, without those of `scope`."""
        with self.scope():
            started = time.perf_counter()
            self.step()
            return time.perf_counter() - started


def variants(net: nn.Module, x: torch.Tensor, target: torch.Tensor) -> dict[str, Variant]:
    """Return copies of a net: plain, without batch norm, and by every way of the adapter that there is."""
    made = {PLAIN: Variant(copy.deepcopy(net), x, target), CONVERT: Variant(adapter.convert(net), x, target)}
    if "fuse" in inspect.signature(adapter.convert).parameters:
        made[FUSE] = Variant(adapter.convert(net, fuse=True), x, target)
    if hasattr(adapter, "enable") and hasattr(adapter, "disable"):
        made[ENABLE] = Variant(copy.deepcopy(net), x, target, _enabled)
    made[WITHOUT] = Variant(models.without_batch_norm(copy.deepcopy(net)), x, target)
    return made


def agree(made: dict[str, Variant]) -> None:
    """Let everyone take two steps; raise AssertionError unless the losses agree: forward, then backward too.

    The cross-entropy moves by at most twice what a logit does, and a logit by its size times the error of a layer
    times the layers. The second loss moves besides by what the first step won times the relative error of the
    gradient's square, of which the way forward and the way back each have two such parts.
    """
    plain = made[PLAIN]
    layers = sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in plain.model.modules())
    with torch.no_grad():
        largest = copy.deepcopy(plain.model)(plain.x).abs().max().item()
    losses = {}
    for name, variant in made.items():
        with variant.scope():
            losses[name] = [variant.step().item() for _ in range(2)]
    error, (first, second) = layers * LAYER_ERROR, losses[PLAIN]
    for name, found in losses.items():
        if name == WITHOUT:
            continue
        for i, bound in enumerate((2 * error * largest, 2 * error * (largest + 2 * abs(second - first)))):
            apart = abs(found[i] - losses[PLAIN][i])
            assert apart <= bound, f"{name}: loss {i} is {found[i]}, not {losses[PLAIN][i]}; {bound:.1e} is allowed"


def measure(net: str, layout: str, small: bool = False, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the row of a net in a layout."""
    torch.manual_seed(0)
    model, shape = models.make(net, small)
    x, target = torch.randn(shape), torch.randint(1000, shape[:1])
    if len(shape) > 2:
        model, x = model.to(memory_format=FORMATS[layout]), x.to(memory_format=FORMATS[layout])
    made = variants(model, x, target)
    agree(made)
    row = {"net": net, "layout": layout, "shape": list(shape), "threads": torch.get_num_threads()}
    row |= turns.measure({name: variant.timed for name, variant in made.items()}, rounds, 0 if small else WARM)
    for name, variant in made.items():  # a net of NaN takes another time
        assert math.isfinite(variant.step().item()), f"{net}, {layout}: the loss of {name} is not finite"
    return row


def cases() -> list[tuple[str, str]]:
    """Return every net and layout."""
    return [(net, layout) for net in models.NETS for layout in (["NC"] if net == "encoder" else ["NCHW", "NHWC"])]


ACTIONS: dict[str, Callable[..., Any]] = {"cases": cases, "step": measure}
