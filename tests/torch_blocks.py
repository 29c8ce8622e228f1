"""Blocks of nets as people write them, for the tests of what fuses, and how many calls of each become one."""

import operator

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from fastbn.adapters.torch import convert
from grid import draw


def conv(inputs, outputs, size=3, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class BasicBlock(nn.Module):
    """torchvision's: one ReLU for both, an addition in place, and a shortcut in a branch."""

    def __init__(self, inputs=4, outputs=6, stride=2):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        identity = x

        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)

        if self.downsample is not None:
            identity = self.downsample(x)

        out += identity
        out = self.relu(out)

        return out  # noqa: RET504


class Bottleneck(nn.Module):
    """The same with functions, and the shortcut called in the addition."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = conv(4, 3, 1), nn.BatchNorm2d(3)
        self.conv2, self.bn2 = conv(3, 3), nn.BatchNorm2d(3)
        self.conv3, self.bn3 = conv(3, 8, 1), nn.BatchNorm2d(8)
        self.shortcut = nn.Sequential(conv(4, 8, 1), nn.BatchNorm2d(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out + self.shortcut(x)
        return F.relu(out, inplace=True)


class InSequences(nn.Module):
    """A body that ends in a batch norm, whose activation is its parent's."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            conv(4, 4), nn.BatchNorm2d(4), nn.ReLU(), nn.Sequential(conv(4, 4), nn.BatchNorm2d(4))
        )
        self.shortcut = nn.Sequential()

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


class ConvNormActivation(nn.Sequential):
    def __init__(self, inputs, outputs, size, groups=1, act=nn.ReLU6):
        super().__init__(conv(inputs, outputs, size, groups=groups), nn.BatchNorm2d(outputs), act())


class InvertedResidual(nn.Module):
    """MobileNetV2's, whose last batch norm has no activation."""

    def __init__(self):
        super().__init__()
        self.use_res_connect = True
        layers = [ConvNormActivation(4, 8, 1), ConvNormActivation(8, 8, 3, 8), conv(8, 4, 1), nn.BatchNorm2d(4)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x):
        if self.use_res_connect:
            return x + self.conv(x)
        return self.conv(x)


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)
        self.act, self.gate = nn.SiLU(), nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))


class MBConv(nn.Module):
    """EfficientNet's, with modules of its own and its own method."""

    def __init__(self):
        super().__init__()
        self.expand, self.bn0 = conv(4, 8, 1), nn.BatchNorm2d(8)
        self.depthwise, self.bn1 = conv(8, 8, 3, groups=8), nn.BatchNorm2d(8)
        self.act = nn.SiLU(inplace=True)
        self.se = SqueezeExcite(8)
        self.project, self.bn2 = conv(8, 4, 1), nn.BatchNorm2d(4)

    def _expanded(self, x):
        return self.act(self.bn0(self.expand(x)))

    def forward(self, inputs):
        x = self._expanded(inputs)
        x = self.depthwise(x)
        x = self.bn1(x)
        x = F.silu(x)
        x = self.bn2(self.project(self.se(x)))
        return x + inputs


class DenseLayer(nn.Module):
    """torchvision's DenseNet: batch norms first, a list or a tensor, and a method for checkpoints."""

    def __init__(self):
        super().__init__()
        self.norm1, self.relu1, self.conv1 = nn.BatchNorm2d(4), nn.ReLU(inplace=True), conv(4, 8, 1)
        self.norm2, self.relu2, self.conv2 = nn.BatchNorm2d(8), nn.ReLU(inplace=True), conv(8, 2)

    def bn_function(self, inputs):
        concated_features = torch.cat(inputs, 1)
        return self.conv1(self.relu1(self.norm1(concated_features)))

    def forward(self, input):
        prev_features = [input] if isinstance(input, torch.Tensor) else input
        new_features = self.conv2(self.relu2(self.norm2(self.bn_function(prev_features))))
        return torch.cat([*prev_features, new_features], 1)


