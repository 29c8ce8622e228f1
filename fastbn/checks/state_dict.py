"""What a state dict must be for a layer to take it: all of it fits, or nothing is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from fastbn.checks import scalars

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def check(value: object, arrays: dict[str, Array], counted: bool, prefix: str = "") -> dict[str, Array]:
    """Check a state dict against a layer's arrays and return its values, cast and not yet stored."""
    if not isinstance(value, Mapping):
        raise TypeError(f"state: expected a mapping from names to arrays, got {scalars.described(value)}")
    expected = {*arrays, *(("num_batches_tracked",) if counted else ())}
    if set(value) != expected:
        missing, unknown = (
            sorted(prefix + str(key) for key in keys) for keys in (expected - set(value), set(value) - expected)
        )
        raise ValueError(
            f"state: expected the keys {sorted(prefix + key for key in expected)}; missing {missing}, unknown {unknown}"
        )
    new = {}
    for name, array in arrays.items():
        label = f"state[{prefix + name!r}]"
        given = scalars.as_array(label, value[name])
        masked = isinstance(value[name], np.ma.MaskedArray)  # whose mask would be lost
        if masked or not (given.dtype.kind == "f" or scalars.is_half(given.dtype)):
            raise TypeError(f"{label}: expected real floating numbers, got {scalars.described(value[name])}")
        if given.shape != array.shape:
            raise ValueError(f"{label}: expected shape {array.shape}, got shape {given.shape}")
        with np.errstate(over="ignore", invalid="ignore"):  # a signalling NaN
            new[name] = given.astype(array.dtype)
        if not np.array_equal(np.isinf(new[name]), np.isinf(given)):
            raise ValueError(f"{label}: expected values that {array.dtype} can hold, got larger ones")
    if counted:
        label = f"state[{prefix + 'num_batches_tracked'!r}]"
        count = scalars.as_array(label, value["num_batches_tracked"])
        if count.dtype.kind not in "iu" or count.size != 1:
            raise TypeError(f"{label}: expected one integer, got {scalars.described(count)}")
        if int(count.item()) < 0:
            raise ValueError(f"{label}: expected a count >= 0, got {count.item()}")
        new["num_batches_tracked"] = count.reshape(())
    return new
