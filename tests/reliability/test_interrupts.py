"""Ctrl-C, at any time, is raised as KeyboardInterrupt, and the library goes on working in the same process."""

import random

import pytest

from processes import FOLD, RUNNING, copy_packages, run

# A shell starts processes in the background with Ctrl-C ignored, and these may be such.
CTRL_C = """
import os, random, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
def press(): os.kill(os.getpid(), signal.SIGINT)

def pressed(call):
    try:
        call()
        time.sleep(0.1)  # an interrupt that is held back for good would be an error too
    except KeyboardInterrupt:
        return
    raise AssertionError("no interrupt")
"""


@pytest.fixture
def packages(tmp_path):
    """How to use a copy of both packages without a compiled kernel."""
    return {"env": copy_packages(tmp_path / "packages"), "cwd": tmp_path}


@pytest.mark.parametrize(
    ("module", "entry"),
    [
        ("numba.core.types", "fastbn_kernels.cpu.jitted"),
        ("numba.core.typing.npydecl", "fastbn_kernels.build.threads"),
        ("numba.np.ufunc.parallel", "fastbn_kernels.cpu.normalize"),
    ],
)
def test_while_numba_is_imported(packages, module, entry):
    """Whichever door it comes in by. Without care, the next call fails: module 'numba' has no attribute 'core'."""
    script = """
import importlib
def watch(event, arguments):
    if event == "import" and arguments[0] == sys.argv[1] and not seen:
        seen.append(arguments[0])
        press()
seen = []
sys.addaudithook(watch)
def call():
    importlib.import_module(sys.argv[2])
pressed(call)
assert seen
"""
    assert "WARNING" not in run(CTRL_C + script + FOLD + "fold()", module, entry, **packages)


PHASES = {
    "registration": "numba.core.base.OverloadSelector.append",
    "typing": "numba.core.typed_passes.NopythonTypeInference.run_pass",
    "lowering": "numba.core.typed_passes.NativeLowering.run_pass",
    "machine code, which calls back": "llvmlite.binding.executionengine.ExecutionEngine._find_module_ptr",
    "linking": "numba.core.codegen.JITCodeLibrary._finalize_specific",
    "cache": "pathlib.Path.replace",
}


def test_in_every_phase_of_a_compilation(packages):
    script = """
import pkgutil
def press_in(name):
    place, _, function = name.rpartition(".")
    owner = pkgutil.resolve_name(place)
    original = getattr(owner, function)
    def replaced(*arguments):
        setattr(owner, function, original)
        press()
        return original(*arguments)
    setattr(owner, function, replaced)

todo = [fold, *(lambda kind=kind: check(kind) for kind in "fdhH"), lambda: begin_forward.get(np.dtype("f"), False)]
from fastbn_kernels.cpu.running import begin_forward
for place, call in zip(sys.argv[1:], todo, strict=True):
    press_in(place)
    pressed(call)
    call()
"""
    out = run(CTRL_C + FOLD + RUNNING + script, *PHASES.values(), **packages)
    assert out.count("INFO fastbn: compiled") == len(PHASES)  # each once: what was interrupted is not compiled again
    assert "WARNING" not in out
    out = run(FOLD + RUNNING + "fold()\nfor kind in 'fdhH': check(kind)", **packages)
    assert "compiled" not in out


SOME_TIME = """
def first():
    import fastbn_kernels.build  # NumPy too, whose own import does not survive an interrupt
    exec(sys.argv[2], globals())
    fold()
    check("f")
    check("d")
threading.Timer(float(sys.argv[1]), press).start()
try:
    first()
    while True:
        time.sleep(0.01)
except KeyboardInterrupt:
    first()
print("right")
"""


@pytest.mark.slow
def test_at_some_time_in_the_first_calls(packages):
    """From the first import to the last kernel, which takes 1 to 3 seconds; an interrupt while idle is one as well."""
    for _ in range(20):
        assert "right" in run(CTRL_C + SOME_TIME, random.uniform(0, 2), FOLD + RUNNING, **packages)


TRAINING = """
import numpy as np, fastbn
shape, kind = eval(sys.argv[1]), sys.argv[2]
batches = [np.random.default_rng(i).normal(i, i + 1, shape).astype("f4") for i in range(2)]
if kind == "strided":
    batches = [np.repeat(x, 2, axis=-1)[..., ::2] for x in batches]
layer = fastbn.BatchNorm(shape[1], momentum=1.0)
expected = [(layer(x), layer.running_mean.copy(), layer.running_var.copy()) for x in batches]
for x, (y, mean, var) in zip(batches, expected):
    others = 0, *range(2, x.ndim)
    wide = x.astype("f8")
    statistics = wide.mean(others), wide.var(others, ddof=1)
    np.testing.assert_allclose([mean, var], statistics, rtol=1e-6, atol=1e-6)
    where = [1, -1] + [1] * (x.ndim - 2)
    xhat = (wide - wide.mean(others).reshape(where)) / np.sqrt(wide.var(others).reshape(where) + 1e-5)
    np.testing.assert_allclose(y, xhat, rtol=1e-6, atol=2e-6)

def consistent():
    return any((layer.running_mean == mean).all() and (layer.running_var == var).all() for _, mean, var in expected)

def step():
    global finished
    assert consistent(), "half updated"
    i = random.randrange(2)
    y = layer(batches[i])
    finished += 1
    assert (y == expected[i][0]).all()

def press_often():
    for _ in range(int(sys.argv[3])):
        time.sleep(random.uniform(0, 0.004))
        press()
    over.set()

over, interrupts, finished, before = threading.Event(), 0, 0, layer.num_batches_tracked
presser = threading.Thread(target=press_often)
try:
    presser.start()
except KeyboardInterrupt:
    interrupts += 1
while not over.is_set() or presser.is_alive():
    try:
        while presser.is_alive():
            step()
    except KeyboardInterrupt:
        interrupts += 1
step()
assert consistent()
assert interrupts > int(sys.argv[3]) // 10, interrupts
assert finished <= layer.num_batches_tracked - before <= finished + interrupts
"""

# The short way in one kernel; the short way around a large tensor's kernel; the long way.
CALLS = [((16, 8), "plain"), ((32, 64, 14, 14), "plain"), ((16, 8), "strided")]


@pytest.mark.parametrize(("shape", "kind"), CALLS, ids=str)
def test_in_training(shape, kind):
    """An interrupted call has moved both running statistics or none."""
    run(CTRL_C + TRAINING, shape, kind, 300)


@pytest.mark.slow
def test_in_a_long_call():
    """It is raised when the kernel is done: 0.4 GB are normalised in 0.1 to 1 s."""
    run(CTRL_C + TRAINING.replace("0, 0.004", "0.1, 0.9"), (128, 64, 112, 112), "plain", 8, timeout=600)
