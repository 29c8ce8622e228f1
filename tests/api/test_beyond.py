"""What goes beyond plain batch norm, against PyTorch's autograd in float64 and against formulas."""

import numpy as np
import pytest

import fastbn
import tolerance
from reference import column, others

torch = pytest.importorskip("torch")
F = torch.nn.functional

F4, F8 = np.float32, np.float64

# One shape for each way to take a tensor that has kernels of its own: small in rows and in segments, and large.
SHAPES = [(12, 20), (6, 5, 7), (64, 600), (16, 20, 130)]


def data(rng, shape, dtype=F4):
    """x, dy, residual, weight, bias."""
    arrays = [rng.standard_normal(shape).astype(dtype) for _ in range(3)]
    arrays[0] = arrays[0] * 2 + dtype(3)
    return *arrays, *(rng.standard_normal((2, shape[1])).astype(F8 if dtype == F8 else F4))


def tensor(array):
    return torch.tensor(np.asarray(array, F8), requires_grad=True)


def of(activation):
    """PyTorch's activation of a name."""
    if isinstance(activation, tuple):
        return lambda z: F.leaky_relu(z, activation[1])
    return getattr(F, activation) if activation else lambda z: z


def close(found, expected, dtype, terms=1.0):
    """Within some units of the format of the largest value, or of the terms that it is made of."""
    expected = np.asarray(expected, F8)
    unit = {2: 2.0**-10, 4: 2.0**-23, 8: 2.0**-50}[np.dtype(dtype).itemsize]
    np.testing.assert_allclose(
        np.asarray(found, F8), expected, rtol=0, atol=16 * unit * max(terms, abs(expected).max())
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", [None, "relu", "gelu", ("leaky_relu", 0.2)], ids=str)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_tail(shape, activation, with_residual, training):
    rng = np.random.default_rng(1)
    x, dy, residual, weight, bias = data(rng, shape)
    running = [np.full(shape[1], 2.5, F4), np.full(shape[1], 3.0, F4)]
    statistics = {"running_mean": running[0].copy(), "running_var": running[1].copy(), "training": training}
    given = residual if with_residual else None
    y, ctx = fastbn.batch_norm(x, weight, bias, **statistics, activation=activation, residual=given)
    grads = fastbn.batch_norm_backward(dy, ctx)

    tx, tw, tb, tr = map(tensor, (x, weight, bias, residual))
    mean, var = (torch.tensor(values.astype(F8)) for values in running)
    z = F.batch_norm(tx, mean, var, tw, tb, training)
    expected = of(activation)(z + tr if with_residual else z)
    expected.backward(torch.tensor(dy.astype(F8)))
    close(y, expected.detach(), F4)
    count = x.size // shape[1]
    close(grads.dx, tx.grad, F4)
    close(grads.dweight, tw.grad, F4, count)
    close(grads.dbias, tb.grad, F4, count)
    assert (grads.dresidual is None) is not with_residual
    if with_residual:
        close(grads.dresidual, tr.grad, F4)
    # The same by the long way, by other memory orders and into given arrays.
    moments = fastbn.batch_moments(x) if training else None
    out = np.empty_like(x)
    options = {"moments": moments} if training else statistics
    again, ctx = fastbn.batch_norm(
        x.copy(order="F"), weight, bias, **options, activation=activation, residual=given, out=out
    )
    assert again is out
    close(out, y, F4)
    found = fastbn.batch_norm_backward(
        dy.copy(order="F"), ctx, sums=fastbn.backward_sums(dy, ctx), out=np.empty_like(x)
    )
    close(found.dx, grads.dx, F4)
    close(found.dweight, grads.dweight, F4, count)
    if with_residual:
        close(found.dresidual, grads.dresidual, F4)


@pytest.mark.parametrize("dtype", [F8, np.float16])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "silu", "relu6"])
def test_tail_of_other_dtypes(dtype, activation):
    x, dy, residual, weight, bias = data(np.random.default_rng(2), (6, 5, 7), dtype)
    y, ctx = fastbn.batch_norm(x, weight, bias, activation=activation, residual=residual)
    grads = fastbn.batch_norm_backward(dy, ctx)
    tx, tw, tb, tr = map(tensor, (x, weight, bias, residual))
    expected = of(activation)(F.batch_norm(tx, None, None, tw, tb, True) + tr)
    expected.backward(torch.tensor(dy.astype(F8)))
    close(y, expected.detach(), dtype)
    for found, by in ((grads.dx, tx), (grads.dresidual, tr), (grads.dweight, tw), (grads.dbias, tb)):
        close(found, by.grad, dtype, 1.0 if found.ndim > 1 else 42)


