"""The launches, imported when they are first asked for: they import Numba, which `import fastbn` must not."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def launch() -> Any:
    """Return the launches of plain calls."""
    from fastbn.backends.cpu import launch

    return launch


@functools.cache
def masked() -> Any:
    """Return the launches of calls with a mask."""
    from fastbn.backends.cpu import masked

    return masked


@functools.cache
def ghosts() -> Any:
    """Return the launches of ghost batches."""
    from fastbn.backends.cpu import ghosts

    return ghosts


@functools.cache
def derivatives() -> Any:
    """Return the launches of higher derivatives."""
    from fastbn.backends.cpu import derivatives

    return derivatives
