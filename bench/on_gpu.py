"""The first minutes on a machine with a GPU: what it is, whether every kernel is right there, and how fast it is.

    python bench/on_gpu.py --out FILE.json [--seconds 520] [--only checks,timing] [--dtypes float32,...] [--seed N]
                           [--sweep blocks=1,2,4 smem_vectors=0]

Sections, in this order: machine, checks, copy, timing, launch, compiled, huge, sweep. Each gets a share of the time;
what no longer fits is recorded as skipped. Everything runs in child processes, so that a kernel that hangs or breaks
the GPU for its process fails alone, and FILE is written again and again, so that a kill loses little. The exit code is
1 if anything of fastbn's failed. With NUMBA_ENABLE_CUDASIM=1 and --tiny all of it runs in the simulator, without
PyTorch. The dtype `exact` is float32 that is computed in float64.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).parents[1]))

from gpu import cases, jobs, report

# Sections that run one after another in one child, and the share of the whole time at which each must be done.
SHARES = {"copy": 0.50, "timing": 0.80, "launch": 0.82, "compiled": 0.90, "huge": 0.95, "sweep": 0.99}
CHECKS = 0.40
SECTIONS = ("machine", "checks", *SHARES)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the JSON file; required but in a child")
    parser.add_argument("--seconds", type=float, default=520, help="the time for everything")
    parser.add_argument("--only", default=",".join(SECTIONS), help="the sections to run, with commas")
    parser.add_argument("--dtypes", default="float32,bfloat16,float16,float64,exact", help="of the checks")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="of the checks' data")
    parser.add_argument("--lanes", type=int, default=min(8, max(1, (os.cpu_count() or 2) // 2)),
                        help="processes that check at a time")  # fmt: skip
    parser.add_argument("--sweep", nargs="*", default=[], metavar="KNOB=VALUE,...",
                        help="what plans to try: all combinations (default: one knob at a time)")  # fmt: skip
    parser.add_argument("--tiny", action="store_true", help="shapes for the simulator")
    parser.add_argument("--work", nargs=2, type=Path, help=argparse.SUPPRESS)  # what a child is called with
    given = parser.parse_args()
    if given.out is None and given.work is None:
        parser.error("--out is required")
    unknown = set(given.only.split(",")) - set(SECTIONS)
    if unknown:
        parser.error(f"--only: no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    return given


def knob_values(given: list[str]) -> dict[str, list[int]]:
    """Return the values of every knob, from arguments such as blocks=1,2,4."""
    made = {}
    for argument in given:
        name, _, values = argument.partition("=")
        if name not in cases.KNOBS or not values:
            sys.exit(f"on_gpu: --sweep: expected {'|'.join(cases.KNOBS)}=VALUE,..., got {argument!r}")
        made[name] = [int(value) for value in values.split(",")]
    return made


def child(order: Path, results: Path) -> int:
    """Run what the parent ordered."""
    from gpu import arrays, check, huge, machine, rows, sweep

    functions = {
        "machine": machine.run, "checks": check.run, "copy": machine.run_copy, "timing": rows.run,
        "launch": rows.run_launches, "compiled": rows.run_slow, "huge": huge.run, "sweep": sweep.run,
    }  # fmt: skip
    return jobs.work(order, results, functions, arrays.alive)


def name_of(given: dict[str, Any]) -> str:
    return f"{'x'.join(map(str, given['shape']))} {given.get('layout', '')} {given['dtype']}".replace("  ", " ")


def check_lanes(given: argparse.Namespace) -> list[list[jobs.Job]]:
    """Return the checks, dealt to as many lists as processes run at a time."""
    groups = list(cases.checks(given.tiny, tuple(given.dtypes.split(","))).values())
    dealt = [groups[i :: given.lanes] for i in range(min(given.lanes, len(groups)))]
    seed = {"seed": given.seed}
    return [[job._replace(given=job.given | seed) for group in lane for job in group] for lane in dealt]


def other_jobs(given: argparse.Namespace) -> list[jobs.Job]:
    """Return the jobs of all sections that are timed, in order."""
    job, timed = jobs.Job, cases.timings(given.tiny)
    tiny = {"tiny": given.tiny}
    every = [job("copy", "copies", tiny | {"sizes": [cases.nbytes(row) for row in timed]})]
    every += [job("timing", name_of(row), row | tiny) for row in timed]
    every += [job("launch", "launches", tiny)]
    few = cases.selected(given.tiny)
    slow = [(row, op) for row in few for op in ("forward", "backward", "inference")]
    every += [job("compiled", f"{name_of(row)} {op}", row | tiny | {"operation": op}) for row, op in slow]
    every += [job("huge", name_of(row), row | {"seed": given.seed}) for row in cases.HUGE]
    every += [job("sweep", name_of(row), row | tiny | {"knobs": knob_values(given.sweep)}) for row in few]
    return every


class Keeper:
    """What has been found so far, and the file that it is written to."""

    def __init__(self, given: argparse.Namespace, started: float) -> None:
        self.path, self.started, self.written = given.out, started, started
        settings = {"seconds": given.seconds, "only": given.only, "sweep": given.sweep, "tiny": given.tiny}
        self.record: dict[str, Any] = {
            "arguments": settings, "seed": given.seed, "finished": False, "seconds": 0.0, "seconds_of": {},
            "machine": {}, "log": [], "sections": {name: [] for name in SECTIONS if name != "machine"},
        }  # fmt: skip

    def take(self, section: str, job: str, row: dict[str, Any]) -> None:
        """Take in a row; write the file every few seconds."""
        if section == "log":
            self.record["log"].append(f"{job}: {row['text']}")
        elif set(row) == {"seconds"}:
            spent = self.record["seconds_of"]
            spent[section] = round(spent.get(section, 0) + row["seconds"], 3)
        elif section == "machine":
            self.record["machine"] |= row
            if row.get("ok") is False:  # no GPU, or none that can be asked: nothing else would work
                self.write()
                sys.exit(f"on_gpu: {row['error']}")
        else:
            self.record["sections"][section].append({"id": job, **row})
        if time.time() > self.written + 5:
            self.write()

    def write(self, **more: Any) -> None:
        """Write all of it, never half of it."""
        self.record |= more
        self.record["seconds"] = round(time.time() - self.started, 1)
        report.complete(self.record)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.record, indent=1) + "\n")
        beside.replace(self.path)
        self.written = time.time()


def main() -> int:
    given = arguments()
    if given.work:
        return child(*given.work)
    started = time.time()
    keeper = Keeper(given, started)
    wanted = given.only.split(",")
    command = [sys.executable, __file__, "--work"]
    last = {name: started + share * given.seconds for name, share in SHARES.items()}
    others = [job for job in other_jobs(given) if job.section in wanted]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through `finally`, which ends the children
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = started + CHECKS * given.seconds
        lanes = [jobs.Lane("machine", [jobs.Job("machine", "machine", {})], folder, command, {"machine": first})]
        if "checks" in wanted:
            lanes += [
                jobs.Lane(f"checks {i}", lane, folder, command, {"checks": first})
                for i, lane in enumerate(check_lanes(given))
            ]
        jobs.run(lanes, keeper.take)
        keeper.write()
        # One child alone, so that nobody disturbs what is timed.
        jobs.run([jobs.Lane("times", others, folder, command, last)], keeper.take)
    keeper.write(finished=True)
    print("\n".join(report.summary(keeper.record)))
    return 1 if report.failures(keeper.record) else 0


if __name__ == "__main__":
    sys.exit(main())
