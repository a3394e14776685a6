"""Layouts: which image files a folder or CSV manifest holds, with their kinds, labels, masks and splits.

Knows names and places. The kind of each file is decided here, once; an image is opened only to see whether it
is one.
"""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..core.errors import DataError, first_line, printable
from .imageset import ANOMALOUS, NORMAL
from .options import ReadOptions

Kind = Literal["plain", "png", "tiff", "dicom", "nifti"]  # plain: what Pillow alone reads
_KINDS: dict[str, Kind] = {
    ".png": "png",
    **dict.fromkeys((".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm", ".ppm"), "plain"),
    **dict.fromkeys((".tif", ".tiff"), "tiff"),
    **dict.fromkeys((".dcm", ".dicom"), "dicom"),
    **dict.fromkeys((".nii", ".nii.gz"), "nifti"),
}
SUFFIXES = frozenset(_KINDS)
_SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_NORMAL_WORDS = {"0", "normal", "good", "ok", "healthy", "negative"}
_ANOMALOUS_WORDS = {"1", "anomalous", "anomaly", "abnormal", "defect", "defective", "bad", "positive"}


class MissingSplit(DataError):
    """The source is sound but has no such split."""


class ImageFile(NamedTuple):
    """A file that is an image by its suffix, or by its first bytes where the suffix says nothing.

    Args:
        path: the file.
        kind: the reader that opens it; what the file then holds is checked by that reader.
        stem: its name without the suffix; `.nii.gz` is one suffix.
    """

    path: Path
    kind: Kind
    stem: str

    @classmethod
    def of(cls, path: Path) -> ImageFile | None:
        """Classifies a file; None where nothing says that it is an image."""
        end = ".nii.gz" if path.name.lower().endswith(".nii.gz") else path.suffix
        kind = _KINDS.get(end.lower()) or ("dicom" if _has_preamble(path) else None)
        return kind and cls(path, kind, path.name[: len(path.name) - len(end)])


def _has_preamble(path: Path) -> bool:
    """Returns whether `DICM` stands at byte 128."""
    try:
        if not path.is_file():  # opening a pipe would block
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


class Entry(NamedTuple):
    """One image: where its pixels are, and what its place says about it.

    Args:
        file: the file that holds it.
        kind: the reader that opens that file; decided once, when the file is listed.
        name: relative path; with `#NUMBER` where the file holds several images.
        label: 0 = normal, 1 = anomalous; None where unknown.
        mask: the file of its mask; None where it has none.
        mask_kind: the reader that opens that file.
        split: "train", "val" or "test"; None where it belongs to every split.
        number: of the frame, slice or page, from 0; None where the file is one image.
        volume: the volume that it is a slice of; None where it is none.
        problem: why the file cannot be read, where that is known already.
    """

    file: Path
    kind: Kind
    name: str
    label: int | None = None
    mask: Path | None = None
    mask_kind: Kind = "plain"
    split: str | None = None
    number: int | None = None
    volume: str | None = None
    problem: str | None = None


def image_files(path: str | os.PathLike[str]) -> list[ImageFile]:
    """Lists the image files below a folder, in natural order of their relative path.

    Hidden files and folders are left out, and pipes, devices and DICOMDIRs. Linked folders are followed once,
    but for a link to a folder in which this one lies: it would bring in all that lies there.
    """
    found: list[ImageFile] = []
    seen = {str(folder) for folder in Path(os.path.realpath(path)).parents}
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [f for f in folders if not f.startswith((".", "__MACOSX"))]
        for file in (Path(folder, name) for name in files):
            # a link to nothing stays: reading says what is wrong with it
            passed_over = file.name.startswith(".") or file.name.upper().startswith("DICOMDIR")
            if not passed_over and (image := ImageFile.of(file)) and (file.is_file() or not file.exists()):
                found.append(image)
    return sorted(found, key=lambda f: _natural(f.path.relative_to(path).as_posix()))


