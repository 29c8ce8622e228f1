"""Places of a vector that are chosen by bits, the lowest for the first: intrinsics, as those of `ops`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastbn_kernels.cuda.build.numba_cuda import SIMULATED, intrinsic, stand_ins, types

if TYPE_CHECKING or not SIMULATED:
    from llvmlite import ir

    from fastbn_kernels.cuda.simd.words import const, unpack

    @intrinsic
    def choose(typingctx: Any, vector: Any, bits: Any) -> Any:
        """Return the vector with zero in the places whose bit is not set."""

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            chosen = []
            for i, value in enumerate(unpack(builder, args[0], vector.count)):
                is_set = builder.icmp_signed("!=", builder.and_(args[1], const(1 << i)), const(0))
                chosen.append(builder.select(is_set, value, ir.Constant(value.type, 0.0)))
            return context.make_tuple(builder, vector, chosen)

        return vector(vector, types.int32), generate

else:
    globals().update(stand_ins("gpu_masks"))
