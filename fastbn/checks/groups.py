"""Checks of whitening: groups of channels."""

from __future__ import annotations

from fastbn.checks import scalars


def groups(value: object, channels: int, of: str = "num_features") -> int:
    """Check the number of groups that channels are whitened in, and return it."""
    result = scalars.integer("groups", value)
    if not 1 <= result <= channels or channels % result:
        raise ValueError(
            f"groups: expected a divisor of {of}, {channels}, for groups of as many channels each, got {result}"
        )
    return result
