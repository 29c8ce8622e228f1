"""Which processor runs a call and why, and what a machine without a GPU, or with a broken one, says."""

import importlib.util
import json
import logging
import math
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import fastbn
from fastbn import cost
from fastbn import dispatch as device
from fastbn.backends.cuda import transfer as round_trip

# 0.2 ns a byte on the CPU, 0.15 and 1 ms more there and back: the same at 20 MB.
FAST = cost.Rates(
    cpu=1e10, gpu=8e10, to_gpu=1.6e10, from_gpu=1.6e10,
    cpu_fixed=1e-5, gpu_fixed=1e-3, to_gpu_fixed=5e-6, from_gpu_fixed=5e-6,
)  # fmt: skip
SLOW = replace(FAST, to_gpu=1e9)
EDGE = 2e7

GPU = importlib.util.find_spec("numba_cuda") and importlib.util.find_spec("greenlet")
simulated = pytest.mark.skipif(not GPU, reason="needs numba-cuda, and greenlet for the simulator")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """A cache folder of the test's own, and no wish of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    monkeypatch.delenv("FASTBN_DEVICE", raising=False)
    device.forget()
    yield tmp_path
    monkeypatch.undo()
    device.forget()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU as far as `device` and `cost` look."""
    monkeypatch.setattr(device, "problem", lambda: None)
    monkeypatch.setattr(cost, "gpu_name", lambda: "NVIDIA H200")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(device, "problem", lambda: f"it is gone; {device.INSTALL}")
    monkeypatch.setattr(cost, "gpu_name", lambda: None)


class Elsewhere:
    """An array on a GPU, of nobody's library."""

    __cuda_array_interface__ = {"shape": (2, 3), "typestr": "<f4", "data": (4096, False), "version": 3}  # noqa: RUF012


