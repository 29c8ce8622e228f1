"""The run with bounds checks (make test starts one) checks something: an index out of range is an error there."""

import numpy as np
import pytest

from conftest import CHECKED


@pytest.mark.skipif(not CHECKED, reason="the run with NUMBA_BOUNDSCHECK=1 does this")
def test_an_index_out_of_range_is_an_error():
    from fastbn_kernels.cpu.normalize import normalize_adjacent

    x = np.ones((4, 3), np.float32)
    normalize_adjacent.get(x.dtype, False)(x, np.ones(3), np.ones(3), np.ones(3), np.empty((4, 3), np.float32))
    with pytest.raises(IndexError):
        normalize_adjacent.get(x.dtype, False)(x, np.ones(3), np.ones(3), np.ones(3), np.empty((4, 2), np.float32))
