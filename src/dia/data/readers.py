"""Readers: a folder, MedMNIST-like .npz, CSV manifest or image file in; an `ImageSet`, or a stream, out.

Knows how the parts go together: `layouts` says which files there are, `volumes` which slices they hold,
`decode` what their pixels are (the rules for pixels are written there), and `catalog` which data sets are
known. Knows nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..core.errors import DataError
from .formats.decode import Decoded, Source, conform, decode, decode_batches
from .formats.limits import SUFFIXES, has_preamble, is_special, suffix_of
from .formats.windowing import DEFAULT_VIEW, View
from .imageset import NORMAL, ImageSet
from .layouts import (
    SPLITS,
    Entry,
    MissingSplit,
    folder_entries,
    image_files,
    listed,
    manifest_entries,
    of_split,
    with_fixed_split,
    words,
)
from .npz import joined, read_npz
from .volumes import expand

__all__ = [
    "SPLITS", "SUFFIXES", "Listing", "MissingSplit", "conform", "image_files", "joined", "listing", "read",
]  # fmt: skip


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
    window: str | None = None,
    axis: str | None = None,
    slices: str | None = None,
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
      normals (volumes as wholes) sorted by the sha256 of `class/file`; the first `train_normals` are `train`,
      all else `test`.
    - any other folder: unlabelled, taken as normal, all of it for any split; a warning if it seems to have
      classes.
    - `.csv` with columns `path,label[,mask][,split]`: paths relative to the CSV's folder; labels 0/1 or
      words as normal/anomalous, good/defect, or all empty. Values in `normal`, if given, are the normal ones.
    - one image file.

    A folder `ground_truth/<class>/NAME_mask.png` (or `NAME.png`) beside the above holds masks; that of a
    volume in one file is a NIfTI, TIFF or DICOM file with as many slices.
    Hidden files are ignored, and those that are no images by their suffix nor DICOM by their first bytes.
    DICOM, NIfTI and TIFF files may hold many images, and volumes: see `volumes`.

    Args:
        path: what to read.
        split: "train", "val", "test"; None or "all" for everything.
        normal: comma-separated classes (or label values) that are normal.
        anomalous: comma-separated classes that are anomalous; classes in neither list are left out.
        size: (H, W), or n for n × n; without it all images must share one size, after `max_size`.
        max_size: without `size`, images whose longer side is above it are shrunk to it, keeping the aspect.
        channels: 1 (grey) or 3 (RGB); by default as the files are.
        train_normals: share (float) or number (int) of the normals in the train split made for class folders.
        window: of DICOM, NIfTI and floats: a preset in Hounsfield units ("lung", ...), "CENTER,WIDTH", "voi"
            (the default: each file's own) or "full" (all that its bits allow).
        axis: of NIfTI volumes: "axial" (the default), "coronal", "sagittal"; "0", "1" or "2" as stored.
        slices: of each volume, as "10:-10"; all by default.
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
        window=window,
        axis=axis,
        slices=slices,
        skip_bad=skip_bad,
    )
    return found.read(workers=workers, memmap_above=memmap_above, progress=progress)


@dataclass(frozen=True, eq=False)
class Listing:
    """What a path holds, before its pixels are read: see `listing`. Pickles; a part pickles small.

    Args:
        fit: `conform` with the size and channels asked for.
        entries: the images, none where there is `whole`.
        whole: all images at once, where they come from one file or are generated.
        skip_bad: leave unreadable files out; one line each goes to `ImageSet.skipped`.
        title: for the progress bar.
        view: how medical images are looked at.
    """

    fit: partial[ImageSet]
    entries: Sequence[Entry] = ()
    whole: ImageSet | None = None
    skip_bad: bool = False
    title: str = ""
    view: View = DEFAULT_VIEW

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

    @property
    def volumes(self) -> Sequence[str | None]:
        """The volume that each image is a slice of; None where it is none. Its slices stand together."""
        return tuple(e.volume for e in self.entries) if self.whole is None else (None,) * len(self)

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
            self.view,
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
        batches = decode_batches(
            _sources(entries), self.fit, batch, self.view, skip_bad=self.skip_bad, workers=workers
        )
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
    window: str | None = None,
    axis: str | None = None,
    slices: str | None = None,
    skip_bad: bool = False,
) -> Listing:
    """What `read` would read, told before any pixel is: its names and labels, and its images as a stream.

    Headers are read of DICOM, NIfTI and TIFF files, to know how many images they hold. Only an `.npz` is
    read whole, and its stream cut from that. Arguments and errors are those of `read`.
    """
    path = Path(path)
    if split not in (*SPLITS, "all", None):
        raise DataError(f"split must be {', '.join(SPLITS)} or all, not {split!r}")
    view = View.of(window, axis, slices)
    fit = partial(conform, size=size, max_size=max_size, channels=channels)
    fit(ImageSet(np.zeros((1, 1, 1, 3), np.uint8)))  # complains before any reading
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file or folder")
    suffix = suffix_of(path)
    if path.is_dir():
        entries = folder_entries(path, words(normal), words(anomalous))
    elif is_special(path):
        raise DataError(f"{path}: a pipe or a device; save what it gives as a file")
    elif suffix == ".npz":
        return Listing(fit, whole=read_npz(path, split, words(normal) or ["0"]))
    elif suffix == ".csv":
        entries = manifest_entries(path, words(normal))
    elif suffix in SUFFIXES or has_preamble(path):
        entries = [Entry(path, path.name)]
    else:
        raise DataError(f"{path}: expected a folder, .npz, .csv or image ({listed(SUFFIXES)})")
    entries = of_split(path, entries, split)  # before headers are read
    bare = [e.file for e in entries if e.mask is None and e.label != NORMAL]
    if bare and any(e.mask for e in entries):
        raise DataError(f"{bare[0]}: no mask, though others have one; add it or remove the masks")
    entries = expand(entries, view, path if path.is_dir() else path.parent, skip_bad=skip_bad)
    if path.is_dir() and words(normal) and entries[0].split is None:
        entries = of_split(path, with_fixed_split(entries, train_normals), split)
    return Listing(fit, entries, skip_bad=skip_bad, title=path.name, view=view)


def _sources(entries: Sequence[Entry]) -> list[Source]:
    return [Source(e.file, e.mask, e.number, e.problem) for e in entries]


def _labels(entries: Sequence[Entry]) -> np.ndarray | None:
    known = bool(entries) and entries[0].label is not None  # all have one or none has
    return np.array([e.label for e in entries], np.int8) if known else None


def _as_set(entries: Sequence[Entry], decoded: Decoded) -> ImageSet:
    images, masks, kept, skipped = decoded
    entries = [entries[i] for i in kept]
    names, volumes = tuple(e.name for e in entries), tuple(e.volume for e in entries)
    return ImageSet(images, _labels(entries), masks, names, tuple(skipped), volumes if any(volumes) else ())
