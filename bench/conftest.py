"""Print the speed-ups after the table of times; `--ratios FILE` keeps them."""

import importlib.metadata
import json
import platform
from pathlib import Path


def pytest_addoption(parser):
    parser.addoption("--ratios", type=Path, help="write the speed-ups over PyTorch to this JSON file")


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    ratios = {
        bench.param: bench.extra_info["vs_torch"]
        for bench in getattr(session, "benchmarks", [])
        if "vs_torch" in bench.extra_info
    }
    if not ratios:
        return
    terminalreporter.section("times faster than PyTorch eager (median of paired ratios)")
    for name, ratio in ratios.items():
        terminalreporter.write_line(f"{ratio:6.2f}  {name}")
    if config.getoption("--ratios"):
        versions = {name: importlib.metadata.version(name) for name in ("fastbn", "numpy", "numba", "torch")}
        record = {"machine": platform.machine(), "versions": versions, "forward_vs_torch_eager": ratios}
        config.getoption("--ratios").write_text(json.dumps(record, indent=1) + "\n")
