"""Values as the words that they are loaded and stored in: conversions in LLVM's IR.

NVVM miscompiles a vector of halves that is extended as one (2 of 8 come out converted): every half is taken out of its
word before.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastbn_kernels.cuda.build.decorators import Scalars
from fastbn_kernels.cuda.build.numba_cuda import types

WORD, LONG, HALF = ir.IntType(32), ir.IntType(64), ir.HalfType()
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
WORDS = ir.VectorType(WORD, 4)
RAW = types.UniTuple(types.int32, 4)  # what has been loaded, as Numba sees it


def count_of(x: Any) -> int:
    """Return how many values of x are taken at a time."""
    return 1 if isinstance(x, Scalars) else 128 // x.dtype.bitwidth


def compute_type(x: Any) -> Any:
    """Return the type that values of x are computed with; int32 are the bits of float32 for which that is float64."""
    return types.float64 if x.dtype in (types.float64, types.int32) else types.float32


def has_units(x: Any) -> bool:
    """Return whether values of x are taken in a unit, so that their squares do not leave the range of float32.

    Those of float16 do not. Those of bfloat16 may, below 1e-19 and beyond 1e19, but a unit for each of eight numbers a
    vector is eight registers, which kernels for rows do not have: three of them spill on sm_80.
    """
    return bool(x.dtype == types.float32)


def vector_of(x: Any) -> Any:
    """Return the type of a vector of x."""
    return types.UniTuple(compute_type(x), count_of(x))


def const(value: int, kind: Any = WORD) -> Any:
    """Return a constant of the IR."""
    return ir.Constant(kind, value)


def address(builder: Any, pointer: Any, index: Any) -> Any:
    """Return the address of an element as the number that inline assembly takes."""
    return builder.ptrtoint(builder.gep(pointer, [index]), LONG)


def half_to_float(builder: Any, data: Any, bits: Any) -> Any:
    """Return the number of one 16-bit value, given as a word whose upper half counts for nothing."""
    if data == types.uint16:
        return builder.bitcast(builder.shl(bits, const(16)), FLOAT)
    return builder.fpext(builder.bitcast(builder.trunc(bits, ir.IntType(16)), HALF), FLOAT)


def floats_to_halves(builder: Any, data: Any, low: Any, high: Any) -> Any:
    """Return two numbers as one word of 16-bit values."""
    if data == types.uint16:
        kind = ir.FunctionType(WORD, [FLOAT, FLOAT])
        return builder.call(ir.InlineAsm(kind, "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f"), [low, high])
    words = [builder.zext(builder.bitcast(builder.fptrunc(v, HALF), ir.IntType(16)), WORD) for v in (low, high)]
    return builder.or_(words[0], builder.shl(words[1], const(16)))


def decode(builder: Any, data: Any, count: int, words: list[Any]) -> list[Any]:
    """Return the first `count` numbers of four words."""
    if data == types.float32:
        return [builder.bitcast(word, FLOAT) for word in words[:count]]
    if data == types.int32:
        return [builder.fpext(builder.bitcast(word, FLOAT), DOUBLE) for word in words[:count]]
    if data == types.float64:
        pairs = zip(words[::2], words[1::2], strict=True)
        longs = [
            builder.or_(builder.zext(low, LONG), builder.shl(builder.zext(high, LONG), const(32, LONG)))
            for low, high in pairs
        ]
        return [builder.bitcast(long, DOUBLE) for long in longs[:count]]
    halves = []
    for word in words[: (count + 1) // 2]:
        halves += [half_to_float(builder, data, word), half_to_float(builder, data, builder.lshr(word, const(16)))]
        if data == types.uint16:  # one instruction instead of two
            halves[-1] = builder.bitcast(builder.and_(word, const(0xFFFF0000)), FLOAT)
    return halves[:count]


def encode(builder: Any, data: Any, numbers: list[Any]) -> list[Any]:
    """Return numbers as words; an odd 16-bit one is the lower half of its word."""
    if data == types.float32:
        return [builder.bitcast(number, WORD) for number in numbers]
    if data == types.int32:
        return [builder.bitcast(builder.fptrunc(number, FLOAT), WORD) for number in numbers]
    if data == types.float64:
        words = []
        for number in numbers:
            bits = builder.bitcast(number, LONG)
            words += [builder.trunc(bits, WORD), builder.trunc(builder.lshr(bits, const(32, LONG)), WORD)]
        return words
    padded = numbers + numbers[-1:] * (len(numbers) % 2)
    return [floats_to_halves(builder, data, *padded[i : i + 2]) for i in range(0, len(padded), 2)]


def unpack(builder: Any, tuple_: Any, count: int) -> list[Any]:
    """Return the elements of a tuple."""
    return [builder.extract_value(tuple_, i) for i in range(count)]
