"""Layouts: which image files a folder or CSV manifest holds, with their kinds, labels, masks and splits.

Knows names and places. The kind of each file is decided here, once; no image is opened but to see whether it
is one.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..core.errors import DataError, first_line, printable
from .formats.limits import SUFFIXES, Kind, is_special, kind_of, stem_of
from .imageset import ANOMALOUS, NORMAL
from .options import ReadOptions

_SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_NORMAL_WORDS = {"0", "normal", "good", "ok", "healthy", "negative"}
_ANOMALOUS_WORDS = {"1", "anomalous", "anomaly", "abnormal", "defect", "defective", "bad", "positive"}


class MissingSplit(DataError):
    """The source is sound but has no such split."""


class Entry(NamedTuple):
    """One image: where its pixels are, and what its place says about it.

    Args:
        file: the file that holds it.
        kind: which reader opens that file; decided once, when the file is listed.
        name: relative path; with `#NUMBER` where the file holds several images.
        label: 0 = normal, 1 = anomalous; None where unknown.
        mask: the file of its mask; None where it has none.
        mask_kind: which reader opens that file.
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


def image_files(path: str | os.PathLike[str]) -> dict[Path, Kind]:
    """The image files below a folder, in natural order of their relative path, each with its kind.

    Hidden files and folders are left out, and pipes, devices and DICOMDIRs. Linked folders are followed once,
    wherever they lead but up: a link to a folder in which this one lies is left out, as it would bring in all
    that stands beside it.
    """
    found: dict[Path, Kind] = {}
    seen = {str(folder) for folder in Path(os.path.realpath(path)).parents}
    for folder, folders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [f for f in folders if not f.startswith((".", "__MACOSX"))]
        for file in [] if real in seen else [Path(folder, name) for name in files]:
            passed_over = file.name.startswith(".") or file.name.upper().startswith("DICOMDIR")
            if not passed_over and (kind := kind_of(file)) and not is_special(file):
                found[file] = kind
        seen.add(real)
    return dict(sorted(found.items(), key=lambda item: natural(item[0].relative_to(path).as_posix())))


