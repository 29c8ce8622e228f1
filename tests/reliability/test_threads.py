"""Threads and forks under every threading layer of Numba: right answers, the same bits, never an abort.

The steps are those of `concurrent_calls.py`, which runs once a layer, in a process of its own.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import concurrent_calls
import fastbn
import reference
from processes import run as run_python
from tolerance import check_backward, check_forward

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")

PROGRAM = Path(concurrent_calls.__file__)
LAYERS = ["tbb", "omp", "workqueue"]
THREADS = 16  # more than the machine has cores


@pytest.fixture(scope="module", params=LAYERS)
def run(request):
    """What every step gave under a layer, as far as the process came, and how it ended."""
    if request.param == "tbb" and not any(d.name == "tbb" for d in importlib.metadata.distributions()):
        pytest.skip("there are no wheels of tbb for this machine")
    env = os.environ | {"NUMBA_THREADING_LAYER": request.param, "NUMBA_NUM_THREADS": str(THREADS)}
    done = subprocess.run([sys.executable, str(PROGRAM)], env=env, capture_output=True, text=True, check=False)
    found = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    found["the end"] = f"status {done.returncode}: {done.stderr[-2000:]}"
    return found


@pytest.mark.parametrize("step", [step.__name__ for step in concurrent_calls.STEPS])
def test_the_bits_of_one_call_in_one_thread(run, step):
    assert run.get(step, run["the end"]) == [concurrent_calls.digest()]


def test_the_layer_was_the_one_chosen(run, request):
    chosen = request.node.callspec.params["run"]
    assert run["layer"] == chosen
    assert run["the end"].startswith("status 0")


def test_the_bits_are_right():
    for seed, shape in enumerate(concurrent_calls.SHAPES):
        x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        y, ctx = fastbn.batch_norm(x)
        check_forward(y, reference.forward(x))
        check_backward(fastbn.batch_norm_backward(x, ctx), reference.backward(x, x), x, reference.forward(x))


DATA_LOADER = """
import sys, numpy as np, torch
from torch.utils.data import DataLoader, Dataset
sys.path.insert(0, sys.argv[1])
import concurrent_calls, fastbn

class Normalized(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        y, _ = fastbn.batch_norm(np.random.default_rng(i).standard_normal((600, 64)).astype("f4"))
        return torch.from_numpy(y)

if sys.argv[2] == "launched":
    concurrent_calls.digest()
batches = list(DataLoader(Normalized(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=100))
want = torch.stack([Normalized()[i] for i in range(4)])
assert torch.equal(torch.cat(batches), want)
"""


@pytest.mark.frameworks
@pytest.mark.parametrize("before", ["launched", "fresh"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_data_loader_with_forked_workers(layer, before):
    pytest.importorskip("torch")
    env = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "4"}
    run_python(DATA_LOADER, PROGRAM.parent, before, env=env, timeout=300)
