"""Run every case that is refused and write docs/errors.md: `python tests/errors_table.py` (make errors)."""

from pathlib import Path
from unittest import mock

import numpy as np

import errors_classes
import errors_files
import errors_functions
import fastbn
from fastbn import dispatch as device

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "errors.md"
TABLE = [*errors_functions.TABLE, *errors_classes.TABLE, *errors_files.TABLE]
CASES = [(function, *case) for function, _, _, cases in TABLE for case in cases]

INTRODUCTION = """\
# Errors

Every call that is refused, with what it says. An error names the argument, what was passed and what was expected, and
comes before anything is written: all arrays, the running statistics and the layer are as they were.

Written by `make errors`, which makes each of these calls; a test makes them again and compares. Where a message
says why there is no GPU, this page has one reason of several.
"""

NO_GPU = f"numba-cuda is not installed; {device.INSTALL}"


def picture(value):
    """What a value holds, to be compared after the call."""
    if isinstance(value, np.ndarray):
        return np.asarray(value).tobytes()
    if isinstance(value, fastbn.BatchNorm):
        return {name: picture(held) for name, held in vars(value).items()}
    if isinstance(value, dict):
        return {name: picture(held) for name, held in value.items()}
    return value


def refused(function, change):
    """Make a good call with a change; return what it raised, and a picture of the arguments before and after."""
    good, call = next((good, call) for name, good, call, _ in TABLE if name == function)
    arguments = good()
    arguments |= change(arguments) if callable(change) else change
    before = picture(arguments)
    try:
        with mock.patch.object(device, "problem", return_value=NO_GPU):
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
