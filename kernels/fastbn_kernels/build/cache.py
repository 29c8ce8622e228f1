"""Where compiled kernels are kept between processes, and when they are thrown away.

Numba's own cache, with these differences:

- A kernel is fresh only while every source file that it may be made of is what it was. Numba looks at the file of the
  kernel alone, and goes on serving an old kernel after a function that it calls changed in another file.
- A file says in its name what it holds, and in its first bytes whether it is whole. Numba keeps an index of numbered
  files instead. Two processes that compile a kernel for two dtypes at once may both take number 1, and one that is
  killed between index and file leaves a new entry for an old file: the next process then runs the wrong machine code.
- Only what nobody else can have written is loaded (`trusted`): a file is a pickle, and whoever wrote it runs code here.
- Kernels compiled with bounds checks do not share files with kernels compiled without.
- Whatever goes wrong in the cache (a read-only install without HOME, a full disk, a file cut short) costs a
  compilation and one warning a process in the log, never an exception.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import re
import threading
import uuid
from pathlib import Path
from typing import Any

import numba
from numba import config
from numba.core import caching

from fastbn_kernels.build import shipped, trusted

# Private to Numba. Where they are not, what is made of them here cannot be made, and `enable` goes without.
CompileResultCacheImpl: Any = getattr(caching, "CompileResultCacheImpl", object)
FunctionCache: Any = getattr(caching, "FunctionCache", object)
NullCache: Any = getattr(caching, "NullCache", object)

log = logging.getLogger("fastbn")


@functools.cache
def sources_digest(processor: str) -> str:
    """Hash every source file that the kernels in a folder are made of; an empty one (a zip) hashes to a constant."""
    digest = hashlib.sha256()
    folder = Path(__file__).parents[1]
    for file in sorted(file for part in ("*.py", "build/*.py", f"{processor}/**/*.py") for file in folder.glob(part)):
        digest.update(file.relative_to(folder).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


_unsaid = threading.Lock()  # taken by the first warning and never given back


def warn_once(problem: str) -> None:
    """Log a problem of the cache, as a warning if it is the first of this process."""
    level = logging.WARNING if _unsaid.acquire(blocking=False) else logging.DEBUG
    log.log(level, "fastbn: the kernel cache does not work, what is not in it is compiled: %s", problem)


class Files:
    """The files of one kernel, one for each signature and processor, in the place of Numba's index and data files.

    Parameters
    ----------
    cache : numba.core.caching.Cache
        Whose they are; it knows the kernel and the folder.
    base : str
        What the names start with: the kernel, its line, Python's version.
    stamp : object
        What the kernel was compiled from, anything with a `repr` that is the same in every process.
    """

    def __init__(self, cache: Any, base: str, stamp: object) -> None:
        numbas = cache._cache_file
        self._parent = Path(numbas._cache_path)
        self._folder = self._parent / trusted.folder_name()
        self._folders = [self._folder]
        if self._folder.name != trusted.ROOTS:  # root may have filled the cache for all when an image was built
            source = Path(cache._py_func.__code__.co_filename)
            of_root = [self._parent, source.parent / "__pycache__"]
            if config.CACHE_DIR:
                of_root.append(Path(config.CACHE_DIR, cache._impl.locator.get_suitable_cache_subpath(str(source))))
            self._folders += dict.fromkeys(parent / trusted.ROOTS for parent in of_root)
        self._dump = numbas._dump
        self._base = re.sub(r"-\d+(?=\.py\d)", "", base)  # the line changes from release to release
        self._fresh = f"{self._base}.{_short_hash((numba.__version__, numbas._source_stamp, stamp))}-"

    def _name(self, key: object) -> str:
        return f"{self._fresh}{_short_hash(key)}.nbc"

    def load(self, key: object) -> Any:
        """Return what was saved under a key, or None."""
        problem: Exception | None = None
        for folder in self._folders:
            try:
                content = trusted.read(folder, self._name(key))
            except FileNotFoundError:
                continue
            except OSError as error:
                problem = problem or error
                continue
            if hashlib.sha256(content[32:]).digest() == content[:32]:
                return pickle.loads(content[32:])
            problem = problem or ValueError(f"{folder / self._name(key)} is damaged")
        if problem is not None:
            raise problem
        return None

    def save(self, key: object, data: Any) -> None:
        """Keep data under a key: a reader finds all of it or nothing, whatever happens meanwhile."""
        content = self._dump(data)
        trusted.make(self._folder)
        path = self._folder / self._name(key)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            trusted.write(partial, hashlib.sha256(content).digest() + content)
            partial.replace(path)
        except BaseException:  # Ctrl-C too
            with contextlib.suppress(OSError):
                partial.unlink()
            raise
        self._remove_stale()
        _remove_older(self._parent)

    def _remove_stale(self) -> None:
        for file in self._folder.glob(f"{self._base}.*"):
            if file.suffix in (".nbc", ".tmp") and not file.name.startswith(self._fresh):
                with contextlib.suppress(OSError):  # another process was faster, or has it open on Windows
                    file.unlink()


@functools.cache
def _remove_older(folder: Path) -> None:
    """Remove what earlier versions left next to the folder that kernels are kept in now, if it is this user's."""
    for file in folder.glob("*.nb[ci]*"):
        if re.search(r"\.[0-9a-f]{16}-[0-9a-f]{16}\.nbc(\.[0-9a-f]{8}\.tmp)?$", file.name):  # no file of Numba's
            with contextlib.suppress(OSError):
                if trusted.is_own(file):
                    file.unlink()


