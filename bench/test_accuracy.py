"""fastbn is as accurate as the table says, in every layout, plan and precision; and the table can be made."""

from __future__ import annotations

import json
import math
import re
import secrets

import numpy as np
import pytest
from precision import exact, measure, ours, peers, table
from precision.data import LAYOUTS, Case, axis, draw

import reference
from fastbn.backends.cpu import plan
from tolerance import ULPS, VAR

SEED = secrets.randbits(32)
FAST, EXACT = ("fastbn NCHW", "fastbn NHWC"), "fastbn exact"
INFERENCE = "fastbn inference", "fastbn exact inference"
HALVES = ("h", "float16", ""), ("H", "bfloat16", "")
HALF = 0.5 + 1e-3  # as in tests/tolerance.py
# The arithmetic's own error, relative to the terms of a y. It takes what rounding leaves of 4 ulp, 3.5 x 2^-24 |y| at
# least, where |y| is this share of its terms, 2^-17, or less. One y in a million is so small, one in 10^8 is off.
BEYOND = 1e-12
SHARE = BEYOND * 2.0**24 / 3.5


@pytest.fixture
def rng():
    print(f"seed {SEED}")  # pytest shows it with a failure
    return np.random.default_rng(SEED)


@pytest.fixture(scope="module")
def quick():
    """Return a quick run with fastbn and NumPy alone, in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "TRAINING", {name: measure.TRAINING[name] for name in (*FAST, EXACT, "NumPy")})
        patch.setattr(measure, "INFERENCE", {name: measure.INFERENCE[name] for name in INFERENCE})
        return measure.record("quick", SEED, ["float32"], say=lambda line: None)


def inference(case):
    """Return the names of the columns that take statistics as float32, where that holds them."""
    return INFERENCE if case["std"] <= measure.STORABLE else ()


def is_fast(found):
    """Whether errors are what "fast" is held to, whatever of it there is."""
    terms = [found[name] for name in ("y_terms", "dx_sums", "dweight_terms", "dbias_terms") if name in found]
    return max(terms) <= ULPS and max(found.get("var_relative", 0), found.get("mean_std", 0)) <= VAR


def is_exact(found):
    """Whether every y and dx is the exact one rounded once, even where terms cancel to float32's last place."""
    rounded_once = max(found["y_share"] / SHARE, found["y_terms"] / HALF, found["y_beyond"] / BEYOND) <= 1
    rounded_once &= max(found["dx_terms"] / HALF, found["mean"], found["var"]) <= 1
    return rounded_once and found["var_relative"] <= 1e-12


def test_both_precisions_in_every_layout_by_every_plan(quick):
    for precision, held in (("fast", is_fast), ("exact", is_exact)):
        rows = [row for row in quick["plans"] if row["precision"] == precision]
        ways = {(layout, name) for row in rows for layout in row["layouts"] for name in row["plans"]}
        families = [family for family in ours.SHAPES if ours.takes(family, "float32", precision)]
        assert ways == {(lay, name) for f in families for lay in ours.FAMILY_LAYOUTS[f] for name, _ in ours.plans(f)}
        assert {layout for layout, _ in ways} == set(LAYOUTS)
        for row in rows:
            assert held(row["errors"]), row


def test_both_precisions_for_any_count_and_scale(quick):
    for case in quick["cases"]:
        for name, found in case["errors"].items():
            if name.startswith(EXACT):
                assert found["y_share"] <= SHARE, (name, case)
            elif name.startswith("fastbn"):
                assert is_fast(found), (name, case)


def test_shapes_reach_every_family():
    """By themselves, on bits of every dtype; "overlapped" takes as many threads as there are channels."""
    of = {"NC": 1, "NHWC": 1, "channels_last": 1}
    for code, dtype, precision in (("f", "float32", "fast"), ("i", "float32", "exact"), ("d", "float64", ""), *HALVES):
        reached = set()
        for family, (channels, (n, h, w)) in ours.SHAPES.items():
            for layout in ours.FAMILY_LAYOUTS[family] if ours.takes(family, dtype, precision) else ():
                rows = (n * h * w, channels, 1) if layout in of else (n, channels, h * w)
                reached |= {plan.make(*rows, code, threads).family for threads in (1, 2, 3)}
        assert reached == set(plan.FAMILIES) - ({"columns"} if code in plan.WIDE else set()), code


