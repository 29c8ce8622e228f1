"""Kernels compiled in several processes at once, into the cache that all of them share: for `fastbn.warmup`.

Each process is this module, run. It is told one kernel at a time and answers what it did, so that all are busy until
the end. Kernels of one dtype and one order of axes share most of their functions, which a process types once: it is
given those of one kind as long as there are any.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np

Task: TypeAlias = tuple[Any, np.dtype[Any], bool]

COMPILED, LOADED, NOT_KEPT = "compiled", "loaded", "not kept"


def compile_apart(tasks: Sequence[Task], processes: int, done: Callable[[str], None]) -> set[int]:
    """Compile kernels in other processes; return the indices of those that were compiled, and not found in the cache.

    `done` is called with the name of each that is through. What a process failed to do is left to the caller, and so is
    all the rest once there turns out to be no cache for it.
    """
    waiting = dict(enumerate(tasks))
    compiled: set[int] = set()
    lock = threading.Lock()

    def take(kind: Any) -> tuple[int, Task] | None:
        with lock:
            fitting = [index for index, task in waiting.items() if _kind(task) == kind] or list(waiting)
            return (fitting[0], waiting.pop(fitting[0])) if fitting else None

    def keep_busy() -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", __name__]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            kind: Any = None
            while (taken := take(kind)) is not None:
                index, (kernel, dtype, parallel) = taken
                kind = _kind(taken[1])
                try:
                    print(kernel.name, dtype.char, int(parallel), file=process.stdin, flush=True)
                except OSError:  # it has died
                    return
                answer = process.stdout.readline().strip()
                if answer not in (COMPILED, LOADED):
                    if answer == NOT_KEPT:
                        waiting.clear()
                    return
                with lock:
                    if answer == COMPILED:
                        compiled.add(index)
                    done(kernel.name)

    threads = [threading.Thread(target=keep_busy) for _ in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return compiled


def _kind(task: Task) -> tuple[str, bool]:
    kernel, dtype, _ = task
    return dtype.char, "channels_last" in kernel.name


def _serve() -> None:
    """Compile what the input names, a kernel a line."""
    from fastbn_kernels.build import cache
    from fastbn_kernels.cpu import kernel

    for line in sys.stdin:
        name, char, parallel = line.split()
        function: Any = kernel(name).get(np.dtype(char), parallel == "1")
        if not isinstance(getattr(function, "_cache", None), cache.KernelCache):  # or NUMBA_DISABLE_JIT=1
            print(NOT_KEPT, flush=True)
        else:
            print(LOADED if function.stats.cache_hits else COMPILED, flush=True)


if __name__ == "__main__":
    _serve()
