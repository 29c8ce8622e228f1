"""What each feature costs beside plain batch norm, and beside what a PyTorch user writes today; forward and backward.

    python bench/features.py [--write bench/results/features] [--only tail,mask] [--quick]
    python bench/features.py --page bench/results/features.json    # writes the page beside it again
    python bench/features.py --table bench/results/features.json    # the costs of docs/features.md

`--write STEM` keeps the rows as STEM.json and the page as STEM.md. PyTorch is left out where it is not installed.
`--quick` is a test of the harness on small arrays, whose figures mean nothing. It fails, with everything written, if an
undisturbed row falls behind the floor of its feature (`featured/targets.py`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import report
from featured import cases, measure, page, targets

KINDS = list(dict.fromkeys(name for name, _ in cases.everything()))


def record(kinds: list[str], quick: bool, seconds: float) -> dict[str, Any]:
    """Measure, printing each row as it comes, and return everything."""
    found: list[dict[str, Any]] = []
    settings: dict[str, Any] = {"rounds": 1, "seconds": 0.0} if quick else {"seconds": seconds}
    for name, make in cases.small() if quick else cases.everything():
        if name in kinds:
            for row in measure.rows(make(), **settings):
                found.append(row)
                print(page.line(row), flush=True)
    return report.header() | {"rows": found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="STEM", help="write the rows to STEM.json, the page to STEM.md")
    parser.add_argument("--only", default=",".join(KINDS), help="kinds of features, with commas")
    parser.add_argument("--quick", action="store_true", help="a test of the harness, in seconds")
    parser.add_argument("--page", type=Path, metavar="FILE.json", help="write the page of a record again")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="print the costs of docs/features.md")
    parser.add_argument(
        "--seconds", type=float, default=measure.SECONDS, help="how long to wait for quiet rounds of a group, at most"
    )
    given = parser.parse_args()
    if given.table:
        print("\n".join(page.costs(report.read(given.table))))
        return 0
    if given.page:
        given.page.with_suffix(".md").write_text(page.markdown(report.read(given.page)))
        return 0
    if unknown := set(given.only.split(",")) - set(KINDS):
        parser.error(f"--only: no kind {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    found = record(given.only.split(","), given.quick, given.seconds)
    print("\n" + "\n".join(page.summary(found)))
    if given.write:
        report.write(found, given.write, page.markdown)
        print(f"\nwritten to {given.write}.json and {given.write}.md")
    behind = [] if given.quick else targets.broken(found)
    print("\n".join(["", *behind]))
    return bool(behind)


if __name__ == "__main__":
    sys.exit(main())
