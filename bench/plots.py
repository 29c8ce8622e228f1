"""Draw a run: speed-up per shape, roofline, time against size, time against threads.

    python bench/plots.py bench/results/cpu.json [--out docs/images]

Writes bench-speedup.png, bench-roofline.png, bench-size.png and bench-threads.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
from report import APART, EAGER, Row, against_best, against_eager

COLOURS = {"fastbn": "#0b6e4f", EAGER: "#d1495b", "JAX jit": "#30638e", "oneDNN": "#edae49", "NumPy": "#7d7d7d"}
COPY = "#000000"


def _figure(*size: float, columns: int = 1, **options: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)  # needs no display
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def _float32(record: dict[str, Any], operation: str) -> list[Row]:
    return [row for row in record["rows"] if (row["operation"], row["dtype"]) == (operation, "float32")]


def _decimal(axis: Any) -> None:
    """Label a logarithmic axis with numbers, not powers."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def speedup(record: dict[str, Any]) -> Any:
    """Return, for every shape, how many times faster than PyTorch eager and than the best peer fastbn is."""
    names = list(dict.fromkeys((row["suite"], *row["shape"], row["layout"]) for row in record["rows"]))
    figure, axes = _figure(11, 2 + 0.16 * len(names), columns=2, sharey=True)
    for axis, operation in zip(axes, ("forward", "backward"), strict=True):
        for row in _float32(record, operation):
            place = names.index((row["suite"], *row["shape"], row["layout"]))
            colour = "#0b6e4f" if row["layout"] in APART else "#30638e"
            if (best := against_best(row)) is not None:
                axis.plot(best, place, "|", color=colour, markersize=7)
            if (eager := against_eager(row)) is not None:
                axis.plot(eager, place, "o", color=colour, markersize=4)
        axis.axvline(1, color="#d1495b", linewidth=1)
        axis.set_xscale("log")
        axis.set_xticks([0.2, 0.5, 1, 2, 5, 10, 20, 50])
        _decimal(axis.xaxis)
        if axis.has_data():
            axis.autoscale(axis="x")
        axis.grid(axis="x", which="both", alpha=0.2)
        axis.set_title(f"{operation}, float32: times faster", fontsize=10)
    axes[0].set_yticks(range(len(names)))
    axes[0].set_yticklabels([f"{n[0]}  {' x '.join(map(str, n[1:-1]))} {n[-1]}" for n in names], fontsize=6)
    axes[0].set_ylim(len(names), -1)
    figure.suptitle("● than PyTorch eager   | than the best peer   (green: channels first, blue: last)", fontsize=10)
    return figure


def roofline(record: dict[str, Any]) -> Any:
    """Return useful bytes a second against the size of x, beside the fastest copy of the same bytes."""
    figure, axes = _figure(11, 4.5, columns=2, sharey=True)
    for axis, operation in zip(axes, ("forward", "backward"), strict=True):
        rows = sorted(_float32(record, operation), key=lambda row: row["bytes"])
        size = [row["bytes"] / 1e6 for row in rows]
        for name in ("fastbn", EAGER):
            points = [
                (mb, row["useful_tensors"] * row["bytes"] / row["seconds"][name] / 1e9)
                for mb, row in zip(size, rows, strict=True)
                if name in row["seconds"]
            ]
            if points:
                axis.plot(*zip(*points, strict=True), "o", color=COLOURS[name], label=name, markersize=4, alpha=0.8)
        copies = [2 * row["bytes"] / row["seconds"][row["copy"]] / 1e9 for row in rows]
        axis.plot(size, copies, "_", color=COPY, label="the fastest copy", markersize=6)
        axis.axvline(record["last_level_cache"] / 1e6, color="#7d7d7d", linestyle=":", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="x, MB (dotted: last-level cache)", title=f"{operation}, float32")
        _decimal(axis.xaxis)
        _decimal(axis.yaxis)
        axis.grid(which="both", alpha=0.2)
    axes[0].set_ylabel("useful GB/s")
    axes[0].legend(fontsize=8)
    return figure


def size(record: dict[str, Any]) -> Any:
    """Return time against size, for channels first and last."""
    layouts = ("NCHW", "NHWC")
    figure, axes = _figure(11, 4.5, columns=2, sharey=True)
    for axis, layout in zip(axes, layouts, strict=True):
        rows = [row for row in record["by_size"] if row["layout"] == layout]
        rows.sort(key=lambda row: row["bytes"])
        for name, colour in COLOURS.items():
            points = [(row["bytes"] / 1e6, row["seconds"][name] * 1e3) for row in rows if name in row["seconds"]]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=colour, label=name, markersize=3, linewidth=1)
        copies = [row["seconds"][row["copy"]] * 1e3 for row in rows]
        axis.plot([row["bytes"] / 1e6 for row in rows], copies, "--", color=COPY, label="the fastest copy", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="x, MB", title=f"forward, float32, 64 channels, {layout}")
        _decimal(axis.xaxis)
        _decimal(axis.yaxis)
        axis.grid(alpha=0.2)
    axes[0].set_ylabel("ms")
    axes[0].legend(fontsize=8)
    return figure


def threads(record: dict[str, Any]) -> Any:
    """Return time against threads, a panel a case."""
    rows = record["by_threads"]
    cases = list(dict.fromkeys((*row["shape"], row["layout"], row["operation"]) for row in rows))
    figure, axes = _figure(2.6 * max(len(cases), 1), 3.6, columns=max(len(cases), 1))
    for axis, case in zip(axes, cases, strict=False):
        own = [row for row in rows if (*row["shape"], row["layout"], row["operation"]) == case]
        own.sort(key=lambda row: row["threads"])
        for name in ("fastbn", EAGER):
            points = [(row["threads"], row["seconds"][name] * 1e3) for row in own if name in row["seconds"]]
            if points:
                axis.plot(*zip(*points, strict=True), "o-", color=COLOURS[name], label=name, markersize=3)
        copies = [row["seconds"][row["copy"]] * 1e3 for row in own]
        axis.plot([row["threads"] for row in own], copies, "--", color=COPY, label="the fastest copy")
        axis.set_title(f"{' x '.join(map(str, case[:-2]))}\n{case[-2]} {case[-1]}", fontsize=8)
        axis.set_xticks(sorted({row["threads"] for row in own}))
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.2)
    axes[0].set(xlabel="threads", ylabel="ms")
    axes[0].legend(fontsize=8)
    return figure


PLOTS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "speedup": ("rows", speedup),
    "roofline": ("rows", roofline),
    "size": ("by_size", size),
    "threads": ("by_threads", threads),
}


def draw(record: dict[str, Any], folder: Path) -> list[Path]:
    """Write every plot that the record has rows for; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (table, plot) in PLOTS.items():
        if record[table]:
            written.append(folder / f"bench-{name}.png")
            plot(record).savefig(written[-1], dpi=110)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("record", type=Path, help="the JSON file of a run")
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    arguments = parser.parse_args()
    for path in draw(report.read(arguments.record), arguments.out):
        print(f"written to {path}")


if __name__ == "__main__":
    main()
