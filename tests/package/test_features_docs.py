"""docs/features.md names tests and calls that there are."""

from __future__ import annotations

import re
from pathlib import Path

import fastbn

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "features.md").read_text()


def test_every_row_has_a_test_that_there_is():
    rows = [line for line in TEXT.splitlines() if line.startswith("|") and "::" in line]
    assert len(rows) >= 20
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT):
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def test_calls_have_names_that_there_are():
    ours = [line.split("|")[3] for line in TEXT.splitlines() if line.startswith("|") and "::" in line]
    called = {name for cell in ours for name in re.findall(r"`(\w+)\(", cell)}
    assert {"batch_norm", "recalibrate", "fold", "DecorrelatedBatchNorm"} <= called
    assert all(hasattr(fastbn, name) for name in called - {"layer"}), called
