"""docs/embedding.md and examples/: code that is code, links that lead somewhere, and every example run by `make`."""

import ast
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_code_in_the_page_is_valid_python():
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    for block in blocks:
        ast.parse(block)


@pytest.mark.parametrize("title", ["Folding", "Micro-batches"])
def test_sections_that_are_whole_programs_run(title):
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert "assert" in block
    exec(compile(block, f"{title} in docs/embedding.md", "exec"), {})


def test_links_lead_to_files():
    found = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", PAGE)
    assert found
    assert [link for link in found if not (ROOT / "docs" / link).is_file()] == []


def test_every_example_checks_itself_and_is_in_the_page():
    assert EXAMPLES
    for example in EXAMPLES:
        assert re.search(r"^ *assert ", example.read_text(encoding="utf-8"), re.MULTILINE), (
            f"{example.name} checks nothing"
        )
        assert f"examples/{example.name}" in PAGE, f"{example.name} is not in docs/embedding.md"


def test_make_runs_every_example():
    recipe = re.search(r"^examples:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe, "the Makefile has no target examples"
    named = set(re.findall(r"examples/([\w*]+\.py)", recipe[1]))
    assert named == {"*.py"} or named == {example.name for example in EXAMPLES}


def test_the_table_of_hosts(tmp_path, monkeypatch, capsys):
    """What is not installed is named below the table; one that fails is an error; a file may have its host's name."""
    spec = importlib.util.spec_from_file_location("bridges_run", ROOT / "bench" / "bridges" / "run.py")
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    figures = {
        "host": "Here", "lines": 3, "bridge_us": 4.4, "speedup_forward": 2.345, "speedup_backward": 0.5, "own": "none"
    }  # fmt: skip
    host = "{}\n\n\ndef measure(): ...\n\n\n{}\n"
    (tmp_path / "here.py").write_text(host.format("import helper", f"print('noise\\n' + {json.dumps(figures)!r})"))
    (tmp_path / "with_gone.py").write_text(host.format("import a_package_that_nobody_has", ""))
    (tmp_path / "json.py").write_text(
        host.format("import json", "print(json.dumps({}))".format(figures | {"host": "J"}))
    )
    (tmp_path / "helper.py").write_text("import json")
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    run.main(["--out", str(tmp_path / "figures.json")])
    lines = capsys.readouterr().out.splitlines()
    assert {"| Here | 3 | 4 | 2.3 | **0.5** | none |", "| J | 3 | 4 | 2.3 | **0.5** | none |"} < set(lines)
    assert lines[-1] == "Not measured: gone, which needs a_package_that_nobody_has."
    assert json.loads((tmp_path / "figures.json").read_text()) == [figures, figures | {"host": "J"}]
    (tmp_path / "broken.py").write_text(host.format("1 / 0", ""))
    with pytest.raises(RuntimeError, match=r"(?s)broken.py failed.*ZeroDivisionError"):
        run.main([])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numpy_digits.py", "njit_digits.py", "micro_batches.py"])
def test_examples_run(name):
    done = subprocess.run([sys.executable, ROOT / "examples" / name], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "test accuracy" in done.stdout
