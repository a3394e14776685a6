"""Layouts: which image files a folder or CSV manifest holds, with their labels, masks and splits.

Knows names and places; opens no image but to see whether it is one.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ..core.errors import DataError, printable
from .formats.decode import first_line
from .formats.limits import SUFFIXES, is_image, stem_of
from .imageset import ANOMALOUS, NORMAL

SPLITS = ("train", "val", "test")
_SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_NORMAL_WORDS = {"0", "normal", "good", "ok", "healthy", "negative"}
_ANOMALOUS_WORDS = {"1", "anomalous", "anomaly", "abnormal", "defect", "defective", "bad", "positive"}


class MissingSplit(DataError):
    """The source is sound but has no such split."""


class Entry(NamedTuple):
    """One image and what its place says about it.

    Args:
        file: that holds it.
        name: relative path; with `#NUMBER` where the file holds several.
        label: 0 = normal, 1 = anomalous; None where unknown.
        mask: file of its mask.
        split: None where it belongs to every split.
        number: of the frame, slice or page, from 0; None where the file is one image.
        volume: whose slice it is; None where it is none.
        problem: why the file cannot be read, where that is known already.
    """

    file: Path
    name: str
    label: int | None = None
    mask: Path | None = None
    split: str | None = None
    number: int | None = None
    volume: str | None = None
    problem: str | None = None


def image_files(path: str | os.PathLike[str]) -> list[Path]:
    """The image files below a folder (or the file itself), in natural order of their relative path.

    Hidden files and folders are left out; linked folders are followed once, wherever they lead but up: a link
    to a folder in which this one lies is left out, as it would bring in all that stands beside.
    """
    root = Path(path)
    if not root.is_dir():
        return [root]
    found: list[Path] = []
    above = Path(os.path.realpath(root)).parents
    seen = set(map(str, above))
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [f for f in folders if not f.startswith((".", "__MACOSX"))]
        if real not in seen:
            found += [Path(folder, f) for f in files if f[0] != "." and is_image(Path(folder, f))]
        seen.add(real)
    return sorted(found, key=lambda f: natural(f.relative_to(root).as_posix()))


def natural(text: str) -> tuple[list[str | int], str]:
    """Sort key by which `img2` comes before `img10`."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))], text


def words(text: str | None) -> list[str]:
    """Of a comma-separated list."""
    return [w.strip() for w in (text or "").split(",") if w.strip()]


def listed(items: Iterable[object]) -> str:
    """In order, with commas."""
    return ", ".join(sorted(map(str, items)))


def folder_entries(root: Path, normal: list[str], anomalous: list[str]) -> list[Entry]:
    """An entry for each image file of a folder, in the layouts of `readers.read`."""
    found = {file: file.relative_to(root).parts for file in image_files(root)}
    files = {file: parts for file, parts in found.items() if parts[0] != "ground_truth"}
    masks = {(*found[f][1:-1], stem_of(f).removesuffix("_mask")): f for f in found if f not in files}
    if not files:
        raise DataError(f"{root}: no images in this folder ({listed(SUFFIXES)})")
    has_splits = any(parts[0].lower() in _SPLIT_FOLDERS for parts in files.values())
    below = {parts[:2] for parts in files.values() if len(parts) > 2}
    if not has_splits and (
        nested := sorted(p[0] for p in below if {(p[0], "train"), (p[0], "test")} <= below)
    ):
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
        split = _SPLIT_FOLDERS.get(files[file][0].lower())
        if has_splits and split is None:
            raise DataError(f"{file}: outside train/ and test/; move it into one of them")
        label = None
        if normal:
            if not folder and split != "train":
                raise DataError(f"{file}: not in a class folder ({listed(classes)})")
            if folder and anomalous and folder[0] not in (*normal, *anomalous):
                continue
            label = NORMAL if not folder or folder[0] in normal else ANOMALOUS
        mask = masks.get((*folder, stem_of(file)))
        entries.append(Entry(file, "/".join(files[file]), label, mask, split))
    if masks and not any(e.mask for e in entries):
        raise DataError(f"{root}: no mask fits an image; expected ground_truth/<class>/NAME_mask.png")
    return entries


def _warn_of_classes(root: Path, classes: list[str]) -> None:
    if len(classes) > 1:
        named = ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
        said = (
            f"{root}: the subfolders {named} are all read as normal; if they are classes, give --normal NAME"
        )
        warnings.warn(printable(said), stacklevel=5)  # the caller of `read`


def with_fixed_split(entries: list[Entry], train_normals: float) -> list[Entry]:
    """The split made for class folders; the slices of a volume stay together."""
    order = list(dict.fromkeys(e.volume or e.name for e in entries if e.label == NORMAL))
    order.sort(key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest())
    number = train_normals if isinstance(train_normals, int) else int(train_normals * len(order))
    train = set(order[:number])
    return [
        e._replace(split="train" if e.label == NORMAL and (e.volume or e.name) in train else "test")
        for e in entries
    ]


def manifest_entries(path: Path, normal: list[str]) -> list[Entry]:
    """An entry for each row of a CSV manifest."""
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
                entry = _manifest_row(row, path.parent, normal, where)
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


def _manifest_row(row: dict, folder: Path, normal: list[str], where: str) -> Entry:
    if None in row or None in row.values():  # csv's way to say: too many fields, too few
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
    if split is not None and (split := _SPLIT_FOLDERS.get(split.lower())) is None:
        raise DataError(f"{where}: unknown split {row['split']!r}; use {', '.join(SPLITS)}")
    return Entry(file, Path(row["path"]).as_posix(), label, mask, split)


def of_split(path: Path, entries: list[Entry], split: str | None) -> list[Entry]:
    """The entries of one split.

    Raises:
        MissingSplit: there are splits, but not this.
    """
    available = {e.split for e in entries}
    if split in (None, "all") or None in available:
        return entries
    if split not in available:
        raise MissingSplit(f"{path}: no split {split!r}; there are: {listed(available)}")
    return [e for e in entries if e.split == split]