def test_residual_is_given_back_as_it_came():
    """Without an activation the gradient of a residual is dy; a copy, where dx goes there."""
    x, dy, residual, _, _ = data(np.random.default_rng(3), (6, 5, 7))
    _, ctx = fastbn.batch_norm(x, residual=residual, out=residual)
    assert fastbn.batch_norm_backward(dy, ctx).dresidual is dy
    kept = dy.copy()
    grads = fastbn.batch_norm_backward(dy, ctx, out=dy)
    assert grads.dx is dy
    np.testing.assert_array_equal(grads.dresidual, kept)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("activation", [None, "silu"])
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


# ---------------------------------------------------------------- ghost batches


@pytest.mark.parametrize("shape", [*SHAPES, (64, 20, 130)], ids=str)
@pytest.mark.parametrize("given", ["activation", "mask", "renorm", "copied"])
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


# ---------------------------------------------------------------- renormalization


@pytest.mark.parametrize("shape", [*SHAPES, (64, 40, 7, 7)], ids=str)
def test_renorm(shape):
    rng = np.random.default_rng(7)
    x, dy, _, weight, bias = data(rng, shape)
    r_max, d_max, eps = 1.3, 0.4, 1e-3
    mean = rng.normal(3, 1, shape[1]).astype(F4)
    var = rng.uniform(1, 9, shape[1]).astype(F4)
    moved = mean.copy(), var.copy()
    y, ctx = fastbn.batch_norm(
        x, weight, bias, running_mean=moved[0], running_var=moved[1], eps=eps, renorm=fastbn.Renorm(r_max, d_max)
    )
    grads = fastbn.batch_norm_backward(dy, ctx)

    tx, tw, tb = map(tensor, (x, weight, bias))
    along = others(x, 1)
    batch_mean, batch_var = tx.mean(along, keepdim=True), tx.var(along, correction=0, keepdim=True)
    sigma = torch.tensor(np.sqrt(column(var, x, 1) + eps).astype(F8))
    r = (torch.sqrt(batch_var + eps) / sigma).clamp(1 / r_max, r_max).detach()
    d = ((batch_mean - torch.tensor(column(mean, x, 1).astype(F8))) / sigma).clamp(-d_max, d_max).detach()
    assert ((r > 1 / r_max) & (r < r_max)).any()
    assert (d.abs() == d_max).any()
    xhat = (tx - batch_mean) / torch.sqrt(batch_var + eps)
    wide = [each.reshape([1, -1] + [1] * (x.ndim - 2)) for each in (tw, tb)]
    expected = (xhat * r + d) * wide[0] + wide[1]
    expected.backward(torch.tensor(dy.astype(F8)))
    close(y, expected.detach(), F4)
    close(grads.dx, tx.grad, F4)
    close(grads.dweight, tw.grad, F4, x.size // shape[1])
    close(grads.dbias, tb.grad, F4, x.size // shape[1])
    close(moved[0], 0.9 * mean + 0.1 * x.astype(F8).mean(along), F4, 4.0)
    # With given moments, of this very batch, it is the same.
    again, _ = fastbn.batch_norm(
        x, weight, bias, running_mean=mean, running_var=var, eps=eps, renorm=fastbn.Renorm(r_max, d_max),
        moments=fastbn.batch_moments(x), update_stats=False,
    )  # fmt: skip
    close(again, y, F4)


@pytest.mark.parametrize("shape", [*SHAPES, (64, 40, 7, 7)], ids=str)
def test_renorm_without_corrections_is_batch_norm(shape):
    x, dy, _, weight, bias = data(np.random.default_rng(8), shape)
    running = [np.full(shape[1], 9.0, F4), np.full(shape[1], 0.1, F4)]
    given = {"running_mean": running[0], "running_var": running[1], "update_stats": False}
    y, ctx = fastbn.batch_norm(x, weight, bias, **given, renorm=fastbn.Renorm(1, 0))
    plain, plain_ctx = fastbn.batch_norm(x, weight, bias)
    np.testing.assert_array_equal(y, plain)
    grads, expected = fastbn.batch_norm_backward(dy, ctx), fastbn.batch_norm_backward(dy, plain_ctx)
    np.testing.assert_array_equal(grads.dx, expected.dx)
    np.testing.assert_array_equal(grads.dweight, expected.dweight)


# ---------------------------------------------------------------- y in the place of x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", [None, "leaky_relu"])
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
    if activation:
        off *= 2
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


# ---------------------------------------------------------------- statistics


def test_statistics_stay_where_they_are():
    x = np.random.default_rng(10).standard_normal((8, 3)).astype(F4)
    mean, var = np.zeros(3, F4), np.ones(3, F4)
    for moments in (None, fastbn.batch_moments(x)):
        given = {"running_mean": mean, "running_var": var, "moments": moments}
        y, _ = fastbn.batch_norm(x, **given, update_stats=False, correction=8)
        close(y, fastbn.batch_norm(x)[0], F4)
    assert not mean.any()
    layer = fastbn.BatchNorm(3)
    layer(x)
    before = layer.state_dict()
    layer(x, update_stats=False)
    assert all((before[name] == value).all() for name, value in layer.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_gradients_by_given_statistics(training):
    x, dy, _, weight, bias = data(np.random.default_rng(11), (12, 5), F8)
    mean, var = np.random.default_rng(12).uniform(1, 3, (2, 5))
    moments = fastbn.Moments(12, mean, var * 12)
    given = {"moments": moments} if training else {"running_mean": mean, "running_var": var, "training": False}
    _, ctx = fastbn.batch_norm(x, weight, bias, **given, activation="tanh")
    grads = fastbn.batch_norm_backward(dy, ctx)
    tm, tv = tensor(mean), tensor(var)
    y = torch.tanh((torch.tensor(x) - tm) / torch.sqrt(tv + 1e-5) * torch.tensor(weight) + torch.tensor(bias))
    y.backward(torch.tensor(dy))
    close(grads.dmean, tm.grad, F8, 12)
    close(grads.dvar, tv.grad, F8, 12)
    own = fastbn.batch_norm_backward(dy, fastbn.batch_norm(x)[1])
    assert own.dmean is None
    assert own.dvar is None


# ---------------------------------------------------------------- several channel axes


@pytest.mark.parametrize("axis", [(1, 2, 3), (1, 2), (0, 2), (1,), (-1, 1)], ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
def test_several_axes(axis, order):
    rng = np.random.default_rng(13)
    shape = (8, 3, 4, 5)
    places = tuple(sorted(i % 4 for i in axis))
    channels = tuple(shape[i] for i in places)
    along = tuple(i for i in range(4) if i not in places)
    x, dy, residual = (rng.standard_normal(shape).astype(F4).copy(order=order) for _ in range(3))
    weight, bias = rng.standard_normal((2, *channels)).astype(F4)
    running = np.asfortranarray(np.zeros(channels, F4)), np.ones(channels, F4)
    given = {"running_mean": running[0], "running_var": running[1], "axis": axis, "activation": "relu"}
    y, ctx = fastbn.batch_norm(x, weight, bias, residual=residual, **given)
    grads = fastbn.batch_norm_backward(dy, ctx)
    tx, tw, tb, tr = map(tensor, (x, weight, bias, residual))
    mean, var = tx.mean(along, keepdim=True), tx.var(along, correction=0, keepdim=True)
    wide = [torch.permute(each, tuple(range(each.ndim))) for each in (tw, tb)]
    for i in along:
        wide = [each.unsqueeze(i) for each in wide]
    expected = torch.relu((tx - mean) / torch.sqrt(var + 1e-5) * wide[0] + wide[1] + tr)
    expected.backward(torch.tensor(dy.astype(F8)))
    close(y, expected.detach(), F4)
    for found, by in ((grads.dx, tx), (grads.dresidual, tr), (grads.dweight, tw), (grads.dbias, tb)):
        close(found, by.grad, F4, 40.0)
        assert found.shape == tuple(by.shape)
    close(running[0], 0.1 * mean.detach().numpy().reshape(channels), F4)
    sums = fastbn.backward_sums(dy, ctx)
    close(fastbn.batch_norm_backward(dy, ctx, sums=sums, out=dy).dx, grads.dx, F4)
    moments = fastbn.batch_moments(x, axis=axis)
    close(moments.mean.reshape(channels), mean.detach().numpy().reshape(channels), F4)
    inference = fastbn.batch_norm_inference(x, *running, weight, bias, axis=axis, out=x)
    assert inference is x


def test_layer_with_everything():
    rng = np.random.default_rng(14)
    x, dy, residual = (rng.standard_normal((8, 3, 4, 5)).astype(F4) for _ in range(3))
    layer = fastbn.BatchNorm((4, 5), axis=(2, 3), weight=False, activation="gelu", ghost_batch_size=3, momentum=None)
    assert layer.weight is None
    assert layer.bias.shape == (4, 5)
    layer(x, residual=residual)
    assert layer.num_batches_tracked == 3
    dx = layer.backward(dy)
    assert dx.shape == layer.dresidual.shape == x.shape
    parts = [x[:3], x[3:6], x[6:]]
    close(layer.running_mean, np.mean([part.mean((0, 1)) for part in parts], axis=0), F4)
    close(layer.running_var, np.mean([part.var((0, 1), ddof=1) for part in parts], axis=0), F4)
    layer(x, mask=np.arange(8)[:, None] > 1)
    assert layer.num_batches_tracked == 6
    assert tolerance.ULPS  # what `close` allows is four times that
