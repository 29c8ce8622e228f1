"""The twin of `fastbn_kernels.cuda.simd` in plain Python: the same functions, the same roundings."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = [
    "activated",
    "add",
    "adds",
    "behind",
    "centre",
    "decoded",
    "dot",
    "encoded",
    "fma",
    "get",
    "in_units",
    "inside",
    "load",
    "load_once",
    "load_part",
    "mul",
    "nothing",
    "put",
    "rounded",
    "single",
    "smem_load",
    "smem_store",
    "splat",
    "store",
    "store_part",
    "sub",
    "through",
    "total",
    "unbent",
    "widen",
    "width",
    "writes",
]

WIDE = (np.dtype(np.float64), np.dtype(np.int32))


class Pointer:
    """What a kernel gets for data: a flat array, as `arrays.bits` says, and how much of it is taken at a time."""

    def __init__(self, array: Any, scalars: bool) -> None:
        self.array = array
        self.count = 1 if scalars else 16 // array.itemsize
        self.single = array.dtype not in WIDE


def width(x: Pointer) -> int:
    """Return how many values of x are taken at a time."""
    return x.count


def single(x: Pointer) -> bool:
    """Return whether values of x are computed in float32."""
    return x.single


def in_units(x: Pointer) -> bool:
    """Return whether they are taken in a unit."""
    return bool(x.array.dtype == np.float32)


def load(x: Pointer, at: int) -> Any:
    """Return the values at an element, as they are stored; the address must be a whole number of vectors."""
    assert at % x.count == 0, f"not aligned: element {at}"
    assert 0 <= at <= x.array.size - x.count, f"outside: element {at} of {x.array.size}"
    return x.array[at : at + x.count].copy()


load_once = load


def load_part(x: Pointer, at: int, hi: int) -> Any:
    """Load the first `hi` values of a vector; the rest are zero."""
    assert at % x.count == 0
    assert 0 <= at <= x.array.size - hi
    raw = np.zeros(x.count, x.array.dtype)
    raw[:hi] = x.array[at : at + hi]
    return raw


def decoded(x: Pointer, raw: Any) -> tuple[Any, ...]:
    """Convert what was loaded from x."""
    raw = raw.view(x.array.dtype)[: x.count]
    if raw.dtype == np.int16:
        return tuple(raw.view(np.float16).astype(np.float32))
    if raw.dtype == np.uint16:
        return tuple((raw.astype(np.uint32) << np.uint32(16)).view(np.float32))
    if raw.dtype == np.int32:
        return tuple(raw.view(np.float32).astype(np.float64))
    return tuple(raw)


def _rounded(y: Pointer, values: tuple[Any, ...]) -> Any:
    """Return numbers in the dtype that y stores."""
    if y.array.dtype == np.int16:
        return np.array(values, np.float32).astype(np.float16).view(np.int16)
    if y.array.dtype == np.uint16:
        bits = np.array(values, np.float32).view(np.uint32)
        even = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        return np.where(np.isnan(np.array(values)), 0x7FFF, even).astype(np.uint16)
    if y.array.dtype == np.int32:
        return np.array(values, np.float32).view(np.int32)
    return np.array(values, y.array.dtype)


def store(y: Pointer, at: int, values: tuple[Any, ...]) -> None:
    """Round a vector to y's dtype and store it."""
    assert at % y.count == 0, f"not aligned: element {at}"
    assert 0 <= at <= y.array.size - y.count, f"outside: element {at} of {y.array.size}"
    y.array[at : at + y.count] = _rounded(y, values)


def store_part(y: Pointer, at: int, values: tuple[Any, ...], lo: int, hi: int) -> None:
    """Store the values from lo up to hi of a vector."""
    assert 0 <= at + lo <= at + hi <= y.array.size
    y.array[at + lo : at + hi] = _rounded(y, values)[lo:hi]


def smem_store(smem: Any, slot: int, raw: Any) -> None:
    """Put what was loaded into a slot of shared memory."""
    bits = raw.view(np.uint8)
    smem.view(np.uint8)[16 * slot : 16 * slot + bits.size] = bits


def smem_load(smem: Any, slot: int) -> Any:
    """Return what was put into a slot, as bytes, which `decoded` sees as what they are."""
    return smem.view(np.uint8)[16 * slot : 16 * slot + 16]


def rounded(x: Pointer, value: Any) -> Any:
    """Round a float64 to the type that values of x are computed with."""
    return np.float32(value) if x.single else np.float64(value)


def splat(x: Pointer, value: Any) -> tuple[Any, ...]:
    """Return a vector of one number."""
    return (rounded(x, value),) * x.count


