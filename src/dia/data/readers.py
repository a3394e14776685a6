"""Readers: a folder, MedMNIST-like .npz, CSV manifest or image file in; an `ImageSet`, or a stream, out.

Knows layouts, splits, labels and names; leaves files to pixels to `decode`, where the rules for pixels are
written, and particular data sets to `catalog`. Knows nothing of models.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .decode import Decoded, Source, conform, decode, decode_batches, first_line, from_16_bit
from .imageset import ANOMALOUS, NORMAL, DataError, ImageSet

SPLITS = ("train", "val", "test")
SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm"])
_SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_NORMAL_WORDS = {"0", "normal", "good", "ok", "healthy", "negative"}
_ANOMALOUS_WORDS = {"1", "anomalous", "anomaly", "abnormal", "defect", "defective", "bad", "positive"}


class MissingSplit(DataError):
    """The source is sound but has no such split."""


class _Entry(NamedTuple):
    """One image file and what its place says about it."""

    file: Path
    name: str
    label: int | None = None
    mask: Path | None = None
    split: str | None = None  # None: belongs to every split


def read(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    normal: str | None = None,
    anomalous: str | None = None,
    size: int | tuple[int, int] | None = None,
    max_size: int | None = None,
    channels: int | None = None,
    train_normals: float = 0.8,
    skip_bad: bool = False,
    workers: int | None = None,
    memmap_above: int = 2**30,
    progress: bool = False,
) -> ImageSet:
    """Images of `path` as one `(N, H, W, 1 or 3)` uint8 array, 0–255, with labels, masks and names.

    Layouts, told apart by what `path` is:

    - `.npz` as MedMNIST: `{train,val,test}_images` (N, H, W[, 3]), optional `_labels` (N[, 1]), `_masks`
      (N, H, W), `_names`. The label values in `normal` (default "0") are normal, all others anomalous.
    - folder with `train/`, `test/` (and `val/`): below them class folders if there is a class `good`
      (as MVTec) or `normal` is given; unlabelled otherwise. Files directly in `train/` are normal.
    - folder with class folders, where `normal` is given. It has no official split, so a fixed one is made:
      normals sorted by the sha256 of `class/file`; the first `train_normals` are `train`, all else `test`.
    - any other folder: unlabelled, taken as normal, all of it for any split; a warning if it seems to have
      classes.
    - `.csv` with columns `path,label[,mask][,split]`: paths relative to the CSV's folder; labels 0/1 or
      words as normal/anomalous, good/defect, or all empty. Values in `normal`, if given, are the normal ones.
    - one image file.

    A folder `ground_truth/<class>/NAME_mask.png` (or `NAME.png`) beside the above holds masks.
    Hidden files and files that are not images by their suffix are ignored.

    Args:
        path: what to read.
        split: "train", "val", "test"; None or "all" for everything.
        normal: comma-separated classes (or label values) that are normal.
        anomalous: comma-separated classes that are anomalous; classes in neither list are left out.
        size: (H, W), or n for n × n; without it all images must share one size, after `max_size`.
        max_size: without `size`, images whose longer side is above it are shrunk to it, keeping the aspect.
        channels: 1 (grey) or 3 (RGB); by default as the files are.
        train_normals: share (float) or number (int) of the normals in the train split made for class folders.
        skip_bad: leave unreadable files out; one line each goes to `ImageSet.skipped`.
        workers: decoding threads, by default one per core; 1 decodes in the caller's.
        memmap_above: images of more bytes than this go to a memory map on an unlinked temporary file.
        progress: show a bar with the time left on stderr.

    Raises:
        MissingSplit: `split` is not among the source's splits.
        DataError: anything else that cannot be used; one line saying what, where, and the remedy.
    """
    found = listing(
        path,
        split=split,
        normal=normal,
        anomalous=anomalous,
        size=size,
        max_size=max_size,
        channels=channels,
        train_normals=train_normals,
        skip_bad=skip_bad,
    )
    return found.read(workers=workers, memmap_above=memmap_above, progress=progress)


@dataclass(frozen=True, eq=False)
class Listing:
    """What a path holds, before its pixels are read: see `listing`. Pickles; a part pickles small.

    Args:
        fit: `conform` with the size and channels asked for.
        entries: the image files, none where there is `whole`.
        whole: all images at once, where they come from one file or are generated.
        skip_bad: leave unreadable files out; one line each goes to `ImageSet.skipped`.
        title: for the progress bar.
    """

    fit: partial[ImageSet]
    entries: Sequence[_Entry] = ()
    whole: ImageSet | None = None
    skip_bad: bool = False
    title: str = ""

    def __len__(self) -> int:
        return len(self.entries if self.whole is None else self.whole)

    @property
    def names(self) -> Sequence[str]:
        """As those of `ImageSet`, of files that may prove unreadable too."""
        return tuple(e.name for e in self.entries) if self.whole is None else self.whole.names

    @property
    def labels(self) -> np.ndarray | None:
        """As those of `ImageSet`, of files that may prove unreadable too."""
        return _labels(self.entries) if self.whole is None else self.whole.labels

    def part(self, start: int, stop: int) -> Listing:
        """Images `start` to `stop` (not included) as a listing, for another process or machine to read."""
        if self.whole is not None:
            return replace(self, whole=self.whole.subset(slice(start, stop)))
        return replace(self, entries=self.entries[start:stop])

    def read(
        self, *, workers: int | None = None, memmap_above: int = 2**30, progress: bool = False
    ) -> ImageSet:
        """All images as one set; the arguments are those of `read`."""
        if self.whole is not None:
            return self.fit(self.whole)
        decoded = decode(
            _sources(self.entries),
            self.fit,
            skip_bad=self.skip_bad,
            workers=workers,
            memmap_above=memmap_above,
            progress=f"Reading {self.title}" if progress else None,
        )
        return _as_set(self.entries, decoded)

    def stream(
        self, batch: int = 512, start: int = 0, *, workers: int | None = None
    ) -> Generator[ImageSet, None, None]:
        """The images from `start` on in sets of `batch`, in order; memory is bounded by the batch.

        While one set is used, up to a batch more is decoded by one pool of threads. Each batch is a set of
        its own: give size and channels for sets of one shape; it has masks if one of its images has. With
        `skip_bad` it has fewer images, perhaps none, and says in `skipped` which it lacks.
        """
        if self.whole is not None:
            for i in range(start, len(self), batch):
                yield self.fit(self.whole.subset(slice(i, i + batch)))
            return
        entries = self.entries[start:]
        batches = decode_batches(_sources(entries), self.fit, batch, skip_bad=self.skip_bad, workers=workers)
        with closing(batches):
            for i, decoded in enumerate(batches):
                yield _as_set(entries[i * batch : (i + 1) * batch], decoded)


def listing(
    path: str | os.PathLike[str],
    *,
    split: str | None = None,
    normal: str | None = None,
    anomalous: str | None = None,
    size: int | tuple[int, int] | None = None,
    max_size: int | None = None,
    channels: int | None = None,
    train_normals: float = 0.8,
    skip_bad: bool = False,
) -> Listing:
    """What `read` would read, told before any pixel is: its names and labels, and its images as a stream.

    Only an `.npz` is read whole, and its stream cut from that. Arguments and errors are those of `read`.
    """
    path = Path(path)
    if split not in (*SPLITS, "all", None):
        raise DataError(f"split must be {', '.join(SPLITS)} or all, not {split!r}")
    fit = partial(conform, size=size, max_size=max_size, channels=channels)
    fit(ImageSet(np.zeros((1, 1, 1, 3), np.uint8)))  # complains before any reading
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if path.is_dir():
        entries = _folder(path, _words(normal), _words(anomalous), train_normals)
    elif suffix == ".npz":
        return Listing(fit, whole=_npz(path, split, _words(normal) or ["0"]))
    elif suffix == ".csv":
        entries = _manifest(path, _words(normal))
    elif suffix in SUFFIXES:
        entries = [_Entry(path, path.name)]
    else:
        raise DataError(f"{path}: expected a folder, .npz, .csv or image ({_listed(SUFFIXES)})")
    entries = _of_split(path, entries, split)
    bare = [e.file for e in entries if e.mask is None and e.label != NORMAL]
    if bare and any(e.mask for e in entries):
        raise DataError(f"{bare[0]}: no mask, though others have one; add it or remove the masks")
    return Listing(fit, entries, skip_bad=skip_bad, title=path.name)


def _sources(entries: Sequence[_Entry]) -> list[Source]:
    return [Source(e.file, e.mask) for e in entries]


def _labels(entries: Sequence[_Entry]) -> np.ndarray | None:
    known = bool(entries) and entries[0].label is not None  # all have one or none has
    return np.array([e.label for e in entries], np.int8) if known else None


def _as_set(entries: Sequence[_Entry], decoded: Decoded) -> ImageSet:
    images, masks, kept, skipped = decoded
    entries = [entries[i] for i in kept]
    return ImageSet(images, _labels(entries), masks, tuple(e.name for e in entries), tuple(skipped))


def image_files(path: str | os.PathLike[str]) -> list[Path]:
    """The image files below a folder (or the file itself), in natural order of their relative path.

    Hidden files and folders are left out; linked folders are followed once.
    """
    root = Path(path)
    if not root.is_dir():
        return [root]
    found: list[Path] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else [f for f in folders if not f.startswith((".", "__MACOSX"))]
        if real not in seen:
            found += [Path(folder, f) for f in files if f[0] != "." and Path(f).suffix.lower() in SUFFIXES]
        seen.add(real)
    return sorted(found, key=lambda f: _natural(f.relative_to(root).as_posix()))


def _natural(text: str) -> tuple[list[str | int], str]:
    """Sort key by which `img2` comes before `img10`."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", text))], text


