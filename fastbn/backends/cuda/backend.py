"""NVIDIA GPUs as a backend: what `protocol.Backend` asks for, from the files beside this one."""

from __future__ import annotations

from typing import Any

from fastbn.backends.cuda import availability, launch_cache
from fastbn.backends.cuda import backward as backward_pass
from fastbn.backends.cuda import forward as forward_pass
from fastbn.backends.cuda.arrays import library
from fastbn.call import DoubleBackwardCall, JvpCall
from fastbn.checks.place import on_gpu

name = "cuda"
quick_forward = launch_cache.forward
quick_backward = launch_cache.backward
supports = availability.supports
forward = forward_pass.forward
moments = forward_pass.moments
sums = backward_pass.sums
backward = backward_pass.backward


def look(name: str, value: Any) -> Any:
    """Return the shadow of an array on a GPU, anything else as it is; a mask is fetched, since it is counted."""
    if name == "mask" and on_gpu(value):
        return library(value).fetch(value)
    return library(value).shadow(name, value) if on_gpu(value) else value


def double_backward(call: DoubleBackwardCall) -> tuple[Any, Any, Any]:
    """Do what `supports` says is not done here."""
    raise NotImplementedError(availability.NO_DERIVATIVES)


def jvp(call: JvpCall) -> Any:
    """Do what `supports` says is not done here."""
    raise NotImplementedError(availability.NO_DERIVATIVES)
