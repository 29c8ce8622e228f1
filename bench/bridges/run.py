"""Measure every host that is installed and print the table of docs/embedding.md; `--out FILE` keeps the figures too.

A host is a file of this folder with a `measure()`. Each runs in a process of its own, because the threads of one
framework, which go on spinning after a call, would slow the next one down.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
LAST_ON_THE_PATH = "import runpy, sys; sys.path.append(sys.argv[2]); runpy.run_path(sys.argv[1], run_name='__main__')"
HEAD = """\
| host | lines to embed | bridge, us a step of 32 x 64 | forward, times the host's own | backward | beside |
|---|---|---|---|---|---|"""


def hosts() -> list[Path]:
    """Return the files that measure a host, which the others help."""
    return sorted(path for path in FOLDER.glob("*.py") if "\ndef measure()" in path.read_text(encoding="utf-8"))


def measure(path: Path) -> dict[str, Any] | str:
    """Return the figures of a host, or the name of the package that is not installed for it.

    This folder comes last on the path: a file in it may have the name of the host that it imports.
    """
    command = [sys.executable, "-P", "-c", LAST_ON_THE_PATH, str(path), str(path.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode == 0:
        printed = ("\n" + done.stdout).rpartition("\n{")[2]  # after what the host had to say, on one line or on several
        figures: dict[str, Any] = json.loads("{" + printed)
        return figures
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if last.startswith("ModuleNotFoundError: No module named"):
        return last.rpartition("named ")[2].strip("'")
    raise RuntimeError(f"{path.name} failed:\n{done.stderr}")


def times(figure: float | None) -> str:
    """Return a ratio as the table shows it, bold where the host's own is faster."""
    if figure is None:
        return "-"
    text = f"{figure:.2g}" if figure < 10 else f"{figure:.0f}"
    return f"**{text}**" if figure < 1 else text


def row(figures: dict[str, Any]) -> str:
    speed = times(figures["speedup_forward"]), times(figures["speedup_backward"])
    beside = ", ".join(filter(None, (figures["own"], figures.get("on"))))
    cells = figures["host"], str(figures["lines"]), f"{figures['bridge_us']:.0f}", *speed, beside
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    options = parser.parse_args(arguments)
    found, missing = [], []
    for path in hosts():
        result = measure(path)
        if isinstance(result, str):
            missing.append(f"Not measured: {path.stem.removeprefix('with_')}, which needs {result}.")
        else:
            found.append(result)
    print("\n".join([HEAD, *map(row, found), *([""] if missing else []), *missing]))
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
