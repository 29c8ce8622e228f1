"""The twin of `fastbn_kernels.cuda.atomics`: plain reads and writes, as one thread runs at a time."""

from __future__ import annotations

from typing import Any

from simulated import gpu

__all__ = ["arrive", "clear", "look", "pause", "publish", "receive"]


def arrive(barriers: Any, at: int) -> int:
    """Add one to a word and return what it was."""
    barriers[at] += 1
    return int(barriers[at]) - 1


def look(barriers: Any, at: int) -> int:
    """Return a word."""
    return int(barriers[at])


def clear(barriers: Any, at: int) -> None:
    """Set a word to zero."""
    barriers[at] = 0


def pause() -> None:
    """Let others go on."""
    gpu.spin()


def publish(slots: Any, at: int, value: float) -> None:
    """Write a number for other blocks."""
    assert 0 <= at < slots.size
    slots[at] = value


def receive(slots: Any, at: int) -> Any:
    """Read a number of another block."""
    assert 0 <= at < slots.size
    return slots[at]
