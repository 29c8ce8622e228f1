"""What was asked for, and the figure that each is held against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import report

from .quiet import disturbed
from .turns import WITHOUT, share

Row = dict[str, Any]
Record = dict[str, Any]

FASTBN, OUT, JAX = "fastbn", "PyTorch, out=", "JAX jit"
ADAPTER, AUTOGRAD = "fastbn's adapter", "PyTorch, autograd"
CONVERT, FUSE, ENABLE = "convert", "convert, fuse=True", "enable()"

# name, the ratio of a row, target
CALLS = (
    ("functions after np.matmul, PyTorch's own after torch.matmul", f"{FASTBN}, {OUT}", 1.6),
    ("functions after np.matmul, JAX's formulas after jnp.matmul", f"{FASTBN}, {JAX}", None),
    ("adapter and PyTorch's own, both after torch.matmul", f"{ADAPTER}, {AUTOGRAD}", 1.6),
)
# variant, target of the step, target of the share
MODELS = ((CONVERT, 1.10, 0.5), (FUSE, 1.15, 0.5), (ENABLE, 1.10, 0.5))
TRAINERS = 0.8


@dataclass(frozen=True)
class Standing:
    """A line of the table; `figure` is None where nothing was measured."""

    what: str
    rows: int
    figure: float | None
    worst: float | None
    target: float | None

    @property
    def verdict(self) -> str:
        """Whether the target is met."""
        if self.target is None:
            return ""
        return "not measured" if self.figure is None else "met" if self.figure >= self.target else "not met"


def _line(what: str, ratios: Iterable[float | None], target: float | None) -> Standing:
    values = [ratio for ratio in ratios if ratio is not None]
    if not values:
        return Standing(what, 0, None, None, target)
    return Standing(what, len(values), report.mean(values), min(values), target)


def _shares(what: str, rows: list[Row], variant: str, target: float) -> Standing:
    """Return the share of batch norm's time of all rows together: of the geometric means of the ratios.

    A mean of the rows' own shares would be ruled by the nets in which batch norm takes next to nothing.
    """
    speedups = [row["speedup"] for row in rows if variant in row["speedup"]]
    if not speedups:
        return Standing(what, 0, None, None, target)
    whole = share(report.mean(s[variant] for s in speedups), report.mean(s[WITHOUT] for s in speedups))
    return Standing(what, len(speedups), whole, min(share(s[variant], s[WITHOUT]) for s in speedups), target)


def standing(record: Record) -> Iterator[Standing]:
    """Yield every line of the table, of the rows that nobody disturbed."""
    calls, models, trainers = (
        [row for row in record[section] if not disturbed(row)] for section in ("calls", "models", "trainers")
    )
    for what, name, target in CALLS:
        for operation in ("forward", "backward"):
            chosen = [row["ratios"].get(name) for row in calls if row["operation"] == operation]
            yield _line(f"call, {operation}: {what}", chosen, target)
    for variant, faster, back in MODELS:
        yield _line(f"PyTorch model, step: {variant}", (row["speedup"].get(variant) for row in models), faster)
        yield _shares(f"PyTorch model, share given back: {variant}", models, variant, back)
    yield _line(f"PyTorch model, step: {WITHOUT}", (row["speedup"].get(WITHOUT) for row in models), None)
    yield _line("NumPy trainer, step: fastbn", (row["speedup"].get(FASTBN) for row in trainers), None)
    yield _shares("NumPy trainer, share given back: fastbn", trainers, FASTBN, TRAINERS)
    yield _line(f"NumPy trainer, step: {WITHOUT}", (row["speedup"].get(WITHOUT) for row in trainers), None)
