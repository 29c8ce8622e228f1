"""Whoever runs the pieces of a kernel's loops, the bits are those of one thread."""

import ctypes
import hashlib
import threading

import numba
import numpy as np
import pytest

import concurrent_calls
import fastbn
import hosts
from concurrent_calls import RUNNERS
from fastbn.backends.cpu import launch, plan
from fastbn_kernels.build import spread
from processes import run


def derivatives():
    """Hash what the kernels of higher derivatives give."""
    found = hashlib.sha256()
    for shape in concurrent_calls.SHAPES[:3]:
        x, dy, v = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
        weight = np.linspace(0.5, 2, shape[1], dtype=np.float32)
        _, ctx = fastbn.batch_norm(x, weight, weight)
        for array in fastbn.batch_norm_double_backward(v, None, None, dy, ctx):
            found.update(array.tobytes())
        found.update(fastbn.batch_norm_jvp(v, None, None, ctx).tobytes())
    return found.hexdigest()


def moments():
    """Hash what statistics over several machines take."""
    found = hashlib.sha256()
    for shape in concurrent_calls.SHAPES[:3]:
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        m = fastbn.batch_moments(x)
        _, ctx = fastbn.batch_norm(x, moments=m)
        sums = fastbn.backward_sums(x, ctx)
        for array in (m.mean, m.m2, sums.sum_dy, sums.sum_dy_xhat, fastbn.batch_norm_backward(x, ctx, sums=sums).dx):
            found.update(array.tobytes())
    return found.hexdigest()


def forget():
    """Let plans be made anew."""
    plan.make.cache_clear()
    launch.large_call.cache_clear()


@pytest.fixture(params=["in the cache", "past the cache"])
def size(request, monkeypatch):
    """Kernels that write past the cache, and those that overlap sums with it, take what is larger than the cache."""
    monkeypatch.setattr(plan, "LAST_LEVEL_CACHE", 0 if request.param == "past the cache" else plan.LAST_LEVEL_CACHE)
    forget()
    yield
    forget()


@pytest.mark.parametrize("what", [concurrent_calls.digest, derivatives, moments])
def test_the_bits_do_not_depend_on_the_runner(what, size):
    numba.set_num_threads(1)
    expected = what()
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    for runner in RUNNERS.values():
        with spread.over(runner):
            assert what() == expected


def test_a_choice_ends_with_its_block_and_blocks_nest():
    assert not spread._get(spread._choice)
    with spread.over(5):
        with spread.over(spread.CALLING_THREAD):
            assert spread._get(spread._choice) == 1
        with pytest.raises(ZeroDivisionError), spread.over(7):
            1 / 0  # noqa: B018
        assert spread._get(spread._choice) == 5
        seen = []
        other = threading.Thread(target=lambda: seen.append(spread._get(spread._choice)))
        other.start()
        other.join()
        assert seen == [None]
    assert not spread._get(spread._choice)


def test_compiled_code_chooses_without_python():
    """`exchange` is what `over` is, from C: of the calling thread alone, each choice comes back at the next call."""
    exchange = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_ssize_t)(spread.exchange_address())  # gives the GIL away
    assert exchange(spread.CALLING_THREAD) == spread.LAYER
    try:
        assert spread._get(spread._choice) == spread.CALLING_THREAD
        with spread.over(hosts.HOSTS["uneven"]):
            assert exchange(7) == hosts.HOSTS["uneven"]
        assert spread._get(spread._choice) == spread.CALLING_THREAD  # what `over` found
        seen = []
        other = threading.Thread(target=lambda: seen.append(exchange(5)))
        other.start()
        other.join()
        assert seen == [spread.LAYER]
    finally:
        assert exchange(spread.LAYER) == spread.CALLING_THREAD
    assert exchange(spread.LAYER) == spread.LAYER


WITHOUT = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
from numba.np.ufunc import parallel
written = parallel.build_gufunc_kernel
parallel.build_gufunc_kernel = lambda *a: written(*a)  # as good, but not as we know it
import numpy as np, fastbn, numba, threading
from fastbn_kernels.build import spread

x = np.random.default_rng(0).standard_normal((6, 8, 60, 60)).astype("f4")
weight = np.ones(8, "f4")
def bits():
    return fastbn.batch_norm(x, weight, weight)[0].tobytes()
found = [bits()]
with spread.over(spread.CALLING_THREAD):
    found.append(bits())
workers = [threading.Thread(target=lambda: found.append(bits())) for _ in range(4)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
numba.set_num_threads(1)
found.append(bits())
numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
assert len(set(found)) == 1
sys.stdout.flush()
if hasattr(os, "fork"):
    pid = os.fork()
    if pid == 0:
        os._exit(bits() != found[0])
    assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_without_what_is_private_to_numba_kernels_run_and_the_log_says_so_once(layer):
    out = run(WITHOUT, env={"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "4"})
    assert out.count("WARNING") == out.count("kernels leave it to Numba who runs their loops") == 1
    assert ("(parallel by Numba)" in out) is (layer == "omp")
