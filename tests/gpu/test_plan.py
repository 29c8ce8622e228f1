"""Launch plans hold what the kernels count on, for any shape and any GPU; the twins have the same names."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbn.backends.cuda import plan as cuda_plan
from fastbn.backends.cuda.plan import COLUMNS, H200, RESERVED, RESIDENT, STATIC, VECTOR, Device

GPUS = [
    H200,
    dataclasses.replace(H200, shared_per_block=48 << 10),  # where more cannot be asked for
    Device(108, 166912, 167936, 40 << 20),
    Device(40, 65536, 65536, 4 << 20),
    Device(1, 49152, 65536, 1 << 20),
]

SIZES = st.integers(1, 4096)


@settings(max_examples=400)
@given(
    SIZES, SIZES, st.integers(1, 100_000), st.sampled_from([2, 4, 8]), st.booleans(), st.sampled_from([1, 2]),
    st.booleans(), st.sampled_from(GPUS),
)  # fmt: skip
def test_a_plan_fits_the_gpu(N, C, S, itemsize, aligned, operands, waits, gpu):
    plan = cuda_plan.make(N, C, S, itemsize, aligned, operands, waits, gpu)
    vector = 1 if plan.scalars else VECTOR // itemsize
    assert plan.blocks >= 1
    assert plan.teams >= 1
    assert plan.room >= 0
    if waits:  # all blocks are on the chip at once, with what they keep
        at_once = RESIDENT[True] * gpu.threads // plan.threads
        assert plan.grid <= gpu.multiprocessors * at_once
        block = plan.shared + STATIC[plan.family] + RESERVED
        assert plan.room == 0 or block * at_once <= gpu.shared_per_multiprocessor
        slots, words = cuda_plan.workspace(gpu)
        assert 32 * plan.teams <= words
        assert plan.shared + STATIC[plan.family] <= gpu.shared_per_block or plan.room == 0
        assert plan.slots <= slots, "more than the workspace has"
    else:
        assert plan.room == plan.shared == 0
    assert plan.shared == plan.room * operands * plan.threads * VECTOR
    if plan.family == "apart":
        n, c, s, chunks = plan.geometry
        assert (n * s, c) == (N * S, C)
        assert chunks * vector >= s + (vector - 1 if s % vector else 0)
    else:
        rows, c, together, lanes = plan.geometry
        assert (rows * together, c) == (N, C)
        assert S == 1
        assert (c * together) % vector == 0
        assert lanes * vector <= min(COLUMNS, plan.threads)
        assert 32 % lanes == 0
        assert together == 1 or lanes * vector >= c * together


def test_a_channel_that_32_bits_do_not_count_is_refused():
    with pytest.raises(ValueError, match="x: expected at most"):
        cuda_plan.make(1 << 20, 2, 1 << 20, 4, True, 1, True, H200)


RESNET = [(32, 64, 112 * 112), (32, 256, 56 * 56), (32, 512, 28 * 28), (32, 1024, 14 * 14), (32, 2048, 7 * 7)]


@pytest.mark.parametrize(("N", "C", "S"), RESNET)
@pytest.mark.parametrize("itemsize", [2, 4])
def test_channels_of_a_network_are_kept_on_the_chip(N, C, S, itemsize):
    """Half of each at least: 256 channels of 100352 values are twice what the chip keeps, its cache has the rest."""
    plan = cuda_plan.make(N, C, S, itemsize, True, 1, True, H200)
    n, _, _, chunks = plan.geometry
    steps = -(-n * chunks // (plan.blocks * plan.threads))
    assert plan.room >= 0.5 * steps
    at_once = H200.multiprocessors * RESIDENT[True] * H200.threads
    assert plan.grid * plan.threads > 0.7 * at_once, "much of the GPU idles"


def test_a_plan_is_made_without_numba():
    code = "import sys, fastbn.backends.cuda_plan as p; p.make(2, 3, 4, 4, True, 1, True, p.H200)"
    code += "; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == "False\n", done.stderr


TWINS = """
import inspect, sys
from fastbn_kernels.cpu import backward, moments, normalize
from fastbn_kernels.build.decorators import Kernel
for own in (backward, moments, normalize):
    for name, kernel in vars(own).items():
        if isinstance(kernel, Kernel) and kernel.source.__module__ == own.__name__:
            print("cpu", own.__name__.split(".")[-1], name, *inspect.signature(kernel.source).parameters)
from fastbn_kernels.cuda import backward, moments, normalize
from fastbn_kernels.cuda.toolkit import Kernel
for own in (backward, moments, normalize):
    for name, kernel in vars(own).items():
        if isinstance(kernel, Kernel) and kernel.source.__module__ == own.__name__:
            print("cuda", own.__name__.split(".")[-1], name, *inspect.signature(kernel.source).parameters)
"""


def test_the_kernels_are_twins():
    """The same files and names; the arguments that both have stand in the same order."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    path = Path(__file__).parents[2] / "kernels"
    done = subprocess.run([sys.executable, "-c", TWINS], capture_output=True, text=True, env=environment, cwd=path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    sides = {side: {tuple(line[1:3]): line[3:] for line in lines if line[0] == side} for side in ("cpu", "cuda")}
    assert set(sides["cpu"]) == set(sides["cuda"])
    for key, arguments in sides["cuda"].items():
        other = sides["cpu"][key]
        assert [a for a in arguments if a in other] == [a for a in other if a in arguments], key


def test_what_plans_and_kernels_both_know_is_the_same():
    """Numbers that stand in two places, because plans do not import kernels."""
    folder = Path(__file__).parents[2] / "kernels" / "fastbn_kernels" / "cuda"
    for name, file in [("COLUMNS", "moments"), ("DIRECT", "reduce"), ("THREADS", "toolkit")]:
        source = (folder / f"{file}.py").read_text()
        assert f"\n{name} = {getattr(cuda_plan, name)}\n" in source
