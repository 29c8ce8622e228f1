"""The whitening layer: against an oracle without eigenvectors, where eigenvalues are equal or zero, and as a layer."""

import pickle

import ml_dtypes
import numba
import numpy as np
import pytest

import fastbn
import whitened
from grid import STORED, draw, poisoned, thinned
from tolerance import check, check_differences, relative

EPS = 1e-5
# (shape, axis, groups): rows; segments shorter and longer than a vector, and of several parts; channels last.
SHAPES = [
    ((40, 6), 1, 1),
    ((900, 32), 1, 2),
    ((9, 6, 3, 3), 1, 2),
    ((6, 10, 700), 1, 2),
    ((7, 7, 9, 6), -1, 3),
    ((5, 42, 41), 1, 2),
    ((60, 70), 0, 12),
]


def correlated(rng, shape, axis, dtype, mean=0.0):
    """Data whose channels are mixed, by a well-conditioned matrix, of standard deviations about 1."""
    channels = shape[axis]
    mixing = np.eye(channels) + 0.5 * rng.uniform(-1, 1, (channels, channels)) / np.sqrt(channels)
    x = np.moveaxis(np.tensordot(mixing, rng.standard_normal(shape), (1, axis)), 0, axis)
    return np.ascontiguousarray((x + mean).astype(dtype))


def made(rng, channels, groups, dtype=np.float64, **options):
    layer = fastbn.DecorrelatedBatchNorm(channels, groups=groups, dtype=dtype, **options)
    layer.weight[:], layer.bias[:] = draw(rng, channels, dtype), draw(rng, channels, dtype)
    return layer


def bounds(f, dy, weight, dtype):
    """What y and dx may be off in float64: the covariance by R d of its largest eigenvalue, W by that times f', ...

    The divided differences of f(l) = (l + eps)^(-1/2), and those of its derivative, are at most f' = r^-3 / 2 and
    f'' = r^-5 3 / 4 at the smallest eigenvalue, r^2 = l + eps. Norms of vectors are those of a group's values.
    """
    values = np.linalg.eigvalsh(f.cov.astype(float))
    r, largest = float(np.sqrt(max(values.min(), 0) + EPS)), float(values.max())
    groups, d, count = f.z.shape
    z = float(np.sqrt((f.z**2).sum(1)).max())
    R = relative(count, 8, dtype) * d
    w, g = float(np.abs(weight).max()), float(np.sqrt((whitened.as_groups(dy, 0, groups) ** 2).sum(1)).max())
    root = largest / (2 * r**3) + 1 / r
    by_cov = largest * 3 / (4 * r**5) + 1 / (2 * r**3)
    return R * w * root * z + R * w, R * w * g * (root + 2 * z**2 * by_cov), R * count * g * root * z


def check_layer(layer, x, dy, axis, groups, out=False):
    """Check y, dx, dweight and dbias of one call in training."""
    y = layer(x, out=poisoned(x.shape, x.dtype) if out else None)
    dx = layer.backward(dy, out=poisoned(x.shape, x.dtype) if out else None)
    f = whitened.forward(x, axis, groups, EPS, layer.weight, layer.bias)
    moved = np.moveaxis(np.asarray(dy), axis, 0)
    for_y, for_dx, for_parameters = bounds(f, moved, layer.weight, x.dtype)
    expected = whitened.backward(dy, x, axis, groups, EPS, layer.weight)
    check(y, f.y, for_y)
    check(dx, expected[0], for_dx)
    check(layer.dweight, expected[1], for_parameters)
    check(layer.dbias, expected[2], for_parameters)
    assert y.dtype == dx.dtype == x.dtype
    return f


@pytest.mark.parametrize(("dtype", "case"), thinned([np.float64, np.float32, np.float16], SHAPES))
def test_against_the_oracle(rng, dtype, case):
    shape, axis, groups = case
    x, dy = correlated(rng, shape, axis, dtype, mean=2), draw(rng, shape, dtype)
    layer = made(rng, shape[axis], groups, axis=axis, momentum=0.25)
    f = check_layer(layer, x, dy, axis, groups, out=True)
    count = f.z.shape[2]
    exact = np.dtype(dtype).itemsize > 2
    np.testing.assert_allclose(
        layer.running_mean, 0.25 * f.mean.reshape(-1).astype(float), rtol=1e-12 if exact else 1e-6
    )
    cov = 0.75 * np.eye(f.cov.shape[1]) + 0.25 * f.cov * count / (count - 1)
    np.testing.assert_allclose(layer.running_cov, cov.astype(float), atol=1e-12 if exact else 1e-6)


@pytest.mark.slow  # two more kernels to compile
@pytest.mark.parametrize("case", SHAPES[1:5])
def test_bfloat16(rng, case):
    shape, axis, groups = case
    x, dy = correlated(rng, shape, axis, ml_dtypes.bfloat16), draw(rng, shape, ml_dtypes.bfloat16)
    check_layer(made(rng, shape[axis], groups, axis=axis), x, dy, axis, groups)


