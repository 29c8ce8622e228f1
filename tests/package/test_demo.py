"""``fastbn demo``: what it prints and writes, and what it says without the extra."""
# ruff: noqa: E402

import json
import re
import subprocess
import sys

import numpy as np
import pytest

for name in ("matplotlib", "rich", "sklearn", "typer"):
    pytest.importorskip(name)

from typer.testing import CliRunner

import fastbn
from fastbn.cli import app
from fastbn.experiments import digits, report

pytestmark = pytest.mark.slow  # what no kernel can break: `make demo-quick` runs it too

RUNNER = CliRunner()


def plain_text(output):
    """What a command printed, without the colours that some CI services force on it."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The output and the folder of one quick demo."""
    out = tmp_path_factory.mktemp("demo") / "made" / "if needed"
    result = RUNNER.invoke(app, ["demo", "--quick", "--out", str(out)], env={"COLUMNS": "80"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return plain_text(result.output), out


@pytest.fixture(scope="module")
def written(quick):
    return json.loads((quick[1] / "demo.json").read_text(encoding="utf-8"))


def test_the_output_explains_the_start_and_names_the_files(quick):
    output, out = quick
    assert "Compiling the kernels" in output
    assert "Kernels ready after" in output
    assert str(out / "demo.png") in output
    assert str(out / "demo.json") in output


def test_the_table_holds_the_summary(quick, written):
    output, _ = quick

    def row_of(name):
        return next(line for line in output.splitlines() if line.strip().startswith(name))

    for task in digits.tasks(quick=True):
        found = written["summary"][task.name]
        for kind in ("plain", "fastbn"):
            row = row_of(f"{task.title}: {kind}")
            assert f"{100 * found[kind]['final_accuracy']:.1f} / {100 * found[kind]['best_accuracy']:.1f} %" in row
            steps = found[kind]["steps"]
            assert ("not reached" if steps is None else f" {steps:.0f} ") in row
        if found["ratio"] is not None:
            assert f" {100 * found['ratio']:.0f} %" in row_of(f"{task.title}: fastbn")


def test_a_bias_before_batch_norm_has_no_gradient(quick):
    """It is a sum of 60 float32 values that is zero: each is off by 2^-24 of some 1e-3."""
    bias, weight = digits.redundant_bias(digits.load())
    assert bias < 60 * 2.0**-24 * weight
    assert f"its largest gradient in a first step is {bias:.0e}" in " ".join(quick[0].split())


def test_the_figure_is_an_image(quick):
    from matplotlib.image import imread

    pixels = imread(quick[1] / "demo.png")
    height, width = pixels.shape[:2]
    assert 1500 < width < 3000
    assert 800 < height < 2500
    assert 0.02 < (pixels[..., :3].min(-1) < 0.95).mean() < 0.6  # neither blank nor black
    assert (quick[1] / "demo.png").stat().st_size < 1_000_000


def test_the_summary_follows_from_the_curves(written):
    curves = {(run["task"], run["batch_norm"]): run for run in written["runs"]}
    assert len(curves) == len(written["runs"]) == 4
    for task, found in written["summary"].items():
        plain, normalised = curves[task, False], curves[task, True]
        accuracy = np.array(plain["accuracy"])
        step = plain["steps"][accuracy.argmax()]
        reached = np.array(normalised["accuracy"]) >= accuracy.max()
        other = normalised["steps"][reached.argmax()] if reached.any() else None
        ratio = None if other is None else other / step
        assert found["seeds"] == [
            {"seed": 0, "accuracy": accuracy.max(), "plain": step, "fastbn": other, "ratio": ratio}
        ]
        assert found["ratio"] == ratio
        for name, run in (("plain", plain), ("fastbn", normalised)):
            assert found[name]["final_accuracy"] == run["accuracy"][-1]
            assert found[name]["best_accuracy"] == max(run["accuracy"])
            assert found[name]["seconds"] == run["seconds"] > 0


def test_the_document_is_complete(written):
    assert written["versions"]["fastbn"] == fastbn.__version__
    assert written["versions"]["numpy"] == np.__version__
    assert {"python", "numba", "scikit-learn"} <= set(written["versions"])
    settings = written["settings"]
    assert settings["quick"] is True
    assert settings["seeds"] == [0]
    assert settings["training_images"] + settings["test_images"] == 1797
    for run in written["runs"]:
        task = settings["tasks"][run["task"]]
        assert run["steps"] == list(range(task["every"], task["steps"] + 1, task["every"]))
        assert len(run["accuracy"]) == len(run["preactivation"]) == len(run["steps"])
        assert all(low <= middle <= high for low, middle, high in run["preactivation"])


def test_batch_norm_trains(written):
    for run in written["runs"]:
        if run["batch_norm"]:
            assert run["accuracy"][-1] > 0.9


def runs(*curves):
    """Runs with the given accuracies at steps 10, 20, …, alternately plain and not, a pair a seed."""
    return [
        digits.Run("t", bool(i % 2), i // 2, [10 * (j + 1) for j in range(len(curve))], list(curve), seconds=1.0)
        for i, curve in enumerate(curves)
    ]


def test_ratio_of_steps():
    found = report.summarise(runs([0.1, 0.5, 0.9, 0.9], [0.9, 0.8, 0.9, 0.95]))["t"]
    assert found["seeds"][0] == {"seed": 0, "accuracy": 0.9, "plain": 30, "fastbn": 10, "ratio": 1 / 3}
    assert found["ratio"] == 1 / 3


def test_a_seed_that_does_not_get_there_counts_as_infinite():
    good, bad = ([0.1, 0.9], [0.9, 0.9]), ([0.1, 0.9], [0.8, 0.8])
    assert report.summarise(runs(*good, *bad, *good))["t"]["ratio"] == 0.5
    assert report.summarise(runs(*good, *bad))["t"]["ratio"] is None
    found = report.summarise(runs(*bad, *good, *bad))["t"]
    assert found["ratio"] is None
    assert found["fastbn"]["steps"] is None
    assert found["seeds"][0]["fastbn"] is None


def test_not_reached_is_said_plainly(tmp_path):
    from rich.console import Console

    from fastbn.experiments import figure

    task = digits.TASKS[0]
    plain, normalised = runs([0.1, 0.9], [0.8, 0.8])
    for run in (plain, normalised):
        run.task, run.preactivation = task.name, [[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0]]
    summary = report.summarise([plain, normalised])
    console = Console(width=80)
    with console.capture() as capture:
        console.print(report.table(summary, [task]))
    assert "not reached" in capture.get()
    assert "0 of 1 seeds; ratio by seed, in %: not reached" in report.notes(summary, [task])[0]
    figure.draw([plain, normalised], summary, [task], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_version_and_help():
    assert RUNNER.invoke(app, ["--version"]).output == f"fastbn {fastbn.__version__}\n"
    assert "demo" in plain_text(RUNNER.invoke(app, ["--help"]).output)
    text = plain_text(RUNNER.invoke(app, ["demo", "--help"]).output)
    assert all(option in text for option in ("--out", "--quick", "--seeds"))


def test_bad_options_are_refused_without_a_traceback(tmp_path):
    (tmp_path / "file").write_text("")
    assert RUNNER.invoke(app, ["demo", "--seeds", "0"]).exit_code == 2
    assert RUNNER.invoke(app, ["demo", "--out", str(tmp_path / "file")]).exit_code == 2


@pytest.mark.parametrize(
    ("module", "package"),
    [("matplotlib", "matplotlib"), ("rich", "rich"), ("sklearn", "scikit-learn"), ("typer", "typer")],
)
def test_a_missing_package_is_named_with_the_way_to_install_it(module, package, tmp_path):
    code = (
        f"import sys; sys.modules[{module!r}] = None; sys.argv = ['fastbn', 'demo', '--quick', '--out', 'results']\n"
        "from fastbn.__main__ import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f'fastbn: this command needs {package}: pip install "fastbn[demo]"\n'
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_the_package_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "fastbn", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fastbn {fastbn.__version__}\n"
