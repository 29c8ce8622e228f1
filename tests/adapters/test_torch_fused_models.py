"""A model whose batch norms do what follows them stays what it was: hooks, copies, changes, compilers, errors."""

import copy
import io
import pickle
import traceback

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test-all installs it")
# Parts of PyTorch are scripted when they are first used, which PyTorch itself deprecates.
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")]

from torch import nn  # noqa: E402

import torch_blocks as blocks  # noqa: E402
from fastbn.adapters.torch import convert  # noqa: E402
from torch_blocks import assert_same, batch, pair  # noqa: E402


def test_hooks_see_what_they_saw(rng, fused):
    """Also those that come later: then the calls are two again."""
    plain, net = pair(blocks.BasicBlock)
    plain.relu.inplace = net.relu.inplace = False
    seen = []
    for name in ("relu", "bn2", "downsample", "downsample.1", None):
        registers = ["register_forward_hook", "register_forward_pre_hook"]
        if name in ("relu", None):  # PyTorch refuses others where results change in place
            registers.append("register_full_backward_hook")
        for register in registers:
            handles = []
            for model in (plain, net):
                seen.append([])
                part = model.get_submodule(name or "")
                handles.append(getattr(part, register)(lambda *given, kept=seen[-1]: kept.append(given[-1])))
            assert_same(plain, net, batch(rng))
            for handle in handles:
                handle.remove()
            torch.testing.assert_close(*seen[-2:], rtol=1e-9, atol=1e-9)
            assert len(seen[-1]) == (2 if name == "relu" else 1)
    fused.clear()
    with_all = nn.modules.module.register_module_forward_hook(lambda *_: None)
    net(batch(rng))
    with_all.remove()
    assert fused == []
    net(batch(rng))
    assert fused == ["relu", "relu+"]


def test_a_model_may_be_changed_and_taken_apart(rng, fused):
    plain, net = pair(blocks.BasicBlock)
    x = batch(rng)
    torch.testing.assert_close(net.bn1(net.conv1(x)), plain.bn1(plain.conv1(x)))  # without the ReLU
    for model in (plain, net):
        model.relu = nn.GELU()
    assert_same(plain, net, x)
    for model in (plain, net):
        model.relu, model.downsample, model.bn2 = nn.ReLU6(), None, nn.Identity()
        model.conv1.stride = 1
        model.bn1.requires_grad_(False)
    x = batch(rng, 3, 4, 4, 4)
    for model in (plain, net):
        model.downsample = nn.Conv2d(4, 6, 1).double()
    net.downsample.load_state_dict(plain.downsample.state_dict())
    fused.clear()
    torch.testing.assert_close(net(x), plain(x))
    assert fused == ["relu6"]
    plain, net = pair(blocks.vgg)
    for model in (plain, net):
        model[2] = nn.Tanh()
        model.append(nn.BatchNorm1d(6).double())
    assert_same(plain, net, batch(rng))
    torch.testing.assert_close(net[:5](x), plain[:5](x))


@pytest.mark.parametrize("name", ["basic", "vgg", "mlp"])
def test_copies_are_fused_too(rng, fused, name):
    make, expected = blocks.BLOCKS[name]
    _, net = pair(make)
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    loaded.load_state_dict(net.state_dict())
    copies = [loaded, copy.deepcopy(net), copy.copy(net), pickle.loads(pickle.dumps(net, 0))]
    copies += [net._replicate_for_data_parallel(), convert(net, fuse=True), convert(net)]
    for other in copies:
        assert type(other) is type(net)
        if other._is_replica if hasattr(other, "_is_replica") else False:
            continue
        fused.clear()
        x = batch(rng)
        torch.testing.assert_close(other.eval()(x), net.eval()(x), rtol=1e-9, atol=1e-9)
        assert fused == 2 * expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's compiler uses what its own and Python's deprecate
@pytest.mark.parametrize("name", ["basic", "sequences", "vgg", "mlp"])
def test_compiled_exported_and_traced(rng, name):
    plain, net = pair(blocks.BLOCKS[name][0])
    fast = torch.compile(net, fullgraph=True, backend="aot_eager")
    for training in (True, False):
        plain.train(training)
        net.train(training)
        assert_same(plain, fast, batch(rng))
    x = batch(rng)
    program = torch.export.export(net, (x,))
    assert torch.ops.aten.batch_norm.default in [node.target for node in program.graph.nodes]
    torch.testing.assert_close(program.module()(x), plain(x))
    torch.testing.assert_close(torch.jit.trace(net, x)(x), plain(x))
    torch.testing.assert_close(torch.func.functional_call(net, dict(net.named_parameters()), (x,)), plain(x))


def test_checkpoints_and_derivatives(rng, fused):
    plain, net = pair(blocks.BasicBlock)
    x = batch(rng)
    net.zero_grad()
    torch.utils.checkpoint.checkpoint(net, x, use_reentrant=False).sum().backward()
    plain(x).sum().backward()
    for a, b in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9)
    assert fused == 2 * ["relu", "relu+"]


def test_errors_name_the_line_of_the_user(rng):
    _, net = pair(blocks.BasicBlock)
    with pytest.raises(RuntimeError) as error:
        net(batch(rng, 3, 5, 4, 4))
    assert "out = self.conv1(x)" in "".join(traceback.format_tb(error.value.__traceback__))
    net.conv2 = nn.Identity()
    net.downsample = nn.Identity()
    with pytest.raises(RuntimeError) as error:
        net(batch(rng))
    frames = traceback.extract_tb(error.value.__traceback__)
    assert [f.line for f in frames if f.filename == blocks.__file__] == ["out += identity"]