def test_the_table_is_made(quick, tmp_path):
    """Every quantity of every case, in the record, in the file and on the page."""
    assert not quick["unavailable"]
    for case in quick["cases"]:
        assert set(case["errors"]) == {*FAST, EXACT, "NumPy", *inference(case)}
        for name in (*FAST, EXACT, "NumPy"):
            assert set(table.TITLES) <= set(case["errors"][name])
    table.write(quick, tmp_path / "accuracy.json")
    kept = json.loads((tmp_path / "accuracy.json").read_text())
    assert [case["label"] for case in kept["cases"]] == [case["label"] for case in quick["cases"]]
    assert len(kept["plans"]) == len(quick["plans"])
    page = (tmp_path / "accuracy.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert not any("nan" in line for line in rows)
    assert re.search(r"^\| float32 exact \| 0\.\d\d \|", page, re.MULTILINE)
    for title in table.TITLES.values():
        assert f"### {title}" in page
    assert sum(line.startswith("| float32, std 1e+18 |") for line in rows) == len(table.TITLES)
    for name in {name for row in quick["plans"] for name in row["plans"]}:
        assert sum(line.startswith(f"| {name} |") for line in rows) == 1


def test_layouts_hold_the_same_values(rng):
    problem = draw(Case("float32", 3, (2, 4, 5)), rng)
    for layout in LAYOUTS:
        array = problem.arrange(problem.x, layout)
        channel_axis = axis(layout)
        np.testing.assert_array_equal(ours.restore(array, channel_axis), problem.x)
    assert problem.arrange(problem.x, "channels_last").shape == problem.arrange(problem.x, "NCHW").shape
    assert problem.arrange(problem.x, "channels_last").strides[1] == problem.x.itemsize


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_the_pieces_of_the_oracle_are_the_oracle(rng, dtype, monkeypatch):
    """In pieces and around the first value, against the tests' oracle on the whole tensor as it is."""
    monkeypatch.setattr("precision.data.PIECE", 64)
    problem = draw(Case(dtype, 3, (2, 7, 9), 3.0), rng)
    found = exact.expected(problem)
    y = reference.forward(problem.x, problem.weight, problem.bias, axis=0, eps=problem.case.eps)
    dx, dweight, dbias = reference.backward(problem.dy, problem.x, problem.weight, axis=0, eps=problem.case.eps)
    pairs = [(found.mean, y.mean), (found.var, y.var), (found.y, y.y), (found.dx, dx)]
    for ours_, theirs in [*pairs, (found.dweight, dweight), (found.dbias, dbias)]:
        assert ours_.dtype == np.longdouble
        np.testing.assert_allclose(ours_, theirs, rtol=0, atol=1e4 * np.finfo(np.longdouble).eps)


def test_errors_are_told(rng):
    """One y an ulp off, one NaN; a variance that is off by a thousandth."""
    problem = draw(Case("float32", 2, (2, 5, 5)), rng)
    expected = exact.expected(problem)
    y = expected.y.astype(np.float32)
    assert exact.errors({"y": y}, expected, problem)["y"] == reference.ulps(y, expected.y) <= 0.5
    y[1, 3] = np.nextafter(np.nextafter(y[1, 3], np.float32(np.inf)), np.float32(np.inf))
    assert 1 < exact.errors({"y": y}, expected, problem)["y"] == reference.ulps(y, expected.y) < 3
    y[0, 0] = np.nan
    assert math.isinf(exact.errors({"y": y}, expected, problem)["y"])
    found = exact.errors({"unbiased_var": (expected.var * 50 / 49 * 1.001).astype(np.float32)}, expected, problem)
    assert found["var_relative"] == pytest.approx(1e-3, rel=1e-3)
    assert found["var"] > 1e3


@pytest.mark.frameworks
def test_the_frameworks_take_part():
    """Every peer that is installed gives everything that it has, in every case."""
    pytest.importorskip("torch", reason="PyTorch is not installed; make test-all installs it")
    found = measure.record("quick", SEED, ["float32"], say=lambda line: None)
    assert all("installed" in reason for reason in found["unavailable"].values()), found["unavailable"]
    expected = {name: {"y", "dx", "mean", "var", "dweight", "dbias"} for name in peers.TRAINING}
    expected |= {"ONNX Runtime": {"y", "mean", "var"}, "ONNX Runtime inference": {"y"}}
    for case in found["cases"]:
        for name, quantities in expected.items():
            given = "inference" not in name or inference(case)
            if given and f"{name}, float32" not in found["unavailable"]:
                assert quantities <= set(case["errors"][name]), name
        assert set(case["errors"]) > {"PyTorch NCHW", "PyTorch NHWC", "NumPy"}
