"""Results as JSON and Markdown, and where they stand against the targets.

    python bench/report.py bench/results/cpu.json    # writes the Markdown table beside it again

Every figure is a median of paired ratios, every summary a geometric mean of those. Rows that lose are in bold.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import math
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from others import DISTURBED

from fastbn.backends.cpu.plan import LAST_LEVEL_CACHE

Row = dict[str, Any]

EAGER = "PyTorch eager"
PEERS = (EAGER, "torch.compile", "oneDNN", "JAX jit", "NumPy")
DISTRIBUTIONS = ("fastbn", "numpy", "numba", "llvmlite", "torch", "jax", "ml_dtypes")
APART = ("NCHW", "NCL", "NCDHW")
LARGE = 100_000_000
UNSTEADY = 1.5


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def header() -> dict[str, Any]:
    """Return what the figures depend on: versions and the processor."""
    import limit
    import numba

    limit.threads.make_tbb_loadable()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": f"{_processor()}, {platform.machine()}",
        "threads": numba.get_num_threads(),
        "last_level_cache": LAST_LEVEL_CACHE,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in DISTRIBUTIONS if importlib.util.find_spec(name)},
    }


def mean(ratios: Iterable[float]) -> float:
    """Return the geometric mean."""
    return math.exp(math.fsum(map(math.log, ratios)) / len(ratios)) if (ratios := list(ratios)) else math.nan


def against_eager(row: Row) -> float | None:
    return row["speedup"].get(EAGER)


def against_best(row: Row) -> float | None:
    return min(row["speedup"].values(), default=None)


def share(row: Row) -> float | None:
    return row["share_of_copy"]


def over_float32(row: Row) -> float | None:
    return row.get("speedup_over_float32")


def _of_dtype(dtype: str, *layouts: str) -> Callable[[Row], bool]:
    return lambda row: row["dtype"] == dtype and row["layout"] in layouts


# name, rows that count, figure, summary, target forward, target backward
ALL = (*APART, "NHWC", "NC")
TARGETS: list[tuple[str, Callable[[Row], bool], Callable, Callable, float, float]] = [
    ("NCHW, NCDHW and (N, C, L) against eager", _of_dtype("float32", *APART), against_eager, mean, 5.0, 3.0),
    ("NHWC and (N, C) against eager", _of_dtype("float32", "NHWC", "NC"), against_eager, mean, 1.5, 2.0),
    ("best peer of each row", _of_dtype("float32", *ALL), against_best, mean, 1.8, 1.8),
    ("worst row against eager, any dtype", lambda row: True, against_eager, min, 1.0, 1.0),
    ("worst row against its best peer, any dtype", lambda row: True, against_best, min, 1.0, 1.0),
    ("share of the copy, 100 MB and more, float32",
     lambda row: row["bytes"] >= LARGE and row["dtype"] == "float32", share, mean, 0.80, 0.75),
    ("the same, worst row",
     lambda row: row["bytes"] >= LARGE and row["dtype"] == "float32", share, min, 0.80, 0.75),
    ("float16 over float32, from memory",
     lambda row: row["dtype"] == "float16" and row["from_memory"], over_float32, mean, 1.7, 1.7),
    ("bfloat16 over float32, from memory",
     lambda row: row["dtype"] == "bfloat16" and row["from_memory"], over_float32, mean, 1.7, 1.7),
]  # fmt: skip


def standing(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each target with its figure; `met` is None where nothing was measured."""
    rows = [row | {"from_memory": row["bytes"] > record["last_level_cache"]} for row in record["rows"]]
    found = []
    for name, counts, figure, summary, *targets in TARGETS:
        for operation, target in zip(("forward", "backward"), targets, strict=True):
            chosen = [figure(row) for row in rows if row["operation"] == operation and counts(row)]
            values = [value for value in chosen if value is not None]
            value = summary(values) if values else None
            found.append(
                {"name": name, "operation": operation, "rows": len(values), "target": target, "figure": value}
                | {"met": None if value is None else value >= target}
            )
    return found


def _spread(row: Row) -> float:
    """Return how far apart the quartiles of the ratio to eager are."""
    first, third = row["quartiles"].get(EAGER, (1, 1))
    return third / first


def disturbed(record: dict[str, Any]) -> str:
    """Return a sentence about the rows during which other programs ran."""
    rows = [row for row in record["rows"] if (row["others"] or 0) > DISTURBED]
    return (
        f"Other programs took more than {DISTURBED:.0%} of the processor in {len(rows)} of {len(record['rows'])} rows."
    )


def _verdict(met: bool | None) -> str:
    return {True: "met", False: "not met", None: "not measured"}[met]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _name(row: Row) -> str:
    return f"{' x '.join(map(str, row['shape']))} {row['layout']}"


