"""MedMNIST-like `.npz` files, and the joining of several splits to one set.

Knows arrays and their names; knows nothing of image files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..core.errors import DataError, first_line
from .formats.limits import TIMES, VOLUME_BYTES
from .formats.windowing import LOOKED, Stored, View, levels_of, sampled, toned
from .imageset import ANOMALOUS, NORMAL, ImageSet, subsample
from .layouts import MissingSplit, listed, words
from .options import SPLITS, ReadOptions


def read_npz(path: Path, options: ReadOptions, split: str | None) -> tuple[ImageSet, str | None]:
    """Reads one split, or all, of an `.npz` as `readers.read` describes it.

    Args:
        path: the file.
        options: `normal`, the label values that are normal ("0" where it was not given), `window` and
            `levels` matter.
        split: "train", "val" or "test"; None or "all" for everything.

    Returns:
        The images at the size that they are stored in, and the option `levels`, learned from the normals of
        `train` (else of the first split) where images of more than 8 bits need it.

    Raises:
        MissingSplit: the file has no such split.
        DataError: arrays that are missing, do not fit together or unfold to too much.
    """
    if options.split_folders or options.masks:
        raise DataError(f"{path}: an .npz names its own splits and masks; leave out split_folders and masks")
    normal = words(options.normal) or ["0"]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            total, room = sum(i.file_size for i in arrays.zip.infolist()), path.stat().st_size  # as unpacked
            if total > max(VOLUME_BYTES, TIMES * room):
                unpacked = f"its {room} bytes unfold to {total}"
                raise DataError(f"{path}: {unpacked}; save it with numpy.savez, unpacked")
            available = [s for s in SPLITS if f"{s}_images" in arrays]
            if not available:
                there = listed(arrays)
                raise DataError(f"{path}: no train_images, val_images or test_images in it; found: {there}")
            if split not in (None, "all", *available):
                raise MissingSplit(f"{path}: no split {split!r}; there are: {listed(available)}")
            labels = {s: _npz_labels(path, arrays, s) for s in available}
            values = {v for x in labels.values() if x is not None for v in x.tolist()}
            if values and not values & set(normal):
                raise DataError(f"{path}: no label {' or '.join(normal)}; the labels are: {listed(values)}")
            wanted = available if split in (None, "all") else [split]
            view, levels = options.view, options.levels
            if view.learns and (x := _numbers(path, arrays, available[0])).dtype != np.uint8:
                of = labels[available[0]]
                normals = x if of is None or not np.isin(of, normal).any() else x[np.isin(of, normal)]
                levels = levels_of(map(sampled, subsample(normals, LOOKED)), view.percentiles)
                view = replace(options, levels=levels).view
            sets = [_npz_split(path, arrays, str(s), labels[str(s)], normal, view) for s in wanted]
    except DataError:
        raise
    except Exception as e:  # numpy and zipfile raise nearly anything on malformed bytes
        raise DataError(f"{path}: not a readable .npz of plain arrays ({first_line(e)})") from e
    out = sets[0] if len(sets) == 1 else joined(path, sets)
    if len(set(out.names)) < len(out):
        raise DataError(f"{path}: names occur twice; make them unique or leave the names out")
    return out, levels


def _numbers(path: Path, arrays: np.lib.npyio.NpzFile, split: str) -> np.ndarray:
    x = arrays[f"{split}_images"]
    if x.dtype.kind not in "uif":
        raise DataError(f"{path}: {split}_images are {x.dtype}; save them as integers or floats")
    return x


def _npz_labels(path: Path, arrays: np.lib.npyio.NpzFile, split: str) -> np.ndarray | None:
    """Returns the label values as text, `(N,)`."""
    if (x := arrays.get(f"{split}_labels")) is None:
        return None
    if x.ndim not in (1, 2) or x.size != len(x):
        raise DataError(f"{path}: {split}_labels must be (N,) or (N, 1), one class per image, not {x.shape}")
    if x.dtype.kind == "f" and not (x == np.round(x)).all():  # NaN is not equal to itself
        raise DataError(f"{path}: {split}_labels must be whole numbers; some are fractions or NaN")
    return (x.astype(np.int64) if x.dtype.kind in "bf" else x).reshape(-1).astype(str)


def _npz_split(
    path: Path,
    arrays: np.lib.npyio.NpzFile,
    split: str,
    labels: np.ndarray | None,
    normal: list[str],
    view: View,
) -> ImageSet:
    x = _numbers(path, arrays, split)
    x = x[..., None] if x.ndim == 3 else x
    if x.ndim != 4 or x.shape[-1] not in (1, 3) or not x.size:
        raise DataError(f"{path}: {split}_images must be (N, H, W) or (N, H, W, 3), not {x.shape}")
    masks = arrays[f"{split}_masks"] != 0 if f"{split}_masks" in arrays else None
    names = tuple(f"{split}/{i:06d}" for i in range(len(x)))
    if f"{split}_names" in arrays:
        names = tuple(map(str, arrays[f"{split}_names"].reshape(-1)))
    targets = None if labels is None else np.where(np.isin(labels, normal), NORMAL, ANOMALOUS)
    try:
        return ImageSet(x if x.dtype == np.uint8 else toned(Stored.of(x), view), targets, masks, names)
    except DataError as e:
        raise DataError(f"{path}, {split}: {e}") from e


def joined(source: object, sets: Sequence[ImageSet]) -> ImageSet:
    """Joins splits to one set, with labels if all have them, and masks if every anomalous image has one.

    Args:
        source: the path or name that messages give.
        sets: the splits, whose images have one size; grey ones become RGB where one split is RGB.

    Returns:
        All images in that order.

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
        patients=tuple(p for s in sets for p in s.patients) if all(s.patients for s in sets) else (),
        levels=sets[0].levels if len({s.levels for s in sets}) == 1 else None,
    )
