"""The report says what the rows say; the plots can be drawn."""

from __future__ import annotations

import pytest
import report

HEADER = {"date": "2026-11-21", "processor": "a processor", "threads": 2, "last_level_cache": 32 << 20, "versions": {}}


def row(operation="forward", dtype="float32", layout="NCHW", eager=2.0, jax=3.0, nbytes=1000, **others):
    return {
        "suite": "suite", "shape": [10, 5, 5, 1], "layout": layout, "operation": operation, "dtype": dtype,
        "bytes": nbytes, "rounds": 7, "others": 0.1, "copy": "copy, plain",
        "seconds": {"fastbn": 1e-3, "PyTorch eager": eager * 1e-3, "copy, plain": 5e-4},
        "speedup": {"PyTorch eager": eager, "JAX jit": jax}, "quartiles": {"PyTorch eager": [eager, 1.6 * eager]},
        "unavailable": {"oneDNN": "why not"}, "useful_tensors": 2, "share_of_copy": 0.5,
    } | others  # fmt: skip


def record(*rows):
    return HEADER | {"rows": list(rows), "by_size": [], "by_threads": []}


def standing(*rows):
    return {(item["name"], item["operation"]): item for item in report.standing(record(*rows))}


def test_standing():
    found = standing(
        row(eager=4.0), row(eager=9.0), row("backward", eager=2.9), row(layout="NHWC", eager=0.5),
        row(dtype="bfloat16", eager=0.4, nbytes=64 << 20, speedup_over_float32=1.8), row("inference", eager=0.1),
        row(nbytes=200_000_000, share_of_copy=0.9, eager=6.0), row(nbytes=200_000_000, share_of_copy=0.7, eager=6.0),
    )  # fmt: skip
    assert found["NCHW, NCDHW and (N, C, L) against eager", "forward"]["figure"] == pytest.approx(6.0)
    assert found["NCHW, NCDHW and (N, C, L) against eager", "forward"]["met"]
    assert found["NCHW, NCDHW and (N, C, L) against eager", "backward"]["met"] is False
    assert found["NHWC and (N, C) against eager", "forward"]["figure"] == pytest.approx(0.5)
    assert found["NHWC and (N, C) against eager", "backward"]["met"] is None
    assert found["best peer of each row", "forward"]["figure"] == pytest.approx((3 * 3 * 0.5 * 3 * 3) ** 0.2)
    assert found["worst row against eager, any dtype", "forward"]["figure"] == 0.4
    assert found["share of the copy, 100 MB and more, float32", "forward"]["figure"] == pytest.approx(0.63**0.5)
    assert found["the same, worst row", "forward"]["figure"] == 0.7
    assert found["bfloat16 over float32, from memory", "forward"]["met"]
    assert found["float16 over float32, from memory", "forward"]["met"] is None


def test_page_and_files(tmp_path):
    found = record(row(), row("backward", eager=0.8), row("backward", speedup={}))
    report.write(found, tmp_path / "cpu")
    assert report.read(tmp_path / "cpu.json") == found
    page = (tmp_path / "cpu.md").read_text()
    assert "| suite | 10 x 5 x 5 x 1 NCHW | backward | float32 | 1 | **0.80** | - | - | 3.00 | - | 0.50 | - |" in page
    assert "- oneDNN: why not" in page
    assert "Other programs took more than 5% of the processor in 3 of 3 rows." in page
    assert any("more than 1.5 times apart): 3 rows" in line for line in report.summary(found))
    assert any("slower than PyTorch eager: 1 of 3 rows" in line for line in report.summary(found))


def test_plots(tmp_path):
    pytest.importorskip("matplotlib", reason="Matplotlib is not installed; it comes with the extra `demo`")
    import plots

    found = record(row(), row("backward"), row(layout="NHWC", eager=0.5), row(speedup={}, seconds=row()["seconds"]))
    found["by_size"] = [row(nbytes=10), row(layout="NHWC")]
    found["by_threads"] = [row(threads=1), row(threads=2), row("backward", threads=1)]
    assert [path.name for path in plots.draw(found, tmp_path)] == [f"bench-{name}.png" for name in plots.PLOTS]
    assert plots.draw(record(), tmp_path) == []
