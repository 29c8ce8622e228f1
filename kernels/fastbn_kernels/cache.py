"""Where compiled kernels are kept between processes, and when they are thrown away.

Numba's own cache, with three differences:

- A kernel is fresh only while every source file that it may be made of is what it was. Numba looks at the file of the
  kernel alone, and goes on serving an old kernel after a function that it calls changed in another file.
- Kernels compiled with bounds checks do not share files with kernels compiled without.
- Whatever goes wrong in the cache (a read-only install without HOME, a full disk, a file cut short) costs a
  compilation and one warning in the log, never an exception.
"""

from __future__ import annotations

import functools
import hashlib
import logging
from pathlib import Path
from typing import Any

from numba import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache

log = logging.getLogger("fastbn")


@functools.cache
def sources_digest(processor: str) -> str:
    """Hash every source file that the kernels in a folder are made of; an empty one (a zip) hashes to a constant."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for file in sorted([*folder.glob("*.py"), *folder.glob(f"{processor}/*.py")]):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


@functools.cache
def warn_once(problem: str) -> None:
    """Log a cache problem the first time that it occurs."""
    log.warning("fastbn: the kernel cache does not work, kernels are compiled in every process: %s", problem)


class Unfailing:
    """What makes a cache of Numba's, for either processor, unable to fail."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel, or None if it is not there or cannot be read."""
        try:
            return super().load_overload(sig, target_context)  # type: ignore[misc]
        except Exception as error:  # a file cut short raises whatever pickle makes of it
            warn_once(f"{type(error).__name__}: {error}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel if that is possible."""
        try:
            super().save_overload(sig, data)  # type: ignore[misc]
        except Exception as error:  # a full disk, a folder gone, a quota
            warn_once(f"{type(error).__name__}: {error}")


class KernelCacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    """Numba's file naming, plus a mark for bounds checks."""

    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        """Name the files of a kernel."""
        base: str = super().get_filename_base(fullname, abiflags)
        return base + ("-checked" if config.BOUNDSCHECK else "")


class KernelCache(Unfailing, FunctionCache):  # type: ignore[misc]
    """Numba's cache, stamped with the whole package and unable to fail."""

    _impl_class = KernelCacheImpl

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._cache_file._source_stamp = (self._cache_file._source_stamp, sources_digest("cpu"))


def enable(dispatcher: Any) -> None:
    """Give a dispatcher the cache; without a folder that can be written it goes without."""
    try:
        dispatcher._cache = KernelCache(dispatcher.py_func)
    except RuntimeError as error:  # Numba's "no locator available"
        warn_once(str(error))
