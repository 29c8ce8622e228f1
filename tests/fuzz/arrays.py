"""Arrays as callers may come with, in memory that is watched, and things that are no arrays."""

import decimal
import fractions
import math
import os
import tempfile
import warnings

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from fastbn import BackwardSums, Moments

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
PARAMETERS = [np.dtype(np.float32), np.dtype(np.float64)]
HALVES = [np.dtype(np.float16), BFLOAT16]
# 16-bit kernels are compiled besides, so they come less often, and not at all with bounds checks.
DATA = st.sampled_from([*PARAMETERS] * 6 + (HALVES if os.environ.get("NUMBA_BOUNDSCHECK") != "1" else []))

WRONG_DTYPES = [
    *(np.dtype(code) for code in "?bBhHiIlLqQgFDGSUVOMm"), *(np.dtype(code) for code in (">f2", ">f4", ">f8", ">i4")),
    np.dtype("S3"), np.dtype("U2"), np.dtype("V2"), np.dtype("M8[s]"), np.dtype("m8[ns]"), np.dtype([("a", "f4")]),
    np.dtype([("a", "f8"), ("b", "i4")]), BFLOAT16.newbyteorder(">"), np.dtype(ml_dtypes.float8_e5m2),
    np.dtype(ml_dtypes.int4),
]  # fmt: skip


class Own(np.ndarray):
    """A subclass that says nothing about itself."""


class Speechless:
    """A value that cannot even be shown."""

    def __repr__(self):
        raise RuntimeError("no representation")


class Memory:
    """The buffers that the drawn arrays lie in, so that a write anywhere is seen."""

    def __init__(self):
        self.buffers = []
        self.before = []

    def allocate(self, nbytes):
        """Return bytes that are NaN in every format."""
        self.buffers.append(np.full(nbytes, 0xFF, np.uint8))
        return self.buffers[-1]

    def watch(self):
        """Note what the buffers hold now."""
        self.before = [buffer.copy() for buffer in self.buffers]

    def check(self, *written):
        """Assert that nothing was written but the elements of some arrays."""
        for buffer, before in zip(self.buffers, self.before, strict=True):
            changed = np.flatnonzero(buffer != before)
            if changed.size:
                start = buffer.__array_interface__["data"][0]
                own = set().union(*(addresses(array)[0] for array in written))
                assert {int(start + i) for i in changed} <= own, "written outside of what is to be written"


def addresses(array):
    """Return the addresses of all bytes of an array, and whether two elements share one: by listing them all."""
    at = np.full(array.shape, array.__array_interface__["data"][0], np.int64)
    for axis, (n, stride) in enumerate(zip(array.shape, array.strides, strict=True)):
        if n > 1:
            at += (np.arange(n) * stride).reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    every = (at[..., None] + np.arange(array.itemsize)).ravel().tolist()
    found = set(every)
    return found, len(found) < len(every)


def _sliced(draw, memory, values):
    """Any order of the axes, steps along them, and an offset."""
    order = draw(st.permutations(range(values.ndim)))
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1, -3])) for _ in order]
    lead = draw(st.sampled_from([0, 0, values.itemsize, 1]))
    big = [values.shape[i] * abs(steps[i]) for i in order]
    raw = memory.allocate(lead + math.prod(big) * values.itemsize)[lead:]
    array = raw.view(values.dtype).reshape(big).transpose(np.argsort(order))
    return array[tuple(slice(None, None, step) for step in steps)]


def _plain(draw, memory, values):
    raw = memory.allocate(values.nbytes + 8 * draw(st.integers(0, 2)))
    return raw[: values.nbytes].view(values.dtype).reshape(values.shape)


def _fortran(draw, memory, values):
    return memory.allocate(values.nbytes).view(values.dtype).reshape(values.shape[::-1]).T


def _repeated(draw, memory, values):
    """One axis has a stride of zero."""
    axis = draw(st.integers(0, values.ndim - 1))
    one = _plain(draw, memory, values.take([0], axis) if values.shape[axis] else values)
    one[...] = values.take([0], axis) if values.shape[axis] else values
    strides = [0 if i == axis else stride for i, stride in enumerate(one.strides)]
    return np.lib.stride_tricks.as_strided(one, values.shape, strides)


def _windows(draw, memory, values):
    """Every axis steps one element, so that elements overlap."""
    count = sum(n - 1 for n in values.shape) + 1 if values.size else 0
    flat = memory.allocate(count * values.itemsize).view(values.dtype)
    flat[...] = np.resize(values, count) if count else 0
    return np.lib.stride_tricks.as_strided(flat, values.shape, [values.itemsize] * values.ndim)


def _odd_strides(draw, memory, values):
    """Axes of one element may have any stride."""
    array = _plain(draw, memory, values)
    odd = st.sampled_from([0, 1, -4, 2**40, -(2**62)])
    return np.lib.stride_tricks.as_strided(
        array, strides=[draw(odd) if n == 1 else s for n, s in zip(array.shape, array.strides, strict=True)]
    )


