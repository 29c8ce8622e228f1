"""The bench of the features: every way makes the same, the record is read as it says, the kept one keeps its floors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import report
from featured import cases, page, targets
from featured.work import Feature, Work

COMMAND = Path(__file__).with_name("features.py")
KEPT = Path(__file__).with_name("results") / "features.json"
HEADER = {"date": "2026-11-27", "processor": "a processor", "threads": 2, "last_level_cache": 32 << 20, "versions": {}}
SMALL = list(cases.small())


def row(kind="mask", operation="forward", cost=1.2, beyond=None, others=0.0, **speedup):
    return {
        "kind": kind, "feature": "one", "shape": [32, 64], "layout": "NC", "operation": operation, "bytes": 8192,
        "rounds": 9, "others": others, "seconds": {"plain": 1e-4, "fastbn": cost * 1e-4}, "tensors": 0, "cost": cost,
        "beyond": cost if beyond is None else beyond, "unavailable": {"PyTorch": "why not"},
        "speedup": {targets.LOOP if name == "loop" else name: ratio for name, ratio in speedup.items()},
    }  # fmt: skip


def standing(*rows):
    found = targets.standing(HEADER | {"rows": list(rows)})
    return {(line.target.what.split()[0].strip(","), line.target.most, line.operation): line for line in found}


@pytest.mark.parametrize("make", [make for _, make in SMALL], ids=[f"{name}-{i}" for i, (name, _) in enumerate(SMALL)])
def test_all_ways_make_the_same(make):
    for feature in make().features:
        feature.agree()


def test_a_wrong_way_is_noticed():
    def work(value):
        return Work(lambda: value, lambda kept: kept, lambda kept, _: {"y": np.full(3, kept)})

    Feature("it", work(1.0), {"another": work(1.0)}).agree()
    with pytest.raises(AssertionError, match="it, fastbn beside another: y is off by"):
        Feature("it", work(1.0), {"another": work(1.1)}).agree()


def test_a_value_at_a_kink_may_go_either_way():
    def work(dx):
        return Work(lambda: dx, lambda kept: kept, lambda kept, _: {"dx": kept})

    none, one, two = (np.ones(150_000) for _ in range(3))
    one[7] = two[7] = two[8] = 0.0
    Feature("relu", work(none), {"another": work(one)}).agree()
    for name, other in (("relu", two), ("gelu", one)):
        with pytest.raises(AssertionError, match="dx is off by"):
            Feature(name, work(none), {"another": work(other)}).agree()


def test_masks_are_of_such_lengths():
    p = cases.draw(cases.Case("features", (40, 3, 50), 1), "float32", "forward")
    for kind, least in zip(cases.LENGTHS, (25, 1, 0), strict=True):
        mask = cases.draw_mask(p, kind)
        assert mask.shape == (40, 50)
        assert least <= mask.sum(1).min() < mask.sum(1).max()
        assert (np.diff(mask.astype(int)) <= 0).all() == (kind != cases.LENGTHS[2])


def test_standing():
    found = standing(
        row(cost=1.2, PyTorch=8.0), row(cost=1.5, PyTorch=2.0), row(cost=9.0, others=0.4, PyTorch=0.1),
        row("ghosts", "backward", cost=1.0, PyTorch=3.0, loop=0.5), row("tail", cost=1.5, beyond=1.04),
        row("axes", PyTorch=1.0),
    )  # fmt: skip
    mask = found["mask", True, "forward"]
    assert (mask.figures, mask.kept, mask.worst, mask.verdict) == ([1.2, 1.5], 1, 1.5, "not met")  # 1.34 on average
    assert (found["mask", False, "forward"].mean, found["mask", False, "forward"].verdict) == (4.0, "met")
    assert found["ghost", True, "backward"].verdict == "met"
    assert found["ghost", False, "backward"].figures == [3.0]  # not the loop in fastbn
    assert found["fused", True, "forward"].figures == [1.04]
    assert found["fused", False, "forward"].verdict == "not measured"
    assert found["the", False, "forward"].verdict == "not met"
    assert standing(row(cost=1.1), row(cost=1.4))["mask", True, "forward"].verdict == "met by the mean"


def test_floors():
    assert not targets.broken(HEADER | {"rows": [row(), row(cost=99.0, others=0.4)]})
    assert targets.broken(HEADER | {"rows": [row(cost=99.0)]}) == [
        "mask beside plain batch norm of all positions, forward: 99.00, beyond the floor of 3.00"
    ]


def test_page():
    text = page.markdown(HEADER | {"rows": [row(cost=1.4, PyTorch=1.9, loop=12.0, others=0.4), row(PyTorch=4.0)]})
    assert "| one | 32 x 64 NC * | forward | 0.1 | 1.40 | **1.40** | **1.90** | 12 |" in text
    assert "| one | 32 x 64 NC | forward | 0.1 | 1.20 | 1.20 | 4.00 | - |" in text
    assert "during 1 of 2 rows" in text
    assert "- PyTorch: why not" in text


def test_costs():
    found = page.costs(HEADER | {"rows": [row(cost=1.0, PyTorch=2.0), row(cost=4.0, PyTorch=8.0), row(others=0.4)]})
    assert found[2:] == ["| one | 2.00 | - | 4.00 | - |"]


def test_kinds_run(tmp_path):
    """In seconds; PyTorch is left out where it is not installed."""
    arguments = ["--quick", "--only", "mask,recalibration", "--write", str(tmp_path / "features")]
    done = subprocess.run([sys.executable, str(COMMAND), *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "features.json").read_text())
    assert {each["kind"] for each in found["rows"]} == {"mask", "recalibration"}
    assert (tmp_path / "features.md").read_text() == page.markdown(found)


@pytest.fixture
def kept():
    if not KEPT.exists():
        pytest.skip("make bench-features has not been kept")
    return report.read(KEPT)


def test_the_kept_page_is_that_of_its_record(kept):
    assert KEPT.with_suffix(".md").read_text() == page.markdown(kept)


def test_the_kept_record_keeps_its_floors(kept):
    """Ratios of calls in turn; a change that makes a feature slow is seen when the bench is kept again."""
    assert targets.broken(kept) == []
