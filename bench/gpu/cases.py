"""What is checked and timed: lists of plain values, which travel to the processes that run them as JSON."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

from .jobs import Job

FAMILIES = ("channels_first", "channels_last")
# "exact" is float32 that is computed in float64; float32 itself is computed in float32.
ITEMSIZE = {"float32": 4, "exact": 4, "float64": 8, "float16": 2, "bfloat16": 2}
# Of each family, so many checks of that: it is a choice of arithmetic alone.
EXACT_CHECKS = 8

# Of launch plans; `knobs.py` says what each is.
KNOBS = ("blocks", "per_sm", "threads", "smem_vectors", "row_threads")

# In order of importance; `check.py` says what each is.
ASPECTS = (
    "training", "backward", "frozen", "moments", "sums", "shared", "in place", "nan", "allocated",
    "tail", "mask", "ghosts", "renorm", "from y",
)  # fmt: skip
# What is worth its time on a tensor of millions, whose oracle takes seconds.
LARGE_ASPECTS = ("training", "backward", "frozen", "moments", "sums")
LARGE = 400_000


@dataclass(frozen=True)
class Check:
    """One input in one dtype, and what is done with it; `knobs` force another launch plan than the shape's own."""

    shape: tuple[int, ...]
    axis: int
    dtype: str
    stored: str = "contiguous"
    mean: float = 0.0
    params: str = "device"
    owner: str = ""
    knobs: tuple[tuple[str, int], ...] = ()
    aspects: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The name of the case."""
        parts = ["x".join(map(str, self.shape)), f"axis {self.axis}", self.dtype]
        parts += [self.stored] * (self.stored != "contiguous") + [f"mean {self.mean:g}"] * bool(self.mean)
        parts += [f"parameters: {self.params}"] * (self.params != "device") + [self.owner] * bool(self.owner)
        return ", ".join([*parts, *(f"{name}={value}" for name, value in self.knobs)])

    def job(self, section: str = "checks") -> Job:
        """Return the case as a job."""
        default = LARGE_ASPECTS if math.prod(self.shape) > LARGE else ASPECTS
        return Job(section, self.id, asdict(self) | {"aspects": self.aspects or default})


def _channels_first(dtype: str) -> list[Check]:
    return [
        Check((8, 17, 7, 7), 1, dtype),
        Check((32, 64, 28, 28), 1, dtype),
        Check((8, 17, 7, 7), 1, dtype, "misaligned"),
        Check((4, 17, 28, 28), 1, dtype, mean=1e4),
        Check((2, 1000, 7, 7), 1, dtype),
        Check((6, 3, 150, 150), 1, dtype),  # channels larger than a block keeps
        Check((4, 17, 8, 9), 1, dtype, "strided"),
        Check((4, 17, 28, 28), 1, dtype, knobs=(("smem_vectors", 0),)),
        Check((4, 17, 28, 28), 1, dtype, knobs=(("smem_vectors", 1), ("blocks", 2))),
        Check((2, 3, 64, 64), 1, dtype, knobs=(("blocks", 264),)),
        Check((4, 3, 7, 7), 1, dtype, params="host"),
        Check((4, 3, 7, 7), 1, dtype, params="float64"),
        Check((4, 3, 7, 7), 1, dtype, params="mixed"),
        Check((4, 3, 7, 7), 1, dtype, params="none"),
        Check((2, 3, 4, 5, 6), 2, dtype),
        Check((3, 4, 5), 0, dtype),
        Check((1, 2, 1, 3), 1, dtype),
        Check((64, 512, 7, 7), 1, dtype),
        Check((32, 64, 14, 14), 1, dtype, "misaligned"),
        Check((4, 17, 28, 28), 1, dtype, "reversed axes"),
        Check((700, 5, 7, 7), 1, dtype),
        Check((3, 1, 40000), 1, dtype),
        Check((2, 4096, 3, 3), 1, dtype),
        Check((8, 3, 224, 224), 1, dtype),
        Check((1, 1, 3_000_001), 1, dtype),  # more than all blocks keep of float64, backwards
        Check((8, 17, 7, 7), 1, dtype, owner="numba"),
        Check((8, 17, 7, 7), 1, dtype, owner="cupy"),
    ]


def _channels_last(dtype: str) -> list[Check]:
    return [
        Check((8, 7, 7, 17), -1, dtype),
        Check((3000, 40), 1, dtype),
        Check((32, 28, 28, 64), -1, dtype),
        Check((8, 17, 7, 7), 1, dtype, "channels_last"),
        Check((100, 40), 1, dtype, "misaligned"),
        Check((400, 24), 1, dtype, mean=1e4),
        Check((2, 7, 7, 1000), -1, dtype),
        Check((16, 112, 112, 3), -1, dtype),  # few channels, rows joined to wide ones
        Check((50, 36), 1, dtype, "strided"),
        Check((700, 40), 1, dtype, knobs=(("smem_vectors", 0),)),
        Check((700, 40), 1, dtype, knobs=(("smem_vectors", 1), ("blocks", 2))),
        Check((20000, 8), 1, dtype, knobs=(("blocks", 264),)),  # columns merged in two steps
        Check((64, 3), 1, dtype, params="host"),
        Check((64, 3), 1, dtype, params="float64"),
        Check((64, 3), 1, dtype, params="mixed"),
        Check((64, 3), 1, dtype, params="none"),
        Check((7, 5), -1, dtype),
        Check((50, 1), 1, dtype),
        Check((1, 3), 1, dtype),
        Check((4096, 1000), 1, dtype, aspects=("training", "backward", "frozen")),
        Check((200, 700), 1, dtype),
        Check((65536, 8), 1, dtype),
        Check((300_001, 6), 1, dtype),
        Check((100, 40), 1, dtype, "reversed axes"),
        Check((32, 14, 14, 64), -1, dtype, "misaligned"),
        Check((4, 64, 14, 14), 1, dtype, "channels_last", mean=1e4),
        Check((8, 7, 7, 17), -1, dtype, owner="numba"),
        Check((8, 7, 7, 17), -1, dtype, owner="cupy"),
        Check((3_000_000, 1), 1, dtype),
    ]


def _tiny(dtype: str) -> dict[str, list[Check]]:
    few = ("training", "backward")
    first = Check((4, 3, 3, 5), 1, dtype), Check((20, 6), 1, dtype)
    if dtype != "float32":
        return {"channels_first": [first[0]], "channels_last": [first[1]]}
    return {
        "channels_first": [
            first[0],
            Check((4, 3, 3, 5), 1, dtype, "misaligned", aspects=few),
            Check((2, 2, 40, 16), 1, dtype, knobs=(("smem_vectors", 1),), aspects=few),
            Check((2, 3, 3, 4), 1, dtype, "channels_last", aspects=few),
            Check((3, 2, 4), 1, dtype, params="host", aspects=few),
            Check((3, 2, 4), 1, dtype, params="mixed", aspects=few),
            Check((3, 2, 4), 1, dtype, owner="cupy", aspects=few),
        ],
        "channels_last": [
            first[1],
            Check((6, 5), 1, dtype, "strided", aspects=few),
            Check((40, 6), 1, dtype, mean=1e4, aspects=few),
            Check((40, 6), 1, dtype, knobs=(("smem_vectors", 0), ("blocks", 2)), aspects=few),
        ],
    }


def checks(tiny: bool, dtypes: tuple[str, ...]) -> dict[str, list[Job]]:
    """Return the checks of every dtype and family, most important first."""
    made = {}
    for dtype, family in itertools.product(dtypes, FAMILIES):
        own = (
            _tiny(dtype)[family]
            if tiny
            else {"channels_first": _channels_first, "channels_last": _channels_last}[family](dtype)
        )
        own = own[:EXACT_CHECKS] if dtype == "exact" else own
        made[f"{dtype} {family}"] = [case.job() for case in own]
    return made


# (C, H) of ResNet-50's batch norm layers: He et al. (2015), arXiv:1512.03385, on images of 224 x 224.
RESNET50 = (
    (64, 112), (64, 56), (256, 56), (128, 28), (512, 28), (256, 14), (1024, 14), (512, 7), (2048, 7),
)  # fmt: skip
LARGER = ((64, 64, 224, 224), (8, 32, 1024, 1024), (32, 1024, 56, 56))
ROWS = ((4096, 1024), (65536, 128))


# More than 2^31 values: of both families, and of a single channel.
HUGE = (
    {"shape": (70_000, 8, 4096), "dtype": "float16"},
    {"shape": (34_000_000, 64), "dtype": "bfloat16"},
    {"shape": (9, 1, 250_000_000), "dtype": "float16"},
)


def nbytes(row: dict[str, Any]) -> int:
    """Return the bytes of x in a row of `timings`."""
    return math.prod(row["shape"]) * ITEMSIZE[row["dtype"]]


def timings(tiny: bool) -> list[dict[str, Any]]:
    """Return shape, layout and dtype of what is timed, most important first."""
    if tiny:
        return [
            {"shape": (4, 3, 4, 4), "layout": "NCHW", "dtype": "float32"},
            {"shape": (4, 4, 4, 3), "layout": "channels_last", "dtype": "bfloat16"},
            {"shape": (32, 8), "layout": "NC", "dtype": "exact"},
        ]
    batches = {batch: [(batch, C, H, H) for C, H in RESNET50] for batch in (32, 256)}
    made = []
    for dtype in ("float32", "bfloat16"):
        for layout in ("NCHW", "channels_last"):
            made += [(shape, layout, dtype) for batch in batches.values() for shape in batch]
            made += [(shape, "NC", dtype) for shape in ROWS] if layout == "NCHW" else []
        if dtype == "float32":
            made += [(shape, layout, "exact") for layout in ("NCHW", "channels_last") for shape in batches[256][1:3]]
            made += [(ROWS[0], "NC", "exact")]
    made += [(s, layout, d) for d in ("float32", "bfloat16") for layout in ("NCHW", "channels_last") for s in LARGER]
    return [dict(zip(("shape", "layout", "dtype"), row, strict=True)) for row in made]


def selected(tiny: bool) -> list[dict[str, Any]]:
    """Return the few inputs on which plans are turned, and on which slow contenders take part."""
    if tiny:
        return timings(tiny)[:1]
    rows = [((32, 64, 56, 56), "NCHW"), ((32, 256, 56, 56), "NCHW"), ((256, 1024, 14, 14), "NCHW"),
            ((256, 1024, 14, 14), "channels_last")]  # fmt: skip
    return [{"shape": shape, "layout": layout, "dtype": "float32"} for shape, layout in rows]
