"""A wish to stop, heard between the steps of a work: by SIGTERM, or from another thread.

Trainings that hear it leave a checkpoint first; all other work ends at the next move of its bar. Knows
nothing of what is done.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_wish = threading.Event()


class Stopped(Exception):
    """The work was asked to stop, and has left what it needs to go on."""


def wanted() -> bool:
    """Returns whether this process was asked to stop."""
    return _wish.is_set()


def ask() -> None:
    """Asks this process to stop; from any thread."""
    _wish.set()


def check() -> None:
    """Ends the work here, where that was asked for.

    Raises:
        Stopped: it was.
    """
    if _wish.is_set():
        raise Stopped("stopped")


@contextmanager
def heard() -> Iterator[None]:
    """Takes SIGTERM as such a wish while it lasts; in the main thread alone."""

    def take(*_: Any) -> None:
        _wish.set()

    before = signal.signal(signal.SIGTERM, take)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _wish.clear()
