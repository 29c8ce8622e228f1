"""Where compiled GPU kernels are kept between processes: numba-cuda's cache, made as safe as the CPU's."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastbn_kernels.build.cache import Files, NoStrayFolder, Unfailing, sources_digest, warn_once
from fastbn_kernels.cuda.build.numba_cuda import dispatcher

# Private to numba-cuda. Where they are not, what is made of them here cannot be made, and `enable` goes without.
CUDACacheImpl: Any = getattr(dispatcher, "CUDACacheImpl", object)
CUDACache: Any = getattr(dispatcher, "CUDACache", object)


class KernelCacheImpl(NoStrayFolder, CUDACacheImpl):  # type: ignore[misc]
    """numba-cuda's."""


class KernelCache(Unfailing, CUDACache):  # type: ignore[misc]
    """Stamped with all sources that a kernel may be made of, and unable to fail."""

    _impl_class = KernelCacheImpl

    def __init__(self, function: Any, bounds: tuple[int, int]) -> None:
        super().__init__(function)
        base = f"{self._impl.filename_base}-{'-'.join(map(str, bounds))}"
        self._cache_file = Files(self, base, (sources_digest("cuda"), version("numba-cuda")))


def enable(jitted: Any, bounds: tuple[int, int]) -> None:
    """Give a dispatcher the cache; without a folder that can be written it goes without."""
    try:
        jitted._cache = KernelCache(jitted.py_func, bounds)
    except Exception as error:
        warn_once(f"{type(error).__name__}: {error}")
