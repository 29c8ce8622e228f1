"""What `bench/on_gpu.py` runs on a machine with a GPU: checks, copies, times, sweeps, each a job of its own."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # the oracle and its tolerances are those of the tests
