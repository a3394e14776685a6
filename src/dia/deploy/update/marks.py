"""Files of marks: the reading room's export, or any manifest with labels, and the images that they are about.

An image is found beside the file by its `path`, or among images that are named: by the sha256 of its pixels
at the model's size, and else by its name. What is not found is counted and named. Several marks of one
image are one: that of most readers; where as many say the one as the other, it is left out. Knows
spreadsheets and listings; knows no model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from ...core.errors import DataError, first_line, printable
from ...data.formats.spreadsheet import plain_cell, read_sheet
from ...data.imageset import pixels_sha256
from ...data.layouts import ANOMALOUS_WORDS, NORMAL_WORDS
from ...data.options import ReadOptions
from ...data.readers import Listing, listing

_BY = ("path", "sha256", "name")
_TRUE, _FALSE = {"1", "true", "yes"}, {"0", "false", "no"}
_NAMED = 5  # in a remark


class Row(NamedTuple):
    """One mark, as a file has it.

    Args:
        line: of the file.
        path: of the image, relative to the file; empty where none is given.
        sha256: of its pixels at the model's size; empty where none is given.
        name: of the image; empty where none is given.
        slice: number of the image within a file of several, from 0; None where none is given.
        label: 1 anomalous, 0 normal; None where the reader was not sure.
        flagged: whether it was flagged; None where the file does not say.
        reader: who marked it; empty where that is not told.
    """

    line: int
    path: str
    sha256: str
    name: str
    slice: int | None
    label: int | None
    flagged: bool | None
    reader: str

    @property
    def shown(self) -> str:
        """A name for people."""
        return self.name or self.path or self.sha256[:12]


@dataclass(frozen=True, eq=False)
class Marked:
    """Marked images.

    Args:
        images: `(M, H, W, C)` uint8, each once.
        labels: `(M,)`, 1 = anomalous, 0 = normal.
        flagged: `(M,)` bool; None where a file does not say it of all.
        readers: names.
        missing: names of images that were not found.
        disputed: names of images of which as many readers say the one as the other.
        unsure: how many marks say neither.
    """

    images: np.ndarray
    labels: np.ndarray
    flagged: np.ndarray | None
    readers: Sequence[str]
    missing: Sequence[str] = ()
    disputed: Sequence[str] = ()
    unsure: int = 0

    def remarks(self) -> list[str]:
        """Returns a line for each kind of mark that teaches nothing."""
        made = []
        for names, what in ((self.missing, "not found"), (self.disputed, "left out, as readers disagree")):
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                made.append(f"{len(names)} marked images {what}: {', '.join(names[:_NAMED])}{more}")
        return [*made, f"{self.unsure} marks say neither normal nor anomalous"] if self.unsure else made


def read_marks(path: Path) -> list[Row]:
    """Reads a file of marks.

    Args:
        path: a spreadsheet with the column `label` (0, 1, words of a manifest, or empty) and with `path`,
            `sha256` or `name`; `slice`, `flagged` and `reviewer` or `reader` are used where they are there.

    Raises:
        DataError: it is none; the message names the line and the reason.
    """
    sheet = read_sheet(path, ("label",))
    header = [name.casefold() for name in sheet.header]
    if not set(_BY) & set(header):
        raise DataError(f"{path}: no column tells which image a mark is of; one of {', '.join(_BY)} must")
    rows = []
    for line, cells in sheet.rows:
        row, where = dict(zip(header, map(plain_cell, cells), strict=True)), f"{path}, line {line}"
        found = {name: row.get(name, "") for name in _BY}
        if not any(found.values()):
            raise DataError(
                f"{where}: no {' and no '.join(n for n in _BY if n in header)}: which image is it?"
            )
        label, flag, number = row["label"].casefold(), row.get("flagged", "").casefold(), row.get("slice", "")
        if label and label not in NORMAL_WORDS | ANOMALOUS_WORDS:
            raise DataError(
                f"{where}: unknown label {row['label'][:50]!r}; use 1 (anomalous), 0 (normal) or nothing"
            )
        if flag and flag not in _TRUE | _FALSE:
            raise DataError(f"{where}: flagged must be 1 or 0, not {flag[:50]!r}")
        if number and not (number.isascii() and number.isdecimal()):
            raise DataError(f"{where}: slice must be a whole number from 0, not {number[:50]!r}")
        rows.append(Row(
            line, found["path"], found["sha256"].casefold(), printable(found["name"]),
            int(number) if number else None, int(label in ANOMALOUS_WORDS) if label else None,
            flag in _TRUE if flag else None, printable(row.get("reviewer") or row.get("reader") or ""),
        ))  # fmt: skip
    if not rows:
        raise DataError(f"{path}: no rows below the header")
    return rows


def find(path: Path, rows: Sequence[Row], images: Listing | None, options: ReadOptions) -> Marked:
    """Finds the images that marks are about, and makes of several marks of an image one.

    Args:
        path: of the file of marks.
        rows: of it.
        images: among which they are sought; None where they lie beside the file.
        options: with the model's size and channels.

    Raises:
        DataError: an image beside the file cannot be read, holds several and no slice is told, or none of
            the marked images is found.
    """
    told = [row for row in rows if row.label is not None]
    if images is None:
        if not any(row.path for row in told):
            raise DataError(
                f"{path}: it holds no column path; name the images: dia update RUN IMAGES --marks …"
            )
        found = _beside(path, told, options)
    else:
        found = _among(told, images)
    missing = tuple(row.shown for row in told if row not in found)
    if told and not found:
        where = "beside it" if images is None else "among the images"
        raise DataError(f"{path}: none of its {len(told)} marked images is {where} (as {told[0].shown})")
    return _agreed(found, missing, len(rows) - len(told), options)


def majority(votes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Returns the label of most readers, for each image of which more say the one than the other.

    Args:
        votes: labels of readers, by image.
    """
    share = {image: sum(labels) / len(labels) for image, labels in votes.items() if labels}
    return {image: int(mean > 0.5) for image, mean in share.items() if mean != 0.5}


