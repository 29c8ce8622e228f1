"""Time against size and against threads, for the curves; `make bench` draws them."""

from __future__ import annotations

import contextlib

import limit
import numba
import pytest
import rows
import suites
from peers import EAGER, jax_jit, numpy_plain, torch_eager
from problem import Unavailable


def counts() -> list[int]:
    """Return 1, 2, 4, ... and the number of threads there are."""
    most = numba.config.NUMBA_NUM_THREADS
    return sorted({most} | {1 << i for i in range(most.bit_length()) if 1 << i <= most})


def prepared(case, benchmark):
    return case if benchmark.enabled else case.shrunk()


@pytest.mark.parametrize("case", suites.SIZES, ids=lambda case: case.id)
def test_size(benchmark, case, record, settings):
    peers = [EAGER, jax_jit.NAME, numpy_plain.NAME]
    run, row = rows.measure(prepared(case, benchmark), "forward", "float32", peers, **settings)
    record("by_size", row)
    benchmark.pedantic(run.call, rounds=3)


@pytest.mark.parametrize("threads", counts())
@pytest.mark.parametrize("operation", ["forward", "backward"])
@pytest.mark.parametrize("case", suites.THREADS, ids=lambda case: case.id)
def test_threads(benchmark, case, operation, threads, record, settings):
    limit.threads.make_tbb_loadable()
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(Unavailable):
                stack.enter_context(torch_eager.threads(threads))
            run, row = rows.measure(prepared(case, benchmark), operation, "float32", [EAGER], **settings)
            record("by_threads", row | {"threads": threads})
            benchmark.pedantic(run.call, rounds=3)
    finally:
        numba.set_num_threads(before)
