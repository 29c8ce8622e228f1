"""Back from y, which lies where x was."""

import numpy as np
import pytest

import fastbn
from beyond import F4, F8, SHAPES, cases, close, data
from reference import column


@pytest.mark.parametrize(
    ("shape", "activation"),
    cases(SHAPES, (None, "leaky_relu"), compiled=[
        ((12, 20), None), ((6, 5, 7), "leaky_relu"), ((64, 600), None), ((16, 20, 130), None),
    ]),
)  # fmt: skip
def test_back_from_y(shape, activation):
    """Weights of either sign; the error is what `in_place` says."""
    from fastbn import in_place

    rng = np.random.default_rng(9)
    x, dy, _, weight, bias = data(rng, shape)
    bias[:2] = 4, 0
    weight[:2] = 0.01, -1e-30  # 4 / 0.01 loses 9 bits
    y, ctx = fastbn.batch_norm(x, weight, bias, activation=activation)
    expected = fastbn.batch_norm_backward(dy, ctx)
    kept = x.copy()
    over, ctx = fastbn.batch_norm(x, weight, bias, activation=activation, out=x)
    assert over is x
    np.testing.assert_array_equal(x, y)
    grads = fastbn.batch_norm_backward(dy, ctx)
    off = in_place.error(ctx, x.dtype) + 2.0**-22 * np.abs(kept).max()
    largest = np.abs(dy).max()
    scale = np.abs(ctx.weight * ctx.invstd) * largest
    wide = column(off * scale * (1 + np.abs(kept).max()), x, 1)
    assert (np.abs(grads.dx.astype(F8) - expected.dx) <= wide + 1e-30).all()
    count = x.size // shape[1]
    assert (np.abs(grads.dweight.astype(F8) - expected.dweight) <= off * largest * count).all()
    close(grads.dbias, expected.dbias, F4, count)
    sums = fastbn.backward_sums(dy, ctx)
    close(sums.sum_dy_xhat, grads.dweight, F4, count)
    again = fastbn.batch_norm_backward(dy, ctx, sums=sums, out=x)
    assert again.dx is x
    close(again.dx, grads.dx, F4)
    with pytest.raises(ValueError, match="x was overwritten"):
        fastbn.batch_norm_backward(dy, ctx)
