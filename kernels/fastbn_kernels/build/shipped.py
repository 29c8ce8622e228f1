"""Kernels that an installation brings compiled, so that the first call on a new machine compiles nothing.

A wheel may carry archives, each with the float32 kernels for one level of x86-64 (`make wheel` writes them). A kernel
is taken from one if the cache has none, and only if Python, Numba, llvmlite and every source file are those that it was
compiled with, and the processor has all that its level asks for. The name of an archive says all of that, so what does
not fit is not even opened. An archive lies among the `.py` files of this package and is trusted as they are.

Kernels compiled for a level give the bits of kernels compiled for the very processor: vectors, fused multiplications
and the order of sums are written into the kernels, not chosen by LLVM.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import platform
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
from numba import config
from numba.core import compiler, serialize

FOLDER = Path(__file__).parents[1] / "compiled"

# The levels of the x86-64 psABI, best first, by LLVM's names: what a processor has, and what kernels are compiled for.
V2 = "cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3"
V3 = *V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave"
V4 = *V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"
LEVELS = {"x86-64-v4": V4, "x86-64-v3": V3}

SYSTEM = f"{sys.platform}-{platform.machine()}"
SYSTEMS = ("linux-x86_64",)


def environment(level: str) -> dict[str, str]:
    """Return the variables with which Numba compiles for a level."""
    return {"NUMBA_CPU_NAME": level, "NUMBA_CPU_FEATURES": ",".join(f"+{feature}" for feature in LEVELS[level])}


def file_name(level: str, sources: str) -> str:
    """Return the name of the archive for a level, of kernels made by this Python and Numba from sources of a digest."""
    python = f"{sys.implementation.cache_tag}{getattr(sys, 'abiflags', '')}"
    return f"{python}-numba-{numba.__version__}-llvmlite-{llvmlite.__version__}-{sources[:16]}-{level}.kernels"


def name_of(function: Any, signature: Any) -> str:
    """Return what a kernel is found by: a function as it is compiled, and the types of its arguments."""
    arguments = getattr(signature, "args", signature)
    return f"{function.__module__}.{function.__qualname__}({', '.join(map(str, arguments))})"


def _reduced(compiled: Any) -> tuple[Any, ...]:
    """Return what Numba would keep of a kernel, but for what links it into other functions: three quarters of it."""
    (name, kind, (machine_code, _)), description, *rest = compiled._reduce()
    rest[4] = ""  # the source with its types, for `inspect_types`
    entries = description.llvm_func_name, description.llvm_cpython_wrapper_name
    stub = llvm.parse_assembly("\n".join(f'define void @"{entry}"() {{ ret void }}' for entry in entries))
    return (name, kind, (machine_code, stub.as_bitcode())), description, *rest


def write(file: Path, dispatchers: list[Any]) -> None:
    """Write an archive of compiled kernels: the length of an index, the index as JSON, and what it points at."""
    index: dict[str, tuple[int, int, str]] = {}
    content: list[bytes] = []
    end = 0
    for each in dispatchers:
        for compiled in each.overloads.values():
            packed = zlib.compress(serialize.dumps(_reduced(compiled)), 9)
            index[name_of(each.py_func, compiled.signature)] = end, len(packed), hashlib.sha256(packed).hexdigest()
            content.append(packed)
            end += len(packed)
    head = json.dumps(index).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join([len(head).to_bytes(8, "little"), head, *content]))


@dataclass(frozen=True)
class _Archive:
    """An archive whose index was read: where its kernels are, and what each hashes to."""

    file: Path
    start: int
    index: Mapping[str, tuple[int, int, str]]

    def read(self, name: str) -> bytes | None:
        """Return what is kept under a name, or None; raise ValueError if it is damaged."""
        if name not in self.index:
            return None
        offset, length, digest = self.index[name]
        with self.file.open("rb") as file:
            file.seek(self.start + offset)
            packed = file.read(length)
        if hashlib.sha256(packed).hexdigest() != digest:
            raise ValueError(f"{self.file} is damaged")
        return zlib.decompress(packed)


def level() -> str | None:
    """Return the best level that this process may use: None where Numba is told what to compile for, or to check."""
    told = config.CPU_NAME is not None or config.CPU_FEATURES is not None or not config.ENABLE_AVX
    if told or config.BOUNDSCHECK or SYSTEM not in SYSTEMS:
        return None
    features = llvm.get_host_cpu_features()
    return next((each for each, needed in LEVELS.items() if all(features.get(one) for one in needed)), None)


@functools.cache
def _archive(sources: str) -> _Archive | None:
    """Open the archive that fits, if there is one."""
    best = level()
    for each in list(LEVELS)[list(LEVELS).index(best) :] if best else ():
        file = FOLDER / file_name(each, sources)
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                return _Archive(file, 8 + length, json.loads(opened.read(length)))
        except FileNotFoundError:
            continue
    return None


def load(function: Any, signature: Any, sources: str, context: Any) -> Any:
    """Return a kernel that was compiled before from sources of a digest, or None."""
    archive = _archive(sources)
    content = None if archive is None else archive.read(name_of(function, signature))
    if content is None:
        return None
    context.refresh()  # Numba's runtime, which machine code refers to; where there is a cache, that has done it
    found = compiler.CompileResult._rebuild(context, *pickle.loads(content))
    found.library._shared_module = None  # the stub: Numba refuses to link the kernel into another function then
    return found
