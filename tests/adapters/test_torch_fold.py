"""fastbn.adapters.torch.fold: a model without its batch norms computes the same, and what stays is named."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test-all installs it")
pytestmark = pytest.mark.frameworks

from torch import nn  # noqa: E402
from torch.nn.utils import fusion  # noqa: E402

import torch_blocks as blocks  # noqa: E402
from fastbn.adapters.torch import convert, fold  # noqa: E402

PAIRS = [
    (nn.Linear(6, 8), nn.BatchNorm1d(8), (4, 6)),
    (nn.Conv1d(6, 8, 3, groups=2, bias=False), nn.BatchNorm1d(8), (4, 6, 9)),
    (nn.Conv2d(6, 8, 3, padding=1, stride=2, padding_mode="reflect"), nn.BatchNorm2d(8, affine=False), (4, 6, 9, 9)),
    (nn.Conv3d(6, 8, 2, dilation=2, padding=2), nn.SyncBatchNorm(8), (2, 6, 5, 5, 5)),
    (nn.ConvTranspose1d(6, 8, 3, stride=2), nn.BatchNorm1d(8), (4, 6, 9)),
    (nn.ConvTranspose2d(6, 8, 3, groups=2, bias=False, padding=1), nn.BatchNorm2d(8), (4, 6, 5, 5)),
    (nn.ConvTranspose3d(6, 9, 2, groups=3), nn.BatchNorm3d(9), (2, 6, 3, 3, 3)),
]


def with_numbers(rng, model):
    """A copy with other numbers in its batch norms, as after training."""
    model = copy.deepcopy(model)
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None:
            for name in ("running_mean", "running_var", "weight", "bias"):
                if (tensor := getattr(part, name)) is not None:
                    low = 0.3 if name == "running_var" else -2
                    tensor.data.copy_(torch.from_numpy(rng.uniform(low, 2, tensor.shape)))
    return model


def random(rng, shape, dtype=torch.float64):
    return torch.from_numpy(rng.normal(0.5, 1, shape)).to(dtype)


def norms(model):
    return [name for name, part in model.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(("layer", "norm", "shape"), PAIRS, ids=lambda value: getattr(value, "_get_name", str)())
def test_every_layer(rng, layer, norm, shape):
    model = with_numbers(rng, nn.Sequential(layer, norm)).double()
    given = copy.deepcopy(model)
    new, folded, left = fold(model)
    assert (folded, left, norms(new)) == ({"1": "0"}, {}, [])
    x = random(rng, shape)
    torch.testing.assert_close(new(x), given.eval()(x), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(model.state_dict(), given.state_dict(), rtol=0, atol=0)
    if new[0].bias is not None:
        assert model[0].bias is not new[0].bias
    transposed = isinstance(layer, nn.modules.conv._ConvTransposeNd)
    if transposed and layer.groups > 1:
        return  # which PyTorch's own fusion does not know
    if isinstance(layer, nn.Linear):
        theirs = fusion.fuse_linear_bn_eval(*given.eval())
    else:
        theirs = fusion.fuse_conv_bn_eval(*given.eval(), transpose=transposed)
    torch.testing.assert_close(new[0].state_dict(), theirs.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_new_parameters_are_the_exact_ones_rounded_once(rng, dtype):
    model = with_numbers(rng, nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    model[0].to(dtype)
    model[0].weight.requires_grad_(False)
    exact = fold(copy.deepcopy(model).double()).model[0]
    new = fold(model).model[0]
    for name, tensor in new.named_parameters():
        np.testing.assert_array_equal(tensor.detach().float(), getattr(exact, name).detach().to(dtype).float())
        assert (tensor.dtype, tensor.requires_grad) == (dtype, name == "bias")


@pytest.mark.parametrize(
    "block", [blocks.BasicBlock, blocks.Bottleneck, blocks.InSequences, blocks.InvertedResidual, blocks.MBConv]
)
@pytest.mark.parametrize("change", [lambda m: m, convert, lambda m: convert(m, fuse=True)], ids=["", "ours", "fused"])
def test_blocks_lose_all_their_batch_norms(rng, block, change):
    plain = with_numbers(rng, block()).double()
    model = change(plain)
    new, folded, left = fold(model)
    assert model.training
    assert left == {}
    assert sorted(folded) == norms(plain) == norms(model)
    assert norms(new) == []
    assert type(model) is type(new)
    x = random(rng, (2, 4, 6, 6))
    torch.testing.assert_close(new(x.clone()), plain.eval()(x.clone()), rtol=1e-9, atol=1e-9)


class Branching(nn.Module):
    """What no trace follows: a branch on values. Its parts are followed."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.block = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())})
        self.fc, self.bn = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.stem(x)
        if x.mean() > 0:
            x = self.block["a"](x)
        return self.bn(self.fc(x.mean((2, 3))))