def of_size(nbytes):
    """An array of that size that takes no memory."""
    return np.broadcast_to(np.float32(0), (int(nbytes) // 4, 1))


def python(code, **env):
    """What a process prints; without a GPU unless the simulator is asked for."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "NUMBA_ENABLE_CUDASIM": "0", "COLUMNS": "100"} | env
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
    with pytest.raises(kind, match=rf"^device: expected None, 'cpu' or 'cuda', got {where!r}$"):
        call(np.ones((2, 3), np.float32), where)


@pytest.mark.parametrize("where", [None, "cpu", "cuda"])
def test_what_is_checked_comes_back(where):
    assert device.checked(where) is where


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
        lambda x: cost.measure(),
    ],
)
def test_no_gpu(call):
    with pytest.raises(ValueError, match=r"^device: expected a machine with an NVIDIA GPU") as caught:
        call(np.ones((2, 3), np.float32))
    assert str(caught.value).endswith(f"but it is gone; {device.INSTALL}")


@pytest.mark.usefixtures("no_gpu")
def test_no_gpu_for_an_array_that_is_there(monkeypatch):
    monkeypatch.setattr(device, "_backend", None)
    with pytest.raises(ValueError, match=r"^device: expected a machine with an NVIDIA GPU"):
        device.cuda_backend()


def test_cpu_is_what_is_computed_without_it():
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    assert np.array_equal(fastbn.batch_norm(x, device="cpu")[0], fastbn.batch_norm(x)[0])


@pytest.mark.parametrize("call", [lambda x: device.of(x, "cpu"), lambda x: fastbn.batch_norm(x, device="cpu")])
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


@pytest.mark.parametrize(
    ("value", "says", "where"),
    [("", None, None), ("auto", None, None), ("cpu", "cpu", None), ("cuda", "cuda", round_trip)],
)
def test_the_environment(monkeypatch, value, says, where):
    monkeypatch.setenv("FASTBN_DEVICE", value)
    assert device.from_environment() == says
    x = np.ones((2, 3), np.float32)
    assert device.of(x, None) is where
    assert device.of(x.view(np.memmap), None) is where
    assert device.of(x, "cpu") is None
    assert device.of(x, "cuda") is round_trip


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


def test_the_environment_is_read_once(monkeypatch):
    x = np.ones((2, 3), np.float32)
    assert device.of(x, None) is None
    monkeypatch.setenv("FASTBN_DEVICE", "cuda")
    assert device.of(x, None) is None
    device.forget()
    assert device.of(x, None) is round_trip


# explain


@pytest.mark.usefixtures("gpu")
def test_explain_what_was_asked_for(monkeypatch):
    x = np.ones((2, 3))
    for name in device.NAMES:
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
    failing = f", but a call would raise: it is gone; {device.INSTALL}"
    assert fastbn.explain(np.ones((2, 3)), device="cuda").reason.endswith(failing)
    assert fastbn.explain(Elsewhere()).reason.endswith(failing)
    monkeypatch.setenv("FASTBN_DEVICE", "cuda")
    assert fastbn.explain(np.ones((2, 3))).reason.endswith(failing)


@pytest.mark.usefixtures("gpu")
def test_explain_without_rates():
    choice = fastbn.explain(of_size(1e9))
    assert str(choice) == "cpu: nobody has measured what a round trip costs here; `fastbn devices` does"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("rates", "nbytes", "expected"),
    [
        (FAST, EDGE * 0.9, ("cpu", "for 18 MB a round trip takes 3.71 ms and the CPU 3.61; it pays from 20 MB on")),
        (FAST, EDGE * 10, ("cuda", "for 200 MB a round trip takes 31 ms and the CPU 40; it pays from 20 MB on")),
        (SLOW, 2e9, ("cpu", "for 2000 MB a round trip takes 2180 ms and the CPU 400; it pays at no size")),
    ],
)
def test_explain_with_rates_and_do_it(rates, nbytes, expected):
    assert cost.save(rates) is None
    x = of_size(nbytes)
    choice = fastbn.explain(x)
    assert (choice.device, choice.reason) == expected
    assert device.of(x, None) is (round_trip if choice.device == "cuda" else None)


@pytest.mark.usefixtures("gpu")
def test_the_gpu_of_the_rates_is_gone(monkeypatch, caplog):
    """The first array that is to go there finds out; smaller ones never ask, which would import numba.cuda."""
    assert cost.save(FAST) is None
    monkeypatch.setattr(cost, "gpu_name", pytest.fail)
    assert device.of(of_size(EDGE / 2), None) is None
    monkeypatch.setattr(cost, "gpu_name", lambda: None)
    with caplog.at_level(logging.INFO, "fastbn"):
        assert device.of(of_size(EDGE * 2), None) is None
        assert device.of(of_size(EDGE * 2), None) is None
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["fastbn"]
    assert "gpu NVIDIA H200, here it is None" in caplog.text
    assert fastbn.explain(of_size(EDGE * 2)).device == "cpu"


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
    assert device.problem.__wrapped__() == f"{says}; {device.INSTALL}"


BROKEN = """
import importlib.util, sys, numpy as np, fastbn
from fastbn import dispatch as device
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "numba.cuda":
            raise error
sys.meta_path.insert(0, Finder())
importlib.util.find_spec = lambda name: True
for error in (ImportError("no\\n  such thing."), OSError("libcuda.so: " + 900 * "x"), RuntimeError()):
    device.problem.cache_clear()
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
        assert line.endswith(f"; {device.INSTALL}")
        assert len(line) < 400
    assert lines[0] == lines[1]
    assert ": ImportError: no such thing; " in lines[0]


ABSENT = """
import numpy as np, fastbn
from fastbn import dispatch as device
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
        assert str(error).startswith("device: ") and str(error).endswith("; " + device.INSTALL), error
        assert error.__cause__ is None and error.__context__ is None
        print("refused")
"""


def test_a_machine_without_a_gpu():
    assert python(ABSENT).split() == ["refused"] * 4


def test_calls_on_the_cpu_import_no_cuda(folder, monkeypatch):
    monkeypatch.setattr(cost, "gpu_name", lambda: "NVIDIA H200")
    assert cost.save(FAST) is None  # arrays larger than that one would go there
    code = (
        "import sys, fastbn; assert 'numba' not in sys.modules; import numpy as np; from fastbn import cost;"
        "assert 'numba' not in sys.modules; fastbn.batch_norm(np.ones((4, 3), 'f4'));"
        "assert 'numba' in sys.modules; assert 1e7 < cost.threshold() < 1e8;"
        "print([m for m in sys.modules if m.startswith(('numba.cuda', 'fastbn_kernels.cuda', 'cuda'))])"
    )
    assert python(code).strip() == "[]"


# What is kept


@pytest.mark.usefixtures("gpu")
def test_rates_are_kept(folder):
    assert cost.load() is None
    assert cost.threshold() == math.inf
    assert cost.save(FAST) is None
    assert cost.load() == FAST
    assert cost.threshold() == pytest.approx(EDGE)  # this process knows too
    assert [path.name for path in (folder / "fastbn").iterdir()] == ["device.json"]
    assert cost.save(SLOW) is None
    assert cost.find() == (SLOW, "")
    assert cost.threshold() == math.inf


@pytest.mark.usefixtures("gpu")
def test_the_threshold_is_read_once(folder):
    assert cost.threshold() == math.inf
    assert cost.save(FAST) is None
    assert cost.threshold() == pytest.approx(EDGE)
    cost.file().unlink()
    assert cost.threshold() == pytest.approx(EDGE)
    cost.forget()
    assert cost.threshold() == math.inf


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", ["host", "cpus", "gpu", "fastbn"])
def test_rates_of_something_else_are_ignored_with_a_reason(name):
    cost.save(FAST)
    kept = json.loads(cost.file().read_text())
    assert set(kept["stamp"]) == {"host", "cpus", "gpu", "fastbn"}
    kept["stamp"][name] = "another"
    cost.file().write_text(json.dumps(kept))
    rates, reason = cost.find()
    assert rates is None
    assert re.search(rf" are of {name} another, here it is .*; `fastbn devices` measures them again$", reason)
    assert cost.choose(10**9) == ("cpu", reason)
    device.forget()
    assert (cost.threshold() < math.inf) is (name == "gpu")
    assert device.of(of_size(1e9), None) is None


GOOD = {"stamp": {}, "rates": asdict(FAST)}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "null", "{}", '{"rates": {}, "stamp": {}}', "\xff", "[" * 100_000,
        *(
            json.dumps(GOOD | {"rates": asdict(FAST) | {"cpu": value}})
            for value in (None, "fast", 0, -1.0, math.nan, math.inf, 10**400, [])
        ),
        json.dumps(GOOD | {"rates": asdict(FAST) | {"gpu_fixed": -1}}),
        json.dumps(GOOD | {"stamp": 3}),
        json.dumps({"rates": asdict(FAST)}),
    ],
)  # fmt: skip
def test_a_broken_file_is_no_file(text):
    cost.file().parent.mkdir()
    cost.file().write_text(text, "latin-1")
    rates, reason = cost.find()
    assert rates is None
    assert "cannot be read" in reason
    assert len(reason) < 1000
    assert cost.threshold() == math.inf
    assert cost.save(FAST) is None
    assert cost.load() == FAST


