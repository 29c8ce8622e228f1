"""Whatever happens to the cache of compiled kernels, results are right, and a process logs one warning at most.

Each test has a copy of both packages, whose cache lies next to the kernels, and uses the kernels that compile fastest.
"""

import hashlib
import os
import pickle
import shutil

import pytest

from processes import FOLD, RUNNING, copy_packages, finish, run, start


class Process:
    """What a process said: whether it compiled the kernel or loaded it, and its warnings."""

    def __init__(self, script="fold()", *, returncode=0, **environment):
        out = run(FOLD + script, returncode=returncode, **environment)
        self.compiled = "INFO fastbn: compiled fold_parameters" in out
        self.loaded = "INFO fastbn: loaded fold_parameters" in out
        self.warnings = [line for line in out.splitlines() if line.startswith("WARNING")]

    def __eq__(self, other):
        return (self.compiled, self.loaded, len(self.warnings)) == other

    def __repr__(self):
        return f"compiled {self.compiled}, loaded {self.loaded}, {self.warnings}"


COMPILED, LOADED, WARNED = (True, False, 0), (False, True, 0), (True, False, 1)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled") / "packages"
    assert Process(env=copy_packages(folder)) == COMPILED
    return folder


@pytest.fixture
def packages(filled, tmp_path):
    """A copy with a full cache, and how to use it."""
    folder = tmp_path / "packages"
    shutil.copytree(filled, folder)
    return folder, {"env": {"PYTHONPATH": str(folder), "NUMBA_CACHE_DIR": None}, "cwd": tmp_path}


def kept(folder):
    return [file for kind in ("*.nb[ci]", "*.tmp") for file in folder.rglob(kind)]


def empty(folder):
    for file in kept(folder):
        file.unlink()


def change_formula(folder):
    """Another version of the package, whose kernels double invstd; the file that the kernel itself is in stays."""
    file = folder / "fastbn_kernels" / "formulas.py"
    old = file.read_text()
    new = old.replace("invstd = 1.0 / math.sqrt(var + eps)", "invstd = 2.0 / math.sqrt(var + eps)")
    assert new != old
    file.write_text(new)


def test_the_next_process_loads_what_one_compiled(packages):
    folder, where = packages
    assert len(kept(folder)) == 1
    assert Process(**where) == LOADED


UNKNOWN_USER = "import pwd\ndef unknown(uid): raise KeyError(uid)\npwd.getpwuid = unknown\n"


@pytest.mark.parametrize("home", ["/dev/null", None])
def test_an_install_that_cannot_be_written_and_no_home(packages, home):
    """A file in the place of the folder refuses root too, who may write where permissions forbid it."""
    folder, where = packages
    shutil.rmtree(folder / "fastbn_kernels" / "cpu" / "__pycache__")
    (folder / "fastbn_kernels" / "cpu" / "__pycache__").touch()
    where["env"] |= {"HOME": home, "XDG_CACHE_HOME": None}
    process = Process(UNKNOWN_USER + "fold(); fold()", **where)
    assert process == WARNED
    assert "no locator available" in process.warnings[0]
    assert [file.name for file in where["cwd"].iterdir()] == ["packages"]  # and no folder called ~


def test_one_warning_however_many_kernels_and_problems(packages):
    folder, where = packages
    two = "fold()\nfrom fastbn_kernels.cpu.running import update_running\nupdate_running.get(np.dtype('f4'), False)"
    kept(folder)[0].write_bytes(b"")
    fail = "import pathlib\ndef fail(*_): raise OSError(28, 'No space')\npathlib.Path.replace = fail\n"
    assert Process(fail + two, **where) == WARNED


def test_a_full_disk(packages):
    """The system cuts every file of the process short."""
    folder, where = packages
    empty(folder)
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    assert Process(full + "fold()", **where) == WARNED
    assert not kept(folder)
    assert Process(**where) == COMPILED


