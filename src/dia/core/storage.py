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
    """Holds the lock of the file `path`, made where it is absent; waits for whoever holds it.

    A process that is killed lets go. Where the system has no such locks (outside POSIX), nothing is held.
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
    """Takes the room that a file says it has, as a memory map's does, whose pages come when they are written.

    Without that a full disk ends the process by a signal (SIGBUS), which nothing can report.

    Raises:
        OSError: there is not so much room; it names the file.
    """
    with open(path, "r+b") as file:
        take_room(file, os.fstat(file.fileno()).st_size, str(path))


def take_room(file: IO[bytes], size: int, name: str) -> None:
    """The same of an open file, for `size` bytes."""
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in NO_ROOM:  # others: a file system that cannot promise room
            raise OSError(error.errno, os.strerror(error.errno), name) from None


def replace_folder(new: Path, folder: Path) -> None:
    """Moves a finished folder to where another may be, which is there until the new one takes its place.

    A process that is killed leaves the old folder or the new one, or, between two renames, neither; never a
    part of one. What it leaves beside them is hidden: its name begins with that of `new`.

    Raises:
        OSError: it could not be moved; what was there is there again.
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
