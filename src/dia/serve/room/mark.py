"""One reader's mark of one case, what may stand in it; and lists of marks as CSV and as COCO.

Knows numbers and words; knows no file of marks, no pixels and no page.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...data.formats.spreadsheet import csv_text, marked

AGREE, DISAGREE, UNSURE = "agree", "disagree", "unsure"
VERDICTS = (AGREE, DISAGREE, UNSURE, "")
MOST_NOTE = 2000  # characters
MOST_BOXES = 100  # of one mark
_TURNED = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # signs that turn the text after them round
COLUMNS = (
    *("name", "slice", "sha256", "score", "p_value", "flagged", "rate", "verdict", "label", "note", "boxes"),
    *("reviewer", "time", "model"),
)


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
        slice: which of the slices that were read, from 0.
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
        worst: which slice has the greatest score, from 0.
        images: sha256 of each slice's shape and pixels at the model's size.
        shape: native height and width.
        model: hash of the model that scored.
        numbers: of each slice in its file; 0, 1, … where empty.
    """

    flagged: bool
    rate: float
    score: float
    p_value: float
    worst: int
    images: Sequence[str]
    shape: tuple[int, int]
    model: str
    numbers: Sequence[int] = ()


@dataclass(frozen=True)
class Mark:
    """One reader's mark of one case, as it is now.

    A case is known by the slices that were read, so its slices are counted as they were read, here and in
    boxes; `number` says which they are in the file, as everybody is told.

    Args:
        key: what it belongs to.
        verdict: `agree`, `disagree` (with `flagged`), `unsure`, or empty.
        note: at most 2000 characters.
        boxes: that the reader drew.
        slice: which slice it is about: that of the first box, else the one with the greatest score.
        image: sha256 of that slice at the model's size; the key's where the case is one image.
        slices: how many the case has.
        shape: native height and width; 0 where they are not known.
        flagged: whether the case was flagged when the verdict was given.
        rate: the false-alarm rate then.
        score: raw, then.
        p_value: conformal, then.
        model: hash of the model that scored.
        time: of the last change, ISO 8601 in UTC.
        history: how many changes can be undone.
        numbers: of the slices in their file; 0, 1, … where empty.
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
    numbers: Sequence[int] = ()

    def number(self, at: int) -> int:
        """Returns the number in the file of a slice.

        Args:
            at: which of those that were read, from 0.
        """
        return self.numbers[at] if at < len(self.numbers) else at

    def boxes_told(self) -> list[dict[str, Any]]:
        """Returns its boxes as JSON, with the numbers of their slices in the file."""
        return [box._asdict() | {"slice": self.number(box.slice)} for box in self.boxes]

    @property
    def label(self) -> int | None:
        """1 anomalous, 0 normal, None where the verdict does not say."""
        if self.verdict not in (AGREE, DISAGREE):
            return None
        return int(self.flagged == (self.verdict == AGREE))

    @property
    def empty(self) -> bool:
        """Whether it says nothing."""
        return not (self.verdict or self.note or self.boxes)


def checked_note(note: str) -> str:
    """Returns a note with plain line ends.

    Raises:
        ValueError: it is too long, or holds signs that are no text.
    """
    note = note.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")
    if len(note) > MOST_NOTE:
        raise ValueError(f"a note has at most {MOST_NOTE} characters, not {len(note)}")
    if any(c != "\n" and (unicodedata.category(c) in ("Cc", "Cs") or ord(c) in _TURNED) for c in note):
        raise ValueError("a note holds no control characters but line ends")
    return note


def checked_boxes(boxes: Sequence[Box], slices: int) -> list[list[float]]:
    """Returns boxes as lists, rounded to hundredths of a pixel.

    Args:
        boxes: that were drawn.
        slices: how many the case has.

    Raises:
        ValueError: too many, or one that lies nowhere.
    """
    if len(boxes) > MOST_BOXES:
        raise ValueError(f"a mark has at most {MOST_BOXES} boxes, not {len(boxes)}")
    for box in boxes:
        if not (all(map(math.isfinite, box)) and min(box) >= 0 and box.w > 0 and box.h > 0):
            raise ValueError("a box has x, y from 0 on, and w, h above 0, in pixels of the image")
        if box.slice >= slices:
            raise ValueError(f"a box lies in slice {box.slice}, of {slices}")
    return [[int(box.slice), *(round(float(v), 2) for v in box[1:])] for box in boxes]


def as_csv(rows: Sequence[tuple[str, Mark]]) -> str:
    """Returns marks as CSV with a header line, which spreadsheets open right and run nothing of.

    Of a volume, `slice` and `sha256` are those of the slice that the mark is about.

    Args:
        rows: the name of the case, empty where it is not known, and the mark.
    """

    def cells(name: str, mark: Mark) -> list[Any]:
        boxes = json.dumps(mark.boxes_told()) if mark.boxes else ""
        return [
            name, mark.number(mark.slice) if mark.slices > 1 else "", mark.image, mark.score, mark.p_value,
            str(mark.flagged).lower(), mark.rate, mark.verdict, "" if mark.label is None else mark.label,
            mark.note, boxes, mark.key.reader, mark.time, mark.model,
        ]  # fmt: skip

    return marked(csv_text([COLUMNS, *(cells(*row) for row in rows)], quoted=True))


def as_coco(rows: Sequence[tuple[str, Mark]]) -> dict[str, Any]:
    """Returns the boxes of marks as COCO: images, annotations and one category.

    An image is a case, or that slice of a volume which has boxes; `label` and `reviewer` stand beside.

    Args:
        rows: as for `as_csv`.
    """
    images: dict[tuple[str, int], dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for name, mark in rows:
        for at in sorted({box.slice for box in mark.boxes} or {mark.slice}):
            height, width = mark.shape
            shown, number = name or mark.key.sha256, mark.number(at)
            image = images.setdefault((mark.key.sha256, at), {
                "id": len(images) + 1, "file_name": f"{shown}#{number}" if mark.slices > 1 else shown,
                "height": height, "width": width, "sha256": mark.key.sha256, "slice": number, "verdicts": [],
            })  # fmt: skip
            said = {
                "reviewer": mark.key.reader,
                "verdict": mark.verdict,
                "label": mark.label,
                "time": mark.time,
            }
            image["verdicts"].append(said)
            annotations += [
                {
                    "id": len(annotations) + 1 + i, "image_id": image["id"], "category_id": 1,
                    "bbox": [box.x, box.y, box.w, box.h], "area": round(box.w * box.h, 2), "iscrowd": 0,
                    "reviewer": mark.key.reader,
                }
                for i, box in enumerate(b for b in mark.boxes if b.slice == at)
            ]  # fmt: skip
    return {
        "info": {"description": "boxes drawn by readers; areas that are anomalous to them"},
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [{"id": 1, "name": "anomaly"}],
    }
