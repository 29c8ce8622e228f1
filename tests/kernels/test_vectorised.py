"""The hot loops are made of whole vectors: seen in the assembly, and as many instructions as the vectors demand.

Times would tell too, but not on a shared processor, and not which loop it was. The loops over whole vectors are meant;
what is left of a run or row goes through masks, once, in loops of its own.
"""

import platform

import pytest
from numba import config, njit, types

from assembly import DECODING, Loop, check, complaints, has, innermost_loops, is_single
from fastbn_kernels import normal_tail
from fastbn_kernels.cpu import overlapped
from fastbn_kernels.cpu.loops import row_streams, segments
from fastbn_kernels.cpu.simd.exponential import OF_DOUBLE, OF_FLOAT
from fastbn_kernels.cpu.simd.ops import LANES, add, centre, fma, load, mul, splat, store, total, widen
from fastbn_kernels.cpu.simd.tails import GELU, SILU

pytestmark = [
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86-64 assembly"),
    pytest.mark.skipif(bool(config.DISABLE_JIT), reason="nothing is compiled under NUMBA_DISABLE_JIT"),
    pytest.mark.skipif(bool(config.BOUNDSCHECK), reason="bounds checks are scalar"),
]

# ---------------------------------------------------------------- the loops of fastbn

# Processors of before 2013 convert 16-bit floats in a score of instructions each, which nobody has counted.
OLD = pytest.mark.skipif(not (has("f16c") and has("avx2")), reason="no instructions for 16-bit floats")
EVERY_DTYPE = pytest.mark.parametrize(
    "data", [pytest.param(data, id=str(data), marks=OLD if data.bitwidth == 16 else ()) for data in DECODING]
)

# The arguments of a function, a letter each: x, data; y, results; p, parameters a column; s, sums of columns; i, an
# index; f, a number, and a digit, so many in a tuple; b, a flag; -, None; t, SILU; g, GELU; r, SILU after a residual.
# And what one turn of each of its loops does. Sums multiply the first of a chain of vectors and fuse the others. A
# loop is made of the forward pass, of the backward pass, and of that through frozen statistics.
EIGHT = {"centred": 8, "fma": 7, "mul": 1, "add": 7, "chains": 1, "wide": 2}
MORE, LAST = {"centred": 4, "more": 4, "short": 2}, {"centred": 1, "more": 1}
ONE = {"centred": 1, "mul": 1, "wide": 2}


def twice(**of_one):
    return {what: 2 * count for what, count in of_one.items()}


FORWARD, BACKWARD = {"fma": 1, "centred": 1, "loads": 1}, {"fma": 2, "centred": 1, "loads": 2}
FROZEN = {"mul": 1, "loads": 1}
FOUR = {"fma": 4, "centred": 4, "loads": 4}
FUNCTIONS = [
    (segments.segments_sums, "-xiiii2-", Loop(**EIGHT, loads=8), Loop(**MORE, loads=4), Loop(**LAST, loads=1)),
    (segments.segments_sums, "xxiiii4-", Loop(**EIGHT, loads=16), Loop(**MORE, loads=8), Loop(**LAST, loads=2)),
    (segments.write_segment, "-xii4yb-", Loop(**FORWARD, past_cache=1), Loop(**FORWARD)),
    (segments.write_segment, "xxii7yb-", Loop(**BACKWARD, past_cache=1), Loop(**BACKWARD)),
    (segments.write_segment, "x-ii1yb-", Loop(**FROZEN, past_cache=1), Loop(**FROZEN)),
    (row_streams.sum_streams, "-xiiipis-", Loop(**EIGHT, loads=8)),
    (row_streams.sum_streams, "xxiiipis-", Loop(centred=4, fma=3, mul=1, add=3, chains=1, wide=2, loads=8)),
    (row_streams.sum_row, "-xiipis-", Loop(**ONE, loads=1)),
    (row_streams.sum_row, "xxiipis-", Loop(**ONE, loads=2)),
    (row_streams.write_two, "-xiiipiyb-", Loop(**twice(**FORWARD), past_cache=2), Loop(**twice(**FORWARD))),
    (row_streams.write_two, "xxiiipiyb-", Loop(**twice(**BACKWARD), past_cache=2), Loop(**twice(**BACKWARD))),
    (row_streams.write_two, "x-iiipiyb-", Loop(**twice(**FROZEN), past_cache=2), Loop(**twice(**FROZEN))),
    (row_streams.write_four, "-xiiipiyb-", Loop(**FOUR, past_cache=4), Loop(**FOUR)),
    # The sums of eight vectors, and eight others written.
    (
        overlapped.write_and_sum_segments, "-xiiii4yi2-",
        Loop(centred=8 + 8, fma=7 + 8, mul=1, add=7, chains=1, wide=2, loads=16, past_cache=8),
        Loop(**FORWARD, past_cache=1), Loop(**MORE, loads=4),
    ),
    (
        overlapped.write_and_sum_segments, "xxiiii7yi4-",
        Loop(centred=8 + 8, fma=7 + 16, mul=1, add=7, chains=1, wide=2, loads=32, past_cache=8),
        Loop(**BACKWARD, past_cache=1), Loop(**MORE, loads=8),
    ),
]  # fmt: skip
NAMES = [f"{function.__name__} {letters}" for function, letters, *_ in FUNCTIONS]


