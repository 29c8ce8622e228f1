"""Train a ResNet of bottlenecks with PyTorch's batch norm and with fastbn's, and compare losses and times.

    python examples/torch_resnet.py [steps]

A ResNet-50 of a quarter of the width, on random images of 96 x 96: all its 53 batch norms, with the shapes that the
stages of a ResNet have. The two nets start alike and take their steps in turn, each step on the same batch, so that
whatever else the machine does hits both; the figure is the median of the ratios of their times.
"""

import statistics
import sys
import time

import torch
from torch import nn

from fastbn.adapters.torch import convert

BATCH, SIZE, WIDTH, CLASSES = 16, 96, 16, 10
STAGES = 3, 4, 6, 3


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions around a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        nn.init.zeros_(self.body[-1].weight)  # as ResNets are trained: a block starts as its shortcut
        self.shortcut = nn.Sequential()
        if inputs != outputs or stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Add the shortcut."""
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet() -> nn.Sequential:
    """Return the net."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = WIDTH
    for stage, blocks in enumerate(STAGES):
        for block in range(blocks):
            layers.append(Bottleneck(inputs, WIDTH << stage, 2 if stage and not block else 1))
            inputs = 4 * (WIDTH << stage)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, target: torch.Tensor) -> float:
    """Take a step and return the loss."""
    loss = nn.functional.cross_entropy(model(x), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def compare(steps: int, memory_format: torch.memory_format) -> None:
    """Train both nets, print the losses, the times and the ratio."""
    torch.manual_seed(0)
    theirs = resnet().to(memory_format=memory_format)
    models = {"torch": theirs, "fastbn": convert(theirs)}
    optimizers = {name: torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9) for name, model in models.items()}
    losses: dict[str, list[float]] = {name: [] for name in models}
    times: dict[str, list[float]] = {name: [] for name in models}
    for i in range(steps + 1):  # the first step compiles and allocates
        x = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=memory_format)
        target = torch.randint(CLASSES, (BATCH,))
        for name in sorted(models, reverse=i % 2 == 0):
            started = time.perf_counter()
            losses[name].append(step(models[name], optimizers[name], x, target))
            times[name].append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(times["torch"][1:], times["fastbn"][1:], strict=True)]
    for name in models:
        shown = " ".join(f"{loss:.4f}" for loss in losses[name][:6])
        print(f"  {name:7} {statistics.median(times[name][1:]):.3f} s a step, losses {shown}")
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"  torch / fastbn: {statistics.median(ratios):.3f} (quartiles {low:.3f} to {high:.3f}, {steps} steps)")
    # The nets differ by rounding alone, which flips a ReLU here and there and grows from step to step.
    assert all(abs(a - b) < 1e-3 for a, b in zip(losses["torch"][:3], losses["fastbn"][:3], strict=True)), losses


if __name__ == "__main__":
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    for memory_format in (torch.contiguous_format, torch.channels_last):
        print(f"{memory_format}".removeprefix("torch."))
        compare(steps, memory_format)
