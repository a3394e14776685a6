"""How images are read: one set of options, from the caller down to the decoding threads.

Knows values, and which of them a model keeps; knows nothing of files, layouts or data sets.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from ..core.errors import DataError
from .formats.windowing import Percentiles, View
from .imageset import ImageSet

SPLITS = ("train", "val", "test")
KEPT = ("window", "axis", "slices", "channel", "levels")  # the options that a fitted model keeps


@dataclass(frozen=True)
class ReadOptions:
    """Which images are read, and how. Every option has a default; None means that it was not given.

    Args:
        normal: comma-separated class folders or label values that are normal.
        anomalous: comma-separated class folders that are anomalous; classes in neither list are left out.
        train_normals: share (float in 0–1) or number (int) of the normals in the train split that is made for
            class folders; 0.8 where None.
        divide: class folders without a split of their own are divided into `train` and `test` by a fixed
            rule; otherwise all of their images belong to every split.
        split_folders: the folder, or the word in a manifest's column `split`, of each of the splits "train",
            "val" and "test"; those names themselves (and "valid", "validation") where None.
        masks: the folder that holds the masks; "ground_truth" where None.
        group_by: how names tell the patient: "folder", or a regular expression as for `layouts.patients_of`.
        size: (H, W) in pixels, or n for n × n; without it all images must share one size, after `max_size`.
        max_size: without `size`, images whose longer side exceeds it (in pixels) are shrunk to it, keeping
            the aspect.
        channels: 1 (grey) or 3 (RGB); as the files are where None.
        window: black and white of images of more than 8 bits: a preset in Hounsfield units ("lung", ...),
            "LOW:HIGH", "CENTER,WIDTH", "LOW%:HIGH%" (percentiles of training normals), "full" (all that a
            type allows), "volume" (percentiles of each volume) or "voi", the default: a DICOM file's own
            window where it has one, else the 0.1st and 99.9th percentile of training normals.
        axis: of NIfTI volumes: "axial" (the default), "coronal", "sagittal"; "0", "1" or "2" as stored.
        slices: of each volume, as "10:-10"; all where None.
        channel: number, from 0, of the volume that is read of files of several (4-D); all where None.
        levels: black and white as they were learned, "LOW:HIGH"; "full" where nothing had more than 8 bits.
            Where None they are learned from the normals of the data themselves.
        skip_bad: leave unreadable files out; `ImageSet.skipped` has one line for each.
        workers: decoding threads, one per core where None; 1 decodes in the caller's thread.
        memmap_above: images of more bytes than this go to a memory map on an unlinked temporary file.
        progress: show a bar with the time left on stderr.

    Attributes:
        view: `window`, `axis`, `slices` and `channel`, parsed.

    Raises:
        DataError: a size below 1 pixel, channels other than 1 and 3, less than one thread, folders of splits
            that do not exist, or a window, axis, range of slices or `group_by` that is not known.
    """

    normal: str | None = None
    anomalous: str | None = None
    train_normals: int | float | None = None
    divide: bool = True
    split_folders: Mapping[str, str] | None = None
    masks: str | None = None
    group_by: str | None = None
    size: int | tuple[int, int] | None = None
    max_size: int | None = None
    channels: int | None = None
    window: str | None = None
    axis: str | None = None
    slices: str | None = None
    channel: int | None = None
    levels: str | None = None
    skip_bad: bool = False
    workers: int | None = None
    memmap_above: int = 2**30
    progress: bool = False
    view: View = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for size in (self.size, self.max_size):
            if size is not None and min((size,) if isinstance(size, int) else size) < 1:
                raise DataError(f"a size must be at least 1 pixel, not {size}")
        if self.channels not in (None, 1, 3):
            raise DataError(f"channels must be 1 or 3, not {self.channels}")
        if self.workers is not None and self.workers < 1:
            raise DataError(f"workers must be at least 1, not {self.workers}")
        folders = self.split_folders or {}
        if not set(folders) <= set(SPLITS) or not all(isinstance(f, str) and f for f in folders.values()):
            raise DataError(f"split_folders must name a folder for one or more of {', '.join(SPLITS)}")
        if self.group_by is not None:
            try:
                if not self.group_by:
                    raise re.error("it is empty")
                re.compile(self.group_by)
            except re.error as error:
                raise DataError(
                    f"--group-by {self.group_by}: no regular expression ({error}); as person(\\d+), or folder"
                ) from None
        view = View.of(self.window, self.axis, self.slices, self.levels, self.channel)
        object.__setattr__(self, "view", view)

    @classmethod
    def of(cls, options: ReadOptions | None = None, **changes: Any) -> ReadOptions:
        """Changes some of `options`, or of the defaults where it is None.

        Args:
            options: the options to change.
            changes: the new values by name.

        Returns:
            The changed copy.
        """
        options = options or cls()
        return replace(options, **changes) if changes else options

    def kept(self) -> dict[str, str | int | None]:
        """Returns the options that a fitted model keeps: as they were typed, and the levels as learned."""
        return {name: getattr(self, name) for name in KEPT} | {"levels": self.levels or "full"}

    def or_else(self, **values: Any) -> Self:
        """Makes a copy in which options that were not given (None) have these values."""
        return replace(self, **{name: v for name, v in values.items() if getattr(self, name) is None})

    def as_fitted(self, facts: Mapping[str, Any], shape: tuple[int, int, int] | None = None) -> Self:
        """Makes a copy that reads images as a model's training images were read.

        Options given here take precedence over those of the model, with a warning where they differ.

        Args:
            facts: the detector's `facts_`.
            shape: its `shape_`, (H, W, C); sets `size` and `channels`. None leaves them.

        Returns:
            The options with `window`, `axis`, `slices` and `channel` as given, else as the model was fitted,
            and its levels.

        Raises:
            DataError: the model keeps a window, axis, channel or range of slices that is not known, or
                percentiles are given that it did not learn.
        """
        read = dict(facts.get("read") or {})
        if facts:  # a model of 0.1 knows no levels
            read.setdefault("levels", "earlier" if read else "full")
        percentiles = isinstance(View.of(self.window).window, Percentiles)
        if facts and percentiles and self.window != read.get("window"):
            raise DataError(f"--window {self.window}: percentiles are learned by a fit; give LOW:HIGH")
        for name in KEPT[:-1]:  # levels are not the user's to give
            now, then = getattr(self, name), read.get(name)
            if name in read and now is not None and View.of(**{name: now}) != View.of(**{name: then}):
                fitted = "the default" if then is None else then
                said = f"--{name} {now}: the model was fitted with {fitted}"
                warnings.warn(f"{said}; its p-values and threshold do not hold", stacklevel=2)
        sized: dict[str, Any] = {} if shape is None else {"size": (shape[0], shape[1]), "channels": shape[2]}
        return replace(self.or_else(**{name: read.get(name) for name in KEPT}), **sized)

    def conform(self, images: ImageSet) -> ImageSet:
        """Converts images to the channels and the size that were asked for, channels first.

        Args:
            images: N images of any size.

        Returns:
            The same images, masks and labels, as `channels`, `size` and `max_size` say.
        """
        if self.channels is not None:
            images = images.with_channels(self.channels)
        height, width, _ = images.shape
        if self.size is not None:
            height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        elif self.max_size is not None and self.max_size < (longer := max(height, width)):
            height, width = (max(1, round(n * self.max_size / longer)) for n in (height, width))
        return images.resized(height, width)