def compiled(function, letters, data):
    """The assembly of a function for data of a Numba dtype."""
    ndim = 2 if function.__module__ == row_streams.__name__ else 3
    params = types.float32 if is_single(data) else types.float64
    kinds = {
        "x": types.Array(data, ndim, "C", readonly=True),
        "y": types.Array(data, ndim, "C"),
        "p": types.Array(params, 2, "C"),
        "s": types.Array(types.float64, 2, "C"),
        "S": types.Array(types.float64, 1, "C"),
        "i": types.intp,
        "f": types.float64,
        "b": types.boolean,
        "-": types.none,
        "t": SILU.type,
        "g": GELU.type,
        "r": types.Tuple((SILU.type, types.Array(data, ndim, "C", readonly=True))),
    } | {str(count): types.UniTuple(types.float64, count) for count in (1, 2, 4, 7)}
    signature = tuple(kinds[letter] for letter in letters)
    function.compile(signature)
    return function.inspect_asm(signature)


@EVERY_DTYPE
@pytest.mark.parametrize("row", FUNCTIONS, ids=NAMES)
def test_a_hot_loop_is_made_of_whole_vectors(row, data):
    function, letters, *wanted = row
    if function.__module__ == overlapped.__name__ and not has("avx512f"):
        pytest.skip("16 registers do not hold two loops in one, nor does LLVM unroll all of them then")
    assembly = compiled(function, letters, data)
    for loop in wanted:
        check(assembly, loop, data)


@EVERY_DTYPE
@pytest.mark.parametrize(("letters", "residual"), [("-xii4ybt", 0), ("-xii4ybr", 1)])
def test_an_exponential_is_made_of_whole_vectors(letters, residual, data):
    """16 registers do not hold all constants of SILU: they may be spilled, which is to load them from the stack."""
    of = OF_FLOAT if is_single(data) else OF_DOUBLE
    wanted = Loop(centred=1, fma=1 + 3 + len(of.q) + 1, mul=4, add=2 + residual, loads=1 + residual)
    if data == types.int32:  # z and the exponential's r are float64, all else is float32
        of_float32 = Loop(fma=len(OF_FLOAT.q) + 1, mul=4, add=1)
        wanted = Loop(centred=1, fma=1 + 2, add=1 + residual, loads=1 + residual, single=of_float32)
    loops = innermost_loops(compiled(segments.write_segment, letters, data))
    found = [[each for each in complaints(loop, wanted, data) if "stack" not in each] for loop in loops]
    assert [] in found, sorted(found, key=len)[:3]


@pytest.mark.skipif(not has("fma"), reason="what a square is rounded by takes a dozen of instructions there")
@pytest.mark.parametrize("data", [types.float32, types.float64], ids=str)
def test_gelu_is_made_of_whole_vectors(data):
    of, ratio = (OF_FLOAT, normal_tail.OF_FLOAT) if is_single(data) else (OF_DOUBLE, normal_tail.OF_DOUBLE)
    polynomials = len(of.q) + 1 + len(ratio.above) - 1 + len(ratio.below) - 1
    wanted = Loop(centred=1, fma=1 + 4 + polynomials + 1, mul=5, add=2, loads=1)
    loops = innermost_loops(compiled(segments.write_segment, "-xii4ybg", data))
    found = [[each for each in complaints(loop, wanted, data) if "stack" not in each] for loop in loops]
    assert [] in found, sorted(found, key=len)[:3]


