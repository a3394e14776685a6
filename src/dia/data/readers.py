"""Readers: from a folder, MedMNIST-like .npz, manifest or image file to an `ImageSet` or a stream.

Knows the order of the parts: `layouts` and `manifest` list files, `volumes` lists their slices, `decode`
reads the pixels (by the rules written there). Knows no data set by name (`datasets` does), and no model.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError, printable
from .decode import decode, decode_batches
from .formats.mark import is_marked
from .formats.spreadsheet import SHEETS
from .imageset import ANOMALOUS, NORMAL, ImageSet, units_of
from .layouts import (
    SUFFIXES,
    Entry,
    ImageFile,
    MissingSplit,
    Unread,
    folder_entries,
    labels_of,
    listed,
    patients_of,
    words,
)
from .levels import learned
from .manifest import manifest_entries
from .npz import read_npz
from .options import SPLITS, ReadOptions
from .volumes import SEVERAL, expand, of_split, with_fixed_split

_FEW = 32  # grey levels
_log = logging.getLogger(__name__)
__all__ = ["SPLITS", "Listing", "MissingSplit", "ReadOptions", "listing", "read"]


def read(
    path: str | os.PathLike[str],
    options: ReadOptions | None = None,
    split: str | None = None,
    **changes: Any,
) -> ImageSet:
    """Reads the images of `path` as one `(N, H, W, 1 or 3)` uint8 array, 0–255, with labels, masks and names.

    `path` decides the layout:

    - `.npz` as MedMNIST: `{train,val,test}_images` (N, H, W[, 3]), optional `_labels` (N[, 1]), `_masks`
      (N, H, W), `_names`. The label values in `normal` (default "0") are normal, all others anomalous.
    - folder with `train/`, `test/` (and `val/`): below them class folders if there is a class `good`
      (as MVTec) or `normal` is given; unlabelled otherwise. Files directly in `train/` are normal.
    - folder with class folders, where `normal` is given. It has no official split, so a fixed one is made,
      unless `divide` is False: normals (volumes as wholes) sorted by the sha256 of `class/file`; the first
      `train_normals` are `train`, all else `test`.
    - any other folder: unlabelled, taken as normal, all of it for any split; a warning if it seems to have
      classes.
    - `.csv`, `.tsv` or `.xlsx` with columns `path,label[,mask][,split][,patient]` in any order, and others:
      paths relative to its folder; labels 0/1 or words as normal/anomalous, good/defect, or all empty. Values
      in `normal`, if given, are the normal ones.
    - one image file.

    A folder `ground_truth/<class>/NAME_mask.png` (or `NAME.png`) next to these holds masks; the mask of a
    volume in one file is a NIfTI, TIFF or DICOM file with as many slices.
    Hidden files are ignored, and those that are no images by their suffix nor DICOM by their first bytes;
    pictures that this package drew, such as heatmaps, are left out with a warning.
    DICOM, NIfTI and TIFF files may hold many images, and volumes: see `volumes`.

    The patient of each image is what the column `patient` says, or `group_by` tells from names; else, where
    all files are DICOM files that name one, and not all the same, a hash of that with a number drawn anew by
    each process. Otherwise patients are not known.

    Args:
        path: what to read.
        options: how to read it; the defaults where None.
        split: "train", "val", "test"; None or "all" for everything.
        changes: options by name, in place of those in `options`, as `read(path, size=32, normal="good")`.

    Returns:
        N images of one size. `labels` is None where the layout does not say them, and `masks` where there are
        none.

    Raises:
        MissingSplit: `split` is not among the source's splits.
        DataError: anything else that cannot be used; one line saying what, where, and the remedy.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = tempfile.mkdtemp()
        >>> for shade in (0, 128, 255):
        ...     Image.new("L", (40, 30), shade).save(f"{folder}/{shade}.png")
        >>> images = read(folder, size=(12, 16))
        >>> images.images.shape, images.names
        ((3, 12, 16, 1), ('0.png', '128.png', '255.png'))
        >>> [int(image.mean()) for image in images.images]
        [0, 128, 255]
    """
    return listing(path, options, split, **changes).read()


@dataclass(frozen=True, eq=False)
class Listing:
    """The images of a path, before their pixels are read: see `listing`. Pickles; a part pickles small.

    Args:
        options: how its images are read.
        entries: the images; none where there is `whole`.
        whole: all images at once, where they come from one `.npz` or are generated.
        title: for the progress bar.
        set_aside: normals that a split made here, not the source's own, keeps out of `train`.
        normals: the training normals of the source, from which levels are learned where they are not known;
            those of `entries` where there are none.
        unread: kinds of files in the folder that are not read, of all its splits.
        grouped: a line that says what `group_by` told of the names; empty where it was not given.
    """

    options: ReadOptions
    entries: Sequence[Entry] = ()
    whole: ImageSet | None = None
    title: str = ""
    set_aside: int = 0
    normals: Sequence[Entry] = ()
    unread: Sequence[Unread] = ()
    grouped: str = ""

    @cached_property
    def reading(self) -> ReadOptions:
        """The options, with levels learned from the normals where images of more than 8 bits need them."""
        if self.whole is not None:
            return self.options
        normals = self.normals or [e for e in self.entries if e.label != ANOMALOUS]
        return learned(self.options, normals, self.title)

    def __len__(self) -> int:
        return len(self.entries if self.whole is None else self.whole)

    @property
    def names(self) -> Sequence[str]:
        """The N names, as those of `ImageSet`; of files that may prove unreadable too."""
        return tuple(e.name for e in self.entries) if self.whole is None else self.whole.names

    @property
    def files(self) -> dict[str, Path]:
        """The file of each image by its name; none where the images come from one `.npz` or are drawn."""
        return {e.name: e.file for e in self.entries}

    @property
    def labels(self) -> np.ndarray | None:
        """`(N,)` int8, as those of `ImageSet`; of files that may prove unreadable too."""
        return labels_of(self.entries) if self.whole is None else self.whole.labels

    @property
    def volumes(self) -> Sequence[str | None]:
        """The volume that each image is a slice of; None where it is none. Its slices stand together."""
        return tuple(e.volume for e in self.entries) if self.whole is None else (None,) * len(self)

    @property
    def units(self) -> Sequence[str | None]:
        """The patient or volume of each image, as those of `ImageSet`."""
        if self.whole is not None:
            return self.whole.units
        return units_of([e.patient for e in self.entries], [e.volume for e in self.entries])

    @property
    def extra(self) -> dict[str, dict[str, str]]:
        """By the name of an image, what further columns of a manifest say; none where there are no such."""
        return {e.name: dict(e.extra) for e in self.entries if e.extra}

    def part(self, start: int, stop: int) -> Listing:
        """Makes a listing of some of the images, for another process or machine to read.

        Args:
            start: number of the first image, from 0.
            stop: number of the image after the last.

        Returns:
            The listing, which holds no more than those images.
        """
        if self.whole is not None:
            return replace(self, whole=self.whole.subset(slice(start, stop)))
        return replace(self, options=self.reading, entries=self.entries[start:stop], normals=())

    def read(self, *, workers: int | None = None) -> ImageSet:
        """Reads all images as one set.

        Args:
            workers: decoding threads, in place of those of the options.

        Raises:
            DataError: as `read`.
        """
        if self.whole is not None:
            made = self.options.conform(self.whole)
        else:
            made = decode(self.entries, self.reading, self.title, workers)
        _warn_of_few_levels(made, self.title)
        unread = {kind.suffix: kind.files for kind in self.unread}
        return replace(made, unread=unread, levels=self.reading.levels or made.levels)

    def stream(
        self, batch: int = 512, start: int = 0, *, workers: int | None = None
    ) -> Generator[ImageSet, None, None]:
        """Reads the images from `start` on in sets of `batch`, in order; the batch bounds the memory.

        While one set is used, up to a batch more is decoded by one pool of threads. Each batch is a set of
        its own: give size and channels for sets of one shape; it has masks if one of its images has. With
        `skip_bad` it has fewer images, perhaps none, and says in `skipped` which it lacks.

        Args:
            batch: images of a set, at least 1.
            start: number of the first image, from 0.
            workers: decoding threads, in place of those of the options.

        Yields:
            Sets of `batch` images; the last may be smaller.

        Raises:
            DataError: as `read`, when the batch at fault is reached.
        """
        if self.whole is not None:
            for i in range(start, len(self), batch):
                yield self.options.conform(self.whole.subset(slice(i, i + batch)))
            return
        batches = decode_batches(self.entries[start:], self.reading, batch, workers)
        with closing(batches):
            for i, images in enumerate(batches):
                if not i:
                    _warn_of_few_levels(images, self.title)
                yield images


def _warn_of_few_levels(images: ImageSet, title: str) -> None:
    """Warns of images that use less than an eighth of the grey levels: black and white may be wrong."""
    if len(images) < 2:
        return
    low, high = int(images.images.min()), int(images.images.max())
    if high - low < _FEW:
        more = "are black and white right? --window sets them where a file has more than 8 bits"
        line = f"{title}: all its images lie between grey {low} and {high} of 255; {more}"
        warnings.warn(printable(line), stacklevel=3)  # names the caller of `read`


def listing(
    path: str | os.PathLike[str],
    options: ReadOptions | None = None,
    split: str | None = None,
    **changes: Any,
) -> Listing:
    """Lists the images that `read` would read, with names and labels, before any pixel is read.

    The headers of DICOM, NIfTI and TIFF files are read, to count their images. Only an `.npz` is read whole,
    and its stream is cut from that.

    Args:
        path: as for `read`.
        options: how to read it; the defaults where None.
        split: "train", "val", "test"; None or "all" for everything.
        changes: options by name, in place of those in `options`.

    Returns:
        The listing, whose `read` and `stream` decode the images.

    Raises:
        MissingSplit: `split` is not among the source's splits.
        DataError: a path, layout or header that cannot be used.
    """
    path, options = Path(path), ReadOptions.of(options, **changes)
    if split not in (*SPLITS, "all", None):
        raise DataError(f"split must be {', '.join(SPLITS)} or all, not {split!r}")
    if not os.path.exists(path):
        raise DataError(f"{path}: no such file or folder")
    suffix, is_folder, unread = path.suffix.lower(), path.is_dir(), list[Unread]()
    if not is_folder and not path.is_file():
        raise DataError(f"{path}: a pipe or a device; save what it gives as a file")
    if suffix == ".npz" and not is_folder:
        whole, levels = read_npz(path, options, split)
        grouped = ""
        if options.group_by:
            patients, grouped = patients_of(path, whole.names, options.group_by)
            whole = replace(whole, patients=tuple(patients))
        return Listing(replace(options, levels=levels), whole=whole, grouped=grouped)
    if is_folder:
        entries, unread = folder_entries(path, options)
    elif suffix in SHEETS:
        entries = manifest_entries(path, options)
    elif is_marked(path):
        raise DataError(f"{path}: a picture that dia drew, no scan; name the image it was drawn of")
    elif file := ImageFile.of(path):
        entries = [Entry(path, file.kind, path.name)]
    else:
        raise DataError(f"{path}: expected a folder, .npz, {', '.join(SHEETS)} or image ({listed(SUFFIXES)})")
    grouped = ""
    if options.group_by:
        if entries[0].patient is not None:
            raise DataError(f"{path}: it has a column patient; leave out --group-by")
        patients, grouped = patients_of(path, [e.name for e in entries], options.group_by)
        entries = [e._replace(patient=p) for e, p in zip(entries, patients, strict=True)]
    normals = [e for e in entries if e.split in (None, "train") and e.label != ANOMALOUS]
    entries = of_split(path, entries, split)  # before headers are read
    bare = [e.file for e in entries if e.mask is None and e.label != NORMAL]
    if bare and any(e.mask for e in entries):
        raise DataError(f"{bare[0]}: no mask, though others have one; add it or remove the masks")
    if any(e.kind in SEVERAL for e in entries):
        told = entries[0].patient is not None
        entries = expand(entries, options, path if is_folder else path.parent)
        entries = entries if told else _by_patient(path, entries)
    set_aside = 0
    if is_folder and options.divide and words(options.normal) and entries[0].split is None:
        divided = with_fixed_split(entries, options.train_normals)
        normals = [e for e in divided if e.split == "train"]
        entries = of_split(path, divided, split)
        set_aside = sum(e.label == NORMAL and e.split == "test" for e in divided)
    return Listing(
        options, entries, title=path.name, set_aside=set_aside, normals=normals, unread=tuple(unread),
        grouped=grouped,
    )  # fmt: skip


def _by_patient(path: Path, entries: list[Entry]) -> list[Entry]:
    """Forgets the patients that DICOM files name where some name none, or all the same: it may be no name."""
    n = len(patients := {e.patient for e in entries if e.problem is None})
    if None not in patients and n > 1:
        _log.info("%s: %d images of %d patients", path, len(entries), n)
        return entries
    if patients != {None}:
        why = "all files name one patient, or put one word for all" if n == 1 else "some files name none"
        _log.info("%s: patients are taken as not known, as %s", path, why)
    return [e._replace(patient=None) for e in entries]
