"""Time calls that run on a GPU: bursts between two events, contenders in turn, inputs rotated past the cache.

Three times are taken of a call. `device`: the queue is filled ahead behind a pause, so that what the GPU needs alone is
seen. `called`: a burst into an empty queue, as a program meets it that launches and waits; small calls take as long as
their launches. `graph`: replayed from a CUDA graph, which has no launches in Python either.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

# A sample: so many seconds of calls, between so many calls.
BURST = 500e-6
CALLS = 2, 40
# Samples of each contender, taken until its share of the time is used.
SAMPLES = 7, 60
# What the pause is made of: cycles of a clock of some 2 GHz.
CYCLES = 2e9

Call = Callable[[], Any]


@dataclass
class Contender:
    """Who is timed: a call for every set of inputs, and the setting that they run in."""

    name: str
    calls: list[Call]
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    graph: bool = True
    turn: Any = field(init=False)

    def __post_init__(self) -> None:
        self.turn = itertools.cycle(self.calls)

    def next(self, count: int) -> list[Call]:
        """Return the next calls; the sets go round."""
        return list(itertools.islice(self.turn, count))


class Host:
    """A clock without events: of the simulator, or of a machine without PyTorch."""

    events = False

    def __init__(self, own: Any) -> None:
        self.own = own

    def burst(self, calls: list[Call], ahead: float = 0.0) -> float:
        """Return the seconds a call."""
        self.own.synchronize()
        started = time.perf_counter()
        for call in calls:
            call()
        self.own.synchronize()
        return (time.perf_counter() - started) / len(calls)


class Events(Host):
    """The GPU's clock, by PyTorch's events."""

    events = True

    def burst(self, calls: list[Call], ahead: float = 0.0) -> float:
        """Return the seconds a call, behind a pause of `ahead` seconds in which they are all launched."""
        cuda = self.own.torch.cuda
        start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        cuda.synchronize()
        if ahead:
            cuda._sleep(int(ahead * CYCLES))
        start.record()
        for call in calls:
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / len(calls)


def clock(own: Any) -> Host:
    return Events(own) if own.name == "torch" and own.where == "cuda" else Host(own)


def launching(calls: Iterable[Call], own: Any) -> float:
    """Return the host's seconds a call, whose work on the GPU is not waited for."""
    calls = list(calls)
    own.synchronize()
    started = time.perf_counter()
    for call in calls:
        call()
    seconds = (time.perf_counter() - started) / len(calls)
    own.synchronize()
    return seconds


@dataclass
class Times:
    """The samples of one contender, in seconds a call."""

    contender: Contender
    about: float
    launch: float
    device: list[float] = field(default_factory=list)
    called: list[float] = field(default_factory=list)


def _first(own: Any, time_of: Host, contender: Contender) -> Times:
    """Call every set once, which compiles and allocates, and find out about how long a call takes."""
    with contender.around():
        for call in contender.calls:
            call()
        own.synchronize()
        few = contender.next(CALLS[0])
        launch = launching(few, own)
        return Times(contender, time_of.burst(contender.next(CALLS[0])), launch)


def measure(own: Any, contenders: list[Contender], seconds: float) -> dict[str, dict[str, float]]:
    """Return microseconds by contender: medians, their quartiles, and the ratio to the first one of the same round.

    A contender that raises is left out, with its error.
    """
    time_of = clock(own)
    times: list[Times] = []
    found: dict[str, dict[str, Any]] = {}
    for contender in contenders:
        try:
            times.append(_first(own, time_of, contender))
        except Exception as error:
            found[contender.name] = {"error": f"{type(error).__name__}: {error}"[:400]}
    started = time.perf_counter()
    rounds = 0
    while times and (rounds < SAMPLES[0] or time.perf_counter() - started < seconds * len(times)):
        turn = rounds % len(times)
        order = times[turn:] + times[:turn]
        for t in reversed(order) if rounds // len(times) % 2 else order:
            count = int(min(max(BURST / max(t.about, 1e-9), CALLS[0]), CALLS[1]))
            with t.contender.around():
                t.device.append(time_of.burst(t.contender.next(count), 2 * count * t.launch + 50e-6))
                t.called.append(time_of.burst(t.contender.next(count)))
        rounds += 1
        if rounds >= SAMPLES[1] or (rounds >= 3 and time.perf_counter() - started > 3 * seconds * len(times)):
            break
    for t in times:
        ratios = [a / b for a, b in zip(t.device, times[0].device, strict=True)]
        low, _, high = statistics.quantiles(t.device, n=4, method="inclusive")
        found[t.contender.name] = {
            "us": statistics.median(t.device) * 1e6, "low_us": low * 1e6, "high_us": high * 1e6,
            "called_us": statistics.median(t.called) * 1e6, "ratio": statistics.median(ratios), "samples": rounds,
        }  # fmt: skip
    return found


@functools.cache
def _aside(torch: Any) -> Any:
    """Return the one stream that graphs are captured on; fastbn's workspace is a stream's."""
    return torch.cuda.Stream()


def graph(own: Any, contender: Contender) -> float:
    """Return the microseconds a call, replayed from a CUDA graph that goes once through all sets, or several times."""
    torch = own.torch
    calls = contender.calls * max(1, 20 // len(contender.calls))
    captured = torch.cuda.CUDAGraph()
    with contender.around():
        aside = _aside(torch)
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is allocated at the first call on another stream is allocated here
            for call in calls[:2]:
                call()
        torch.cuda.current_stream().wait_stream(aside)
        torch.cuda.synchronize()
        with torch.cuda.graph(captured, stream=aside, capture_error_mode="thread_local"):
            for call in calls:
                call()
    time_of = clock(own)
    for _ in range(3):
        captured.replay()
    samples = [time_of.burst([captured.replay] * 3, 100e-6) for _ in range(11)]
    return statistics.median(samples) / len(calls) * 1e6