def test_columns_are_added_up_in_whole_vectors():
    check(compiled(segments.column_total, "Sii", types.float64), Loop(add=1), types.float64)


def test_every_loop_is_looked_at():
    """A new function of these modules that loops over vectors belongs in the table."""
    looking = {function.__name__ for function, *_ in FUNCTIONS} | {"column_total", "add_to"}
    for module in (segments, row_streams, overlapped):
        for name, function in vars(module).items():
            if getattr(function, "__module__", "") == module.__name__ and hasattr(function, "py_func"):
                called = set(function.py_func.__code__.co_names)
                assert name in looking or not {"load", "store", "stream", "first_sums", "result"} & called, name


# ---------------------------------------------------------------- what the checker refuses


@njit(error_model="numpy")
def one_by_one(dy, x, start, step, segments, length, shift, tail):
    t = q = 0.0
    for i in range(length):
        d = x.flat[i] - shift[0]
        t += d
        q += d * d
    return t, q


@njit(error_model="numpy")
def four_at_once(dy, x, start, step, segments, length, shift, tail):
    """`segments_sums`, folded four times and not eight."""
    k, unit = splat(x, shift)
    t = widen(splat(x, 0.0))
    q = t
    i = start
    while i + 4 * LANES <= length:
        d = centre(x, load(x, i, None), k, unit)
        t4, q4 = d, mul(d, d)
        for j in range(1, 4):
            d = centre(x, load(x, i + j * LANES, None), k, unit)
            t4, q4 = add(t4, d), fma(d, d, q4)
        t, q = add(t, widen(t4)), add(q, widen(q4))
        i += 4 * LANES
    return total(t), total(q)


@njit(error_model="numpy")
def through_the_cache(dy, x, start, length, params, y, past_cache, tail):
    m, unit, a, b = splat(x, params)
    i = start
    while i + LANES <= length:
        store(y, i, None, fma(centre(x, load(x, i, None), m, unit), a, b))
        i += LANES


SUMS, FORWARD_SEGMENT, FROZEN_SEGMENT = FUNCTIONS[0], FUNCTIONS[2], FUNCTIONS[4]


@EVERY_DTYPE
@pytest.mark.parametrize(
    ("function", "like"),
    [
        (one_by_one, SUMS),
        (four_at_once, SUMS),
        (through_the_cache, FORWARD_SEGMENT),
        (segments.write_segment, FROZEN_SEGMENT),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_checker_refuses_loops_of_another_kind(function, like, data):
    """The last one is the right loop for the wrong dtype."""
    right, letters, wanted, *_ = like
    every = list(DECODING)
    asked = every[every.index(data) - 1] if function is right else data
    assembly = compiled(function, letters, data)
    with pytest.raises(AssertionError, match="none of the loops"):
        check(assembly, wanted, asked)


@pytest.mark.parametrize(
    "lines",
    [
        "callq *%rax",
        "vaddsd %xmm1, %xmm2, %xmm3",
        "addss %xmm1, %xmm2",
        "vfmadd231sd %xmm1, %xmm2, %xmm3",
        "vcvtss2sd %xmm1, %xmm2, %xmm3",
        "vmovsd (%rax), %xmm1",
        "vmovdqu16 (%rax), %ymm1 {%k1} {z}",
        "vmaskmovps (%rax), %ymm1, %ymm2",
        "vpextrw $1, %xmm1, %eax",
        "vmulpd %xmm1, %xmm2, %xmm3",
        "vmovntps %xmm1, (%rax)",
        "vmovups %zmm1, 64(%rsp)\n" * 999,
    ],
    ids=lambda lines: lines.split()[0],
)
def test_the_checker_refuses_a_loop_with_one_more_instruction(lines):
    function, letters, wanted, *_ = SUMS
    loops = innermost_loops(compiled(function, letters, types.float32))
    loop = next(loop for loop in loops if not complaints(loop, wanted, types.float32))
    assert complaints(loop + [tuple(line.split(" ", 1)) for line in lines.splitlines()], wanted, types.float32)
