"""Files: one process at a time, one owner of an output, room on the disk, folders replaced whole.

Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Self

from .errors import NO_ROOM, DataError


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


class Owner:
    """The one process that writes an output, from when this is made until `release`, or its end.

    While it lives, the file `.NAME.lock` beside the output names it. The system's lock on that file says that
    it lives: a process that ends in any way loses it. Where the system has no such locks (outside POSIX, and
    on some network disks), or someone removes the file, a second process can take the output over; then
    `check` stops the first, as the file is no longer the one that it made.

    Args:
        output: the file or folder to write; the folder around it is made if absent. A link to a folder is
            that folder.

    Raises:
        DataError: another process owns it; the line names that process.
    """

    def __init__(self, output: Path):
        self.output, self.path = output, _lock_of(output)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while (held := self._claimed()) is None:
            pass
        self._held = held

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def check(self) -> None:
        """Refuses to go on where another process has taken the output over; asked before each write.

        Raises:
            DataError: the output is no longer this process's.
        """
        if not _is_at(self._held, self.path):
            by = _named(self.path) or "another process"
            raise DataError(f"{self.output}: taken over by {by}; this one stops, and has written no more")

    def release(self) -> None:
        """Gives the output up."""
        if not self._held.closed:
            if _is_at(self._held, self.path):
                self.path.unlink(missing_ok=True)
            self._held.close()

    def _claimed(self) -> IO[bytes] | None:
        """Puts an own lock file in the place of the last owner's; None where that changed meanwhile."""
        with self.path.open("ab") as last:
            if not _locked_at_once(last):
                by = _named(self.path) or "another process"
                choice = "wait for it, end it, or choose another --out"
                raise DataError(f"{self.output}: {by} is writing it; {choice}")
            if not _is_at(last, self.path):
                return None
            new = self.path.with_name(f"{self.path.name}.{os.getpid()}.{threading.get_ident()}")
            held = new.open("wb")
            try:
                _locked_at_once(held)
                held.write(json.dumps(_this_process()).encode())
                held.flush()
                new.replace(self.path)
            except BaseException:
                held.close()
                new.unlink(missing_ok=True)
                raise
            return held


def owned(output: Path) -> bool:
    """Returns whether a living process owns an output; False, too, where the system has no such locks."""
    try:
        with _lock_of(output).open("rb") as file:
            return not _locked_at_once(file)
    except OSError:
        return False


def behind(folder: Path) -> Path:
    """Returns the folder that a link leads to, which is what a new one replaces; anything else as it is.

    Raises:
        DataError: it has no name of its own, as `.`.
    """
    if folder.name in ("", ".."):
        real = os.path.realpath(folder)
        raise DataError(f"{folder}: it would be replaced as a whole; name it from outside, as {real}")
    return Path(os.path.realpath(folder)) if folder.is_symlink() and folder.is_dir() else folder


def _lock_of(output: Path) -> Path:
    real = behind(output)
    return real.with_name(f".{real.name}.lock")


def _locked_at_once(file: IO[bytes]) -> bool:
    """Locks an open file; False where another has it, True also where the system has no such locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        pass
    return True


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Returns whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _this_process() -> dict[str, Any]:
    words = [Path(sys.argv[0]).name, *sys.argv[1:2]]
    begun = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"command": " ".join(words), "host": socket.gethostname(), "pid": os.getpid(), "begun": begun}


def _named(path: Path) -> str:
    """Names the process that a lock file is of; empty where it does not say."""
    try:
        found = json.loads(path.read_bytes())
        return f"`{found['command']}` (process {found['pid']} on {found['host']}, begun {found['begun']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


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
