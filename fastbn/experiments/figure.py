"""The figure of the demo, without a display: `matplotlib.figure.Figure` draws to a file by itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastbn.experiments.digits import BATCH, PERCENTILES, TRAINING_IMAGES, Run, Task
from fastbn.experiments.report import percent

# From Okabe and Ito's palette, which colour-blind readers can tell apart; the lines also differ in style.
STYLES: dict[bool, dict[str, Any]] = {
    False: {"color": "#d55e00", "linestyle": "--"},
    True: {"color": "#0072b2", "linestyle": "-"},
}
LABELS = {False: "without batch norm", True: "with fastbn"}
TICKS = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


def draw(runs: Sequence[Run], summary: dict[str, Any], tasks: Sequence[Task], path: Path) -> None:
    """Write the figure: a row for every net, of test accuracy and of the pre-activations without and with batch norm.

    Parameters
    ----------
    runs, summary, tasks
        What `report` works on.
    path : Path
        Where the PNG goes.
    """
    figure = Figure(figsize=(13, 3.9 * len(tasks)), dpi=150, layout="constrained")
    figure.suptitle(f"Training on {TRAINING_IMAGES} handwritten digits, with and without batch norm, all else equal")
    rows = figure.subplots(len(tasks), 3, squeeze=False, width_ratios=(1.35, 1, 1))
    for task, row in zip(tasks, rows, strict=True):
        of_task = [run for run in runs if run.task == task.name]
        accuracy(row[0], of_task, task, summary[task.name])
        row[2].sharey(row[1])
        for batch_norm, axes in zip((False, True), row[1:], strict=True):
            preactivation(axes, next(run for run in of_task if run.batch_norm == batch_norm))
        row[2].tick_params(labelleft=False)
    figure.savefig(path)


def accuracy(axes: Axes, runs: Sequence[Run], task: Task, found: dict[str, Any]) -> None:
    """Draw test accuracy against steps: the mean over the seeds in a band from the lowest to the highest."""
    for batch_norm, style in STYLES.items():
        of_kind = [run for run in runs if run.batch_norm == batch_norm]
        steps, curves = of_kind[0].steps, np.array([run.accuracy for run in of_kind])
        # The scale has no place for 0 and 1; no net of the demo gets there, but a quick one might.
        curves = curves.clip(0.001, 0.999)
        axes.plot(steps, curves.mean(0), label=LABELS[batch_norm], linewidth=1.5, **style)
        axes.fill_between(steps, curves.min(0), curves.max(0), color=style["color"], alpha=0.25, linewidth=0)
    axes.set_yscale("logit")
    axes.set_yticks(TICKS, [percent(tick) for tick in TICKS])
    axes.set_yticks([], minor=True)
    axes.set_ylim(bottom=max(0.07, 0.8 * min(min(run.accuracy) for run in runs)), top=0.993)
    axes.grid(alpha=0.3)
    axes.set_xlim(0, task.steps)
    axes.set_xlabel(f"training steps (batches of {BATCH})")
    axes.set_ylabel("test accuracy (logit scale)")
    seeds = len(found["seeds"])
    axes.legend(loc="lower right", title=f"mean and range of {seeds} seeds" if seeds > 1 else "1 seed")
    ratio = found["ratio"]
    result = "does not reach plain's best" if ratio is None else f"at plain's best after {percent(ratio)} of its steps"
    axes.set_title(f"{task.title}: fastbn {result}", fontsize=10)


def preactivation(axes: Axes, run: Run) -> None:
    """Draw the distribution of what enters the last activation, as the paper's figure 1 does, for the first seed."""
    color = STYLES[run.batch_norm]["color"]
    low, middle, high = np.array(run.preactivation).T
    axes.fill_between(run.steps, low, high, color=color, alpha=0.25, linewidth=0)
    axes.plot(run.steps, middle, color=color, linewidth=1.5)
    for edge, label, offset in zip((low, middle, high), PERCENTILES, (-10, -10, 4), strict=True):
        axes.plot(run.steps, edge, color=color, linewidth=0.8)
        axes.annotate(
            f"{label} %", (run.steps[-1], edge[-1]), (-2, offset), textcoords="offset points", ha="right", fontsize=8
        )
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_xlim(0, run.steps[-1])
    axes.grid(alpha=0.3)
    axes.set_xlabel("training steps")
    axes.margins(y=0.1)
    if not run.batch_norm:
        axes.set_ylabel("input of the last activation\n(percentiles over test images and units)")
    axes.set_title(f"pre-activations {LABELS[run.batch_norm]}, seed {run.seed}", fontsize=10)
