"""Collect the rows of a run and print how they stand against the targets; `--write STEM` keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest
import report


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="a selection of the benchmarks, in three minutes")
    parser.addoption("--write", type=Path, metavar="STEM", help="write the rows to STEM.json and STEM.md")


def pytest_configure(config):
    config.bench_rows = {"rows": [], "by_size": [], "by_threads": []}


@pytest.fixture
def record(request):
    """Keep a row under the name of its table."""
    return lambda table, row: request.config.bench_rows[table].append(row)


@pytest.fixture
def settings(request):
    """How long to measure."""
    if request.config.getoption("benchmark_disable"):
        return {"seconds": 0.0, "rounds": (1, 1)}
    return {"seconds": 0.2} if request.config.getoption("quick") else {}


@pytest.hookimpl(trylast=True)  # below the table of times
def pytest_terminal_summary(terminalreporter, config):
    tables = config.bench_rows
    if not any(tables.values()) or config.getoption("benchmark_disable"):
        return
    found = report.header() | tables
    terminalreporter.section("targets")
    for line in report.summary(found):
        terminalreporter.write_line(line)
    stem = config.getoption("--write")
    if stem:
        report.write(found, stem)
        terminalreporter.write_line(f"\nwritten to {stem}.json and {stem}.md")
