"""Kernels that an installation brings are loaded where they fit, and nowhere else."""

import shutil

import pytest

from fastbn_kernels.build import shipped
from processes import FOLD, copy_packages, run

pytestmark = pytest.mark.skipif(shipped.level() is None, reason="nothing is shipped for this processor")

WRITE = """
from fastbn_kernels.build import cache, shipped
from fastbn_kernels.cpu.fold import fold_parameters
cache.enable = lambda dispatcher: None
function = fold_parameters.get(np.dtype("f8"), False)
shipped.write(shipped.FOLDER / shipped.file_name("x86-64-v3", cache.sources_digest("cpu")), [function])
"""

# A kernel that was loaded cannot be linked into another function: its code alone was kept.
LINK = """
import numba
function = fold_parameters.get(np.dtype("f8"), False)
function.disable_compile()
@numba.njit
def own(*arguments): function(*arguments)
try:
    own(*np.random.random((4, 9)), 1e-5, *np.empty((3, 9)))
except RuntimeError as error:
    print("INFO", error)
"""


@pytest.fixture(scope="module")
def brought(tmp_path_factory):
    folder = tmp_path_factory.mktemp("brought") / "packages"
    run(FOLD + WRITE, env=copy_packages(folder) | shipped.environment("x86-64-v3"))
    return folder


@pytest.fixture
def packages(brought, tmp_path):
    folder = tmp_path / "packages"
    shutil.copytree(brought, folder)
    return folder, {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": None}


def done(env, script="fold()"):
    """What a process did for its kernel, and how often it warned."""
    out = run(FOLD + script, env=env)
    return "compiled" if "INFO fastbn: compiled" in out else "loaded", out.count("WARNING")


def test_a_kernel_that_was_brought_is_loaded_and_the_cache_stays_empty(packages):
    folder, env = packages
    assert done(env) == ("loaded", 0)
    assert not list(folder.rglob("*.nbc"))
    assert "unfit for linking" in run(FOLD + "fold()" + LINK, env=env)


def test_where_the_cache_cannot_be_written_what_was_brought_is_loaded(packages):
    folder, env = packages
    shutil.rmtree(folder / "fastbn_kernels" / "cpu" / "__pycache__", ignore_errors=True)
    (folder / "fastbn_kernels" / "cpu" / "__pycache__").touch()
    assert done(env | {"HOME": "/dev/null", "XDG_CACHE_HOME": None}) == ("loaded", 1)


AGAIN = """
import pathlib, llvmlite.binding, numba, unittest.mock as mock
from fastbn_kernels.build import cache, shipped
packages = pathlib.Path(shipped.FOLDER).parents[1]
def again():
    "As another process starts that finds an empty cache."
    for file in packages.rglob("*.nbc"):
        file.unlink()
    shipped._archive.cache_clear()
    fold_parameters._compiled.clear()
    fold()
"""

UNFIT = """
unfit = [
    mock.patch.object(cache, "sources_digest", lambda processor: 64 * "0"),
    mock.patch.object(numba, "__version__", "0.0"),
    mock.patch.object(llvmlite.binding, "get_host_cpu_features", lambda: {"avx": True, "avx2": True, "fma": False}),
    mock.patch.object(numba.config, "CPU_NAME", "x86-64-v3"),
    mock.patch.object(numba.config, "CPU_FEATURES", "+avx2"),
    mock.patch.object(numba.config, "BOUNDSCHECK", 1),
]
for each in unfit:
    with each:
        again()
print("INFO then")
again()
"""


def test_what_does_not_fit_is_not_loaded(packages):
    """Another version, another Numba, a lesser processor; and whoever tells Numba how to compile is obeyed."""
    unfit, then = run(FOLD + AGAIN + UNFIT, env=packages[1]).split("INFO then")
    assert (unfit.count("INFO fastbn: compiled"), unfit.count("INFO fastbn: loaded")) == (6, 0)
    assert "INFO fastbn: loaded" in then
    assert "WARNING" not in unfit + then


DAMAGED = """
file = next(packages.rglob("*.kernels"))
whole = file.read_bytes()
for damaged in whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-9], whole[:20], b"":
    file.write_bytes(damaged)
    again()
"""


def test_a_damaged_archive_costs_a_compilation_and_a_warning(packages):
    out = run(FOLD + AGAIN + DAMAGED, env=packages[1])
    assert (out.count("INFO fastbn: compiled"), out.count("INFO fastbn: loaded"), out.count("WARNING")) == (4, 0, 1)
