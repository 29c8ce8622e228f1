"""A program for `test_threads.py`: calls from threads and forked processes, step by step, and what came out of them.

    python tests/concurrent_calls.py

A line of JSON a step: its name and what it found. A step that takes the process down has no line.
"""

from __future__ import annotations  # as kernels have them

import faulthandler
import hashlib
import json
import multiprocessing
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

import fastbn
import hosts
from fastbn.backends.cpu import launch, plan
from fastbn_kernels.build import spread
from fastbn_kernels.build.decorators import ReadC, WriteC, kernel, prange

RUNNERS = {"layer": spread.LAYER, "calling thread": spread.CALLING_THREAD, **hosts.HOSTS}

# Parallel kernels of each family: rows, whole channels, tiles of channels, short runs.
SHAPES = [(3000, 40), (6, 8, 60, 60), (6, 3, 90, 90), (100, 40, 12, 12)]
WORKERS = 8
LIMIT = 300  # seconds after which a child that hangs ends; compiling every kernel took one of them 100


def digest():
    """Hash everything that a forward and a backward pass over every shape give."""
    found = hashlib.sha256()
    for seed, shape in enumerate(SHAPES):
        x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        weight = np.linspace(0.5, 2, shape[1], dtype=np.float32)
        running = np.zeros_like(weight), np.ones_like(weight)
        y, ctx = fastbn.batch_norm(x, weight, weight, running_mean=running[0], running_var=running[1])
        grads = fastbn.batch_norm_backward(x, ctx)
        for array in (y, *running, grads.dx, grads.dweight, grads.dbias):
            found.update(array.tobytes())
    return found.hexdigest()


def in_child():
    """Fork; return the child's digest, or how it ended."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(LIMIT, exit=True)  # a child that hangs must end
        try:
            os.write(write, digest().encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        result = pipe.read()
    status = os.waitpid(pid, 0)[1]
    return result or f"status {status}"


def in_thread(function):
    """Run a function in a thread of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def fork_before_the_first_launch():
    return [in_child()]


def threads_at_once():
    """The first launches of this process, kernels to be compiled or loaded included, from all threads together."""
    barrier = threading.Barrier(WORKERS)
    results = [[] for _ in range(WORKERS)]

    def work(own):
        barrier.wait()
        own.extend(digest() for _ in range(2))

    workers = [threading.Thread(target=work, args=(own,)) for own in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [found for own in results for found in own]


def thread_pool():
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(lambda _: digest(), range(WORKERS)))


def fork_after_launches():
    return [in_child(), in_child()]


def fork_of_a_fork():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, in_child().encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with open(read) as pipe:
        return [pipe.read()]


def fork_while_others_launch():
    """The parent goes on unharmed too."""
    stop = threading.Event()
    results = []

    def work():
        while not stop.is_set():
            results.append(digest())

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    results += [in_child() for _ in range(3)]
    stop.set()
    for worker in workers:
        worker.join()
    return results


def fork_from_a_thread():
    return [in_thread(in_child), digest()]


def fork_while_another_compiles():
    """A fork waits for the compiler; a child whose compiler is locked for ever would hang."""
    compiling = threading.Event()

    def compile_one():
        @numba.njit(parallel=True)
        def one(x):
            for i in numba.prange(x.size):
                x[i] += 1

        compiling.set()
        one.compile("(float64[::1],)")

    thread = threading.Thread(target=compile_one)
    thread.start()
    compiling.wait()
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(LIMIT / 5, exit=True)
        os._exit(numba.njit(lambda x: x + 1)(-1))
    status = os.waitpid(pid, 0)[1]
    thread.join()
    return [digest() if status == 0 else f"status {status}"]


def multiprocessing_pool():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return [pool.apply(digest) for _ in range(2)]


def joblib_of(backend):
    import joblib

    return joblib.Parallel(n_jobs=2, backend=backend)(joblib.delayed(digest)() for _ in range(4))


def joblib_threads():
    return joblib_of("threading")


def joblib_forks():
    return joblib_of("multiprocessing")


def joblib_processes():
    return joblib_of("loky")


def any_number_of_threads():
    """Through the cache and past it."""
    results = []
    for cache in (plan.LAST_LEVEL_CACHE, 0):
        plan.LAST_LEVEL_CACHE = cache
        plan.make.cache_clear()
        launch.large_call.cache_clear()
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            results.append(digest())
    return results


def any_runner():
    results = []
    for runner in RUNNERS.values():
        with spread.over(runner):
            results.append(digest())
    return results


def different_runners_at_once():
    """Each thread has its own, and a child of a fork that of the thread that forked."""
    barrier = threading.Barrier(len(RUNNERS))
    results = []

    def work(runner):
        barrier.wait()
        with spread.over(runner):
            results.extend(digest() for _ in range(2))

    workers = [threading.Thread(target=work, args=(runner,)) for runner in RUNNERS.values()]
    for worker in workers:
        worker.start()
    with spread.over(RUNNERS["backwards"]):
        results.append(in_child())
    for worker in workers:
        worker.join()
    return results


@numba.njit(parallel=True)
def add_row(x, i, y):
    for j in prange(x.size):
        y[i * x.size + j] = x[j] + i


@kernel
def add_rows(x: ReadC, y: WriteC) -> None:
    for i in prange(y.size // x.size):
        add_row(x, i, y)


def regions_in_regions():
    """A kernel whose pieces come to loops of their own."""
    x = np.arange(100.0)
    right = True
    for runner in RUNNERS.values():
        y = np.full(5000, np.nan)
        with spread.over(runner):
            add_rows.launch(x.dtype, True, x, y)
        right = right and (y.reshape(50, 100) == x + np.arange(50)[:, None]).all()
    return [digest() if right else "wrong"]


# In this order.
STEPS = [
    fork_before_the_first_launch,
    threads_at_once,
    thread_pool,
    fork_after_launches,
    fork_of_a_fork,
    fork_while_others_launch,
    fork_from_a_thread,
    fork_while_another_compiles,
    multiprocessing_pool,
    joblib_threads,
    joblib_forks,
    joblib_processes,
    any_number_of_threads,
    any_runner,
    different_runners_at_once,
    regions_in_regions,
]


def main():
    faulthandler.enable()
    for step in STEPS:
        print(json.dumps([step.__name__, sorted(set(step()))]), flush=True)
    print(json.dumps(["layer", numba.threading_layer()]), flush=True)


if __name__ == "__main__":
    main()
    sys.exit(0)
