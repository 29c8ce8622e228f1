"""Ghost batches are what a loop over parts of the batch gives, to the bit."""

import numpy as np
import pytest

import fastbn
from beyond import F4, SHAPES, cases, close, data


@pytest.mark.parametrize(
    ("shape", "given"),
    cases((*SHAPES, (64, 20, 130)), ("activation", "mask", "renorm", "copied"), compiled=[
        ((12, 20), "activation"), ((64, 20, 130), "activation"), ((6, 5, 7), "renorm"),
    ]),
)  # fmt: skip
def test_ghost_batches_are_what_a_loop_gives(shape, given):
    """The same bits, running statistics in order, a shorter tail."""
    rng = np.random.default_rng(5)
    x, dy, residual, weight, bias = data(rng, shape)
    size = shape[0] // 3 + 1
    options = {"activation": "silu"} if given == "activation" else {}
    if given == "renorm":
        options["renorm"] = fastbn.Renorm(1.5, 0.5)
    mask = np.ones((shape[0], *shape[2:]), bool)
    mask[::3] = False
    if given == "copied":
        x, dy = x.copy(order="F"), dy.copy(order="F")
    running = [np.zeros(shape[1], F4), np.ones(shape[1], F4)]
    own = [array.copy() for array in running]
    y, ctx = fastbn.batch_norm(
        x, weight, bias, running_mean=own[0], running_var=own[1], residual=residual, ghost_batch_size=size,
        mask=mask if given == "mask" else None, **options,
    )  # fmt: skip
    grads = fastbn.batch_norm_backward(dy, ctx)
    sums = np.zeros((2, shape[1]))
    parts = [slice(start, start + size) for start in range(0, shape[0], size)]
    assert ctx.batches == len(parts)
    for part in parts:
        expected, context = fastbn.batch_norm(
            x[part], weight, bias, running_mean=running[0], running_var=running[1], residual=residual[part],
            mask=mask[part] if given == "mask" else None, **options,
        )  # fmt: skip
        by = fastbn.batch_norm_backward(dy[part], context)
        np.testing.assert_array_equal(y[part], expected)
        np.testing.assert_array_equal(grads.dx[part], by.dx)
        np.testing.assert_array_equal(grads.dresidual[part], by.dresidual)
        sums += by.dweight, by.dbias
    close(grads.dweight, sums[0], F4, x.size // shape[1])
    close(grads.dbias, sums[1], F4, x.size // shape[1])
    np.testing.assert_array_equal(own, running)
    if given != "mask":
        close(ctx.moments.mean, fastbn.batch_moments(x).mean, F4, 4.0)


def test_one_ghost_batch_is_the_batch():
    x = np.random.default_rng(6).standard_normal((8, 3, 4)).astype(F4)
    y, ctx = fastbn.batch_norm(x, ghost_batch_size=8)
    np.testing.assert_array_equal(y, fastbn.batch_norm(x)[0])
    assert ctx.batches == 1


@pytest.mark.parametrize("shape", cases([(6, 4, 5), (6, 1), (6, 1, 5)], compiled=[]))
def test_ghost_batches_of_few_channels_and_in_place(shape):
    """Of one channel all samples lie in one row of the kernels; what is told from y is checked of every ghost batch."""
    x, dy, _, weight, bias = data(np.random.default_rng(6), shape)
    weight = np.abs(weight) + F4(0.5)
    y, ctx = fastbn.batch_norm(x, weight, bias, ghost_batch_size=2)
    grads = fastbn.batch_norm_backward(dy, ctx)
    expected = [fastbn.batch_norm(x[i : i + 2], weight, bias)[0] for i in (0, 2, 4)]
    np.testing.assert_array_equal(y, np.concatenate(expected))
    over = x.copy()
    _, ctx = fastbn.batch_norm(over, weight, bias, ghost_batch_size=2, out=over)
    np.testing.assert_array_equal(over, y)
    found = fastbn.batch_norm_backward(dy, ctx)
    # xhat is off by 2^-24 (|bias| + |y|) / |weight| at most, some 10 x 2^-24.
    for name in ("dx", "dweight", "dbias"):
        close(getattr(found, name), getattr(grads, name), F4, 10 * x.size // shape[1])
    weight[-1] = 0
    over = x.copy()
    _, ctx = fastbn.batch_norm(over, weight, bias, ghost_batch_size=2, out=over)
    with pytest.raises(ValueError, match=f"got 0 beside a bias of .* in channel {shape[1] - 1}"):
        fastbn.batch_norm_backward(dy, ctx)
