"""What importing fastbn costs, what the first call says, and that every way of starting finds both packages."""

import importlib.metadata
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastbn

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {"torch", "jax", "tensorflow", "keras", "cupy", "thinc", "sklearn", "matplotlib", "rich", "typer", "onnx"}


def has_tbb():
    try:
        return bool(importlib.metadata.version("tbb"))
    except importlib.metadata.PackageNotFoundError:
        return False


def python(code, *, cwd=None, **env):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_numpy_alone():
    loaded = json.loads(
        python("import fastbn, sys, json; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))")
    )
    assert "numpy" in loaded
    assert not {"numba", "llvmlite", "tbb", *FRAMEWORKS} & set(loaded)


def test_a_call_brings_no_framework():
    code = (
        "import numpy as np, fastbn, sys, json; fastbn.batch_norm(np.ones((4, 3), 'f4'));"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    loaded = json.loads(python(code))
    assert "numba" in loaded
    assert not FRAMEWORKS & set(loaded)


def test_python_started_in_the_root_of_a_checkout(tmp_path):
    """Without an installation: the finder of an editable one is taken out first."""
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()];"
        "sys.path[:] = [p for p in sys.path if p != sys.argv[0] and not p.endswith('kernels')];"
        "import fastbn, fastbn_kernels, numpy as np; fastbn.batch_norm(np.ones((4, 3), 'f4'));"
        "print(fastbn.__file__, fastbn_kernels.__file__)"
    )
    assert python(code, cwd=ROOT).split() == [
        str(ROOT / "fastbn" / "__init__.py"),
        str(ROOT / "kernels" / "fastbn_kernels" / "__init__.py"),
    ]


def test_public_names():
    assert sorted(fastbn.__all__) == fastbn.__all__
    for name in fastbn.__all__:
        assert getattr(fastbn, name).__doc__
    assert {"Moments", "BatchNorm", "batch_norm"} < set(fastbn.__all__)


WARM = (
    "import logging, sys;"
    "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(levelname)s %(message)s');"
)
CALL = (
    "import numpy as np, fastbn; print((fastbn.batch_norm(np.eye(3, dtype='f4') * 3)[0] * 1000).astype(int).tolist())"
)
RESULT = "[[1414, -707, -707], [-707, 1414, -707], [-707, -707, 1414]]"


def test_the_first_call_says_what_it_compiles_and_the_next_process_loads_it(tmp_path):
    first = python(WARM + CALL, NUMBA_CACHE_DIR=str(tmp_path))
    assert "INFO fastbn: compiled call_forward_channels_last for float32 (serial) in" in first
    second = python(WARM + CALL, NUMBA_CACHE_DIR=str(tmp_path))
    assert "INFO fastbn: loaded call_forward_channels_last for float32 (serial) in" in second
    assert first.splitlines()[-1] == second.splitlines()[-1]


def test_a_second_call_says_nothing(caplog):
    x = np.ones((4, 3), np.float32)
    fastbn.batch_norm(x)
    with caplog.at_level(logging.INFO, "fastbn"):
        fastbn.batch_norm(x)
    assert not caplog.records


def test_a_change_in_any_source_file_makes_old_kernels_stale(monkeypatch, tmp_path):
    from fastbn_kernels.build import cache

    (tmp_path / "cpu").mkdir()
    for name in ("cache.py", "cpu/tiles.py"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "build" / "cache.py"))
    digests = []
    for text in ("1", "2", "1"):
        (tmp_path / "cpu" / "tiles.py").write_text(text)
        digests.append(cache.sources_digest.__wrapped__("cpu"))
    assert digests[0] == digests[2] != digests[1]


def layer(shape, **env):
    code = (
        f"import numpy as np, fastbn, numba; fastbn.batch_norm(np.ones({shape}, 'f4')); print(numba.threading_layer())"
    )
    return python(code, **env).strip()


@pytest.mark.skipif(not has_tbb(), reason="no tbb wheel on this platform")
@pytest.mark.parametrize("shape", [(512, 128), (8, 16, 30, 30), (8, 3, 60, 60)])
def test_the_threading_layer_is_tbb_where_it_is_installed(shape):
    assert layer(shape) == "tbb"


def test_a_layer_that_the_user_chose_is_kept():
    assert layer((512, 128), NUMBA_THREADING_LAYER="workqueue") == "workqueue"


def test_without_compilation():
    """NUMBA_DISABLE_JIT=1 runs the kernels as plain Python, for a debugger."""
    path = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])  # Python's vector operations
    assert python(CALL, NUMBA_DISABLE_JIT="1", PYTHONPATH=path).strip() == RESULT
