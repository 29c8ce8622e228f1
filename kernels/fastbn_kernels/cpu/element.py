"""What is computed of an element: the only place with the arithmetic of batch normalization on vectors.

Of every element the loops ask for one of two things, whatever they walk:

    first_sums, more_sums   what is summed, u and u * d: u = d for the moments (dy is None), else u = dy
    result                  what is written: y = d * scale + shift (dy is None), or
                            dx = scale * dy + (slope * d + offset), or, through frozen statistics, scale * dy (x is
                            None: it is not read)

and the second derivatives of `double_backward`. d is (x - mean) * unit, or for the moments x - k with a k near the
mean; `formulas` says what the unit is for. Parameters are vectors: a number in all lanes, or the numbers of
neighbouring columns, which `column_shift` and `column_params` read; in the order of `params`: -mean * unit, unit,
scale, shift and, to write dx, slope, offset and the scale of dy.

`tail` is what is done after the normalization. It comes with the kernel's last argument and is handed down as it is, by
its type: None is nothing, and what else it may be is decided here, when a kernel is compiled. Forward:

    activation, or (activation or None, residual)       residual, an array beside y, is added before the activation

Backward, in kernels that take

    activation, or (activation, residual)       sums alone: what was normalised is computed again
    (activation, residual, dresidual)           sums and then dx: what is summed writes dresidual, the gradient by what
                                                was added, and dx is written of that; neither dy nor the residual is
                                                read again, nor the activation computed
    (activation, residual, dresidual, WRITE)    dx alone: what writes it writes dresidual too
    an Inverse                                  any of these: x holds y, the activation of what was normalised

and (any of these, FROZEN) in what writes dx through frozen statistics: with a tail, they do not spare the reading of x.
dresidual shares memory with nothing else. A last vector may be written twice, of the same values.

`finish` gets what was normalised and returns y; i is the place of the element in y, dy, residual and dresidual too, and
n None or how many lanes count. `incoming` returns the gradient by what was normalised.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from fastbn_kernels.build.decorators import Array
from fastbn_kernels.cpu.activations import activated, through, unbent
from fastbn_kernels.cpu.simd.ops import add, centre, fma, keep, load, mul, param, single, splat, store, sub, widen
from fastbn_kernels.cpu.simd.tails import FROZEN, WRITE, Inverse
from fastbn_kernels.cpu.simd.traced import traced
from fastbn_kernels.cpu.simd.types import computed, lanes32

Vector: TypeAlias = Any
Params: TypeAlias = tuple[Vector, ...]
Count: TypeAlias = int | None


# ---------------------------------------------------------------- what is done after the normalization


@traced
def finish(normalized: Vector, x: Array, i: int, n: Count, tail: Any) -> Vector:
    """Return y of what was normalised of x."""
    activation = tail
    if isinstance(tail, tuple):
        activation, residual = tail
        normalized = add(normalized, load(residual, i, n))
    return normalized if activation is None else activated(x, normalized, activation)


def _backward(tail: Any) -> tuple[Any, Any, Any, bool]:
    """Return the activation, residual and dresidual of a tail of a backward pass, and whether WRITE is said."""
    if not isinstance(tail, tuple):
        return tail, None, None, False
    activation, residual, *more = tail
    return activation, residual, more[0] if more else None, len(more) > 1 and more[1] is WRITE


@traced
def normalized_of(x: Array, i: int, n: Count, tail: Any) -> Vector:
    """Return what is centred in a backward pass: x, or what it was before an activation was written over it."""
    value, activation = load(x, i, n), _backward(tail)[0]
    return unbent(x, value, activation.activation) if isinstance(activation, Inverse) else value


@traced
def incoming(dy: Array, value: Vector, d: Vector, i: int, n: Count, params: Params, tail: Any) -> Vector:
    """Return the gradient by what was normalised, from that by y; of `value`, what was centred, and d."""
    grad, (activation, residual, _, _) = load(dy, i, n), _backward(tail)
    if activation is None:
        return grad
    if isinstance(activation, Inverse):  # value has the sign of what was normalised, and its own scale and shift
        return through(dy, grad, value, activation.activation)
    z = fma(d, params[2], params[3])
    return through(dy, grad, z if residual is None else add(z, load(residual, i, n)), activation)


# ---------------------------------------------------------------- sums and results


@traced
def terms(dy: Array | None, x: Array, i: int, n: Count, params: Params, tail: Any) -> tuple[Vector, Vector]:
    """Return u and d, zero in lanes that do not count."""
    value = load(x, i, n) if dy is None else normalized_of(x, i, n, tail)
    d = keep(centre(x, value, params[0], params[1]), n)
    if dy is None:
        return d, d
    u, dresidual = incoming(dy, value, d, i, n, params, tail), _backward(tail)[2]
    if dresidual is not None:
        store(dresidual, i, n, u)
    return u, d


@traced
def first_sums(dy: Array | None, x: Array, i: int, n: Count, params: Params, tail: Any) -> tuple[Vector, Vector]:
    """Return the sums of u and u * d over one vector."""
    u, d = terms(dy, x, i, n, params, tail)
    return u, mul(u, d)


@traced
def more_sums(
    sums: tuple[Vector, Vector], dy: Array | None, x: Array, i: int, n: Count, params: Params, tail: Any
) -> tuple[Vector, Vector]:
    """Return the sums of u and u * d over one vector more."""
    u, d = terms(dy, x, i, n, params, tail)
    return add(sums[0], u), fma(u, d, sums[1])


def _is_single(array: Any) -> bool:
    """Return whether values of an array are computed in float32: asked while a kernel is compiled, or without Numba."""
    kind = getattr(array, "type", None)
    return single(array) if kind is None else computed(kind) is lanes32


@traced
def second_chain(
    first: tuple[Vector, Vector], dy: Array | None, x: Array, i: int, n: Count, params: Params, tail: Any
) -> tuple[Vector, Vector]:
    """Return the sums over one vector, the first of a chain beside another; in float64 chains are one."""
    return first_sums(dy, x, i, n, params, tail) if _is_single(x) else more_sums(first, dy, x, i, n, params, tail)


@traced
def both_chains(x: Array, first: tuple[Vector, Vector], second: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
    """Return the sums of both."""
    return (add(first[0], second[0]), add(first[1], second[1])) if _is_single(x) else second


@traced
def short_sums(x: Array, sums: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
    """Return what `another` adds to: in float32 sums of their own, in float64 the long sums themselves."""
    return (splat(x, 0.0), splat(x, 0.0)) if _is_single(x) else sums


@traced
def another(
    short: tuple[Vector, Vector], dy: Array | None, x: Array, i: int, n: Count, params: Params, tail: Any
) -> tuple[Vector, Vector]:
    """Return short sums and one vector more."""
    if _is_single(x):
        return more_sums(short, dy, x, i, n, params, tail)
    one = first_sums(dy, x, i, n, params, tail)
    return add(short[0], one[0]), add(short[1], one[1])


@traced
def long_sums(x: Array, sums: tuple[Vector, Vector], short: tuple[Vector, Vector]) -> tuple[Vector, Vector]:
    """Return long sums after short ones, which were of at most 4 vectors."""
    return (add(sums[0], widen(short[0])), add(sums[1], widen(short[1]))) if _is_single(x) else short


@traced
def result(dy: Array | None, x: Array | None, i: int, n: Count, params: Params, tail: Any) -> Vector:
    """Return y or dx."""
    if x is None:
        return mul(load(dy, i, n), params[0])  # the scale alone
    if dy is None:
        d = centre(x, load(x, i, n), params[0], params[1])
        return finish(fma(d, params[2], params[3]), x, i, n, tail)
    is_frozen = isinstance(tail, tuple) and tail[-1] is FROZEN
    if is_frozen:
        tail = tail[0]
    _, _, dresidual, writes = _backward(tail)
    is_there = dresidual is not None and not writes
    if is_there and is_frozen:
        return mul(load(dresidual, i, n), params[6])
    value = normalized_of(x, i, n, tail)
    d = centre(x, value, params[0], params[1])
    u = load(dresidual, i, n) if is_there else incoming(dy, value, d, i, n, params, tail)
    if writes:
        store(dresidual, i, n, u)
    return mul(u, params[6]) if is_frozen else fma(u, params[6], fma(d, params[4], params[5]))


@traced
def column_shift(params: Array, at: int, n: Count, tail: Any) -> Params:
    """Return what `first_sums` and `more_sums` take of columns: of a tail, scale and shift too."""
    none = tail is None or isinstance(tail, Inverse)
    return tuple(param(params, row, at, n) for row in ((0, 1) if none else (0, 1, 2, 3)))


@traced
def column_params(dy: Array | None, x: Array | None, params: Array, at: int, n: Count, tail: Any) -> Params:
    """Return what `result` takes of columns."""
    rows = (6,) if x is None else (0, 1, 2, 3) if dy is None else (0, 1, 2, 3, 4, 5, 6)
    return tuple(param(params, row, at, n) for row in rows)


# ---------------------------------------------------------------- second derivatives

SECOND_SUMS = 5  # of v, v * (x - mean), v * g, g, g * (x - mean); v is the gradient that comes in by dx, g is dy
SECOND_PARAMS = 7  # mean and a, b, c, e, h, o

FiveSums: TypeAlias = tuple[Vector, Vector, Vector, Vector, Vector]


@traced
def apart(x: Array, i: int, n: Count, mean: Vector) -> Vector:
    """Return x - mean."""
    return sub(load(x, i, n), mean)


@traced
def first_second_sums(v: Array, g: Array, x: Array, i: int, n: Count, mean: Vector) -> FiveSums:
    """Return the sums of `double_backward` over one vector."""
    a, b, d = load(v, i, n), load(g, i, n), keep(apart(x, i, n, mean), n)
    return a, mul(a, d), mul(a, b), b, mul(b, d)


@traced
def more_second_sums(sums: FiveSums, v: Array, g: Array, x: Array, i: int, n: Count, mean: Vector) -> FiveSums:
    """Return the sums of `double_backward` over one vector more."""
    a, b, d = load(v, i, n), load(g, i, n), keep(apart(x, i, n, mean), n)
    return add(sums[0], a), fma(a, d, sums[1]), fma(a, b, sums[2]), add(sums[3], b), fma(b, d, sums[4])


@traced
def second_results(v: Array, g: Array, x: Array, i: int, n: Count, params: Params) -> tuple[Vector, Vector]:
    """Return ddy = a * v + (b * (x - mean) + c) and dx = e * v + (b * g + (h * (x - mean) + o))."""
    m, a, b, c, e, h, o = params
    vi, gi, d = load(v, i, n), load(g, i, n), apart(x, i, n, m)
    return fma(vi, a, fma(d, b, c)), fma(vi, e, fma(gi, b, fma(d, h, o)))
