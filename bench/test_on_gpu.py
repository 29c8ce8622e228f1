"""`bench/on_gpu.py` end to end, in the simulator, and that a job which breaks its process costs no other."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent
SIMULATED = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
NEEDED = ("numba_cuda", "greenlet")

needs_simulator = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason=f"needs {' and '.join(NEEDED)}"
)

# The file is parent and child of its own.
JOBS = f"""
import json, os, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, {str(BENCH)!r})
from gpu import jobs

def fine(given, tell):
    tell({{"ok": True, "value": given["value"]}})

def raises(given, tell):
    raise ValueError("no")

def dies(given, tell):
    tell({{"ok": True, "value": "before"}})
    print("last words", flush=True)
    os._exit(9)

def hangs(given, tell):
    time.sleep(600)

names = {{"fine": fine, "raises": raises, "dies": dies, "hangs": hangs}}
if len(sys.argv) > 1:
    sys.exit(jobs.work(Path(sys.argv[1]), Path(sys.argv[2]), names, lambda: False))
jobs.PATIENCE = 2.0
order = ["fine", "raises", "fine", "dies", "fine", "hangs", "fine"]
with tempfile.TemporaryDirectory() as name:
    made = [jobs.Job(section, f"{{section}} {{i}}", {{"value": i}}) for i, section in enumerate(order)]
    late = dict.fromkeys(names, time.time() + 60)
    lanes = [
        jobs.Lane("all", made, Path(name), [sys.executable, __file__], late),
        jobs.Lane("too late", made[:1], Path(name), [sys.executable, __file__], {{"fine": time.time() - 1}}),
    ]
    rows = []
    jobs.run(lanes, lambda *row: rows.append(row))
print(json.dumps(rows))
"""


def test_a_job_that_breaks_its_process_costs_no_other(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(JOBS)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = [(job, row) for _, job, row in json.loads(done.stdout) if set(row) != {"seconds"}]
    assert [row["value"] for job, row in rows if job.startswith("fine") and "value" in row] == [0, 2, 4, 6]
    assert [row["skipped"] for job, row in rows if "skipped" in row] == ["no time was left"]
    errors = {job: row["error"] for job, row in rows if row.get("ok") is False}
    assert errors["raises 1"] == "ValueError: no"
    assert "ended with 9: last words" in errors["dies 3"]
    assert "nothing was heard for 2 s" in errors["hangs 5"]
    assert ("dies 3", {"ok": True, "value": "before"}) in rows
    assert len(errors) == 3


@needs_simulator
def test_everything_in_the_simulator(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, str(BENCH / "on_gpu.py"), "--tiny", "--out", str(out), "--seed", "7"]
    done = subprocess.run(command, env=SIMULATED, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = json.loads(out.read_text())
    assert found["finished"]
    assert found["seed"] == 7
    assert found["machine"]["name"] == "simulator"
    assert found["machine"]["plan_device"]["multiprocessors"] > 0
    sections = found["sections"]
    assert set(sections) == {"checks", "copy", "timing", "launch", "compiled", "huge", "sweep"}
    assert all(sections.values())

    checks = sections["checks"]
    assert all(row.get("ok") is True or "skipped" in row for row in checks)
    whats = {row["what"] for row in checks if row.get("ok")}
    assert whats == {
        "training", "backward", "frozen", "moments", "sums", "shared", "in place", "nan", "allocated",
        "tail", "mask", "ghosts", "renorm", "from y",
    }  # fmt: skip
    for dtype in ("float32", "exact", "float64", "float16", "bfloat16"):  # 16 bits are too few to go back from y
        assert sum(dtype in row["id"] and row.get("ok", False) for row in checks) >= 2 * (len(whats) - 1)

    assert {row["operation"] for row in sections["timing"]} == {"forward", "inference", "backward"}
    for row in sections["timing"]:
        assert row["ok"], row
        assert row["gb_per_s"] > 0
        assert row["share"] > 0
        assert row["plan"]["steps"] >= 1
        assert row["tensors"] == {"forward": 2, "inference": 2, "backward": 3}[row["operation"]]
        assert set(row["unavailable"]) == {"PyTorch", "cuDNN", "graphs"}
    assert {row["who"] for row in sections["launch"]} == {"fastbn", "copy"}
    assert any(row["large"] for row in sections["copy"])
    assert {row["knobs"] for row in sections["sweep"]} >= {"as planned", "blocks=2"}
    assert all("skipped" in row for row in sections["compiled"] + sections["huge"])
    assert "failures: 0" in done.stdout


@needs_simulator
def test_only_some_sections_and_knobs_from_the_command_line(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, str(BENCH / "on_gpu.py"), "--tiny", "--out", str(out), "--only", "sweep"]
    knobs = ["--sweep", "blocks=1,2", "smem_vectors=0"]
    done = subprocess.run([*command, *knobs], env=SIMULATED, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    sections = json.loads(out.read_text())["sections"]
    assert not sections["checks"]
    rows = [row for row in sections["sweep"] if row["operation"] == "forward"]
    assert [row["knobs"] for row in rows] == ["as planned", "blocks=1 smem_vectors=0", "blocks=2 smem_vectors=0"]
    assert [(row["plan"]["blocks"], row["plan"]["smem_vectors"]) for row in rows[1:]] == [(1, 0), (2, 0)]


def test_a_knob_that_is_none(tmp_path):
    command = [sys.executable, str(BENCH / "on_gpu.py"), "--out", str(tmp_path / "x.json"), "--sweep", "speed=11"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "--sweep: expected blocks|per_sm|threads|smem_vectors|row_threads=VALUE,..., got 'speed=11'" in done.stderr
