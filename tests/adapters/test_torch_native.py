"""PyTorch's own batch norm, computed by fastbn: whose calls those are, their bits, memory, forks, threads, errors."""

import gc
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastbn
from grid import draw

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test-all installs it")
pytestmark = [
    pytest.mark.frameworks,
    # What PyTorch's compiler uses of its own and of Python's, and what is scripted when it is first used.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

from torch import nn  # noqa: E402

from fastbn.adapters import torch as adapter  # noqa: E402
from fastbn.adapters.torch.native import plans, register, shim  # noqa: E402

if shim.library() is None:
    pytest.skip("this PyTorch's operators cannot be replaced", allow_module_level=True)
assert register.works()

DTYPES = torch.float32, torch.float64, torch.float16
SHAPES = {  # a kernel that does all, one that is parallel, short segments; by their axes in memory
    "small": (6, 5, 3, 7),
    "rows": (700, 64),
    "channels first": (8, 16, 30, 30),
    "short segments": (32, 32, 7, 7),
}
CASES = [(name, torch.float32) for name in SHAPES] + [("small", dtype) for dtype in DTYPES[1:]]


@pytest.fixture
def enabled():
    adapter.enable()
    yield
    adapter.disable()


def tensor(rng, shape, dtype=torch.float32, **options):
    return torch.from_numpy(draw(rng, shape, np.float64, **options)).to(dtype)


def is_ours(y):
    return y.grad_fn._saved_result1.dtype is torch.float64


def assert_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a.detach().numpy(), b)


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_the_bits_are_those_of_arrays(rng, name, dtype, training):
    shape = SHAPES[name]
    own = torch.float64 if dtype is torch.float64 else torch.float32
    C = shape[1]
    x, dy = (tensor(rng, shape, dtype, mean=mean) for mean in (2, 0))
    if len(shape) == 4 and shape[0] != 32:
        x, dy = x.to(memory_format=torch.channels_last), dy.contiguous()  # dy is brought to the strides of x
    layer = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(C, dtype=own, momentum=0.3).train(training)
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias, layer.running_mean):
            parameter.copy_(tensor(rng, C))
    weight, bias = (p.detach().numpy().copy() for p in layer.parameters())
    running = [layer.running_mean.numpy().copy(), layer.running_var.numpy().copy()]
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    y.backward(dy)
    expected, ctx = fastbn.batch_norm(
        x.numpy(), weight, bias, running_mean=running[0], running_var=running[1], training=training, momentum=0.3
    )
    grads = fastbn.batch_norm_backward(dy.numpy(), ctx)
    assert y.stride() == leaf.grad.stride() == x.stride()
    assert_bits(
        [y, layer.running_mean, layer.running_var, leaf.grad, layer.weight.grad, layer.bias.grad],
        [expected, *running, grads.dx, grads.dweight, grads.dbias],
    )


def test_bfloat16_without_ml_dtypes(rng):
    x = tensor(rng, (4, 3, 9), torch.bfloat16, mean=1)
    y = adapter.batch_norm(x.clone().requires_grad_(), None, None, torch.ones(3), torch.zeros(3), True)
    assert is_ours(y)
    wide = nn.functional.batch_norm(x.double(), None, None, training=True)
    torch.testing.assert_close(y, wide.to(torch.bfloat16), rtol=2**-8, atol=0)


def test_calls_are_pytorchs_until_somebody_says_otherwise(rng):
    x = tensor(rng, (16, 8, 5, 5), mean=1).requires_grad_()
    layer, seen = nn.BatchNorm2d(8), []
    for switch in (lambda: None, adapter.enable, adapter.disable):
        switch()
        y = layer(x)
        seen.append(is_ours(y))
        given = x, layer.weight, layer.bias, torch.zeros(8), torch.ones(8), True, 0.1, 1e-5
        for a, b in zip(torch.native_batch_norm(*given), torch._native_batch_norm_legit(*given), strict=True):
            assert torch.equal(a, b) is not seen[-1]
        without = torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[0]
        theirs = torch._native_batch_norm_legit(x, None, None, True, 0.1, 1e-5)[0]
        assert torch.equal(without, theirs) is not seen[-1]
        gradients = torch.autograd.grad(y.square().sum(), (x, layer.weight, layer.bias))
        torch.testing.assert_close(gradients[1], 2 * layer.weight * y.square().sum((0, 2, 3)), rtol=1e-5, atol=1e-5)
    assert seen == [False, True, False]


