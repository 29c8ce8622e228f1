"""What the figures say in a screen: failures, the limit, and how fastbn stands against it and against others."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from .peers import OURS

Record = dict[str, Any]
CHECKED = ("checks", "huge")


def failures(record: Record) -> list[tuple[str, str, str]]:
    """Return (section, job, error) of everything that failed."""
    rows = ((section, row) for section, rows in record["sections"].items() for row in rows)
    return [
        (section, " ".join([row["id"], row.get("what", row.get("operation", ""))]).strip(), row.get("error", ""))
        for section, row in rows
        if row.get("ok") is False
    ]


def copy_limit(record: Record) -> float | None:
    """Return the bytes a second, read and written, of the fastest large copy."""
    rates = [row["tb_per_s"] for row in record["sections"]["copy"] if row.get("large")]
    return max(rates) * 1e12 if rates else None


def complete(record: Record) -> None:
    """Add to the rows of times what follows from others: bytes, their rate, shares of the copy limit, ratios."""
    limit = copy_limit(record)
    own_size = {row["nbytes"]: row for row in record["sections"]["copy"] if row.get("large") is False}
    for row in record["sections"]["timing"]:
        times = row.get("times", {})
        if OURS not in times:
            continue
        ours, moved = times[OURS]["us"], row["tensors"] * row["nbytes"]
        row |= {"bytes": moved, "gb_per_s": moved / ours / 1e3}
        row["ratios"] = {name: t["ratio"] for name, t in times.items() if name != OURS}
        row["graph_ratios"] = {
            name: t["graph_us"] / times[OURS]["graph_us"]
            for name, t in times.items()
            if name != OURS and "graph_us" in t and "graph_us" in times[OURS]
        }
        if limit:
            row["share"] = moved / (ours * 1e-6) / limit
        same = own_size.get(row["nbytes"])
        if same and "times" in same:
            row["share_of_own_size"] = moved / (2 * row["nbytes"]) * same["times"]["us"] / ours


def geometric(values: Iterable[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def _groups(rows: list[Record]) -> dict[tuple[str, ...], list[Record]]:
    groups: dict[tuple[str, ...], list[Record]] = defaultdict(list)
    for row in rows:
        if "ratios" in row:
            groups[row["operation"], row["dtype"], row["layout"]].append(row)
    return groups


def _ratio_lines(record: Record) -> Iterator[str]:
    yield "theirs / ours (> 1: fastbn is faster): geometric mean, worst and where"
    for key, rows in _groups(record["sections"]["timing"]).items():
        shares = [row["share"] for row in rows if "share" in row]
        text = f"  {' '.join(key):34} {len(rows):3} rows"
        if shares:
            text += f"  share of the limit {statistics.median(shares):.2f}, {min(shares):.2f} at least"
        yield text
        for kind in ("ratios", "graph_ratios"):
            names = dict.fromkeys(name for row in rows for name in row[kind] if name != "copy")
            for name in names:
                have = [row for row in rows if name in row[kind]]
                worst = min(have, key=lambda row: row[kind][name])
                yield (
                    f"    {name + (' (graph)' if kind == 'graph_ratios' else ''):16}"
                    f" {geometric(row[kind][name] for row in have):6.2f}"
                    f"  worst {worst[kind][name]:5.2f} at {'x'.join(map(str, worst['shape']))}"
                )


def _slow_lines(record: Record) -> Iterator[str]:
    for row in record["sections"]["compiled"]:
        for name, t in row.get("times", {}).items():
            if name != OURS and OURS in row["times"]:
                yield f"  {name:14} {t['ratio']:7.2f}  {row['id']}"
        for name, why in row.get("unavailable", {}).items():
            yield f"  {name:14} unavailable: {' '.join(why.split())[:90]}"


def _sweep_lines(record: Record) -> Iterator[str]:
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for row in record["sections"]["sweep"]:
        if "us" in row.get("times", {}):
            groups[row["id"], row["operation"]].append(row)
    for (name, operation), rows in groups.items():
        base = rows[0]["times"]["us"]
        best = sorted(rows, key=lambda row: row["times"]["us"])[:3]
        found = "; ".join(f"{row['knobs']} {row['times']['us']:.1f}" for row in best)
        yield f"  {name} {operation}: as planned {base:.1f} us; best: {found}"


def summary(record: Record) -> list[str]:
    """Return the lines to print."""
    sections = record["sections"]
    lines = [f"{record['machine'].get('name', 'no GPU')}, seed {record['seed']}, {record['seconds']:.0f} s"]
    for section in CHECKED:
        found = Counter(
            "skipped" if "skipped" in row else "passed" if row.get("ok") else "failed" for row in sections[section]
        )
        lines.append(f"{section}: " + ", ".join(f"{count} {what}" for what, count in sorted(found.items())))
    every = [(section, row) for section, rows in sections.items() for row in rows]
    skipped = Counter((section, row["skipped"]) for section, row in every if "skipped" in row)
    lines += [f"  skipped in {section}, {count} times: {why[:100]}" for (section, why), count in skipped.items()]
    limit = copy_limit(record)
    lines.append(f"copy limit: {limit / 1e12:.2f} TB/s" if limit else "copy limit: unknown")
    lines += _ratio_lines(record)
    lines += [f"launch, host us: {row['who']:8} {row['operation']:10} {row['layout']:5} {row['us']:7.1f}"
              for row in sections["launch"] if "us" in row]  # fmt: skip
    lines += [*_slow_lines(record), *_sweep_lines(record)]
    wrong = failures(record)
    lines.append(f"failures: {len(wrong)}")
    same: dict[tuple[str, str], list[str]] = defaultdict(list)
    for section, job, error in wrong:
        same[section, " ".join(error.split())[:200]].append(job)
    lines += [
        f"  {section}: {jobs[0]}{f' and {len(jobs) - 1} more' if len(jobs) > 1 else ''}: {error}"
        for (section, error), jobs in list(same.items())[:25]
    ]
    return lines
