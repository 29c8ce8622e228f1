"""Turn the knobs of launch plans: the plan that a shape gets, with another number of blocks, threads or vectors kept.

blocks        blocks a group
per_sm        blocks on a multiprocessor at once; the compiler's bound on registers follows
threads       threads a block
smem_vectors  vectors of each operand that a thread keeps, if they fit
row_threads   threads side by side in a row, channels last
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from fastbn.backends.cuda import launch as cuda
from fastbn.backends.cuda import launch_cache
from fastbn.backends.cuda import plan as cuda_plan
from fastbn.backends.cuda.plan import Device, Plan
from fastbn_kernels.cuda import gpu

# Workspace is for so many blocks a multiprocessor, where plans are turned.
MOST = 8


def steps(own: Plan) -> int:
    """Return the vectors that each thread of a group of blocks takes of a channel or of a group of columns."""
    outer, _, _, last = own.geometry
    if own.family == "channels_first":
        return -(-outer * last // (own.blocks * own.threads))
    return -(-outer // (own.blocks * (own.threads // last)))


def groups(own: Plan, itemsize: int) -> int:
    """Return the channels, or groups of columns, that the groups of blocks take."""
    _, C, together, row_threads = own.geometry
    if own.family == "channels_first":
        return C
    vector = 1 if own.scalars else cuda_plan.VECTOR // itemsize
    return -(-C * together // (row_threads * vector))


def turn(own: Plan, itemsize: int, operands: int, cooperative: bool, device: Device, **given: int) -> Plan:
    """Return a plan that the kernels can run, with the knobs given."""
    threads = given.get("threads", own.threads)
    if threads % cuda_plan.WARP or threads > cuda_plan.THREADS or given.get("per_sm", 1) > MOST:
        raise ValueError(
            f"expected whole warps, {cuda_plan.THREADS} threads at most, and per_sm <= {MOST}, got {given}"
        )
    if "row_threads" in given and own.family == "channels_last":
        if own.geometry[2] > 1:
            raise ValueError("row_threads: the channels of joined rows must be of one group")
        vector = 1 if own.scalars else cuda_plan.VECTOR // itemsize
        if given["row_threads"] > 32 or given["row_threads"] * vector > cuda_plan.COLUMNS:
            raise ValueError(
                f"row_threads: expected at most {cuda_plan.COLUMNS} columns, got {given['row_threads']} of {vector}"
            )
        own = replace(own, geometry=(*own.geometry[:3], given["row_threads"]))
    # Registers are bounded for blocks of `device.threads`; of smaller ones more fit.
    per_sm = given.get("per_sm", own.blocks_per_sm * device.threads // threads)
    blocks_per_sm = max(1, math.ceil(per_sm * threads / device.threads))
    channels = groups(own, itemsize)
    if not cooperative:
        blocks = given.get("blocks", -(-own.blocks * own.threads // threads))
        return replace(own, blocks=blocks, block_groups=channels, threads=threads, blocks_per_sm=blocks_per_sm)
    most = device.multiprocessors * per_sm
    blocks = min(given.get("blocks", own.blocks), most)
    own = replace(
        own,
        blocks=blocks,
        block_groups=max(1, min(channels, most // blocks)),
        threads=threads,
        blocks_per_sm=blocks_per_sm,
    )
    fits = cuda_plan.capacity(replace(device, threads=threads), own.family, per_sm, operands)
    smem_vectors = min(given.get("smem_vectors", fits), fits, steps(own))
    return replace(own, smem_vectors=smem_vectors, shared=smem_vectors * operands * threads * cuda_plan.VECTOR)


@contextlib.contextmanager
def turned(**given: int) -> Iterator[list[dict[str, Any]]]:
    """Let every launch get a plan with these knobs, and record the plans; without knobs record alone."""
    original = cuda.plan
    plans: list[dict[str, Any]] = []

    def plan(data: tuple[Any, ...], operands: int, cooperative: bool) -> Plan:
        own = original(data, operands, cooperative)
        itemsize = data[0].itemsize
        if given:
            own = turn(own, itemsize, operands, cooperative, cuda.device(), **given)
        if len(plans) < 100:
            taken = steps(own)
            kept = not cooperative or taken <= own.smem_vectors
            plans.append(asdict(own) | {"cooperative": cooperative, "operands": operands, "steps": taken, "kept": kept})
        return own

    launch_cache.forget()  # launches that are repeated without a plan
    cuda.plan = plan
    try:
        yield plans
    finally:
        cuda.plan = original
        launch_cache.forget()


@contextlib.contextmanager
def roomy_workspace() -> Iterator[None]:
    """Give launches workspace for more blocks than plans of fastbn's own have."""
    before, blocks_per_sm = cuda.workspace, cuda_plan.BLOCKS_PER_SM[True]
    launch_cache.forget()  # launches that are repeated with the workspace of before
    cuda.workspace = cuda.Workspace()
    cuda_plan.BLOCKS_PER_SM[True] = MOST
    try:
        with cuda.workspace._lock:  # allocated while the constant is that of the largest plan
            cuda.workspace._allocate()
        cuda_plan.BLOCKS_PER_SM[True] = blocks_per_sm
        gpu.synchronize()
        yield
        gpu.synchronize()
    finally:
        launch_cache.forget()
        cuda.workspace = before
        cuda_plan.BLOCKS_PER_SM[True] = blocks_per_sm
