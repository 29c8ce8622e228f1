"""Where compiled GPU kernels are kept between processes: numba-cuda's cache, with the differences of `..cache`."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastbn_kernels.cache import sources_digest, warn_once
from fastbn_kernels.cuda.toolkit import dispatcher


class KernelCache(dispatcher.CUDACache):  # type: ignore[misc]
    """Stamped with all sources that a kernel may be made of, and unable to fail."""

    def __init__(self, function: Any, bounds: tuple[int, int]) -> None:
        super().__init__(function)
        stamp = self._cache_file._source_stamp
        self._cache_file._source_stamp = stamp, sources_digest("cuda"), bounds, version("numba-cuda")

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel, or None if it is not there or cannot be read."""
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # a file cut short raises whatever pickle makes of it
            warn_once(f"{type(error).__name__}: {error}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel if that is possible."""
        try:
            super().save_overload(sig, data)
        except Exception as error:  # a full disk, a folder gone, a quota
            warn_once(f"{type(error).__name__}: {error}")


def enable(jitted: Any, bounds: tuple[int, int]) -> None:
    """Give a dispatcher the cache; without a folder that can be written it goes without."""
    try:
        jitted._cache = KernelCache(jitted.py_func, bounds)
    except Exception as error:
        warn_once(f"{type(error).__name__}: {error}")
