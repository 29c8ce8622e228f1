"""The adapter for PyTorch: the same modules and numbers, all derivatives, formats without a copy, compiled models."""

import copy

import numpy as np
import pytest

import fastbn
from grid import draw

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test-all installs it")
# Parts of PyTorch are scripted when they are first used, which PyTorch itself deprecates.
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")]

from torch import nn  # noqa: E402

from fastbn.adapters.torch import BatchNorm1d, BatchNorm2d, BatchNorm3d, batch_norm, convert, revert  # noqa: E402

# PyTorch's float32 sums err by up to some 1e-5 of the terms; of 16 bits the last is compared, and sums of such values.
CLOSE = {torch.float32: 2e-4, torch.float64: 1e-10, torch.float16: 4e-3, torch.bfloat16: 3e-2}
CLASSES = {
    (32, 6): (nn.BatchNorm1d, BatchNorm1d),
    (8, 6, 50): (nn.BatchNorm1d, BatchNorm1d),
    (4, 6, 9, 10): (nn.BatchNorm2d, BatchNorm2d),
    (2, 6, 5, 6, 7): (nn.BatchNorm3d, BatchNorm3d),
}
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def tensor(rng, shape, dtype=torch.float32, **options):
    return torch.from_numpy(draw(rng, shape, np.float64, **options)).to(dtype)


def assert_close(a, b, dtype):
    torch.testing.assert_close(a, b, rtol=CLOSE[dtype], atol=CLOSE[dtype])


def is_ours(y):
    """Return whether fastbn computed a result of less than 64 bits: it keeps a mean of 64."""
    return y.grad_fn._saved_result1.dtype is torch.float64


def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
    )


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}], ids=str
)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("shape", CLASSES, ids=str)
def test_a_module_trains_and_infers_as_pytorchs_does(rng, shape, dtype, options):
    theirs = CLASSES[shape][0](6, dtype=torch.float64 if dtype is torch.float64 else torch.float32, **options)
    if theirs.affine:
        with torch.no_grad():
            theirs.weight.copy_(tensor(rng, 6))
            theirs.bias.copy_(tensor(rng, 6))
    ours = convert(theirs)
    for training in (True, True, False):
        theirs.train(training)
        ours.train(training)
        x, dy = tensor(rng, shape, dtype, mean=1), tensor(rng, shape, dtype)
        if len(shape) in FORMATS:
            x = x.to(memory_format=FORMATS[len(shape)])
        results = []
        for layer in (theirs, ours):
            leaf = x.clone().requires_grad_()
            layer.zero_grad()
            y = layer(leaf)
            y.backward(dy)
            results.append([y, leaf.grad, *(p.grad for p in layer.parameters())])
        for a, b in zip(*results, strict=True):
            assert a.dtype is b.dtype
            assert_close(a, b, dtype)
        assert results[1][0].stride() == results[1][1].stride() == x.stride()
        for (name, a), (other, b) in zip(theirs.state_dict().items(), ours.state_dict().items(), strict=True):
            assert name == other
            assert_close(a, b, dtype if a.is_floating_point() else torch.float64)


def test_fastbns_bits_come_out(rng):
    """So that what is promised of fastbn is promised of the adapter, and it was not PyTorch that computed."""
    x, weight, bias, mean = (tensor(rng, s, mean=3) for s in ((8, 5, 7, 7), 5, 5, 5))
    var, dy = torch.rand(5) + 0.5, tensor(rng, (8, 5, 7, 7))
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    moved = [mean.clone(), var.clone()]
    y = batch_norm(leaves[0], *moved, *leaves[1:], True, 0.3, 1e-3)
    y.backward(dy)
    running = [mean.numpy(), var.numpy()]
    expected, ctx = fastbn.batch_norm(
        x.numpy(), weight.numpy(), bias.numpy(), running_mean=running[0], running_var=running[1], momentum=0.3, eps=1e-3
    )
    grads = fastbn.batch_norm_backward(dy.numpy(), ctx)
    got = [y.detach(), *moved, *(leaf.grad for leaf in leaves)]
    for a, b in zip(got, (expected, *running, grads.dx, grads.dweight, grads.dbias), strict=True):
        np.testing.assert_array_equal(a.numpy(), b)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_first_second_and_forward_derivatives(rng, training, affine):
    x, weight, bias, mean = (tensor(rng, s, torch.float64) for s in ((4, 3, 5), 3, 3, 3))
    inputs = tuple(t.requires_grad_() for t in ((x, weight, bias) if affine else (x,)))

    def function(x, weight=None, bias=None):
        return batch_norm(x, mean.clone(), torch.ones_like(mean), weight, bias, training)

    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.fixture
