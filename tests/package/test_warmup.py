"""``fastbn warmup``: after it, no ordinary call compiles anything."""

import importlib
import os
import re
import subprocess
import sys

import pytest

from fastbn import warmup
from fastbn.backends.cpu import ghosts, masked, plan
from fastbn_kernels import cpu
from fastbn_kernels.build.decorators import Kernel

OPERATIONS = {
    operation: [family for family in plan.FAMILIES if operation in plan.FAMILIES[family]]
    for operation in plan.OPERATIONS
}

WARM_UP = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
from fastbn.warmup import warmup
seen = []
done = warmup(progress=lambda *step: seen.append(step))
assert [step[0] for step in seen] == list(range(len(seen)))
assert {step[1] for step in seen} == {len(seen) - 1} and seen[-1][2] == ""
again = warmup()
assert again.compiled == again.loaded == 0, again
print(done.compiled, done.loaded, len(seen) - 1)
"""

# Small and large; rows, runs and short runs; more channels than threads and fewer; in the cache and past it.
CALLS = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
import numpy as np, fastbn
from fastbn.backends.cpu import launch, plan
from fastbn_kernels.build import threads
for cache in (plan.LAST_LEVEL_CACHE, 0):
    plan.LAST_LEVEL_CACHE = cache
    plan.make.cache_clear()
    launch.large_call.cache_clear()
    small, rows, short = [(32, 64), (4, 8, 5, 5)], [(2048, 64), (256, 300)], [(32, 128, 5, 5)]
    for shape in small + rows + short + [(8, 64, 32, 32), (8, 1, 96, 96), (2, 64, 64, 64)]:
        x = np.ones(shape, np.float32)
        weight, bias, mean, var = np.ones((4, shape[1]), np.float32)
        y, ctx = fastbn.batch_norm(x, weight, bias, running_mean=mean, running_var=var)
        fastbn.batch_norm_backward(y, ctx)
        fastbn.batch_norm_backward(y, fastbn.batch_norm(x)[1])
        y, ctx = fastbn.batch_norm(x, weight, bias, running_mean=mean, running_var=var, training=False)
        fastbn.batch_norm_backward(y, ctx)
        fastbn.batch_norm_inference(x, mean, var)
        if x.ndim > 2:
            fastbn.batch_norm(np.ascontiguousarray(np.moveaxis(x, 1, -1)), axis=-1)
        layer = fastbn.BatchNorm(shape[1])
        layer.backward(layer(x))
        layer.eval()(x)
print(threads.count())
"""


def python(*arguments, folder):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder), "COLUMNS": "100"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def logged(output):
    """What the log says of kernels: (compiled or loaded, which)."""
    return set(re.findall(r"^fastbn: (\w+) (\w+ for \w+ \(\w+\)) in ", output, re.MULTILINE))


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A cache that was warmed up for float32, and what the log said."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, python("-c", WARM_UP, folder=folder)


@pytest.mark.slow
def test_a_warm_up_compiles_each_kernel_once(warm):
    compiled, loaded, total = map(int, warm[1].splitlines()[-1].split())
    assert compiled == total == len(logged(warm[1])) > 15
    assert loaded == 0
    assert {how for how, _ in logged(warm[1])} == {"compiled"}


@pytest.mark.slow
def test_no_ordinary_call_compiles_after_a_warm_up(warm):
    output = python("-c", CALLS, folder=warm[0])
    assert {how for how, _ in logged(output)} == {"loaded"}
    if int(output.splitlines()[-1]) > 1:  # one thread has use for fewer kernels
        assert {kernel for _, kernel in logged(output)} == {kernel for _, kernel in logged(warm[1])}


@pytest.mark.slow
def test_the_command_says_what_it_did(warm):
    for name in ("rich", "typer"):
        pytest.importorskip(name)
    output = python("-m", "fastbn", "warmup", folder=warm[0])
    assert re.search(
        rf"^0 kernels compiled, {len(logged(warm[1]))} loaded from the cache, in [\d.]+ s\.$", output, re.M
    )


APART = """
import numpy as np
from fastbn._apart import compile_apart
from fastbn_kernels.build import cache
from fastbn_kernels.cpu import kernel
names = "normalize_channels_first", "large_forward_channels_last", "large_forward_channels_first"
tasks = [(kernel(name), np.dtype("f4"), False) for name in names]
for _ in range(2):
    done = []
    print(sorted(compile_apart(tasks, 2, done.append)), sorted(done) == sorted(names))
"""


