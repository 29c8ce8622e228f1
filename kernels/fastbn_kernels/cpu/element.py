"""What is computed of an element: the only place with the arithmetic of batch normalization on vectors.

Of every element the loops ask for one of two things, whatever they walk:

    first_sums, more_sums   what is summed, u and u * v: u = v = x - shift for the moments (dy is None), and u = dy,
                            v = x - mean for the backward pass
    result                  what is written: y = (x - mean) * scale + shift (dy is None), or
                            dx = scale * dy + (slope * (x - mean) + offset), or, through frozen statistics, scale * dy
                            (x is None: it is not read)

and the second derivatives of `double_backward`. Parameters are vectors: a number in all lanes, or the numbers of
neighbouring columns, which `column_shift` and `column_params` read; mean, scale and shift come first both ways.

`tail` is what is done after the normalization. It comes with the kernel's last argument and is handed down as it is, by
its type: None is nothing, and what else it may be is decided here, when a kernel is compiled: an activation or, in a
forward pass, (activation or None, residual), an array beside y which is added before. `finish` gets what was normalised
and returns y; i is the place of the element in y too, and n None or how many lanes count. `incoming` returns the
gradient by what was normalised, which it computes again. With a tail, frozen statistics do not spare the reading of x:
it comes in a tuple of one then, `(tail,)`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from fastbn_kernels.build.decorators import Array
from fastbn_kernels.cpu.activations import activated, through
from fastbn_kernels.cpu.simd.ops import add, fma, keep, load, mul, param, sub
from fastbn_kernels.cpu.simd.traced import traced

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


@traced
def incoming(dy: Array, d: Vector, i: int, n: Count, params: Params, tail: Any) -> Vector:
    """Return the gradient by what was normalised, from that by y; d is x - mean."""
    grad = load(dy, i, n)
    return grad if tail is None else through(dy, grad, fma(d, params[1], params[2]), tail)


# ---------------------------------------------------------------- sums and results


@traced
def centred(x: Array, i: int, n: Count, shift: Vector) -> Vector:
    """Return x - shift."""
    return sub(load(x, i, n), shift)


@traced
def terms(dy: Array | None, x: Array, i: int, n: Count, params: Params, tail: Any) -> tuple[Vector, Vector]:
    """Return u and v, zero in lanes that do not count; the first parameter is what x is centred with."""
    d = keep(centred(x, i, n, params[0]), n)
    return (d if dy is None else incoming(dy, d, i, n, params, tail)), d


@traced
def first_sums(dy: Array | None, x: Array, i: int, n: Count, params: Params, tail: Any) -> tuple[Vector, Vector]:
    """Return the sums of u and u * v over one vector."""
    u, v = terms(dy, x, i, n, params, tail)
    return u, mul(u, v)


@traced
def more_sums(
    sums: tuple[Vector, Vector], dy: Array | None, x: Array, i: int, n: Count, params: Params, tail: Any
) -> tuple[Vector, Vector]:
    """Return the sums of u and u * v over one vector more."""
    u, v = terms(dy, x, i, n, params, tail)
    return add(sums[0], u), fma(u, v, sums[1])


@traced
def result(dy: Array | None, x: Array | None, i: int, n: Count, params: Params, tail: Any) -> Vector:
    """Return y or dx."""
    if x is None:
        return mul(load(dy, i, n), params[0])
    d = centred(x, i, n, params[0])
    if dy is None:
        return finish(fma(d, params[1], params[2]), x, i, n, tail)
    if isinstance(tail, tuple):
        return mul(incoming(dy, d, i, n, params, tail[0]), params[1])
    return fma(incoming(dy, d, i, n, params, tail), params[1], fma(d, params[3], params[4]))


@traced
def column_shift(params: Array, at: int, n: Count, tail: Any) -> Params:
    """Return what `first_sums` and `more_sums` take of columns: the shift and, if there is a tail, scale and shift."""
    return tuple(param(params, row, at, n) for row in ((0,) if tail is None else (0, 1, 2)))


@traced
def column_params(dy: Array | None, x: Array | None, params: Array, at: int, n: Count, tail: Any) -> Params:
    """Return what `result` takes of columns, from rows mean, scale, shift and, backward, slope and offset."""
    rows = (1,) if x is None else (0, 1, 2) if dy is None else (0, 1, 2, 3, 4)
    return tuple(param(params, row, at, n) for row in rows)


# ---------------------------------------------------------------- second derivatives

SECOND_SUMS = 5  # of v, v * (x - mean), v * g, g, g * (x - mean); v is the gradient that comes in by dx, g is dy
SECOND_PARAMS = 7  # mean and a, b, c, e, h, o

FiveSums: TypeAlias = tuple[Vector, Vector, Vector, Vector, Vector]


@traced
def first_second_sums(v: Array, g: Array, x: Array, i: int, n: Count, mean: Vector) -> FiveSums:
    """Return the sums of `double_backward` over one vector."""
    a, b, d = load(v, i, n), load(g, i, n), keep(centred(x, i, n, mean), n)
    return a, mul(a, d), mul(a, b), b, mul(b, d)


@traced
def more_second_sums(sums: FiveSums, v: Array, g: Array, x: Array, i: int, n: Count, mean: Vector) -> FiveSums:
    """Return the sums of `double_backward` over one vector more."""
    a, b, d = load(v, i, n), load(g, i, n), keep(centred(x, i, n, mean), n)
    return add(sums[0], a), fma(a, d, sums[1]), fma(a, b, sums[2]), add(sums[3], b), fma(b, d, sums[4])


@traced
def second_results(v: Array, g: Array, x: Array, i: int, n: Count, params: Params) -> tuple[Vector, Vector]:
    """Return ddy = a * v + (b * (x - mean) + c) and dx = e * v + (b * g + (h * (x - mean) + o))."""
    m, a, b, c, e, h, o = params
    vi, gi, d = load(v, i, n), load(g, i, n), centred(x, i, n, m)
    return fma(vi, a, fma(d, b, c)), fma(vi, e, fma(gi, b, fma(d, h, o)))
