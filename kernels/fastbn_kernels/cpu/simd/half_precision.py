"""float16 and bfloat16 to float32 and back, as LLVM IR over vectors of any width.

Numba knows neither type, so arrays of them travel as their bits: float16 as int16, bfloat16 as uint16. Both directions
round to nearest, ties to even, keep infinities and make every NaN a quiet NaN.

A bfloat16 is the upper half of a float32, so integer instructions suffice. (AVX512-BF16 has an instruction for one
direction, but it flushes denormals to zero.) float16 is converted by the processor where it can (F16C, ARM); elsewhere
LLVM would call a function of a C runtime that Numba does not link, so integer instructions take its place.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import config
from numba.core import cgutils

I16 = ir.IntType(16)
I32 = ir.IntType(32)
FLOAT = ir.FloatType()
HALF = ir.HalfType()


def _has(feature: str) -> bool:
    """Return whether code is compiled for an x86 processor with a feature."""
    if config.CPU_FEATURES is None:  # Numba compiles with the host's features then, whatever NUMBA_CPU_NAME says
        return bool(binding.get_host_cpu_features().get(feature, False))
    return f"+{feature}" in (config.CPU_FEATURES or "").split(",")


def has_fma() -> bool:
    """Return whether code is compiled for a processor with a fused multiply-add; elsewhere it is a call of libm."""
    if not binding.get_default_triple().startswith(("x86_64", "i386", "i686")):
        return bool(binding.get_default_triple().startswith(("aarch64", "arm64")))
    return _has("fma")


def in_hardware() -> bool:
    """Return whether code is compiled for a processor that converts float16."""
    if not binding.get_default_triple().startswith(("x86_64", "i386", "i686")):
        return bool(binding.get_default_triple().startswith(("aarch64", "arm64")))
    return _has("f16c")


def _has_half_registers() -> bool:
    """Return whether LLVM computes with float16 itself, which x86 does from AVX512-FP16 on."""
    return binding.get_default_triple().startswith("x86_64") and _has("avx512fp16")


def _vector(element: Any, like: Any) -> Any:
    return ir.VectorType(element, like.type.count)


def _bits(like: Any, number: int) -> Any:
    """Return a vector of one 32-bit integer."""
    return ir.Constant(_vector(I32, like), [number] * like.type.count)


def half_to_float(builder: Any, half: Any) -> Any:
    """Convert the bits of float16 (int16) to float32."""
    if in_hardware():
        return builder.fpext(builder.bitcast(half, _vector(HALF, half)), _vector(FLOAT, half))
    wide = builder.zext(half, _vector(I32, half))
    magnitude = builder.and_(wide, _bits(half, 0x7FFF))
    moved = builder.shl(magnitude, _bits(half, 13))
    # The exponent is 112 too small then; a product sets that right for denormals too, which have none.
    scale = ir.Constant(_vector(FLOAT, half), [2.0**112] * half.type.count)
    scaled = builder.bitcast(builder.fmul(builder.bitcast(moved, _vector(FLOAT, half)), scale), _vector(I32, half))
    special = builder.or_(moved, _bits(half, 0x7F800000))
    finite = builder.icmp_unsigned("<", magnitude, _bits(half, 0x7C00))
    sign = builder.shl(builder.and_(wide, _bits(half, 0x8000)), _bits(half, 16))
    return builder.bitcast(builder.or_(builder.select(finite, scaled, special), sign), _vector(FLOAT, half))


def float_to_half(builder: Any, value: Any) -> Any:
    """Round float32 to the bits of float16 (int16)."""
    if in_hardware() and value.type.count == 16 and _has_half_registers():
        # With registers of float16, LLVM 22 has no store past the cache for one: it is told that these are integers.
        bits16 = _vector(I16, value)
        name = "llvm.x86.avx512.mask.vcvtps2ph.512"
        kind = ir.FunctionType(bits16, [value.type, I32, bits16, I16])
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [value, I32(4), ir.Constant(bits16, None), I16(-1)])  # 4: to nearest, as set
    if in_hardware():
        return builder.bitcast(builder.fptrunc(value, _vector(HALF, value)), _vector(I16, value))
    bits = builder.bitcast(value, _vector(I32, value))
    sign = builder.and_(bits, _bits(value, 0x80000000))
    magnitude = builder.xor(bits, sign)
    # Adding 0.5 brings the last place of a float16 denormal, 2^-24, to the last place of a float32.
    magic = ir.Constant(_vector(FLOAT, value), [0.5] * value.type.count)
    small = builder.fadd(builder.bitcast(magnitude, _vector(FLOAT, value)), magic)
    small = builder.sub(builder.bitcast(small, _vector(I32, value)), _bits(value, 0x3F000000))
    odd = builder.and_(builder.lshr(magnitude, _bits(value, 13)), _bits(value, 1))
    normal = builder.add(magnitude, _bits(value, (0xFFF - (112 << 23)) & 0xFFFFFFFF))
    normal = builder.lshr(builder.add(normal, odd), _bits(value, 13))
    nan = builder.icmp_unsigned(">", magnitude, _bits(value, 0x7F800000))
    special = builder.select(nan, _bits(value, 0x7E00), _bits(value, 0x7C00))
    is_small = builder.icmp_unsigned("<", magnitude, _bits(value, 113 << 23))
    is_special = builder.icmp_unsigned(">=", magnitude, _bits(value, 143 << 23))  # 65536, the first power beyond
    result = builder.select(is_special, special, builder.select(is_small, small, normal))
    result = builder.or_(result, builder.lshr(sign, _bits(value, 16)))
    return builder.trunc(result, _vector(I16, value))


def bfloat_to_float(builder: Any, bfloat: Any) -> Any:
    """Convert the bits of bfloat16 (uint16) to float32."""
    wide = builder.zext(bfloat, _vector(I32, bfloat))
    return builder.bitcast(builder.shl(wide, _bits(bfloat, 16)), _vector(FLOAT, bfloat))


def float_to_bfloat(builder: Any, value: Any) -> Any:
    """Round float32 to the bits of bfloat16 (uint16)."""
    bits = builder.bitcast(value, _vector(I32, value))
    odd = builder.and_(builder.lshr(bits, _bits(value, 16)), _bits(value, 1))
    rounded = builder.lshr(builder.add(builder.add(bits, odd), _bits(value, 0x7FFF)), _bits(value, 16))
    nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(nan, _bits(value, 0x7FC0), rounded), _vector(I16, value))
