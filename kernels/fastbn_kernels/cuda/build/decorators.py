"""The decorators of GPU kernels and of the functions that they call, and what a kernel's arguments may be.

A kernel is compiled on first use, for the dtype of the data, the dtype of the parameters, the width of its loads and
what is done after the normalization. Arguments are addresses and numbers: an array would travel as nine values, some
1.5 us of Python each.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from fastbn_kernels.build import interrupts
from fastbn_kernels.build.decorators import DTYPES
from fastbn_kernels.cuda import gpu
from fastbn_kernels.cuda.build.launch import Launch
from fastbn_kernels.cuda.build.numba_cuda import SIMULATED, core_models, cuda, register_model, types

__all__ = [
    "Counters",
    "Data",
    "Doubles",
    "Kernel",
    "Long",
    "Mask",
    "Params",
    "Tail",
    "Variant",
    "device",
    "kernel",
    "shared_formula",
]

log = logging.getLogger("fastbn")

# The most threads a block is ever launched with, which bounds the registers of each.
THREADS = 256

Scalars: Any = None
if not SIMULATED:

    class ScalarsPointer(types.CPointer):  # type: ignore[misc]
        """A pointer to data that is taken one value at a time, because 16 bytes of it are not aligned."""

        def __init__(self, dtype: Any) -> None:
            super().__init__(dtype)
            self.name = f"scalars({dtype})"

    Scalars = ScalarsPointer
    register_model(Scalars)(core_models.PointerModel)


def device(function: Any) -> Any:
    """Compile a function that kernels call; it is inlined into each."""
    return function if SIMULATED else cuda.jit(device=True, forceinline=True)(function)


def shared_formula(formula: Any) -> Any:
    """Return the device's version of a function of `fastbn_kernels.formulas`."""
    return device(getattr(formula, "py_func", formula))


# What a kernel's annotations may say of an argument. `Data` is x, y, dy or dx, `Params` what belongs to weight and
# bias, `Doubles` and `Counters` are workspace and what is saved, `Mask` is a byte a position. `Tail`, the last, is no
# argument of the compiled kernel but a constant of it: what is done after the normalization (see `tails`).
Data: TypeAlias = Any
Params: TypeAlias = Any
Doubles: TypeAlias = Any
Counters: TypeAlias = Any
Mask: TypeAlias = Any
Long: TypeAlias = int
Tail: TypeAlias = Any


class Variant(NamedTuple):
    """What one source is compiled for.

    Attributes
    ----------
    data, params : str
        `numpy.dtype.char` of the data, 16-bit floats as the integers of their bits, and of weight, bias and what
        belongs to them.
    scalars : bool
        Whether data is taken a value at a time.
    blocks_per_sm : int
        Blocks of `THREADS` threads that a multiprocessor must have registers for.
    tail : Tail or None
        What is done after the normalization; see `fastbn_kernels.cuda.tails`.
    """

    data: str
    params: str
    scalars: bool
    blocks_per_sm: int
    tail: Any = None


def _types(variant: Variant) -> dict[str, Any]:
    """Return the Numba type of every kind of argument."""
    data = DTYPES[variant.data]
    return {
        "Data": Scalars(data) if variant.scalars else types.CPointer(data),
        "Params": types.CPointer(DTYPES[variant.params]),
        "Doubles": types.CPointer(types.float64),
        "Counters": types.CPointer(types.uint32),
        "Mask": types.CPointer(types.uint8),
        "int": types.int32,
        "Long": types.int64,
        "float": types.float64,
        # As the default of an argument that a call leaves out: a constant of the code, in no register.
        "Tail": types.Omitted(variant.tail),
    }


class Kernel:
    """One source, compiled on first use for each variant.

    Parameters
    ----------
    source : function
        Plain Python in Numba's subset, every argument annotated with a name that `_types` knows.
    cooperative : bool
        Whether its blocks wait for each other.
    """

    def __init__(self, source: Callable[..., Any], cooperative: bool) -> None:
        self.cooperative = cooperative
        self.name = source.__name__
        self.__doc__ = source.__doc__
        self.source = source
        self.kinds = [kind for name, kind in source.__annotations__.items() if name != "return"]
        self._compiled: dict[Variant, Any] = {}
        self._launches: dict[tuple[Any, ...], Launch] = {}
        self._lock = threading.RLock()

    def signature(self, variant: Variant) -> Any:
        """Return Numba's signature."""
        known = _types(variant)
        return types.void(*(known[kind] for kind in self.kinds))

    def ptx(self, variant: Variant, capability: tuple[int, int]) -> str:
        """Compile to PTX without a driver."""
        bounds = (THREADS, variant.blocks_per_sm)
        signature = self.signature(variant)
        code: str = cuda.compile_ptx(self.source, signature, cc=capability, launch_bounds=bounds)[0]
        return code

    def compiled(self, variant: Variant) -> Any:
        """Compile for the GPU that is there; return Numba's kernel."""
        with self._lock:
            if variant not in self._compiled:
                with interrupts.held_back():
                    self._compiled[variant] = self._compile(variant)
            return self._compiled[variant]

    def _compile(self, variant: Variant) -> Any:
        if SIMULATED:
            return self.source
        started = time.perf_counter()
        from fastbn_kernels.cuda.build import cache

        bounds = (THREADS, variant.blocks_per_sm)
        jitted = cuda.jit(launch_bounds=bounds)(self.source)
        cache.enable(jitted, bounds)
        jitted.compile(self.signature(variant).args)
        jitted._specialized = True  # as a signature in the decorator would: launches do not look at arguments' types
        jitted.disable_compile()
        for compiled in jitted.overloads.values():
            # All blocks of a launch must be on the chip at once, or those that wait at a barrier wait for ever. A
            # cooperative launch promises that, also beside other streams.
            compiled.cooperative = self.cooperative
            if self.cooperative:
                gpu.allow_shared(compiled)
        done = "loaded" if jitted.stats.cache_hits else "compiled"
        log.info("fastbn: %s %s for %s in %.2f s", done, self.name, variant.data, time.perf_counter() - started)
        return jitted

    def launch(
        self, variant: Variant, grid: int, threads: int, stream: int, shared: int, arguments: tuple[Any, ...]
    ) -> tuple[Launch, list[Any]]:
        """Launch `grid` blocks of `threads` with `shared` bytes each.

        Return what launches it again, and the arguments as that takes them.
        """
        key = variant, grid, threads, stream, shared
        launch = self._launches.get(key)
        if launch is None:
            compiled = self.compiled(variant)
            with self._lock:
                if len(self._launches) > 1024:
                    self._launches.clear()
                launch = self._launches[key] = Launch(self, compiled, variant, grid, threads, stream, shared)
        converted = launch.converted(arguments)
        launch(converted)
        return launch, converted


def kernel(*, cooperative: bool) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a `Kernel` of a function; see there."""
    return lambda source: Kernel(source, cooperative)
