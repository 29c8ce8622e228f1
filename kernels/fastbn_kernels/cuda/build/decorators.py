"""The only file that imports numba.cuda: the decorators, the types of arguments, and how a kernel is launched.

A kernel is compiled on first use, for the dtype of the data, the dtype of the parameters and the width of its loads.
Arguments are addresses and numbers: an array would travel as nine values, some 1.5 us of Python each.

With NUMBA_ENABLE_CUDASIM=1 the same sources run as plain Python, in `simulator`.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numba import config

from fastbn_kernels.build import interrupts
from fastbn_kernels.build.decorators import DTYPES

__all__ = [
    "SIMULATED",
    "Counters",
    "Data",
    "Doubles",
    "Kernel",
    "Long",
    "Parameters",
    "cuda",
    "device",
    "dispatcher",
    "f64",
    "i32",
    "i64",
    "intrinsic",
    "kernel",
    "shared_formula",
    "types",
]

log = logging.getLogger("fastbn")

SIMULATED = bool(config.ENABLE_CUDASIM)

# The most threads a block is ever launched with, which bounds the registers of each.
THREADS = 256

if not hasattr(np, "row_stack"):  # NumPy 2.5 removed it; numba-cuda 0.30 still names it
    np.row_stack = np.vstack  # noqa: NPY201

with interrupts.held_back():
    from numba import cuda as numba_cuda

cuda: Any
Scalars: Any
dispatcher: Any
intrinsic: Any
types: Any
if SIMULATED:
    from simulated import gpu as simulator
    from simulated.gpu_vector import Pointer

    cuda = simulator.cuda

    i32: Any = int
    i64: Any = int
    f64: Any = np.float64
    Scalars = None
else:
    from numba.cuda import dispatcher, types  # type: ignore[no-redef]
    from numba.cuda.cudadrv import driver
    from numba.cuda.extending import core_models, intrinsic, register_model  # type: ignore[no-redef]

    cuda = numba_cuda
    i32, i64, f64 = types.int32, types.int64, types.float64

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


# What a kernel's annotations may say of an argument. `Data` is x, y, dy or dx, `Parameters` what belongs to weight and
# bias, `Doubles` and `Counters` are workspace and tables.
Data: TypeAlias = Any
Parameters: TypeAlias = Any
Doubles: TypeAlias = Any
Counters: TypeAlias = Any
Long: TypeAlias = int

# What the driver takes for a number; addresses are taken as they are.
CONVERTERS: dict[str, Callable[[Any], Any]] = {"int": ctypes.c_int32, "Long": ctypes.c_int64, "float": ctypes.c_double}


def _types(data: Any, parameter: Any, scalars: bool) -> dict[str, Any]:
    """Return the Numba type of every kind of argument."""
    return {
        "Data": Scalars(data) if scalars else types.CPointer(data),
        "Parameters": types.CPointer(parameter),
        "Doubles": types.CPointer(types.float64),
        "Counters": types.CPointer(types.uint32),
        "int": types.int32,
        "Long": types.int64,
        "float": types.float64,
    }


class Kernel:
    """One source, compiled on first use for each kind of data.

    Parameters
    ----------
    source : function
        Plain Python in Numba's subset, every argument annotated with a name that `_types` knows.
    waits : bool
        Whether its blocks wait for each other.
    """

    def __init__(self, source: Callable[..., Any], waits: bool) -> None:
        self.waits = waits
        self.name = source.__name__
        self.__doc__ = source.__doc__
        self.source = source
        self.kinds = [kind for name, kind in source.__annotations__.items() if name != "return"]
        self._compiled: dict[tuple[str, str, bool, int], Any] = {}
        self._launches: dict[tuple[Any, ...], Launch] = {}
        self._lock = threading.RLock()

    def signature(self, data: str, parameter: str, scalars: bool) -> Any:
        """Return Numba's signature for data and parameters of these dtypes (`numpy.dtype.char`)."""
        known = _types(DTYPES[data], DTYPES[parameter], scalars)
        return types.void(*(known[kind] for kind in self.kinds))

    def ptx(self, data: str, parameter: str, scalars: bool, resident: int, capability: tuple[int, int]) -> str:
        """Compile to PTX without a driver."""
        signature = self.signature(data, parameter, scalars)
        bounds = (THREADS, resident)
        code: str = cuda.compile_ptx(self.source, signature, cc=capability, launch_bounds=bounds)[0]
        return code

    def compiled(self, data: str, parameter: str, scalars: bool, resident: int) -> Any:
        """Compile for the GPU that is there; return Numba's kernel."""
        with self._lock:
            key = data, parameter, scalars, resident
            if key not in self._compiled:
                with interrupts.held_back():
                    self._compiled[key] = self._compile(*key)
            return self._compiled[key]

    def _compile(self, data: str, parameter: str, scalars: bool, resident: int) -> Any:
        started = time.perf_counter()
        signature = self.signature(data, parameter, scalars)
        from fastbn_kernels.cuda import kernel_cache

        bounds = (THREADS, resident)
        jitted = cuda.jit(launch_bounds=bounds)(self.source)
        kernel_cache.enable(jitted, bounds)
        jitted.compile(signature.args)
        jitted._specialized = True  # as a signature in the decorator would: launches do not look at arguments' types
        jitted.disable_compile()
        for compiled in jitted.overloads.values():
            # All blocks of a launch must be on the chip at once, or those that wait at a barrier wait for ever. A
            # cooperative launch promises that, also beside other streams.
            compiled.cooperative = self.waits
            if self.waits and shared_limit() > STATIC_LIMIT:
                allow_shared(compiled, shared_limit())
        done = "loaded" if jitted.stats.cache_hits else "compiled"
        log.info("fastbn: %s %s for %s in %.2f s", done, self.name, data, time.perf_counter() - started)
        return jitted

    def launch(
        self,
        kind: tuple[str, str, bool, int],
        grid: int,
        threads: int,
        stream: int,
        shared: int,
        arguments: tuple[Any, ...],
    ) -> tuple[Launch, list[Any]]:
        """Launch `grid` blocks of `threads` with `shared` bytes each; `kind` is what `_compile` takes.

        Return what launches it again, and the arguments as that takes them.
        """
        key = kind, grid, threads, stream, shared
        launch = self._launches.get(key)
        if launch is None:
            compiled = None if SIMULATED else self.compiled(*kind)
            with self._lock:
                if len(self._launches) > 1024:
                    self._launches.clear()
                launch = self._launches[key] = Launch(self, compiled, grid, threads, stream, shared, kind[2])
        converted = launch.converted(arguments)
        launch(converted)
        return launch, converted