@pytest.mark.usefixtures("gpu")
def test_folders_that_cannot_be(monkeypatch, folder):
    blocked = folder / "file"
    blocked.write_text("")
    (folder / "taken" / "fastbn" / "device.json").mkdir(parents=True)
    for base in (blocked, blocked / "deeper", Path("/dev/null/none"), folder / "taken"):
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
            monkeypatch.setenv(name, str(base))
        assert cost.save(FAST).startswith(str(base))
        assert cost.load() is None
        assert cost.threshold() == math.inf
        assert cost.choose(10**9)[0] == "cpu"
    assert [path.name for path in (folder / "taken" / "fastbn").iterdir()] == ["device.json"]


@pytest.mark.usefixtures("gpu")
def test_no_home(monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        monkeypatch.delenv("LOCALAPPDATA", raising=False)
        assert cost.file() is None
        assert cost.save(FAST) == "there is no home folder"
        assert cost.find() == (None, cost.UNKNOWN)


@pytest.mark.skipif(os.name == "nt", reason="there is no XDG_CACHE_HOME")
@pytest.mark.parametrize("value", ["", "relative"])
def test_the_default_folder(monkeypatch, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cost.file() == Path.home() / ".cache" / "fastbn" / "device.json"


def test_rates_of_no_real_gpu_are_not_kept(monkeypatch):
    for name in (None, "simulator"):
        monkeypatch.setattr(cost, "gpu_name", lambda name=name: name)
        assert "GPU" in cost.save(FAST)
        assert not cost.file().exists()


# The model


def test_break_even_against_brute_force(rng):
    """Cheaper from there on and nowhere before, over 15 decades of sizes; never, if the last of them is not."""
    sizes = np.logspace(0, 15, 4000)
    finite = 0
    for _ in range(200):
        rates = cost.Rates(*10 ** rng.uniform(8, 13, 4), *10 ** rng.uniform(-7, -3, 4))
        on_cpu = rates.cpu_fixed + sizes * 2 / rates.cpu
        there = rates.to_gpu_fixed + rates.gpu_fixed + rates.from_gpu_fixed
        there = there + sizes * (1 / rates.to_gpu + 2 / rates.gpu + 1 / rates.from_gpu)
        edge = cost.break_even(rates)
        if edge == math.inf:
            assert there[-1] > on_cpu[-1]
            continue
        finite += 1
        clear = abs(sizes - edge) > 1e-9 * edge
        assert np.array_equal((there < on_cpu)[clear], (sizes > edge)[clear])
    assert 20 < finite < 180


def test_break_even_at_its_ends():
    same = cost.Rates(2e9, 2e18, 2e9, 2e9, 1e-3, 1e-3, 0.0, 0.0)
    assert cost.break_even(same) == math.inf  # the bus alone takes what the CPU does
    assert cost.break_even(replace(same, cpu=1e9)) == 0.0
    assert cost.break_even(replace(same, cpu=1e9, cpu_fixed=1.0)) == 0.0
    assert cost.break_even(replace(same, gpu_fixed=0.0)) == math.inf  # cheaper when small only: not from anywhere on
    equal = cost.Rates(1.0, 4.0, 1.0, 2.0, 1e-3, 0.0, 0.0, 0.0)
    assert cost.break_even(equal) == 0.0
    assert cost.break_even(replace(equal, gpu_fixed=1e-3)) == math.inf


def test_a_rate_is_what_the_fixed_time_leaves(monkeypatch):
    """A clock that every call advances by 10 us and 2 ns a byte."""
    now = [0.0]
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])

    def prepare(x):
        def run():
            now[0] += 1e-5 + 2e-9 * x.nbytes

        return run

    rate, fixed = cost._line(prepare)
    small = 4 * math.prod(cost.TINY)
    assert fixed == pytest.approx(1e-5 + 2e-9 * small)
    assert rate == pytest.approx(5e8, rel=0.01)