class Around(nn.Module):
    """A module that is followed, around one that is not."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.inner = Branching()
        self.fc, self.bn2 = nn.Linear(4, 2), nn.BatchNorm1d(2)

    def forward(self, x, scale=None):
        x = self.inner(self.bn(self.conv(x)))
        if scale is not None:
            x = x * scale
        return self.bn2(self.fc(x))


def test_around_what_cannot_be_followed(rng):
    model = with_numbers(rng, Around()).double()
    new, folded, left = fold(model)
    assert folded == {
        "bn": "conv", "inner.stem.1": "inner.stem.0", "inner.block.a.1": "inner.block.a.0", "bn2": "fc"
    }  # fmt: skip
    assert list(left) == ["inner.bn"]
    assert left["inner.bn"].startswith("the order of calls in module 'inner' is not known: ")
    x = random(rng, (2, 3, 5, 5))
    torch.testing.assert_close(new(x, 2.0), model.eval()(x, 2.0), rtol=1e-9, atol=1e-9)


class Calls(nn.Module):
    """Whatever a function does with a convolution and a batch norm."""

    def __init__(self, calls, **parts):
        super().__init__()
        self.conv, self.bn = parts.get("conv", nn.Conv2d(3, 3, 1)), parts.get("bn", nn.BatchNorm2d(3))
        self.calls = calls

    def forward(self, x, y=None):
        return self.calls(self, x, y)


class Own(nn.BatchNorm2d):
    pass


def hooked():
    bn = nn.BatchNorm2d(3)
    bn.register_forward_hook(lambda *_: None)
    return bn


def straight(m, x, y):
    return m.bn(m.conv(x))


def without_y(m, x, y):
    return m.bn(m.conv(x)) if y is None else m.conv(x)


def negative(bn):
    bn.running_var[1] = -1
    return bn


LEFT = [
    (Calls(lambda m, x, y: m.bn(x)), "it follows the input, no linear layer"),
    (Calls(lambda m, x, y: m.bn(m.conv(x).relu())), "it follows relu, no"),
    (Calls(lambda m, x, y: m.bn(m.conv(x)) + m.conv(x)), "the layer before it is called 2 times"),
    (Calls(lambda m, x, y: m.bn(m.bn(m.conv(x)))), "what it normalises is not always the same"),
    (Calls(lambda m, x, y: (lambda h: m.bn(h) + h)(m.conv(x))), "the result of the layer before it is used elsewhere"),
    (Calls(without_y), "the result of the layer before it is used elsewhere"),
    (Calls(lambda m, x, y: m.bn(m.conv(x)) + m.conv.weight.sum()), "a parameter of the layer before it is used apart"),
    (Calls(lambda m, x, y: m.conv(x)), "it is not called"),
    (Calls(straight, bn=nn.BatchNorm2d(3, track_running_stats=False)), "bn: expected running statistics"),
    (Calls(straight, bn=negative(nn.BatchNorm2d(3))), "bn.running_var: expected variances >= 0"),
    (Calls(straight, bn=Own(3)), "its class is Own, which may"),
    (Calls(straight, bn=hooked()), "it has hooks"),
    (
        Calls(straight, conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))),
        "it follows a ParametrizedConv2d",
    ),
    (Calls(straight, conv=nn.Linear(3, 3)), "it follows a Linear, whose channels are on another axis"),
    (Calls(straight, conv=nn.Linear(3, 4), bn=nn.BatchNorm1d(3)), "weight: expected the 3 output channels of bn"),
    (Calls(straight, conv=nn.Conv2d(3, 3, 1, dtype=torch.cfloat)), "the weight before it is of torch.complex64"),
    (nn.BatchNorm2d(3), "the order of calls in the model is not known"),
]


@pytest.mark.parametrize(("model", "reason"), LEFT, ids=[reason for _, reason in LEFT])
def test_what_stays_and_why(model, reason):
    new, folded, left = fold(model)
    assert folded == {}
    (why,) = left.values()
    assert why.startswith(reason)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(new.state_dict()[name], tensor, rtol=0, atol=0)


def test_values_beyond_half_stay_apart():
    model = nn.Sequential(nn.Conv2d(3, 3, 1, dtype=torch.float16), nn.BatchNorm2d(3))
    model[1].weight.data.fill_(1e9)
    assert fold(model).left == {
        "1": "the weight of the layer before it would have values that torch.float16 cannot hold"
    }


def test_the_example_of_the_docstring():
    import doctest

    from fastbn.adapters.torch import folding

    assert doctest.testmod(folding).failed == 0