class Launch:
    """A kernel with all that a launch needs but its arguments.

    numba-cuda makes a configuration and converts every argument anew at each launch, some 9 us; what is kept here
    leaves the 1 to 2 us of cuda-core, which it launches through. Where a release of it has other insides, its own way
    is taken.
    """

    def __init__(
        self, kernel: Kernel, compiled: Any, grid: int, threads: int, stream: int, shared: int, scalars: bool
    ) -> None:
        self.scalars = scalars
        self._source = kernel.source
        self._shape = grid, threads, shared
        self._converters = [CONVERTERS.get(kind) for kind in kernel.kinds]
        self._direct: Any = None
        if SIMULATED:
            return
        on = cuda.external_stream(stream) if stream else 0
        with warnings.catch_warnings():  # of a grid too small to fill the GPU: so is the array
            warnings.simplefilter("ignore")
            self._configured = compiled[grid, threads, on, shared]
        try:
            own = next(iter(compiled.overloads.values()))
            config = dispatcher.LaunchConfig(
                grid=(grid, 1, 1), block=(threads, 1, 1), shmem_size=shared, is_cooperative=kernel.waits
            )
            self._direct = self._configured.stream, config, own._codelibrary.get_cufunc().kernel
        except (AttributeError, TypeError) as error:
            log.info("fastbn: launches go through numba-cuda: %s", error)

    def converted(self, arguments: tuple[Any, ...]) -> list[Any]:
        """Return arguments as the driver takes them; addresses stay numbers."""
        if SIMULATED:
            return list(arguments)
        pairs = zip(self._converters, arguments, strict=True)
        return [argument if convert is None else convert(argument) for convert, argument in pairs]

    def __call__(self, arguments: list[Any]) -> None:
        """Launch with converted arguments."""
        if self._direct is not None:
            stream, config, function = self._direct
            dispatcher.launch(stream, config, function, *arguments)
        elif SIMULATED:
            simulator.launch(self._source, *self._shape, tuple(arguments))
        else:
            self._configured(*(getattr(argument, "value", argument) for argument in arguments))


# Shared memory that a block may have unless the kernel asks for more, which numba-cuda does not do.
STATIC_LIMIT = 48 << 10


