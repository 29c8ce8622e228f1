"""Fresh random data for every run, with the seed in the report; settings for hypothesis."""

import os
import secrets
import tempfile

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

# Neither a user's wish nor rates that were measured here may send tests to a GPU; see `fastbn.device`.
os.environ.pop("FASTBN_DEVICE", None)
_cache = tempfile.TemporaryDirectory(prefix="fastbn-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name

SEED = int(os.environ.get("FASTBN_SEED", secrets.randbits(32)))


def pytest_report_header():
    return f"random data: FASTBN_SEED={SEED}"


@pytest.fixture(autouse=CHECKED)
def serial_kernels(monkeypatch):
    """With bounds checks, run serial twins alone: an exception does not leave a parallel region."""
    from plans import force

    force(monkeypatch, parallel=False)


@pytest.fixture
def rng(request):
    """A generator that differs from test to test and from run to run; repeat a run with the seed in its header."""
    return np.random.default_rng([SEED, *request.node.nodeid.encode()])
