"""Fresh random data for every run, with the seed in the report; one cache and one compilation for all processes."""

import contextlib
import functools
import hashlib
import os
import secrets
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

# The first example of a kind compiles a kernel, which takes seconds: no deadline.
COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "database": None}
settings.register_profile("default", max_examples=100, **COMMON)
settings.register_profile("checked", max_examples=20, **COMMON)
settings.register_profile("nightly", max_examples=2000, **COMMON)  # make fuzz
CHECKED = os.environ.get("NUMBA_BOUNDSCHECK") == "1"
settings.load_profile("checked" if CHECKED else os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Neither a user's wish nor what was measured here may send tests to a GPU or to another arithmetic. One folder for the
# workers of a run, which inherit it from the process that starts them.
os.environ.pop("FASTBN_DEVICE", None)
os.environ.pop("FASTBN_PRECISION", None)
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="fastbn-tests-")
    os.environ["XDG_CACHE_HOME"] = _cache.name

SEED = int(os.environ.get("FASTBN_SEED", secrets.randbits(32)))


def pytest_report_header():
    return f"random data: FASTBN_SEED={SEED}"


@contextlib.contextmanager
def alone(name):
    """Let one process of the run at a time into a block of that name; without locks of files, all."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (Path(os.environ["XDG_CACHE_HOME"]) / hashlib.sha256(name.encode()).hexdigest()[:16]).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session", autouse=True)
def each_kernel_is_compiled_once():
    """Where two workers want the same kernel at once, the second one waits and loads it."""
    from fastbn_kernels.build.decorators import Kernel

    compile_ = Kernel._compile

    @functools.wraps(compile_)
    def compile_alone(kernel, *key):
        with alone(f"{kernel.name} {key}"):
            return compile_(kernel, *key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernel, "_compile", compile_alone)
        yield


@pytest.fixture(autouse=CHECKED)
def serial_kernels(monkeypatch):
    """With bounds checks, run serial twins alone: an exception does not leave a parallel region."""
    from plans import force

    force(monkeypatch, parallel=False)


@pytest.fixture
def rng(request):
    """A generator that differs from test to test and from run to run; repeat a run with the seed in its header."""
    return np.random.default_rng([SEED, *request.node.nodeid.encode()])
