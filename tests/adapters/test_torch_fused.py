"""Batch norm, a residual and an activation as one operator: values, derivatives, layouts, and what hooks may do."""

import numpy as np
import pytest

from grid import draw

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test-all installs it")
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

from fastbn.adapters.torch import fused  # noqa: E402
from fastbn.adapters.torch.native import register, shim  # noqa: E402

if shim.library() is None:
    pytest.skip("this PyTorch's operators cannot be replaced", allow_module_level=True)
assert register.works()

LEAKY = "leaky_relu", 0.2
TAILS = "relu", "relu6", "silu", "relu + residual", "residual"
SMALL, LARGE = (6, 5, 3, 7), (8, 16, 30, 30)
# Kernels with a tail are tested by tests/kernels/test_tail.py in every family; here, that the right one is called.
CASES = [
    *((tail, SMALL) for tail in TAILS),
    *((tail, LARGE) for tail in ("relu", "relu + residual")),
]


def tensor(rng, shape, dtype=torch.float32, **options):
    return torch.from_numpy(draw(rng, shape, np.float64, **options)).to(dtype)


def composed(x, mean, var, weight, bias, training, momentum, eps, activation, residual):
    y = torch.nn.functional.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
    return fused.activate(activation, y if residual is None else y + residual)


def drawn(rng, tail, shape, dtype):
    """Return activation, residual, x, weight and bias, all but the first with gradients."""
    own = torch.float64 if dtype is torch.float64 else torch.float32
    name = tail.partition(" + ")[0]
    residual = tensor(rng, shape, dtype).requires_grad_() if "residual" in tail else None
    leaves = tensor(rng, shape, dtype, mean=1), *(tensor(rng, shape[1], own) for _ in range(2))
    name = LEAKY if name == LEAKY[0] else None if name == "residual" else name
    return name, residual, *(leaf.requires_grad_() for leaf in leaves)


def both(given, training, dy, convert=lambda t: t):
    """Return the results and gradients of the one operator, and of PyTorch's in float64."""
    activation, residual, x, weight, bias = given
    results = []
    for function, wide in ((fused.BatchNormActFunction.apply, lambda t: t), (composed, torch.Tensor.double)):
        leaves = [wide(t.detach()).requires_grad_() for t in (x, weight, bias, residual) if t is not None]
        C = x.shape[1]
        own = leaves[1].dtype
        mean, var = torch.full((C,), 0.5, dtype=own), torch.full((C,), 1.5, dtype=own)
        inputs = [convert(leaf) for leaf in leaves]
        added = inputs[3] if residual is not None else None
        y = function(inputs[0], mean, var, *inputs[1:3], training, 0.3, 1e-3, activation, added)
        results.append([y, mean, var, *torch.autograd.grad(y, leaves, wide(dy))])
    return results


# A value near the edge of an activation may fall on either side of it: the slope jumps there. Few do.
def assert_close(results, dtype):
    unit = {torch.float32: 2**-22, torch.float64: 2**-50, torch.float16: 2**-9}[dtype]
    for a, b in zip(*results, strict=True):
        difference = (a.double() - b).abs()
        scale = b.abs().max() + 1
        assert (difference > 16 * unit * scale).float().mean() < 2e-3
        assert difference.isfinite().all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("tail", "shape"), CASES, ids=str)
def test_values_and_gradients_in_float32(rng, shape, tail, training):
    given = drawn(rng, tail, shape, torch.float32)
    assert_close(both(given, training, tensor(rng, shape)), torch.float32)


OTHERS = [("relu + residual", torch.float64), ("silu", torch.float16), ("leaky_relu + residual", torch.float32)]


@pytest.mark.parametrize(("tail", "dtype"), OTHERS, ids=str)
def test_values_and_gradients_in_the_other_dtypes(rng, tail, dtype):
    given = drawn(rng, tail, SMALL, dtype)
    assert_close(both(given, True, tensor(rng, SMALL, dtype)), dtype)


def test_layouts_need_not_agree(rng):
    shape = 8, 16, 30, 30
    for convert in (
        lambda t: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t,
        lambda t: t.repeat_interleave(2, 3)[:, :, :, ::2] if t.ndim == 4 else t,
        lambda t: t.transpose(2, 3) if t.ndim == 4 else t,
    ):
        given = drawn(rng, "relu + residual", shape, torch.float32)
        assert_close(both(given, True, tensor(rng, shape), convert), torch.float32)
    activation, residual, *leaves = drawn(rng, "relu + residual", shape, torch.float32)
    x = leaves[0].detach().to(memory_format=torch.channels_last)
    y = fused.BatchNormActFunction.apply(x, None, None, *leaves[1:], True, 0.1, 1e-5, activation, residual)
    assert y.stride() == x.stride()
    expected = composed(x, None, None, *leaves[1:], True, 0.1, 1e-5, activation, residual)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tail", "training"), [("relu6", True), ("silu", False), ("gelu + residual", True)])
def test_second_derivatives(rng, tail, training):
    activation, residual, *leaves = drawn(rng, tail, (4, 2, 3), torch.float64)
    mean, var = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def function(*leaves):
        x, weight, bias, *more = leaves
        running = mean.clone(), var.clone()
        added = more[0] if more else None
        return fused.BatchNormActFunction.apply(x, *running, weight, bias, training, 0.1, 1e-5, activation, added)

    inputs = tuple(leaves) if residual is None else (*leaves, residual)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_saved_tensors_may_be_copied(rng):
    for tail in ("relu", "relu + residual"):
        given = drawn(rng, tail, LARGE, torch.float32)
        dy = tensor(rng, LARGE)
        plain = both(given, True, dy)[0]
        with torch.autograd.graph.save_on_cpu():
            offloaded = both(given, True, dy)[0]
        assert all(torch.equal(a, b) for a, b in zip(plain, offloaded, strict=True))


def test_only_what_is_needed_gets_a_gradient(rng):
    x, dy = tensor(rng, (9, 4)), tensor(rng, (9, 4))
    weight = torch.ones(4, requires_grad=True)
    y = fused.BatchNormActFunction.apply(x, None, None, weight, None, True, 0.1, 1e-5, "relu", None)
    y.backward(dy)
    expected = composed(x, None, None, weight.detach().clone().requires_grad_(), None, True, 0.1, 1e-5, "relu", None)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert weight.grad.shape == (4,)


def test_parameters_that_the_operator_does_not_take_go_one_after_the_other(rng):
    from fastbn.adapters.torch.activations import batch_norm_act

    x, weight = tensor(rng, LARGE, mean=1), tensor(rng, 16)
    expected = composed(x, None, None, weight, None, True, 0.1, 1e-5, "relu", None)
    for parameter in (weight.double(), torch.stack([weight, weight], 1)[:, 0]):
        y = batch_norm_act(x, None, None, parameter, None, True, 0.1, 1e-5, "relu", None)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