def _words(text: str | None) -> list[str]:
    return [w.strip() for w in (text or "").split(",") if w.strip()]


def _listed(items: Iterable[object]) -> str:
    return ", ".join(sorted(map(str, items)))


# --- sources: what is where ---------------------------------------------------------------------------


def _folder(root: Path, normal: list[str], anomalous: list[str], train_normals: float) -> list[_Entry]:
    found = {file: file.relative_to(root).parts for file in image_files(root)}
    files = {file: parts for file, parts in found.items() if parts[0] != "ground_truth"}
    masks = {(*found[f][1:-1], f.stem.removesuffix("_mask")): f for f in found if f not in files}
    if not files:
        raise DataError(f"{root}: no images in this folder ({_listed(SUFFIXES)})")
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
        raise DataError(f"{root}: no class folder {_listed(absent)}; there are: {_listed(classes) or 'none'}")
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
                raise DataError(f"{file}: not in a class folder ({_listed(classes)})")
            if folder and anomalous and folder[0] not in (*normal, *anomalous):
                continue
            label = NORMAL if not folder or folder[0] in normal else ANOMALOUS
        mask = masks.get((*folder, file.stem))
        entries.append(_Entry(file, "/".join(files[file]), label, mask, split))
    if masks and not any(e.mask for e in entries):
        raise DataError(f"{root}: no mask fits an image; expected ground_truth/<class>/NAME_mask.png")
    return _with_fixed_split(entries, train_normals) if normal and not has_splits else entries


