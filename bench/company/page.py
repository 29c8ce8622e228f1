"""What was measured in company, for a terminal, as the page beside the record, and as the table of README.md."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from others import DISTURBED

from .quiet import disturbed
from .targets import CALLS, Standing, standing
from .turns import PLAIN

Row = dict[str, Any]

TABLE = ["in a training step", "rows", "geometric mean", "worst row", "asked for", ""]
PREAMBLE = """\
Written by `make bench-company`. Float32, training, every host in a process of its own, nothing set in the environment.

- **A call** is timed right after a product of the host of {product} x {product} matrices, whose threads are then still
  waiting for more. Medians of {calls} calls, processes in turn; how many times fastbn's time the other takes.
- **A step** is zero_grad, forward, loss, backward and SGD, all variants in turn in one process; plain time / variant.
- **The share** of batch norm's time given back is (plain - variant) / (plain - without batch norm), of all rows
  together by the geometric means; plain is PyTorch's batch norm, or NumPy's formulas.

Where fastbn is slower, the number is **bold**.
"""


def _number(value: float | None, losing: float = 1.0) -> str:
    if value is None:
        return "-"
    return f"**{value:.2f}**" if value < losing else f"{value:.2f}"


def _table(head: list[str], body: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(line)} |" for line in body)]


def _losing(line: Standing) -> float:
    return 0.0 if "share" in line.what else 1.0


def table(record: dict[str, Any]) -> list[str]:
    """Return the table of README.md: each figure beside what was asked for."""
    return _table(
        TABLE,
        (
            [
                line.what, str(line.rows), _number(line.figure, _losing(line)), _number(line.worst, _losing(line)),
                "" if line.target is None else f"{line.target:.2f}", line.verdict,
            ]
            for line in standing(record)
        ),
    )  # fmt: skip


def _shape(row: Row) -> str:
    layout = f" {row['layout']}" if "layout" in row else ""
    return f"{' x '.join(map(str, row['shape']))}{layout}{' *' if disturbed(row) else ''}"


def _disturbed(record: dict[str, Any]) -> str:
    rows = [row for section in ("calls", "models", "trainers") for row in record[section]]
    found = sum(map(disturbed, rows))
    return (
        f"Other programs took more than {DISTURBED:.0%} of the processor during {found} of {len(rows)} rows. Those are "
        "marked with * and not counted."
    )


def line(section: str, row: Row) -> str:
    """Return a row for the terminal."""
    what = row.get("net") or row.get("trainer") or row["operation"]
    ratios = row["ratios"] if section == "calls" else row["speedup"]
    shown = "; ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    others = "" if row["others"] is None else f", others {row['others']:.0%}"
    return f"{section:8} {what}, {_shape(row)}: {shown} ({max(row['seconds'].values()) * 1e3:.3g} ms{others})"


def summary(record: dict[str, Any]) -> list[str]:
    """Return lines for a terminal: the targets."""
    lines = [
        f"{item.what:78} {item.rows:3} rows {item.figure or 0:6.2f}  worst {item.worst or 0:6.2f}"
        + ("" if item.target is None else f"  target {item.target:.2f}  {item.verdict}")
        for item in standing(record)
        if item.rows
    ]
    return [*lines, "", _disturbed(record)]


def _call_rows(rows: list[Row]) -> Iterable[list[str]]:
    for row in rows:
        times = (f"{seconds * 1e3:.3g}" for seconds in row["seconds"].values())
        ratios = (_number(row["ratios"].get(name)) for _, name, _ in CALLS)
        yield [_shape(row), row["operation"], *times, *ratios]


def _calls(rows: list[Row]) -> list[str]:
    if not rows:
        return ["Not measured."]
    times = [f"{name}, ms" for name in rows[0]["seconds"]]
    ratios = [name.replace(", ", " / ", 1) for _, name, _ in CALLS]
    return _table(["shape", "operation", *times, *ratios], _call_rows(rows))


def _steps(rows: list[Row], name: str) -> list[str]:
    if not rows:
        return ["Not measured."]
    variants = [variant for variant in rows[0]["seconds"] if variant != PLAIN]
    shared = list(rows[0]["share"])
    head = [name, "batch", "plain, ms", *variants, *(f"share, {variant}" for variant in shared)]
    body = (
        [
            row[name], _shape(row), f"{row['seconds'][PLAIN] * 1e3:.3g}",
            *(_number(row["speedup"][variant]) for variant in variants),
            *(_number(row["share"].get(variant), 0.0) for variant in shared),
        ]
        for row in rows
    )  # fmt: skip
    return _table(head, body)


def markdown(record: dict[str, Any]) -> str:
    """Return the page: targets, then every row."""
    from .calls import PRODUCT

    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    calls = max((row["calls"] for row in record["calls"]), default=0)
    return "\n".join(
        [
            "# In company: what a training step gains",
            "",
            f"{record['date']}; {record['processor']}, {record['threads']} threads; {versions}.",
            "",
            PREAMBLE.format(product=PRODUCT, calls=calls),
            _disturbed(record),
            "",
            "## Asked for and measured",
            "",
            *table(record),
            "",
            "## Calls right after a product",
            "",
            *_calls(record["calls"]),
            "",
            "## Steps of PyTorch models",
            "",
            *_steps(record["models"], "net"),
            "",
            "## Steps of NumPy trainers",
            "",
            *_steps(record["trainers"], "trainer"),
            "",
        ]
    )
