"""A wheel holds both packages and works away from the checkout, with the kernels that were compiled for it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fastbn_kernels.build import shipped

pytestmark = pytest.mark.slow  # it builds a wheel, and compiles the float32 kernels for it

ROOT = Path(__file__).parents[2]
KEPT = ["pyproject.toml", "README.md", "LICENSE", "fastbn", "kernels"]


def run(*command, **options):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# One thread or several: small calls, rows, whole channels, short segments.
FIRST_CALLS = """
import logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
import fastbn, fastbn_kernels, numpy as np
for shape in (4, 4), (2, 3, 5), (512, 128), (4, 8, 64, 64), (16, 64, 7, 7):
    y, ctx = fastbn.batch_norm(np.random.default_rng().normal(size=shape).astype(np.float32))
    assert abs(y.mean()) < 1e-5 and abs(y.std() - 1) < 0.01
    fastbn.batch_norm_backward(y, ctx)
print(fastbn.__file__, fastbn_kernels.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in KEPT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    if shipped.level() is not None:
        run(
            "-m",
            "fastbn._ship",
            cwd=folder,
            env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{folder / 'kernels'}"},
        )
    options = ["--quiet", "--no-build-isolation", "--no-deps", "--disable-pip-version-check"]
    run("-m", "pip", "wheel", *options, "--wheel-dir", str(folder / "out"), str(folder))
    (built,) = (folder / "out").glob("fastbn-*.whl")
    return built


def test_holds_both_packages_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in names} == {"fastbn", "fastbn_kernels"}
    assert {"fastbn/py.typed", "fastbn_kernels/py.typed", "fastbn_kernels/cpu/moments.py"} <= names
    tracked = {str(p.relative_to(ROOT)) for p in (ROOT / "fastbn").rglob("*.py")}
    tracked |= {str(p.relative_to(ROOT / "kernels")) for p in (ROOT / "kernels" / "fastbn_kernels").rglob("*.py")}
    assert tracked == {name for name in names if name.endswith(".py")}
    kernels = [name for name in names if name.startswith("fastbn_kernels/compiled/")]
    assert len(kernels) == (0 if shipped.level() is None else len(shipped.LEVELS))


def test_works_elsewhere(wheel, tmp_path):
    site = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    run("-m", "pip", "install", *options, "--target", str(site), str(wheel))
    environment = os.environ | {"PYTHONPATH": str(site), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    out = run("-c", FIRST_CALLS, cwd=tmp_path, env=environment).splitlines()
    assert all(Path(file).is_relative_to(site) for file in out[-1].split())
    compiled = [line for line in out if line.startswith("fastbn: compiled")]
    assert bool(compiled) is (shipped.level() is None), compiled
