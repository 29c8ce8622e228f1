"""No kernel with a residual touches what is behind its arrays, at the end of a page."""

import sys

import pytest

from pages import PAGES
from processes import run

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")

# Kernels with a residual, of every kind of loop: forward, backward, and from given sums.
TAILS = """
from fastbn.backends.cpu import launch
from fastbn_kernels.cpu import kernel
from fastbn_kernels.cpu.simd.tails import SILU, WRITE, WithResidual
from fastbn_kernels.saved import ROWS

for shape in (6, 8, 3600), (3, 5, 49), (16, 20, 49), (70, 1000, 1), (2000, 40, 1), (33, 9, 1):
    x, dy, residual, dresidual, out = (at_the_end(rng.standard_normal(shape).astype("f4")) for _ in range(5))
    own = launch.plan_of(x)
    data, dy, residual, dresidual, out = (launch.data_of(a, own) for a in (x, dy, residual, dresidual, out))
    saved, sums = np.ones((ROWS, shape[1])), np.empty((2, shape[1]))

    def call(operation, *given):
        kernel(getattr(own, operation)).launch(x.dtype, own.parallel, *given)

    pair, whole = WithResidual((SILU, residual)), WithResidual((SILU, residual, dresidual))
    call("forward", data, saved, 1e-5, own.past_cache[0], own.groups, out, pair)
    call("backward", dy, data, saved, False, own.past_cache[1], own.groups, out, sums, whole)
    call("sums", dy, data, saved, sums, pair)
    options = 100.0, False, own.past_cache[1], own.groups
    call("gradient", dy, data, saved, sums, *options, out, WithResidual((*whole, WRITE)))
print("untouched")
"""


@LINUX
@pytest.mark.slow
def test_nothing_behind_a_residual_is_touched():
    assert run(PAGES + TAILS) == "untouched\n"
