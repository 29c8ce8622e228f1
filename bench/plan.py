"""Which case is measured in which operation and dtype, against whom: everything, a quick selection, or a test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import suites
from peers import EAGER, PEERS, torch_compiled
from problem import DTYPES, OPERATIONS
from suites import Case

TRAINING = ("forward", "backward")
SIXTEEN_BITS = ("float16", "bfloat16")


@dataclass(frozen=True)
class Entry:
    """One row to measure."""

    case: Case
    operation: str
    dtype: str
    peers: tuple[str, ...]

    @property
    def id(self) -> str:
        """The name to select the row by."""
        return f"{self.case.id}-{self.operation}-{self.dtype}"


def _entries(cases: Iterable[Case], operations: Iterable[str], dtypes: Iterable[str]) -> list[tuple[Case, str, str]]:
    dtypes, operations = list(dtypes), list(operations)
    return [(case, operation, dtype) for case in cases for dtype in dtypes for operation in operations]


def full() -> list[Entry]:
    """Return every case forward and backward, and selections of them in the other operations and dtypes."""
    rows = _entries(suites.CASES, TRAINING, ["float32"])
    rows += _entries(suites.CORE, OPERATIONS, DTYPES)
    rows += _entries(suites.SUBSET, ["inference", "both"], ["float32"])
    rows += _entries(suites.FLOAT64, TRAINING, ["float64"])
    rows += _entries(suites.SIXTEEN_BITS, TRAINING, SIXTEEN_BITS)
    compiled = {(case, operation, "float32") for case in suites.COMPILED for operation in TRAINING}
    usual = tuple(name for name in PEERS if name != torch_compiled.NAME)
    return [Entry(*row, tuple(PEERS) if row in compiled else usual) for row in dict.fromkeys(rows)]


def quick() -> list[Entry]:
    """Return what shows in three minutes whether something became slower."""
    rows = _entries(suites.QUICK, TRAINING, ["float32"]) + _entries(suites.CORE, ["forward"], SIXTEEN_BITS)
    return [Entry(*row, (EAGER,)) for row in rows]


def smoke() -> list[Entry]:
    """Return one shrunk case of every suite and layout, and every operation and dtype once."""
    first = {(case.suite, case.layout): case.shrunk() for case in reversed(suites.CASES)}
    rows = _entries(reversed(first.values()), TRAINING, ["float32"])
    rows += _entries([case.shrunk() for case in suites.CORE], OPERATIONS, DTYPES)
    return [Entry(*row, (EAGER,)) for row in dict.fromkeys(rows)]
