"""Turn the knobs of launch plans: the plan that a shape gets, with another number of blocks, threads or vectors kept.

blocks    blocks a team
per_sm    blocks on a multiprocessor at once; the compiler's bound on registers follows
threads   threads a block
room      vectors of each operand that a thread keeps, if they fit
lanes     threads side by side in a row, where channels are adjacent
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
from fastbn_kernels.cuda import toolkit

# Workspace is for so many blocks a multiprocessor, where plans are turned.
MOST = 8


def steps(own: Plan) -> int:
    """Return the vectors that each thread of a team takes of a channel or of a group of columns."""
    outer, _, _, last = own.geometry
    if own.family == "apart":
        return -(-outer * last // (own.blocks * own.threads))
    return -(-outer // (own.blocks * (own.threads // last)))


def groups(own: Plan, itemsize: int) -> int:
    """Return the channels, or groups of columns, that the teams take."""
    _, C, together, lanes = own.geometry
    if own.family == "apart":
        return C
    vector = 1 if own.scalars else cuda_plan.VECTOR // itemsize
    return -(-C * together // (lanes * vector))


def turn(own: Plan, itemsize: int, operands: int, waits: bool, device: Device, **given: int) -> Plan:
    """Return a plan that the kernels can run, with the knobs given."""
    threads = given.get("threads", own.threads)
    if threads % cuda_plan.WARP or threads > cuda_plan.THREADS or given.get("per_sm", 1) > MOST:
        raise ValueError(
            f"expected whole warps, {cuda_plan.THREADS} threads at most, and per_sm <= {MOST}, got {given}"
        )
    if "lanes" in given and own.family == "adjacent":
        if own.geometry[2] > 1:
            raise ValueError("lanes: the channels of joined rows must be of one group")
        vector = 1 if own.scalars else cuda_plan.VECTOR // itemsize
        if given["lanes"] > 32 or given["lanes"] * vector > cuda_plan.COLUMNS:
            raise ValueError(f"lanes: expected at most {cuda_plan.COLUMNS} columns, got {given['lanes']} of {vector}")
        own = replace(own, geometry=(*own.geometry[:3], given["lanes"]))
    # Registers are bounded for blocks of `device.threads`; smaller ones leave room for more.
    per_sm = given.get("per_sm", own.resident * device.threads // threads)
    resident = max(1, math.ceil(per_sm * threads / device.threads))
    channels = groups(own, itemsize)
    if not waits:
        blocks = given.get("blocks", -(-own.blocks * own.threads // threads))
        return replace(own, blocks=blocks, teams=channels, threads=threads, resident=resident)
    most = device.multiprocessors * per_sm
    blocks = min(given.get("blocks", own.blocks), most)
    own = replace(own, blocks=blocks, teams=max(1, min(channels, most // blocks)), threads=threads, resident=resident)
    fits = cuda_plan.capacity(replace(device, threads=threads), own.family, per_sm, operands)
    room = min(given.get("room", fits), fits, steps(own))
    return replace(own, room=room, shared=room * operands * threads * cuda_plan.VECTOR)


@contextlib.contextmanager
def turned(**given: int) -> Iterator[list[dict[str, Any]]]:
    """Let every launch get a plan with these knobs, and record the plans; without knobs record alone."""
    original = cuda.plan
    plans: list[dict[str, Any]] = []

    def plan(data: tuple[Any, ...], operands: int, waits: bool) -> Plan:
        own = original(data, operands, waits)
        itemsize = data[0].itemsize
        if given:
            own = turn(own, itemsize, operands, waits, cuda.device(), **given)
        if len(plans) < 100:
            taken = steps(own)
            kept = not waits or taken <= own.room
            plans.append(asdict(own) | {"waits": waits, "operands": operands, "steps": taken, "kept": kept})
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
    before, resident = cuda.workspace, cuda_plan.RESIDENT[True]
    launch_cache.forget()  # launches that are repeated with the workspace of before
    cuda.workspace = cuda.Workspace()
    cuda_plan.RESIDENT[True] = MOST
    try:
        with cuda.workspace._lock:  # allocated while the constant is that of the largest plan
            cuda.workspace._allocate()
        cuda_plan.RESIDENT[True] = resident
        toolkit.numba_cuda.synchronize()
        yield
        toolkit.numba_cuda.synchronize()
    finally:
        launch_cache.forget()
        cuda.workspace = before
        cuda_plan.RESIDENT[True] = resident
