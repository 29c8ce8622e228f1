"""Which backend runs a call and why, and what a machine without a GPU, or with a broken one, says."""

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastbn
from fastbn import dispatch
from fastbn.backends.cpu import backend as cpu
from fastbn.backends.cuda import availability
from fastbn.backends.protocol import Backend

GPU = importlib.util.find_spec("numba_cuda") and importlib.util.find_spec("greenlet")
simulated = pytest.mark.skipif(not GPU, reason="needs numba-cuda, and greenlet for the simulator")


@pytest.fixture(autouse=True)
def no_wish(monkeypatch):
    """No wish of the user's."""
    monkeypatch.delenv("FASTBN_DEVICE", raising=False)
    dispatch.forget()
    yield
    monkeypatch.undo()
    dispatch.forget()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU as far as `dispatch` looks."""
    monkeypatch.setattr(availability, "problem", lambda: None)


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(availability, "problem", lambda: f"it is gone; {availability.INSTALL}")


class Elsewhere:
    """An array on a GPU, of nobody's library."""

    __cuda_array_interface__ = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "version": 3}  # noqa: RUF012


def python(code, **env):
    """What a process prints; without a GPU unless the simulator is asked for."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    clean = {"CUDA_VISIBLE_DEVICES": "", "NUMBA_ENABLE_CUDASIM": "0", "COLUMNS": "100", "PYTHONPATH": path}
    environment = os.environ | clean | env
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# The argument device=


@pytest.mark.parametrize(
    "call",
    [
        lambda x, where: fastbn.batch_norm(x, device=where),
        lambda x, where: fastbn.batch_norm_inference(x, np.zeros(3), np.ones(3), device=where),
        lambda x, where: fastbn.batch_moments(x, device=where),
        lambda x, where: fastbn.BatchNorm(3, device=where),
        lambda x, where: fastbn.explain(x, device=where),
    ],
)
@pytest.mark.parametrize(
    ("where", "kind"), [("gpu", ValueError), ("CUDA", ValueError), ("", ValueError), (0, TypeError), (True, TypeError)]
)
def test_a_device_that_is_none(call, where, kind):
    with pytest.raises(
        kind, match=rf"^device: expected None, 'cpu' or 'cuda', got {where!r} \({type(where).__name__}\)$"
    ):
        call(np.ones((2, 3), np.float32), where)


@pytest.mark.parametrize("where", [None, "cpu", "cuda"])
def test_what_is_checked_comes_back(where):
    assert dispatch.checked(where) is where


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    "call",
    [
        lambda x: fastbn.batch_norm(x, device="cuda"),
        lambda x: fastbn.batch_norm_inference(x, np.zeros(3), np.ones(3), device="cuda"),
        lambda x: fastbn.batch_moments(x, device="cuda"),
        lambda x: fastbn.BatchNorm(3, device="cuda")(x),
        fastbn.to_device,
        lambda x: fastbn.to_host(Elsewhere()),
    ],
)
def test_no_gpu(call):
    with pytest.raises(ValueError, match=r"^device: expected a machine with an NVIDIA GPU") as caught:
        call(np.ones((2, 3), np.float32))
    assert str(caught.value).endswith(f"but it is gone; {availability.INSTALL}")


@pytest.mark.usefixtures("no_gpu")
def test_no_gpu_for_an_array_that_is_there():
    with pytest.raises(ValueError, match=r"^device: expected a machine with an NVIDIA GPU"):
        fastbn.batch_norm(Elsewhere())


def test_cpu_is_what_is_computed_without_it():
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    assert np.array_equal(fastbn.batch_norm(x, device="cpu")[0], fastbn.batch_norm(x)[0])


@pytest.mark.parametrize("call", [lambda x: dispatch.of(x, "cpu"), lambda x: fastbn.batch_norm(x, device="cpu")])
def test_an_array_on_a_gpu_is_not_computed_on_the_cpu(call):
    with pytest.raises(ValueError, match=r"^device: .*to_host"):
        call(Elsewhere())


@pytest.mark.parametrize("copy", [fastbn.to_device, fastbn.to_host])
@pytest.mark.parametrize("value", [None, 3, [1.0]])
def test_what_is_no_array_is_not_copied(copy, value):
    with pytest.raises(TypeError, match=rf"^array: expected .*, got an object of type {type(value).__name__}$"):
        copy(value)


def test_to_host_of_a_numpy_array():
    x = np.ones(3)
    assert fastbn.to_host(x) is x


# FASTBN_DEVICE


@pytest.fixture
def cuda(monkeypatch):
    """What stands for the backend of GPUs."""
    other = object()
    monkeypatch.setattr(dispatch, "backend", lambda name: cpu if name == "cpu" else other)
    return other


@pytest.mark.parametrize(("value", "says"), [("", None), ("auto", None), ("cpu", "cpu"), ("cuda", "cuda")])
def test_the_environment(monkeypatch, cuda, value, says):
    monkeypatch.setenv("FASTBN_DEVICE", value)
    assert dispatch.from_environment() == says
    x = np.ones((2, 3), np.float32)
    where = cuda if says == "cuda" else cpu
    assert dispatch.of(x, None) is where
    assert dispatch.of(x.view(np.memmap), None) is where
    assert dispatch.of(x, "cpu") is cpu
    assert dispatch.of(x, "cuda") is cuda
    assert dispatch.of(Elsewhere(), None) is cuda


@pytest.mark.parametrize("value", ["gpu", "CPU", "cuda:0"])
def test_an_environment_that_is_wrong(monkeypatch, value):
    monkeypatch.setenv("FASTBN_DEVICE", value)
    for call in (fastbn.explain, fastbn.batch_norm):
        with pytest.raises(ValueError, match=rf"^FASTBN_DEVICE: expected 'cpu', 'cuda' or 'auto'.* got '{value}'$"):
            call(np.ones((2, 3), np.float32))


@pytest.mark.usefixtures("no_gpu")
def test_an_environment_that_this_machine_cannot_serve(monkeypatch):
    monkeypatch.setenv("FASTBN_DEVICE", "cuda")
    with pytest.raises(ValueError, match=r"^device: expected a machine with an NVIDIA GPU"):
        fastbn.batch_norm(np.ones((2, 3), np.float32))


def test_the_environment_is_read_once(monkeypatch, cuda):
    x = np.ones((2, 3), np.float32)
    assert dispatch.of(x, None) is cpu
    monkeypatch.setenv("FASTBN_DEVICE", "cuda")
    assert dispatch.of(x, None) is cpu
    dispatch.forget()
    assert dispatch.of(x, None) is cuda


# explain


@pytest.mark.usefixtures("gpu")
def test_explain_what_was_asked_for(monkeypatch):
    x = np.ones((2, 3))
    for name in dispatch.NAMES:
        choice = fastbn.explain(x, device=name)
        assert str(choice) == f"{name}: the caller asked for it with device="
        assert choice == fastbn.Choice(name, "the caller asked for it with device=")
        monkeypatch.setenv("FASTBN_DEVICE", name)
        assert str(fastbn.explain(x)) == f"{name}: the environment variable FASTBN_DEVICE asks for it"
    assert fastbn.explain(x, device="cpu").device == "cpu"
    assert str(fastbn.explain(Elsewhere())) == "cuda: the array is on a GPU (numba)"
    with pytest.raises(ValueError, match=r"^device: expected None or 'cuda' for an array on a GPU, got 'cpu'"):
        fastbn.explain(Elsewhere(), device="cpu")


@pytest.mark.usefixtures("no_gpu")
def test_explain_what_will_fail(monkeypatch):
    failing = f", but a call would raise: it is gone; {availability.INSTALL}"
    assert fastbn.explain(np.ones((2, 3)), device="cuda").reason.endswith(failing)
    assert fastbn.explain(Elsewhere()).reason.endswith(failing)
    monkeypatch.setenv("FASTBN_DEVICE", "cuda")
    assert fastbn.explain(np.ones((2, 3))).reason.endswith(failing)


def test_numpy_arrays_stay_on_the_cpu():
    expected = "cpu: NumPy arrays are computed on the CPU unless device= or FASTBN_DEVICE says otherwise"
    assert str(fastbn.explain(np.ones((2, 3)))) == expected


# What is the matter with the GPU


@pytest.mark.parametrize(
    ("find", "says"),
    [
        (lambda name: None, "numba-cuda is not installed"),
        (lambda name: {}[name], "numba-cuda does not work: KeyError: 'numba_cuda'"),
    ],
)
def test_numba_cuda_is_missing_or_its_install_broken(monkeypatch, find, says):
    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert availability.problem.__wrapped__() == f"{says}; {availability.INSTALL}"


BROKEN = """
import importlib.util, sys, numpy as np, fastbn
from fastbn.backends.cuda import availability
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numba.cuda":
            raise error
