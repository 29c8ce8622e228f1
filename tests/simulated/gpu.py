"""A GPU in Python: every thread of every block is a greenlet, and all blocks are on the chip at once.

Numba's own simulator runs one block after another, so that blocks that wait for each other would wait for ever. Here
whoever waits, at a barrier of its block or for a word that another block writes, hands over to a thread drawn at
random: a result that depends on the order moves from run to run. Three mistakes that hang or corrupt a real GPU are
errors: threads of a block that wait at different barriers, barriers that nobody can leave, and shared memory beyond
what the launch asked for.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet

WARP = 32

# Passes over all threads without anything but spinning before the launch is given up.
PATIENCE = 100


class Dim3:
    """An index or a size along x, all that these kernels use."""

    def __init__(self, x: int) -> None:
        self.x = x


class Block:
    """The memory that the threads of a block share, and those of them that wait."""

    def __init__(self, index: int, threads: int, shared: int) -> None:
        self.index = Dim3(index)
        self.static: dict[Any, Any] = {}
        self.dynamic = np.full(shared, 0xA5, np.uint8)  # poisoned: memory comes with whatever was there
        self.waiting: dict[Any, Any] = {}  # thread -> where in the source it waits
        self.alive = threads
        self.warp_words: dict[int, list[Any]] = {}


class Thread(greenlet):  # type: ignore[misc]
    """One thread of a kernel."""

    def __init__(self, block: Block, index: int, size: int, grid: int, run: Callable[[], Any]) -> None:
        super().__init__(run)
        self.block = block
        self.index = Dim3(index)
        self.size = Dim3(size)
        self.grid = Dim3(grid)
        self.spinning = False


class Shared:
    """`cuda.shared`."""

    @staticmethod
    def array(shape: int, dtype: Any, alignment: int = 0) -> Any:
        """Return this block's array: the same for all its threads, told apart by the line that asks."""
        block = getcurrent().block
        dtype = np.dtype(dtype)
        if shape == 0:
            return block.dynamic.view(dtype)
        frame = sys._getframe(1)
        place = frame.f_code, frame.f_lineno
        if place not in block.static:
            block.static[place] = np.frombuffer(b"\xa5" * (shape * dtype.itemsize), dtype).copy()
        return block.static[place]


class Module:
    """What kernels name `cuda`."""

    shared = Shared

    @property
    def threadIdx(self) -> Dim3:  # noqa: N802 - CUDA's name
        return getcurrent().index  # type: ignore[no-any-return]

    @property
    def blockIdx(self) -> Dim3:  # noqa: N802
        return getcurrent().block.index  # type: ignore[no-any-return]

    @property
    def blockDim(self) -> Dim3:  # noqa: N802
        return getcurrent().size  # type: ignore[no-any-return]

    @property
    def gridDim(self) -> Dim3:  # noqa: N802
        return getcurrent().grid  # type: ignore[no-any-return]

    @staticmethod
    def syncthreads() -> None:
        """Wait for all threads of the block."""
        frame = sys._getframe(1)
        wait((frame.f_code, frame.f_lineno))

    @staticmethod
    def syncthreads_or(flag: bool) -> bool:
        """Wait likewise and return whether any thread of the block came with a true flag."""
        frame = sys._getframe(1)
        thread = getcurrent()
        thread.block.warp_words[thread.index.x] = bool(flag)
        wait((frame.f_code, frame.f_lineno))
        any_ = any(thread.block.warp_words[i] for i in range(thread.size.x))
        wait((frame.f_code, frame.f_lineno, "read"))
        return any_


cuda = Module()


def wait(place: Any) -> None:
    """Wait for all threads of the block, which must come to the same place."""
    thread = getcurrent()
    thread.block.waiting[thread] = place
    thread.parent.switch()


def spin() -> None:
    """Let others run: this thread waits for a word in memory."""
    thread = getcurrent()
    thread.spinning = True
    thread.parent.switch()


def warp_exchange(value: Any) -> list[Any]:
    """Return what every thread of the warp came with, in order; all threads of the block must call it."""
    thread = getcurrent()
    words = thread.block.warp_words
    words[thread.index.x] = value
    wait("warp")
    first = thread.index.x // WARP * WARP
    values = [words[first + i] for i in range(WARP)]
    wait("warp read")
    return values


def warp_sum(value: Any, least: int) -> Any:
    """Add the values of the lanes that are equal modulo `least`, in the order of the exchanges on a GPU."""
    values = warp_exchange(value)
    step = WARP // 2
    while step >= least:
        values = [values[i] + values[i ^ step] for i in range(WARP)]
        step //= 2
    return values[cuda.threadIdx.x % WARP]


def launch(function: Callable[..., Any], grid: int, threads: int, shared: int, arguments: tuple[Any, ...]) -> None:
    """Run a kernel to its end."""
    if threads % WARP:
        raise ValueError(f"threads: expected whole warps of {WARP}, got {threads}")

    def run() -> None:
        with np.errstate(all="ignore"):  # a processor does not warn either; the setting is the greenlet's own
            function(*arguments)

    blocks = [Block(index, threads, shared) for index in range(grid)]
    ready = [Thread(block, index, threads, grid, run) for block in blocks for index in range(threads)]
    idle = 0
    while ready:
        random.shuffle(ready)
        runnable, ready = ready, []
        progress = False
        for thread in runnable:
            thread.spinning = False
            thread.switch()
            progress |= not thread.spinning
            if thread.dead:
                thread.block.alive -= 1
            elif thread not in thread.block.waiting:
                ready.append(thread)
        for block in blocks:
            if block.waiting and len(block.waiting) == block.alive:
                if len(set(block.waiting.values())) > 1:
                    raise RuntimeError(f"threads of a block wait at different barriers: {set(block.waiting.values())}")
                ready.extend(block.waiting)
                block.waiting.clear()
                progress = True
        idle = 0 if progress else idle + 1
        if idle > PATIENCE:
            raise RuntimeError("every thread waits for another: no block can go on")
    if any(block.waiting for block in blocks):
        raise RuntimeError("threads wait at a barrier that others of their block have left for good")
