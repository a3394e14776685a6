"""The images that a session holds: read and scored in the background, kept in memory alone.

Knows drops, models and marks; knows no request and no page. A case is a file, or a volume (a file of several
slices, or a DICOM series).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..sessions import Session
from .base import Room
from .drops import Drop
from .store import Marks


class Marked(NamedTuple):
    """An image of the session with a reader's label, to learn from.

    Args:
        sha256: of its shape and pixels at the model's size.
        image: `(H, W, C)` uint8 at the model's size; of a volume the slice that the mark is about.
        label: 1 anomalous, 0 normal.
        flagged: whether it was flagged when the verdict was given.
        reader: who said so.
    """

    sha256: str
    image: np.ndarray
    label: int
    flagged: bool
    reader: str


@dataclass(frozen=True)
class Judged:
    """What a model says of a case of S slices.

    Args:
        number: of the model, `Served.number`.
        scores: `(S,)` raw, higher = more anomalous.
        p_values: `(S,)` conformal, in (0, 1].
        heat: `(S, H, W)` float16 or float32 at the model's size; None where the method has none.
    """

    number: int
    scores: np.ndarray
    p_values: np.ndarray
    heat: np.ndarray | None


@dataclass(eq=False)
class Case:
    """One case of S slices.

    Args:
        id: random, of this session.
        name: the client's.
        slices: S native arrays, `(h, w)` or `(h, w, 3)`.
        images: `(S, H, W, C)` uint8 at the model's size.
        hashes: sha256 of each slice's shape and pixels at the model's size.
        sha256: of the case; that of its image where it has one slice.
        judged: by the model in use.
    """

    id: str
    name: str
    slices: list[np.ndarray]
    images: np.ndarray
    hashes: list[str]
    sha256: str
    judged: Judged


@dataclass
class Progress:
    """How far reading and scoring are.

    Args:
        files: that were dropped.
        read: of these.
        images: slices that were found.
        scored: of these.
        problems: (client's name, one line) of each file that is left out.
    """

    files: int = 0
    read: int = 0
    images: int = 0
    scored: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)


class Cases:
    """The cases of one session."""

    def __init__(self, room: Room):
        self.room = room

    @classmethod
    def of(cls, session: Session, room: Room) -> Cases:
        """Returns a session's cases.

        Args:
            session: whose.
            room: the parts that are shared.
        """
        return session.hold(cls, lambda: cls(room))

    def add(self, drop: Drop) -> None:
        """Begins to read and score what was dropped, in the background; its files are deleted once read."""
        raise NotImplementedError

    def all(self) -> list[Case]:
        """Returns the cases that are scored, in the order they came."""
        raise NotImplementedError

    def get(self, id: str) -> Case:
        """Returns a case.

        Raises:
            Refused: this session has none of that id (404).
        """
        raise NotImplementedError

    def marked(self, marks: Marks) -> list[Marked]:
        """Returns the images of this session that any reader called anomalous or normal."""
        raise NotImplementedError

    def drift(self) -> dict[str, Any] | None:
        """Returns whether the images differ as a whole from the training normals; None without images."""
        raise NotImplementedError

    def close(self) -> None:
        """Forgets all, when the session ends."""
        raise NotImplementedError
