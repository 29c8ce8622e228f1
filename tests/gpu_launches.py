"""Calls on a GPU that is not there: everything but the driver is real. Prints what would have been launched, as JSON.

The launch is numba-cuda's own, up to the function that hands it to the driver; that one, the arrays' memory and the
properties of the GPU are stubs.
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
from numba.cuda import codegen, dispatcher
from numba.cuda.cudadrv import driver

launches = []
loaded = []  # whether each came from the cache
linked = []  # bytes of every kernel, linked for the GPU as at run time
addresses = iter(range(1 << 40, 1 << 50, 1 << 32))


class There:
    """An array of nothing at an address."""

    def __init__(self, shape, dtype, strides=None):
        dtype = np.dtype(dtype)
        self.shape, self.dtype = shape, dtype
        self.__cuda_array_interface__ = {
            "shape": shape, "strides": strides, "typestr": dtype.str, "data": (next(addresses), False), "version": 3,
            "stream": 7,
        }  # fmt: skip

    @property
    def address(self):
        return self.__cuda_array_interface__["data"][0]


There.__cuda_array_interface__ = None  # hasattr asks the type


class Function:
    name, kernel = "stub", "stub"


dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=(9, 0))
dispatcher._Kernel.bind = lambda self: self._codelibrary.get_cubin()
codegen.JITCUDACodegen.magic_tuple = lambda self: ((13, 0), (9, 0))
codegen.CUDACodeLibrary._ensure_cc = lambda self, cc: (9, 0, "a") if cc is None else cc
dispatcher.launch = lambda stream, config, kernel, *arguments: launches.append((stream, config, arguments))
dispatcher.LaunchConfig = lambda **config: config
driver._to_core_stream = lambda stream: stream

from fastbn_kernels.cuda import gpu, memory  # noqa: E402
from fastbn_kernels.cuda.build import decorators, numba_cuda  # noqa: E402

compile_ = decorators.Kernel._compile


def compile_and_stub(self, variant):
    compiled = compile_(self, variant)
    for kernel in compiled.overloads.values():
        linked.append(len(kernel._codelibrary.get_cubin().code))
        loaded.append(bool(compiled.stats.cache_hits))
        kernel._codelibrary.get_cufunc = lambda: Function
    return compiled


decorators.Kernel._compile = compile_and_stub
gpu.shared_limit = lambda: gpu.DEFAULT_SHARED
gpu.properties = lambda: {
    "multiprocessors": 132, "shared_per_block": 49152, "shared_per_multiprocessor": 233472, "l2_bytes": 50 << 20,
}  # fmt: skip
gpu.index = lambda: 0
memory.empty = There
memory.zeros = lambda nbytes: There((nbytes,), np.uint8)
memory.piece = lambda slab, start, count, dtype: slab.address + start
numba_cuda.cuda.external_stream = lambda handle: handle

import fastbn  # noqa: E402
from fastbn.backends.cuda import availability  # noqa: E402

availability.problem = lambda: None


def call(function, *arguments, **keywords):
    """Return the result and what was launched for it."""
    launches.clear()
    result = function(*arguments, **keywords)
    return result, [
        {
            "stream": stream,
            "grid": config["grid"], "block": config["block"], "shared": config["shmem_size"],
            "cooperative": config["is_cooperative"],
            "arguments": [getattr(a, "value", a) for a in arguments],
        }
        for stream, config, arguments in launches
    ]  # fmt: skip


def main(dtype, shape):
    x, dy, out = There(shape, dtype), There(shape, dtype), There(shape, dtype)
    weight, bias, mean, var = (There((shape[1],), np.float32) for _ in range(4))
    told = {}
    (y, ctx), told["forward"] = call(
        fastbn.batch_norm, x, weight, bias, running_mean=mean, running_var=var, out=out, momentum=0.25
    )
    assert y is out
    grads, told["backward"] = call(fastbn.batch_norm_backward, dy, ctx, out=dy)
    assert grads.dx is dy
    _, told["inference"] = call(fastbn.batch_norm_inference, x, mean, var, weight, bias, out=out)
    told["addresses"] = {"x": x.address, "dy": dy.address, "y": out.address, "weight": weight.address}
    told["linked"], told["loaded"] = linked, loaded
    told["saved"] = ctx.saved_there.address
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], tuple(json.loads(sys.argv[2])))