def put(vector: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    """Return the vector with a float64 in one place."""
    return (*vector[:index], type(vector[index])(value), *vector[index + 1 :])


def get(vector: tuple[Any, ...], index: int) -> Any:
    """Return one place of a vector, as float64."""
    return np.float64(vector[index])


def add(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a + b."""
    return tuple(p + q for p, q in zip(a, b, strict=True))


def sub(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a - b."""
    return tuple(p - q for p, q in zip(a, b, strict=True))


def mul(a: tuple[Any, ...], b: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a * b."""
    return tuple(p * q for p, q in zip(a, b, strict=True))


def _fused(a: Any, b: Any, c: Any) -> Any:
    if type(a) is np.float32:
        return np.float32(np.float64(a) * np.float64(b) + np.float64(c))
    return np.float64(np.longdouble(a) * np.longdouble(b) + np.longdouble(c))


def fma(a: tuple[Any, ...], b: tuple[Any, ...], c: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a * b + c, rounded once."""
    return tuple(_fused(p, q, r) for p, q, r in zip(a, b, c, strict=True))


def centre(x: Pointer, values: tuple[Any, ...], minus: tuple[Any, ...], unit: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return values * unit + minus, rounded once; values + minus where there is no unit but 1."""
    return fma(values, unit, minus) if in_units(x) else add(values, minus)


def adds(after: Any) -> bool:
    """Return whether a residual is added."""
    return after[0] is not None and after[0].kind.adds


def writes(after: Any) -> bool:
    """Return whether its gradient is written."""
    return after[0] is not None and after[0].kind.writes


def behind(after: Any) -> Any:
    """Return what is left once it is."""
    return (None, *after[1:]) if writes(after) else after


def nothing(x: Pointer) -> Any:
    """Return what stands for 16 bytes that are not loaded: zeros."""
    return np.zeros(x.count, x.array.dtype)


def encoded(x: Pointer, values: tuple[Any, ...]) -> Any:
    """Return a vector as it would be loaded once it was stored."""
    return _rounded(x, values)


def _act(z: float, kind: Any) -> float:
    """Return an activation of a float64."""
    match kind.name:
        case "relu":
            return z if z > 0 else 0.0
        case "relu6":
            return min(max(z, 0.0), 6.0)
        case "leaky_relu":
            return z if z > 0 else kind.slope * z
        case "tanh":
            return math.tanh(z)
        case "gelu":
            return max(z, -40.0) * math.erfc(-z / math.sqrt(2)) / 2
    s = 1 / (1 + math.exp(-z)) if z > -700 else 0.0
    return s if kind.name == "sigmoid" else max(z, -700.0) * s


def _slope(z: float, kind: Any) -> float:
    """Return its derivative."""
    match kind.name:
        case "relu" | "leaky_relu":
            return 1.0 if z > 0 else kind.slope
        case "relu6":
            return float(0 < z < 6)
        case "tanh":
            return 1 / math.cosh(min(abs(z), 350.0)) ** 2
        case "gelu":
            near = min(max(z, -40.0), 40.0)
            density = math.exp(-near * near / 2) / math.sqrt(2 * math.pi)
            return math.erfc(-near / math.sqrt(2)) / 2 + near * density
    near = min(max(z, -350.0), 350.0)
    s, other = 1 / (1 + math.exp(-near)), 1 / (1 + math.exp(near))
    return s * other if kind.name == "sigmoid" else s * (1 + near * other)


def activated(z: tuple[Any, ...], after: Any) -> tuple[Any, ...]:
    """Return the activation of z, rounded once."""
    kind = after[0].kind if after[0] is not None else None
    if kind is None or kind.name is None:
        return z
    return tuple(u if np.isnan(u) else type(u)(_act(float(u), kind)) for u in z)


def unbent(value: tuple[Any, ...], after: Any) -> tuple[Any, ...]:
    """Return x or, where that holds y, what y was made of."""
    if after[0] is None or not after[0].kind.inverse:
        return value
    return tuple(v if v > 0 else v / type(v)(after[0].kind.slope) for v in value)


def through(grad: Any, z: Any, value: Any, after: Any) -> tuple[Any, ...]:
    """Return the gradient by z, from that by its activation; `value` has the sign of z where x holds y."""
    kind = after[0].kind if after[0] is not None else None
    if kind is None or kind.name is None:
        return tuple(grad)
    columns = zip(grad, value if kind.inverse else z, strict=True)
    return tuple(g * type(g)(1.0 if np.isnan(u) else _slope(float(u), kind)) for g, u in columns)


def widen(a: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a vector as float64."""
    return tuple(np.float64(p) for p in a)


def total(a: tuple[Any, ...]) -> Any:
    """Return the sum of a vector as float64, added in the type that it has."""
    values = list(a)
    while len(values) > 1:
        values = [values[i] + values[i + 1] for i in range(0, len(values), 2)]
    return np.float64(values[0])


def dot(a: tuple[Any, ...], b: tuple[Any, ...]) -> Any:
    """Return the sum of the products of two vectors as float64, computed in the type that they have."""
    half = max(1, len(a) // 2)
    sums = [p * q for p, q in zip(a[:half], b[:half], strict=True)]
    for i in range(half, len(a)):
        sums[i - half] = _fused(a[i], b[i], sums[i - half])
    return total(tuple(sums))


def inside(a: tuple[Any, ...], lo: int, hi: int, other: Any) -> tuple[Any, ...]:
    """Return the vector with `other` in the places before lo and from hi on."""
    return tuple(value if lo <= i < hi else other for i, value in enumerate(a))
