"""What the demo found: the comparison of the runs, the table of it, and the document beside the figure."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numba
import numpy as np
import sklearn
from rich import box
from rich.table import Table

from fastbn import __version__
from fastbn.experiments.digits import BATCH, MOMENTUM, PERCENTILES, TRAINING_IMAGES, Digits, Run, Task

NOT_REACHED = "not reached"
PAPER = (
    "The paper (Ioffe and Szegedy 2015, arXiv:1502.03167) reports, for Inception on ImageNet, 43 % at the same "
    "learning rate (BN-Baseline) and 7 % at five times the rate (BN-x5)."
)


def best(run: Run) -> tuple[float, int]:
    """Return the best test accuracy of a run and the step that first had it."""
    accuracy = max(run.accuracy)
    return accuracy, run.steps[run.accuracy.index(accuracy)]


def first_step(run: Run, accuracy: float) -> int | None:
    """Return the first step with at least this test accuracy, None if there is none. Nothing is smoothed."""
    return next((step for step, reached in zip(run.steps, run.accuracy, strict=True) if reached >= accuracy), None)


def median_or_none(values: Sequence[float | None]) -> float | None:
    """Return the median, in which None counts as infinite; None if the median is."""
    middle = median(float("inf") if value is None else value for value in values)
    return None if middle == float("inf") else middle


def compare(plain: Sequence[Run], normalised: Sequence[Run]) -> dict[str, Any]:
    """Compare the runs of a net without batch norm with those with it, seed by seed.

    Returns
    -------
    dict
        `plain` and `fastbn`: medians over the seeds of the test accuracy after the last step, the best on the way, the
        steps until the plain net's best was reached, and the seconds. `seeds`: for every seed that accuracy, both
        steps and their ratio. `ratio`: the median of the ratios. None stands for a step that never came.
    """
    seeds = []
    for a, b in zip(plain, normalised, strict=True):
        target, step = best(a)
        other = first_step(b, target)
        ratio = None if other is None else other / step
        seeds.append({"seed": a.seed, "accuracy": target, "plain": step, "fastbn": other, "ratio": ratio})
    found: dict[str, Any] = {"seeds": seeds, "ratio": median_or_none([seed["ratio"] for seed in seeds])}
    for name, runs in (("plain", plain), ("fastbn", normalised)):
        found[name] = {
            "final_accuracy": median(run.accuracy[-1] for run in runs),
            "best_accuracy": median(max(run.accuracy) for run in runs),
            "steps": median_or_none([seed[name] for seed in seeds]),
            "seconds": median(run.seconds for run in runs),
        }
    return found


def summarise(runs: Sequence[Run]) -> dict[str, Any]:
    """Return `compare` of every task, by name."""
    return {
        task: compare(*([run for run in runs if (run.task, run.batch_norm) == (task, bn)] for bn in (False, True)))
        for task in dict.fromkeys(run.task for run in runs)
    }


def percent(share: float | None) -> str:
    """Format a share; None as "not reached"."""
    return NOT_REACHED if share is None else f"{100 * share:.0f} %"


def table(summary: dict[str, Any], tasks: Sequence[Task]) -> Table:
    """Return the summary as a table."""
    many = len(next(iter(summary.values()))["seeds"])
    result = Table(
        title=f"Handwritten digits, {'median of ' if many > 1 else ''}{many} seed{'s' if many > 1 else ''}",
        box=box.SIMPLE_HEAD,
    )
    result.add_column("net", no_wrap=True)
    for header in ("test accuracy\nlast / best", "steps to\nplain's best", "ratio", "seconds"):
        result.add_column(header, justify="right", no_wrap=True)
    for task in tasks:
        found = summary[task.name]
        for name in ("plain", "fastbn"):
            row = found[name]
            result.add_row(
                f"{task.title}: {name}",
                f"{100 * row['final_accuracy']:.1f} / {100 * row['best_accuracy']:.1f} %",
                NOT_REACHED if row["steps"] is None else f"{row['steps']:.0f}",
                "" if name == "plain" else percent(found["ratio"]),
                f"{row['seconds']:.1f}",
                end_section=name == "fastbn",
            )
    return result


def notes(summary: dict[str, Any], tasks: Sequence[Task]) -> list[str]:
    """Return the sentences under the table: every seed's ratio, what the columns mean, what the paper found."""
    lines = []
    for task in tasks:
        ratios = [seed["ratio"] for seed in summary[task.name]["seeds"]]
        reached = sum(ratio is not None for ratio in ratios)
        each = ", ".join(NOT_REACHED if ratio is None else f"{100 * ratio:.0f}" for ratio in ratios)
        lines.append(
            f"{task.title} ({task.details}; {task.steps} steps at rate {task.rate:g}): plain's best reached with "
            f"fastbn in {reached} of {len(ratios)} seeds; ratio by seed, in %: {each}."
        )
    lines.append(
        "Steps to plain's best: until the first test at which the net is as accurate as the plain net with the same "
        f"seed ever was (a test every {' or '.join(str(task.every) for task in tasks)} steps). A layer before batch "
        "norm has no bias, since batch norm brings one; all else is equal. Seconds: the training steps, without tests."
    )
    return [*lines, PAPER]


def redundant_bias(bias: float, weight: float) -> str:
    """Return the sentence that says why a layer before batch norm has no bias."""
    return (
        f"A bias before batch norm would learn nothing: its largest gradient in a first step is {bias:.0e}, that of "
        f"the weight beside it {weight:.0e}."
    )


def document(
    runs: Sequence[Run], summary: dict[str, Any], tasks: Sequence[Task], digits: Digits, quick: bool
) -> dict[str, Any]:
    """Return all that is written beside the figure."""
    return {
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "numba": numba.__version__,
            "scikit-learn": sklearn.__version__,
            "fastbn": __version__,
        },
        "machine": {"system": platform.system(), "processor": platform.machine(), "processors": os.cpu_count()},
        "settings": {
            "quick": quick,
            "seeds": sorted({run.seed for run in runs}),
            "training_images": TRAINING_IMAGES,
            "test_images": int(digits.y_test.size),
            "batch": BATCH,
            "momentum": MOMENTUM,
            "percentiles": PERCENTILES,
            "tasks": {
                task.name: {k: getattr(task, k) for k in ("title", "details", "rate", "steps", "every")}
                for task in tasks
            },
        },
        "summary": summary,
        "runs": [asdict(run) for run in runs],
    }