def allow_shared(compiled: Any, most: int) -> None:
    """Let a kernel be launched with up to `most` bytes of dynamic shared memory, and prefer it to the first cache."""
    function = compiled._codelibrary.get_cufunc()
    attribute = driver.binding.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    static = 12288  # what the kernels have beside it counts towards the limit: `STATIC` in `backends/cuda_plan.py`
    driver.driver.cuKernelSetAttribute(attribute, most - static, function.handle, function.device.id)
    function.set_shared_memory_carveout(100)


@functools.cache
def shared_limit() -> int:
    """Return how much shared memory a block may have here: what the GPU offers if Numba's internals let us ask."""
    offered = int(cuda.get_current_device().MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)

    def nothing(n: int) -> None:
        pass

    try:
        probe = cuda.jit(types.void(types.int32))(nothing)
        allow_shared(next(iter(probe.overloads.values())), offered)
    except Exception as error:
        log.warning("fastbn: kernels keep at most 48 KB a block on the chip: %s: %s", type(error).__name__, error)
        return STATIC_LIMIT
    return offered


def properties() -> dict[str, Any]:
    """Return what a launch plan needs to know of the GPU that is there."""
    if SIMULATED:  # few and small, so that small arrays reach every plan
        return {"multiprocessors": 2, "shared_per_block": 32768, "shared_per_multiprocessor": 32768,
                "second_level": 1 << 20, "threads": 32}  # fmt: skip
    gpu = cuda.get_current_device()
    return {
        "multiprocessors": int(gpu.MULTIPROCESSOR_COUNT),
        "shared_per_block": shared_limit(),
        "shared_per_multiprocessor": int(gpu.MAX_SHARED_MEMORY_PER_MULTIPROCESSOR),
        "second_level": int(gpu.L2_CACHE_SIZE),
    }


def gpu_index() -> int:
    """Return which GPU is current."""
    return 0 if SIMULATED else int(cuda.get_current_device().id)


def name() -> str:
    """Return the name of the GPU that is there."""
    if SIMULATED:
        return "simulator"
    found = cuda.get_current_device().name
    return found.decode() if isinstance(found, bytes) else str(found)


def problem() -> str | None:
    """Return why no GPU can be used, in one line, or None."""
    if SIMULATED:
        return None
    if not cuda.is_available():
        error = getattr(driver.driver, "initialization_error", None)
        return " ".join(str(error or "the driver finds no GPU").split())
    return None


def argument(array: Any, scalars: bool) -> Any:
    """Return what a kernel gets for an array of data."""
    if SIMULATED:
        return Pointer(flat(array), scalars)
    return array.__array_interface__["data"][0]


def number_argument(array: Any) -> Any:
    """Return what a kernel gets for numbers of channels or workspace; None is nothing."""
    if SIMULATED:
        return np.empty(1) if array is None else flat(array)
    return 0 if array is None else array.__array_interface__["data"][0]


def empty(shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None) -> Any:
    """Return a new array on the GPU."""
    return numba_cuda.device_array(shape, np.dtype(dtype), strides=strides)


def to_device(array: Any) -> Any:
    """Copy a NumPy array, contiguous in C or Fortran order, to the GPU."""
    if array.dtype.kind == "V" and not SIMULATED:  # bfloat16, of which Numba cannot take the buffer
        return numba_cuda.to_device(array.view(np.uint16)).view(array.dtype)
    return numba_cuda.to_device(array)


def to_host(array: Any) -> Any:
    """Copy an array with `__cuda_array_interface__` to the host, once all that was launched before is done."""
    if not hasattr(array, "copy_to_host"):
        array = numba_cuda.as_cuda_array(array)
    numba_cuda.synchronize()  # whatever stream it was computed on
    return array.copy_to_host()


def zeros(nbytes: int) -> Any:
    """Return zeroed memory of the GPU."""
    if SIMULATED:
        return np.zeros(nbytes, np.uint8)
    memory = cuda.to_device(np.zeros(nbytes, np.uint8))
    cuda.synchronize()  # other streams may use it from now on
    return memory


def piece(memory: Any, start: int, count: int, dtype: Any) -> Any:
    """Return part of such memory as a kernel takes it."""
    if SIMULATED:
        return memory[start : start + count * np.dtype(dtype).itemsize].view(dtype)
    return memory.__cuda_array_interface__["data"][0] + start


def flat(array: Any) -> Any:
    """Return a contiguous array as one axis, without a copy."""
    view = array.reshape(-1)
    assert array.size == 0 or np.may_share_memory(view, array)
    return view


def kernel(*, waits: bool) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a `Kernel` of a function; see there."""
    return lambda source: Kernel(source, waits)
