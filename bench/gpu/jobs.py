"""Jobs run in child processes: one that hangs, or breaks the GPU for its process, costs its process and not the rest.

A child takes its jobs in turn and appends what comes of them, a line of JSON at a time, to a file that the parent
reads. If it dies, or says nothing for too long, the job at hand has failed, and another child goes on with the next.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Without a line for so many seconds a child is stuck: no check takes as long with its compilation.
PATIENCE = 90.0
# torch.compile starts a compiler of its own.
SLOW = {"compiled": 180.0}
# Children that die without finishing a job before the lane is given up.
FRUITLESS = 2
RESTARTS = 12


class Job(NamedTuple):
    """Something to run: the section that it belongs to, its name, and the arguments."""

    section: str
    id: str
    given: dict[str, Any]


class Lane:
    """Jobs that run one after another, in one child as long as it lives."""

    def __init__(self, name: str, jobs: list[Job], folder: Path, command: list[str], deadlines: dict[str, float]):
        self.name = name
        self.left = list(jobs)
        self.folder = folder
        self.command = command
        self.deadlines = deadlines  # of each section, in the time of time.time()
        self.process: subprocess.Popen[bytes] | None = None
        self.runs = 0
        self.fruitless = 0
        self.stopped = False

    @property
    def done(self) -> bool:
        """Whether nothing is left to run or to read."""
        return self.process is None and (self.stopped or not self.left)

    def _start(self) -> None:
        self.runs += 1
        stem = self.folder / f"{self.name.replace(' ', '-')}-{self.runs}"
        self.results, self.log = stem.with_suffix(".jsonl"), stem.with_suffix(".log")
        order = stem.with_suffix(".json")
        order.write_text(json.dumps({"jobs": self.left, "deadlines": self.deadlines, "parent": os.getpid()}))
        self.results.touch()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*self.command, str(order), str(self.results)], stdout=log, stderr=log)
        self.read = 0
        self.heard = time.time()
        self.ended = 0
        self.at: Job | None = None

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self.results.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # still being written
                self.read += len(line)
                self.heard = time.time()
                yield json.loads(line)

    def _take(self) -> Iterator[tuple[Job | None, dict[str, Any]]]:
        for line in self._lines():
            if "start" in line:
                self.at = self.left[0]
            elif "end" in line:
                self.left.pop(0)
                self.ended += 1
                self.at = None
            yield self.at or (self.left[0] if self.left else None), line

    def poll(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Yield (section, job, row) as they come; call again until `done`."""
        if self.done:
            return
        if self.process is None:
            self._start()
        assert self.process is not None
        code = self.process.poll()
        for job, line in self._take():
            if "row" in line and job is not None:
                yield job.section, job.id, line["row"]
            elif "log" in line:
                yield "log", self.name, {"text": line["log"]}
        patience = SLOW.get(self.at.section, PATIENCE) if self.at else PATIENCE
        latest = max(self.deadlines.values()) + 5
        if code is not None:
            yield from self._buried(f"the process ended with {code}")
            return
        self.stopped = time.time() > latest
        if self.stopped or time.time() - self.heard > patience:
            self.process.kill()
            self.process.wait()
            yield from self._buried("the time was up" if self.stopped else f"nothing was heard for {patience:.0f} s")

    def _buried(self, why: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Say which job the child died of, if it did, and let another go on behind it."""
        self.process = None
        if not self.left:
            return
        self.fruitless = 0 if self.ended or self.at else self.fruitless + 1
        if self.at is not None or self.fruitless >= FRUITLESS:
            job = self.left.pop(0)
            said = self.log.read_bytes()[-2000:].decode(errors="replace").strip()
            row = {"skipped": why} if self.stopped else {"ok": False, "error": f"{why}: {said[-1500:]}"}
            yield job.section, job.id, row
        if self.stopped or self.fruitless >= FRUITLESS or self.runs > RESTARTS:
            self.stopped = True
            for job in self.left:
                yield job.section, job.id, {"skipped": f"its process could not go on: {why}"}
            self.left = []


def run(lanes: list[Lane], take: Callable[[str, str, dict[str, Any]], None]) -> None:
    """Run all lanes beside each other to their ends."""
    try:
        while not all(lane.done for lane in lanes):
            for lane in lanes:
                for section, job, row in lane.poll():
                    take(section, job, row)
            time.sleep(0.05)
    finally:
        for lane in lanes:
            if lane.process is not None:
                lane.process.kill()


class Logged(logging.Handler):
    """Sends what fastbn logs, such as the seconds of every compilation, to the parent."""

    def __init__(self, say: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.INFO)
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        """Send one line."""
        self.say({"log": record.getMessage()})


def work(order: Path, results: Path, sections: dict[str, Callable[..., None]], alive: Callable[[], bool]) -> int:
    """Run the jobs that a parent ordered: what a child does. Return the exit code."""
    given = json.loads(order.read_text())
    with results.open("a") as file:

        def say(line: dict[str, Any]) -> None:
            file.write(json.dumps(line, default=str) + "\n")
            file.flush()

        logging.getLogger("fastbn").addHandler(Logged(say))
        logging.getLogger("fastbn").setLevel(logging.INFO)
        for section, name, arguments in given["jobs"]:
            if os.getppid() != given["parent"]:
                return 4  # killed; nobody reads on
            say({"start": name})
            broken = False
            if time.time() > given["deadlines"][section]:
                say({"row": {"skipped": "no time was left"}})
            else:
                broken = _one(sections[section], arguments, lambda row: say({"row": row}))
            say({"end": name})
            if broken and not alive():
                print("the GPU no longer answers this process", file=sys.stderr)
                return 3
    return 0


def _one(function: Callable[..., None], arguments: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> bool:
    """Run one job, whatever it raises; return whether anything failed."""
    failed = False

    def told(row: dict[str, Any]) -> None:
        nonlocal failed
        failed |= row.get("ok") is False or "errors" in row
        tell(row)

    started = time.perf_counter()
    try:
        function(arguments, told)
    except Exception as error:
        told({"ok": False, "error": f"{type(error).__name__}: {error}"[:1500]})
    told({"seconds": round(time.perf_counter() - started, 3)})
    return failed
