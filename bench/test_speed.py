"""The speed of fastbn beside its peers and the copy limit: a row a case, operation and dtype.

`make bench` measures everything, `make bench-quick` a selection; some rows alone:

    pytest bench/test_speed.py -k "resnet50 and NHWC and backward"

Every result is checked against plain NumPy's first, so that a wrong kernel cannot win. With `--benchmark-disable` each
row is a test of the harness, on a shrunk case.
"""

from __future__ import annotations

import plan
import pytest
import rows
from peers import EAGER
from problem import Unavailable


def pytest_generate_tests(metafunc):
    config = metafunc.config
    if config.getoption("benchmark_disable"):
        entries = plan.smoke()
    else:
        entries = plan.quick() if config.getoption("quick") else plan.full()
    metafunc.parametrize("entry", [pytest.param(entry, id=entry.id) for entry in entries])


def test_speed(benchmark, entry, record, settings):
    with_float32 = entry.dtype in plan.SIXTEEN_BITS
    try:
        run, row = rows.measure(
            entry.case, entry.operation, entry.dtype, entry.peers, with_float32=with_float32, **settings
        )
    except Unavailable as reason:
        pytest.skip(str(reason))
    record("rows", row)
    seconds = row["seconds"]["fastbn"]
    iterations = max(1, int(1e-3 / seconds))
    benchmark.pedantic(run.call, rounds=max(3, min(30, int(0.1 / seconds))), iterations=iterations)
    benchmark.extra_info.update(row)
    # The one promise that is a test: the others are shown in the report as they are. Of a megabyte and more, that is:
    # below, a row is as much about calls as about kernels.
    forward = entry.case.apart and entry.operation == "forward" and entry.dtype == "float32"
    if benchmark.enabled and forward and row["bytes"] >= 1 << 20:
        assert row["speedup"].get(EAGER, 1) >= 1
