"""The options that several commands share, each written once, and the console.

A dataclass here is a group of arguments; `help.py` makes flags of its fields. The groups also do what their
options mean: `Images` reads images, `Model` loads a model, `Output` prints facts. Imports torch nowhere, as
scoring with an exported file needs none.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from ..core.errors import DataError
from ..data.formats.windowing import AXES
from ..data.formats.windowing import PRESETS as WINDOWS
from ..data.options import ReadOptions

if TYPE_CHECKING:
    from ..data.imageset import ImageSet
    from ..data.readers import Listing
    from ..deploy.onnx_model import OnnxModel
    from ..detectors import Detector

__all__ = ["AXES", "WINDOWS"]  # named in docstrings

err = Console(stderr=True)
out = Console(width=None if sys.stdout.isatty() else 140)


def remark(line: str, style: str | None = None) -> None:
    """Prints a line on stderr as it is, whatever its length and characters."""
    err.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def result(line: str) -> None:
    """Prints a line on stdout as it is, whatever its length and characters."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def remark_skipped(lines: Sequence[str]) -> None:
    """Names the files that were left out."""
    for line in lines:
        remark(f"skipped: {line}", "yellow")


def finite(x: float) -> float | None:
    """A number as JSON can hold it; None where it is infinite."""
    return float(x) if np.isfinite(x) else None


@dataclass(frozen=True, kw_only=True)
class Output:
    """The form of what is printed.

    Args:
        json: print one JSON object instead of a table
    """

    json: bool = False

    def show(self, facts: Mapping[str, Any]) -> None:
        """Prints facts in that form."""
        if self.json:
            print(json.dumps(facts))
            return
        table = Table(show_header=False, box=None)
        for key, value in facts.items():
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            if isinstance(value, list | tuple) and value and isinstance(value[0], float):
                text = " – ".join(f"{v:.4g}" for v in value)
            table.add_row(key.replace("_", " "), text)
        out.print(table)


@dataclass(frozen=True, kw_only=True)
class DataRoot:
    """Where known data sets lie.

    Args:
        data_root: folder in which the sets of `dia data list` lie (default: $DIA_DATA)
    """

    data_root: str | None = field(default_factory=lambda: os.environ.get("DIA_DATA"))


@dataclass(frozen=True, kw_only=True)
class Reading(DataRoot):
    """Images.

    Args:
        normal: class folders or label values that are normal, comma separated; all others are anomalous
        skip_bad: leave unreadable files out, and list them
        window: grey values of DICOM, NIfTI and float images: {WINDOWS} (Hounsfield units), CENTER,WIDTH, voi
            (each file's own) or full (all that its bits allow); default: as the model was fitted, or else voi
        axis: the axis of NIfTI slices: {AXES}; default: as the model was fitted, or else axial
        slices: which slices of each volume, as 10:-10; default: as the model was fitted, or else all
    """

    normal: str | None = None
    skip_bad: bool = False
    window: str | None = None
    axis: str | None = None
    slices: str | None = None

    def options(self) -> ReadOptions:
        """How these images are read."""
        return ReadOptions(
            normal=self.normal, skip_bad=self.skip_bad, window=self.window, axis=self.axis, slices=self.slices
        )


@dataclass(frozen=True, kw_only=True)
class Images(Reading):
    """Images.

    Args:
        data: a folder, .npz, .csv or image, or the name of a set of `dia data list`
        split: train, val, test or all, where the data have splits
        workers: threads that decode images (default: one for each core)
    """

    data: str
    split: str = "test"
    workers: int | None = None

    def read(
        self,
        facts: Mapping[str, Any] | None = None,
        *,
        size: int | tuple[int, int] | None = None,
        max_size: int | None = None,
        channels: int | None = None,
    ) -> ImageSet:
        """Reads all images, and names the files that were left out.

        Args:
            facts: of a model, whose window, axis and slices stand where none are given.
            size: side or (height, width) in pixels to which images are resized; as they are where None.
            max_size: longer side in pixels above which images are shrunk.
            channels: 1 or 3; as they are where None.

        Returns:
            The images, uint8.

        Raises:
            DataError: the data cannot be found or read.
        """
        from ..data.datasets import open_data

        options = ReadOptions.of(
            self.options(), size=size, max_size=max_size, channels=channels, workers=self.workers,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        images = open_data(self.data, self.split, self.data_root, options.as_fitted(facts or {}))
        remark_skipped(images.skipped)
        return images

    def read_for(self, detector: Detector) -> ImageSet:
        """Reads all images in the shape and the view that a model was fitted on."""
        h, w, c = detector.shape_
        return self.read(detector.facts_, size=(h, w), channels=c)

    def listing_for(self, detector: Detector | OnnxModel) -> Listing:
        """Lists the images in the shape and the view that a model was fitted on, before pixels are read."""
        from ..data.datasets import open_listing

        options = self.options().as_fitted(detector.facts_, detector.shape_)
        return open_listing(self.data, self.split, self.data_root, options)


@dataclass(frozen=True, kw_only=True)
class TrainingImages(Images):
    """Images."""

    split: str = "train"


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where torch runs.

    Args:
        device: auto, cpu, cuda or cuda:N
    """

    device: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Model(Device):
    """A fitted model.

    Args:
        run: a folder written by `dia fit`
    """

    run: str

    def load(self) -> Detector:
        """Loads it.

        Raises:
            DataError: it is no model folder.
        """
        from ..detectors import Detector

        return Detector.load(self.run, device=self.device)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The threshold of a fitted model.

    Args:
        false_alarm_rate: share of normal images to flag at most, on average (default: the one given to
            `dia fit`)
    """

    false_alarm_rate: float | None = None

    def of(self, detector: Detector | OnnxModel) -> float:
        """The rate as given, else that of the model.

        Raises:
            DataError: it lies outside (0, 1).
        """
        rate = detector.false_alarm_rate if self.false_alarm_rate is None else self.false_alarm_rate
        if not 0 < rate < 1:
            raise DataError(f"--false_alarm_rate must lie between 0 and 1, not {rate}")
        return float(rate)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """This machine or a cluster.

    Args:
        executor: local, or ray: over the CPU cores or GPUs of a machine or cluster, whose machines must see
            all files that are named here under the same paths
        ray_address: HOST:PORT of a Ray cluster that runs; default: start Ray on this machine
    """

    executor: Literal["local", "ray"] = "local"
    ray_address: str | None = None
