"""What is timed: a forward pass and the way back through it, and what both make, for the check."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from problem import Problem, Unavailable, check
from suites import Case

Results = dict[str, np.ndarray]


@dataclass(frozen=True)
class Work:
    """A forward pass, whose result is kept for the backward pass of it; `results` are of what both returned."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any]
    results: Callable[[Any, Any], Results]

    def timed(self, operation: str) -> Callable[[], Any]:
        """Return the call to time; a backward pass goes again and again through one forward pass."""
        if operation == "forward":
            return self.forward
        kept = self.forward()
        return lambda: self.backward(kept)

    def once(self) -> Results:
        """Return copies of what one pass forward and back makes."""
        kept = self.forward()
        return {name: array.copy() for name, array in self.results(kept, self.backward(kept)).items()}


@dataclass(frozen=True)
class Feature:
    """fastbn's way of something, and the ways that it replaces, by name.

    `tensors` is how many more tensors of the size of x it has to move than plain batch norm: (forward, backward).
    """

    name: str
    own: Work
    replaced: dict[str, Work]
    tensors: tuple[int, int] = (0, 0)
    unavailable: dict[str, str] = field(default_factory=dict)

    def agree(self) -> None:
        """Raise AssertionError unless all ways make the same."""
        found = self.own.once()
        for name, way in self.replaced.items():
            check(f"{self.name}, fastbn beside {name}", found, way.once(), "float32")


@dataclass(frozen=True)
class Group:
    """Features that are measured in turn beside the same plain batch norm."""

    name: str
    case: Case
    plain: Work
    features: list[Feature]
    operations: tuple[str, ...] = ("forward", "backward")


def ways(*makers: tuple[str, Callable[[], Work]]) -> dict[str, Any]:
    """Return the arguments `replaced` and `unavailable` of a feature: what can be made of some ways, and why not."""
    replaced, unavailable = {}, {}
    for name, make in makers:
        try:
            replaced[name] = make()
        except Unavailable as reason:
            unavailable[name] = str(reason)
    return {"replaced": replaced, "unavailable": unavailable}


def cut(problem: Problem, size: int) -> Iterable[slice]:
    """Yield where each so many samples lie."""
    return (slice(start, start + size) for start in range(0, problem.x.shape[0], size))
