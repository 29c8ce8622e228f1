"""Launch plans hold what the kernels count on, for any shape and any GPU; the twins have the same names."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastbn.backends.cuda import plan as cuda_plan
from fastbn.backends.cuda.plan import BARRIER, BLOCKS_PER_SM, COLUMNS, H200, RESERVED, STATIC, VECTOR, Device
from simulated import gpu_vector

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
def test_a_plan_fits_the_gpu(N, C, S, itemsize, aligned, operands, cooperative, gpu):
    plan = cuda_plan.make(N, C, S, itemsize, aligned, operands, cooperative, gpu)
    vector = 1 if plan.scalars else VECTOR // itemsize
    assert plan.blocks >= 1
    assert plan.block_groups >= 1
    assert plan.smem_vectors >= 0
    if cooperative:  # all blocks are on the chip at once, with what they keep
        at_once = BLOCKS_PER_SM[True] * gpu.threads // plan.threads
        assert plan.grid <= gpu.multiprocessors * at_once
        block = plan.shared + STATIC[plan.family] + RESERVED
        assert plan.smem_vectors == 0 or block * at_once <= gpu.shared_per_multiprocessor
        slots, words = cuda_plan.workspace(gpu)
        assert BARRIER * plan.block_groups <= words
        assert plan.shared + STATIC[plan.family] <= gpu.shared_per_block or plan.smem_vectors == 0
        assert plan.slots <= slots, "more than the workspace has"
    else:
        assert plan.smem_vectors == plan.shared == 0
    assert plan.shared == plan.smem_vectors * operands * plan.threads * VECTOR
    if plan.family == "channels_first":
        n, c, s, chunks = plan.geometry
        assert (n * s, c) == (N * S, C)
        assert chunks * vector >= s + (vector - 1 if s % vector else 0)
    else:
        rows, c, together, row_threads = plan.geometry
        assert (rows * together, c) == (N, C)
        assert S == 1
        assert (c * together) % vector == 0
        assert row_threads * vector <= min(COLUMNS, plan.threads)
        assert 32 % row_threads == 0
        assert together == 1 or row_threads * vector >= c * together


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
    assert plan.smem_vectors >= 0.5 * steps
    at_once = H200.multiprocessors * BLOCKS_PER_SM[True] * H200.threads
    assert plan.grid * plan.threads > 0.7 * at_once, "much of the GPU idles"


def test_a_plan_is_made_without_numba():
    code = "import sys, fastbn.backends.cuda.plan as p; p.make(2, 3, 4, 4, True, 1, True, p.H200)"
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
from fastbn_kernels.cuda.build.decorators import Kernel
for own in (backward, moments, normalize):
    for name, kernel in vars(own).items():
        if isinstance(kernel, Kernel) and kernel.source.__module__ == own.__name__:
            print("cuda", own.__name__.split(".")[-1], name, *inspect.signature(kernel.source).parameters)
"""


def test_the_kernels_are_twins():
    """The same files and names; the arguments that both have stand in the same order."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join((str(root / "kernels"), str(root / "tests")))
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", TWINS], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    sides = {side: {tuple(line[1:3]): line[3:] for line in lines if line[0] == side} for side in ("cpu", "cuda")}
    # The CPU has kernels besides for shapes with too few channels for its threads; a plan of blocks covers those.
    assert {key for key in sides["cpu"] if key[1].endswith(("_channels_first", "_channels_last"))} == set(sides["cuda"])
    for key, arguments in sides["cuda"].items():
        other = sides["cpu"][key]
        assert [a for a in arguments if a in other] == [a for a in other if a in arguments], key


def test_the_simulated_gpu_has_every_operation_on_vectors():
    folder = Path(__file__).parents[2] / "kernels" / "fastbn_kernels" / "cuda" / "simd"
    source = "".join((folder / name).read_text() for name in ("memory.py", "arithmetic.py", "tail_ops.py"))
    operations = re.findall(r"^def (\w+)\(typingctx", source, re.M) + re.findall(
        r"^(\w+) = (?:loader|elementwise)\(", source, re.M
    )
    assert sorted(operations) == gpu_vector.__all__


def test_loops_do_not_compute_elements():
    """What was loaded goes through `element`, so that what is done after the normalization is no business of theirs."""
    folder = Path(__file__).parents[2] / "kernels" / "fastbn_kernels" / "cuda"
    for file in (folder / "loops").glob("*.py"):
        assert not re.search(r"\bdecoded\(\w+, (raw|g)\d\)", file.read_text()), file


@pytest.mark.parametrize(
    ("value", "file", "name"),
    [
        (cuda_plan.COLUMNS, "moments.py", "COLUMNS"),
        (cuda_plan.DIRECT, "reduce.py", "DIRECT"),
        (cuda_plan.BARRIER, "barrier.py", "BARRIER"),
        (cuda_plan.THREADS, "build/decorators.py", "THREADS"),
        (cuda_plan.STATIC["channels_last"], "gpu.py", "STATIC_SHARED"),
    ],
)
def test_what_plans_and_kernels_both_know_is_the_same(value, file, name):
    """Numbers that stand in two places, because plans do not import kernels."""
    folder = Path(__file__).parents[2] / "kernels" / "fastbn_kernels" / "cuda"
    assert f"\n{name} = {value}\n" in (folder / file).read_text()


def test_a_wheel_says_what_the_simulated_gpu_needs():
    """Without the folder of the tests on the path there is none."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": ""}
    kernels = str(Path(__file__).parents[2] / "kernels")
    code = f"import sys; sys.path.insert(0, {kernels!r}); import fastbn_kernels.cuda.gpu"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=kernels)
    assert "ImportError: NUMBA_ENABLE_CUDASIM=1 needs the simulated GPU" in done.stderr


def test_numpy_is_as_it_was_after_the_import_of_numba_cuda():
    """NumPy 2.5 has no `row_stack`, which numba-cuda looks up; whoever asks NumPy later must not find it."""
    code = "import numpy as np; del np.row_stack; import fastbn_kernels.cuda.build.numba_cuda as n; print("
    code += "hasattr(np, 'row_stack'), n.SIMULATED)"
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "0"}
    kernels = Path(__file__).parents[2] / "kernels"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=kernels)
    assert done.stdout == "False False\n", done.stderr
