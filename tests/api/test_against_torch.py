"""The same numbers as PyTorch's own batch norm, on every layout, forward and backward, and its checkpoints."""

import numpy as np
import pytest

import fastbn
from grid import affine, draw

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test-all installs it")
pytestmark = pytest.mark.frameworks

# PyTorch's float32 sums err by up to some 1e-5 of the terms in channels-last; its float64 ones agree to 1e-11.
TOLERANCE = {np.float32: 2e-4, np.float64: 1e-10}
SHAPES = [(32, 6), (1024, 70), (8, 6, 50), (8, 6, 20, 20), (4, 70, 33, 33), (2, 6, 5, 6, 7), (16, 1, 9, 9)]


def both_strides(x):
    """Yield x, and x channels-last, as arrays of the same shape."""
    yield x
    yield np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_same_numbers(rng, shape, dtype, training):
    C = shape[1]
    weight, bias = affine(rng, C, dtype)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    for x in both_strides(draw(rng, shape, dtype, mean=1)):
        mean, var = draw(rng, C, dtype), rng.uniform(0.5, 2, C).astype(dtype)
        tensors = [torch.from_numpy(a.copy()) for a in (weight, bias, mean, var)]
        w, b, m, v = tensors
        t = torch.from_numpy(x).requires_grad_()
        w.requires_grad_()
        b.requires_grad_()
        expected = torch.nn.functional.batch_norm(t, m, v, w, b, training=training, momentum=0.2, eps=1e-3)
        y, ctx = fastbn.batch_norm(
            x, weight, bias, running_mean=mean, running_var=var, training=training, momentum=0.2, eps=1e-3
        )
        np.testing.assert_allclose(y, expected.detach().numpy(), **close)
        np.testing.assert_allclose(mean, m.numpy(), **close)
        np.testing.assert_allclose(var, v.numpy(), **close)
        dy = draw(rng, shape, dtype)
        expected.backward(torch.from_numpy(dy))
        grads = fastbn.batch_norm_backward(dy, ctx)
        np.testing.assert_allclose(grads.dx, t.grad.numpy(), **close)
        count = x.size / C
        for got, want in ((grads.dweight, w.grad), (grads.dbias, b.grad)):
            np.testing.assert_allclose(got, want.numpy(), rtol=close["rtol"], atol=close["atol"] * np.sqrt(count))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_layers_train_alike_and_checkpoints_cross(rng, momentum):
    theirs = torch.nn.BatchNorm2d(5, momentum=momentum, dtype=torch.float64)
    ours = fastbn.BatchNorm(5, momentum=momentum, dtype=np.float64)
    for _ in range(4):
        x = draw(rng, (6, 5, 4, 4), np.float64, mean=2)
        np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-12)
    state = theirs.state_dict()
    assert list(ours.state_dict()) == list(state)
    for name, values in ours.state_dict().items():
        np.testing.assert_allclose(values, state[name].numpy(), rtol=1e-12)
    with torch.no_grad():
        theirs.weight += 1
    ours.load_state_dict(theirs.state_dict())
    x = draw(rng, (6, 5, 4, 4), np.float64)
    expected = theirs.eval()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours.eval()(x), expected, atol=1e-12)
    theirs.load_state_dict({name: torch.from_numpy(values) for name, values in ours.state_dict().items()})


def test_a_float32_layer_takes_a_float64_checkpoint():
    theirs = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    ours = fastbn.BatchNorm(3)
    ours.load_state_dict(theirs.state_dict())
    assert ours.weight.dtype == np.float32


def test_a_tensor_that_is_no_array_is_named():
    theirs = torch.nn.BatchNorm1d(3)
    state = dict(theirs.named_parameters()) | dict(theirs.named_buffers())  # not detached, unlike state_dict()
    with pytest.raises(TypeError, match=r"state\['weight'\]: expected what numpy.asarray takes, .*requires grad"):
        fastbn.BatchNorm(3).load_state_dict(state)
