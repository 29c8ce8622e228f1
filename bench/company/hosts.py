"""A process for each host: its thread pool goes on spinning after a call, and would disturb another's in its process.

The two ends talk in lines of JSON over pipes; a request names what is to be done, the answer says what came of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COMMAND = Path(__file__).parents[1] / "in_company.py"
HOSTS = ("numpy", "torch", "jax")

# What tells a pool how to wait or where to run, and Numba which pool to take: nobody's program sets these, so no figure
# here is taken with them. How many threads there are is left to whoever runs this.
UNSET = (
    "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY",
    "OPENBLAS_THREAD_TIMEOUT", "NUMBA_THREADING_LAYER", "NUMBA_THREADING_LAYER_PRIORITY",
)  # fmt: skip


class Missing(Exception):  # noqa: N818 - nothing went wrong
    """The host is not installed; the argument is the package that is not there."""


class Host:
    """The parent's end: start the process, ask, close."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.used = 0.0  # seconds of the processor that it had used when it last answered
        environment = {key: value for key, value in os.environ.items() if key not in UNSET}
        self._process = subprocess.Popen(
            [sys.executable, str(COMMAND), "--host", name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def ask(self, what: str, **arguments: Any) -> Any:
        """Let the host do something and return what it answers. Raises `Missing`, or RuntimeError if it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": what} | arguments) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process of {self.name} ended with {self._process.wait()}, asked to {what}")
        answer = json.loads(line)
        if "missing" in answer:
            raise Missing(answer["missing"])
        if "error" in answer:
            raise RuntimeError(f"{self.name} failed, asked to {what} {arguments}:\n{answer['error']}")
        self.used = answer["used"]
        return answer["result"]

    def close(self) -> None:
        """End the process, which ends by itself when nobody can ask any more."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve(actions: Callable[[], Mapping[str, Callable[..., Any]]]) -> None:
    """Be the child's end: answer until nobody asks. What the host prints goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known: Mapping[str, Callable[..., Any]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            known = known or actions()  # which imports the host
            answer = {"result": known[request.pop("do")](**request), "used": time.process_time()}
        except ModuleNotFoundError as error:
            answer = {"missing": error.name or str(error)}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
