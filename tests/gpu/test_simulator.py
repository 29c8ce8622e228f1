"""The simulated GPU finds what would hang a real one or corrupt its results."""

import numpy as np
import pytest

from gpu_helpers import SIMULATED

if not SIMULATED:
    pytest.skip("needs NUMBA_ENABLE_CUDASIM=1", allow_module_level=True)

from fastbn_kernels.cuda import barrier, reduce
from simulated import gpu as simulator
from simulated.gpu import cuda
from simulated.gpu_vector import Pointer, load, store


def run(function, grid, threads, *arguments, shared=0):
    simulator.launch(function, grid, threads, shared, arguments)


def test_threads_of_a_block_share_and_wait():
    def reverse(x):
        shared = cuda.shared.array(64, np.float64)
        shared[cuda.threadIdx.x] = x[cuda.blockIdx.x * 64 + cuda.threadIdx.x]
        cuda.syncthreads()
        x[cuda.blockIdx.x * 64 + cuda.threadIdx.x] = shared[63 - cuda.threadIdx.x]

    x = np.arange(128.0)
    run(reverse, 2, 64, x)
    np.testing.assert_array_equal(x, np.arange(128.0).reshape(2, 64)[:, ::-1].reshape(-1))


def test_a_missing_barrier_shows():
    """Some thread reads what another has not written yet: poison, in an order that is drawn."""

    def racy(x):
        shared = cuda.shared.array(64, np.float64)
        shared[cuda.threadIdx.x] = 1.0
        x[cuda.threadIdx.x] = shared[63 - cuda.threadIdx.x]

    x = np.zeros(64)
    run(racy, 1, 64, x)
    assert (x != 1.0).any()


def test_different_barriers_are_an_error():
    def divergent():
        if cuda.threadIdx.x == 0:
            cuda.syncthreads()
        else:
            cuda.syncthreads()

    with pytest.raises(RuntimeError, match="different barriers"):
        run(divergent, 1, 32)


def test_waiting_for_nobody_is_an_error():
    def stuck(barriers):
        while barriers[0] == 0:
            simulator.spin()

    with pytest.raises(RuntimeError, match="no block can go on"):
        run(stuck, 2, 32, np.zeros(1, np.uint32))


def test_half_a_warp_is_an_error():
    with pytest.raises(ValueError, match="threads: expected whole warps"):
        run(lambda: None, 1, 20)


def test_beyond_the_data_is_an_error():
    x = Pointer(np.zeros(10, np.float32), False)
    with pytest.raises(AssertionError, match="outside"):
        load(x, 8)
    with pytest.raises(AssertionError, match="not aligned"):
        store(x, 2, (0.0,) * 4)


@pytest.mark.parametrize("blocks", [1, 2, 7])
def test_a_barrier_of_a_group_holds_until_all_are_there(blocks):
    """Two groups, each many times over, in a random order."""

    def rounds(barriers, log):
        group, rank = cuda.blockIdx.x // blocks, cuda.blockIdx.x % blocks
        for i in range(5):
            if cuda.threadIdx.x == 0:
                log[group, i, rank] = 1
            barrier.block_group_barrier(barriers, group, blocks)
            assert log[group, i].all()

    barriers = np.zeros(2 * barrier.BARRIER, np.uint32)
    for _ in range(3):
        run(rounds, 2 * blocks, 32, barriers, np.zeros((2, 5, blocks)))
        assert (barriers[:: barrier.BARRIER] == 0).all(), "the next launch would not find its barrier as it expects it"


@pytest.mark.parametrize("least", [1, 4, 32])
def test_the_sum_of_a_warp(rng, least):
    values = rng.standard_normal(64)

    def summed(x):
        x[cuda.threadIdx.x] = reduce.warp_sum(x[cuda.threadIdx.x], least)

    x = values.copy()
    run(summed, 1, 64, x)
    expected = values.reshape(2, 32 // least, least).sum(1)
    np.testing.assert_allclose(
        x.reshape(2, 32 // least, least), np.broadcast_to(expected[:, None], (2, 32 // least, least))
    )


@pytest.mark.parametrize("blocks", [1, 3, 20])
def test_the_sums_of_a_group(rng, blocks):
    values = rng.standard_normal((2, blocks * 64))

    def summed(x, result, slots, barriers):
        scratch = cuda.shared.array(16, np.float64)
        i = cuda.blockIdx.x * 64 + cuda.threadIdx.x
        a, b = reduce.block_group_sums(x[0, i], x[1, i], scratch, 0, cuda.blockIdx.x, blocks, 1, 0, slots, barriers)
        result[:, i] = a, b

    result = np.empty((2, blocks * 64))
    run(summed, blocks, 64, values, result, np.empty(4 * blocks), np.zeros(barrier.BARRIER, np.uint32))
    np.testing.assert_allclose(result, np.broadcast_to(values.sum(1, keepdims=True), result.shape), rtol=1e-12)
    assert (result == result[:, :1]).all(), "threads of a group have different sums"


@pytest.mark.parametrize("blocks", [1, 3, 16, 20])
def test_the_sums_of_columns(rng, blocks):
    values = rng.standard_normal((blocks, 24))

    def summed(x, result, slots, barriers):
        sums = cuda.shared.array(24, np.float64)
        if cuda.threadIdx.x < 24:
            sums[cuda.threadIdx.x] = x[cuda.blockIdx.x, cuda.threadIdx.x]
        cuda.syncthreads()
        reduce.block_group_columns(sums, 24, 0, cuda.blockIdx.x, blocks, 1, 1, slots, barriers)
        if cuda.threadIdx.x < 24:
            result[cuda.blockIdx.x, cuda.threadIdx.x] = sums[cuda.threadIdx.x]

    result = np.empty((blocks, 24))
    slots = np.empty((2 * blocks + 2) * 24)
    run(summed, blocks, 32, values, result, slots, np.zeros(barrier.BARRIER, np.uint32))
    np.testing.assert_allclose(result, np.broadcast_to(values.sum(0), (blocks, 24)), rtol=1e-12)
    assert (result == result[0]).all()