def by_python(monkeypatch):
    """As with releases of PyTorch whose operators cannot be replaced."""
    from fastbn.adapters.torch.native import register

    monkeypatch.setattr(register, "works", lambda: False)


@pytest.mark.usefixtures("by_python")
def test_calls_go_by_python_where_operators_cannot_be_replaced(rng):
    x, dy = tensor(rng, (4, 3, 8, 8), mean=1), tensor(rng, (4, 3, 8, 8))
    theirs = nn.BatchNorm2d(3)
    ours = convert(theirs)
    results = []
    for layer in (theirs, ours):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(dy)
        results.append([y, leaf.grad, *(p.grad for p in layer.parameters()), *layer.buffers()])
    assert "BatchNormFunction" in type(y.grad_fn).__name__
    for a, b in zip(*results, strict=True):
        assert_close(a, b, torch.float32)


@pytest.mark.usefixtures("by_python")
@pytest.mark.parametrize("training", [True, False])
def test_third_derivatives_are_right_where_autograd_is_ours(rng, training):
    """PyTorch's own are wrong in training: its second derivatives take the statistics for constants."""
    x, weight, mean, direction = (tensor(rng, s, torch.float64) for s in ((4, 2), 2, 2, (4, 2)))

    def gradient(x, weight):
        y = batch_norm(x, mean.clone(), torch.ones_like(mean), weight, None, training)
        return torch.autograd.grad((y.pow(3) * direction).sum(), (x, weight), create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, (x.requires_grad_(), weight.requires_grad_()))


def test_convert_keeps_everything_but_the_class_and_revert_restores_it(rng):
    model = net().eval()
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    parameters, text, state = list(model.parameters()), repr(model), copy.deepcopy(model.state_dict())
    copied = convert(model)
    assert type(model[1]) is nn.BatchNorm2d
    assert type(copied[1]) is BatchNorm2d
    assert convert(model, inplace=True) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert repr(model) == repr(copied) == text
    assert isinstance(model[1], nn.BatchNorm2d)
    assert not model[1].training
    model(tensor(rng, (2, 3, 6, 6)))
    assert calls == [1]
    model.load_state_dict(state)
    assert type(revert(model)[1]) is nn.BatchNorm2d
    assert type(model[1]) is BatchNorm2d
    assert type(revert(model, inplace=True)[4]) is nn.BatchNorm2d
    assert type(convert(nn.BatchNorm1d(3))) is BatchNorm1d


def test_what_convert_leaves_alone_and_refuses():
    class Own(nn.BatchNorm2d):
        pass

    model = convert(nn.Sequential(Own(3), nn.SyncBatchNorm(3), nn.GroupNorm(1, 3)))
    assert [type(part) for part in model] == [Own, nn.SyncBatchNorm, nn.GroupNorm]
    lazy = nn.Sequential(nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match="expected every batch norm to know its channels, got LazyBatchNorm2d at '0'"):
        convert(lazy)
    lazy(torch.ones(2, 3, 4, 4))
    assert type(convert(lazy)[0]) is BatchNorm2d


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler uses what its own and Python's deprecate
def test_a_compiled_model_has_no_graph_break_and_the_same_bits(rng, memory_format):
    model = convert(net()).to(memory_format=memory_format)
    twin = copy.deepcopy(model)
    fast = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for training in (True, True, False):
        model.train(training)
        twin.train(training)
        x = tensor(rng, (4, 3, 10, 10)).to(memory_format=memory_format)
        for part in (model, twin):
            part.zero_grad()
        expected, y = model(x), fast(x)
        assert torch.equal(expected, y)
        expected.square().sum().backward()
        y.square().sum().backward()
        for a, b in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(a.grad, b.grad)
        for a, b in zip(model.buffers(), twin.buffers(), strict=True):
            assert torch.equal(a, b)
            assert not b.requires_grad


