"""How a compiled kernel is launched, and launched again."""

from __future__ import annotations

import ctypes
import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastbn_kernels.cuda.build.numba_cuda import SIMULATED, cuda, dispatcher, stand_ins

if TYPE_CHECKING:
    from fastbn_kernels.cuda.build.decorators import Kernel, Variant

log = logging.getLogger("fastbn")

# What the driver takes for a number; addresses are taken as they are.
CONVERTERS: dict[str, Callable[[Any], Any]] = {"int": ctypes.c_int32, "Long": ctypes.c_int64, "float": ctypes.c_double}


class Launch:
    """A kernel with all that a launch needs but its arguments.

    numba-cuda makes a configuration and converts every argument anew at each launch, some 9 us; what is kept here
    leaves the 1 to 2 us of cuda-core, which it launches through. Where a release of it has other insides, its own way
    is taken.
    """

    def __init__(
        self, kernel: Kernel, compiled: Any, variant: Variant, grid: int, threads: int, stream: int, shared: int
    ) -> None:
        self.scalars = variant.scalars
        self._converters = [CONVERTERS.get(kind) for kind in kernel.kinds if kind != "Tail"]
        self._direct: Any = None
        on = cuda.external_stream(stream) if stream else 0
        with warnings.catch_warnings():  # of a grid too small to fill the GPU: so is the array
            warnings.simplefilter("ignore")
            self._configured = compiled[grid, threads, on, shared]
        try:
            loaded = next(iter(compiled.overloads.values()))
            config = dispatcher.LaunchConfig(
                grid=(grid, 1, 1), block=(threads, 1, 1), shmem_size=shared, is_cooperative=kernel.cooperative
            )
            self._direct = self._configured.stream, config, loaded._codelibrary.get_cufunc().kernel
        except (AttributeError, TypeError) as error:
            log.info("fastbn: launches go through numba-cuda: %s", error)

    def converted(self, arguments: tuple[Any, ...]) -> list[Any]:
        """Return arguments as the driver takes them; addresses stay numbers."""
        pairs = zip(self._converters, arguments, strict=True)
        return [argument if convert is None else convert(argument) for convert, argument in pairs]

    def __call__(self, arguments: list[Any]) -> None:
        """Launch with converted arguments."""
        if self._direct is not None:
            stream, config, function = self._direct
            dispatcher.launch(stream, config, function, *arguments)
        else:
            self._configured(*(getattr(argument, "value", argument) for argument in arguments))


if SIMULATED:
    globals().update(stand_ins("gpu_host", "Launch"))
