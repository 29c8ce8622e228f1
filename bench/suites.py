"""The cases of the benchmarks, in named suites: shapes that batch norm really meets.

The shapes are the distinct inputs of the batch-norm layers of the architectures, at the resolution that each was
published with:

- ResNet-50: He et al. (2015), arXiv:1512.03385, in torchvision's form (the stride is in the 3 x 3 convolution);
- MobileNetV2: Sandler et al. (2018), arXiv:1801.04381, width 1;
- DenseNet-121: Huang et al. (2016), arXiv:1608.06993; 120 layers have 60 shapes, of which some of every block stay;
- Inception-v3: Szegedy et al. (2015), arXiv:1512.00567, images of 299 x 299; neighbours left out;
- point clouds: PointNet (Qi et al. 2016, arXiv:1612.00593) and DGCNN (Wang et al. 2018, arXiv:1801.07829);
- audio: M5 on 32000 samples (Dai et al. 2016, arXiv:1610.00087), and x-vectors on 300 frames (Snyder et al. 2018);
- 3-D U-Net: Çiçek et al. (2016), arXiv:1606.06650, tile of 132 x 132 x 116, and small tiles.

The batch, 8 to 64, is chosen so that every suite has tensors that fit a cache and tensors that do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LAYOUTS = {(2, 1): "NC", (3, 1): "NCL", (3, 2): "NLC", (4, 1): "NCHW", (5, 1): "NCDHW", (4, 3): "NHWC"}


@dataclass(frozen=True)
class Case:
    """One input of batch norm: its shape as stored, and which axis is the channels."""

    suite: str
    shape: tuple[int, ...]
    axis: int

    @property
    def layout(self) -> str:
        """The order of the axes."""
        return LAYOUTS[len(self.shape), self.axis]

    @property
    def channels(self) -> int:
        """How many channels there are."""
        return self.shape[self.axis]

    @property
    def size(self) -> int:
        """How many values there are."""
        return math.prod(self.shape)

    @property
    def apart(self) -> bool:
        """Whether the values of a channel lie next to each other, as in NCHW, and not those of a position."""
        return self.axis == 1 and len(self.shape) > 2

    @property
    def id(self) -> str:
        """The name to select the case by."""
        return f"{self.suite}-{'x'.join(map(str, self.shape))}-{self.layout}"

    def channel_bytes(self, itemsize: int) -> int:
        """Return what must stay in a cache for the second look at a channel: it, or a cache line of adjacent ones."""
        values = self.size // self.channels
        return values * (itemsize if self.apart or self.channels == 1 else min(64, self.channels * itemsize))

    def shrunk(self) -> Case:
        """Return a case of the same layout that takes no time, for tests of the harness; it has odd edges."""
        limits = {"NC": (33, 70), "NCL": (4, 7, 50), "NCHW": (3, 7, 9, 11), "NCDHW": (2, 5, 4, 5, 6)}
        limit = limits.get(self.layout, (3, 9, 11, 7))
        return Case(self.suite, tuple(map(min, self.shape, limit)), self.axis)


Shapes = list[tuple[int, int, int]]


def _images(suite: str, shapes: Shapes, last: Shapes | None = None) -> list[Case]:
    """Return cases from (N, C, H): all channels first, and `last` (or all) channels last as well."""
    first = [Case(suite, (n, c, h, h), 1) for n, c, h in shapes]
    return first + [Case(suite, (n, h, h, c), 3) for n, c, h in (shapes if last is None else last)]


RESNET50 = _images(
    "resnet50",
    [
        (32, 64, 112), (32, 64, 56), (32, 256, 56), (8, 128, 56), (32, 128, 28), (32, 512, 28), (16, 256, 28),
        (32, 256, 14), (32, 1024, 14), (16, 512, 14), (64, 512, 7), (32, 2048, 7),
    ],
)  # fmt: skip
MOBILENETV2 = _images(
    "mobilenetv2",
    [
        (32, 32, 112), (16, 16, 112), (8, 96, 112), (32, 24, 56), (16, 144, 56), (64, 32, 28), (32, 192, 28),
        (32, 384, 14), (64, 96, 14), (32, 576, 7), (64, 160, 7), (32, 960, 7), (64, 1280, 7),
    ],
    last=[(32, 32, 112), (32, 24, 56), (32, 192, 28), (64, 96, 14), (64, 160, 7), (64, 1280, 7)],
)  # fmt: skip
DENSENET121 = _images(
    "densenet121",
    [
        (16, 96, 56), (16, 192, 56), (32, 128, 56), (16, 288, 28), (32, 128, 14), (16, 640, 14), (32, 128, 7),
        (32, 736, 7),
    ],
    last=[(16, 96, 56), (16, 288, 28), (16, 640, 14), (32, 736, 7)],
)  # fmt: skip
INCEPTIONV3 = _images(
    "inceptionv3",
    [(16, 32, 149), (16, 64, 147), (8, 80, 73), (16, 192, 71), (32, 48, 35), (32, 96, 35), (16, 160, 17), (64, 320, 8)],
    last=[(16, 32, 149), (8, 80, 73), (32, 48, 35), (16, 160, 17), (64, 320, 8)],
)  # fmt: skip
POINTS = [
    Case("points", (32, 64, 1024), 1),
    Case("points", (32, 128, 1024), 1),
    Case("points", (32, 1024, 1024), 1),
    Case("points", (8, 64, 1024, 20), 1),
]
AUDIO = [Case("audio", shape, 1) for shape in [(16, 128, 8000), (16, 128, 2000), (64, 256, 500), (64, 512, 300)]]
UNET3D = [
    Case("unet3d", shape, 1)
    for shape in [(1, 32, 130, 130, 114), (1, 128, 28, 28, 24), (1, 512, 9, 9, 7), (4, 16, 24, 24, 24)]
]
MLP = [Case("mlp", shape, 1) for shape in [(64, 256), (256, 1024), (4096, 1024), (65536, 128), (262144, 128)]]
IMAGES = [
    Case("images", (64, 3, 32, 32), 1),
    Case("images", (16, 3, 224, 224), 1),
    Case("images", (16, 224, 224, 3), 3),
]
ONE_CHANNEL = [Case("one-channel", shape, 1) for shape in [(64, 1, 28, 28), (16, 1, 224, 224), (65536, 1)]]
BATCH1 = _images("batch1", [(1, 64, 112), (1, 256, 56), (1, 512, 7)], last=[(1, 64, 112), (1, 256, 56)])
TINY = [Case("tiny", (32, 64), 1)]
LARGE = _images("large", [(128, 64, 112), (64, 64, 112)], last=[(64, 64, 112)])

SUITES = {
    suite[0].suite: suite
    for suite in (
        RESNET50, MOBILENETV2, DENSENET121, INCEPTIONV3, POINTS, AUDIO, UNET3D, MLP, IMAGES, ONE_CHANNEL, BATCH1, TINY,
        LARGE,
    )
}  # fmt: skip
CASES = [case for suite in SUITES.values() for case in suite]
BY_ID = {case.id: case for case in CASES}


def _pick(*ids: str) -> list[Case]:
    return [BY_ID[i] for i in ids]  # a name that is no longer there fails at import


# Every operation in every dtype.
CORE = _pick("resnet50-32x64x56x56-NCHW", "resnet50-32x56x56x64-NHWC", "mlp-65536x128-NC")

# Inference, and forward and backward together, besides.
SUBSET = _pick(
    "resnet50-64x512x7x7-NCHW", "resnet50-64x7x7x512-NHWC", "mobilenetv2-16x144x56x56-NCHW",
    "densenet121-16x640x14x14-NCHW", "inceptionv3-16x192x71x71-NCHW", "points-32x128x1024-NCL", "audio-64x512x300-NCL",
    "unet3d-4x16x24x24x24-NCDHW", "mlp-4096x1024-NC", "images-16x3x224x224-NCHW", "one-channel-64x1x28x28-NCHW",
    "batch1-1x256x56x56-NCHW", "tiny-32x64-NC", "large-64x64x112x112-NCHW", "large-64x112x112x64-NHWC",
)  # fmt: skip

# 16 bits, and float64: some in the cache, most from memory, where half the bytes should take half the time.
SIXTEEN_BITS = _pick(
    "resnet50-64x512x7x7-NCHW", "resnet50-32x1024x14x14-NCHW", "resnet50-32x256x56x56-NCHW", "points-32x1024x1024-NCL",
    "mlp-262144x128-NC", "tiny-32x64-NC", "large-128x64x112x112-NCHW", "large-64x64x112x112-NCHW",
    "large-64x112x112x64-NHWC",
)  # fmt: skip
FLOAT64 = _pick(
    "resnet50-64x512x7x7-NCHW", "resnet50-32x256x56x56-NCHW", "points-32x128x1024-NCL", "mlp-4096x1024-NC",
    "tiny-32x64-NC",
)  # fmt: skip

# torch.compile takes seconds a shape.
COMPILED = CORE + _pick(
    "resnet50-64x512x7x7-NCHW", "resnet50-64x7x7x512-NHWC", "mobilenetv2-32x384x14x14-NCHW",
    "densenet121-16x288x28x28-NCHW", "inceptionv3-16x160x17x17-NCHW", "points-32x128x1024-NCL", "audio-16x128x2000-NCL",
    "unet3d-4x16x24x24x24-NCDHW", "mlp-4096x1024-NC", "images-16x3x224x224-NCHW", "batch1-1x64x112x112-NCHW",
    "tiny-32x64-NC", "large-64x64x112x112-NCHW",
)  # fmt: skip

QUICK = _pick(
    "resnet50-32x64x112x112-NCHW", "resnet50-32x64x56x56-NCHW", "resnet50-32x256x14x14-NCHW",
    "resnet50-64x512x7x7-NCHW", "resnet50-32x56x56x64-NHWC", "resnet50-64x7x7x512-NHWC", "mobilenetv2-32x576x7x7-NCHW",
    "densenet121-16x28x28x288-NHWC", "inceptionv3-16x160x17x17-NCHW", "points-32x64x1024-NCL", "audio-16x128x2000-NCL",
    "unet3d-4x16x24x24x24-NCDHW", "mlp-65536x128-NC", "mlp-4096x1024-NC", "images-16x3x224x224-NCHW",
    "images-16x224x224x3-NHWC", "one-channel-64x1x28x28-NCHW", "batch1-1x64x112x112-NCHW", "tiny-32x64-NC",
)  # fmt: skip

# For the curves of time against size: both layouts, from a few KB to beyond every cache.
SIZES = [case for h in (1, 2, 4, 7, 14, 28, 56, 112) for case in _images("sizes", [(32, 64, h)])]
# For those of time against threads.
THREADS = _pick("resnet50-32x64x56x56-NCHW", "resnet50-32x56x56x64-NHWC", "large-64x64x112x112-NCHW")
