"""The only file that imports numba.cuda, and the only one that imports the simulated GPU.

With NUMBA_ENABLE_CUDASIM=1 kernels run as plain Python on the simulated GPU of the tests, which a wheel does not have.
It stands in for the modules of this package that talk to a real one; see `stand_ins`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numba import config

from fastbn_kernels.build import interrupts

__all__ = [
    "SIMULATED",
    "core_models",
    "cuda",
    "dispatcher",
    "driver",
    "f64",
    "get_or_insert_function",
    "i32",
    "i64",
    "intrinsic",
    "lower_constant",
    "numba_cuda",
    "register_model",
    "stand_ins",
    "typeof_impl",
    "types",
]

SIMULATED = bool(config.ENABLE_CUDASIM)


@contextlib.contextmanager
def row_stack_named() -> Iterator[None]:
    """Give NumPy back the name `row_stack` for an import: NumPy 2.5 took it away, numba-cuda 0.30.4 looks it up."""
    missing = not hasattr(np, "row_stack")
    if missing:
        np.row_stack = np.vstack  # noqa: NPY201
    try:
        yield
    finally:
        if missing:
            del np.row_stack  # noqa: NPY201


def stand_ins(module: str, *names: str) -> dict[str, Any]:
    """Return what a module of the simulated GPU has in the place of these names, or of all that it has a twin of."""
    try:
        twin = importlib.import_module(f"simulated.{module}")
    except ModuleNotFoundError as error:
        if error.name != "simulated":
            raise
        raise ImportError(
            "NUMBA_ENABLE_CUDASIM=1 needs the simulated GPU, which a wheel does not have: "
            "put the folder tests/ of a checkout of fastbn on PYTHONPATH"
        ) from error
    return {name: getattr(twin, name) for name in names or twin.__all__}


cuda: Any
core_models: Any = None
dispatcher: Any = None
driver: Any = None
get_or_insert_function: Any = None
intrinsic: Any = None
lower_constant: Any = None
register_model: Any = None
typeof_impl: Any = None
types: Any = None
with interrupts.held_back(), row_stack_named():
    from numba import cuda as numba_cuda

    if SIMULATED:
        cuda = stand_ins("gpu", "cuda")["cuda"]
        i32: Any = int
        i64: Any = int
        f64: Any = np.float64
    else:
        import numba.cuda.np.arrayobj  # noqa: F401 - looks `row_stack` up, and is otherwise imported by the first kernel
        from numba.cuda import dispatcher, types  # type: ignore[no-redef]
        from numba.cuda.cgutils import get_or_insert_function  # type: ignore[no-redef]
        from numba.cuda.core.imputils import lower_constant  # type: ignore[no-redef]
        from numba.cuda.cudadrv import driver  # type: ignore[no-redef]
        from numba.cuda.extending import core_models, intrinsic, register_model, typeof_impl  # type: ignore[no-redef]

        cuda = numba_cuda
        i32, i64, f64 = types.int32, types.int64, types.float64
