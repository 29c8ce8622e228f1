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
    return {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": None, "NUMBA_CACHE_LOCATOR_CLASSES": None}
