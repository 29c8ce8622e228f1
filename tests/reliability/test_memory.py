"""Calls leak nothing, allocate little besides their results, and running out of memory changes nothing."""

import gc
import sys
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest

import fastbn
import workspace
from fastbn import layout
from fastbn.backends.cpu import launch, plan
from fastbn_kernels.saved import ROWS
from grid import draw
from plans import force
from processes import run

LEAK = """
import gc, sys
import numpy as np, fastbn
from numba.core.runtime import _nrt_python, rtsys
_nrt_python.memsys_enable_stats()
x = np.random.default_rng().normal(size=(16, 8)).astype("f4")
apart, strided = np.ones((4, 8, 6), "f4"), np.repeat(x, 2, axis=1)[:, ::2]
running, layer = np.ones((2, 8), "f4"), fastbn.BatchNorm(8)

def both(x):
    y, ctx = fastbn.batch_norm(x, running_mean=running[0], running_var=running[1])
    fastbn.batch_norm_backward(y, ctx)

def short_way():
    both(x)
    both(apart)
    fastbn.batch_norm_inference(x, *running)
    fastbn.batch_moments(x)
    layer.backward(layer(x))

def long_way():
    both(strided)
    m = fastbn.batch_moments(strided)
    ctx = fastbn.batch_norm(strided, moments=m.merge(m))[1]
    fastbn.backward_sums(strided, ctx)

def errors():
    for wrong in (dict(eps=-1.0), dict(out=x[:3]), dict(running_mean=running[0], running_var=running[0])):
        try:
            fastbn.batch_norm(x, **wrong)
        except ValueError:
            pass

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096

for call, times in (short_way, int(sys.argv[1])), (long_way, 4000), (errors, 4000):
    for _ in range(times // 10):
        call()
    before, blocks = resident(), sys.getallocatedblocks()
    for _ in range(times):
        call()
    grown = resident() - before, sys.getallocatedblocks() - blocks
    assert grown[0] < 1 << 20 and grown[1] < 100, (call.__name__, grown)
    stats = rtsys.get_allocation_stats()
    assert stats.alloc == stats.free > 0 and stats.mi_alloc == stats.mi_free, stats
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_leak():
    """8 calls a round; a leak of 10 bytes a call would show."""
    run(LEAK, 12500)


def test_caches_of_shapes_are_bounded():
    """10000 shapes leave 4096 layouts and plans, of less than 1 KB each, and 4096 calls, each of 1 KB and its plan."""
    for cached, arguments, kilobytes in (
        (layout.analyse, lambda n: ((n, 3, 8, 8), (768, 256, 32, 4), 4, 1), 1),
        (plan.make, lambda n: (n, 3, 64, "f", 2), 1),
        (launch.large_call, lambda n: ("forward", (n, 3, 64), "f", 2, None), 2),
    ):
        for n in range(0, 10000, 100):  # kernels that are loaded are not what is counted
            cached(*arguments(n))
        cached.cache_clear()
        gc.collect()
        tracemalloc.start()
        try:
            for n in range(10000):
                cached(*arguments(n))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert cached.cache_info().currsize == cached.cache_info().maxsize == 4096
        assert 4096 * 100 < held < 4096 * 1024 * kilobytes
        cached.cache_clear()


@pytest.mark.parametrize("stored", ["contiguous", "strided"])
def test_a_context_keeps_x_and_what_is_saved(rng, stored):
    x = draw(rng, (16, 500), np.float32)
    x = np.repeat(x, 2, axis=1)[:, ::2] if stored == "strided" else x
    fastbn.batch_norm(x)
    gc.collect()
    tracemalloc.start()
    try:
        ctx = fastbn.batch_norm(x)[1]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ROWS * 500 * 8 <= held < ROWS * 500 * 8 + 2048
    assert ctx.x is x


def test_nothing_outlives_its_last_name(rng):
    """Without the collector of cycles: x and y go when the caller lets go of them, after errors too."""
    gc.disable()
    try:
        x = draw(rng, (16, 8), np.float32)
        y, ctx = fastbn.batch_norm(x)
        grads = fastbn.batch_norm_backward(y, ctx)
        with pytest.raises(ValueError, match="eps"):
            fastbn.batch_norm(x, eps=-1.0)
        with pytest.raises(ValueError, match="dy"):
            fastbn.batch_norm_backward(y[:3], ctx)
        seen = [weakref.ref(array) for array in (x, y, grads.dx)]
        del x, y, ctx, grads
        assert [ref() for ref in seen] == [None] * 3
    finally:
        gc.enable()


CASES = [
    ("whole channels", (32, 64, 28, 28), 1, {}),
    ("one written while the next is summed", (3, 8, 60, 60), 1, {"past_cache": (True, True)}),
    ("tiles of channels", (6, 3, 150, 150), 1, {}),
    ("groups of channels", (32, 64, 14, 14), 1, {}),
    ("rows", (3000, 40), 1, {}),
    ("wide rows", (200, 700), 1, {}),
    ("many rows", (65536, 64), 1, {}),
    ("channels last", (30, 24, 24, 12), 3, {}),
    ("small", (32, 64), 1, {}),
    ("small, apart", (4, 3, 7, 7), 1, {}),
]


def traced_peak(call):
    """Return the most that a call had allocated at a time: NumPy and Numba's kernels both tell tracemalloc."""
    call()
    gc.collect()
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def calls(x, axis, out):
    """Every call with `out`, all of whose other arrays are there before it."""
    weight, bias, mean, var = np.ones((4, x.shape[axis]), x.dtype)
    ctx = fastbn.batch_norm(x, weight, bias, axis=axis)[1]
    running = {"running_mean": mean, "running_var": var}
    return {
        "moments": lambda: fastbn.batch_moments(x, axis=axis),
        "forward": lambda: fastbn.batch_norm(x, weight, bias, **running, axis=axis, out=out),
        "inference": lambda: fastbn.batch_norm_inference(x, mean, var, weight, bias, axis=axis, out=out),
        "backward": lambda: fastbn.batch_norm_backward(x, ctx, out=out),
    }


