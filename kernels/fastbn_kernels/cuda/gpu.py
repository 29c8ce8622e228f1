"""The GPU that is there: its name, its sizes, and why it cannot be used if so."""

from __future__ import annotations

import functools
import logging
from typing import Any

from fastbn_kernels.cuda.build.numba_cuda import SIMULATED, cuda, driver, stand_ins, types

__all__ = ["index", "memory_bytes", "name", "problem", "properties", "shared_limit", "synchronize"]

log = logging.getLogger("fastbn")

# Shared memory that a block may have unless the kernel asks for more, which numba-cuda does not do.
DEFAULT_SHARED = 48 << 10

# Shared memory of the kernels beside what they are launched with, at most; it counts towards what a block may have.
STATIC_SHARED = 12288


def _ask_for_shared(compiled: Any, most: int) -> None:
    """Let a kernel be launched with up to `most` bytes of dynamic shared memory, and prefer it to the first cache."""
    function = compiled._codelibrary.get_cufunc()
    attribute = driver.binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    driver.driver.cuKernelSetAttribute(attribute, most - STATIC_SHARED, function.handle, function.device.id)
    function.set_shared_memory_carveout(100)


@functools.cache
def shared_limit() -> int:
    """Return how much shared memory a block may have here: what the GPU offers if Numba's internals let us ask."""
    offered = int(cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)

    def nothing(n: int) -> None:
        pass

    try:
        probe = cuda.jit(types.void(types.int32))(nothing)
        _ask_for_shared(next(iter(probe.overloads.values())), offered)
    except Exception as error:
        log.warning("fastbn: kernels keep at most 48 KB a block on the chip: %s: %s", type(error).__name__, error)
        return DEFAULT_SHARED
    return offered


def allow_shared(compiled: Any) -> None:
    """Let a kernel be launched with all the shared memory that a block may have."""
    if shared_limit() > DEFAULT_SHARED:
        _ask_for_shared(compiled, shared_limit())


def properties() -> dict[str, Any]:
    """Return what a launch plan needs to know."""
    gpu = cuda.get_current_device()
    return {
        "multiprocessors": int(gpu.MULTIPROCESSOR_COUNT),
        "shared_per_block": shared_limit(),
        "shared_per_multiprocessor": int(gpu.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
        "l2_bytes": int(gpu.L2_CACHE_SIZE),
    }


def index() -> int:
    """Return which GPU is current."""
    return int(cuda.get_current_device().id)


def name() -> str:
    """Return what it is called."""
    found = cuda.get_current_device().name
    return found.decode() if isinstance(found, bytes) else str(found)


def memory_bytes() -> int | None:
    """Return the size of its memory, or None if it has none of its own."""
    return int(cuda.current_context().get_memory_info().total)


def problem() -> str | None:
    """Return why no GPU can be used, in one line, or None."""
    if not cuda.is_available():
        error = getattr(driver.driver, "initialization_error", None)
        return " ".join(str(error or "the driver finds no GPU").split())
    return None


def synchronize() -> None:
    """Wait until all that was launched is done."""
    cuda.synchronize()


if SIMULATED:
    globals().update(stand_ins("gpu_host", *__all__))
