"""The readers' marks: verdicts, notes and boxes, with their history, in one SQLite file.

Knows hashes, readers and numbers; knows no pixels, models, pages or names of files. An image is known by the
hash of its pixels at the model's size, and the model by its lineage: the hash of the model as first fitted, so
that marks outlive `dia update`.

Nothing is ever changed in the file: each change, and each undo, appends the whole mark as it then is. A mark is
the last row of its key; `before` leads to the state that an undo returns to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

AGREE, DISAGREE, UNSURE = "agree", "disagree", "unsure"
VERDICTS = (AGREE, DISAGREE, UNSURE, "")
MOST_NOTE = 2000  # characters
MOST_BOXES = 100  # of one mark


class Key(NamedTuple):
    """What a mark belongs to.

    Args:
        lineage: hash of the model as first fitted.
        sha256: of a case's shape and pixels at the model's size; of a volume, of all its slices.
        reader: who marked; empty where no name was given.
    """

    lineage: str
    sha256: str
    reader: str


class Box(NamedTuple):
    """A rectangle that a reader drew, in native pixels.

    Args:
        slice: number of the slice, from 0.
        x: of the left edge.
        y: of the upper edge.
        w: width, above 0.
        h: height, above 0.
    """

    slice: int
    x: float
    y: float
    w: float
    h: float


@dataclass(frozen=True)
class Seen:
    """What was seen when something was marked.

    Args:
        flagged: whether the case was flagged at `rate`.
        rate: the false-alarm rate, in (0, 1).
        score: raw, higher = more anomalous; of a volume the greatest of its slices.
        p_value: conformal, in (0, 1].
        worst: the slice with the greatest score, from 0.
        images: sha256 of each slice's shape and pixels at the model's size.
        shape: native height and width.
        model: hash of the model that scored.
    """

    flagged: bool
    rate: float
    score: float
    p_value: float
    worst: int
    images: Sequence[str]
    shape: tuple[int, int]
    model: str


@dataclass(frozen=True)
class Mark:
    """One reader's mark of one case, as it is now.

    Args:
        key: what it belongs to.
        verdict: `agree`, `disagree` (with `flagged`), `unsure`, or empty.
        note: at most 2000 characters.
        boxes: that the reader drew.
        slice: the slice that it is about: that of the first box, else the one with the greatest score.
        image: sha256 of that slice at the model's size; the key's where the case is one image.
        slices: how many the case has.
        shape: native height and width.
        flagged: whether the case was flagged when the verdict was given.
        rate: the false-alarm rate then.
        score: raw, then.
        p_value: conformal, then.
        model: hash of the model that scored.
        time: of the last change, ISO 8601 in UTC.
        history: how many changes can be undone.
    """

    key: Key
    verdict: str
    note: str
    boxes: tuple[Box, ...]
    slice: int
    image: str
    slices: int
    shape: tuple[int, int]
    flagged: bool
    rate: float
    score: float
    p_value: float
    model: str
    time: str
    history: int

    @property
    def label(self) -> int | None:
        """1 anomalous, 0 normal, None where the verdict does not say."""
        raise NotImplementedError

    @property
    def empty(self) -> bool:
        """Whether it says nothing."""
        return not (self.verdict or self.note or self.boxes)


class Marks:
    """Marks in a file that several processes may use at once, and that survives a kill.

    Args:
        path: the file; made with its folder, readable by its owner only, where it is absent.

    Raises:
        DataError: the file cannot be opened, or is something else.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def change(
        self,
        key: Key,
        seen: Seen,
        *,
        verdict: str | None = None,
        note: str | None = None,
        boxes: Sequence[Box] | None = None,
    ) -> Mark:
        """Changes some fields of a mark, in one transaction; on the disk when this returns.

        `seen` is taken over where a verdict is given, or none was there: a note alone leaves the flag that a
        verdict was about.

        Args:
            key: of the mark.
            seen: what is on the page now.
            verdict: of `VERDICTS`; None leaves it.
            note: None leaves it.
            boxes: None leaves them.

        Raises:
            DataError: it could not be written.
            ValueError: a value that cannot be; one line for the client.
        """
        raise NotImplementedError

    def undo(self, key: Key) -> Mark | None:
        """Takes back the last change of a key; returns the mark as it then is, None where nothing is left to undo.

        Raises:
            DataError: it could not be written.
        """
        raise NotImplementedError

    def find(self, key: Key) -> Mark | None:
        """Returns a mark; None where there never was one, or all was undone."""
        raise NotImplementedError

    def of_case(self, lineage: str, sha256: str) -> list[Mark]:
        """Returns the marks of all readers of a case that say something, latest first."""
        raise NotImplementedError

    def of_lineage(self, lineage: str, sha256: Iterable[str] | None = None) -> list[Mark]:
        """Returns the marks of all readers that say something, oldest first; only of some cases where given."""
        raise NotImplementedError

    def version(self, lineage: str) -> int:
        """Returns a number that grows with each change to any mark of a lineage."""
        raise NotImplementedError