def _natural(text: str) -> tuple[list[str | int], str]:
    """Returns a sort key by which `img2` comes before `img10`."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))], text


def words(text: str | None) -> list[str]:
    """Splits a comma-separated list; an empty list where `text` is None."""
    return [w.strip() for w in (text or "").split(",") if w.strip()]


def listed(items: Iterable[object]) -> str:
    """Joins the items, sorted, with commas."""
    return ", ".join(sorted(map(str, items)))


def folder_entries(root: Path, options: ReadOptions) -> list[Entry]:
    """Lists the image files of a folder, in the layouts that `readers.read` describes.

    Args:
        root: the folder.
        options: `normal`, `anomalous`, `split_folders` and `masks` matter.

    Returns:
        The entries in natural order of their names, all splits together.

    Raises:
        DataError: no images, a layout that is ambiguous, or classes and masks that are not there.
    """
    normal, anomalous = words(options.normal), words(options.anomalous)
    splits, masks_in = _splits(options), options.masks or "ground_truth"
    found = {file: file.path.relative_to(root).parts for file in image_files(root)}
    files = {file: parts for file, parts in found.items() if parts[0] != masks_in}
    masks = {(*p[1:-1], f.stem.removesuffix("_mask")): f for f, p in found.items() if f not in files}
    if not files:
        raise DataError(f"{root}: no images in this folder ({listed(SUFFIXES)})")
    if options.masks and not masks:
        raise DataError(f"{root}: no masks in {masks_in}/, which should hold them")
    has_splits = any(parts[0].lower() in splits for parts in files.values())
    named = list(options.split_folders.values()) if options.split_folders else ["train", "test"]
    if options.split_folders and not has_splits:
        raise DataError(f"{root}: none of its folders is called {' or '.join(named)}")
    below = {parts[:2] for parts in files.values() if len(parts) > 2}
    nested = sorted(p[0] for p in below if {(p[0], "train"), (p[0], "test")} <= below)
    if nested and not has_splits:
        raise DataError(f"{root}: train/ and test/ lie one level down; read {root / nested[0]} instead")
    folders = {file: parts[int(has_splits) : -1] for file, parts in files.items()}  # below train/ or test/
    classes = {folder[0] for folder in folders.values() if folder}
    if has_splits and not normal and "good" in classes:
        normal = ["good"]
    if absent := {*normal, *anomalous} - classes:
        raise DataError(f"{root}: no class folder {listed(absent)}; there are: {listed(classes) or 'none'}")
    if not normal:
        _warn_of_classes(root, sorted({folder[0] for folder in folders.values() if len(folder) == 1}))
    entries = []
    for file, folder in folders.items():
        split, label = splits.get(files[file][0].lower()) if has_splits else None, None
        if has_splits and split is None:
            inside = " and ".join(f"{name}/" for name in named)
            raise DataError(f"{file.path}: outside {inside}; move it into one of them")
        if normal:
            if not folder and split != "train":
                raise DataError(f"{file.path}: not in a class folder ({listed(classes)})")
            if folder and anomalous and folder[0] not in (*normal, *anomalous):
                continue
            label = NORMAL if not folder or folder[0] in normal else ANOMALOUS
        mask = masks.get((*folder, file.stem))
        entry = Entry(file.path, file.kind, "/".join(files[file]), label, split=split)
        entries.append(entry._replace(mask=mask.path, mask_kind=mask.kind) if mask else entry)
    if masks and not any(e.mask for e in entries):
        raise DataError(f"{root}: no mask fits an image; expected {masks_in}/<class>/NAME_mask.png")
    return entries


def _splits(options: ReadOptions) -> dict[str, str]:
    """Returns the split of each folder name (or word of a manifest), in small letters."""
    if options.split_folders is None:
        return _SPLIT_FOLDERS
    return {folder.lower(): split for split, folder in options.split_folders.items()}


def _warn_of_classes(root: Path, classes: list[str]) -> None:
    if len(classes) > 1:
        named = ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
        said = (
            f"{root}: the subfolders {named} are all read as normal; if they are classes, give --normal NAME"
        )
        warnings.warn(printable(said), stacklevel=5)  # names the caller of `read`


def manifest_entries(path: Path, options: ReadOptions) -> list[Entry]:
    """Makes an entry of each row of a CSV manifest, in the order of the rows.

    Args:
        path: the manifest, as `readers.read` describes it.
        options: `normal` and `split_folders` matter.

    Returns:
        The entries of all splits.

    Raises:
        DataError: a manifest that cannot be used; the message names the line and the reason.
    """
    normal, splits = words(options.normal), _splits(options)
    entries: dict[str, Entry] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [h.strip().lower() for h in reader.fieldnames or ()]
            if not {"path", "label"} <= set(header) <= {"path", "label", "mask", "split"}:
                raise DataError(f"{path}, line 1: the header must be path,label[,mask][,split], not {header}")
            reader.fieldnames = header
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                entry = _manifest_row(row, path.parent, normal, splits, where)
                if entry.name in entries:
                    raise DataError(f"{where}: {entry.name} is listed twice")
                first = next(iter(entries.values()), entry)
                for column in ("label", "split"):
                    if (getattr(entry, column) is None) != (getattr(first, column) is None):
                        raise DataError(f"{where}: either all {column}s are empty or none is")
                entries[entry.name] = entry
    except (csv.Error, UnicodeDecodeError, OSError) as e:
        raise DataError(f"{path}: not a readable CSV file ({first_line(e)})") from e
    if not entries:
        raise DataError(f"{path}: no rows below the header")
    if normal and NORMAL not in {e.label for e in entries.values()}:
        raise DataError(f"{path}: no row has the label {' or '.join(normal)}")
    return list(entries.values())


def _manifest_row(row: dict, folder: Path, normal: list[str], splits: dict[str, str], where: str) -> Entry:
    if None in row or None in row.values():  # csv marks too many fields, and too few, so
        raise DataError(f"{where}: the number of fields differs from the header's")
    row = {key: value.strip() for key, value in row.items()}
    file, mask = folder / row["path"], folder / row["mask"] if row.get("mask") else None
    for place in (file, mask):
        if place is not None and not place.is_file():
            raise DataError(f"{where}: no such file: {place}")
    text, label = row["label"], None
    if text in normal or (not normal and text.lower() in _NORMAL_WORDS):
        label = NORMAL
    elif text and (normal or text.lower() in _ANOMALOUS_WORDS):
        label = ANOMALOUS
    elif text:
        raise DataError(f"{where}: unknown label {text!r}; use 0/1, normal/anomalous, or give --normal LABEL")
    split = row.get("split") or None
    if split is not None and (split := splits.get(split.lower())) is None:
        raise DataError(f"{where}: unknown split {row['split']!r}; use {', '.join(splits)}")
    kind, mask_kind = ((image.kind if f and (image := ImageFile.of(f)) else "plain") for f in (file, mask))
    return Entry(file, kind, Path(row["path"]).as_posix(), label, mask, mask_kind, split)


def labels_of(entries: Sequence[Entry]) -> np.ndarray | None:
    """Returns the `(N,)` int8 labels of N entries; None where they are not known."""
    known = bool(entries) and entries[0].label is not None  # all entries have one or none has
    return np.array([e.label for e in entries], np.int8) if known else None
