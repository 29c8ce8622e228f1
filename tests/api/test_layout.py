"""How an array of any order and strides is seen as (N, C, S), and when it is copied."""

import itertools

import numpy as np
import pytest

from fastbn import layout
from grid import STORED


def numbered(shape, dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def by_channel(array, axis):
    """The values of every channel in the order of the other axes, sorted: what a view may not mix up."""
    return np.sort(np.moveaxis(np.asarray(array), axis, 0).reshape(array.shape[axis], -1), axis=1)


@pytest.mark.parametrize(
    ("shape", "axis", "expected"),
    [
        ((32, 64), 1, (32, 64, 1)),
        ((8, 3, 5, 5), 1, (8, 3, 25)),
        ((8, 5, 5, 3), 3, (200, 3, 1)),
        ((4, 6), 0, (1, 4, 6)),
        ((7,), 0, (1, 7, 1)),
        ((2, 3, 4, 5, 6), 2, (6, 4, 30)),
        ((1, 3, 1, 1), 1, (1, 3, 1)),
        ((5, 1, 9), 1, (1, 1, 45)),  # one channel is one segment
    ],
)
def test_outer_channels_inner(shape, axis, expected):
    own = layout.of(numbered(shape), axis)
    assert own.shape == expected
    assert own.contiguous
    assert own.size == np.prod(shape)
    assert own.per_channel == np.prod(shape) // shape[axis]
    assert own.compact_shape == (expected[:2] if expected[2] == 1 else expected)


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_any_order_of_axes_is_viewed_and_keeps_its_channels(order, axis):
    x = numbered((2, 3, 4, 5)).transpose(order)
    own = layout.of(x, axis)
    assert own.contiguous
    assert own.in_order == (order == (0, 1, 2, 3))
    for view in (own.view(x), own.compact(x).reshape(own.shape)):
        assert np.shares_memory(view, x)
        assert view.flags.c_contiguous
        np.testing.assert_array_equal(by_channel(view, 1), by_channel(x, axis))


def test_memory_decides_not_the_order_of_the_axes():
    x = np.moveaxis(numbered((8, 5, 5, 3)), -1, 1)  # (N, C, H, W) stored channels-last
    assert layout.of(x, 1).shape == (200, 3, 1)
    assert layout.of(x, 1).fits(layout.of(np.moveaxis(numbered((8, 5, 5, 3)), -1, 1), 1))
    assert not layout.of(x, 1).fits(layout.of(numbered(x.shape), 1))


@pytest.mark.parametrize("stored", STORED)
def test_what_can_be_viewed(stored):
    own = layout.of(STORED[stored](numbered((4, 3, 6))), 1)
    assert own.contiguous == (stored not in ("sliced", "reversed", "unaligned"))


def test_axes_of_one_element_have_no_place_in_memory():
    """Whatever their strides, the layout is the same, so that such arrays go through a kernel together."""
    x = numbered((4, 3, 1, 6))
    strange = np.lib.stride_tricks.as_strided(x, x.shape, (*x.strides[:2], 4096, x.strides[3]))
    assert layout.of(strange, 1) == layout.of(x, 1)
    sliced = numbered((4, 3, 2, 6))[:, :, ::2]
    assert not layout.of(sliced, 1).contiguous


def test_new_arrays_are_contiguous_in_the_order_of_another():
    x = numbered((4, 3, 6)).transpose(2, 0, 1)
    assert layout.empty(x).strides == x.strides
    sliced = numbered((8, 6, 12))[::2, ::2, ::2]
    assert layout.of(layout.empty(sliced), 1).contiguous
    assert layout.empty(sliced).strides == numbered(sliced.shape).strides
    assert type(layout.empty(STORED["subclass"](numbered((4, 3))))) is np.ndarray


@pytest.mark.parametrize("stored", STORED)
def test_conform_copies_what_is_stored_otherwise(stored):
    values = numbered((4, 3, 6))
    x, scratch = STORED[stored](values), np.full(values.shape, np.nan, np.float32)
    view = layout.conform(x, 1, scratch)
    np.testing.assert_array_equal(view, values)
    as_it_is = stored in ("contiguous", "readonly", "subclass")
    assert np.shares_memory(view, x) == as_it_is
    assert np.shares_memory(view, scratch) != as_it_is
    np.testing.assert_array_equal(np.asarray(x), values)


WRITABLE = [name for name in STORED if name not in ("readonly", "subclass")]


@pytest.mark.parametrize("into", WRITABLE)
@pytest.mark.parametrize("stored", STORED)
def test_forward_views_go_together_and_end_in_y(stored, into):
    """Whatever a kernel writes to the second view is in y, after the copy from the buffer if there is one."""
    values = numbered((4, 3, 6))
    x, y = STORED[stored](values), STORED[into](np.full(values.shape, np.nan, np.float32))
    seen, target, buffer = layout.for_forward(x, y, 1)
    assert seen.shape == target.shape
    np.testing.assert_array_equal(by_channel(seen, 1), by_channel(values, 1))
    target[...] = seen
    if buffer is not None:
        np.copyto(y, buffer)
    np.testing.assert_array_equal(np.asarray(y), values)
    np.testing.assert_array_equal(np.asarray(x), values)


@pytest.mark.parametrize("stored_x", STORED)
@pytest.mark.parametrize("stored_dy", STORED)
def test_backward_views_go_together(stored_dy, stored_x):
    values = numbered((4, 3, 6))
    dy, x = STORED[stored_dy](values + 100), STORED[stored_x](values)
    first, second, template = layout.for_backward(dy, x, 1)
    assert first.shape == second.shape
    np.testing.assert_array_equal(first - second, 100)
    own = layout.of(template, 1)
    assert own.contiguous
    assert own.shape == first.shape
