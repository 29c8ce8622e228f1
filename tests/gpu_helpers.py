"""What tests of the GPU kernels share. They run on a GPU, or on the simulated one with NUMBA_ENABLE_CUDASIM=1."""

import os

import numpy as np
import pytest

import fastbn
from fastbn.backends.cuda import availability
from fastbn.backends.cuda import plan as cuda_plan

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
MISSING = None if SIMULATED else availability.problem()
needed = pytest.mark.skipif(MISSING is not None, reason=f"no GPU: {MISSING}")


def simulated(multiprocessors=2, family="channels_last", kept=4, l2_bytes=1 << 20, threads=32):
    """A GPU of few multiprocessors whose threads keep `kept` vectors of one operand, in a family."""
    share = cuda_plan.STATIC[family] + kept * threads * cuda_plan.VECTOR
    whole = cuda_plan.BLOCKS_PER_SM[True] * (share + cuda_plan.RESERVED)
    return cuda_plan.Device(multiprocessors, share, whole, l2_bytes, threads)


@pytest.fixture
def gpu(monkeypatch):
    """Make calls believe that they run on another GPU, if it is the simulated one."""

    def pretend(**properties):
        if not SIMULATED:
            pytest.skip("a real GPU has the multiprocessors that it has")
        from fastbn.backends.cuda import launch as cuda

        own = simulated(**properties)
        monkeypatch.setattr(cuda, "device", lambda: own)
        monkeypatch.setattr(cuda, "workspace", cuda.Workspace())
        return own

    return pretend


def there(array):
    """Copy to the GPU."""
    return fastbn.to_device(array)


def here(array):
    """Copy to the host."""
    return fastbn.to_host(array)


def poisoned(shape, dtype):
    """An output on the GPU that shows every element that was not written."""
    return there(np.full(shape, np.nan).astype(dtype))


def gradients(grads):
    """The same gradients on the host."""
    return fastbn.Gradients(*(None if g is None else here(g) for g in (grads.dx, grads.dweight, grads.dbias)))


# In the place of a dtype: float32, computed in float64.
EXACT = "exact"


def arithmetic_of(dtype):
    """Return dtype and precision; without a choice it is that of the process."""
    return (np.float32, "exact") if dtype is EXACT else (dtype, "fast")


def parameter_dtype(dtype):
    return np.float64 if dtype is np.float64 else np.float32
