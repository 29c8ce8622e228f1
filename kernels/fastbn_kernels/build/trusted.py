"""Files that nobody but this user, or root, can have written.

What is read belongs to one of the two, lies in a folder that does too, and neither may be written by a group or by
everybody. So that a cache that several users share (``NUMBA_CACHE_DIR``), or a umask that lets the group write, is no
reason to go without, every user has a folder of his own in it, made for this. Windows has other permissions: nothing is
checked there, where caches lie in the user's profile.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

CHECKED = hasattr(os, "geteuid")
ROOTS = "fastbn-0"


def folder_name() -> str:
    """Return the name of this user's folder."""
    return f"fastbn-{os.geteuid()}" if CHECKED else "fastbn"


def _check(path: Path, found: os.stat_result) -> None:
    """Raise PermissionError if somebody else can have written what was found at a path."""
    if found.st_uid not in (0, os.geteuid()):
        raise PermissionError(f"{path} belongs to another user, {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"others may write to {path}, its mode is {stat.S_IMODE(found.st_mode):o}")


def read(folder: Path, name: str) -> bytes:
    """Return what is in a file; raise OSError if it is not there or not to be trusted.

    What is checked is what was opened, so that nothing can be put in its place in between; links are not followed.
    """
    if not CHECKED:
        return (folder / name).read_bytes()
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _check(folder, os.fstat(opened))
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=opened), "rb") as file:
            _check(folder / name, os.fstat(file.fileno()))
            return file.read()
    finally:
        os.close(opened)


def make(folder: Path) -> None:
    """Make a folder that only this user can write to; raise PermissionError if there is one that others can."""
    folder.mkdir(0o755, parents=True, exist_ok=True)
    if CHECKED:
        _check(folder, folder.lstat())


def write(path: Path, content: bytes) -> None:
    """Write a new file that only this user can write to, whatever the umask."""
    binary = getattr(os, "O_BINARY", 0)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | binary, 0o644), "wb") as file:
        file.write(content)


def is_own(path: Path) -> bool:
    """Return whether a file, or a link, is this user's."""
    return not CHECKED or path.lstat().st_uid == os.geteuid()