@pytest.mark.slow
def test_other_processes_compile_into_the_cache(tmp_path):
    assert python("-c", APART, folder=tmp_path) == "[0, 1, 2] True\n[] True\n"


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--dtypes", "float32,int8", ("int8", "float32", "float64", "float16", "bfloat16")),
        ("--precision", "double", ("'double'", "'fast'", "'exact'")),
    ],
)
def test_an_unknown_name_is_a_usage_error(option, value, named):
    for name in ("rich", "typer"):
        pytest.importorskip(name)
    from typer.testing import CliRunner

    from fastbn.cli import app

    result = CliRunner().invoke(app, ["warmup", option, value], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert all(name in result.output for name in (option, *named))


@pytest.mark.parametrize("module", ["rich", "typer"])
def test_a_missing_package_is_named_with_the_way_to_install_it(module):
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['fastbn', 'warmup']\n"
        "from fastbn.__main__ import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f'fastbn: this command needs {module}: pip install "fastbn[demo]"\n'


@pytest.mark.parametrize("dtypes", [("float32", "int8"), "half", (), ("",)])
def test_unknown_dtypes_are_refused_before_anything_is_compiled(dtypes):
    with pytest.raises(ValueError, match="float32, float64, float16, bfloat16"):
        warmup.warmup(dtypes, progress=pytest.fail)


def test_what_is_listed():
    """Ordinary kernels once; the rare ones, and every twin, if asked for; a dtype more is as many kernels more.

    Statistics and higher derivatives of float32 are exact, and so is what these go through with running statistics.
    """
    ordinary, rare = set(), set()
    for found, asked in ((ordinary, False), (rare, True)):
        for kernel, dtype, parallel in warmup.tasks(["float32"], asked, "fast"):
            assert (kernel.name, dtype.char, parallel) not in found
            found.add((kernel.name, dtype.char, parallel))
    assert ordinary < rare
    assert {name.split("_")[0] for name, *_ in rare - ordinary if name not in {n for n, *_ in ordinary}} == {
        "moments", "sums", "gradient", "jvp", "double", *warmup.WHITENING,
    }  # fmt: skip
    assert all(not parallel for name, _, parallel in rare if name.startswith(("call_", "large_")))
    kernel = "forward_short_segments"
    assert {(kernel, "f", True), (kernel, "f", False), ("sums_channels_last", "f", True)} <= rare
    exact = {name for name, char, _ in rare if char == "i"}
    assert {name.rsplit("_channels_")[0] for name in exact if "_channels_" in name} == {
        "moments", "jvp", "double_backward", "normalize", "sums", "gradient",
    }  # fmt: skip
    assert set(warmup.WHITENING) <= exact
    assert not {name for name in exact if name.startswith(("moments", "jvp"))} & {n for n, c, _ in rare if c == "f"}
    for precision, chars in (("fast", "f"), ("exact", "i")):
        found = list(warmup.tasks(["float32"], False, precision))
        assert (len(found), {dtype.char for _, dtype, _ in found}) == (len(ordinary), {chars})
        both = list(warmup.tasks(["float16", "bfloat16"], False, precision))
        assert (len(both), {dtype.char for _, dtype, _ in both}) == (2 * len(ordinary), {"h", "H"})
    assert {dtype.char for _, dtype, _ in warmup.tasks(["float32"], True, "exact")} == {"i"}


def test_plans_can_name_every_kernel_and_nothing_else():
    names = [*plan.kernels(), *warmup.WHITENING, *masked.KERNELS, *ghosts.KERNELS]
    assert len(set(names)) == len(names)
    assert set(names) == set(cpu.MODULE_OF)
    for name in names:
        found = cpu.kernel(name)
        assert found.name == name
        assert found.source.__module__ == f"fastbn_kernels.cpu.{cpu.MODULE_OF[name]}"
    for module in cpu.MODULES:
        found = vars(importlib.import_module(f"fastbn_kernels.cpu.{module}")).items()
        assert {name for name, value in found if isinstance(value, Kernel)} == set(cpu.MODULES[module])


def test_the_kernels_of_an_operation_take_the_same_arguments():
    for operation, families in OPERATIONS.items():
        kinds = [cpu.kernel(f"{operation}_{family}").source.__annotations__ for family in families]
        for other in kinds[1:]:
            assert list(other) == list(kinds[0])
            same = [kind.replace("RC", "NCS") for kind in other.values()]
            assert same == [kind.replace("RC", "NCS") for kind in kinds[0].values()]
