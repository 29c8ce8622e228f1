"""What fastbn is compared with computes the same: every peer, against plain NumPy, on shrunk cases."""

from __future__ import annotations

import os
import subprocess
import sys

import limit
import numpy as np
import others
import plan
import pytest
import suites
from peers import PEERS, jax_jit, numpy_plain, torch_compiled
from problem import DTYPES, OPERATIONS, Unavailable, check, draw

CASES = [case.shrunk() for case in suites.CORE]
# JAX takes a third of a second to compile, torch.compile seconds; NumPy is the reference.
SLOW = {jax_jit.NAME, torch_compiled.NAME}
QUICK = [name for name in PEERS if name not in SLOW | {numpy_plain.NAME}]


def agrees(name, case, operation, dtype):
    try:
        problem = draw(case, dtype, operation)
        run = PEERS[name].build(problem, operation)
        found = run.arrays(run.call())
    except Unavailable as reason:
        pytest.skip(str(reason))
    check(name, found, numpy_plain.build(problem, operation).call(), dtype)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.layout)
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_peer(name, case, operation, dtype):
    agrees(name, case, operation, dtype)


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.layout)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("operation", ["inference", "both"])
def test_jax(case, operation, dtype):
    agrees(jax_jit.NAME, case, operation, dtype)


@pytest.mark.parametrize("operation", ["both"])
def test_torch_compile(operation):
    agrees(torch_compiled.NAME, CASES[0], operation, "float32")


def test_a_wrong_result_is_noticed():
    problem = draw(CASES[0], "float32", "forward")
    right = numpy_plain.build(problem, "forward").call()
    wrong = right["y"].copy()
    wrong.flat[-1] += 0.1
    with pytest.raises(AssertionError, match="y is off by"):
        check("it", {"y": wrong}, right, "float32")
    wrong.flat[-1] = np.nan
    with pytest.raises(AssertionError):
        check("it", {"y": wrong}, right, "float32")


@pytest.mark.parametrize("nbytes", [4, 1000, 8 * limit.PIECE + 40, 1 << 20])
def test_copies_copy(nbytes):
    for copy in limit.copies(nbytes).values():
        source, target = (copy.__closure__[i].cell_contents for i in (0, 1))
        target[...] = 0
        copy()
        np.testing.assert_array_equal(target, source)


def test_what_must_be_moved():
    large, narrow, rows = (suites.BY_ID[f"large-{name}"] for name in (
        "128x64x112x112-NCHW", "64x64x112x112-NCHW", "64x112x112x64-NHWC"))  # fmt: skip
    cache = 32 << 20
    assert limit.useful_tensors(large, 4, "forward", cache) == limit.useful_tensors(narrow, 4, "forward", cache) == 2
    assert limit.useful_tensors(rows, 4, "forward", cache) == 3
    assert limit.useful_tensors(rows, 4, "backward", cache) == 5
    assert limit.useful_tensors(suites.BY_ID["mlp-262144x128-NC"], 4, "backward", cache) == 3


def test_plans_are_whole():
    assert len({case.id for case in suites.CASES}) == len(suites.CASES)
    full = {(entry.case, entry.operation, entry.dtype) for entry in plan.full()}
    assert {(entry.case, entry.operation, entry.dtype) for entry in plan.quick()} <= full
    assert {(operation, dtype) for _, operation, dtype in full} >= {(o, d) for o in OPERATIONS for d in DTYPES}


def test_others_are_noticed():
    """A process is not one of the others to itself; its child is."""
    if (share := others.Watch().share()) is None:
        pytest.skip("the system does not say what its processors do")
    assert share >= 0
    code = "import time; end = time.perf_counter() + 0.5\nwhile time.perf_counter() < end: pass"
    watch = others.Watch()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert watch.share() > 0.3 / os.cpu_count()