def natural(text: str) -> tuple[list[str | int], str]:
    """Sort key by which `img2` comes before `img10`."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))], text


def words(text: str | None) -> list[str]:
    """The words of a comma-separated list; none where `text` is None."""
    return [w.strip() for w in (text or "").split(",") if w.strip()]


def listed(items: Iterable[object]) -> str:
    """The items as text, sorted, with commas between them."""
    return ", ".join(sorted(map(str, items)))


def folder_entries(root: Path, options: ReadOptions) -> list[Entry]:
    """An entry for each image file of a folder, in the layouts that `readers.read` describes.

    Args:
        root: the folder.
        options: `normal`, `anomalous`, `split_folders` and `masks` matter.

    Returns:
        The entries in natural order of their names, all splits together.

    Raises:
        DataError: no images, a layout that says two things, or classes and masks that are not there.
    """
    normal, anomalous = words(options.normal), words(options.anomalous)
    splits, masks_in = _splits(options), options.masks or "ground_truth"
    kinds = image_files(root)
    found = {file: file.relative_to(root).parts for file in kinds}
    files = {file: parts for file, parts in found.items() if parts[0] != masks_in}
    masks = {(*found[f][1:-1], stem_of(f).removesuffix("_mask")): f for f in found if f not in files}
    if not files:
        raise DataError(f"{root}: no images in this folder ({listed(SUFFIXES)})")
    if options.masks and not masks:
        raise DataError(f"{root}: no masks in {masks_in}/, which should hold them")
    has_splits = any(parts[0].lower() in splits for parts in files.values())
    if options.split_folders and not has_splits:
        raise DataError(
            f"{root}: none of its folders is called {' or '.join(options.split_folders.values())}"
        )
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
        split = splits.get(files[file][0].lower())
        if has_splits and split is None:
            named = options.split_folders.values() if options.split_folders else ("train", "test")
            raise DataError(
                f"{file}: outside {' and '.join(f'{f}/' for f in named)}; move it into one of them"
            )
        label = None
        if normal:
            if not folder and split != "train":
                raise DataError(f"{file}: not in a class folder ({listed(classes)})")
            if folder and anomalous and folder[0] not in (*normal, *anomalous):
                continue
            label = NORMAL if not folder or folder[0] in normal else ANOMALOUS
        mask = masks.get((*folder, stem_of(file)))
        mask_kind: Kind = kinds[mask] if mask else "plain"
        entries.append(Entry(file, kinds[file], "/".join(files[file]), label, mask, mask_kind, split))
    if masks and not any(e.mask for e in entries):
        raise DataError(f"{root}: no mask fits an image; expected {masks_in}/<class>/NAME_mask.png")
    return entries


def _splits(options: ReadOptions) -> dict[str, str]:
    """The split of each folder name (or word of a manifest), in small letters."""
    if options.split_folders is None:
        return _SPLIT_FOLDERS
    return {folder.lower(): split for split, folder in options.split_folders.items()}


def _warn_of_classes(root: Path, classes: list[str]) -> None:
    if len(classes) > 1:
        named = ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
        said = (
            f"{root}: the subfolders {named} are all read as normal; if they are classes, give --normal NAME"
        )
        warnings.warn(printable(said), stacklevel=5)  # the caller of `read`


def with_fixed_split(entries: list[Entry], train_normals: int | float | None) -> list[Entry]:
    """The entries with the split that is made for class folders; the slices of a volume stay together.

    Args:
        entries: labelled, without a split.
        train_normals: share (float) or number (int) of the normals that are `train`; 0.8 where None.

    Returns:
        The same entries, each in `train` or `test`.
    """
    train_normals = 0.8 if train_normals is None else train_normals
    order = list(dict.fromkeys(e.volume or e.name for e in entries if e.label == NORMAL))
    order.sort(key=lambda name: hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest())
    number = train_normals if isinstance(train_normals, int) else int(train_normals * len(order))
    train = set(order[:number])
    return [
        e._replace(split="train" if e.label == NORMAL and (e.volume or e.name) in train else "test")
        for e in entries
    ]


def manifest_entries(path: Path, options: ReadOptions) -> list[Entry]:
    """An entry for each row of a CSV manifest, in the order of the rows.

    Args:
        path: the manifest, as `readers.read` describes it.
        options: `normal` and `split_folders` matter.

    Returns:
        The entries of all splits.

    Raises:
        DataError: a manifest that cannot be used; the message says which line, and why.
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
    if split is not None and (split := splits.get(split.lower())) is None:
        raise DataError(f"{where}: unknown split {row['split']!r}; use {', '.join(splits)}")
    mask_kind: Kind = (mask and kind_of(mask)) or "plain"
    return Entry(file, kind_of(file) or "plain", Path(row["path"]).as_posix(), label, mask, mask_kind, split)


def of_split(path: Path, entries: list[Entry], split: str | None) -> list[Entry]:
    """The entries of one split; all of them where `split` is None or "all", or where there are no splits.

    Args:
        path: what is read, for messages.
        entries: of all splits.
        split: "train", "val", "test", "all" or None.

    Returns:
        Those entries, in their order.

    Raises:
        MissingSplit: there are splits, but not this one.
    """
    available = {e.split for e in entries}
    if split in (None, "all") or None in available:
        return entries
    if split not in available:
        raise MissingSplit(f"{path}: no split {split!r}; there are: {listed(available)}")
    return [e for e in entries if e.split == split]


def labels_of(entries: Sequence[Entry]) -> np.ndarray | None:
    """`(N,)` int8 labels of N entries; None where they are not known."""
    known = bool(entries) and entries[0].label is not None  # all have one or none has
    return np.array([e.label for e in entries], np.int8) if known else None
