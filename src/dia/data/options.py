"""How images are read: one set of options, from the caller down to the decoding threads.

Knows values, and which of them a model keeps; knows nothing of files, layouts or data sets.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from ..core.errors import DataError
from .formats.windowing import View
from .imageset import ImageSet

SPLITS = ("train", "val", "test")
KEPT = ("window", "axis", "slices")  # the options that a fitted model keeps


@dataclass(frozen=True)
class ReadOptions:
    """Which images are read, and how. Every option has a default; None means that it was not given.

    Args:
        normal: comma-separated class folders or label values that are normal.
        anomalous: comma-separated class folders that are anomalous; classes in neither list are left out.
        train_normals: share (float in 0–1) or number (int) of the normals in the train split that is made for
            class folders; 0.8 where None.
        split_folders: the folder, or the word in a manifest's column `split`, of each of the splits "train",
            "val" and "test"; those names themselves (and "valid", "validation") where None.
        masks: the folder that holds the masks; "ground_truth" where None.
        size: (H, W) in pixels, or n for n × n; without it all images must share one size, after `max_size`.
        max_size: without `size`, images whose longer side exceeds it (in pixels) are shrunk to it, keeping
            the aspect.
        channels: 1 (grey) or 3 (RGB); as the files are where None.
        window: of DICOM, NIfTI and float images: a preset in Hounsfield units ("lung", ...), "CENTER,WIDTH",
            "voi" (each file's own, the default) or "full" (all that its bits allow).
        axis: of NIfTI volumes: "axial" (the default), "coronal", "sagittal"; "0", "1" or "2" as stored.
        slices: of each volume, as "10:-10"; all where None.
        skip_bad: leave unreadable files out; `ImageSet.skipped` has one line for each.
        workers: decoding threads, one per core where None; 1 decodes in the caller's thread.
        memmap_above: images of more bytes than this go to a memory map on an unlinked temporary file.
        progress: show a bar with the time left on stderr.

    Attributes:
        view: `window`, `axis` and `slices`, parsed.

    Raises:
        DataError: a size below 1 pixel, channels other than 1 and 3, less than one thread, folders of splits
            that do not exist, or a window, axis or range of slices that is not known.
    """

    normal: str | None = None
    anomalous: str | None = None
    train_normals: int | float | None = None
    split_folders: Mapping[str, str] | None = None
    masks: str | None = None
    size: int | tuple[int, int] | None = None
    max_size: int | None = None
    channels: int | None = None
    window: str | None = None
    axis: str | None = None
    slices: str | None = None
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
        object.__setattr__(self, "view", View.of(self.window, self.axis, self.slices))

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

    def kept(self) -> dict[str, str | None]:
        """Returns the options that a fitted model keeps (`window`, `axis`, `slices`), as they were typed."""
        return {name: getattr(self, name) for name in KEPT}

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
            The options with `window`, `axis` and `slices` as given, else as the model was fitted.

        Raises:
            DataError: the model keeps a window, axis or range of slices that is not known.
        """
        read = facts.get("read") or {}
        for name in KEPT:
            now, then = getattr(self, name), read.get(name)
            if name in read and now is not None and View.of(**{name: now}) != View.of(**{name: then}):
                fitted = f"--{name} {now}: the model was fitted with {then or 'the default'}"
                warnings.warn(f"{fitted}; its p-values and threshold do not hold", stacklevel=2)
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
