"""The run with bounds checks (make test starts one) checks something: an index out of range is an error there."""

import numpy as np
import pytest

from conftest import CHECKED

pytestmark = [
    pytest.mark.bounds,
    pytest.mark.skipif(not CHECKED, reason="the run with NUMBA_BOUNDSCHECK=1 does this"),
]


def normalize(shape, short):
    """Run a kernel whose output is `short` elements too small for its input."""
    from fastbn_kernels.cpu import kernel
    from fastbn_kernels.saved import ROWS

    x, C = np.ones(shape, np.float32), shape[1]
    y = np.empty((1, 1, x.size - short), np.float32)
    kernel("normalize_channels_first").get(x.dtype, False)(x, np.ones((ROWS, C)), 1.0, False, 0, y, None)


@pytest.mark.parametrize("shape", [(4, 3, 16), (4, 3, 5), (4, 3, 40)])
def test_a_vector_or_part_of_one_out_of_range_is_an_error(shape):
    normalize(shape, 0)
    with pytest.raises(IndexError, match="a vector reaches out of its array"):
        normalize(shape, 1)


def test_a_scalar_index_out_of_range_is_an_error():
    from fastbn_kernels.cpu import kernel

    x, parameter, saved = np.ones((4, 3, 2), np.float32), np.ones(3, np.float32), np.ones((2, 3))
    with pytest.raises(IndexError):
        kernel("call_backward_channels_first").get(x.dtype, False)(
            x, x, saved, False, np.empty_like(x), parameter, parameter.copy(), None
        )
