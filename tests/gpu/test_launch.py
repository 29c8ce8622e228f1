"""What a call hands to the driver, on a machine without one: see `gpu_launches`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda")
pytestmark = pytest.mark.slow  # it needs NVIDIA's compiler, which `make test-all` installs


@pytest.fixture(scope="module", params=["float32 [32, 64, 56, 56]", "float16 [640, 48]"])
def cold_and_warm(request, tmp_path_factory):
    """What two processes said, of which the second finds what the first compiled."""
    kept = str(tmp_path_factory.mktemp("kernels"))
    return run(request.param, kept), run(request.param, kept)


@pytest.fixture
def told(cold_and_warm):
    return cold_and_warm[0]


def run(parameter, kept):
    dtype, shape = parameter.split(" ", 1)
    folder = Path(__file__).parents[1]
    paths = os.pathsep.join(map(str, (folder.parent, folder.parent / "kernels")))
    environment = os.environ | {"PYTHONPATH": paths, "NUMBA_ENABLE_CUDASIM": "0", "NUMBA_CACHE_DIR": kept}
    command = [sys.executable, str(folder / "gpu_launches.py"), dtype, shape]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr, done.stderr
    return json.loads(done.stdout)


def test_one_launch_each(told):
    assert [len(told[name]) for name in ("forward", "backward", "inference")] == [1, 1, 1]


def test_blocks_that_wait_for_each_other_are_launched_together(told):
    assert [told[name][0]["cooperative"] for name in ("forward", "backward", "inference")] == [True, True, False]
    for name in ("forward", "backward"):
        assert told[name][0]["grid"][0] * told[name][0]["block"][0] <= 132 * 2 * 256


def test_launches_are_on_the_stream_of_the_caller(told):
    assert {told[name][0]["stream"] for name in ("forward", "backward", "inference")} == {7}


def test_arguments_are_addresses_and_numbers_in_order(told):
    at = told["addresses"]
    forward, backward = told["forward"][0]["arguments"], told["backward"][0]["arguments"]
    assert forward[:3] == [at["x"], told["saved"], at["weight"]]
    assert forward[6:10] == [0.25, 1.0, 1e-5, at["y"]]
    assert backward[:5] == [at["dy"], at["x"], told["saved"], 0, at["dy"]]
    assert told["inference"][0]["arguments"][0] == at["x"]


def test_shared_memory_is_what_may_be_had_without_asking(told):
    """The stub of a GPU does not let kernels ask for more."""
    assert all(told[name][0]["shared"] <= 48 << 10 for name in ("forward", "backward", "inference"))


def test_kernels_are_linked_as_at_run_time(told):
    assert len(told["linked"]) == 3
    assert min(told["linked"]) > 4096


def test_kernels_are_kept_on_disk(cold_and_warm):
    cold, warm = cold_and_warm
    assert cold["loaded"] == [False] * 3
    assert warm["loaded"] == [True] * 3
    assert warm["linked"] == cold["linked"]
    assert warm["forward"] == cold["forward"]
