"""Readers: from a folder, MedMNIST-like .npz, CSV manifest or image file to an `ImageSet` or a stream.

Knows the order of the parts: `layouts` lists files and their kinds, `volumes` lists their slices, `decode`
reads the pixels (by the rules written there). Knows no data set by name (`datasets` does), and no model.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import DataError
from .decode import decode, decode_batches
from .imageset import NORMAL, ImageSet
from .layouts import (
    SUFFIXES,
    Entry,
    ImageFile,
    MissingSplit,
    folder_entries,
    labels_of,
    listed,
    manifest_entries,
    words,
)
from .npz import read_npz
from .options import SPLITS, ReadOptions
from .volumes import SEVERAL, expand, of_split, with_fixed_split

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
    - folder with class folders, where `normal` is given. It has no official split, so a fixed one is made:
      normals (volumes as wholes) sorted by the sha256 of `class/file`; the first `train_normals` are `train`,
      all else `test`.
    - any other folder: unlabelled, taken as normal, all of it for any split; a warning if it seems to have
      classes.
    - `.csv` with columns `path,label[,mask][,split]`: paths relative to the CSV's folder; labels 0/1 or
      words as normal/anomalous, good/defect, or all empty. Values in `normal`, if given, are the normal ones.
    - one image file.

    A folder `ground_truth/<class>/NAME_mask.png` (or `NAME.png`) next to these holds masks; the mask of a
    volume in one file is a NIfTI, TIFF or DICOM file with as many slices.
    Hidden files are ignored, and those that are no images by their suffix nor DICOM by their first bytes.
    DICOM, NIfTI and TIFF files may hold many images, and volumes: see `volumes`.

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
    """

    options: ReadOptions
    entries: Sequence[Entry] = ()
    whole: ImageSet | None = None
    title: str = ""

    def __len__(self) -> int:
        return len(self.entries if self.whole is None else self.whole)

    @property
    def names(self) -> Sequence[str]:
        """The N names, as those of `ImageSet`; of files that may prove unreadable too."""
        return tuple(e.name for e in self.entries) if self.whole is None else self.whole.names

    @property
    def labels(self) -> np.ndarray | None:
        """`(N,)` int8, as those of `ImageSet`; of files that may prove unreadable too."""
        return labels_of(self.entries) if self.whole is None else self.whole.labels

    @property
    def volumes(self) -> Sequence[str | None]:
        """The volume that each image is a slice of; None where it is none. Its slices stand together."""
        return tuple(e.volume for e in self.entries) if self.whole is None else (None,) * len(self)

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
        return replace(self, entries=self.entries[start:stop])

    def read(self, *, workers: int | None = None) -> ImageSet:
        """Reads all images as one set.

        Args:
            workers: decoding threads, in place of those of the options.

        Raises:
            DataError: as `read`.
        """
        if self.whole is not None:
            return self.options.conform(self.whole)
        return decode(self.entries, self.options, self.title, workers)

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
        yield from decode_batches(self.entries[start:], self.options, batch, workers)


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
    suffix, is_folder = path.suffix.lower(), path.is_dir()
    if not is_folder and not path.is_file():
        raise DataError(f"{path}: a pipe or a device; save what it gives as a file")
    if suffix == ".npz" and not is_folder:
        return Listing(options, whole=read_npz(path, options, split))
    if is_folder:
        entries = folder_entries(path, options)
    elif suffix == ".csv":
        entries = manifest_entries(path, options)
    elif file := ImageFile.of(path):
        entries = [Entry(path, file.kind, path.name)]
    else:
        raise DataError(f"{path}: expected a folder, .npz, .csv or image ({listed(SUFFIXES)})")
    entries = of_split(path, entries, split)  # before headers are read
    bare = [e.file for e in entries if e.mask is None and e.label != NORMAL]
    if bare and any(e.mask for e in entries):
        raise DataError(f"{bare[0]}: no mask, though others have one; add it or remove the masks")
    if any(e.kind in SEVERAL for e in entries):
        entries = expand(entries, options, path if is_folder else path.parent)
    if is_folder and words(options.normal) and entries[0].split is None:
        entries = of_split(path, with_fixed_split(entries, options.train_normals), split)
    return Listing(options, entries, title=path.name)
