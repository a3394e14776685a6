"""Readers: a folder, MedMNIST-like .npz, CSV manifest or image file in, an `ImageSet` out.

Knows files and pixels; knows nothing of particular data sets (`catalog`) or models. How pixels are read:

- Grey stays 1 channel, colour is 3. A set is grey only when all its images are; grey files in a colour
  set are repeated to RGB. An RGB file with three equal channels is colour, unless `channels=1`.
- Transparency is composited over black. Palette images become RGB.
- 16-bit grey (also 32-bit integers within 0–65535) is divided by 257 and rounded: a fixed rule, the same
  for every image. Pillow itself keeps the high byte of 16-bit RGB. Float images are refused: no fixed
  rule fits their unknown range.
- EXIF orientation is applied; of several frames the first is read.
- Channels are converted first, then images are resized straight to the asked size (Lanczos).
- A mask pixel is True where the file is not zero (black); a mask has the size of its image.
"""

from __future__ import annotations

import csv
import hashlib
import multiprocessing
import os
import re
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from .imageset import ANOMALOUS, NORMAL, DataError, ImageSet

SPLITS = ("train", "val", "test")
SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".pgm", ".ppm"])
_SPLIT_FOLDERS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_NORMAL_WORDS = {"0", "normal", "good", "ok", "healthy", "negative"}
_ANOMALOUS_WORDS = {"1", "anomalous", "anomaly", "abnormal", "defect", "defective", "bad", "positive"}
_COLUMNS = {"path", "label", "mask", "split"}
_POOL_FROM = 64  # fewer files are decoded before a pool has started
_BLOCK = 1024  # files in flight, so that decoded images do not pile up


class MissingSplit(DataError):
    """The source is sound but has no such split."""


class _Entry(NamedTuple):
    """One image file and what its place says about it."""

    file: Path
    name: str
    label: int | None = None
    mask: Path | None = None
    split: str | None = None  # None: belongs to every split