def _mapped(draw, memory, values):
    """A file, which may be read-only."""
    if values.size == 0:
        return _plain(draw, memory, values)
    with tempfile.TemporaryFile() as file:
        file.write(values.tobytes())
        file.flush()
        array = np.memmap(file, values.dtype, draw(st.sampled_from(["r", "r+", "c"])), shape=values.shape)
    memory.buffers.append(np.asarray(array).reshape(-1).view(np.uint8))
    return array


STORED = [_plain, _plain, _plain, _plain, _sliced, _sliced, _fortran, _repeated, _windows, _odd_strides, _mapped]
CLASSES = [np.ndarray] * 12 + [Own, np.recarray]


def stored(draw, memory, values, legal=False):
    """Store values in some way, some of them repeated; `legal` ones can be written."""
    ways = [_plain, _sliced, _fortran, _odd_strides] if legal else STORED
    way = draw(st.sampled_from(ways if values.ndim else [_plain]))
    array = way(draw, memory, values)
    if way not in (_repeated, _windows, _mapped):
        array[...] = values
    kind = draw(st.sampled_from(CLASSES))
    if kind is not np.ndarray and type(array) is np.ndarray:
        array = array.view(kind)
    if not legal and array.flags.writeable and draw(st.integers(0, 9)) == 0:
        array.flags.writeable = False
    return array


SPECIAL = [0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, 1e-40, 6e-8, 1e30, -1e300, 65504.0]


def values(draw, shape, dtype, positive=False):
    """Draw numbers of a dtype: mostly ordinary ones."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    with np.errstate(over="ignore", under="ignore"):
        numbers = rng.standard_normal(shape) * draw(st.sampled_from([1, 1, 1, 0, 1e-3, 30]))
        numbers = np.abs(numbers) + 0.1 if positive else numbers + draw(st.sampled_from([0, 0, 1, 100]))
        if draw(st.integers(0, 4)) == 0 and numbers.size and shape:
            numbers[rng.random(shape) < 0.1] = draw(st.sampled_from(SPECIAL))
        array = np.asarray(numbers).astype(dtype)
    if array.size and array.dtype == np.float32 and draw(st.integers(0, 30)) == 0:
        array.reshape(-1).view(np.uint32)[0] = 0x7FA00000  # a signalling NaN
    return array


SHAPES = st.lists(st.integers(0, 4), max_size=5).map(tuple)


def any_array(draw, memory):
    """An array of any dtype and shape, or of a class with rules of its own."""
    shape = draw(SHAPES)
    kind = draw(st.sampled_from(["wrong", "right", "right", "masked", "matrix"]))
    if kind == "wrong":
        return np.zeros(shape, draw(st.sampled_from(WRONG_DTYPES)))
    array = stored(draw, memory, values(draw, shape, draw(DATA)))
    if kind == "masked":
        return np.ma.MaskedArray(array, mask=draw(st.booleans()))
    if kind == "matrix":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.matrix(np.zeros((2, 3), draw(DATA)))
    return array


JUNK = [
    None, True, False, np.True_, 0, 1, 2, -1, 3.0, 0.5, 1e-5, -0.5, 10**400, -(10**5000), np.nan, np.inf, -np.inf,
    2**63, 1j, "", "x", "cpu", b"x", "x" * 1000, [], [1.0, 2.0], [[1.0], [1.0, 2.0]], [[1.0, 2.0], [3.0, 4.0]], (),
    (1,), {}, {"a": 1}, set(), object(), Speechless(), Speechless, np,
    np.float32, np.float32(1), np.int64(1), np.uint8(0), np.longdouble(0.25), np.longdouble("1e4000"),
    np.datetime64("2026-11-21"), np.timedelta64(3, "s"), np.str_("x"),
    np.array(1), np.array(1.0), np.array("x"), np.array([[None]]), np.ma.masked, fractions.Fraction(1, 3),
    fractions.Fraction(10**400), decimal.Decimal("0.1"), ..., slice(None), range(3), memoryview(b"1234"), Ellipsis,
    NotImplemented, Moments, Moments(2, [0.0], [1.0]), BackwardSums(2, [0.0], [1.0]), int, float, len, "\ud800",
]  # fmt: skip


def junk(draw, memory):
    """Anything at all."""
    return any_array(draw, memory) if draw(st.booleans()) else draw(st.sampled_from(JUNK))


def within(draw, array, shape, dtype):
    """A view of the memory around an array, of another shape and dtype, or the array itself."""
    root = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    need = math.prod(shape) * dtype.itemsize
    if not root.flags.c_contiguous or root.dtype.hasobject or root.nbytes < need:
        return array
    raw = root.reshape(-1).view(np.ndarray).view(np.uint8)
    start = draw(st.integers(0, (raw.size - need) // dtype.itemsize)) * dtype.itemsize
    return raw[start : start + need].view(dtype).reshape(shape)
