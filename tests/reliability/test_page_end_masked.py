"""No kernel reads what a mask leaves out: arrays that end there, at the end of a page."""

import sys

import pytest

from pages import PAGES
from processes import run

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")

MASKED = """
from fastbn.backends.cpu import masked
from fastbn_kernels.saved import ROWS

for shape, left_out in [
    ((1, 1, 700), 5), ((1, 1, 700), 200), ((2, 1, 9), 3), ((1, 1, 9000), 4000), ((5, 3, 70), 3 * 70),  # channels first
    ((300, 20, 1), 20), ((300, 20, 1), 200 * 20), ((90, 300, 1), 300),  # rows
]:
    before = int(np.prod(shape)) - left_out
    x, dy = (at_the_end(rng.standard_normal(shape).astype(sys.argv[1]), before) for _ in range(2))
    mask, saved = np.ones((shape[0], shape[2]), bool), np.ones((ROWS, shape[1]))
    mask.reshape(-1)[-(left_out // shape[1]):] = False
    y = at_the_end(np.full(shape, np.nan, sys.argv[1]))
    masked.moments(x, mask, saved)
    masked.forward(x, mask, saved, 1e-5, y)
    assert np.isfinite(saved).all() and np.isfinite(y).all()
    masked.normalize(x, mask, saved, 1e-5, y)
    sums = masked.backward(dy, x, mask, saved, False, y)
    masked.gradient(dy, x, mask, saved, sums, 1.0, True, y)
    masked.sums(dy, x, mask, saved)
    assert np.isfinite(sums).all() and np.isfinite(y).all()
print("untouched")
"""


@LINUX
@pytest.mark.parametrize("dtype", ["f4", pytest.param("f2", marks=pytest.mark.slow)])
def test_what_a_mask_leaves_out_is_not_touched(dtype):
    assert run(PAGES + MASKED, dtype) == "untouched\n"