@pytest.mark.bounds
@pytest.mark.parametrize("case", [((19, 5), 1, 1), ((3, 4, 19), 1, 2), ((2, 3, 5), 1, 3)])
def test_small(rng, case):
    shape, axis, groups = case
    x, dy = correlated(rng, shape, axis, np.float64), draw(rng, shape, np.float64)
    check_layer(made(rng, shape[axis], groups), x, dy, axis, groups)


@pytest.mark.parametrize("stored", STORED)
def test_wherever_arrays_are(rng, stored):
    x, dy = correlated(rng, (6, 8, 5, 3), 1, np.float32), draw(rng, (6, 8, 5, 3), np.float32)
    check_layer(made(rng, 8, 2), STORED[stored](x), STORED[stored](dy), 1, 2)


def test_the_covariance_is_the_identity_up_to_eps(rng):
    x = correlated(rng, (64, 24, 9, 9), 1, np.float32, mean=1e4)
    y = fastbn.DecorrelatedBatchNorm(24, groups=3)(x).astype(float)
    for group in whitened.as_groups(y, 1, 3).astype(float):
        # eigenvalues are l / (l + eps), and the least of these l is above 0.1; y is rounded to float32
        np.testing.assert_allclose(group @ group.T / group.shape[1], np.eye(8), atol=1.5e-4)
        np.testing.assert_allclose(group.mean(1), 0, atol=1e-7)


def test_a_mean_far_from_zero(rng):
    """In float64, x is known to 1e-12 of a standard deviation; in float32, to 1e-3, and the oracle sees the same."""
    for dtype, mean in ((np.float64, 1e4), (np.float32, 1e4)):
        x, dy = correlated(rng, (30, 6, 50), 1, dtype, mean=mean), draw(rng, (30, 6, 50), dtype)
        check_layer(made(rng, 6, 2), x, dy, 1, 2)


def loss_of(layer, x, target):
    return lambda: float((layer(x) * target).sum() + 0.5 * (layer(x) ** 2 * target**2).sum())


@pytest.mark.parametrize("kind", ["equal eigenvalues", "equal in pairs", "fewer values than channels", "constant"])
def test_the_gradient_where_eigenvectors_have_none(rng, kind):
    signs = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], float)
    x = np.concatenate([signs, -signs])  # columns that are orthogonal: the covariance is the identity, exactly
    if kind == "equal in pairs":
        x[:, 2:] *= 2
    elif kind == "fewer values than channels":
        x = draw(rng, (3, 4), np.float64)
    elif kind == "constant":
        x = np.ones((5, 4))
    layer = made(rng, 4, 1, eps=0.25, track_running_stats=False)
    target = draw(rng, x.shape, np.float64)
    loss = loss_of(layer, x, target)
    dx = layer.backward(target + layer(x) * target**2)
    dweight, dbias = layer.dweight, layer.dbias
    expected = whitened.backward(target + layer(x) * target**2, x, 1, 1, 0.25, layer.weight)[0]
    np.testing.assert_allclose(dx, expected.astype(float), atol=1e-13 * np.abs(dx).max() + 1e-14)
    for values, gradient in ((x, dx), (layer.weight, dweight), (layer.bias, dbias)):
        check_differences(loss, values, gradient)


