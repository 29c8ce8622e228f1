"""A wheel holds both packages and works away from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # it builds a wheel

ROOT = Path(__file__).parents[2]
KEPT = ["pyproject.toml", "README.md", "LICENSE", "fastbn", "kernels"]


def run(*command, **options):
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    for name in KEPT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
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


def test_works_elsewhere(wheel, tmp_path):
    site = tmp_path / "site"
    options = ["--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    run("-m", "pip", "install", *options, "--target", str(site), str(wheel))
    code = (
        "import fastbn, fastbn_kernels, numpy as np; y, ctx = fastbn.batch_norm(np.eye(4, dtype='f4'));"
        "fastbn.batch_norm_backward(y, ctx); print(fastbn.__file__, fastbn_kernels.__file__)"
    )
    files = run("-c", code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)}).split()
    assert all(Path(file).is_relative_to(site) for file in files)
