"""One process at a time. Knows files only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


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
