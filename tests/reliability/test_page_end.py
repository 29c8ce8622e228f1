"""No kernel reads or writes behind an array: each ends where a page does, and the next page may not be touched."""

import sys

import pytest

from pages import PAGES
from processes import run

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")

PROGRAM = """
for shape, axis in [
    ((6, 8, 60, 60), 1), ((6, 3, 90, 90), 1), ((3, 5, 7, 7), 1), ((20, 40, 5, 5), 1), ((16, 20, 7, 7), 1),
    ((40, 30), 1), ((70, 1000), 1), ((2000, 40), 1), ((1100, 300), 1), ((33, 9), 1),
]:
    for dtype, precision in (("f4", "fast"), ("f4", "exact"), ("f2", "fast"), ("f8", "fast")):
        x, dy = (at_the_end(rng.standard_normal(shape).astype(dtype)) for _ in range(2))
        own = "f8" if dtype == "f8" else "f4"
        weight, bias, mean, var = (at_the_end(np.ones(shape[axis], own)) for _ in range(4))
        y = at_the_end(np.zeros_like(x))
        given = {"axis": axis, "precision": precision, "out": y}
        _, ctx = fastbn.batch_norm(x, weight, bias, running_mean=mean, running_var=var, **given)
        fastbn.batch_norm_backward(dy, ctx, out=y)
        fastbn.batch_norm_inference(x, mean, var, weight, bias, **given)
        fastbn.batch_moments(x, axis=axis)
        fastbn.backward_sums(dy, ctx)
print("untouched")
"""


@LINUX
def test_nothing_behind_an_array_is_touched():
    assert run(PAGES + PROGRAM) == "untouched\n"
