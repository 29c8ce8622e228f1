"""Trainers in plain NumPy, with fastbn's layer, with NumPy's formulas and without batch norm: the numpy process.

The layers are those of `fastbn demo`: products for rows, windows copied to rows and a product for images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

import fastbn
from fastbn.experiments.nets import SGD, Array, Conv2d, Layer, Linear, Net, ReLU, cross_entropy

from . import turns
from .turns import PLAIN, WITHOUT

FASTBN = "fastbn"
RATE, EPS, MOMENTUM, CLASSES = 0.01, 1e-5, 0.1, 10
ROUNDS, WARM = 31, 2


class Formulas:
    """Batch norm over the last axis as a careful user of NumPy writes it.

    Everything is float32; arrays of the size of x are allocated once; xhat is never made, since x - mean does for both
    ways: six passes forward and seven back.
    """

    def __init__(self, features: int) -> None:
        self.weight, self.bias = np.ones(features, np.float32), np.zeros(features, np.float32)
        self.running_mean, self.running_var = np.zeros_like(self.bias), np.ones_like(self.bias)
        self._centred = np.empty((0, features), np.float32)

    def __call__(self, x: Array) -> Array:
        """Return y, in memory that the next call takes again."""
        rows = x.reshape(-1, x.shape[-1])
        count = len(rows)
        if self._centred.shape != rows.shape:
            self._centred, self._y, self._dx = (np.empty_like(rows) for _ in range(3))
        mean = rows.mean(0)
        np.subtract(rows, mean, out=self._centred)
        var = np.multiply(self._centred, self._centred, out=self._y).mean(0)
        self._invstd = 1 / np.sqrt(var + np.float32(EPS))
        self.running_mean += np.float32(MOMENTUM) * (mean - self.running_mean)
        self.running_var += np.float32(MOMENTUM) * (var * np.float32(count / (count - 1)) - self.running_var)
        np.multiply(self._centred, self.weight * self._invstd, out=self._y)
        self._y += self.bias
        return self._y.reshape(x.shape)

    def backward(self, dy: Array) -> Array:
        """Return dx, in memory that the next call takes again; set `dweight`, `dbias`."""
        rows = dy.reshape(self._centred.shape)
        count = np.float32(len(rows))
        self.dbias = rows.sum(0)
        products = np.multiply(rows, self._centred, out=self._dx).sum(0)
        self.dweight = products * self._invstd
        np.multiply(self._centred, products * self._invstd**2 / count, out=self._centred)
        np.subtract(rows, self._centred, out=self._dx)
        self._dx -= self.dbias / count
        self._dx *= self.weight * self._invstd
        return self._dx.reshape(dy.shape)


Norm = Callable[[int], Layer]
NORMS: dict[str, Norm | None] = {
    PLAIN: Formulas,
    FASTBN: lambda features: fastbn.BatchNorm(features, axis=-1),
    WITHOUT: None,
}


def _then(norm: Norm | None, features: int) -> list[Layer]:
    return [*([] if norm is None else [norm(features)]), ReLU()]


def _he(rng: np.random.Generator, *shape: int) -> Array:
    return rng.normal(0, (2 / math.prod(shape[:-1])) ** 0.5, shape).astype(np.float32)


def mlp(rng: np.random.Generator, norm: Norm | None, sizes: tuple[int, ...] = (784, 1024, 1024)) -> Net:
    layers: list[Layer] = []
    for inputs, outputs in pairwise(sizes):
        layers += [Linear(_he(rng, inputs, outputs), use_bias=False), *_then(norm, outputs)]
    return Net([*layers, Linear(_he(rng, sizes[-1], CLASSES))])


def conv_net(
    rng: np.random.Generator, norm: Norm | None, channels: tuple[int, ...] = (1, 32, 64, 128), size: int = 28
) -> Net:
    """Return 3 x 3 convolutions, all but the first of stride 2."""
    layers: list[Layer] = []
    for i, (inputs, outputs) in enumerate(pairwise(channels)):
        layers += [Conv2d(_he(rng, 3, 3, inputs, outputs), 2 if i else 1, use_bias=False), *_then(norm, outputs)]
        size = -(-size // 2) if i else size
    return Net([*layers, Linear(_he(rng, size * size * channels[-1], CLASSES))])


# name: how it is made, the shape of a batch; then the same small, for a test of the harness.
Builder = Callable[[np.random.Generator, Norm | None], Net]
TRAINERS: dict[str, tuple[Builder, tuple[int, ...]]] = {
    "MLP 784-1024-1024-10": (mlp, (256, 784)),
    "conv net, 3 layers": (conv_net, (64, 28, 28, 1)),
}
SMALL: dict[str, tuple[Builder, tuple[int, ...]]] = {
    "MLP 784-1024-1024-10": (lambda rng, norm: mlp(rng, norm, (12, 20, 20)), (16, 12)),
    "conv net, 3 layers": (lambda rng, norm: conv_net(rng, norm, (1, 4, 8), 8), (8, 8, 8, 1)),
}


class Training:
    """A net that trains on one batch."""

    def __init__(self, net: Net, x: Array, labels: Array) -> None:
        self.net, self.x, self.labels = net, x, labels
        self.sgd = SGD(net, RATE)

    def step(self) -> float:
        """Take one step; return the loss before it."""
        loss, dy = cross_entropy(self.net(self.x), self.labels)
        self.net.backward(dy)
        self.sgd.step()
        return loss

    def timed(self) -> float:
        """Return the seconds of a step."""
        started = time.perf_counter()
        self.step()
        return time.perf_counter() - started


def agree(made: dict[str, Training]) -> None:
    """Let everyone take two steps; raise AssertionError unless the losses agree: forward, then backward too.

    NumPy adds n rows up one after the other, in float32: n random errors of half an ulp are sqrt(n) of them, and four
    times that is the bound for a layer. What follows for the losses is derived in `steps.agree`.
    """
    plain = made[PLAIN]
    norms = [layer for layer in plain.net.layers if isinstance(layer, Formulas)]
    largest = float(np.abs(plain.net(plain.x)).max())
    losses = {name: [training.step() for _ in range(2)] for name, training in made.items() if name != WITHOUT}
    first, second = losses[PLAIN]
    error = sum(4 * len(norm._centred) ** 0.5 for norm in norms) * 2.0**-24
    for name, found in losses.items():
        for i, bound in enumerate((2 * error * largest, 2 * error * (largest + 2 * abs(second - first)))):
            apart = abs(found[i] - losses[PLAIN][i])
            assert apart <= bound, f"{name}: loss {i} is {found[i]}, not {losses[PLAIN][i]}; {bound:.1e} is allowed"


def measure(trainer: str, small: bool = False, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the row of a trainer."""
    build, shape = (SMALL if small else TRAINERS)[trainer]
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal(shape, np.float32), rng.integers(CLASSES, size=shape[0])
    made = {name: Training(build(np.random.default_rng(1), norm), x, labels) for name, norm in NORMS.items()}
    agree(made)
    row = {"trainer": trainer, "shape": list(shape)}
    row |= turns.measure({name: training.timed for name, training in made.items()}, rounds, 0 if small else WARM)
    for name, training in made.items():
        assert math.isfinite(training.step()), f"{trainer}: the loss of {name} is not finite"
    return row


ACTIONS: dict[str, Callable[..., Any]] = {"cases": lambda: list(TRAINERS), "train": measure}