def _warn_of_classes(root: Path, classes: list[str]) -> None:
    if len(classes) > 1:
        named = ", ".join(classes[:5]) + (f" and {len(classes) - 5} more" if len(classes) > 5 else "")
        warnings.warn(
            f"{root}: the subfolders {named} are all read as normal; if they are classes, give --normal NAME",
            stacklevel=5,  # the caller of `read`
        )


def _with_fixed_split(entries: list[_Entry], train_normals: float) -> list[_Entry]:
    order = [e.name for e in entries if e.label == NORMAL]
    order.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    number = train_normals if isinstance(train_normals, int) else int(train_normals * len(order))
    train = set(order[:number])
    return [e._replace(split="train" if e.name in train else "test") for e in entries]


def _manifest(path: Path, normal: list[str]) -> list[_Entry]:
    entries: dict[str, _Entry] = {}
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


def _manifest_row(row: dict, folder: Path, normal: list[str], where: str) -> _Entry:
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
    return _Entry(file, Path(row["path"]).as_posix(), label, mask, split)


def _of_split(path: Path, entries: list[_Entry], split: str | None) -> list[_Entry]:
    available = {e.split for e in entries}
    if split in (None, "all") or None in available:
        return entries
    if split not in available:
        raise MissingSplit(f"{path}: no split {split!r}; there are: {_listed(available)}")
    return [e for e in entries if e.split == split]


