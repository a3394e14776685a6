"""What a session's thread does, and how far it is. Knows drops and cases; reads and scores nothing itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..drops import Drop
from .case import Case

WAIT = 0.2  # seconds until what was refused is tried again
_READING = threading.BoundedSemaphore(4)  # sessions whose files are read at the same time


@dataclass
class Progress:
    """How far reading and scoring are.

    Args:
        files: that were dropped.
        read: of these.
        images: slices that were found.
        scored: of these, by the model in use.
        problems: (client's name, one line) of each file that is left out.
    """

    files: int = 0
    read: int = 0
    images: int = 0
    scored: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """What a session's thread does next.

    Args:
        drop: is read; None for another job.
        progress: of the list that it belongs to.
        cold: its heatmaps are made; all is scored anew where there is neither.
        stop: nobody waits for it any more.
    """

    drop: Drop | None
    progress: Progress
    cold: Case | None = None
    stop: threading.Event = field(default_factory=threading.Event)


class Swapped(Exception):
    """Another model is served by now."""


@contextmanager
def turn(stop: threading.Event) -> Iterator[None]:
    """Waits until few enough sessions read; not longer than somebody waits for it."""
    while not _READING.acquire(timeout=WAIT):
        if stop.is_set():
            break
    else:
        try:
            yield
        finally:
            _READING.release()
        return
    yield
