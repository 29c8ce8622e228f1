"""What `fastbn.backends.cuda.arrays` still looks up here, until it takes it from `memory`."""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda import memory


def __getattr__(name: str) -> Any:
    return getattr(memory, "params_argument" if name == "number_argument" else name)
