"""Run every case that is refused and write docs/errors.md: `python -m errors.table` in tests/ (make errors)."""

from pathlib import Path
from unittest import mock

import numpy as np

import fastbn
from errors import checkpoints, classes, datasets, folds, functions, recalibrations, whitening
from errors.placed import at, put
from fastbn.backends.cuda import availability

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
TABLE = [
    *functions.TABLE, *classes.TABLE, *checkpoints.TABLE, *folds.TABLE, *recalibrations.TABLE, *whitening.TABLE,
    *datasets.TABLE,
]  # fmt: skip
CASES = [(function, *case) for function, _, _, cases in TABLE for case in cases]

INTRODUCTION = """\
# Errors

Every call that is refused, with what it says. An error names the argument, what was passed and what was expected, and
comes before anything is written: all arrays, the running statistics and the layer are as they were.

Written by `make errors`, which makes each of these calls; a test makes them again and compares. Where a message
says why there is no GPU, this page has one reason of several.
"""

NO_GPU = f"numba-cuda is not installed; {availability.INSTALL}"


def picture(value):
    """What a value holds, to be compared after the call."""
    value = getattr(value, "_ary", value)  # what a simulated GPU's array wraps
    if isinstance(value, np.ndarray):
        return np.asarray(value).tobytes()
    if isinstance(value, fastbn.BatchNorm | fastbn.DecorrelatedBatchNorm):
        return {name: picture(held) for name, held in vars(value).items()}
    if isinstance(value, fastbn.Moments):
        return value.count, picture(value.mean), picture(value.m2)
    if isinstance(value, dict):
        return {name: picture(held) for name, held in value.items()}
    return value


def refused(function, change, place="cpu"):
    """Make a good call with a change; return what it raised, and a picture of the arguments before and after."""
    good, call = next((good, call) for name, good, call, _ in TABLE if name == function)
    with at(place):
        arguments = good()
        arguments |= change(arguments) if callable(change) else change
        arguments = {name: put(value) for name, value in arguments.items()}
    if place == "sent" and function in ("batch_norm", "batch_norm_inference", "batch_moments"):
        arguments.setdefault("device", "cuda")
    before = picture(arguments)
    try:
        if place == "cpu":
            with mock.patch.object(availability, "problem", return_value=NO_GPU):
                call(**arguments)
        else:
            call(**arguments)
    except (TypeError, ValueError, RuntimeError, ModuleNotFoundError) as error:
        return error, before, picture(arguments)
    raise AssertionError(f"{function} took {change}")


def page():
    """Return what docs/errors.md is to hold."""
    parts = [INTRODUCTION]
    for function, _, _, cases in TABLE:
        parts.append(f"\n## {function}\n\n| argument | what is wrong | error | message |\n|---|---|---|---|\n")
        for argument, wrong, error, change in cases:
            message = str(refused(function, change)[0]).replace("|", "\\|")
            parts.append(f"| `{argument}` | {wrong} | {error.__name__} | `{message}` |\n")
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