def vgg():
    return nn.Sequential(
        conv(4, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Sequential(conv(6, 6), nn.BatchNorm2d(6)), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class MLP(nn.Module):
    """Lists of layers in a loop, as graph nets have them too."""

    def __init__(self):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(3))

    def forward(self, x, skip=None, *others, scale: float = 1.0, **kwargs):
        with torch.set_grad_enabled(torch.is_grad_enabled()):
            for linear, norm in zip(self.linears[:-1], self.norms, strict=False):
                x = F.relu(norm(linear(x)))
        i = len(self.norms) - 1
        x = self.linears[-1](x)
        x = self.norms[i](x)
        x = F.hardtanh(x, 0.0, 6.0)
        return x * scale


class Spellings(nn.Module):
    """Other ways to write the same."""

    def __init__(self):
        super().__init__()
        self.__bn = nn.BatchNorm2d(4)
        self.a, self.b, self.c, self.d, self.e = (nn.BatchNorm2d(4) for _ in range(5))
        self.act = F.relu6

    def forward(self, x):
        x = self.__bn(x).relu()
        y: torch.Tensor = self.a(x)
        z = torch.add(x, y)
        x = torch.relu_(z)
        x = self.act(self.b(x).add_(x))
        x = operator.add(x, self.c(x)).relu_()
        x = F.relu6(operator.iadd(self.d(x), x))
        h = self.e(x)
        h = h.add(x)
        return F.relu(h)


class Smooth(nn.Module):
    """Every other activation, as a module, a function and a method."""

    def __init__(self):
        super().__init__()
        self.leaky, self.bound, self.gate = nn.LeakyReLU(0.2, inplace=True), nn.Tanh(), nn.Sigmoid()
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(7))
        self.last = nn.Sequential(nn.BatchNorm2d(4), nn.GELU(), nn.BatchNorm2d(4), nn.GELU("tanh"))

    def forward(self, x):
        x = self.leaky(self.norms[0](x) + x)
        x = F.leaky_relu(self.norms[1](x), negative_slope=0.1)
        x = self.bound(self.norms[2](x))
        x = torch.tanh(self.norms[3](x) + x)
        x = self.gate(self.norms[4](x)) + self.norms[5](x).sigmoid_()
        x = F.gelu(self.norms[6](x) + x)
        return self.last(x)


class Branches(nn.Module):
    """RegNet's: an addition in each branch, one activation after them."""

    def __init__(self, projects):
        super().__init__()
        self.proj = nn.Sequential(conv(4, 4, 1), nn.BatchNorm2d(4)) if projects else None
        self.f = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4))
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x):
        if self.proj is not None:
            x = self.proj(x) + self.f(x)
        elif self.training is None:
            x = x + 1
        else:
            x = x + self.f(x)
        return self.activation(x)


class Optional(nn.Module):
    """timm's BasicBlock: parts that may be there, as modules or in branches."""

    def __init__(self, gates=False):
        super().__init__()
        self.conv1, self.bn1, self.drop_block, self.act1 = conv(4, 4), nn.BatchNorm2d(4), nn.Identity(), nn.ReLU(True)
        self.conv2, self.bn2, self.act2 = conv(4, 4), nn.BatchNorm2d(4), nn.ReLU(True)
        self.se = nn.Hardswish() if gates else None

    def forward(self, x):
        shortcut = x
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.drop_block(x)
        x = self.act1(x)
        x = self.conv2(x)
        x = self.bn2(x)
        if self.se is not None:
            x = self.se(x)
        if self.training is None:
            x = x * 2
        x += shortcut
        return self.act2(x)


# What becomes one call, of a batch of 4 channels: activations, with + for an addition.
BLOCKS = {
    "basic": (BasicBlock, ["relu", "relu+"]),
    "basic, identity": (lambda: BasicBlock(4, 4, 1), ["relu", "relu+"]),
    "bottleneck": (Bottleneck, ["relu", "relu", "relu+"]),
    "sequences": (InSequences, ["relu", "relu+"]),
    "inverted residual": (InvertedResidual, ["relu6", "relu6"]),
    "mbconv": (MBConv, ["silu", "silu"]),
    "dense": (DenseLayer, ["relu", "relu"]),
    "vgg": (vgg, ["relu", "relu"]),
    "mlp": (MLP, ["relu", "relu", "relu6"]),
    "branch with": (lambda: Branches(True), ["relu+"]),
    "branch without": (lambda: Branches(False), ["relu+"]),
    "optional": (Optional, ["relu", "relu+"]),
    "optional with": (lambda: Optional(True), ["relu"]),
    "smooth": (
        Smooth,
        ["('leaky_relu', 0.2)+", "('leaky_relu', 0.1)", "tanh", "tanh+", "sigmoid", "sigmoid", "gelu+", "gelu"],
    ),
    "spellings": (Spellings, ["relu", "relu+", "relu6+", "relu+", "relu6+", "relu+"]),
}


def batch(rng, *shape):
    return torch.from_numpy(draw(rng, shape or (3, 4, 4, 4), np.float64))


def pair(make):
    """Return a net in float64 without and with fused calls."""
    net = make().double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return convert(net), convert(net, fuse=True)


def assert_same(plain, net, x, dy=None):
    """Compare outputs, gradients and running statistics: to rounding, in float64."""
    results = []
    for model in (plain, net):
        leaf = x.clone().requires_grad_()
        model.zero_grad()
        y = model(leaf)
        y.backward(torch.ones_like(y) if dy is None else dy)
        results.append([y, leaf.grad, *(p.grad for p in model.parameters()), *model.buffers()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
