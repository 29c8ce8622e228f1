"""Sixteen bytes at a time: loads, stores, and the arithmetic on what they hold.

A vector is a tuple of numbers: float32 for float32 and for the 16-bit types, which come as the bits of an integer
(int16 for float16, uint16 for bfloat16); float64 for float64 and for float32 that comes as its bits, an int32. It has
`width(x)` of them: as many as 16 bytes hold, or one if x is not aligned (`Scalars` in `build.decorators`). What has
been loaded and not yet converted is `raw`: four words.

They are intrinsics of Numba's CUDA target, in `memory`, `arithmetic` and `tail_ops`, or plain Python for the simulated
GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastbn_kernels.cuda.build.numba_cuda import SIMULATED, stand_ins

if TYPE_CHECKING or not SIMULATED:
    from fastbn_kernels.cuda.simd.arithmetic import *  # noqa: F403
    from fastbn_kernels.cuda.simd.memory import *  # noqa: F403
    from fastbn_kernels.cuda.simd.tail_ops import *  # noqa: F403
else:
    globals().update(stand_ins("gpu_vector"))