DAMAGES = """
import pathlib
file = pathlib.Path(sys.argv[1])
whole = file.read_bytes()
bit = bytes([whole[9000] ^ 1])
for damaged in b"", whole[:20], whole[:9000], whole[:9000] + bit + whole[9001:], b"\\x80\\x05garbage." * 1000:
    file.write_bytes(damaged)
    for _ in range(2):
        fold_parameters._compiled.clear()  # as another process starts
        fold()
"""


def test_a_damaged_file_is_mended(packages):
    folder, where = packages
    (file,) = kept(folder)
    out = run(FOLD + DAMAGES, file, **where)
    assert out.count("INFO fastbn: compiled fold_parameters") == out.count("INFO fastbn: loaded fold_parameters") == 5
    assert out.count("WARNING") == out.count(f"{file.name} is damaged") == 1
    assert Process(**where) == LOADED


def test_a_folder_in_the_place_of_the_file(packages):
    folder, where = packages
    (file,) = kept(folder)
    file.unlink()
    (file / "in").mkdir(parents=True)
    assert Process(**where) == WARNED


KILLS = {
    "in the middle of the file": "def write(path, data): open(path, 'wb', 0).write(data[:9000]); die()\n"
    "trusted.write = write\n",
    "before the file has its name": "cache.Path.replace = lambda *_: die()\n",
    "after it has": "cache.Files._remove_stale = lambda *_: die()\n",
}


@pytest.mark.parametrize("when", KILLS)
def test_killed_while_a_newer_version_writes(packages, when):
    """What the older version left must not be taken for what the newer one did not finish."""
    folder, where = packages
    change_formula(folder)
    die = "import signal\ndef die(): os.kill(os.getpid(), signal.SIGKILL)\n"
    Process(die + "from fastbn_kernels.build import cache, trusted\n" + KILLS[when] + "fold()", returncode=-9, **where)
    assert len(kept(folder)) == 2
    assert Process("fold(2.0)", **where) == (LOADED if when == "after it has" else COMPILED)


def test_another_version_compiles_and_clears_up(packages):
    folder, where = packages
    (old,) = kept(folder)
    old.with_name(f"{old.name}.0123.tmp").touch()  # left by a killed process
    moved = folder / "fastbn_kernels" / "cpu" / "normalize.py"  # the kernel is on another line then
    moved.write_text(moved.read_text().replace("@kernel\ndef fold_parameters", "\n@kernel\ndef fold_parameters"))
    earlier = old.parents[1] / old.name  # where earlier versions kept theirs
    earlier.touch()
    others = [old.parents[1] / name for name in ("normalize.f-1.py311.nbi", "normalize.f-1.py311.1.nbc")]
    for file in others:
        file.touch()
    change_formula(folder)
    assert Process("fold(2.0)", **where) == COMPILED
    (new,) = (file for file in kept(folder) if file not in others)
    assert new != old
    assert all(file.exists() for file in others)


def test_processes_that_fill_one_cache_at_once(packages):
    """Each compiles the same kernel for two dtypes, in this order or that."""
    folder, where = packages
    empty(folder)
    go = folder / "go"
    wait = "import time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.001)\n"
    orders = ["fd", "df", "fd", "df"]
    script = FOLD + RUNNING + "print('ready', flush=True)\n" + wait + "for kind in sys.argv[2]: check(kind)\nfold()"
    running = [start(script, go, order, **where) for order in orders]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    go.touch()
    for process in running:
        assert "WARNING" not in finish(process)
    assert len(kept(folder)) == 3
    out = run(script, go, "fd", **where)
    assert out.count("INFO fastbn: loaded update_running for") == 2
    assert "compiled" not in out


# ---------------------------------------------------------------- files that somebody else may have written

OWN = f"fastbn-{os.geteuid()}" if hasattr(os, "geteuid") else "fastbn"
SOMEBODY = 12345