def _npz(path: Path, split: str | None, normal: list[str]) -> ImageSet:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            available = [s for s in SPLITS if f"{s}_images" in arrays]
            if not available:
                listed = _listed(arrays)
                raise DataError(f"{path}: no train_images, val_images or test_images in it; found: {listed}")
            if split not in (None, "all", *available):
                raise MissingSplit(f"{path}: no split {split!r}; there are: {_listed(available)}")
            labels = {s: _npz_labels(path, arrays, s) for s in available}
            values = {v for x in labels.values() if x is not None for v in x.tolist()}
            if values and not values & set(normal):
                raise DataError(f"{path}: no label {' or '.join(normal)}; the labels are: {_listed(values)}")
            wanted = available if split in (None, "all") else [split]
            sets = [_npz_split(path, arrays, str(s), labels[str(s)], normal) for s in wanted]
    except DataError:
        raise
    except Exception as e:  # numpy and zipfile raise nearly anything on malformed bytes
        raise DataError(f"{path}: not a readable .npz of plain arrays ({first_line(e)})") from e
    out = sets[0] if len(sets) == 1 else joined(path, sets)
    if len(set(out.names)) < len(out):
        raise DataError(f"{path}: names occur twice; make them unique or leave the names out")
    return out


def _npz_labels(path: Path, arrays: np.lib.npyio.NpzFile, split: str) -> np.ndarray | None:
    """Label values as text, (N,)."""
    if f"{split}_labels" not in arrays:
        return None
    x = arrays[f"{split}_labels"]
    if x.ndim not in (1, 2) or x.size != len(x):
        raise DataError(f"{path}: {split}_labels must be (N,) or (N, 1), one class per image, not {x.shape}")
    if x.dtype.kind == "f" and not (x == np.round(x)).all():  # NaN is not equal to itself
        raise DataError(f"{path}: {split}_labels must be whole numbers; some are fractions or NaN")
    return (x.astype(np.int64) if x.dtype.kind in "bf" else x).reshape(-1).astype(str)


def _npz_split(
    path: Path, arrays: np.lib.npyio.NpzFile, split: str, labels: np.ndarray | None, normal: list[str]
) -> ImageSet:
    x = arrays[f"{split}_images"]
    if x.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: {split}_images are {x.dtype}; save them as uint8, 0-255 (or uint16)")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3) or not x.size:
        raise DataError(f"{path}: {split}_images must be (N, H, W) or (N, H, W, 3), not {x.shape}")
    masks = arrays[f"{split}_masks"] != 0 if f"{split}_masks" in arrays else None
    names = tuple(f"{split}/{i:06d}" for i in range(len(x)))
    if f"{split}_names" in arrays:
        names = tuple(map(str, arrays[f"{split}_names"].reshape(-1)))
    targets = None if labels is None else np.where(np.isin(labels, normal), NORMAL, ANOMALOUS)
    try:
        return ImageSet(from_16_bit(x) if x.dtype == np.uint16 else x, targets, masks, names)
    except DataError as e:
        raise DataError(f"{path}, {split}: {e}") from e


def joined(source: object, sets: Sequence[ImageSet]) -> ImageSet:
    """Several splits of `source` as one set: labels only where all have them, masks only where every
    anomalous image has one.

    Raises:
        DataError: images of different sizes.
    """
    channels = max(s.shape[2] for s in sets)
    if len({s.shape[:2] for s in sets}) > 1:
        raise DataError(f"{source}: the splits have images of different sizes; read one split at a time")
    labels = [s.labels for s in sets if s.labels is not None]
    complete = all(s.masks is not None or (s.labels is not None and not s.labels.any()) for s in sets)
    masks = [np.zeros(s.images.shape[:3], bool) if s.masks is None else s.masks for s in sets]
    return ImageSet(
        np.concatenate([s.with_channels(channels).images for s in sets]),
        np.concatenate(labels) if len(labels) == len(sets) else None,
        np.concatenate(masks) if complete and any(s.masks is not None for s in sets) else None,
        tuple(n for s in sets for n in s.names),
    )