@pytest.mark.parametrize(("shape", "axis", "changes"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_workspace(rng, monkeypatch, shape, axis, changes):
    """With `out`, a call allocates what it needs for channels and tiles, and nothing of the size of x."""
    force(monkeypatch, **changes)
    x = draw(rng, shape, np.float32)
    for what, call in calls(x, axis, np.full_like(x, np.nan)).items():
        peak = traced_peak(call)
        assert peak <= workspace.bound(what, x, axis), what


def test_workspace_is_seen(rng):
    """The control: what a kernel allocates for tiles and blocks is in the peaks that are measured here."""
    x = draw(rng, (6, 3, 150, 150), np.float32)
    assert traced_peak(lambda: fastbn.batch_moments(x)) >= 24 * 3 * 18
    rows = draw(rng, (3000, 40), np.float32)
    blocks, wide = workspace.tiles.block_tasks(*rows.shape)[0], workspace.tiles.rows_together(40) * 40
    assert blocks > 1
    assert traced_peak(lambda: fastbn.batch_moments(rows)) >= 24 * blocks * wide


RESIDENT = """
import gc, sys
sys.path[:0] = sys.argv[1:]
import numpy as np
import test_memory, workspace

def status(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

for shape, axis in ((64, 64, 112, 112), 1), ((64, 3, 512, 512), 1), ((1024, 1024, 7, 7), 1), ((262144, 200), 1):
    x = np.random.default_rng().standard_normal(shape, "f4")
    out = np.zeros_like(x)
    for what, call in test_memory.calls(x, axis, out).items():
        call()
        gc.collect()
        open("/proc/self/clear_refs", "w").write("5")
        before = status("VmRSS")
        call()
        extra = status("VmHWM") - before
        assert extra <= workspace.bound(what, x, axis) + (1 << 20), (shape, what, extra)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_of_large_tensors():
    """As the system counts it, for tensors of 200 MB."""
    run(RESIDENT, *(str(folder) for folder in Path(__file__).parents[:2]), timeout=600)


EXHAUSTED = """
import resource, sys
import numpy as np, fastbn
shape, kind = eval(sys.argv[1]), sys.argv[2]
x = np.random.default_rng().standard_normal(shape).astype("f4")
if kind == "strided":
    x = np.repeat(x, 2, axis=-1)[..., ::2]
layer = fastbn.BatchNorm(shape[1], momentum=None)
expected = layer(x)
dx = layer.backward(expected)
names = "running_mean", "running_var", "dweight", "dbias"
before = [getattr(layer, name).copy() for name in names]
out = np.empty_like(x) if kind == "out" else None
used = int(open("/proc/self/statm").read().split()[0]) * 4096
unlimited = resource.RLIM_INFINITY, resource.RLIM_INFINITY
for call in (lambda: layer(x, out=out)), (lambda: layer.backward(expected, out=out)):
    resource.setrlimit(resource.RLIMIT_AS, (used + 1_000_000, unlimited[1]))
    try:
        call()
        raise AssertionError("there was enough")
    except MemoryError:
        pass
    finally:
        resource.setrlimit(resource.RLIMIT_AS, unlimited)
    assert layer.num_batches_tracked == 1
    for name, old in zip(names, before):
        np.testing.assert_array_equal(getattr(layer, name), old)
np.testing.assert_array_equal(layer.backward(expected), dx)
np.testing.assert_array_equal(layer(x), expected)
"""

EXHAUSTING = [
    ((16, 40000), "new"),  # the result
    ((16, 40000), "strided"),
    ((64, 40000), "out"),  # the workspace, in the kernel
]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of address space are Linux's")
@pytest.mark.parametrize(("shape", "kind"), EXHAUSTING, ids=str)
def test_out_of_memory(shape, kind):
    """MemoryError leaves the layer as it was, and the next call works."""
    # Left to itself, glibc takes what the system refuses from the 64 MB that it reserved for another thread.
    run(EXHAUSTED, shape, kind, env={"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"})


@pytest.mark.parametrize("shape", [(16, 8), (3000, 40), (32, 64, 14, 14)], ids=str)
@pytest.mark.parametrize("stored", ["contiguous", "strided"])
def test_any_allocation_may_fail(rng, monkeypatch, shape, stored):
    """Each array that is made in a call of the layer is refused in turn."""
    x = draw(rng, shape, np.float32)
    x = np.repeat(x, 2, axis=-1)[..., ::2] if stored == "strided" else x
    layer = fastbn.BatchNorm(shape[1])
    expected = layer(x)
    mean, var = layer.running_mean.copy(), layer.running_var.copy()
    left = 0

    def refusing(make):
        def made(*arguments, **options):
            nonlocal left
            left -= 1
            if left == 0:
                raise MemoryError
            return make(*arguments, **options)

        return made

    for name in ("empty", "empty_like", "array"):
        monkeypatch.setattr(np, name, refusing(getattr(np, name)))
    refused = 0
    while True:
        left = refused + 1
        try:
            layer(x)
            break
        except MemoryError:
            refused += 1
        left = 0
        np.testing.assert_array_equal(layer.running_mean, mean)
        np.testing.assert_array_equal(layer.running_var, var)
        assert layer.num_batches_tracked == 1
    left = 0
    assert refused >= 2
    np.testing.assert_array_equal(layer(x), expected)