class _Loaded(NamedTuple):
    one: ImageSet  # of one image
    original: tuple[int, int]  # (H, W) before resizing


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
    - any other folder: unlabelled, taken as normal, all of it for any split.
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
        size: (H, W), or n for n × n; without it all images must share one size.
        max_size: without `size`, images whose longer side is above it are shrunk to it, keeping the aspect.
        channels: 1 (grey) or 3 (RGB); by default as the files are.
        train_normals: share (float) or number (int) of the normals in the train split made for class folders.
        skip_bad: leave unreadable files out; one line each goes to `ImageSet.skipped`.
        workers: decoding processes, by default one per core; 1 decodes in this process. Scripts that read
            more than 64 files with several need the usual `if __name__ == "__main__":`.
        memmap_above: images of more bytes than this go to a memory map on an unlinked temporary file.
        progress: show a bar with the time left on stderr.

    Raises:
        MissingSplit: `split` is not among the source's splits.
        DataError: anything else that cannot be used; one line saying what, where, and the remedy.
    """
    path = Path(path)
    if split not in (*SPLITS, "all", None):
        raise DataError(f"split must be {', '.join(SPLITS)} or all, not {split!r}")
    fit = partial(conform, size=size, max_size=max_size, channels=channels)
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 or 3, not {channels}")
    _target((1, 1), size, max_size)  # complains before any reading
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if path.is_dir():
        entries = _folder(path, _words(normal), _words(anomalous), train_normals)
    elif suffix == ".npz":
        return fit(_npz(path, split, _words(normal) or ["0"]))
    elif suffix == ".csv":
        entries = _manifest(path, _words(normal))
    elif suffix in SUFFIXES:
        entries = [_Entry(path, path.name)]
    else:
        raise DataError(f"{path}: expected a folder, .npz, .csv or image ({_listed(SUFFIXES)})")
    entries = _of_split(path, entries, split)
    with_masks = any(e.mask for e in entries)
    for e in entries:
        if with_masks and e.mask is None and e.label != NORMAL:
            raise DataError(f"{e.file}: no mask, though others have one; add it or remove the masks")
    count = (os.cpu_count() or 1) if workers is None else workers
    bar = Progress(console=Console(stderr=True), disable=not progress)
    with bar, closing(_map(partial(_load, fit=fit), entries, count)) as loaded:
        shown = bar.track(loaded, len(entries), description=f"Reading {escape(path.name)}")
        return _collect(path, entries, shown, size is None, skip_bad, memmap_above)


def conform(
    images: ImageSet,
    size: int | tuple[int, int] | None = None,
    max_size: int | None = None,
    channels: int | None = None,
) -> ImageSet:
    """`images` with the channels and size that `read` was asked for.

    Raises:
        DataError: a size below 1, or channels other than 1 and 3.
    """
    if channels is not None:
        images = images.with_channels(channels)
    return images.resized(*_target(images.shape[:2], size, max_size))


def _target(
    shape: tuple[int, int], size: int | tuple[int, int] | None, max_size: int | None
) -> tuple[int, int]:
    height, width = shape
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
    elif max_size is not None and max_size < max(shape):
        height, width = (max(1, round(n * max_size / max(shape))) for n in shape)
    if min(height, width) < 1 or (max_size is not None and max_size < 1):
        raise DataError(f"a size must be at least 1 pixel, not {max_size if size is None else size}")
    return height, width


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
    files: list[tuple[Path, tuple[str, ...]]] = []
    masks: dict[tuple[str, ...], Path] = {}  # by (class, …, stem)
    for file in image_files(root):
        parts = file.relative_to(root).parts
        if parts[0] == "ground_truth" and len(parts) > 1:
            masks[(*parts[1:-1], file.stem.removesuffix("_mask"))] = file
        else:
            files.append((file, parts))
    if not files:
        raise DataError(f"{root}: no images in this folder ({_listed(SUFFIXES)})")
    has_splits = any(len(p) > 1 and p[0].lower() in _SPLIT_FOLDERS for _, p in files)
    skip = int(has_splits)
    if not has_splits and (nested := _nested_splits(p for _, p in files)):
        raise DataError(f"{root}: train/ and test/ lie one level down; read {root / nested} instead")
    classes = {p[skip] for _, p in files if len(p) > skip + 1}
    if has_splits and not normal and "good" in classes:
        normal = ["good"]
    if absent := {*normal, *anomalous} - classes:
        raise DataError(f"{root}: no class folder {_listed(absent)}; there are: {_listed(classes) or 'none'}")
    entries = []
    for file, parts in files:
        split = _SPLIT_FOLDERS.get(parts[0].lower()) if has_splits and len(parts) > 1 else None
        if has_splits and split is None:
            raise DataError(f"{file}: outside train/ and test/; move it into one of them")
        label = None
        if normal:
            name = parts[skip] if len(parts) > skip + 1 else None
            if name is None and split != "train":
                raise DataError(f"{file}: not in a class folder ({_listed(classes)})")
            if anomalous and name is not None and name not in (*normal, *anomalous):
                continue
            label = NORMAL if name is None or name in normal else ANOMALOUS
        mask = masks.get((*parts[skip:-1], file.stem))
        entries.append(_Entry(file, file.relative_to(root).as_posix(), label, mask, split))
    if masks and not any(e.mask for e in entries):
        raise DataError(f"{root}: no mask fits an image; expected ground_truth/<class>/NAME_mask.png")
    if normal and not has_splits:
        order = [e.name for e in entries if e.label == NORMAL]
        order.sort(key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        number = train_normals if isinstance(train_normals, int) else int(train_normals * len(order))
        train = set(order[:number])
        entries = [e._replace(split="train" if e.name in train else "test") for e in entries]
    return entries


def _nested_splits(paths: Iterable[Sequence[str]]) -> str | None:
    """A folder that itself holds train/ and test/, as one category of MVTec AD does."""
    below: dict[str, set[str]] = {}
    for parts in paths:
        if len(parts) > 2:
            below.setdefault(parts[0], set()).add(parts[1].lower())
    return next((top for top, inner in below.items() if {"train", "test"} <= inner), None)


def _manifest(path: Path, normal: list[str]) -> list[_Entry]:
    entries: list[_Entry] = []
    names: set[str] = set()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            header = [h.strip().lower() for h in reader.fieldnames or ()]
            if not {"path", "label"} <= set(header) <= _COLUMNS or len(header) != len(set(header)):
                raise DataError(f"{path}, line 1: the header must be path,label[,mask][,split], not {header}")
            reader.fieldnames = header
            for row in reader:
                entry = _manifest_row(row, path.parent, normal, f"{path}, line {reader.line_num}")
                if entry.name in names:
                    raise DataError(f"{path}, line {reader.line_num}: {entry.name} is listed twice")
                if entries and (entry.label is None) != (entries[0].label is None):
                    raise DataError(f"{path}, line {reader.line_num}: either all labels are empty or none is")
                if entries and (entry.split is None) != (entries[0].split is None):
                    raise DataError(f"{path}, line {reader.line_num}: either all splits are empty or none is")
                names.add(entry.name)
                entries.append(entry)
    except (csv.Error, UnicodeDecodeError, OSError) as e:
        raise DataError(f"{path}: not a readable CSV file ({_line(e)})") from e
    if not entries:
        raise DataError(f"{path}: no rows below the header")
    if normal and NORMAL not in {e.label for e in entries}:
        raise DataError(f"{path}: no row has the label {' or '.join(normal)}")
    return entries


def _manifest_row(row: dict, folder: Path, normal: list[str], where: str) -> _Entry:
    if None in row or None in row.values():  # csv's way to say: too many fields, too few
        raise DataError(f"{where}: the number of fields differs from the header's")
    row = {key: value.strip() for key, value in row.items()}
    if not row["path"]:
        raise DataError(f"{where}: empty path")
    for key in ("path", "mask"):
        if row.get(key) and not os.path.isfile(folder / row[key]):
            raise DataError(f"{where}: no such file: {folder / row[key]}")
    text = row["label"]
    if not text:
        label = None
    elif text in normal or (not normal and text.lower() in _NORMAL_WORDS):
        label = NORMAL
    elif normal or text.lower() in _ANOMALOUS_WORDS:
        label = ANOMALOUS
    else:
        raise DataError(
            f"{where}: unknown label {text!r}; use 0/1, normal/anomalous, or name the normal ones"
        )
    split = row.get("split") or None
    if split is not None and (split := _SPLIT_FOLDERS.get(split.lower())) is None:
        raise DataError(f"{where}: unknown split {row['split']!r}; use {', '.join(SPLITS)}")
    mask = folder / row["mask"] if row.get("mask") else None
    return _Entry(folder / row["path"], Path(row["path"]).as_posix(), label, mask, split)


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
                raise DataError(
                    f"{path}: no train_images, val_images or test_images in it; found: {_listed(arrays)}"
                )
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
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
        raise DataError(f"{path}: not a readable .npz of plain arrays ({_line(e)})") from e
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
    if x.dtype.kind == "f":
        if not np.array_equal(x, np.round(x)):  # NaN is not equal to itself
            raise DataError(f"{path}: {split}_labels must be whole numbers; some are fractions or NaN")
        x = x.astype(np.int64)
    return (x.astype(np.int64) if x.dtype == bool else x).reshape(-1).astype(str)


def _npz_split(
    path: Path, arrays: np.lib.npyio.NpzFile, split: str, labels: np.ndarray | None, normal: list[str]
) -> ImageSet:
    x = arrays[f"{split}_images"]
    if x.dtype.kind == "f":
        nan = ", with NaN" if np.isnan(x).any() else ""
        raise DataError(f"{path}: {split}_images are {x.dtype}{nan}; save them as uint8, 0-255 (or uint16)")
    if x.dtype not in (np.uint8, np.uint16):
        raise DataError(f"{path}: {split}_images are {x.dtype}; save them as uint8, 0-255 (or uint16)")
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3) or not x.size:
        raise DataError(f"{path}: {split}_images must be (N, H, W) or (N, H, W, 3), not {x.shape}")
    masks = arrays.get(f"{split}_masks")
    if masks is not None:
        masks = (masks[..., 0] if masks.ndim == 4 else masks) != 0
    names = tuple(f"{split}/{i:06d}" for i in range(len(x)))
    if f"{split}_names" in arrays:
        names = tuple(map(str, arrays[f"{split}_names"].reshape(-1)))
    targets = None if labels is None else np.where(np.isin(labels, normal), NORMAL, ANOMALOUS)
    try:
        return ImageSet(_from_16_bit(x) if x.dtype == np.uint16 else x, targets, masks, names)
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
    masks = [
        np.zeros(s.images.shape[:3], bool) if s.masks is None else s.masks
        for s in sets
        if s.masks is not None or (s.labels is not None and not s.labels.any())
    ]
    return ImageSet(
        np.concatenate([s.with_channels(channels).images for s in sets]),
        np.concatenate(labels) if len(labels) == len(sets) else None,
        np.concatenate(masks) if len(masks) == len(sets) and any(s.masks is not None for s in sets) else None,
        tuple(n for s in sets for n in s.names),
    )


# --- decoding: files to pixels ------------------------------------------------------------------------


def _from_16_bit(x: np.ndarray) -> np.ndarray:
    """0–65535 to 0–255: x / 257, rounded; 257 is odd, so there are no ties."""
    return ((x.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _pixels(image: Image.Image) -> np.ndarray:
    """`(H, W, 1 or 3)` uint8 by the rules above."""
    if image.mode == "F":
        nan = " with NaN" if np.isnan(np.asarray(image)).any() else ""
        raise DataError(f"float pixels{nan}; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 and 32 bits
        x = np.asarray(image)
        if x.min() < 0 or x.max() > 65535:
            raise DataError(f"integer pixels of {x.min()} to {x.max()}; convert it to 8 or 16 bits")
        return _from_16_bit(x)[..., None]
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)
        over_black = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
        return over_black[..., :1] if grey else over_black
    x = np.asarray(image.convert("L" if grey else "RGB"))
    return x[..., None] if grey else x


def _mask(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """`(H, W)` bool, True where not black."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
    deep = image.mode == "F" or image.mode.startswith("I")  # an 8-bit copy could lose small values
    x = (
        np.asarray(image if deep else image.convert("RGB"))
        .reshape(image.height, image.width, -1)
        .any(axis=-1)
    )
    if x.shape != shape:
        raise DataError(f"mask {file} is {_size(x.shape)}, its image {_size(shape)}; make them equal")
    return x