def _short_hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


class Unfailing:
    """What makes a cache of Numba's, for either processor, unable to fail."""

    _cache_file: Any

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel, or None if it is not there or cannot be read."""
        try:
            return super().load_overload(sig, target_context)  # type: ignore[misc]
        except Exception as error:  # a file cut short, a folder that may not be read
            warn_once(f"{type(error).__name__}: {error}")
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled kernel if that is possible."""
        try:
            super().save_overload(sig, data)  # type: ignore[misc]
        except Exception as error:  # a full disk, a folder gone, a quota
            warn_once(f"{type(error).__name__}: {error}")


class NoStrayFolder:
    """What keeps Numba, where nobody knows a home, from making a folder called ~ in the working directory."""

    def __init__(self, function: Any) -> None:
        if os.path.expanduser("~") == "~" and "XDG_CACHE_HOME" not in os.environ:
            locators: list[Any] = self._locator_classes  # type: ignore[has-type]
            self._locator_classes = [each for each in locators if not re.search("UserWide|Zip", each.__name__)]
        super().__init__(function)  # type: ignore[call-arg]


class KernelCacheImpl(NoStrayFolder, CompileResultCacheImpl):  # type: ignore[misc]
    """Numba's file naming, plus a mark for bounds checks."""

    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        """Name the files of a kernel."""
        base: str = super().get_filename_base(fullname, abiflags)
        return base + ("-checked" if config.BOUNDSCHECK else "")


class WithShipped:
    """What lets a cache fall back to what the installation brought compiled."""

    _function: Any

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled kernel, or None if nobody has it."""
        found = super().load_overload(sig, target_context)  # type: ignore[misc]
        if found is not None:
            return found
        try:
            return shipped.load(self._function, sig, sources_digest("cpu"), target_context)
        except Exception as error:  # a file cut short
            warn_once(f"{type(error).__name__}: {error}")
            return None


class KernelCache(WithShipped, Unfailing, FunctionCache):  # type: ignore[misc]
    """Numba's cache, stamped with the whole package and unable to fail."""

    _impl_class = KernelCacheImpl

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        self._function = function
        self._cache_file = Files(self, self._impl.filename_base, sources_digest("cpu"))


class NoFolder(WithShipped, NullCache):  # type: ignore[misc]
    """What stands for the cache where no folder can be written."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self._function = function


def enable(dispatcher: Any) -> None:
    """Give a dispatcher the cache; without a folder that can be written it has what the installation brought alone."""
    function = dispatcher.py_func
    try:
        dispatcher._cache = KernelCache(function)
    except Exception as error:  # Numba's "no locator available" for one
        warn_once(f"{type(error).__name__}: {error}")
        dispatcher._cache = NoFolder(function)