def test_what_went_forward_before_a_switch_goes_back_as_it_went(rng):
    layer, twin = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    x, dy = tensor(rng, (9, 3), mean=1), tensor(rng, (9, 3))
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for module, leaf, before, after in (
        (layer, leaves[0], adapter.enable, adapter.disable),
        (twin, leaves[1], adapter.disable, adapter.enable),
    ):
        for training in (True, False):
            before()
            y = module.train(training)(leaf)
            after()
            y.backward(dy)
    adapter.disable()
    for a, b in ((leaves[0].grad, leaves[1].grad), (layer.weight.grad, twin.weight.grad)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("enabled")
@pytest.mark.parametrize("training", [True, False])
def test_gaps_and_broadcast_axes_are_copied(rng, training):
    layer = nn.BatchNorm2d(4).train(training)
    base = tensor(rng, (6, 8, 5, 6), mean=1)
    for x in (base[:, ::2], base[:, :4, :, ::2], base[:1, :4].expand(6, 4, 5, 6), base[:, 2:6].transpose(2, 3)):
        results = []
        for leaf in (x.detach().requires_grad_(), x.detach().contiguous().requires_grad_()):
            y = layer(leaf)
            assert is_ours(y)
            y.sum().backward()  # an expanded dy
            results += [y, leaf.grad]
        torch.testing.assert_close(results[0], results[2], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(results[1], results[3], rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("enabled")
def test_only_the_gradients_that_are_asked_for_come_out(rng):
    x, dy = tensor(rng, (5, 3, 4)), tensor(rng, (5, 3, 4))
    _, mean, invstd = torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)
    assert mean.shape == invstd.shape == (3,)
    torch.testing.assert_close(mean, x.double().mean((0, 2)))
    torch.testing.assert_close(invstd, (x.double().var((0, 2), correction=0) + 1e-5).rsqrt())
    for mask in ([True, False, False], [False, True, True], [True] * 3):
        results = torch.ops.aten.native_batch_norm_backward(
            dy, x, None, None, None, mean, invstd, True, 1e-5, mask
        )  # fmt: skip
        assert [r is not None for r in results] == mask


@pytest.mark.usefixtures("enabled")
def test_errors_are_exceptions_and_leave_everything_usable(rng):
    x = tensor(rng, (4, 3, 5))
    for arguments, message in (
        ((x.long(), torch.zeros(3), torch.ones(3)), "not implemented for 'Long'"),
        ((x, None, None, torch.ones(3, dtype=torch.float64), None, True), "expect parameter to have scalar type"),
        ((x, torch.zeros(3), None, None, None, True), "running_mean and running_var both or neither"),
        ((x, torch.zeros(4), torch.ones(4)), "running_mean should contain 3 elements"),
    ):
        with pytest.raises(RuntimeError, match=message):
            nn.functional.batch_norm(*arguments)
    assert torch.isfinite(nn.functional.batch_norm(x, None, None, training=True)).all()


@pytest.mark.usefixtures("enabled")
def test_a_kernel_that_cannot_be_made_leaves_the_call_to_pytorch(rng, monkeypatch, caplog):
    def fail(*_):
        raise OSError("no compiler today")

    monkeypatch.setattr(plans, "_complete", fail)
    x = tensor(rng, (3, 5, 11)).requires_grad_()
    y = nn.functional.batch_norm(x, None, None, training=True)
    assert not is_ours(y)
    assert "no compiler today" in caplog.text
    y.sum().backward()


@pytest.mark.usefixtures("enabled")
def test_saved_tensors_may_be_copied_or_computed_again(rng):
    from torch.utils.checkpoint import checkpoint

    layer = nn.BatchNorm2d(4)
    x, dy = tensor(rng, (3, 4, 5, 5), mean=1e4), tensor(rng, (3, 4, 5, 5))
    results = []
    for training in (True, False):
        layer.train(training)
        for how in ("plain", "offloaded", "checkpoint"):
            leaf = x.clone().requires_grad_()
            layer.zero_grad()
            if how == "offloaded":
                with torch.autograd.graph.save_on_cpu():
                    y = layer(leaf)
            else:
                y = checkpoint(layer, leaf, use_reentrant=False) if how == "checkpoint" else layer(leaf)
            y.backward(dy)
            results.append([leaf.grad, layer.weight.grad.clone(), layer.bias.grad.clone()])
        for other in results[-2:]:
            assert all(torch.equal(a, b) for a, b in zip(other, results[-3], strict=True))


@pytest.mark.usefixtures("enabled")
def test_transforms_hooks_and_autocast(rng):
    x, weight = tensor(rng, (4, 3, 5), torch.float64), tensor(rng, 3, torch.float64)

    def loss(x):
        return nn.functional.batch_norm(x, None, None, weight, None, True).pow(3).sum()

    gradient = torch.func.grad(loss)(x)
    many = torch.stack([x, 2 * x])
    per_sample = torch.func.vmap(torch.func.grad(loss))(many)
    torch.testing.assert_close(per_sample[0], gradient)
    _, tangent = torch.func.jvp(loss, (x,), (gradient,))
    torch.testing.assert_close(tangent, (gradient * gradient).sum())
    layer, seen = nn.BatchNorm1d(3), []
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x.float().requires_grad_())
    y.sum().backward()
    assert y.dtype is torch.float32
    assert seen == ["forward", "backward"]


@pytest.mark.usefixtures("enabled")
def test_a_compiled_model_may_run_beside(rng):
    layer = nn.BatchNorm1d(3)
    x = tensor(rng, (6, 3))
    expected = layer(x)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager")(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("enabled")
def test_threads_of_python_and_of_pytorch_do_not_change_bits(rng):
    shape = (8, 16, 40, 40)
    x, dy = tensor(rng, shape, mean=1), tensor(rng, shape)

    def step():
        leaf = x.clone().requires_grad_()
        y = nn.functional.batch_norm(leaf, None, None, training=True)
        y.backward(dy)
        return y.detach(), leaf.grad

    expected, wrong = step(), []

    def work():
        for _ in range(20):
            torch.mm(x[0, 0], x[0, 1].T)
            if not all(torch.equal(a, b) for a, b in zip(step(), expected, strict=True)):
                wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(step(), expected, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("enabled")
def test_nothing_is_kept(rng):
    """A call that kept one of its tensors would keep 400 MB here."""
    resource = pytest.importorskip("resource")
    x = torch.ones(64, 64, 16, 4)  # 1 MB
    running = torch.zeros(64), torch.ones(64)

    def calls(count):
        for i in range(count):
            leaf = x[:, ::2] if i % 8 == 0 else x
            leaf = leaf.detach().requires_grad_()
            C = leaf.shape[1]
            mean, var = (r[:C].contiguous() for r in running)
            y = nn.functional.batch_norm(leaf, mean, var, None, None, i % 4 != 0)
            y.sum().backward()
            if i % 20 == 0:  # PyTorch takes 50 ms to say where an exception came from
                with pytest.raises(RuntimeError):
                    nn.functional.batch_norm(leaf, mean, var, torch.ones(C).double(), None, True)

    calls(40)
    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    calls(400)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


FORKS = """
import os, sys, torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from fastbn.adapters import torch as adapter

adapter.enable()
layer = nn.BatchNorm2d(8)
x = torch.randn(16, 8, 30, 30)

def step():
    layer.zero_grad()
    y = nn.functional.batch_norm(x, None, None, layer.weight, layer.bias, True)
    y.sum().backward()
    return y.detach()

torch.mm(x[0, 0], x[0, 1])
expected = step()

class Data(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return torch.equal(step(), expected)

assert all(bool(b.all()) for b in DataLoader(Data(), num_workers=2, multiprocessing_context="fork"))

def operators():  # alone: in such a child PyTorch's own operations wait for threads that are not there
    y, mean, invstd = torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)
    given = None, None, None, mean, invstd, True, 1e-5, [True] * 3
    return [t.numpy().copy() for t in (y, *torch.ops.aten.native_batch_norm_backward(x, x, *given))]

expected_arrays = operators()
child = os.fork()
if child == 0:
    os._exit(0 if all((a == b).all() for a, b in zip(operators(), expected_arrays)) else 1)
assert os.waitpid(child, 0)[1] == 0
assert torch.equal(step(), expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_children_of_a_fork_compute_too():
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKS], check=True, timeout=120)


def test_registering_says_nothing_and_leaving_with_it_is_clean():
    code = "from fastbn.adapters import torch as a; a.enable()"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_the_interface_enable_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(register, "works", lambda: False)
    with pytest.raises(RuntimeError, match=r"enable: expected PyTorch 2\.13 or later .* use convert\(model\)"):
        adapter.enable()