def summary(record: dict[str, Any]) -> list[str]:
    """Return lines for a terminal: the targets, and the rows that lose."""
    lines = [
        f"{item['name']:46} {item['operation']:9} {item['rows']:4} rows {_number(item['figure']):>6}"
        f"  target {item['target']:.2f}  {_verdict(item['met'])}"
        for item in standing(record)
    ]
    unsteady = [row for row in record["rows"] if _spread(row) > UNSTEADY]
    losing = [row for row in record["rows"] if (against_eager(row) or 1) < 1]
    lines += ["", disturbed(record)]
    lines += [f"unsteady (quartiles of the ratio to eager more than {UNSTEADY} times apart): {len(unsteady)} rows"]
    lines += [f"slower than PyTorch eager: {len(losing)} of {len(record['rows'])} rows"]
    return lines + [
        f"{_number(against_eager(row)):>6}  {row['suite']:12} {_name(row)} {row['operation']} {row['dtype']}"
        for row in sorted(losing, key=against_eager)
    ]


def _table(head: list[str], body: Iterable[Iterable[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body]]


def _ratio(row: Row, peer: str) -> str:
    value = row["speedup"].get(peer)
    text = _number(value)
    return f"**{text}**" if value is not None and value < 1 else text


def _cells(row: Row) -> list[str]:
    return [
        row["suite"], _name(row), row["operation"], row["dtype"], f"{row['seconds']['fastbn'] * 1e3:.3g}",
        *(_ratio(row, peer) for peer in PEERS), _number(row["share_of_copy"]), _number(row.get("speedup_over_float32")),
    ]  # fmt: skip


def _by_suite(rows: list[Row]) -> Iterable[list[str]]:
    for suite in dict.fromkeys(row["suite"] for row in rows):
        for layout in dict.fromkeys(row["layout"] for row in rows if row["suite"] == suite):
            cells = []
            for figure in (against_eager, against_best, share):
                for operation in ("forward", "backward"):
                    values = [
                        figure(row)
                        for row in rows
                        if (row["suite"], row["layout"], row["operation"], row["dtype"])
                        == (suite, layout, operation, "float32")
                    ]
                    values = [value for value in values if value is not None]
                    cells.append(_number(mean(values) if values else None))
            yield [suite, layout, *cells]


def markdown(record: dict[str, Any]) -> str:
    """Return the page: targets, suites, then every row."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    operations = [f"{figure}, {o}" for figure in ("eager", "best peer", "copy") for o in ("fwd", "bwd")]
    targets = (
        [i["name"], i["operation"], str(i["rows"]), f"{i['target']:.2f}", _number(i["figure"]), _verdict(i["met"])]
        for i in standing(record)
    )
    reasons = {(peer, reason) for row in record["rows"] for peer, reason in row["unavailable"].items()}
    head = ["suite", "shape", "operation", "dtype", "ms", *PEERS, "share of copy", "over float32"]
    return "\n".join(
        [
            "# Speed on the processor",
            "",
            f"{record['date']}; {record['processor']}, {record['threads']} threads, last-level cache of "
            f"{record['last_level_cache'] >> 20} MiB; {versions}.",
            "",
            "Written by `make bench`. Numbers are how many times faster fastbn is: the median of ratios of calls made",
            "in turn in one run, outputs preallocated where the peer allows it; summaries are geometric means. The",
            "share of the copy is useful bytes / time, as a part of the rate of the fastest copy of x. Where a peer is",
            "faster, the number is **bold**.",
            "",
            disturbed(record),
            "",
            "## Targets",
            "",
            *_table(["what", "operation", "rows", "target", "measured", ""], targets),
            "",
            "## Suites, float32",
            "",
            *_table(["suite", "layout", *operations], _by_suite(record["rows"])),
            "",
            "## Rows",
            "",
            *_table(head, map(_cells, record["rows"])),
            "",
            "A dash is a peer that does not do this, or was not asked (torch.compile, which takes seconds a shape).",
            *(f"- {peer}: {reason}" for peer, reason in sorted(reasons)),
            "",
        ]
    )


def write(record: dict[str, Any], stem: Path, page: Callable[[dict[str, Any]], str] = markdown) -> None:
    """Write STEM.json, a row a line, and STEM.md."""
    head = {key: value for key, value in record.items() if not isinstance(value, list)}
    parts = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    for key, rows in record.items():
        if isinstance(rows, list):
            parts.append(f" {json.dumps(key)}: [\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n ]")
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".json").write_text("{\n" + ",\n".join(parts) + "\n}\n")
    stem.with_suffix(".md").write_text(page(record))


def read(path: Path) -> dict[str, Any]:
    """Return what `write` wrote to the JSON file."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="the JSON file of a run")
    path = parser.parse_args().record
    path.with_suffix(".md").write_text(markdown(read(path)))


if __name__ == "__main__":
    main()
