"""A mask is the same as taking what counts, and what does not count is not read."""

import numpy as np
import pytest

import fastbn
from beyond import F4, cases, close


@pytest.mark.parametrize(
    ("order", "axis", "activation"),
    cases("CF", (1, 2), (None, "relu"), compiled=[("C", 1, "relu"), ("F", 2, None)]),
)
def test_mask_is_the_same_as_taking_what_counts(order, axis, activation):
    rng = np.random.default_rng(4)
    shape = (6, 5, 9)
    x, dy, residual = (rng.standard_normal(shape).astype(F4) for _ in range(3))
    weight, bias = rng.standard_normal((2, shape[axis])).astype(F4)
    lengths = rng.integers(1, 9, 6)
    mask = np.arange(shape[3 - axis])[None] < lengths[:, None]
    full = np.broadcast_to(np.expand_dims(mask, axis), shape)
    for array in (x, dy, residual):
        array[~full] = np.nan
    x, dy = x.copy(order=order), dy.copy(order=order)
    running = [np.zeros(shape[axis], F4), np.ones(shape[axis], F4)]
    own = [array.copy() for array in running]
    y, ctx = fastbn.batch_norm(
        x, weight, bias, running_mean=own[0], running_var=own[1], axis=axis, mask=mask, activation=activation,
        residual=residual,
    )  # fmt: skip
    grads = fastbn.batch_norm_backward(dy, ctx)

    def taken(array):
        return np.moveaxis(array, axis, 2)[mask]

    taken_y, taken_ctx = fastbn.batch_norm(
        taken(x), weight, bias, running_mean=running[0], running_var=running[1], activation=activation,
        residual=taken(residual),
    )  # fmt: skip
    expected = fastbn.batch_norm_backward(taken(dy), taken_ctx)
    close(taken(y), taken_y, F4)
    close(taken(grads.dx), expected.dx, F4)
    close(taken(grads.dresidual), expected.dresidual, F4)
    for array in (y, grads.dx, grads.dresidual):
        assert not array[~full].any()
    close(grads.dweight, expected.dweight, F4, 50)
    close(grads.dbias, expected.dbias, F4, 50)
    close(own, running, F4)
    moments = fastbn.batch_moments(x, axis=axis, mask=mask)
    assert moments.count == ctx.count == mask.sum()
    close(ctx.moments.mean, moments.mean, F4)
    # Halves whose statistics are merged give what the whole does.
    halves = [slice(0, 3), slice(3, 6)]
    merged = fastbn.batch_moments(x[:3], axis=axis, mask=mask[:3])
    merged = merged.merge(fastbn.batch_moments(x[3:], axis=axis, mask=mask[3:]))
    contexts = [
        fastbn.batch_norm(x[half], weight, bias, axis=axis, mask=mask[half], moments=merged, activation=activation,
                          residual=residual[half])[1]
        for half in halves
    ]  # fmt: skip
    first, second = (fastbn.backward_sums(dy[half], each) for half, each in zip(halves, contexts, strict=True))
    sums = first.merge(second)
    close(sums.sum_dy, grads.dbias, F4, 50)
    found = fastbn.batch_norm_backward(dy[halves[1]], contexts[1], sums=sums)
    close(found.dx, grads.dx[3:], F4)


def test_a_mask_without_a_true_is_an_empty_batch_in_inference():
    x = np.full((2, 3, 4), np.nan, F4)
    given = {"running_mean": np.zeros(3, F4), "running_var": np.ones(3, F4), "training": False}
    y, ctx = fastbn.batch_norm(x, **given, mask=np.zeros((2, 1), bool))
    grads = fastbn.batch_norm_backward(x, ctx)
    assert not y.any()
    assert not grads.dx.any()
    assert fastbn.batch_moments(x, mask=np.zeros(4, bool)).count == 0