# With the simulator


SIMULATED = """
import numpy as np, fastbn, ml_dtypes
from fastbn import dispatch as device
from fastbn.backends.cuda import transfer as round_trip
assert device.problem() is None
rng = np.random.default_rng(0)
x = rng.normal(size=(4, 3, 4)).astype(np.float32)
cases = [x, np.asfortranarray(x), x.transpose(0, 2, 1), x[:, ::2], x[::-1], x[:0], np.array(3, np.float32),
         x.astype(np.float16), x.astype(np.float64), x.astype(ml_dtypes.bfloat16)]
for array in cases:
    there = fastbn.to_device(array)
    assert device.is_device_array(there) and not isinstance(there, np.ndarray)
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
    import os
    os.environ["FASTBN_DEVICE"] = environment
    device.forget()
    y, ctx = fastbn.batch_norm(x, device=device_)
    assert type(y) is np.ndarray and np.abs(y - expected).max() < 1e-6
    assert ctx.where is round_trip
    assert type(fastbn.batch_norm_backward(y, ctx).dx) is np.ndarray
print("done")
"""


@simulated
def test_copies_and_calls_with_the_simulator():
    pytest.importorskip("ml_dtypes")
    assert python(SIMULATED, NUMBA_ENABLE_CUDASIM="1").strip() == "done"


