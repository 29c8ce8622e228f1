"""Which positions count, as bits: 64 in a word, of which flags, those of LANES positions, choose lanes.

A mask comes as bytes, a position each. It is the same for all channels, so it is packed once, where it costs one byte a
position; a channel then reads an eighth of a bit a value of float32, tells 64 positions that all count from 64 of which
none does by one comparison, and has a processor's mask register from 16 bits in one instruction.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from fastbn_kernels.cpu.simd.ops import Codegen
from fastbn_kernels.cpu.simd.types import I16, I32, I64, LANES, MASK, declare, first_lanes, flags16

OPERATIONS = "packed", "packed_word", "flags", "shifted", "ones", "lowest"

WORD = 64  # positions in a word


@intrinsic  # type: ignore[untyped-decorator]
def packed(typing: Any, mask: Any, index: Any, count: Any, vector: Any) -> tuple[Any, Codegen]:
    """Return the bits of mask.flat[index : index + count], booleans, as those of one of the 4 vectors of a word."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, at, lanes, j = arguments
        structure = context.make_array(signature.args[0])(context, builder, values)
        if config.BOUNDSCHECK:
            outside = builder.icmp_signed(">", builder.add(at, lanes), structure.nitems)
            with builder.if_then(outside, likely=False):
                context.call_conv.return_user_exc(builder, IndexError, ("a vector reaches out of its array",))
        kind = ir.VectorType(ir.IntType(8), LANES)
        address = builder.bitcast(builder.gep(structure.data, [at]), kind.as_pointer())
        function = declare(
            builder, "llvm.masked.load.v16i8.p0", kind, [address.type, I32, MASK, kind]
        )  # fmt: skip
        none = ir.Constant(kind, None)
        found = builder.call(function, [address, I32(1), first_lanes(builder, lanes), none])
        bits = builder.zext(builder.bitcast(builder.icmp_unsigned("!=", found, none), I16), I64)
        return builder.shl(bits, builder.mul(j, I64(LANES)))

    return types.uint64(mask, types.intp, types.intp, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def packed_word(typing: Any, mask: Any, index: Any) -> tuple[Any, Codegen]:
    """Return the bits of mask.flat[index : index + WORD]."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        structure = context.make_array(signature.args[0])(context, builder, arguments[0])
        kind = ir.VectorType(ir.IntType(8), WORD)
        address = builder.bitcast(builder.gep(structure.data, [arguments[1]]), kind.as_pointer())
        found = builder.load(address, align=1)
        return builder.bitcast(builder.icmp_unsigned("!=", found, ir.Constant(kind, None)), I64)

    return types.uint64(mask, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def flags(typing: Any, word: Any, vector: Any) -> tuple[Any, Codegen]:
    """Return the flags of one of the 4 vectors of a word."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.trunc(builder.lshr(arguments[0], builder.mul(arguments[1], I64(LANES))), I16)

    return flags16(types.uint64, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def shifted(typing: Any, word: Any, following: Any, by: Any) -> tuple[Any, Codegen]:
    """Return the 64 bits from bit `by` on, less than 64, of a word and the one that follows."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        low, high, places = arguments
        return builder.call(declare(builder, "llvm.fshr.i64", I64, [I64] * 3), [high, low, places])

    return types.uint64(types.uint64, types.uint64, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def ones(typing: Any, word: Any) -> tuple[Any, Codegen]:
    """Return how many positions of a word count."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.intp(types.uint64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def lowest(typing: Any, word: Any) -> tuple[Any, Codegen]:
    """Return the first position of a word that counts, of which there must be one."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.uint64), codegen


if config.DISABLE_JIT:
    from simulated import simd_python

    globals().update({name: getattr(simd_python, name) for name in OPERATIONS})