def _load(entry: _Entry, fit: partial[ImageSet]) -> _Loaded | str:
    """The image and mask of one file, or the line that says why not. Runs in the decoding processes."""
    try:
        with Image.open(entry.file) as opened:
            pixels = _pixels(ImageOps.exif_transpose(opened))
        original = pixels.shape[:2]
        mask = None if entry.mask is None else _mask(entry.mask, original)[None]
        return _Loaded(fit(ImageSet(pixels[None], masks=mask)), original)
    except MemoryError:
        raise
    except DataError as e:
        return f"{entry.file}: {e}"
    except Exception as e:  # Pillow's decoders raise nearly anything on malformed bytes
        what = "damaged" if entry.mask is None else f"damaged, or its mask {entry.mask.name} is"
        return f"{entry.file}: no image, or {what} ({_line(e).replace(f' {str(entry.file)!r}', '')})"


def _map(load: partial, entries: list[_Entry], workers: int) -> Generator[_Loaded | str, None, None]:
    """`load` over the entries, in order; in a process pool when that is worth its start."""
    done = 0
    if workers > 1 and len(entries) > _POOL_FROM:
        # Never fork: the caller may hold threads, a GPU or both.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        try:
            with ProcessPoolExecutor(min(workers, len(entries) // 16), mp_context=context) as pool:
                for start in range(0, len(entries), _BLOCK):
                    for loaded in pool.map(load, entries[start : start + _BLOCK], chunksize=16):
                        yield loaded
                        done += 1
        except BrokenProcessPool:
            reason = 'a script needs `if __name__ == "__main__":`, or memory ran out'
            warnings.warn(f"decoding processes ended early ({reason}); going on in one", stacklevel=2)
    yield from map(load, entries[done:])


def _collect(
    path: Path,
    entries: list[_Entry],
    loaded: Iterable[_Loaded | str],
    one_size: bool,
    skip_bad: bool,
    memmap_above: int,
) -> ImageSet:
    """Each result straight into its place in one array."""
    images = masks = None
    kept: list[_Entry] = []
    skipped: list[str] = []
    first = (0, 0)
    for entry, item in zip(entries, loaded, strict=True):
        if isinstance(item, str):
            if not skip_bad:
                raise DataError(f"{item}; repair it, or leave such files out with --skip-bad")
            skipped.append(item)
            continue
        h, w, c = item.one.shape
        first = first if kept else item.original
        if one_size and item.original != first:
            sizes = f"{kept[0].file} is {_size(first)}, {entry.file} {_size(item.original)}"
            raise DataError(f"height x width differ: {sizes}; give all one size with --size N")
        if images is None:
            images = _allocate((len(entries), h, w, c), memmap_above)
            masks = np.zeros((len(entries), h, w), bool) if any(e.mask for e in entries) else None
        elif c > images.shape[3]:  # the first colour image among grey ones
            grey, images = images, _allocate((len(entries), h, w, c), memmap_above)
            images[: len(kept)] = grey[: len(kept)]
        images[len(kept)] = item.one.images[0]  # grey is repeated by broadcasting
        if masks is not None and item.one.masks is not None:
            masks[len(kept)] = item.one.masks[0]
        kept.append(entry)
    if images is None:
        raise DataError(f"{path}: none of {len(entries)} images could be read; the first: {skipped[0]}")
    n = len(kept)
    labels = None if kept[0].label is None else np.array([e.label for e in kept], np.int8)
    names = tuple(e.name for e in kept)
    return ImageSet(images[:n], labels, None if masks is None else masks[:n], names, tuple(skipped))


def _allocate(shape: tuple[int, int, int, int], memmap_above: int) -> np.ndarray:
    nbytes = int(np.prod(shape))
    if nbytes <= memmap_above:
        return np.zeros(shape, np.uint8)
    with tempfile.TemporaryFile() as file:  # unlinked from the start; the map keeps it alive
        try:
            if hasattr(os, "posix_fallocate"):  # a full disk is an error now, not a crash later
                os.posix_fallocate(file.fileno(), 0, nbytes)
            return np.memmap(file, np.uint8, "w+", shape=shape)
        except OSError as e:
            where = tempfile.gettempdir()
            raise DataError(
                f"{where}: no room for {nbytes} bytes; set TMPDIR or --max-size ({_line(e)})"
            ) from e


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]}x{shape[1]}"


def _line(error: BaseException) -> str:
    """The first line of an error's text."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