# fastbn devices

COMMAND = "import sys; sys.argv = ['fastbn', 'devices', *{}]; from fastbn.__main__ import main; sys.exit(main())"


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
    monkeypatch.setattr(device, "to_device", lambda array: Elsewhere())

    def run(*arguments):
        result = CliRunner().invoke(cli.app, ["devices", *arguments])
        assert result.exit_code == 0, result.output
        return lines(result.output)

    return run


@pytest.mark.parametrize("arguments", [(), ("--measure",), ("--no-measure",)])
def test_the_command_without_a_gpu(arguments):
    for name in ("rich", "typer"):
        pytest.importorskip(name)
    shown = lines(python(COMMAND.format(list(arguments))))
    assert re.fullmatch(r"\d+ cores, \d+ threads \(\w+\)", shown["CPU"])
    assert shown["GPU"].startswith("none: ")
    assert shown["GPU"].endswith(device.INSTALL)
    assert shown["FASTBN_DEVICE"] == "not set"
    for size in ("1 MB", "100 MB", "1 GB"):
        assert shown[f"NumPy, {size}"] == "cpu: there is no GPU to send it to"


@simulated
def test_the_command_with_the_simulator(folder):
    for name in ("rich", "typer"):
        pytest.importorskip(name)
    shown = lines(python(COMMAND.format([]), NUMBA_ENABLE_CUDASIM="1"))
    assert shown["GPU"] == "simulator, 2 multiprocessors, in Python"
    assert "measured now, not kept" in shown["Rates"]
    assert not list(folder.iterdir())
    for name in ("CPU forward", "to the GPU", "GPU forward", "back"):
        assert re.fullmatch(r"\S+ GB/s \(\S+ us\)", shown[name])
    assert shown["Round trip"] == "pays at no size"
    assert shown["NumPy, 1 GB"].startswith("cpu: ")
    assert shown["on the GPU"] == "cuda: the array is on a GPU (numba)"


@pytest.mark.usefixtures("gpu")
def test_the_command_measures_what_is_not_kept(devices, monkeypatch):
    steps = []

    def measure(progress):
        progress(0, 1, "cpu")
        steps.append(1)
        return FAST

    monkeypatch.setattr(cost, "measure", measure)
    assert devices("--no-measure")["Rates"] == cost.UNKNOWN
    assert not steps
    now, kept = "measured now; ", f"kept in {cost.file()}; "
    for arguments, runs, source in (
        ((), 1, now),
        ((), 1, kept),
        (("--measure",), 2, now),
        (("--no-measure",), 2, kept),
    ):
        shown = devices(*arguments)
        assert len(steps) == runs
        assert shown["Rates"].startswith(source)
        assert shown["GPU"] == "a fine one"
        assert shown["CPU forward"] == "10 GB/s (10 us)"
        assert shown["Round trip"] == "pays from 20 MB on"
        assert [shown[f"NumPy, {size}"][:4] for size in ("1 MB", "100 MB", "1 GB")] == ["cpu:", "cuda", "cuda"]
        assert shown["on the GPU"] == "cuda: the array is on a GPU (numba)"


@pytest.mark.usefixtures("gpu")
def test_the_command_when_measuring_fails(devices, monkeypatch):
    def measure(progress):
        raise OSError("out of\nmemory")

    monkeypatch.setattr(cost, "measure", measure)
    assert devices()["Rates"] == "not measured: OSError: out of memory"
    monkeypatch.setattr(cost, "measure", lambda progress: SLOW)
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.setenv(name, "/dev/null")
    shown = devices()
    assert shown["Rates"].startswith("measured now, not kept: /dev/null/fastbn/device.json: ")
    assert shown["NumPy, 1 GB"] == "cpu: these rates are not kept, so no call finds them"


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
    found = devices("--no-measure")
    assert found["FASTBN_DEVICE"] == repr(value)
    assert found["NumPy, 1 MB"] == found["NumPy, 1 GB"] == shown
