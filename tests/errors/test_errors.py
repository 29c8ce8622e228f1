"""Every bad argument is named, with what was passed and what was expected, before anything is written."""

import ast
import warnings

import numpy as np
import pytest

import fastbn
from errors import table
from errors.functions import F4, good
from errors.table import CASES, PAGE, ROOT, TABLE, refused

# Files whose every error is in the table.
COVERED = {
    "arithmetic", "axes", "checkpoint", "checks/arrays", "checks/beyond", "checks/datasets", "checks/scalars",
    "checks/state_dict", "dispatch", "folding", "layer", "moments", "recalibration", "renorm", "warmup", "whitening",
    "backends/cuda/availability",
}  # fmt: skip
# Files that raise only with a GPU or what stands for one (tests/gpu), the command, FASTBN_POOL (test_blas_pool.py), and
# hosts' adapters.
ELSEWHERE = {
    "backends/cpu/launch",
    "checks/place",
    "backends/cuda/arrays",
    "backends/cuda/backend",
    "backends/cuda/launch",
    "backends/cuda/plan",
    "cli",
}


@pytest.mark.parametrize(
    ("function", "argument", "error", "change"),
    [pytest.param(f, a, e, change, id=f"{f}-{a}-{wrong}") for f, a, wrong, e, change in CASES],
)
def test_says_what_is_wrong_and_writes_nothing(function, argument, error, change):
    raised, before, after = refused(function, change)
    assert type(raised) is error
    assert str(raised).startswith(f"{argument}: expected ")
    assert after == before


@pytest.mark.parametrize(
    "function", [name for name, _, _, cases in TABLE if name not in ("to_device", "warmup.warmup")]
)
def test_the_good_arguments_are_good(function):
    arguments, call = next((make(), call) for name, make, call, _ in TABLE if name == function)
    call(**arguments)


def test_the_good_call_writes_to_three_places():
    arguments = good()
    y, _ = fastbn.batch_norm(**arguments)
    assert y is arguments["out"]
    for name in ("out", "running_mean", "running_var"):
        assert not (arguments[name] == 7).any()


def test_matrix():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = np.matrix(np.ones((4, 3), F4))
    with pytest.raises(TypeError, match=r"x: expected a numpy.ndarray, got a matrix"):
        fastbn.batch_norm(x)


def test_the_page_is_up_to_date():
    """Run `make errors` after a change of a message or a case, and read what that changed."""
    assert PAGE.read_text() == table.page()


def raises(path):
    """The first and last line of every statement of a file that raises something new."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise) and node.exc]
    return [(node.lineno, node.end_lineno) for node in nodes]


def test_every_error_is_in_the_table():
    reached = set()
    for function, _, _, _, change in CASES:
        error, _, _ = refused(function, change)
        while error is not None:
            trace = error.__traceback__
            while trace.tb_next is not None:
                trace = trace.tb_next
            reached.add((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            error = error.__context__
    package = ROOT / "fastbn"
    missing = [
        f"fastbn/{name}.py:{first}"
        for name in COVERED
        for first, last in raises(package / f"{name}.py")
        if not any((str(package / f"{name}.py"), line) in reached for line in range(first, last + 1))
    ]
    assert missing == []


def test_every_file_that_raises_is_known():
    package = ROOT / "fastbn"
    files = {path.relative_to(package).with_suffix("").as_posix(): path for path in package.glob("**/*.py")}
    found = {
        name for name, path in files.items() if raises(path) and not name.startswith(("adapters/", "experiments/"))
    }
    assert found == COVERED | ELSEWHERE
