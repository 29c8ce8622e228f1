"""Python in a process of its own, for tests of what a process may do to itself: be killed, run out, be interrupted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEPT_IN_CACHE = "*.nb[ci]", "*.tmp"


def start(script, *arguments, env=None, cwd=None):
    """Start Python on a script; a variable of the environment that is None is unset."""
    variables = os.environ | (env or {})
    variables = {name: value for name, value in variables.items() if value is not None}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=variables, cwd=cwd, stdout=pipe, stderr=pipe, text=True)


def finish(process, *, timeout=120, returncode=0):
    """Return what a process wrote to its output; it must end in time, as expected, and without a traceback."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"not done after {timeout} s\n{out}\n{err}") from None
    assert process.returncode == returncode, f"exit status {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err, err
    return out


def run(script, *arguments, env=None, cwd=None, timeout=120, returncode=0):
    """Run Python on a script and return its output; see `start` and `finish`."""
    return finish(start(script, *arguments, env=env, cwd=cwd), timeout=timeout, returncode=returncode)


def copy_packages(folder):
    """Copy both packages to a folder, without compiled kernels; return the environment that finds them there.

    The kernels of the copy are kept next to it, as in an installation.
    """
    for package in (ROOT / "fastbn", ROOT / "kernels" / "fastbn_kernels"):
        shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns(*KEPT_IN_CACHE))
    (folder / "fastbn_kernels" / "cpu" / "fold.py").write_text(FOLD_KERNEL)
    (folder / "fastbn_kernels" / "cpu" / "running.py").write_text(RUNNING_KERNELS)
    return {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": None, "NUMBA_CACHE_LOCATOR_CLASSES": None}


# Kernels that compile in 0.1 s, two of them with a check of what they compute; `copy_packages` puts them into the copy.
# The first calls a formula and does not depend on the dtype of the data, the others do.
FOLD_KERNEL = """
from __future__ import annotations
from fastbn_kernels.build.decorators import ReadC, WriteC, kernel
from fastbn_kernels.formulas import coefficients

@kernel
def fold_parameters(
    low: ReadC, var: ReadC, weight: ReadC, bias: ReadC, eps: float, scale: WriteC, shift: WriteC, invstd: WriteC
) -> None:
    for c in range(low.size):
        scale[c], shift[c], invstd[c] = coefficients(low[c], var[c], weight[c], bias[c], eps)
"""

RUNNING_KERNELS = """
from __future__ import annotations
from fastbn_kernels.build.decorators import ReadNCS, ReadP, Saved, WriteP, kernel
from fastbn_kernels.cpu.small_calls import begin_saved, move_running

@kernel
def update_running(
    x: ReadNCS, running_mean: WriteP, running_var: WriteP, momentum: float, correction: float, saved: Saved
) -> None:
    move_running(x.shape[0] * x.shape[2], running_mean, running_var, momentum, correction, saved)

@kernel
def begin_forward(x: ReadNCS, weight: ReadP, bias: ReadP, saved: Saved) -> None:
    begin_saved(x, weight, bias, weight, bias, True, saved)
"""

FOLD = """
import logging, os, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(levelname)s %(message)s")
import numpy as np
from fastbn_kernels.cpu.fold import fold_parameters
assert fold_parameters.source.__code__.co_filename.startswith(os.environ["PYTHONPATH"].split(os.pathsep)[0])

def fold(unit=1.0):
    low, var, weight, bias = np.random.default_rng().random((4, 9))
    found = np.full((3, 9), np.nan)
    fold_parameters.get(np.dtype("f8"), False)(low, var, weight, bias, 1e-5, *found)
    invstd = unit / np.sqrt(var + 1e-5)
    # Each value is rounded three times at most; shift is a difference of terms below 320.
    np.testing.assert_allclose(found, [weight * invstd, bias - low * weight * invstd, invstd], rtol=1e-15, atol=1e-13)
"""

RUNNING = """
from fastbn_kernels.cpu.running import update_running
from fastbn_kernels.saved import M2, MEAN, MEAN_LO, ROWS
def check(kind):
    dtype = np.dtype(kind)
    parameter = np.float64 if kind == "d" else np.float32
    mean, var = np.full((2, 5), 3, parameter)
    saved = np.random.default_rng().random((ROWS, 5))
    expected = 1.5 + 0.5 * np.array([saved[MEAN] + saved[MEAN_LO], saved[M2] / 7])
    update_running.get(dtype, False)(np.ones((4, 5, 2), dtype), mean, var, 0.5, 1.0, saved)
    np.testing.assert_allclose([mean, var], expected, rtol=4 * np.finfo(parameter).eps)
"""
