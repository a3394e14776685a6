"""Uploads in pieces: what a reader dropped on the page, on its way to being read or trained on.

Knows bytes, numbered files and the limits of both; decodes no image, knows no model. Files lie in a folder of
mode 0700 under numbers: no name of a client's is a path, or is written to disk or to the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ..limits import Deadline, Limits
from ..sessions import Session

IDLE = 120.0  # seconds without a request after which a drop is deleted


@dataclass
class Drop:
    """The files of one drop.

    Args:
        id: random.
        folder: of mode 0700; below it one numbered folder for each folder of the client's, with numbered files.
        names: relative path of each file ("00000/00012.dcm") to the client's name, with its folders.
        problems: (client's name, one line) of each file that was left out.
        bytes: of all files.
    """

    id: str
    folder: Path
    names: dict[str, str] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    bytes: int = 0

    def close(self) -> None:
        """Deletes the folder with all in it."""
        raise NotImplementedError


class Drops:
    """The drops of one session.

    Args:
        limits: of files and bytes, of a session and of all.
    """

    def __init__(self, limits: Limits):
        self.limits = limits

    @classmethod
    def of(cls, session: Session, limits: Limits | None = None) -> Drops:
        """Returns a session's drops.

        Args:
            session: whose.
            limits: taken when it is first asked for.
        """
        return session.hold(cls, lambda: cls(limits or Limits()))

    def new(self) -> str:
        """Begins a drop; returns its id."""
        raise NotImplementedError

    def add(self, id: str, uploads: Iterable[tuple[str, IO[bytes]]], deadline: Deadline) -> Drop:
        """Adds files; zips are unpacked.

        Args:
            id: of the drop.
            uploads: the client's name, with folders, and the bytes of each.
            deadline: of the request.

        Raises:
            Refused: no such drop (404), or a limit (413).
        """
        raise NotImplementedError

    def take(self, id: str) -> Drop:
        """Takes a drop out: who takes it closes it.

        Raises:
            Refused: no such drop (404).
        """
        raise NotImplementedError

    def cancel(self, id: str) -> None:
        """Deletes a drop, at once or when the request that adds to it sees it; nothing where there is none."""
        raise NotImplementedError

    def close(self) -> None:
        """Deletes all, when the session ends."""
        raise NotImplementedError