sys.meta_path.insert(0, Finder())
importlib.util.find_spec = lambda name: True
for error in (ImportError("no\\n  such thing."), OSError("libcuda.so: " + 900 * "x"), RuntimeError()):
    availability.problem.cache_clear()
    for call in (lambda x: fastbn.batch_norm(x, device="cuda"), fastbn.to_device):
        try:
            call(np.ones((2, 3), np.float32))
        except ValueError as found:
            print(found)
    fastbn.batch_norm(np.ones((2, 3), np.float32))
"""


def test_an_import_of_numba_cuda_that_raises_is_one_sentence():
    lines = python(BROKEN).splitlines()
    assert len(lines) == 6
    for line in lines:
        assert line.startswith("device: expected a machine with an NVIDIA GPU for 'cuda', but numba-cuda does not work")
        assert line.endswith(f"; {availability.INSTALL}")
        assert len(line) < 400
    assert lines[0] == lines[1]
    assert ": ImportError: no such thing; " in lines[0]


ABSENT = """
import numpy as np, fastbn
from fastbn.backends.cuda import availability
class There:
    __cuda_array_interface__ = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "version": 3}
x = np.ones((2, 3), np.float32)
for call in (
    lambda: fastbn.to_device(x), lambda: fastbn.to_host(There()), lambda: fastbn.batch_norm(x, device="cuda"),
    lambda: fastbn.batch_norm(There()),
):
    try:
        call()
    except ValueError as error:
        assert str(error).startswith("device: ") and str(error).endswith("; " + availability.INSTALL), error
        assert error.__cause__ is None and error.__context__ is None
        print("refused")
