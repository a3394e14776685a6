"""Manifests: spreadsheets with a row for each image, which say where it is and what is known of it.

Knows names, places and columns; `formats.spreadsheet` reads the cells. Columns of other names than ours are
kept, and copied into results.
"""

from __future__ import annotations

import difflib
import logging
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..core.errors import DataError, printable
from .formats.spreadsheet import plain_cell, read_sheet
from .imageset import ANOMALOUS, NORMAL
from .layouts import ANOMALOUS_WORDS, NORMAL_WORDS, Entry, ImageFile, own_pictures, splits_of, words
from .options import ReadOptions

NEEDED = ("path", "label")
COLUMNS = (*NEEDED, "mask", "split", "patient")
_log = logging.getLogger(__name__)


def manifest_entries(path: Path, options: ReadOptions) -> list[Entry]:
    """Makes an entry of each row of a manifest, in the order of the rows.

    Args:
        path: the manifest, as `readers.read` describes it.
        options: `normal` and `split_folders` matter.

    Returns:
        The entries of all splits.

    Raises:
        DataError: a manifest that cannot be used; the message names the line and the reason.
    """
    sheet = read_sheet(path, NEEDED)
    header = [name.casefold() if name.casefold() in COLUMNS else name for name in sheet.header]
    extra = [name for name in header if name and name not in COLUMNS]
    _log.info("%s%s", sheet.said, f"; kept beside ours: {', '.join(extra)}" if extra else "")
    _warn_of_near(path, header, extra)
    normal, splits = words(options.normal), splits_of(options)
    entries: dict[str, Entry] = {}
    for line, cells in sheet.rows:
        row, where = dict(zip(header, cells, strict=True)), f"{path}, line {line}"
        entry = _entry(row, path.parent, normal, splits, where)
        if entry.name in entries:
            raise DataError(f"{where}: {entry.name} is listed twice")
        first = next(iter(entries.values()), entry)
        for column in ("label", "split", "patient"):
            if (getattr(entry, column) is None) != (getattr(first, column) is None):
                raise DataError(f"{where}: either all {column}s are empty or none is")
        entries[entry.name] = entry._replace(extra=tuple((name, plain_cell(row[name])) for name in extra))
    if not entries:
        raise DataError(f"{path}: no rows below the header")
    if ours := own_pictures(path, [e.file for e in entries.values()]):
        entries = {name: e for name, e in entries.items() if e.file not in ours}
    if not entries:
        raise DataError(f"{path}: all its rows name pictures that dia drew, no scans")
    if normal and NORMAL not in {e.label for e in entries.values()}:
        raise DataError(f"{path}: no row has the label {' or '.join(normal)}")
    return list(entries.values())


def _warn_of_near(path: Path, header: Sequence[str], extra: Sequence[str]) -> None:
    """Warns of columns that are called nearly as ours are, and so are not used as ours."""
    for name in extra:
        plain = "".join(filter(str.isalpha, name.casefold()))
        parts = [c for c in COLUMNS if plain.removesuffix("id") == c or plain.removesuffix("s") == c]
        near = parts or difflib.get_close_matches(plain, COLUMNS, 1, 0.8)
        if near and near[0] not in header:
            said = f"{path}: the column {name} is only copied; to use it as {near[0]}, call it {near[0]}"
            warnings.warn(printable(said), stacklevel=5)  # names the caller of `read`


def _entry(
    row: Mapping[str, str], folder: Path, normal: Sequence[str], splits: Mapping[str, str], where: str
) -> Entry:
    name = _form(folder, row["path"], where)
    file, mask = folder / name, None
    if row.get("mask"):
        mask = folder / _form(folder, row["mask"], where)
    text, label = row["label"], None
    if text in normal or (not normal and text.lower() in NORMAL_WORDS):
        label = NORMAL
    elif text and (normal or text.lower() in ANOMALOUS_WORDS):
        label = ANOMALOUS
    elif text:
        raise DataError(f"{where}: unknown label {text!r}; use 0/1, normal/anomalous, or give --normal LABEL")
    split = row.get("split") or None
    if split is not None and (split := splits.get(split.lower())) is None:
        raise DataError(f"{where}: unknown split {row['split']!r}; use {', '.join(splits)}")
    kind, mask_kind = ((image.kind if f and (image := ImageFile.of(f)) else "plain") for f in (file, mask))
    patient = row.get("patient") or None
    return Entry(file, kind, Path(name).as_posix(), label, mask, mask_kind, split, patient=patient)


def _form(folder: Path, written: str, where: str) -> str:
    """Returns the first form of a path of which there is a file."""
    try:
        found = next((form for form in _forms(written) if (folder / form).is_file()), None)
    except OSError as error:  # as of a name that is too long
        raise DataError(f"{where}: {error.strerror}: {written[:100]}") from error
    if found is None:
        raise DataError(f"{where}: no such file: {folder / written}")
    return found


def _forms(written: str) -> Iterator[str]:
    """Yields a path as it stands, as `dia score` wrote it, of Windows, and in both forms of Unicode."""
    yield written
    for text in dict.fromkeys((plain_cell(written), plain_cell(written).replace("\\", "/"))):
        yield text
        yield unicodedata.normalize("NFC", text)
        yield unicodedata.normalize("NFD", text)
