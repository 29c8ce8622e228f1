"""The demo from end to end: compile, train everything with a progress bar, report."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fastbn.experiments import digits, figure, report

log = logging.getLogger("fastbn")


class ToConsole(logging.Handler):
    """Prints what fastbn logs above the progress bar: the kernels that it compiles or loads."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        self._console.print(f"  {record.getMessage()}", style="dim", highlight=False, markup=False)


@contextmanager
def shown(console: Console) -> Iterator[None]:
    """Show what fastbn logs while the body runs."""
    handler, level = ToConsole(console), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


def run(out: Path, quick: bool, seeds: int, console: Console) -> None:
    """Train every net with and without batch norm, print the table, write ``demo.png`` and ``demo.json``.

    Parameters
    ----------
    out : Path
        An existing folder.
    quick : bool
        Fewer steps.
    seeds : int
        Runs of each net.
    console : Console
        Where all of it is shown.
    """
    started = time.perf_counter()
    tasks, data = digits.tasks(quick), digits.load()
    with progress(console) as bar, shown(bar.console):
        compile_kernels(tasks, data, bar)
        runs = train_all(tasks, data, seeds, bar)
    summary = report.summarise(runs)
    figure.draw(runs, summary, tasks, out / "demo.png")
    document = report.document(runs, summary, tasks, data, quick)
    (out / "demo.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    console.print(report.table(summary, tasks))
    for line in report.notes(summary, tasks):
        console.print(line, highlight=False)
    console.print(report.redundant_bias(*digits.redundant_bias(data)), highlight=False)
    console.print(
        f"\nWrote {out / 'demo.png'} and {out / 'demo.json'} after {time.perf_counter() - started:.0f} s.",
        highlight=False,
        soft_wrap=True,
    )


def progress(console: Console) -> Progress:
    """Return the progress bar."""
    text = TextColumn("{task.description}")
    return Progress(SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)


def compile_kernels(tasks: Sequence[digits.Task], data: digits.Digits, bar: Progress) -> None:
    """Run a step and a test of every net, so that no timed run pays for compilation or a cold thread pool."""
    started = time.perf_counter()
    item = bar.add_task("compiling kernels", total=2 * len(tasks))
    bar.console.print("Compiling the kernels for these shapes, or loading them from the cache:")
    for task in tasks:
        for batch_norm in (False, True):
            digits.train(replace(task, steps=1, every=1), batch_norm, 0, data, lambda: None)
            bar.advance(item)
    bar.remove_task(item)
    bar.console.print(f"Kernels ready after {time.perf_counter() - started:.1f} s.", highlight=False)


def train_all(tasks: Sequence[digits.Task], data: digits.Digits, seeds: int, bar: Progress) -> list[digits.Run]:
    """Train every net with and without batch norm, for every seed, the two in turn."""
    item = bar.add_task("", total=2 * seeds * sum(task.steps for task in tasks))
    runs = []
    for task in tasks:
        for seed in range(seeds):
            for batch_norm in (False, True):
                kind = "fastbn" if batch_norm else "plain"
                bar.update(item, description=f"{task.name}, {kind}, seed {seed}")
                runs.append(digits.train(task, batch_norm, seed, data, lambda: bar.advance(item)))
    bar.update(item, description="trained")
    return runs