"""


def test_a_machine_without_a_gpu():
    assert python(ABSENT).split() == ["refused"] * 4


def test_calls_on_the_cpu_import_no_cuda():
    code = (
        "import sys, fastbn; assert 'numba' not in sys.modules; import numpy as np;"
        "fastbn.explain(np.ones((4, 3), 'f4')); assert 'numba' not in sys.modules;"
        "fastbn.batch_norm(np.ones((4, 3), 'f4')); assert 'numba' in sys.modules;"
        "print([m for m in sys.modules if m.startswith(('numba.cuda', 'fastbn_kernels.cuda', 'cuda'))])"
    )
    assert python(code).strip() == "[]"


# What a backend is


def test_both_backends_have_what_the_protocol_says():
    """The same functions, of the same arguments; what they compute is in test_contract.py."""
    names = [name for name, value in vars(Backend).items() if inspect.isfunction(value) and not name.startswith("_")]
    assert len(names) == 10
    expected = {name: _arguments(inspect.signature(getattr(Backend, name))) for name in names}
    assert {name: _arguments(inspect.signature(getattr(cpu, name))) for name in names} == expected
    if GPU:
        code = (
            "import inspect, json; from fastbn.backends.cuda import backend;"
            f"print(json.dumps({{n: list(inspect.signature(getattr(backend, n)).parameters) for n in {names}}}))"
        )
        found = json.loads(python(code, NUMBA_ENABLE_CUDASIM="1"))
        assert found == expected


def _arguments(signature):
    return [name for name in signature.parameters if name != "self"]


# With the simulator


SIMULATED = """
import os
import numpy as np, fastbn, ml_dtypes
from fastbn import dispatch
from fastbn.backends.cuda import availability
from fastbn.checks.place import on_gpu
assert availability.problem() is None
rng = np.random.default_rng(0)
x = rng.normal(size=(4, 3, 4)).astype(np.float32)
cases = [x, np.asfortranarray(x), x.transpose(0, 2, 1), x[:, ::2], x[::-1], x[:0], np.array(3, np.float32),
         x.astype(np.float16), x.astype(np.float64), x.astype(ml_dtypes.bfloat16)]
