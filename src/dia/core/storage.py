"""Files: one process at a time, room on the disk before a memory map is written, folders replaced whole.

Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import NO_ROOM


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of the file `path`, which is made where it is absent; waits for other holders.

    A process that is killed releases it. Where the system has no such locks (outside POSIX), nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released on close
        yield


def reserve(path: Path | str) -> None:
    """Allocates a file's disk blocks now, so that a full disk raises an error.

    Otherwise writing to a memory map of the file would end the process by a signal (SIGBUS).

    Raises:
        OSError: the disk is full; it names the file.
    """
    with open(path, "r+b") as file:
        take_room(file, os.fstat(file.fileno()).st_size, str(path))


def take_room(file: IO[bytes], size: int, name: str) -> None:
    """Allocates the disk blocks of an open file.

    Args:
        file: open for writing.
        size: in bytes.
        name: of the file, for the error.

    Raises:
        OSError: the disk is full.
    """
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in NO_ROOM:  # others: a file system that cannot promise room
            raise OSError(error.errno, os.strerror(error.errno), name) from None


def replace_folder(new: Path, folder: Path) -> None:
    """Moves a finished folder to a place where another may be, which stays until the new one replaces it.

    A process that is killed leaves the old folder or the new one, or, between two renames, neither; never a
    part of one. The remains have a name that begins with that of `new`.

    Args:
        new: the finished folder.
        folder: its place.

    Raises:
        OSError: the folder could not be moved; the old one is in its place again.
    """
    aside = new.with_name(f"{new.name}.replaced")
    if folder.exists():
        folder.rename(aside)
    try:
        new.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)
