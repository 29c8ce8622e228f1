"""What tests are run over: shapes that reach every plan, strides of every kind, pairs of values, poisoned outputs."""

from itertools import combinations, product

import numpy as np
import pytest

# (shape, axis): small enough for bounds-checked runs, and of every family.
SMALL = [
    ((32, 64), 1),  # rows
    ((7, 5), -1),  # fewer rows than are summed together
    ((1, 3), 1),  # one value a channel
    ((50, 1), 1),  # one channel
    ((6, 5, 9), 1),  # (N, C, L)
    ((4, 3, 7, 7), 1),  # NCHW
    ((4, 7, 7, 3), -1),  # NHWC
    ((2, 3, 4, 5, 6), 1),  # NCDHW
    ((2, 3, 4, 5, 6), 2),  # an axis in the middle
    ((3, 4, 5), 0),  # channels first
    ((1, 2, 1, 1), 1),
    ((40, 600), 1),  # more channels than a group of columns
    ((17, 100, 7, 7), 1),  # groups of channels with short runs
]
# Just above PARALLEL_FROM: one of every family and of every way to cut a tensor into tiles.
LARGE = [
    ((4, 16, 25, 25), 1),  # whole channels
    ((2, 3, 100, 100), 1),  # fewer channels than threads, pieces of segments
    ((3, 1, 40000), 1),  # one channel
    ((200, 5, 7, 7), 1),  # many short segments a tile
    ((16, 40, 12, 12), 1),  # groups of channels with short segments
    ((3000, 40), 1),
    ((10, 20, 20, 12), 3),
    ((200, 700), 1),
    ((20, 4100), 1),  # more channels than a tile of rows has columns
]


def _name(value):
    return getattr(value, "__name__", None) or str(value)


def thinned(*factors):
    """Return all combinations of factors as pytest's parameters; those that `make test` does without are slow.

    Of two factors it takes each value once; of three and more, each two values of two factors (pairwise testing), in
    a greedy cover. The first values of factors meet early.
    """
    factors = [list(factor) for factor in factors]
    sizes = [len(factor) for factor in factors]
    every = list(product(*map(range, sizes)))
    if len(factors) == 2:
        taken = {tuple(i % size for size in sizes) for i in range(max(sizes))}
    else:
        meetings = {each: set(combinations(enumerate(each), 2)) for each in every}
        missing, taken = set().union(*meetings.values()), set()
        while missing:
            taken.add(best := max(every, key=lambda each: len(meetings[each] & missing)))
            missing -= meetings[best]
    found = []
    for each in every:
        values = [factor[i] for factor, i in zip(factors, each, strict=True)]
        marks = () if each in taken else pytest.mark.slow
        found.append(pytest.param(*values, marks=marks, id="-".join(map(_name, values))))
    return found


def poisoned(shape, dtype):
    """An output that shows every element that was not written."""
    return np.full(shape, np.nan, dtype)


def _sliced(x):
    """The same values at every second place along every axis of a larger array."""
    big = np.full([2 * n for n in x.shape], np.nan, x.dtype)
    view = big[tuple(slice(None, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def _reversed(x):
    return np.ascontiguousarray(np.flip(x))[tuple(slice(None, None, -1) for _ in x.shape)]


def _readonly(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def _channels_last(x):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


def _unaligned(x):
    raw = np.empty(x.nbytes + 1, np.uint8)
    view = raw[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


# The same values stored in every way that a caller may come with.
STORED = {
    "contiguous": np.ascontiguousarray,
    "readonly": _readonly,
    "fortran": np.asfortranarray,
    "channels_last": _channels_last,
    "sliced": _sliced,
    "reversed": _reversed,
    "unaligned": _unaligned,
    "subclass": lambda x: x.copy().view(type("Own", (np.ndarray,), {})),
}


def draw(rng, shape, dtype, mean=0.0, std=1.0):
    return (rng.standard_normal(shape) * std + mean).astype(dtype)


def affine(rng, count, dtype):
    """A weight and a bias; among several, one weight is zero."""
    weight, bias = draw(rng, count, dtype), draw(rng, count, dtype)
    if count > 2:
        weight[1] = 0
    return weight, bias


def drawn(rng, shape, channels, dtype=np.float64, mean=0.0):
    """Return x, a weight, a bias and dy."""
    x, weight, bias = draw(rng, shape, dtype, mean=mean), draw(rng, channels, dtype), draw(rng, channels, dtype)
    return x, weight, bias, draw(rng, shape, dtype)