def test_the_operators_are_what_they_declare(rng):
    from fastbn.adapters.torch import function as torch_function

    x, weight, bias, mean = (tensor(rng, s, torch.float64) for s in ((4, 3, 5), 3, 3, 3))
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    for training in (True, False):
        arguments = leaves[0], mean.clone(), torch.ones_like(mean), *leaves[1:], training, 0.1, 1e-5
        checks = "test_schema", "test_autograd_registration", "test_faketensor"
        assert set(torch.library.opcheck(torch_function.operator, arguments, test_utils=checks).values()) == {"SUCCESS"}


def test_transforms_work(rng):
    x, weight, bias = (tensor(rng, s, torch.float64) for s in ((4, 3, 5), 3, 3))

    def loss(x, weight, bias):
        return batch_norm(x, None, None, weight, bias, True).pow(3).sum()

    gradient = torch.func.grad(loss)(x, weight, bias)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(gradient, torch.autograd.grad(loss(leaf, weight, bias), leaf)[0])
    many = torch.stack([x, 2 * x + 1])
    torch.testing.assert_close(torch.func.vmap(lambda x: loss(x, weight, bias))(many).sum(), 2 * loss(x, weight, bias),
                               rtol=1e-4, atol=1e-4)  # fmt: skip  # eps is another part of the variance
    _, tangent = torch.func.jvp(lambda x: loss(x, weight, bias), (x,), (gradient,))
    torch.testing.assert_close(tangent, (gradient * gradient).sum())


def test_checkpoints_and_offloaded_tensors(rng):
    from torch.utils.checkpoint import checkpoint

    model = convert(net())
    x = tensor(rng, (4, 3, 8, 8))
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    for run in (lambda: checkpoint(model, x, use_reentrant=False), lambda: offloaded(model, x)):
        model.zero_grad()
        run().square().sum().backward()
        assert all(torch.equal(p.grad, e) for p, e in zip(model.parameters(), expected, strict=True))


def offloaded(model, x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True).copy(), torch.from_numpy):
        return model(x)


def test_an_input_that_was_changed_is_noticed(rng):
    x = tensor(rng, (5, 3)).requires_grad_() * 1
    y = batch_norm(x, None, None, training=True)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_mixed_precision_runs_on_fastbn(rng):
    model = convert(net())
    with torch.autocast("cpu", torch.bfloat16):
        y = model(tensor(rng, (4, 3, 8, 8)))
    assert y.dtype is torch.bfloat16
    assert is_ours(y)
    y.float().square().sum().backward()
    assert model[1].weight.grad.dtype is torch.float32


def test_parameters_may_have_another_dtype_than_pytorch_takes(rng):
    x = tensor(rng, (6, 3, 5))
    y = batch_norm(x, None, None, torch.ones(3, dtype=torch.float64), training=True)
    assert_close(y, nn.functional.batch_norm(x, None, None, training=True), torch.float32)
    with pytest.raises(RuntimeError, match="mixed dtype"):
        nn.functional.batch_norm(x, None, None, torch.ones(3, dtype=torch.float64), training=True)


def test_the_rest_is_pytorchs(rng):
    half = convert(nn.BatchNorm1d(3)).to(torch.bfloat16)
    assert not is_ours(half(torch.ones(4, 3, dtype=torch.bfloat16)))
    meta = convert(nn.BatchNorm1d(3, device="meta"))
    assert meta(torch.ones(4, 3, device="meta")).is_meta
    without_eps = batch_norm(tensor(rng, (4, 3)).requires_grad_(), torch.zeros(3), torch.ones(3), eps=0.0)
    assert not is_ours(without_eps)
    layer = convert(nn.BatchNorm2d(3))
    for x in (torch.ones(1, 3, 1, 1), torch.ones(4, 3), torch.ones(4, 5, 2, 2)):
        with pytest.raises((ValueError, RuntimeError)) as ours:
            layer(x)
        with pytest.raises(type(ours.value)) as theirs:
            revert(layer)(x)
        assert str(ours.value) == str(theirs.value)


def test_an_exported_or_traced_model_is_pytorchs(rng):
    model, x = convert(net()).eval(), tensor(rng, (2, 3, 6, 6))
    program = torch.export.export(model, (x,))
    assert torch.ops.aten.batch_norm.default in [node.target for node in program.graph.nodes]
    traced = torch.jit.trace(model, x)
    other = tensor(rng, (2, 3, 6, 6))
    assert_close(traced(other), model(other), torch.float32)