class Planted:
    """A pickle that leaves a trace when it is loaded."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def plant(file, trace):
    content = pickle.dumps(Planted(trace))
    file.write_bytes(hashlib.sha256(content).digest() + content)


def belongs_to_somebody_else(folder, file):
    os.chown(file, SOMEBODY, -1)


def can_be_written_by_the_group(folder, file):
    file.chmod(0o664)


def can_be_written_by_all(folder, file):
    file.chmod(0o646)


def is_a_link(folder, file):
    file.rename(folder.parent / "elsewhere")
    file.symlink_to(folder.parent / "elsewhere")


def is_in_a_folder_of_somebody_else(folder, file):
    os.chown(folder, SOMEBODY, -1)


def is_in_a_folder_of_a_group(folder, file):
    folder.chmod(0o775)


def is_in_a_folder_of_all(folder, file):
    folder.chmod(0o1777)


def is_in_a_link_to_a_folder(folder, file):
    folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to("elsewhere")


PLANTS = {
    belongs_to_somebody_else: "belongs to another user, 12345",
    can_be_written_by_the_group: "others may write to",
    can_be_written_by_all: "others may write to",
    is_a_link: "OSError",
    is_in_a_folder_of_somebody_else: "belongs to another user, 12345",
    is_in_a_folder_of_a_group: "others may write to",
    is_in_a_folder_of_all: "others may write to",
    is_in_a_link_to_a_folder: "NotADirectoryError",
}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="nothing is checked here")
@pytest.mark.parametrize("how", PLANTS, ids=lambda how: how.__name__)
def test_a_file_that_somebody_else_may_have_written_is_not_loaded(packages, how):
    if "somebody" in how.__name__ and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    folder, where = packages
    (file,) = kept(folder)
    trace = folder / "trace"
    plant(file, trace)
    pickle.loads(file.read_bytes()[32:])
    assert trace.exists()  # as a loaded one would be
    trace.rmdir()
    how(file.parent, file)
    process = Process("fold()\nfold_parameters._compiled.clear()\nfold()", **where)
    assert process.compiled
    assert len(process.warnings) == 1
    assert "what is not in it is compiled" in process.warnings[0]
    assert PLANTS[how] in process.warnings[0]
    assert not trace.exists()
    if "folder" not in how.__name__:
        assert Process(**where) == LOADED  # the file has been replaced


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="nothing is checked here")
def test_a_umask_that_lets_the_group_write_and_a_folder_that_all_share(packages):
    folder, where = packages
    empty(folder)
    shared = folder / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    where["env"]["NUMBA_CACHE_DIR"] = str(shared)
    umask = "os.umask(0)\n"
    assert Process(umask + "fold()", **where) == COMPILED
    assert Process(umask + "fold()", **where) == LOADED
    (file,) = kept(shared)
    assert file.parent.name == OWN
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o644, 0o755)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root is root")
def test_what_root_compiled_serves_everybody(packages):
    """As where an image is built by root and run by another user: next to the sources, or in a shared folder."""
    folder, where = packages
    another = f"os.geteuid = lambda: {SOMEBODY}\n"
    where["env"] |= {"NUMBA_CACHE_DIR": str(folder / "cache")}
    assert Process(another + "fold()", **where) == LOADED
    (file,) = kept(folder)
    os.chown(file, SOMEBODY + 1, -1)
    process = Process(another + "fold()", **where)
    assert process == WARNED
    assert "belongs to another user, 12346" in process.warnings[0]
    assert [file.parent.name for file in kept(folder / "cache")] == [f"fastbn-{SOMEBODY}"]


def test_without_compilation(packages):
    folder, where = packages
    where["env"]["NUMBA_DISABLE_JIT"] = "1"
    where["env"]["PYTHONPATH"] += os.pathsep + os.path.dirname(os.path.dirname(__file__))  # Python's vector operations
    empty(folder)
    assert Process(RUNNING + "for kind in 'fdhH': check(kind)\nfold()", **where) == (False, False, 0)
    assert not kept(folder)
