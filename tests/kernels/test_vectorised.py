"""The hot loops are made of whole vectors: seen in the assembly, and as many instructions as the vectors demand.

Times would tell too, but not on a shared processor, and not which loop it was. The loops over whole vectors are meant;
what is left of a run or row goes through masks, once, in loops of its own.
"""

import platform

import pytest
from numba import config, njit, types

from assembly import DECODING, Loop, check, complaints, has, innermost_loops
from fastbn_kernels.cpu import overlapped as overlap
from fastbn_kernels.cpu.loops import row_streams as bands
from fastbn_kernels.cpu.loops import segments as runs
from fastbn_kernels.cpu.simd.ops import LANES, add, fma, load, mul, splat, store, sub, total, widen

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

# The arguments of a function, a letter each: x, data; y, results; n, numbers a column; s, sums; i, an index; f, a
# number; b, a flag. And what one turn of each of its loops does. Sums multiply the first of eight vectors and fuse the
# others; subtracting a shift or a mean is an addition.
EIGHT = {"fma": 7, "mul": 1, "add": 8 + 7, "wide": 2}
ONE = {"mul": 1, "add": 1, "wide": 2}
FUNCTIONS = {
    runs.runs_sums: ("xiiiif", Loop(**EIGHT, loads=8), Loop(**ONE, loads=1)),
    runs.runs_gradient_sums: ("xxiiiif", Loop(**EIGHT, loads=16), Loop(**ONE, loads=2)),
    runs.run_normalize: ("xiifffyb", Loop(fma=1, add=1, loads=1, past_cache=1), Loop(fma=1, add=1, loads=1)),
    runs.run_gradient: ("xxiiffffyb", Loop(fma=2, add=1, loads=2, past_cache=1), Loop(fma=2, add=1, loads=2)),
    runs.run_scale: ("xiify", Loop(mul=1, loads=1)),
    bands.band_sums: ("xiiinss", Loop(**EIGHT, loads=8)),
    bands.row_sums: ("xiinss", Loop(**ONE, loads=1)),
    bands.band_gradient_sums: ("xxiiinss", Loop(fma=3, mul=1, add=4 + 3, wide=2, loads=8)),
    bands.row_gradient_sums: ("xxiinss", Loop(**ONE, loads=2)),
    bands.band_normalize: ("xiiinnnyb", Loop(fma=2, add=2, loads=2, past_cache=2), Loop(fma=2, add=2, loads=2)),
    bands.wide_band_normalize: ("xiiinnnyb", Loop(fma=4, add=4, loads=4, past_cache=4), Loop(fma=4, add=4, loads=4)),
    bands.band_gradient: ("xxiiinnnnyb", Loop(fma=4, add=2, loads=4, past_cache=2), Loop(fma=4, add=2, loads=4)),
    bands.rows_scale: ("xiiiiny", Loop(mul=1, loads=1)),
    # The sums of eight vectors, and eight others written.
    overlap.runs_normalize_and_sums: (
        "xiiiifffyif",
        Loop(fma=7 + 8, mul=1, add=8 + 7 + 8, wide=2, loads=16, past_cache=8),
        Loop(fma=1, add=1, loads=1, past_cache=1),
    ),
    overlap.runs_gradient_and_sums: (
        "xxiiiiffffyif",
        Loop(fma=7 + 16, mul=1, add=8 + 7 + 8, wide=2, loads=32, past_cache=8),
        Loop(fma=2, add=1, loads=2, past_cache=1),
    ),
}


def compiled(function, letters, data):
    """The assembly of a function for data of a Numba dtype."""
    ndim = 2 if function.__module__ == bands.__name__ else 3
    numbers = types.float32 if data.bitwidth == 16 else types.float64
    kinds = {
        "x": types.Array(data, ndim, "C", readonly=True),
        "y": types.Array(data, ndim, "C"),
        "n": types.Array(numbers, 1, "C"),
        "s": types.Array(types.float64, 1, "C"),
        "i": types.intp,
        "f": types.float64,
        "b": types.boolean,
    }
    signature = tuple(kinds[letter] for letter in letters)
    function.compile(signature)
    return function.inspect_asm(signature)


@EVERY_DTYPE
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_a_hot_loop_is_made_of_whole_vectors(function, data):
    if function.__module__ == overlap.__name__ and not has("avx512f"):
        pytest.skip("16 registers do not hold two loops in one, nor does LLVM unroll all of them then")
    letters, *wanted = FUNCTIONS[function]
    assembly = compiled(function, letters, data)
    for loop in wanted:
        check(assembly, loop, data)


def test_columns_are_added_up_in_whole_vectors():
    check(compiled(runs.column_total, "sii", types.float64), Loop(add=1), types.float64)


def test_every_loop_is_looked_at():
    """A new function of these modules that loops over vectors belongs in the table."""
    looking = {function.__name__ for function in FUNCTIONS} | {"column_total"}
    for module in (runs, bands, overlap):
        for name, function in vars(module).items():
            if getattr(function, "__module__", "") == module.__name__ and hasattr(function, "py_func"):
                assert name in looking or not {"load", "store", "stream"} & set(function.py_func.__code__.co_names), (
                    name
                )


# ---------------------------------------------------------------- what the checker refuses


@njit(error_model="numpy")
def one_by_one(x, start, step, runs, length, k):
    t = q = 0.0
    for i in range(length):
        d = x.flat[i] - k
        t += d
        q += d * d
    return t, q


@njit(error_model="numpy")
def four_at_once(x, start, step, runs, length, k):
    """`runs_sums`, folded four times and not eight."""
    shift = splat(x, k)
    t = widen(splat(x, 0.0))
    q = t
    i = start
    while i + 4 * LANES <= length:
        d = sub(load(x, i), shift)
        t4, q4 = d, mul(d, d)
        for j in range(1, 4):
            d = sub(load(x, i + j * LANES), shift)
            t4, q4 = add(t4, d), fma(d, d, q4)
        t, q = add(t, widen(t4)), add(q, widen(q4))
        i += 4 * LANES
    return total(t), total(q)


@njit(error_model="numpy")
def through_the_cache(x, start, length, mean, scale, shift, y, past_cache):
    m, a, b = splat(x, mean), splat(x, scale), splat(x, shift)
    i = start
    while i + LANES <= length:
        store(y, i, fma(sub(load(x, i), m), a, b))
        i += LANES


@EVERY_DTYPE
@pytest.mark.parametrize(
    ("function", "like"),
    [
        (one_by_one, runs.runs_sums),
        (four_at_once, runs.runs_sums),
        (through_the_cache, runs.run_normalize),
        (runs.run_scale, runs.run_scale),
    ],
    ids=lambda function: function.__name__,
)
def test_the_checker_refuses_loops_of_another_kind(function, like, data):
    """The last one is the right loop for the wrong dtype."""
    letters, wanted, *_ = FUNCTIONS[like]
    other = {types.float32: types.float64, types.float64: types.int16, types.int16: types.uint16}
    asked = other.get(data, types.float32) if function is like else data
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
    letters, wanted, *_ = FUNCTIONS[runs.runs_sums]
    loops = innermost_loops(compiled(runs.runs_sums, letters, types.float32))
    loop = next(loop for loop in loops if not complaints(loop, wanted, types.float32))
    assert complaints(loop + [tuple(line.split(" ", 1)) for line in lines.splitlines()], wanted, types.float32)
