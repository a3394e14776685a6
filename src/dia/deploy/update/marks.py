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
from ...data.imageset import codes_of, pixels_sha256, units_of
from ...data.layouts import ANOMALOUS_WORDS, NORMAL_WORDS, Entry, patients_of
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
        slice: number of the image within a file of several, or its volume, from 0, as in the file; None where
            none is given.
        label: 1 anomalous, 0 normal; None where the reader was not sure.
        flagged: whether it was flagged; None where the file does not say.
        reader: who marked it; empty where that is not told.
        patient: a text that is the same for all images of a patient; empty where none is given.
    """

    line: int
    path: str
    sha256: str
    name: str
    slice: int | None
    label: int | None
    flagged: bool | None
    reader: str
    patient: str

    @property
    def shown(self) -> str:
        """A name for people."""
        return self.name or self.path or self.sha256[:12]


class Found(NamedTuple):
    """An image that a mark is about, `(H, W, C)` uint8, and its patient or volume; None where it is alone."""

    image: np.ndarray
    unit: str | None


@dataclass(frozen=True, eq=False)
class Marked:
    """Marked images.

    Args:
        images: `(M, H, W, C)` uint8, each once.
        labels: `(M,)`, 1 = anomalous, 0 = normal.
        flagged: `(M,)` bool; None where a file does not say it of all.
        units: `(M,)` int, equal for images of one patient or volume.
        readers: names.
        missing: names of images that were not found.
        disputed: names of images of which as many readers say the one as the other.
        unsure: how many marks say neither.
    """

    images: np.ndarray
    labels: np.ndarray
    flagged: np.ndarray | None
    units: np.ndarray
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
            `sha256` or `name`; `slice`, `flagged`, `patient` and `reviewer` or `reader` are used where they
            are there.

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
            row.get("patient", ""),
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
        DataError: an image beside the file cannot be read, holds several and no slice is told, none of the
            marked images is found, or both a column and `group_by` tell patients.
    """
    if options.group_by and any(row.patient for row in rows):
        raise DataError(f"{path}: it has a column patient; leave out --group-by")
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


def _beside(path: Path, rows: Sequence[Row], options: ReadOptions) -> dict[Row, Found]:
    found = {}
    for row in rows:
        where = f"{path}, line {row.line}"
        file = path.parent / row.path
        if not row.path or not file.is_file():
            continue
        try:
            listed = listing(file, options, group_by=None)
            held = listed.read()
        except DataError as error:
            raise DataError(f"{where}: {first_line(error)}") from error
        if len(held) > 1 and row.slice is None:
            raise DataError(
                f"{where}: {row.path} holds {len(held)} images; say which in a column slice, from 0"
            )
        entries = {e.name: e for e in listed.entries}
        of = [e.slice if (e := entries.get(name)) else i for i, name in enumerate(held.names)]
        lone = of == [None] and listed.entries[0].kind == "dicom"  # its slice is that of its series
        at = [i for i, number in enumerate(of) if lone or row.slice in (None, number or 0)]
        if not at:
            raise DataError(f"{where}: {row.path} has no slice {row.slice}, or it cannot be read")
        if len(at) > 1:
            raise DataError(
                f"{where}: {row.path} has a slice {row.slice} in each of {len(at)} volumes; "
                "name the images: dia update RUN IMAGES --marks …"
            )
        of_volume = held.units[at[0]] if held.units else None
        unit = f"{file}: {of_volume}" if of_volume else None
        if options.group_by:
            unit = units_of(patients_of(path, [row.path], options.group_by)[0])[0]
        found[row] = Found(np.asarray(held.images[at[0]]), unit)
    return found


def _among(rows: Sequence[Row], images: Listing) -> dict[Row, Found]:
    """Finds images by their pixels, and those that remain by their names, where one image alone has that."""
    wanted: dict[str, list[Row]] = defaultdict(list)
    named: dict[str | tuple[str, int], list[Row]] = defaultdict(list)
    entries = {e.name: e for e in images.entries}
    for row in rows:
        wanted[row.sha256].append(row)
        for name in _names(row):
            named[name].append(row)
    wanted.pop("", None)
    found: dict[Row, Found] = {}
    by_name: dict[Row, dict[str, Found]] = defaultdict(dict)
    for part in images.stream():
        units = part.units or [None] * len(part)
        for name, image, unit in zip(part.names, part.images, units, strict=True):
            sha, made = pixels_sha256(image), Found(image, unit)
            found |= dict.fromkeys(wanted.get(sha, ()), made)
            for key in _keys(name, entries.get(name)):
                for row in named.get(key, ()):
                    by_name[row][sha] = made
    alone = {row: next(iter(of.values())) for row, of in by_name.items() if len(of) == 1}
    return alone | found


def _keys(name: str, entry: Entry | None) -> set[str | tuple[str, int]]:
    """Returns what tells an image of a listing: its name, and its volume with its number there."""
    made: set[str | tuple[str, int]] = {name, PurePosixPath(name).name}
    if entry is not None and entry.volume is not None:
        made |= {(v, entry.slice or 0) for v in (entry.volume, PurePosixPath(entry.volume).name)}
    return made


def _names(row: Row) -> set[str | tuple[str, int]]:
    """Returns what the image of a mark may be told by in a listing, as `_keys`."""
    made: set[str | tuple[str, int]] = set()
    for written in filter(None, (row.name, row.path)):
        for name in (written, PurePosixPath(written).name):
            made |= {name} if row.slice is None else {name, (name, row.slice)}
    return made


def _agreed(found: dict[Row, Found], missing: Sequence[str], unsure: int, options: ReadOptions) -> Marked:
    votes: dict[str, list[Row]] = defaultdict(list)
    images: dict[str, np.ndarray] = {}
    units: dict[str, str | None] = {}
    for row, (image, unit) in found.items():
        sha = pixels_sha256(image)
        votes[sha].append(row)
        images[sha] = image
        units[sha] = units.get(sha) or (f"patient {row.patient}" if row.patient else unit)
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
        codes_of([units[sha] for sha in kept], len(kept)),
        tuple(dict.fromkeys(row.reader for row in found if row.reader)), missing, disputed, unsure,
    )  # fmt: skip


def _flag(rows: Iterable[Row]) -> bool | None:
    """Returns whether an image was flagged when it was marked, by most rows that say it."""
    said = [row.flagged for row in rows if row.flagged is not None]
    return sum(said) * 2 >= len(said) if said else None