for array in cases:
    there = fastbn.to_device(array)
    assert on_gpu(there) and not isinstance(there, np.ndarray)
    back = fastbn.to_host(there)
    assert type(back) is np.ndarray and back.dtype == array.dtype and back.shape == array.shape
    assert np.array_equal(back, array)
    assert back is not array and not np.shares_memory(back, array)
there = fastbn.to_device(x)
assert str(fastbn.explain(there)) == str(fastbn.explain(there, device="cuda")) == "cuda: the array is on a GPU (numba)"
for call in (fastbn.explain, fastbn.batch_norm):
    try:
        call(there, device="cpu")
    except ValueError as error:
        assert str(error).startswith("device: expected None or 'cuda'"), error
    else:
        raise AssertionError
expected = fastbn.batch_norm(x, device="cpu")[0]
assert np.abs(fastbn.to_host(fastbn.batch_norm(there)[0]) - expected).max() < 1e-6
for device_, environment in (("cuda", "cpu"), (None, "cuda")):
    os.environ["FASTBN_DEVICE"] = environment
    dispatch.forget()
    y, ctx = fastbn.batch_norm(x, device=device_)
    assert type(y) is np.ndarray and np.abs(y - expected).max() < 1e-6
    assert ctx.device == "cuda"
    assert type(fastbn.batch_norm_backward(y, ctx).dx) is np.ndarray
print("done")
"""


@simulated
def test_copies_and_calls_with_the_simulator():
    pytest.importorskip("ml_dtypes")
    assert python(SIMULATED, NUMBA_ENABLE_CUDASIM="1").strip() == "done"


# fastbn devices

COMMAND = "import sys; sys.argv = ['fastbn', 'devices']; from fastbn.__main__ import main; sys.exit(main())"


def lines(output):
    """What the command shows, by name."""
    return {line[:14].strip(): line[15:] for line in output.splitlines()}


@pytest.fixture
def devices(monkeypatch):
    """Run the command in this process; return what it shows."""
    for name in ("rich", "typer"):
        pytest.importorskip(name)
    from typer.testing import CliRunner

    from fastbn import cli

    monkeypatch.setattr(cli, "_gpu", lambda: "a fine one")
    monkeypatch.setattr(fastbn, "to_device", lambda array: Elsewhere())

    def run():
        result = CliRunner().invoke(cli.app, ["devices"])
        assert result.exit_code == 0, result.output
        return lines(result.output)

    return run


def test_the_command_without_a_gpu():
    for name in ("rich", "typer"):
        pytest.importorskip(name)
    shown = lines(python(COMMAND))
    assert re.fullmatch(r"\d+ cores, \d+ threads \(\w+\)", shown["CPU"])
    assert shown["GPU"].startswith("none: ")
    assert shown["GPU"].endswith(availability.INSTALL)
    assert shown["FASTBN_DEVICE"] == "not set"
    assert shown["NumPy arrays"].startswith("cpu: ")


@simulated
def test_the_command_with_the_simulator():
    for name in ("rich", "typer"):
        pytest.importorskip(name)
    shown = lines(python(COMMAND, NUMBA_ENABLE_CUDASIM="1"))
    assert shown["GPU"] == "simulator, 2 multiprocessors, in Python"
    assert shown["NumPy arrays"].startswith("cpu: ")
    assert shown["on the GPU"] == "cuda: the array is on a GPU (numba)"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("cuda", "cuda: the environment variable FASTBN_DEVICE asks for it"),
        ("cpu", "cpu: the environment variable FASTBN_DEVICE asks for it"),
        ("fpga", "an error: FASTBN_DEVICE: expected 'cpu', 'cuda' or 'auto' in the environment, got 'fpga'"),
    ],
)
def test_the_command_says_what_the_environment_does(devices, monkeypatch, value, shown):
    monkeypatch.setenv("FASTBN_DEVICE", value)
    found = devices()
    assert found["FASTBN_DEVICE"] == repr(value)
    assert found["NumPy arrays"] == shown
    assert found["GPU"] == "a fine one"
