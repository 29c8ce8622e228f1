"""Batch norms that do what follows them: what is found, and what is left."""

import inspect

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test-all installs it")
# Parts of PyTorch are scripted when they are first used, which PyTorch itself deprecates.
pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")]

import torch.nn.functional as F  # noqa: E402, N812
from torch import nn  # noqa: E402

import torch_blocks as blocks  # noqa: E402
from fastbn.adapters.torch import convert, modules, revert  # noqa: E402
from torch_blocks import assert_same, batch, pair  # noqa: E402


@pytest.mark.parametrize("name", blocks.BLOCKS)
def test_blocks_of_nets_compute_the_same_with_fewer_calls(rng, fused, name):
    make, expected = blocks.BLOCKS[name]
    plain, net = pair(make)
    for training in (True, True, False):
        plain.train(training)
        net.train(training)
        fused.clear()
        assert_same(plain, net, batch(rng))
        assert fused == expected
    assert list(net.state_dict()) == list(plain.state_dict())
    assert repr(net) == repr(plain)
    for a, b in zip(plain.modules(), net.modules(), strict=True):
        assert isinstance(b, type(a))
        assert (type(b).__name__, type(b).__module__) == (type(a).__name__, type(a).__module__)
        given = [
            [(p.name, p.kind, p.default) for p in inspect.signature(m.forward).parameters.values()] for m in (a, b)
        ]
        assert given[0] == given[1] or isinstance(a, modules._BatchNorm)
    back = revert(net)
    assert [type(m) for m in back.modules()] == [type(m) for m in revert(plain).modules()]
    fused.clear()
    assert_same(plain, back, batch(rng))
    assert fused == []


class OwnReLU(nn.ReLU):
    pass


class Left(nn.Module):
    """Batch norms and activations that are not one call, whatever they look like."""

    def __init__(self, way):
        super().__init__()
        self.bn, self.conv, self.relu, self.own = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU(True), OwnReLU()
        self.slopes, self.way = nn.PReLU(), way

    def forward(self, x):
        return getattr(self, self.way)(x)

    def used_twice(self, x):
        y = self.bn(x)
        return F.relu(y) + y

    def used_by_a_function(self, x):
        y = self.bn(x)
        z = (lambda: y)()
        return self.relu(y) + z

    def kept(self, x):
        self.seen = self.bn(x)
        return self.relu(self.seen) + self.seen

    def changes_its_input(self, x):
        x = x * 1
        y = self.bn(self.conv(x))
        x += y
        return F.relu(x)

    def scaled(self, x):
        return torch.relu(torch.add(self.bn(x), x, alpha=2))

    def other_bounds(self, x):
        return F.hardtanh(self.bn(x), -1.0, 6.0)

    def of_another_form(self, x):
        return F.gelu(self.bn(x), approximate="tanh")

    def of_many_slopes(self, x):
        return self.slopes(self.bn(x))

    def a_subclass(self, x):
        return self.own(self.bn(x))

    def a_number(self, x):
        return torch.relu(self.bn(x) + 1)

    def handled(self, x):
        try:
            y = self.bn(x)
            y = self.relu(y)
        except ValueError:
            return y
        return y

    def all_variables(self, x):
        y = self.bn(x)
        y = self.relu(locals()["y"] * 0 + y)
        return y + 0

    def input_changes(self, x):
        h = x * 1
        y = self.bn(h)
        z = self._in_place(h)
        y = y + z
        return F.relu(y)

    def residual_changes(self, x):
        z = self.conv(x)
        y = self.bn(x) + z
        w = self._in_place(z)
        return F.relu(y) + w

    def read_in_the_next_round(self, x):
        for i in range(2):
            if i:
                y += 1  # noqa: F821
            y = self.bn(x)
            z = self.relu(y)
            x = x + z
        return x

    def another_name(self, x):
        y = self.bn(x)
        z = y
        return self.relu(z) + y

    def read_in_a_branch(self, x):
        y = self.bn(self.conv(x))
        z = x
        if self.way:
            z = y * 2
        y = self.relu(y)
        return y + z

    def leaves_early(self, x):
        y = self.bn(x)
        if self.training:
            return x
        return F.relu(y)

    def statistics_move(self, x):
        y = self.bn(self.conv(x))
        z = self.bn(x * 3)
        return F.relu(y + z * z)

    def _in_place(self, h):
        return h.mul_(2)

    def in_a_branch(self, x):
        y = self.bn(x)
        return F.relu(y) if self.training else y


@pytest.mark.parametrize("way", [n for n in vars(Left) if n not in ("forward", "__init__") and not n.startswith("_")])
def test_what_is_left(rng, fused, way):
    plain, net = pair(lambda: Left(way))
    for training in (True, False):
        plain.train(training)
        net.train(training)
        x = batch(rng)
        with torch.no_grad():  # which PyTorch cannot derive where an input changes
            torch.testing.assert_close(net(x.clone()), plain(x.clone()), rtol=1e-9, atol=1e-9)
        for a, b in zip(plain.buffers(), net.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert fused == []


def test_what_is_added_has_to_be_alike(rng, fused):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x, y):
            x = self.bn(x)
            x += y
            return F.relu(x)

    plain, net = pair(Block)
    x = batch(rng)
    for y in (batch(rng, 1, 4, 1, 1), batch(rng, 3, 4, 4, 4).float(), 2.0):
        torch.testing.assert_close(net(x, y), plain(x, y))
    with pytest.raises(RuntimeError, match="output with shape"):
        net(x, batch(rng, 2, 3, 4, 4, 4))
    assert fused == []
    torch.testing.assert_close(net(x, x), plain(x, x))
    assert fused == ["relu+"]


KINDS = []


class Registered(nn.Module):
    def __init_subclass__(cls):
        KINDS.append(cls)


def test_classes_that_are_not_derived(rng, fused):
    class Mine(Registered):
        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x):
            return F.relu(self.bn(x))

    code = inspect.cleandoc("""
        class Unseen(nn.Module):
            def __init__(self):
                super().__init__()
                self.bn = nn.BatchNorm2d(4)
            def forward(self, x):
                return torch.relu(self.bn(x))
    """)
    names = {"nn": nn, "torch": torch, "__name__": "nowhere"}
    exec(code, names)
    for make in (Mine, names["Unseen"]):
        plain, net = pair(make)
        assert type(net) is make
        assert_same(plain, net, batch(rng))
    assert [Mine] == KINDS
    with_weight = blocks.BasicBlock()
    with_weight.scale = nn.Parameter(torch.ones(1))
    nn.utils.parametrize.register_parametrization(with_weight, "scale", nn.Identity())
    assert type(convert(with_weight, inplace=True, fuse=True)).__name__ == "ParametrizedBasicBlock"
    nn.utils.parametrize.remove_parametrizations(with_weight, "scale")
    changed = convert(blocks.BasicBlock().double())
    changed.forward = lambda x: x
    assert type(convert(changed, fuse=True)) is blocks.BasicBlock
    assert fused == []


def test_an_unknown_activation_is_refused(rng):
    for activation in ("mish", ("relu", 0.1)):
        with pytest.raises(ValueError, match=r"activation: expected one of .* or None, got "):
            convert(nn.BatchNorm2d(4)).double()(batch(rng), None, activation)
