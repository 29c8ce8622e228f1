"""What was asked for of each feature, and the rows that are held against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import report
from company.quiet import disturbed

Row = dict[str, Any]
Record = dict[str, Any]

LOOP = "fastbn, a loop"


def cost(row: Row) -> float:
    """Return the time beside plain batch norm and the bytes that there are besides."""
    return float(row["beyond"])


def faster(row: Row) -> float | None:
    """Return how many times faster than what a PyTorch user writes."""
    return next((ratio for name, ratio in row["speedup"].items() if name != LOOP), None)


@dataclass(frozen=True)
class Target:
    """A bound of a figure of rows of some kinds; `floor` is what no undisturbed row may fall behind, with margin."""

    what: str
    kinds: tuple[str, ...]
    figure: Callable[[Row], float | None]
    asked: float
    floor: float
    most: bool = False  # whether figures have to be at most that, not at least

    def within(self, figure: float, bound: float) -> bool:
        """Return whether a figure keeps a bound."""
        return figure <= bound if self.most else figure >= bound


@dataclass(frozen=True)
class Standing:
    """A line of the table: of one target and operation."""

    target: Target
    operation: str
    figures: list[float]

    @property
    def mean(self) -> float:
        """The geometric mean of the rows."""
        return report.mean(self.figures)

    @property
    def worst(self) -> float:
        """The row that is furthest behind."""
        return max(self.figures) if self.target.most else min(self.figures)

    @property
    def kept(self) -> int:
        """How many rows keep what was asked for."""
        return sum(self.target.within(figure, self.target.asked) for figure in self.figures)

    @property
    def verdict(self) -> str:
        """Whether it is met: by every row, or by their mean."""
        if not self.figures:
            return "not measured"
        if self.kept == len(self.figures):
            return "met"
        return "met by the mean" if self.target.within(self.mean, self.target.asked) else "not met"


TARGETS = (
    Target("fused tail beside plain batch norm plus the bytes it adds", ("tail",), cost, 1.05, 5.0, most=True),
    Target("mask beside plain batch norm of all positions", ("mask",), cost, 1.3, 3.0, most=True),
    Target("ghost batches beside plain batch norm", ("ghosts",), cost, 1.1, 8.0, most=True),
    Target("fused tail, times faster than PyTorch's operators", ("tail",), faster, 2.0, 0.4),
    Target("mask, times faster than PyTorch's x[mask]", ("mask",), faster, 2.0, 1.0),
    Target("ghost batches, times faster than a loop in PyTorch", ("ghosts",), faster, 2.0, 0.8),
    Target(
        "the others, times faster than what PyTorch's users write",
        ("statistics", "axes", "whitening", "recalibration"), faster, 2.0, 0.4,
    ),
)  # fmt: skip


def standing(record: Record) -> Iterator[Standing]:
    """Yield a line for every target and operation, of the rows that nobody disturbed."""
    rows = [row for row in record["rows"] if not disturbed(row)]
    for target in TARGETS:
        for operation in ("forward", "backward"):
            chosen = [row for row in rows if row["kind"] in target.kinds and row["operation"] == operation]
            figures = [figure for figure in map(target.figure, chosen) if figure is not None]
            yield Standing(target, operation, figures)


def broken(record: Record) -> list[str]:
    """Return what fell behind a floor: what a change made slow."""
    return [
        f"{line.target.what}, {line.operation}: {line.worst:.2f}, beyond the floor of {line.target.floor:.2f}"
        for line in standing(record)
        if line.figures and not line.target.within(line.worst, line.target.floor)
    ]
