"""What a training step gains from fastbn: calls right after a product of the host, PyTorch models, NumPy trainers.

    python bench/in_company.py [--write bench/results/company] [--only calls,models,trainers] [--quick]
    python bench/in_company.py --table bench/results/company.json    # the table of README.md

Every host has a process of its own, in the environment that a user's program has. Everything is measured in turn; the
figures are ratios, beside what was asked for. `--write STEM` keeps the rows as STEM.json and the page as STEM.md.
Hosts that are not installed are named and left out. `--quick` is a test of the harness, whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from company.hosts import HOSTS, Host, Missing, serve

Rows = Iterator[dict[str, Any]]


def actions(host: str) -> Mapping[str, Callable[..., Any]]:
    """Return what the process of a host can be asked for."""
    from company.calls import Calls

    known = Calls(host).actions
    if host == "numpy":
        from company import trainers

        known |= trainers.ACTIONS
    elif host == "torch":
        from company import steps

        known |= steps.ACTIONS
    return known


def calls(quick: bool) -> Rows:
    from company import calls_in_turn

    yield from calls_in_turn.rows(quick)


def models(quick: bool) -> Rows:
    settings = {"small": True, "rounds": 1} if quick else {}
    try:
        with Host("torch") as torch:
            cases = torch.ask("cases")
            for net, layout in dict(cases).items() if quick else cases:
                yield torch.ask("step", net=net, layout=layout, **settings)
    except Missing as missing:
        print(f"models: not measured, {missing} is not installed")


def trainers(quick: bool) -> Rows:
    settings = {"small": True, "rounds": 1} if quick else {}
    with Host("numpy") as numpy:
        for trainer in numpy.ask("cases"):
            yield numpy.ask("train", trainer=trainer, **settings)


SECTIONS: dict[str, Callable[[bool], Rows]] = {"calls": calls, "models": models, "trainers": trainers}


def record(sections: list[str], quick: bool) -> dict[str, Any]:
    """Measure, printing each row as it comes, and return everything."""
    import report
    from company import page

    found: dict[str, Any] = {name: [] for name in SECTIONS}
    for name in sections:
        for row in SECTIONS[name](quick):
            found[name].append(row)
            print(page.line(name, row), flush=True)
    return report.header() | found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--write", type=Path, metavar="STEM", help="write the rows to STEM.json and the page to STEM.md"
    )
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas")
    parser.add_argument("--quick", action="store_true", help="a test of the harness, in seconds")
    parser.add_argument("--table", type=Path, metavar="FILE.json", help="print the table of README.md from a record")
    parser.add_argument("--host", choices=HOSTS, help=argparse.SUPPRESS)  # what a host's process is called with
    given = parser.parse_args()
    if given.host:
        serve(lambda: actions(given.host))
        return
    import report
    from company import page

    if given.table:
        print("\n".join(page.table(report.read(given.table))))
        return
    unknown = set(given.only.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"--only: no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    found = record(given.only.split(","), given.quick)
    print("\n" + "\n".join(page.summary(found)))
    if given.write:
        report.write(found, given.write, page.markdown)
        print(f"\nwritten to {given.write}.json and {given.write}.md")


if __name__ == "__main__":
    sys.exit(main())
