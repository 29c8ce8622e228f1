"""The threading layer under parallel kernels.

Numba prefers `tbb`, which survives both several Python threads and a fork; `workqueue` aborts the process at the
first, GNU `omp` kills the child of the second. But the wheel of tbb puts its library where the loader does not look.
Loading it by hand, before Numba's first launch, is all that is missing. A layer that the user chose, or one that
already runs, is left alone.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import logging
import os
import sys

from numba import config, get_num_threads
from numba.np.ufunc import parallel

log = logging.getLogger("fastbn")

LIBRARIES = {"linux": "libtbb.so.12", "win32": "tbb12.dll"}


@functools.cache
def make_tbb_loadable() -> bool:
    """Load the tbb library of the `tbb` package so that Numba finds it; return whether that was done."""
    library = LIBRARIES.get(sys.platform)
    if library is None or config.THREADING_LAYER != "default" or parallel._is_initialized:
        return False
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return False
    for file in files:
        if file.name == library:
            try:
                # RTLD_GLOBAL, so that Numba's extension finds the symbols; Windows ignores the mode.
                ctypes.CDLL(os.fspath(file.locate()), ctypes.RTLD_GLOBAL)
            except OSError as error:
                log.warning(
                    "fastbn: cannot load %s of the tbb package, Numba chooses another layer: %s", library, error
                )
                return False
            return True
    return False


def count() -> int:
    """Return the number of threads that a parallel kernel would use now (`numba.set_num_threads`)."""
    make_tbb_loadable()  # asking for the number starts the layer
    threads: int = get_num_threads()
    return threads
