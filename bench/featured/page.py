"""What features cost, for a terminal, as the page beside the record, and as the figures of docs/features.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import report
from company.quiet import disturbed
from others import DISTURBED

from . import targets
from .targets import LOOP, faster, standing

Row = dict[str, Any]

PREAMBLE = """\
Written by `make bench-features`. Float32, training, everyone in turn in one process on as many threads.

- **Cost** is fastbn's time over that of its plain batch norm of the same shape; **beyond** the same over plain batch
  norm plus the time in which the fastest copy moves the bytes that the feature adds (a residual is read; back, it is
  read and its gradient written). Of several channel axes, plain is (N, C); of `recalibrate`, the forward passes.
- **Faster** is how many times fastbn's time the others take: what a PyTorch user writes today, eager, with autograd
  and in-place operators where there are some, and for ghost batches also fastbn's own calls in a loop. fastbn writes to
  arrays that it is given; autograd allocates what it returns, which counts.

All are medians of ratios of the same round. Each way was checked against the others before it was timed. A row that
misses what was asked for is **bold**.
"""

ASKED = {"tail": 1.05, "mask": 1.3, "ghosts": 1.1}
FASTER = 2.0
HEAD = ["feature", "shape", "operation", "plain, ms", "cost", "beyond", "faster than PyTorch", "than a loop"]


def _table(head: list[str], body: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(line)} |" for line in body)]


def _number(value: float | None, missed: bool = False) -> str:
    if value is None:
        return "-"
    text = f"{value:.2f}" if value < 10 else f"{value:.0f}"
    return f"**{text}**" if missed else text


def _cells(row: Row) -> list[str]:
    asked, other = ASKED.get(row["kind"]), faster(row)
    shape = f"{' x '.join(map(str, row['shape']))} {row['layout']}{' *' if disturbed(row) else ''}"
    return [
        row["feature"], shape, row["operation"], f"{row['seconds']['plain'] * 1e3:.3g}", _number(row["cost"]),
        _number(row["beyond"], asked is not None and row["beyond"] > asked),
        _number(other, other is not None and other < FASTER), _number(row["speedup"].get(LOOP)),
    ]  # fmt: skip


def line(row: Row) -> str:
    """Return a row for the terminal."""
    shape = "x".join(map(str, row["shape"]))
    ratios = "; ".join(f"{name} {ratio:.3g}" for name, ratio in row["speedup"].items())
    others = "" if row["others"] is None else f", others {row['others']:.0%}"
    return (
        f"{row['feature']:32} {shape:14} {row['layout']:4} {row['operation']:8} cost {row['cost']:.2f}, beyond "
        f"{row['beyond']:.2f}; {ratios} (plain {row['seconds']['plain'] * 1e3:.3g} ms{others})"
    )


def summary(record: dict[str, Any]) -> list[str]:
    """Return the table of the targets."""
    return _table(
        ["what", "operation", "rows", "mean", "worst row", "asked for", "rows that keep it", ""],
        (
            [
                each.target.what, each.operation, str(len(each.figures)),
                *([_number(each.mean), _number(each.worst)] if each.figures else ["-", "-"]),
                f"at {'most' if each.target.most else 'least'} {each.target.asked:.2f}", str(each.kept), each.verdict,
            ]
            for each in standing(record)
        ),
    )  # fmt: skip


def _mean(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _number(report.mean(known)) if known else "-"


def costs(record: dict[str, Any]) -> list[str]:
    """Return the table of docs/features.md: of every feature, the means over its shapes, forward and back."""
    rows = record["rows"]
    quiet = [row for row in rows if not disturbed(row)]
    body = []
    for feature in dict.fromkeys(row["feature"] for row in rows):
        cells = [feature]
        for figure in (targets.cost, targets.faster):
            for operation in ("forward", "backward"):
                chosen = [row for row in quiet if row["feature"] == feature and row["operation"] == operation]
                cells.append(_mean(map(figure, chosen)))
        body.append(cells)
    return _table(["feature", "cost, forward", "back", "times faster than PyTorch, forward", "back"], body)


def markdown(record: dict[str, Any]) -> str:
    """Return the page."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    rows = record["rows"]
    reasons = {(name, reason) for row in rows for name, reason in row["unavailable"].items()}
    return "\n".join(
        [
            "# What the features cost",
            "",
            f"{record['date']}; {record['processor']}, {record['threads']} threads; {versions}.",
            "",
            PREAMBLE,
            f"Other programs took more than {DISTURBED:.0%} of the processor during {sum(map(disturbed, rows))} of "
            f"{len(rows)} rows. Those are marked with * and count in no mean.",
            "",
            "## Asked for and measured",
            "",
            *summary(record),
            "",
            "## Rows",
            "",
            *_table(HEAD, map(_cells, rows)),
            *([""] if reasons else []),
            *(f"- {name}: {reason}" for name, reason in sorted(reasons)),
            "",
        ]
    )