def _beside(path: Path, rows: Sequence[Row], options: ReadOptions) -> dict[Row, np.ndarray]:
    found = {}
    for row in rows:
        where = f"{path}, line {row.line}"
        file = path.parent / row.path
        if not row.path or not file.is_file():
            continue
        try:
            held = listing(file, options).read()
        except DataError as error:
            raise DataError(f"{where}: {first_line(error)}") from error
        if len(held) > 1 and row.slice is None:
            raise DataError(
                f"{where}: {row.path} holds {len(held)} images; say which in a column slice, from 0"
            )
        if (at := row.slice or 0) >= len(held):
            raise DataError(f"{where}: {row.path} has no slice {at}")
        found[row] = np.asarray(held.images[at])
    return found


def _among(rows: Sequence[Row], images: Listing) -> dict[Row, np.ndarray]:
    """Finds images by their pixels, and those that remain by their names, where one image alone has that."""
    wanted: dict[str, list[Row]] = defaultdict(list)
    named: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        wanted[row.sha256].append(row)
        for name in _names(row):
            named[name].append(row)
    wanted.pop("", None)
    found: dict[Row, np.ndarray] = {}
    by_name: dict[Row, dict[str, np.ndarray]] = defaultdict(dict)
    for part in images.stream():
        for name, image in zip(part.names, part.images, strict=True):
            sha = pixels_sha256(image)
            found |= dict.fromkeys(wanted.get(sha, ()), image)
            for row in {*named.get(name, ()), *named.get(PurePosixPath(name).name, ())}:
                by_name[row][sha] = image
    alone = {row: next(iter(made.values())) for row, made in by_name.items() if len(made) == 1}
    return alone | found


def _names(row: Row) -> set[str]:
    """Returns the names that an image of a mark may have in a listing."""
    made = set()
    for written in filter(None, (row.name, row.path)):
        for name in (written, PurePosixPath(written).name):
            made.add(name if row.slice is None or "#" in name else f"{name}#{row.slice}")
            if not row.slice:
                made.add(name)
    return made


def _agreed(
    found: dict[Row, np.ndarray], missing: Sequence[str], unsure: int, options: ReadOptions
) -> Marked:
    votes: dict[str, list[Row]] = defaultdict(list)
    images: dict[str, np.ndarray] = {}
    for row, image in found.items():
        sha = pixels_sha256(image)
        votes[sha].append(row)
        images[sha] = image
    labels = majority({sha: [row.label for row in of if row.label is not None] for sha, of in votes.items()})
    disputed = tuple(of[0].shown for sha, of in votes.items() if sha not in labels)
    kept = list(labels)
    flags = [_flag(votes[sha]) for sha in kept]
    h, w = options.size if isinstance(options.size, tuple) else (1, 1)
    empty = np.empty((0, h, w, options.channels or 1), np.uint8)
    return Marked(
        np.stack([images[sha] for sha in kept]) if kept else empty,
        np.array(list(labels.values()), int),
        None if None in flags else np.array(flags, bool),
        tuple(dict.fromkeys(row.reader for row in found if row.reader)), missing, disputed, unsure,
    )  # fmt: skip


def _flag(rows: Iterable[Row]) -> bool | None:
    """Returns whether an image was flagged when it was marked, by most rows that say it."""
    said = [row.flagged for row in rows if row.flagged is not None]
    return sum(said) * 2 >= len(said) if said else None