def test_a_group_a_channel_is_batch_norm(rng):
    x, dy = correlated(rng, (20, 6, 15), 1, np.float32, mean=5), draw(rng, (20, 6, 15), np.float32)
    ours, plain = made(rng, 6, 6, np.float32), fastbn.BatchNorm(6, precision="exact")
    plain.weight[:], plain.bias[:] = ours.weight, ours.bias
    for _ in range(2):
        np.testing.assert_allclose(ours(x), plain(x), rtol=1e-6, atol=1e-6)  # two roundings to float32
        np.testing.assert_allclose(ours.backward(dy), plain.backward(dy), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours.dweight, plain.dweight, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(ours.running_mean, plain.running_mean, rtol=1e-6)
        np.testing.assert_allclose(ours.running_cov.reshape(-1), plain.running_var, rtol=1e-6)
        assert ours.num_batches_tracked == plain.num_batches_tracked
        ours.eval(), plain.eval()


def test_inference(rng):
    layer = made(rng, 6, 2, momentum=None)
    for _ in range(3):
        layer(correlated(rng, (50, 6), 1, np.float64, mean=1))
    state = layer.state_dict()
    x, dy = correlated(rng, (4, 6, 9), 1, np.float64), draw(rng, (4, 6, 9), np.float64)
    given = {"mean": layer.running_mean, "cov": layer.running_cov}
    f = whitened.forward(x, 1, 2, EPS, layer.weight, layer.bias, **given)
    dx, dweight, dbias = whitened.backward(dy, x, 1, 2, EPS, layer.weight, **given)
    y = layer.eval()(x)
    np.testing.assert_allclose(y, f.y.astype(float), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(layer.running_whitening, f.root.astype(float), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(layer.backward(dy), dx.astype(float), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(layer.dweight, dweight.astype(float), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layer.dbias, dbias.astype(float), rtol=1e-12, atol=1e-13)
    assert layer(x[:0]).shape == layer.backward(dy[:0]).shape == (0, 6, 9)
    for name, values in layer.state_dict().items():
        np.testing.assert_array_equal(values, state[name])
    layer.running_cov[:] = 4 * np.eye(3)  # whoever changes it in place gets another matrix
    np.testing.assert_allclose(layer.running_whitening, np.tile(np.eye(3) / 2, (2, 1, 1)), rtol=1e-5)


def results(rng_state, shape, axis, groups):
    rng = np.random.default_rng(rng_state)
    x, dy = correlated(rng, shape, axis, np.float32, mean=3), draw(rng, shape, np.float32)
    layer = made(rng, shape[axis], groups, np.float32, axis=axis)
    y = layer(x)
    return [y, layer.backward(dy), layer.dweight, layer.dbias, layer.running_mean, layer.running_cov]


@pytest.mark.parametrize("case", SHAPES[1:4])
def test_the_same_bits_for_any_number_of_threads(case):
    expected = results(7, *case)
    before = numba.get_num_threads()
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            for one, other in zip(results(7, *case), expected, strict=True):
                np.testing.assert_array_equal(one, other)
    finally:
        numba.set_num_threads(before)


def test_in_place(rng):
    x, dy = correlated(rng, (6, 8, 5), 1, np.float32), draw(rng, (6, 8, 5), np.float32)
    layer = made(rng, 8, 2, np.float32)
    y, dx = layer(x), layer.backward(dy)
    assert layer.backward(dy, out=dy) is dy
    np.testing.assert_array_equal(dy, dx)
    assert layer(x, out=x) is x
    np.testing.assert_array_equal(x, y)
    with pytest.raises(ValueError, match="backward: expected x as it was"):
        layer.backward(dy)


def test_what_is_not_finite_stays_in_its_group(rng):
    x, dy = correlated(rng, (9, 6), 1, np.float32), draw(rng, (9, 6), np.float32)
    layer = fastbn.DecorrelatedBatchNorm(6, groups=3)
    expected, expected_dx = layer(x), layer.backward(dy)
    x[4, 1] = np.inf
    y, dx = layer(x), layer.backward(dy)
    assert np.isnan(y[:, :2]).all()
    assert np.isnan(dx[:, :2]).all()
    np.testing.assert_array_equal(y[:, 2:], expected[:, 2:])
    np.testing.assert_array_equal(dx[:, 2:], expected_dx[:, 2:])


def test_state(rng, tmp_path):
    layer, other = made(rng, 6, 2, np.float32), fastbn.DecorrelatedBatchNorm(6, groups=2)
    layer(correlated(rng, (30, 6), 1, np.float32))
    assert list(layer.state_dict()) == ["weight", "bias", "running_mean", "running_cov", "num_batches_tracked"]
    fastbn.save(tmp_path / "net.npz", {"white": layer, "plain": fastbn.BatchNorm(2)})
    held = other.running_cov
    fastbn.load(tmp_path / "net.npz", {"white": other, "plain": fastbn.BatchNorm(2)})
    assert other.running_cov is held
    for copy in (other, pickle.loads(pickle.dumps(layer))):
        for name, values in copy.state_dict().items():
            np.testing.assert_array_equal(values, layer.state_dict()[name])
    with pytest.raises(ValueError, match=r"state\['running_cov'\]: expected shape \(2, 3, 3\), got shape \(6, 6\)"):
        layer.load_state_dict(layer.state_dict() | {"running_cov": np.eye(6)})
    assert set(fastbn.DecorrelatedBatchNorm(6, track_running_stats=False, affine=False).state_dict()) == set()
    assert repr(layer) == (
        "DecorrelatedBatchNorm(6, groups=2, axis=1, eps=1e-05, momentum=0.1, correction=1, affine=True, "
        "track_running_stats=True, dtype=float32)"
    )


@pytest.mark.frameworks
def test_against_torch_autograd(rng):
    torch = pytest.importorskip("torch")
    x, dy = correlated(rng, (20, 8, 5), 1, np.float64), draw(rng, (20, 8, 5), np.float64)
    layer = made(rng, 8, 2)
    y, dx = layer(x), layer.backward(dy)
    tx = torch.tensor(x, requires_grad=True)
    weight, bias = (torch.tensor(each, requires_grad=True) for each in (layer.weight, layer.bias))
    groups = tx.transpose(0, 1).reshape(2, 4, -1)
    z = groups - groups.mean(2, keepdim=True)
    values, vectors = torch.linalg.eigh(z @ z.mT / z.shape[2])
    root = vectors @ torch.diag_embed((values + EPS) ** -0.5) @ vectors.mT
    ty = (root @ z).reshape(8, 20, 5).transpose(0, 1) * weight[:, None] + bias[:, None]
    ty.backward(torch.tensor(dy))
    pairs = [(y, ty), (dx, tx.grad), (layer.dweight, weight.grad), (layer.dbias, bias.grad)]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-9, atol=1e-10)
