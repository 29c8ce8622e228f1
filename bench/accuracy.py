"""Measure the accuracy of batch norm in fastbn and in the frameworks, against 80-bit floats.

    python bench/accuracy.py [--out bench/results/accuracy.json] [--quick | --full]

Errors in units in the last place of mean, variance, y, dx, dweight and dbias, for means up to 1e6 standard deviations
from zero, scales 1e-20, 1e18 and 1e30, and 2 to 1e6 values a channel (`--full`: 1e8, which takes 8 GB); then of fastbn
alone in every layout, by every plan, in every dtype and both precisions. Data is drawn afresh at each run; the seed is
in the result, and `--seed` repeats it. Frameworks that are not installed are left out.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the oracle of the tests

from precision import measure, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file, and the tables beside it as .md")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="a minute")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="up to 1e8 values a channel")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    arguments = parser.parse_args()
    found = measure.record(arguments.size or "default", arguments.seed)
    print("\n" + table.page(found))
    if arguments.out:
        table.write(found, arguments.out)
        print(f"\nwritten to {arguments.out} and {arguments.out.with_suffix('.md')}")


if __name__ == "__main__":
    main()
