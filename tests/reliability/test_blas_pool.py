"""Loops on the threads of NumPy's matrix products: the same bits, right products, Numba's layer where it is better."""

import os
import threading
import time

import numpy as np
import pytest

import concurrent_calls
import fastbn
import hosts
from fastbn_kernels.build import blas, spread
from processes import run

try:
    known = blas.count() > 1
except blas.UnknownError:
    known = False
pytestmark = pytest.mark.skipif(not known, reason="NumPy's products are not known, or have one thread")

X = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
Y = np.empty_like(X)


def call():
    """One loop or more over the threads."""
    return fastbn.batch_norm(X, out=Y)[0].tobytes()


def as_if_new(since=blas.LONG_AGO):
    """Have the next loop find workers that it knows nothing of, which it takes, whether they are awake or not."""
    blas._state.since, blas._state.clock = since, blas.NO_CLOCK


def taken():
    """Return whether a loop ran on workers since `as_if_new`: a worker has told its clock."""
    return blas._state.clock != blas.NO_CLOCK


@pytest.fixture
def always(monkeypatch):
    """Have every loop run on the workers; load of the machine must not decide what is tested."""
    call()  # meets NumPy's products
    real = spread.beside_products
    assert spread._state.offer

    def beside_products():
        as_if_new()
        real()

    monkeypatch.setattr(spread, "beside_products", beside_products)


@pytest.mark.parametrize("what", ["calls", "products"])
def test_the_bits_are_those_of_one_thread_also_from_4_threads_beside_products(what, always):
    with spread.over(spread.CALLING_THREAD):
        expected = concurrent_calls.digest()
    if what == "calls":
        assert concurrent_calls.digest() == expected
        assert taken()
        return
    a = np.random.default_rng(1).integers(-3, 4, (200, 300)).astype(np.float32)  # exact in any order
    product = (a.astype(np.int64) @ a.T.astype(np.int64)).astype(np.float32)
    wrong = []

    def work():
        for _ in range(3):
            products = [np.array_equal(a @ a.T, product) for _ in range(20)]
            if not all(products) or concurrent_calls.digest() != expected:
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_workers_that_sleep_are_not_woken():
    call()
    as_if_new()
    call()
    assert taken()
    end = time.monotonic() + 10
    used, before = None, -1
    while used != before:
        assert time.monotonic() < end, "workers do not go to sleep"
        before = used
        time.sleep(0.2)
        used = time.clock_gettime_ns(blas._state.clock)
    for _ in range(3):
        call()
    assert time.clock_gettime_ns(blas._state.clock) == used


def test_what_keeps_workers_awake_alone_lets_them_go_after_a_spell():
    call()
    for age, expected in ((0, True), (blas.SPELL + blas.REST // 2, False), (blas.SPELL + 2 * blas.REST, True)):
        as_if_new(since=time.monotonic_ns() - age)
        call()
        assert taken() is expected


def test_loops_are_offered_by_launches_over_arrays_of_numpy_to_whom_nobody_was_preferred():
    call()
    for runner in (spread.NUMBA, spread.CALLING_THREAD, hosts.HOSTS["uneven"]):
        as_if_new()
        with spread.over(runner):
            call()
        assert not taken()
    call()
    assert taken()


def test_no_more_threads_than_openblas_has_now():
    expected = call()
    count, setter = blas.count(), blas.functions()["set_num_threads"]
    setter(1)
    try:
        as_if_new()
        assert call() == expected
        assert not taken()
    finally:
        setter(count)
    assert call() == expected
    assert taken()


PREPARE = """
import logging, os, sys, threading, time
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
import numpy as np, fastbn
from fastbn_kernels.build import blas, spread
x = np.random.default_rng(0).standard_normal((64, 1024)).astype("f4")
a = np.random.default_rng(1).integers(-3, 4, (300, 300)).astype("f4")
product = (a.astype("i8") @ a.T.astype("i8")).astype("f4")
with spread.over(spread.CALLING_THREAD):
    expected = fastbn.batch_norm(x)[0].tobytes()
def same():
    blas._state.clock = blas.NO_CLOCK
    return fastbn.batch_norm(x)[0].tobytes() == expected
def right():
    return same() and np.array_equal(a @ a.T, product)
"""

FORK = """
def forked():
    pid = os.fork()
    if pid == 0:
        os._exit(0 if all(right() for _ in range(5)) else 1)
    return os.waitpid(pid, 0)[1] == 0
assert right() and spread._state.offer
assert forked() and right()  # workers of before, in both
stop = []
def work():
    while not stop:  # a product here, and OpenBLAS itself would hang in its fork handler
        assert same()
workers = [threading.Thread(target=work) for _ in range(2)]
for worker in workers:
    worker.start()
try:
    for _ in range(10):
        assert forked()
finally:
    stop.append(1)
for worker in workers:
    worker.join()
assert right()
print("forked")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_waits_for_loops_on_workers_and_both_sides_go_on():
    assert "forked" in run(PREPARE + FORK)


def test_the_interpreter_ends_while_workers_are_awake():
    started = time.monotonic()
    run(PREPARE + "assert right() and right()\nfor _ in range(3): threading.Thread(target=right, daemon=True).start()")
    assert time.monotonic() - started < 60


SENTENCE = "loops run on Numba's threads, also beside NumPy's matrix products: "
UNKNOWN = {
    "another release": ("blas.TRIED = (9, 0, 0), (9, 0, 1)", "tried was OpenBLAS 9.0.0 to 9.0.1"),
    "another library": (
        "import ctypes, types\nlibc = ctypes.CDLL(None)\n"
        "blas.ctypes = types.SimpleNamespace(**{**vars(ctypes), 'CDLL': lambda name: libc})",
        "NumPy's products are not OpenBLAS's",
    ),
    "OpenMP": ("blas.PTHREADS = 2", "has no threads of its own"),
    "pieces left out": (
        "import ctypes\nblas.functions()['gotoblas_pthread'] = ctypes.CDLL(None).abs",
        "ran a test of",
    ),
    "no end": (
        "import ctypes\nblas.PATIENCE = 0.05\nblas.functions()['gotoblas_pthread'] = ctypes.CDLL(None).sleep",
        "has not finished a test of its threads in 0.05 s",
    ),
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_is_not_as_known_leaves_loops_to_numba_and_the_log_says_so_once(what):
    change, reason = UNKNOWN[what]
    script = PREPARE.replace("with spread.over", change + "\nwith spread.over")
    out = run(script + "assert right() and right()\nassert not spread._state.offer and blas._state.clock == -1")
    assert out.count(SENTENCE) == 1
    assert reason in out


def test_the_environment_says_numba():
    out = run(PREPARE + "assert right() and not spread._state.offer", env={"FASTBN_POOL": "numba"})
    assert SENTENCE not in out
    message = "FASTBN_POOL: expected 'numba' or 'auto' in the environment, got 'gpu'"
    refused = (
        "import numpy as np, fastbn\ntry:\n    fastbn.batch_norm(np.ones((4, 3)))\nexcept ValueError as e: print(e)"
    )
    assert message in run(refused, env={"FASTBN_POOL": "gpu"})
