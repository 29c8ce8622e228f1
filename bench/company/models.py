"""Nets of the four kinds that have batch norm, in PyTorch: widths as published, fewer blocks, so that a step is short.

- residual: basic blocks of He et al. (2015), arXiv:1512.03385, one a stage and not two;
- inverted residuals: Sandler et al. (2018), arXiv:1801.04381, with ReLU6 as there, or SiLU as in EfficientNet;
- dense: Huang et al. (2016), arXiv:1608.06993, growth 32, blocks of 2, 4, 6 and 4 layers;
- encoder: rows through residual blocks of two products, as the encoders of tables, sets and speech.

Weights are drawn as He et al. propose, so that the nets without batch norm have activations of ordinary size too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def conv(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without a bias, which batch norm would remove."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class BasicBlock(nn.Module):
    """conv-bn-relu, conv-bn-add-relu; where the size changes, the shortcut is a convolution with batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += shortcut
        return self.relu(y)


class InvertedResidual(nn.Module):
    """1 x 1 expand, depthwise 3 x 3, 1 x 1 project, each with batch norm; added where the size stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int, activation: Callable[[], nn.Module]):
        super().__init__()
        hidden = inputs * expand
        first = [] if expand == 1 else [conv(inputs, hidden), nn.BatchNorm2d(hidden), activation()]
        self.body = nn.Sequential(
            *first,
            conv(hidden, hidden, 3, stride, groups=hidden), nn.BatchNorm2d(hidden), activation(),
            conv(hidden, outputs), nn.BatchNorm2d(outputs),
        )  # fmt: skip
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return what the body makes, and what came in where it fits."""
        return x + self.body(x) if self.adds else self.body(x)


class DenseLayer(nn.Module):
    """bn-relu-conv twice; what came in stays beside what is made of it."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), conv(inputs, 4 * growth),
            nn.BatchNorm2d(4 * growth), nn.ReLU(inplace=True), conv(4 * growth, growth, 3),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return both, side by side."""
        return torch.cat([x, self.body(x)], 1)


class EncoderBlock(nn.Module):
    """Linear-BatchNorm1d-ReLU, Linear-BatchNorm1d, add, ReLU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True),
            nn.Linear(hidden, width, bias=False), nn.BatchNorm1d(width),
        )  # fmt: skip
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum."""
        return self.relu(x + self.body(x))


def _images(layers: list[nn.Module], outputs: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 1000))


def residual(stages: tuple[int, ...] = (64, 128, 256, 512)) -> nn.Sequential:
    width = stages[0]
    stem = [conv(3, width, 7, 2), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    inputs = (width, *stages)
    blocks = [BasicBlock(inputs[i], outputs, 2 if i else 1) for i, outputs in enumerate(stages)]
    return _images([*stem, *blocks], stages[-1])


# outputs, stride, expansion: a block of each stage, two of some.
STAGES = (
    (16, 1, 1), (24, 2, 6), (24, 1, 6), (32, 2, 6), (32, 1, 6), (64, 2, 6), (64, 1, 6), (96, 1, 6), (160, 2, 6),
    (320, 1, 6),
)  # fmt: skip


def inverted_residual(activation: Callable[[], nn.Module], stages: Any = STAGES, last: int = 1280) -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, 32, 3, 2), nn.BatchNorm2d(32), activation()]
    inputs = 32
    for outputs, stride, expand in stages:
        layers.append(InvertedResidual(inputs, outputs, stride, expand, activation))
        inputs = outputs
    return _images([*layers, conv(inputs, last), nn.BatchNorm2d(last), activation()], last)


def dense(blocks: tuple[int, ...] = (2, 4, 6, 4), growth: int = 32) -> nn.Sequential:
    width = 2 * growth
    layers: list[nn.Module] = [
        conv(3, width, 7, 2),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    for i, count in enumerate(blocks):
        if i:
            halved = width // 2
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), conv(width, halved), nn.AvgPool2d(2)]
            width = halved
        for _ in range(count):
            layers.append(DenseLayer(width, growth))
            width += growth
    return _images([*layers, nn.BatchNorm2d(width), nn.ReLU(inplace=True)], width)


def encoder(width: int = 512, hidden: int = 2048, blocks: int = 3) -> nn.Sequential:
    return nn.Sequential(*(EncoderBlock(width, hidden) for _ in range(blocks)), nn.Linear(width, 1000))


def relu6() -> nn.Module:
    return nn.ReLU6(inplace=True)


def silu() -> nn.Module:
    return nn.SiLU(inplace=True)


# name: how it is made, the shape of a batch; then the same small, for a test of the harness.
NETS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "residual": (residual, (8, 3, 128, 128)),
    "inverted residual, ReLU6": (lambda: inverted_residual(relu6), (8, 3, 128, 128)),
    "inverted residual, SiLU": (lambda: inverted_residual(silu), (8, 3, 128, 128)),
    "dense": (dense, (8, 3, 128, 128)),
    "encoder": (encoder, (256, 512)),
}
SMALL: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "residual": (lambda: residual((8, 16)), (4, 3, 32, 32)),
    "inverted residual, ReLU6": (lambda: inverted_residual(relu6, STAGES[:3], 32), (4, 3, 32, 32)),
    "inverted residual, SiLU": (lambda: inverted_residual(silu, STAGES[:3], 32), (4, 3, 32, 32)),
    "dense": (lambda: dense((1, 1), 4), (4, 3, 32, 32)),
    "encoder": (lambda: encoder(16, 32, 1), (32, 16)),
}


def make(name: str, small: bool = False) -> tuple[nn.Sequential, tuple[int, ...]]:
    """Return a net with random weights and the shape of its batch."""
    build, shape = (SMALL if small else NETS)[name]
    net = build()
    for part in net.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    return net, shape


def without_batch_norm(net: nn.Module) -> nn.Module:
    """Put nothing in the place of every batch norm of a net, which is changed."""
    for part in list(net.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(part, name, nn.Identity())
        if isinstance(part, DenseLayer):  # its ReLU would change what the layers after it are given
            part.body[1].inplace = False
    return net
